//! The limits: names and numbers, in the table `[limits]` or with `--limit`.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::daemon::config::Limits;

/// One limit that is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    name: &'static str,
    value: u32,
}

/// What can be limited, and from where to where.
const NAMES: [(&str, u32, u32); 10] = [
    ("sessions", 1, 1_000_000),
    ("sessions-per-client", 1, 1_000_000),
    ("pinholes", 1, 65_536),
    ("pinholes-per-client", 1, 65_536),
    ("pinholes-per-session", 1, 64),
    ("pinholes-per-minute", 1, u32::MAX),
    ("pinholes-per-client-per-minute", 1, u32::MAX),
    ("command-line", 64, 4000),
    ("reply-line", 64, 4000),
    ("pipelined", 1, 10_000),
];

impl Limit {
    fn new(name: &str, value: Option<u32>) -> Result<Self, String> {
        let Some((name, first, last)) = NAMES.into_iter().find(|(known, ..)| *known == name) else {
            let names: Vec<_> = NAMES.iter().map(|(known, ..)| *known).collect();
            return Err(format!(
                "no limit {name:?}; write one of {}",
                names.join(", ")
            ));
        };
        match value.filter(|value| (first..=last).contains(value)) {
            Some(value) => Ok(Self { name, value }),
            None => Err(format!("{name} can be {first} to {last}")),
        }
    }

    /// The defaults with these in their place; of several with one name the last counts.
    pub(super) fn apply(all: &[Self]) -> Limits {
        let mut limits = Limits::default();
        for Self { name, value } in all {
            let value = *value;
            let number = usize::try_from(value).unwrap_or(usize::MAX);
            match *name {
                "sessions" => limits.sessions = number,
                "sessions-per-client" => limits.sessions_per_client = number,
                "pinholes" => limits.pinholes = number,
                "pinholes-per-client" => limits.pinholes_per_client = number,
                "pinholes-per-session" => limits.pinholes_per_session = number,
                "pinholes-per-minute" => limits.pinholes_per_minute = value,
                "pinholes-per-client-per-minute" => {
                    limits.pinholes_per_client_per_minute = value;
                }
                "command-line" => limits.command_line = number,
                "reply-line" => limits.reply_line = number,
                _ => limits.pipelined = number,
            }
        }
        limits
    }
}

impl FromStr for Limit {
    type Err = String;

    /// Reads `NAME=N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=N")?;
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        Self::new(name, value.parse().ok().filter(|_| digits))
    }
}

/// Reads the table.
pub(super) fn table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Limit>, D::Error> {
    struct Reader;
    impl<'de> Visitor<'de> for Reader {
        type Value = Vec<Limit>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table [limits] with numbers")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Limit>, A::Error> {
            let mut all = Vec::new();
            while let Some((name, value)) = map.next_entry::<String, i64>()? {
                let limit = Limit::new(&name, u32::try_from(value).ok());
                all.push(limit.map_err(A::Error::custom)?);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_map(Reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_applied() {
        for (name, first, _) in NAMES {
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
