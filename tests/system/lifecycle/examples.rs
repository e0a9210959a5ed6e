//! Every rule set that `rules print --example` shows: loaded as it is, and used.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use nix::sys::signal::Signal;

use testkit::lab::gateway::{LIMIT, download, ftpalg};
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::rules::Flavour;
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::{End, Host, Link, Shape, Topology};
use testkit::paths;

/// How somebody's gateway looks.
struct Place {
    outside: &'static str,
    inside: &'static str,
    /// The inside end and the server, with IPv4 and with IPv6.
    inner: [[&'static str; 2]; 2],
    /// The networks inside, where they are named in place of the interface.
    networks: &'static [&'static str],
    ports: &'static [u16],
}

/// As the examples take it to be.
const PLAIN: Place = Place {
    outside: "eth0",
    inside: "eth1",
    inner: [
        ["192.168.1.1/24", "2001:db8:1::1/64"],
        ["192.168.1.2/24", "2001:db8:1::2/64"],
    ],
    networks: &[],
    ports: &[21],
};

const OTHER: Place = Place {
    outside: "wan0",
    inside: "br-lan",
    inner: [
        ["10.9.0.1/16", "fd00:9::1/64"],
        ["10.9.0.2/16", "fd00:9::2/64"],
    ],
    networks: &[],
    ports: &[2121, 2100],
};

const NETWORKS: Place = Place {
    networks: &["10.9.0.0/16", "fd00:9::/64"],
    ..OTHER
};

/// The gateway's outside end, and a host there.
const NEAR: [&str; 2] = ["198.51.100.1/24", "2001:db8:2::1/64"];
const FAR: [&str; 2] = ["198.51.100.2/24", "2001:db8:2::2/64"];

impl Place {
    /// `c (client or server outside) — r (this host) — s (server or client inside)`
    fn net(&self) -> Net {
        let host = |name, forwards, routes| Host {
            name,
            forwards,
            routes,
        };
        let end = |host, interface, addresses: [&'static str; 2]| End {
            host,
            interface,
            addresses: addresses.to_vec(),
        };
        let back = match self.outside {
            "eth0" => vec![
                "192.168.1.0/24 via 198.51.100.1",
                "2001:db8:1::/64 via 2001:db8:2::1",
            ],
            _ => vec![
                "10.9.0.0/16 via 198.51.100.1",
                "fd00:9::/64 via 2001:db8:2::1",
            ],
        };
        let forth = match self.outside {
            "eth0" => vec![
                "198.51.100.0/24 via 192.168.1.1",
                "2001:db8:2::/64 via 2001:db8:1::1",
            ],
            _ => vec![
                "198.51.100.0/24 via 10.9.0.1",
                "2001:db8:2::/64 via fd00:9::1",
            ],
        };
        let nowhere = SocketAddr::new(ip(FAR[0]), 21);
        let net = Net::new(&Topology {
            name: "example",
            shape: Shape::ServerInside,
            hosts: vec![
                host("c", false, back),
                host("r", true, vec![]),
                host("s", false, forth),
            ],
            links: vec![
                Link(end("c", "e0", FAR), end("r", self.outside, NEAR)),
                Link(
                    end("r", self.inside, self.inner[0]),
                    end("s", "e0", self.inner[1]),
                ),
            ],
            client: "c",
            server: "s",
            router: "r",
            inside: self.inside,
            outside: self.outside,
            listen: nowhere,
            dial: nowhere,
            nat: Vec::new(),
        });
        // A gateway asks for its neighbours with its link-local address, once that is sure to be its own.
        let deadline = Instant::now() + LIMIT;
        let tentative = ["ip", "-6", "address", "show", "tentative"];
        while ["c", "r", "s"]
            .iter()
            .any(|host| !net.exec(host, &tentative).must().log.is_empty())
        {
            assert!(Instant::now() < deadline, "addresses stay tentative");
        }
        net
    }

    /// The flags of `run` and `rules print` for it.
    fn flags(&self, local: bool) -> Vec<String> {
        let mut words = Vec::new();
        let inside = match self.networks {
            [] => &[self.inside][..],
            networks => networks,
        };
        for inside in inside.iter().filter(|_| !local) {
            words.extend(["--inside".to_owned(), (*inside).to_owned()]);
        }
        for port in self.ports {
            words.extend(["--port".to_owned(), port.to_string()]);
        }
        words
    }
}

fn ip(address: &str) -> IpAddr {
    let (ip, _) = address.split_once('/').unwrap();
    ip.parse().unwrap()
}

/// Who uses what, with each family: the client's host and the address that it dials, the server's host
/// and the address that it listens to.
type Way = (&'static str, [IpAddr; 2], &'static str, [IpAddr; 2]);

fn ways(example: &str, place: &Place) -> Vec<Way> {
    let all = |addresses: [&str; 2]| addresses.map(ip);
    let (near, far, inner) = (all(NEAR), all(FAR), all(place.inner[1]));
    // IPv4 is published at the gateway's address, IPv6 isn't translated.
    let published = ("c", [near[0], inner[1]], "s", inner);
    let outward = ("s", far, "c", far);
    match example {
        "gateway" => vec![published, outward],
        "client-firewall" => vec![outward],
        "local-server" => vec![("c", near, "r", near)],
        "default-drop-host" => vec![("r", far, "c", far)],
        other => panic!("no test for the example {other}"),
    }
}

fn works(example: &ftpalg::firewall::Example, place: &Place, flavour: Flavour) {
    let net = place.net();
    let flags = place.flags(example.is_local());
    for (at, family) in ["ipv4", "ipv6"].into_iter().enumerate() {
        let mut words = vec![
            "rules",
            "print",
            "--example",
            example.name,
            "--family",
            family,
        ];
        words.extend(flags.iter().map(String::as_str));
        let server = ip(place.inner[1][at]).to_string();
        if place.outside != PLAIN.outside {
            words.extend(["--outside", place.outside, "--server", &server]);
        }
        let printed = ftpalg(&net, &words).must();
        let restore = match (flavour, family) {
            (Flavour::Nft, "ipv4") => "iptables-nft-restore",
            (Flavour::Nft, _) => "ip6tables-nft-restore",
            (Flavour::Legacy, "ipv4") => "iptables-legacy-restore",
            (Flavour::Legacy, _) => "ip6tables-legacy-restore",
        };
        net.feed("r", &[restore, "--noflush", "-w", "10"], &printed.stdout)
            .must();
    }

    let mut command = net.command("r", paths::ftpalg());
    command.args(["run", "--rules", "external"]).args(&flags);
    if example.is_local() {
        command.arg("--local");
    }
    let alg = Process::spawn(command);
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    ftpalg(&net, &["status"]).must();
    for (client, dial, host, listen) in ways(example.name, place) {
        for port in place.ports {
            for (dial, listen) in dial.into_iter().zip(listen) {
                let net = net.recast(|topology| {
                    (topology.client, topology.server) = (client, host);
                    topology.dial = SocketAddr::new(dial, *port);
                    topology.listen = SocketAddr::new(listen, *port);
                });
                let server = Server::start(&net, &Config::new(Kind::Vsftpd));
                for mode in [&["-g"][..], &["-g", "--ftp-port", "-"]] {
                    let got = download(&net, &server, mode);
                    let log = alg.log();
                    let what = format!("{} {flavour:?} {client} -> {dial}:{port}", example.name);
                    assert!(got.ok(), "{what} {mode:?}: {got}\n{log}");
                }
            }
        }
    }
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
}

#[test]
fn every_example_works_as_it_is_printed() {
    for example in ftpalg::firewall::EXAMPLES {
        for flavour in [Flavour::Nft, Flavour::Legacy] {
            works(&example, &PLAIN, flavour);
            works(&example, &OTHER, flavour);
            if !example.is_local() {
                works(&example, &NETWORKS, flavour);
            }
        }
    }
}
