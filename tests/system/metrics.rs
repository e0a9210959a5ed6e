//! Metrics: what a scrape shows after real sessions, who is answered, and what Prometheus's own tool says of
//! the page, of the alert rules and of the dashboard.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::alg::Alg;
use testkit::lab::gateway::{Control, LIMIT, ended, ftpalg, gateway, start_with};
use testkit::lab::net::Net;
use testkit::lab::process::{Process, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server, content};
use testkit::paths;

const ADDRESS: &str = "127.0.0.1:9119";
const ARGUMENTS: [&str; 2] = ["--metrics", ADDRESS];

fn connect(net: &Net) -> TcpStream {
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let stream = net.within(net.topology().router, || {
        TcpStream::connect_timeout(&address, LIMIT).unwrap()
    });
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn ask(net: &Net, request: &str) -> String {
    let mut stream = connect(net);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The page.
fn scrape(net: &Net) -> String {
    let answer = ask(net, "GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("\r\nContent-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    page.to_owned()
}

/// Its samples.
fn samples(page: &str) -> BTreeMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name, value.parse().unwrap())
    });
    samples.collect()
}

fn promtool(words: &[&str], input: &str) {
    let mut command = Command::new(paths::unpacked("prometheus/usr/bin/promtool"));
    command.args(words).current_dir(paths::repository());
    let finished = Process::spawn_with_input(command, input).finish(LIMIT);
    finished.must();
}

#[test]
fn a_scrape_tells_what_sessions_did() {
    for backend in ["nft", "iptables"] {
        let net = gateway(Policy::Drop, Flavour::Nft);
        let acct = "net.netfilter.nf_conntrack_acct";
        net.sysctl(net.topology().router, acct, "1");
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        server.publish("large.bin", &content(5, 300_000));
        let alg = start_with(&net, backend, Flavour::Nft, &ARGUMENTS);
        assert!(
            alg.log()
                .contains("metrics at http://127.0.0.1:9119/metrics")
        );
        let before = scrape(&net);
        let before = samples(&before);
        for name in [
            "ftpalg_sessions",
            "ftpalg_packets_total",
            "ftpalg_data_bytes_total",
        ] {
            assert_eq!(before[name], 0.0, "{name}");
        }
        assert_eq!(before["ftpalg_rules_in_place"], 1.0);

        let mut control = Control::dial(&net);
        control.log_in(&server);
        let mut data = control.passive(&net);
        control.ask("RETR large.bin\r\n", "150");
        let mut got = Vec::new();
        data.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 300_000);
        assert!(control.reply().starts_with("226"));
        control.ask("PORT 192,0,2,1,4,1\r\n", "50");

        let page = scrape(&net);
        let all = samples(&page);
        let count = |name: &str| *all.get(name).unwrap_or_else(|| panic!("{name} in {page}"));
        assert_eq!(count("ftpalg_sessions"), 1.0);
        assert_eq!(count("ftpalg_sessions_total"), 1.0);
        assert_eq!(count("ftpalg_announcements_total"), 1.0);
        let same = count("ftpalg_rewrites_total{kind=\"227\",length=\"same\"}");
        let changed = count("ftpalg_rewrites_total{kind=\"227\",length=\"changed\"}");
        assert_eq!(same + changed, 1.0);
        assert_eq!(
            count("ftpalg_rewrites_total{kind=\"PORT\",length=\"same\"}"),
            0.0
        );
        assert_eq!(count("ftpalg_refusals_total"), 1.0);
        assert_eq!(count("ftpalg_pinholes_opened_total"), 1.0);
        assert_eq!(count("ftpalg_pinholes_used_total"), 1.0);
        assert_eq!(count("ftpalg_pinholes"), 0.0);
        let carried = count("ftpalg_data_bytes_total");
        assert!((300_000.0..400_000.0).contains(&carried), "{carried}");
        let packets = count("ftpalg_packets_total");
        assert!(packets > 15.0, "{packets}");
        // They may still be on their way from the one count to the other.
        let timed = count("ftpalg_packet_duration_seconds_count");
        assert!(
            (packets - 1.0..=packets + 1.0).contains(&timed),
            "{timed} of {packets}"
        );
        assert!(count("ftpalg_packet_duration_seconds_sum") > 0.0);
        assert!(count("ftpalg_queue_packets_total{queue=\"2121\"}") >= packets);
        assert_eq!(count("ftpalg_journal_up"), 1.0);
        // No counter goes back.
        for (name, count) in before.iter().filter(|(name, _)| name.contains("_total")) {
            assert!(all[name] >= *count, "{name}");
        }
        for secret in ["192.0.2", "10.0.0", "198.51.100", "203.0.113", "large.bin"] {
            assert!(!page.contains(secret), "{secret}: {page}");
        }
        promtool(&["check", "metrics"], &page);
        alg.stop();
    }
}

/// The look comes after the scrape.
#[test]
fn missing_rules_are_seen_without_a_look_for_each_scrape() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let external = [&ARGUMENTS[..], &["--rules", "external"]].concat();
    let alg = start_with(&net, "nft", Flavour::Nft, &external);
    let in_place = || samples(&scrape(&net))["ftpalg_rules_in_place"];
    assert_eq!(in_place(), 0.0);
    let printed = ftpalg(&net, &["rules", "print", "--inside", "in0"]).must();
    let restore = ["iptables-nft-restore", "--noflush", "-w", "10"];
    net.feed(net.topology().router, &restore, &printed.stdout)
        .must();
    let started = Instant::now();
    while in_place() != 1.0 {
        assert!(started.elapsed() < Duration::from_secs(25));
        std::thread::sleep(Duration::from_millis(50));
    }
    alg.stop();
}

#[test]
fn only_scrapes_are_answered_and_nobody_keeps_them_waiting() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let alg = start_with(&net, "nft", Flavour::Nft, &ARGUMENTS);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
        ("HEAD /metrics HTTP/1.1\r\n\r\n", "405"),
        ("\x16\x03\x01\x02\r\n\r\n", "400"),
    ] {
        let answer = ask(&net, request);
        assert_eq!(
            answer.split(' ').nth(1),
            Some(status),
            "{request:?}: {answer}"
        );
    }
    let pid = alg.process().unwrap().pid();
    // The least of several counts, since others come and go: pipes to tools, netlink sockets.
    let open = || {
        let count = |_| {
            std::thread::sleep(Duration::from_millis(10));
            let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
            open.unwrap().count()
        };
        (0..20).map(count).min().unwrap()
    };
    let before = open();
    let silent: Vec<_> = (0..200).map(|_| connect(&net)).collect();
    let mut slow = connect(&net);
    slow.write_all(b"GET /metrics").unwrap();
    let started = Instant::now();
    scrape(&net);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
    let now = open();
    assert!(now <= before + 16, "{now} instead of {before}");
    // Each of them is given up, at the latest when its time is over.
    let mut last = silent.last().unwrap();
    assert_eq!(last.read(&mut [0; 16]).unwrap_or(0), 0);
    alg.stop();
}

#[test]
fn an_address_that_is_taken_is_told_and_nothing_is_installed() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let router = net.topology().router;
    let listener = net.within(router, || TcpListener::bind(ADDRESS).unwrap());
    let before = rules::snapshot(&net, router);
    for (address, part) in [
        (ADDRESS, "metrics can't be served at 127.0.0.1:9119: "),
        (
            "203.0.113.77:9119",
            "metrics can't be served at 203.0.113.77:9119: ",
        ),
        ("9119", "127.0.0.1:9119"),
        ("127.0.0.1:0", "127.0.0.1:9119"),
        ("localhost:9119", "127.0.0.1:9119"),
    ] {
        let refused = ftpalg(&net, &["run", "--inside", "in0", "--metrics", address]);
        assert_eq!(refused.status.and_then(|s| s.code()), Some(2), "{refused}");
        assert_eq!(refused.log.lines().count(), 1, "{refused}");
        assert!(refused.log.contains(part), "{refused}");
        assert_eq!(rules::snapshot(&net, router), before);
    }
    drop(listener);
}

#[test]
fn a_successor_serves_at_the_same_address() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let words = ARGUMENTS.map(str::to_owned).to_vec();
    let first = Alg::Ftpalg(words.clone()).start(&net, Flavour::Nft);
    scrape(&net);
    let takeover = [words, vec!["--takeover".to_owned()]].concat();
    let second = Alg::Ftpalg(takeover).start(&net, Flavour::Nft);
    let uptime = samples(&scrape(&net))["ftpalg_uptime_seconds"];
    assert!(uptime < 10.0);
    assert!(first.process().unwrap().wait_for("bye", LIMIT));
    second.process().unwrap().signal(Signal::SIGTERM);
    ended(&net);
}

#[test]
fn prometheus_takes_the_alert_rules() {
    promtool(
        &["check", "rules", "packaging/prometheus/ftpalg.rules.yml"],
        "",
    );
    promtool(
        &[
            "test",
            "rules",
            "tests/system/metrics/ftpalg.rules.test.yml",
        ],
        "",
    );
}

/// Each expression of the dashboard is one, as a rule of its own. (That its metrics exist is a unit test.)
#[test]
fn prometheus_takes_the_dashboards_expressions() {
    let file = paths::repository().join("packaging/grafana/ftpalg.json");
    let text = std::fs::read_to_string(file).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let exprs: Vec<_> = targets
        .map(|target| {
            let expr = target["expr"].as_str().unwrap();
            let expr = expr.replace("$__rate_interval", "5m");
            expr.replace("$instance", ".*")
        })
        .collect();
    assert!(exprs.len() > 20);
    let rules = exprs.iter().enumerate().map(|(n, expr)| {
        let expr = serde_json::to_string(expr).unwrap();
        format!("      - record: dashboard:expression:{n}\n        expr: {expr}\n")
    });
    let rules: String = rules.collect();
    let net = testkit::lab::net::Directory::new();
    let path = net.file("dashboard.yml");
    std::fs::write(
        &path,
        format!("groups:\n  - name: dashboard\n    rules:\n{rules}"),
    )
    .unwrap();
    promtool(&["check", "rules", path.to_str().unwrap()], "");
    // It can fail.
    std::fs::write(
        &path,
        "groups:\n  - name: x\n    rules:\n      - record: a\n        expr: \"rate(x[5m]\"\n",
    )
    .unwrap();
    let mut command = Command::new(paths::unpacked("prometheus/usr/bin/promtool"));
    command
        .args(["check", "rules", path.to_str().unwrap()])
        .stdin(Stdio::null());
    assert!(!run(command, LIMIT).ok());
}
