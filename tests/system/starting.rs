//! What `ftpalg run` says when it starts: what it watches, what contradicts its settings, and whom it took
//! over from; and `--dry-run`, which says it without starting.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use serde_json::Value;

use testkit::lab::alg::{Alg, Running};
use testkit::lab::gateway::{Control, LIMIT, ended, ftpalg, gateway, refused, start};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::Topology;

const FLAVOURS: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

/// Starts it as people do, with warnings only.
fn run<'a>(net: &'a Net, flavour: Flavour, words: &[&str]) -> Running<'a> {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    Alg::Ftpalg(words).start_with_log(net, flavour, "warn")
}

/// Waits for a part of the log.
#[track_caller]
fn says(alg: &Running<'_>, part: &str) {
    let deadline = Instant::now() + LIMIT;
    while !alg.log().contains(part) {
        assert!(Instant::now() < deadline, "no {part:?} in\n{}", alg.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn sh(net: &Net, script: &str) {
    net.exec(net.topology().router, &["sh", "-ec", script])
        .must();
}

#[test]
fn it_says_what_it_watches_and_nothing_else() {
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        let alg = run(&net, flavour, &[]);
        let log = alg.log();
        let lines: Vec<&str> = log.lines().collect();
        let at = |line: &str| lines.iter().position(|one| *one == line);
        let server = at("watching 203.0.113.1:21 -> 10.0.0.2:21 on in0");
        assert!(server > at("watching inside in0"), "{log}");
        assert!(lines.last().unwrap().starts_with("ftpalg ready: "), "{log}");
        assert!(
            !log.contains("warn: ") && !log.contains("took over"),
            "{log}"
        );
        assert_eq!(lines.len(), 4, "{log}");
        alg.stop();
    }
}

#[test]
fn it_warns_of_what_contradicts_its_settings() {
    for flavour in FLAVOURS {
        let iptables = flavour.iptables();
        let told = |prepare: &str, words: &[&str], parts: &[&str]| {
            let net = gateway(Policy::Drop, flavour);
            sh(&net, prepare);
            let alg = run(&net, flavour, words);
            // It comes by another pipe than the line that says that it is ready.
            says(&alg, "warn: ");
            let log = alg.log();
            let warnings: Vec<&str> = log.lines().filter(|line| line.contains("warn: ")).collect();
            assert_eq!(warnings.len(), 1, "{log}");
            for part in parts {
                assert!(warnings[0].contains(part), "{part}: {log}");
            }
            alg.stop();
        };
        told(
            "true",
            &["--port", "2121"],
            &[
                "leads 203.0.113.1:21 to 10.0.0.2:21",
                "ftpalg run --inside in0 --port 21",
            ],
        );
        told(
            &format!(
                "{iptables} -w 5 -F FORWARD; {iptables} -w 5 -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"
            ),
            &[],
            &[
                "drops new control connections to 10.0.0.2:21",
                "-I FORWARD -d 10.0.0.2 -p tcp --dport 21",
            ],
        );
        told(
            &format!("{iptables} -w 5 -t raw -A PREROUTING -p tcp --dport 21 -j CT --notrack"),
            &[],
            &["from conntrack", "-t raw -D PREROUTING"],
        );
        told(
            "ip route add default via 198.51.100.2",
            &["--inside", "out0"],
            &[
                "--inside out0 looks like the outside",
                "ftpalg run --inside in0",
            ],
        );
        told(
            "true",
            &["--rules", "external"],
            &["isn't there", "ftpalg rules install --inside in0"],
        );
        told(
            "echo 0 > /proc/sys/net/ipv4/ip_forward",
            &[],
            &["sysctl -w net.ipv4.ip_forward=1"],
        );
    }
}

/// The tables of a dry run: the tool, and what it is to load.
fn tables(text: &str) -> Vec<(String, String)> {
    let parts = text.split("\n\n").filter_map(|part| {
        let (first, rules) = part.trim_start().split_once('\n')?;
        let tool = first.strip_prefix("# ")?.strip_suffix(" --noflush")?;
        Some((tool.to_owned(), format!("{rules}\n")))
    });
    parts.collect()
}

#[test]
fn a_dry_run_prints_the_exact_rules_and_changes_nothing() {
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let before = rules::snapshot(&net, router);
        let words = ["run", "--dry-run", "--inside", "in0", "--deadline", "7"];
        let text = ftpalg(&net, &words).must().stdout;
        assert_eq!(rules::snapshot(&net, router), before);
        for part in [
            "nothing was changed",
            "#   deadline = 7",
            "#   inside in0",
            "#   203.0.113.1:21 -> 10.0.0.2:21 on in0",
            "# pinholes: tables ip ftpalg and ip6 ftpalg",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // What it printed, loaded by hand, is what a start places.
        ftpalg(&net, &["rules", "install", "--inside", "in0"]).must();
        let installed = rules::snapshot(&net, router);
        ftpalg(&net, &["rules", "remove"]).must();
        assert_eq!(rules::snapshot(&net, router), before);
        let tables = tables(&text);
        assert!(tables.len() >= 3, "{text}");
        for (tool, rules) in &tables {
            net.feed(router, &[tool, "-w", "5", "--noflush"], rules)
                .must();
        }
        assert_eq!(rules::snapshot(&net, router), installed);
        ftpalg(&net, &["rules", "remove"]).must();

        // Beside a daemon it prints the same rules.
        let alg = start(&net, "nft", flavour);
        let running = rules::snapshot(&net, router);
        let beside = ftpalg(&net, &words).must().stdout;
        assert!(beside.contains("runs here already"), "{beside}");
        assert_eq!(rules::snapshot(&net, router), running);
        ftpalg(&net, &["status"]).must();
        alg.stop();
    }
    let net = gateway(Policy::Drop, Flavour::Nft);
    let wrong = ftpalg(&net, &["run", "--dry-run", "--inside", "eth9"]);
    refused(&wrong, 2, "no interface \"eth9\" here");
}

fn kill(net: &Net, alg: &Running<'_>) -> u32 {
    let process = alg.process().unwrap();
    process.signal(Signal::SIGKILL);
    ended(net);
    process.pid()
}

#[test]
fn it_tells_the_truth_after_a_crash() {
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        // One session from before the first daemon, one that it followed.
        let mut unseen = Control::dial(&net);
        unseen.log_in(&server);
        let first = run(&net, flavour, &[]);
        let name = |control: &Control| {
            let client = control.0.get_ref().local_addr().unwrap();
            format!("earlier session {client} -> 10.0.0.2:21")
        };
        says(&first, &format!("{} isn't followed", name(&unseen)));
        let mut seen = Control::dial(&net);
        seen.log_in(&server);
        seen.ask("PASV\r\n", "227");
        let pid = kill(&net, &first);

        let second = run(&net, flavour, &[]);
        says(&second, &format!("took over from pid {pid}, which died; "));
        says(&second, " rules cleared");
        says(&second, &format!("{} goes on", name(&seen)));
        says(&second, &format!("{} isn't followed", name(&unseen)));
        seen.ask("NOOP\r\n", "200");
        let events = ftpalg(&net, &["events", "--json", "--kind", "took-over"]).must();
        let record: Value = serde_json::from_str(&events.stdout).unwrap();
        assert_eq!(
            (&record["predecessor"], &record["handover"]),
            (&pid.into(), &false.into()),
            "{record}"
        );
        assert!(record["rules"].as_u64() > Some(0), "{record}");

        // One that hands over, and one that ends as it should.
        let process = second.process().unwrap();
        let pid = process.pid();
        process.signal(Signal::SIGUSR2);
        ended(&net);
        let third = run(&net, flavour, &[]);
        says(
            &third,
            &format!("took over from pid {pid}, which handed over; "),
        );
        assert!(!third.log().contains("earlier session"), "{}", third.log());
        third.stop();
        let last = run(&net, flavour, &["--state", "none"]);
        assert!(!last.log().contains("took over"), "{}", last.log());
        kill(&net, &last);
        // Without a state directory nobody knows who it was.
        let after = run(&net, flavour, &["--state", "none"]);
        says(&after, " rules of an earlier ftpalg cleared");
        after.stop();
    }
}

#[test]
fn a_private_address_for_a_public_client_is_told_once() {
    let net = Net::new(&Topology::routed());
    rules::install(&net, Flavour::Nft, Policy::Drop, false);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = run(&net, Flavour::Nft, &[]);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    control.ask("PASV\r\n", "227");
    says(
        &alg,
        "announces 10.0.0.2, a private address, to 198.51.100.2, a public one",
    );
    control.ask("PASV\r\n", "227");
    control.ask("NOOP\r\n", "200");
    let log = alg.stop();
    assert_eq!(log.matches("--advertise PUBLIC").count(), 1, "{log}");
}
