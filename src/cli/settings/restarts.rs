//! How sessions outlive the process.

use std::str::FromStr;

use clap::Args;

use super::values::{number, words};
use crate::daemon::config::StateChoice;

/// The longest that the rules can stay for a successor, in seconds.
const MAX_HANDOVER: u64 = 600;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Restarts")]
pub(super) struct Restarts {
    /// Whether rewritten announcements keep the length of their line wherever possible
    /// [default: prefer]
    ///
    /// Then a later ftpalg, or another gateway, can go on with the connection.
    #[arg(long, value_name = "prefer|off", hide_possible_values = true, value_parser = words::<KeepLength>(["prefer", "off"]))]
    pub(super) keep_length: Option<KeepLength>,

    /// Where it keeps what a later ftpalg must know of some sessions [default: /run/ftpalg]
    ///
    /// These are control connections with a sequence delta. A directory, none, or a store that
    /// another gateway reads, too (valkey://HOST).
    #[arg(long, value_name = "DIR|none|URL")]
    pub(super) state: Option<StateChoice>,

    /// Seconds that the rules stay for a successor after SIGUSR2: 0 to 600 [default: 10]
    #[arg(long, value_name = "SECS", value_parser = number(0..=MAX_HANDOVER, " seconds"))]
    pub(super) handover: Option<u64>,
}

impl Restarts {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            keep_length: self.keep_length.or(base.keep_length),
            state: self.state.or(base.state),
            handover: self.handover.or(base.handover),
        }
    }
}

/// Whether announcements keep the length of their line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum KeepLength {
    /// Wherever that is possible.
    #[default]
    Prefer,
    /// No more than by chance.
    Off,
}

impl FromStr for KeepLength {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "prefer" => Ok(Self::Prefer),
            "off" => Ok(Self::Off),
            _ => Err("write one of prefer, off"),
        }
    }
}
