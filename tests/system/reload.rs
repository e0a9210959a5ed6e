//! SIGHUP: the configuration file is read again, and no session notices but by what it asks for next.

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use testkit::lab::alg::{Alg, Running};
use testkit::lab::gateway::{Control, LIMIT, address, download, ftpalg, gateway, status};
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};

/// `ftpalg` with a configuration file.
struct Daemon<'a> {
    running: Running<'a>,
    file: PathBuf,
}

impl<'a> Daemon<'a> {
    fn start(net: &'a Net, config: &str, flags: &[&str]) -> Self {
        let file = net.directory().join("ftpalg.toml");
        std::fs::write(&file, config).unwrap();
        let name = file.to_str().unwrap();
        let words = [&["--config", name], flags].concat();
        let arguments = words.into_iter().map(str::to_owned).collect();
        let running = Alg::Ftpalg(arguments).start(net, Flavour::Nft);
        Self { running, file }
    }

    /// Writes the file anew and sends SIGHUP. Returns what is printed, up to the line that says what
    /// came of it.
    fn reload(&self, config: &str) -> String {
        std::fs::write(&self.file, config).unwrap();
        self.hang_up(0)
    }

    /// Sends SIGHUP. Returns what is printed, up to the line that says what came of it and `warnings`
    /// lines on the standard error, which may come later.
    fn hang_up(&self, warnings: usize) -> String {
        let before = self.running.log().len();
        self.running.process().unwrap().signal(Signal::SIGHUP);
        let deadline = Instant::now() + LIMIT;
        loop {
            let log = self.running.log()[before..].to_owned();
            let ends = ["reloaded ", " isn't reloaded: ", "SIGHUP: "];
            let warned = log.matches("ftpalg: warn: ").count() >= warnings;
            let ended = ends.iter().any(|end| log.contains(end));
            let whole = log.ends_with('\n') && ended && warned;
            if whole {
                return log;
            }
            assert!(Instant::now() < deadline, "nothing came of it: {log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What `ftpalg sessions --json` lists.
fn sessions(net: &Net) -> Vec<Value> {
    let json = ftpalg(net, &["sessions", "--json"]).must();
    serde_json::from_str(&json.stdout).unwrap()
}

fn fetch(net: &Net, control: &mut Control, server: &Server) {
    let mut data = control.passive(net);
    control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    assert!(control.reply().starts_with("226"));
}

fn port(control: &mut Control) -> u16 {
    address(&control.ask("PASV\r\n", "227")).port()
}

#[test]
fn a_session_goes_on_and_its_next_announcements_obey() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let before = rules::snapshot(&net, net.topology().router);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Daemon::start(&net, "data-ports = \"30000-30009\"\n", &[]);
    let mut old = Control::dial(&net);
    old.log_in(&server);
    fetch(&net, &mut old, &server);
    // Announced, and not used yet.
    let waiting = address(&old.ask("PASV\r\n", "227"));
    assert!((30000..=30009).contains(&waiting.port()), "{waiting}");

    let log = alg.reload(
        "data-ports = \"40000-40001\"\nstrict = true\ndeadline = 7\nadvertise = \"203.0.113.1\"\n\
         deny-ports = [\"default\", 50001]\n[limits]\nsessions-per-client = 1\n",
    );
    let told = "ftpalg.toml: advertise none -> 203.0.113.1, data-ports 30000-30009 -> 40000-40001, \
                deadline 60 -> 7, deny-ports default -> default,50001, \
                limits.sessions-per-client 4096 -> 1, strict off -> on\n";
    assert!(log.contains(told), "{log}");

    // What was announced stays open, and the session is the same one.
    let mut data = net.within(net.topology().client, || {
        std::net::TcpStream::connect_timeout(&waiting, LIMIT).unwrap()
    });
    old.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
    let mut got = Vec::new();
    data.read_to_end(&mut got).unwrap();
    assert!(got == std::fs::read(server.path(Server::SMALL)).unwrap());
    assert!(old.reply().starts_with("226"));
    assert!((40000..=40001).contains(&port(&mut old)));
    fetch(&net, &mut old, &server);
    assert_eq!(sessions(&net).len(), 1);
    // What may be announced is asked now, what may be said was asked when the session began.
    old.ask("PORT 198,51,100,2,195,81\r\n", "500");
    old.ask("NOSUCH\r\n", "500");
    let counted = status(&net)["counters"]["refused"].clone();
    assert_eq!(counted, 1, "the PORT");

    // A new session is one too many, and it is refused what isn't strictly FTP.
    let mut new = Control::dial(&net);
    new.log_in(&server);
    assert!(new.ask("PASV\r\n", "227").contains("(10,0,0,2,"));
    new.ask("NOSUCH\r\n", "500");
    let answer = status(&net);
    assert_eq!(answer["counters"]["refused"], 2, "{answer:#}");
    assert_eq!(answer["counters"]["not_admitted"], 1, "{answer:#}");
    assert_eq!(answer["data_ports"], "40000-40001");
    assert_eq!(answer["deadline"], 7);
    assert_eq!(answer["limits"]["sessions_per_client"], 1);

    // The other way round.
    let log = alg.reload("");
    assert!(log.contains("strict on -> off"), "{log}");
    fetch(&net, &mut old, &server);
    let mut third = Control::dial(&net);
    third.log_in(&server);
    fetch(&net, &mut third, &server);
    let log = alg.hang_up(0);
    // A transfer's end may be told in the same moment.
    assert!(log.contains("ftpalg.toml: nothing changed\n"), "{log}");
    assert_eq!(status(&net)["counters"]["joined"], 0);
    alg.running.stop();
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

#[test]
fn a_file_with_mistakes_changes_nothing() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Daemon::start(&net, "data-ports = \"30000-30009\"\n", &["--deadline", "9"]);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let before = status(&net);
    let unchanged = || {
        let now = status(&net);
        for field in ["data_ports", "deadline", "limits", "tls"] {
            assert_eq!(now[field], before[field]);
        }
    };
    for (text, lines) in [
        (
            "data-ports = \"40000-40001\"\ndeadlin = 5\n[limits]\nsessions = 0\n",
            &[
                "ftpalg.toml:2: deadlin: unknown key; did you mean deadline?",
                "ftpalg.toml:4: limits.sessions: invalid value 0; choose 1 to",
            ][..],
        ),
        ("data-ports = \n", &["ftpalg.toml:1: data-ports: no value"]),
        (
            "data-ports = \"20-30\"\n",
            &["ftpalg.toml:1: data-ports: 20-30 contains the control port"],
        ),
        // The control port of the file would do, but the one that is there doesn't.
        (
            "port = 2121\ndata-ports = \"20-30\"\n",
            &["contains the control port 21"],
        ),
        (
            "advertise = \"nowhere.invalid\"\n",
            &["nowhere.invalid has no address"],
        ),
    ] {
        let log = alg.reload(text);
        let errors = log.lines().filter(|line| line.contains(" ftpalg: error: "));
        assert_eq!(errors.count(), lines.len() + 1, "{log}");
        for line in lines {
            assert!(log.contains(line), "{line}: {log}");
        }
        assert!(log.contains("all settings stay as they were"), "{log}");
        unchanged();
    }
    std::fs::remove_file(&alg.file).unwrap();
    let log = alg.hang_up(0);
    assert!(log.contains("can't read"), "{log}");
    unchanged();
    assert!((30000..=30009).contains(&port(&mut control)));
    // A flag wins over the file, as at the start.
    let log = alg.reload("deadline = 5\ndata-ports = \"30000-30009\"\n");
    assert!(log.contains("nothing changed"), "{log}");
    alg.running.stop();
}

#[test]
fn what_takes_a_restart_is_told_and_the_rest_changes() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Daemon::start(&net, "", &[]);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let file = "backend = \"iptables\"\nqueues = 4\ntls = \"range:45000-45009\"\nhandover = 1\n";
    std::fs::write(&alg.file, file).unwrap();
    let log = alg.hang_up(3);
    for setting in [
        "backend auto -> iptables",
        "queues 1 -> 4",
        "tls pass -> range:45000-45009",
    ] {
        let line = format!("ftpalg: warn: {setting}: can't change while running; restart ftpalg (");
        assert_eq!(log.matches(&line).count(), 1, "{log}");
    }
    assert!(log.contains("ftpalg.toml: handover 10 -> 1\n"), "{log}");
    let log = alg.hang_up(3);
    assert!(log.contains("queues 1 -> 4: can't"), "{log}");
    assert!(log.contains("ftpalg.toml: nothing else changed\n"), "{log}");
    assert_eq!(status(&net)["backend"], "nft");
    fetch(&net, &mut control, &server);
    // That one goes by the new time.
    let process = alg.running.process().unwrap();
    process.signal(Signal::SIGUSR2);
    assert!(process.wait_for("bye", LIMIT), "{}", process.log());
    let log = process.log();
    assert!(log.contains("stay for a successor for 1 s"), "{log}");
}

/// Again and again, while sessions begin, announce, transfer and end.
#[test]
fn transfers_do_not_notice() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Daemon::start(&net, "", &["--queues", "2"]);
    let (done, reloads) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // As an editor writes it: there is a whole file all the time.
            let new = alg.file.with_extension("new");
            for text in [
                "data-ports = \"30000-30099\"\nstrict = true\n",
                "keep-length = \"off\"\n[limits]\nsessions = 10\n",
            ]
            .iter()
            .cycle()
            {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                std::fs::write(&new, text).unwrap();
                std::fs::rename(&new, &alg.file).unwrap();
                alg.hang_up(0);
                reloads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _ends = Ends(&done);
        let mut downloads = 0;
        while downloads < 20 || reloads.load(Ordering::Relaxed) < 20 {
            download(&net, &server, &[]).must();
            download(&net, &server, &["--ftp-port", "-"]).must();
            downloads += 2;
        }
    });
    let answer = status(&net);
    for counter in ["not_opened", "refused", "table_full", "not_admitted"] {
        assert_eq!(answer["counters"][counter], 0, "{answer:#}");
    }
    assert_eq!(rules::invalid(&net, net.topology().router), 0);
    alg.running.stop();
}

/// Ends a loop, also if the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn without_a_file_there_is_nothing_to_read() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let alg = Alg::Ftpalg(Vec::new()).start(&net, Flavour::Nft);
    let file = net.directory().join("none");
    let alg = Daemon { running: alg, file };
    let log = alg.hang_up(0);
    assert!(
        log.contains("SIGHUP: there is no --config file to read again\n"),
        "{log}"
    );
    alg.running.stop();
}

/// `Type=notify-reload` waits for the second message, and wants the time of the first.
#[test]
fn the_service_manager_is_told() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let path = net.directory().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let next = || {
        let mut bytes = [0; 1000];
        let n = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    };
    let file = net.directory().join("ftpalg.toml");
    std::fs::write(&file, "deadline = 5").unwrap();
    let mut command = net.command(net.topology().router, testkit::paths::ftpalg());
    command
        .args(["run", "--inside", "in0", "--config"])
        .arg(&file);
    command.env("NOTIFY_SOCKET", &path);
    let alg = Process::spawn(command);
    assert_eq!(next().trim(), "READY=1");
    for text in ["deadline = 6", "deadline = 0"] {
        std::fs::write(&file, text).unwrap();
        alg.signal(Signal::SIGHUP);
        let message = next();
        let (reloading, time) = message.trim().split_once('\n').unwrap();
        assert_eq!(reloading, "RELOADING=1");
        let micros = time.strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0, "{time}");
        assert_eq!(next().trim(), "READY=1");
    }
    alg.signal(Signal::SIGTERM);
    assert_eq!(next().trim(), "STOPPING=1");
    alg.finish(LIMIT).must();
}
