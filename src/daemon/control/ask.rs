//! The client's end of the control socket: finds the daemon of the network namespace, and asks it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;

use super::super::lock;
use super::{ControlRequest, NAME, PATIENCE, Reply, read_line, trusted};

/// The longest answer that a client takes, in bytes.
const MAX_REPLY: usize = 64 << 20;
/// How long the daemon may take: it may have others to answer, and the host's rules to look at.
const ANSWER: Duration = Duration::from_secs(10);
/// How much of the kernel's list of sockets is read, in bytes.
const MAX_LIST: u64 = 64 << 20;

/// Why the daemon couldn't be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("ftpalg doesn't run in this network namespace; start it with `ftpalg run`{0}")]
    NotRunning(String),
    /// It is there, but it isn't ours to ask, or not what it claims to be.
    #[error("{0}")]
    Refused(String),
    /// The conversation failed.
    #[error("the daemon doesn't answer ({0}); see its log")]
    Failed(#[from] io::Error),
}

/// Asks the daemon of this network namespace.
///
/// # Errors
/// [`AskError::NotRunning`] if there is none.
pub fn ask(request: ControlRequest) -> Result<Value, AskError> {
    let stream = send(request)?;
    let text = read_line(&stream, MAX_REPLY, Instant::now() + ANSWER).map_err(late)?;
    understood(&text)
}

/// Asks for what comes in time, and calls `each` with every answer until that says to stop (false), or the
/// daemon ends.
///
/// # Errors
/// As [`ask`]; a daemon that ends is no error.
pub fn follow(
    request: ControlRequest,
    mut each: impl FnMut(Value) -> bool,
) -> Result<(), AskError> {
    let stream = send(request)?;
    let mut lines = BufReader::new(&stream).lines();
    // Ends with the connection, also where that is reset.
    while let Some(Ok(line)) = lines.next() {
        if !each(understood(line.as_bytes())?) {
            break;
        }
    }
    Ok(())
}

/// Sends a request to the daemon of this network namespace.
fn send(request: ControlRequest) -> Result<UnixStream, AskError> {
    let stream = find()?;
    let mut line = serde_json::to_vec(&request).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.set_write_timeout(Some(PATIENCE))?;
    match (&stream).write_all(&line) {
        // It refused without reading: its reason is there to be read.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(stream)
}

/// A line of the daemon's.
fn understood(line: &[u8]) -> Result<Value, AskError> {
    match serde_json::from_slice(line) {
        Ok(Reply::Ok(value)) => Ok(value),
        Ok(Reply::Error(why)) => Err(AskError::Refused(why)),
        Err(_) => Err(AskError::Refused(format!(
            "the daemon answers in words that ftpalg {} doesn't know: it is of another version; \
             ask with its own program, or restart it",
            env!("CARGO_PKG_VERSION")
        ))),
    }
}

/// The process that listens on the control socket's usual name: its id and its user's.
#[must_use]
pub fn holder() -> Option<(i32, u32)> {
    let (_, peer) = dial(NAME, Duration::ZERO).ok()?;
    Some((peer.pid(), peer.uid()))
}

/// Connects to the daemon: to the first socket with one of its names on which a trusted process
/// listens. Other processes that have such a name aren't believed, and don't hide the daemon.
fn find() -> Result<UnixStream, AskError> {
    let mut search = Search::default();
    let names = std::iter::once_with(|| vec![NAME.to_owned()]).chain(std::iter::once_with(others));
    for name in names.flatten() {
        if let Some(stream) = search.look(name, Duration::ZERO) {
            return Ok(stream);
        }
    }
    // Either too many clients wait for the daemon, or another process has filled its own socket.
    let until = Instant::now() + ANSWER;
    let mut full = std::mem::take(&mut search.full);
    while let Some(name) = full.pop() {
        let left = until.saturating_duration_since(Instant::now());
        let share = u32::try_from(full.len() + 1).unwrap_or(u32::MAX);
        if let Some(stream) = search.look(name, left / share) {
            return Ok(stream);
        }
    }
    Err(search.vain())
}

/// What was met on the way to the daemon.
#[derive(Default)]
struct Search {
    /// Sockets that take nobody just now.
    full: Vec<String>,
    /// Somebody who isn't trusted.
    stranger: Option<UnixCredentials>,
    /// Why a socket couldn't be reached.
    error: Option<Errno>,
}

impl Search {
    fn look(&mut self, name: String, patience: Duration) -> Option<UnixStream> {
        match dial(&name, patience) {
            Ok((stream, peer)) if trusted(peer.uid()) => return Some(stream),
            Ok((_, peer)) => self.stranger = self.stranger.or(Some(peer)),
            Err(Errno::EAGAIN) => self.full.push(name),
            // Nobody listens, or no more.
            Err(Errno::ECONNREFUSED) => {}
            Err(errno) => self.error = self.error.or(Some(errno)),
        }
        None
    }

    fn vain(self) -> AskError {
        if let Some(errno) = self.error {
            return io::Error::from(errno).into();
        }
        let runs = lock::is_held();
        match self.stranger {
            None if self.full.is_empty() => AskError::NotRunning(String::new()),
            None => late(ErrorKind::TimedOut.into()).into(),
            // Root knows whether anybody has the lock.
            Some(peer) if runs == Some(false) => AskError::NotRunning(format!(
                " (the socket @{NAME} is that of pid {}, uid {}, who isn't believed)",
                peer.pid(),
                peer.uid()
            )),
            Some(peer) => AskError::Refused(format!(
                "the control socket @{NAME} belongs to uid {}; ask as that user, or stop pid {}",
                peer.uid(),
                peer.pid()
            )),
        }
    }
}

/// Says a socket's time limit in words.
fn late(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let what = format!("not within {} s", ANSWER.as_secs());
            io::Error::new(ErrorKind::TimedOut, what)
        }
        _ => error,
    }
}

/// Connects, and says who listens.
fn dial(name: &str, patience: Duration) -> Result<(UnixStream, UnixCredentials), Errno> {
    let flags = match patience.is_zero() {
        true => SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        false => SockFlag::SOCK_CLOEXEC,
    };
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    if !patience.is_zero() {
        let millis = i64::try_from(patience.as_millis())
            .unwrap_or(i64::MAX)
            .max(1);
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::milliseconds(millis))?;
    }
    connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials)?;
    let stream = UnixStream::from(fd);
    let errno = |e: io::Error| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    stream.set_nonblocking(false).map_err(errno)?;
    Ok((stream, peer))
}

/// The other names that daemons may have, as far as there are such sockets in this network namespace.
fn others() -> Vec<String> {
    let mut text = String::new();
    // The thread's view: /proc/net is that of the process's main thread.
    let list = File::open("/proc/thread-self/net/unix");
    match list.and_then(|list| list.take(MAX_LIST).read_to_string(&mut text)) {
        Ok(_) => listed(&text),
        Err(e) => {
            log::debug!("the sockets can't be listed: {e}");
            Vec::new()
        }
    }
}

/// Each name once, from a text in the format of `/proc/net/unix`: the eighth field is a path, or an
/// abstract name behind an at sign.
fn listed(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| {
        let path = line.split_ascii_whitespace().nth(7)?;
        let name = path.strip_prefix('@')?;
        let number = name.strip_prefix(NAME)?.strip_prefix('-')?;
        let hex = number.len() == 16 && number.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| name.to_owned())
    });
    // Accepted connections have the name as well.
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_from_the_kernels_list() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 11 @ftpalg-00112233aabbccdd\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 12 @ftpalg-00112233aabbccdd\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 13 @ftpalg\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 14 @ftpalg-short\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 15 /run/ftpalg-0011223344556677\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 16\n";
        assert_eq!(listed(text), ["ftpalg-00112233aabbccdd"]);
    }
}
