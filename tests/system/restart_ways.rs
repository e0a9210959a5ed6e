//! How the daemon ends, and what its sessions notice of it: stopped, or handed over to a successor.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::gateway::{LIMIT, download, ended, ftpalg, refused, start_with as start, status};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, Process};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::session::Session;
use testkit::lab::topology::{Topology, at, host, link};
use testkit::paths;

/// How soon both ends notice that their connection is over.
const SOON: Duration = Duration::from_secs(2);

/// Both backends, beside one flavour each.
const HOSTS: [(&str, Flavour); 2] = [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)];

/// Asserts that both ends get a RST soon.
#[track_caller]
fn get_reset(session: Session) {
    let deadline = Instant::now() + SOON;
    for mut end in [session.client, session.server] {
        let left = deadline.saturating_duration_since(Instant::now());
        end.gets_reset(left.max(Duration::from_millis(1)));
    }
}

/// A stop ends the sessions whose numbers differ on the two sides, and no others.
fn stopped(topology: &Topology, uneven: impl Fn(&mut Session, &Net)) {
    for (backend, flavour) in HOSTS {
        let net = Net::new(topology);
        rules::install(&net, flavour, Policy::Drop, true);
        let before = rules::snapshot(&net, topology.router);
        let invalid = rules::invalid(&net, topology.router);

        let alg = start(&net, backend, flavour, &["--keep-length", "off"]);
        let mut session = Session::open(&net);
        uneven(&mut session, &net);
        let log = alg.stop();
        get_reset(session);
        assert!(log.contains("1 session ended by RST"), "{log}");
        assert_eq!(rules::snapshot(&net, topology.router), before);
        assert_eq!(rules::invalid(&net, topology.router), invalid, "{backend}");
    }
}

#[test]
fn a_stop_resets_an_uneven_session_with_a_published_server() {
    stopped(&Topology::published_server(), |session, net| {
        drop(session.passive(net));
    });
}

#[test]
fn a_stop_resets_an_uneven_session_of_a_masqueraded_client() {
    stopped(&Topology::masqueraded_client(), |session, _| {
        session.say("PORT 10,0,0,2,200,1\r\n", "200 fine\r\n");
    });
}

#[test]
fn a_stop_resets_a_session_whose_replies_were_changed_inwards() {
    stopped(&Topology::masqueraded_client(), |session, _| {
        // Corrected to the server's address, which is longer.
        let reply = session.say("PASV\r\n", "227 here (127,0,0,1,200,1)\r\n");
        assert!(reply.contains("(198,51,100,2,"), "{reply}");
    });
}

#[test]
fn a_stop_resets_an_uneven_session_without_translation() {
    stopped(&Topology::routed(), |session, _| {
        // No port of a service: the client reads a shorter reply.
        let reply = session.say("PASV\r\n", "227 here you are (10,0,0,2,0,22)\r\n");
        assert!(reply.starts_with("425"), "{reply}");
    });
}

/// Runs these words on the gateway, with `--keep-length off`, until a session is uneven; then stops that
/// process. Returns the session, and what was printed.
fn stopped_on(net: &Net, words: &[&str], uneven: impl Fn(&mut Session)) -> (Session, Finished) {
    let (program, words) = words.split_first().unwrap();
    let mut command = net.command(net.topology().router, program);
    command.args(words).args(["--keep-length", "off"]);
    let process = Process::spawn(command);
    assert!(process.wait_for("ready", LIMIT), "{}", process.log());
    let mut session = Session::open(net);
    uneven(&mut session);
    process.signal(Signal::SIGTERM);
    (session, process.finish(LIMIT).must())
}

#[test]
fn a_stop_resets_uneven_sessions_over_ipv6() {
    let net = Net::new(&Topology::over_ipv6());
    let nat = [
        "*nat",
        "-A PREROUTING -d 2001:db8:f::1 -p tcp --dport 21 -j DNAT --to-destination [fd00::2]:21",
        "-A POSTROUTING -o out0 -j MASQUERADE",
        "COMMIT",
        "*mangle",
        "-A PREROUTING -m conntrack --ctstate INVALID -j DROP",
        "COMMIT\n",
    ];
    let nat = nat.join("\n");
    net.feed("r", &["ip6tables-restore", "--noflush"], &nat)
        .must();
    let words = [paths::ftpalg(), "run", "--inside", "in0"];
    let published = net.recast(|topology| {
        (topology.client, topology.server) = ("a", "b");
        (topology.listen, topology.dial) = (at("[fd00::2]:21"), at("[2001:db8:f::1]:21"));
    });
    let (session, _) = stopped_on(&published, &words, |session| {
        let reply = session.say("EPSV\r\n", "229 here you are (|||22|)\r\n");
        assert!(reply.starts_with("425"), "{reply}");
    });
    get_reset(session);
    let masqueraded = net.recast(|topology| {
        (topology.client, topology.server) = ("b", "a");
        (topology.listen, topology.dial) = (at("[2001:db8:1::2]:21"), at("[2001:db8:1::2]:21"));
    });
    let (session, _) = stopped_on(&masqueraded, &words, |session| {
        session.say("EPRT |2|fd00::2|51201|\r\n", "200 fine\r\n");
    });
    get_reset(session);
}

/// The gateway is one of the two ends.
#[test]
fn a_stop_resets_uneven_sessions_of_the_host_itself() {
    let net = Net::new(&Topology {
        router: "h",
        ..Topology::bare(
            vec![host("h", &[]), host("o", &[])],
            vec![link(
                ("h", "e0", &["198.51.100.1/24"]),
                ("o", "e0", &["198.51.100.2/24"]),
            )],
        )
    });
    let words = [paths::ftpalg(), "run", "--local"];
    let server = net.recast(|topology| {
        (topology.client, topology.server) = ("o", "h");
        (topology.listen, topology.dial) = (at("198.51.100.1:21"), at("198.51.100.1:21"));
    });
    let (session, _) = stopped_on(&server, &words, |session| {
        let reply = session.say("PASV\r\n", "227 here you are (198,51,100,1,0,22)\r\n");
        assert!(reply.starts_with("425"), "{reply}");
    });
    get_reset(session);
    let client = net.recast(|topology| {
        (topology.client, topology.server) = ("h", "o");
        (topology.listen, topology.dial) = (at("198.51.100.2:21"), at("198.51.100.2:21"));
    });
    let (session, _) = stopped_on(&client, &words, |session| {
        let reply = session.say("PASV\r\n", "227 here (127,0,0,1,200,1)\r\n");
        assert!(reply.contains("(198,51,100,2,"), "{reply}");
    });
    get_reset(session);
}

#[test]
fn without_raw_sockets_it_says_so_and_ends() {
    let net = Net::new(&Topology::published_server());
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let before = rules::snapshot(&net, net.topology().router);
    let without = ["setpriv", "--bounding-set=-net_raw", paths::ftpalg()];
    let words = [&without[..], &["run", "--inside", "in0"]].concat();
    let (_session, finished) = stopped_on(&net, &words, |session| drop(session.passive(&net)));
    let said = |line: &&str| line.contains("CAP_NET_RAW");
    assert_eq!(finished.log.lines().filter(said).count(), 1, "{finished}");
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

/// Whether anything of the steering rules is there.
fn steers(net: &Net) -> bool {
    rules::snapshot(net, net.topology().router).contains("FTPALG-EGRESS")
}

#[test]
fn an_even_session_goes_on_through_stop_and_start() {
    for topology in [
        Topology::published_server(),
        Topology::masqueraded_client(),
        Topology::routed(),
    ] {
        for (backend, flavour) in HOSTS {
            let net = Net::new(&topology);
            rules::install(&net, flavour, Policy::Drop, true);
            let alg = start(&net, backend, flavour, &[]);
            let mut session = Session::open(&net);
            drop(session.passive(&net));
            let log = alg.stop();
            assert!(!log.contains("ended by RST"), "{log}");
            assert_eq!(session.say("NOOP\r\n", "200 fine\r\n"), "200 fine\r\n");

            let alg = start(&net, backend, flavour, &[]);
            assert_eq!(session.say("NOOP\r\n", "200 fine\r\n"), "200 fine\r\n");
            drop(session.passive(&net));
            assert_eq!(status(&net)["counters"]["joined"], 1);
            alg.stop();
        }
    }
}

/// While nobody reads the queue, `--fail open` lets pass what doesn't need us, and nothing else.
#[test]
fn while_it_is_down_uneven_sessions_wait_and_others_pass() {
    let more = ["--keep-length", "off", "--fail", "open"];
    let topologies = [Topology::published_server(), Topology::masqueraded_client()];
    for topology in &topologies {
        for (backend, flavour) in HOSTS {
            let net = Net::new(topology);
            rules::install(&net, flavour, Policy::Drop, true);
            // What is for us only is gone when a packet comes to the user's rules.
            let program = flavour.iptables();
            let count = "-t mangle -A FORWARD -m mark ! --mark 0 -p tcp";
            let words: Vec<&str> = [program].into_iter().chain(count.split(' ')).collect();
            net.exec(topology.router, &words).must();
            let alg = start(&net, backend, flavour, &more);
            let mut even = Session::open(&net);
            let mut uneven = Session::open(&net);
            for session in [&mut even, &mut uneven] {
                session.say("NOOP\r\n", "200 fine\r\n");
            }
            drop(uneven.passive(&net));
            uneven.say("PORT 10,0,0,2,200,1\r\n", "200 fine\r\n");
            alg.process().unwrap().signal(Signal::SIGKILL);
            ended(&net);

            assert_eq!(even.say("NOOP\r\n", "200 even\r\n"), "200 even\r\n");
            // Either direction, whichever of them has the edits.
            uneven.client.send("NOOP\r\n");
            uneven.server.send("226 late\r\n");
            assert_eq!(even.say("NOOP\r\n", "200 even\r\n"), "200 even\r\n");
            for end in [&uneven.client, &uneven.server] {
                let stream = end.0.get_ref();
                stream.set_nonblocking(true).unwrap();
                let got = stream.peek(&mut [0]).map_err(|e| e.kind());
                assert_eq!(got, Err(ErrorKind::WouldBlock), "{backend}");
                stream.set_nonblocking(false).unwrap();
            }

            let alg = start(&net, backend, flavour, &more);
            assert_eq!(uneven.server.read(), "NOOP\r\n");
            assert_eq!(uneven.client.read(), "226 late\r\n");
            uneven.server.send("200 fine\r\n");
            assert_eq!(uneven.client.read(), "200 fine\r\n");
            for session in [&mut even, &mut uneven] {
                drop(session.passive(&net));
            }
            alg.stop();
            let saved = net.exec(topology.router, &[&format!("{program}-save"), "-c"]);
            let marked = saved
                .stdout
                .lines()
                .find(|line| line.contains("mark ! --mark"));
            assert!(
                marked.is_some_and(|line| line.starts_with("[0:0]")),
                "{marked:?}"
            );
        }
    }
}

#[test]
fn a_handover_keeps_the_rules_for_a_successor() {
    for (backend, flavour) in HOSTS {
        let net = Net::new(&Topology::published_server());
        rules::install(&net, flavour, Policy::Drop, true);
        let before = rules::snapshot(&net, net.topology().router);
        let more = ["--handover", "2"];
        let first = start(&net, backend, flavour, &more);
        let mut session = Session::open(&net);
        drop(session.passive(&net));

        let over = AtomicBool::new(false);
        let second = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut looks = 0;
                while !over.load(Ordering::Relaxed) {
                    assert!(steers(&net), "gone at look {looks}");
                    looks += 1;
                }
                looks
            });
            first.process().unwrap().signal(Signal::SIGUSR2);
            ended(&net);
            let second = start(&net, backend, flavour, &more);
            // The guardian of the first one finds the second one.
            std::thread::sleep(Duration::from_millis(2500));
            over.store(true, Ordering::Relaxed);
            assert!(watch.join().unwrap() > 5);
            second
        });
        assert!(first.log().contains("rules stay for a successor for 2 s"));
        drop(session.passive(&net));
        assert_eq!(status(&net)["counters"]["joined"], 1);
        ftpalg(&net, &["status"]).must();
        second.stop();
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
    }
}

#[test]
fn without_a_successor_the_rules_go_in_time() {
    for (backend, flavour) in HOSTS {
        let net = Net::new(&Topology::published_server());
        rules::install(&net, flavour, Policy::Drop, true);
        let before = rules::snapshot(&net, net.topology().router);
        let more = ["--handover", "1", "--keep-length", "off"];
        let alg = start(&net, backend, flavour, &more);
        let mut session = Session::open(&net);
        drop(session.passive(&net));
        alg.process().unwrap().signal(Signal::SIGUSR2);
        ended(&net);
        assert!(steers(&net), "too early");
        let deadline = Instant::now() + LIMIT;
        while rules::snapshot(&net, net.topology().router) != before {
            let now = rules::snapshot(&net, net.topology().router);
            assert!(Instant::now() < deadline, "{now}");
            std::thread::sleep(Duration::from_millis(20));
        }
        get_reset(session);

        // No time for a successor: as with SIGTERM.
        let alg = start(&net, backend, flavour, &["--handover", "0"]);
        alg.process().unwrap().signal(Signal::SIGUSR2);
        ended(&net);
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
        assert!(alg.log().contains("rules removed, bye"), "{}", alg.log());
    }
}

/// One takes over from another while clients come and go.
#[test]
fn no_transfer_fails_while_one_takes_over_from_another() {
    for (backend, flavour) in HOSTS {
        let net = Net::new(&Topology::published_server());
        rules::install(&net, flavour, Policy::Drop, true);
        let before = rules::snapshot(&net, net.topology().router);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let more = ["--takeover", "--handover", "3"];
        // There is none yet.
        let mut alg = start(&net, backend, flavour, &more);
        let over = AtomicBool::new(false);
        let last = std::thread::scope(|scope| {
            let transfers = scope.spawn(|| {
                let mut done = 0;
                while !over.load(Ordering::Relaxed) {
                    download(&net, &server, &[]).must();
                    download(&net, &server, &["--ftp-port", "-"]).must();
                    done += 2;
                }
                done
            });
            for _ in 0..6 {
                std::thread::sleep(Duration::from_millis(700));
                alg = start(&net, backend, flavour, &more);
            }
            over.store(true, Ordering::Relaxed);
            assert!(transfers.join().unwrap() > 10);
            alg
        });
        let second = ftpalg(&net, &["run", "--inside", "in0"]);
        refused(&second, 2, "already runs in this network namespace");
        let late = ftpalg(&net, &["run", "--inside", "nosuch0", "--takeover"]);
        refused(&late, 2, "nosuch0");
        ftpalg(&net, &["status"]).must();
        last.stop();
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
    }
}
