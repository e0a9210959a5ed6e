//! The daemon's end of the control socket: accepts clients, queues them, and answers them.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt};

use super::ask::holder;
use super::{Answer, ControlRequest, NAME, PATIENCE, Reply, read_line, remaining, trusted};

/// The longest request, in bytes with its line feed.
const MAX_REQUEST: usize = 4096;
/// How many clients are answered at a time.
pub(in super::super) const MAX_CLIENTS: usize = 8;
/// How many more may be connected: those that haven't asked yet, and those that wait for their turn.
/// Further ones wait in the kernel until some of these are answered or given up.
pub(in super::super) const MAX_WAITING: usize = 32;
/// How many may follow records at a time, besides those that are answered.
pub(in super::super) const MAX_FOLLOWERS: usize = 8;
/// How often a follower is looked at though there is nothing for it.
const LOOK: Duration = Duration::from_secs(1);
/// How long no client is accepted after accepting one failed.
const REST: Duration = Duration::from_millis(200);
/// How many names are tried for the socket.
const TRIES: usize = 8;

/// Why the socket couldn't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon runs already: its process, as ` (pid N)`, where that is known.
    #[error("ftpalg already runs in this network namespace{0}; stop that one first")]
    Running(String),
    /// Something else was refused.
    #[error("the control socket @{NAME} can't be bound ({0}); see `ss -xl`")]
    System(#[from] io::Error),
}

/// Answers requests; called from several threads.
pub type Answerer = dyn Fn(ControlRequest) -> Answer + Send + Sync;

/// The bound socket. Nobody is answered before [`serve`](Self::serve).
pub struct ControlSocket {
    listener: UnixListener,
    /// Wakes the thread that accepts clients.
    wake: Arc<EventFd>,
    /// No more clients are accepted.
    closing: Arc<AtomicBool>,
}

impl ControlSocket {
    /// Binds the socket of the calling thread's network namespace, for whoever has the
    /// [`Lock`](super::super::lock::Lock). Anybody can take its name. If somebody else has it, the
    /// socket gets another name, with a random part.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn bind() -> Result<Self, BindError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(io::Error::from)?;
        let mut name = NAME.to_owned();
        for _ in 0..TRIES {
            match UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?) {
                Ok(listener) => {
                    listener.set_nonblocking(true)?;
                    return Ok(Self {
                        listener,
                        wake: Arc::new(wake),
                        closing: Arc::default(),
                    });
                }
                Err(e) if e.kind() == ErrorKind::AddrInUse => {
                    let who = holder().map(|(pid, uid)| format!(" (pid {pid}, uid {uid})"));
                    log::warn!(
                        "somebody else{} has the socket @{name}: using another one",
                        who.unwrap_or_default()
                    );
                    let random = RandomState::new().build_hasher().finish();
                    name = format!("{NAME}-{random:016x}");
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(io::Error::from(ErrorKind::AddrInUse).into())
    }

    /// Once it is set, no more clients are accepted.
    pub fn closing(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.closing)
    }

    /// Answers clients for as long as the process lives, a few at a time, each in a thread of its
    /// own; sleeps while there are none. One that says nothing keeps nobody waiting.
    pub fn serve(self, answer: &Arc<Answerer>) {
        let slots = Arc::new(Slots {
            taken: AtomicUsize::new(0),
            wake: Arc::clone(&self.wake),
            followers: AtomicUsize::new(0),
        });
        let mut waiting: VecDeque<WaitingClient> = VecDeque::new();
        let mut entrance = Entrance::default();
        loop {
            let ready = self.wait(&waiting, slots.is_free(), &entrance);
            // It was written to wake this thread; its value doesn't matter.
            let _ = self.wake.read();
            // The rules are being removed: all processes and descriptors are for that now.
            while self.closing.load(Ordering::Relaxed) {
                thread::park();
            }
            if let Some(asked) = ready.clients {
                let now = Instant::now();
                for (client, asked) in std::mem::take(&mut waiting).into_iter().zip(asked) {
                    match asked.then(|| Slot::take(&slots)).flatten() {
                        Some(slot) => client.be_answered(slot, answer),
                        None if asked || client.until > now => waiting.push_back(client),
                        None => log::debug!("control client: said nothing"),
                    }
                }
            }
            if ready.listener {
                entrance.let_in(&self.listener, &self.closing, &mut waiting);
            }
        }
    }

    /// Waits for something to do. While no slot is free, waiting clients aren't looked at, and aren't
    /// given up.
    fn wait(&self, waiting: &VecDeque<WaitingClient>, free: bool, entrance: &Entrance) -> Ready {
        let now = Instant::now();
        let room = waiting.len() < MAX_WAITING && !self.closing.load(Ordering::Relaxed);
        let reopens = entrance.closed_until.filter(|until| room && *until > now);
        let open = room && reopens.is_none();
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        if open {
            fds.push(PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        }
        let looked_at = if free { waiting.len() } else { 0 };
        let clients = waiting.iter().take(looked_at);
        let gives_up = clients.clone().map(|one| one.until).min();
        fds.extend(clients.map(|one| PollFd::new(one.stream.as_fd(), PollFlags::POLLIN)));
        let timeout = match gives_up.into_iter().chain(reopens).min() {
            // A millisecond more, so that it doesn't end too early.
            Some(at) => (at.saturating_duration_since(now) + Duration::from_millis(1))
                .try_into()
                .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        if let Err(e) = poll(&mut fds, timeout) {
            log::debug!("control socket: {e}");
            thread::sleep(REST);
        }
        let mut events = fds.iter().map(|fd| fd.any() == Some(true)).skip(1);
        Ready {
            listener: open && events.next() == Some(true),
            clients: free.then(|| events.collect()),
        }
    }
}

/// What there is to do.
struct Ready {
    /// A client wants to connect.
    listener: bool,
    /// Which of the waiting clients have asked or gone; `None`: not looked at.
    clients: Option<Vec<bool>>,
}

/// Accepts clients, except for a while after that failed.
#[derive(Default)]
struct Entrance {
    closed_until: Option<Instant>,
    /// Why it failed last, until it succeeds.
    failed: Option<Errno>,
}

impl Entrance {
    fn let_in(
        &mut self,
        listener: &UnixListener,
        closing: &AtomicBool,
        waiting: &mut VecDeque<WaitingClient>,
    ) {
        while waiting.len() < MAX_WAITING && !closing.load(Ordering::Relaxed) {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => {
                    // Most likely there are no descriptors. That passes, and clients wait.
                    let errno = e.raw_os_error().map(Errno::from_raw);
                    if errno != self.failed {
                        log::warn!("control socket: nobody can be let in for now: {e}");
                    }
                    self.failed = errno;
                    self.closed_until = Some(Instant::now() + REST);
                    return;
                }
            };
            *self = Self::default();
            match getsockopt(&stream, sockopt::PeerCredentials) {
                Ok(peer) if trusted(peer.uid()) => waiting.push_back(WaitingClient {
                    stream,
                    until: Instant::now() + PATIENCE,
                }),
                Ok(_) => {
                    let why = "only root and the daemon's own user may ask; use sudo";
                    // One small write to an empty buffer, which doesn't wait.
                    note(reply(&stream, &Reply::Error(why.into())));
                }
                Err(e) => note(Err(e.into())),
            }
        }
    }
}

/// A client that hasn't been answered yet.
struct WaitingClient {
    stream: UnixStream,
    /// When it must have asked.
    until: Instant,
}

impl WaitingClient {
    fn be_answered(self, slot: Slot, answer: &Arc<Answerer>) {
        let answer = Arc::clone(answer);
        let client = move || {
            note(converse(&self.stream, &*answer, slot));
        };
        let thread = thread::Builder::new().name("control-client".into());
        if let Err(e) = thread.spawn(client) {
            log::warn!("control socket: no thread for a client: {e}");
        }
    }
}

/// One client's request and its answer.
fn converse(stream: &UnixStream, answer: &Answerer, slot: Slot) -> io::Result<()> {
    let line = read_line(stream, MAX_REQUEST, Instant::now() + PATIENCE)?;
    let answered = match serde_json::from_slice(&line) {
        Ok(request) => answer(request),
        Err(_) => Answer::Reply(Reply::Error(format!(
            "unknown request: the daemon is ftpalg {}, of another version than the one that asks; \
             restart it",
            env!("CARGO_PKG_VERSION")
        ))),
    };
    match answered {
        Answer::Reply(answered) => reply(stream, &answered),
        Answer::Follow(next) => match slot.becomes_follower() {
            Some(_place) => keep_telling(stream, next),
            None => reply(
                stream,
                &Reply::Error(format!("{MAX_FOLLOWERS} others follow already; end one")),
            ),
        },
    }
}

/// Sends what comes until the client goes. If it reads too slowly, this waits, and what it follows
/// goes on without it.
fn keep_telling(
    mut stream: &UnixStream,
    mut next: Box<dyn FnMut(Duration) -> Vec<Reply> + Send>,
) -> io::Result<()> {
    stream.set_write_timeout(None)?;
    while !has_gone(stream) {
        let mut lines = Vec::new();
        for reply in next(LOOK) {
            serde_json::to_writer(&mut lines, &reply)?;
            lines.push(b'\n');
        }
        stream.write_all(&lines)?;
    }
    Ok(())
}

/// Whether a client that has nothing more to say has closed its end.
fn has_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    !matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
}

/// Sends an answer, within [`PATIENCE`] in all.
fn reply(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let deadline = Instant::now() + PATIENCE;
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match stream.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Logs a failure: a client that went away is no problem of the daemon.
fn note(result: io::Result<()>) {
    if let Err(e) = result {
        log::debug!("control client: {e}");
    }
}

/// [`MAX_CLIENTS`] slots.
struct Slots {
    taken: AtomicUsize,
    /// Told when one is given back.
    wake: Arc<EventFd>,
    /// How many clients follow.
    followers: AtomicUsize,
}

impl Slots {
    fn is_free(&self) -> bool {
        self.taken.load(Ordering::Acquire) < MAX_CLIENTS
    }
}

/// A client's slot, given back when dropped.
struct Slot(Arc<Slots>);

impl Slot {
    fn take(slots: &Arc<Slots>) -> Option<Self> {
        let more = |n| (n < MAX_CLIENTS).then_some(n + 1);
        slots
            .taken
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_ok()
            .then(|| Self(Arc::clone(slots)))
    }
}

impl Slot {
    /// Gives the slot back in exchange for a follower's place, if one is free.
    fn becomes_follower(self) -> Option<Place> {
        let slots = Arc::clone(&self.0);
        let more = |n| (n < MAX_FOLLOWERS).then_some(n + 1);
        let taken = slots
            .followers
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then_some(Place(slots))
    }
}

/// A follower's place, given back when dropped.
struct Place(Arc<Slots>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        // It fails only if the counter is full, and then the thread wakes anyway.
        let _ = self.0.wake.write(1);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn slot() -> Slot {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let slots = Slots {
            taken: AtomicUsize::new(0),
            wake: Arc::new(wake),
            followers: AtomicUsize::new(0),
        };
        Slot::take(&Arc::new(slots)).unwrap()
    }

    #[test]
    fn a_follower_gives_its_slot_back_and_ends_with_its_client() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs
            .write_all(b"{\"ask\":\"events\",\"follow\":true}\n")
            .unwrap();
        let slot = slot();
        let slots = Arc::clone(&slot.0);
        let watched = Arc::clone(&slots);
        let server = thread::spawn(move || {
            let answer = move |request| {
                let follow = ControlRequest::Events {
                    session: None,
                    follow: true,
                };
                assert_eq!(request, follow);
                let slots = Arc::clone(&watched);
                Answer::Follow(Box::new(move |_| {
                    assert_eq!(slots.taken.load(Ordering::Acquire), 0);
                    vec![Reply::Ok(1.into())]
                }))
            };
            converse(&ours, &answer, slot)
        });
        let mut got = [0; 18];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"{\"ok\":1}\n{\"ok\":1}\n");
        drop(theirs);
        let _ = server.join().unwrap();
        assert_eq!(slots.followers.load(Ordering::Acquire), 0);
    }

    fn served(send: &[u8]) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let answer = |request| Answer::Reply(Reply::Ok(format!("{request:?}").into()));
            converse(&ours, &answer, slot())
        });
        theirs.write_all(send).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        // A server that closes with unread bytes resets the connection.
        let _ = theirs.read_to_end(&mut got);
        let _ = server.join().unwrap();
        got
    }

    #[test]
    fn a_request_is_answered_in_one_line() {
        assert_eq!(served(b"{\"ask\":\"status\"}\n"), b"{\"ok\":\"Status\"}\n");
        assert_eq!(
            served(b"{\"ask\":\"pinholes\"}\n"),
            b"{\"ok\":\"Pinholes\"}\n"
        );
    }

    #[test]
    fn nonsense_is_answered_with_an_error() {
        for text in [
            &b"\n"[..],
            b"{}\n",
            b"[[[[\n",
            b"{\"ask\":\"shutdown\"}\n",
            b"\xff\xfe\n",
        ] {
            let got = String::from_utf8(served(text)).unwrap();
            assert!(got.starts_with("{\"error\":\"unknown request"), "{got}");
        }
    }

    #[test]
    fn a_request_without_end_is_dropped() {
        assert_eq!(served(&vec![b'x'; 3 * MAX_REQUEST]), b"");
        assert_eq!(served(b"{\"ask\":"), b"");
    }

    #[test]
    fn slots_are_limited_and_given_back() {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let slots = Arc::new(Slots {
            taken: AtomicUsize::new(0),
            wake: Arc::new(wake),
            followers: AtomicUsize::new(0),
        });
        let all: Vec<_> = (0..MAX_CLIENTS).map(|_| Slot::take(&slots)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(Slot::take(&slots).is_none() && !slots.is_free());
        assert!(slots.wake.read().is_err(), "nobody is woken yet");
        drop(all);
        assert!(Slot::take(&slots).is_some());
        assert_eq!(slots.wake.read(), Ok(MAX_CLIENTS as u64 + 1));
    }
}
