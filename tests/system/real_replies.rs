//! Real servers that answer early, late, twice or never: the next transfer of the session works.

use std::io::{BufRead, ErrorKind, Read, Write};
use std::mem;

use testkit::lab::gateway::{Control, LIMIT, address, gateway, start, status};
use testkit::lab::net::Net;
use testkit::lab::rules::{Flavour, Policy};
use testkit::lab::scripted;
use testkit::lab::server::{Config, Kind, Server, content};

/// More than all socket buffers on the way hold: its transfer runs until somebody reads it.
const LARGE: usize = 32 << 20;
const LARGE_NAME: &str = "large.bin";

/// Asks for a `227`, and returns the last one before the reply to a command behind it: another one may be
/// still to come. `None`: the server hung up.
///
/// Pure-FTPd throws away what it reads while it hasn't noticed yet that a download was abandoned, all but an
/// `ABOR`. So it is asked again.
fn ask_227(control: &mut Control) -> Option<String> {
    let patience = |control: &Control, time| {
        let stream = control.0.get_ref();
        stream.set_read_timeout(Some(time)).unwrap();
    };
    patience(control, LIMIT / 4);
    let answer = (0..4).find_map(|_| ask_once(control));
    patience(control, LIMIT);
    answer?
}

/// The same, once. `Some(None)`: the server hung up; `None`: it doesn't answer.
fn ask_once(control: &mut Control) -> Option<Option<String>> {
    // It may have hung up before that.
    if control.0.get_mut().write_all(b"PASV\r\nSYST\r\n").is_err() {
        return Some(None);
    }
    let mut last = None;
    let mut line = String::new();
    loop {
        match control.0.read_line(&mut line) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(_) | Ok(0) => return Some(None),
            Ok(_) => {}
        }
        if line.starts_with("227 ") {
            last = Some(mem::take(&mut line));
        } else if line.starts_with("215 ") {
            return Some(last);
        }
        line.clear();
    }
}

/// A download, after whatever was said before.
#[track_caller]
fn transfer(control: &mut Control, net: &Net, server: &Server, after: &str) {
    let reply = ask_227(control).unwrap_or_else(|| panic!("no 227 after {after}"));
    let to = address(&reply);
    assert_eq!(to.ip(), net.topology().dial.ip(), "after {after}: {reply}");
    let mut data = net.within(net.topology().client, || {
        std::net::TcpStream::connect_timeout(&to, LIMIT).unwrap()
    });
    control.send(&format!("RETR {}\r\n", Server::SMALL));
    let mut got = Vec::new();
    data.set_read_timeout(Some(LIMIT)).unwrap();
    data.read_to_end(&mut got).unwrap();
    // ProFTPD lets its own end linger until then.
    drop(data);
    assert!(
        got == std::fs::read(server.path(Server::SMALL)).unwrap(),
        "after {after}: {} bytes",
        got.len()
    );
    while !control.reply().starts_with("226") {}
}

/// Begins a transfer that goes on until somebody reads.
fn begin(control: &mut Control, net: &Net) -> std::net::TcpStream {
    let data = control.passive(net);
    control.ask(&format!("RETR {LARGE_NAME}\r\n"), "1");
    data
}

fn out_of_step(kind: Kind, backend: &str) {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(kind));
    server.publish(LARGE_NAME, &content(4, LARGE));
    let alg = start(&net, backend, Flavour::Nft);
    let session = || {
        let mut control = Control::dial(&net);
        control.log_in(&server);
        control
    };

    let mut control = session();
    for command in [
        "PASV",
        "EPSV",
        "NOOP",
        "STAT",
        "PORT 198,51,100,2,195,81",
        "TYPE I",
    ] {
        let mut data = begin(&mut control, &net);
        // pyftpdlib connects at once, and where nobody listens, it gives up the next PASV as well.
        let listener = command.strip_prefix("PORT ").map(|_| {
            let at = "198.51.100.2:50001".parse().unwrap();
            net.within(net.topology().client, || scripted::listen(at).unwrap())
        });
        control.send(&format!("{command}\r\n"));
        // pyftpdlib ends the transfer for another address.
        drop(data.read_to_end(&mut Vec::new()));
        drop(data);
        transfer(&mut control, &net, &server, command);
        drop(listener);
    }

    let mut control = session();
    let mut data = begin(&mut control, &net);
    data.read_exact(&mut [0; 1000]).unwrap();
    drop(data);
    transfer(&mut control, &net, &server, "an abandoned download");

    let mut control = session();
    control.send("SIZE a\nb\r\n");
    transfer(&mut control, &net, &server, "a line feed in a path");
    control.send(&"\r\n".repeat(300));
    transfer(&mut control, &net, &server, "300 empty lines");
    control.send("a.b\r\nXYZZY\r\n");
    transfer(&mut control, &net, &server, "commands that nobody knows");

    // Some hang up.
    let mut control = session();
    control.send(&format!("CWD {}\r\n", "a".repeat(5000)));
    if let Some(reply) = ask_227(&mut control) {
        assert_eq!(address(&reply).ip(), net.topology().dial.ip(), "{reply}");
        transfer(&mut control, &net, &server, "an over-long command");
    }

    let counters = &status(&net)["counters"];
    assert_eq!(counters["not_ftp"], 0, "{counters:#}");
    alg.stop();
}

#[test]
fn vsftpd() {
    out_of_step(Kind::Vsftpd, "nft");
}

#[test]
fn proftpd() {
    out_of_step(Kind::Proftpd, "nft");
}

#[test]
fn pure_ftpd() {
    out_of_step(Kind::PureFtpd, "nft");
}

#[test]
fn pyftpdlib() {
    out_of_step(Kind::Pyftpdlib, "iptables");
}
