//! ftpalg under a service manager: its unit, its signs of life, and what it may do.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::gateway::{LIMIT, download, gateway};
use testkit::lab::process::{Process, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::system::System;

/// `CAP_NET_ADMIN` and `CAP_NET_RAW`, as bits.
const KEPT: u64 = 1 << 12 | 1 << 13;

/// A set of capabilities in a file `status` of /proc.
fn capabilities(status: &str, key: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(key));
    u64::from_str_radix(value.unwrap().trim(), 16).unwrap()
}

#[test]
fn the_unit_is_clean_and_strict() {
    let unit = testkit::paths::repository().join("packaging/ftpalg.service");
    let text = fs::read_to_string(unit).unwrap();
    let program = testkit::paths::ftpalg();
    let installed = "/usr/sbin/ftpalg";
    assert!(text.contains(installed), "{text}");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unit");
    fs::create_dir_all(&directory).unwrap();
    let copy = directory.join("ftpalg.service");
    fs::write(&copy, text.replace(installed, program)).unwrap();
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).arg(&copy);
        run(command, LIMIT)
    };
    let verified = analyze(&["verify", "--man=no"]);
    assert!(verified.ok(), "{verified:?}");
    // Of other units, which this one names, it may have things to say.
    let of_ours = |line: &&str| line.contains("ftpalg");
    let complaints: Vec<_> = verified.log.lines().filter(of_ours).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    // In tenths: an exposure of 2.0 at most.
    analyze(&["security", "--offline=true", "--no-pager", "--threshold=20"]).must();
}

#[test]
fn it_says_that_it_lives_and_can_do_little_else() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let path = net.directory().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let next = || {
        let mut bytes = [0; 1000];
        let n = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).trim().to_owned()
    };
    let mut command = net.command(net.topology().router, testkit::paths::ftpalg());
    command.args(["run", "--inside", "in0"]);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "150000");
    let alg = Process::spawn(command);
    // The first sign may come before the last step of the start.
    let mut first = [next(), next()];
    first.sort();
    assert_eq!(first, ["READY=1", "WATCHDOG=1"]);
    for _ in 0..5 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    let own = fs::read_to_string("/proc/thread-self/status").unwrap();
    for task in fs::read_dir(format!("/proc/{}/task", alg.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:"] {
            let kept = capabilities(&own, set) & KEPT;
            assert_eq!(capabilities(&status, set), kept, "{set} {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
    let server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
    download(&net, &server, &[]).must();
    assert_eq!(next(), "WATCHDOG=1");
    alg.signal(Signal::SIGTERM);
    while next() != "STOPPING=1" {}
    alg.finish(LIMIT).must();
}

/// What it does in its sandbox, with the tools that need most: the legacy ones have a lock and a raw socket.
#[test]
fn in_its_sandbox_it_can_do_all_that_it_has_to() {
    if let Some(why) = System::impossible() {
        eprintln!("SKIPPED service under systemd: {why}");
        return;
    }
    let net = gateway(Policy::Drop, Flavour::Legacy);
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);
    let server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
    let unit = testkit::paths::repository().join("packaging/ftpalg.service");
    fs::copy(unit, net.directory().join("ftpalg.service")).unwrap();
    fs::copy(testkit::paths::ftpalg(), net.directory().join("ftpalg")).unwrap();
    let configuration = [
        "inside = [\"in0\"]",
        "backend = \"iptables\"",
        "keep-length = \"off\"",
        "events = \"/var/log/ftpalg/events.json\"",
        "metrics = \"127.0.0.1:9119\"\n",
    ];
    fs::write(
        net.directory().join("ftpalg.toml"),
        configuration.join("\n"),
    )
    .unwrap();
    let system = System::boot(&net, router);
    let systemctl = |words: &[&str]| system.exec(&[&["systemctl"], words].concat());

    // Without a configuration it isn't started.
    system
        .sh("cp /mnt/ftpalg /usr/sbin/; cp /mnt/ftpalg.service /etc/systemd/system/")
        .must();
    systemctl(&["daemon-reload"]).must();
    systemctl(&["start", "ftpalg"]).must();
    assert!(!systemctl(&["is-active", "ftpalg"]).ok());
    system.sh("cp /mnt/ftpalg.toml /etc/").must();

    systemctl(&["start", "ftpalg"]).must();
    download(&net, &server, &[]).must();
    download(&net, &server, &["--ftp-port", "-"]).must();
    let written = system.sh("cat /var/log/ftpalg/events.json; ls /run/ftpalg");
    assert!(
        written.stdout.contains("\"transfer\"") && written.stdout.contains("journal-"),
        "{written}"
    );
    let page = net.exec(router, &["curl", "-sS", "http://127.0.0.1:9119/metrics"]);
    assert!(page.must().stdout.contains("ftpalg_"));

    // It hands over, and comes back when it is killed.
    systemctl(&["restart", "ftpalg"]).must();
    download(&net, &server, &[]).must();
    systemctl(&["kill", "-s", "KILL", "ftpalg"]).must();
    let deadline = Instant::now() + LIMIT;
    let restarts = || systemctl(&["show", "-P", "NRestarts", "ftpalg"]).stdout;
    while restarts().trim() != "1" || !systemctl(&["is-active", "ftpalg"]).ok() {
        assert!(Instant::now() < deadline, "it doesn't come back");
        std::thread::sleep(Duration::from_millis(50));
    }
    download(&net, &server, &[]).must();

    systemctl(&["stop", "ftpalg"]).must();
    let journal = system.exec(&["journalctl", "-o", "cat", "-u", "ftpalg"]);
    for refused in ["EPERM", "not permitted", "Read-only", "denied", "SIGSYS"] {
        assert!(!journal.stdout.contains(refused), "{journal}");
    }
    assert_eq!(rules::snapshot(&net, router), before);
}
