//! The control socket: how `status`, `sessions` and `pinholes` ask the running daemon.
//!
//! A Unix stream socket with the abstract name `@ftpalg`: it belongs to the network namespace, as
//! the rules and the queue do, leaves nothing in the file system, and is gone with its process.
//! Being bound, it is the lock against a second daemon, too.
//!
//! The protocol: the client sends one JSON object and a line feed, the daemon answers with one
//! line of JSON, `{"ok": …}` or `{"error": "…"}`, and closes. Both ends go by the other's
//! credentials (`SO_PEERCRED`): only root and the daemon's own user are spoken to.

use std::io::{self, ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The socket's name in the abstract namespace.
const NAME: &str = "ftpalg";
/// How long a request may take to arrive, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request, in bytes with its line feed.
const MAX_REQUEST: usize = 4096;
/// The longest answer that a client takes, in bytes.
const MAX_REPLY: usize = 64 << 20;
/// How many clients are served at a time.
const MAX_CLIENTS: usize = 8;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// How the daemon is: see the README for the fields.
    Status,
    /// The control connections.
    Sessions,
    /// The data connections that are expected.
    Pinholes,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// What was asked for.
    Ok(Value),
    /// Why there is no answer.
    Error(String),
}

/// Why the daemon couldn't be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("ftpalg doesn't run in this network namespace; start it with `ftpalg run`")]
    NotRunning,
    /// It is there, but it isn't ours to ask, or not what it claims to be.
    #[error("{0}")]
    Refused(String),
    /// The conversation failed.
    #[error("the daemon doesn't answer ({0}); see its log")]
    Failed(#[from] io::Error),
}

/// Why the socket couldn't be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A daemon runs already.
    #[error("ftpalg already runs in this network namespace (pid {0}); stop that one first")]
    Running(i32),
    /// Something else has the name.
    #[error(
        "the control socket @{NAME} is held by another user's process (pid {pid}, uid {uid}); stop it"
    )]
    Squatted {
        /// Its process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// Something else was refused.
    #[error("the control socket @{NAME} can't be bound ({0}); see `ss -xl`")]
    System(#[from] io::Error),
}

/// Answers requests; called from several threads.
pub type Answerer = dyn Fn(Request) -> Reply + Send + Sync;

/// The bound socket. Nobody is answered before [`serve`](Self::serve).
pub struct ControlSocket(UnixListener);

impl ControlSocket {
    /// Binds the socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// [`BindError::Running`] if a daemon has it.
    pub fn bind() -> Result<Self, BindError> {
        match UnixListener::bind_addr(&address()?) {
            Ok(listener) => Ok(Self(listener)),
            Err(e) if e.kind() == ErrorKind::AddrInUse => {
                Err(holder().unwrap_or(BindError::System(e)))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Answers clients for as long as the process lives, each in a thread of its own, so that a
    /// slow one is nobody's problem; sleeps while there are none.
    pub fn serve(self, answer: &Arc<Answerer>) {
        let clients = Arc::new(AtomicUsize::new(0));
        loop {
            let stream = match self.0.accept() {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: it passes.
                    log::warn!("control socket: {e}");
                    thread::sleep(Duration::from_millis(200));
                    continue;
                }
            };
            let Some(place) = Place::take(&clients) else {
                // One small write to an empty buffer, which doesn't wait.
                note(reply(
                    &stream,
                    &Reply::Error("too many clients; try again".into()),
                ));
                continue;
            };
            let answer = Arc::clone(answer);
            let client = move || {
                note(converse(&stream, &*answer));
                drop(place);
            };
            if let Err(e) = thread::Builder::new()
                .name("control-client".into())
                .spawn(client)
            {
                log::warn!("control socket: no thread for a client: {e}");
            }
        }
    }
}

/// Asks the daemon of this network namespace.
///
/// # Errors
/// [`AskError::NotRunning`] if there is none.
pub fn ask(request: Request) -> Result<Value, AskError> {
    let stream = match UnixStream::connect_addr(&address()?) {
        Ok(stream) => stream,
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Err(AskError::NotRunning),
        Err(e) => return Err(e.into()),
    };
    let peer = getsockopt(&stream, sockopt::PeerCredentials).map_err(io::Error::from)?;
    if !trusted(peer.uid()) {
        return Err(AskError::Refused(format!(
            "the control socket @{NAME} belongs to uid {}; ask as that user, or stop pid {}",
            peer.uid(),
            peer.pid()
        )));
    }
    let mut line = serde_json::to_vec(&request).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(PATIENCE))?;
    (&stream).write_all(&line)?;
    // The daemon may have to look at the host's rules first.
    let text = read_line(&stream, MAX_REPLY, Instant::now() + PATIENCE * 5)?;
    match serde_json::from_slice(&text).map_err(io::Error::from)? {
        Reply::Ok(value) => Ok(value),
        Reply::Error(why) => Err(AskError::Refused(why)),
    }
}

/// One client's request and its answer.
fn converse(stream: &UnixStream, answer: &Answerer) -> io::Result<()> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    if !trusted(peer.uid()) {
        let why = "only root and the daemon's own user may ask; use sudo";
        return reply(stream, &Reply::Error(why.into()));
    }
    let line = read_line(stream, MAX_REQUEST, Instant::now() + PATIENCE)?;
    let answered = match serde_json::from_slice(&line) {
        Ok(request) => answer(request),
        Err(_) => Reply::Error("unknown request; is this the daemon's own ftpalg?".into()),
    };
    reply(stream, &answered)
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

/// Reads up to a line feed, of at most `max` bytes, until `deadline`.
fn read_line(mut stream: &UnixStream, max: usize, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        let n = match stream.read(&mut piece) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let piece = piece.get(..n).unwrap_or_default();
        let end = piece.iter().position(|&b| b == b'\n');
        line.extend_from_slice(piece.get(..end.unwrap_or(n)).unwrap_or_default());
        if line.len() > max {
            return Err(io::Error::new(ErrorKind::InvalidData, "too long a line"));
        }
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// The time until `deadline`, never zero (which would mean forever to a socket).
fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(ErrorKind::TimedOut.into()),
    }
}

/// A client that went away is its own affair.
fn note(result: io::Result<()>) {
    if let Err(e) = result {
        log::debug!("control client: {e}");
    }
}

/// Whether a process of that user may ask, or answer.
fn trusted(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw()
}

/// Who has the name; `None` if that can't be told (any more).
fn holder() -> Option<BindError> {
    let stream = UnixStream::connect_addr(&address().ok()?).ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    Some(if trusted(peer.uid()) {
        BindError::Running(peer.pid())
    } else {
        BindError::Squatted {
            pid: peer.pid(),
            uid: peer.uid(),
        }
    })
}

/// The socket's address.
fn address() -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(NAME)
}

/// A client's place among [`MAX_CLIENTS`], given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(clients: &Arc<AtomicUsize>) -> Option<Self> {
        clients
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < MAX_CLIENTS).then_some(n + 1)
            })
            .is_ok()
            .then(|| Self(Arc::clone(clients)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(send: &[u8]) -> Vec<u8> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            converse(&ours, &|request| Reply::Ok(format!("{request:?}").into()))
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
    fn a_slow_client_is_given_up_at_the_deadline() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let result = read_line(&ours, 10, Instant::now() + Duration::from_millis(20));
        assert!(matches!(
            result.unwrap_err().kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut
        ));
        drop(theirs);
    }

    #[test]
    fn places_are_limited_and_given_back() {
        let clients = Arc::new(AtomicUsize::new(0));
        let all: Vec<_> = (0..MAX_CLIENTS).map(|_| Place::take(&clients)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(Place::take(&clients).is_none());
        drop(all);
        assert!(Place::take(&clients).is_some());
    }
}
