//! Networks in which an end of a control connection sees the other under a translated address on
//! both sides of the gateway, or in which both ends are inside.
//!
//! A packet on its way in has, where ftpalg looks at it, not yet got the source that its receiver
//! will see; and a connection between two inside ends passes ftpalg at either.

use std::io::Read;
use std::time::Duration;

use testkit::lab::gateway::Control;
use testkit::lab::rules::Flavour;
use testkit::lab::scripted;
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::stations::{BACKENDS, Case, FEW, Outcome, Part, Station, drop_by_default, nat};
use testkit::lab::topology::{at, host, link, router};

/// ```text
/// o (198.51.100.2) — r — w — c (10.0.0.2)
///      203.0.113.1 ⌊ y   ⌊ s (10.0.1.2)
/// ```
/// `w` stands for a switch: `r` has one inside interface, 10.0.2.1. `y` (10.0.3.2) is on another.
fn network(v4: &[&str], ports: &[u16], arguments: &[&'static str]) -> Case {
    Case::new(
        vec![
            host("o", &["203.0.113.0/24 via 198.51.100.1"]),
            router(
                "r",
                &["10.0.0.0/24 via 10.0.2.2", "10.0.1.0/24 via 10.0.2.2"],
            ),
            router("w", &["default via 10.0.2.1"]),
            host(
                "c",
                &[
                    "198.51.100.0/24 via 10.0.0.1",
                    "203.0.113.0/24 via 10.0.0.1",
                ],
            ),
            host(
                "s",
                &[
                    "198.51.100.0/24 via 10.0.1.1",
                    "203.0.113.0/24 via 10.0.1.1",
                    "10.0.2.0/24 via 10.0.1.1",
                    "10.0.3.0/24 via 10.0.1.1",
                ],
            ),
            host(
                "y",
                &[
                    "203.0.113.0/24 via 10.0.3.1",
                    "10.0.1.0/24 via 10.0.3.1",
                    "10.0.2.0/24 via 10.0.3.1",
                ],
            ),
        ],
        vec![
            link(
                ("o", "e0", &["198.51.100.2/24"]),
                ("r", "out0", &["198.51.100.1/24", "203.0.113.1/32"]),
            ),
            link(
                ("r", "in0", &["10.0.2.1/24"]),
                ("w", "up0", &["10.0.2.2/24"]),
            ),
            link(("w", "c0", &["10.0.0.1/24"]), ("c", "e0", &["10.0.0.2/24"])),
            link(("w", "s0", &["10.0.1.1/24"]), ("s", "e0", &["10.0.1.2/24"])),
            link(
                ("r", "in1", &["10.0.3.1/24"]),
                ("y", "e0", &["10.0.3.2/24"]),
            ),
        ],
        vec![Station::new(
            "r",
            drop_by_default(&["FORWARD", "INPUT", "OUTPUT"], ports) + &nat(v4),
            arguments,
        )],
    )
}

const PUBLISHED: &str =
    "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.1.2:21";

/// From the host `client` to the server on `s` by its public address.
fn published(name: &'static str, client: &'static str) -> Part {
    Part {
        name,
        client,
        server: "s",
        listen: at("10.0.1.2:21"),
        dial: at("203.0.113.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    }
}

/// Each session was seen, and each of its four announcements followed, exactly once.
fn once(case: &Case, outcomes: &[Outcome]) {
    let sessions = case
        .parts
        .iter()
        .map(|part| part.clients.len())
        .sum::<usize>();
    for outcome in outcomes {
        let (log, again) = (&outcome.logs[0], outcome.again);
        let counters = &outcome.status[0]["counters"];
        assert_eq!(counters["sessions"], sessions + again, "{log}");
        // A session that the server spoilt made one announcement at least.
        let announced = 4 * sessions + again..=4 * (sessions + again);
        let right = announced.into_iter().any(|n| counters["announced"] == n);
        assert!(right, "{} announced: {log}", counters["announced"]);
    }
}

fn run(case: &Case, name: &str) -> Vec<Outcome> {
    let outcomes = case.run(name);
    once(case, &outcomes);
    outcomes
}

/// A client uses the public address of a server in its own network, beside one from outside.
#[test]
fn hairpin() {
    for (name, inside) in [
        ("hairpin_interface", "in0"),
        ("hairpin_network", "10.0.0.0/16"),
    ] {
        let rules = [
            PUBLISHED,
            "-A POSTROUTING -s 10.0.0.0/16 -d 10.0.1.2/32 -j MASQUERADE",
        ];
        let case = network(&rules, &[21], &["--inside", inside])
            .part(published("hairpin", "c"))
            .part(published("hairpin, from outside", "o"));
        run(&case, name);
    }
}

/// The gateway translates the clients' addresses towards the server.
#[test]
fn source_nat_towards_server() {
    let rules = [
        PUBLISHED,
        "-A POSTROUTING -d 10.0.1.2/32 -o in0 -j MASQUERADE",
    ];
    let case =
        network(&rules, &[21], &["--inside", "in0"]).part(published("SNAT to the server", "o"));
    run(&case, "snat_to_server");
}

/// The server sees all clients at one address. Two that announce the same port are told apart.
#[test]
fn equal_ports_behind_one_address() {
    let rules = [
        PUBLISHED,
        "-A POSTROUTING -d 10.0.1.2/32 -o in0 -j MASQUERADE",
    ];
    let case = network(&rules, &[21], &["--inside", "in0"])
        .part(published("outside", "o"))
        .part(published("inside", "c"));
    let net = case.build();
    let server = Server::start(&case.cast(&net, &case.parts[0]), &Config::new(Kind::Vsftpd));
    // With the ports of the first one, the server's port 20 wouldn't be free for the second one.
    for (backend, port) in BACKENDS.into_iter().zip(41_000u16..) {
        let alg = case.stations[0].start(&net, backend);
        let mut sessions: Vec<_> = [("198.51.100.2", 0), ("10.0.0.2", 1)]
            .into_iter()
            .map(|(address, part)| {
                let net = case.cast(&net, &case.parts[part]);
                let mut control = Control::dial(&net);
                control.log_in(&server);
                let here = at(&format!("{address}:{port}"));
                let listener = net
                    .within(case.parts[part].client, || scripted::listen(here))
                    .unwrap();
                let numbers = address.replace('.', ",");
                let [high, low] = port.to_be_bytes();
                control.ask(&format!("PORT {numbers},{high},{low}\r\n"), "200");
                (control, listener)
            })
            .collect();
        for (control, listener) in &mut sessions {
            control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
            let mut data = scripted::accept(listener, Duration::from_secs(5)).unwrap();
            assert_eq!(data.peer_addr().unwrap(), at("203.0.113.1:20"), "{backend}");
            let mut got = Vec::new();
            data.read_to_end(&mut got).unwrap();
            assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
            assert!(control.reply().starts_with("226"));
        }
        drop(alg);
    }
}

/// The same where the user's rules are iptables-legacy's.
#[test]
fn beside_legacy_rules() {
    let rules = [
        PUBLISHED,
        "-A POSTROUTING -d 10.0.1.2/32 -o in0 -j MASQUERADE",
    ];
    let case = Case {
        flavour: Flavour::Legacy,
        ..network(&rules, &[21], &["--inside", "in0", "--local"])
    };
    let case = case
        .part(published("SNAT to the server, legacy", "o"))
        .part(published("hairpin, legacy", "c"))
        .part(Part {
            dial: at("10.0.1.2:21"),
            ..published("client on the gateway, legacy", "r")
        });
    run(&case, "snat_legacy");
}

/// The same with four queues: the two directions of a connection come through different ones.
#[test]
fn several_queues() {
    let rules = [
        PUBLISHED,
        "-A POSTROUTING -d 10.0.1.2/32 -o in0 -j MASQUERADE",
    ];
    let case = network(&rules, &[21], &["--inside", "in0", "--queues", "4"])
        .part(published("SNAT to the server, 4 queues", "o"))
        .part(published("hairpin, 4 queues", "c"));
    run(&case, "snat_queues");
}

/// Nobody says where the inside is: the user's rules do.
#[test]
fn inside_found_by_itself() {
    for (name, rule) in [
        (
            "derived_hairpin",
            "-A POSTROUTING -s 10.0.0.0/16 -d 10.0.1.2/32 -j MASQUERADE",
        ),
        (
            "derived_snat",
            "-A POSTROUTING -d 10.0.1.2/32 -o in0 -j MASQUERADE",
        ),
    ] {
        let rules = [
            PUBLISHED,
            rule,
            "-A POSTROUTING -s 10.0.0.0/16 -o out0 -j MASQUERADE",
        ];
        let case = network(&rules, &[21], &["--port", "21"])
            .part(published("hairpin, inside derived", "c"))
            .part(published("from outside, inside derived", "o"));
        run(&case, name);
    }
}

/// Four queues where both ends are inside, with all kinds of NAT between them.
#[test]
fn several_queues_between_inside_ends() {
    let rules = [
        PUBLISHED,
        "-A POSTROUTING -s 10.0.3.0/24 -o in0 -j MASQUERADE",
    ];
    let arguments = [
        "--inside", "in0", "--inside", "in1", "--local", "--queues", "4",
    ];
    let case = network(&rules, &[21], &arguments)
        .part(Part {
            dial: at("10.0.1.2:21"),
            ..published("between two LANs, SNAT, 4 queues", "y")
        })
        .part(published("between two LANs, DNAT and SNAT, 4 queues", "y"))
        .part(Part {
            dial: at("10.0.1.2:21"),
            ..published("client on the gateway, 4 queues", "r")
        })
        .part(published("from outside, 4 queues", "o"));
    run(&case, "queues_inside");
}

/// Clients are led to a server that they didn't dial, and masqueraded.
#[test]
fn redirected_client() {
    let rules = [
        "-A PREROUTING -d 203.0.113.9/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 198.51.100.2:21",
        "-A POSTROUTING -o out0 -j MASQUERADE",
    ];
    let case = network(&rules, &[21], &["--inside", "in0"]).part(Part {
        name: "DNAT and SNAT of an inside client",
        client: "c",
        server: "o",
        listen: at("198.51.100.2:21"),
        dial: at("203.0.113.9:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    });
    run(&case, "redirected_client");
}

/// Two inside networks: one client dials the server itself, the other its public address.
#[test]
fn two_networks() {
    let case = network(&[PUBLISHED], &[21], &["--inside", "in0", "--inside", "in1"])
        .part(Part {
            dial: at("10.0.1.2:21"),
            ..published("between two LANs", "y")
        })
        .part(published("between two LANs, DNAT", "y"))
        .part(published("between two LANs, from outside", "o"));
    run(&case, "two_lans");
}

/// The gateway itself is a client of an inside server, and has a server that the inside uses.
#[test]
fn gateway_itself() {
    let rules = [
        PUBLISHED,
        "-A OUTPUT -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.1.2:21",
    ];
    let case = network(&rules, &[21], &["--inside", "in0", "--local"])
        .part(published("client on the gateway, DNAT of its own", "r"))
        .part(Part {
            dial: at("10.0.1.2:21"),
            ..published("client on the gateway, server inside", "r")
        })
        .part(Part {
            name: "client inside, server on the gateway",
            client: "c",
            server: "r",
            listen: at("198.51.100.1:21"),
            dial: at("198.51.100.1:21"),
            clients: FEW.to_vec(),
            works_without: &[],
        })
        .part(published("inside and local, from outside", "o"));
    run(&case, "inside_and_local");
}
