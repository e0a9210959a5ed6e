//! Finds the inside from the user's own NAT rules, where nobody named it.

use std::collections::BTreeSet;

use super::RulesError;
use super::nat_rule::{Action, NatRule, nat_rules};
use super::steering::Inside;
use super::surroundings::Surroundings;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::net::{Family, is_private};

/// What the rules tell about the inside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Derived {
    /// The private sides of the gateway.
    pub inside: Vec<Inside>,
    /// Whether a rule leads control connections to this host itself.
    pub local: bool,
    /// What was found where, a line each, for the log.
    pub found: Vec<String>,
}

/// An outside interface as a rule names it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Outside<'a>(&'a str);

impl Outside<'_> {
    fn is(&self, iface: &str) -> bool {
        self.0
            .strip_suffix('+')
            .map_or(self.0 == iface, |stem| iface.starts_with(stem))
    }
}

impl Surroundings {
    /// The interfaces, other than those, that are up and have private networks behind them.
    fn private_but(&self, outside: &[Outside<'_>]) -> BTreeSet<&str> {
        self.routes
            .iter()
            .filter(|r| is_private(&r.net) && self.up.contains(&r.iface))
            .map(|r| r.iface.as_str())
            .filter(|iface| !outside.iter().any(|o| o.is(iface)))
            .collect()
    }
}

/// Finds the inside: see [`Rules::derive`](super::Rules::derive).
pub(crate) fn derive(
    snapshot: &Snapshot,
    around: &Surroundings,
    ports: &[u16],
) -> Result<Derived, RulesError> {
    let mut found = Derived::default();
    let rules: Vec<_> = nat_rules(snapshot)
        .filter(|(_, rule)| may_be_control(rule, ports))
        .collect();
    let outside: Vec<Outside<'_>> = rules
        .iter()
        .filter(|(_, rule)| matches!(rule.action, Action::Snat | Action::Masquerade))
        .filter_map(|(_, rule)| rule.out)
        .filter(|out| !out.negated)
        .map(|out| Outside(out.text))
        .collect();
    for (family, rule) in &rules {
        match rule.action {
            Action::Dnat => found.published(rule, around, ports),
            Action::Redirect => found.serve_local("REDIRECT leads to this host: serving it"),
            Action::Masquerade => found.hidden("MASQUERADE", *family, rule, around, &outside),
            Action::Snat => found.hidden("SNAT", *family, rule, around, &outside),
        }
    }
    found.simplify(around);
    if found.inside.is_empty() && !found.local {
        let mut why = found.found.join("; ");
        if why.is_empty() {
            let list: Vec<String> = ports.iter().map(u16::to_string).collect();
            why = format!(
                "no DNAT rule for port {} and no MASQUERADE or SNAT rule found",
                list.join(", ")
            );
        }
        return Err(RulesError::Input(format!(
            "{why}: name the inside with --inside IFACE or --inside CIDR, or serve this host itself with --local"
        )));
    }
    Ok(found)
}

impl Derived {
    /// A server that a DNAT rule publishes.
    fn published(&mut self, rule: &NatRule<'_>, around: &Surroundings, ports: &[u16]) {
        if rule.to.is_none() && rule.to_port.is_none() {
            return;
        }
        let Some(addr) = rule.to.filter(|a| !around.is_own(*a)) else {
            self.serve_local("DNAT leads to this host: serving it");
            return;
        };
        if let Some(port) = rule.to_port.filter(|p| !ports.contains(p)) {
            self.note(format!(
                "DNAT leads to port {port} of {addr}: give --port {port}, too"
            ));
        }
        match around.iface_to(addr) {
            Some(iface) => {
                self.note(format!(
                    "DNAT leads to {addr}, behind {iface}: inside is {iface}"
                ));
                self.add_iface(iface);
            }
            None => self.note(format!("DNAT leads to {addr}, but there is no route to it")),
        }
    }

    /// Clients that a MASQUERADE or SNAT rule hides.
    fn hidden(
        &mut self,
        target: &str,
        family: Family,
        rule: &NatRule<'_>,
        around: &Surroundings,
        outside: &[Outside<'_>],
    ) {
        if let Some(net) = rule.source {
            self.note(format!("{target} hides {net}: inside is {net}"));
            self.inside.push(Inside::Net(net));
            return;
        }
        match rule.out {
            Some(out) if out.negated => {
                self.note(format!(
                    "{target} hides what leaves by other than {0}: inside is {0}",
                    out.text
                ));
                self.add_iface(out.text);
            }
            Some(out) => {
                let inside = around.private_but(outside);
                for iface in &inside {
                    self.note(format!(
                        "{target} hides what leaves by {}: inside is {iface}",
                        out.text
                    ));
                    self.add_iface(iface);
                }
                if inside.is_empty() {
                    self.note(format!(
                        "{target} hides what leaves by {}, but no other interface is up with a private {family} network",
                        out.text
                    ));
                }
            }
            None => {}
        }
    }

    fn serve_local(&mut self, why: &str) {
        self.local = true;
        self.note(why.to_owned());
    }

    fn add_iface(&mut self, iface: &str) {
        // A name that can't stand in one of our rules (a wildcard) is left out.
        if let Ok(inside @ Inside::Iface(_)) = iface.parse() {
            self.inside.push(inside);
        }
    }

    fn note(&mut self, line: String) {
        if !self.found.contains(&line) {
            self.found.push(line);
        }
    }

    /// Names each inside once: a network behind an interface that is named already adds nothing.
    fn simplify(&mut self, around: &Surroundings) {
        self.inside.sort();
        self.inside.dedup();
        let named: BTreeSet<Inside> = self.inside.iter().cloned().collect();
        self.inside.retain(|inside| {
            let mut routes = around.routes.iter();
            !routes.any(|route| {
                *inside == Inside::Net(route.net)
                    && named.contains(&Inside::Iface(route.iface.clone()))
            })
        });
    }
}

/// Whether a NAT rule can apply to a control connection: the port before or after it.
fn may_be_control(rule: &NatRule<'_>, ports: &[u16]) -> bool {
    let before = ports.iter().any(|port| rule.may_be_for(*port));
    before || rule.to_port.is_some_and(|port| ports.contains(&port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::surroundings::Route;
    use crate::firewall::xtables::Flavour;
    use crate::firewall::xtables::save::Ruleset;
    use crate::firewall::xtables::snapshot::View;

    fn around() -> Surroundings {
        let route = |net: &str, iface: &str| Route {
            net: net.parse().unwrap(),
            iface: iface.into(),
        };
        Surroundings {
            addresses: Vec::new(),
            routes: vec![
                route("0.0.0.0/0", "wan"),
                route("203.0.113.0/24", "wan"),
                route("192.168.1.0/24", "lan"),
                route("10.0.0.0/8", "dmz"),
                route("10.9.0.0/16", "down"),
                route("fd00:1::/64", "lan"),
            ],
            own: ["203.0.113.1", "192.168.1.1"]
                .map(|a| a.parse().unwrap())
                .into(),
            up: ["wan", "lan", "dmz"].map(str::to_owned).into(),
        }
    }

    fn derived(rules: &[&str]) -> Result<Derived, String> {
        let rules: String = rules.iter().map(|r| format!("-A {r}\n")).collect();
        let snapshot = Snapshot {
            views: vec![View {
                family: Family::V4,
                flavour: Flavour::Legacy,
                rules: Ruleset::parse(&format!("*nat\n{rules}COMMIT\n")),
            }],
            plain: None,
        };
        derive(&snapshot, &around(), &[21]).map_err(|e| e.to_string())
    }

    fn inside(rules: &[&str]) -> Vec<String> {
        let derived = derived(rules).unwrap();
        assert!(!derived.found.is_empty());
        derived.inside.iter().map(Inside::to_string).collect()
    }

    #[test]
    fn dnat() {
        for rule in [
            "PREROUTING -p tcp -m tcp --dport 21 -j DNAT --to-destination 192.168.1.2",
            "PREROUTING -p tcp -m tcp --dport 2121 -j DNAT --to-destination 192.168.1.2:21",
            "PREROUTING -p tcp -m multiport --dports 80,20:22 -j DNAT --to-destination 192.168.1.2-192.168.1.9",
            "PREROUTING -d 203.0.113.1/32 -j DNAT --to-destination 192.168.1.2",
            "DOCKER ! -i br0 -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2:21-22",
            "PREROUTING -p tcp --dport 21 -j DNAT --to-destination [fd00:1::5]:21",
            "PREROUTING -p tcp --dport 21 -j DNAT --to-destination fd00:1::5",
        ] {
            assert_eq!(inside(&[rule]), ["lan"], "{rule}");
        }
    }

    #[test]
    fn dnat_to_this_host() {
        for rule in [
            "PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.1",
            "PREROUTING -p tcp --dport 21 -j DNAT --to-destination 127.0.0.1:21",
            "PREROUTING -p tcp --dport 2121 -j DNAT --to-destination :21",
            "PREROUTING -p tcp --dport 21 -j REDIRECT --to-ports 2121",
        ] {
            let derived = derived(&[rule]).unwrap();
            assert!(
                derived.local && derived.inside.is_empty(),
                "{rule}: {derived:?}"
            );
        }
    }

    #[test]
    fn another_port_inside_is_said() {
        let derived =
            derived(&["PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2:2121"])
                .unwrap();
        assert!(derived.found.iter().any(|f| f.contains("--port 2121")));
    }

    #[test]
    fn masquerade() {
        assert_eq!(
            inside(&["POSTROUTING -o wan -j MASQUERADE"]),
            ["dmz", "lan"]
        );
        assert_eq!(inside(&["POSTROUTING -o w+ -j MASQUERADE"]), ["dmz", "lan"]);
        assert_eq!(
            inside(&[
                "POSTROUTING -o wan -j MASQUERADE",
                "POSTROUTING -o dmz -j SNAT --to-source 10.0.0.1"
            ]),
            ["lan"]
        );
        assert_eq!(
            inside(&["POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"]),
            ["172.17.0.0/16"]
        );
        assert_eq!(inside(&["POSTROUTING ! -o lan -j MASQUERADE"]), ["lan"]);
    }

    #[test]
    fn each_inside_once() {
        assert_eq!(
            inside(&[
                "PREROUTING -p tcp --dport 21 -j DNAT --to-destination 192.168.1.2",
                "POSTROUTING -s 192.168.1.0/24 -o wan -j MASQUERADE",
                "POSTROUTING -s 10.0.0.0/8 -o wan -j MASQUERADE",
            ]),
            ["lan", "10.0.0.0/8"]
        );
    }

    #[test]
    fn nothing_found_says_how_to_mend_it() {
        for rules in [
            &[][..],
            &["PREROUTING -p udp --dport 21 -j DNAT --to-destination 192.168.1.2"],
            &["PREROUTING -p tcp --dport 80 -j DNAT --to-destination 192.168.1.2:8080"],
            &["PREROUTING -p tcp ! --dport 21 -j DNAT --to-destination 192.168.1.2"],
            &["POSTROUTING -p tcp --dport 443 -o wan -j MASQUERADE"],
            &["POSTROUTING -m comment --comment ftpalg:x -o wan -j MASQUERADE"],
            &["POSTROUTING -j MASQUERADE"],
            &["PREROUTING -p tcp -j ACCEPT"],
        ] {
            let e = derived(rules).unwrap_err();
            assert!(
                e.contains("--inside") && e.contains("--local") && !e.contains('\n'),
                "{e}"
            );
        }
    }
}
