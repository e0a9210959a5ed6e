//! `ABOR` in the middle of a transfer, announced by urgent data (RFC 959 §4.1.3, the Synch of
//! RFC 854), in sessions whose addresses were rewritten before.

mod lab;

use std::process::Command;
use std::time::Duration;

use lab::alg::Alg;
use lab::net::Net;
use lab::process::{Finished, require, run};
use lab::rules::{self, Flavour, Policy};
use lab::server::{Config, Kind, Login, Server, content};
use lab::topology::{Shape, Topology};

const LIMIT: Duration = Duration::from_secs(40);
const SERVERS: [Kind; 3] = [Kind::Vsftpd, Kind::Proftpd, Kind::Pyftpdlib];
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
}

impl Place<'_> {
    fn command(&self, program: &str) -> Command {
        require(program);
        self.net.command(self.net.topology().client, program)
    }

    fn python(&self, program: &str, further: &[&str]) -> Finished {
        let Login { user, password } = self.server.login();
        let dial = self.net.topology().dial;
        let mut command = self.command("python3");
        command.args(["-u", "-c", program]);
        command.args([&dial.ip().to_string(), &dial.port().to_string()]);
        command.args([user, password]);
        command.arg(if self.passive { "True" } else { "False" });
        command.args(further);
        run(command, LIMIT)
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
        let mut command = self.command("lftp");
        command.args(["--norc", "-c", &script.replace('\n', ";")]);
        let finished = run(command, LIMIT);
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

/// Segments with urgent data that came to a host since it started to count.
fn urgent(net: &Net, host: &str) -> u64 {
    let listing = net
        .exec(host, &["iptables-nft", "-vnxL", "INPUT"])
        .must()
        .stdout;
    let rule = listing.lines().nth(2).unwrap_or_default();
    let count = rule.split_whitespace().next();
    count
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("no counter in\n{listing}"))
}

/// Runs the clients that are to work; the passive way, or the active one.
fn clients(net: &Net, server: &Server, passive: bool) -> Vec<String> {
    let place = Place {
        net,
        server,
        passive,
    };
    let mut failures = Vec::new();
    type Run<'a> = fn(&Place<'a>) -> Result<(), String>;
    let clients: [(&str, Run<'_>); 3] = [
        ("ftplib", Place::ftplib),
        ("lftp", Place::lftp),
        ("tnftp", Place::tnftp),
    ];
    for (name, client) in clients {
        // Pairs that fail without any gateway as well.
        match (name, server.kind()) {
            // It waits for a second reply that never comes, and gives up.
            ("tnftp", Kind::Proftpd) => continue,
            // The server doesn't answer the PASV after an ABOR now and then.
            ("lftp", Kind::Pyftpdlib) => continue,
            _ => {}
        }
        let host = net.topology().server;
        let before = urgent(net, host);
        if let Err(why) = client(&place) {
            failures.push(format!("{name}: {why}"));
        }
        if urgent(net, host) == before {
            failures.push(format!("{name} sent nothing urgent"));
        }
    }
    failures
}

fn prepare(kind: Kind, topology: &Topology, policy: Policy) -> (Net, Server) {
    let net = Net::new(topology);
    rules::install(&net, Flavour::Nft, policy, true);
    let counter = ["-p", "tcp", "--dport", "21", "--tcp-flags", "URG", "URG"];
    let words = [&["iptables-nft", "-A", "INPUT"][..], &counter].concat();
    net.exec(topology.server, &words).must();
    let server = Server::start(&net, &Config::new(kind));
    server.publish(LONG_NAME, &content(9, LONG));
    (net, server)
}

fn aborts(kind: Kind, topology: &Topology) {
    let (net, server) = prepare(kind, topology, Policy::Drop);
    let invalid = rules::invalid(&net, topology.router);
    let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
    let passive = topology.shape == Shape::ServerInside;
    let failures = clients(&net, &server, passive);
    let name = kind.name();
    assert!(failures.is_empty(), "{name}: {}", failures.join("\n\n"));
    alg.stop();
    assert_eq!(
        rules::invalid(&net, topology.router),
        invalid,
        "INVALID packets"
    );
}

/// What clients and servers do by themselves, where plain NAT suffices.
#[test]
fn where_no_alg_is_needed() {
    let mut failures = Vec::new();
    for kind in SERVERS {
        let (net, server) = prepare(kind, &Topology::masqueraded_client(), Policy::Accept);
        failures.extend(clients(&net, &server, true));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

macro_rules! aborts {
    ($($name:ident: $kind:expr, $topology:ident;)*) => {
        $(
            #[test]
            fn $name() {
                aborts($kind, &Topology::$topology());
            }
        )*
    };
}

aborts! {
    vsftpd_inside: SERVERS[0], published_server;
    proftpd_inside: SERVERS[1], published_server;
    pyftpdlib_inside: SERVERS[2], published_server;
    vsftpd_outside: SERVERS[0], masqueraded_client;
    proftpd_outside: SERVERS[1], masqueraded_client;
    pyftpdlib_outside: SERVERS[2], masqueraded_client;
}
