//! An FTP client and an FTP server that say exactly what they are told to, cut as they are told.
//!
//! Real programs write an address in one piece. These write it in any pieces, over real sockets
//! in the lab's namespaces.

use std::io::{BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, Backlog};

use super::net::Net;

/// The limit for anything that a session without loss waits for.
pub const LIMIT: Duration = Duration::from_secs(3);

/// How a data connection is agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The server's `227`.
    Pasv,
    /// The server's `229`.
    Epsv,
    /// The client's `PORT`.
    Port,
    /// The client's `EPRT`.
    Eprt,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pasv, Self::Epsv, Self::Port, Self::Eprt];

    /// Whether the server announces.
    pub fn passive(self) -> bool {
        matches!(self, Self::Pasv | Self::Epsv)
    }

    /// The announcing line.
    pub fn line(self, address: SocketAddr) -> String {
        let (ip, port) = (address.ip(), address.port());
        let version = if ip.is_ipv4() { 1 } else { 2 };
        match self {
            Self::Pasv => format!("227 Entering Passive Mode ({}).\r\n", numbers(address)),
            Self::Epsv => format!("229 Entering Extended Passive Mode (|||{port}|)\r\n"),
            Self::Port => format!("PORT {}\r\n", numbers(address)),
            Self::Eprt => format!("EPRT |{version}|{ip}|{port}|\r\n"),
        }
    }

    /// The address in a line; a `229` names only the port of `peer`.
    pub fn address(self, line: &str, peer: IpAddr) -> Result<SocketAddr, Error> {
        let found = match self {
            Self::Pasv | Self::Port => six_numbers(line),
            Self::Epsv => line
                .split('|')
                .nth(3)
                .and_then(|port| Some(SocketAddr::new(peer, port.parse().ok()?))),
            Self::Eprt => {
                let mut fields = line.split('|').skip(2);
                let ip = fields.next().and_then(|ip| ip.parse().ok());
                let port = fields.next().and_then(|port| port.parse().ok());
                ip.zip(port).map(|(ip, port)| SocketAddr::new(ip, port))
            }
        };
        found.ok_or_else(|| Error::other(format!("no address in {line:?}")))
    }
}

/// Where the announcing line is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Before these bytes of the line (0 is its first); positions beyond its end count for nothing.
    At(Vec<usize>),
    /// After every byte.
    EveryByte,
}

/// How the pieces follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// At once each (`TCP_NODELAY`), with a pause in between.
    Pauses(Duration),
    /// Back to back, with Nagle's algorithm: the second waits for the ack of the first.
    Nagle,
    /// The sender itself waits until each piece is acknowledged.
    Acked,
}

/// One transfer of a session: how it is announced, and how the announcing line is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Who announces, and with what.
    pub verb: Verb,
    /// Where the announcing line is cut.
    pub cut: Cut,
    /// How the pieces follow each other.
    pub pace: Pace,
}

impl Step {
    /// A line in one piece.
    pub fn whole(verb: Verb) -> Self {
        Self {
            verb,
            cut: Cut::At(Vec::new()),
            pace: Pace::Pauses(Duration::ZERO),
        }
    }
}

/// One session: login, a download for each step, farewell.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The transfers, one after the other.
    pub steps: Vec<Step>,
    /// The port of the first step's data connection, and the next one for the next; any if `None`.
    pub ports: Option<u16>,
    /// How long either end waits for anything.
    pub limit: Duration,
}

impl Plan {
    /// These transfers, over lines that lose nothing.
    pub fn new(steps: Vec<Step>) -> Self {
        Self {
            steps,
            ports: None,
            limit: LIMIT,
        }
    }

    fn port(&self, index: usize) -> u16 {
        let index = u16::try_from(index).expect("a port for each transfer");
        self.ports.map_or(0, |first| first + index)
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For each step.
    pub transfers: Vec<Transfer>,
    /// All that the client read from the control connection.
    pub client_read: String,
    /// All that the server read from it.
    pub server_read: String,
}

/// What came out of one transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// From the first piece of the announcement (passive: from the command that asks for it) to
    /// the reply that ends the transfer.
    pub took: Duration,
    /// The announcing line as it was written.
    pub sent: String,
    /// The announcing line as it was read.
    pub read: String,
}

/// Runs a session.
///
/// # Errors
/// What the client or the server met with.
pub fn session(net: &Net, plan: &Plan) -> Result<Outcome, String> {
    let (client, server) = peers(
        net,
        plan.limit,
        |control| fetch(control, plan),
        |control| serve(control, plan),
    )?;
    let steps = plan.steps.iter().zip(client.lines).zip(server.lines);
    let transfers = steps.zip(client.took);
    Ok(Outcome {
        transfers: transfers
            .map(|(((step, client), server), took)| {
                let (sent, read) = if step.verb.passive() {
                    (server, client)
                } else {
                    (client, server)
                };
                Transfer { took, sent, read }
            })
            .collect(),
        client_read: client.heard,
        server_read: server.heard,
    })
}

/// Listens at an address of the calling thread's namespace. A listener that was closed may still be
/// there for a moment: a process that another thread has forked holds it until it becomes another
/// program.
///
/// # Errors
/// If the address isn't to be had for seconds.
pub fn listen(at: SocketAddr) -> Result<TcpListener, Error> {
    let start = Instant::now();
    loop {
        match TcpListener::bind(at) {
            Err(e) if e.kind() == ErrorKind::AddrInUse && start.elapsed().as_secs() < 5 => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}

/// Connects a client to a server, and lets each of them do what it does, in its own namespace.
///
/// # Errors
/// What the client or the server met with.
pub fn peers<C: Send, S: Send>(
    net: &Net,
    limit: Duration,
    client: impl FnOnce(Control) -> Result<C, Error> + Send,
    server: impl FnOnce(Control) -> Result<S, Error> + Send,
) -> Result<(C, S), String> {
    let topology = net.topology();
    let listener = net
        .within(topology.server, || listen(topology.listen))
        .map_err(|error| format!("{}: {error}", topology.listen))?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            net.within(topology.server, move || {
                server(Control::new(accept(&listener, limit)?, limit)?)
            })
        });
        let client = scope.spawn(|| {
            net.within(topology.client, move || {
                let stream = TcpStream::connect_timeout(&topology.dial, limit)?;
                client(Control::new(stream, limit)?)
            })
        });
        let client = client.join().expect("no panic");
        let server = server.join().expect("no panic");
        match (client, server) {
            (Ok(client), Ok(server)) => Ok((client, server)),
            (client, server) => Err(format!(
                "client: {}; server: {}",
                words(client.map(drop)),
                words(server.map(drop))
            )),
        }
    })
}

/// How many connections may wait for a server that many come to at once: with the 128 that the
/// standard library asks for, the kernel answers with SYN cookies, and forgets who then has to wait.
const CROWD: i32 = 1024;

/// Serves any number of sessions of this plan, each in a thread of its own, while `what` runs.
///
/// # Panics
/// If the server's address is taken, and if `what` panics.
pub fn serving<T>(net: &Net, plan: &Plan, what: impl FnOnce() -> T) -> T {
    let topology = net.topology();
    let over = AtomicBool::new(false);
    net.sysctl(topology.server, "net.core.somaxconn", &CROWD.to_string());
    let listener = net
        .within(topology.server, || listen(topology.listen))
        .unwrap_or_else(|error| panic!("{}: {error}", topology.listen));
    let crowd = Backlog::new(CROWD).expect("a possible length");
    socket::listen(&listener, crowd).expect("a listener");
    std::thread::scope(|scope| {
        let over = &over;
        scope.spawn(move || {
            net.within(topology.server, move || {
                std::thread::scope(|scope| {
                    while let Ok((stream, _)) = listener.accept() {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        // Whatever goes wrong, the client knows.
                        scope.spawn(move || {
                            serve(Control::new(stream, plan.limit)?, plan).map(drop)
                        });
                    }
                });
            });
        });
        let _end = Farewell { net, over };
        what()
    })
}

/// Ends the server however the test ends.
struct Farewell<'a> {
    net: &'a Net,
    over: &'a AtomicBool,
}

impl Drop for Farewell<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let topology = self.net.topology();
        let wake = || drop(TcpStream::connect_timeout(&topology.listen, LIMIT));
        self.net.within(topology.server, wake);
    }
}

/// A client's session with a server that is there, from the calling thread's namespace.
///
/// # Errors
/// What the client met with.
pub fn visit(dial: SocketAddr, plan: &Plan) -> Result<(), Error> {
    let stream = TcpStream::connect_timeout(&dial, plan.limit)?;
    fetch(Control::new(stream, plan.limit)?, plan).map(drop)
}

fn words(result: Result<(), Error>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "well".to_owned())
}

/// What is transferred.
pub const CONTENT: &[u8] = b"All there, in this order, and nothing else.\r\n";

/// What one end of a session has to tell.
struct Tale {
    /// The announcing lines, as written or read.
    lines: Vec<String>,
    /// How long each transfer took.
    took: Vec<Duration>,
    /// All that it read.
    heard: String,
}

enum Data {
    Listening(TcpListener),
    Connect(SocketAddr),
}

fn serve(mut control: Control, plan: &Plan) -> Result<Tale, Error> {
    let mut lines = Vec::new();
    let mut data = None;
    control.send("220 ready\r\n")?;
    loop {
        let line = control.read()?;
        let step = plan.steps.get(lines.len());
        match (line.get(..4).unwrap_or(&line), step) {
            ("USER", _) => control.send("331 password, please\r\n")?,
            ("PASS", _) => control.send("230 welcome\r\n")?,
            ("PASV" | "EPSV", Some(step)) => {
                let here = control.stream.local_addr()?.ip();
                let listener = listen((here, plan.port(lines.len())).into())?;
                let announced = step.verb.line(listener.local_addr()?);
                data = Some(Data::Listening(listener));
                control.send_cut(&announced, step)?;
                lines.push(announced);
            }
            ("PORT" | "EPRT", Some(step)) => {
                let peer = control.stream.peer_addr()?.ip();
                data = Some(Data::Connect(step.verb.address(&line, peer)?));
                lines.push(line);
                control.send("200 fine\r\n")?;
            }
            ("RETR", _) => {
                control.send("150 here it comes\r\n")?;
                let mut stream = match data.take() {
                    Some(Data::Listening(listener)) => accept(&listener, plan.limit)?,
                    Some(Data::Connect(to)) => TcpStream::connect_timeout(&to, plan.limit)?,
                    None => return Err(Error::other("RETR without PASV or PORT")),
                };
                stream.write_all(CONTENT)?;
                drop(stream);
                control.send("226 done\r\n")?;
            }
            ("QUIT", _) => {
                control.send("221 bye\r\n")?;
                return Ok(Tale {
                    lines,
                    took: Vec::new(),
                    heard: control.heard,
                });
            }
            _ => return Err(Error::other(format!("the server read {line:?}"))),
        }
    }
}

fn fetch(mut control: Control, plan: &Plan) -> Result<Tale, Error> {
    control.login()?;
    let mut lines = Vec::new();
    let mut took = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        let start = Instant::now();
        let (line, mut data) = if step.verb.passive() {
            let (line, to) = control.ask(step.verb)?;
            let data = connect(to, plan.limit)?;
            control.send("RETR file\r\n")?;
            control.expect("150")?;
            (line, data)
        } else {
            let here = control.stream.local_addr()?.ip();
            let listener = listen((here, plan.port(index)).into())?;
            let line = step.verb.line(listener.local_addr()?);
            control.send_cut(&line, step)?;
            control.expect("200")?;
            control.send("RETR file\r\n")?;
            control.expect("150")?;
            (line, accept(&listener, plan.limit)?)
        };
        content(&mut data, plan.limit)?;
        control.expect("226")?;
        took.push(start.elapsed());
        lines.push(line);
    }
    control.send("QUIT\r\n")?;
    control.expect("221")?;
    Ok(Tale {
        lines,
        took,
        heard: control.heard,
    })
}

/// Connects for data.
///
/// # Errors
/// What the operating system says, and where to.
pub fn connect(to: SocketAddr, limit: Duration) -> Result<TcpStream, Error> {
    TcpStream::connect_timeout(&to, limit)
        .map_err(|error| Error::other(format!("data connection to {to}: {error}")))
}

/// Reads [`CONTENT`] and nothing else.
///
/// # Errors
/// If something else came.
pub fn content(data: &mut TcpStream, limit: Duration) -> Result<(), Error> {
    data.set_read_timeout(Some(limit))?;
    let mut content = Vec::new();
    std::io::Read::read_to_end(data, &mut content)
        .map_err(|error| Error::other(format!("{} bytes, then {error}", content.len())))?;
    if content == CONTENT {
        Ok(())
    } else {
        Err(Error::other(format!("{} bytes came", content.len())))
    }
}

/// One end of a control connection.
pub struct Control {
    /// The connection.
    pub stream: TcpStream,
    /// All that was read.
    pub heard: String,
    /// Whether the peer has ended its direction.
    pub at_end: bool,
    reader: BufReader<TcpStream>,
    limit: Duration,
}

impl Control {
    /// A connection that sends at once, and waits `limit` at most.
    pub fn new(stream: TcpStream, limit: Duration) -> Result<Self, Error> {
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            heard: String::new(),
            at_end: false,
            stream,
            limit,
        })
    }

    /// Reads a line.
    pub fn read(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        let length = self.reader.read_line(&mut line)?;
        self.heard += &line;
        self.at_end = !line.ends_with('\n');
        if length == 0 {
            return Err(Error::other("the peer closed the control connection"));
        }
        Ok(line)
    }

    /// Reads a line that has to begin like this.
    pub fn expect(&mut self, code: &str) -> Result<String, Error> {
        let line = self
            .read()
            .map_err(|error| Error::new(error.kind(), format!("waiting for {code}: {error}")))?;
        if line.starts_with(code) {
            Ok(line)
        } else {
            Err(Error::other(format!("{line:?} in place of {code}")))
        }
    }

    /// Writes this in one piece.
    pub fn send(&mut self, line: &str) -> Result<(), Error> {
        self.stream.write_all(line.as_bytes())
    }

    /// A client's login.
    pub fn login(&mut self) -> Result<(), Error> {
        self.expect("220")?;
        self.send("USER lab\r\n")?;
        self.expect("331")?;
        self.send("PASS lab\r\n")?;
        self.expect("230")?;
        Ok(())
    }

    /// A server's side of a login.
    pub fn let_in(&mut self) -> Result<(), Error> {
        self.send("220 ready\r\n")?;
        self.expect("USER")?;
        self.send("331 password, please\r\n")?;
        self.expect("PASS")?;
        self.send("230 welcome\r\n")
    }

    /// A client's `PASV` or `EPSV`; returns the reply and where to connect to.
    pub fn ask(&mut self, verb: Verb) -> Result<(String, SocketAddr), Error> {
        let (command, code) = match verb {
            Verb::Pasv => ("PASV\r\n", "227"),
            _ => ("EPSV\r\n", "229"),
        };
        self.send(command)?;
        let line = self.expect(code)?;
        let to = verb.address(&line, self.stream.peer_addr()?.ip())?;
        Ok((line, to))
    }

    fn send_cut(&mut self, line: &str, step: &Step) -> Result<(), Error> {
        self.stream.set_nodelay(step.pace != Pace::Nagle)?;
        let mut first = true;
        for piece in pieces(line, &step.cut) {
            match step.pace {
                Pace::Pauses(pause) if !first => std::thread::sleep(pause),
                Pace::Acked if !first => self.wait_acked()?,
                _ => {}
            }
            first = false;
            self.send(piece)?;
        }
        self.stream.set_nodelay(true)
    }

    /// Waits until the peer's kernel has acknowledged all that was sent: until the send queue in
    /// the namespace's table of sockets is empty.
    pub fn wait_acked(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.limit;
        let local = format!(":{:04X}", self.stream.local_addr()?.port());
        let remote = format!(":{:04X}", self.stream.peer_addr()?.port());
        loop {
            let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
            let queued = table.lines().find_map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                (words.get(1)?.ends_with(&local) && words.get(2)?.ends_with(&remote))
                    .then(|| words.get(4).is_some_and(|w| !w.starts_with("00000000:")))
            });
            match queued {
                Some(false) => return Ok(()),
                None => return Err(Error::other("the control connection is gone")),
                Some(true) if Instant::now() > deadline => {
                    return Err(Error::other("a piece was never acknowledged"));
                }
                Some(true) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

fn pieces<'a>(line: &'a str, cut: &Cut) -> Vec<&'a str> {
    let mut at: Vec<usize> = match cut {
        Cut::EveryByte => (0..=line.len()).collect(),
        Cut::At(positions) => positions.clone(),
    };
    at.retain(|&position| position > 0 && position < line.len());
    at.push(line.len());
    at.sort_unstable();
    at.dedup();
    let mut start = 0;
    let piece = |end| {
        let piece = &line[start..end];
        start = end;
        piece
    };
    at.into_iter().map(piece).collect()
}

/// Waits for a connection.
///
/// # Errors
/// If none came in time.
pub fn accept(listener: &TcpListener, limit: Duration) -> Result<TcpStream, Error> {
    let deadline = Instant::now() + limit;
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(Error::other("nobody connected"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Ends a connection with RST; this is the only one who holds it.
///
/// # Errors
/// If the system refuses.
pub fn reset(connection: impl AsFd) -> Result<(), Error> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(&connection, nix::sys::socket::sockopt::Linger, &linger)?;
    drop(connection);
    Ok(())
}

/// `h1,h2,h3,h4,p1,p2` (RFC 959 §4.1.2).
fn numbers(address: SocketAddr) -> String {
    let port = address.port();
    let ip = address.ip().to_string().replace('.', ",");
    format!("{ip},{},{}", port >> 8, port & 255)
}

fn six_numbers(line: &str) -> Option<SocketAddr> {
    let list = line
        .find(|c: char| c == '(' || c == ' ' && line.starts_with("PORT"))
        .map(|at| &line[at + 1..]);
    let six: Vec<u8> = list
        .unwrap_or_default()
        .trim_end_matches(|c: char| !c.is_ascii_digit())
        .split(',')
        .filter_map(|number| number.parse().ok())
        .collect();
    match six[..] {
        [a, b, c, d, high, low] => Some(SocketAddr::from((
            Ipv4Addr::new(a, b, c, d),
            u16::from_be_bytes([high, low]),
        ))),
        _ => None,
    }
}
