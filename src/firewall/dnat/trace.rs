//! Follows new TCP connections through the rules of a table, and collects where which ports lead.
//!
//! A packet is known only by what the rules ask about it: see `packet`. What is asked about anything
//! else (interfaces, marks, states) may be so: more may be found than there is, never less, but for
//! what is beyond the bounds.
//!
//! Contract: total, and bounded whatever the rules are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::expression::{Data, Element, Expression, Register, Set, Target};
use super::packet::{Byte, Field, Keys, Kind, REGISTERS, State, one_byte, payload};
use crate::firewall::is_our_chain;
use crate::firewall::published::Published;

/// How deep chains may be nested (`NFT_JUMP_STACK_SIZE`).
const DEPTH: usize = 16;
/// How many steps are made in a table: one expression for one kind of packets.
const STEPS: usize = 1 << 18;
/// How many kinds of packets a rule may tell apart.
const KINDS: usize = 4096;
/// How many jumps may wait to be followed.
const AHEAD: usize = 8192;
/// How many results a table may have.
const RESULTS: usize = 4096;

/// What is known of a table.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// `NFPROTO_*`
    pub(super) family: u8,
    /// The rules of chains, by name.
    pub(super) chains: BTreeMap<String, Vec<Vec<Expression>>>,
    /// Sets and maps by name; `None`: they can't be had.
    pub(super) sets: BTreeMap<String, Option<Set>>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) published: BTreeSet<Published>,
    /// Chains that need to be known to find all.
    pub(super) chains: BTreeSet<String>,
    /// Sets that need to be known.
    pub(super) sets: BTreeSet<String>,
    /// Whether there was more than the bounds allow.
    pub(super) cut: bool,
}

/// Follows packets from these chains on.
pub(super) fn trace(table: &Table, bases: &[String]) -> Found {
    let mut tracer = Tracer {
        table,
        found: Found::default(),
        steps: STEPS,
        ahead: VecDeque::new(),
    };
    let any = Kind::of(table.family);
    for base in bases {
        tracer.ahead.push_back((base, any.clone(), 0));
    }
    while let Some((chain, kind, depth)) = tracer.ahead.pop_front() {
        tracer.chain(chain, &kind, depth);
    }
    tracer.found
}

struct Tracer<'a> {
    table: &'a Table,
    found: Found,
    /// How many are left.
    steps: usize,
    ahead: VecDeque<(&'a str, Kind, usize)>,
}

impl<'a> Tracer<'a> {
    fn chain(&mut self, name: &str, kind: &Kind, depth: usize) {
        let table = self.table;
        let Some(rules) = table.chains.get(name) else {
            self.found.chains.insert(name.to_owned());
            return;
        };
        for rule in rules {
            let mut states = vec![State::new(kind)];
            for expression in rule {
                if states.is_empty() {
                    break;
                }
                let Some(left) = self.steps.checked_sub(states.len()) else {
                    self.found.cut = true;
                    return;
                };
                self.steps = left;
                states = self.step(expression, states, depth);
            }
        }
    }

    /// What becomes of packets in one step of a rule.
    fn step(
        &mut self,
        expression: &'a Expression,
        mut states: Vec<State>,
        depth: usize,
    ) -> Vec<State> {
        match expression {
            Expression::Condition => {}
            Expression::Payload {
                to,
                base,
                offset,
                len,
            } => {
                for state in &mut states {
                    let family = state.kind.family;
                    let load = |i: usize| payload(family, *base, offset.saturating_add(i));
                    state.load(*to, *len, load);
                }
            }
            Expression::Meta { to, key } => {
                for state in &mut states {
                    // NFT_META_NFPROTO, NFT_META_L4PROTO; others have up to 16 bytes (iifname).
                    match key {
                        15 => state.load(*to, 4, |i| one_byte(Field::Family, i)),
                        16 => state.load(*to, 4, |i| one_byte(Field::Protocol, i)),
                        _ => state.load(*to, 16, |_| Byte::Unknown),
                    }
                }
            }
            Expression::Immediate { to, value } => {
                for state in &mut states {
                    state.constant(*to, value);
                }
            }
            Expression::Mask { from, to, mask } => {
                for state in &mut states {
                    state.mask(*from, *to, mask);
                }
            }
            Expression::Range {
                from,
                negated,
                first,
                last,
            } => states.retain_mut(|state| {
                let keys = [(first.as_slice(), last.as_slice())];
                match negated {
                    false => state.restrict(*from, &keys),
                    true => state.exclude(*from, &keys),
                }
            }),
            Expression::Lookup {
                from,
                set,
                target,
                negated,
            } => return self.lookup(states, *from, set, *target, *negated, depth),
            Expression::Jump(chain) => {
                for state in states {
                    self.jump(chain, state.kind, depth);
                }
                return Vec::new();
            }
            Expression::End => return Vec::new(),
            Expression::Dnat(dnat) => {
                for state in states {
                    self.publish(state.led(dnat));
                }
                return Vec::new();
            }
            Expression::Ports(ports) => states.retain_mut(|state| state.kind.take_ports(ports)),
            Expression::Lead { address, port } => {
                for state in states {
                    let address = address.and_then(|bytes| state.kind.address(bytes));
                    self.publish(state.kind.led(address, *port));
                }
                return Vec::new();
            }
            Expression::Redirect => {
                for state in states {
                    self.publish(state.kind.published(None, None));
                }
                return Vec::new();
            }
            Expression::Other => {
                for state in &mut states {
                    state.load(0, REGISTERS, |_| Byte::Unknown);
                }
            }
        }
        states
    }

    fn lookup(
        &mut self,
        mut states: Vec<State>,
        from: Register,
        name: &'a str,
        target: Target,
        negated: bool,
        depth: usize,
    ) -> Vec<State> {
        let set = match self.table.sets.get(name) {
            Some(set) => set.as_ref(),
            None => {
                self.found.sets.insert(name.to_owned());
                None
            }
        };
        let Some(set) = set else {
            // Whatever is in there.
            if let Target::Register(to) = target {
                let unknown = |state: &mut State| state.load(to, REGISTERS, |_| Byte::Unknown);
                states.iter_mut().for_each(unknown);
            }
            return states;
        };
        if target == Target::Nowhere {
            let keys: Vec<Keys<'_>> = set.elements.iter().map(keys).collect();
            if negated {
                states.retain_mut(|state| !set.complete || state.exclude(from, &keys));
                return states;
            }
            let simple = |state: &State| {
                let len = keys.first().map_or(0, |(first, _)| first.len());
                let fields = state.fields(from, len);
                let whole = set.complete || !matches!(fields[..], [(Field::Port, ..)]);
                fields.len() < 2 && whole
            };
            if set.rest.is_some() || (states.iter().all(simple) && !keys.is_empty()) {
                states.retain_mut(|state| {
                    // Those that weren't read may be meant, unless it is about ports.
                    set.rest.is_some() || state.restrict_to(from, &keys, set.complete)
                });
                return states;
            }
        }
        // Where the rest leads isn't known.
        self.found.cut |= !set.complete;
        let mut all = Vec::new();
        for state in states {
            let rest = set.rest.as_ref().map(|data| (None, data));
            let elements = set.elements.iter().map(|one| (Some(keys(one)), &one.data));
            for (keys, data) in elements.chain(rest) {
                let Some(left) = self.steps.checked_sub(1).filter(|_| all.len() < KINDS) else {
                    self.found.cut = true;
                    return all;
                };
                self.steps = left;
                let mut state = state.clone();
                if !keys.is_none_or(|keys| state.restrict(from, &[keys])) {
                    continue;
                }
                match (target, data) {
                    (Target::Verdict, Data::Jump(chain)) => self.jump(chain, state.kind, depth),
                    (Target::Verdict, _) => {}
                    (Target::Register(to), Data::Value(value)) => {
                        state.constant(to, value);
                        all.push(state);
                    }
                    _ => all.push(state),
                }
            }
        }
        all
    }

    fn jump(&mut self, chain: &'a str, kind: Kind, depth: usize) {
        if is_our_chain(chain) {
            return;
        }
        if depth >= DEPTH || self.ahead.len() >= AHEAD {
            self.found.cut = true;
            return;
        }
        self.ahead.push_back((chain, kind, depth.saturating_add(1)));
    }

    fn publish(&mut self, published: Option<Published>) {
        let Some(published) = published else {
            return;
        };
        self.found.published.insert(published);
        if self.found.published.len() > RESULTS {
            self.found.published.pop_last();
            self.found.cut = true;
        }
    }
}

fn keys(element: &Element) -> Keys<'_> {
    (&element.first, &element.last)
}
