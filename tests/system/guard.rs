//! Somebody flushes or reloads the gateway's rules while `ftpalg` runs: all that is its own comes
//! back by itself, open pinholes included, and nothing is left at the end.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use testkit::lab::gateway::{
    Control, HOSTS, LIMIT, address, download, ftpalg, gateway, start, status,
};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};

/// How long it may take until all is back. Where the lock of the legacy tools is seen, all of them
/// come back at once; without it, legacy rules are looked at every 5 s.
const BACK: Duration = Duration::from_secs(4);
/// As long as Linux delays an acknowledgement at most, and some.
///
/// While the nat chains are gone, nothing translates the control connection: the gateway itself
/// answers its next packet, with a RST, whoever does or doesn't help with FTP. (`iptables-nft -X`
/// removes the builtin chains, too. With the nft backend our own table keeps translation alive,
/// unless that is flushed as well.) So nothing may be under way.
const QUIET: Duration = Duration::from_millis(250);

fn sh(net: &Net, script: &str) -> String {
    let router = net.topology().router;
    net.exec(router, &["sh", "-ec", script]).must().stdout
}

fn tool(flavour: Flavour) -> &'static str {
    flavour.iptables()
}

/// Waits until everything is in place again, and says how long that took.
#[track_caller]
fn back(net: &Net, since: Instant, restored: u64) -> Duration {
    loop {
        let told = ftpalg(net, &["status", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
        if told.ok() && all["nat"]["restored"].as_u64() >= Some(restored) {
            return since.elapsed();
        }
        assert!(since.elapsed() < BACK, "still missing: {all:#}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_flush_in_the_middle_of_a_session_is_mended() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let ipt = tool(flavour);
        let file = net.directory().join("users.rules");
        let path = file.to_str().unwrap();
        // The whole set once more, as a service does that loads it: tables and chains as they are
        // after that.
        sh(
            &net,
            &format!("{ipt}-save > {path}; {ipt}-restore -w 5 < {path}"),
        );
        let reload = format!("{ipt}-restore -w 5 < {path}");
        let before = rules::snapshot(&net, router);
        let alg = start(&net, backend, flavour);
        let while_running = net.directory().join("all.rules");
        let all = while_running.to_str().unwrap();

        let mut flushes = vec![
            ("iptables-restore of the user's rules", reload.clone()),
            (
                "raw and mangle flushed, the user's mangle rule put back",
                format!(
                    "for t in raw mangle; do {ipt} -w 5 -t $t -F; {ipt} -w 5 -t $t -X; done; \
                     {ipt} -w 5 -t mangle -A PREROUTING -m conntrack --ctstate INVALID -j DROP"
                ),
            ),
            (
                "nat flushed and reloaded",
                format!("{ipt} -w 5 -t nat -F; {ipt} -w 5 -t nat -X; {reload}"),
            ),
            (
                "iptables-restore of what was saved in between",
                format!("{ipt}-restore -w 5 < {all}"),
            ),
        ];
        if flavour == Flavour::Nft {
            flushes.push(("nft flush ruleset", format!("nft flush ruleset; {reload}")));
        }
        let mut control = Control::dial(&net);
        control.log_in(&server);
        let small = std::fs::read(server.path(Server::SMALL)).unwrap();
        let mut restored = 0;
        for (what, script) in flushes {
            sh(&net, &format!("{ipt}-save > {all}"));
            let pending = address(&control.ask("PASV\r\n", "227"));
            std::thread::sleep(QUIET);
            let now = Instant::now();
            sh(&net, &script);
            // What is loaded may hold all that is ours: then there is nothing to mend, but the
            // pinhole of the iptables backend.
            restored += u64::from(!what.contains("in between") || backend == "iptables");
            let took = back(&net, now, restored);
            eprintln!("{backend} beside {flavour:?}: {what}: back after {took:?}");

            // The pinhole from before the flush.
            let mut data = net.within(net.topology().client, || {
                TcpStream::connect_timeout(&pending, LIMIT).unwrap()
            });
            data.set_read_timeout(Some(LIMIT)).unwrap();
            control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
            let mut got = Vec::new();
            data.read_to_end(&mut got).unwrap();
            assert!(got == small, "{what}");
            assert!(control.reply().starts_with("226"), "{what}");
            // And new ones.
            download(&net, &server, &[]).must();
            download(&net, &server, &["--ftp-port", "-"]).must();
            restored = status(&net)["nat"]["restored"].as_u64().unwrap();
        }
        assert_eq!(status(&net)["nat"]["restore_failures"], 0);
        let log = alg.stop();
        assert!(log.contains("rules were removed by somebody else"), "{log}");
        assert_eq!(
            rules::snapshot(&net, router),
            before,
            "{backend} beside {flavour:?}"
        );
    }
}

/// Somebody who removes the rules all the time is told of, and let win for longer and longer.
#[test]
fn it_does_not_fight_for_ever() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);
    let alg = start(&net, "nft", Flavour::Nft);
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        sh(&net, "iptables-nft -w 5 -t raw -F PREROUTING");
        std::thread::sleep(Duration::from_millis(20));
    }
    let restored = status_of(&net)["nat"]["restored"].as_u64().unwrap();
    assert!((5..=10).contains(&restored), "{restored} times in 8 s");
    let log = alg.stop();
    assert!(log.contains("again and again"), "{log}");
    assert_eq!(rules::snapshot(&net, router), before);
}

/// The answer of `status`, whether all is in place or not.
fn status_of(net: &Net) -> serde_json::Value {
    serde_json::from_str(&ftpalg(net, &["status", "--json"]).stdout).unwrap()
}
