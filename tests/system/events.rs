//! `ftpalg events`: records of sessions, logins, transfers and refusals, with real servers and clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use testkit::lab::alg::Running;
use testkit::lab::gateway::{Control, HOSTS, LIMIT, ended, ftpalg, gateway, start_with, status};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, Process, run};
use testkit::lab::rules::{Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server, Tls, content};
use testkit::paths;

/// How soon the end of a transfer is to be known: long before conntrack forgets it (120 s).
const SOON: Duration = Duration::from_secs(8);

/// The records, with these filters.
fn events(net: &Net, filters: &[&str]) -> Vec<Value> {
    let words = [&["events", "--json"], filters].concat();
    let told = ftpalg(net, &words).must();
    let records = told.stdout.lines().map(serde_json::from_str);
    records.collect::<Result<_, _>>().unwrap()
}

/// The same once there are so many.
#[track_caller]
fn wait_for(net: &Net, filters: &[&str], count: usize) -> Vec<Value> {
    let deadline = Instant::now() + SOON;
    loop {
        let records = events(net, filters);
        if records.len() >= count {
            assert_eq!(records.len(), count, "{filters:?}: {records:#?}");
            return records;
        }
        assert!(
            Instant::now() < deadline,
            "{filters:?}: {records:#?} of {:#?}",
            events(net, &[])
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn curl(net: &Net, server: &Server, options: &[&str], path: &str) -> Finished {
    let mut command = net.command(net.topology().client, "curl");
    let login = server.login();
    command
        .args([
            "-sS",
            "-k",
            "--noproxy",
            "*",
            "--max-time",
            "10",
            "-o",
            "got",
        ])
        .args(["--user", &format!("{}:{}", login.user, login.password)])
        .args(options)
        .arg(format!("ftp://{}/{path}", net.topology().dial));
    run(command, LIMIT)
}

/// A gateway where conntrack counts bytes.
fn counting(flavour: Flavour) -> Net {
    let net = gateway(Policy::Drop, flavour);
    let router = net.topology().router;
    net.sysctl(router, "net.netfilter.nf_conntrack_acct", "1");
    net
}

#[test]
fn a_session_is_told_from_its_start_to_its_end() {
    for (backend, flavour) in [HOSTS[0], HOSTS[3]] {
        let net = counting(flavour);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        server.publish("large file.bin", &content(5, 300_000));
        let alg = start_with(&net, backend, flavour, &[]);
        let login = server.login();
        let mut control = Control::dial(&net);
        control.log_in(&server);
        let mut data = control.passive(&net);
        let live = status(&net)["data_connections"].clone();
        control.ask("RETR large file.bin\r\n", "150");
        let mut got = Vec::new();
        data.read_to_end(&mut got).unwrap();
        assert!(control.reply().starts_with("226"));
        drop(data);
        let [transfer] = wait_for(&net, &["--kind", "transfer"], 1)
            .try_into()
            .unwrap();
        for (field, value) in [
            ("session", Value::from(1)),
            ("command", "RETR".into()),
            ("file", "large file.bin".into()),
            ("user", login.user.into()),
            ("direction", "download".into()),
            ("mode", "passive".into()),
            ("tls", false.into()),
            ("reply", 226.into()),
            ("complete", true.into()),
        ] {
            assert_eq!(transfer[field], value, "{field}: {transfer:#}");
        }
        let bytes = transfer["bytes"].as_u64().unwrap();
        assert!((300_000..400_000).contains(&bytes), "{transfer:#}");
        let address = |field: &str| transfer[field].as_str().unwrap().to_owned();
        assert!(
            address("announced").starts_with("10.0.0.2:"),
            "{transfer:#}"
        );
        assert!(
            address("rewritten").starts_with("203.0.113.1:"),
            "{transfer:#}"
        );
        assert_eq!(address("to"), address("rewritten"), "{transfer:#}");
        assert_eq!(address("land"), address("announced"), "{transfer:#}");
        assert_eq!(live, 1, "it was there before the transfer");
        assert_eq!(status(&net)["data_connections"], 0, "it is over");
        // A directory that isn't there.
        control.passive(&net);
        control.ask("RETR nothing\r\n", "550");
        let refused = wait_for(&net, &["--refused", "--kind", "transfer"], 1);
        assert_eq!(refused[0]["reply"], 550, "{refused:#?}");
        control.ask("QUIT\r\n", "221");
        drop(control);
        let [end] = wait_for(&net, &["--kind", "session-end"], 1)
            .try_into()
            .unwrap();
        assert_eq!(end["cause"], "FIN", "{end:#}");
        let client = transfer["client"].as_str().unwrap();
        let ip = client.split(':').next().unwrap();
        let kinds = |filters: &[&str]| {
            let kind = |record: &Value| record["kind"].as_str().unwrap().to_owned();
            events(&net, filters).iter().map(kind).collect::<Vec<_>>()
        };
        let all = [
            "session-start",
            "login",
            "transfer",
            "transfer",
            "session-end",
        ];
        assert_eq!(kinds(&["--client", ip]), all);
        assert_eq!(kinds(&["--session", "1", "--server", "10.0.0.2"]), all);
        assert_eq!(kinds(&["--server", "10.0.0.3"]), [""; 0]);
        assert_eq!(kinds(&["--kind", "start"]), ["start"]);
        // What is past is in the list only if asked for.
        let past = ftpalg(&net, &["pinholes", "--all", "--json"]).must();
        let past: Vec<Value> = serde_json::from_str(&past.stdout).unwrap();
        assert!(
            past.iter().any(|hole| {
                hole["state"] == "over" && hole["bytes"] == bytes && hole["rate"].is_u64()
            }),
            "{past:#?}"
        );
        let text = ftpalg(&net, &["events"]).must().stdout;
        assert!(text.contains("RETR \"large file.bin\" done, "), "{text}");
        let log = alg.stop();
        assert!(
            log.contains(" closed after ") && log.contains(" bytes\n"),
            "{log}"
        );
        assert!(
            !log.contains("large file.bin") && !log.contains("RETR"),
            "{log}"
        );
    }
}

#[test]
fn active_transfers_uploads_and_names_that_are_left_out() {
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let server = Server::start(&net, &Config::new(Kind::Proftpd));
    let alg = start_with(&net, backend, flavour, &["--events-names", "no"]);
    let client = net.directory().join("upload.bin");
    std::fs::write(&client, content(3, 50_000)).unwrap();
    curl(&net, &server, &["-P", "-", "--disable-eprt"], Server::SMALL).must();
    let client = client.display().to_string();
    let target = format!("{}/upload.bin", Server::UPLOADS);
    curl(&net, &server, &["-T", &client], &target).must();
    let transfers = wait_for(&net, &["--kind", "transfer"], 2);
    let of = |n: usize, field: &str| transfers[n][field].clone();
    assert_eq!(
        (of(0, "mode"), of(0, "direction")),
        ("active".into(), "download".into())
    );
    assert_eq!(
        (of(1, "mode"), of(1, "direction")),
        ("passive".into(), "upload".into())
    );
    assert_eq!(
        (of(0, "complete"), of(1, "complete")),
        (true.into(), true.into())
    );
    let all = ftpalg(&net, &["events", "--json"]).must().stdout;
    let login = server.login();
    for name in ["upload.bin", Server::SMALL, &format!("\"{}\"", login.user)] {
        assert!(!all.contains(name), "{name} in {all}");
    }
    alg.stop();
}

/// A password is typed in many places, and is in none of what ftpalg says.
#[test]
fn passwords_are_nowhere() {
    const SECRET: &str = "hunter2-hunter2";
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let _server = Server::start(&net, &Config::new(Kind::Pyftpdlib));
    let file = net.directory().join("events.json");
    let named = file.display().to_string();
    let more = ["--strict", "--events", &named];
    let alg = start_with(&net, backend, flavour, &more);
    let typed = [
        (format!("USER lab\r\nPASS {SECRET}\r\n"), 2),
        (format!("PASS {SECRET}\r\n"), 1),
        (format!("ACCT {SECRET}\r\n"), 1),
        (format!("USER lab\r\npass {SECRET} {SECRET}\r\n"), 2),
        (format!("{SECRET}\r\n"), 1),
        (format!("PASSWORD {SECRET}\r\n"), 1),
        (format!("\x01PASS {SECRET}\r\n"), 1),
    ];
    for (lines, replies) in &typed {
        let mut control = Control::dial(&net);
        control.reply();
        control.send(lines);
        for _ in 0..*replies {
            control.reply();
        }
    }
    wait_for(&net, &["--kind", "session-end"], typed.len());
    let refused = events(&net, &["--kind", "login-refused"]);
    assert!(
        !refused.is_empty() && refused[0]["user"] == "lab",
        "{refused:#?}"
    );
    let said = [
        ftpalg(&net, &["events"]).must().stdout,
        ftpalg(&net, &["events", "--json"]).must().stdout,
        ftpalg(&net, &["sessions", "--json"]).must().stdout,
        alg.stop(),
        std::fs::read_to_string(&file).unwrap(),
    ];
    for text in said {
        assert!(!text.is_empty() && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn refusals_name_their_rule_and_what_would_allow_them() {
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = start_with(&net, backend, flavour, &[]);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    control.ask("PORT 192,0,2,77,195,81\r\n", "50");
    let [refused] = wait_for(&net, &["--refused"], 1).try_into().unwrap();
    for (field, value) in [
        ("kind", "refused"),
        ("command", "PORT"),
        ("why", "somebody else's address"),
        ("address", "192.0.2.77:50001"),
        ("rule", "allow-foreign"),
        ("allowed_by", "--allow-foreign 192.0.2.77"),
    ] {
        assert_eq!(refused[field], value, "{refused:#}");
    }
    let log = alg.stop();
    let line = "PORT refused: somebody else's address \
                (192.0.2.77:50001; --allow-foreign 192.0.2.77 allows it)";
    assert!(log.contains(line), "{log}");
}

#[test]
fn transfers_under_tls_are_told_when_they_end() {
    for (backend, flavour) in [HOSTS[0], HOSTS[2]] {
        let net = counting(flavour);
        let server = Server::start(
            &net,
            &Config {
                announce: Some(net.topology().dial.ip()),
                passive_ports: Some((40000, 40029)),
                tls: Some(Tls::Explicit),
                ..Config::new(Kind::Pyftpdlib)
            },
        );
        let alg = start_with(&net, backend, flavour, &["--tls", "range:40000-40029"]);
        curl(&net, &server, &["--ssl-reqd"], Server::SECOND).must();
        let transfers = wait_for(&net, &["--kind", "transfer"], 1);
        assert_eq!(transfers[0]["tls"], true, "{transfers:#?}");
        assert_eq!(transfers[0]["command"], Value::Null, "{transfers:#?}");
        assert!(
            transfers[0]["bytes"].as_u64().unwrap() > 1000,
            "{transfers:#?}"
        );
        alg.stop();
    }
}

/// `ftpalg events -f` on the gateway.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn start(net: &Net, filters: &[&str]) -> Self {
        let mut command = net.command(net.topology().router, paths::ftpalg());
        command.args(["events", "-f", "--json"]).args(filters);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next record; `None` at the end.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn followers_get_what_comes_until_the_daemon_ends() {
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = start_with(&net, backend, flavour, &[]);
    let mut all = Follower::start(&net, &[]);
    assert_eq!(all.next().unwrap()["kind"], "start");
    let mut logins = Follower::start(&net, &["--kind", "login"]);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    assert_eq!(logins.next().unwrap()["session"], 1);
    assert_eq!(all.next().unwrap()["kind"], "session-start");
    assert_eq!(all.next().unwrap()["kind"], "login");
    // They take nobody's turn: all places are taken, and others are answered.
    let more: Vec<_> = (0..6).map(|_| Follower::start(&net, &[])).collect();
    for mut follower in more {
        assert!(follower.next().is_some());
        assert_eq!(status(&net)["in_place"], true);
        // It reads no more: that harms nobody.
        std::mem::forget(follower.child.stdout.take());
    }
    alg.process().unwrap().signal(Signal::SIGHUP);
    assert_eq!(status(&net)["sessions"], 1);
    let log = alg.stop();
    assert!(log.contains("bye"), "{log}");
    let kinds: Vec<_> = std::iter::from_fn(|| all.next())
        .map(|record| record["kind"].as_str().unwrap().to_owned())
        .collect();
    assert!(kinds.contains(&"stop".to_owned()), "{kinds:?}");
    assert_eq!(
        all.child.wait().unwrap().code(),
        Some(0),
        "it ends with the daemon"
    );
}

#[test]
fn what_still_runs_is_told_at_the_end() {
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    server.publish("large.bin", &content(5, 8_000_000));
    let file = net.directory().join("events.json");
    let named = file.display().to_string();
    let alg = start_with(&net, backend, flavour, &["--events", &named]);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let mut data = control.passive(&net);
    control.ask("RETR large.bin\r\n", "150");
    data.read_exact(&mut [0; 1000]).unwrap();
    let holes = ftpalg(&net, &["pinholes", "--json"]).must();
    let holes: Vec<Value> = serde_json::from_str(&holes.stdout).unwrap();
    assert_eq!(holes[0]["state"], "used", "{holes:#?}");
    assert!(holes[0]["bytes"].as_u64().unwrap() >= 1000, "{holes:#?}");
    let log = alg.stop();
    let line = log
        .lines()
        .find(|line| line.contains(" goes on without ftpalg after "));
    assert!(line.is_some_and(|line| line.ends_with(" bytes")), "{log}");
    let records = lines(&file);
    let [transfer] = records
        .iter()
        .filter(|record| record["kind"] == "transfer")
        .collect::<Vec<_>>()[..]
    else {
        panic!("not one transfer: {records:#?}");
    };
    assert_eq!(transfer["command"], "RETR", "{transfer:#?}");
    assert_eq!(transfer["file"], "large.bin");
    assert_eq!(transfer["reply"], Value::Null);
    assert_eq!(transfer["complete"], false);
    assert!(transfer["bytes"].as_u64().unwrap() >= 1000, "{transfer:#?}");
    assert_eq!(records.last().unwrap()["kind"], "stop");
}

/// Reads all lines of a file of records.
fn lines(path: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let records = text.lines().map(serde_json::from_str);
    records.collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_file_has_the_records_and_is_made_again_when_it_was_moved() {
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let (file, moved) = (
        net.directory().join("events.json"),
        net.directory().join("events.old"),
    );
    let named = file.display().to_string();
    let alg: Running<'_> = start_with(&net, backend, flavour, &["--events", &named]);
    Control::dial(&net).log_in(&server);
    wait_for(&net, &["--kind", "session-end"], 1);
    std::fs::rename(&file, &moved).unwrap();
    Control::dial(&net).log_in(&server);
    wait_for(&net, &["--kind", "session-end"], 2);
    let kind = |record: &Value| record["kind"].as_str().unwrap().to_owned();
    let session = ["session-start", "login", "session-end"];
    let before: Vec<_> = lines(&moved).iter().map(kind).collect();
    assert_eq!(before[0], "start");
    assert_eq!(before[1..], session);
    let after: Vec<_> = lines(&file).iter().map(kind).collect();
    assert_eq!(after, session);
    alg.stop();
    assert_eq!(kind(lines(&file).last().unwrap()), "stop");
    // One that can't be opened is told before anything is done.
    let refused = ftpalg(
        &net,
        &["run", "--inside", "in0", "--events", "/nowhere/events.json"],
    );
    testkit::lab::gateway::refused(&refused, 2, "--events /nowhere/events.json");
}

/// A file system with little room, in the tests' own mount namespace, which is the daemon's as well.
struct Mounted<'a> {
    net: &'a Net,
    place: &'a str,
}

impl<'a> Mounted<'a> {
    fn new(net: &'a Net, place: &'a str) -> Self {
        let words = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", place];
        net.exec(net.topology().router, &words).must();
        Self { net, place }
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let words = ["umount", "-l", self.place];
        self.net.exec(self.net.topology().router, &words);
    }
}

#[test]
fn a_full_disk_is_said_once_and_forgiven() {
    let (backend, flavour) = HOSTS[0];
    let net = counting(flavour);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let directory = net.directory().join("small");
    std::fs::create_dir(&directory).unwrap();
    let place = directory.display().to_string();
    let small = Mounted::new(&net, &place);
    let filler = directory.join("filler");
    let file = directory.join("events.json");
    let named = file.display().to_string();
    let alg = start_with(&net, backend, flavour, &["--events", &named]);
    let mut hole = std::fs::File::create(&filler).unwrap();
    while hole.write(&[0; 1024]).is_ok_and(|n| n > 0) {}
    // More than what is left of a page.
    for _ in 0..20 {
        Control::dial(&net).log_in(&server);
    }
    wait_for(&net, &["--kind", "session-end"], 20);
    std::fs::remove_file(&filler).unwrap();
    drop(hole);
    let deadline = Instant::now() + LIMIT;
    while !alg.log().contains("works again") {
        assert!(Instant::now() < deadline, "{}", alg.log());
        Control::dial(&net).log_in(&server);
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = alg.stop();
    let records = lines(&file);
    drop(small);
    let said = |what: &str| log.matches(what).count();
    // Twice only if all of that took longer than it is left alone.
    assert!((1..=2).contains(&said("can't be written to")), "{log}");
    assert_eq!(said("can't be written to"), said("works again"), "{log}");
    assert_eq!(records.last().unwrap()["kind"], "stop", "whole lines only");
}

/// A daemon whose system log is a socket of the test's.
fn logging(net: &Net, dialect: &str, socket: &std::path::Path) -> Process {
    // In a mount namespace of its own, since the host may have a log.
    let script = r#"mount -t tmpfs none /run && mkdir -p /run/systemd/journal
        ln -s "$2" /run/systemd/journal/socket
        mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && ln -s "$2" /dev/log
        exec "$1" run --inside in0 --state none --events "$3""#;
    let mut command = net.command(net.topology().router, "unshare");
    command
        .args(["--mount", "sh", "-ec", script, "sh", paths::ftpalg()])
        .arg(socket)
        .arg(dialect);
    let daemon = Process::spawn(command);
    assert!(daemon.wait_for("ready", LIMIT), "{}", daemon.log());
    daemon
}

/// The messages that come until one is about this kind.
fn messages(log: &UnixDatagram, last: &str) -> Vec<String> {
    log.set_read_timeout(Some(SOON)).unwrap();
    let mut buffer = [0; 16 << 10];
    let mut all = Vec::new();
    loop {
        let length = log.recv(&mut buffer).unwrap_or_else(|e| {
            panic!("{e} before {last}: {all:#?}");
        });
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let is_last = text.contains(&format!(" {last} [")) || text.contains(&format!("={last}\n"));
        all.push(text);
        if is_last {
            return all;
        }
    }
}

#[test]
fn the_systems_log_gets_every_record() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let socket = net.directory().join("log");
    for dialect in ["syslog", "journald"] {
        let mut log = UnixDatagram::bind(&socket).unwrap();
        let daemon = logging(&net, dialect, &socket);
        let user = server.login().user;
        let mut control = Control::dial(&net);
        control.log_in(&server);
        control.send("PORT 192,0,2,77,195,80\r\n");
        control.reply();
        let mut told = messages(&log, "refused");
        // The log is started again.
        drop(log);
        std::fs::remove_file(&socket).unwrap();
        log = UnixDatagram::bind(&socket).unwrap();
        control.ask("QUIT\r\n", "221");
        drop(control);
        told.extend(messages(&log, "session-end"));
        daemon.signal(Signal::SIGTERM);
        told.extend(messages(&log, "stop"));
        let password = server.login().password;
        assert!(
            told.iter().all(|text| !text.contains(password)),
            "{told:#?}"
        );
        let kinds = [
            "start",
            "session-start",
            "login",
            "refused",
            "session-end",
            "stop",
        ];
        assert_eq!(told.len(), kinds.len(), "{told:#?}");
        for (text, kind) in told.iter().zip(kinds) {
            let warning = kind == "refused";
            let parts = match dialect {
                "syslog" => vec![
                    format!("<{}>1 ", if warning { 28 } else { 30 }),
                    format!(" ftpalg {} {kind} [ftpalg@32473 ", daemon.pid()),
                ],
                _ => vec![
                    format!("PRIORITY={}\n", if warning { 4 } else { 6 }),
                    format!("FTPALG_KIND={kind}\n"),
                    "SYSLOG_IDENTIFIER=ftpalg\n".to_owned(),
                ],
            };
            for part in parts {
                assert!(text.contains(&part), "{part:?} in {text:?}");
            }
        }
        let named = match dialect {
            "syslog" => format!(" user=\"{user}\""),
            _ => format!("FTPALG_USER={user}\n"),
        };
        assert!(told[2].contains(&named), "{named:?} in {:?}", told[2]);
        std::fs::remove_file(&socket).unwrap();
        ended(&net);
    }
}
