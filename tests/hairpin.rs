//! Networks in which an end of a control connection sees the other under a translated address on
//! both sides of the gateway, or in which both ends are inside.
//!
//! A packet on its way in has, where ftpalg looks at it, not yet got the source that its receiver
//! will see; and a connection between two inside ends passes ftpalg at either.

mod lab;

use lab::stations::{
    Case, FEW, Outcome, Part, Station, at, drop_by_default, host, link, nat, router,
};

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
        vec![Station {
            host: "r",
            v4: drop_by_default(&["FORWARD", "INPUT", "OUTPUT"], ports) + &nat(v4),
            v6: String::new(),
            arguments: arguments.to_vec(),
        }],
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
        let counters = &outcome.status[0]["counters"];
        assert_eq!(counters["sessions"], sessions, "{}", outcome.logs[0]);
        assert_eq!(counters["announced"], 4 * sessions, "{}", outcome.logs[0]);
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
    let case = network(&[PUBLISHED], &[21], &["--inside", "in0", "--local"])
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
