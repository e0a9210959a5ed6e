//! The way of control packets through the user's rules: dropped, hidden, untracked, offloaded, or read by
//! the kernel's own helper.

use std::collections::BTreeSet;

use super::facts::Facts;
use super::nat::published_servers;
use super::{Finding, Level, Theme};
use crate::firewall::nat_rule::{Action, nat_rules};
use crate::firewall::probe::nft::NftRules;
use crate::firewall::probe::{Effect, Fate, Met, Sample, Walked, xt};
use crate::firewall::tables::ChainInfo;
use crate::firewall::xtables::snapshot::View;
use crate::firewall::{Inside, SteeringWay, flavours, is_ours};
use crate::net::Family;
use crate::netlink::nftables::{family, hook};

pub(super) fn judge(facts: &Facts, all: &mut Vec<Finding>) {
    if facts.wanted.nothing.is_some() {
        return;
    }
    let ways = ways(facts);
    let before = all.len();
    let mut sure = true;
    for way in &ways {
        sure &= forwarded(facts, way, all);
    }
    if facts.wanted.steering.local {
        sure &= input(facts, all);
    }
    if all.len() == before && (!ways.is_empty() || facts.wanted.steering.local) {
        let what = match sure {
            true => "your rules let control connections pass",
            false => "no rule certainly drops control connections",
        };
        all.push(Finding::ok("firewall", Theme::Rules, what));
    }
    for way in &ways {
        all.extend(hidden(facts, way));
        effects(facts, way, all);
    }
    all.extend(helper_by_itself(facts));
    let mut told = BTreeSet::new();
    all.retain(|finding| {
        finding.theme != Theme::Rules || told.insert((finding.id, finding.what.clone()))
    });
}

/// A way that control connections take through this host.
struct Way {
    /// Whose connections, in words.
    what: String,
    /// Their first packet, behind DNAT.
    syn: Sample,
    /// The same before DNAT.
    arrives: Sample,
    /// Whether the server is behind the inside interface.
    serves: bool,
    /// How bad it is if they are dropped.
    level: Level,
}

impl Way {
    /// A packet of the server's.
    fn reply(&self) -> Sample {
        Sample {
            family: self.syn.family,
            came_by: self.syn.leaves_by.clone(),
            leaves_by: self.syn.came_by.clone(),
            from: self.syn.to,
            to: self.syn.from,
            from_port: self.syn.to_port,
            to_port: self.syn.from_port,
            begins: false,
        }
    }

    /// What the inside end sends.
    fn egress(&self) -> Sample {
        match self.serves {
            true => self.reply(),
            false => self.syn.clone(),
        }
    }

    /// What the inside end gets.
    fn ingress(&self) -> Sample {
        match self.serves {
            true => Sample {
                begins: false,
                ..self.syn.clone()
            },
            false => self.reply(),
        }
    }
}

/// The only one, if it is.
fn only<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<String> {
    let first = names.next()?;
    names.next().is_none().then(|| first.to_owned())
}

fn ways(facts: &Facts) -> Vec<Way> {
    let around = &facts.around;
    let mut ways = Vec::new();
    for (server, port, came_by) in published_servers(facts) {
        let family = Family::of(server.ip());
        let out = || only(around.ways_out(family).into_iter());
        let came_by = came_by.filter(|name| !name.ends_with('+')).or_else(out);
        let syn = Sample {
            family,
            came_by,
            leaves_by: around.iface_to(server.ip()).map(str::to_owned),
            from: None,
            to: Some(server.ip()),
            from_port: None,
            to_port: Some(server.port()),
            begins: true,
        };
        ways.push(Way {
            what: format!("to {server}"),
            arrives: Sample {
                to: None,
                to_port: Some(port),
                leaves_by: None,
                ..syn.clone()
            },
            syn,
            serves: true,
            level: Level::Problem,
        });
    }
    let hides = nat_rules(&facts.snapshot)
        .any(|(_, rule)| matches!(rule.action, Action::Masquerade | Action::Snat));
    let level = match ways.is_empty() {
        true => Level::Problem,
        false => Level::Warning,
    };
    if hides {
        ways.extend(clients(facts, level));
    }
    ways
}

/// Clients inside.
fn clients(facts: &Facts, level: Level) -> Vec<Way> {
    let (steering, around) = (&facts.wanted.steering, &facts.around);
    let of = |inside: &Inside| {
        let (iface, family) = match inside {
            Inside::Iface(name) => (Some(name.clone()), Family::V4),
            Inside::Net(net) => {
                let iface = around.iface_to(net.addr()).map(str::to_owned);
                (iface, Family::of(net.addr()))
            }
        };
        let outside = around.ways_out(family).into_iter();
        let leaves_by = only(outside.filter(|name| Some(*name) != iface.as_deref()));
        let syn = Sample {
            family,
            came_by: iface,
            leaves_by,
            from: None,
            to: None,
            from_port: None,
            to_port: steering.ports.first().copied(),
            begins: true,
        };
        Way {
            what: format!("of clients behind {inside}"),
            arrives: syn.clone(),
            syn,
            serves: false,
            level,
        }
    };
    steering.inside.iter().map(of).collect()
}

/// A chain that packets pass: of iptables or of nft's own.
enum Chain<'a> {
    Xt(&'a View, &'static str, &'static str),
    Nft(&'a ChainInfo),
}

impl Chain<'_> {
    fn walk(&self, facts: &Facts, sample: &Sample) -> (Walked, bool) {
        match self {
            Self::Xt(view, table, chain) => {
                let Some(table) = view.rules.table(table) else {
                    return (Walked::default(), false);
                };
                let walked = xt::through(table, chain, sample, false);
                (walked, xt::policy_drops(table, chain))
            }
            Self::Nft(base) => {
                let drops = base.base.as_ref().is_some_and(|base| base.drops);
                (facts.native.through(base, sample), drops)
            }
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Xt(view, "filter", chain) => format!("{chain} ({})", tool(view)),
            Self::Xt(view, table, chain) => format!("{table} {chain} ({})", tool(view)),
            Self::Nft(base) => {
                format!(
                    "chain {} {} {} (nft)",
                    family::name(base.family),
                    base.table,
                    base.name
                )
            }
        }
    }

    /// The command that puts a rule in front of all others.
    fn insert(&self, of_iptables: &str, of_nft: &str) -> String {
        match self {
            Self::Xt(view, table, chain) => {
                let table = match *table {
                    "filter" => String::new(),
                    other => format!(" -t {other}"),
                };
                format!("{}{table} -I {chain} {of_iptables}", tool(view))
            }
            Self::Nft(base) => format!(
                "nft insert rule {} {} {} {of_nft}",
                family::name(base.family),
                base.table,
                base.name
            ),
        }
    }

    /// The command that removes a rule, as far as that can be told.
    fn delete(&self, rule: &str) -> String {
        match self {
            Self::Xt(view, table, _) => {
                let rule = rule.strip_prefix("-A ").unwrap_or(rule);
                format!("{} -t {table} -D {rule}", tool(view))
            }
            Self::Nft(base) => format!(
                "nft -a list table {} {}   # then: nft delete rule … handle N",
                family::name(base.family),
                base.table
            ),
        }
    }
}

fn tool(view: &View) -> String {
    format!("{}-{}", view.family.program(), view.flavour)
}

/// The chains at a hook that packets of a family pass, in tables of these names.
fn chains<'a>(
    facts: &'a Facts,
    of: Family,
    tables: &'static [&'static str],
    builtin: &'static str,
    at: u32,
) -> Vec<Chain<'a>> {
    let mut found = Vec::new();
    for view in facts.snapshot.views.iter().filter(|view| view.family == of) {
        for table in tables {
            let there = view.rules.table(table);
            if there.is_some_and(|table| table.chain(builtin).is_some()) {
                found.push(Chain::Xt(view, table, builtin));
            }
        }
    }
    let bases = facts.native.bases.iter();
    let hooked = bases.filter(|chain| chain.base.as_ref().is_some_and(|base| base.hook == at));
    found.extend(
        hooked
            .filter(|chain| NftRules::meets(chain, of))
            .map(Chain::Nft),
    );
    found
}

/// Judges whether connections pass FORWARD. Returns whether that is certain.
fn forwarded(facts: &Facts, way: &Way, all: &mut Vec<Finding>) -> bool {
    let chains = chains(
        facts,
        way.syn.family,
        &["mangle", "filter"],
        "FORWARD",
        hook::FORWARD,
    );
    let mut sure = true;
    for chain in &chains {
        let (walked, policy) = chain.walk(facts, &way.syn);
        match walked.fate(policy) {
            Fate::Passes => {}
            Fate::Unsure => sure = false,
            Fate::Dropped(by) => {
                let what = format!(
                    "{} drops new control connections {}{}",
                    chain.name(),
                    way.what,
                    because(by.as_deref())
                );
                all.push(dropped(what, "they can't be made", way, chain, false));
                continue;
            }
        }
        let (walked, policy) = chain.walk(facts, &way.reply());
        match walked.fate(policy) {
            Fate::Passes => {}
            Fate::Unsure => sure = false,
            Fate::Dropped(by) => {
                let what = format!(
                    "{} drops the server's packets in control connections {}{}",
                    chain.name(),
                    way.what,
                    because(by.as_deref())
                );
                all.push(dropped(what, "they never answer", way, chain, true));
            }
        }
    }
    sure
}

fn because(rule: Option<&str>) -> String {
    rule.map_or_else(|| " by its policy".to_owned(), |rule| format!(" ({rule})"))
}

fn dropped(what: String, means: &str, way: &Way, chain: &Chain<'_>, established: bool) -> Finding {
    let command = if established {
        chain.insert(
            "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "ct state established,related accept",
        )
    } else {
        let port = way.syn.to_port.unwrap_or(21);
        let (words, nft) = match (way.syn.to, &way.syn.came_by) {
            (Some(to), _) => {
                let ip = if to.is_ipv4() { "ip" } else { "ip6" };
                (format!("-d {to} "), format!("{ip} daddr {to} "))
            }
            (None, Some(iface)) => (format!("-i {iface} "), format!("iifname {iface} ")),
            (None, None) => (String::new(), String::new()),
        };
        chain.insert(
            &format!("{words}-p tcp --dport {port} -j ACCEPT"),
            &format!("{nft}tcp dport {port} accept"),
        )
    };
    Finding {
        level: way.level,
        ..Finding::problem("firewall", Theme::Rules, what)
    }
    .means(means)
    .command(command)
}

/// Judges whether connections to this host pass INPUT. Returns whether that is certain.
fn input(facts: &Facts, all: &mut Vec<Finding>) -> bool {
    let mut sure = true;
    for family in facts.around.families(&facts.wanted.steering) {
        for chain in chains(facts, family, &["mangle", "filter"], "INPUT", hook::INPUT) {
            for port in &facts.wanted.steering.ports {
                let sample = Sample {
                    family,
                    came_by: only(facts.around.ways_out(family).into_iter()),
                    leaves_by: None,
                    from: None,
                    to: None,
                    from_port: None,
                    to_port: Some(*port),
                    begins: true,
                };
                let (walked, policy) = chain.walk(facts, &sample);
                match walked.fate(policy) {
                    Fate::Passes => {}
                    Fate::Unsure => sure = false,
                    Fate::Dropped(by) => all.push(
                        Finding::warning(
                            "firewall",
                            Theme::Rules,
                            format!(
                                "{} drops new connections to port {port} of this host{}",
                                chain.name(),
                                because(by.as_deref())
                            ),
                        )
                        .means("a server here can't be reached; clients here aren't touched by it")
                        .command(chain.insert(
                            &format!("-p tcp --dport {port} -j ACCEPT"),
                            &format!("tcp dport {port} accept"),
                        )),
                    ),
                }
            }
        }
    }
    sure
}

/// Rules that accept or drop control packets in front of the jump to the queue.
fn hidden(facts: &Facts, way: &Way) -> Vec<Finding> {
    let users = facts.snapshot.choose(is_ours).flavour;
    let places = [
        ("raw", "PREROUTING", way.egress()),
        ("mangle", "POSTROUTING", way.ingress()),
    ];
    let mut found = Vec::new();
    for (name, chain, sample) in places {
        for flavour in flavours(&facts.snapshot, users, sample.family, name) {
            let Some(view) = facts.snapshot.view(sample.family, flavour) else {
                continue;
            };
            let Some(table) = view.rules.table(name).filter(|t| t.chain(chain).is_some()) else {
                continue;
            };
            let walked = xt::through(table, chain, &sample, true);
            let at = Chain::Xt(view, name, chain);
            if walked.falls {
                continue;
            }
            let (verb, means, rule) = match (&walked.accepts, &walked.drops) {
                // Behind this chain there is one of ours.
                (Some(_), None) if super::host::steered_by(facts) == SteeringWay::Nft => continue,
                (Some(rule), None) => (
                    "accepts",
                    "ftpalg doesn't see these packets, so data connections fail",
                    rule,
                ),
                (None, Some(rule)) => ("drops", "control connections hang", rule),
                _ => continue,
            };
            found.push(
                Finding::problem(
                    "hidden-packets",
                    Theme::Rules,
                    format!(
                        "{} {verb} control packets {} before ftpalg's rule ({rule})",
                        at.name(),
                        way.what
                    ),
                )
                .means(means)
                .command(at.delete(rule)),
            );
        }
    }
    found
}

/// What rules do to control packets besides accepting and dropping them.
fn effects(facts: &Facts, way: &Way, all: &mut Vec<Finding>) {
    let of = way.syn.family;
    let established = Sample {
        begins: false,
        ..way.syn.clone()
    };
    for chain in chains(
        facts,
        of,
        &["raw", "mangle"],
        "PREROUTING",
        hook::PREROUTING,
    ) {
        for sample in [&way.arrives, &way.egress()] {
            let (walked, _) = chain.walk(facts, sample);
            for (effect, met, rule) in walked.effects {
                match effect {
                    Effect::Untracked if met == Met::Yes => all.push(untracked(way, &chain, &rule)),
                    // It is given with the first packet.
                    Effect::Helper if sample.begins => all.push(helper(met, &chain, &rule)),
                    _ => {}
                }
            }
        }
    }
    for chain in chains(facts, of, &["mangle", "filter"], "FORWARD", hook::FORWARD) {
        for sample in [&way.syn, &established, &way.reply()] {
            let (walked, _) = chain.walk(facts, sample);
            for (effect, met, rule) in walked.effects {
                match effect {
                    Effect::Offloaded if !sample.begins => {
                        all.push(offloaded(met, way, &chain, &rule));
                    }
                    Effect::Helper if sample.begins => all.push(helper(met, &chain, &rule)),
                    _ => {}
                }
            }
        }
    }
}

fn untracked(way: &Way, chain: &Chain<'_>, rule: &str) -> Finding {
    Finding::problem(
        "untracked",
        Theme::Rules,
        format!(
            "{} hides control packets {} from conntrack ({rule})",
            chain.name(),
            way.what
        ),
    )
    .means("without conntrack there is no address to announce: data connections fail")
    .command(chain.delete(rule))
}

/// How bad something is that is certain, or that isn't.
fn as_certain(met: Met, finding: Finding) -> Finding {
    match met {
        Met::Yes => finding,
        _ => Finding {
            level: Level::Warning,
            what: format!("{}, under conditions that can't be judged", finding.what),
            ..finding
        },
    }
}

fn helper(met: Met, chain: &Chain<'_>, rule: &str) -> Finding {
    let found = Finding::problem(
        "kernel-helper",
        Theme::Rules,
        format!(
            "{} gives control connections to the kernel's helper ({rule})",
            chain.name()
        ),
    )
    .means("both would rewrite the same packets, and data connections fail")
    .command(chain.delete(rule));
    as_certain(met, found)
}

fn offloaded(met: Met, way: &Way, chain: &Chain<'_>, rule: &str) -> Finding {
    let port = way.syn.to_port.unwrap_or(21);
    let command = match chain {
        Chain::Nft(base) => {
            let at = format!("{} {} {}", family::name(base.family), base.table, base.name);
            let insert = |which: &str| {
                format!("insert rule {at} ct state established tcp {which} {port} accept")
            };
            format!("nft '{}; {}'", insert("dport"), insert("sport"))
        }
        Chain::Xt(..) => {
            let insert = |which: &str| {
                let words =
                    format!("-p tcp --{which} {port} -m conntrack --ctstate ESTABLISHED -j ACCEPT");
                chain.insert(&words, "")
            };
            format!("{} && {}", insert("dport"), insert("sport"))
        }
    };
    let found = Finding::problem(
        "flowtable",
        Theme::Rules,
        format!(
            "{} puts control connections into a flowtable ({rule})",
            chain.name()
        ),
    )
    .means("their packets pass all hooks by, ftpalg's among them: data connections fail")
    .command(command);
    as_certain(met, found)
}

/// On old kernels the helper takes connections without a rule.
fn helper_by_itself(facts: &Facts) -> Option<Finding> {
    let path = "net/netfilter/nf_conntrack_helper";
    let by_itself = facts.number(path) == Some(1);
    if by_itself && facts.has_helper {
        return Some(
            Finding::problem(
                "kernel-helper",
                Theme::Rules,
                "nf_conntrack_ftp takes all connections to port 21 by itself",
            )
            .means("both would rewrite the same packets, and data connections fail")
            .command(super::host::set(path, 0)),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::judge;
    use crate::doctor::nat::tests::facts;
    use crate::firewall::Placement;

    const DNAT: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -d 203.0.113.7/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.5\nCOMMIT\n";

    /// What is wrong, by id.
    fn wrong(rules: &str) -> Vec<(&'static str, Level)> {
        let facts = facts(&format!("{DNAT}{rules}"));
        let all = judge(&facts).into_iter();
        let all = all.filter(|one| one.theme == Theme::Rules && one.level > Level::Ok);
        all.map(|one| (one.id, one.level)).collect()
    }

    #[test]
    fn a_chain_that_drops_is_found() {
        assert_eq!(wrong(""), []);
        let drops = "*filter\n:FORWARD DROP [0:0]\n";
        let established = "-A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n";
        let new = "-A FORWARD -d 10.0.0.5/32 -p tcp -m tcp --dport 21 -j ACCEPT\n";
        let problem = ("firewall", Level::Problem);
        assert_eq!(wrong(&format!("{drops}COMMIT\n")), [problem]);
        assert_eq!(wrong(&format!("{drops}{established}COMMIT\n")), [problem]);
        assert_eq!(wrong(&format!("{drops}{new}COMMIT\n")), [problem]);
        assert_eq!(wrong(&format!("{drops}{established}{new}COMMIT\n")), []);
        // What can't be judged isn't called a problem.
        let limited = "-A FORWARD -m limit --limit 5/sec -j ACCEPT\n";
        assert_eq!(wrong(&format!("{drops}{established}{limited}COMMIT\n")), []);
    }

    #[test]
    fn what_keeps_packets_from_us_is_found() {
        let raw =
            |rule: &str| format!("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n");
        for (rule, want) in [
            (
                "-p tcp -m tcp --dport 21 -j CT --helper ftp",
                vec![("kernel-helper", Level::Problem)],
            ),
            (
                "-s 198.51.100.0/24 -p tcp -m tcp --dport 21 -j CT --helper ftp",
                vec![("kernel-helper", Level::Warning)],
            ),
            (
                "-p tcp -m tcp --dport 21 -j CT --notrack",
                vec![("untracked", Level::Problem)],
            ),
            ("-p tcp -m tcp --dport 80 -j CT --notrack", vec![]),
            (
                "-s 10.0.0.0/8 -j ACCEPT",
                vec![("hidden-packets", Level::Problem)],
            ),
            (
                "-s 10.0.0.5/32 -p tcp -m tcp --sport 21 -j DROP",
                vec![("hidden-packets", Level::Problem)],
            ),
            ("-s 172.16.0.0/12 -j ACCEPT", vec![]),
        ] {
            assert_eq!(wrong(&raw(rule)), want, "{rule}");
        }
        let mangle =
            "*mangle\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -d 10.0.0.5/32 -j ACCEPT\nCOMMIT\n";
        assert_eq!(wrong(mangle), [("hidden-packets", Level::Problem)]);
        // Rules of ours that are in a chain by themselves are met all the same, unless a rule drops.
        let placed_over_netlink = |rule: &str| {
            let mut facts = facts(&format!("{DNAT}{}", raw(rule)));
            facts.wanted.steering.placement = Placement::Nft;
            judge(&facts).iter().any(|one| one.id == "hidden-packets")
        };
        assert!(!placed_over_netlink("-s 10.0.0.0/8 -j ACCEPT"));
        assert!(placed_over_netlink("-s 10.0.0.0/8 -j DROP"));
        let offload = "*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m conntrack --ctstate ESTABLISHED -j FLOWOFFLOAD\nCOMMIT\n";
        assert_eq!(wrong(offload), [("flowtable", Level::Problem)]);
    }

    #[test]
    fn the_helper_of_old_kernels_is_found() {
        let mut facts = facts(DNAT);
        let path = "net/netfilter/nf_conntrack_helper".to_owned();
        facts.settings.insert(path, "1".into());
        let helpers = |facts: &Facts| {
            judge(facts)
                .iter()
                .filter(|f| f.id == "kernel-helper")
                .count()
        };
        assert_eq!(helpers(&facts), 0);
        facts.has_helper = true;
        assert_eq!(helpers(&facts), 1);
    }

    #[test]
    fn commands_are_whole() {
        let drops = format!("{DNAT}*filter\n:FORWARD DROP [0:0]\nCOMMIT\n");
        let all = judge(&facts(&drops));
        let finding = all.iter().find(|finding| finding.id == "firewall").unwrap();
        assert_eq!(
            finding.command.as_deref(),
            Some("iptables-nft -I FORWARD -d 10.0.0.5 -p tcp --dport 21 -j ACCEPT")
        );
    }
}
