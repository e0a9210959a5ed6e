//! What the daemon prints: a line per session, announced address and data connection.
//!
//! Lines go to the standard output by way of two threads and bounded channels: a reader that stalls
//! costs lines (which are counted), never packets. No user name is ever in them. On the way, everything
//! is [recorded](super::events).

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::events::{Plain, Recorder, What, allowed_by, human};
use super::upstream::UpstreamNat;
use crate::engine::event::Event;
use crate::ftp::Mode;
use crate::pinholes::{DataConnection, Finished, PinholeInfo, PlaneReport};

/// How many lines may wait for a slow reader.
const BACKLOG: usize = 4096;

/// How much text a chunk has room for before it grows, in bytes.
const ROOM: usize = 1024;

/// How long the collector rests after each round. If many lines come in a short time, they share a
/// wake-up and a write; one for each line would be a tenth of what a small session costs.
const REST: Duration = Duration::from_millis(10);
/// How often records that wait for something are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Something to print or to record. Small, since the channel keeps the memory of all places that it ever
/// used.
#[derive(Clone, Debug)]
enum Item {
    Event(Box<Event>),
    Report(Box<PlaneReport>),
    Line(String),
    /// Recorded, not printed.
    Note(Box<What>),
    /// Whether records have names from now on.
    Names(bool),
    /// Answered when all before it is printed.
    Flush(SyncSender<()>),
    /// Answered when all before it is recorded.
    Settle(SyncSender<()>),
}

/// A handle to the printer and the recorder; cheap to clone.
#[derive(Clone, Debug)]
pub struct Output {
    items: SyncSender<(Instant, Item)>,
    lost: Arc<AtomicU64>,
}

impl Output {
    /// Starts the threads: one collects, formats and records, the other writes to the standard output.
    /// So a reader that stalls keeps nothing from being recorded.
    ///
    /// # Errors
    /// If there can be no threads.
    pub(super) fn start(recorder: Recorder) -> io::Result<Self> {
        let (items, receiver) = mpsc::sync_channel(BACKLOG);
        let lost: Arc<AtomicU64> = Arc::default();
        let (lines, printed) = Lines::new(Arc::clone(&lost));
        thread::Builder::new()
            .name("output".into())
            .spawn(move || printed.print(io::stdout()))?;
        thread::Builder::new()
            .name("events".into())
            .spawn(move || collect(&receiver, recorder, &lines))?;
        Ok(Self { items, lost })
    }

    /// Prints and records an event, unless too much waits already. Never blocks.
    pub fn event(&self, event: Event) {
        self.send(Item::Event(Box::new(event)));
    }

    /// Prints and records what the NAT plane reports, unless too much waits already. Never blocks.
    pub fn report(&self, report: PlaneReport) {
        self.send(Item::Report(Box::new(report)));
    }

    /// Prints a line, unless too much waits already. Never blocks.
    pub fn line(&self, line: String) {
        self.send(Item::Line(line));
    }

    /// Records something that has no line, or another one. Never blocks.
    pub fn note(&self, what: What) {
        self.send(Item::Note(Box::new(what)));
    }

    /// Says whether records have users' and files' names from now on.
    pub fn names(&self, names: bool) {
        self.send(Item::Names(names));
    }

    /// Waits until all is printed, for at most `patience`.
    pub fn flush(&self, patience: Duration) {
        self.wait_for(Item::Flush, patience);
    }

    /// Waits until all is recorded, for at most `patience`.
    pub fn settle(&self, patience: Duration) {
        self.wait_for(Item::Settle, patience);
    }

    fn wait_for(&self, what: impl FnOnce(SyncSender<()>) -> Item, patience: Duration) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.items.try_send((Instant::now(), what(done))).is_ok() {
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
        if self.items.try_send((Instant::now(), item)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Lines on their way to the thread that writes them.
struct Lines {
    chunks: SyncSender<Chunk>,
    /// How many lines are on their way.
    waiting: Arc<AtomicUsize>,
    lost: Arc<AtomicU64>,
}

/// What is written at once.
struct Chunk {
    text: String,
    lines: usize,
    done: Vec<SyncSender<()>>,
}

/// The other end of [`Lines`].
struct Printed {
    chunks: Receiver<Chunk>,
    waiting: Arc<AtomicUsize>,
}

impl Chunk {
    /// Adds one.
    fn line(&mut self, line: impl fmt::Display) {
        // Writing to a string doesn't fail.
        let _ = writeln!(self.text, "{line}");
        self.lines += 1;
    }
}

impl Lines {
    fn new(lost: Arc<AtomicU64>) -> (Self, Printed) {
        let (chunks, receiver) = mpsc::sync_channel(BACKLOG);
        let waiting: Arc<AtomicUsize> = Arc::default();
        let lines = Self {
            chunks,
            waiting: Arc::clone(&waiting),
            lost,
        };
        let printed = Printed {
            chunks: receiver,
            waiting,
        };
        (lines, printed)
    }

    /// Hands lines on, unless too many wait already. Never blocks.
    fn send(&self, chunk: Chunk) {
        let lines = chunk.lines;
        if self.waiting.load(Ordering::Relaxed) > BACKLOG && lines > 0 {
            self.lose(lines);
            return;
        }
        self.waiting.fetch_add(lines, Ordering::Relaxed);
        if self.chunks.try_send(chunk).is_err() {
            self.waiting.fetch_sub(lines, Ordering::Relaxed);
            self.lose(lines);
        }
    }

    fn lose(&self, lines: usize) {
        let lines = u64::try_from(lines).unwrap_or(u64::MAX);
        self.lost.fetch_add(lines, Ordering::Relaxed);
    }
}

impl Printed {
    /// Writes lines until the other end is gone.
    fn print(self, mut to: impl Write) {
        while let Ok(chunk) = self.chunks.recv() {
            // A closed standard output is no reason to stop working.
            let _ = to
                .write_all(chunk.text.as_bytes())
                .and_then(|()| to.flush());
            self.waiting.fetch_sub(chunk.lines, Ordering::Relaxed);
            for sender in chunk.done {
                let _ = sender.send(());
            }
        }
    }
}

/// Formats and records until all senders are gone.
fn collect(items: &Receiver<(Instant, Item)>, mut recorder: Recorder, lines: &Lines) {
    let mut uncounted = false;
    let mut upstream = UpstreamNat::default();
    loop {
        let first = match recorder.is_waiting() {
            true => items.recv_timeout(LOOK),
            false => items.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let first = match first {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut settled = Vec::new();
        let mut chunk = Chunk {
            text: String::with_capacity(ROOM),
            lines: 0,
            done: Vec::new(),
        };
        // All that has come meanwhile goes into the same write.
        let more = std::iter::from_fn(|| items.try_recv().ok()).take(BACKLOG);
        for (at, item) in first.into_iter().chain(more) {
            match item {
                Item::Event(event) => {
                    recorder.event(&event, at);
                    if let Some(line) = upstream.look(&event) {
                        log::warn!("{line}");
                    }
                    if is_printed(&event) {
                        chunk.line(EventLine(&event));
                    }
                }
                Item::Report(report) => {
                    recorder.report(&report, at);
                    chunk.line(Told(&report));
                    if !uncounted && lacks_bytes(&report) {
                        uncounted = true;
                        chunk.line(UNCOUNTED);
                    }
                }
                Item::Line(line) => chunk.line(line),
                Item::Note(what) => recorder.note(*what, at),
                Item::Names(names) => recorder.set_names(names),
                Item::Flush(sender) => chunk.done.push(sender),
                Item::Settle(sender) => settled.push(sender),
            }
        }
        recorder.commit(Instant::now());
        for sender in settled {
            let _ = sender.send(());
        }
        if chunk.lines > 0 || !chunk.done.is_empty() {
            lines.send(chunk);
        }
        thread::sleep(REST);
    }
}

/// Said once, behind the first data connection that ended without it.
const UNCOUNTED: &str = "bytes aren't counted: `sysctl -w net.netfilter.nf_conntrack_acct=1` has \
                         conntrack count those of later connections";

/// Whether a data connection ended, and conntrack doesn't know its bytes.
fn lacks_bytes(report: &PlaneReport) -> bool {
    matches!(
        report,
        PlaneReport::Finished(Finished {
            bytes: None,
            established: true,
            ..
        })
    )
}

/// Whether an event has a line. Of a transfer, its data connection has one.
fn is_printed(event: &Event) -> bool {
    !matches!(
        event,
        Event::TransferBegun { .. } | Event::TransferEnded { .. }
    )
}

/// An address with its port. Lines consist of little else, and the standard library takes 1,600 instructions
/// for each: it makes a formatter for each number.
struct At<'a>(&'a SocketAddr);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SocketAddr::V4(at) = self.0 else {
            return self.0.fmt(f);
        };
        let mut digits = itoa::Buffer::new();
        let ends = [".", ".", ".", ":"];
        for (octet, end) in at.ip().octets().into_iter().zip(ends) {
            f.write_str(digits.format(octet))?;
            f.write_str(end)?;
        }
        f.write_str(digits.format(at.port()))
    }
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
                write!(f, "{} -> {} {how}", At(client), At(server))
            }
            Event::NotAdmitted {
                client,
                server,
                why,
                ..
            } => write!(f, "{client} -> {server} opens nothing: {why}"),
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
                write!(f, "{verb} {} -> {} ({mode}, from {from})", At(old), At(new))
            }
            Event::Refused {
                verb,
                why,
                address,
                replaced,
                ..
            } => {
                let how = if *replaced {
                    "refused"
                } else {
                    "passed as it is"
                };
                // One line, whatever is in it.
                write!(f, "{verb} {how}: {}", Plain(why))?;
                match (address, allowed_by(verb, why, *address)) {
                    (Some(address), Some(flag)) => write!(f, " ({address}; {flag} allows it)"),
                    (Some(address), None) => write!(f, " ({address})"),
                    (None, Some(flag)) => write!(f, " ({flag} allows it)"),
                    (None, None) => Ok(()),
                }
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
            Event::Bypassed { by, .. } => write!(f, "passes unread: --bypass {by}"),
            Event::SessionClosed { how, .. } => write!(f, "closed: {how}"),
        }
    }
}

/// Seconds, rate and bytes of a data connection.
fn carried(f: &mut fmt::Formatter<'_>, finished: &Finished) -> fmt::Result {
    let seconds = finished.duration.as_secs_f64();
    write!(f, " {seconds:.1} s")?;
    let Some(bytes) = finished.bytes else {
        return Ok(());
    };
    let bytes = bytes.original.saturating_add(bytes.reply);
    if let Some(rate) = human::rate(bytes, seconds) {
        write!(f, " at {}/s", human::bytes(rate))?;
    }
    write!(f, ", {bytes} bytes")
}

/// A report as a line without its line feed.
struct Told<'a>(&'a PlaneReport);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = |f: &mut fmt::Formatter<'_>, data: &DataConnection| {
            write!(
                f,
                "session {} data {} -> {} => {}",
                data.session.0,
                At(&data.from),
                At(&data.to),
                At(&data.land)
            )
        };
        match self.0 {
            PlaneReport::Connected(connection) => data(f, connection),
            PlaneReport::Finished(finished) if !finished.established => {
                data(f, &finished.connection)?;
                f.write_str(" never established: it got no answer, or was refused")
            }
            PlaneReport::Finished(finished) => {
                data(f, &finished.connection)?;
                f.write_str(" closed after")?;
                carried(f, finished)
            }
            PlaneReport::Running(finished) => {
                data(f, &finished.connection)?;
                f.write_str(" goes on without ftpalg after")?;
                carried(f, finished)
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
                let why = why.words();
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
            address: None,
            replaced: true,
        });
        assert_eq!(text, "session 12 PORT refused: somebody else's\\naddress");
    }

    #[test]
    fn a_refusal_names_the_address_and_what_would_allow_it() {
        let refused = |why: &str, address: &str| {
            line(&Event::Refused {
                session: S,
                verb: "PORT",
                why: why.into(),
                address: Some(address.parse().unwrap()),
                replaced: true,
            })
        };
        assert_eq!(
            refused("somebody else's address", "10.0.0.99:50001"),
            "session 12 PORT refused: somebody else's address \
             (10.0.0.99:50001; --allow-foreign 10.0.0.99 allows it)"
        );
        assert_eq!(
            refused("a service port", "10.1.0.9:22"),
            "session 12 PORT refused: a service port (10.1.0.9:22)"
        );
    }

    #[test]
    fn the_end_of_a_data_connection_has_bytes_and_a_rate() {
        let connection = DataConnection {
            pinhole: PinholeId(1),
            session: S,
            mode: Mode::Passive,
            from: "198.51.100.7:40113".parse().unwrap(),
            to: "203.0.113.1:50011".parse().unwrap(),
            land: "10.0.0.2:50011".parse().unwrap(),
            as_source: None,
            started: Duration::ZERO,
        };
        let finished = Finished {
            connection,
            bytes: Some(crate::conntrack::Bytes {
                original: 652,
                reply: 1_070_000,
            }),
            duration: Duration::from_millis(500),
            established: true,
            reset: false,
        };
        let told = |report| Told(&report).to_string();
        let data = "session 12 data 198.51.100.7:40113 -> 203.0.113.1:50011 => 10.0.0.2:50011";
        assert_eq!(
            told(PlaneReport::Finished(finished)),
            format!("{data} closed after 0.5 s at 2.04 MiB/s, 1070652 bytes")
        );
        assert_eq!(
            told(PlaneReport::Running(finished)),
            format!("{data} goes on without ftpalg after 0.5 s at 2.04 MiB/s, 1070652 bytes")
        );
        let (bytes, established) = (None, false);
        let none = Finished { bytes, ..finished };
        assert_eq!(
            told(PlaneReport::Finished(none)),
            format!("{data} closed after 0.5 s")
        );
        assert!(lacks_bytes(&PlaneReport::Finished(none)));
        let never = Finished {
            established,
            ..none
        };
        let never = PlaneReport::Finished(never);
        assert!(!lacks_bytes(&never));
        assert!(told(never).starts_with(&format!("{data} never established")));
    }

    #[test]
    fn addresses_look_as_they_always_do() {
        for text in [
            "0.0.0.0:0",
            "1.20.255.100:65535",
            "203.0.113.9:21",
            "[::]:1",
            "[2001:db8::1]:50011",
            "[::ffff:10.0.0.2]:21",
        ] {
            let at: SocketAddr = text.parse().unwrap();
            assert_eq!(At(&at).to_string(), text);
        }
    }

    fn recorder() -> Recorder {
        Recorder::open(&Default::default(), Default::default()).unwrap()
    }

    #[test]
    fn printing_keeps_order_and_answers_a_flush() {
        let (items, receiver) = mpsc::sync_channel(10);
        let (done, wait) = mpsc::sync_channel(1);
        let now = Instant::now();
        for text in ["one", "two"] {
            items.send((now, Item::Line(text.into()))).unwrap();
        }
        items.send((now, Item::Flush(done))).unwrap();
        drop(items);
        let (lines, printed) = Lines::new(Arc::default());
        collect(&receiver, recorder(), &lines);
        drop(lines);
        let mut got = Vec::new();
        printed.print(&mut got);
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
        // Nobody prints what is collected.
        let lost: Arc<AtomicU64> = Arc::default();
        let (lines, printed) = Lines::new(Arc::clone(&lost));
        let chunk = |lines| Chunk {
            text: "x\n".repeat(lines),
            lines,
            done: Vec::new(),
        };
        for _ in 0..4 {
            lines.send(chunk(BACKLOG / 2 + 1));
        }
        assert_eq!(lost.load(Ordering::Relaxed), (BACKLOG + 2) as u64);
        drop(lines);
        let mut got = Vec::new();
        printed.print(&mut got);
        assert_eq!(got.len(), 2 * (BACKLOG + 2));
    }
}
