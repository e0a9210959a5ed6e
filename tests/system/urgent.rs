//! `ABOR` in the middle of a transfer, announced by urgent data (RFC 959 §4.1.3, the Synch of
//! RFC 854), in sessions whose addresses were rewritten before.
//!
//! Each client aborts several transfers in one session and downloads a file after each: the session
//! is usable. Captures on both sides of the gateway show that every urgent pointer points to the same
//! place of the same line.

use std::io::{Error, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use testkit::lab::alg::Alg;
use testkit::lab::capture::{Capture, urgent_places};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, run};
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{Verb, peers};
use testkit::lab::server::{Config, Kind, Login, Server, content};
use testkit::lab::topology::{Shape, Topology};

const LIMIT: Duration = Duration::from_secs(40);
/// The same for a pair that nobody expects to succeed.
const SHORT: Duration = Duration::from_secs(15);
const LONG_NAME: &str = "long.bin";
/// More than sockets buffer on the way.
const LONG: usize = 64 * 1024 * 1024;

/// ftplib's own `abort()`: all of `ABOR` in urgent data. Then Telnet's IAC IP and Synch before it,
/// as the RFC has it and BSD's client sends it. vsftpd knows only the latter: of an `ABOR` that is
/// urgent itself it loses the end.
const FTPLIB: &str = r#"
import ftplib, hashlib, socket, sys

host, port, user, password, passive, expected, server = sys.argv[1:]
ftp = ftplib.FTP(timeout=10)
ftp.set_debuglevel(1)
ftp.trust_server_pasv_ipv4_address = True
ftp.connect(host, int(port))
ftp.login(user, password)
ftp.set_pasv(passive == "True")

def download():
    digest = hashlib.sha256()
    ftp.retrbinary("RETR small.bin", digest.update)
    assert digest.hexdigest() == expected, digest.hexdigest()

def synch():
    ftp.sock.sendall(b"\xff\xf4\xff", socket.MSG_OOB)
    ftp.sock.sendall(b"\xf2ABOR\r\n")
    return ftp.getmultiline()

def settle():
    # Some servers answer twice, some take the urgent line end for something else than one.
    for _ in range(3):
        ftp.putcmd("NOOP")
        reply = ""
        while reply[:3] not in ("200", "500"):
            reply = ftp.getmultiline()
            print("reply", repr(reply))
        if reply[:3] == "200":
            return
    sys.exit("the server doesn't answer NOOP")

for abort in [synch, synch] if server == "vsftpd" else [ftp.abort, synch, synch, ftp.abort]:
    download()
    ftp.voidcmd("TYPE I")
    data = ftp.transfercmd("RETR long.bin")
    assert data.recv(1000)
    print("aborting")
    reply = abort()
    print("reply", repr(reply))
    data.close()
    settle()
    download()
ftp.quit()
"#;

/// Whatever reads the download ends early, so lftp aborts it; then it goes on in the same session.
const LFTP: &str = "
set cmd:fail-exit no; set ftp:ssl-allow off; set ftp:fix-pasv-address off
set ftp:use-abor yes; set ftp:auto-passive-mode off; set net:timeout 10; set net:max-retries 1
set net:connection-limit 1; set ftp:use-telnet-iac yes; set xfer:clobber yes; debug 9
";

/// tnftp aborts when it is interrupted.
const TNFTP: &str = r#"
import os, signal, subprocess, sys, threading, time

host, port, user, password, passive = sys.argv[1:]
client = subprocess.Popen(
    ["stdbuf", "-oL", "tnftp", "-n", "-i", "-v", "-d", "-q", "10", "-p" if passive == "True" else "-A", host, port],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
threading.Timer(30, client.kill).start()

def say(line):
    client.stdin.write(line.encode() + b"\n")
    client.stdin.flush()

def wait(*words):
    for line in client.stdout:
        print(line.decode(errors="replace"), end="", flush=True)
        if line.startswith(words):
            return
    sys.exit("tnftp ended before it said any of %r" % (words,))

say("user %s %s" % (user, password))
say("binary")
say("epsv4")
for number in range(2):
    say("get small.bin got%d" % number)
    wait(b"226")
    say("rate get 100000")
    say("get long.bin /dev/null")
    wait(b"150", b"125")
    time.sleep(0.3)
    client.send_signal(signal.SIGINT)
    # The reply to ABOR; one to the transfer comes before.
    wait(b"22")
    say("rate get 0")
say("get small.bin got2")
wait(b"226")
say("bye")
wait(b"221")
os._exit(client.wait())
"#;

struct Place<'a> {
    net: &'a Net,
    server: &'a Server,
    passive: bool,
    limit: Duration,
}

impl Place<'_> {
    fn python(&self, program: &str, further: &[&str]) -> Finished {
        let Login { user, password } = self.server.login();
        let dial = self.net.topology().dial;
        let mut command = self.net.client("python3");
        command.args(["-u", "-c", program]);
        command.args([&dial.ip().to_string(), &dial.port().to_string()]);
        command.args([user, password]);
        command.arg(if self.passive { "True" } else { "False" });
        command.args(further);
        run(command, self.limit)
    }

    fn ftplib(&self) -> Result<(), String> {
        let mut sum = Command::new("/usr/bin/sha256sum");
        sum.arg(self.server.path(Server::SMALL));
        let sum = run(sum, LIMIT).must().stdout;
        let sum = sum.split_whitespace().next().unwrap_or_default();
        let finished = self.python(FTPLIB, &[sum, self.server.kind().name()]);
        if finished.ok() {
            Ok(())
        } else {
            Err(finished.to_string())
        }
    }

    fn lftp(&self) -> Result<(), String> {
        let Login { user, password } = self.server.login();
        let dial = self.net.topology().dial;
        let passive = if self.passive { "on" } else { "off" };
        let mut script = format!(
            "{LFTP}set ftp:passive-mode {passive}; open -u {user},{password} -p {} {}\n",
            dial.port(),
            dial.ip()
        );
        for number in 0..3 {
            script += &format!("get {} -o got{number}\n", Server::SMALL);
            script += &format!("cat {LONG_NAME} | head -c 1000 | wc -c\n");
        }
        script += &format!("get {} -o got3\nbye\n", Server::SMALL);
        let mut command = self.net.client("lftp");
        command.args(["--norc", "-c", &script.replace('\n', ";")]);
        let finished = run(command, self.limit);
        let aborted = finished.log.matches("---> ABOR").count();
        let logins = finished.log.matches("---> USER").count();
        if aborted >= 3 && logins == 1 {
            self.got(4, &finished)
        } else {
            Err(format!("{aborted} aborts, {logins} logins: {finished}"))
        }
    }

    fn tnftp(&self) -> Result<(), String> {
        let finished = self.python(TNFTP, &[]);
        if finished.ok() {
            self.got(3, &finished)
        } else {
            Err(finished.to_string())
        }
    }

    /// Compares so many downloads with what the server holds.
    fn got(&self, count: usize, finished: &Finished) -> Result<(), String> {
        let expected = std::fs::read(self.server.path(Server::SMALL)).expect("the server's file");
        for number in 0..count {
            let path = self.net.directory().join(format!("got{number}"));
            let content = std::fs::read(&path).unwrap_or_default();
            if content != expected {
                return Err(format!("download {number} is wrong: {finished}"));
            }
            std::fs::remove_file(&path).expect("the lab's own file");
        }
        Ok(())
    }
}

/// What a client does with a server by itself, whatever is between them, so that it isn't held against
/// a gateway.
fn own_way(client: &str, server: Kind) -> Option<&'static str> {
    match (client, server) {
        ("tnftp", Kind::Proftpd) => Some("waits for a second reply to ABOR that never comes"),
        ("lftp", Kind::Pyftpdlib) => Some("now and then, the PASV after an ABOR isn't answered"),
        _ => None,
    }
}

/// Where the first interface of each end is.
const INTERFACE: &str = "e0";

type Run = fn(&Place<'_>) -> Result<(), String>;

/// How a client fared.
type Row = (String, Result<String, String>);

/// Runs a client and looks at its urgent pointers on both sides.
fn one(place: &Place<'_>, client: Run) -> Result<String, String> {
    let topology = place.net.topology();
    let capture = |host, port| Capture::start(place.net, host, INTERFACE, port);
    let (dialled, listening) = (topology.dial.port(), topology.listen.port());
    let near = capture(topology.client, dialled);
    let far = capture(topology.server, listening);
    let result = client(place);
    let (near, far) = (near.stop(), far.stop());
    result?;
    let near = urgent_places(&near, dialled);
    let far = urgent_places(&far, listening);
    if near.is_empty() {
        return Err("it sent nothing urgent".to_owned());
    }
    if near != far {
        return Err(format!(
            "urgent at {near:?}, but the server is shown {far:?}"
        ));
    }
    Ok(format!("works, urgent pointers at {} places", near.len()))
}

/// Runs all clients; the passive way, or the active one.
fn clients(net: &Net, server: &Server, passive: bool, all: bool) -> Vec<Row> {
    let place = |limit| Place {
        net,
        server,
        passive,
        limit,
    };
    let clients: [(&str, Run); 3] = [
        ("ftplib", |place| place.ftplib()),
        ("lftp", |place| place.lftp()),
        ("tnftp", |place| place.tnftp()),
    ];
    let mut rows = Vec::new();
    let mode = if passive { "passive" } else { "active" };
    for (client, run) in clients {
        let outcome = match own_way(client, server.kind()) {
            Some(why) if !all => Ok(format!("left out, fails without a gateway as well: {why}")),
            Some(why) => {
                let outcome = one(&place(SHORT), run);
                let now = if outcome.is_ok() { "worked" } else { "failed" };
                Ok(format!("not asserted: {why}; this time it {now}"))
            }
            None => one(&place(LIMIT), run),
        };
        let name = format!("{client}, {}, {mode}", server.kind().name());
        rows.push((name, outcome));
    }
    rows
}

fn prepare(kind: Kind, topology: &Topology, policy: Policy) -> (Net, Server) {
    let net = Net::new(topology);
    rules::install(&net, Flavour::Nft, policy, true);
    let server = Server::start(&net, &Config::new(kind));
    server.publish(LONG_NAME, &content(9, LONG));
    (net, server)
}

fn conclude(name: &str, rows: &[Row]) {
    let cells = rows.iter().map(|(name, outcome)| {
        let text = outcome.as_ref().unwrap_or_else(|why| why);
        (
            name.clone(),
            vec![text.lines().next().unwrap_or_default().to_owned()],
        )
    });
    let table = report::table(
        &["client, server, mode", "outcome"],
        &cells.collect::<Vec<_>>(),
    );
    report::write(name, &table);
    let failures: Vec<_> = rows
        .iter()
        .filter_map(|(name, outcome)| Some(format!("{name}: {}", outcome.as_ref().err()?)))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn aborts(name: &str, kind: Kind, topology: &Topology) {
    let (net, server) = prepare(kind, topology, Policy::Drop);
    let invalid = rules::invalid(&net, topology.router);
    let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
    let passive = topology.shape == Shape::ServerInside;
    let rows = clients(&net, &server, passive, false);
    conclude(&format!("aborts_{name}"), &rows);
    alg.stop();
    assert_eq!(
        rules::invalid(&net, topology.router),
        invalid,
        "INVALID packets"
    );
}

/// What clients and servers do by themselves, where nothing translates and nothing is filtered.
fn routed(kind: Kind) {
    let (net, server) = prepare(kind, &Topology::routed(), Policy::Accept);
    let mut rows = clients(&net, &server, true, true);
    rows.extend(clients(&net, &server, false, true));
    conclude(&format!("aborts_{}_routed", kind.name()), &rows);
}

#[test]
fn vsftpd_without_a_gateway() {
    routed(Kind::Vsftpd);
}

#[test]
fn proftpd_without_a_gateway() {
    routed(Kind::Proftpd);
}

#[test]
fn pyftpdlib_without_a_gateway() {
    routed(Kind::Pyftpdlib);
}

/// A client that announces and aborts in one breath: address and urgent data share a segment, so the
/// pointer itself has to change; the line in pieces as well, the last of them urgent.
#[test]
fn an_address_in_the_urgent_segment() {
    let topology = Topology::masqueraded_client();
    let net = Net::new(&topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let invalid = rules::invalid(&net, topology.router);
    let alg =
        Alg::under_test(&["--backend", "nft", "--keep-length", "off"]).start(&net, Flavour::Nft);
    let line = Verb::Port.line(([10, 0, 0, 2], 44_444).into());
    for cut in [0, 3, 12, line.len() - 1] {
        let near = Capture::start(&net, topology.client, INTERFACE, topology.dial.port());
        let far = Capture::start(&net, topology.server, INTERFACE, topology.listen.port());
        let (sent, read) = peers(
            &net,
            LIMIT,
            |mut control| {
                control.login()?;
                control.send(&line[..cut])?;
                let urgent = [&line.as_bytes()[cut..], b"\xff\xf4\xff"].concat();
                let count = send(control.stream.as_raw_fd(), &urgent, MsgFlags::MSG_OOB)?;
                assert_eq!(count, urgent.len());
                (&control.stream).write_all(b"\xf2ABOR\r\n")?;
                control.expect("200")?;
                control.expect("226")?;
                control.send("QUIT\r\n")?;
                control.expect("221")?;
                Ok(line.clone())
            },
            |mut control| {
                setsockopt(&control.stream, sockopt::OobInline, &true)?;
                control.let_in()?;
                let mut read = Vec::new();
                while !read.ends_with(b"ABOR\r\n") {
                    let mut buffer = [0; 100];
                    let count = (&control.stream).read(&mut buffer)?;
                    if count == 0 {
                        return Err(Error::other(format!("only {read:?}")));
                    }
                    read.extend_from_slice(&buffer[..count]);
                }
                control.send("200 fine\r\n226 nothing to abort\r\n")?;
                control.expect("QUIT")?;
                control.send("221 bye\r\n")?;
                Ok(read)
            },
        )
        .unwrap_or_else(|why| panic!("cut at {cut}: {why}"));
        let rewritten = sent.replace("10,0,0,2", "198,51,100,1");
        let expected = [rewritten.as_bytes(), b"\xff\xf4\xff\xf2ABOR\r\n"].concat();
        assert_eq!(read, expected, "cut at {cut}");
        // Behind the third byte after three lines.
        let place = [(0, 3, 3)].into();
        assert_eq!(urgent_places(&near.stop(), 21), place, "cut at {cut}");
        assert_eq!(urgent_places(&far.stop(), 21), place, "cut at {cut}");
    }
    alg.stop();
    assert_eq!(
        rules::invalid(&net, topology.router),
        invalid,
        "INVALID packets"
    );
}

/// What the other tests see is all there was: a capture that starts while the interface is busy, with
/// packets of other kinds in tcpdump's buffer before its filter is set, still knows when it has read
/// everything.
#[test]
fn captures_of_a_busy_interface_are_complete() {
    const CONNECTIONS: usize = 5;
    let topology = Topology::routed();
    let net = Net::new(&topology);
    let listener = net.within(topology.server, || TcpListener::bind(topology.listen));
    let listener = listener.expect("a free port");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let end = Over(&over);
        scope.spawn(|| {
            net.within(topology.client, || {
                let socket = UdpSocket::bind("198.51.100.2:0").expect("a datagram socket");
                while !over.load(Ordering::Relaxed) {
                    // The neighbour refuses some: no matter.
                    drop(socket.send_to(b"not asked for", "198.51.100.1:9"));
                }
            });
        });
        for _ in 0..10 {
            let capture = Capture::start(&net, topology.client, INTERFACE, topology.dial.port());
            for number in 0..CONNECTIONS {
                let mut client = net.within(topology.client, || {
                    TcpStream::connect(topology.dial).unwrap()
                });
                let (mut server, _) = listener.accept().expect("the connection");
                client
                    .write_all(format!("line {number}\n").as_bytes())
                    .unwrap();
                drop(client);
                let mut read = String::new();
                server.read_to_string(&mut read).unwrap();
                assert_eq!(read, format!("line {number}\n"));
            }
            let packets = capture.stop();
            for number in 0..CONNECTIONS {
                let line = format!("line {number}\n");
                let there = packets.iter().filter(|p| p.ends_with(line.as_bytes()));
                assert!(there.count() >= 1, "{line:?} of {}", packets.len());
            }
        }
        drop(end);
    });
}

/// Says that a test is over, however it ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

macro_rules! aborts {
    ($($name:ident: $kind:expr, $topology:ident;)*) => {
        $(
            #[test]
            fn $name() {
                aborts(stringify!($name), $kind, &Topology::$topology());
            }
        )*
    };
}

aborts! {
    vsftpd_inside: Kind::Vsftpd, published_server;
    proftpd_inside: Kind::Proftpd, published_server;
    pyftpdlib_inside: Kind::Pyftpdlib, published_server;
    vsftpd_outside: Kind::Vsftpd, masqueraded_client;
    proftpd_outside: Kind::Proftpd, masqueraded_client;
    pyftpdlib_outside: Kind::Pyftpdlib, masqueraded_client;
}
