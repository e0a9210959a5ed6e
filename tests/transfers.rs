//! Every client with every server through every stock network: list, download, upload.
//!
//! One test is one network with one set of the user's rules and one pinhole backend; each client
//! session is first shown to fail (or, where plain NAT suffices, to work) without an ALG.

mod lab;

use lab::alg::Alg;
use lab::client::Client;
use lab::rules::{Flavour, Policy};
use lab::scenario::Scenario;
use lab::server::{Config, Kind};
use lab::topology::Topology;

fn matrix(name: &str, topology: Topology, policy: Policy, flavour: Flavour, backend: &str) {
    Scenario {
        topology,
        policy,
        drop_invalid: true,
        flavour,
        alg: Alg::under_test(&["--backend", backend]),
        servers: Kind::ALL.map(Config::new).to_vec(),
        clients: Client::ALL.to_vec(),
    }
    .run(name);
}

#[test]
fn published_accept_nft() {
    matrix(
        "published_accept_nft",
        Topology::published_server(),
        Policy::Accept,
        Flavour::Nft,
        "nft",
    );
}
#[test]
fn published2121_drop_nft() {
    matrix(
        "published2121_drop_nft",
        Topology::published_server_2121(),
        Policy::Drop,
        Flavour::Nft,
        "nft",
    );
}
#[test]
fn masqueraded_accept_nft() {
    matrix(
        "masqueraded_accept_nft",
        Topology::masqueraded_client(),
        Policy::Accept,
        Flavour::Nft,
        "nft",
    );
}
#[test]
fn masqueraded_drop_legacy() {
    matrix(
        "masqueraded_drop_legacy",
        Topology::masqueraded_client(),
        Policy::Drop,
        Flavour::Legacy,
        "nft",
    );
}
