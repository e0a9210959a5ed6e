//! As much of an HTTP server as a scrape needs: one path, one method, a bounded number of clients, and a
//! time limit for each of them.
//!
//! All clients are served by one thread, which never waits for any of them: a client that is slow, or that
//! says nothing, costs the others nothing. If there are as many as there may be, the one that has been there
//! for the longest time makes room.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How many clients may be connected.
pub(in crate::daemon) const MAX_CLIENTS: usize = 16;
/// How long a client may take, from its connection to its end.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request, in bytes.
const LONGEST: usize = 8192;
/// The most header fields of a request.
const MAX_FIELDS: usize = 64;
/// How long no client is taken if there are no descriptors for one.
const PAUSE: Duration = Duration::from_millis(500);

/// The path that is served.
pub(super) const PATH: &str = "/metrics";

/// Serves [`PATH`] with what `page` says, as long as the process lives. `after` is called when an answer is
/// on its way.
pub(super) fn serve(
    listener: &TcpListener,
    content: &str,
    mut page: impl FnMut() -> String,
    mut after: impl FnMut(),
) {
    let mut clients: Vec<Client> = Vec::new();
    let mut closed_until: Option<Instant> = None;
    loop {
        let now = Instant::now();
        closed_until = closed_until.filter(|until| *until > now);
        let ready = wait(listener, &clients, closed_until, now);
        let now = Instant::now();
        let mut answered = false;
        for (client, ready) in clients.iter_mut().zip(&ready.clients) {
            if *ready {
                client.go_on(content, &mut page);
                answered |= client.state == State::Answered;
            }
        }
        clients.retain(|client| client.state != State::Over && now < client.deadline);
        if ready.listener {
            match listener.accept() {
                Ok((stream, _)) => {
                    if clients.len() >= MAX_CLIENTS {
                        // The first one came first.
                        clients.remove(0);
                    }
                    clients.extend(Client::new(stream, now));
                }
                Err(e) if is_passing(&e) => {}
                Err(e) => {
                    log::debug!("metrics: {e}");
                    closed_until = Some(now + PAUSE);
                }
            }
        }
        if answered {
            after();
        }
    }
}

/// Who can be read or written.
struct Ready {
    listener: bool,
    clients: Vec<bool>,
}

/// Waits until somebody comes, somebody who is there can go on, or a time limit is over.
fn wait(
    listener: &TcpListener,
    clients: &[Client],
    closed_until: Option<Instant>,
    now: Instant,
) -> Ready {
    let mut fds: Vec<_> = clients
        .iter()
        .map(|client| {
            let wanted = match client.state {
                State::Answering => PollFlags::POLLOUT,
                _ => PollFlags::POLLIN,
            };
            PollFd::new(client.stream.as_fd(), wanted)
        })
        .collect();
    if closed_until.is_none() {
        fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
    }
    let deadlines = clients.iter().map(|client| client.deadline);
    let next = deadlines.chain(closed_until).min();
    // Rounded up, so that it is over then.
    let left = next.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
    let timeout = left.map_or(PollTimeout::NONE, |left| {
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    // A failure (EINTR) shows nobody ready.
    let count = poll(&mut fds, timeout).unwrap_or(0);
    let mut ready: Vec<_> = fds
        .iter()
        .map(|fd| count > 0 && fd.any().unwrap_or(false))
        .collect();
    let listener = match closed_until {
        None => ready.pop().unwrap_or(false),
        Some(_) => false,
    };
    Ready {
        listener,
        clients: ready,
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its request isn't complete.
    Asking,
    /// The answer isn't out.
    Answering,
    /// It is. What else the client sends is read away, so that the answer isn't lost by a reset.
    Answered,
    Over,
}

struct Client {
    stream: TcpStream,
    deadline: Instant,
    state: State,
    request: Vec<u8>,
    answer: Vec<u8>,
    /// How much of the answer is out.
    written: usize,
}

impl Client {
    fn new(stream: TcpStream, now: Instant) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        Some(Self {
            stream,
            deadline: now + PATIENCE,
            state: State::Asking,
            request: Vec::new(),
            answer: Vec::new(),
            written: 0,
        })
    }

    /// Reads or writes what can be.
    fn go_on(&mut self, content: &str, page: &mut impl FnMut() -> String) {
        let done = match self.state {
            State::Asking => self.read(content, page),
            State::Answering => self.write(),
            State::Answered => self.read_away(),
            State::Over => Ok(()),
        };
        match done {
            Err(e) if is_passing(&e) => {}
            Err(_) => self.state = State::Over,
            Ok(()) => {}
        }
    }

    fn read(&mut self, content: &str, page: &mut impl FnMut() -> String) -> io::Result<()> {
        let mut piece = [0; 2048];
        match self.stream.read(&mut piece)? {
            0 => self.state = State::Over,
            n => {
                self.request
                    .extend_from_slice(piece.get(..n).unwrap_or_default());
                if let Some(answer) = answer(&self.request, content, page) {
                    self.request = Vec::new();
                    self.answer = answer;
                    self.state = State::Answering;
                    self.write()?;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        while let Some(rest) = self.answer.get(self.written..).filter(|r| !r.is_empty()) {
            self.written += self.stream.write(rest)?;
        }
        self.answer = Vec::new();
        self.stream.shutdown(Shutdown::Write)?;
        self.state = State::Answered;
        Ok(())
    }

    fn read_away(&mut self) -> io::Result<()> {
        if self.stream.read(&mut [0; 2048])? == 0 {
            self.state = State::Over;
        }
        Ok(())
    }
}

/// The answer to a request, once it is complete or can't become right any more.
fn answer(request: &[u8], content: &str, page: impl FnOnce() -> String) -> Option<Vec<u8>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let plain = "text/plain; charset=utf-8";
    let refusal =
        |status: &str, more: &str| Some(response(status, more, plain, &format!("{status}\n")));
    match parsed.parse(request) {
        Ok(httparse::Status::Partial) if request.len() < LONGEST => return None,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refusal("431 Request Header Fields Too Large", "");
        }
        Err(_) => return refusal("400 Bad Request", ""),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let target = parsed.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match (path, parsed.method) {
        (PATH, Some("GET")) => Some(response("200 OK", "", content, &page())),
        (PATH, _) => refusal("405 Method Not Allowed", "Allow: GET\r\n"),
        _ => refusal("404 Not Found", ""),
    }
}

fn response(status: &str, more: &str, content: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {length}\r\n{more}\
         Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::thread;

    use super::*;

    fn status(request: &str) -> Option<String> {
        let answer = answer(request.as_bytes(), "text/x", || "page\n".into())?;
        let text = String::from_utf8(answer).unwrap();
        Some(text.split(' ').nth(1).unwrap().to_owned())
    }

    #[test]
    fn only_a_get_of_the_one_path_is_served() {
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", Some("200")),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", Some("200")),
            ("GET / HTTP/1.1\r\n\r\n", Some("404")),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Some("404")),
            ("GET http://x/metrics HTTP/1.1\r\n\r\n", Some("404")),
            ("POST /metrics HTTP/1.1\r\n\r\n", Some("405")),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", Some("405")),
            ("POST / HTTP/1.1\r\n\r\n", Some("404")),
            ("USER anonymous\r\n\r\n", Some("400")),
            ("\u{1}\u{2}\r\n\r\n", Some("400")),
            ("GET /metrics HTTP/1.1\r\nHost", None),
            ("", None),
        ] {
            assert_eq!(status(request).as_deref(), expected, "{request:?}");
        }
        let endless = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(LONGEST));
        assert_eq!(status(&endless).as_deref(), Some("431"));
        let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
        let many = format!("GET /metrics HTTP/1.1\r\n{many}\r\n");
        assert_eq!(status(&many).as_deref(), Some("431"));
    }

    /// A server whose page is larger than what a socket takes at once.
    fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, "text/plain", || "x".repeat(PAGE), || ()));
        addr
    }

    const PAGE: usize = 20 << 20;

    fn get(addr: SocketAddr) -> String {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn who_is_slow_or_silent_keeps_nobody_waiting() {
        let addr = start();
        let silent: Vec<_> = (0..10 * MAX_CLIENTS)
            .map(|_| TcpStream::connect(addr).unwrap())
            .collect();
        // These have asked, and don't read.
        let stuck: Vec<_> = (0..MAX_CLIENTS / 2)
            .map(|_| {
                let mut stream = TcpStream::connect(addr).unwrap();
                stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
                stream
            })
            .collect();
        let started = Instant::now();
        let answer = get(addr);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{:.200}", answer);
        assert!(answer.ends_with('x') && answer.len() > PAGE);
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
        // The first ones made room for later ones.
        let mut first = &silent[0];
        first
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        assert_eq!(first.read(&mut [0; 16]).unwrap_or(0), 0);
        // The others' time is over at some point.
        let mut last = silent.last().unwrap();
        last.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        assert_eq!(last.read(&mut [0; 16]).unwrap_or(0), 0);
        drop(stuck);
    }

    #[test]
    fn a_request_may_come_byte_by_byte_and_with_a_body() {
        let addr = start();
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        for byte in b"POST /metrics HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" {
            stream.write_all(&[*byte]).unwrap();
        }
        let _ = stream.write_all(&vec![b'x'; 100_000]);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("\r\nAllow: GET\r\n"), "{answer}");
    }
}
