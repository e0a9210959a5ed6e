//! What the user's rules would do to a packet, without sending any.
//!
//! [`Sample`] is the packet, as far as it is known. The chains are walked as the kernel does it
//! (`walk`). A condition that can't be judged counts as "maybe", and so does all that follows from it:
//! the answer is "dropped" only where no doubt is left. `xt` judges rules of iptables, `nft` those
//! that were written for nft itself.
//!
//! Contract: it never fails, and its work is bounded, whatever the rules are.

pub(crate) mod nft;
pub(crate) mod xt;

use std::net::IpAddr;

use crate::net::Family;

/// The most rules that are looked at in one walk.
const STEPS: usize = 1 << 16;
/// The deepest jumps: the kernel allows 16.
const DEPTH: usize = 32;

/// A TCP packet, as far as it is known; `None` means anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its family.
    pub family: Family,
    /// The interface that it came in by.
    pub came_by: Option<String>,
    /// The interface that it leaves by.
    pub leaves_by: Option<String>,
    /// Its source.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: Option<IpAddr>,
    /// The source port.
    pub from_port: Option<u16>,
    /// The destination port.
    pub to_port: Option<u16>,
    /// Whether it begins a connection; otherwise it belongs to one (`ESTABLISHED`).
    pub begins: bool,
}

/// Whether something holds for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// It does.
    Yes,
    /// It doesn't.
    No,
    /// That can't be told.
    Maybe,
}

impl Met {
    /// Whether both hold.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    /// Whether either holds.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::No, Self::No) => Self::No,
            _ => Self::Maybe,
        }
    }

    fn negated(self, negated: bool) -> Self {
        match (self, negated) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (met, _) => met,
        }
    }

    fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// What a rule does besides a verdict, as far as it matters to control connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Conntrack doesn't see the packet.
    Untracked,
    /// The kernel's own helper reads the connection.
    Helper,
    /// The connection's later packets pass all hooks by.
    Offloaded,
}

/// How a rule ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It doesn't: the next rule follows.
    None,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
}

/// A rule, as judged for a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) met: Met,
    /// Each with whether the packet gets to it.
    pub(crate) effects: Vec<(Effect, Met)>,
    pub(crate) verdict: Verdict,
    /// The rule in words.
    pub(crate) text: String,
}

/// What became of a sample on its way through a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// The first rule that accepts it, or may.
    pub accepts: Option<String>,
    /// The first rule that drops it, or may.
    pub drops: Option<String>,
    /// Whether it may get to the end of the chain.
    pub falls: bool,
    /// What is done to it on the way, each with whether that is certain, and the rule.
    pub effects: Vec<(Effect, Met, String)>,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes.
    Passes,
    /// It is dropped: by this rule, or by the chain's policy.
    Dropped(Option<String>),
    /// That can't be told.
    Unsure,
}

impl Walked {
    /// What becomes of the packet, in a base chain with this policy.
    #[must_use]
    pub fn fate(&self, policy_drops: bool) -> Fate {
        let passes = self.accepts.is_some() || (self.falls && !policy_drops);
        let dropped = self.drops.is_some() || (self.falls && policy_drops);
        match (passes, dropped) {
            (_, false) => Fate::Passes,
            (false, true) => Fate::Dropped(self.drops.clone()),
            (true, true) => Fate::Unsure,
        }
    }
}

/// Takes a sample through a chain. `rules` gives those of a chain, judged; `None`: it isn't known.
pub(crate) fn walk(chain: &str, rules: &dyn Fn(&str) -> Option<Vec<Judged>>) -> Walked {
    let mut walker = Walker {
        rules,
        walked: Walked::default(),
        steps: STEPS,
    };
    let falls = walker.chain(chain, Met::Yes, 0);
    walker.walked.falls = falls != Met::No;
    walker.walked
}

struct Walker<'a> {
    rules: &'a dyn Fn(&str) -> Option<Vec<Judged>>,
    walked: Walked,
    steps: usize,
}

impl Walker<'_> {
    /// Goes through a chain; returns whether packets that get there come out at its end.
    fn chain(&mut self, name: &str, mut reach: Met, depth: usize) -> Met {
        let Some(rules) = (self.rules)(name).filter(|_| depth < DEPTH) else {
            return self.unknown(name, reach);
        };
        let mut returned = Met::No;
        for rule in rules {
            let Some(left) = self.steps.checked_sub(1) else {
                return self.unknown(name, reach);
            };
            self.steps = left;
            for (effect, met) in &rule.effects {
                let met = met.and(reach);
                if met != Met::No {
                    let found = (*effect, met, rule.text.clone());
                    self.walked.effects.push(found);
                }
            }
            let met = rule.met.and(reach);
            if met == Met::No {
                continue;
            }
            let goes_on = match rule.verdict {
                Verdict::None => continue,
                Verdict::Accept => {
                    self.walked.accepts.get_or_insert(rule.text);
                    Met::No
                }
                Verdict::Drop => {
                    self.walked.drops.get_or_insert(rule.text);
                    Met::No
                }
                Verdict::Return => {
                    returned = returned.or(met);
                    Met::No
                }
                Verdict::Jump(to) => self.chain(&to, met, depth + 1),
                Verdict::Goto(to) => {
                    let end = self.chain(&to, met, depth + 1);
                    returned = returned.or(end);
                    Met::No
                }
            };
            match (rule.met, goes_on) {
                // Nobody gets past it.
                (Met::Yes, Met::No) => return returned,
                (Met::Yes, Met::Yes) => {}
                _ => reach = Met::Maybe,
            }
        }
        reach.or(returned)
    }

    /// What can't be followed may do anything.
    fn unknown(&mut self, name: &str, reach: Met) -> Met {
        let text = format!("chain {name}");
        self.walked.accepts.get_or_insert(text.clone());
        self.walked.drops.get_or_insert(text);
        reach.and(Met::Maybe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A first packet from outside to a server inside.
    pub(super) fn sample() -> Sample {
        Sample {
            family: Family::V4,
            came_by: Some("out0".into()),
            leaves_by: Some("in0".into()),
            from: None,
            to: Some("10.0.0.2".parse().unwrap()),
            from_port: None,
            to_port: Some(21),
            begins: true,
        }
    }

    fn rule(met: Met, verdict: Verdict) -> Judged {
        Judged {
            met,
            effects: Vec::new(),
            text: format!("{met:?} {verdict:?}"),
            verdict,
        }
    }

    fn fate(chains: &[(&str, Vec<Judged>)], drops: bool) -> Fate {
        let rules = |name: &str| {
            let found = chains.iter().find(|(chain, _)| *chain == name);
            found.map(|(_, rules)| rules.clone())
        };
        walk("base", &rules).fate(drops)
    }

    #[test]
    fn only_what_is_certain_is_said() {
        use Met::{Maybe, No, Yes};
        let one = |rules: Vec<Judged>, drops| fate(&[("base", rules)], drops);
        assert_eq!(one(vec![], false), Fate::Passes);
        assert_eq!(one(vec![], true), Fate::Dropped(None));
        assert_eq!(one(vec![rule(Yes, Verdict::Accept)], true), Fate::Passes);
        assert_eq!(one(vec![rule(Maybe, Verdict::Accept)], true), Fate::Unsure);
        assert_eq!(one(vec![rule(Maybe, Verdict::Accept)], false), Fate::Passes);
        assert_eq!(one(vec![rule(Maybe, Verdict::Drop)], false), Fate::Unsure);
        assert!(matches!(
            one(vec![rule(Maybe, Verdict::Drop)], true),
            Fate::Dropped(_)
        ));
        assert_eq!(
            one(
                vec![rule(No, Verdict::Accept), rule(Yes, Verdict::Drop)],
                false
            ),
            Fate::Dropped(Some("Yes Drop".into()))
        );
        // What comes behind a certain verdict doesn't matter.
        assert_eq!(
            one(
                vec![rule(Yes, Verdict::Accept), rule(Yes, Verdict::Drop)],
                true
            ),
            Fate::Passes
        );
    }

    #[test]
    fn jumps_come_back_and_gotos_do_not() {
        use Met::{Maybe, Yes};
        let to = || "sub".to_owned();
        let two = |first: Verdict, met, sub: Vec<Judged>, drops| {
            let base = vec![rule(met, first), rule(Yes, Verdict::Accept)];
            fate(&[("base", base), ("sub", sub)], drops)
        };
        assert_eq!(two(Verdict::Jump(to()), Yes, vec![], true), Fate::Passes);
        assert_eq!(
            two(Verdict::Goto(to()), Yes, vec![], true),
            Fate::Dropped(None)
        );
        let drops = || vec![rule(Yes, Verdict::Drop)];
        assert!(matches!(
            two(Verdict::Jump(to()), Yes, drops(), false),
            Fate::Dropped(_)
        ));
        assert_eq!(
            two(Verdict::Jump(to()), Maybe, drops(), false),
            Fate::Unsure
        );
        let returns = vec![rule(Yes, Verdict::Return), rule(Yes, Verdict::Drop)];
        assert_eq!(two(Verdict::Jump(to()), Yes, returns, true), Fate::Passes);
        // A chain that isn't known may do anything.
        assert_eq!(
            two(Verdict::Jump("other".into()), Yes, vec![], true),
            Fate::Unsure
        );
        // A circle, which the kernel refuses, ends.
        let circle = vec![rule(Yes, Verdict::Jump(to()))];
        assert_eq!(two(Verdict::Jump(to()), Yes, circle, false), Fate::Unsure);
    }

    #[test]
    fn effects_are_as_certain_as_the_way_to_them() {
        let mut marked = rule(Met::Yes, Verdict::None);
        marked.effects.push((Effect::Untracked, Met::Yes));
        let base = vec![rule(Met::Maybe, Verdict::Accept), marked];
        let walked = walk("base", &|_| Some(base.clone()));
        assert_eq!(walked.effects[0].1, Met::Maybe);
    }

    fn met() -> impl Strategy<Value = Met> {
        prop_oneof![Just(Met::Yes), Just(Met::No), Just(Met::Maybe)]
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::None),
            Just(Verdict::Accept),
            Just(Verdict::Drop),
            Just(Verdict::Return),
            (0..4u8).prop_map(|n| Verdict::Jump(n.to_string())),
            (0..4u8).prop_map(|n| Verdict::Goto(n.to_string())),
        ]
    }

    /// What really happens if each "maybe" is settled one way: `true` if the packet passes.
    fn happens(
        chains: &[Vec<(Met, Verdict)>],
        settled: &mut impl FnMut() -> bool,
        chain: usize,
    ) -> Option<bool> {
        for (met, verdict) in &chains[chain] {
            let met = match met {
                Met::Yes => true,
                Met::No => false,
                Met::Maybe => settled(),
            };
            if !met {
                continue;
            }
            match verdict {
                Verdict::None => {}
                Verdict::Accept => return Some(true),
                Verdict::Drop => return Some(false),
                Verdict::Return => return None,
                Verdict::Jump(to) => {
                    if let Some(passes) = happens(chains, settled, to.parse().unwrap()) {
                        return Some(passes);
                    }
                }
                Verdict::Goto(to) => return happens(chains, settled, to.parse().unwrap()),
            }
        }
        None
    }

    proptest! {
        /// Whatever the doubtful conditions are, a certain answer is right.
        #[test]
        fn a_certain_answer_is_right(
            raw in prop::collection::vec(
                prop::collection::vec((met(), verdict()), 0..5), 4..5),
            bits in any::<u64>(),
            drops in any::<bool>(),
        ) {
            // Chains lead on to later ones only.
            let chains: Vec<Vec<_>> = raw.into_iter().enumerate().map(|(at, rules)| {
                let later = |to: &str| to.parse::<usize>().unwrap() > at;
                rules.into_iter().filter(|(_, verdict)| match verdict {
                    Verdict::Jump(to) | Verdict::Goto(to) => later(to),
                    _ => true,
                }).collect()
            }).collect();
            let judged = |name: &str| {
                let rules = &chains[name.parse::<usize>().unwrap()];
                Some(rules.iter().map(|(met, verdict)| rule(*met, verdict.clone())).collect())
            };
            let fate = walk("0", &judged).fate(drops);
            let mut left = bits;
            let mut settled = || { left = left.rotate_left(1); left & 1 == 1 };
            let passes = happens(&chains, &mut settled, 0).unwrap_or(!drops);
            match fate {
                Fate::Passes => prop_assert!(passes),
                Fate::Dropped(_) => prop_assert!(!passes),
                Fate::Unsure => {}
            }
        }
    }
}
