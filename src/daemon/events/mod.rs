//! What happened, as records: in memory, and in a file or the system's log if wanted.
//!
//! The thread of [`output`](super::output) feeds the `Recorder`, so no packet waits for it. Names of
//! users and files are in records only, and not there either with `--events-names no`. Passwords never
//! come here.

mod chronicle;
mod file;
pub mod human;
mod log;
pub mod record;
mod refusal;
mod ring;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

pub use file::FileLimits;
pub use record::{KINDS, Record, Refused, Transfer, What};
pub use ring::{Batch, Cursor, Ring};

use super::config::BadValue;
use crate::engine::event::Event;
use crate::pinholes::PlaneReport;
use chronicle::Chronicle;
use file::EventFile;
use log::{Dialect, SystemLog};
pub(super) use record::Plain;
pub(super) use refusal::allowed_by;

/// Where records go besides the memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EventsChoice {
    /// Nowhere.
    #[default]
    Nowhere,
    /// To a file.
    File(PathBuf),
    /// To the syslog daemon.
    Syslog,
    /// To journald.
    Journald,
}

impl FromStr for EventsChoice {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "none" => Ok(Self::Nowhere),
            "syslog" => Ok(Self::Syslog),
            "journald" => Ok(Self::Journald),
            _ if text.contains('/') && !text.ends_with('/') => Ok(Self::File(text.into())),
            _ => Err(BadValue(
                "write a file with its path, or one of syslog, journald, none".into(),
            )),
        }
    }
}

impl fmt::Display for EventsChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => f.write_str("none"),
            Self::File(path) => path.display().fmt(f),
            Self::Syslog => f.write_str("syslog"),
            Self::Journald => f.write_str("journald"),
        }
    }
}

/// What is recorded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventsConfig {
    /// Where records go besides the memory.
    pub to: EventsChoice,
    /// How much of a file is kept.
    pub limits: FileLimits,
    /// Whether users' and files' names are recorded.
    pub names: bool,
}

impl Default for EventsConfig {
    /// In memory, with names; files of 10 MiB, five of them.
    fn default() -> Self {
        Self {
            to: EventsChoice::default(),
            limits: FileLimits {
                size: 10 << 20,
                files: 5,
            },
            names: true,
        }
    }
}

/// Makes records, and hands them on.
#[derive(Debug)]
pub(super) struct Recorder {
    chronicle: Chronicle,
    ring: Ring,
    sink: Sink,
    /// Records that didn't get into the sink since it worked.
    lost: u64,
    /// Before that, it isn't tried again: it may have room for a short line now and then.
    closed_until: Option<Instant>,
    fresh: Vec<Record>,
}

/// How long a sink that failed is left alone.
const REST: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Sink {
    None,
    File(PathBuf, EventFile),
    Log(Dialect, SystemLog),
}

impl Recorder {
    /// Opens what is to be written to.
    ///
    /// # Errors
    /// One line: what can't be opened, and how to mend it.
    pub(super) fn open(config: &EventsConfig, ring: Ring) -> Result<Self, String> {
        let log = |dialect, how| {
            let opened = SystemLog::open(dialect);
            opened
                .map(|log| Sink::Log(dialect, log))
                .map_err(|e| format!("--events {}: it can't be reached ({e}); {how}", config.to))
        };
        let sink = match &config.to {
            EventsChoice::Nowhere => Sink::None,
            EventsChoice::File(path) => EventFile::open(path, config.limits)
                .map(|file| Sink::File(path.clone(), file))
                .map_err(|e| {
                    format!(
                        "--events {}: it can't be opened ({e}); name a file in a directory that exists",
                        config.to
                    )
                })?,
            EventsChoice::Syslog => log(Dialect::Syslog, "start a syslog daemon, or name a file")?,
            EventsChoice::Journald => log(Dialect::Journald, "use syslog, or name a file")?,
        };
        Ok(Self {
            chronicle: Chronicle::new(config.names),
            ring,
            sink,
            lost: 0,
            closed_until: None,
            fresh: Vec::new(),
        })
    }

    /// Users' and files' names are recorded from now on, or no longer.
    pub(super) fn set_names(&mut self, names: bool) {
        self.chronicle.names = names;
    }

    pub(super) fn event(&mut self, event: &Event, at: Instant) {
        self.chronicle.event(event, at, &mut self.fresh);
    }

    pub(super) fn report(&mut self, report: &PlaneReport, at: Instant) {
        self.chronicle.report(report, at, &mut self.fresh);
    }

    pub(super) fn note(&mut self, what: What, at: Instant) {
        if let What::Stop { handover } = what {
            self.chronicle.finish(at, handover, &mut self.fresh);
        }
        self.chronicle.note(what, at, &mut self.fresh);
    }

    /// Whether [`commit`](Self::commit) is to be called soon though nothing happens.
    pub(super) fn is_waiting(&self) -> bool {
        self.chronicle.is_waiting()
    }

    /// Hands on what was recorded.
    pub(super) fn commit(&mut self, now: Instant) {
        self.chronicle.tick(now, &mut self.fresh);
        if self.fresh.is_empty() {
            return;
        }
        let count = u64::try_from(self.fresh.len()).unwrap_or(u64::MAX);
        if self.closed_until.is_some_and(|until| now < until) {
            self.lost = self.lost.saturating_add(count);
        } else {
            match self.write() {
                Ok(()) => self.works(),
                Err(error) => self.fails(count, now, &error),
            }
        }
        self.ring.add(self.fresh.drain(..));
    }

    fn write(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::None => Ok(()),
            Sink::File(_, file) => {
                let mut lines = String::new();
                for record in &self.fresh {
                    lines.push_str(&serde_json::to_string(record)?);
                    lines.push('\n');
                }
                file.write(&lines)
            }
            Sink::Log(_, log) => self.fresh.iter().try_for_each(|record| log.write(record)),
        }
    }

    fn works(&mut self) {
        self.closed_until = None;
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            ::log::warn!(
                "events: {} works again; {lost} records aren't in it",
                self.sink
            );
        }
    }

    /// Said once, until it works again.
    fn fails(&mut self, count: u64, now: Instant, error: &io::Error) {
        self.closed_until = now.checked_add(REST);
        if self.lost == 0 {
            ::log::error!(
                "events: {} can't be written to: {error}; records are lost until it can be \
                 (`ftpalg events` has the last ones)",
                self.sink
            );
        }
        self.lost = self.lost.saturating_add(count);
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing"),
            Self::File(path, _) => path.display().fmt(f),
            Self::Log(Dialect::Syslog, _) => f.write_str("syslog"),
            Self::Log(Dialect::Journald, _) => f.write_str("journald"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_shown() {
        for text in [
            "none",
            "syslog",
            "journald",
            "/var/log/ftpalg/events",
            "./events",
        ] {
            assert_eq!(text.parse::<EventsChoice>().unwrap().to_string(), text);
        }
        for text in ["", "jornald", "events", "/var/log/"] {
            assert!(text.parse::<EventsChoice>().is_err(), "{text}");
        }
    }
}
