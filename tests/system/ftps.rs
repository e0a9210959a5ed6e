//! FTPS: sessions that turn to TLS, and sessions that begin with it, with real servers and clients.
//!
//! Data connections can't be read off such a session. With `--tls range:A-B` its client reaches the
//! server's passive ports for as long as it lives; nobody else does, and nobody afterwards.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::lab::alg::{Alg, Running};
use testkit::lab::client::equal;
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scenario::greeting;
use testkit::lab::scripted;
use testkit::lab::server::{Config, Kind, Server, Tls, content};
use testkit::lab::topology::{Shape, Topology};

/// The passive ports of the servers, and the range that is opened.
const PORTS: (u16, u16) = (40000, 40029);
const RANGE: &str = "range:40000-40029";
/// The limit for a client that is expected to work, and for one that isn't.
const WORKS: Duration = Duration::from_secs(30);
const FAILS: Duration = Duration::from_secs(4);
/// The limit for what happens by itself.
const SOON: Duration = Duration::from_secs(10);

/// A client that speaks TLS on both connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// curl with `EPSV`.
    CurlEpsv,
    /// curl with `PASV`: connects to the server's address, whatever the reply says.
    CurlPasv,
    /// curl with `PASV`, and connecting to the address that the reply says.
    CurlTrusting,
    /// lftp, its own choice.
    Lftp,
    /// Python's ftplib with `PROT P`.
    Ftplib,
}

impl Client {
    const ALL: [Self; 5] = [
        Self::CurlEpsv,
        Self::CurlPasv,
        Self::CurlTrusting,
        Self::Lftp,
        Self::Ftplib,
    ];

    /// Lists, downloads two files and uploads one, all compared with what the server holds.
    fn run(self, job: &Job<'_>) -> Result<(), String> {
        let name = format!("{self:?}-{}", job.dial.port());
        let directory = job.net.directory().join(&name);
        let upload = format!("{name}.up");
        std::fs::create_dir_all(&directory).expect("a directory for the client");
        std::fs::write(directory.join(&upload), content(7, 30_000)).expect("a file to upload");
        let mut command = match self {
            Self::Lftp => job.lftp(&upload),
            Self::Ftplib => job.ftplib(&upload),
            Self::CurlEpsv => job.curl(&[], &upload),
            Self::CurlPasv => job.curl(&["--disable-epsv"], &upload),
            Self::CurlTrusting => job.curl(&["--disable-epsv", "--no-ftp-skip-pasv-ip"], &upload),
        };
        command.current_dir(&directory).env("HOME", &directory);
        let finished = Process::spawn(command).finish(job.limit);
        let listing = std::fs::read_to_string(directory.join("listing")).unwrap_or_default();
        let listing = listing + &finished.stdout;
        let server = |name: &str| job.server.path(name);
        let uploaded = server(&format!("{}/{upload}", Server::UPLOADS));
        let right = finished.ok()
            && [Server::SMALL, Server::SECOND]
                .iter()
                .all(|name| listing.contains(name) && equal(&directory.join(name), &server(name)))
            && equal(&directory.join(&upload), &uploaded);
        drop(std::fs::remove_file(uploaded));
        drop(std::fs::remove_dir_all(&directory));
        if right {
            Ok(())
        } else {
            Err(finished.to_string())
        }
    }
}

/// What a client is to do.
struct Job<'a> {
    net: &'a Net,
    dial: SocketAddr,
    server: &'a Server,
    tls: Tls,
    limit: Duration,
}

impl Job<'_> {
    fn scheme(&self) -> &'static str {
        match self.tls {
            Tls::Explicit | Tls::Offered => "ftp",
            Tls::Implicit => "ftps",
        }
    }

    /// One session: connections are kept from one URL to the next.
    fn curl(&self, options: &[&str], upload: &str) -> Command {
        let limit = self.limit.as_secs().to_string();
        let login = self.server.login();
        let login = format!("{}:{}", login.user, login.password);
        let common = [
            &[
                "-sS",
                "-v",
                "-k",
                "--ssl-reqd",
                "--noproxy",
                "*",
                "--user",
                &login,
            ],
            &["--max-time", &limit][..],
            options,
        ]
        .concat();
        let scheme = self.scheme();
        let url = |path: &str| format!("{scheme}://{}/{path}", self.dial);
        let mut command = self.net.client("curl");
        command.args(&common).args([&url(""), "-o", "listing"]);
        for file in [Server::SMALL, Server::SECOND] {
            command.args([&url(file), "-o", file]);
        }
        command.arg("--next").args(&common);
        command.args(["-T", upload]);
        command.arg(url(&format!("{}/{upload}", Server::UPLOADS)));
        command
    }

    fn lftp(&self, upload: &str) -> Command {
        let login = self.server.login();
        let scheme = self.scheme();
        let script = format!(
            "set cmd:fail-exit yes; set ftp:ssl-force yes; set ftp:ssl-protect-data yes; \
             set ssl:verify-certificate no; set net:timeout {}; set net:max-retries 1; debug 9; \
             open -u {},{} {scheme}://{}; ls; get {}; get {}; put {upload} -o {}/{upload}; bye",
            self.limit.as_secs() / 2,
            login.user,
            login.password,
            self.dial,
            Server::SMALL,
            Server::SECOND,
            Server::UPLOADS,
        );
        let mut command = self.net.client("lftp");
        command.args(["--norc", "-c", &script]);
        command
    }

    fn ftplib(&self, upload: &str) -> Command {
        const CLIENT: &str = r#"
import ftplib, ssl, sys

class Implicit(ftplib.FTP_TLS):
    "TLS before the greeting."
    @property
    def sock(self):
        return self._sock
    @sock.setter
    def sock(self, value):
        if value is not None and not isinstance(value, ssl.SSLSocket):
            value = self.context.wrap_socket(value)
        self._sock = value

host, port, patience, user, password, implicit, upload, target, *downloads = sys.argv[1:]
ftp = (Implicit if implicit == "Implicit" else ftplib.FTP_TLS)(timeout=float(patience))
ftp.set_debuglevel(1)
ftp.connect(host, int(port))
ftp.login(user, password)
ftp.prot_p()
print("\n".join(ftp.nlst()))
for name in downloads:
    with open(name, "wb") as file:
        ftp.retrbinary("RETR " + name, file.write)
with open(upload, "rb") as file:
    ftp.storbinary("STOR " + target, file)
ftp.quit()
"#;
        let login = self.server.login();
        let mut command = self.net.client("python3");
        command.args(["-u", "-c", CLIENT]);
        command.args([self.dial.ip().to_string(), self.dial.port().to_string()]);
        command.args([&(self.limit.as_secs() / 2).to_string(), login.user]);
        command.args([login.password, &format!("{:?}", self.tls), upload]);
        command.args([&format!("{}/{upload}", Server::UPLOADS)]);
        command.args([Server::SMALL, Server::SECOND]);
        command
    }
}

/// A server, on the ports of the range, that announces the address by which its clients reach it.
fn config(kind: Kind, topology: &Topology, tls: Tls) -> Config {
    Config {
        announce: Some(topology.dial.ip()),
        passive_ports: Some(PORTS),
        tls: Some(tls),
        ..Config::new(kind)
    }
}

/// The network with the control port of implicit FTPS in place of 21.
fn implicit(topology: Topology) -> Topology {
    let nat = topology.nat.iter().map(|rule| match *rule {
        "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2:21" => {
            "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 990 -j DNAT --to-destination 10.0.0.2:990"
        }
        other => other,
    });
    Topology {
        nat: nat.collect(),
        listen: SocketAddr::new(topology.listen.ip(), 990),
        dial: SocketAddr::new(topology.dial.ip(), 990),
        ..topology
    }
}

/// Both servers with all clients, through a gateway that drops by default: none of them works
/// without an ALG, all of them do with a range, and nothing is left of it.
fn transfers(topology: Topology, tls: Tls, flavour: Flavour, backend: &str) {
    let net = Net::new(&topology);
    let router = topology.router;
    rules::install(&net, flavour, Policy::Drop, true);
    let before = rules::snapshot(&net, router);
    let mut arguments = vec!["--backend", backend, "--tls", RANGE];
    if tls == Tls::Implicit {
        arguments.extend(["--implicit-port", "990"]);
    }
    let mut failures = Vec::new();
    for kind in [Kind::Vsftpd, Kind::Pyftpdlib] {
        let server = Server::start(&net, &config(kind, &topology, tls));
        if tls == Tls::Explicit {
            greeting(&net, topology.dial);
        }
        let job = |limit| Job {
            net: &net,
            dial: topology.dial,
            server: &server,
            tls,
            limit,
        };
        let without = Client::CurlEpsv.run(&job(FAILS));
        assert!(without.is_err(), "{kind:?} works without an ALG");
        let alg = Alg::Ftpalg(arguments.iter().map(|&w| w.to_owned()).collect());
        let running = alg.start(&net, flavour);
        for client in Client::ALL {
            if let Err(error) = client.run(&job(WORKS)) {
                failures.push(format!("{kind:?} {client:?}: {error}"));
            }
        }
        let status = ask(&net, "status");
        let log = running.stop();
        assert!(failures.is_empty(), "{log}\n{}", failures.join("\n\n"));
        let count = |name: &str| status["nat"][name].as_u64().unwrap();
        assert!(count("ranges_opened") >= 1, "{status:#}");
        assert!(count("range_connections") >= 5 * 4, "{status:#}");
        assert_eq!(count("unattributed"), 0, "{status:#}");
        assert!(!log.contains("not FTP"), "{log}");
    }
    assert_eq!(rules::invalid(&net, router), 0, "INVALID packets");
    assert_eq!(rules::snapshot(&net, router), before, "the user's rules");
}

macro_rules! transfers {
    ($($name:ident: $topology:expr, $tls:ident, $flavour:ident, $backend:literal;)*) => {
        $(
            #[test]
            fn $name() {
                transfers($topology, Tls::$tls, Flavour::$flavour, $backend);
            }
        )*
    };
}

transfers! {
    published_nft: Topology::published_server(), Explicit, Nft, "nft";
    published_iptables: Topology::published_server(), Explicit, Legacy, "iptables";
    published2121_nft: Topology::published_server_2121(), Explicit, Legacy, "nft";
    published2121_iptables: Topology::published_server_2121(), Explicit, Nft, "iptables";
    masqueraded_nft: Topology::masqueraded_client(), Explicit, Legacy, "nft";
    masqueraded_iptables: Topology::masqueraded_client(), Explicit, Nft, "iptables";
    implicit_published_nft: implicit(Topology::published_server()), Implicit, Nft, "nft";
    implicit_published_iptables: implicit(Topology::published_server()), Implicit, Nft, "iptables";
    implicit_masqueraded_nft: implicit(Topology::masqueraded_client()), Implicit, Nft, "nft";
}

/// Asks the running daemon.
fn ask(net: &Net, what: &str) -> Value {
    let words = [testkit::paths::ftpalg(), what, "--json"];
    let answer = net.exec(net.topology().router, &words).must();
    serde_json::from_str(&answer.stdout).expect("JSON")
}

/// The open ranges, as `pinholes` shows them.
fn ranges(net: &Net) -> Vec<Value> {
    let all = ask(net, "pinholes");
    let all = all.as_array().expect("a list").iter();
    all.filter(|hole| !hole["ports"].is_null())
        .cloned()
        .collect()
}

fn until(what: &str, running: &Running<'_>, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(
            Instant::now() < deadline,
            "{what}: not in time\n{}",
            running.log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A control connection that has turned to TLS as far as anybody can see.
struct Session {
    stream: BufReader<TcpStream>,
}

impl Session {
    fn begin(net: &Net, dial: SocketAddr) -> Self {
        let stream = net.within(net.topology().client, || {
            TcpStream::connect_timeout(&dial, SOON).expect("the control connection")
        });
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut session = Self {
            stream: BufReader::new(stream),
        };
        assert!(session.reply().starts_with("220"));
        session.send(b"AUTH TLS\r\n");
        assert!(session.reply().starts_with("234"));
        session
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a reply");
        line
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("it is sent");
    }

    /// Keeps its range open, however busy the machine is: what looks like the beginning of a handshake is
    /// activity.
    fn stays_active(&mut self) {
        self.send(&[22, 3, 1]);
    }

    /// Closes the connection with a RST, not with a FIN.
    fn reset(self) {
        scripted::reset(self.stream.into_inner()).expect("SO_LINGER");
    }
}

/// Something that listens on a port of the server host.
struct Target(TcpListener);

impl Target {
    fn listen(net: &Net, port: u16) -> Self {
        let at = SocketAddr::new(net.topology().listen.ip(), port);
        let listener = net.within(net.topology().server, || {
            scripted::listen(at).expect("a free port")
        });
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    /// Whether a connection to `to` from this address of the client host arrives here; it is closed
    /// again. If so, the address that it comes from.
    fn reached(&self, net: &Net, from: &str, to: SocketAddr) -> Option<IpAddr> {
        const CONNECT: &str = "import socket, sys\n\
            socket.create_connection((sys.argv[2], int(sys.argv[3])), 0.7, (sys.argv[1], 0))";
        // What came while nobody asked.
        while self.0.accept().is_ok() {}
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let words = ["python3", "-c", CONNECT, from, &ip, &port];
        let connected = net.exec(net.topology().client, &words).ok();
        let peer = self.0.accept().ok().map(|(_, peer)| peer.ip());
        assert!(connected || peer.is_none(), "a half of a connection");
        peer
    }
}

/// Who reaches what while a session is under TLS, and after it ended in each of the ways in which
/// it can.
fn who_reaches(topology: Topology, flavour: Flavour, backend: &str) {
    let inside = topology.shape == Shape::ServerInside;
    let (client, other) = match inside {
        true => ("198.51.100.2", "198.51.100.3"),
        false => ("10.0.0.2", "10.0.0.3"),
    };
    // The address that the server sees.
    let seen: IpAddr = if inside { client } else { "198.51.100.1" }
        .parse()
        .unwrap();
    let net = Net::new(&topology);
    let address = format!("{other}/24");
    let words = ["ip", "address", "add", &address, "dev", "e0"];
    net.exec(topology.client, &words).must();
    rules::install(&net, flavour, Policy::Drop, true);
    let before = rules::snapshot(&net, topology.router);
    let server = Server::start(&net, &config(Kind::Pyftpdlib, &topology, Tls::Explicit));
    let dial = |port| SocketAddr::new(topology.dial.ip(), port);
    let (first, last, beyond) = (
        Target::listen(&net, PORTS.0),
        Target::listen(&net, PORTS.1),
        Target::listen(&net, PORTS.1 + 1),
    );
    let arguments = ["--backend", backend, "--tls", RANGE, "--tls-idle", "5"];
    let alg = Alg::Ftpalg(arguments.map(str::to_owned).to_vec());
    let running = alg.start(&net, flavour);
    let open = |port: &Target, number, from| port.reached(&net, from, dial(number));
    let is_closed = || open(&first, PORTS.0, client).is_none();

    assert!(is_closed(), "before there is a session");
    let mut session = Session::begin(&net, topology.dial);
    // Any number of connections, to any port of the range, for this client only.
    for _ in 0..3 {
        session.stays_active();
        assert_eq!(open(&first, PORTS.0, client), Some(seen));
        session.stays_active();
        assert_eq!(open(&last, PORTS.1, client), Some(seen));
    }
    session.stays_active();
    assert_eq!(open(&beyond, PORTS.1 + 1, client), None, "not in the range");
    session.stays_active();
    assert_eq!(open(&first, PORTS.0, other), None, "another client");
    session.stays_active();
    until("the activity", &running, || ranges(&net).len() == 1);
    let shown = ranges(&net);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0]["ports"], "40000-40029");
    assert_eq!(shown[0]["from"], client);
    assert_eq!(shown[0]["to"], dial(PORTS.0).to_string());
    assert_eq!(ask(&net, "sessions")[0]["range"], "40000-40029");
    assert_eq!(ask(&net, "status")["ranges"], 1);

    // The end of one session doesn't end another one's.
    let mut second = Session::begin(&net, topology.dial);
    session.stays_active();
    until("both sessions", &running, || ranges(&net).len() == 2);
    drop(session);
    until("the first session's end", &running, || {
        ranges(&net).len() == 1
    });
    second.stays_active();
    assert_eq!(open(&first, PORTS.0, client), Some(seen));
    drop(second);
    until("the end by FIN", &running, || ranges(&net).is_empty());
    assert!(is_closed(), "after FIN");

    Session::begin(&net, topology.dial).reset();
    until("the end by RST", &running, || ranges(&net).is_empty());
    assert!(is_closed(), "after RST");

    let mut idle = Session::begin(&net, topology.dial);
    assert_eq!(open(&first, PORTS.0, client), Some(seen));
    until("the idle limit", &running, || ranges(&net).is_empty());
    assert!(is_closed(), "while idle");
    idle.stays_active();
    until("activity", &running, || ranges(&net).len() == 1);
    assert_eq!(open(&first, PORTS.0, client), Some(seen), "active again");

    let port = topology.dial.port().to_string();
    let words = ["conntrack", "-D", "-p", "tcp", "--orig-port-dst", &port];
    net.exec(topology.router, &words).must();
    until("the end of the conntrack entry", &running, || {
        ranges(&net).is_empty()
    });
    assert!(is_closed(), "after conntrack forgot it");

    let log = running.stop();
    assert!(is_closed(), "after ftpalg ended");
    for line in [
        "ports 40000-40029 open",
        "closed: idle",
        "closed: the session ended",
    ] {
        assert!(log.contains(line), "{line:?} isn't in the log:\n{log}");
    }
    assert_eq!(rules::snapshot(&net, topology.router), before);
    drop((server, idle));
}

#[test]
fn only_the_client_reaches_a_published_server_nft() {
    who_reaches(Topology::published_server(), Flavour::Nft, "nft");
}

#[test]
fn only_the_client_reaches_a_published_server_iptables() {
    who_reaches(Topology::published_server(), Flavour::Legacy, "iptables");
}

#[test]
fn only_the_client_gets_out_to_its_server_nft() {
    who_reaches(Topology::masqueraded_client(), Flavour::Legacy, "nft");
}

#[test]
fn only_the_client_gets_out_to_its_server_iptables() {
    who_reaches(Topology::masqueraded_client(), Flavour::Nft, "iptables");
}

/// What somebody else flushes comes back, and is open for the client again.
#[test]
fn a_flushed_range_comes_back() {
    let topology = Topology::published_server();
    let net = Net::new(&topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let before = rules::snapshot(&net, topology.router);
    let server = Server::start(&net, &config(Kind::Vsftpd, &topology, Tls::Explicit));
    let arguments = ["--backend", "iptables", "--tls", RANGE];
    let alg = Alg::Ftpalg(arguments.map(str::to_owned).to_vec());
    let running = alg.start(&net, Flavour::Nft);
    let target = Target::listen(&net, PORTS.0);
    let public = SocketAddr::new(topology.dial.ip(), PORTS.0);
    let reached = || target.reached(&net, "198.51.100.2", public).is_some();
    let session = Session::begin(&net, topology.dial);
    assert!(reached());
    for chain in ["FTPALG-RANGE-PRE", "PREROUTING"] {
        let mut words = vec!["iptables-nft", "-w", "10", "-t", "nat", "-F", chain];
        net.exec(topology.router, &words).must();
        until("the range is back", &running, reached);
        // The user's own rule went, too.
        if chain == "PREROUTING" {
            words.splice(5.., topology.nat[0].split(' '));
            net.exec(topology.router, &words).must();
        }
    }
    drop(session);
    until("its end", &running, || ranges(&net).is_empty());
    running.stop();
    assert_eq!(rules::snapshot(&net, topology.router), before);
    drop(server);
}

/// Two servers behind one public address: a client reaches the range of the one that it spoke to
/// first, and never that of one to which it has no session.
#[test]
fn one_server_at_a_time_for_each_client_and_address() {
    let topology = Topology {
        nat: vec![
            "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2:21",
            "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 2121 -j DNAT --to-destination 10.0.0.9:21",
        ],
        ..Topology::published_server()
    };
    let net = Net::new(&topology);
    let words = ["ip", "address", "add", "10.0.0.9/24", "dev", "e0"];
    net.exec(topology.server, &words).must();
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let other = Topology {
        listen: "10.0.0.9:21".parse().unwrap(),
        ..topology.clone()
    };
    let server = Server::start(&net, &config(Kind::Pyftpdlib, &topology, Tls::Explicit));
    // It turns everybody to TLS who asks.
    let fake = net.within(other.server, || TcpListener::bind(other.listen).unwrap());
    let fake = std::thread::spawn(move || {
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (stream, _) = fake.accept().unwrap();
            let mut stream = BufReader::new(stream);
            stream.get_mut().write_all(b"220 hello\r\n").unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            stream.get_mut().write_all(b"234 go on\r\n").unwrap();
            kept.push(stream);
        }
        kept
    });
    let alg = Alg::Ftpalg(["--tls", RANGE].map(str::to_owned).to_vec());
    let running = alg.start(&net, Flavour::Nft);
    let at = |ip: &str| {
        let at: SocketAddr = format!("{ip}:{}", PORTS.0).parse().unwrap();
        let listener = net.within(topology.server, || scripted::listen(at).unwrap());
        listener.set_nonblocking(true).unwrap();
        Target(listener)
    };
    let (mine, others) = (at("10.0.0.2"), at("10.0.0.9"));
    let public = SocketAddr::new(topology.dial.ip(), PORTS.0);
    let reached = |target: &Target| target.reached(&net, "198.51.100.2", public).is_some();

    let first = Session::begin(&net, topology.dial);
    let second = Session::begin(&net, "203.0.113.1:2121".parse().unwrap());
    assert!(reached(&mine), "the first one's server");
    assert!(!reached(&others), "the second one has no range");
    assert_eq!(ask(&net, "status")["nat"]["ranges_taken"], 1);
    drop(first);
    until("the end", &running, || ranges(&net).is_empty());
    assert!(!reached(&mine), "it has no session there any more");
    let third = Session::begin(&net, "203.0.113.1:2121".parse().unwrap());
    assert!(reached(&others) && !reached(&mine));
    drop((second, third, server));
    drop(fake.join());
    let log = running.stop();
    assert!(log.contains("TLS passed as it is"), "{log}");
}

/// Without a range: TLS sessions live, and each client is told once what it can't have.
#[test]
fn passed_sessions_live_and_are_told_of_once() {
    let topology = Topology::published_server();
    let net = Net::new(&topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let server = Server::start(&net, &config(Kind::Vsftpd, &topology, Tls::Explicit));
    let alg = Alg::Ftpalg(vec!["--tls".into(), "pass".into()]);
    let running = alg.start(&net, Flavour::Nft);
    let target = Target::listen(&net, PORTS.0);
    let public = SocketAddr::new(topology.dial.ip(), PORTS.0);
    for _ in 0..3 {
        const CLIENT: &str = "import ftplib, sys\n\
            ftp = ftplib.FTP_TLS(timeout=5)\n\
            ftp.connect(sys.argv[1]); ftp.login(); ftp.prot_p()\n\
            print(ftp.pwd()); print(ftp.sendcmd('NOOP')); ftp.quit()";
        let words = ["python3", "-c", CLIENT, &topology.dial.ip().to_string()];
        net.exec(topology.client, &words).must();
        let session = Session::begin(&net, topology.dial);
        assert_eq!(target.reached(&net, "198.51.100.2", public), None);
        drop(session);
    }
    let status = ask(&net, "status");
    assert_eq!(
        (&status["tls"], &status["ranges"]),
        (&"pass".into(), &0.into())
    );
    assert_eq!(status["counters"]["tls"], 6, "{status:#}");
    let log = running.stop();
    assert_eq!(
        log.matches("TLS hides its data connections").count(),
        1,
        "{log}"
    );
    assert_eq!(log.matches("no longer read: TLS").count(), 6, "{log}");
    assert_eq!(rules::invalid(&net, topology.router), 0);
    drop(server);
}

/// A server that goes back to clear text when asked to, which none of the packaged ones does by
/// default: `CCC` (RFC 4217 §12.3).
const CCC_SERVER: &str = r#"
import socket, ssl, sys

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert.pem", "key.pem")
listener = socket.create_server((sys.argv[1], 21))
print("listening", flush=True)
while True:
    stream, _ = listener.accept()
    data = None

    def say(line):
        stream.sendall(line.encode() + b"\r\n")

    def hear():
        line = b""
        while not line.endswith(b"\n"):
            byte = stream.recv(1)
            if not byte:
                return None
            line += byte
        return line.decode().strip()

    say("220 hello")
    while line := hear():
        verb = line.split()[0]
        if verb == "AUTH":
            say("234 go on")
            stream = context.wrap_socket(stream, server_side=True)
        elif verb == "CCC":
            say("200 in the clear")
            stream = stream.unwrap()
        elif verb == "PASV":
            data = socket.create_server((sys.argv[1], 0))
            port = data.getsockname()[1]
            say(f"227 ({sys.argv[1].replace('.', ',')},{port >> 8},{port & 255})")
        elif verb == "RETR":
            say("150 here")
            connection, peer = data.accept()
            connection.sendall(b"the content of " + line.encode())
            connection.close()
            data.close()
            say("226 done")
        else:
            say({"USER": "331 and?", "PASS": "230 in", "QUIT": "221 bye", "PWD": '257 "/"', "SIZE": "500 no"}.get(verb, "200 ok"))
"#;

/// Transfers in clear text after `CCC` are followed like any others, with TLS 1.2 and 1.3.
#[test]
fn clear_text_after_ccc_is_followed() {
    let topology = Topology::published_server();
    let net = Net::new(&topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let mut make = Command::new("openssl");
    make.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
    ])
    .args(["-subj", "/CN=lab", "-keyout", "key.pem", "-out", "cert.pem"])
    .current_dir(net.directory());
    Process::spawn(make).finish(SOON).must();
    let mut command = net.command(topology.server, "python3");
    command.args(["-u", "-c", CCC_SERVER, &topology.listen.ip().to_string()]);
    let server = Process::spawn(command);
    assert!(server.wait_for("listening", SOON), "{}", server.log());
    let alg = Alg::Ftpalg(vec!["--tls".into(), "pass".into()]);
    let running = alg.start(&net, Flavour::Nft);
    const CLIENT: &str = r#"
import ftplib, ssl, sys

context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.minimum_version = context.maximum_version = ssl.TLSVersion[sys.argv[2]]
ftp = ftplib.FTP_TLS(timeout=5, context=context)
ftp.trust_server_pasv_ipv4_address = True
ftp.connect(sys.argv[1])
ftp.login("lab", "lab")
print(ftp.ccc())
for name in ["a", "b", "c"]:
    ftp.retrbinary("RETR " + name, lambda got: print(got.decode()))
ftp.quit()
"#;
    for version in ["TLSv1_2", "TLSv1_3"] {
        let dial = topology.dial.ip().to_string();
        let words = ["python3", "-u", "-c", CLIENT, &dial, version];
        let said = net.exec(topology.client, &words).must().stdout;
        for name in ["a", "b", "c"] {
            assert!(
                said.contains(&format!("the content of RETR {name}")),
                "{said}"
            );
        }
    }
    let url = |name: &str| format!("ftp://{}/{name}", topology.dial);
    let (a, b, c) = (url("a"), url("b"), url("c"));
    let words = [
        &[
            "curl",
            "-sS",
            "-v",
            "-k",
            "--ftp-ssl-control",
            "--ftp-ssl-ccc-mode",
        ][..],
        // It says goodbye to TLS first; otherwise it never does, and Python's server minds.
        &[
            "active",
            "--noproxy",
            "*",
            "--user",
            "lab:lab",
            "--max-time",
            "10",
        ],
        &["--disable-epsv", "--no-ftp-skip-pasv-ip", &a, &b, &c],
    ]
    .concat();
    let said = net.exec(topology.client, &words).must().stdout;
    assert!(said.contains("the content of RETR c"), "{said}");
    let status = ask(&net, "status");
    assert_eq!(status["counters"]["clear_again"], 3, "{status:#}");
    let log = running.stop();
    assert_eq!(
        log.matches("in clear text again: read again").count(),
        3,
        "{log}"
    );
    // Each is announced once, and made once. The ends of the last may come after the daemon's.
    let lines = |what: &dyn Fn(&str) -> bool| {
        let data = log.lines().filter(|l| l.contains(" -> 203.0.113.1:"));
        data.filter(|l| what(l)).count()
    };
    assert_eq!(lines(&|l| l.contains(" 227 ")), 9, "{log}");
    let is_end = |l: &str| l.contains(" closed after ");
    assert_eq!(lines(&|l| l.contains(" data ") && !is_end(l)), 9, "{log}");
    assert!(lines(&is_end) <= 9, "{log}");
    assert_eq!(lines(&|_| true), 18 + lines(&is_end), "{log}");
    assert_eq!(rules::invalid(&net, topology.router), 0);
}
