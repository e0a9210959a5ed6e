//! The same sessions through the kernel's helper and through `ftpalg`: both ends read the same.
//!
//! Only what the helper does right is compared: whole lines, one at a time.

mod lab;

use lab::alg::Alg;
use lab::net::Net;
use lab::rules::{self, Flavour, Policy};
use lab::scripted::{Outcome, Plan, Step, Verb, session};
use lab::topology::Topology;

/// A session with these transfers. The ports of its data connections are always the same, so that
/// all that is read can be compared.
fn plan(verbs: &[Verb], port: u16) -> Plan {
    Plan {
        ports: Some(port),
        ..Plan::new(verbs.iter().map(|&verb| Step::whole(verb)).collect())
    }
}

fn outcomes(topology: &Topology, plans: &[Plan], alg: &Alg) -> Vec<Outcome> {
    let net = Net::new(topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let invalid = rules::invalid(&net, topology.router);
    let running = alg.start(&net, Flavour::Nft);
    let outcomes = plans
        .iter()
        .map(|plan| session(&net, plan).unwrap_or_else(|why| panic!("{}: {why}", alg.name())))
        .collect();
    running.stop();
    assert_eq!(rules::invalid(&net, topology.router), invalid, "INVALID");
    outcomes
}

fn compare(topology: &Topology, plans: &[Plan]) {
    let kernel = outcomes(topology, plans, &Alg::Kernel);
    assert_eq!(kernel.len(), plans.len());
    for backend in ["nft", "iptables"] {
        let words = ["--backend", backend].map(str::to_owned);
        let ours = outcomes(topology, plans, &Alg::Ftpalg(words.to_vec()));
        for ((plan, kernel), ours) in plans.iter().zip(&kernel).zip(&ours) {
            let steps = &plan.steps;
            assert_eq!(ours.client_read, kernel.client_read, "{backend} {steps:?}");
            assert_eq!(ours.server_read, kernel.server_read, "{backend} {steps:?}");
        }
    }
    // The comparison means something only if addresses were rewritten.
    let rewritten = kernel.iter().flat_map(|outcome| &outcome.transfers);
    assert!(rewritten.filter(|t| t.sent != t.read).count() >= 10);
}

#[test]
fn a_published_server() {
    use Verb::{Epsv, Pasv};
    let plans = [
        plan(&[Pasv], 40_000),
        plan(&[Epsv], 40_100),
        plan(&[Pasv; 20], 40_200),
        plan(&[Pasv, Epsv, Epsv, Pasv, Pasv, Epsv], 40_300),
        // Numbers of one, two and three digits: the line changes its length differently.
        plan(&[Pasv, Pasv], 256 * 100),
        plan(&[Pasv, Pasv], 256 * 9),
        plan(&[Pasv, Epsv], 65_530),
    ];
    compare(&Topology::published_server(), &plans);
}

#[test]
fn a_masqueraded_client() {
    use Verb::{Eprt, Port};
    let plans = [
        plan(&[Port], 40_000),
        plan(&[Eprt], 40_100),
        plan(&[Port; 20], 40_200),
        plan(&[Port, Eprt, Eprt, Port, Port, Eprt], 40_300),
        plan(&[Port, Eprt], 256 * 9),
        plan(&[Port, Eprt], 65_530),
    ];
    compare(&Topology::masqueraded_client(), &plans);
}
