//! Steering rules that are placed over netlink, without any program, against the running kernel. Needs
//! root; makes network namespaces.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ftpalg::firewall::xtables::tools::Tools;
use ftpalg::firewall::{
    Installed, Placement, Queues, Rules, Steering, SteeringWay, Unread, in_own_tables, print_nft,
};
use ftpalg::net::Family;
use testkit::lab::net::Net;
use testkit::lab::rules::without_counters;
use testkit::lab::topology::{Topology, host, link};

struct Ns(Net);

impl Ns {
    fn gateway() -> Self {
        let links = vec![link(
            ("g", "lan", &["192.168.1.1/24", "fd00::1/64"]),
            ("g", "far", &[]),
        )];
        Self(Net::new(&Topology::bare(vec![host("g", &[])], links)))
    }

    fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.0.within("g", what)
    }

    fn sh(&self, script: &str) -> String {
        self.within(|| {
            let output = Command::new("sh")
                .args(["-ec", script])
                .stderr(Stdio::inherit())
                .output()
                .unwrap();
            assert!(output.status.success(), "{script}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// All rules, as `nft` and the tools of iptables-nft show them.
    fn ruleset(&self) -> String {
        without_counters(&self.sh("nft list ruleset; iptables-nft-save; ip6tables-nft-save"))
    }

    /// What isn't in place, for a host without tools.
    fn missing(&self, steering: &Steering) -> Vec<String> {
        self.within(|| bare().verify(steering)).unwrap()
    }

    fn install(&self, mut rules: Rules, steering: &Steering) -> Installed {
        self.within(|| rules.install(steering)).unwrap()
    }
}

/// Those of a host without any tools.
fn bare() -> Rules {
    Rules::new(Tools::find_in(&[PathBuf::from("/nonexistent")]))
}

fn steering() -> Steering {
    Steering {
        inside: ["lan", "10.0.0.0/8", "172.16.0.0/12", "fd00:1::/33"]
            .map(|inside| inside.parse().unwrap())
            .into(),
        ..Steering::default()
    }
}

fn everything() -> Steering {
    Steering {
        local: true,
        ports: (21..60).chain([990]).collect(),
        queues: Queues { first: 4, count: 3 },
        fail_open: true,
        ..steering()
    }
}

#[test]
fn a_host_without_tools_is_steered_and_nothing_is_left() {
    let ns = Ns::gateway();
    ns.sh("nft add table inet mine");
    let before = ns.ruleset();
    for steering in [steering(), everything(), steering()] {
        assert!(!ns.missing(&steering).is_empty(), "another one is there");
        for _ in 0..2 {
            let installed = ns.install(bare(), &steering);
            assert_eq!(
                installed.own,
                ["nft ip ftpalg-steering", "nft ip6 ftpalg-steering"]
            );
            assert!(installed.how.contains("no iptables here"), "{installed:?}");
            assert_eq!(ns.missing(&steering), [""; 0], "{}", ns.ruleset());
        }
    }
    assert_eq!(
        ns.within(|| bare().way(&steering())).unwrap(),
        SteeringWay::Nft
    );
    assert!(ns.within(|| bare().remove()).unwrap() > 8);
    assert_eq!(ns.within(|| bare().remove()).unwrap(), 0);
    assert_eq!(ns.ruleset(), before);
}

#[test]
fn every_change_of_a_rule_is_seen_and_mended() {
    let ns = Ns::gateway();
    let steering = everything();
    ns.install(bare(), &steering);
    let whole = ns.ruleset();
    let table = "ip ftpalg-steering";
    for change in [
        "nft flush ruleset",
        &format!("nft delete table {table}"),
        &format!("nft flush chain {table} FTPALG-EGRESS"),
        &format!("nft flush chain {table} after-raw-prerouting"),
        &format!("nft insert rule {table} FTPALG-INGRESS accept"),
        &format!("nft add rule {table} FTPALG-SEEN counter"),
        &format!("nft 'chain {table} after-mangle-input {{ policy drop; }}'"),
        // Another queue, another port, another mark, another interface: as many rules as before.
        &format!("{} -e 's/0x10000000/0x08000000/g'", reloaded(table)),
        &format!(
            "{} -e 's/iifname \"lan\"/iifname \"wan\"/'",
            reloaded(table)
        ),
        &format!("{} -e 's/990/991/'", reloaded(table)),
    ] {
        ns.sh(change);
        let missing = ns.missing(&steering);
        assert!(
            missing.iter().any(|one| one.contains(table)),
            "{change}: {missing:?}\n{}",
            ns.ruleset()
        );
        ns.install(bare(), &steering);
        assert_eq!(ns.missing(&steering), [""; 0], "{change}");
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        assert_eq!(sorted(&ns.ruleset()), sorted(&whole), "{change}");
    }
    for other in [
        Steering {
            fail_open: false,
            ..steering.clone()
        },
        Steering {
            queues: Queues { first: 4, count: 2 },
            ..steering.clone()
        },
        Steering {
            ports: (21..60).collect(),
            ..steering.clone()
        },
    ] {
        assert!(!ns.missing(&other).is_empty(), "{other:?}");
    }
}

/// A script whose arguments edit a table's rules, in the place where they are. `nft` can't write the
/// target that queues packets, so those rules are dropping ones.
fn reloaded(table: &str) -> String {
    format!(
        "edit() {{ rules=$(nft list table {table} | sed -e 's/queue num [0-9-]*\\( bypass\\)\\?/drop/' \"$@\"); \
         printf 'delete table {table}\\n%s\\n' \"$rules\" | nft -f -; }}; edit"
    )
}

#[test]
fn rules_of_the_other_way_are_replaced() {
    let ns = Ns::gateway();
    let before = ns.ruleset();
    let by = |placement| Steering {
        placement,
        ..steering()
    };
    let tools = || Rules::new(Tools::find());
    for placement in [
        Placement::Nft,
        Placement::Iptables,
        Placement::Nft,
        Placement::Auto,
    ] {
        let installed = ns.install(tools(), &by(placement));
        let own = ns.within(in_own_tables).unwrap();
        let text = ns.ruleset();
        let is_own = placement == Placement::Nft;
        assert_eq!(installed.own.is_empty(), !is_own);
        assert_eq!(own.tables, if is_own { 2 } else { 0 }, "{placement}");
        assert_eq!(
            text.contains("-A PREROUTING"),
            !is_own,
            "{placement}: {text}"
        );
        let missing = ns.within(|| tools().verify(&by(placement)));
        assert_eq!(missing.unwrap(), [""; 0]);
    }
    // A person who placed them over netlink needs no others.
    ns.install(tools(), &by(Placement::Nft));
    let missing = ns.within(|| tools().verify(&by(Placement::Auto)));
    assert_eq!(missing.unwrap(), [""; 0]);
    let missing = ns.within(|| tools().verify(&by(Placement::Iptables)));
    assert!(!missing.unwrap().is_empty());
    // What one process placed, another one without tools removes.
    assert!(ns.within(|| bare().remove()).unwrap() > 8);
    assert_eq!(ns.ruleset(), before);
}

/// A host's tools are gone, such as with another image of a container: what an ftpalg placed with them is
/// told and replaced all the same. Chains of pinholes go with all else.
#[test]
fn rules_that_the_tools_placed_are_removed_without_them() {
    for mine in [
        "true",
        "iptables-nft -t raw -A PREROUTING -p udp -j ACCEPT; iptables-nft -P FORWARD DROP",
    ] {
        let ns = Ns::gateway();
        ns.sh(mine);
        let before = ns.ruleset();
        for steering in [steering(), everything()] {
            let by_tools = Steering {
                placement: Placement::Iptables,
                ..steering.clone()
            };
            ns.install(Rules::new(Tools::find()), &by_tools);
            ns.sh("iptables-nft -t nat -N FTPALG-PRE; iptables-nft -t nat -A FTPALG-PRE -p tcp -j ACCEPT");
            let left = ns.within(|| bare().left()).unwrap();
            let unread = match steering.fail_open {
                false => Unread::Dropped,
                true => Unread::Passed,
            };
            assert_eq!(left.control, Some(unread), "{left:?}");
            let installed = ns.install(bare(), &steering);
            assert_eq!(installed.replaced, left.rules);
            let text = ns.ruleset();
            assert!(!text.contains(" FTPALG-EGRESS -m"), "{text}");
            assert!(
                text.contains("FTPALG-PRE"),
                "pinholes are another's: {text}"
            );
            assert_eq!(ns.missing(&steering), [""; 0]);
            ns.within(|| bare().remove()).unwrap();
            ns.sh("nft delete table ip nat");
            assert_eq!(ns.ruleset(), before);
        }
    }
}

/// In a container without tools, beside a host whose rules are iptables-nft's: its tools still show all of
/// its tables.
#[test]
fn tables_of_iptables_stay_readable() {
    let ns = Ns::gateway();
    ns.sh("for f in iptables ip6tables; do $f-nft -P FORWARD DROP
        $f-nft -A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
        $f-nft -A FORWARD -j DROP; done");
    let again =
        "iptables-nft-save | iptables-nft-restore; ip6tables-nft-save | ip6tables-nft-restore";
    ns.sh(again);
    let before = ns.ruleset();
    let installed = ns.install(bare(), &steering());
    assert_eq!(
        installed.native,
        ["nft ip filter FORWARD", "nft ip6 filter FORWARD"]
    );
    let saved = ns.sh("iptables-nft-save; ip6tables-nft-save");
    let wanted = "-A FORWARD -p tcp -m connmark --mark 0x40000000/0x40000000 -m comment --comment \
                  \"ftpalg:accept\" -j ACCEPT\n-A FORWARD -j DROP";
    assert_eq!(saved.matches(wanted).count(), 2, "{saved}");
    assert!(!saved.contains("incompatible"), "{saved}");
    // Somebody restores what was saved: the rule is still known as ours.
    ns.sh(again);
    assert_eq!(ns.missing(&steering()), [""; 0]);
    ns.within(|| bare().remove()).unwrap();
    assert_eq!(ns.ruleset(), before);
}

/// What a host's iptables-nft publishes is read from the kernel.
#[test]
fn published_ports_are_known_without_tools() {
    let ns = Ns::gateway();
    ns.sh(
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to-destination 192.168.1.2:80
        iptables-nft -t nat -A PREROUTING -p tcp -m multiport --dports 2222,2223 -j REDIRECT --to-ports 22",
    );
    let look = ns.within(|| bare().look(None)).unwrap();
    let takes = |port| {
        let [from, to, land] = ["203.0.113.9", "192.168.1.1", "192.168.1.9"];
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
        let mut all = look.published.iter();
        all.any(|one| one.takes(from.parse().unwrap(), at(to), at(land)))
    };
    for (port, taken) in [(8080, true), (2222, true), (2223, true), (2224, false)] {
        assert_eq!(takes(port), taken, "{port}: {look:?}");
    }
}

/// What is printed is what is installed, as far as `nft` can write it.
#[test]
fn what_is_printed_can_be_loaded() {
    for steering in [steering(), everything()] {
        for (family, name) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            let ns = Ns::gateway();
            let list = format!(
                "nft list table {name} ftpalg-steering | sed 's/queue num [0-9-]*\\( bypass\\)\\?/accept/' \
                 | grep -v 'ftpalg:steering'"
            );
            ns.install(bare(), &steering);
            let installed = ns.sh(&list);
            ns.within(|| bare().remove()).unwrap();
            let text = print_nft(&steering, family).unwrap();
            for once_more in [false, true] {
                let load = format!(
                    "sed 's/queue num [0-9-]*\\( bypass\\)\\?/accept/' <<'END' | nft -f -\n{text}\nEND"
                );
                ns.sh(&load);
                assert_eq!(ns.sh(&list), installed, "{family} {once_more}");
            }
        }
    }
}
