//! Servers and clients on the host that ftpalg runs on, with NAT further out and without.

use testkit::lab::client::Client;
use testkit::lab::stations::{Case, FEW, FEW_V6, Part, Station, drop_by_default, nat};
use testkit::lab::topology::{at, host, link, router};

/// A host `h` with a default-drop firewall, and one outside, `o`.
fn lone_host() -> Case {
    let rules = drop_by_default(&["INPUT", "OUTPUT"], &[21]);
    // Neighbour discovery (RFC 4861) is ICMPv6.
    let v6 = rules.replace(
        "-A INPUT -i lo",
        "-A INPUT -p ipv6-icmp -j ACCEPT\n-A OUTPUT -p ipv6-icmp -j ACCEPT\n-A INPUT -i lo",
    );
    Case::new(
        vec![host("h", &[]), host("o", &[])],
        vec![link(
            ("h", "e0", &["198.51.100.1/24", "2001:db8::1/64"]),
            ("o", "e0", &["198.51.100.2/24", "2001:db8::2/64"]),
        )],
        vec![Station {
            host: "h",
            v4: rules,
            v6,
            arguments: vec!["--local"],
            wrapper: Vec::new(),
        }],
    )
}

#[test]
fn server() {
    let v4 = Part {
        name: "local server",
        client: "o",
        server: "h",
        listen: at("198.51.100.1:21"),
        dial: at("198.51.100.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    };
    let v6 = Part {
        name: "local server, IPv6",
        listen: at("[2001:db8::1]:21"),
        dial: at("[2001:db8::1]:21"),
        clients: FEW_V6.to_vec(),
        ..v4
    };
    lone_host().part(v4).part(v6).run("local_server");
}

#[test]
fn client() {
    let v4 = Part {
        name: "local client",
        client: "h",
        server: "o",
        listen: at("198.51.100.2:21"),
        dial: at("198.51.100.2:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    };
    let v6 = Part {
        name: "local client, IPv6",
        listen: at("[2001:db8::2]:21"),
        dial: at("[2001:db8::2]:21"),
        clients: FEW_V6.to_vec(),
        ..v4
    };
    lone_host().part(v4).part(v6).run("local_client");
}

/// A host with two addresses behind somebody else's NAT, which publishes ports 21 and 30000 to
/// 30009 of a public address for each.
fn published_by_others(arguments: &[&'static str]) -> Case {
    let mut rules = Vec::new();
    for (public, private) in [("203.0.113.10", "10.0.0.2"), ("203.0.113.11", "10.0.0.3")] {
        rules.push(format!(
            "-A POSTROUTING -s {private}/32 -j SNAT --to-source {public}"
        ));
        for ports in ["21", "30000:30009"] {
            rules.push(format!(
                "-A PREROUTING -d {public}/32 -p tcp -m tcp --dport {ports} -j DNAT --to-destination {private}"
            ));
        }
    }
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    Case::new(
        vec![
            host("c", &["203.0.113.0/24 via 198.51.100.1"]),
            router("n", &[]),
            host("h", &["198.51.100.0/24 via 10.0.0.1"]),
        ],
        vec![
            link(
                ("c", "e0", &["198.51.100.2/24"]),
                ("n", "out0", &["198.51.100.1/24"]),
            ),
            link(
                ("n", "in0", &["10.0.0.1/24"]),
                ("h", "e0", &["10.0.0.2/24", "10.0.0.3/24"]),
            ),
        ],
        vec![
            Station::new("h", drop_by_default(&["INPUT", "OUTPUT"], &[21]), arguments),
            Station::new("n", nat(&rules), &[]),
        ],
    )
}

/// What the host is told where its NAT gives it one address and ten ports.
const TOLD: [&str; 5] = [
    "--local",
    "--advertise",
    "203.0.113.10",
    "--data-ports",
    "30000-30009",
];

fn upstream() -> Part {
    Part {
        name: "NAT upstream",
        client: "c",
        server: "h",
        listen: at("10.0.0.2:21"),
        dial: at("203.0.113.10:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    }
}

#[test]
fn nat_upstream() {
    published_by_others(&TOLD)
        .part(upstream())
        .part(Part {
            name: "client behind NAT upstream",
            client: "h",
            server: "c",
            listen: at("198.51.100.2:21"),
            dial: at("198.51.100.2:21"),
            ..upstream()
        })
        .run("local_upstream");
}

#[test]
fn nat_upstream_with_several_addresses() {
    let arguments = [
        "--local",
        "--advertise",
        "10.0.0.2=203.0.113.10",
        "--advertise",
        "10.0.0.3=203.0.113.11",
        "--data-ports",
        "30000-30009",
    ];
    published_by_others(&arguments)
        .part(upstream())
        .part(Part {
            name: "NAT upstream, second address",
            listen: at("10.0.0.3:21"),
            dial: at("203.0.113.11:21"),
            ..upstream()
        })
        .run("local_upstream_several");
}

/// Sixty clients, thirty at a time and from three addresses, share ten ports.
#[test]
fn nat_upstream_with_many_clients() {
    let mut case = published_by_others(&TOLD);
    let outside = ["198.51.100.2/24", "198.51.101.2/24", "198.51.102.2/24"];
    let routes = [
        "203.0.113.0/24 via 198.51.101.1",
        "203.0.113.0/24 via 198.51.102.1",
    ];
    for (index, name) in ["c1", "c2"].into_iter().enumerate() {
        case.hosts.push(host(name, &routes[index..=index]));
    }
    case.hosts[2] = host("h", &["default via 10.0.0.1"]);
    case.links.push(link(
        ("c1", "e0", &outside[1..2]),
        ("n", "out1", &["198.51.101.1/24"]),
    ));
    case.links.push(link(
        ("c2", "e0", &outside[2..3]),
        ("n", "out2", &["198.51.102.1/24"]),
    ));
    let clients = [
        Client::CurlPasv,
        Client::CurlEpsv,
        Client::LftpPasv,
        Client::FtplibPasv,
    ];
    for client in ["c", "c1", "c2"] {
        case = case.part(Part {
            name: client,
            client,
            clients: clients.repeat(5),
            ..upstream()
        });
    }
    case.at_once = 30;
    case.run("local_upstream_many");
}
