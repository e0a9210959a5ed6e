//! The same sessions through the kernel's helper (`nf_conntrack_ftp`, `nf_nat_ftp`) and through
//! `ftpalg`: both ends read the same bytes.
//!
//! Only what the helper does right is compared: whole lines, one at a time. Where a kernel hasn't got
//! the helper, the tests say so on standard error and compare nothing.

use testkit::lab::alg::{Alg, no_kernel_helper};
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{Outcome, Plan, Step, Verb, session};
use testkit::lab::topology::Topology;

use Verb::{Eprt, Epsv, Pasv, Port};

/// A session with these transfers. The ports of its data connections are always the same, so that
/// all that is read can be compared.
fn plan(verbs: &[Verb], port: u16) -> Plan {
    Plan {
        ports: Some(port),
        ..Plan::new(verbs.iter().map(|&verb| Step::whole(verb)).collect())
    }
}

/// What both ends of each session sent and read.
fn outcomes(topology: &Topology, plans: &[Plan], alg: &Alg) -> Vec<Outcome> {
    let net = Net::new(topology);
    // No connection is to begin at a port that a plan names.
    for host in [topology.client, topology.server] {
        net.sysctl(host, "net.ipv4.ip_local_reserved_ports", "40000-40999");
    }
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let invalid = rules::invalid(&net, topology.router);
    let running = alg.start(&net, Flavour::Nft);
    let outcomes = plans
        .iter()
        .map(|plan| {
            session(&net, plan)
                .unwrap_or_else(|why| panic!("{}, {:?}: {why}", alg.name(), plan.steps))
        })
        .collect();
    running.stop();
    assert_eq!(rules::invalid(&net, topology.router), invalid, "INVALID");
    outcomes
}

/// Runs the plans three times; `rewritten`: how many announcements must have been changed, or the
/// comparison means nothing.
fn compare(name: &str, topology: &Topology, plans: &[Plan], rewritten: usize) {
    if let Some(why) = no_kernel_helper(&Net::new(topology)) {
        report::skipped(name, &why);
        return;
    }
    let kernel = outcomes(topology, plans, &Alg::Kernel);
    let transfers = || kernel.iter().flat_map(|outcome| &outcome.transfers);
    let changed = transfers().filter(|t| t.sent != t.read).count();
    assert!(changed >= rewritten, "{changed} of {}", transfers().count());
    for backend in ["nft", "iptables"] {
        // The helper keeps ports, not lengths.
        let words = ["--backend", backend, "--keep-length", "off"].map(str::to_owned);
        let ours = outcomes(topology, plans, &Alg::Ftpalg(words.to_vec()));
        assert_eq!(ours.len(), kernel.len());
        for ((plan, kernel), ours) in plans.iter().zip(&kernel).zip(&ours) {
            let steps = &plan.steps;
            assert_eq!(ours.client_read, kernel.client_read, "{backend} {steps:?}");
            assert_eq!(ours.server_read, kernel.server_read, "{backend} {steps:?}");
        }
    }
    let read = |outcome: &Outcome| outcome.client_read.len() + outcome.server_read.len();
    report::write(
        name,
        &format!(
            "{} sessions, {} announcements, {changed} of them rewritten: all {} bytes that both \
             ends read are the same with the kernel's helper and with either backend\n",
            kernel.len(),
            transfers().count(),
            kernel.iter().map(read).sum::<usize>()
        ),
    );
}

#[test]
fn a_published_server() {
    let plans = [
        plan(&[Pasv], 40_000),
        plan(&[Epsv], 40_100),
        plan(&[Pasv; 20], 40_200),
        plan(&[Pasv, Epsv, Epsv, Pasv, Pasv, Epsv], 40_300),
        // Numbers of one, two and three digits: the line changes its length differently.
        plan(&[Pasv, Pasv], 256 * 100),
        plan(&[Pasv, Pasv], 256 * 9),
        plan(&[Pasv, Epsv], 65_530),
        // A client outside announces itself: nothing to change, and yet the server must get through.
        plan(&[Port], 40_400),
        plan(&[Eprt], 40_500),
        plan(&[Port, Pasv, Eprt, Epsv, Pasv, Port], 40_600),
    ];
    let topology = Topology::published_server();
    compare("differential_published", &topology, &plans, 30);
}

#[test]
fn a_masqueraded_client() {
    let plans = [
        plan(&[Port], 40_000),
        plan(&[Eprt], 40_100),
        plan(&[Port; 20], 40_200),
        plan(&[Port, Eprt, Eprt, Port, Port, Eprt], 40_300),
        plan(&[Port, Eprt], 256 * 9),
        plan(&[Port, Eprt], 65_530),
        // A server outside announces itself.
        plan(&[Pasv], 40_400),
        plan(&[Epsv], 40_500),
        plan(&[Pasv, Port, Epsv, Eprt, Port, Pasv], 40_600),
    ];
    let topology = Topology::masqueraded_client();
    compare("differential_masqueraded", &topology, &plans, 30);
}
