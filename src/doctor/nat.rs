//! What is to be watched, and the user's NAT rules: found, or contradicting the settings.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::facts::Facts;
use super::{Finding, Theme};
use crate::firewall::forwarding::Forwarding;
use crate::firewall::nat_rule::{Action, nat_rules};
use crate::firewall::{Inside, is_ours};
use crate::net::Family;

/// The most servers that are listed.
const MANY: usize = 20;

pub(super) fn judge(facts: &Facts, all: &mut Vec<Finding>) {
    flavour(facts, all);
    all.push(inside(facts));
    all.push(published(facts));
    all.extend(masquerade(facts));
    all.extend(mismatches(facts));
    all.extend(on_the_outside(facts));
    all.extend(external(facts));
}

/// What is watched: see [`super::watched`].
pub(super) fn watched(facts: &Facts) -> Vec<String> {
    let mut lines = servers(facts);
    let more = lines.len().saturating_sub(MANY);
    lines.truncate(MANY);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    lines
}

/// The published servers that the settings are for.
fn servers(facts: &Facts) -> Vec<String> {
    let ports = &facts.wanted.steering.ports;
    facts
        .forwardings()
        .iter()
        .filter(|one| ports.contains(&one.server_port))
        .map(|one| {
            let on = one.server.and_then(|server| facts.around.iface_to(server));
            let on = on.map_or_else(String::new, |iface| format!(" on {iface}"));
            format!("{} -> {}{on}", one.public(&facts.around), one.target())
        })
        .collect()
}

fn flavour(facts: &Facts, all: &mut Vec<Finding>) {
    if facts.snapshot.views.is_empty() {
        return;
    }
    let choice = facts.snapshot.choose(is_ours);
    all.push(Finding::ok(
        "flavour",
        Theme::Nat,
        format!("following {}", choice.why),
    ));
}

fn inside(facts: &Facts) -> Finding {
    let steering = &facts.wanted.steering;
    if let Some(why) = &facts.wanted.nothing {
        let (what, _) = why.split_once(": name the inside").unwrap_or((why, ""));
        let private: Vec<_> = facts.around.up.iter().map(String::as_str).collect();
        let iface = private.first().copied().unwrap_or("IFACE");
        return Finding::problem(
            "inside",
            Theme::Nat,
            format!("what is inside isn't known: {what}"),
        )
        .means("`ftpalg run` won't start without --inside or --local")
        .command(format!("ftpalg run --inside {iface}"));
    }
    let mut names: Vec<String> = steering.inside.iter().map(ToString::to_string).collect();
    if steering.local {
        names.push("this host itself".into());
    }
    let missing = steering
        .inside
        .iter()
        .find_map(|inside| inside.check().err());
    if let (Some(why), false) = (missing, facts.around.up.is_empty()) {
        return Finding::problem("inside", Theme::Nat, why.to_string())
            .means("`ftpalg run` won't start")
            .command("ip link");
    }
    let how = match facts.wanted.named {
        true => "",
        false => ", as your NAT rules tell",
    };
    let ports: Vec<_> = steering.ports.iter().map(u16::to_string).collect();
    let what = format!(
        "inside is {}{how}; port {}",
        names.join(" and "),
        ports.join(" ")
    );
    Finding::ok("inside", Theme::Nat, what)
}

fn published(facts: &Facts) -> Finding {
    let servers = watched(facts);
    Finding::ok(
        "published",
        Theme::Nat,
        match servers.is_empty() {
            true => "no DNAT rule leads to an FTP server".to_owned(),
            false => format!("published: {}", servers.join(", ")),
        },
    )
}

/// Rules that hide clients.
fn masquerade(facts: &Facts) -> Option<Finding> {
    let port = facts.wanted.steering.ports.first().copied()?;
    let rules: BTreeSet<String> = nat_rules(&facts.snapshot)
        .filter(|(_, rule)| rule.may_be_for(port))
        .filter_map(|(_, rule)| {
            let name = match rule.action {
                Action::Masquerade => "MASQUERADE",
                Action::Snat => "SNAT",
                Action::Dnat | Action::Redirect => return None,
            };
            let not = |negated| if negated { "other than " } else { "" };
            let out = rule.out.map_or_else(String::new, |out| {
                format!(" by {}{}", not(out.negated), out.text)
            });
            let net = rule
                .source
                .map_or_else(|| "what leaves".to_owned(), |net| net.to_string());
            Some(format!("{name} hides {net}{out}"))
        })
        .collect();
    let rules: Vec<_> = rules.into_iter().take(MANY).collect();
    (!rules.is_empty()).then(|| Finding::ok("masquerade", Theme::Nat, rules.join(", ")))
}

/// DNAT rules for FTP that lead to a port which isn't watched.
fn mismatches(facts: &Facts) -> Vec<Finding> {
    let ports = &facts.wanted.steering.ports;
    let mut found = BTreeSet::new();
    let all = facts.forwardings();
    let told = all.iter().filter(|one| !ports.contains(&one.server_port));
    told.filter(|one| found.insert(one.server_port))
        .map(|one| {
            let watched: Vec<_> = ports.iter().map(u16::to_string).collect();
            let what = format!(
                "a DNAT rule leads {} to {}, but only port {} is watched",
                one.public(&facts.around),
                one.target(),
                watched.join(" and ")
            );
            Finding::warning("port-mismatch", Theme::Nat, what)
                .means("sessions with that server pass unread; --port is the port as the inside sees it")
                .command(watching(facts, &all, one.server_port))
        })
        .collect()
}

/// The command with another port, and without those that no server has.
fn watching(facts: &Facts, all: &[Forwarding], port: u16) -> String {
    let mut wanted = facts.wanted.clone();
    let unused = |flag: &str| {
        let port = flag
            .strip_prefix("--port ")
            .and_then(|port| port.parse().ok());
        port.is_some_and(|port: u16| all.iter().all(|one| one.server_port != port))
    };
    wanted.flags.retain(|flag| !unused(flag));
    wanted.command("ftpalg run", &format!("--port {port}"))
}

/// Inside interfaces that lead to the outside.
fn on_the_outside(facts: &Facts) -> Vec<Finding> {
    let around = &facts.around;
    let servers: BTreeSet<&str> = facts
        .forwardings()
        .iter()
        .filter_map(|one| around.iface_to(one.server?))
        .collect();
    let ways_out = around.ways_out(Family::V4);
    let mut found = Vec::new();
    for inside in &facts.wanted.steering.inside {
        let Inside::Iface(name) = inside else {
            continue;
        };
        let hides = nat_rules(&facts.snapshot).any(|(_, rule)| {
            matches!(rule.action, Action::Masquerade | Action::Snat)
                && rule.out.is_some_and(|out| out.text == name && !out.negated)
                && rule
                    .source
                    .is_none_or(|net| around.iface_to(net.addr()) != Some(name))
        });
        let elsewhere = servers.iter().find(|iface| *iface != name);
        let only = !servers.is_empty() && !servers.contains(name.as_str());
        let why = if hides && !servers.contains(name.as_str()) {
            format!("MASQUERADE or SNAT hides what leaves by {name}")
        } else if let (true, true, Some(iface)) =
            (only, ways_out.contains(name.as_str()), elsewhere)
        {
            format!(
                "the default route leaves by {name}, and the published server is behind {iface}"
            )
        } else {
            continue;
        };
        let other = elsewhere.copied().or_else(|| {
            let mut others = around.up.iter().map(String::as_str);
            others.find(|other| other != name && !ways_out.contains(other))
        });
        found.push(
            Finding::problem(
                "inside-is-outside",
                Theme::Nat,
                format!("--inside {name} looks like the outside: {why}"),
            )
            .means("addresses would be rewritten for the wrong side, and data connections fail")
            .command(format!("ftpalg run --inside {}", other.unwrap_or("IFACE"))),
        );
    }
    found
}

/// Rules that somebody else was to place.
fn external(facts: &Facts) -> Option<Finding> {
    if !facts.wanted.external {
        return None;
    }
    let Some(first) = facts.missing.first() else {
        let what = "the steering rules that you place yourself are there";
        return Some(Finding::ok("external-rules", Theme::Nat, what));
    };
    let more = match facts.missing.len() {
        1 => String::new(),
        n => format!(" (and {} more)", n - 1),
    };
    Some(
        Finding::problem(
            "external-rules",
            Theme::Nat,
            format!("--rules external, but a rule isn't there: {first}{more}"),
        )
        .means("control packets don't come to ftpalg, and sessions pass unread")
        .command(facts.wanted.command("ftpalg rules install", "")),
    )
}

/// The servers behind the gateway that control connections lead to.
pub(super) fn published_servers(facts: &Facts) -> Vec<(SocketAddr, u16, Option<String>)> {
    let ports = &facts.wanted.steering.ports;
    facts
        .forwardings()
        .into_iter()
        .filter(|one| ports.contains(&one.server_port))
        .filter_map(|one| {
            let server = SocketAddr::new(one.server?, one.server_port);
            Some((server, one.port, one.came_by))
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::doctor::facts::Wanted;
    use crate::doctor::{Level, judge};
    use crate::firewall::Steering;
    use crate::firewall::surroundings::{Route, Surroundings};
    use crate::firewall::xtables::Flavour;
    use crate::firewall::xtables::save::Ruleset;
    use crate::firewall::xtables::snapshot::{Snapshot, View};

    /// A gateway with 203.0.113.7 on `wan` and 10.0.0.1 on `lan`, and these rules of iptables-nft.
    pub(crate) fn facts(rules: &str) -> Facts {
        let route = |net: &str, iface: &str| Route {
            net: net.parse().unwrap(),
            iface: iface.into(),
        };
        let at = |iface: &str, ip: &str| (iface.to_owned(), ip.parse().unwrap());
        let addresses = vec![at("wan", "203.0.113.7"), at("lan", "10.0.0.1")];
        Facts {
            wanted: Wanted {
                steering: Steering {
                    inside: vec!["lan".parse().unwrap()],
                    ..Steering::default()
                },
                named: true,
                ..Wanted::default()
            },
            snapshot: Snapshot {
                views: vec![View {
                    family: Family::V4,
                    flavour: Flavour::Nft,
                    rules: Ruleset::parse(rules),
                }],
                plain: Some(Flavour::Nft),
            },
            around: Surroundings {
                routes: vec![
                    route("0.0.0.0/0", "wan"),
                    route("203.0.113.0/24", "wan"),
                    route("10.0.0.0/24", "lan"),
                ],
                own: addresses.iter().map(|(_, ip)| *ip).collect(),
                addresses,
                up: ["lan".into(), "wan".into()].into(),
            },
            ..Facts::default()
        }
    }

    fn found(facts: &Facts, id: &str) -> Vec<(Level, String)> {
        let all = judge(facts).into_iter();
        all.filter(|one| one.id == id)
            .map(|one| (one.level, one.line()))
            .collect()
    }

    fn nat(rules: &[&str]) -> Facts {
        let text: String = rules.iter().map(|rule| format!("-A {rule}\n")).collect();
        facts(&format!(
            "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{text}COMMIT\n"
        ))
    }

    #[test]
    fn servers_are_listed() {
        let facts = nat(&["PREROUTING -i wan -p tcp --dport 21 -j DNAT --to-destination 10.0.0.5"]);
        assert_eq!(watched(&facts), ["203.0.113.7:21 -> 10.0.0.5:21 on lan"]);
        let (level, line) = found(&facts, "published").remove(0);
        assert_eq!(level, Level::Ok);
        assert!(line.contains("10.0.0.5:21"));
    }

    #[test]
    fn a_port_that_is_not_the_insides_is_told() {
        let dnat =
            "PREROUTING -d 203.0.113.7/32 -p tcp --dport 2121 -j DNAT --to-destination 10.0.0.5:21";
        let mut facts = nat(&[dnat]);
        assert!(found(&facts, "port-mismatch").is_empty());
        facts.wanted.steering.ports = vec![2121];
        let (level, line) = found(&facts, "port-mismatch").remove(0);
        assert_eq!(level, Level::Warning);
        assert!(line.contains("--port 21"), "{line}");
        // A server that isn't for FTP by any sign.
        let web = nat(&["PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8080"]);
        assert!(found(&web, "port-mismatch").is_empty());
    }

    #[test]
    fn an_inside_that_is_the_outside_is_told() {
        let mut facts = nat(&["POSTROUTING -o wan -j MASQUERADE"]);
        assert!(found(&facts, "inside-is-outside").is_empty());
        facts.wanted.steering.inside = vec!["wan".parse().unwrap()];
        let (level, line) = found(&facts, "inside-is-outside").remove(0);
        assert_eq!(level, Level::Problem);
        assert!(line.contains("ftpalg run --inside lan"), "{line}");
        let mut facts = nat(&["PREROUTING -p tcp --dport 21 -j DNAT --to-destination 10.0.0.5"]);
        facts.wanted.steering.inside = vec!["wan".parse().unwrap()];
        assert_eq!(found(&facts, "inside-is-outside").len(), 1);
        // A host with one interface has both sides there.
        facts.around.routes.retain(|route| route.iface == "wan");
        assert!(found(&facts, "inside-is-outside").is_empty());
    }

    #[test]
    fn rules_that_are_not_there_are_told() {
        let mut facts = nat(&[]);
        facts.wanted.external = true;
        facts.wanted.flags = vec!["--inside".into(), "lan".into()];
        assert_eq!(found(&facts, "external-rules")[0].0, Level::Ok);
        facts.missing = vec!["iptables-nft raw: the table is gone".into()];
        let (level, line) = found(&facts, "external-rules").remove(0);
        assert_eq!(level, Level::Problem);
        assert!(
            line.ends_with("ftpalg rules install --inside lan"),
            "{line}"
        );
    }

    #[test]
    fn nothing_inside_is_a_problem() {
        let mut facts = nat(&[]);
        facts.wanted.nothing = Some("no DNAT rule found: name the inside with --inside".into());
        let (level, line) = found(&facts, "inside").remove(0);
        assert_eq!(level, Level::Problem);
        assert!(line.contains("no DNAT rule found: `ftpalg run`"), "{line}");
    }
}
