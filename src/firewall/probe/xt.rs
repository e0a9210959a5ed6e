//! Judges rules of iptables, as it saves them.

use std::net::IpAddr;

use super::{Effect, Judged, Met, Sample, Verdict, Walked, walk};
use crate::firewall::xtables::save::{Rule, Table};
use crate::firewall::{is_our_chain, is_ours};
use crate::net::parse_network;

/// Takes a sample through a chain of a table, as far as one of our own jumps to the queue if `until_ours`.
/// Rules of ours are left out.
pub(crate) fn through(table: &Table, chain: &str, sample: &Sample, until_ours: bool) -> Walked {
    let rules = |name: &str| {
        if is_our_chain(name) {
            return Some(Vec::new());
        }
        table.chain(name)?;
        let rules = table.rules_of(name);
        let stop = |rule: &&Rule| !(until_ours && is_ours(rule));
        let users = rules.take_while(stop).filter(|rule| !is_ours(rule));
        Some(users.map(|rule| judge(table, rule, sample)).collect())
    };
    walk(chain, &rules)
}

/// Whether packets that get to the end of a builtin chain are dropped.
pub(crate) fn policy_drops(table: &Table, chain: &str) -> bool {
    let policy = table.chain(chain).and_then(|chain| chain.policy.as_deref());
    policy == Some("DROP")
}

fn judge(table: &Table, rule: &Rule, sample: &Sample) -> Judged {
    let met = matches(rule, sample);
    let effect = effect(rule).map(|effect| (effect, met));
    Judged {
        met,
        effects: effect.into_iter().collect(),
        verdict: verdict(table, rule),
        // Of a rule that isn't met, nobody asks.
        text: match met {
            Met::No => String::new(),
            _ => format!("-A {} {}", rule.chain, rule.spec),
        },
    }
}

fn verdict(table: &Table, rule: &Rule) -> Verdict {
    let goes = rule.option(&["-g", "--goto"]).is_some();
    match rule.target() {
        None => Verdict::None,
        Some("ACCEPT") => Verdict::Accept,
        Some("DROP" | "REJECT" | "TARPIT") => Verdict::Drop,
        Some("RETURN") => Verdict::Return,
        // Somebody else's program decides.
        Some("NFQUEUE" | "QUEUE") => Verdict::Jump("NFQUEUE".into()),
        Some(chain) if table.chain(chain).is_some() && goes => Verdict::Goto(chain.to_owned()),
        Some(chain) if table.chain(chain).is_some() => Verdict::Jump(chain.to_owned()),
        Some(_) => Verdict::None,
    }
}

fn effect(rule: &Rule) -> Option<Effect> {
    match rule.target()? {
        "NOTRACK" => Some(Effect::Untracked),
        "FLOWOFFLOAD" => Some(Effect::Offloaded),
        "CT" if rule.words.iter().any(|word| word == "--notrack") => Some(Effect::Untracked),
        "CT" => rule
            .option(&["--helper"])
            .filter(|helper| helper.text.starts_with("ftp"))
            .map(|_| Effect::Helper),
        _ => None,
    }
}

/// Options that name a module or say nothing about a packet; the word after them is theirs.
const NEUTRAL: [&str; 4] = ["-m", "--match", "--comment", "--tcp-flags"];

/// Whether a sample meets all conditions of a rule.
fn matches(rule: &Rule, sample: &Sample) -> Met {
    let mut met = Met::Yes;
    let mut negated = false;
    let mut words = rule.words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "!" => {
                negated = true;
                continue;
            }
            // What follows is about the target.
            "-j" | "--jump" | "-g" | "--goto" => break,
            "--syn" => met = met.and(Met::of(sample.begins).negated(negated)),
            "--tcp-flags" => {
                let (mask, set) = (words.next(), words.next());
                met = met.and(flags(mask, set, sample).negated(negated));
            }
            _ if NEUTRAL.contains(&word) => drop(words.next()),
            // An option without a value, of a match that isn't known.
            _ if !word.starts_with('-') => met = met.and(Met::Maybe),
            _ => met = met.and(one(word, &mut words, sample).negated(negated)),
        }
        negated = false;
    }
    met
}

/// Whether a sample meets an option; takes its value.
fn one<'a>(option: &str, words: &mut impl Iterator<Item = &'a str>, sample: &Sample) -> Met {
    let value = words.next().unwrap_or_default();
    let list = || value.split(',');
    match option {
        "-i" | "--in-interface" => interface(value, sample.came_by.as_deref()),
        "-o" | "--out-interface" => interface(value, sample.leaves_by.as_deref()),
        "-s" | "--source" => address(value, sample.from, sample.to),
        "-d" | "--destination" => address(value, sample.to, sample.from),
        "-p" | "--protocol" => Met::of(matches!(value, "tcp" | "6" | "all" | "0")),
        "--sport" | "--sports" | "--source-port" | "--source-ports" => {
            ports(list(), sample.from_port)
        }
        "--dport" | "--dports" | "--destination-port" | "--destination-ports" => {
            ports(list(), sample.to_port)
        }
        "--ports" => ports(list(), sample.from_port).or(ports(list(), sample.to_port)),
        "--ctstate" | "--state" => list()
            .map(|state| match state {
                "NEW" => Met::of(sample.begins),
                "ESTABLISHED" => Met::of(!sample.begins),
                "INVALID" | "RELATED" | "UNTRACKED" => Met::No,
                // DNAT and SNAT are true of the one or the other.
                _ => Met::Maybe,
            })
            .fold(Met::No, Met::or),
        _ => Met::Maybe,
    }
}

fn interface(pattern: &str, name: Option<&str>) -> Met {
    let Some(name) = name else { return Met::Maybe };
    Met::of(match pattern.strip_suffix('+') {
        Some(stem) => name.starts_with(stem),
        None => name == pattern,
    })
}

/// Whether an address is in a network; `peer` is the other end.
fn address(network: &str, address: Option<IpAddr>, peer: Option<IpAddr>) -> Met {
    match (parse_network(network), address) {
        // Nobody forwards what a host sends to itself.
        (Ok(net), None) if peer.is_some_and(|peer| net == peer.into()) => Met::No,
        (Ok(net), _) if net.prefix_len() == 0 => Met::Yes,
        (Ok(net), Some(address)) => Met::of(net.contains(&address)),
        _ => Met::Maybe,
    }
}

fn ports<'a>(list: impl Iterator<Item = &'a str>, port: Option<u16>) -> Met {
    let Some(port) = port else { return Met::Maybe };
    list.map(|range| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        let first = if first.is_empty() {
            Ok(0)
        } else {
            first.parse()
        };
        let last = if last.is_empty() {
            Ok(u16::MAX)
        } else {
            last.parse()
        };
        match (first, last) {
            (Ok(first), Ok(last)) => Met::of((first..=last).contains(&port)),
            // A name.
            _ => Met::Maybe,
        }
    })
    .fold(Met::No, Met::or)
}

/// `--tcp-flags FIN,SYN,RST,ACK SYN`: a SYN begins a connection, and an ACK belongs to one.
fn flags(mask: Option<&str>, set: Option<&str>, sample: &Sample) -> Met {
    let own = if sample.begins { "SYN" } else { "ACK" };
    let (Some(mask), Some(set)) = (mask, set) else {
        return Met::Maybe;
    };
    let has = |list: &str, flag: &str| list == "ALL" || list.split(',').any(|one| one == flag);
    // Whether any other flag is set isn't known, but for SYN and RST.
    let known = ["SYN", "ACK", "RST"].into_iter();
    let all = known.filter(|flag| has(mask, flag)).all(|flag| {
        let wanted = set != "NONE" && has(set, flag);
        wanted == (flag == own)
    });
    let open = mask
        .split(',')
        .any(|flag| matches!(flag, "FIN" | "PSH" | "URG" | "ALL"));
    match (all, open && !sample.begins) {
        (false, _) => Met::No,
        (true, true) => Met::Maybe,
        (true, false) => Met::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use crate::firewall::probe::Fate;
    use crate::firewall::xtables::save::Ruleset;

    fn fate(rules: &str, sample: &Sample) -> Fate {
        let set = Ruleset::parse(&format!("*filter\n{rules}\nCOMMIT\n"));
        let table = set.table("filter").unwrap();
        through(table, "FORWARD", sample, false).fate(policy_drops(table, "FORWARD"))
    }

    #[test]
    fn rules_as_people_write_them() {
        let drop = ":FORWARD DROP [0:0]\n";
        for (rule, passes) in [
            (
                "-A FORWARD -d 10.0.0.2/32 -p tcp -m tcp --dport 21 -j ACCEPT",
                Some(true),
            ),
            (
                "-A FORWARD -d 10.0.0.3/32 -p tcp -m tcp --dport 21 -j ACCEPT",
                Some(false),
            ),
            (
                "-A FORWARD -d 10.0.0.0/24 -p tcp -m tcp --dport 20:22 -j ACCEPT",
                Some(true),
            ),
            (
                "-A FORWARD -p tcp -m multiport --dports 20,21,80 -j ACCEPT",
                Some(true),
            ),
            ("-A FORWARD -p udp -j ACCEPT", Some(false)),
            ("-A FORWARD ! -p udp -j ACCEPT", Some(true)),
            ("-A FORWARD -i in0 -j ACCEPT", Some(false)),
            ("-A FORWARD -i out+ ! -o eth9 -j ACCEPT", Some(true)),
            (
                "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                Some(false),
            ),
            ("-A FORWARD -m state --state NEW -j ACCEPT", Some(true)),
            ("-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT", None),
            ("-A FORWARD -s 198.51.100.0/24 -j ACCEPT", None),
            ("-A FORWARD -m limit --limit 5/sec -j ACCEPT", None),
            (
                "-A FORWARD -p tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
                Some(true),
            ),
            (
                "-A FORWARD -m comment --comment \"-p udp\" -j ACCEPT",
                Some(true),
            ),
            ("-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT", None),
            (
                "-A FORWARD -m comment --comment \"ftpalg:data\" -j ACCEPT",
                Some(false),
            ),
            ("-A FORWARD -j LOG --log-prefix \"x \"", Some(false)),
            (
                ":a - [0:0]\n-A a -p tcp --dport 21 -j ACCEPT\n-A FORWARD -j a",
                Some(true),
            ),
            (
                ":a - [0:0]\n-A FORWARD -g a\n-A FORWARD -j ACCEPT",
                Some(false),
            ),
            ("-A FORWARD -j NFQUEUE --queue-num 5", None),
        ] {
            let fate = fate(&format!("{drop}{rule}"), &sample());
            let got = match fate {
                Fate::Passes => Some(true),
                Fate::Dropped(_) => Some(false),
                Fate::Unsure => None,
            };
            assert_eq!(got, passes, "{rule}");
        }
    }

    #[test]
    fn what_hides_packets_is_found() {
        let effects = |rule: &str| {
            let set = Ruleset::parse(&format!("*raw\n:PREROUTING ACCEPT [0:0]\n{rule}\nCOMMIT\n"));
            let walked = through(set.table("raw").unwrap(), "PREROUTING", &sample(), true);
            let effects = walked.effects.into_iter();
            effects
                .map(|(effect, met, _)| (effect, met))
                .collect::<Vec<_>>()
        };
        let yes = |effect| vec![(effect, Met::Yes)];
        assert_eq!(
            effects("-A PREROUTING -p tcp --dport 21 -j CT --notrack"),
            yes(Effect::Untracked)
        );
        assert_eq!(
            effects("-A PREROUTING -p tcp --dport 21 -j NOTRACK"),
            yes(Effect::Untracked)
        );
        assert_eq!(
            effects("-A PREROUTING -p tcp --dport 21 -j CT --helper ftp"),
            yes(Effect::Helper)
        );
        assert!(effects("-A PREROUTING -p tcp --dport 80 -j CT --notrack").is_empty());
        assert!(effects("-A PREROUTING -p tcp --dport 21 -j CT --zone 1").is_empty());
        // Behind our jump it doesn't matter any more.
        assert!(
            effects(
                "-A PREROUTING -m comment --comment \"ftpalg:egress\" -j FTPALG-EGRESS\n\
                 -A PREROUTING -p tcp --dport 21 -j CT --notrack"
            )
            .is_empty()
        );
    }
}
