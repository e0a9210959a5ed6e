//! Real programs, as many as can be had: each server with each client in each of its modes.
//!
//! A pair counts if it works where nothing translates and nothing is filtered; what doesn't is listed
//! in `tests/system/programs/without-nat.txt`, with why. What counts must work through `ftpalg`: with the
//! server inside and published, and with the client inside and masqueraded, each behind a FORWARD
//! chain that drops.
//!
//! The table is `target/lab-report/programs.txt`. With `FTPALG_LAB_ALG=both` the kernel's helper has
//! columns in it, too (nothing is expected of it); with `kernel` it takes the place of `ftpalg`; with
//! `none` only the pairs themselves are tried.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use testkit::lab::alg::Alg;
use testkit::lab::capture::Capture;
use testkit::lab::client::{Client, Job, each_of};
use testkit::lab::net::Net;
use testkit::lab::programs;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scenario::greeting;
use testkit::lab::server::{Config, Kind, Server, content};
use testkit::lab::topology::Topology;

/// When a client is killed, and when it is to give up by itself.
const LIMIT: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(10);
/// How many clients work at the same time for one server.
const AT_ONCE: usize = 4;
/// How many lines of a failed program's output are shown.
const SHOWN: usize = 40;

/// All clients in all their modes.
fn clients() -> Vec<Client> {
    let scripted = programs::clients().iter().flat_map(|program| {
        let modes = program.modes.iter();
        modes.map(move |mode| Client::Scripted(program, mode))
    });
    Client::ALL.into_iter().chain(scripted).collect()
}

/// Those that can run here; the others are told of, once.
fn clients_here() -> Vec<Client> {
    let missing = |client: &Client| match client {
        Client::Scripted(program, _) => program.missing.as_deref(),
        _ => None,
    };
    clients()
        .into_iter()
        .filter(|client| missing(client).is_none())
        .collect()
}

/// Whether the list of what doesn't has nothing about this pair.
fn works_without_nat(client: Client, server: Kind) -> bool {
    !exceptions().any(|(its, servers)| {
        let client_is = its == client.name() || client.name().split(' ').any(|word| word == its);
        client_is && (servers == "*" || servers.split(' ').any(|name| name == server.name()))
    })
}

/// Clients (or verbs, or both) and servers in the lines of the list.
fn exceptions() -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = include_str!("programs/without-nat.txt").lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| {
        let mut parts = line.split(" | ").map(str::trim);
        let (client, servers) = (parts.next().unwrap(), parts.next().expect(line));
        assert!(parts.next().is_some_and(|why| !why.is_empty()), "{line}");
        (client, servers)
    })
}

/// What became of each client, in one network.
type Column = Vec<Result<(), String>>;

struct Place {
    name: &'static str,
    topology: Topology,
    policy: Policy,
    alg: Alg,
}

/// Starts the server and lets all clients work with it. Also returns what is wrong besides.
fn column(place: &Place, kind: Kind, clients: &[Client]) -> (Column, String) {
    let net = Net::new(&place.topology);
    rules::install(&net, Flavour::Nft, place.policy, true);
    let server = Server::start(&net, &Config::new(kind));
    greeting(&net, place.topology.dial);
    let invalid = rules::invalid(&net, place.topology.router);
    let alg = place.alg.start(&net, Flavour::Nft);
    let upload = content(3, 50_021);
    let results = each_of(clients, AT_ONCE, |client| {
        client.run(&Job {
            net: &net,
            dial: place.topology.dial,
            server: &server,
            downloads: vec![Server::SMALL, Server::SECOND],
            upload: &upload,
            limit: LIMIT,
            patience: PATIENCE,
        })
    });
    let column: Column = results
        .into_iter()
        .map(|(result, _)| result.map(drop))
        .collect();
    let mut said = String::new();
    let log = alg.stop();
    if column.iter().any(Result::is_err) {
        said += &format!("the server's log ends with\n{}\n", end(&server.log()));
    }
    let invalid = rules::invalid(&net, place.topology.router) - invalid;
    if invalid != 0 && place.alg != Alg::Kernel {
        said += &format!("conntrack found {invalid} packets INVALID\n");
    }
    if column.iter().any(Result::is_err) && !log.is_empty() {
        report::write(&format!("programs-{}-{}", kind.name(), place.name), &log);
    }
    (column, said)
}

/// The last lines of what a program said.
fn end(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(SHOWN)..].join("\n")
}

/// The gateways to look at.
fn places(iptables: bool) -> Vec<Place> {
    let place = |name, topology, alg| Place {
        name,
        topology,
        policy: Policy::Drop,
        alg,
    };
    let ours = |backend: &str| match std::env::var("FTPALG_LAB_ALG").as_deref() {
        Ok("both") => Alg::Ftpalg(vec!["--backend".to_owned(), backend.to_owned()]),
        _ => Alg::under_test(&["--backend", backend]),
    };
    if std::env::var("FTPALG_LAB_ALG").as_deref() == Ok("none") {
        return Vec::new();
    }
    let mut places = vec![
        place("published", Topology::published_server(), ours("nft")),
        place("masqueraded", Topology::masqueraded_client(), ours("nft")),
    ];
    if iptables {
        places.push(place(
            "published, iptables",
            Topology::published_server(),
            ours("iptables"),
        ));
        places.push(place(
            "masqueraded, iptables",
            Topology::masqueraded_client(),
            ours("iptables"),
        ));
    }
    if std::env::var("FTPALG_LAB_ALG").as_deref() == Ok("both") {
        let kernel = |name, topology| place(name, topology, Alg::Kernel);
        places.push(kernel("published, kernel", Topology::published_server()));
        places.push(kernel(
            "masqueraded, kernel",
            Topology::masqueraded_client(),
        ));
    }
    places
}

/// Runs all clients with one server, everywhere.
fn server(kind: Kind, iptables: bool) {
    if let Kind::Scripted(program) = kind
        && let Some(why) = &program.missing
    {
        report::skipped(&format!("programs_{}", kind.name()), why);
        return;
    }
    let clients: Vec<_> = clients_here()
        .into_iter()
        .filter(|client| works_without_nat(*client, kind))
        .collect();
    let plain = Place {
        name: "without NAT",
        topology: Topology::routed(),
        policy: Policy::Accept,
        alg: Alg::None,
    };
    let mut problems = Vec::new();
    let mut columns = Vec::new();
    for place in std::iter::once(plain).chain(places(iptables)) {
        let (column, said) = column(&place, kind, &clients);
        let expected = place.alg != Alg::Kernel || !place.name.ends_with("kernel");
        if expected {
            if !said.is_empty() {
                problems.push(format!("{}: {said}", place.name));
            }
            for (client, result) in clients.iter().zip(&column) {
                if let Err(why) = result {
                    let name = client.name();
                    problems.push(format!("{name}, {}: {}", place.name, end(why)));
                }
            }
        }
        columns.push((place.name, column));
    }
    write_report(kind, &clients, &columns);
    let count = problems.len();
    assert!(
        count == 0,
        "{count} problems with {}:\n\n{}",
        kind.name(),
        problems.join("\n\n")
    );
}

/// Adds to the table what is known of a server.
fn write_report(kind: Kind, clients: &[Client], columns: &[(&str, Column)]) {
    static TABLES: Mutex<BTreeMap<&str, String>> = Mutex::new(BTreeMap::new());
    let mut head = vec!["client"];
    head.extend(columns.iter().map(|(name, _)| *name));
    let rows: Vec<_> = clients
        .iter()
        .enumerate()
        .map(|(row, client)| {
            let cell = |column: &Column| match column[row] {
                Ok(()) => "works".to_owned(),
                Err(_) => "FAILS".to_owned(),
            };
            let cells = columns.iter().map(|(_, column)| cell(column)).collect();
            (client.name().to_owned(), cells)
        })
        .collect();
    let mut text = format!("{}\n\n{}", kind.name(), report::table(&head, &rows));
    for (name, column) in columns {
        let works = column.iter().filter(|result| result.is_ok()).count();
        text += &format!("{name}: {works} of {}\n", column.len());
    }
    let mut tables = TABLES.lock().unwrap();
    tables.insert(kind.name(), text);
    let all: Vec<_> = tables.values().cloned().collect();
    report::write("programs", &all.join("\n\n"));
}

fn scripted(name: &str, iptables: bool) {
    let program = programs::servers().iter().find(|p| p.name == name);
    let program = program.expect("a script of this name");
    server(Kind::Scripted(program), iptables);
}

/// Makes a test of each server; `both`: with both backends.
macro_rules! servers {
    (@both both) => { true };
    (@both) => { false };
    ($($name:ident: $script:literal $($both:ident)?;)*) => {
        const SCRIPTED: &[&str] = &[$($script),*];
        $(
            #[test]
            fn $name() {
                scripted($script, servers!(@both $($both)?));
            }
        )*
    };
}

servers! {
    aioftp: "aioftp-server";
    ftp_srv: "ftp-srv" both;
    globus_gridftp: "globus-gridftp";
    inetutils_ftpd: "inetutils-ftpd";
    netkit_ftpd: "netkit-ftpd";
    node_ftpd: "node-ftpd";
    twisted: "twisted-server" both;
}

#[test]
fn vsftpd() {
    server(Kind::Vsftpd, false);
}

#[test]
fn proftpd() {
    server(Kind::Proftpd, false);
}

#[test]
fn pure_ftpd() {
    server(Kind::PureFtpd, false);
}

#[test]
fn pyftpdlib() {
    server(Kind::Pyftpdlib, false);
}

/// A script without a test, and a line about a program that isn't there, would go unnoticed.
#[test]
fn every_program_is_known() {
    let scripts: Vec<_> = programs::servers().iter().map(|p| &p.name[..]).collect();
    assert_eq!(scripts, SCRIPTED);
    let clients = clients();
    let known: BTreeSet<_> = (clients.iter().map(|client| client.name()))
        .flat_map(|name| name.split(' ').chain([name]))
        .collect();
    let servers: BTreeSet<_> = (scripts.iter().copied())
        .chain(Kind::ALL.map(Kind::name))
        .chain(["*"])
        .collect();
    for (client, its) in exceptions() {
        assert!(known.contains(client), "{client}");
        assert!(its.split(' ').all(|name| servers.contains(name)), "{its}");
    }
    for program in programs::clients() {
        if let Some(why) = &program.missing {
            report::skipped(&format!("programs_{}", program.name), why);
        }
    }
}

/// What each client's modes are called is what it says on the wire. Each dials an address of its own,
/// so that its packets are known.
#[test]
fn every_mode_says_its_verb() {
    let clients = clients_here();
    let mut topology = Topology::routed();
    topology.listen = "0.0.0.0:21".parse().unwrap();
    let net = Net::new(&topology);
    let dials: Vec<SocketAddr> = (0..clients.len())
        .map(|number| format!("10.0.0.{}:21", number + 100).parse().unwrap())
        .collect();
    for dial in &dials {
        let address = format!("{}/24", dial.ip());
        let words = ["ip", "address", "add", &address, "dev", "e0"];
        net.exec(topology.server, &words).must();
    }
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let upload = content(3, 50_021);
    let capture = Capture::start(&net, topology.client, "e0", 21);
    let pairs: Vec<_> = clients.iter().zip(&dials).collect();
    let results = each_of(&pairs, AT_ONCE, |(client, dial)| {
        client.run(&Job {
            net: &net,
            dial: **dial,
            server: &server,
            downloads: vec![Server::SMALL, Server::SECOND],
            upload: &upload,
            limit: LIMIT,
            patience: PATIENCE,
        })
    });
    let packets = capture.stop();
    let mut problems = Vec::new();
    for ((client, dial), (result, _)) in pairs.iter().zip(results) {
        if works_without_nat(**client, Kind::Vsftpd)
            && let Err(why) = result
        {
            problems.push(format!("{}: {why}", client.name()));
        }
        let SocketAddr::V4(dial) = dial else { continue };
        let own = packets.iter().filter(|p| p[16..20] == dial.ip().octets());
        // Some fall back to another one later, if a busy machine keeps them waiting.
        let first = own
            .filter_map(|packet| {
                let text = String::from_utf8_lossy(packet).to_uppercase();
                let verbs = ["PASV", "EPSV", "PORT ", "EPRT "].into_iter();
                verbs
                    .filter_map(|verb| Some((text.find(verb)?, verb.trim())))
                    .min()
            })
            .map(|(_, verb)| verb)
            .next();
        if first != Some(client.verb()) {
            problems.push(format!("{} says {first:?}", client.name()));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}
