//! An announced address in any pieces, and over lines that lose packets.

mod lab;

use std::time::Duration;

use lab::alg::Alg;
use lab::client::{Client, Mode};
use lab::net::Net;
use lab::report;
use lab::rules::{self, Flavour, Policy};
use lab::scripted::{Cut, Outcome, Pace, Plan, session};
use lab::server::{Config, Kind, Server, content};
use lab::topology::Topology;

/// The time within which a session without loss completes its transfer.
const SWIFT: Duration = Duration::from_millis(1500);

const PAUSES: Pace = Pace::Pauses(Duration::from_millis(10));

/// The network in which the announcing endpoint of a mode is inside.
fn topology(mode: Mode) -> Topology {
    match mode {
        Mode::Passive => Topology::published_server(),
        Mode::Active => Topology::masqueraded_client(),
    }
}

/// Runs the plans one after the other; every one must work, and swiftly.
fn all(name: &str, mode: Mode, plans: &[Plan]) {
    let net = Net::new(&topology(mode));
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let whole = Plan {
        mode,
        cut: Cut::At(Vec::new()),
        pace: PAUSES,
    };
    assert!(session(&net, &whole).is_err(), "it works without an ALG");
    let router = net.topology().router;
    let invalid = rules::invalid(&net, router);
    let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
    let mut text = String::new();
    let mut failed = 0;
    let mut check = |plan: &Plan| {
        let result = session(&net, plan);
        let verdict = match &result {
            Ok(Outcome { took, sent, read }) if *took > SWIFT || sent == read => "wrong",
            Ok(_) => "right",
            Err(_) => "failed",
        };
        failed += usize::from(verdict != "right");
        text += &format!("{verdict}: {:?} {:?}: {result:?}\n", plan.cut, plan.pace);
        result.is_ok()
    };
    assert!(check(&whole), "a line in one piece doesn't get through");
    for plan in plans {
        check(plan);
    }
    report::write(name, &text);
    assert!(
        failed == 0,
        "{failed} of {} sessions:\n{text}",
        plans.len() + 1
    );
    alg.stop();
    assert_eq!(rules::invalid(&net, router), invalid, "INVALID packets");
}

/// Cut in two before each byte.
fn twos(mode: Mode, pace: Pace) -> Vec<Plan> {
    let length = match mode {
        Mode::Passive => "227 Entering Passive Mode (10,0,0,2,100,100).\r\n".len(),
        Mode::Active => "PORT 10,0,0,2,100,100\r\n".len(),
    };
    let plan = |at| Plan {
        mode,
        cut: Cut::At(vec![at]),
        pace,
    };
    (1..length).map(plan).collect()
}

/// One byte in each segment.
fn bytes(mode: Mode, pace: Pace) -> Vec<Plan> {
    vec![Plan {
        mode,
        cut: Cut::EveryByte,
        pace,
    }]
}

macro_rules! cuts {
    ($($name:ident: $plans:ident, $mode:ident, $pace:expr;)*) => {
        $(
            #[test]
            fn $name() {
                all(stringify!($name), Mode::$mode, &$plans(Mode::$mode, $pace));
            }
        )*
    };
}

cuts! {
    passive_in_two_with_pauses: twos, Passive, PAUSES;
    passive_in_two_with_nagle: twos, Passive, Pace::Nagle;
    passive_in_two_acked: twos, Passive, Pace::Acked;
    active_in_two_with_pauses: twos, Active, PAUSES;
    active_in_two_with_nagle: twos, Active, Pace::Nagle;
    active_in_two_acked: twos, Active, Pace::Acked;
    passive_byte_by_byte: bytes, Passive, PAUSES;
    active_byte_by_byte: bytes, Active, PAUSES;
}

/// Real clients and a real server where each end loses 5% of what reaches it.
fn with_loss(mode: Mode, clients: &[Client]) {
    let net = Net::new(&topology(mode));
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
    rules::lose(&net, net.topology().client, 0.05);
    rules::lose(&net, net.topology().server, 0.05);
    let upload = content(5, 100_003);
    let job = lab::client::Job {
        net: &net,
        dial: net.topology().dial,
        server: &server,
        downloads: vec![Server::SMALL, Server::SECOND],
        upload: &upload,
        limit: Duration::from_secs(60),
        patience: Duration::from_secs(50),
    };
    for client in clients {
        if let Err(why) = client.run(&job) {
            panic!("{}: {why}", client.name());
        }
    }
    alg.stop();
}

#[test]
fn passive_with_loss() {
    let clients = [Client::CurlPasv, Client::LftpPasv, Client::FtplibPasv];
    with_loss(Mode::Passive, &clients);
}

#[test]
fn active_with_loss() {
    let clients = [Client::CurlPort, Client::LftpPort, Client::FtplibPort];
    with_loss(Mode::Active, &clients);
}

/// The scripted client and server by themselves: plain NAT suffices for a client inside whose
/// gateway forwards everything, so whatever fails elsewhere is the gateway's doing.
#[test]
fn scripted_peers_work_where_no_alg_is_needed() {
    let net = Net::new(&Topology::masqueraded_client());
    rules::install(&net, Flavour::Nft, Policy::Accept, true);
    for pace in [PAUSES, Pace::Nagle, Pace::Acked] {
        for plan in [twos, bytes].iter().flat_map(|f| f(Mode::Passive, pace)) {
            match session(&net, &plan) {
                Ok(Outcome { took, sent, read }) => {
                    assert_eq!(sent, read, "{plan:?}");
                    assert!(took < SWIFT, "{plan:?} took {took:?}");
                }
                Err(why) => panic!("{plan:?}: {why}"),
            }
        }
    }
}
