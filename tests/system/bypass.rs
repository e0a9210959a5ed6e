//! Peers that pass unread: `--bypass`, in the file, and at SIGHUP.

use serde_json::Value;
use testkit::lab::gateway::{Control, ftpalg, gateway, start_with};
use testkit::lab::gateway::{LIMIT, address};
use testkit::lab::net::Net;
use testkit::lab::rules::{Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};

/// The address that a client reads in a `227`.
fn announced(net: &Net, server: &Server) -> String {
    let mut control = Control::dial(net);
    control.log_in(server);
    let reply = control.ask("PASV\r\n", "227");
    // Its session is listed while it lasts.
    let listed = ftpalg(net, &["sessions", "--json"]).must().stdout;
    let state = serde_json::from_str::<Value>(&listed).unwrap();
    let bypassed = state.to_string().contains("\"bypassed\"");
    let ip = address(&reply).ip().to_string();
    assert_eq!(bypassed, ip == "10.0.0.2", "{listed}");
    ip
}

#[test]
fn a_bypassed_client_reads_what_the_server_wrote() {
    let net = gateway(Policy::Accept, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let file = net.directory().join("ftpalg.toml");
    std::fs::write(&file, "bypass = [\"192.0.2.0/24\", \"198.51.100.0/24\"]\n").unwrap();
    let alg = start_with(
        &net,
        "nft",
        Flavour::Nft,
        &["--config", file.to_str().unwrap()],
    );
    assert_eq!(announced(&net, &server), "10.0.0.2");
    let process = alg.process().unwrap();
    assert!(process.wait_for("unread", LIMIT));
    // From the next connection on it is read.
    std::fs::write(&file, "bypass = \"192.0.2.0/24\"\n").unwrap();
    process.signal(nix::sys::signal::Signal::SIGHUP);
    assert!(process.wait_for("reloaded", LIMIT));
    assert_eq!(announced(&net, &server), "203.0.113.1");
    let log = alg.stop();
    for line in [
        "session 1 passes unread: --bypass 198.51.100.0/24\n",
        "bypass 192.0.2.0/24,198.51.100.0/24 -> 192.0.2.0/24\n",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert_eq!(log.matches("passes unread").count(), 1, "{log}");
}
