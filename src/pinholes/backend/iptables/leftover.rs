//! What a daemon before this one left: the pinholes in the rules of its chains.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::lines::{Conditions, DateStop, rules};
use super::wording;
use crate::firewall::host::holds;
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::save::{Rule, Table};
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::{PINHOLE_CHAINS, names::TAG};
use crate::net::{Family, Mark};
use crate::pinholes::Pinhole;

/// A pinhole that is in the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leftover {
    pub(super) hole: Pinhole,
    /// When its rules match.
    pub(super) conditions: Conditions,
    /// The time that it has left.
    pub(super) left: Duration,
}

/// The pinholes of a family, oldest first: at most `most`, for at most `longest` each. One line says
/// what is dropped.
pub(super) fn pinholes(
    snapshot: &Snapshot,
    family: Family,
    mark: Mark,
    most: usize,
    longest: Duration,
) -> Vec<Leftover> {
    let mut found = Vec::new();
    let mut dropped = 0_usize;
    for flavour in Flavour::ALL {
        if let Some(table) = snapshot.table(family, flavour, "nat") {
            let (holes, strange) = of_table(table, mark, longest);
            found.extend(holes);
            dropped = dropped.saturating_add(strange);
        }
    }
    let excess = found.len().saturating_sub(most);
    found.drain(..excess);
    dropped = dropped.saturating_add(excess);
    if dropped > 0 {
        log::warn!(
            "{dropped} {family} pinholes of an earlier ftpalg are dropped: beyond the limit of \
             pinholes, or not understood"
        );
    }
    found
}

/// The pinholes in a table, in the order of their rules, and how many others there are that aren't
/// understood. Those whose time is over don't count, nor do those that one before them hides: where a
/// pinhole replaces another one, its rules come first until those of the other are removed.
fn of_table(table: &Table, mark: Mark, longest: Duration) -> (Vec<Leftover>, usize) {
    let mut numbered: HashMap<u64, Vec<&Rule>> = HashMap::new();
    let mut serials = Vec::new();
    for rule in PINHOLE_CHAINS
        .iter()
        .flat_map(|chain| table.rules_of(chain))
    {
        if let Some(serial) = serial(rule) {
            let of_hole = numbered.entry(serial).or_default();
            if of_hole.is_empty() {
                serials.push(serial);
            }
            of_hole.push(rule);
        }
    }
    let mut keys = HashSet::new();
    let mut holes = Vec::new();
    let mut strange = 0;
    for serial in serials {
        let of_hole = numbered.remove(&serial).unwrap_or_default();
        let Some((hole, conditions)) = pinhole(&of_hole) else {
            strange += 1;
            continue;
        };
        // Its rules must be those that we would write.
        let lines = wording(&hole).rules(mark, conditions, serial);
        if lines.len() != of_hole.len() || !rules(&lines).iter().all(|rule| holds(table, rule)) {
            strange += 1;
            continue;
        }
        let left = conditions.until.map_or(longest, DateStop::left);
        let left = left.min(longest);
        if !left.is_zero() && keys.insert(hole.key()) {
            holes.push(Leftover {
                hole,
                conditions,
                left,
            });
        }
    }
    (holes, strange)
}

/// The number in the comment of a pinhole's rule.
fn serial(rule: &Rule) -> Option<u64> {
    let comment = rule.comment()?.strip_prefix(TAG)?;
    comment.strip_prefix("pinhole ")?.parse().ok()
}

/// The pinhole that rules with one number make, as far as these words of theirs say, and when they
/// match: the reverse of [`Wording::rules`](super::lines::Wording::rules).
fn pinhole<'a>(of_hole: &[&'a Rule]) -> Option<(Pinhole, Conditions)> {
    let [pre, _] = PINHOLE_CHAINS;
    let word = |rule: &'a Rule, name| rule.option(&[name]).map(|value| value.text);
    let last = |name| of_hole.iter().rev().find_map(|rule| word(rule, name));
    let first = of_hole.iter().find(|rule| rule.chain == pre)?;
    let ip = |name| -> Option<IpAddr> { word(first, name)?.split('/').next()?.parse().ok() };
    let to = SocketAddr::new(ip("-d")?, word(first, "--dport")?.parse().ok()?);
    let land = match last("--to-destination") {
        Some(land) => land.parse().ok()?,
        None => to,
    };
    let as_source = match last("--to-source") {
        Some(source) => Some(source.parse().ok()?),
        None => None,
    };
    let whole = |rule: &&'a Rule| word(rule, "--set-xmark")?.strip_suffix("/0xffffffff");
    let mark = match of_hole.iter().find_map(whole) {
        Some(mark) => u32::from_str_radix(mark.strip_prefix("0x")?, 16).ok()?,
        None => 0,
    };
    let hole = Pinhole {
        from: ip("-s")?,
        to,
        land,
        as_source,
        mark,
    };
    let conditions = Conditions {
        until: match word(first, "--datestop") {
            Some(date) => Some(date.parse().ok()?),
            None => None,
        },
        limited: word(first, "--limit").is_some(),
    };
    Some((hole, conditions))
}

#[cfg(test)]
mod tests {
    use super::super::lines::{RuleLine, verb_lines};
    use super::*;
    use crate::firewall::xtables::save::Ruleset;

    const MINUTE: Duration = Duration::from_secs(60);

    fn hole(port: u16, land: &str, as_source: Option<&str>, mark: u32) -> Pinhole {
        Pinhole {
            from: "192.0.2.7".parse().unwrap(),
            to: SocketAddr::new("203.0.113.1".parse().unwrap(), port),
            land: land.parse().unwrap(),
            as_source: as_source.map(|ip| ip.parse().unwrap()),
            mark,
        }
    }

    fn lines(hole: &Pinhole, until: Option<DateStop>, serial: u64) -> Vec<RuleLine> {
        let limited = false;
        wording(hole).rules(Mark::DEFAULT, Conditions { until, limited }, serial)
    }

    fn read(lines: &[RuleLine]) -> (Vec<Leftover>, usize) {
        let text = format!("*nat\n{}COMMIT\n", verb_lines("-A", lines));
        let set = Ruleset::parse(&text);
        of_table(&set.tables[0], Mark::DEFAULT, MINUTE)
    }

    fn cases() -> [Pinhole; 3] {
        [
            hole(4000, "10.0.0.2:5000", Some("10.0.0.1"), 0x11),
            hole(4001, "10.0.0.2:5000", None, 0),
            hole(4002, "203.0.113.1:4002", None, 0),
        ]
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let until = DateStop::after(MINUTE / 2);
        for (until, limited) in [(None, false), (until, false), (until, true)] {
            let conditions = Conditions { until, limited };
            let all = (1..).zip(cases());
            let all: Vec<_> = all
                .flat_map(|(n, hole)| wording(&hole).rules(Mark::DEFAULT, conditions, n))
                .collect();
            let (found, strange) = read(&all);
            assert_eq!(strange, 0);
            let longest = until.map_or(MINUTE, |_| MINUTE / 2 + Duration::from_secs(1));
            assert!(found.iter().all(|one| one.left <= longest));
            assert!(found.iter().all(|one| one.conditions == conditions));
            let found: Vec<_> = found.into_iter().map(|one| one.hole).collect();
            assert_eq!(found, cases());
        }
    }

    #[test]
    fn what_is_incomplete_over_or_replaced_is_dropped() {
        for hole in cases() {
            let all = lines(&hole, None, 1);
            for missing in 0..all.len() {
                let mut some = all.clone();
                some.remove(missing);
                let found = read(&some);
                assert!(found.0.is_empty() || found.0[0].hole != hole, "{some:?}");
            }
            let over = lines(&hole, "2026-01-02T03:04:05".parse().ok(), 1);
            assert_eq!(read(&over), (vec![], 0));
        }
        let (new, old) = (hole(4000, "10.0.0.2:2", None, 0), &cases()[0]);
        // Numbers of two processes don't say which is the later one.
        for (of_old, of_new) in [(1, 2), (2, 1)] {
            let both = [lines(&new, None, of_new), lines(old, None, of_old)].concat();
            let (found, strange) = read(&both);
            assert_eq!((found.len(), strange), (1, 0));
            assert_eq!(found[0].hole, new);
        }
    }

    #[test]
    fn rules_of_another_mark_are_strange() {
        let all =
            wording(&cases()[1]).rules(Mark::new(0x2000_0000).unwrap(), Conditions::default(), 1);
        assert_eq!(read(&all), (vec![], 1));
    }
}
