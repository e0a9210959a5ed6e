//! What the daemon prints: a line per session, announced address and data connection.
//!
//! Lines go to the standard output by way of a thread and a bounded channel: a reader that stalls
//! costs lines (which are counted), never packets. No user name is ever in them.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use super::upstream::UpstreamNat;
use crate::engine::event::Event;
use crate::ftp::Mode;
use crate::pinholes::{DataConnection, PinholeInfo, PlaneReport, RangeEnd};

/// How many lines may wait for a slow reader.
const BACKLOG: usize = 4096;

/// How long the printer rests after each write. If many lines come in a short time, they share a
/// wake-up and a write; one for each line would be a tenth of what a small session costs.
const REST: Duration = Duration::from_millis(10);

/// Something to print.
#[derive(Clone, Debug)]
enum Item {
    Event(Event),
    Report(PlaneReport),
    Line(String),
    /// Answered when all before it is printed.
    Flush(SyncSender<()>),
}

/// A handle to the printer; cheap to clone.
#[derive(Clone, Debug)]
pub struct Output {
    items: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Output {
    /// Starts the printer's thread.
    ///
    /// # Errors
    /// If there can be no thread.
    pub fn start() -> io::Result<Self> {
        let (items, receiver) = mpsc::sync_channel(BACKLOG);
        thread::Builder::new()
            .name("output".into())
            .spawn(move || print(&receiver, io::stdout()))?;
        Ok(Self {
            items,
            lost: Arc::default(),
        })
    }

    /// Prints an event, unless too much waits already. Never blocks.
    pub fn event(&self, event: Event) {
        self.send(Item::Event(event));
    }

    /// Prints what the NAT plane reports, unless too much waits already. Never blocks.
    pub fn report(&self, report: PlaneReport) {
        self.send(Item::Report(report));
    }

    /// Prints a line, unless too much waits already. Never blocks.
    pub fn line(&self, line: String) {
        self.send(Item::Line(line));
    }

    /// Waits until all is printed, for at most `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.items.try_send(Item::Flush(done)).is_ok() {
            // Either way there is nothing left to do about it.
            let _ = wait.recv_timeout(patience);
        }
    }

    /// How many lines were not printed.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn send(&self, item: Item) {
        if self.items.try_send(item).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The printer: until all senders are gone.
fn print(items: &Receiver<Item>, mut to: impl Write) {
    let mut text = String::new();
    let mut upstream = UpstreamNat::default();
    while let Ok(first) = items.recv() {
        text.clear();
        let mut done = Vec::new();
        let mut next = Some(first);
        // All that has come meanwhile goes into the same write.
        while let Some(item) = next {
            let written = match item {
                Item::Event(event) if is_printed(&event) => {
                    if let Some(line) = upstream.look(&event) {
                        log::warn!("{line}");
                    }
                    writeln!(text, "{}", EventLine(&event))
                }
                Item::Event(_) => Ok(()),
                Item::Report(report) => writeln!(text, "{}", Told(&report)),
                Item::Line(line) => writeln!(text, "{line}"),
                Item::Flush(sender) => {
                    done.push(sender);
                    Ok(())
                }
            };
            debug_assert!(written.is_ok(), "a string takes anything");
            next = items.try_recv().ok();
        }
        // A closed standard output is no reason to stop working.
        let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
        for sender in done {
            let _ = sender.send(());
        }
        thread::sleep(REST);
    }
}

/// Whether an event has a line. Of a transfer, its data connection has one.
fn is_printed(event: &Event) -> bool {
    !matches!(
        event,
        Event::TransferBegun { .. } | Event::TransferEnded { .. }
    )
}

/// An event as a line without its line feed.
struct EventLine<'a>(&'a Event);

impl fmt::Display for EventLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} ", self.0.session().0)?;
        match self.0 {
            Event::SessionOpened {
                client,
                server,
                joined,
                ..
            } => {
                let how = if *joined { "joined" } else { "open" };
                write!(f, "{client} -> {server} {how}")
            }
            Event::NotAdmitted {
                client,
                server,
                why,
                ..
            } => write!(f, "{client} -> {server} passes unread: {why}"),
            Event::Announced {
                verb,
                mode,
                old,
                new,
                from,
                ..
            } => {
                let mode = match mode {
                    Mode::Passive => "passive",
                    Mode::Active => "active",
                };
                write!(f, "{verb} {old} -> {new} ({mode}, from {from})")
            }
            Event::Refused {
                verb,
                why,
                replaced,
                ..
            } => {
                let how = if *replaced {
                    "refused"
                } else {
                    "passed as it is"
                };
                write!(f, "{verb} {how}: ")?;
                // One line, whatever is in it.
                why.chars().try_for_each(|c| match c.is_control() {
                    true => write!(f, "{}", c.escape_debug()),
                    false => f.write_char(c),
                })
            }
            Event::LoggedIn { .. } => f.write_str("logged in"),
            Event::LoginRefused { code, .. } => write!(f, "login refused: {code}"),
            Event::TransferBegun { verb, .. } => write!(f, "{verb} begun"),
            Event::TransferEnded { verb, .. } => write!(f, "{verb} ended"),
            Event::Opaque { why, .. } => write!(f, "no longer read: {why}"),
            Event::ClearAgain { followed: true, .. } => {
                f.write_str("in clear text again: read again")
            }
            Event::ClearAgain { .. } => f.write_str(
                "in clear text again, but not followed: what it announces gets no pinholes",
            ),
            Event::TlsPassed { client, .. } => write!(
                f,
                "TLS hides its data connections: they get no pinholes, and need ports that are \
                 open anyway (--tls range:A-B opens them to this client alone, --tls deny refuses \
                 TLS); not said again for {client}"
            ),
            Event::SessionClosed { how, .. } => write!(f, "closed: {how}"),
        }
    }
}

/// A report as a line without its line feed.
struct Told<'a>(&'a PlaneReport);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = |f: &mut fmt::Formatter<'_>, data: &DataConnection| {
            write!(
                f,
                "session {} data {} -> {} => {}",
                data.session.0, data.from, data.to, data.land
            )
        };
        match self.0 {
            PlaneReport::Connected(connection) => data(f, connection),
            PlaneReport::Finished(finished) => {
                data(f, &finished.connection)?;
                write!(f, " closed after {:.1} s", finished.duration.as_secs_f64())?;
                match finished.bytes {
                    Some(bytes) => write!(f, ", {} bytes", bytes.original + bytes.reply),
                    None => Ok(()),
                }
            }
            PlaneReport::Expired(hole) => write!(
                f,
                "session {} pinhole {} -> {} => {} not used in time",
                hole.session.0, hole.from, hole.to, hole.land
            ),
            PlaneReport::RangeOpened(range) => {
                let ports = range.ports.as_deref().unwrap_or_default();
                let PinholeInfo {
                    session,
                    from,
                    to,
                    land,
                    ..
                } = range;
                let (session, to, land) = (session.0, to.ip(), land.ip());
                write!(
                    f,
                    "session {session} range {from} -> {to} => {land} ports {ports} open"
                )
            }
            PlaneReport::RangeClosed(range, why) => {
                let why = match why {
                    RangeEnd::Session => "the session ended",
                    RangeEnd::Idle => "idle",
                    RangeEnd::Conntrack => "conntrack forgot the session",
                };
                let PinholeInfo {
                    session, from, to, ..
                } = range;
                let (session, to) = (session.0, to.ip());
                write!(f, "session {session} range {from} -> {to} closed: {why}")
            }
            PlaneReport::Restored { missing } => write!(
                f,
                "rules were removed by somebody else; they are back ({})",
                missing.join("; ").escape_debug()
            ),
            PlaneReport::MissedEvents => f.write_str("conntrack events were missed; looked again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::gateway::{PinholeId, SessionId};

    fn line(event: &Event) -> String {
        EventLine(event).to_string()
    }

    const S: SessionId = SessionId(12);

    #[test]
    fn lines_can_be_searched() {
        assert_eq!(
            line(&Event::SessionOpened {
                session: S,
                client: "10.1.0.9:40112".parse().unwrap(),
                server: "10.0.0.2:21".parse().unwrap(),
                joined: false,
            }),
            "session 12 10.1.0.9:40112 -> 10.0.0.2:21 open"
        );
        assert_eq!(
            line(&Event::Announced {
                session: S,
                pinhole: PinholeId(1),
                verb: "227",
                mode: Mode::Passive,
                old: "10.0.0.2:50011".parse().unwrap(),
                new: "203.0.113.1:50011".parse().unwrap(),
                from: "198.51.100.7".parse().unwrap(),
                land: "10.0.0.2:50011".parse().unwrap(),
            }),
            "session 12 227 10.0.0.2:50011 -> 203.0.113.1:50011 (passive, from 198.51.100.7)"
        );
        assert_eq!(
            Told(&PlaneReport::Connected(DataConnection {
                pinhole: PinholeId(1),
                session: S,
                mode: Mode::Passive,
                from: "198.51.100.7:40113".parse().unwrap(),
                to: "203.0.113.1:50011".parse().unwrap(),
                land: "10.0.0.2:50011".parse().unwrap(),
                as_source: None,
                started: Duration::ZERO,
            }))
            .to_string(),
            "session 12 data 198.51.100.7:40113 -> 203.0.113.1:50011 => 10.0.0.2:50011"
        );
    }

    #[test]
    fn no_user_and_no_second_line() {
        let text = line(&Event::LoggedIn {
            session: S,
            user: "alice".into(),
        });
        assert_eq!(text, "session 12 logged in");
        let text = line(&Event::Refused {
            session: S,
            verb: "PORT",
            why: "somebody else's\naddress".into(),
            replaced: true,
        });
        assert_eq!(text, "session 12 PORT refused: somebody else's\\naddress");
    }

    #[test]
    fn printing_keeps_order_and_answers_a_flush() {
        let (items, receiver) = mpsc::sync_channel(10);
        let (done, wait) = mpsc::sync_channel(1);
        for text in ["one", "two"] {
            items.send(Item::Line(text.into())).unwrap();
        }
        items.send(Item::Flush(done)).unwrap();
        drop(items);
        let mut got = Vec::new();
        print(&receiver, &mut got);
        assert_eq!(got, b"one\ntwo\n");
        wait.recv_timeout(Duration::from_secs(5)).unwrap();
    }

    #[test]
    fn a_stalled_reader_costs_lines_not_time() {
        let (items, receiver) = mpsc::sync_channel(2);
        let output = Output {
            items,
            lost: Arc::default(),
        };
        for _ in 0..5 {
            output.line("x".into());
        }
        assert_eq!(output.lost(), 3);
        drop(receiver);
    }
}
