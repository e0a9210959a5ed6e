//! Under pressure: queues and buffers overflow, the process stands still, the kernel answers with
//! errors, clocks jump, nobody reads what is printed. The daemon stays up, says so once, and is as good
//! as before when the pressure is over.

mod faults;

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use testkit::lab::craft::{Craft, SYN, Shot};
use testkit::lab::gateway::{Control, LIMIT, address, download, ftpalg, gateway, start, status};
use testkit::lab::net::Net;
use testkit::lab::process::{Process, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::paths;

use faults::{ANSWERS, EVENTS, Faults, PACKETS, QUESTIONS, VERDICTS};

/// How long the daemon stands still: longer than its own timers (seconds at most, and the deadline that
/// the tests set), TCP's first retransmissions, and a service manager's patience with `status`. The
/// variable `FTPALG_LAB_STILL` makes it longer: nothing else happens then, but the tests take as long.
fn still() -> Duration {
    let seconds = std::env::var("FTPALG_LAB_STILL").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(4))
}

/// `ftpalg run` on the gateway, with what it needs besides.
fn command(net: &Net, words: &[&str]) -> Command {
    let mut command = net.command(net.topology().router, paths::ftpalg());
    command.args(["run", "--inside", "in0"]).args(words);
    command
}

/// The daemon. Its log is shown if the test fails.
struct Daemon(Option<Process>);

impl Daemon {
    fn spawn(command: Command) -> Self {
        let alg = Process::spawn(command);
        assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
        Self(Some(alg))
    }

    fn process(&self) -> &Process {
        self.0.as_ref().unwrap()
    }

    fn pid(&self) -> u32 {
        self.process().pid()
    }

    fn log(&self) -> String {
        self.process().log()
    }

    /// Stops it, and returns its log.
    fn stop(mut self) -> String {
        let alg = self.0.take().unwrap();
        alg.signal(Signal::SIGTERM);
        alg.finish(LIMIT).must().log
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let (true, Some(alg)) = (std::thread::panicking(), &self.0) {
            eprintln!("--- ftpalg's log\n{}---", alg.log());
        }
    }
}

/// Stops a process and waits until it stands still.
fn freeze(pid: u32) {
    let id = Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(id, Signal::SIGSTOP).unwrap();
    let deadline = Instant::now() + LIMIT;
    let tasks = || {
        let all = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        all.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap())
            .collect::<Vec<_>>()
    };
    let stopped = |stat: &String| stat.rsplit(") ").next().unwrap().starts_with('T');
    while !tasks().iter().all(stopped) {
        assert!(Instant::now() < deadline, "it doesn't stand still");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn thaw(pid: u32) {
    nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).unwrap();
}

/// Waits until this is so.
#[track_caller]
fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until no packet waits in the queue.
#[track_caller]
fn all_are_answered(net: &Net) {
    until("all answered", || status(net)["queues"][0]["waiting"] == 0);
}

fn times(log: &str, part: &str) -> usize {
    log.lines().filter(|line| line.contains(part)).count()
}

/// Takes a file through a data connection that was announced.
fn take(control: &mut Control, mut data: TcpStream, server: &Server) {
    control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    assert!(control.reply().starts_with("226"));
}

fn connect(net: &Net, to: std::net::SocketAddr, limit: Duration) -> std::io::Result<TcpStream> {
    net.within(net.topology().client, || {
        let data = TcpStream::connect_timeout(&to, limit)?;
        data.set_read_timeout(Some(LIMIT))?;
        Ok(data)
    })
}

fn log_in(net: &Net, server: &Server) -> Control {
    let mut control = Control::dial(net);
    control.log_in(server);
    control
}

/// More packets than the queue holds pour in while nobody reads it. The rest is dropped, whatever
/// `--fail` says: it is about a queue that nobody has.
#[test]
fn a_full_queue() {
    const HELD: u16 = 4096;
    for fail in ["closed", "open"] {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let alg = Daemon::spawn(command(&net, &["--fail", fail]));
        let mut control = log_in(&net, &server);
        freeze(alg.pid());
        let public = Ipv4Addr::new(203, 0, 113, 1);
        let dial = SocketAddrV4::new(public, 21);
        let local = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 2), 2);
        let mut sender = Craft::new(&net, net.topology().client, local, dial);
        for number in 0..2 * HELD {
            sender.local = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 77), 1024 + number);
            sender.shoot(Shot::data(u32::from(number) * 7919, b"").flags(SYN));
        }
        let counters = "cat /proc/thread-self/net/netfilter/nfnetlink_queue";
        let full = || {
            let text = net
                .exec(net.topology().router, &["sh", "-c", counters])
                .must()
                .stdout;
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with("2121 "))
                .unwrap();
            let field = |n: usize| {
                line.split_whitespace()
                    .nth(n)
                    .unwrap()
                    .parse::<u32>()
                    .unwrap()
            };
            (field(2), field(5))
        };
        until("full", || full().1 > 1000);
        assert_eq!(full().0, u32::from(HELD));
        control.send("NOOP\r\n");
        thaw(alg.pid());
        // TCP has sent it again, or does so now.
        assert!(control.reply().starts_with("200"));
        let data = control.passive(&net);
        take(&mut control, data, &server);
        download(&net, &server, &[]).must();
        download(&net, &server, &["--ftp-port", "-"]).must();
        until("told", || alg.log().contains("a queue was full"));
        let answer = status(&net);
        let dropped = &answer["queues"][0]["dropped_full"];
        assert!(dropped.as_u64() > Some(1000), "{answer:#}");
        // The server sends its SYN-ACKs to clients that aren't there again, so some may wait just now.
        all_are_answered(&net);
        let log = alg.stop();
        assert_eq!(times(&log, "a queue was full"), 1, "{log}");
    }
}

/// It stands still, for longer than the deadline of what is announced. Transfers that run go on
/// meanwhile. Control packets wait. The kernel closes what isn't used in time, and what was used in time
/// is known as used.
#[test]
fn a_process_that_stands_still() {
    for backend in ["nft", "iptables"] {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let big = testkit::lab::server::content(7, 40 << 20);
        server.publish("big", &big);
        let alg = Daemon::spawn(command(&net, &["--backend", backend, "--deadline", "2"]));
        let mut running = log_in(&net, &server);
        let mut data = running.passive(&net);
        running.ask("RETR big\r\n", "150");
        let mut got = vec![0; 1 << 20];
        data.read_exact(&mut got).unwrap();
        let mut used = log_in(&net, &server);
        let used_at = address(&used.ask("PASV\r\n", "227"));
        let mut unused = log_in(&net, &server);
        let unused_at = address(&unused.ask("PASV\r\n", "227"));

        freeze(alg.pid());
        let frozen = Instant::now();
        let used_data = connect(&net, used_at, LIMIT).unwrap();
        data.read_to_end(&mut got).unwrap();
        assert!(got == big, "data goes on without the daemon");
        unused.send("NOOP\r\n");
        // A new one waits for its handshake.
        let late = std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                let dial = net.topology().dial;
                let mut late = Control::new(connect(&net, dial, still() + LIMIT).unwrap());
                late.log_in(&server);
                late
            });
            std::thread::sleep(still().saturating_sub(frozen.elapsed()));
            if backend == "nft" {
                let closed = connect(&net, unused_at, Duration::from_secs(1));
                assert!(closed.is_err(), "the kernel closes it");
            }
            thaw(alg.pid());
            late.join().unwrap()
        });

        assert!(running.reply().starts_with("226"));
        take(&mut used, used_data, &server);
        assert!(unused.reply().starts_with("200"));
        assert!(connect(&net, unused_at, Duration::from_secs(1)).is_err());
        for mut control in [running, used, unused, late] {
            let data = control.passive(&net);
            take(&mut control, data, &server);
        }
        let answer = status(&net);
        assert_eq!(answer["nat"]["unattributed"], 0, "{answer:#}");
        assert_eq!(answer["nat"]["expired"], 1, "{answer:#}");
        assert_eq!(answer["nat"]["used"], 6, "{answer:#}");
        until("all closed", || {
            let answer = status(&net);
            answer["sessions"] == 0 && answer["data_connections"] == 0
        });
        let log = alg.stop();
        let line = format!("-> {used_at} =>");
        let (ends, beginnings): (Vec<_>, Vec<_>) = (log.lines())
            .filter(|told| told.contains(&line))
            .partition(|told| told.contains(" closed after "));
        assert_eq!((beginnings.len(), ends.len()), (1, 1), "{log}");
        assert_eq!(times(&log, "not used in time"), 1, "{log}");
        assert_eq!(
            times(&log, "ftpalg: "),
            1,
            "nothing but the last line: {log}"
        );
    }
}

/// More connections come and go than the socket for conntrack's events holds. They carry the mark, since the
/// kernel tells of no others.
#[test]
fn a_storm_of_conntrack_events() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Daemon::spawn(command(&net, &[]));
    let mut control = log_in(&net, &server);
    let at = address(&control.ask("PASV\r\n", "227"));
    freeze(alg.pid());
    let router = net.topology().router;
    let mark = [
        &["iptables-nft", "-t", "mangle", "-A", "OUTPUT", "-p", "udp"][..],
        &["-j", "CONNMARK", "--set-xmark", "0x40000000/0x40000000"],
    ];
    net.exec(router, &mark.concat()).must();
    net.within(router, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1..=u16::MAX {
            // The answers (port unreachable) are errors of later calls.
            while socket
                .send_to(b"x", (Ipv4Addr::new(198, 51, 100, 2), port))
                .is_err()
            {}
        }
    });
    // The event of its beginning is lost.
    let data = connect(&net, at, LIMIT).unwrap();
    thaw(alg.pid());
    take(&mut control, data, &server);
    until("looked again", || {
        alg.log().contains("conntrack events were missed")
    });
    until("known", || alg.log().contains(&format!("-> {at} =>")));
    for _ in 0..3 {
        let data = control.passive(&net);
        take(&mut control, data, &server);
    }
    let answer = status(&net);
    assert!(
        answer["nat"]["missed_events"].as_u64() > Some(0),
        "{answer:#}"
    );
    assert_eq!(answer["nat"]["used"], 4, "{answer:#}");
    assert_eq!(answer["nat"]["unattributed"], 0, "{answer:#}");
    let log = alg.stop();
    assert_eq!(times(&log, "conntrack events were missed"), 1, "{log}");
}

/// The kernel has no memory now and then, or a call is interrupted: each is tried again, and costs
/// nothing.
#[test]
fn netlink_errors_now_and_then() {
    const EINTR: i32 = nix::libc::EINTR;
    const EAGAIN: i32 = nix::libc::EAGAIN;
    const ENOMEM: i32 = nix::libc::ENOMEM;
    const ENOBUFS: i32 = nix::libc::ENOBUFS;
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let faults = Faults::new(&net);
    let alg = Daemon::spawn(faults.under(command(&net, &[])));
    let mut control = log_in(&net, &server);
    for (at, errors) in [
        (QUESTIONS, &[EINTR, EAGAIN, ENOMEM, ENOBUFS][..]),
        (ANSWERS, &[EINTR, ENOBUFS]),
        (EVENTS, &[EINTR, ENOBUFS, ENOMEM]),
        (PACKETS, &[EINTR, ENOBUFS]),
    ] {
        for error in errors {
            let before = faults.injected();
            faults.inject(at, 3, *error);
            for _ in 0..3 {
                let data = control.passive(&net);
                take(&mut control, data, &server);
            }
            download(&net, &server, &[]).must();
            download(&net, &server, &["--ftp-port", "-"]).must();
            faults.inject(at, 0, 0);
            assert!(faults.injected() > before, "{at} {error}: nothing failed");
        }
    }
    let answer = status(&net);
    assert_eq!(answer["counters"]["not_opened"], 0, "{answer:#}");
    assert_eq!(answer["nat"]["kernel_errors"], 0, "{answer:#}");
    all_are_answered(&net);
    let log = alg.stop();
    for part in [
        "receive: ",
        "can't read conntrack events",
        "events were missed",
    ] {
        assert!(times(&log, part) <= 1, "{part}: {log}");
    }
}

/// For a while nothing at all can be asked. What is announced meanwhile passes as it is, and opens
/// nothing.
#[test]
fn a_kernel_that_answers_nothing_for_a_while() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let before = rules::snapshot(&net, net.topology().router);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let faults = Faults::new(&net);
    let alg = Daemon::spawn(faults.under(command(&net, &[])));
    let mut control = log_in(&net, &server);
    let data = control.passive(&net);
    take(&mut control, data, &server);
    let mut waiting = log_in(&net, &server);
    let open = address(&waiting.ask("PASV\r\n", "227"));
    faults.inject(QUESTIONS | EVENTS, 1, nix::libc::ENOBUFS);
    for _ in 0..5 {
        // One that is open can be used.
        let reply = control.ask("PASV\r\n", "227");
        assert!(reply.contains("(10,0,0,2,"), "{reply}");
    }
    let used = connect(&net, open, LIMIT).unwrap();
    take(&mut waiting, used, &server);
    let mut other = log_in(&net, &server);
    assert!(other.ask("PASV\r\n", "227").contains("(10,0,0,2,"));
    // Time for every thread to try again and again.
    std::thread::sleep(Duration::from_secs(2));
    faults.inject(0, 0, 0);
    for control in [&mut control, &mut other] {
        let data = control.passive(&net);
        take(control, data, &server);
    }
    download(&net, &server, &[]).must();
    until("known", || alg.log().contains(&format!("-> {open} =>")));
    let answer = status(&net);
    assert_eq!(answer["counters"]["not_opened"], 6, "{answer:#}");
    let log = alg.stop();
    // Behind the time, so that one kind is one kind in any second.
    let warnings = log.lines().filter_map(|line| line.split_once("warn: "));
    let warnings: Vec<_> = warnings.map(|(_, text)| text).collect();
    let mut kinds: Vec<_> = warnings
        .iter()
        .map(|text| &text[..30.min(text.len())])
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), warnings.len(), "each once: {log}");
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

/// The kernel takes no verdict now and then: that packet is lost, TCP sends it again, and it holds no
/// place in the queue.
#[test]
fn a_verdict_that_cannot_be_given() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let faults = Faults::new(&net);
    let alg = Daemon::spawn(faults.under(command(&net, &[])));
    let mut control = log_in(&net, &server);
    faults.inject(VERDICTS, 5, nix::libc::ENOBUFS);
    for _ in 0..3 {
        let data = control.passive(&net);
        take(&mut control, data, &server);
    }
    faults.inject(0, 0, 0);
    assert!(faults.injected() > 0);
    let data = control.passive(&net);
    take(&mut control, data, &server);
    all_are_answered(&net);
    alg.stop();
}

/// Conntrack's table is full: the first packets of new connections are dropped, until there is room. The
/// limit belongs to the whole machine (`nf_conntrack_max` can't be written in a network namespace), so a
/// rule drops in its place what has no entry yet.
#[test]
fn a_full_conntrack_table() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = start(&net, "nft", Flavour::Nft);
    let mut control = log_in(&net, &server);
    let router = net.topology().router;
    let full = |action: &str| {
        let rule = ["-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"];
        let words = ["iptables", "-w", "5", "-t", "mangle", action, "PREROUTING"];
        net.exec(router, &[&words[..], &rule].concat()).must();
    };
    let dropped = || {
        let list = ["iptables", "-w", "5", "-t", "mangle", "-nvxL", "PREROUTING"];
        let text = net.exec(router, &list).must().stdout;
        let line = text.lines().find(|line| line.contains("NEW")).unwrap();
        line.split_whitespace()
            .next()
            .unwrap()
            .parse::<u32>()
            .unwrap()
    };
    full("-A");
    let at = address(&control.ask("PASV\r\n", "227"));
    let data = std::thread::scope(|scope| {
        let data = scope.spawn(|| connect(&net, at, LIMIT));
        until("dropped", || dropped() > 0);
        control.ask("NOOP\r\n", "200");
        full("-D");
        data.join().unwrap()
    });
    // The pinhole was not used up by what was dropped.
    take(&mut control, data.unwrap(), &server);
    download(&net, &server, &[]).must();
    alg.stop();
}

/// Somebody lowers the limit of descriptors during sessions. Those that are there are enough for
/// sessions; what needs more waits.
#[test]
fn no_descriptors_left() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Daemon::spawn(command(&net, &[]));
    let mut control = log_in(&net, &server);
    let data = control.passive(&net);
    take(&mut control, data, &server);
    let limit = |limit: u32| {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={}", alg.pid()));
        command.arg(format!("--nofile={limit}:"));
        run(command, LIMIT).must();
    };
    limit(1);
    for _ in 0..3 {
        let data = control.passive(&net);
        take(&mut control, data, &server);
    }
    download(&net, &server, &[]).must();
    download(&net, &server, &["--ftp-port", "-"]).must();
    let mut asks = net.command(net.topology().router, paths::ftpalg());
    asks.arg("status")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut asks = asks.spawn().unwrap();
    until("told", || {
        alg.log().contains("nobody can be let in for now")
    });
    download(&net, &server, &[]).must();
    assert!(asks.try_wait().unwrap().is_none(), "it waits");
    limit(1024);
    assert!(asks.wait().unwrap().success());
    let answer = status(&net);
    assert_eq!(answer["counters"]["not_opened"], 0, "{answer:#}");
    let log = alg.stop();
    assert_eq!(times(&log, "nobody can be let in"), 1, "{log}");
    // It may be looking just then, or not.
    assert!(times(&log, "can't tell whether") <= 1, "{log}");
    assert!(times(&log, "warn: ") <= 3, "{log}");
}

/// The wall clock jumps, both ways and far: nothing goes by it.
#[test]
fn a_clock_that_jumps() {
    const DAY: i64 = 24 * 3600;
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let faults = Faults::new(&net);
    let mut date = faults.under(net.command(net.topology().router, "date"));
    date.arg("+%s");
    faults.shift_clock(-10 * DAY);
    let shifted: i64 = run(date, LIMIT).must().stdout.trim().parse().unwrap();
    let now = std::time::SystemTime::now();
    let now = now
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .cast_signed();
    assert!(
        (9 * DAY..11 * DAY).contains(&(now - shifted)),
        "the library works"
    );

    faults.shift_clock(0);
    let alg = Daemon::spawn(faults.under(command(&net, &["--deadline", "30"])));
    let mut control = log_in(&net, &server);
    for jump in [10 * DAY, -10 * DAY, 20_000 * DAY, -20_000 * DAY, 0] {
        let at = address(&control.ask("PASV\r\n", "227"));
        faults.shift_clock(jump);
        // Whatever looks at deadlines has looked.
        download(&net, &server, &[]).must();
        let data = connect(&net, at, LIMIT).unwrap();
        take(&mut control, data, &server);
        let answer = status(&net);
        assert!(answer["uptime"].as_u64() < Some(60), "{answer:#}");
        assert_eq!(answer["nat"]["expired"], 0, "{answer:#}");
    }
    // And what has a deadline still has one.
    let at = address(&control.ask("PASV\r\n", "227"));
    let pinholes = || {
        let json = ftpalg(&net, &["pinholes", "--json"]).must().stdout;
        serde_json::from_str::<serde_json::Value>(&json).unwrap()
    };
    let hole = pinholes().as_array().unwrap()[0].clone();
    assert_eq!(hole["to"], at.to_string());
    assert!(
        (25..=30).contains(&hole["expires_in"].as_u64().unwrap()),
        "{hole:#}"
    );
    let log = alg.stop();
    assert_eq!(times(&log, "warn: "), 0, "{log}");
}

/// Nothing can be printed: on a full disk, or since nobody reads the log, of which there is much.
#[test]
fn what_is_printed_goes_nowhere() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let before = rules::snapshot(&net, net.topology().router);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for unread in [false, true] {
        let mut command = command(&net, &[]);
        command.env("FTPALG_LOG", "trace");
        match unread {
            true => command.stdout(Stdio::piped()).stderr(Stdio::piped()),
            false => command.stdout(full()).stderr(full()),
        };
        let mut child = command.spawn().unwrap();
        until("ready", || ftpalg(&net, &["status"]).ok());
        // More than a pipe holds, before there are sessions.
        if unread {
            fill(child.stderr.as_ref().unwrap());
        }
        let mut control = log_in(&net, &server);
        for _ in 0..3 {
            let data = control.passive(&net);
            take(&mut control, data, &server);
            // It makes the guard look, which logs something.
            let rule = "iptables -w 5 -A FORWARD -j ACCEPT; iptables -w 5 -D FORWARD -j ACCEPT";
            net.exec(net.topology().router, &["sh", "-c", rule]).must();
        }
        download(&net, &server, &[]).must();
        assert_eq!(status(&net)["in_place"], true);
        let pid = Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + LIMIT;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it doesn't end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
    }
}

/// Fills the pipe that this is the reading end of.
fn fill(reading: &impl std::os::fd::AsRawFd) {
    use std::io::Write;
    let path = format!("/proc/self/fd/{}", reading.as_raw_fd());
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
    let mut writing = options.write(true).open(path).unwrap();
    while writing.write(&[b'x'; 512]).is_ok() {}
}
