//! `ftpalg doctor` on hosts that each have one of the problems: it finds that one, its command mends it,
//! and it leaves no trace.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use ftpalg::queue::nfq::NfqQueue;
use testkit::lab::alg::Running;
use testkit::lab::gateway::{Control, LIMIT, ftpalg, gateway, start};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::{Topology, host};
use testkit::paths;

const FLAVOURS: [Flavour; 2] = [Flavour::Nft, Flavour::Legacy];

/// What `doctor --json` says with these arguments, and its exit code.
fn doctor(net: &Net, words: &[&str]) -> (i32, Value) {
    let finished = ftpalg(net, &[&["doctor", "--json"], words].concat());
    let code = finished.status.and_then(|status| status.code());
    let value = serde_json::from_str(&finished.stdout);
    (
        code.unwrap(),
        value.unwrap_or_else(|e| panic!("{e}: {finished}")),
    )
}

/// The findings that aren't `ok`, as `id level`.
fn wrong(value: &Value) -> Vec<String> {
    let all = value["findings"].as_array().unwrap().iter();
    all.filter(|one| one["level"] != "ok")
        .map(|one| {
            format!(
                "{} {}",
                one["id"].as_str().unwrap(),
                one["level"].as_str().unwrap()
            )
        })
        .collect()
}

fn of<'a>(value: &'a Value, id: &str) -> &'a Value {
    let mut all = value["findings"].as_array().unwrap().iter();
    all.find(|one| one["id"] == id)
        .unwrap_or_else(|| panic!("no {id} in {value:#}"))
}

fn sh(net: &Net, script: &str) -> Finished {
    net.exec(net.topology().router, &["sh", "-ec", script])
}

/// Does what a finding says.
fn mend(net: &Net, finding: &Value) {
    let command = finding["command"].as_str().unwrap();
    let ours = paths::ftpalg();
    let command = match command.strip_prefix("ftpalg ") {
        Some(rest) => format!("{} {rest}", Path::new(ours).display()),
        None => command.to_owned(),
    };
    sh(net, &command).must();
}

/// The one thing that is wrong, which its command mends.
#[track_caller]
fn finds(net: &Net, words: &[&str], id: &str, level: &str) {
    let (code, value) = doctor(net, words);
    assert_eq!(wrong(&value), [format!("{id} {level}")], "{value:#}");
    assert_eq!(code, if level == "problem" { 1 } else { 4 });
    assert_eq!(value["worst"], level);
    let finding = of(&value, id);
    assert!(finding["means"].is_string(), "{finding:#}");
    mend(net, finding);
    let (code, value) = doctor(net, words);
    assert_eq!(wrong(&value), Vec::<String>::new(), "{value:#}");
    assert_eq!(code, 0);
}

const INSIDE: [&str; 2] = ["--inside", "in0"];

#[test]
fn a_host_that_is_fit() {
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        for words in [&INSIDE[..], &[]] {
            let (code, value) = doctor(&net, words);
            assert_eq!(wrong(&value), Vec::<String>::new(), "{value:#}");
            assert_eq!((code, &value["worst"]), (0, &Value::from("ok")));
            let published = of(&value, "published")["what"].as_str().unwrap();
            assert!(
                published.contains("203.0.113.1:21 -> 10.0.0.2:21 on in0"),
                "{published}"
            );
        }
        let text = ftpalg(&net, &["doctor"]).must().stdout;
        assert!(text.contains("this host is fit for FTP"), "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }
}

/// All that a program could have left: rules, tables of both flavours, settings, connections.
fn everything(net: &Net) -> String {
    let names = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; nft list tables";
    let settings = "cd /proc/sys/net && find . -type f ! -name nf_conntrack_count ! -name flush \
        ! -name '*stable_secret' ! -name random* ! -name '*rss_key' -readable | sort | xargs grep -sH ''";
    let connections =
        "conntrack -L 2>/dev/null | wc -l; cat /proc/modules 2>/dev/null | cut -d' ' -f1";
    // First what looking for the rest could change.
    [names, settings, connections]
        .map(|script| {
            net.exec(net.topology().router, &["sh", "-c", script])
                .stdout
        })
        .concat()
}

#[test]
fn it_leaves_no_trace() {
    // A host where nobody has touched a table, and hosts with rules.
    let bare = Net::new(&Topology::bare(vec![host("h", &[])], Vec::new()));
    let nets = [
        bare,
        gateway(Policy::Drop, Flavour::Nft),
        gateway(Policy::Drop, Flavour::Legacy),
    ];
    for net in &nets {
        let before = everything(net);
        for words in [
            &["--inside", "lo"][..],
            &[],
            &["--local", "--rules", "external"],
        ] {
            doctor(net, words);
            ftpalg(net, &["doctor"]);
            assert_eq!(everything(net), before);
        }
        let file = net.directory().join("trace");
        ftpalg(net, &["doctor", "--bundle", file.to_str().unwrap()]);
        assert!(file.exists());
        assert_eq!(everything(net), before);
    }
    for net in &nets[1..] {
        let before = rules::snapshot(net, net.topology().router);
        doctor(net, &INSIDE);
        assert_eq!(rules::snapshot(net, net.topology().router), before);
    }
}

#[test]
fn a_forward_chain_that_drops() {
    for flavour in FLAVOURS {
        let iptables = flavour.iptables();
        let net = gateway(Policy::Accept, flavour);
        let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT";
        sh(
            &net,
            &format!("{iptables} -w 5 -P FORWARD DROP; {iptables} -w 5 {established}"),
        )
        .must();
        finds(&net, &INSIDE, "firewall", "problem");
        // Answers that don't come back.
        sh(
            &net,
            &format!("{iptables} -w 5 {}", established.replace("-A", "-D")),
        )
        .must();
        finds(&net, &INSIDE, "firewall", "problem");
    }
}

#[test]
fn a_chain_of_nft_that_drops() {
    let net = gateway(Policy::Accept, Flavour::Nft);
    sh(
        &net,
        "nft 'table inet fw {
            chain web { tcp dport { 80, 443 } accept
            }
            chain forward { type filter hook forward priority 0; policy drop;
                ct state vmap { established : accept, related : accept, invalid : drop }
                jump web
            }
        }'",
    )
    .must();
    finds(&net, &INSIDE, "firewall", "problem");
    // One that accepts by interface, address and port.
    sh(
        &net,
        "nft delete table inet fw
        nft 'table inet fw {
            set servers { type ipv4_addr; elements = { 10.0.0.2, 10.0.0.9 }
            }
            chain forward { type filter hook forward priority 0; policy drop;
                ct state established,related accept
                oifname in0 ip daddr @servers tcp dport 20-22 ct state new accept
            }
        }'",
    )
    .must();
    let (_, value) = doctor(&net, &INSIDE);
    assert_eq!(wrong(&value), Vec::<String>::new(), "{value:#}");
}

#[test]
fn rules_that_keep_packets_from_ftpalg() {
    for flavour in FLAVOURS {
        let iptables = flavour.iptables();
        for (rule, id) in [
            (
                "-t raw -A PREROUTING -s 10.0.0.0/24 -j ACCEPT",
                "hidden-packets",
            ),
            (
                "-t raw -A PREROUTING -p tcp --sport 21 -j DROP",
                "hidden-packets",
            ),
            (
                "-t mangle -A POSTROUTING -d 10.0.0.2 -j ACCEPT",
                "hidden-packets",
            ),
            (
                "-t raw -A PREROUTING -p tcp --dport 21 -j CT --notrack",
                "untracked",
            ),
            (
                "-t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp",
                "kernel-helper",
            ),
        ] {
            let net = gateway(Policy::Drop, flavour);
            let made = sh(&net, &format!("{iptables} -w 5 {rule}"));
            if id == "kernel-helper" && !made.ok() {
                eprintln!("SKIPPED: this kernel has no helper for FTP");
                continue;
            }
            made.must();
            finds(&net, &INSIDE, id, "problem");
        }
    }
}

#[test]
fn a_flowtable() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let table = |condition: &str| {
        format!(
            "nft 'table inet fast {{ flowtable ft {{ hook ingress priority 0; devices = {{ in0, out0 }}; }}
                chain forward {{ type filter hook forward priority 0; {condition} flow add @ft; }} }}'"
        )
    };
    if !sh(&net, &table("ip protocol tcp")).ok() {
        eprintln!("SKIPPED: this kernel has no flowtables");
        return;
    }
    finds(&net, &INSIDE, "flowtable", "problem");
    sh(&net, "nft delete table inet fast").must();
    sh(&net, &table("tcp dport != 21 tcp sport != 21")).must();
    assert_eq!(doctor(&net, &INSIDE).0, 0);
}

#[test]
fn settings_that_contradict_the_rules() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let told = |words: &[&str], id: &str| {
        let (_, value) = doctor(&net, words);
        assert_ne!(of(&value, id)["level"], "ok", "{value:#}");
        of(&value, id)["command"].as_str().unwrap().to_owned()
    };
    let command = told(&["--inside", "in0", "--port", "2121"], "port-mismatch");
    assert!(command.ends_with("--port 21"), "{command}");
    sh(&net, "ip route add default via 198.51.100.2").must();
    let command = told(&["--inside", "out0"], "inside-is-outside");
    assert_eq!(command, "ftpalg run --inside in0");
    let command = told(&["--inside", "eth9"], "inside");
    assert_eq!(command, "ip link");
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        finds(
            &net,
            &["--inside", "in0", "--rules", "external"],
            "external-rules",
            "problem",
        );
    }
}

#[test]
fn settings_of_the_kernel() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let router = net.topology().router;
    net.sysctl(router, "net.ipv4.ip_forward", "0");
    finds(&net, &INSIDE, "forwarding", "problem");
    net.sysctl(router, "net.netfilter.nf_conntrack_events", "0");
    finds(&net, &INSIDE, "conntrack-events", "problem");
    // Two ways out, and a strict filter on one of them.
    sh(
        &net,
        "ip link add out1 type veth peer name far1; ip link set out1 up; ip link set far1 up",
    )
    .must();
    sh(
        &net,
        "ip addr add 192.0.2.1/24 dev out1; ip route add default via 198.51.100.2",
    )
    .must();
    sh(&net, "ip route add default via 192.0.2.2 metric 9").must();
    assert_eq!(doctor(&net, &INSIDE).0, 0);
    net.sysctl(router, "net.ipv4.conf.out1.rp_filter", "1");
    finds(&net, &INSIDE, "rp-filter", "warning");
}

#[test]
fn the_network_around() {
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        sh(&net, "ip route add default via 198.51.100.2").must();
        assert_eq!(doctor(&net, &INSIDE).0, 0);
        sh(&net, "ip link set out0 mtu 1400").must();
        let (_, value) = doctor(&net, &INSIDE);
        assert_eq!(wrong(&value), ["mtu warning"], "{value:#}");
        mend(&net, of(&value, "mtu"));
        assert_eq!(doctor(&net, &INSIDE).0, 0);
        sh(&net, "ip -6 route add 64:ff9b::/96 dev in0").must();
        let (code, value) = doctor(&net, &INSIDE);
        assert_eq!((code, wrong(&value)), (4, vec!["nat64 warning".to_owned()]));
        sh(&net, "ip -6 route del 64:ff9b::/96 dev in0").must();
        // The address outside becomes a private one, then a provider's.
        for address in ["192.168.178.2", "100.72.0.2"] {
            sh(
                &net,
                &format!(
                    "ip addr flush dev out0; ip addr add {address}/24 dev out0
                    ip route replace default dev out0"
                ),
            )
            .must();
            let (code, value) = doctor(&net, &INSIDE);
            assert_eq!(
                (code, wrong(&value)),
                (4, vec!["upstream-nat warning".to_owned()])
            );
            let finding = of(&value, "upstream-nat");
            assert!(
                finding["what"].as_str().unwrap().contains(address),
                "{finding}"
            );
            assert_eq!(
                finding["command"],
                "ftpalg run --inside in0 --advertise PUBLIC"
            );
            let public = [&INSIDE[..], &["--advertise", "203.0.113.9"]].concat();
            assert_eq!(doctor(&net, &public).0, 0);
        }
    }
}

#[test]
fn a_host_without_any_rule() {
    let net = Net::new(&Topology::bare(vec![host("h", &[])], Vec::new()));
    let (code, value) = doctor(&net, &[]);
    assert_eq!(code, 1);
    assert!(
        wrong(&value).contains(&"inside problem".to_owned()),
        "{value:#}"
    );
}

#[test]
fn programs_beside_it() {
    for flavour in FLAVOURS {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let queue = net.within(router, || NfqQueue::open(2121).unwrap());
        let (code, value) = doctor(&net, &INSIDE);
        assert_eq!(
            (code, wrong(&value)),
            (1, vec!["queue-taken problem".to_owned()])
        );
        let command = of(&value, "queue-taken")["command"].as_str().unwrap();
        assert!(
            command.starts_with("ftpalg run --inside in0 --queue-num "),
            "{command}"
        );
        drop(queue);
        assert_eq!(doctor(&net, &INSIDE).0, 0);

        // A daemon that runs, one that lacks a rule, and one that was killed.
        let alg = start(&net, "auto", flavour);
        let (code, value) = doctor(&net, &[]);
        assert_eq!((code, wrong(&value)), (0, Vec::new()), "{value:#}");
        assert!(
            of(&value, "running")["what"]
                .as_str()
                .unwrap()
                .contains("runs here")
        );
        kill(&net, alg);
        finds(&net, &INSIDE, "rules-left", "problem");
    }
}

fn kill(net: &Net, alg: Running<'_>) {
    alg.process().unwrap().signal(Signal::SIGKILL);
    testkit::lab::gateway::ended(net);
    drop(alg);
}

#[test]
fn a_bundle_tells_all_but_who() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = start(&net, "nft", Flavour::Nft);
    let mut control = Control::dial(&net);
    control.log_in(&server);
    let data = control.passive(&net);
    let file = net.directory().join("report.txt");
    let words = ["doctor", "--bundle", file.to_str().unwrap()];
    ftpalg(&net, &words).must();
    let text = std::fs::read_to_string(&file).unwrap();
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for heading in [
        "findings",
        "/proc/sys/kernel/osrelease",
        "iptables-nft-save",
        "nft list ruleset",
        "settings of the kernel",
        "ftpalg status",
        "ftpalg sessions",
        "ftpalg pinholes",
    ] {
        assert!(
            text.contains(&format!("\n=== {heading}\n")),
            "{heading} in {text}"
        );
    }
    // The same peer in the lists of sessions and of pinholes, and the server in the rules.
    let client: SocketAddr = control.0.get_ref().local_addr().unwrap();
    let login = server.login();
    for secret in [
        &client.ip().to_string(),
        "203.0.113.1",
        login.user,
        login.password,
    ] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let section = |name: &str| {
        text.split("\n=== ")
            .find(|part| part.starts_with(name))
            .unwrap()
    };
    let name = |section: &str| {
        let at = section.find("public-").unwrap();
        section[at..].split([':', '"']).next().unwrap().to_owned()
    };
    let peer = name(section("ftpalg sessions"));
    assert!(section("ftpalg pinholes").contains(&peer), "{peer}: {text}");
    assert!(section("iptables-nft-save").contains("10.0.0.2"), "{text}");

    // Nothing is overwritten.
    let again = ftpalg(&net, &words);
    testkit::lab::gateway::refused(&again, 2, "is there already");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    drop(data);
    alg.stop();
}

#[test]
fn what_it_cannot_look_at_is_said() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    // Without capabilities: nothing can be read, and that is the first thing to say.
    let mut command = net.command(net.topology().router, "setpriv");
    command.args([
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--reuid=65534",
        "--clear-groups",
    ]);
    command
        .arg(paths::ftpalg())
        .args(["doctor", "--json", "--inside", "in0"]);
    let finished = run(command, LIMIT);
    let value: Value =
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished}"));
    assert_eq!(of(&value, "capabilities")["level"], "problem");
    assert_eq!(finished.status.and_then(|status| status.code()), Some(1));
    testkit::lab::gateway::refused(
        &ftpalg(&net, &["doctor", "--inside", "!"]),
        2,
        "an interface name",
    );
}
