//! Steering and accept rules, and the iptables backend, against the running kernel: what is
//! installed, and that nothing of it is left behind. Needs root; makes network namespaces.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ftpalg::firewall::xtables::Flavour;
use ftpalg::firewall::xtables::tools::Tools;
use ftpalg::firewall::{Around, Installed, Queues, Rules, Steering, print};
use ftpalg::net::{Family, Mark, PortRange};
use ftpalg::pinholes::backend::iptables::Iptables;
use ftpalg::pinholes::backend::{Backend, BackendError, Closed};
use ftpalg::pinholes::{Pinhole, RangeHole};
use testkit::holes::{self, CASES, hole, talk};
use testkit::lab::net::{Directory, Net};
use testkit::lab::rules::without_counters;
use testkit::lab::scripted;
use testkit::lab::topology::{Link, Topology, host, link};

const MINUTE: Duration = Duration::from_secs(60);
/// How long a connection that comes about may take (a SYN is sent again after a second).
const ACCEPTED: Duration = Duration::from_secs(5);
/// How long a connection that must not come about is tried.
const REFUSED: Duration = Duration::from_millis(600);

/// A host of a network, which is gone with the last one of its hosts.
struct Ns {
    net: Net,
    host: &'static str,
}

impl Ns {
    /// A host without a network.
    fn new() -> Self {
        Self::with_links(Vec::new())
    }

    /// One with interfaces `lan` (192.168.1.1/24) and `wan` (203.0.113.1/24).
    fn gateway() -> Self {
        Self::with_links(vec![
            link(("g", "lan", &["192.168.1.1/24"]), ("g", "lan-far", &[])),
            link(("g", "wan", &["203.0.113.1/24"]), ("g", "wan-far", &[])),
        ])
    }

    fn with_links(links: Vec<Link>) -> Self {
        let net = Net::new(&Topology::bare(vec![host("g", &[])], links));
        Self { net, host: "g" }
    }

    /// Runs something on a thread of its own that lives in here.
    fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.net.within(self.host, what)
    }

    fn sh(&self, script: &str) -> String {
        self.within(|| run(Command::new("sh").args(["-ec", script])))
    }

    fn load(&self, program: &str, text: &str) {
        self.within(|| {
            let mut child = Command::new(program)
                .arg("--noflush")
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            stdin.write_all(text.as_bytes()).unwrap();
            drop(stdin);
            assert!(child.wait().unwrap().success(), "{program}:\n{text}");
        });
    }

    /// All rule sets, as their own tools show them, without times and counters.
    fn ruleset(&self) -> String {
        let all = self.sh(
            "nft list ruleset; for f in iptables ip6tables; do for s in nft legacy; do \
             echo == $f-$s; $f-$s-save; done; done; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names",
        );
        without_counters(&all)
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn rules() -> Rules {
    Rules::new(Tools::find())
}

fn steering() -> Steering {
    Steering {
        inside: vec!["lan".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        ..Steering::default()
    }
}

fn everything() -> Steering {
    Steering {
        local: true,
        ports: vec![21, 2121],
        queues: Queues { first: 4, count: 2 },
        fail_open: true,
        ..steering()
    }
}

fn in_place(ns: &Ns, steering: &Steering) -> Vec<String> {
    ns.within(|| rules().verify(steering)).unwrap()
}

fn install(ns: &Ns, steering: &Steering) -> Installed {
    let installed = ns.within(|| rules().install(steering)).unwrap();
    assert_eq!(in_place(ns, steering), [""; 0], "{}", ns.ruleset());
    installed
}

fn remove(ns: &Ns) -> usize {
    ns.within(|| rules().remove()).unwrap()
}

/// A firewall as `nft`'s manual and many distributions have it.
const NFTABLES: &str = r#"nft -f - <<'END'
table inet filter {
    set allowed { type inet_service; elements = { 22, 21 }; }
    chain input { type filter hook input priority filter; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iif lo accept
        tcp dport @allowed accept
    }
    chain forward { type filter hook forward priority filter; policy drop;
        tcp flags syn tcp option maxseg size set rt mtu
        ct state established,related accept
        tcp dport 21 counter accept comment "ftp"
    }
    chain output { type filter hook output priority filter; policy accept; }
    chain clamp { type filter hook forward priority mangle; tcp flags syn tcp option maxseg size set rt mtu; }
}
table bridge filter { chain forward { type filter hook forward priority 0; policy drop; }; }
END
"#;

/// What firewalld makes, in short.
const FIREWALLD: &str = r#"nft -f - <<'END'
table inet firewalld {
    chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; }
    chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_OUTPUT { type filter hook output priority filter + 10; policy accept;
        ct state { established, related } accept
        oifname "lo" accept
        jump filter_OUTPUT_POLICIES
    }
    chain filter_INPUT_ZONES { tcp dport 22 accept; reject with icmpx admin-prohibited; }
    chain filter_FORWARD_ZONES { goto filter_FWD_public; }
    chain filter_FWD_public { tcp dport 21 accept; reject with icmpx admin-prohibited; }
    chain filter_OUTPUT_POLICIES { ip daddr 192.0.2.1 return; counter; }
}
END
"#;

/// The hosts that people have: what is in their rule sets before we come.
const HOSTS: [(&str, &str); 10] = [
    ("nft's own firewall", NFTABLES),
    ("firewalld", FIREWALLD),
    (
        "Docker",
        "iptables-nft -N DOCKER-USER; iptables-nft -N DOCKER-FORWARD; iptables-nft -N DOCKER
         iptables-nft -A FORWARD -j DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-FORWARD
         iptables-nft -A DOCKER-FORWARD -o lan -j DOCKER; iptables-nft -P FORWARD DROP
         iptables-nft -A DOCKER-USER -s 192.0.2.0/24 -j DROP
         iptables-nft -A DOCKER ! -i lan -o lan -j DROP",
    ),
    ("fresh", "true"),
    (
        "nft",
        "iptables-nft -t raw -A PREROUTING -p udp --dport 53 -j NOTRACK
         iptables-nft -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
         iptables-nft -t mangle -A POSTROUTING -m comment --comment 'my \"own\" rule' -j MARK --set-mark 1
         iptables-nft -t nat -A PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2
         iptables-nft -N MINE; iptables-nft -A FORWARD -j MINE; iptables-nft -P FORWARD DROP
         ip6tables-nft -P FORWARD DROP; ip6tables-nft -A FORWARD -p ipv6-icmp -j ACCEPT",
    ),
    (
        "nft with empty tables",
        "nft add table ip raw; nft add table ip6 mangle; nft add table ip filter
         nft add chain ip filter FORWARD '{ type filter hook forward priority filter; policy accept; }'
         nft add table inet mine; nft add chain inet mine f '{ type filter hook forward priority 0; }'",
    ),
    (
        "nft with native chains of its own in a table of that name",
        "nft add table ip raw; nft add set ip raw s '{ type ipv4_addr; }'
         nft add chain ip raw prerouting '{ type filter hook prerouting priority raw; }'
         nft add rule ip raw prerouting tcp dport 5 notrack",
    ),
    (
        "legacy",
        "iptables-legacy -t nat -A PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2
         iptables-legacy -P FORWARD DROP; iptables-legacy -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT",
    ),
    (
        "legacy with raw and mangle",
        "iptables-legacy -t raw -A PREROUTING -p udp --dport 53 -j NOTRACK
         iptables-legacy -t mangle -A POSTROUTING -j MARK --set-mark 1
         iptables-legacy -t nat -A POSTROUTING -o wan -j MASQUERADE; iptables-legacy -P FORWARD DROP",
    ),
    (
        "both",
        "iptables-legacy -t nat -A PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2
         iptables-legacy -P FORWARD DROP
         iptables-nft -A FORWARD -i lan -j ACCEPT; iptables-nft -P FORWARD DROP; ip6tables-nft -P INPUT DROP",
    ),
];

#[test]
fn nothing_is_left_behind() {
    for (host, setup) in HOSTS {
        let ns = Ns::gateway();
        ns.sh(setup);
        let before = ns.ruleset();
        for steering in [steering(), everything()] {
            // Nothing is there yet, and looking makes nothing.
            assert!(!in_place(&ns, &steering).is_empty(), "{host}");
            assert_eq!(ns.ruleset(), before, "{host}: looking");

            install(&ns, &steering);
            let once = ns.ruleset();
            assert_ne!(once, before, "{host}");
            install(&ns, &steering);
            assert_eq!(
                ns.ruleset().lines().count(),
                once.lines().count(),
                "{host}: twice"
            );
            assert!(remove(&ns) > 0, "{host}");
            assert_eq!(ns.ruleset(), before, "{host}");
            assert_eq!(remove(&ns), 0, "{host}");
            assert_eq!(ns.ruleset(), before, "{host}: twice");
        }
    }
}

#[test]
fn a_killed_daemon_with_another_configuration_leaves_nothing() {
    for (host, setup) in HOSTS {
        let ns = Ns::gateway();
        ns.sh(setup);
        let before = ns.ruleset();
        // The first never removes its rules: its holes, chains of another set, hand-made rests.
        install(&ns, &everything());
        ns.within(|| {
            let mut backend = backend();
            backend.install().unwrap();
            backend
                .open(
                    &hole("203.0.113.9", "203.0.113.1:4000", "192.168.1.2:4000", None),
                    MINUTE,
                )
                .unwrap();
        });
        let local = Steering {
            inside: vec![],
            local: true,
            ..Steering::default()
        };
        install(&ns, &local);
        let now = ns.ruleset();
        assert!(!now.contains("-A PREROUTING -i lan"), "{host}: {now}");
        assert!(now.contains("ftpalg:pinhole"), "{host}: live holes stay");
        install(&ns, &steering());
        remove(&ns);
        assert_eq!(ns.ruleset(), before, "{host}");
    }
}

#[test]
fn steering_follows_the_users_flavour_and_makes_no_legacy_table() {
    let places = |host: &str| {
        let (_, setup) = HOSTS.iter().find(|(name, _)| *name == host).unwrap();
        let ns = Ns::gateway();
        ns.sh(setup);
        let installed = install(&ns, &steering());
        let mut places: Vec<String> = installed
            .places
            .iter()
            .filter(|at| at.family == Family::V4)
            .map(|at| format!("{} {}", at.flavour, at.table))
            .collect();
        places.sort();
        (installed.choice.flavour, places.join(", "))
    };
    let all_nft = "nft filter, nft mangle, nft raw".to_owned();
    assert_eq!(places("fresh"), (Flavour::Nft, all_nft.clone()));
    assert_eq!(places("nft"), (Flavour::Nft, all_nft));
    assert_eq!(
        places("legacy"),
        (Flavour::Legacy, "legacy filter, nft mangle, nft raw".into())
    );
    assert_eq!(
        places("legacy with raw and mangle"),
        (
            Flavour::Legacy,
            "legacy filter, legacy mangle, legacy raw".into()
        )
    );
    assert_eq!(
        places("both"),
        (
            Flavour::Legacy,
            "legacy filter, nft filter, nft mangle, nft raw".into()
        )
    );
}

#[test]
fn the_users_rules_come_first_and_accepts_come_before_them() {
    let ns = Ns::gateway();
    ns.sh("iptables-nft -t raw -A PREROUTING -p udp -j NOTRACK; iptables-nft -A FORWARD -j DROP");
    install(&ns, &steering());
    let chain = |table: &str, chain: &str| ns.sh(&format!("iptables-nft -t {table} -S {chain}"));
    let raw = chain("raw", "PREROUTING");
    assert!(raw.lines().nth(1).unwrap().contains("udp"), "{raw}");
    let forward = chain("filter", "FORWARD");
    assert!(
        forward.lines().nth(1).unwrap().contains("FTPALG-DATA"),
        "{forward}"
    );
}

#[test]
fn what_came_while_we_were_there_stays() {
    let ns = Ns::gateway();
    install(&ns, &steering());
    ns.sh("iptables-nft -t raw -A PREROUTING -p udp -j NOTRACK; iptables-nft -P FORWARD DROP");
    ns.sh("nft add table ip mangle; nft add set ip mangle s '{ type ipv4_addr; }'");
    remove(&ns);
    let other = Ns::gateway();
    other.sh("nft add table ip filter; nft add chain ip filter FORWARD '{ type filter hook forward priority filter; policy drop; }'");
    let nft = |ns: &Ns| ns.sh("nft list table ip filter");
    assert_eq!(nft(&ns), nft(&other));
    assert!(
        ns.sh("iptables-nft -t raw -S")
            .contains("-A PREROUTING -p udp")
    );
    assert!(ns.sh("nft list table ip mangle").contains("set s"));
    assert!(!ns.ruleset().to_lowercase().contains("ftpalg"));
}

#[test]
fn verify_sees_a_flush_and_another_configuration() {
    let ns = Ns::gateway();
    install(&ns, &steering());
    assert!(!in_place(&ns, &everything()).is_empty());
    for flush in [
        "iptables-nft -t mangle -F POSTROUTING",
        "iptables-nft -t raw -F FTPALG-EGRESS",
        "iptables-nft -F",
        "nft flush ruleset",
    ] {
        ns.sh(flush);
        assert!(!in_place(&ns, &steering()).is_empty(), "{flush}");
        install(&ns, &steering());
    }
    ns.sh("iptables-legacy -P FORWARD DROP");
    assert!(
        !in_place(&ns, &steering()).is_empty(),
        "a legacy filter that can drop came up"
    );
}

#[test]
fn counters_of_the_users_rules_stay() {
    for flavour in Flavour::ALL {
        let ns = Ns::gateway();
        // Rules' counters: those of legacy policies start anew with each change, by anybody.
        let save = format!("iptables-{flavour}-save -c | grep '^\\['");
        ns.sh(&format!(
            "for t in raw mangle; do iptables-{flavour} -t $t -A OUTPUT -o lo -p udp; done
             iptables-{flavour} -t mangle -A INPUT -i lo -p udp; iptables-{flavour} -A INPUT -i lo -p udp"
        ));
        ns.within(|| {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        });
        let before = ns.sh(&save);
        assert!(before.contains("[1:29]"), "{before}");
        install(&ns, &everything());
        remove(&ns);
        assert_eq!(ns.sh(&save), before);
    }
}

/// A directory of tools in which one restore fails for a table.
struct Broken(Directory);

impl Broken {
    fn new(fails_for: &str) -> Self {
        let dir = Directory::new();
        let script = format!(
            "cd {0}; \
             for f in iptables ip6tables; do for s in nft legacy; do \
             ln -sf /usr/sbin/$f-$s-save .; done; ln -sf /usr/sbin/$f-legacy-restore .; \
             printf '#!/bin/sh\nt=$(cat)\ncase \"$t\" in *\"{fails_for}\"*) echo broken on purpose >&2; exit 1;; esac\n\
             echo \"$t\" | exec /usr/sbin/%s-nft-restore \"$@\"\n' $f > $f-nft-restore; chmod 755 $f-nft-restore; done",
            dir.path().display()
        );
        run(Command::new("sh").args(["-ec", &script]));
        Self(dir)
    }

    fn rules(&self) -> Rules {
        let tools = Tools::find_in(&[self.0.path().to_owned()]);
        Rules::new(tools)
    }
}

#[test]
fn a_failure_halfway_leaves_nothing() {
    for fails_for in ["-A FTPALG-INGRESS", "-A FTPALG-EGRESS"] {
        let broken = Broken::new(fails_for);
        for (host, setup) in HOSTS {
            let ns = Ns::gateway();
            ns.sh(setup);
            let before = ns.ruleset();
            let done = ns.within(|| broken.rules().install(&everything()));
            if host == "legacy with raw and mangle" && done.is_ok() {
                continue;
            }
            let e = done.unwrap_err().to_string();
            assert!(e.contains("-nft-restore: broken on purpose"), "{e}");
            assert_eq!(ns.ruleset(), before, "{host}, {fails_for}");
        }
    }
}

#[test]
fn a_rule_that_the_kernel_refuses_leaves_nothing() {
    let ns = Ns::gateway();
    // A chain of that name that iptables can't use: it hooks in elsewhere.
    ns.sh("nft add table ip raw; nft add chain ip raw PREROUTING '{ type filter hook output priority 5; }'");
    let before = ns.ruleset();
    let e = ns.within(|| rules().install(&steering())).unwrap_err();
    assert!(!e.to_string().contains('\n'), "{e}");
    assert_eq!(ns.ruleset(), before);
}

#[test]
fn tables_that_only_nft_can_show() {
    let native = |table: &str, chain: &str, hook: &str| {
        format!(
            "nft add table ip {table}
             nft add chain ip {table} {chain} '{{ type filter hook {hook} priority {table}; policy drop; }}'
             nft add rule ip {table} {chain} ct state vmap '{{ established : accept }}'"
        )
    };
    // The filter table: the accept rule goes there as it does into other nft firewalls.
    let ns = Ns::gateway();
    ns.sh(&native("filter", "FORWARD", "forward"));
    let before = ns.ruleset();
    let installed = install(&ns, &steering());
    assert_eq!(installed.notes, [""; 0]);
    assert_eq!(installed.native, ["nft ip filter FORWARD"]);
    install(&ns, &steering());
    assert!(!ns.sh("nft list table ip filter").contains("FTPALG"));
    remove(&ns);
    assert_eq!(ns.ruleset(), before);

    // The tables that steer: nothing is installed.
    let ns = Ns::gateway();
    ns.sh(&native("raw", "PREROUTING", "prerouting"));
    let before = ns.ruleset();
    let e = ns
        .within(|| rules().install(&steering()))
        .unwrap_err()
        .to_string();
    assert!(e.contains("--rules external") && !e.contains('\n'), "{e}");
    assert_eq!(ns.ruleset(), before);

    // Pinholes.
    let ns = Ns::gateway();
    ns.sh("nft add table ip nat; nft add chain ip nat PREROUTING '{ type nat hook prerouting priority -100; }'
           nft add rule ip nat PREROUTING dnat to tcp dport map '{ 21 : 10.0.0.2 }'");
    let before = ns.ruleset();
    let e = ns.within(|| backend().install()).unwrap_err().to_string();
    assert!(e.contains("--backend nft") && !e.contains('\n'), "{e}");
    assert_eq!(ns.ruleset(), before);

    // Somebody wrote such a rule after we came: it is said that ours couldn't be removed.
    let ns = Ns::gateway();
    install(&ns, &steering());
    ns.sh("nft add rule ip filter FORWARD ct state vmap '{ established : accept }'");
    let e = ns.within(|| rules().remove()).unwrap_err().to_string();
    assert!(e.contains("filter") && !e.contains('\n'), "{e}");
    assert!(
        !ns.sh("nft list ruleset").contains("FTPALG-EGRESS"),
        "all else is removed"
    );
}

#[test]
fn wrong_input_installs_nothing() {
    let ns = Ns::gateway();
    let before = ns.ruleset();
    let unknown = Steering {
        inside: vec!["nosuch0".parse().unwrap()],
        ..Steering::default()
    };
    let e = ns
        .within(|| rules().install(&unknown))
        .unwrap_err()
        .to_string();
    assert!(e.contains("nosuch0") && !e.contains('\n'), "{e}");
    assert!(ns.within(|| rules().install(&Steering::default())).is_err());
    let no_tools = Rules::new(Tools::find_in(&[PathBuf::from("/nonexistent")]));
    let e = no_tools.flavour().unwrap_err().to_string();
    assert!(e.contains("install the iptables package"), "{e}");
    assert_eq!(ns.ruleset(), before);
}

#[test]
fn a_host_without_ipv6_or_its_tools() {
    let dir = Broken::new("no such text");
    run(Command::new("sh").args(["-ec", &format!("rm {}/ip6*", dir.0.path().display())]));
    let ns = Ns::gateway();
    let before = ns.ruleset();
    let installed = ns.within(|| dir.rules().install(&steering())).unwrap();
    assert!(installed.places.iter().all(|at| at.family == Family::V4));
    ns.within(|| dir.rules().remove()).unwrap();
    assert_eq!(ns.ruleset(), before);
}

#[test]
fn what_is_printed_can_be_loaded() {
    for steering in [steering(), everything()] {
        for (family, program) in [
            (Family::V4, "iptables-nft-restore"),
            (Family::V6, "ip6tables-nft-restore"),
            (Family::V4, "iptables-legacy-restore"),
        ] {
            let ns = Ns::gateway();
            ns.load(program, &print(&steering, family).unwrap());
            let one = Steering {
                families: vec![family],
                ..steering.clone()
            };
            assert_eq!(in_place(&ns, &one), [""; 0], "{program}");
            assert!(remove(&ns) > 0);
            assert!(!ns.ruleset().to_lowercase().contains("ftpalg"));
            for example in ftpalg::firewall::EXAMPLES {
                let ns = Ns::gateway();
                ns.load(
                    program,
                    &example
                        .print(&steering, &Around::default(), family)
                        .unwrap(),
                );
                let mut one = one.clone();
                one.local |= example.is_local();
                assert_eq!(in_place(&ns, &one), [""; 0], "{} {program}", example.name);
            }
        }
    }
}

#[test]
fn the_inside_is_derived_from_the_users_rules() {
    let derive = |setup: &str| {
        let ns = Ns::gateway();
        ns.sh(setup);
        ns.within(|| rules().derive(&[21]))
            .map(|d| {
                assert!(!d.found.is_empty());
                let inside: Vec<String> = d.inside.iter().map(ToString::to_string).collect();
                (inside.join(" "), d.local)
            })
            .map_err(|e| e.to_string())
    };
    for tool in ["iptables-nft", "iptables-legacy"] {
        for (rule, inside, local) in [
            (
                "PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2",
                "lan",
                false,
            ),
            (
                "PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.1",
                "",
                true,
            ),
            ("POSTROUTING -o wan -j MASQUERADE", "lan", false),
            (
                "POSTROUTING -s 10.0.0.0/8 -o wan -j SNAT --to-source 203.0.113.1",
                "10.0.0.0/8",
                false,
            ),
        ] {
            let found = derive(&format!("{tool} -t nat -A {rule}")).unwrap();
            assert_eq!(found, (inside.to_owned(), local), "{tool} {rule}");
        }
    }
    let e = derive("true").unwrap_err();
    assert!(e.contains("--inside"), "{e}");
}

fn backend() -> Iptables {
    Iptables::new(Tools::find(), Mark::DEFAULT)
}

/// Closes holes as the daemon does: the tool runs while the backend is free for others.
fn close_together(backend: &mut Iptables, holes: &[Pinhole]) -> Result<(), BackendError> {
    assert_eq!(backend.close_all(holes).unwrap(), Closed::Later);
    let work = backend.closing(holes)?.unwrap();
    backend.closed(work())
}

/// Client 203.0.113.10, another 203.0.113.11 — gateway — server 10.0.0.2; IPv6 alike.
struct Lab {
    client: Ns,
    gateway: Ns,
    server: Ns,
}

impl Lab {
    fn new() -> Self {
        let net = holes::network();
        let on = |host| Ns {
            net: net.recast(|_| ()),
            host,
        };
        Self {
            client: on("c"),
            gateway: on("g"),
            server: on("s"),
        }
    }

    fn connect(&self, to: &str, timeout: Duration) -> Option<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.client
            .within(|| TcpStream::connect_timeout(&to, timeout))
            .inspect_err(|e| println!("{to}: {e}"))
            .ok()
    }
}

fn listen(ns: &Ns, at: &str) -> TcpListener {
    ns.within(|| scripted::listen(at.parse().unwrap()).unwrap())
}

/// Runs a test for a gateway whose rules, all of them dropping, are of one flavour.
fn for_each_flavour(test: impl Fn(&Lab, Flavour)) {
    for flavour in Flavour::ALL {
        let lab = Lab::new();
        for program in ["iptables", "ip6tables"] {
            lab.gateway.sh(&format!(
                "{program}-{flavour} -A FORWARD -m conntrack --ctstate INVALID -j DROP
                 {program}-{flavour} -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
                 {program}-{flavour} -P FORWARD DROP
                 {program}-{flavour} -t nat -A POSTROUTING -p tcp --dport 1 -j MASQUERADE"
            ));
        }
        let before = lab.gateway.ruleset();
        let inside = Steering {
            inside: vec!["in".parse().unwrap()],
            ..Steering::default()
        };
        // Nobody reads a queue here: control ports aren't used.
        install(&lab.gateway, &inside);
        let steered = lab.gateway.ruleset();
        test(&lab, flavour);
        lab.gateway.within(|| backend().remove()).unwrap();
        assert_eq!(lab.gateway.ruleset(), steered, "{flavour}");
        remove(&lab.gateway);
        assert_eq!(lab.gateway.ruleset(), before, "{flavour}");
    }
}

#[test]
fn a_successor_adopts_the_rules_of_open_holes() {
    for_each_flavour(|lab, flavour| {
        let mut first = backend();
        first.set_range("40000-40009".parse().unwrap());
        lab.gateway.within(|| first.install()).unwrap();
        let mut all = Vec::new();
        for (from, to, land, source) in CASES {
            let mut marked = hole(from, to, land, Some(source));
            marked.mark = 0x11;
            let mut same = hole(from, to, land, None);
            same.to.set_port(50_077);
            same.land = same.to;
            let mut broken = same.clone();
            broken.to.set_port(50_078);
            broken.land = broken.to;
            let range = RangeHole {
                from: marked.from,
                to: marked.to.ip(),
                land: marked.land.ip(),
                as_source: None,
            };
            lab.gateway.within(|| {
                for hole in [&marked, &same, &broken] {
                    first.open(hole, MINUTE / 2).unwrap();
                }
                first.open_range(&range, MINUTE).unwrap();
            });
            all.extend([marked, same]);
        }
        drop(first);
        // Somebody removed one of a hole's rules, and a table of the other backend is left.
        lab.gateway.sh(&format!(
            "for f in iptables ip6tables; do
                 n=$($f-{flavour} -t nat -S FTPALG-PRE | grep -n 'dport 50078 .*ACCEPT' | cut -d: -f1)
                 $f-{flavour} -t nat -D FTPALG-PRE $((n - 1))
             done
             nft add table ip ftpalg"
        ));
        let mut next = backend();
        for most in [100, 3] {
            let found = lab.gateway.within(|| next.adopt(most, MINUTE)).unwrap();
            assert_eq!(found.len(), most.min(4), "{found:?}");
            for (hole, left) in &found {
                assert!(all.contains(hole), "{hole:?}");
                assert!(*left > MINUTE / 4 && *left <= MINUTE / 2 + MINUTE / 60);
            }
            assert!(lab.gateway.within(|| next.verify()).unwrap());
        }
        let now = lab.gateway.ruleset();
        assert!(!now.contains("table ip ftpalg"), "{now}");
        assert!(!now.contains("50078") && !now.contains("RANGE"), "{now}");
        let (from, to, land, source) = CASES[0];
        let listener = listen(&lab.server, land);
        let _client = lab.connect(to, ACCEPTED).expect("the hole is open");
        assert_eq!(listener.accept().unwrap().1.ip().to_string(), source);
        let used = hole(from, to, land, Some(source));
        lab.gateway
            .within(|| close_together(&mut next, &[used]))
            .unwrap();
        assert!(lab.connect(to, REFUSED).is_none(), "closed");
        assert!(lab.gateway.within(|| next.verify()).unwrap());
    });
}

/// A directory with the tools of iptables, which note in `log` that they were started.
fn noted_tools() -> Directory {
    let dir = Directory::new();
    for family in ["iptables", "ip6tables"] {
        for flavour in ["nft", "legacy"] {
            for what in ["save", "restore"] {
                let program = format!("{family}-{flavour}-{what}");
                let path = dir.file(&program);
                let (path, log) = (path.display(), dir.file("log"));
                let log = log.display();
                run(Command::new("sh").args([
                    "-ec",
                    &format!(
                        "real=$(command -v {program}) || exit 0
                         printf '#!/bin/sh\\necho {program} >> {log}\\nexec %s \"$@\"\\n' $real > {path}
                         chmod +x {path}"
                    ),
                ]));
            }
        }
    }
    dir
}

/// Holes of all kinds, of both families.
fn many_holes() -> Vec<Pinhole> {
    let cases = (0..16).zip(CASES.into_iter().cycle());
    let of_case = |(n, (from, to, land, source)): (u16, (&str, &str, &str, &str))| {
        let mut hole = hole(from, to, if n & 2 == 0 { land } else { to }, None);
        hole.as_source = (n & 4 == 0).then(|| source.parse().unwrap());
        hole.mark = if n & 8 == 0 { 0 } else { 0x11 };
        for end in [&mut hole.to, &mut hole.land] {
            end.set_port(end.port() / 2 + 20_000 + n);
        }
        hole
    };
    cases.map(of_case).collect()
}

fn for_a_minute(holes: &[Pinhole]) -> Vec<(Pinhole, Duration)> {
    holes.iter().map(|hole| (hole.clone(), MINUTE)).collect()
}

/// Few and many, of both families, beside others; each closes by itself.
#[test]
fn holes_open_together() {
    const MANY: u16 = 100;
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let numbered = |n: u16| {
            let mut hole = hole("203.0.113.10", "203.0.113.1:1", "10.0.0.2:40001", None);
            hole.to.set_port(30_000 + n);
            hole
        };
        lab.gateway.within(|| {
            backend.install().unwrap();
            backend.open(&numbered(0), MINUTE).unwrap();
            let (few, many) = (many_holes(), (1..=MANY).map(numbered).collect::<Vec<_>>());
            let (some, most) = many.split_at(30);
            for holes in [&few[..], some, most] {
                backend.open_all(&for_a_minute(holes)).unwrap();
                assert!(backend.verify().unwrap(), "{flavour}");
            }
            // If one can't be opened, none is.
            let mut wrong = numbered(MANY + 2);
            wrong.to.set_ip("2001:db8::1".parse().unwrap());
            let holes = for_a_minute(&[numbered(MANY + 1), wrong]);
            assert!(backend.open_all(&holes).is_err());
            assert!(!lab.gateway.ruleset().contains("30101"), "{flavour}");
            assert!(backend.verify().unwrap(), "{flavour}");
            // They take the place of those with the same addresses and ports.
            let again = [few.as_slice(), &many[..3]].concat();
            backend.open_all(&for_a_minute(&again)).unwrap();
            assert!(backend.verify().unwrap(), "{flavour}");
            for hole in few.iter().chain(&many) {
                backend.close(hole).unwrap();
            }
            assert!(backend.verify().unwrap(), "{flavour}");
            close_together(&mut backend, &[numbered(0)]).unwrap();
            backend.remove().unwrap();
        });
    });
}

/// What is added over netlink is what the tool would have written: it shows it so.
#[test]
fn holes_of_iptables_nft_open_and_close_without_its_tool() {
    let ns = Ns::gateway();
    let tools = noted_tools();
    let log = tools.file("log");
    for mark in [Mark::DEFAULT, Mark::new(0x8000_0000).unwrap()] {
        let mut backend = Iptables::new(Tools::find_in(&[tools.path().to_owned()]), mark);
        ns.within(|| backend.install()).unwrap();
        std::fs::write(&log, "").unwrap();
        let holes = many_holes();
        let mut others = holes.clone();
        // What is delivered elsewhere, at the same address and port.
        for hole in others.iter_mut().filter(|hole| hole.land != hole.to) {
            hole.land.set_port(7);
        }
        ns.within(|| {
            for hole in holes.iter().chain(&others) {
                backend.open(hole, MINUTE).unwrap();
            }
        });
        assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
        let closing = ns.within(|| backend.closing(&others)).unwrap().unwrap();
        ns.within(|| {
            for hole in &holes {
                backend.open(hole, MINUTE).unwrap();
            }
        });
        assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
        backend.closed(ns.within(closing)).unwrap();
        assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
        ns.within(|| close_together(&mut backend, &holes)).unwrap();
        assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
        for holes in [&holes, &others] {
            ns.within(|| backend.open_all(&for_a_minute(holes)))
                .unwrap();
            assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
        }
        ns.within(|| close_together(&mut backend, &holes)).unwrap();
        assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
        let started = std::fs::read_to_string(&log).unwrap();
        assert!(!started.contains("restore"), "{started}");
        ns.within(|| backend.remove()).unwrap();
    }
}

/// Somebody restores what was saved, which replaces the table: its rules are the same, and their handles are
/// those that other rules had.
#[test]
fn holes_in_a_table_that_was_replaced_are_closed_and_no_others() {
    const MANY: u16 = 200;
    let ns = Ns::gateway();
    let cases = ["iptables", "ip6tables"].into_iter().zip(CASES);
    // Whichever comes first has to find it out.
    for ((program, (from, to, land, _)), replaced_first) in
        cases.flat_map(|case| [(case, false), (case, true)])
    {
        let numbered = |n: u16| {
            let mut hole = hole(from, to, land, None);
            hole.to.set_port(20_000 + n);
            hole
        };
        let mut backend = backend();
        ns.within(|| {
            backend.install().unwrap();
            for n in 0..3 {
                backend.open(&numbered(n), MINUTE).unwrap();
            }
            let handles = || {
                let family = if program == "iptables" { "ip" } else { "ip6" };
                let chain = ns.sh(&format!("nft -a list chain {family} nat FTPALG-PRE"));
                let handles = chain.lines().filter(|line| !line.contains("chain "));
                let handles = handles.filter_map(|line| line.split("# handle ").nth(1));
                handles.map(str::to_owned).collect::<Vec<_>>()
            };
            let old = handles();
            ns.sh(&format!("{program}-nft-save | {program}-nft-restore"));
            assert!(backend.verify().unwrap(), "nothing is missing");
            for n in 3..MANY {
                backend.open(&numbered(n), MINUTE).unwrap();
            }
            let new = handles();
            let all_are_taken = old.iter().all(|handle| new[old.len()..].contains(handle));
            assert!(all_are_taken, "{old:?} {new:?}");

            for replaced in [replaced_first, !replaced_first] {
                if replaced {
                    let mut other = numbered(2);
                    other.land.set_port(7);
                    backend.open(&other, MINUTE).unwrap();
                } else {
                    close_together(&mut backend, &[numbered(0), numbered(3)]).unwrap();
                }
                assert!(backend.verify().unwrap(), "{}", ns.ruleset());
            }
            backend.close(&numbered(1)).unwrap();
            assert!(backend.verify().unwrap(), "{}", ns.ruleset());
            // Each has two rules.
            assert_eq!(handles().len(), 2 * (usize::from(MANY) - 3));
            backend.remove().unwrap();
        });
    }
}

/// Many close while others open all the time, so that the table is never the same for long.
#[test]
fn holes_of_iptables_nft_close_while_others_open() {
    const MANY: u16 = 300;
    let ns = Ns::gateway();
    let tools = noted_tools();
    let log = tools.file("log");
    let mut backend = Iptables::new(Tools::find_in(&[tools.path().to_owned()]), Mark::DEFAULT);
    ns.within(|| backend.install()).unwrap();
    std::fs::write(&log, "").unwrap();
    let numbered = |n: u16| {
        let mut hole = hole("203.0.113.10", "203.0.113.1:1", "10.0.0.2:40001", None);
        hole.to.set_port(20_000 + n);
        hole
    };
    let old: Vec<_> = (0..MANY).map(numbered).collect();
    ns.within(|| {
        for hole in &old {
            backend.open(hole, MINUTE).unwrap();
        }
    });
    let closing = ns.within(|| backend.closing(&old)).unwrap().unwrap();
    let done = std::thread::scope(|scope| {
        let closing = scope.spawn(|| ns.within(closing));
        ns.within(|| {
            for n in MANY..2 * MANY {
                backend.open(&numbered(n), MINUTE).unwrap();
            }
        });
        closing.join().unwrap()
    });
    done.unwrap();
    backend.closed(Ok(())).unwrap();
    let started = std::fs::read_to_string(&log).unwrap();
    assert_eq!(started, "");
    assert!(ns.within(|| backend.verify()).unwrap(), "{}", ns.ruleset());
}

/// A process is killed while its tool makes a change, and the tool makes it when the next process has begun.
#[test]
fn what_a_tool_adds_late_hides_no_hole() {
    for_each_flavour(|lab, flavour| {
        let (from, to, land, _) = CASES[0];
        let numbered = |n: u16| {
            let mut hole = hole(from, to, land, None);
            hole.to.set_port(50_000 + n);
            hole
        };
        let mut killed = backend();
        let mut next = backend();
        lab.gateway.within(|| {
            killed.install().unwrap();
            killed.open(&numbered(1), MINUTE).unwrap();
            let mut open = vec![numbered(1)];
            assert_eq!(next.adopt(10, MINUTE).unwrap().len(), open.len());
            for n in 2..6 {
                for (backend, n) in [(&mut next, n), (&mut killed, n + 10)] {
                    backend.open(&numbered(n), MINUTE).unwrap();
                    open.push(numbered(n));
                }
            }
            assert!(!next.verify().unwrap(), "the chain has too much");
            let found = backend().adopt(100, MINUTE).unwrap();
            let found: Vec<_> = found.into_iter().map(|(hole, _)| hole).collect();
            for hole in open {
                assert!(found.contains(&hole), "{flavour} {hole:?}: {found:?}");
            }
        });
    });
}

#[test]
fn a_hole_lets_its_peer_through_a_dropping_forward_chain() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        lab.gateway.within(|| backend.install()).unwrap();
        assert_eq!(backend.flavours(), Family::ALL.map(|f| (f, flavour)));
        for (from, to, land, source) in CASES {
            let listener = listen(&lab.server, land);
            for as_source in [Some(source), None] {
                let hole = hole(from, to, land, as_source);
                assert!(
                    lab.connect(to, REFUSED).is_none(),
                    "{flavour} {to}: no hole yet"
                );
                lab.gateway.within(|| backend.open(&hole, MINUTE)).unwrap();
                let mut client = lab.connect(to, ACCEPTED).expect("the hole is open");
                let (mut server, peer) = listener.accept().unwrap();
                assert_eq!(peer.ip().to_string(), as_source.unwrap_or(from));
                assert_eq!(peer.port(), client.local_addr().unwrap().port());
                lab.gateway.within(|| backend.close(&hole)).unwrap();
                assert!(lab.connect(to, REFUSED).is_none(), "{flavour} {to}: closed");
                talk(&mut client, &mut server);
            }
        }
        let invalid = lab.gateway.sh("conntrack -S");
        assert!(
            !invalid.contains("invalid=") || invalid.lines().all(|l| l.contains("invalid=0 ")),
            "{invalid}"
        );
    });
}

/// A limit that the first packet used up is over when the packet is sent again, a second later.
#[test]
fn a_first_packet_that_is_dropped_later_finds_its_hole_open_again() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        lab.gateway.within(|| backend.install()).unwrap();
        for ((from, to, land, source), program) in CASES.into_iter().zip(["iptables", "ip6tables"])
        {
            let listener = listen(&lab.server, land);
            let hole = hole(from, to, land, Some(source));
            lab.gateway.within(|| backend.open(&hole, MINUTE)).unwrap();
            let drops = "FORWARD -p tcp --syn -j DROP";
            lab.gateway.sh(&format!("{program}-{flavour} -I {drops}"));
            let client = std::thread::scope(|scope| {
                let client = scope.spawn(|| lab.connect(to, ACCEPTED));
                std::thread::sleep(REFUSED);
                let dropped = lab.gateway.sh(&format!("{program}-{flavour} -vS FORWARD"));
                lab.gateway.sh(&format!("{program}-{flavour} -D {drops}"));
                assert!(dropped.contains(" SYN -c 1 "), "{dropped}");
                client.join().unwrap()
            });
            client.expect("the hole is open at the second attempt");
            assert_eq!(listener.accept().unwrap().1.ip().to_string(), source);
            lab.gateway.within(|| backend.close(&hole)).unwrap();
        }
    });
}

/// With iptables-legacy, others are kept out only when the hole is closed.
#[test]
fn of_connections_that_race_for_a_hole_one_gets_through() {
    for_each_flavour(|lab, flavour| {
        if flavour == Flavour::Legacy {
            return;
        }
        let mut backend = backend();
        lab.gateway.within(|| backend.install()).unwrap();
        assert!(!backend.holds().is_zero());
        for (round, (from, to, land, source)) in CASES.into_iter().cycle().take(20).enumerate() {
            let mut hole = hole(from, to, land, Some(source));
            // With the control connection's mark in every other round.
            hole.mark = if round % 4 < 2 { 0 } else { 0x11 };
            let listener = listen(&lab.server, land);
            lab.gateway.within(|| backend.open(&hole, MINUTE)).unwrap();
            let together = std::sync::Barrier::new(8);
            let to_hole: SocketAddr = to.parse().unwrap();
            let race = || {
                lab.client.within(|| {
                    together.wait();
                    usize::from(TcpStream::connect_timeout(&to_hole, ACCEPTED).is_ok())
                })
            };
            let through: usize = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).sum()
            });
            assert_eq!(through, 1, "{to}");
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(peer.ip().to_string(), source);
            lab.gateway
                .within(|| close_together(&mut backend, &[hole]))
                .unwrap();
        }
    });
}

#[test]
fn a_hole_is_for_its_peer_only_and_is_replaced() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let other = hole("203.0.113.11", "203.0.113.1:50001", "10.0.0.2:40001", None);
        let first = hole(
            "203.0.113.10",
            "203.0.113.1:50001",
            "10.0.0.2:40001",
            Some("10.0.0.1"),
        );
        let second = hole("203.0.113.10", "203.0.113.1:50001", "10.0.0.2:40002", None);
        let listener = listen(&lab.server, "10.0.0.2:40002");
        lab.gateway.within(|| {
            backend.install().unwrap();
            backend.open(&other, MINUTE).unwrap();
        });
        assert!(
            lab.connect("203.0.113.1:50001", REFUSED).is_none(),
            "{flavour}"
        );
        lab.gateway.within(|| {
            backend.open(&first, MINUTE).unwrap();
            backend.open(&first, MINUTE).unwrap();
            backend.open(&second, MINUTE).unwrap();
            assert!(backend.verify().unwrap());
        });
        let _client = lab
            .connect("203.0.113.1:50001", ACCEPTED)
            .expect("the second is open");
        assert_eq!(
            listener.accept().unwrap().1.ip().to_string(),
            "203.0.113.10"
        );
        lab.gateway.within(|| {
            backend.close(&second).unwrap();
            backend.close(&second).unwrap();
            assert!(backend.verify().unwrap());
        });
        assert!(
            lab.connect("203.0.113.1:50001", REFUSED).is_none(),
            "{flavour}"
        );
    });
}

#[test]
fn a_hole_without_translation_is_open_and_keeps_the_users_translation_away() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let listener = listen(&lab.server, "10.0.0.2:40001");
        let same = hole("203.0.113.10", "10.0.0.2:40001", "10.0.0.2:40001", None);
        lab.gateway.within(|| backend.install()).unwrap();
        assert!(
            lab.connect("10.0.0.2:40001", REFUSED).is_none(),
            "{flavour}"
        );
        lab.gateway.within(|| backend.open(&same, MINUTE)).unwrap();
        let _client = lab.connect("10.0.0.2:40001", ACCEPTED).expect("open");
        listener.accept().unwrap();
    });
}

#[test]
fn the_kernel_ends_a_hole_that_nobody_closes() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let listener = listen(&lab.server, "10.0.0.2:40001");
        let hole = hole("203.0.113.10", "203.0.113.1:50001", "10.0.0.2:40001", None);
        lab.gateway.within(|| {
            backend.install().unwrap();
            backend.open(&hole, Duration::from_secs(1)).unwrap();
        });
        let _client = lab.connect("203.0.113.1:50001", ACCEPTED).expect("open");
        listener.accept().unwrap();
        // The deadline is rounded up, and its second belongs to it.
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while lab
            .connect("203.0.113.1:50001", Duration::from_millis(200))
            .is_some()
        {
            assert!(std::time::Instant::now() < end, "{flavour}: still open");
        }
    });
}

#[test]
fn holes_are_closed_together_or_tried_again() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let holes: Vec<_> = (50001..=50003)
            .map(|port| {
                let to = format!("203.0.113.1:{port}");
                hole("203.0.113.10", &to, "10.0.0.2:40001", Some("10.0.0.1"))
            })
            .collect();
        let rules = || {
            let all = lab.gateway.sh(&format!("iptables-{flavour}-save -t nat"));
            all.matches("\"ftpalg:pinhole ").count()
        };
        lab.gateway.within(|| {
            backend.install().unwrap();
            for hole in &holes {
                backend.open(hole, MINUTE).unwrap();
            }
        });
        assert_eq!(rules(), 9, "{flavour}");
        // A chain by another name: nothing can be changed.
        let rename = |from: &str, to: &str| {
            lab.gateway
                .sh(&format!("iptables-{flavour} -t nat -E {from} {to}"));
        };
        rename("FTPALG-POST", "FTPALG-ELSE");
        lab.gateway.within(|| {
            assert!(close_together(&mut backend, &holes[..2]).is_err());
            let another = hole(
                "203.0.113.10",
                "203.0.113.1:9",
                "10.0.0.2:9",
                Some("10.0.0.1"),
            );
            assert!(backend.open(&another, MINUTE).is_err());
        });
        assert_eq!(rules(), 9, "{flavour}: all or nothing");
        rename("FTPALG-ELSE", "FTPALG-POST");
        lab.gateway.within(|| {
            close_together(&mut backend, &holes[..2]).unwrap();
            assert!(backend.verify().unwrap());
        });
        assert_eq!(rules(), 3, "{flavour}: one is left");
    });
}

#[test]
fn a_hole_that_opens_while_another_on_its_port_closes_comes_first_and_whole() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let land = |land| hole("203.0.113.10", "203.0.113.1:8080", land, None);
        let (old, new) = (land("10.0.0.2:40001"), land("10.0.0.2:40002"));
        let rules = || {
            let all = lab.gateway.sh(&format!("iptables-{flavour}-save -t nat"));
            let ours = all.lines().filter(|l| l.starts_with("-A FTPALG-PRE"));
            let targets = ours.filter_map(|l| l.split(" -j ").nth(1));
            targets.map(str::to_owned).collect::<Vec<_>>()
        };
        let mark = "CONNMARK --set-xmark 0x40000000/0x40000000";
        let (to_old, to_new) = (
            "DNAT --to-destination 10.0.0.2:40001",
            "DNAT --to-destination 10.0.0.2:40002",
        );
        lab.gateway.within(|| {
            backend.install().unwrap();
            backend.open(&old, MINUTE).unwrap();
            let closing = backend
                .closing(std::slice::from_ref(&old))
                .unwrap()
                .unwrap();
            backend.open(&new, MINUTE).unwrap();
            assert_eq!(rules(), [mark, to_new, mark, to_old], "{flavour}");
            backend.closed(closing()).unwrap();
            assert_eq!(rules(), [mark, to_new], "{flavour}");
            // Whatever is in the way of the work, the chains hold what is open in the end.
            let closing = backend
                .closing(std::slice::from_ref(&new))
                .unwrap()
                .unwrap();
            backend.open(&old, MINUTE).unwrap();
            lab.gateway
                .sh(&format!("iptables-{flavour} -t nat -D FTPALG-PRE 3"));
            let done = closing();
            assert!(done.is_err());
            backend.closed(done).unwrap();
            assert_eq!(rules(), [mark, to_old], "{flavour}");
            assert!(backend.verify().unwrap());
        });
    });
}

#[test]
fn holes_survive_what_others_remove_from_our_chains() {
    for_each_flavour(|lab, flavour| {
        let mut backend = backend();
        let one = hole("203.0.113.10", "203.0.113.1:50001", "10.0.0.2:40001", None);
        let two = hole(
            "203.0.113.10",
            "203.0.113.1:50002",
            "10.0.0.2:40001",
            Some("10.0.0.1"),
        );
        lab.gateway.within(|| {
            backend.install().unwrap();
            backend.open(&one, MINUTE).unwrap();
            backend.open(&two, MINUTE).unwrap();
        });
        lab.gateway
            .sh(&format!("iptables-{flavour} -t nat -F FTPALG-PRE"));
        lab.gateway.within(|| {
            assert!(!backend.verify().unwrap());
            backend.close(&one).unwrap();
            assert!(backend.verify().unwrap(), "{flavour}: the other is back");
        });
        let listener = listen(&lab.server, "10.0.0.2:40001");
        let _client = lab.connect("203.0.113.1:50002", ACCEPTED).expect("open");
        listener.accept().unwrap();
        flush_nat(lab, flavour);
        lab.gateway.within(|| {
            backend.close(&two).unwrap();
            assert!(
                backend.open(&one, MINUTE).is_err(),
                "{flavour}: its chains are gone"
            );
            assert!(!backend.verify().unwrap());
            backend.install().unwrap();
            backend.open(&one, MINUTE).unwrap();
            assert!(backend.verify().unwrap());
        });
    });
}

/// Removes all rules and chains of the table, but one rule keeps the table itself.
fn flush_nat(lab: &Lab, flavour: Flavour) {
    lab.gateway.sh(&format!(
        "for c in $(iptables-{flavour}-save -t nat | sed -n 's/^:\\([^ ]*\\).*/\\1/p'); do iptables-{flavour} -t nat -F $c; done
         iptables-{flavour} -t nat -X; iptables-{flavour} -t nat -A POSTROUTING -p tcp --dport 1 -j MASQUERADE"
    ));
}

#[test]
fn ranges_survive_what_others_remove_from_our_chains() {
    for_each_flavour(|lab, flavour| {
        let range = PortRange::new(50001, 50009).unwrap();
        let mut backend = backend();
        backend.set_range(range);
        let of = |client: &str| RangeHole {
            from: client.parse().unwrap(),
            to: "203.0.113.1".parse().unwrap(),
            land: "10.0.0.2".parse().unwrap(),
            as_source: None,
        };
        let (one, two) = (of("203.0.113.10"), of("203.0.113.11"));
        lab.gateway.within(|| {
            backend.install().unwrap();
            backend.open_range(&one, MINUTE).unwrap();
            backend.open_range(&two, MINUTE).unwrap();
        });
        lab.gateway
            .sh(&format!("iptables-{flavour} -t nat -F FTPALG-RANGE-PRE"));
        lab.gateway.within(|| {
            assert!(!backend.verify().unwrap());
            backend.open_range(&two, MINUTE).unwrap();
            assert!(backend.verify().unwrap(), "{flavour}: the other is back");
        });
        let listener = listen(&lab.server, "10.0.0.2:50003");
        let _client = lab.connect("203.0.113.1:50003", ACCEPTED).expect("open");
        listener.accept().unwrap();
        flush_nat(lab, flavour);
        lab.gateway.within(|| {
            backend.close_range(&one).unwrap();
            assert!(
                backend.open_range(&two, MINUTE).is_err(),
                "{flavour}: its chains are gone"
            );
            assert!(!backend.verify().unwrap());
            backend.install().unwrap();
            backend.open_range(&two, MINUTE).unwrap();
            assert!(backend.verify().unwrap());
        });
    });
}

#[test]
fn local_processes_are_reached_and_reach_out() {
    let lab = Lab::new();
    lab.gateway.sh("iptables-nft -P INPUT DROP; iptables-nft -P OUTPUT DROP
        for c in INPUT OUTPUT; do iptables-nft -A $c -m conntrack --ctstate ESTABLISHED -j ACCEPT; done");
    let before = lab.gateway.ruleset();
    let local = Steering {
        local: true,
        ..Steering::default()
    };
    install(&lab.gateway, &local);
    let mut backend = backend();
    let inwards = hole(
        "203.0.113.10",
        "203.0.113.1:50002",
        "203.0.113.1:40002",
        None,
    );
    let outwards = hole(
        "203.0.113.1",
        "203.0.113.10:50003",
        "203.0.113.10:40003",
        None,
    );
    let listener = listen(&lab.gateway, "203.0.113.1:40002");
    assert!(lab.connect("203.0.113.1:40002", REFUSED).is_none());
    lab.gateway.within(|| {
        backend.install().unwrap();
        backend.open(&inwards, MINUTE).unwrap();
        backend.open(&outwards, MINUTE).unwrap();
    });
    let _client = lab.connect("203.0.113.1:50002", ACCEPTED).expect("open");
    listener.accept().unwrap();
    let listener = listen(&lab.client, "203.0.113.10:40003");
    let to: SocketAddr = "203.0.113.10:50003".parse().unwrap();
    let _out = lab
        .gateway
        .within(|| TcpStream::connect_timeout(&to, ACCEPTED))
        .expect("open");
    listener.accept().unwrap();
    lab.gateway.within(|| backend.remove()).unwrap();
    remove(&lab.gateway);
    assert_eq!(lab.gateway.ruleset(), before);
}

/// Control packets are queued both ways, on the inside of NAT, and on no other port.
#[test]
fn control_packets_meet_both_hooks() {
    for flavour in Flavour::ALL {
        let lab = Lab::new();
        lab.gateway.sh(&format!(
            "iptables-{flavour} -t nat -A PREROUTING -i out -p tcp --dport 2121 -j DNAT --to-destination 10.0.0.2:21
             iptables-{flavour} -t nat -A POSTROUTING -o out -j MASQUERADE"
        ));
        let inside = |fail_open| Steering {
            inside: vec!["in".parse().unwrap()],
            fail_open,
            ..Steering::default()
        };
        let counts = || {
            let egress = lab.gateway.sh("iptables-nft -t raw -vS FTPALG-EGRESS");
            let ingress = lab.gateway.sh("iptables-nft -t mangle -vS FTPALG-INGRESS");
            [
                ("--sport 21 ", egress.clone()),
                ("--dport 21 ", egress),
                ("--sport 21 ", ingress.clone()),
                ("--dport 21 ", ingress),
            ]
            .map(|(port, rules)| {
                let rule = rules.lines().find(|l| l.contains(port)).unwrap().to_owned();
                !rule.contains("-c 0 0")
            })
        };
        let server = listen(&lab.server, "10.0.0.2:21");
        // Nobody reads the queue: closed, or past it.
        install(&lab.gateway, &inside(false));
        assert!(
            lab.connect("203.0.113.1:2121", REFUSED).is_none(),
            "{flavour}"
        );
        assert_eq!(
            counts(),
            [false, false, false, true],
            "{flavour}: to the server inside"
        );
        install(&lab.gateway, &inside(true));
        lab.connect("203.0.113.1:2121", ACCEPTED)
            .expect("passed by");
        server.accept().unwrap();
        assert_eq!(
            counts(),
            [true, false, false, true],
            "{flavour}: server inside"
        );
        install(&lab.gateway, &inside(true));
        let _outside = listen(&lab.client, "203.0.113.10:21");
        let to: SocketAddr = "203.0.113.10:21".parse().unwrap();
        lab.server
            .within(|| TcpStream::connect_timeout(&to, ACCEPTED))
            .unwrap();
        assert_eq!(
            counts(),
            [false, true, true, false],
            "{flavour}: client inside"
        );
        install(&lab.gateway, &inside(true));
        let _other = listen(&lab.client, "203.0.113.10:80");
        let to: SocketAddr = "203.0.113.10:80".parse().unwrap();
        lab.server
            .within(|| TcpStream::connect_timeout(&to, ACCEPTED))
            .unwrap();
        assert_eq!(counts(), [false; 4], "{flavour}: not FTP");
    }
}

#[test]
fn a_lock_that_another_program_holds_is_waited_for() {
    let ns = Ns::gateway();
    ns.sh(
        "iptables-legacy -t raw -A PREROUTING -p udp -j NOTRACK; iptables-legacy -P FORWARD DROP",
    );
    let held = File::open(lock_file()).unwrap();
    let held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let installing = scope.spawn(|| install(&ns, &steering()));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!installing.is_finished(), "it waits");
        drop(held);
        installing.join().unwrap();
    });
}

fn lock_file() -> &'static Path {
    Path::new("/run/xtables.lock")
}

/// Where the accept rule goes in firewalls of nft's own: in front of what drops, behind the rest.
#[test]
fn nft_firewalls_get_an_accept_rule_where_they_drop() {
    let chain = |ns: &Ns, chain: &str| -> Vec<String> {
        let text = ns.sh(&format!("nft list chain inet {chain}"));
        let rules = text.lines().map(|l| l.trim().to_owned());
        rules
            .skip_while(|l| !l.starts_with("type"))
            .skip(1)
            .collect()
    };
    let ours = |rules: &[String]| rules.iter().position(|r| r.contains("ftpalg:accept"));

    let ns = Ns::gateway();
    ns.sh(NFTABLES);
    let installed = install(&ns, &steering());
    assert_eq!(installed.native, ["nft inet filter forward"]);
    let forward = chain(&ns, "filter forward");
    assert_eq!(
        forward[3],
        "meta l4proto tcp ct mark & 0x40000000 == 0x40000000 accept comment \"ftpalg:accept\""
    );
    assert_eq!(ours(&chain(&ns, "filter input")), None);
    assert_eq!(ours(&chain(&ns, "filter clamp")), None);

    // With local services, in front of the verdict map; the output chain drops nothing.
    let installed = install(&ns, &everything());
    assert_eq!(
        installed.native,
        ["nft inet filter input", "nft inet filter forward"]
    );
    assert_eq!(ours(&chain(&ns, "filter input")), Some(0));
    assert_eq!(ours(&chain(&ns, "filter output")), None);
    assert_eq!(
        ns.sh("nft list ruleset").matches("ftpalg:accept").count(),
        2
    );

    // A drop that comes later, and somebody who removes ours.
    ns.sh("nft add rule inet filter output ip daddr 192.0.2.1 drop");
    let missing = in_place(&ns, &everything());
    assert_eq!(missing, ["nft inet filter output: the accept rule is gone"]);
    ns.sh("nft flush chain inet filter forward");
    assert_eq!(in_place(&ns, &everything()).len(), 2);
    install(&ns, &everything());

    let ns = Ns::gateway();
    ns.sh(FIREWALLD);
    let installed = install(&ns, &everything());
    assert_eq!(
        installed.native,
        [
            "nft inet firewalld filter_INPUT",
            "nft inet firewalld filter_FORWARD"
        ]
    );
    assert_eq!(ours(&chain(&ns, "firewalld filter_INPUT")), Some(3));
    assert_eq!(ours(&chain(&ns, "firewalld filter_FORWARD")), Some(3));
    assert!(remove(&ns) > 2);
    assert!(!ns.sh("nft list ruleset").contains("ftpalg"));
}

/// `iptables/` holds what the program prints for a plain host of the kind, and the tools take it.
#[test]
fn the_files_for_people_are_true_and_load() {
    let dir = testkit::paths::repository().join("iptables");
    let plain = |local: bool| Steering {
        inside: match local {
            true => Vec::new(),
            false => vec!["eth1".parse().unwrap()],
        },
        local,
        // As `ftpalg run` has it.
        queues: Queues {
            first: 2121,
            count: 1,
        },
        ..Steering::default()
    };
    let ns = Ns::new();
    let mut files = Vec::new();
    for family in Family::ALL {
        let (end, program) = match family {
            Family::V4 => ("rules", "iptables"),
            Family::V6 => ("v6.rules", "ip6tables"),
        };
        let examples = ftpalg::firewall::EXAMPLES;
        let named = examples.iter().map(|example| {
            let local = matches!(example.name, "local-server" | "default-drop-host");
            let text = example.print(&plain(local), &Around::default(), family);
            (example.name, text.unwrap())
        });
        let steering = ("steering", print(&plain(false), family).unwrap());
        for (name, text) in named.chain([steering]) {
            let file = dir.join(format!("{name}.{end}"));
            if std::env::var_os("FTPALG_BLESS").is_some() {
                std::fs::write(&file, &text).unwrap();
            }
            let there = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(there == text, "{} is out of date", file.display());
            for flavour in ["nft", "legacy"] {
                ns.sh(&format!(
                    "{program}-{flavour}-restore --test --noflush < {}",
                    file.display()
                ));
            }
            files.push(file);
        }
    }
    let listed = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(listed, files.len(), "nothing else is in there");
}
