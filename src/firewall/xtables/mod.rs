//! The iptables tools of the host: where they are, how they are run and what they say.
//!
//! [`tools`] finds them and speaks to one of them; [`command`] runs a program, bounded in time;
//! [`save`] reads the save format; [`snapshot`] is all that the tools tell about a network
//! namespace, and which flavour holds the user's rules. What the rules mean to FTP is not known
//! here.

pub mod command;
pub mod save;
pub mod snapshot;
pub mod tools;

use std::fmt;
use std::net::IpAddr;

/// Which of the two packet filters of the kernel a tool drives: they exist side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavour {
    /// `iptables-nft`: rules live in nf_tables.
    Nft,
    /// `iptables-legacy`: rules live in x_tables.
    Legacy,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

/// The address family of a rule set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4: `iptables`, nf_tables' `ip`.
    V4,
    /// IPv6: `ip6tables`, nf_tables' `ip6`.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// What its tools are called: `iptables` or `ip6tables`.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}
