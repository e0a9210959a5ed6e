//! The control socket: how `status`, `sessions` and `pinholes` ask the running daemon.
//!
//! A Unix stream socket with the abstract name `@ftpalg`: it belongs to the network namespace, as
//! the rules and the queue do, leaves nothing in the file system, and is gone with its process.
//! Anybody can bind that name. So it is no lock (that is [`lock`](super::lock)), and a daemon that
//! finds it taken adds a random number to it: [`ask()`] finds it in the kernel's list of sockets.
//!
//! The protocol: the client sends one JSON object and a line feed, the daemon answers with one
//! line of JSON, `{"ok": …}` or `{"error": "…"}`, and closes. Who follows records gets such a line for
//! each, until it goes: `{"ok": RECORD}`, or `{"ok": {"lost": N}}` if it was too slow for N. Both ends go by the other's
//! credentials (`SO_PEERCRED`): only root and the daemon's own user are spoken to, or believed.

mod ask;
mod serve;

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use ask::{AskError, ask, follow, holder};
pub use serve::{Answerer, BindError, ControlSocket};
pub(super) use serve::{MAX_CLIENTS, MAX_FOLLOWERS, MAX_WAITING};

/// The socket's name in the abstract namespace. If somebody else has it, a dash and a number are added.
const NAME: &str = "ftpalg";
/// How long a request may take to arrive, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(2);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub enum ControlRequest {
    /// How the daemon is: docs/reference.md lists the fields.
    Status,
    /// The control connections.
    Sessions,
    /// The data connections that are expected or there.
    Pinholes,
    /// The same, and those of the past.
    AllPinholes,
    /// The last commands and replies of a session, since they were asked for first.
    Dialogue {
        /// Its number.
        session: u64,
    },
    /// The last records.
    Events {
        /// Only those of this session.
        #[serde(default)]
        session: Option<u64>,
        /// Those that come as well, one in each line, until the client goes.
        #[serde(default)]
        follow: bool,
    },
}

/// How a request is answered.
pub enum Answer {
    /// By one line.
    Reply(Reply),
    /// By lines that come in time: each call waits for some, for so long at most.
    Follow(Box<dyn FnMut(Duration) -> Vec<Reply> + Send>),
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

/// Whether a process of that user may ask, or answer.
pub(super) fn trusted(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
