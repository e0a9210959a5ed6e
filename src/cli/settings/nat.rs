//! What is announced, and what opens the ports of data connections.

use clap::Args;

use super::or;
use super::values::{number, words};
use crate::daemon::config::{AdvertiseChoice, BackendChoice};
use crate::net::PortRange;

/// The longest that a pinhole can wait, in seconds.
const MAX_DEADLINE: u64 = 3600;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Addresses and data ports (NAT)")]
pub(super) struct Nat {
    /// Announce this address (or host name) instead; repeatable [default: the address that conntrack
    /// knows]
    ///
    /// For hosts whose address is hidden by NAT further out. With INSIDE= only for endpoints with
    /// that address. A name is looked up again every minute.
    #[arg(long, value_name = "[INSIDE=]PUBLIC")]
    pub(super) advertise: Vec<AdvertiseChoice>,

    /// The public ports of data connections to published servers [default: those that the servers
    /// announce]
    #[arg(long, value_name = "A-B")]
    pub(super) data_ports: Option<PortRange>,

    /// What opens the ports of data connections [default: auto]
    ///
    /// nft (over netlink), iptables (one rule for each), or auto: nft where the kernel has it with
    /// NAT, else iptables.
    #[arg(long, value_name = "auto|nft|iptables", hide_possible_values = true, value_parser = words::<BackendChoice>(["auto", "nft", "iptables"]))]
    pub(super) backend: Option<BackendChoice>,

    /// Seconds that an announced data connection is waited for: 1 to 3600 [default: 60]
    #[arg(long, value_name = "SECS", value_parser = number(1..=MAX_DEADLINE, " seconds"))]
    pub(super) deadline: Option<u64>,
}

impl Nat {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            advertise: or(self.advertise, base.advertise),
            data_ports: self.data_ports.or(base.data_ports),
            backend: self.backend.or(base.backend),
            deadline: self.deadline.or(base.deadline),
        }
    }
}
