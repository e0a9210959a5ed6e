//! A gateway without any program but ftpalg's own: steering over netlink.
//!
//! The root file system has nothing but `ftpalg` (and the libraries that it is linked to), is read-only,
//! and the process has CAP_NET_ADMIN alone.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::alg::Alg;
use testkit::lab::gateway::{
    Control, HOSTS, LIMIT, download, ended, ftpalg, gateway, refused, status,
};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, Process, run};
use testkit::lab::root::EmptyRoot;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::session::Session;
use testkit::lab::stations::{Case, FEW, FEW_V6, Part, Station, drop_by_default, published};
use testkit::lab::topology::{at, host, link};
use testkit::paths;

/// What a container gets.
const RIGHTS: &str = "+net_admin";

/// `ftpalg` with these words, in an empty root on the gateway.
fn bare(net: &Net, root: &EmptyRoot, words: &[&str]) -> Command {
    let enter = root.enter(RIGHTS);
    let (program, more) = enter.split_first().unwrap();
    let mut command = net.command(net.topology().router, program);
    command.args(more).arg(paths::ftpalg()).args(words);
    command
}

fn bare_run(net: &Net, root: &EmptyRoot, words: &[&str]) -> Finished {
    run(bare(net, root, words), LIMIT)
}

/// Starts it; returns when it is in place.
fn start(net: &Net, root: &EmptyRoot, more: &[&str]) -> Process {
    let words = [&["run", "--inside", "in0"], more].concat();
    let process = Process::spawn(bare(net, root, &words));
    assert!(process.wait_for("ready", LIMIT), "{}", process.log());
    process
}

fn sh(net: &Net, script: &str) -> String {
    let router = net.topology().router;
    net.exec(router, &["sh", "-ec", script]).must().stdout
}

/// Passive and active, each with a file.
#[track_caller]
fn transfers(net: &Net, server: &Server) {
    for options in [&[][..], &["--ftp-port", "-"]] {
        download(net, server, options).must();
    }
}

/// A gateway whose rules are a host's, and an ftpalg in a container in its network namespace: a published
/// server and masqueraded clients.
#[test]
fn every_client_through_an_empty_root() {
    let routes: [&[_]; 2] = [&["default via 198.51.100.1"], &["default via 10.0.0.1"]];
    let mut case = published("published, no tools", routes);
    case.backends = vec!["nft"];
    let net = case.build();
    let root = EmptyRoot::new(&net);
    let files = root.files();
    assert!(files.iter().all(|file| {
        let name = file.file_name().unwrap().to_string_lossy();
        name == "ftpalg" || name.contains(".so")
    }));
    case.stations[0].wrapper = root.enter(RIGHTS);
    for outcome in case.run_on(&net, "no_tools") {
        assert_eq!(outcome.status[0]["steering"], "nft");
        assert!(
            outcome.logs[0].contains("no iptables here"),
            "{}",
            outcome.logs[0]
        );
    }
    assert_eq!(root.files(), files);
}

/// A container that serves itself: a server's side-car in its network namespace.
#[test]
fn a_server_and_its_side_car() {
    let rules = drop_by_default(&["INPUT", "OUTPUT"], &[21]);
    let v6 = rules.replace(
        "-A INPUT -i lo",
        "-A INPUT -p ipv6-icmp -j ACCEPT\n-A OUTPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -i lo",
    );
    let v4 = Part {
        name: "side-car",
        client: "o",
        server: "h",
        listen: at("198.51.100.1:21"),
        dial: at("198.51.100.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    };
    let over_ipv6 = Part {
        name: "side-car, IPv6",
        listen: at("[2001:db8::1]:21"),
        dial: at("[2001:db8::1]:21"),
        clients: FEW_V6.to_vec(),
        ..v4
    };
    let mut case = Case::new(
        vec![host("h", &[]), host("o", &[])],
        vec![link(
            ("h", "e0", &["198.51.100.1/24", "2001:db8::1/64"]),
            ("o", "e0", &["198.51.100.2/24", "2001:db8::2/64"]),
        )],
        vec![Station {
            host: "h",
            v4: rules,
            v6,
            arguments: vec!["--local", "--fail", "open", "--queues", "2"],
            wrapper: Vec::new(),
        }],
    )
    .part(v4)
    .part(over_ipv6);
    case.backends = vec!["nft"];
    case.servers.truncate(1);
    let net = case.build();
    case.stations[0].wrapper = EmptyRoot::new(&net).enter(RIGHTS);
    case.run_on(&net, "no_tools_side_car");
}

/// Whoever removes the rules, they come back; pinholes and sessions stay.
#[test]
fn the_guard_puts_them_back() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let root = EmptyRoot::new(&net);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let before = rules::snapshot(&net, net.topology().router);
    let alg = start(&net, &root, &[]);
    transfers(&net, &server);
    let mut restored = 0;
    for change in [
        "nft delete table ip ftpalg-steering",
        "nft flush chain ip ftpalg-steering FTPALG-INGRESS",
        "nft insert rule ip ftpalg-steering after-raw-prerouting accept",
        "nft -a list chain ip filter FORWARD | sed -n 's/.*ftpalg:accept.* # handle //p' |
            xargs nft delete rule ip filter FORWARD handle",
    ] {
        sh(&net, change);
        let since = Instant::now();
        loop {
            let told = ftpalg(&net, &["status", "--json"]);
            let all: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
            if told.ok() && all["nat"]["restored"].as_u64() > Some(restored) {
                restored = all["nat"]["restored"].as_u64().unwrap();
                break;
            }
            assert!(since.elapsed() < LIMIT, "{change}: still missing: {all:#}");
            std::thread::sleep(Duration::from_millis(10));
        }
        transfers(&net, &server);
    }
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

/// A handover, a crash, and a start without any of that in its way.
#[test]
fn successors_take_the_rules_over() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let root = EmptyRoot::new(&net).with_run();
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);
    let invalid = rules::invalid(&net, router);
    let first = start(&net, &root, &[]);
    let mut session = Session::open(&net);
    drop(session.passive(&net));
    let second = start(&net, &root, &["--takeover"]);
    first.finish(LIMIT).must();
    assert!(second.log().contains("handed over"), "{}", second.log());
    drop(session.passive(&net));
    second.signal(Signal::SIGKILL);
    drop(second.finish(LIMIT));
    ended(&net);
    let left = ftpalg(&net, &["status"]);
    assert!(left.log.contains("FTP is being dropped"), "{left}");
    let said = bare_run(&net, &root, &["doctor", "--json", "--inside", "in0"]);
    assert!(
        said.stdout.contains("of an ftpalg that doesn't run"),
        "{said}"
    );
    assert!(
        said.stdout.contains("by the target NFQUEUE") || said.stdout.contains("by queue"),
        "{said}"
    );
    // Nobody answers its packets meanwhile; they are sent again.
    session.client.send("NOOP\r\n");
    let third = start(&net, &root, &[]);
    assert!(third.log().contains("which died;"), "{}", third.log());
    assert_eq!(session.server.read(), "NOOP\r\n");
    session.server.send("200 fine\r\n");
    assert_eq!(session.client.read(), "200 fine\r\n");
    drop(session.passive(&net));
    third.signal(Signal::SIGKILL);
    drop(third.finish(LIMIT));
    ended(&net);
    bare_run(&net, &root, &["rules", "remove"]).must();
    assert_eq!(rules::snapshot(&net, router), before);
    assert_eq!(rules::invalid(&net, router), invalid);
}

/// At a stop, sessions that can't go on are ended: what ends them passes the queue, and isn't lost there.
#[test]
fn a_stop_resets_what_cannot_go_on() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let root = EmptyRoot::new(&net);
    let before = rules::snapshot(&net, net.topology().router);
    let enter = root.enter("+net_admin,+net_raw");
    let mut command = net.command(net.topology().router, &enter[0]);
    command.args(&enter[1..]).arg(paths::ftpalg());
    command.args(["run", "--inside", "in0", "--keep-length", "off"]);
    let alg = Process::spawn(command);
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    let mut session = Session::open(&net);
    drop(session.passive(&net));
    alg.signal(Signal::SIGTERM);
    let ended = alg.finish(LIMIT).must();
    assert!(ended.log.contains("1 session ended by RST"), "{ended}");
    session.client.gets_reset(LIMIT);
    session.server.gets_reset(LIMIT);
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

/// Nobody comes: the guardian, which is this program as well, removes all.
#[test]
fn rules_that_nobody_takes_over_are_removed() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let root = EmptyRoot::new(&net);
    let before = rules::snapshot(&net, net.topology().router);
    let alg = start(&net, &root, &["--handover", "1"]);
    alg.signal(Signal::SIGUSR2);
    let ended = alg.finish(LIMIT).must();
    assert!(
        ended.log.contains("rules stay for a successor for 1 s"),
        "{ended}"
    );
    let deadline = Instant::now() + LIMIT;
    while rules::snapshot(&net, net.topology().router) != before {
        assert!(Instant::now() < deadline, "they are still there");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// With `--fail open`, control packets pass while nobody looks at them; without, they don't.
#[test]
fn what_nobody_looks_at_passes_or_not() {
    for (fail, passes) in [("open", true), ("closed", false)] {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let root = EmptyRoot::new(&net);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        bare_run(
            &net,
            &root,
            &["rules", "install", "--inside", "in0", "--fail", fail],
        )
        .must();
        let mut listed = net.client("curl");
        listed.args(["-sS", "-m", "2", "-Q", "NOOP", "-I", "--noproxy", "*"]);
        listed.arg(format!("ftp://{}/", net.topology().dial));
        let greeted = run(listed, LIMIT);
        assert_eq!(
            greeted.log.contains("timed out"),
            !passes,
            "{fail}: {greeted}"
        );
        drop(server);
    }
}

/// Everything that looks at the rules, or places them by itself, says what is used.
#[test]
fn commands_say_what_they_do() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let root = EmptyRoot::new(&net);
    let bare = |words: &[&str]| bare_run(&net, &root, words);
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);

    let dry = bare(&["run", "--dry-run", "--inside", "in0"]).must().stdout;
    assert!(dry.contains("# steering over netlink"), "{dry}");
    assert!(dry.contains("table ip ftpalg-steering {"), "{dry}");
    assert!(dry.contains("in nft ip filter FORWARD"), "{dry}");
    assert_eq!(rules::snapshot(&net, router), before);
    let printed = bare(&["rules", "print", "--inside", "in0"]).must().stdout;
    assert!(
        printed.contains("iifname \"in0\" jump FTPALG-EGRESS"),
        "{printed}"
    );
    let said = bare(&["doctor", "--inside", "in0"]).stdout;
    assert!(
        said.contains("no iptables here, and none is needed"),
        "{said}"
    );
    assert!(said.contains("steering rules go over netlink"), "{said}");
    refused(
        &bare(&["run", "--inside", "in0", "--steering", "iptables"]),
        2,
        "no iptables found",
    );
    refused(&bare(&["run"]), 2, "name the inside with --inside");
    assert_eq!(rules::snapshot(&net, router), before);

    let external = ["--inside", "in0", "--rules", "external"];
    let alg = Process::spawn(bare_command(&net, &root, &external));
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    assert_eq!(ftpalg(&net, &["status"]).status.unwrap().code(), Some(1));
    let placed = bare(&["rules", "install", "--inside", "in0"]).must().stdout;
    assert!(
        placed.contains("installed in nft ip ftpalg-steering"),
        "{placed}"
    );
    let told = status(&net);
    assert_eq!(
        (&told["steering"], &told["in_place"]),
        (&"nft".into(), &true.into())
    );
    let page = ftpalg(&net, &["status"]).must().stdout;
    assert!(
        page.contains("yours (--rules external); steering nft"),
        "{page}"
    );
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
    assert!(rules::snapshot(&net, router).contains("ftpalg-steering"));
    bare(&["rules", "remove"]).must();
    assert_eq!(rules::snapshot(&net, router), before);
}

fn bare_command(net: &Net, root: &EmptyRoot, words: &[&str]) -> Command {
    bare(net, root, &[&["run"], words].concat())
}

/// Rules of iptables-legacy can't be read without a tool: that is said, not passed over.
#[test]
fn what_nobody_here_can_read_is_told() {
    let net = gateway(Policy::Drop, Flavour::Legacy);
    let root = EmptyRoot::new(&net);
    let alg = start(&net, &root, &[]);
    let told = "warn: iptables-legacy has tables here (";
    assert!(alg.log().contains(told), "{}", alg.log());
    let said = bare_run(&net, &root, &["doctor", "--json", "--inside", "in0"]);
    assert!(said.stdout.contains("\"id\": \"unseen\""), "{said}");
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
}

/// On a host that has the tools, `--steering nft` places no rule of iptables but where data connections
/// would be dropped, with either flavour of the user's rules and either backend.
#[test]
fn a_host_with_tools_can_choose_it() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let before = rules::snapshot(&net, router);
        let invalid = rules::invalid(&net, router);
        let arguments = ["--steering", "nft", "--backend", backend, "--fail", "open"];
        let alg = Alg::Ftpalg(arguments.map(str::to_owned).to_vec()).start(&net, flavour);
        let text = rules::snapshot(&net, router);
        assert!(text.contains("ftpalg-steering"), "{text}");
        assert!(!text.contains("-A PREROUTING -i in0"), "{text}");
        transfers(&net, &server);
        // With numbers that differ: the daemon's end is noticed by both ends.
        drop(Control::dial(&net));
        assert_eq!(status(&net)["steering"], "nft");
        alg.stop();
        assert_eq!(
            rules::snapshot(&net, router),
            before,
            "{backend} {flavour:?}"
        );
        assert_eq!(rules::invalid(&net, router), invalid);
    }
}
