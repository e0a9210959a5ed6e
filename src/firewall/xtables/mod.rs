//! The iptables tools of the host: where they are, how they are run and what they say.
//!
//! [`tools`] finds them and speaks to one of them; [`command`] runs a program, bounded in time;
//! `lasting` keeps one running; [`save`] reads the save format; [`snapshot`] is all that the tools tell about a network
//! namespace, and which flavour holds the user's rules. What the rules mean to FTP is not known
//! here.

pub mod command;
pub(crate) mod lasting;
pub mod save;
pub mod snapshot;
pub mod tools;

use std::fmt;

/// All tables of iptables.
pub const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

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
