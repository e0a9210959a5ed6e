//! `ftpalg replay` over captures of real sessions: it says what ftpalg itself said of them, and what it
//! writes is as sound as what it read.
//!
//! `cargo test --test system replay::record -- --ignored` makes the captures of `tests/core/captures`
//! anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testkit::lab::alg::Alg;
use testkit::lab::capture::Recording;
use testkit::lab::client::{Client, Job};
use testkit::lab::gateway::{ftpalg, refused};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, require, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server, Tls, content};
use testkit::lab::topology::{Topology, at};
use testkit::paths;

const LIMIT: Duration = Duration::from_secs(40);
/// Control connections, and the beginnings and ends of all others.
const FILTER: &str = "tcp port 21 or tcp[13] & 7 != 0";

/// Where a capture is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Inside,
    Outside,
    Any,
}

/// The address that the outside knows.
fn public(net: &Net) -> &'static str {
    match net.topology().nat[0].contains("MASQUERADE") {
        true => "198.51.100.1",
        false => "203.0.113.1",
    }
}

fn lab(topology: &Topology) -> Net {
    let net = Net::new(topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    net
}

fn start(net: &Net, at: At) -> Recording {
    let topology = net.topology();
    let (router, inside) = (topology.router, topology.inside);
    match at {
        At::Inside => Recording::start(net, router, inside, FILTER),
        At::Outside => Recording::start(net, router, topology.outside, FILTER),
        At::Any => Recording::start_any(net, router, inside, FILTER),
    }
}

/// Captures at each of these places what happens; returns the files, and what ftpalg printed.
fn captured(net: &Net, places: &[At], what: impl FnOnce()) -> (Vec<Vec<u8>>, String) {
    let alg = Alg::under_test(&["--backend", "nft"]).start(net, Flavour::Nft);
    let recordings: Vec<_> = places.iter().map(|at| start(net, *at)).collect();
    what();
    let files = recordings.into_iter().map(Recording::stop).collect();
    (files, alg.stop())
}

/// Lets a client list, download and upload.
fn work(net: &Net, server: &Server, client: Client) {
    let upload = content(3, 5_021);
    let done = client.run(&Job {
        net,
        dial: net.topology().dial,
        server,
        downloads: vec![Server::SMALL],
        upload: &upload,
        limit: LIMIT,
        patience: Duration::from_secs(10),
    });
    done.unwrap_or_else(|why| panic!("{}: {why}", client.name()));
}

fn save(net: &Net, name: &str, bytes: &[u8]) -> PathBuf {
    let file = net.directory().join(name);
    std::fs::write(&file, bytes).unwrap();
    file
}

fn replay(net: &Net, file: &Path, more: &[&str]) -> Finished {
    let words = ["replay", file.to_str().unwrap(), "--inside", "10.0.0.0/24"];
    ftpalg(net, &[&words[..], more].concat())
}

/// What tshark complains about, checksums included.
fn complaints(file: &Path, of: &str) -> String {
    require("tshark");
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file);
    command.args([
        "-o",
        "tcp.check_checksum:TRUE",
        "-o",
        "ip.check_checksum:TRUE",
        "-Y",
    ]);
    command.arg(format!("tcp.port == 21 and ({of})"));
    run(command, LIMIT).must().stdout
}

const TCP: &str = "tcp.analysis.flags or _ws.malformed";
const SUMS: &str = "tcp.checksum.status == 0 or ip.checksum.status == 0";

/// What was announced: the verb, what was written, the address that is read.
fn told(log: &str) -> Vec<(String, String, String)> {
    let lines = log.lines().filter_map(|line| {
        let mut words = line.strip_prefix("session ")?.split(' ').skip(1);
        let (verb, old, arrow, new) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let known = ["227", "229", "PORT", "EPRT"].contains(&verb) && arrow == "->";
        let (ip, _) = new.rsplit_once(':')?;
        known.then(|| (verb.to_owned(), old.to_owned(), ip.to_owned()))
    });
    lines.collect()
}

/// The same of a replay's JSON.
fn replayed(json: &str) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for line in json.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        for entry in value["entries"].as_array().into_iter().flatten() {
            if entry["kind"] == "announced" {
                let text = |name: &str| entry[name].as_str().unwrap().to_owned();
                let new = text("new");
                let (ip, _) = new.rsplit_once(':').unwrap();
                all.push((text("verb"), text("old"), ip.to_owned()));
            }
        }
    }
    all
}

/// Captured inside or everywhere, with the public address given or learned, a session is told as ftpalg
/// told it while it ran. What is written has no fault that wasn't there.
#[test]
fn a_replay_says_what_the_gateway_said() {
    for topology in [Topology::published_server(), Topology::masqueraded_client()] {
        let net = lab(&topology);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        for client in [
            Client::CurlPasv,
            Client::CurlEpsv,
            Client::CurlEprt,
            Client::LftpPort,
        ] {
            let places = [At::Inside, At::Any];
            let (files, log) = captured(&net, &places, || work(&net, &server, client));
            let expected = told(&log);
            assert!(expected.len() >= 2, "{log}");
            // A slow machine has retransmissions; they are there before and after.
            let first = save(&net, "inside.pcap", &files[0]);
            let known = complaints(&first, TCP);
            for (at, bytes) in places.iter().zip(files) {
                let name = format!("{}, {at:?}", client.name());
                let file = save(&net, "in.pcap", &bytes);
                let out = net.directory().join("out.pcap");
                let given = ["--public", public(&net)];
                // Where both sides are captured, the address needs no telling.
                let given = if *at == At::Any { &[][..] } else { &given[..] };
                let words = [given, &["--json", "-w", out.to_str().unwrap()]].concat();
                let done = replay(&net, &file, &words).must();
                assert_eq!(replayed(&done.stdout), expected, "{name}\n{}", done.stdout);
                assert!(
                    !complaints(&out, "ftp").is_empty(),
                    "{name}: nothing is there"
                );
                let new = complaints(&out, TCP);
                let (before, after) = (known.lines().count(), new.lines().count());
                assert!(
                    after <= before,
                    "{name}\n{new}, where the capture has\n{known}"
                );
                assert_eq!(complaints(&out, SUMS), "", "{name}");
                // Every data connection was found.
                let text = replay(&net, &file, given).must().stdout;
                let came = text.matches(" connected\n").count();
                assert_eq!(came, expected.len(), "{name}\n{text}");
                assert!(text.contains(" 0 with trouble"), "{name}\n{text}");
                let failures = replay(&net, &file, &[given, &["--failures"]].concat());
                assert!(!failures.must().stdout.contains("session "), "{name}");
            }
        }
    }
}

/// Without a gateway, the outside sees the inside's own addresses in the text. A replay of what it sees
/// finds them, and says what the gateway would have done.
#[test]
fn a_capture_outside_of_a_gateway_without_ftpalg() {
    let net = lab(&Topology::masqueraded_client());
    let server = Server::start(&net, &Config::new(Kind::Proftpd));
    let recording = start(&net, At::Outside);
    let mut command = net.client("curl");
    let login = server.login();
    command.args([
        "-sS",
        "--noproxy",
        "*",
        "--ftp-port",
        "-",
        "--max-time",
        "5",
    ]);
    command.args(["--user", &format!("{}:{}", login.user, login.password)]);
    command.arg(format!("ftp://{}/", net.topology().dial));
    assert!(!run(command, LIMIT).ok(), "it works without");
    let file = save(&net, "outside.pcap", &recording.stop());
    let out = net.directory().join("out.pcap");
    let words = [
        "--public",
        public(&net),
        "-w",
        out.to_str().unwrap(),
        "--failures",
    ];
    let text = replay(&net, &file, &words).must().stdout;
    let eprt = text
        .lines()
        .find(|line| line.contains("> EPRT |1|10.0.0.2|"));
    assert!(eprt.is_some(), "{text}");
    assert!(text.contains("= EPRT |1|198.51.100.1|"), "{text}");
    assert_eq!(complaints(&out, SUMS), "");
    // It went wrong, and that is told.
    assert!(text.contains(" 1 with trouble"), "{text}");
}

#[test]
fn wrong_arguments_and_files_are_one_line() {
    let net = lab(&Topology::published_server());
    let good = paths::repository().join("tests/core/captures");
    let good = std::fs::read_dir(good)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut good = good.filter(|path| path.extension().is_some_and(|end| end == "pcap"));
    let good = good.next().unwrap();
    let bytes = std::fs::read(&good).unwrap();
    let text = save(
        &net,
        "text",
        b"no capture at all, but long enough to be one\n",
    );
    let gz = save(&net, "gz", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]);
    let empty = save(&net, "empty", b"");
    let cut = save(&net, "cut", &bytes[..bytes.len() - 5]);
    let out = net.directory().join("never.pcap");
    let out = out.to_str().unwrap();
    for (file, more, part) in [
        (&text, &["-w", out][..], "no capture"),
        (&gz, &[], "zcat"),
        (&empty, &[], "empty"),
        (&net.directory().join("missing"), &[], "can't read"),
        (&net.directory().to_owned(), &[], "directory"),
        (
            &good,
            &["-w", good.to_str().unwrap()],
            "is the capture that is read",
        ),
        (
            &good,
            &["--public", "203.0.113.1", "--public", "203.0.113.2"],
            "--public",
        ),
        (&good, &["--advertise", "ftp.example.org"], "host name"),
        (
            &good,
            &["-w", "/nowhere/out.pcap"],
            "can't write /nowhere/out.pcap",
        ),
    ] {
        refused(&replay(&net, file, more), 2, part);
    }
    assert!(!Path::new(out).exists());
    assert_eq!(std::fs::read(&good).unwrap(), bytes, "it is untouched");
    let eth = ftpalg(
        &net,
        &["replay", good.to_str().unwrap(), "--inside", "eth1"],
    );
    refused(&eth, 2, "--inside eth1 is an interface");
    // What is there of a file that is cut short is shown.
    let done = replay(&net, &cut, &[]);
    assert_eq!(done.status.unwrap().code(), Some(1), "{done}");
    assert!(done.stdout.contains("session 1"), "{done}");
    assert!(
        done.log.contains("ends in the middle of a packet"),
        "{done}"
    );
    // The standard input.
    let mut command = net.command(net.topology().router, "/bin/sh");
    let script = "exec \"$0\" replay - --inside 10.0.0.0/24 < \"$1\"";
    command.args(["-c", script, paths::ftpalg(), good.to_str().unwrap()]);
    let piped = run(command, LIMIT).must().stdout;
    assert_eq!(piped, replay(&net, &good, &[]).must().stdout);
    // A port that nothing is at.
    let done = replay(&net, &good, &["--port", "2121"]);
    assert!(done.ok() && done.log.contains("is --port right?"), "{done}");
}

/// With NAT66.
fn over_ipv6() -> Net {
    let net = Net::new(&Topology::over_ipv6());
    let nat = "*nat\n-A PREROUTING -d 2001:db8:f::1 -p tcp --dport 21 -j DNAT --to-destination \
               [fd00::2]:21\n-A POSTROUTING -o out0 -j MASQUERADE\nCOMMIT\n";
    net.feed("r", &["ip6tables-nft-restore", "--noflush"], nat)
        .must();
    net
}

/// Two captures over IPv6: in one only the client announces an address.
#[test]
#[ignore = "it writes into the repository"]
fn record_ipv6() {
    for (number, name, ends, [listen, dial], client) in [
        (
            17,
            "published",
            ("a", "b"),
            ["[fd00::2]:21", "[2001:db8:f::1]:21"],
            Client::CurlEpsv,
        ),
        (
            18,
            "masqueraded",
            ("b", "a"),
            ["[2001:db8:1::2]:21", "[2001:db8:1::2]:21"],
            Client::CurlEprt,
        ),
    ] {
        let net = over_ipv6().recast(|topology| {
            (topology.client, topology.server) = ends;
            (topology.listen, topology.dial) = (at(listen), at(dial));
        });
        let server = Server::start(&net, &Config::new(Kind::Proftpd));
        let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
        let filter = "ip6 and (tcp port 21 or ip6[53] & 7 != 0)";
        let recording = Recording::start(&net, "r", "in0", filter);
        work(&net, &server, client);
        let bytes = recording.stop();
        alg.stop();
        let client = client.name().replace(' ', "-").to_lowercase();
        let file = format!("{number}-{name}-ipv6-proftpd-{client}.pcap");
        let directory = paths::repository().join("tests/core/captures");
        std::fs::write(directory.join(file), bytes).unwrap();
    }
}

/// Makes the captures of `tests/core/captures`: each client, with each server in turn.
#[test]
#[ignore = "it writes into the repository"]
fn record() {
    let servers = Kind::ALL.iter().cycle();
    let places = [At::Inside, At::Any].iter().cycle();
    let topologies = [
        ("published", Topology::published_server()),
        ("masqueraded", Topology::masqueraded_client()),
    ];
    let directory = paths::repository().join("tests/core/captures");
    std::fs::create_dir_all(&directory).unwrap();
    for (number, ((client, server), at)) in Client::ALL.iter().zip(servers).zip(places).enumerate()
    {
        let active = client.verb().ends_with("RT");
        let (name, topology) = &topologies[usize::from(active)];
        // The masqueraded client's addresses are those that need a change.
        let net = lab(topology);
        let running = Server::start(&net, &Config::new(*server));
        let (files, _) = captured(&net, &[*at], || work(&net, &running, *client));
        let client = client.name().replace(' ', "-").to_lowercase();
        let file = format!("{number:02}-{name}-{}-{client}.pcap", server.name());
        std::fs::write(directory.join(file), &files[0]).unwrap();
    }
    let net = lab(&topologies[0].1);
    let tls = Config {
        tls: Some(Tls::Explicit),
        ..Config::new(Kind::Vsftpd)
    };
    let server = Server::start(&net, &tls);
    let (files, _) = captured(&net, &[At::Inside], || {
        let mut command = net.client("curl");
        command.args([
            "-sS",
            "-k",
            "--ssl-reqd",
            "--noproxy",
            "*",
            "--max-time",
            "4",
        ]);
        let login = server.login();
        command.args(["--user", &format!("{}:{}", login.user, login.password)]);
        command.arg(format!("ftp://{}/", net.topology().dial));
        // Its data connection isn't let in.
        drop(run(command, LIMIT));
    });
    std::fs::write(directory.join("16-published-vsftpd-tls.pcap"), &files[0]).unwrap();
}
