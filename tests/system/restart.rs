//! Sessions outlive the process: it is killed between any two lines of a dialogue, another one starts,
//! and the session goes on with its next transfer.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::alg::Running;
use testkit::lab::gateway::{Control, LIMIT, ended, start_with, status};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::Verb;
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::Topology;

/// Both backends, beside one flavour each.
const HOSTS: [(&str, Flavour); 2] = [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)];

/// Ends the process by a signal (SIGKILL, as a crash does), and starts another one.
fn restart<'a>(
    net: &'a Net,
    alg: Running<'a>,
    how: Signal,
    again: impl Fn() -> Running<'a>,
) -> Running<'a> {
    alg.process().unwrap().signal(how);
    ended(net);
    drop(alg);
    again()
}

/// A download, announced with this verb.
fn transfer(net: &Net, control: &mut Control, server: &Server, verb: Verb) {
    let (own, peer) = {
        let stream = control.0.get_ref();
        (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
    };
    let retrieve = format!("RETR {}\r\n", Server::SMALL);
    let mut data = if verb.passive() {
        let command = if verb == Verb::Pasv { "PASV" } else { "EPSV" };
        let reply = control.ask(&format!("{command}\r\n"), "22");
        let to = verb.address(&reply, peer.ip()).unwrap();
        let data = net.within(net.topology().client, || {
            std::net::TcpStream::connect_timeout(&to, LIMIT)
        });
        let data = data.unwrap_or_else(|error| panic!("{verb:?} {}: {error}", reply.trim()));
        control.ask(&retrieve, "1");
        data
    } else {
        let at = SocketAddr::new(own.ip(), 0);
        let listener = net.within(net.topology().client, || TcpListener::bind(at).unwrap());
        let at = listener.local_addr().unwrap();
        control.ask(&verb.line(at), "200");
        control.send(&retrieve);
        testkit::lab::scripted::accept(&listener, LIMIT)
            .unwrap_or_else(|error| panic!("{verb:?}: {error}"))
    };
    data.set_read_timeout(Some(LIMIT)).unwrap();
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    drop(data);
    let last = control.reply();
    let last = if last.starts_with('1') {
        control.reply()
    } else {
        last
    };
    assert!(last.starts_with("226"), "{last}");
}

/// Waits until the session is closed, so that nothing of it is left for the next process to join.
fn is_over(net: &Net) {
    let start = Instant::now();
    while status(net)["sessions"] != 0 {
        assert!(start.elapsed() < LIMIT, "the session is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The verbs that lead somewhere with addresses of this family.
fn verbs(ip: IpAddr) -> &'static [Verb] {
    match ip {
        IpAddr::V4(_) => &[Verb::Pasv, Verb::Epsv, Verb::Port, Verb::Eprt],
        IpAddr::V6(_) => &[Verb::Epsv, Verb::Eprt],
    }
}

/// The process is killed before each of the lines of a login, and between transfers.
fn killed_between_lines(topology: &Topology, more: &[&str]) {
    for (backend, flavour) in HOSTS {
        let net = Net::new(topology);
        rules::install(&net, flavour, Policy::Drop, true);
        let server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
        let invalid = rules::invalid(&net, topology.router);
        let begin = || start_with(&net, backend, flavour, more);
        let mut alg = begin();
        let login = server.login();
        let lines = [
            (format!("USER {}\r\n", login.user), "331"),
            (format!("PASS {}\r\n", login.password), "230"),
            ("TYPE I\r\n".to_owned(), "200"),
            ("NOOP\r\n".to_owned(), "200"),
        ];
        for killed in 0..=lines.len() {
            let mut control = Control::dial(&net);
            assert!(control.reply().starts_with("220"));
            for (at, (line, code)) in lines.iter().enumerate() {
                if at == killed {
                    alg = restart(&net, alg, Signal::SIGKILL, begin);
                }
                control.ask(line, code);
            }
            if killed == lines.len() {
                alg = restart(&net, alg, Signal::SIGKILL, begin);
            }
            for verb in verbs(topology.dial.ip()) {
                transfer(&net, &mut control, &server, *verb);
                let counters = &status(&net)["counters"];
                assert_eq!(
                    counters["joined"], 1,
                    "{backend}, killed before line {killed}: {counters}"
                );
                // What is done about the transfer is journalled, where numbers differ.
                if !more.is_empty() {
                    alg = restart(&net, alg, Signal::SIGKILL, begin);
                }
            }
            control.ask("QUIT\r\n", "221");
            drop(control);
            is_over(&net);
        }
        alg.stop();
        assert_eq!(rules::invalid(&net, topology.router), invalid, "{backend}");
    }
}

#[test]
fn a_published_server() {
    killed_between_lines(&Topology::published_server(), &[]);
}

#[test]
fn a_masqueraded_client() {
    killed_between_lines(&Topology::masqueraded_client(), &[]);
}

/// Every session gets numbers that differ on the two sides.
#[test]
fn a_published_server_with_edits_of_any_length() {
    killed_between_lines(&Topology::published_server(), &["--keep-length", "off"]);
}

#[test]
fn a_masqueraded_client_with_edits_of_any_length() {
    killed_between_lines(&Topology::masqueraded_client(), &["--keep-length", "off"]);
}
