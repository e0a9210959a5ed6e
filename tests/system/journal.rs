//! The journal: what becomes of it, and of sessions without it.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use testkit::lab::gateway::{LIMIT, ended, ftpalg, start_with, status};
use testkit::lab::net::Net;
use testkit::lab::process::{Process, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::session::Session;
use testkit::lab::store::Store;
use testkit::lab::topology::Topology;
use testkit::paths;

/// Every session gets numbers that differ on the two sides.
const UNEVEN: [&str; 2] = ["--keep-length", "off"];

fn network() -> Net {
    let net = Net::new(&Topology::published_server());
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    net
}

/// A session in which a reply was made longer.
fn uneven(net: &Net) -> Session {
    let mut session = Session::open(net);
    announce(&mut session);
    session
}

#[track_caller]
fn announce(session: &mut Session) {
    let read = session.say("PASV\r\n", "227 here (10,0,0,2,200,1)\r\n");
    assert_eq!(read, "227 here (203,0,113,1,200,1)\r\n");
}

/// The journal of the gateway.
fn file(net: &Net) -> PathBuf {
    let namespace = net.namespace(net.topology().router);
    let about = std::fs::metadata(format!("/run/netns/{namespace}")).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&about);
    PathBuf::from(format!("/run/ftpalg/journal-{inode}"))
}

/// What `ftpalg status` says of it, once `told` is content with that.
fn health(net: &Net, told: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let journal = status(net)["journal"].clone();
        if told(&journal) || Instant::now() > deadline {
            return journal;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_is_there_while_the_daemon_is_and_until_a_successor_comes() {
    let net = network();
    let alg = start_with(&net, "nft", Flavour::Nft, &UNEVEN);
    let mut session = uneven(&net);
    let journal = health(&net, |_| true);
    assert_eq!(
        (&journal["records"], &journal["works"]),
        (&1.into(), &true.into())
    );
    drop(alg.stop());
    assert!(!file(&net).exists(), "a stop leaves nothing");
    session.client.gets_reset(LIMIT);

    let alg = start_with(&net, "nft", Flavour::Nft, &UNEVEN);
    let mut session = uneven(&net);
    alg.process().unwrap().signal(Signal::SIGKILL);
    ended(&net);
    assert!(file(&net).exists());
    let alg = start_with(&net, "nft", Flavour::Nft, &UNEVEN);
    announce(&mut session);
    session.client.send("QUIT\r\n");
    assert_eq!(session.server.read(), "QUIT\r\n");
    drop(session);
    drop(alg.stop());

    let alg = start_with(&net, "nft", Flavour::Nft, &["--state", "none"]);
    assert!(!file(&net).exists());
    assert_eq!(status(&net)["journal"], Value::Null);
    drop(alg.stop());
}

/// Nobody knows how the numbers differ. No byte arrives out of place, and both ends get to know.
#[test]
fn without_it_uneven_sessions_end() {
    let net = network();
    let states: [&[&str]; 2] = [&UNEVEN, &["--keep-length", "off", "--state", "none"]];
    for more in states {
        let alg = start_with(&net, "nft", Flavour::Nft, more);
        let mut sessions = [uneven(&net), uneven(&net)];
        alg.process().unwrap().signal(Signal::SIGKILL);
        ended(&net);
        drop(std::fs::remove_file(file(&net)));
        let alg = start_with(&net, "nft", Flavour::Nft, more);
        // Whoever speaks first.
        let [first, second] = &mut sessions;
        for (speaker, other) in [
            (&mut first.client, &mut first.server),
            (&mut second.server, &mut second.client),
        ] {
            let said = speaker.0.get_mut().write_all(b"200 anybody there?\r\n");
            other.gets_reset(LIMIT);
            // A reply that was repeated may have told them before.
            match said {
                Ok(()) => speaker.gets_reset(LIMIT),
                Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
            }
        }
        assert!(status(&net)["counters"]["orphaned"].as_u64().unwrap() >= 2);
        drop(alg.stop());
    }
}

#[test]
fn what_cannot_be_used_is_told_and_set_aside() {
    let net = network();
    std::fs::create_dir_all("/run/ftpalg").unwrap();
    std::fs::write(file(&net), "not a journal, but long enough for one").unwrap();
    let alg = start_with(&net, "nft", Flavour::Nft, &[]);
    let log = alg.stop();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("isn't used"))
        .collect();
    assert_eq!(told.len(), 1, "{log}");
    let aside = file(&net).with_extension("unusable");
    assert!(told[0].contains(aside.to_str().unwrap()), "{told:?}");
    std::fs::remove_file(aside).unwrap();
}

#[test]
fn a_directory_that_cannot_be_used_is_an_error() {
    let net = network();
    let before = rules::snapshot(&net, net.topology().router);
    let open = net.directory().join("open");
    std::fs::create_dir(&open).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&open, everybody).unwrap();
    for (state, why) in [
        ("/proc/nothing", "can't use the directory"),
        (open.to_str().unwrap(), "others may write"),
        (
            "here",
            "write a directory, with all of its path, or valkey://HOST, or none",
        ),
        ("gopher://127.0.0.1", "--state"),
    ] {
        let words = ["run", "--inside", "in0", "--state", state];
        let finished = ftpalg(&net, &words);
        assert_eq!(
            finished.status.and_then(|status| status.code()),
            Some(2),
            "{finished}"
        );
        assert!(finished.log.contains(why), "{finished}");
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
    }
}

/// The disk fills up, and is emptied again.
#[test]
fn without_room_sessions_go_on_and_it_recovers() {
    let net = network();
    let place = net.directory().join("small");
    std::fs::create_dir(&place).unwrap();
    let script = r#"mount -t tmpfs -o size=64k,mode=700 none "$1" && exec "$2" run --inside in0 \
        --keep-length off --state "$1""#;
    let mut command = net.command(net.topology().router, "unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(&place)
        .arg(paths::ftpalg());
    let daemon = Process::spawn(command);
    assert!(daemon.wait_for("ready", LIMIT), "{}", daemon.log());
    let inside = |words: &str| {
        let pid = daemon.pid().to_string();
        let mut command = std::process::Command::new("nsenter");
        command.args(["--mount", "-t", &pid, "sh", "-c", words, "sh"]);
        command.arg(&place);
        run(command, LIMIT)
    };
    let mut session = uneven(&net);
    inside("dd if=/dev/zero of=$1/fill bs=4k; true").must();
    let full = (0..200).any(|_| {
        announce(&mut session);
        status(&net)["journal"]["works"] == false
    });
    assert!(full, "{}", daemon.log());
    for _ in 0..20 {
        announce(&mut session);
    }
    let errors = health(&net, |_| true);
    assert!(errors["errors"].as_u64().unwrap() >= 1, "{errors}");
    inside("rm $1/fill").must();
    let deadline = Instant::now() + LIMIT;
    while status(&net)["journal"]["works"] == false && Instant::now() < deadline {
        announce(&mut session);
        std::thread::sleep(Duration::from_millis(50));
    }
    let journal = health(&net, |journal| journal["works"] == true);
    assert_eq!(
        (&journal["records"], &journal["works"]),
        (&1.into(), &true.into())
    );
    daemon.signal(Signal::SIGTERM);
    let finished = daemon.finish(LIMIT).must();
    let count = |text: &str| finished.log.lines().filter(|l| l.contains(text)).count();
    assert_eq!(count("can't be written (No space left"), 1, "{finished}");
    assert_eq!(count("can be written again"), 1, "{finished}");
}

/// A Valkey or Redis server on the gateway.
fn store(net: &Net) -> Store {
    Store::start(net, net.topology().router, "127.0.0.1")
}

const SHARED: [&str; 4] = [
    "--keep-length",
    "off",
    "--state",
    "valkey://ftpalg:secret@127.0.0.1",
];

/// What is in the store is enough to go on: it stands for another gateway here.
#[test]
fn a_store_says_as_much() {
    let net = network();
    let store = store(&net);
    let alg = start_with(&net, "nft", Flavour::Nft, &SHARED);
    let mut session = uneven(&net);
    // One more pinhole that nobody uses.
    announce(&mut session);
    alg.process().unwrap().signal(Signal::SIGKILL);
    ended(&net);
    std::fs::remove_file(file(&net)).unwrap();
    ftpalg(&net, &["rules", "remove"]).must();
    let alg = start_with(&net, "nft", Flavour::Nft, &SHARED);
    assert_eq!(status(&net)["nat"]["adopted"], 1);
    announce(&mut session);
    // An address comes, as those do that two gateways share: all is read from the store again.
    let router = net.topology().router;
    let forgot = || {
        alg.log()
            .matches("another gateway may go on with it")
            .count()
    };
    for change in ["add", "del"] {
        let before = forgot();
        net.exec(
            router,
            &["ip", "address", change, "192.0.2.99/32", "dev", "lo"],
        )
        .must();
        let deadline = Instant::now() + LIMIT;
        while forgot() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(forgot() > before, "{change}");
        announce(&mut session);
    }
    assert!(status(&net)["counters"]["joined"].as_u64().unwrap() >= 3);
    let keys = store.keys(&net, "ftpalg:*");
    assert!(keys.contains(":flow:") && keys.contains(":hole:"), "{keys}");
    drop(alg.stop());
    session.client.gets_reset(LIMIT);
}

/// A store that doesn't answer stops nothing, and is told once.
#[test]
fn without_the_store_sessions_go_on() {
    let net = network();
    let server = store(&net);
    let alg = start_with(&net, "nft", Flavour::Nft, &SHARED);
    let mut session = uneven(&net);
    assert_eq!(status(&net)["store"]["works"], true);
    // It hangs, and then it is gone.
    server.process().signal(Signal::SIGSTOP);
    for _ in 0..20 {
        announce(&mut session);
    }
    server.process().signal(Signal::SIGCONT);
    server.fails();
    for _ in 0..20 {
        announce(&mut session);
    }
    assert_eq!(status(&net)["store"]["works"], false);
    let server = store(&net);
    let deadline = Instant::now() + LIMIT;
    while status(&net)["store"]["works"] == false && Instant::now() < deadline {
        announce(&mut session);
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(status(&net)["store"]["works"], true);
    let log = alg.stop();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("doesn't answer"), 1, "{log}");
    assert_eq!(count("answers again"), 1, "{log}");
    drop(server);
}

/// What couldn't be written is there once the store answers, though no packet comes.
#[test]
fn the_store_gets_what_it_missed() {
    let net = network();
    let alg = start_with(&net, "nft", Flavour::Nft, &SHARED);
    let mut session = uneven(&net);
    announce(&mut session);
    let store = store(&net);
    let deadline = Instant::now() + LIMIT;
    let mut keys = String::new();
    while !(keys.contains(":flow:") && keys.contains(":hole:")) && Instant::now() < deadline {
        keys = store.keys(&net, "ftpalg:*");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(keys.contains(":flow:") && keys.contains(":hole:"), "{keys}");
    // It is what the next process needs.
    alg.process().unwrap().signal(Signal::SIGKILL);
    ended(&net);
    std::fs::remove_file(file(&net)).unwrap();
    let alg = start_with(&net, "nft", Flavour::Nft, &SHARED);
    announce(&mut session);
    drop(alg.stop());
}

/// The daemon was killed, and nobody starts another one: its rules are removed by hand.
#[test]
fn removing_the_rules_ends_what_was_recorded() {
    let net = network();
    let before = rules::snapshot(&net, net.topology().router);
    let alg = start_with(&net, "nft", Flavour::Nft, &UNEVEN);
    let mut session = uneven(&net);
    alg.process().unwrap().signal(Signal::SIGKILL);
    ended(&net);
    let finished = ftpalg(&net, &["rules", "remove"]).must();
    assert!(
        finished.stdout.contains("1 session ended by RST"),
        "{finished}"
    );
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
    session.client.gets_reset(LIMIT);
    session.server.gets_reset(LIMIT);
    assert!(!file(&net).exists());
}

/// The range of a session under TLS opens again with the client's next packet.
#[test]
fn ranges_under_tls_go_on() {
    for (backend, flavour) in [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)] {
        let net = Net::new(&Topology::published_server());
        rules::install(&net, flavour, Policy::Drop, true);
        let more = ["--tls", "range:50000-50010"];
        let alg = start_with(&net, backend, flavour, &more);
        let mut session = uneven(&net);
        session.say("AUTH TLS\r\n", "234 go on\r\n");
        let ranges = || {
            let answer = ftpalg(&net, &["pinholes", "--json"]).must();
            let all: Vec<Value> = serde_json::from_str(&answer.stdout).unwrap();
            let ports = all
                .into_iter()
                .filter(|pinhole| !pinhole["ports"].is_null());
            ports.count()
        };
        assert_eq!(ranges(), 1);
        alg.process().unwrap().signal(Signal::SIGKILL);
        ended(&net);
        let alg = start_with(&net, backend, flavour, &more);
        assert_eq!(ranges(), 0, "{backend}");
        session.client.send("\x17\x03\x03\x00\x01x\r\n");
        session.server.read();
        assert_eq!(ranges(), 1, "{backend}");
        drop(alg.stop());
    }
}
