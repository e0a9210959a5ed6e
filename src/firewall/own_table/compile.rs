//! From rules as `sets/steering.rules` has them to chains of a table of our own.
//!
//! All that a rule of ours may have is known here; a test translates every steering.

use ipnet::IpNet;

use crate::firewall::RulesError;
use crate::firewall::names::is_our_chain;
use crate::firewall::xtables::save::{Position, Rule, Ruleset};
use crate::net::{Family, parse_network};
use crate::netlink::nftables::hook;

/// The tables that steer, and the priority of their chains.
const TABLES: [(&str, i32); 2] = [("raw", -300), ("mangle", -150)];

/// The builtin chains, and their hooks.
const HOOKS: [(&str, u32); 5] = [
    ("PREROUTING", hook::PREROUTING),
    ("INPUT", hook::INPUT),
    ("FORWARD", hook::FORWARD),
    ("OUTPUT", hook::OUTPUT),
    ("POSTROUTING", hook::POSTROUTING),
];

/// A chain of our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnChain {
    pub(super) name: String,
    /// The hook and the priority of a base chain.
    pub(super) hook: Option<(u32, i32)>,
    pub(super) rules: Vec<OwnRule>,
}

/// A rule: what it is for, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnRule {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
    pub(super) comment: String,
}

/// What a packet must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Tcp,
    /// Its source or destination port is one of these.
    Port {
        end: End,
        ports: Vec<u16>,
    },
    /// Its source or destination is in a network.
    Address {
        end: End,
        network: IpNet,
    },
    /// It came by, or leaves by, this interface (or by another one).
    Interface {
        end: End,
        is: bool,
        name: String,
    },
    /// The masked mark is (or isn't) this.
    Mark {
        of: MarkOf,
        is: bool,
        value: u32,
        mask: u32,
    },
}

/// Where a packet comes from, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// Whose mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MarkOf {
    Packet,
    Connection,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Queue {
        first: u16,
        count: u16,
        bypass: bool,
    },
    Drop,
    Jump(String),
    /// Its mark loses the bits of `mask`, and then those of `value` change.
    SetMark {
        value: u32,
        mask: u32,
    },
}

impl OwnRule {
    /// The ports that it looks at.
    pub(super) fn ports(&self) -> &[u16] {
        let ports = self.conditions.iter().find_map(|one| match one {
            Condition::Port { ports, .. } => Some(ports.as_slice()),
            _ => None,
        });
        ports.unwrap_or_default()
    }
}

/// The chains, those that are jumped to first.
pub(super) fn compile(set: &Ruleset, family: Family) -> Result<Vec<OwnChain>, RulesError> {
    let mut chains: Vec<OwnChain> = Vec::new();
    let (mut inner, mut base) = (Vec::new(), Vec::new());
    for (name, priority) in TABLES {
        let rules = set.table(name).map_or(&[][..], |table| &table.rules);
        for rule in rules {
            let own = read(rule, family).ok_or_else(|| {
                RulesError::Input(format!(
                    "this rule can't be placed over netlink: -A {} {}; use --steering iptables",
                    rule.chain, rule.spec
                ))
            })?;
            if is_our_chain(&rule.chain) {
                put(&mut inner, &rule.chain, None, own);
                continue;
            }
            let Some((_, hook)) = HOOKS.into_iter().find(|(chain, _)| *chain == rule.chain) else {
                return Err(RulesError::Input(format!("no chain {}", rule.chain)));
            };
            let (place, priority) = match rule.position {
                Position::Top => ("before", priority - 1),
                Position::End => ("after", priority + 1),
            };
            let chain = format!("{place}-{name}-{}", rule.chain.to_lowercase());
            put(&mut base, &chain, Some((hook, priority)), own);
        }
    }
    chains.append(&mut inner);
    chains.append(&mut base);
    Ok(chains)
}

fn put(chains: &mut Vec<OwnChain>, name: &str, hook: Option<(u32, i32)>, rule: OwnRule) {
    match chains.iter_mut().find(|chain| chain.name == name) {
        Some(chain) => chain.rules.push(rule),
        None => chains.push(OwnChain {
            name: name.to_owned(),
            hook,
            rules: vec![rule],
        }),
    }
}

/// A rule as this module has it; `None` if it has something that isn't known here.
fn read(rule: &Rule, family: Family) -> Option<OwnRule> {
    let mut conditions = Vec::new();
    let mut comment = String::new();
    let mut mark_of = MarkOf::Packet;
    let mut is = true;
    let mut words = rule.words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let condition = match word {
            "!" => {
                is = false;
                continue;
            }
            "-j" => {
                let action = action(words.next()?, &mut words)?;
                return (is && words.next().is_none()).then_some(OwnRule {
                    conditions,
                    action,
                    comment,
                });
            }
            "-m" => {
                match words.next()? {
                    "mark" => mark_of = MarkOf::Packet,
                    "connmark" => mark_of = MarkOf::Connection,
                    "comment" | "multiport" | "tcp" => {}
                    _ => return None,
                }
                continue;
            }
            "--comment" => {
                words.next()?.clone_into(&mut comment);
                continue;
            }
            "-p" => (words.next()? == "tcp").then_some(Condition::Tcp)?,
            "--sport" | "--sports" => ports(End::Source, words.next()?)?,
            "--dport" | "--dports" => ports(End::Destination, words.next()?)?,
            "-s" => address(End::Source, words.next()?, family)?,
            "-d" => address(End::Destination, words.next()?, family)?,
            "-i" => interface(End::Source, is, words.next()?),
            "-o" => interface(End::Destination, is, words.next()?),
            "--mark" => {
                let (value, mask) = masked(words.next()?)?;
                let of = mark_of;
                Condition::Mark {
                    of,
                    is,
                    value,
                    mask,
                }
            }
            _ => return None,
        };
        let negates = matches!(
            condition,
            Condition::Interface { .. } | Condition::Mark { .. }
        );
        if !is && !negates {
            return None;
        }
        is = true;
        conditions.push(condition);
    }
    None
}

fn action<'a>(target: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Action> {
    Some(match target {
        "DROP" => Action::Drop,
        "MARK" if words.next()? == "--set-xmark" => {
            let (value, mask) = masked(words.next()?)?;
            Action::SetMark { value, mask }
        }
        "NFQUEUE" => {
            let (first, last) = match (words.next()?, words.next()?) {
                ("--queue-num", number) => (number, number),
                ("--queue-balance", range) => range.split_once(':')?,
                _ => return None,
            };
            let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
            let bypass = match words.next() {
                None => false,
                Some("--queue-bypass") => true,
                Some(_) => return None,
            };
            let count = last.checked_sub(first)?.checked_add(1)?;
            Action::Queue {
                first,
                count,
                bypass,
            }
        }
        chain if is_our_chain(chain) => Action::Jump(chain.to_owned()),
        _ => return None,
    })
}

fn ports(end: End, list: &str) -> Option<Condition> {
    let ports: Option<Vec<u16>> = list.split(',').map(|port| port.parse().ok()).collect();
    Some(Condition::Port { end, ports: ports? })
}

fn address(end: End, text: &str, family: Family) -> Option<Condition> {
    let network = parse_network(text).ok()?;
    (Family::of(network.addr()) == family).then_some(Condition::Address { end, network })
}

fn interface(end: End, is: bool, name: &str) -> Condition {
    let name = name.to_owned();
    Condition::Interface { end, is, name }
}

/// `VALUE/MASK`, in hexadecimal.
fn masked(text: &str) -> Option<(u32, u32)> {
    let (value, mask) = text.split_once('/')?;
    let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    Some((number(value)?, number(mask)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{Queues, Steering, print};

    fn compiled(steering: &Steering, family: Family) -> Vec<OwnChain> {
        let set = Ruleset::parse(&print(steering, family).unwrap());
        assert_eq!(set.skipped, 0);
        compile(&set, family).unwrap()
    }

    fn steering() -> Steering {
        Steering {
            inside: ["eth1", "10.0.0.0/8", "fd00::/8"]
                .map(|inside| inside.parse().unwrap())
                .into(),
            local: true,
            ports: (21..=40).collect(),
            queues: Queues { first: 4, count: 3 },
            fail_open: true,
            ..Steering::default()
        }
    }

    #[test]
    fn every_rule_is_translated() {
        let all = [false, true].map(|fail_open| Steering {
            fail_open,
            ..steering()
        });
        for (steering, family) in all.iter().flat_map(|s| Family::ALL.map(|f| (s, f))) {
            let text = print(steering, family).unwrap();
            let set = Ruleset::parse(&text);
            let steers = set.tables.iter().filter(|table| table.name != "filter");
            let rules: usize = steers.map(|table| table.rules.len()).sum();
            let chains = compiled(steering, family);
            let ours: usize = chains.iter().map(|chain| chain.rules.len()).sum();
            assert_eq!(ours, rules, "{family}");
            let mut comments = chains.iter().flat_map(|chain| &chain.rules);
            assert!(comments.all(|rule| rule.comment.starts_with("ftpalg:")));
        }
    }

    #[test]
    fn places_are_those_of_iptables() {
        let chains = compiled(&steering(), Family::V4);
        let places: Vec<_> = chains
            .iter()
            .map(|chain| (chain.name.as_str(), chain.hook, chain.rules.len()))
            .collect();
        assert_eq!(
            places,
            [
                ("FTPALG-EGRESS", None, 4),
                ("FTPALG-INGRESS", None, 5),
                ("FTPALG-SEEN", None, 2),
                ("after-raw-prerouting", Some((hook::PREROUTING, -299)), 2),
                ("after-raw-output", Some((hook::OUTPUT, -299)), 1),
                (
                    "after-mangle-postrouting",
                    Some((hook::POSTROUTING, -149)),
                    2
                ),
                ("after-mangle-input", Some((hook::INPUT, -149)), 1),
                (
                    "before-mangle-prerouting",
                    Some((hook::PREROUTING, -151)),
                    2
                ),
                ("before-mangle-output", Some((hook::OUTPUT, -151)), 1),
            ]
        );
    }

    #[test]
    fn conditions_and_actions() {
        let one = |line: &str| read(&Rule::parse(line).unwrap(), Family::V4);
        let rule = one(
            "-A FTPALG-SEEN -p tcp -m mark ! --mark 0x1/0x1 -m connmark --mark 0x2/0x3 -m comment \
             --comment \"ftpalg:seen\" -j MARK --set-xmark 0x0/0x1",
        );
        let mark = |of, is, value, mask| Condition::Mark {
            of,
            is,
            value,
            mask,
        };
        assert_eq!(
            rule,
            Some(OwnRule {
                conditions: vec![
                    Condition::Tcp,
                    mark(MarkOf::Packet, false, 1, 1),
                    mark(MarkOf::Connection, true, 2, 3),
                ],
                action: Action::SetMark { value: 0, mask: 1 },
                comment: "ftpalg:seen".into(),
            })
        );
        let queue =
            one("-A X -m multiport --dports 21,990 -j NFQUEUE --queue-balance 3:5 --queue-bypass");
        let Some(OwnRule {
            conditions, action, ..
        }) = queue
        else {
            panic!("not read");
        };
        assert_eq!(
            conditions,
            [Condition::Port {
                end: End::Destination,
                ports: vec![21, 990]
            }]
        );
        assert_eq!(
            action,
            Action::Queue {
                first: 3,
                count: 3,
                bypass: true
            }
        );
        // What isn't known is never left out.
        for line in [
            "-A X -p udp -j DROP",
            "-A X ! -p tcp -j DROP",
            "-A X -m limit --limit 1/sec -j DROP",
            "-A X -s fd00::/8 -j DROP",
            "-A X -j LOG",
            "-A X -j NFQUEUE --queue-num 5 --queue-cpu-fanout",
            "-A X -j NFQUEUE --queue-balance 5:3",
            "-A X -p tcp",
        ] {
            assert_eq!(one(line), None, "{line}");
        }
    }
}
