//! Sessions outlive the process: it is killed between any two lines of a dialogue, another one starts,
//! and the session goes on with its next transfer.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::alg::Running;
use testkit::lab::gateway::{Control, LIMIT, ended, start_with, status};
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::Verb;
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::Topology;
use testkit::random::Rng;

/// Both backends, beside one flavour each.
const HOSTS: [(&str, Flavour); 2] = [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)];

/// Ends the process by a signal (SIGKILL, as a crash does), and starts another one.
fn restart<'a>(
    net: &'a Net,
    alg: Running<'a>,
    how: Signal,
    again: impl Fn() -> Running<'a>,
) -> Running<'a> {
    alg.process().unwrap().signal(how);
    ended(net);
    drop(alg);
    again()
}

/// A download, announced with this verb.
fn transfer(net: &Net, control: &mut Control, server: &Server, verb: Verb) {
    let (own, peer) = {
        let stream = control.0.get_ref();
        (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
    };
    let retrieve = format!("RETR {}\r\n", Server::SMALL);
    let mut data = if verb.passive() {
        let command = if verb == Verb::Pasv { "PASV" } else { "EPSV" };
        let reply = control.ask(&format!("{command}\r\n"), "22");
        let to = verb.address(&reply, peer.ip()).unwrap();
        let data = net.within(net.topology().client, || {
            std::net::TcpStream::connect_timeout(&to, LIMIT)
        });
        let data = data.unwrap_or_else(|error| panic!("{verb:?} {}: {error}", reply.trim()));
        control.ask(&retrieve, "1");
        data
    } else {
        let at = SocketAddr::new(own.ip(), 0);
        let listener = net.within(net.topology().client, || TcpListener::bind(at).unwrap());
        let at = listener.local_addr().unwrap();
        control.ask(&verb.line(at), "200");
        control.send(&retrieve);
        testkit::lab::scripted::accept(&listener, LIMIT)
            .unwrap_or_else(|error| panic!("{verb:?}: {error}"))
    };
    data.set_read_timeout(Some(LIMIT)).unwrap();
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    drop(data);
    let last = control.reply();
    let last = if last.starts_with('1') {
        control.reply()
    } else {
        last
    };
    assert!(last.starts_with("226"), "{last}");
}

/// The verbs that lead somewhere with addresses of this family.
fn verbs(ip: IpAddr) -> &'static [Verb] {
    match ip {
        IpAddr::V4(_) => &[Verb::Pasv, Verb::Epsv, Verb::Port, Verb::Eprt],
        IpAddr::V6(_) => &[Verb::Epsv, Verb::Eprt],
    }
}

/// The process is killed before each of the lines of a login, and between transfers.
fn killed_between_lines(topology: &Topology, more: &[&str]) {
    for (backend, flavour) in HOSTS {
        let net = Net::new(topology);
        rules::install(&net, flavour, Policy::Drop, true);
        let server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
        let invalid = rules::invalid(&net, topology.router);
        let begin = || start_with(&net, backend, flavour, more);
        let mut alg = begin();
        let login = server.login();
        let lines = [
            (format!("USER {}\r\n", login.user), "331"),
            (format!("PASS {}\r\n", login.password), "230"),
            ("TYPE I\r\n".to_owned(), "200"),
            ("NOOP\r\n".to_owned(), "200"),
        ];
        for killed in 0..=lines.len() {
            let mut control = Control::dial(&net);
            assert!(control.reply().starts_with("220"));
            for (at, (line, code)) in lines.iter().enumerate() {
                if at == killed {
                    alg = restart(&net, alg, Signal::SIGKILL, begin);
                }
                control.ask(line, code);
            }
            if killed == lines.len() {
                alg = restart(&net, alg, Signal::SIGKILL, begin);
            }
            for verb in verbs(topology.dial.ip()) {
                transfer(&net, &mut control, &server, *verb);
                let counters = &status(&net)["counters"];
                assert_eq!(
                    counters["joined"], 1,
                    "{backend}, killed before line {killed}: {counters}"
                );
                // What is done about the transfer is journalled, where numbers differ.
                if !more.is_empty() {
                    alg = restart(&net, alg, Signal::SIGKILL, begin);
                }
            }
            control.ask("QUIT\r\n", "221");
        }
        alg.stop();
        assert_eq!(rules::invalid(&net, topology.router), invalid, "{backend}");
    }
}

#[test]
fn a_published_server() {
    killed_between_lines(&Topology::published_server(), &[]);
}

#[test]
fn a_masqueraded_client() {
    killed_between_lines(&Topology::masqueraded_client(), &[]);
}

/// Every session gets numbers that differ on the two sides.
#[test]
fn a_published_server_with_edits_of_any_length() {
    killed_between_lines(&Topology::published_server(), &["--keep-length", "off"]);
}

#[test]
fn a_masqueraded_client_with_edits_of_any_length() {
    killed_between_lines(&Topology::masqueraded_client(), &["--keep-length", "off"]);
}

/// Real clients while the process is killed, handed over and replaced again and again. Runs for
/// `SOAK_SECONDS` with each backend in each place, for a while with lost packets.
#[test]
#[ignore = "takes as long as it is told: scripts/soak"]
fn soak() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let problems: Vec<_> = places()
        .flat_map(|(topology, backend, flavour)| soaked(&topology, backend, flavour, seconds))
        .collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The same for a few seconds.
#[test]
fn a_short_soak() {
    for (topology, backend, flavour) in places() {
        let problems = soaked(&topology, backend, flavour, 4);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}

fn places() -> impl Iterator<Item = (Topology, &'static str, Flavour)> {
    let topologies = [Topology::published_server(), Topology::masqueraded_client()];
    topologies
        .into_iter()
        .flat_map(|topology| HOSTS.map(|(backend, flavour)| (topology.clone(), backend, flavour)))
}

/// What was lost, or left behind.
fn soaked(topology: &Topology, backend: &str, flavour: Flavour, seconds: u64) -> Vec<String> {
    let net = Net::new(topology);
    rules::install(&net, flavour, Policy::Drop, true);
    // Which chains there are shows once the rules were loaded again.
    let load_again = || {
        let save = format!("{}-save", flavour.iptables());
        let saved = net.exec(topology.router, &[&save, "-t", "filter"]).must();
        let restore = [
            &format!("{}-restore", flavour.iptables())[..],
            "-T",
            "filter",
        ];
        net.feed(topology.router, &restore, &saved.stdout).must();
    };
    load_again();
    let before = rules::snapshot(&net, topology.router);
    let server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
    let stop = net.directory().join("stop");
    let begin = || start_with(&net, backend, flavour, &["--takeover"]);
    let mut alg = begin();
    let client = |(active, downloads): (&str, &str)| {
        let (login, dial) = (server.login(), topology.dial);
        let mut command = net.command(topology.client, "python3");
        command
            .args(["-c", include_str!("restart/sessions.py")])
            .args([dial.ip().to_string(), dial.port().to_string()])
            .args([login.user, login.password, Server::SMALL])
            .arg(server.path(Server::SMALL))
            .args([active, downloads])
            .arg(&stop);
        Process::spawn(command)
    };
    let short = ["0", "1"].map(|active| client((active, "3")));
    let long = ["0", "1"].map(|active| client((active, "0")));
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let mut rng = Rng::new(1);
    let mut ends = [0; 3];
    let mut bad_weather = false;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200 + rng.below(600)));
        // In the second half.
        if !bad_weather && begun.elapsed() * 2 > Duration::from_secs(seconds) {
            bad_weather = true;
            rules::lose(&net, topology.client, 0.01);
            rules::lose(&net, topology.server, 0.01);
        }
        let way = rng.below(3) as usize;
        ends[way] += 1;
        alg = match way {
            0 => restart(&net, alg, Signal::SIGKILL, begin),
            1 => restart(&net, alg, Signal::SIGUSR2, begin),
            _ => begin(),
        };
        // Somebody loads the rules again that there are.
        if rng.chance(200) {
            load_again();
        }
    }
    std::fs::write(&stop, "").unwrap();
    let clients = short.into_iter().chain(long);
    let said: Vec<_> = clients
        .flat_map(|client| {
            let finished = client.finish(Duration::from_secs(90));
            let lines = finished.stdout.lines().map(str::to_owned);
            lines.collect::<Vec<_>>()
        })
        .collect();
    let published = topology.dial.ip() == IpAddr::from([203, 0, 113, 1]);
    let place = match published {
        true => "published server",
        false => "masqueraded client",
    };
    let (whole, mut lost): (Vec<_>, Vec<_>) =
        said.into_iter().partition(|line| line.ends_with(" lost"));
    let [killed, handed, replaced] = ends;
    println!(
        "{place}, {backend}: {killed} killed, {handed} handed over, {replaced} replaced; {}",
        whole.join("; ")
    );
    for line in &lost {
        println!("    {line}");
    }
    if whole.len() != 4 {
        lost.push(format!("{} clients of 4 came to their end", whole.len()));
    }
    lost.extend(left(&net, seconds >= 60));
    alg.stop();
    if rules::snapshot(&net, topology.router) != before {
        lost.push("other rules than before".to_owned());
    }
    lost.into_iter()
        .map(|line| format!("{place}, {backend}: {line}"))
        .collect()
}

/// What is left of sessions when all clients have gone. `patient`: also of pinholes and of what is kept of
/// a closed session, for a minute, and of what conntrack knows of data connections, for two.
fn left(net: &Net, patient: bool) -> Option<String> {
    let patience = if patient { 150 } else { 20 };
    let deadline = Instant::now() + Duration::from_secs(patience);
    loop {
        let status = status(net);
        let mut left = vec![&status["sessions"]];
        if patient {
            left.push(&status["pinholes"]);
            left.extend([&status["journal"]["records"], &status["data_connections"]]);
        }
        if left.iter().all(|count| **count == 0) {
            return None;
        }
        if Instant::now() > deadline {
            return Some(format!(
                "sessions, pinholes, records, connections left: {left:?}"
            ));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
