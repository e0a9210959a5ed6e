//! What FTP sessions may not do.

use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;

use super::or;
use super::strict::StrictChoice;
use super::values::yes_or_no;
use crate::ftp::policy::{SERVICE_PORTS, SYSTEM_PORTS};
use crate::net::{PortRange, parse_network};

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "What is refused")]
pub(super) struct Refusing {
    /// Refuse what isn't strictly FTP: everything, or by these rules [default: none]
    ///
    /// The rules: order, unknown-verbs, long-lines, control-bytes, before-greeting, addresses,
    /// passive-ports (a server inside may not announce what --deny-ports names), failed-logins, and
    /// only if named active-late (a data port opens with the transfer command). In the file also as a
    /// table [strict].
    #[arg(
        long,
        value_name = "RULE,…",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    pub(super) strict: Option<StrictChoice>,

    /// A network whose addresses a client may name in PORT and EPRT besides its own; repeatable
    /// [default: none]
    ///
    /// It is for transfers between two servers.
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    pub(super) allow_foreign: Vec<IpNet>,

    /// A port or range that a client may not name in PORT and EPRT; repeatable [default: default]
    ///
    /// `default` stands for well-known services, `none` for no more than the ports below 1024, which
    /// are always denied.
    #[arg(long, value_name = "PORT|A-B")]
    pub(super) deny_ports: Option<Vec<DenyPorts>>,

    /// Let servers inside announce ports below 1024 for passive data connections [default: no]
    ///
    /// Otherwise such a reply is refused: services live there.
    #[arg(long)]
    pub(super) low_ports: bool,

    /// Whether data connections need a login before them [default: yes]
    #[arg(long, value_name = "yes|no", hide_possible_values = true, value_parser = yes_or_no())]
    pub(super) require_login: Option<bool>,
}

impl Refusing {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            strict: match (self.strict, base.strict) {
                (Some(own), Some(base)) => Some(own.over(base)),
                (own, base) => own.or(base),
            },
            allow_foreign: or(self.allow_foreign, base.allow_foreign),
            deny_ports: self.deny_ports.or(base.deny_ports),
            low_ports: self.low_ports || base.low_ports,
            require_login: self.require_login.or(base.require_login),
        }
    }
}

/// One value of `--deny-ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DenyPorts {
    /// These.
    Range(PortRange),
    /// The well-known services.
    Default,
    /// No more than system ports.
    None,
}

impl DenyPorts {
    /// The ports that are denied.
    pub(super) fn ports(chosen: Option<Vec<Self>>) -> Vec<RangeInclusive<u16>> {
        let chosen = chosen.unwrap_or_else(|| vec![Self::Default]);
        let mut ports = vec![SYSTEM_PORTS];
        for one in chosen {
            match one {
                Self::Range(range) => ports.push(range.first()..=range.last()),
                Self::Default => {
                    ports.extend(SERVICE_PORTS.into_iter().filter(|r| *r != SYSTEM_PORTS));
                }
                Self::None => {}
            }
        }
        ports
    }
}

impl FromStr for DenyPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            _ if text.contains('-') => text.parse().map(Self::Range),
            _ => format!("{text}-{text}")
                .parse()
                .map(Self::Range)
                .map_err(|_| "write a port, a range A-B, default, or none".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_ports() {
        let denied = |text: &str, port: u16| {
            let chosen = text.split(' ').map(|one| one.parse().unwrap()).collect();
            let ports = DenyPorts::ports(Some(chosen));
            ports.iter().any(|range| range.contains(&port))
        };
        assert!(denied("none", 22) && !denied("none", 3306));
        assert!(denied("default", 3306) && !denied("default", 8080));
        assert!(denied("default 8080", 8080) && denied("default 8080", 3306));
        assert!(denied("8000-8080", 8044) && !denied("8000-8080", 3306));
        assert_eq!(DenyPorts::ports(None), SERVICE_PORTS);
        for bad in ["", "0", "65536", "9-8", "ssh", "-", "+1"] {
            assert!(bad.parse::<DenyPorts>().is_err(), "{bad:?}");
        }
    }
}
