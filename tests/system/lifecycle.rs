//! The daemon's life around real transfers: started twice, killed, stopped, with rules of somebody
//! else's, with a reader that stalls, and with traffic that it doesn't understand.

mod examples;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use testkit::lab::activity::{activity, settled};
use testkit::lab::alg::{Alg, Running};
use testkit::lab::gateway::{
    Control, HOSTS, LIMIT, address, download, ended, ftpalg, gateway, refused, start, status,
};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted;
use testkit::lab::server::{Config, Kind, Server, content};
use testkit::paths;

/// A server's connection attempt that passed before there was a pinhole stays in conntrack for two
/// minutes. The next attempt from the server's one source port to the same port of the client's
/// must meet its pinhole all the same.
#[test]
fn an_attempt_from_before_is_not_in_the_way() {
    for (backend, flavour) in [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)] {
        // With the policy ACCEPT the attempt passes, and the client has no way to answer it.
        let net = gateway(Policy::Accept, flavour);
        let config = Config {
            connect_timeout: Duration::from_secs(5),
            ..Config::new(Kind::Vsftpd)
        };
        let server = Server::start(&net, &config);
        let port = ["--disable-eprt", "--ftp-port", "198.51.100.2:37677"];
        let without = [&port[..], &["--max-time", "1"]].concat();
        assert!(!download(&net, &server, &without).ok());
        let listed = net.exec(net.topology().router, &["conntrack", "-L"]).must();
        let attempt = |line: &&str| line.contains("SYN_SENT") && line.contains("dport=37677");
        assert_eq!(
            listed.log.lines().filter(attempt).count(),
            1,
            "{}",
            listed.log
        );

        // Once the server has given up, its own kernel lets it use the ports again.
        let deadline = Instant::now() + LIMIT;
        let trying = || {
            let words = ["ss", "-Htn", "state", "syn-sent"];
            net.exec(net.topology().server, &words).must().log
        };
        while !trying().is_empty() {
            assert!(Instant::now() < deadline, "{}", trying());
            std::thread::sleep(Duration::from_millis(20));
        }
        let alg = start(&net, backend, flavour);
        download(&net, &server, &port).must();
        assert_eq!(status(&net)["nat"]["stale_attempts"], 1, "{backend}");
        alg.stop();
    }
}

#[test]
fn a_second_daemon_refuses_and_the_first_goes_on() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let before = rules::snapshot(&net, net.topology().router);
    let alg = start(&net, "nft", Flavour::Nft);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    for backend in ["nft", "iptables"] {
        let second = ftpalg(&net, &["run", "--inside", "in0", "--backend", backend]);
        refused(&second, 2, "already runs in this network namespace");
    }
    for command in ["install", "remove"] {
        let words = ["rules", command, "--inside", "in0"];
        let words = &words[..if command == "install" { 4 } else { 2 }];
        refused(&ftpalg(&net, words), 2, "manages the rules; stop it");
    }
    // In the session from before, and in a new one.
    let mut data = control.passive(&net);
    control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    download(&net, &server, &[]).must();
    ftpalg(&net, &["status"]).must();
    alg.stop();
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

#[test]
fn a_daemon_killed_during_sessions_has_a_clean_successor() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let before = rules::snapshot(&net, net.topology().router);
        let alg = start(&net, backend, flavour);
        let mut control = Control::dial(&net);
        control.log_in(&server);
        // A pinhole that nobody uses, and a data connection.
        control.ask("PASV\r\n", "227");
        let mut data = control.passive(&net);
        kill(&net, &alg);

        let second = start(&net, backend, flavour);
        // The pinhole, and nothing that was used.
        let pinholes = pinholes(&net);
        assert_eq!(pinholes.len(), 1, "{pinholes:?}");
        assert_eq!(pinholes[0]["session"], 0);
        assert_eq!(pinholes[0]["state"], "open");
        // The session from before isn't known any more: it passes as it is, and so does its data.
        drop(data.set_nonblocking(true));
        assert_eq!(
            data.read(&mut [0]).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
        download(&net, &server, &[]).must();
        download(&net, &server, &["--ftp-port", "-"]).must();
        second.stop();
        assert_eq!(
            rules::snapshot(&net, net.topology().router),
            before,
            "{backend} beside {flavour:?}"
        );
    }
}

/// Kills the daemon, and waits until it is gone. Before that, waits until all is acknowledged: a
/// `227` that the server repeats would open a pinhole of the successor's own.
fn kill(net: &Net, alg: &Running<'_>) {
    let deadline = Instant::now() + LIMIT;
    let unacknowledged = |host| {
        let words = ["ss", "-Htn", "state", "established"];
        let sockets = net.exec(host, &words).must().stdout;
        let mut queues = sockets.lines().map(|line| line.split_whitespace().nth(1));
        queues.any(|sent| sent != Some("0"))
    };
    let topology = net.topology();
    while unacknowledged(topology.server) || unacknowledged(topology.client) {
        assert!(Instant::now() < deadline, "it isn't acknowledged");
    }
    alg.process().unwrap().signal(Signal::SIGKILL);
    ended(net);
}

fn pinholes(net: &Net) -> Vec<Value> {
    let json = ftpalg(net, &["pinholes", "--json"]).must().stdout;
    serde_json::from_str(&json).unwrap()
}

/// The daemon is killed between the `227` and the client's connection.
#[test]
fn an_announced_pinhole_survives_a_kill() {
    for (backend, flavour) in HOSTS.into_iter().chain([("auto", Flavour::Nft)]) {
        let net = gateway(Policy::Drop, flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let before = rules::snapshot(&net, net.topology().router);
        let alg = start(&net, backend, flavour);
        let mut control = Control::dial(&net);
        control.log_in(&server);
        let to = address(&control.ask("PASV\r\n", "227"));
        let expected = pinholes(&net);
        kill(&net, &alg);
        drop(alg);

        let second = start(&net, backend, flavour);
        let adopted = pinholes(&net);
        assert_eq!(adopted.len(), 1, "{backend} beside {flavour:?}");
        for field in ["mode", "from", "to", "land", "as_source", "state", "ports"] {
            assert_eq!(adopted[0][field], expected[0][field], "{field}");
        }
        assert_eq!(adopted[0]["session"], 0);
        let left = |list: &[Value]| list[0]["expires_in"].as_u64().unwrap();
        assert!(left(&adopted) > 30 && left(&adopted) <= left(&expected) + 1);
        let connect = || TcpStream::connect_timeout(&to, LIMIT);
        let mut data = net.within(net.topology().client, connect).unwrap();
        control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
        let mut got = Vec::new();
        data.read_to_end(&mut got).unwrap();
        assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
        assert!(control.reply().starts_with("226"));
        let used = pinholes(&net);
        assert_eq!((used.len(), &used[0]["state"]), (1, &Value::from("used")));
        let counters = &status(&net)["nat"];
        assert_eq!(
            (&counters["adopted"], &counters["used"]),
            (&1.into(), &1.into())
        );
        // Only once.
        let short = Duration::from_millis(700);
        let connect = || TcpStream::connect_timeout(&to, short);
        assert!(net.within(net.topology().client, connect).is_err());
        let log = second.stop();
        let told = "pinholes taken over from an earlier ftpalg: 1\n";
        assert!(log.contains(told), "{log}");
        assert!(log.contains("session 0 data "), "{log}");
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
    }
}

/// What a killed daemon leaves can be removed without a successor, or by one with another backend.
#[test]
fn what_a_killed_daemon_leaves_is_removed() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let before = rules::snapshot(&net, net.topology().router);
        let open = || {
            let alg = start(&net, backend, flavour);
            let mut control = Control::dial(&net);
            control.log_in(&server);
            control.ask("PASV\r\n", "227");
            kill(&net, &alg);
        };
        open();
        ftpalg(&net, &["rules", "remove"]).must();
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
        open();
        let other = if backend == "nft" { "iptables" } else { "nft" };
        let alg = start(&net, other, flavour);
        assert_eq!(pinholes(&net), [Value::Null; 0]);
        download(&net, &server, &[]).must();
        alg.stop();
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
    }
}

#[test]
fn a_connection_from_before_the_start_passes_as_it_is() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let alg = start(&net, "nft", Flavour::Nft);
    let reply = control.ask("PASV\r\n", "227");
    assert!(reply.contains("(10,0,0,2,"), "{reply}");
    control.ask("NOOP\r\n", "200");
    let status = status(&net);
    assert!(status["counters"]["mid_stream"].as_u64() >= Some(4));
    assert_eq!(status["counters"]["changed"], 0);
    assert_eq!(status["sessions"], 0);
    alg.stop();
}

#[test]
fn running_transfers_survive_the_end() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Accept, flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let large = content(9, 8 << 20);
        server.publish("large.bin", &large);
        let before = rules::snapshot(&net, net.topology().router);
        let alg = start(&net, backend, flavour);
        let mut control = Control::dial(&net);
        control.log_in(&server);
        let mut data = control.passive(&net);
        control.ask("RETR large.bin\r\n", "150");
        let mut got = vec![0; 1000];
        data.read_exact(&mut got).unwrap();
        assert_eq!(status(&net)["data_connections"], 1);
        // Told twice, as an impatient person does.
        alg.process().unwrap().signal(Signal::SIGTERM);
        alg.stop();
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
        data.read_to_end(&mut got).unwrap();
        assert!(got == large, "{} of {} bytes", got.len(), large.len());
    }
}

#[test]
fn rules_of_somebody_else() {
    for (restore, flavour) in [
        ("iptables-nft-restore", Flavour::Nft),
        ("iptables-legacy-restore", Flavour::Legacy),
    ] {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let external = ["--rules".to_owned(), "external".to_owned()];
        let alg = Alg::Ftpalg(external.to_vec()).start(&net, flavour);
        let without = ftpalg(&net, &["status"]);
        assert_eq!(without.status.and_then(|s| s.code()), Some(1), "{without}");
        assert!(!download(&net, &server, &["--max-time", "2"]).ok());

        let printed = ftpalg(&net, &["rules", "print", "--inside", "in0"]).must();
        net.feed(router, &[restore, "--noflush", "-w", "10"], &printed.stdout)
            .must();
        // Nothing inside has IPv6: no rules are missed there, until something has.
        ftpalg(&net, &["status"]).must();
        let address = ["ip", "address", "add", "fd00::1/64", "dev", "in0", "nodad"];
        net.exec(router, &address).must();
        let without = ftpalg(&net, &["status"]);
        assert_eq!(without.status.and_then(|s| s.code()), Some(1), "{without}");
        assert!(without.log.contains("ip6tables"), "{without}");
        let words = ["rules", "print", "--inside", "in0", "--family", "ipv6"];
        let printed = ftpalg(&net, &words).must();
        let words = [
            &format!("ip6{}", &restore[2..])[..],
            "--noflush",
            "-w",
            "10",
        ];
        net.feed(router, &words, &printed.stdout).must();
        ftpalg(&net, &["status"]).must();
        download(&net, &server, &[]).must();
        download(&net, &server, &["--ftp-port", "-"]).must();
        alg.stop();

        let left = rules::snapshot(&net, router);
        assert!(left.contains("FTPALG-EGRESS"), "they aren't the daemon's");
        ftpalg(&net, &["rules", "remove"]).must();
        let left = rules::snapshot(&net, router);
        assert!(!left.contains("FTPALG"), "{left}");
    }
}

#[test]
fn nothing_is_left_by_a_start_that_fails() {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let before = rules::snapshot(&net, router);
        let fails = |words: &[&str], part| {
            for backend in ["nft", "iptables"] {
                let words = [&["run", "--backend", backend], words].concat();
                refused(&ftpalg(&net, &words), 2, part);
            }
            assert_eq!(rules::snapshot(&net, router), before, "{part}");
        };
        fails(&["--inside", "nosuch0"], "nosuch0");
        net.sysctl(router, "net.netfilter.nf_conntrack_events", "0");
        fails(&["--inside", "in0"], "nf_conntrack_events=1");
        net.sysctl(router, "net.netfilter.nf_conntrack_events", "1");
        let queue = net.within(router, || {
            let mut queue = nfq::Queue::open().unwrap();
            queue.bind(2123).unwrap();
            queue
        });
        fails(&["--inside", "in0", "--queues", "4"], "queue 2123");
        drop(queue);
    }
}

#[test]
fn what_is_not_understood_passes_and_is_counted() {
    let net = gateway(Policy::Accept, Flavour::Nft);
    let topology = net.topology();
    let alg = start(&net, "nft", Flavour::Nft);
    let listener = net.within(topology.server, || {
        TcpListener::bind(topology.listen).unwrap()
    });
    let mut client = Control::dial(&net);
    let mut server = Control::new(listener.accept().unwrap().0);
    let mut say = |command: &str, reply: &str| {
        if !command.is_empty() {
            client.send(command);
            assert_eq!(server.read(), command);
        }
        server.send(reply);
        assert_eq!(client.read(), reply);
    };
    say("", "220 ready\r\n");
    say("USER lab\r\n", "331 password\r\n");
    say("PASS lab\r\n", "230 fine\r\n");
    for reply in [
        "227 here (10,0,0,256,1,2)\r\n",
        "227 here (10,0,0,2,0,0)\r\n",
        "227 here (10,0,0,2,1)\r\n",
        "227 nothing\r\n",
    ] {
        say("PASV\r\n", reply);
    }
    say("EPSV\r\n", "229 here (|||65536|)\r\n");
    for argument in ["198,51,100,2,256,1", "198,51,100,2,0,0", "1,2,3"] {
        say(&format!("PORT {argument}\r\n"), "501 what?\r\n");
    }
    say("NOOP\r\n", "227 unasked (10,0,0,2,8,8)\r\n");
    let counters = &status(&net)["counters"];
    assert_eq!(counters["unparsable"], 8, "{counters:#}");
    assert_eq!(counters["unasked"], 1, "{counters:#}");
    assert_eq!(counters["changed"], 0, "{counters:#}");
    assert_eq!(counters["malformed"], 0);
    assert_eq!(counters["bad_checksum"], 0);

    // A header shorter than any, and a wrong checksum, on their way out.
    const RAW: &str = r#"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
for offset in (4, 5):
    s.sendto(struct.pack("!HHIIBBHHH", 21, 4444, 1, 1, offset << 4, 16, 100, 0xdead, 0), ("198.51.100.2", 0))
"#;
    net.exec(topology.server, &["python3", "-c", RAW]).must();
    let deadline = Instant::now() + LIMIT;
    loop {
        let counters = &status(&net)["counters"];
        if counters["malformed"] == 1 && counters["bad_checksum"] == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "{counters:#}");
    }
    say("NOOP\r\n", "200 still here\r\n");
    assert_eq!(status(&net)["nat"]["opened"], 0);
    alg.stop();
}

/// Each transfer's pinhole has the port of the one before, which is being closed at that moment.
#[test]
fn one_port_serves_one_transfer_after_the_other() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let arguments = ["--backend", backend, "--data-ports", "8080-8080"];
        let alg = Alg::Ftpalg(arguments.map(str::to_owned).to_vec()).start(&net, flavour);
        let mut control = Control::dial(&net);
        control.log_in(&server);
        let file = std::fs::read(server.path(Server::SMALL)).unwrap();
        for _ in 0..40 {
            let mut data = control.passive(&net);
            control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
            let mut got = Vec::new();
            data.read_to_end(&mut got).unwrap();
            assert!(got == file);
            assert!(control.reply().starts_with("226"));
        }
        let counters = &status(&net)["nat"];
        assert_eq!(counters["used"], 40, "{counters:#}");
        assert_eq!(counters["superseded"], 0, "{counters:#}");
        assert_eq!(counters["kernel_errors"], 0, "{counters:#}");
        alg.stop();
    }
}

/// Starts the daemon with a standard output that nobody reads.
fn start_unread(net: &Net) -> std::process::Child {
    let mut command = net.command(net.topology().router, paths::ftpalg());
    command.args(["run", "--inside", "in0"]);
    command.stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while !ftpalg(net, &["status"]).ok() {
        assert!(Instant::now() < deadline, "it doesn't start");
    }
    child
}

fn ends_well(mut child: std::process::Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it doesn't end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_closed_output_stops_nothing() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let before = rules::snapshot(&net, net.topology().router);
    let mut child = start_unread(&net);
    drop(child.stdout.take());
    for _ in 0..3 {
        download(&net, &server, &[]).must();
    }
    ends_well(child);
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

#[test]
fn a_reader_that_stalls_costs_lines_and_nothing_else() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let child = start_unread(&net);
    // A pipe holds 64 KiB, the daemon's own backlog 4,096 lines; a session is two lines at least.
    let topology = net.topology();
    net.within(topology.client, || {
        for _ in 0..3200 {
            let stream = TcpStream::connect_timeout(&topology.dial, LIMIT).unwrap();
            // Closed with a reset, so that ports and the server's processes are free at once.
            scripted::reset(stream).unwrap();
        }
    });
    download(&net, &server, &[]).must();
    let status = status(&net);
    assert!(status["lines_lost"].as_u64() > Some(0), "{status:#}");
    ends_well(child);
}

#[test]
fn an_idle_session_wakes_nobody() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = start(&net, "nft", Flavour::Nft);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let pid = alg.process().unwrap().pid();
    // nsenter became the daemon: the last acknowledgement passes, and a data connection's end.
    drop(control.passive(&net));
    let before = settled(pid);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(activity(pid), before, "(clock ticks, sleeps)");
    control.ask("NOOP\r\n", "200");
    alg.stop();
}

/// Session numbers are small, and each is used once, however many workers there are.
#[test]
fn sessions_are_numbered_for_people() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Alg::Ftpalg(vec!["--queues".into(), "4".into()]).start(&net, Flavour::Nft);
    let mut controls: Vec<_> = (0..5).map(|_| Control::dial(&net)).collect();
    controls.iter_mut().for_each(|c| c.log_in(&server));
    let json = ftpalg(&net, &["sessions", "--json"]).must().stdout;
    let sessions: Vec<Value> = serde_json::from_str(&json).unwrap();
    let mut ids: Vec<u64> = sessions.iter().filter_map(|s| s["id"].as_u64()).collect();
    ids.dedup();
    assert!(ids.len() == 5 && ids.iter().all(|id| *id <= 20), "{ids:?}");
    alg.stop();
}
