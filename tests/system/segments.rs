//! An announced address in any pieces, and over lines that lose packets.

use std::net::TcpStream;
use std::time::Duration;

use testkit::lab::alg::Alg;
use testkit::lab::client::{Client, Mode};
use testkit::lab::counters::Tcp;
use testkit::lab::gateway::{Control, HOSTS, gateway, start};
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{self, Cut, LIMIT, Pace, Plan, Step, Verb, session};
use testkit::lab::server::{Config, Kind, Server, content};
use testkit::lab::topology::Topology;

/// The time within which a session without loss completes its transfer.
const SWIFT: Duration = Duration::from_millis(3000);

const PAUSES: Pace = Pace::Pauses(Duration::from_millis(10));

/// The network in which the announcing endpoint is inside.
fn topology(passive: bool) -> Topology {
    if passive {
        Topology::published_server()
    } else {
        Topology::masqueraded_client()
    }
}

/// Runs the steps, each in a session of its own; every one must work, and swiftly, and neither end
/// may meet with a retransmission timeout.
fn all(name: &str, verb: Verb, steps: &[Step]) {
    let net = Net::new(&topology(verb.passive()));
    let (client, server) = (net.topology().client, net.topology().server);
    let router = net.topology().router;
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let whole = Step::whole(verb);
    let without = Plan {
        limit: Duration::from_secs(1),
        ..Plan::new(vec![whole.clone()])
    };
    assert!(session(&net, &without).is_err(), "it works without an ALG");
    let invalid = rules::invalid(&net, router);
    let mut arguments = vec!["--backend", "nft"];
    if verb == Verb::Epsv {
        // A 229 needs to be rewritten only where the public port is another.
        arguments.extend(["--data-ports", "20000-20999"]);
    }
    let alg = Alg::under_test(&arguments).start(&net, Flavour::Nft);
    let mut text = String::new();
    let mut failed = 0;
    let mut worst = Duration::ZERO;
    let mut check = |step: &Step, again: bool| {
        let before = Tcp::of(&net, &[client, server]);
        let plan = Plan {
            limit: LIMIT * 2,
            ..Plan::new(vec![step.clone()])
        };
        let result = session(&net, &plan).map(|outcome| outcome.transfers);
        let tcp = Tcp::of(&net, &[client, server]).since(before);
        let verdict = match result.as_deref() {
            Ok([transfer]) => {
                if again || transfer.took < SWIFT {
                    worst = worst.max(transfer.took);
                }
                if transfer.sent == transfer.read {
                    "unchanged"
                } else if transfer.took > SWIFT {
                    "slow"
                } else if tcp.timeouts > 0 || tcp.bad_checksums > 0 {
                    "timeout"
                } else {
                    "right"
                }
            }
            _ => "failed",
        };
        // A busy machine stalls somebody for 200 ms now and then; what the gateway does wrong it
        // does twice.
        let pardoned = !again && matches!(verdict, "slow" | "timeout");
        failed += usize::from(verdict != "right" && !pardoned);
        text += &format!(
            "{verdict}: {:?} {:?}: {result:?}, sent again {}, timeouts {}\n",
            step.cut, step.pace, tcp.retransmitted, tcp.timeouts
        );
        (result.is_ok(), pardoned)
    };
    let (works, _) = check(&whole, true);
    assert!(works, "a line in one piece doesn't get through");
    for step in steps {
        if let (_, true) = check(step, false) {
            check(step, true);
        }
    }
    let total = steps.len() + 1;
    let right = total - failed;
    let summary = format!("{right} of {total} right, the slowest in {worst:?}\n");
    report::write(&format!("cuts_{name}"), &(summary + &text));
    assert!(failed == 0, "{failed} of {total} sessions:\n{text}");
    alg.stop();
    assert_eq!(rules::invalid(&net, router), invalid, "INVALID packets");
}

fn length(verb: Verb) -> usize {
    verb.line(([10, 0, 0, 2], 44_444).into()).len()
}

fn cut(verb: Verb, pace: Pace, at: &[usize]) -> Step {
    Step {
        verb,
        cut: Cut::At(at.to_vec()),
        pace,
    }
}

/// Cut in two before each byte.
fn twos(verb: Verb, pace: Pace) -> Vec<Step> {
    (1..length(verb)).map(|at| cut(verb, pace, &[at])).collect()
}

/// Cut in three: every place of the first cut, the second at four distances.
fn threes(verb: Verb, pace: Pace) -> Vec<Step> {
    let length = length(verb);
    let pairs = (1..length).flat_map(|a| [1, 2, 5, 13].map(|gap| (a, a + gap)));
    // Thinned so that each distance meets every second place, all places are met twice.
    let sample = pairs.enumerate().filter(|(i, _)| (i + i / 4) % 2 == 0);
    sample
        .map(|(_, pair)| pair)
        .filter(|&(_, b)| b < length)
        .map(|(a, b)| cut(verb, pace, &[a, b]))
        .collect()
}

/// One byte in each segment.
fn bytes(verb: Verb, pace: Pace) -> Vec<Step> {
    vec![Step {
        verb,
        cut: Cut::EveryByte,
        pace,
    }]
}

macro_rules! cuts {
    ($($name:ident: $steps:ident, $verb:ident, $pace:expr;)*) => {
        $(
            #[test]
            fn $name() {
                all(stringify!($name), Verb::$verb, &$steps(Verb::$verb, $pace));
            }
        )*
    };
}

cuts! {
    pasv_in_two_with_pauses: twos, Pasv, PAUSES;
    pasv_in_two_with_nagle: twos, Pasv, Pace::Nagle;
    pasv_in_two_acked: twos, Pasv, Pace::Acked;
    pasv_in_three_with_pauses: threes, Pasv, PAUSES;
    pasv_in_three_with_nagle: threes, Pasv, Pace::Nagle;
    pasv_in_three_acked: threes, Pasv, Pace::Acked;
    pasv_byte_by_byte: bytes, Pasv, PAUSES;
    pasv_byte_by_byte_acked: bytes, Pasv, Pace::Acked;

    epsv_in_two_with_pauses: twos, Epsv, PAUSES;
    epsv_in_two_with_nagle: twos, Epsv, Pace::Nagle;
    epsv_in_two_acked: twos, Epsv, Pace::Acked;
    epsv_in_three_with_pauses: threes, Epsv, PAUSES;
    epsv_in_three_with_nagle: threes, Epsv, Pace::Nagle;
    epsv_byte_by_byte: bytes, Epsv, PAUSES;
    epsv_byte_by_byte_acked: bytes, Epsv, Pace::Acked;

    port_in_two_with_pauses: twos, Port, PAUSES;
    port_in_two_with_nagle: twos, Port, Pace::Nagle;
    port_in_two_acked: twos, Port, Pace::Acked;
    port_in_three_with_pauses: threes, Port, PAUSES;
    port_in_three_with_nagle: threes, Port, Pace::Nagle;
    port_in_three_acked: threes, Port, Pace::Acked;
    port_byte_by_byte: bytes, Port, PAUSES;
    port_byte_by_byte_acked: bytes, Port, Pace::Acked;

    eprt_in_two_with_pauses: twos, Eprt, PAUSES;
    eprt_in_two_with_nagle: twos, Eprt, Pace::Nagle;
    eprt_in_two_acked: twos, Eprt, Pace::Acked;
    eprt_in_three_with_pauses: threes, Eprt, PAUSES;
    eprt_in_three_with_nagle: threes, Eprt, Pace::Nagle;
    eprt_byte_by_byte: bytes, Eprt, PAUSES;
    eprt_byte_by_byte_acked: bytes, Eprt, Pace::Acked;
}

/// Real clients and a real server where each end loses 5% of what reaches it.
fn with_loss(mode: Mode, clients: &[Client]) {
    let net = Net::new(&topology(mode == Mode::Passive));
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
    rules::lose(&net, net.topology().client, 0.05);
    rules::lose(&net, net.topology().server, 0.05);
    let upload = content(5, 100_003);
    let job = testkit::lab::client::Job {
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
        for step in [twos, bytes].iter().flat_map(|f| f(Verb::Pasv, pace)) {
            let plan = Plan {
                limit: LIMIT * 2,
                ..Plan::new(vec![step.clone()])
            };
            match session(&net, &plan) {
                Ok(outcome) => {
                    let transfer = &outcome.transfers[0];
                    assert_eq!(transfer.sent, transfer.read, "{step:?}");
                    assert!(transfer.took < SWIFT, "{step:?} took {:?}", transfer.took);
                }
                Err(why) => panic!("{step:?}: {why}"),
            }
        }
    }
}

/// A client needn't wait for its replies. What opens for it has to wait for the login all the same, and goes on
/// with the client's bare acknowledgement of the reply.
#[test]
fn a_port_in_one_piece_with_the_login() {
    const PORT: &str = "PORT 198,51,100,2,195,81\r\n";
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let topology = net.topology();
        let listen = |host, at: &str| net.within(host, || scripted::listen(at.parse().unwrap()));
        let ftp = listen(topology.server, "10.0.0.2:21").unwrap();
        let data = listen(topology.client, "198.51.100.2:50001").unwrap();
        let alg = start(&net, backend, flavour);
        let mut client = Control::dial(&net);
        let mut server = Control::new(ftp.accept().unwrap().0);
        server.send("220 ready\r\n");
        client.reply();
        client.send(&format!("USER lab\r\nPASS lab\r\n{PORT}"));
        assert_eq!(server.read() + &server.read(), "USER lab\r\nPASS lab\r\n");
        let connect = || {
            net.within(topology.server, || {
                TcpStream::connect_timeout(&data.local_addr().unwrap(), LIMIT)
            })
        };
        server.send("331 password\r\n230 fine\r\n");
        assert_eq!(
            client.reply() + &client.reply(),
            "331 password\r\n230 fine\r\n"
        );
        assert_eq!(server.read(), PORT, "{backend} beside {flavour:?}");
        server.send("200 fine\r\n");
        assert_eq!(client.reply(), "200 fine\r\n");
        connect().unwrap();
        client.send("QUIT\r\n");
        assert_eq!(server.read(), "QUIT\r\n", "{backend} beside {flavour:?}");
        alg.stop();
    }
}
