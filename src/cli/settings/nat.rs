//! What is announced, and what opens the ports of data connections.

use clap::Args;

use super::or;
use super::values::{number, words};
use crate::daemon::config::{AdvertiseChoice, BackendChoice};
use crate::ftp::nat64::Prefix;
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

    /// A prefix by which IPv6-only clients reach IPv4-only servers; repeatable [default: none]
    ///
    /// The one of the NAT64 translator (TAYGA, Jool) on this gateway: a length of 32, 40, 48, 56, 64 or 96;
    /// `default` is 64:ff9b::/96. EPSV and EPRT to servers in it become PASV and PORT (RFC 6384).
    #[arg(long, value_name = "PREFIX")]
    pub(super) nat64: Vec<Prefix>,

    /// What opens the ports of data connections [default: auto]
    ///
    /// nft (over netlink), iptables (a few rules for each), or auto: nft where the kernel has it with
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
            nat64: or(self.nat64, base.nat64),
            backend: self.backend.or(base.backend),
            deadline: self.deadline.or(base.deadline),
        }
    }
}
