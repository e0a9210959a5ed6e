//! Commands that are refused in place, with real servers and clients: the server answers 500, and
//! the session goes on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use testkit::lab::alg::Alg;
use testkit::lab::gateway::{Control, LIMIT, gateway, start, status};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scenario::Scenario;
use testkit::lab::server::{Config, Kind, Server, Tls};
use testkit::lab::topology::Topology;

/// The time between the pieces of a line.
const PAUSE: Duration = Duration::from_millis(3);

fn download(control: &mut Control, net: &Net, server: &Server) {
    let mut data = control.passive(net);
    control.ask(&format!("RETR {}\r\n", Server::SMALL), "1");
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    assert!(control.reply().starts_with("226"));
}

/// Sends a line in pieces and reads the answer.
fn ask_in(control: &mut Control, line: &str, pieces: usize) -> String {
    let size = line.len().div_ceil(pieces);
    for piece in line.as_bytes().chunks(size) {
        control.send(std::str::from_utf8(piece).unwrap());
        if pieces > 1 {
            std::thread::sleep(PAUSE);
        }
    }
    control.reply()
}

#[test]
fn every_server_refuses_by_itself_and_goes_on() {
    for kind in Kind::ALL {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let server = Server::start(&net, &Config::new(kind));
        let alg = start(&net, "nft", Flavour::Nft);
        let mut control = Control::dial(&net);
        control.log_in(&server);
        let mut refused = 0;
        for line in [
            // To another host, to a low port, to a service, to somebody in between.
            "PORT 10,0,0,99,195,81",
            "port 198,51,100,2,0,22",
            "PORT 198,51,100,2,23,112",
            "EPRT |1|10.0.0.99|50001|",
            "EPRT |2|::1|50001|",
            // Not strictly an address, and yet one to some.
            "PORT 10,0,0,99,195,81,",
            "PORT 198,51,100,2,195,81 x",
            "LPRT 4,4,198,51,100,2,2,195,81",
            "LPSV",
        ] {
            for pieces in [1, 2, line.len() + 2] {
                let reply = ask_in(&mut control, &format!("{line}\r\n"), pieces);
                let shown = line.escape_debug();
                // 500 or 501 (RFC 959 §5.4), 522 (RFC 2428 §2).
                assert!(
                    ["500", "501", "522"].contains(&&reply[..3]),
                    "{kind:?} {shown} {pieces}: {reply}"
                );
                refused += 1;
            }
            control.ask("NOOP\r\n", "200");
        }
        download(&mut control, &net, &server);
        let status = status(&net);
        assert_eq!(status["counters"]["refused"], refused, "{status:#}");
        assert_eq!(status["nat"]["opened"], 1, "{status:#}");
        let log = alg.stop();
        assert!(
            log.contains("PORT refused: somebody else's address"),
            "{log}"
        );
    }
}

fn curl(net: &Net, server: &Server, options: &[&str]) -> Finished {
    let mut command = net.command(net.topology().client, "curl");
    let login = server.login();
    command
        .args([
            "-sS",
            "-v",
            "-k",
            "--noproxy",
            "*",
            "--max-time",
            "8",
            "-o",
            "got",
        ])
        .args(["--user", &format!("{}:{}", login.user, login.password)])
        .args(options)
        .arg(format!("ftp://{}/{}", net.topology().dial, Server::SMALL));
    run(command, LIMIT)
}

#[test]
fn clients_that_may_fall_back_from_tls() {
    for kind in [Kind::Vsftpd, Kind::Pyftpdlib] {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let config = Config {
            tls: Some(Tls::Offered),
            ..Config::new(kind)
        };
        let server = Server::start(&net, &config);
        let alg = Alg::Ftpalg(["--tls", "deny"].map(str::to_owned).to_vec());
        let alg = alg.start(&net, Flavour::Nft);
        let mut control = Control::dial(&net);
        assert!(control.reply().starts_with("220"));
        for line in ["AUTH TLS\r\n", "auth ssl\r\n", "AUTH TLS-C\r\n"] {
            // vsftpd doesn't look at verbs before the login.
            let code = if kind == Kind::Vsftpd { "530" } else { "500" };
            control.ask(line, code);
        }
        assert_eq!(status(&net)["counters"]["tls_denied"], 3);
        let insists = curl(&net, &server, &["--ssl-reqd"]);
        assert!(!insists.ok(), "{insists}");
        let falls_back = curl(&net, &server, &["--ssl"]);
        assert!(falls_back.ok(), "{falls_back}");
        let got = std::fs::read(net.directory().join("got")).unwrap();
        assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
        let counters = &status(&net)["counters"];
        assert_eq!(counters["tls"], 0, "{counters:#}");
        assert!(counters["tls_denied"].as_u64() > Some(3), "{counters:#}");
        let log = alg.stop();
        assert!(log.contains("AUTH refused: TLS is denied"), "{log}");
    }
}

/// Whatever a real client says to a real server, no strict rule is against it.
fn strict(name: &str, topology: Topology) {
    let alg = Alg::under_test(&["--backend", "nft", "--strict"]);
    let logs = Scenario::new(topology, Policy::Drop, Flavour::Nft, alg).run(name);
    for log in logs {
        let refused: Vec<_> = log.lines().filter(|l| l.contains(" refused: ")).collect();
        assert!(refused.is_empty(), "{refused:#?}");
    }
}

#[test]
fn strict_rules_refuse_no_client_published() {
    strict("strict_published", Topology::published_server());
}

#[test]
fn strict_rules_refuse_no_client_masqueraded() {
    strict("strict_masqueraded", Topology::masqueraded_client());
}

#[test]
fn strict_rules_in_pieces() {
    for kind in Kind::ALL {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let router = net.topology().router;
        let server = Server::start(&net, &Config::new(kind));
        let alg = Alg::Ftpalg(vec!["--strict".to_owned()]).start(&net, Flavour::Nft);
        let invalid = rules::invalid(&net, router);
        let mut control = Control::dial(&net);
        assert!(control.reply().starts_with("220"));
        let mut refused = 0;
        let mut refuse = |control: &mut Control, line: &str| {
            for pieces in [1, 3, line.len() + 2] {
                let reply = ask_in(control, &format!("{line}\r\n"), pieces.min(line.len() + 2));
                let shown = line.escape_debug();
                // Some don't look at verbs before the login.
                let code = &reply[..3];
                assert!(
                    matches!(code, "500" | "501" | "530"),
                    "{kind:?} {shown}: {reply}"
                );
                refused += 1;
            }
        };
        refuse(&mut control, "LIST");
        refuse(&mut control, "PASS nobody");
        let login = server.login();
        let asked = control.ask(&format!("USER {}\r\n", login.user), "");
        if !asked.starts_with("230") {
            control.ask(&format!("PASS {}\r\n", login.password), "230");
        }
        control.ask("TYPE I\r\n", "200");
        refuse(&mut control, "XYZZY plugh");
        refuse(&mut control, "RETR a\u{1b}b");
        // pyftpdlib answers to both halves of a line that is longer than its buffer.
        if kind != Kind::Pyftpdlib {
            refuse(&mut control, &format!("RETR {}", "a".repeat(2100)));
        }
        refuse(&mut control, "PORT 1,2,3");
        for pieces in [1, 2, 6] {
            let reply = ask_in(&mut control, "NOOP\r\n", pieces);
            assert!(reply.starts_with("200"), "{reply}");
        }
        download(&mut control, &net, &server);
        let counters = &status(&net)["counters"];
        assert_eq!(counters["refused"], refused, "{counters:#}");
        assert_eq!(counters["limit_reached"], 0, "{counters:#}");
        alg.stop();
        assert_eq!(rules::invalid(&net, router), invalid);
    }
}

/// The server connects to another host than the client, which the client named.
#[test]
fn a_foreign_address_that_is_allowed() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let topology = net.topology();
    for address in ["198.51.100.77", "198.51.100.78"] {
        let words = ["ip", "addr", "add", &format!("{address}/24"), "dev", "e0"];
        net.exec(topology.client, &words).must();
    }
    let alg = Alg::Ftpalg(
        ["--allow-foreign", "198.51.100.77"]
            .map(str::to_owned)
            .to_vec(),
    );
    let alg = alg.start(&net, Flavour::Nft);
    let listener = net.within(topology.server, || {
        TcpListener::bind(topology.listen).unwrap()
    });
    let mut client = Control::dial(&net);
    let mut server = Control::new(listener.accept().unwrap().0);
    let mut say = |command: &str, read: &str, reply: &str| {
        if !command.is_empty() {
            client.send(command);
            assert_eq!(server.read(), read);
        }
        server.send(reply);
        assert_eq!(client.read(), reply);
    };
    let same = |say: &mut dyn FnMut(&str, &str, &str), command: &str, reply: &str| {
        say(command, command, reply);
    };
    same(&mut say, "", "220 ready\r\n");
    same(&mut say, "USER lab\r\n", "230 fine\r\n");
    let refused = "PORT 198,51,100,78,195,81\r\n";
    say(refused, "PORT xxxxxxxxxxxxxxxxxxxx\r\n", "501 what?\r\n");
    let data = net.within(topology.client, || {
        TcpListener::bind("198.51.100.77:50001").unwrap()
    });
    let connect = || {
        let to = "198.51.100.77:50001".parse().unwrap();
        net.within(topology.server, || {
            TcpStream::connect_timeout(&to, Duration::from_secs(2))
        })
    };
    for _ in 0..2 {
        same(&mut say, "PORT 198,51,100,77,195,81\r\n", "200 fine\r\n");
        same(&mut say, "LIST\r\n", "150 here it comes\r\n");
        let mut sends = connect().unwrap();
        let (mut gets, _) = data.accept().unwrap();
        sends.write_all(b"list").unwrap();
        drop(sends);
        let mut got = String::new();
        gets.read_to_string(&mut got).unwrap();
        assert_eq!(got, "list");
        same(&mut say, "NOOP\r\n", "226 done\r\n");
    }
    // Once.
    assert!(connect().is_err(), "the user's FORWARD drops it");
    let status = status(&net);
    assert_eq!(
        status["counters"]["changed"].as_u64(),
        Some(1),
        "{status:#}"
    );
    alg.stop();
}
