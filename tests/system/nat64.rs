//! IPv6-only clients of IPv4-only servers, with TAYGA on the gateway (RFC 6384).

use std::time::Duration;

use nix::sys::signal::Signal;
use testkit::lab::alg::Alg;
use testkit::lab::client::{Client, Done, Job, each_of, limits};
use testkit::lab::gateway::ended;
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour};
use testkit::lab::scenario::greeting;
use testkit::lab::server::{Config, Kind, Server, content};
use testkit::lab::session::Session;
use testkit::lab::stations::{BACKENDS, drop_by_default, nat};
use testkit::lab::topology::{Host, Topology, at, host, link, router};
use testkit::paths::unpacked;

/// The translator's prefix. It refuses the lab's IPv4 addresses in the well-known one (RFC 6052 §3.1).
const PREFIX: &str = "2001:db8:64::/96";
/// The IPv4 addresses that it has for IPv6 clients.
const POOL: &str = "192.168.255.0/24";
/// The server, as the clients know it.
const DIAL: &str = "[2001:db8:64::198.51.100.2]:21";
const LIMIT: Duration = Duration::from_secs(10);

/// Each client in the modes that it has with IPv6.
const CLIENTS: [Client; 10] = [
    Client::CurlEpsv,
    Client::CurlEprt,
    Client::WgetPasv,
    Client::WgetPort,
    Client::LftpPasv,
    Client::LftpPort,
    Client::TnftpEpsv,
    Client::TnftpEprt,
    Client::FtplibPasv,
    Client::FtplibPort,
];

/// How a translator gives its IPv4 addresses to clients, and whether these are hidden.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pool {
    /// From a pool, as they come; the gateway hides them behind its own.
    Dynamic,
    /// One that is written down; servers know the way to it.
    Static,
}

/// `c (2001:db8:1::2) — r, with a translator — s (198.51.100.2)`
fn topology(pool: Pool) -> Topology {
    let way_back: &[&str] = match pool {
        Pool::Dynamic => &[],
        Pool::Static => &["192.168.255.0/24 via 198.51.100.1"],
    };
    let hosts: Vec<Host> = vec![
        host(
            "c",
            &[
                "2001:db8:64::/96 via 2001:db8:1::1",
                "198.51.100.0/24 via 10.0.0.1",
            ],
        ),
        router("r", &[]),
        host("s", way_back),
    ];
    let links = vec![
        link(
            ("c", "e0", &["2001:db8:1::2/64", "10.0.0.2/24"]),
            ("r", "in0", &["2001:db8:1::1/64", "10.0.0.1/24"]),
        ),
        link(
            ("r", "out0", &["198.51.100.1/24"]),
            ("s", "e0", &["198.51.100.2/24"]),
        ),
    ];
    Topology {
        name: "NAT64",
        client: "c",
        server: "s",
        router: "r",
        inside: "in0",
        outside: "out0",
        listen: at("198.51.100.2:21"),
        dial: at(DIAL),
        ..Topology::bare(hosts, links)
    }
}

/// The network with its translator and its user's rules: both FORWARD chains drop by default.
fn lab(pool: Pool) -> (Net, Process) {
    let tayga = unpacked("tayga/usr/sbin/tayga");
    let net = Net::new(&topology(pool));
    let directory = net.directory().join("tayga");
    std::fs::create_dir_all(&directory).unwrap();
    let addresses = match pool {
        Pool::Dynamic => format!("dynamic-pool {POOL}"),
        Pool::Static => "map 192.168.255.9 2001:db8:1::2".to_owned(),
    };
    let config = directory.join("tayga.conf");
    let text = format!(
        "tun-device nat64\nipv4-addr 192.168.255.1\nprefix {PREFIX}\n{addresses}\ndata-dir {}\n",
        directory.display()
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let run = |words: &[&str]| net.exec("r", words).must();
    run(&[&tayga, "-c", config, "--mktun"]);
    run(&["ip", "link", "set", "nat64", "up"]);
    run(&["ip", "route", "add", POOL, "dev", "nat64"]);
    run(&["ip", "route", "add", PREFIX, "dev", "nat64"]);
    let mut command = net.command("r", &tayga);
    command.args(["-c", config, "-d"]);
    let tayga = Process::spawn(command);
    let filter = drop_by_default(&["FORWARD"], &[21]);
    let hidden = ["-A POSTROUTING -o out0 -j MASQUERADE"];
    let v4 = match pool {
        Pool::Dynamic => filter.clone() + &nat(&hidden),
        Pool::Static => filter.clone(),
    };
    for (program, text) in [
        ("iptables-nft-restore", v4),
        ("ip6tables-nft-restore", filter),
    ] {
        net.feed("r", &[program, "--noflush"], &text).must();
    }
    (net, tayga)
}

fn arguments(backend: &str) -> Alg {
    let words = ["--nat64", PREFIX, "--backend", backend];
    Alg::Ftpalg(words.map(str::to_owned).to_vec())
}

type Outcome = Result<Done, String>;

/// What becomes of each client.
fn transfers(net: &Net, server: &Server, clients: &[Client], works: bool) -> Vec<Outcome> {
    let upload = content(3, 50_021);
    let at_once = if works { 4 } else { clients.len() };
    let each = each_of(clients, at_once, |client| {
        let (limit, patience) = limits(works);
        client.run(&Job {
            net,
            dial: net.topology().dial,
            server,
            downloads: vec![Server::SMALL, Server::SECOND],
            upload: &upload,
            limit,
            patience,
        })
    });
    each.into_iter().map(|(outcome, _)| outcome).collect()
}

/// Each client with each server: nothing works without ftpalg, and everything with it. What it leaves is
/// what it found.
fn all_of(net: &Net, name: &str, backend: &str, servers: &[Config], clients: &[Client]) {
    let mut failures = Vec::new();
    let mut rows: Vec<Vec<String>> = vec![Vec::new(); clients.len()];
    let mut head = vec!["client"];
    for config in servers {
        let kind = match config.extended {
            true => config.kind.name(),
            false => "without EPSV",
        };
        head.push(kind);
        let server = Server::start(net, config);
        greeting(net, net.topology().dial);
        let without = transfers(net, &server, clients, false);
        let before = [rules::snapshot(net, "r")];
        let invalid = rules::invalid(net, "r");
        let alg = arguments(backend).start(net, Flavour::Nft);
        let with = transfers(net, &server, clients, true);
        let log = alg.stop();
        let invalid = rules::invalid(net, "r") - invalid;
        let cells = clients
            .iter()
            .zip(rows.iter_mut())
            .zip(without.iter().zip(&with));
        for ((client, row), (without, with)) in cells {
            let client = client.name();
            if without.is_ok() {
                failures.push(format!("{kind}, {client}: works without ftpalg"));
            }
            if let Err(why) = with {
                failures.push(format!("{kind}, {client}: {why}\n{log}"));
            }
            let word = |outcome: &Outcome| if outcome.is_ok() { "works" } else { "fails" };
            row.push(format!("{} → {}", word(without), word(with)));
        }
        if invalid != 0 {
            failures.push(format!("{kind}: conntrack found {invalid} packets INVALID"));
        }
        if before != [rules::snapshot(net, "r")] {
            failures.push(format!("{kind}: rules are left over"));
        }
    }
    let rows: Vec<_> = clients
        .iter()
        .zip(rows)
        .map(|(client, row)| (client.name().to_owned(), row))
        .collect();
    let table = report::table(&head, &rows);
    report::write(name, &table);
    assert!(failures.is_empty(), "{table}\n{}", failures.join("\n\n"));
}

fn all_servers() -> Vec<Config> {
    let without_epsv = Config {
        extended: false,
        ..Config::new(Kind::Pyftpdlib)
    };
    let mut servers: Vec<_> = Kind::ALL.map(Config::new).to_vec();
    servers.push(without_epsv);
    servers
}

#[test]
fn every_client_with_every_server() {
    let (net, _tayga) = lab(Pool::Dynamic);
    all_of(&net, "nat64", "nft", &all_servers(), &CLIENTS);
}

/// The clients' IPv4 addresses are written down, and not translated again.
#[test]
fn a_static_map() {
    let (net, _tayga) = lab(Pool::Static);
    let servers = [Config::new(Kind::Pyftpdlib)];
    let clients = [Client::CurlEpsv, Client::CurlEprt, Client::WgetPasv];
    for backend in BACKENDS {
        all_of(
            &net,
            &format!("nat64_static_{backend}"),
            backend,
            &servers,
            &clients,
        );
    }
}

/// What a client can ask the gateway for (RFC 6384 §11), and what isn't for the server (§6).
#[test]
fn every_form_of_algs() {
    let (net, _tayga) = lab(Pool::Dynamic);
    let alg = arguments("nft").start(&net, Flavour::Nft);
    let mut session = Session::open(&net);
    let mut asks = |command: &str, heard: &str, reply: &str| {
        session.client.send(&format!("{command}\r\n"));
        assert_eq!(session.server.read(), format!("{heard}\r\n"));
        session.server.send(&format!("{reply}\r\n"));
        let read = session.client.read();
        read.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let done = "200 nothing done";
    for (command, reply) in [
        ("ALGS STATUS64", "216 EPSVEPRT"),
        ("EPSV ALL", "504 EPSV ALL not supported through NAT64"),
        ("EPSV 5", "522 Network protocol not supported, use (2)"),
        ("ALGS", "504 ALGS parameter not supported"),
        ("ALGS DISABLE64", "216 NONE"),
        ("ALGS STATUS64", "216 NONE"),
    ] {
        assert_eq!(asks(command, "NOOP", done), reply, "{command}");
    }
    // It is off: the server answers.
    let eprt = "EPRT |2|2001:db8:1::2|50001|";
    assert_eq!(asks(eprt, eprt, "522 no"), "522 no");
    assert_eq!(asks("EPSV", "EPSV", "500 no"), "500 no");
    assert_eq!(asks("algs enable64", "NOOP", done), "216 EPSVEPRT");
    let reply = asks("EPSV", "PASV", "227 Here (198,51,100,2,195,80)");
    assert_eq!(reply, "229 (|||50000|)");
    assert_eq!(asks(eprt, "PORT 198,51,100,1,195,81", "200 ok"), "200 ok");
    // A server that doesn't know NOOP.
    assert_eq!(asks("ALGS DISABLE64", "NOOP", "500 what?"), "500 what?");
    assert_eq!(asks("ALGS STATUS64", "NOOP", done), "216 EPSVEPRT");

    // Each of the two announced connections has a pinhole on either side of the translator.
    let listed = net.exec("r", &["nft", "list", "table", "inet", "ftpalg"]);
    let listed = match listed.ok() {
        true => listed.stdout,
        false => net.exec("r", &["nft", "list", "ruleset"]).must().stdout,
    };
    for end in [
        "2001:db8:64::c633:6402",
        "198.51.100.2",
        "2001:db8:1::2",
        "50000",
        "50001",
    ] {
        assert!(listed.contains(end), "{end} in {listed}");
    }
    let pinholes = || {
        let words = [testkit::paths::ftpalg(), "pinholes", "--json"];
        let text = net.exec("r", &words).must().stdout;
        serde_json::from_str::<Vec<serde_json::Value>>(&text)
            .unwrap()
            .len()
    };
    assert_eq!(pinholes(), 4);
    drop(session);
    let deadline = std::time::Instant::now() + LIMIT;
    while pinholes() > 0 {
        assert!(std::time::Instant::now() < deadline, "they stay open");
        std::thread::yield_now();
    }
    alg.stop();
}

/// It is killed between each command and its reply, and another one starts: the client still gets the reply
/// that it waits for.
#[test]
fn a_crash_between_question_and_answer() {
    let (net, _tayga) = lab(Pool::Dynamic);
    let start = || arguments("nft").start(&net, Flavour::Nft);
    let mut alg = start();
    let mut session = Session::open(&net);
    for (command, heard, reply, read) in [
        (
            "EPSV",
            "PASV",
            "227 Here (198,51,100,2,195,80)",
            "229 (|||50000|)",
        ),
        ("ALGS DISABLE64", "NOOP", "200 ok", "216 NONE"),
        (
            "EPSV",
            "EPSV",
            "229 Here (|||50001|)",
            "229 Here (|||50001|)",
        ),
        ("ALGS ENABLE64", "NOOP", "200 ok", "216 EPSVEPRT"),
        (
            "EPSV 2",
            "PASV",
            "227 Here (198,51,100,2,195,82)",
            "229 (|||50002|)",
        ),
        (
            "EPRT |2|2001:db8:1::2|50003|",
            "PORT 198,51,100,1,195,83",
            "200 ok",
            "200 ok",
        ),
    ] {
        session.client.send(&format!("{command}\r\n"));
        assert_eq!(session.server.read(), format!("{heard}\r\n"));
        alg.process().unwrap().signal(Signal::SIGKILL);
        ended(&net);
        drop(alg);
        alg = start();
        session.server.send(&format!("{reply}\r\n"));
        let got = session.client.read();
        let words: Vec<_> = got.split_whitespace().collect();
        assert_eq!(words.join(" "), read, "{command}");
    }
    alg.stop();
}

/// A translator in the kernel (Jool) takes IPv6 packets before conntrack keeps them. Here, conntrack isn't to look
/// at them at all: passive transfers work without a pinhole, and nobody knows where active ones would lead.
#[test]
fn where_conntrack_knows_nothing() {
    let (net, _tayga) = lab(Pool::Dynamic);
    for words in [
        "ip6tables-nft -t raw -A PREROUTING -p tcp -j CT --notrack",
        "ip6tables-nft -P FORWARD ACCEPT",
        "iptables-nft -P FORWARD ACCEPT",
        "ip6tables-nft -F FORWARD",
        "ip6tables-nft -t mangle -F PREROUTING",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        net.exec("r", &words).must();
    }
    let config = Config {
        extended: false,
        ..Config::new(Kind::Pyftpdlib)
    };
    let server = Server::start(&net, &config);
    let passive = [Client::CurlEpsv, Client::WgetPasv];
    let without = transfers(&net, &server, &passive, false);
    assert!(without.iter().all(Result::is_err));
    let alg = arguments("nft").start(&net, Flavour::Nft);
    for outcome in transfers(&net, &server, &passive, true) {
        outcome.unwrap();
    }
    let active = transfers(&net, &server, &[Client::CurlEprt], false);
    assert!(active.iter().all(Result::is_err));
    let log = alg.stop();
    assert!(
        log.contains("conntrack doesn't know the control connection"),
        "{log}"
    );
    assert!(log.contains("EPRT"), "{log}");
}

/// Clients with the same port, to the same server: none is taken for another one.
#[test]
fn clients_with_the_same_port() {
    const CLIENTS: &str = r#"
import ftplib
def session(server, own, port=45678):
    ftp = ftplib.FTP()
    ftp.connect(server, 21, 5, (own, port))
    ftp.login("lab", "lab")
    ftp.set_pasv(False)
    return ftp
SERVER = "2001:db8:64::c633:6402"
# Its address on the IPv4 side is known from here on.
print(session(SERVER, "2001:db8:1::2", 45677).nlst())
four = session("198.51.100.2", "10.0.0.2")
one = session(SERVER, "2001:db8:1::2")
other = session(SERVER, "2001:db8:1::3")
for ftp in (other, one, four, other):
    print(ftp.nlst())
"#;
    let (net, _tayga) = lab(Pool::Dynamic);
    // Nobody chooses this one by itself.
    let second = "ip address add 2001:db8:1::3/64 dev e0 nodad preferred_lft 0";
    let words: Vec<&str> = second.split(' ').collect();
    net.exec("c", &words).must();
    let _server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
    let alg = arguments("nft").start(&net, Flavour::Nft);
    let listed = net.exec("c", &["/usr/bin/python3", "-c", CLIENTS]).must();
    let names = listed.stdout.matches(Server::SMALL).count();
    assert_eq!(names, 5, "{listed}");
    let log = alg.stop();
    let announced = |mode: &str| log.matches(mode).count();
    assert_eq!((announced(" EPRT ["), announced(" PORT ")), (4, 1), "{log}");
}

/// Rules of both families are needed.
#[test]
fn an_inside_of_one_family_is_refused() {
    let net = Net::new(&topology(Pool::Dynamic));
    let program = testkit::paths::ftpalg();
    for inside in ["2001:db8:1::/64", "10.0.0.0/24"] {
        let words = [program, "run", "--inside", inside, "--nat64", "default"];
        let finished = net.exec("r", &words);
        assert_eq!(finished.status.and_then(|status| status.code()), Some(2));
        assert!(
            finished
                .log
                .contains("--nat64 needs rules of both families"),
            "{finished}"
        );
    }
}
