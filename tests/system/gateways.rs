//! Several gateways in series, and one gateway with several networks, addresses and ports.

use std::io::Read;
use std::time::Duration;

use testkit::lab::gateway::Control;
use testkit::lab::scripted;
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::stations::{BACKENDS, Case, FEW, Part, Station, drop_by_default, nat};
use testkit::lab::topology::{at, host, link, router};

/// `o (198.51.100.2) — a — b — i (10.0.0.2)`: both gateways translate, and both run ftpalg.
fn in_series(outer: &[&str], inner: &[&str]) -> Case {
    let station = |name, rules| {
        Station::new(
            name,
            drop_by_default(&["FORWARD"], &[21]) + &nat(rules),
            &["--inside", "in0"],
        )
    };
    Case::new(
        vec![
            host("o", &["203.0.113.0/24 via 198.51.100.1"]),
            router("a", &[]),
            router("b", &["default via 172.16.0.1"]),
            host("i", &["default via 10.0.0.1"]),
        ],
        vec![
            link(
                ("o", "e0", &["198.51.100.2/24"]),
                ("a", "out0", &["198.51.100.1/24", "203.0.113.1/32"]),
            ),
            link(
                ("a", "in0", &["172.16.0.1/24"]),
                ("b", "out0", &["172.16.0.2/24"]),
            ),
            link(
                ("b", "in0", &["10.0.0.1/24"]),
                ("i", "e0", &["10.0.0.2/24"]),
            ),
        ],
        vec![station("a", outer), station("b", inner)],
    )
}

#[test]
fn two_in_series_before_a_server() {
    in_series(
        &["-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 172.16.0.2"],
        &["-A PREROUTING -d 172.16.0.2/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2"],
    )
    .part(Part {
        name: "two gateways, server inside",
        client: "o",
        server: "i",
        listen: at("10.0.0.2:21"),
        dial: at("203.0.113.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    })
    .run("series_server");
}

#[test]
fn two_in_series_before_a_client() {
    let masquerade = ["-A POSTROUTING -o out0 -j MASQUERADE"];
    in_series(&masquerade, &masquerade)
        .part(Part {
            name: "two gateways, client inside",
            client: "i",
            server: "o",
            listen: at("198.51.100.2:21"),
            dial: at("198.51.100.2:21"),
            clients: FEW.to_vec(),
            works_without: &[],
        })
        .run("series_client");
}

/// Two networks with a server each, two public addresses, several ports:
///
/// ```text
/// o — r (203.0.113.1, .2) — x (10.0.1.2, ports 21 and 2121)
///                        ⌊— y (10.0.2.2, port 21)
/// ```
fn crossroads() -> Case {
    let rules = [
        "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.1.2",
        "-A PREROUTING -d 203.0.113.2/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.2.2",
        "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 2121 -j DNAT --to-destination 10.0.1.2",
        "-A PREROUTING -d 203.0.113.2/32 -p tcp -m tcp --dport 9021 -j DNAT --to-destination 10.0.1.2:2121",
        "-A PREROUTING -d 203.0.113.3/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.2.2",
    ];
    let insider = |name, route: &'static str| host(name, &[route]);
    Case::new(
        vec![
            host("o", &["203.0.113.0/24 via 198.51.100.1"]),
            router("r", &[]),
            insider("x", "default via 10.0.1.1"),
            insider("y", "default via 10.0.2.1"),
        ],
        vec![
            link(
                ("o", "e0", &["198.51.100.2/24"]),
                (
                    "r",
                    "out0",
                    &[
                        "198.51.100.1/24",
                        "203.0.113.1/32",
                        "203.0.113.2/32",
                        "203.0.113.3/32",
                    ],
                ),
            ),
            link(
                ("r", "in0", &["10.0.1.1/24"]),
                ("x", "e0", &["10.0.1.2/24"]),
            ),
            link(
                ("r", "in1", &["10.0.2.1/24"]),
                ("y", "e0", &["10.0.2.2/24"]),
            ),
        ],
        vec![Station::new(
            "r",
            drop_by_default(&["FORWARD"], &[21, 2121]) + &nat(&rules),
            &[
                "--inside", "in0", "--inside", "in1", "--port", "21", "--port", "2121",
            ],
        )],
    )
}

fn x() -> Part {
    Part {
        name: "two LANs, first address",
        client: "o",
        server: "x",
        listen: at("10.0.1.2:21"),
        dial: at("203.0.113.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    }
}

fn y() -> Part {
    Part {
        name: "two LANs, second address",
        server: "y",
        listen: at("10.0.2.2:21"),
        dial: at("203.0.113.2:21"),
        ..x()
    }
}

#[test]
fn several_networks_and_addresses() {
    crossroads()
        .part(x())
        .part(y())
        .run("two_lans_two_addresses");
}

#[test]
fn several_ports() {
    crossroads()
        .part(Part {
            name: "--port 2121",
            listen: at("10.0.1.2:2121"),
            dial: at("203.0.113.1:2121"),
            ..x()
        })
        .part(Part {
            name: "9021 leads to 2121",
            listen: at("10.0.1.2:2121"),
            dial: at("203.0.113.2:9021"),
            ..x()
        })
        .part(x())
        .run("several_ports");
}

/// In active mode the data connection comes from the address that the client talks to, whichever
/// of the server's it is, and from port 20.
#[test]
fn active_data_comes_from_the_dialled_address() {
    let case = crossroads().part(y());
    let net = case.build();
    for backend in BACKENDS {
        let alg = case.stations[0].start(&net, backend);
        for public in ["203.0.113.2:21", "203.0.113.3:21"] {
            let net = net.recast(|topology| {
                *topology = testkit::lab::topology::Topology {
                    dial: at(public),
                    ..case.cast(&net, &y()).topology().clone()
                }
            });
            let server = Server::start(&net, &Config::new(Kind::Vsftpd));
            let mut control = Control::dial(&net);
            control.log_in(&server);
            let listener = net
                .within("o", || scripted::listen(at("198.51.100.2:0")))
                .unwrap();
            let port = listener.local_addr().unwrap().port();
            let numbers = format!("198,51,100,2,{},{}", port >> 8, port & 255);
            control.ask(&format!("PORT {numbers}\r\n"), "200");
            control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
            let mut data = scripted::accept(&listener, Duration::from_secs(5)).unwrap();
            let peer = data.peer_addr().unwrap();
            assert_eq!(peer.ip(), at(public).ip(), "{backend}");
            assert_eq!(peer.port(), 20, "{backend}");
            let mut got = Vec::new();
            data.read_to_end(&mut got).unwrap();
            assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
        }
        drop(alg);
    }
}

/// A gateway with two ways to the world; its user marks control connections by the way that they
/// came, and routes by the mark. `o` takes only what comes by the right way:
///
/// ```text
/// o (192.0.2.2) ═ w1, w2 ═ r (203.0.113.1 by w1, 203.0.113.2 by w2) — x (10.0.1.2)
/// ```
#[test]
fn multi_homed() {
    let rules = [
        "-A PREROUTING -d 203.0.113.0/30 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.1.2",
    ];
    let marks = "*mangle\n\
        -A PREROUTING -i w2 -p tcp -m tcp --dport 21 -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x2/0xff\n\
        -A PREROUTING -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff\nCOMMIT\n";
    let one_way = "*filter\n\
        -A INPUT -i w1 -s 203.0.113.2/32 -j DROP\n-A INPUT -i w2 -s 203.0.113.1/32 -j DROP\nCOMMIT\n";
    let part = |name, public| Part {
        name,
        client: "o",
        server: "x",
        listen: at("10.0.1.2:21"),
        dial: at(public),
        clients: FEW.to_vec(),
        works_without: &[],
    };
    let case = Case::new(
        vec![
            host(
                "o",
                &[
                    "203.0.113.1/32 via 198.51.100.1 src 192.0.2.2",
                    "203.0.113.2/32 via 198.51.101.1 src 192.0.2.2",
                ],
            ),
            router("r", &["192.0.2.0/24 via 198.51.100.2"]),
            host("x", &["default via 10.0.1.1"]),
        ],
        vec![
            link(
                ("o", "w1", &["198.51.100.2/24", "192.0.2.2/32"]),
                ("r", "w1", &["198.51.100.1/24", "203.0.113.1/32"]),
            ),
            link(
                ("o", "w2", &["198.51.101.2/24"]),
                ("r", "w2", &["198.51.101.1/24", "203.0.113.2/32"]),
            ),
            link(
                ("r", "in0", &["10.0.1.1/24"]),
                ("x", "e0", &["10.0.1.2/24"]),
            ),
        ],
        vec![
            Station::new(
                "r",
                drop_by_default(&["FORWARD"], &[21]) + marks + &nat(&rules),
                &["--inside", "in0"],
            ),
            Station::new("o", one_way.to_owned(), &[]),
        ],
    )
    .part(part("multi-homed, default route", "203.0.113.1:21"))
    .part(part("multi-homed, by mark", "203.0.113.2:21"));
    let net = case.build();
    for words in [
        "ip route add 192.0.2.0/24 via 198.51.101.2 table 102",
        "ip rule add fwmark 0x2/0xff lookup 102",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        net.exec("r", &words).must();
    }
    case.run_on(&net, "multi_homed");
}
