//! What is recorded, and where.

use clap::Args;

use super::values::{number, yes_or_no};
use crate::daemon::events::{EventsChoice, EventsConfig, FileLimits};

/// The largest file of records, in MiB, and the most files.
const MAX_SIZE: u32 = 65_536;
const MAX_FILES: u32 = 1000;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Events")]
pub(super) struct EventSettings {
    /// Where records go besides the memory: a file, syslog, journald [default: none]
    ///
    /// Records of sessions, logins, transfers and refusals; `ftpalg events` shows the last ones in any
    /// case. A file, with its path, gets a line of JSON for each.
    #[arg(long, value_name = "FILE|syslog|journald|none")]
    pub(super) events: Option<EventsChoice>,

    /// MiB that such a file has before the next one begins: 1 to 65536 [default: 10]
    #[arg(long, value_name = "MIB", value_parser = number(1..=MAX_SIZE, " MiB"))]
    pub(super) events_size: Option<u32>,

    /// How many such files are kept, FILE, FILE.1 and so on: 1 to 1000 [default: 5]
    #[arg(long, value_name = "N", value_parser = number(1..=MAX_FILES, " files"))]
    pub(super) events_files: Option<u32>,

    /// Whether records have the names of users and files: yes or no [default: yes]
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no())]
    pub(super) events_names: Option<bool>,
}

impl EventSettings {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            events: self.events.or(base.events),
            events_size: self.events_size.or(base.events_size),
            events_files: self.events_files.or(base.events_files),
            events_names: self.events_names.or(base.events_names),
        }
    }

    pub(super) fn config(self) -> EventsConfig {
        let default = EventsConfig::default();
        let size = self.events_size.map(|mib| u64::from(mib) << 20);
        EventsConfig {
            to: self.events.unwrap_or_default(),
            limits: FileLimits {
                size: size.unwrap_or(default.limits.size),
                files: self.events_files.unwrap_or(default.limits.files),
            },
            names: self.events_names.unwrap_or(default.names),
        }
    }
}
