//! The networks that recipes are tried in: their addresses and interfaces are those that the recipes name.

use std::net::SocketAddr;

use testkit::lab::net::Net;
use testkit::lab::server::{Config, Kind, Login, Server};
use testkit::lab::topology::{Host, Link, Topology, at, host, link, router};

/// Who dials whom.
pub(super) struct Part {
    /// The name that recipes use.
    pub(super) name: &'static str,
    /// The host of the client.
    pub(super) client: &'static str,
    /// What it dials.
    pub(super) dial: SocketAddr,
    pub(super) login: Login,
}

/// A network, and what is on it before the reader does anything.
pub(super) struct Lab {
    hosts: Vec<Host>,
    links: Vec<Link>,
    /// A host that is a switch.
    switch: Option<&'static str>,
    pub(super) parts: Vec<Part>,
    /// Servers that aren't the reader's business: the host, and where it listens.
    servers: Vec<(&'static str, SocketAddr)>,
    /// What is installed on a host: packages that were unpacked, or directories of `recipes/trees`.
    pub(super) trees: &'static [&'static str],
    /// Commands that others have run, on their hosts: the provider's NAT, the container engine's rules.
    pub(super) others: &'static [(&'static str, &'static str)],
}

const ANONYMOUS: Login = Login {
    user: "anonymous",
    password: "lab@lab",
};
const USER: Login = Login {
    user: "lab",
    password: "lab",
};

impl Lab {
    /// # Panics
    /// If there is none of that name.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "router" => behind_router(&[]),
            "ufw" => behind_router(&["ufw"]),
            "firewalld" => behind_router(&["firewalld", "python3-firewall", "python3-nftables"]),
            "vsftpd" => alone(&["vsftpd", "trees/vsftpd"], ANONYMOUS),
            "proftpd" => alone(
                &["proftpd-core", "proftpd-mod-crypto", "trees/proftpd"],
                USER,
            ),
            "pure-ftpd" => alone(&["pure-ftpd", "pure-ftpd-common", "trees/pure-ftpd"], USER),
            "pyftpdlib" => alone(&[], USER),
            "cloud" => cloud(&["vsftpd", "trees/vsftpd"]),
            "balanced" => balanced(&["haproxy"]),
            "docker" => docker(),
            "stream-proxy" => behind_router(&[
                "nginx",
                "libnginx-mod-stream",
                "libnginx-mod-stream-js",
                "trees/nginx",
            ]),
            "own-server" => own_server(),
            _ => panic!("no lab has the name {name:?}"),
        }
    }

    pub(super) fn build(&self) -> Net {
        let net = Net::new(&Topology::bare(self.hosts.clone(), self.links.clone()));
        if let Some(switch) = self.switch {
            net.bridge(switch);
        }
        net
    }

    /// Starts the servers that aren't the reader's business.
    pub(super) fn serve(&self, net: &Net) -> Vec<Server> {
        let start = |(host, listen): &(&'static str, SocketAddr)| {
            let view = net.recast(|topology| {
                topology.server = host;
                topology.listen = *listen;
            });
            let ports = Some((40000, 40099));
            let config = Config {
                passive_ports: ports,
                // From there, its `connect` fails by itself now and then.
                from_port_20: false,
                ..Config::new(Kind::Vsftpd)
            };
            Server::start(&view, &config)
        };
        self.servers.iter().map(start).collect()
    }

    pub(super) fn part(&self, name: &str) -> &Part {
        let part = self.parts.iter().find(|part| part.name == name);
        part.unwrap_or_else(|| panic!("the lab has no part {name:?}"))
    }
}

/// A client and a server on the internet.
fn internet() -> Host {
    let routes: &[_] = &[
        "203.0.113.0/24 dev eth0 src 198.51.100.20",
        "unreachable 10.0.0.0/8",
        "unreachable 172.16.0.0/12",
        "2001:db8:10::/64 via 2001:db8:100::7",
    ];
    host("internet", routes)
}

/// What it has at its end of the cable: its own address, and that of the provider's router.
const INTERNET: &[&str] = &["198.51.100.20/32", "203.0.113.1/32", "2001:db8:100::1/64"];

fn dialled(name: &'static str, client: &'static str, dial: &str, login: Login) -> Part {
    Part {
        name,
        client,
        dial: at(dial),
        login,
    }
}

/// `internet — eth0 203.0.113.7 (router) 10.0.0.1 eth1 — 10.0.0.5 (server), 10.0.0.20 (pc)`
fn behind_router(trees: &'static [&'static str]) -> Lab {
    Lab {
        hosts: vec![
            internet(),
            router("router", &["default via 203.0.113.1"]),
            host("lan", &[]),
            host(
                "server",
                &["default via 10.0.0.1", "default via 2001:db8:10::1"],
            ),
            host("pc", &["default via 10.0.0.1"]),
        ],
        links: vec![
            link(
                ("internet", "eth0", INTERNET),
                ("router", "eth0", &["203.0.113.7/24", "2001:db8:100::7/64"]),
            ),
            link(
                ("router", "eth1", &["10.0.0.1/24", "2001:db8:10::1/64"]),
                ("lan", "port1", &[]),
            ),
            link(
                ("server", "eth0", &["10.0.0.5/24", "2001:db8:10::5/64"]),
                ("lan", "port2", &[]),
            ),
            link(("pc", "eth0", &["10.0.0.20/24"]), ("lan", "port3", &[])),
        ],
        switch: Some("lan"),
        parts: vec![
            dialled("in", "internet", "203.0.113.7:21", ANONYMOUS),
            dialled("v6", "internet", "[2001:db8:10::5]:21", ANONYMOUS),
            dialled("out", "pc", "198.51.100.20:21", ANONYMOUS),
            dialled("hairpin", "pc", "203.0.113.7:21", ANONYMOUS),
        ],
        servers: vec![
            ("server", at("10.0.0.5:21")),
            ("server", at("[2001:db8:10::5]:21")),
            ("internet", at("198.51.100.20:21")),
        ],
        trees,
        others: &[],
    }
}

/// `internet — eth0 203.0.113.7 (server)`: the reader's server is on the host itself.
fn alone(trees: &'static [&'static str], login: Login) -> Lab {
    Lab {
        hosts: vec![internet(), host("server", &["default via 203.0.113.1"])],
        links: vec![link(
            ("internet", "eth0", INTERNET),
            ("server", "eth0", &["203.0.113.7/24", "2001:db8:100::7/64"]),
        )],
        switch: None,
        parts: vec![
            dialled("in", "internet", "203.0.113.7:21", login),
            dialled("v6", "internet", "[2001:db8:100::7]:21", login),
        ],
        servers: Vec::new(),
        trees,
        others: &[],
    }
}

/// `internet — provider — eth0 10.0.0.5 (server)`: 203.0.113.7 is the server's elastic address, and the
/// provider lets in nothing but port 21 and 30000 to 30009.
fn cloud(trees: &'static [&'static str]) -> Lab {
    Lab {
        hosts: vec![
            internet(),
            router("provider", &["default via 203.0.113.1"]),
            host("server", &["default via 10.0.0.1"]),
        ],
        links: vec![
            link(
                ("internet", "eth0", INTERNET),
                (
                    "provider",
                    "wan",
                    &["203.0.113.2/24", "203.0.113.7/32", "203.0.113.99/32"],
                ),
            ),
            link(
                ("provider", "lan", &["10.0.0.1/24"]),
                ("server", "eth0", &["10.0.0.5/24"]),
            ),
        ],
        switch: None,
        parts: vec![
            dialled("in", "internet", "203.0.113.7:21", ANONYMOUS),
            dialled("moved", "internet", "203.0.113.99:21", ANONYMOUS),
        ],
        servers: Vec::new(),
        trees,
        others: &[(
            "provider",
            "iptables-nft-restore <<'END'
*nat
-A PREROUTING -d 203.0.113.7/32 -j DNAT --to-destination 10.0.0.5
-A PREROUTING -d 203.0.113.99/32 -j DNAT --to-destination 10.0.0.5
-A POSTROUTING -s 10.0.0.5/32 -o wan -j SNAT --to-source 203.0.113.7
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i lan -j ACCEPT
-A FORWARD -i wan -p tcp -m multiport --dports 21,30000:30009 -j ACCEPT
COMMIT
END",
        )],
    }
}

/// `internet — 203.0.113.7 (balancer) 10.0.0.1 — 10.0.0.5, 10.0.0.6 (servers a, b)`
fn balanced(trees: &'static [&'static str]) -> Lab {
    Lab {
        hosts: vec![
            internet(),
            host("balancer", &["default via 203.0.113.1"]),
            host("lan", &[]),
            host("a", &["default via 10.0.0.1"]),
            host("b", &["default via 10.0.0.1"]),
        ],
        links: vec![
            link(
                ("internet", "eth0", INTERNET),
                ("balancer", "eth0", &["203.0.113.7/24"]),
            ),
            link(
                ("balancer", "eth1", &["10.0.0.1/24"]),
                ("lan", "port1", &[]),
            ),
            link(("a", "eth0", &["10.0.0.5/24"]), ("lan", "port2", &[])),
            link(("b", "eth0", &["10.0.0.6/24"]), ("lan", "port3", &[])),
        ],
        switch: Some("lan"),
        parts: vec![dialled("in", "internet", "203.0.113.7:21", ANONYMOUS)],
        servers: vec![("a", at("10.0.0.5:21")), ("b", at("10.0.0.6:21"))],
        trees,
        others: &[],
    }
}

/// `internet — eth0 203.0.113.7 (host) docker0 172.17.0.1 — 172.17.0.2 (container)`: Docker's rules as its
/// version 28 makes them for `-p 21:21`. No engine runs here.
fn docker() -> Lab {
    Lab {
        hosts: vec![
            internet(),
            router("host", &["default via 203.0.113.1"]),
            host("container", &["default via 172.17.0.1"]),
        ],
        links: vec![
            link(
                ("internet", "eth0", INTERNET),
                ("host", "eth0", &["203.0.113.7/24"]),
            ),
            link(
                ("host", "docker0", &["172.17.0.1/16"]),
                ("container", "eth0", &["172.17.0.2/16"]),
            ),
        ],
        switch: None,
        parts: vec![
            dialled("in", "internet", "203.0.113.7:21", ANONYMOUS),
            dialled("out", "container", "198.51.100.20:21", ANONYMOUS),
        ],
        servers: vec![
            ("container", at("172.17.0.2:21")),
            ("internet", at("198.51.100.20:21")),
        ],
        trees: &[],
        others: &[("host", include_str!("docker.sh"))],
    }
}

/// [`behind_router`] with the reader's server inside.
fn own_server() -> Lab {
    let mut lab = behind_router(&["vsftpd", "trees/vsftpd"]);
    lab.servers.retain(|(host, _)| *host != "server");
    let lan = dialled("lan", "pc", "10.0.0.5:21", ANONYMOUS);
    lab.parts.push(lan);
    lab
}
