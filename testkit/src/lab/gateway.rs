//! A published server behind a gateway with `ftpalg`: its own commands, downloads, and control
//! connections spoken line by line.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::alg::{Alg, Running};
use super::net::Net;
use super::process::{Finished, run};
use super::rules::{self, Flavour, Policy};
use super::scripted::Verb;
use super::server::Server;
use super::topology::Topology;
use crate::paths;

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(15);
/// Both backends beside both flavours of the user's rules.
pub const HOSTS: [(&str, Flavour); 4] = [
    ("nft", Flavour::Nft),
    ("nft", Flavour::Legacy),
    ("iptables", Flavour::Nft),
    ("iptables", Flavour::Legacy),
];

/// A published server behind a gateway with the user's rules.
pub fn gateway(policy: Policy, flavour: Flavour) -> Net {
    let net = Net::new(&Topology::published_server());
    rules::install(&net, flavour, policy, true);
    net
}

/// Starts `ftpalg` with this backend; returns when it is in place.
pub fn start<'a>(net: &'a Net, backend: &str, flavour: Flavour) -> Running<'a> {
    start_with(net, backend, flavour, &[])
}

/// The same with further arguments.
pub fn start_with<'a>(net: &'a Net, backend: &str, flavour: Flavour, more: &[&str]) -> Running<'a> {
    let words = [&["--backend", backend], more].concat();
    Alg::Ftpalg(words.into_iter().map(str::to_owned).collect()).start(net, flavour)
}

/// `ftpalg` with these arguments on the gateway.
pub fn ftpalg(net: &Net, words: &[&str]) -> Finished {
    let mut command = net.command(net.topology().router, paths::ftpalg());
    command.args(words);
    run(command, LIMIT)
}

/// Waits until no daemon runs on the gateway.
///
/// # Panics
/// If one still does.
#[track_caller]
pub fn ended(net: &Net) {
    let deadline = Instant::now() + LIMIT;
    while ftpalg(net, &["status"]).status.and_then(|s| s.code()) != Some(3) {
        assert!(Instant::now() < deadline, "it doesn't end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asserts that a command ended with this code and one line that contains `part`.
///
/// # Panics
/// If it didn't.
#[track_caller]
pub fn refused(finished: &Finished, code: i32, part: &str) {
    let status = finished.status.and_then(|status| status.code());
    assert!(
        status == Some(code) && finished.log.lines().count() == 1 && finished.log.contains(part),
        "code {code} and one line with {part:?} expected: {finished}"
    );
}

/// What `ftpalg status --json` says.
pub fn status(net: &Net) -> Value {
    let finished = ftpalg(net, &["status", "--json"]).must();
    serde_json::from_str(&finished.stdout).unwrap()
}

/// A download by curl, which is to work.
pub fn download(net: &Net, server: &Server, options: &[&str]) -> Finished {
    let topology = net.topology();
    let mut command = net.command(topology.client, "curl");
    let login = server.login();
    command
        .args(["-sS", "-v", "--noproxy", "*", "--no-ftp-skip-pasv-ip"])
        .args(["--disable-epsv", "--max-time", "8", "-o", "got"])
        .args(["--user", &format!("{}:{}", login.user, login.password)])
        .args(options)
        .arg(format!("ftp://{}/{}", topology.dial, Server::SECOND));
    let finished = run(command, LIMIT);
    let got = std::fs::read(net.directory().join("got")).unwrap_or_default();
    drop(std::fs::remove_file(net.directory().join("got")));
    if finished.ok() {
        assert!(got == std::fs::read(server.path(Server::SECOND)).unwrap());
    }
    finished
}

/// The address in a `227`.
#[track_caller]
pub fn address(reply: &str) -> SocketAddr {
    let peer = Ipv4Addr::UNSPECIFIED.into();
    Verb::Pasv.address(reply, peer).unwrap()
}

/// One end of a control connection, line by line.
pub struct Control(pub BufReader<TcpStream>);

impl Control {
    /// A connection that sends at once.
    pub fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Dials the published server.
    pub fn dial(net: &Net) -> Self {
        let dial = net.topology().dial;
        Self::new(net.within(net.topology().client, || {
            TcpStream::connect_timeout(&dial, LIMIT).unwrap()
        }))
    }

    /// Writes this in one piece.
    pub fn send(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
    }

    /// Waits for a RST.
    ///
    /// # Panics
    /// If anything else comes, or nothing in time.
    #[track_caller]
    pub fn gets_reset(&mut self, limit: Duration) {
        self.0.get_ref().set_read_timeout(Some(limit)).unwrap();
        let got = loop {
            match self.0.read(&mut [0]).map_err(|e| e.kind()) {
                // A process of the test was stopped or traced.
                Err(ErrorKind::Interrupted) => {}
                got => break got,
            }
        };
        assert_eq!(got, Err(ErrorKind::ConnectionReset), "{:?}", self.0);
    }

    /// How many bytes have come that nobody read.
    pub fn peek(&mut self) -> usize {
        let mut bytes = [0; 100];
        self.0.get_ref().peek(&mut bytes).unwrap()
    }

    /// The next line; empty at the end.
    pub fn read(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// The last line of the next reply.
    pub fn reply(&mut self) -> String {
        loop {
            let line = self.read();
            assert!(!line.is_empty(), "the control connection ended");
            if line.as_bytes().get(3) == Some(&b' ') {
                return line;
            }
        }
    }

    /// Sends a line; returns the last line of the reply.
    ///
    /// # Panics
    /// If the reply doesn't begin with this code.
    #[track_caller]
    pub fn ask(&mut self, line: &str, code: &str) -> String {
        self.send(line);
        let reply = self.reply();
        assert!(reply.starts_with(code), "{line:?}: {reply:?}");
        reply
    }

    /// A login, and binary transfers.
    pub fn log_in(&mut self, server: &Server) {
        assert!(self.reply().starts_with("220"));
        let login = server.login();
        // Some ask anonymous users for no password.
        let asked = self.ask(&format!("USER {}\r\n", login.user), "");
        if !asked.starts_with("230") {
            self.ask(&format!("PASS {}\r\n", login.password), "230");
        }
        self.ask("TYPE I\r\n", "200");
    }

    /// Sends `PASV` and connects to what the reply says.
    pub fn passive(&mut self, net: &Net) -> TcpStream {
        let reply = self.ask("PASV\r\n", "227");
        let to = address(&reply);
        let data = net.within(net.topology().client, || {
            TcpStream::connect_timeout(&to, LIMIT).unwrap()
        });
        data.set_read_timeout(Some(LIMIT)).unwrap();
        data
    }
}
