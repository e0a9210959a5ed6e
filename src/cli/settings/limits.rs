//! The limits: names and numbers, in the table `[limits]` or with `--limit`.

use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;

use crate::daemon::config::{Limits, decimal};

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitSettings {
    /// A limit by its name; repeatable [default: see docs/reference.md]
    ///
    /// The names: sessions, sessions-per-client, pinholes, pinholes-per-client, pinholes-per-session,
    /// pinholes-per-minute, pinholes-per-client-per-minute, command-line, reply-line, pipelined. In the
    /// file they are a table [limits].
    #[arg(long = "limit", value_name = "NAME=N")]
    pub(super) limits: Vec<Limit>,
}

impl LimitSettings {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            limits: [base.limits, self.limits].concat(),
        }
    }
}

/// One limit that is chosen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    of: &'static Known,
    value: u32,
}

/// Something that can be limited.
#[derive(Debug)]
pub(super) struct Known {
    /// Its name.
    pub(super) name: &'static str,
    /// What it can be.
    pub(super) range: RangeInclusive<u32>,
    /// What is counted, for people.
    pub(super) about: &'static str,
    set: fn(&mut Limits, u32),
}

/// All limits.
pub(super) static ALL: [Known; 10] = [
    known("sessions", 1..=1_000_000, "sessions at once", |l, n| {
        l.plane.sessions = size(n);
    }),
    known(
        "sessions-per-client",
        1..=1_000_000,
        "the same of one client",
        |l, n| l.plane.sessions_per_client = size(n),
    ),
    known(
        "pinholes",
        1..=1_000_000,
        "pinholes that nobody has used yet",
        |l, n| l.plane.pinholes = size(n),
    ),
    known(
        "pinholes-per-client",
        1..=1_000_000,
        "the same of one client",
        |l, n| l.plane.pinholes_per_client = size(n),
    ),
    known(
        "pinholes-per-session",
        1..=64,
        "the same of one session",
        |l, n| l.plane.pinholes_per_session = size(n),
    ),
    known(
        "pinholes-per-minute",
        1..=u32::MAX,
        "new pinholes in a minute",
        |l, n| l.plane.pinholes_per_minute = n,
    ),
    known(
        "pinholes-per-client-per-minute",
        1..=u32::MAX,
        "the same of one client",
        |l, n| l.plane.pinholes_per_client_per_minute = n,
    ),
    known(
        "command-line",
        64..=4000,
        "bytes of a command that is acted on",
        |l, n| l.command_line = size(n),
    ),
    known(
        "reply-line",
        64..=4000,
        "bytes of a reply in which an address is looked for",
        |l, n| l.reply_line = size(n),
    ),
    known(
        "pipelined",
        1..=10_000,
        "commands of a session that wait for their reply",
        |l, n| l.pipelined = size(n),
    ),
];

const fn known(
    name: &'static str,
    range: RangeInclusive<u32>,
    about: &'static str,
    set: fn(&mut Limits, u32),
) -> Known {
    Known {
        name,
        range,
        about,
        set,
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Limit {
    fn new(name: &str, value: Option<u32>) -> Result<Self, String> {
        let Some(of) = ALL.iter().find(|known| known.name == name) else {
            let names: Vec<_> = ALL.iter().map(|known| known.name).collect();
            return Err(format!(
                "no limit {name:?}; write one of {}",
                names.join(", ")
            ));
        };
        match value.filter(|value| of.range.contains(value)) {
            Some(value) => Ok(Self { of, value }),
            None => {
                let (first, last) = (of.range.start(), of.range.end());
                Err(format!("{name} can be {first} to {last}"))
            }
        }
    }

    /// The defaults with these in their place; of several with one name the last counts.
    pub(super) fn apply(all: &[Self]) -> Limits {
        let mut limits = Limits::default();
        for Self { of, value } in all {
            (of.set)(&mut limits, *value);
        }
        limits
    }
}

impl FromStr for Limit {
    type Err = String;

    /// Reads `NAME=N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=N")?;
        Self::new(name, decimal(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_applied() {
        for Known { name, range, .. } in &ALL {
            let first = range.start();
            let limit: Limit = format!("{name}={first}").parse().unwrap();
            assert_ne!(Limit::apply(&[limit]), Limits::default(), "{name}");
        }
    }

    #[test]
    fn what_is_no_limit() {
        for (text, part) in [
            ("sessions", "NAME=N"),
            ("session=1", "sessions-per-client"),
            ("sessions=0", "1 to"),
            ("sessions=+1", "1 to"),
            ("sessions=x", "1 to"),
            ("pinholes-per-session=65", "1 to 64"),
            ("command-line=4001", "64 to 4000"),
        ] {
            let e = text.parse::<Limit>().unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
