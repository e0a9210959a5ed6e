//! What ftpalg shares with the host: its rules, its queues, and bits of its marks.

use std::str::FromStr;

use clap::Args;

use super::values::{mark, number, words};
use crate::daemon::config::RulesMode;
use crate::firewall::Placement;
use crate::net::Mark;

/// The most queues: far more than the control connections of one machine can use.
const MAX_QUEUES: u16 = 64;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Rules, queues and marks")]
pub(super) struct Host {
    /// Who puts the steering rules into place [default: manage]
    ///
    /// manage: ftpalg does, while it runs. external: you do; see `ftpalg rules print`.
    #[arg(long, value_name = "manage|external", hide_possible_values = true, value_parser = words::<RulesMode>(["manage", "external"]))]
    pub(super) rules: Option<RulesMode>,

    /// What places the steering rules [default: auto]
    ///
    /// iptables (its tools, in its tables), nft (over netlink in tables of its own: no program is run),
    /// or auto: iptables where the host has its tools, else nft.
    #[arg(long, value_name = "auto|iptables|nft", hide_possible_values = true, value_parser = words::<Placement>(["auto", "iptables", "nft"]))]
    pub(super) steering: Option<Placement>,

    /// Whether control packets are dropped or passed while they can't be looked at [default: closed]
    ///
    /// closed drops them, open passes them.
    #[arg(long, value_name = "closed|open", hide_possible_values = true, value_parser = words::<Fail>(["closed", "open"]))]
    pub(super) fail: Option<Fail>,

    /// How many queues, with a thread each, share the sessions: 1 to 64 [default: 1]
    #[arg(long, value_name = "N", value_parser = number(1..=MAX_QUEUES, ""))]
    pub(super) queues: Option<u16>,

    /// The number of the first queue [default: 2121]
    #[arg(long, value_name = "BASE", value_parser = number(0..=u16::MAX, ""))]
    pub(super) queue_num: Option<u16>,

    /// The bit of the connection mark that data connections carry, as a mask [default: 0x40000000]
    #[arg(long, value_name = "BIT", value_parser = mark)]
    pub(super) mark: Option<Mark>,

    /// The bit of the connection mark of control connections that a later ftpalg may go on with
    /// [default: 0x20000000]
    #[arg(long, value_name = "BIT", value_parser = mark)]
    pub(super) resume_mark: Option<Mark>,

    /// The bit of the connection mark of control connections that have a sequence delta
    /// [default: 0x10000000]
    #[arg(long, value_name = "BIT", value_parser = mark)]
    pub(super) uneven_mark: Option<Mark>,
}

impl Host {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            rules: self.rules.or(base.rules),
            steering: self.steering.or(base.steering),
            fail: self.fail.or(base.fail),
            queues: self.queues.or(base.queues),
            queue_num: self.queue_num.or(base.queue_num),
            mark: self.mark.or(base.mark),
            resume_mark: self.resume_mark.or(base.resume_mark),
            uneven_mark: self.uneven_mark.or(base.uneven_mark),
        }
    }
}

/// What happens to packets that nobody looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Fail {
    /// They are dropped.
    #[default]
    Closed,
    /// They pass.
    Open,
}

impl FromStr for Fail {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err("write one of closed, open"),
        }
    }
}
