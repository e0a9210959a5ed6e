//! `--advertise` with a host name whose address changes while `ftpalg` runs.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::gateway::{Control, LIMIT, gateway};
use testkit::lab::process::Process;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};

/// Waits until it has said so.
#[track_caller]
fn says(alg: &Process, what: &str) {
    let start = Instant::now();
    while !alg.log().contains(what) {
        assert!(start.elapsed() < LIMIT, "{}", alg.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_name_is_looked_up_again() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let hosts = net.directory().join("hosts");
    std::fs::write(&hosts, "203.0.113.77 ftp.lab.test\n").unwrap();
    // A mount namespace of its own, in which /etc/hosts is that file.
    let script = format!(
        "mount --bind {} /etc/hosts; exec {} run --inside in0 --advertise ftp.lab.test",
        hosts.display(),
        testkit::paths::ftpalg()
    );
    let mut command = net.command(router, "unshare");
    command.args(["-m", "sh", "-ec", &script]);
    let alg = Process::spawn(command);
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let mut announces = |part: &str| {
        let reply = control.ask("PASV\r\n", "227");
        assert!(reply.contains(part), "{part}: {reply}");
    };
    announces("(203,0,113,77,");

    std::fs::write(&hosts, "203.0.113.8 ftp.lab.test\n").unwrap();
    announces("(203,0,113,77,");
    alg.signal(Signal::SIGHUP);
    let told = "advertise ftp.lab.test: 203.0.113.77 is now 203.0.113.8";
    says(&alg, told);
    announces("(203,0,113,8,");

    // No address any more: it stays what it was.
    std::fs::write(&hosts, "\n").unwrap();
    alg.signal(Signal::SIGHUP);
    says(&alg, "can't be looked up");
    announces("(203,0,113,8,");
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
    assert_eq!(rules::snapshot(&net, router), before);
}
