//! Every client with every server through every stock network: list, download, upload.
//!
//! One test is one network with one set of the user's rules and one pinhole backend; each client
//! session is first shown to fail (or, where plain NAT suffices, to work) without an ALG.

use std::net::IpAddr;

use testkit::lab::alg::Alg;
use testkit::lab::client::{Client, Mode};
use testkit::lab::rules::{Flavour, Policy};
use testkit::lab::scenario::Scenario;
use testkit::lab::server::{Config, Kind};
use testkit::lab::topology::Topology;

/// Makes tests of `name: network, the user's policy, the iptables of the user's rules, backend`.
macro_rules! matrix {
    ($($name:ident: $topology:ident, $policy:ident, $flavour:ident, $backend:literal;)*) => {
        $(
            #[test]
            fn $name() {
                let alg = Alg::under_test(&["--backend", $backend]);
                Scenario::new(Topology::$topology(), Policy::$policy, Flavour::$flavour, alg)
                    .run(stringify!($name));
            }
        )*
    };
}

matrix! {
    published_accept_nft_beside_nft: published_server, Accept, Nft, "nft";
    published_drop_nft_beside_legacy: published_server, Drop, Legacy, "nft";
    published_accept_iptables_beside_legacy: published_server, Accept, Legacy, "iptables";
    published_drop_iptables_beside_nft: published_server, Drop, Nft, "iptables";

    published2121_accept_nft_beside_legacy: published_server_2121, Accept, Legacy, "nft";
    published2121_drop_nft_beside_nft: published_server_2121, Drop, Nft, "nft";
    published2121_accept_iptables_beside_nft: published_server_2121, Accept, Nft, "iptables";
    published2121_drop_iptables_beside_legacy: published_server_2121, Drop, Legacy, "iptables";

    masqueraded_accept_nft_beside_nft: masqueraded_client, Accept, Nft, "nft";
    masqueraded_drop_nft_beside_legacy: masqueraded_client, Drop, Legacy, "nft";
    masqueraded_accept_iptables_beside_legacy: masqueraded_client, Accept, Legacy, "iptables";
    masqueraded_drop_iptables_beside_nft: masqueraded_client, Drop, Nft, "iptables";
}

/// A server that announces an address that leads nowhere: the target is the control connection's
/// own server all the same.
fn misstated(name: &str, topology: Topology, announce: [u8; 4]) {
    let announce = Some(IpAddr::from(announce));
    let alg = Alg::under_test(&["--backend", "nft"]);
    Scenario {
        servers: Kind::ALL
            .map(|kind| Config {
                announce,
                ..Config::new(kind)
            })
            .to_vec(),
        clients: passive(),
        ..Scenario::new(topology, Policy::Drop, Flavour::Nft, alg)
    }
    .run(name);
}

#[test]
fn published_server_that_announces_localhost() {
    misstated(
        "published_localhost",
        Topology::published_server(),
        [127, 0, 0, 1],
    );
}

#[test]
fn published_server_that_announces_another_private_address() {
    misstated(
        "published_other",
        Topology::published_server(),
        [10, 9, 9, 9],
    );
}

#[test]
fn outside_server_that_announces_localhost() {
    misstated(
        "masqueraded_localhost",
        Topology::masqueraded_client(),
        [127, 0, 0, 1],
    );
}

/// All transfers of a client share one public data port.
#[test]
fn one_data_port() {
    let alg = Alg::under_test(&["--backend", "nft", "--data-ports", "8080-8080"]);
    let logs = Scenario {
        servers: [Kind::Vsftpd, Kind::Pyftpdlib].map(Config::new).to_vec(),
        clients: passive(),
        // One port is one transfer at a time for each client address.
        at_once: 1,
        ..Scenario::new(
            Topology::published_server(),
            Policy::Drop,
            Flavour::Nft,
            alg.clone(),
        )
    }
    .run("one_data_port");
    for log in logs {
        assert!(
            alg == Alg::Kernel || log.contains("203.0.113.1:8080"),
            "no data connection used port 8080:\n{log}"
        );
    }
}

fn large(name: &str, topology: Topology, backend: &str) {
    let alg = Alg::under_test(&["--backend", backend]);
    Scenario {
        servers: [Kind::Vsftpd, Kind::Pyftpdlib].map(Config::new).to_vec(),
        clients: vec![
            Client::CurlPasv,
            Client::CurlPort,
            Client::LftpPasv,
            Client::FtplibPort,
        ],
        at_once: 2,
        large: true,
        ..Scenario::new(topology, Policy::Drop, Flavour::Nft, alg)
    }
    .run(name);
}

#[test]
fn large_files_published() {
    large("large_published", Topology::published_server(), "nft");
}

#[test]
fn large_files_masqueraded() {
    large(
        "large_masqueraded",
        Topology::masqueraded_client(),
        "iptables",
    );
}

fn passive() -> Vec<Client> {
    let clients = Client::ALL.into_iter();
    clients.filter(|c| c.mode() == Mode::Passive).collect()
}
