//! Sessions with many transfers over lines that lose, repeat, delay and swap packets.
//!
//! The announcing lines are cut, so that retransmissions put the pieces together in other ways
//! than they were first sent.

use std::time::{Duration, Instant};

use testkit::lab::alg::Alg;
use testkit::lab::counters::Tcp;
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{Cut, Outcome, Pace, Plan, Step, Verb, session};
use testkit::lab::topology::Topology;
use testkit::lab::weather::{self, Climate};

/// Edits of other lengths are the hard ones.
const UNEVEN: [&str; 4] = ["--backend", "nft", "--keep-length", "off"];

/// How long either end of a session waits for a packet that is sent again and again.
const PATIENCE: Duration = Duration::from_secs(40);

/// Keeps the endpoints from waiting ever longer between two tries, where the kernel can be told
/// (6.15 and later): the test is about what arrives, not about their patience.
fn hurry(net: &Net) {
    for host in [net.topology().client, net.topology().server] {
        net.sysctl(host, "net.ipv4.tcp_rto_max_ms", "1000");
        // What is closed already is sent again as patiently as anything else.
        net.sysctl(host, "net.ipv4.tcp_orphan_retries", "30");
        // A server that has sent its SYN-ACK six times in vain forgets a client that had one.
        net.sysctl(host, "net.ipv4.tcp_synack_retries", "30");
    }
}

/// A session in which each end announces in turns, cut in different places.
fn mixed(verbs: &[Verb], seed: usize) -> Plan {
    let steps = verbs.iter().enumerate().map(|(index, &verb)| {
        let at = 3 + (seed * 7 + index * 11) % 20;
        let pauses = Pace::Pauses(Duration::from_millis(3));
        match index % 4 {
            0 => Step::whole(verb),
            1 => Step {
                verb,
                cut: Cut::At(vec![at, at + 4]),
                pace: pauses,
            },
            2 => Step {
                verb,
                cut: Cut::EveryByte,
                pace: Pace::Nagle,
            },
            _ => Step {
                verb,
                cut: Cut::At((1..60).step_by(2 + seed % 3).collect()),
                pace: pauses,
            },
        }
    });
    Plan {
        limit: PATIENCE,
        ..Plan::new(steps.collect())
    }
}

/// The reference rewrite: what the reader must have read.
fn check(plan: &Plan, outcome: &Outcome, public: &str) -> Result<(), String> {
    if outcome.transfers.len() != plan.steps.len() {
        return Err("transfers are missing".to_owned());
    }
    for (step, transfer) in plan.steps.iter().zip(&outcome.transfers) {
        let expected = match step.verb {
            Verb::Epsv => transfer.sent.clone(),
            Verb::Eprt => transfer.sent.replace("10.0.0.2", public),
            Verb::Pasv | Verb::Port => transfer.sent.replace("10,0,0,2", &public.replace('.', ",")),
        };
        if transfer.read != expected {
            return Err(format!("{:?} in place of {expected:?}", transfer.read));
        }
    }
    Ok(())
}

/// The verbs whose announcement has to be rewritten in a network.
fn verbs(topology: &Topology) -> (Vec<Verb>, &'static str) {
    let (verbs, public) = match topology.shape {
        testkit::lab::topology::Shape::ServerInside => (
            [Verb::Pasv, Verb::Pasv, Verb::Epsv, Verb::Pasv],
            "203.0.113.1",
        ),
        testkit::lab::topology::Shape::ClientInside if topology.name.contains("hop") => (
            [Verb::Port, Verb::Eprt, Verb::Port, Verb::Eprt],
            "192.0.2.2",
        ),
        testkit::lab::topology::Shape::ClientInside => (
            [Verb::Port, Verb::Eprt, Verb::Port, Verb::Eprt],
            "198.51.100.1",
        ),
    };
    (verbs.to_vec(), public)
}

/// How often a session is tried of which a connection isn't accepted in time.
const TRIES: usize = 4;

/// A session that is as it should be. A server whose SYN-ACK isn't answered sends it again after 1, 3, 7, 15
/// and 31 s, whatever `tcp_rto_max_ms` says (seen on Linux 6.18). Where every fifth packet is lost, one of
/// 800 connections isn't accepted in time for that reason. So such a session is tried again.
fn patiently(net: &Net, plan: &Plan, public: &str) -> Result<(), String> {
    let once = || session(net, plan).and_then(|outcome| check(plan, &outcome, public));
    let unanswered = |why: &String| why.contains("nobody connected");
    let mut result = once();
    for _ in 1..TRIES {
        if !result.as_ref().is_err_and(unanswered) {
            break;
        }
        result = once();
    }
    result
}

/// Each end loses a part of what reaches it: both directions, on both sides of the gateway.
fn lossy(name: &str, topology: &Topology) {
    let mut text = String::new();
    for percent in [5, 10, 20] {
        let net = Net::new(topology);
        hurry(&net);
        rules::install(&net, Flavour::Nft, Policy::Drop, false);
        let alg = Alg::under_test(&UNEVEN).start(&net, Flavour::Nft);
        for host in [topology.client, topology.server] {
            rules::lose(&net, host, f64::from(percent) / 100.0);
        }
        let (verbs, public) = verbs(topology);
        let mut took = Vec::new();
        for seed in 0..5 {
            let plan = mixed(&verbs, seed);
            let start = Instant::now();
            let result = patiently(&net, &plan, public);
            if let Err(why) = result {
                panic!("{percent}% lost, session {seed}: {why}");
            }
            took.push(start.elapsed());
        }
        let tcp = Tcp::of(&net, &[topology.client, topology.server]);
        assert!(tcp.retransmitted > 0, "nothing was lost");
        assert_eq!(tcp.bad_checksums, 0, "wrong checksums");
        text += &format!(
            "{percent}%: sessions of {} transfers took {took:?}; {tcp:?}\n",
            verbs.len()
        );
        alg.stop();
    }
    report::write(name, &text);
}

#[test]
fn loss_with_the_server_inside() {
    lossy("loss_server_inside", &Topology::published_server());
}

#[test]
fn loss_with_the_client_inside() {
    lossy("loss_client_inside", &Topology::masqueraded_client());
}

/// Sessions through routers that make such weather, for several seeds.
fn stormy(name: &str, topology: &Topology, climate: Climate, seeds: std::ops::Range<u64>) {
    let net = Net::new(topology);
    hurry(&net);
    rules::install(&net, Flavour::Nft, Policy::Drop, false);
    let alg = Alg::under_test(&UNEVEN).start(&net, Flavour::Nft);
    let invalid = rules::invalid(&net, topology.router);
    let (verbs, public) = verbs(topology);
    let mut text = format!("{climate:?}\n");
    for seed in seeds {
        let plan = mixed(&[&verbs[..], &verbs].concat(), seed as usize);
        let start = Instant::now();
        let before = Tcp::of(&net, &[topology.client, topology.server]);
        let (result, happened) = weather::during(&net, &["wo", "wi"], climate, seed, || {
            patiently(&net, &plan, public)
        });
        let tcp = Tcp::of(&net, &[topology.client, topology.server]).since(before);
        let what = happened.describe();
        if let Err(why) = result {
            panic!("seed {seed} ({what}): {why}\n{text}");
        }
        assert_eq!(tcp.bad_checksums, 0, "wrong checksums");
        text += &format!("seed {seed}: {:?}; {what}; {tcp:?}\n", start.elapsed());
    }
    let invalid = rules::invalid(&net, topology.router) - invalid;
    text += &format!("conntrack found {invalid} packets INVALID\n");
    report::write(name, &text);
    alg.stop();
}

const SWAPPED: Climate = Climate {
    lost: 0,
    bursts: 0,
    repeated: 20,
    late: 25,
};

const STORM: Climate = Climate {
    lost: 4,
    bursts: 2,
    repeated: 10,
    late: 15,
};

#[test]
fn swapped_and_repeated_with_the_server_inside() {
    let topology = Topology::published_server_with_hops();
    stormy("swapped_server_inside", &topology, SWAPPED, 0..8);
}

#[test]
fn swapped_and_repeated_with_the_client_inside() {
    let topology = Topology::masqueraded_client_with_hops();
    stormy("swapped_client_inside", &topology, SWAPPED, 0..8);
}

#[test]
fn storm_with_the_server_inside() {
    let topology = Topology::published_server_with_hops();
    stormy("storm_server_inside", &topology, STORM, 10..18);
}

#[test]
fn storm_with_the_client_inside() {
    let topology = Topology::masqueraded_client_with_hops();
    stormy("storm_client_inside", &topology, STORM, 10..18);
}
