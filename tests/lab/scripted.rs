//! An FTP client and an FTP server that say exactly what they are told to, cut as they are told.
//!
//! Real programs write an address in one piece. These write it in any pieces, over real sockets
//! in the lab's namespaces.

use std::io::{BufRead, BufReader, Error, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::client::Mode;
use super::net::Net;

/// The limit for anything that a session waits for.
const LIMIT: Duration = Duration::from_secs(3);

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

/// One session: who announces, and how the announcing line is sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Passive: the server's `227` is cut; active: the client's `PORT`.
    pub mode: Mode,
    /// Where.
    pub cut: Cut,
    /// How.
    pub pace: Pace,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// From the first piece of the announcement to the reply that ends the transfer.
    pub took: Duration,
    /// The announcing line as it was written.
    pub sent: String,
    /// The announcing line as it was read.
    pub read: String,
}

/// Runs a session of login, one download and farewell.
///
/// # Errors
/// What the client or the server met with.
pub fn session(net: &Net, plan: &Plan) -> Result<Outcome, String> {
    let topology = net.topology();
    let listener = net
        .within(topology.server, || TcpListener::bind(topology.listen))
        .map_err(|error| format!("{}: {error}", topology.listen))?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| net.within(topology.server, || serve(&listener, plan)));
        let client = scope.spawn(|| net.within(topology.client, || fetch(topology.dial, plan)));
        let client = client.join().expect("no panic");
        let server = server.join().expect("no panic");
        match (client, server) {
            (Ok((took, client)), Ok(server)) => {
                let (sent, read) = match plan.mode {
                    Mode::Passive => (server, client),
                    Mode::Active => (client, server),
                };
                Ok(Outcome { took, sent, read })
            }
            (client, server) => Err(format!(
                "client: {}; server: {}",
                words(client.map(drop)),
                words(server.map(drop))
            )),
        }
    })
}

fn words(result: Result<(), Error>) -> String {
    result.map_or_else(|error| error.to_string(), |()| "well".to_owned())
}

/// What is transferred.
const CONTENT: &[u8] = b"All there, in this order, and nothing else.\r\n";

/// Returns the announcing line as written or read.
fn serve(listener: &TcpListener, plan: &Plan) -> Result<String, Error> {
    let stream = accept(listener)?;
    let mut control = Control::new(stream)?;
    control.send("220 ready\r\n")?;
    let mut announced = String::new();
    let mut passive = None;
    let mut active = None;
    loop {
        let line = control.read()?;
        match line.get(..4).unwrap_or(&line) {
            "USER" => control.send("331 password, please\r\n")?,
            "PASS" => control.send("230 welcome\r\n")?,
            "PASV" => {
                let here = control.stream.local_addr()?.ip();
                let data = TcpListener::bind((here, 0))?;
                let numbers = numbers(data.local_addr()?);
                announced = format!("227 Entering Passive Mode ({numbers}).\r\n");
                passive = Some(data);
                control.send_cut(&announced, plan)?;
            }
            "PORT" => {
                active = Some(address(&line)?);
                announced = line;
                control.send("200 fine\r\n")?;
            }
            "RETR" => {
                control.send("150 here it comes\r\n")?;
                let mut data = match (&passive, active) {
                    (Some(listener), _) => accept(listener)?,
                    (None, Some(to)) => TcpStream::connect_timeout(&to, LIMIT)?,
                    (None, None) => return Err(Error::other("RETR without PASV or PORT")),
                };
                data.write_all(CONTENT)?;
                drop(data);
                control.send("226 done\r\n")?;
            }
            "QUIT" => {
                control.send("221 bye\r\n")?;
                return Ok(announced);
            }
            _ => control.send("500 what?\r\n")?,
        }
    }
}

/// Returns how long the transfer took, and the announcing line as written or read.
fn fetch(dial: SocketAddr, plan: &Plan) -> Result<(Duration, String), Error> {
    let mut control = Control::new(TcpStream::connect_timeout(&dial, LIMIT)?)?;
    control.expect("220")?;
    control.send("USER lab\r\n")?;
    control.expect("331")?;
    control.send("PASS lab\r\n")?;
    control.expect("230")?;
    let start = Instant::now();
    let (announced, mut data) = match plan.mode {
        Mode::Passive => {
            control.send("PASV\r\n")?;
            let line = control.expect("227")?;
            let to = address(&line)?;
            let data = TcpStream::connect_timeout(&to, LIMIT)
                .map_err(|error| Error::other(format!("data connection to {to}: {error}")))?;
            control.send("RETR file\r\n")?;
            control.expect("150")?;
            (line, data)
        }
        Mode::Active => {
            let listener = TcpListener::bind((control.stream.local_addr()?.ip(), 0))?;
            let line = format!("PORT {}\r\n", numbers(listener.local_addr()?));
            control.send_cut(&line, plan)?;
            control.expect("200")?;
            control.send("RETR file\r\n")?;
            control.expect("150")?;
            (line, accept(&listener)?)
        }
    };
    data.set_read_timeout(Some(LIMIT))?;
    let mut content = Vec::new();
    data.read_to_end(&mut content)?;
    if content != CONTENT {
        return Err(Error::other(format!("{} bytes came", content.len())));
    }
    control.expect("226")?;
    let took = start.elapsed();
    control.send("QUIT\r\n")?;
    control.expect("221")?;
    Ok((took, announced))
}

struct Control {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Control {
    fn new(stream: TcpStream) -> Result<Self, Error> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            stream,
        })
    }

    fn read(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        match self.reader.read_line(&mut line)? {
            0 => Err(Error::other("the peer closed the control connection")),
            _ => Ok(line),
        }
    }

    fn expect(&mut self, code: &str) -> Result<String, Error> {
        let line = self
            .read()
            .map_err(|error| Error::other(format!("waiting for {code}: {error}")))?;
        if line.starts_with(code) {
            Ok(line)
        } else {
            Err(Error::other(format!("{line:?} in place of {code}")))
        }
    }

    fn send(&mut self, line: &str) -> Result<(), Error> {
        self.stream.write_all(line.as_bytes())
    }

    fn send_cut(&mut self, line: &str, plan: &Plan) -> Result<(), Error> {
        self.stream.set_nodelay(plan.pace != Pace::Nagle)?;
        let mut first = true;
        for piece in pieces(line, &plan.cut) {
            match plan.pace {
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
    fn wait_acked(&self) -> Result<(), Error> {
        let deadline = Instant::now() + LIMIT;
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

fn accept(listener: &TcpListener) -> Result<TcpStream, Error> {
    let deadline = Instant::now() + LIMIT;
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if Instant::now() > deadline {
                    return Err(Error::other("nobody connected"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(error),
        }
    }
}

/// `h1,h2,h3,h4,p1,p2` (RFC 959 §4.1.2).
fn numbers(address: SocketAddr) -> String {
    let port = address.port();
    let ip = address.ip().to_string().replace('.', ",");
    format!("{ip},{},{}", port >> 8, port & 255)
}

fn address(line: &str) -> Result<SocketAddr, Error> {
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
        [a, b, c, d, high, low] => Ok(SocketAddr::from((
            Ipv4Addr::new(a, b, c, d),
            u16::from_be_bytes([high, low]),
        ))),
        _ => Err(Error::other(format!("no address in {line:?}"))),
    }
}
