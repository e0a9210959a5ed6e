//! Firewalls that translate nothing: a pinhole is only the permission for a data connection.

use testkit::lab::stations::{Case, FEW, FEW_V6, Part, Station, drop_by_default};
use testkit::lab::topology::{at, host, link, router};

/// `c (198.51.100.2, 2001:db8:1::2) — r — s (192.0.2.2, 2001:db8:2::2)`, and only control
/// connections may begin; `inside` is the interface of ftpalg's inside.
fn firewall(inside: &'static str) -> Case {
    let rules = drop_by_default(&["FORWARD"], &[21]);
    Case::new(
        vec![
            host(
                "c",
                &[
                    "192.0.2.0/24 via 198.51.100.1",
                    "2001:db8:2::/64 via 2001:db8:1::1",
                ],
            ),
            router("r", &[]),
            host(
                "s",
                &[
                    "198.51.100.0/24 via 192.0.2.1",
                    "2001:db8:1::/64 via 2001:db8:2::1",
                ],
            ),
        ],
        vec![
            link(
                ("c", "e0", &["198.51.100.2/24", "2001:db8:1::2/64"]),
                ("r", "cl0", &["198.51.100.1/24", "2001:db8:1::1/64"]),
            ),
            link(
                ("r", "sv0", &["192.0.2.1/24", "2001:db8:2::1/64"]),
                ("s", "e0", &["192.0.2.2/24", "2001:db8:2::2/64"]),
            ),
        ],
        vec![Station {
            host: "r",
            v4: rules.clone(),
            v6: rules,
            arguments: vec!["--inside", inside],
            wrapper: Vec::new(),
        }],
    )
}

fn v4() -> Part {
    Part {
        name: "IPv4, no NAT",
        client: "c",
        server: "s",
        listen: at("192.0.2.2:21"),
        dial: at("192.0.2.2:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    }
}

fn v6() -> Part {
    Part {
        name: "IPv6, no NAT",
        listen: at("[2001:db8:2::2]:21"),
        dial: at("[2001:db8:2::2]:21"),
        clients: FEW_V6.to_vec(),
        ..v4()
    }
}

/// One firewall and one daemon for both families at once.
#[test]
fn servers_inside() {
    firewall("sv0")
        .part(v4())
        .part(v6())
        .run("filter_servers_inside");
}

#[test]
fn clients_inside() {
    firewall("cl0")
        .part(v4())
        .part(v6())
        .run("filter_clients_inside");
}
