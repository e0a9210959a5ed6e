//! Limits, reached: what is beyond them is refused or isn't followed, and everybody else goes on.

use std::io::Read;
use std::time::Instant;

use testkit::lab::alg::{Alg, Running};
use testkit::lab::gateway::{Control, LIMIT, download, gateway, status};
use testkit::lab::net::Net;
use testkit::lab::rules::{Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};

/// `ftpalg` with these limits.
fn start<'a>(net: &'a Net, limits: &[&str]) -> Running<'a> {
    let mut arguments = vec!["--queues".to_owned(), "2".to_owned()];
    for limit in limits {
        arguments.extend(["--limit".to_owned(), (*limit).to_owned()]);
    }
    Alg::Ftpalg(arguments).start(net, Flavour::Nft)
}

fn log_in(net: &Net, server: &Server) -> Control {
    let mut control = Control::dial(net);
    control.log_in(server);
    control
}

#[test]
fn sessions_beyond_the_limit_open_nothing() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = start(&net, &["sessions-per-client=2"]);
    let mut first = log_in(&net, &server);
    let mut second = log_in(&net, &server);
    let mut third = log_in(&net, &server);
    let reply = third.ask("PASV\r\n", "227");
    assert!(reply.contains("(10,0,0,2,"), "{reply}");
    third.ask("PORT 10,0,0,99,195,81\r\n", "500");
    // What is always refused stays refused.
    assert_eq!(status(&net)["counters"]["refused"], 1);
    let answer = status(&net);
    assert_eq!(answer["counters"]["not_admitted"], 1, "{answer:#}");
    assert_eq!(
        answer["nat"]["limited_sessions_per_client"], 1,
        "{answer:#}"
    );
    assert_eq!(answer["sessions"], 2, "{answer:#}");
    // Those within the limit don't notice.
    for control in [&mut first, &mut second] {
        let mut data = control.passive(&net);
        control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
        let mut got = Vec::new();
        data.read_to_end(&mut got).unwrap();
        assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
        assert!(control.reply().starts_with("226"));
    }
    // One that ends makes room.
    first.ask("QUIT\r\n", "221");
    drop(first);
    let deadline = Instant::now() + LIMIT;
    while status(&net)["sessions"] != 1 {
        assert!(Instant::now() < deadline, "{:#}", status(&net));
    }
    download(&net, &server, &[]).must();
    let log = alg.stop();
    let expected = "opens nothing: the limit sessions-per-client is reached";
    assert!(log.contains(expected), "{log}");
}

#[test]
fn pinholes_beyond_the_limit_are_refused() {
    for (limit, counter) in [
        ("pinholes-per-client=2", "limited_per_client"),
        ("pinholes=2", "limited_total"),
        (
            "pinholes-per-client-per-minute=2",
            "limited_rate_per_client",
        ),
        ("pinholes-per-minute=2", "limited_rate"),
    ] {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
        let alg = start(&net, &[limit]);
        let mut controls = [(); 3].map(|()| log_in(&net, &server));
        for control in controls.iter_mut().take(2) {
            control.ask("PASV\r\n", "227");
        }
        let [used, _, third] = &mut controls;
        // Nobody reads an address that leads nowhere, and the session goes on.
        third.ask("PASV\r\n", "425");
        third.ask("EPSV\r\n", "425");
        third.ask("PORT 198,51,100,2,195,81\r\n", "501");
        third.ask("NOOP\r\n", "200");
        let answer = status(&net);
        assert_eq!(answer["nat"][counter], 3, "{limit}: {answer:#}");
        assert_eq!(answer["nat"]["limited"], 3, "{limit}: {answer:#}");
        assert_eq!(answer["pinholes"], 2, "{limit}: {answer:#}");
        if !limit.contains("minute") {
            // The pinholes of a session that ends make room.
            used.ask("QUIT\r\n", "221");
            used.0.get_ref().shutdown(std::net::Shutdown::Both).unwrap();
            let deadline = Instant::now() + LIMIT;
            while status(&net)["pinholes"] == 2 {
                assert!(Instant::now() < deadline, "{:#}", status(&net));
            }
            drop(third.passive(&net));
        }
        alg.stop();
    }
}
