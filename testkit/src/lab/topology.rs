//! Networks as data: hosts, links, addresses and who plays which part.

use std::net::SocketAddr;

/// A network namespace to be.
#[derive(Clone, Debug)]
pub struct Host {
    /// A short name, unique in the topology (it becomes part of the namespace's name).
    pub name: &'static str,
    /// Whether it forwards packets.
    pub forwards: bool,
    /// Routes, as `ip route add` takes them.
    pub routes: Vec<&'static str>,
}

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct End {
    /// The host it is in.
    pub host: &'static str,
    /// The interface's name there.
    pub interface: &'static str,
    /// Addresses with prefix lengths.
    pub addresses: Vec<&'static str>,
}

/// A cable between two hosts.
#[derive(Clone, Debug)]
pub struct Link(pub End, pub End);

/// Which side of the gateway the server is on, and so what fails without an ALG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The server is inside, behind destination NAT.
    ServerInside,
    /// The client is inside, behind source NAT.
    ClientInside,
}

/// A network: what it consists of, and the parts that its hosts play.
#[derive(Clone, Debug)]
pub struct Topology {
    /// For reports.
    pub name: &'static str,
    /// What fails without an ALG.
    pub shape: Shape,
    /// The namespaces.
    pub hosts: Vec<Host>,
    /// The cables.
    pub links: Vec<Link>,
    /// The host that runs clients.
    pub client: &'static str,
    /// The host that runs the server.
    pub server: &'static str,
    /// The gateway.
    pub router: &'static str,
    /// The gateway's interface towards the private network.
    pub inside: &'static str,
    /// The gateway's interface towards the rest of the world.
    pub outside: &'static str,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// Where the client connects to.
    pub dial: SocketAddr,
    /// The gateway's NAT rules, as lines of `iptables-restore`'s table `nat`.
    pub nat: Vec<&'static str>,
}

impl Topology {
    /// Hosts and cables whose parts are nobody's business but the test's.
    pub fn bare(hosts: Vec<Host>, links: Vec<Link>) -> Self {
        let first = hosts[0].name;
        let nowhere = at("0.0.0.0:0");
        Self {
            name: "",
            shape: Shape::ServerInside,
            hosts,
            links,
            client: first,
            server: first,
            router: first,
            inside: "",
            outside: "",
            listen: nowhere,
            dial: nowhere,
            nat: Vec::new(),
        }
    }

    /// IPv6 alone: `b` is private, and the gateway's rules are the test's. Either may be the client.
    ///
    /// `2001:db8:1::2 (a) — 2001:db8:1::1, 2001:db8:f::1 (r) fd00::1 — fd00::2 (b)`
    pub fn over_ipv6() -> Self {
        Self {
            router: "r",
            inside: "in0",
            outside: "out0",
            ..Self::bare(
                vec![
                    host("a", &["2001:db8:f::/64 via 2001:db8:1::1"]),
                    router("r", &[]),
                    host("b", &["2001:db8:1::/64 via fd00::1"]),
                ],
                vec![
                    link(
                        ("a", "e0", &["2001:db8:1::2/64"]),
                        ("r", "out0", &["2001:db8:1::1/64", "2001:db8:f::1/128"]),
                    ),
                    link(("r", "in0", &["fd00::1/64"]), ("b", "e0", &["fd00::2/64"])),
                ],
            )
        }
    }

    /// A server inside; the gateway publishes its port 21 as its own.
    ///
    /// `198.51.100.2 (client) — 198.51.100.1, 203.0.113.1 (gateway) 10.0.0.1 — 10.0.0.2 (server)`
    pub fn published_server() -> Self {
        Self {
            name: "DNAT 21",
            shape: Shape::ServerInside,
            hosts: vec![
                outsider("c", "203.0.113.0/24 via 198.51.100.1"),
                router("r", &[]),
                insider("s"),
            ],
            links: published_links(),
            client: "c",
            server: "s",
            router: "r",
            inside: "in0",
            outside: "out0",
            listen: at("10.0.0.2:21"),
            dial: at("203.0.113.1:21"),
            nat: vec![
                "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2:21",
            ],
        }
    }

    /// The same with public port 2121.
    pub fn published_server_2121() -> Self {
        Self {
            name: "DNAT 2121→21",
            dial: at("203.0.113.1:2121"),
            nat: vec![
                "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 2121 -j DNAT --to-destination 10.0.0.2:21",
            ],
            ..Self::published_server()
        }
    }

    /// The same without any translation: the client knows the way to the server's own address.
    pub fn routed() -> Self {
        let mut this = Self {
            name: "routed",
            nat: Vec::new(),
            ..Self::published_server()
        };
        this.dial = this.listen;
        for host in &mut this.hosts {
            if host.name == this.client {
                host.routes = vec!["10.0.0.0/24 via 198.51.100.1"];
            }
        }
        this
    }

    /// A client inside, masqueraded; the server outside.
    ///
    /// `10.0.0.2 (client) — 10.0.0.1 (gateway) 198.51.100.1 — 198.51.100.2 (server)`
    pub fn masqueraded_client() -> Self {
        Self {
            name: "MASQUERADE",
            shape: Shape::ClientInside,
            hosts: vec![
                insider("c"),
                router("r", &[]),
                outsider("s", "203.0.113.0/24 via 198.51.100.1"),
            ],
            links: vec![
                link(
                    ("c", "e0", &["10.0.0.2/24"]),
                    ("r", "in0", &["10.0.0.1/24"]),
                ),
                link(
                    ("r", "out0", &["198.51.100.1/24"]),
                    ("s", "e0", &["198.51.100.2/24"]),
                ),
            ],
            client: "c",
            server: "s",
            router: "r",
            inside: "in0",
            outside: "out0",
            listen: at("198.51.100.2:21"),
            dial: at("198.51.100.2:21"),
            nat: vec!["-A POSTROUTING -s 10.0.0.0/24 -o out0 -j MASQUERADE"],
        }
    }

    /// [`Topology::published_server`] with a router on either side of the gateway, `wo` on the
    /// outside and `wi` on the inside, for the weather to be made there.
    pub fn published_server_with_hops() -> Self {
        let mut this = Self {
            name: "DNAT 21, a hop on either side",
            hosts: vec![outsider("c", "default via 198.51.100.1"), insider("s")],
            ..Self::published_server()
        };
        this.add_hops("c", "s", &["192.0.2.2/30", "203.0.113.1/32"]);
        this
    }

    /// [`Topology::masqueraded_client`] with a router on either side of the gateway.
    pub fn masqueraded_client_with_hops() -> Self {
        let mut this = Self {
            name: "MASQUERADE, a hop on either side",
            hosts: vec![insider("c"), outsider("s", "default via 198.51.100.1")],
            ..Self::masqueraded_client()
        };
        this.add_hops("s", "c", &["192.0.2.2/30"]);
        this
    }

    /// `outer (198.51.100.2) — wo — gateway — wi — inner (10.0.0.2)`
    fn add_hops(&mut self, outer: &'static str, inner: &'static str, public: &[&'static str]) {
        self.hosts.extend([
            router("wo", &["203.0.113.0/24 via 192.0.2.2"]),
            router(
                "r",
                &["198.51.100.0/24 via 192.0.2.1", "10.0.0.0/24 via 10.0.1.2"],
            ),
            router("wi", &["default via 10.0.1.1"]),
        ]);
        self.links = vec![
            link(
                (outer, "e0", &["198.51.100.2/24"]),
                ("wo", "far", &["198.51.100.1/24"]),
            ),
            link(("wo", "near", &["192.0.2.1/30"]), ("r", "out0", public)),
            link(
                ("r", "in0", &["10.0.1.1/30"]),
                ("wi", "near", &["10.0.1.2/30"]),
            ),
            link(
                ("wi", "far", &["10.0.0.1/24"]),
                (inner, "e0", &["10.0.0.2/24"]),
            ),
        ];
    }
}

/// A host of the private network. It knows the lab's outside, and no default route, so that what
/// looks for a name server fails at once.
fn insider(name: &'static str) -> Host {
    host(
        name,
        &[
            "198.51.100.0/24 via 10.0.0.1",
            "203.0.113.0/24 via 10.0.0.1",
        ],
    )
}

/// A host of the rest of the world: it has no way to a private network, and knows so at once.
fn outsider(name: &'static str, route: &'static str) -> Host {
    host(
        name,
        &[
            route,
            "unreachable 10.0.0.0/8",
            "unreachable 172.16.0.0/12",
            "unreachable 192.168.0.0/16",
        ],
    )
}

/// The cables of a gateway `r` between a client `c` outside and a server `s` inside, which it publishes as
/// 203.0.113.1.
pub fn published_links() -> Vec<Link> {
    vec![
        link(
            ("c", "e0", &["198.51.100.2/24"]),
            ("r", "out0", &["198.51.100.1/24", "203.0.113.1/32"]),
        ),
        link(
            ("r", "in0", &["10.0.0.1/24"]),
            ("s", "e0", &["10.0.0.2/24"]),
        ),
    ]
}

/// A host that forwards nothing.
pub fn host(name: &'static str, routes: &[&'static str]) -> Host {
    Host {
        name,
        forwards: false,
        routes: routes.to_vec(),
    }
}

/// A host that forwards.
pub fn router(name: &'static str, routes: &[&'static str]) -> Host {
    Host {
        forwards: true,
        ..host(name, routes)
    }
}

/// A cable: host, interface and addresses of either end.
pub fn link(
    a: (&'static str, &'static str, &[&'static str]),
    b: (&'static str, &'static str, &[&'static str]),
) -> Link {
    let end = |(host, interface, addresses): (_, _, &[&'static str])| End {
        host,
        interface,
        addresses: addresses.to_vec(),
    };
    Link(end(a), end(b))
}

/// An address and port.
pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}
