//! Who was the daemon before: a note beside the journal, and the sessions that began before this one.
//!
//! A daemon that ends removes its note, and one that hands over says so in it. So a note that says
//! neither is of one that died.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::conntrack::Conntrack;
use crate::engine::{Entry, Marks, Tuple};
use crate::firewall::Steering;
use crate::net::Family;

use super::config::StateChoice;
use super::events::What;
use super::journal::Journal;

/// What a note says of one that handed over, and of any other.
const HANDED_OVER: &str = "handed-over";
const RUNS: &str = "runs";
/// The most sessions that are named.
const NAMED: usize = 20;

/// The daemon before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Predecessor {
    pid: u32,
    pub(super) handed_over: bool,
}

/// Where the note of this network namespace is; nowhere without a state directory.
#[derive(Clone, Debug)]
pub struct Note(Option<PathBuf>);

impl Note {
    /// In the directory of the journal.
    #[must_use]
    pub fn of(state: &StateChoice) -> Self {
        let path = state.directory().and_then(|directory| {
            let network = network().ok()?;
            let number: String = network.chars().filter(char::is_ascii_digit).collect();
            Some(directory.join(format!("daemon-{number}")))
        });
        Self(path)
    }

    /// What an earlier daemon wrote in this network namespace since the last boot.
    pub(super) fn read(&self) -> Option<Predecessor> {
        let text = fs::read_to_string(self.0.as_ref()?).ok()?;
        let mut words = text.split_ascii_whitespace();
        let place = (words.next()?, words.next()?);
        if place != (boot().ok()?.as_str(), network().ok()?.as_str()) {
            return None;
        }
        Some(Predecessor {
            pid: words.next()?.parse().ok()?,
            handed_over: words.next()? == HANDED_OVER,
        })
    }

    /// Writes that this process is the daemon, or that it hands over. It is a help for people: if it can't
    /// be written, it isn't there.
    pub(super) fn write(&self, handed_over: bool) {
        let Some(path) = &self.0 else { return };
        let how = if handed_over { HANDED_OVER } else { RUNS };
        let write = || {
            let text = format!("{} {} {} {how}\n", boot()?, network()?, std::process::id());
            let new = path.with_extension("new");
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&new)?.write_all(text.as_bytes())?;
            fs::rename(new, path)
        };
        if let Err(e) = write() {
            log::debug!("{} can't be written: {e}", path.display());
        }
    }

    /// Nothing is left of the daemon.
    pub fn remove(&self) {
        let Some(path) = &self.0 else { return };
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                log::debug!("{} can't be removed: {e}", path.display());
            }
            _ => {}
        }
    }
}

/// The kernel's random number of this boot.
fn boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_owned())
}

/// The network namespace of the calling thread.
fn network() -> io::Result<String> {
    let link = fs::read_link("/proc/thread-self/ns/net")?;
    Ok(link.to_string_lossy().into_owned())
}

/// What was taken over, if anything was: so many rules were cleared.
pub(super) fn taken_over(before: Option<Predecessor>, cleared: usize) -> Option<What> {
    let rules = u64::try_from(cleared).unwrap_or(u64::MAX);
    (rules > 0).then(|| What::TookOver {
        predecessor: before.map(|before| before.pid),
        handover: before.is_some_and(|before| before.handed_over),
        rules,
    })
}

/// The control connections that are under way, a line each: whether they go on.
pub(super) fn sessions(
    steering: &Steering,
    marks: Marks,
    journal: Option<&Journal>,
) -> Vec<String> {
    let mut all = Vec::new();
    let found = Conntrack::open().and_then(|mut conntrack| {
        for family in Family::ALL {
            for port in &steering.ports {
                all.extend(conntrack.answered_by(family, *port)?);
            }
        }
        Ok(())
    });
    if let Err(e) = found {
        log::info!("sessions that began before can't be listed: {e}");
    }
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    let recorded = |entry: &Entry| journal.is_some_and(|journal| is_recorded(journal, entry));
    let line = |entry: &Entry| {
        let (client, server) = (entry.original.src, entry.reply.src);
        let how = match entry.mark {
            mark if mark & marks.uneven != 0 && !recorded(entry) => {
                "can't go on: what was rewritten isn't known"
            }
            mark if mark & (marks.even | marks.uneven) != 0 => "goes on",
            _ => "isn't followed: its data connections get no pinholes",
        };
        format!("earlier session {client} -> {server} {how}")
    };
    let mut lines: Vec<_> = all.iter().map(line).collect();
    if more > 0 {
        lines.push(format!("and {more} earlier sessions more"));
    }
    lines
}

/// Whether the journal has a connection, by any of its names.
fn is_recorded(journal: &Journal, entry: &Entry) -> bool {
    let ends = [
        entry.original,
        entry.reply,
        Tuple {
            src: entry.original.src,
            dst: entry.reply.src,
        },
        Tuple {
            src: entry.reply.src,
            dst: entry.original.src,
        },
    ];
    ends.into_iter().any(|tuple| journal.find(tuple).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_tells_who_was_there_and_how_it_ended() {
        let directory = std::env::temp_dir().join(format!("ftpalg-note-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let note = Note::of(&StateChoice::Directory(directory.clone()));
        assert_eq!(note.read(), None);
        let pid = std::process::id();
        for handed_over in [false, true] {
            note.write(handed_over);
            assert_eq!(note.read(), Some(Predecessor { pid, handed_over }));
        }
        // One from before the last boot, one of another network, and one that is cut short.
        let path = note.0.clone().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        for other in [
            text.replacen('-', "0", 1),
            text.replace("net:", "met:"),
            text[..50].into(),
        ] {
            fs::write(&path, other).unwrap();
            assert_eq!(note.read(), None);
        }
        note.remove();
        note.remove();
        assert!(!path.exists());
        fs::remove_dir_all(directory).unwrap();
        assert_eq!(Note::of(&StateChoice::Nowhere).read(), None);
    }

    #[test]
    fn what_was_taken_over_is_said() {
        let before = |handed_over| {
            Some(Predecessor {
                pid: 7,
                handed_over,
            })
        };
        for (before, cleared, line) in [
            (
                before(false),
                8,
                Some("took over from pid 7, which died; 8 rules cleared"),
            ),
            (
                before(true),
                1,
                Some("took over from pid 7, which handed over; 1 rule replaced"),
            ),
            (None, 2, Some("2 rules of an earlier ftpalg cleared")),
            (before(false), 0, None),
        ] {
            let what = taken_over(before, cleared).map(|what| what.to_string());
            assert_eq!(what.as_deref(), line);
        }
    }
}
