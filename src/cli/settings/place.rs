//! Where ftpalg works: the private side, and the control ports.

use clap::Args;
use ipnet::IpNet;

use super::or;
use crate::daemon::config;
use crate::firewall::Inside;
use crate::net::parse_network;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Where")]
pub(super) struct Place {
    /// The private side: an interface, or a network; repeatable [default, without --local: what the
    /// host's DNAT and MASQUERADE rules tell]
    #[arg(long, value_name = "IFACE|CIDR")]
    pub(super) inside: Vec<Inside>,

    /// Serve FTP servers and clients on this host itself, too [default: no]
    #[arg(long)]
    pub(super) local: bool,

    /// A control port, as the inside sees it; repeatable [default: 21]
    #[arg(long, value_name = "PORT", value_parser = config::port)]
    pub(super) port: Vec<u16>,

    /// A network whose control connections pass unread; repeatable [default: none]
    ///
    /// Whichever end is in it, as the inside sees it. Nothing in them is rewritten, opened or refused.
    /// What ftpalg follows already, it follows to its end.
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    pub(super) bypass: Vec<IpNet>,
}

impl Place {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            inside: or(self.inside, base.inside),
            local: self.local || base.local,
            port: or(self.port, base.port),
            bypass: or(self.bypass, base.bypass),
        }
    }
}
