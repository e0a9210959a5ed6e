//! Many sessions at once, and what one that does nothing costs.

use std::io::{BufRead, BufReader, Error, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use testkit::lab::alg::Alg;
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{
    Control, LIMIT, Plan, Step, Verb, accept, connect, content, listen, serving,
};
use testkit::lab::topology::Topology;

const SESSIONS: usize = 300;
/// How long a session waits while all the others want something, too.
const PATIENCE: Duration = Duration::from_secs(20);

/// All of them are logged in before the first announces, and none leaves before the last is done.
fn all_at_once(topology: &Topology, verb: Verb, backend: &str, flavour: Flavour) {
    let net = Net::new(topology);
    rules::install(&net, flavour, Policy::Drop, true);
    let invalid = rules::invalid(&net, topology.router);
    let alg = Alg::under_test(&["--backend", backend]).start(&net, flavour);
    let plan = Plan {
        limit: PATIENCE,
        ..Plan::new(vec![Step::whole(verb)])
    };
    let barrier = Barrier::new(SESSIONS);
    let start = Instant::now();
    let one = || -> Result<(), Error> {
        let login = || {
            let stream = TcpStream::connect_timeout(&topology.dial, PATIENCE)?;
            let mut control = Control::new(stream, PATIENCE)?;
            control.login()?;
            Ok::<_, Error>(control)
        };
        // Nobody may wait for one that failed.
        let control = login();
        barrier.wait();
        let result = control.and_then(|mut control| {
            transfer(&mut control, verb)?;
            Ok(control)
        });
        barrier.wait();
        let mut control = result?;
        control.send("QUIT\r\n")?;
        control.expect("221")?;
        Ok(())
    };
    let results: Vec<_> = serving(&net, &plan, || {
        net.within(topology.client, || {
            std::thread::scope(|scope| {
                let all: Vec<_> = (0..SESSIONS).map(|_| scope.spawn(one)).collect();
                all.into_iter().map(|one| one.join()).collect()
            })
        })
    });
    let took = start.elapsed();
    let results = results.into_iter().map(|r| r.expect("no panic"));
    let failed: Vec<_> = results.filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    report::write(
        &format!("concurrent_{verb:?}_{backend}_{flavour:?}").to_lowercase(),
        &format!("{SESSIONS} sessions at once took {took:?}\n"),
    );
    alg.stop();
    let invalid = rules::invalid(&net, topology.router) - invalid;
    assert_eq!(invalid, 0, "INVALID packets");
}

fn transfer(control: &mut Control, verb: Verb) -> Result<(), Error> {
    let mut data = if verb.passive() {
        let (_, to) = control.ask(verb)?;
        let data = connect(to, PATIENCE)?;
        control.send("RETR file\r\n")?;
        control.expect("150")?;
        data
    } else {
        let here = control.stream.local_addr()?.ip();
        let listener = TcpListener::bind((here, 0))?;
        control.send(&verb.line(listener.local_addr()?))?;
        control.expect("200")?;
        control.send("RETR file\r\n")?;
        control.expect("150")?;
        accept(&listener, PATIENCE)?
    };
    content(&mut data, PATIENCE)?;
    control.expect("226").map(drop)
}

#[test]
fn passive_sessions_through_nft() {
    let _turn = testkit::turn();
    all_at_once(
        &Topology::published_server(),
        Verb::Pasv,
        "nft",
        Flavour::Nft,
    );
}

#[test]
fn passive_sessions_through_iptables() {
    let _turn = testkit::turn();
    all_at_once(
        &Topology::published_server(),
        Verb::Pasv,
        "iptables",
        Flavour::Nft,
    );
}

#[test]
fn passive_sessions_through_iptables_legacy() {
    let _turn = testkit::turn();
    all_at_once(
        &Topology::published_server(),
        Verb::Pasv,
        "iptables",
        Flavour::Legacy,
    );
}

#[test]
fn active_sessions_through_nft() {
    let _turn = testkit::turn();
    all_at_once(
        &Topology::masqueraded_client(),
        Verb::Port,
        "nft",
        Flavour::Nft,
    );
}

/// Opens `count` sessions that log in, agree on a port if they `ask`, and then say nothing more.
fn idle(net: &Net, count: usize, ask: bool) -> Vec<TcpStream> {
    let topology = net.topology();
    let listener = net
        .within(topology.server, || listen(topology.listen))
        .expect("the server's address");
    let dialogue = [
        ("", "220 ready\r\n"),
        ("USER lab\r\n", "331 password, please\r\n"),
        ("PASS lab\r\n", "230 welcome\r\n"),
        (
            "PASV\r\n",
            "227 Entering Passive Mode (10,0,0,2,200,1).\r\n",
        ),
    ];
    let dialogue = &dialogue[..if ask { 4 } else { 3 }];
    let exchange = |stream: TcpStream, server: bool| -> Result<TcpStream, Error> {
        stream.set_read_timeout(Some(LIMIT))?;
        let mut reader = BufReader::new(stream);
        for &(command, reply) in dialogue {
            let (say, hear) = if server {
                (reply, command)
            } else {
                (command, reply)
            };
            let hears = |reader: &mut BufReader<TcpStream>| match hear {
                "" => Ok(0),
                _ => reader.read_line(&mut String::new()),
            };
            if server {
                hears(&mut reader)?;
            }
            reader.get_mut().write_all(say.as_bytes())?;
            if !server {
                hears(&mut reader)?;
            }
        }
        Ok(reader.into_inner())
    };
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            net.within(topology.server, move || {
                (0..count)
                    .map(|_| exchange(listener.accept()?.0, true))
                    .collect::<Result<Vec<_>, Error>>()
            })
        });
        let clients = net.within(topology.client, || {
            (0..count)
                .map(|_| exchange(TcpStream::connect(topology.dial)?, false))
                .collect::<Result<Vec<_>, Error>>()
        });
        let clients = clients.unwrap_or_else(|error| panic!("client: {error}"));
        let servers = server.join().expect("no panic");
        let servers = servers.unwrap_or_else(|error| panic!("server: {error}"));
        clients.into_iter().chain(servers).collect()
    })
}

/// Memory of a process that is in RAM and its own, in bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a kernel since 4.5") * 1024
}

/// Few bytes for each session that is silent.
#[test]
fn memory_of_idle_sessions() {
    let _turn = testkit::turn();
    // Enough to fill what is bounded: the ring of records has 2,048, and each session makes two.
    const FIRST: usize = 1200;
    const MORE: usize = 1500;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    let needed = 3 * (FIRST + 2 * MORE) as u64;
    setrlimit(Resource::RLIMIT_NOFILE, needed.max(soft), needed.max(hard)).expect("as root");
    let topology = Topology::published_server();
    let net = Net::new(&topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let alg = Alg::under_test(&["--backend", "nft"]).start(&net, Flavour::Nft);
    let Some(process) = alg.process() else {
        return;
    };
    let pid = process.pid();
    let none = resident(pid);
    let first = idle(&net, FIRST, true);
    let before = resident(pid);
    let silent = idle(&net, MORE, false);
    let between = resident(pid);
    let asked = idle(&net, MORE, true);
    let after = resident(pid);
    let each = |from: u64, to: u64| to.saturating_sub(from) / MORE as u64;
    let (silent_each, asked_each) = (each(before, between), each(between, after));
    report::write(
        "memory_of_idle_sessions",
        &format!(
            "no session: {none} bytes; {FIRST} sessions: {before}\n\
             each of {MORE} more that logged in: {silent_each} bytes\n\
             each of {MORE} more with a pinhole open: {asked_each} bytes\n"
        ),
    );
    assert!(silent_each < 768, "{silent_each} bytes for each session");
    assert!(asked_each < 1536, "{asked_each} bytes with a pinhole");
    drop((first, silent, asked));
    alg.stop();
}
