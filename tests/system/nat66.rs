//! IPv6 with NAT: a published server, masqueraded clients, and IPv4 beside it.

use testkit::lab::stations::{Case, FEW, FEW_V6, Part, Station, drop_by_default, nat};
use testkit::lab::topology::{at, host, link, router};

/// `a (198.51.100.2, 2001:db8:1::2) — r — b (10.0.0.2, fd00::2)`: `b` is private.
fn gateway(v4: &[&str], v6: &[&str]) -> Case {
    let filter = drop_by_default(&["FORWARD"], &[21]);
    Case::new(
        vec![
            host(
                "a",
                &[
                    "203.0.113.0/24 via 198.51.100.1",
                    "2001:db8:f::/64 via 2001:db8:1::1",
                ],
            ),
            router("r", &[]),
            host(
                "b",
                &[
                    "198.51.100.0/24 via 10.0.0.1",
                    "2001:db8:1::/64 via fd00::1",
                ],
            ),
        ],
        vec![
            link(
                ("a", "e0", &["198.51.100.2/24", "2001:db8:1::2/64"]),
                (
                    "r",
                    "out0",
                    &[
                        "198.51.100.1/24",
                        "203.0.113.1/32",
                        "2001:db8:1::1/64",
                        "2001:db8:f::1/128",
                    ],
                ),
            ),
            link(
                ("r", "in0", &["10.0.0.1/24", "fd00::1/64"]),
                ("b", "e0", &["10.0.0.2/24", "fd00::2/64"]),
            ),
        ],
        vec![Station {
            host: "r",
            v4: filter.clone() + &nat(v4),
            v6: filter + &nat(v6),
            arguments: vec!["--inside", "in0"],
            wrapper: Vec::new(),
        }],
    )
}

/// One daemon serves both families at once.
#[test]
fn published_servers() {
    gateway(
        &["-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2:21"],
        &["-A PREROUTING -d 2001:db8:f::1/128 -p tcp -m tcp --dport 21 -j DNAT --to-destination [fd00::2]:21"],
    )
    .part(Part {
        name: "NAT66 DNAT",
        client: "a",
        server: "b",
        listen: at("[fd00::2]:21"),
        dial: at("[2001:db8:f::1]:21"),
        clients: FEW_V6.to_vec(),
        works_without: &[],
    })
    .part(Part {
        name: "DNAT",
        client: "a",
        server: "b",
        listen: at("10.0.0.2:21"),
        dial: at("203.0.113.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    })
    .run("dual_stack_published");
}

#[test]
fn masqueraded_clients() {
    gateway(
        &["-A POSTROUTING -o out0 -j MASQUERADE"],
        &["-A POSTROUTING -o out0 -j MASQUERADE"],
    )
    .part(Part {
        name: "NAT66 MASQUERADE",
        client: "b",
        server: "a",
        listen: at("[2001:db8:1::2]:21"),
        dial: at("[2001:db8:1::2]:21"),
        clients: FEW_V6.to_vec(),
        works_without: &[],
    })
    .part(Part {
        name: "MASQUERADE",
        client: "b",
        server: "a",
        listen: at("198.51.100.2:21"),
        dial: at("198.51.100.2:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    })
    .run("dual_stack_masqueraded");
}

/// The server sees the gateway's address in place of its clients'.
#[test]
fn source_nat_towards_server() {
    let published = |v4: bool| {
        if v4 {
            "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2"
        } else {
            "-A PREROUTING -d 2001:db8:f::1/128 -p tcp -m tcp --dport 21 -j DNAT --to-destination fd00::2"
        }
    };
    let masquerade = "-A POSTROUTING -o in0 -j MASQUERADE";
    gateway(
        &[published(true), masquerade],
        &[published(false), masquerade],
    )
    .part(Part {
        name: "NAT66, SNAT to the server",
        client: "a",
        server: "b",
        listen: at("[fd00::2]:21"),
        dial: at("[2001:db8:f::1]:21"),
        clients: FEW_V6.to_vec(),
        works_without: &[],
    })
    .run("nat66_snat_to_server");
}
