//! Holes for ranges of ports, in chains of their own that come right after those of the pinholes.

use std::time::Duration;

use super::{Iptables, Line, Mark, Plane, deadline, transaction, verb_lines};
use crate::nat::backend::BackendError;
use crate::nat::pinhole::RangeHole;
use crate::nat::ports::PortRange;
use crate::nat::xtables::Family;

const PRE: &str = "FTPALG-RANGE-PRE";
const POST: &str = "FTPALG-RANGE-POST";

/// The chains, declared and jumped to.
const CHAINS: &str = r#"*nat
:FTPALG-RANGE-PRE - [0:0]
:FTPALG-RANGE-POST - [0:0]
-I PREROUTING -m comment --comment "ftpalg:ranges" -j FTPALG-RANGE-PRE
-I OUTPUT -m comment --comment "ftpalg:ranges" -j FTPALG-RANGE-PRE
-I INPUT -m comment --comment "ftpalg:ranges" -j FTPALG-RANGE-POST
-I POSTROUTING -m comment --comment "ftpalg:ranges" -j FTPALG-RANGE-POST
"#;

/// The rules that the backend installs with a range, given those without.
pub(super) fn with_range(pinholes: &str) -> String {
    pinholes.replacen("*nat\n", CHAINS, 1)
}

impl Iptables {
    /// Puts a range's rules in place of those that it has, or takes them out.
    pub(super) fn change_range(
        &mut self,
        hole: &RangeHole,
        timeout: Option<Duration>,
    ) -> Result<(), BackendError> {
        let plane = self.plane(Family::of(hole.from))?;
        let key = hole.key();
        let new = match (timeout, self.range) {
            (None, _) => Vec::new(),
            (Some(timeout), Some(range)) => {
                self.serial = self.serial.wrapping_add(1);
                let until = if plane.timed { deadline(timeout) } else { None };
                rules_of(hole, range, self.mark, until.as_deref(), self.serial)
            }
            (Some(_), None) => {
                return Err(BackendError::Unsupported(
                    "a hole for a range needs a range".into(),
                ));
            }
        };
        let old = self.ranges.remove(&key).unwrap_or_default();
        if old.is_empty() && new.is_empty() {
            return Ok(());
        }
        if !new.is_empty() {
            self.ranges.insert(key, new.clone());
        }
        let mut done = self.restore(plane, &transaction(&old, &new, false));
        if done.is_err() && !old.is_empty() {
            // Somebody else removed some of them meanwhile.
            done = self.refill_ranges(plane);
            if done.is_err() && self.is_gone(plane) {
                self.ranges
                    .retain(|key, _| Family::of(key.from) != plane.family);
                return if new.is_empty() { Ok(()) } else { done };
            }
        }
        if done.is_err() {
            self.ranges.remove(&key);
            if !old.is_empty() {
                self.ranges.insert(key, old);
            }
        }
        done
    }

    /// Makes our chains hold exactly the ranges that are open. Fails if the chains are gone.
    fn refill_ranges(&self, plane: Plane) -> Result<(), BackendError> {
        let lines: Vec<Line> = self
            .ranges
            .iter()
            .filter(|(key, _)| Family::of(key.from) == plane.family)
            .flat_map(|(_, lines)| lines.iter().cloned())
            .collect();
        let lines = verb_lines("-A", &lines);
        self.restore(
            plane,
            &format!("*nat\n-F {PRE}\n-F {POST}\n{lines}COMMIT\n"),
        )
    }
}

/// The rules of a range, in the words and the order in which the tools save them.
fn rules_of(
    hole: &RangeHole,
    range: PortRange,
    mark: Mark,
    until: Option<&str>,
    serial: u64,
) -> Vec<Line> {
    let bit = mark.bit();
    let RangeHole { from, to, land, .. } = hole;
    let bits = if from.is_ipv4() { 32 } else { 128 };
    let ports = match (range.first(), range.last()) {
        (one, other) if one == other => one.to_string(),
        (first, last) => format!("{first}:{last}"),
    };
    let until = until.map_or_else(String::new, |t| format!(" -m time --datestop {t}"));
    let tag = format!("-m comment --comment \"ftpalg:range {serial}\"");
    let packet =
        format!("-s {from}/{bits} -d {to}/{bits} -p tcp -m tcp --dport {ports}{until} {tag}");
    // A hole that translates nothing still keeps the user's own translations away.
    let deliver = if land == to {
        "-j ACCEPT".to_owned()
    } else {
        format!("-j DNAT --to-destination {land}")
    };
    let mut lines = vec![
        (
            PRE,
            format!("{packet} -j CONNMARK --set-xmark {bit:#x}/{bit:#x}"),
        ),
        (PRE, format!("{packet} {deliver}")),
    ];
    if let Some(source) = hole.as_source {
        lines.push((
            POST,
            format!(
                "-d {land}/{bits} -p tcp -m connmark --mark {bit:#x}/{bit:#x} -m conntrack --ctorigsrc {from} \
                 --ctorigdst {to} --ctorigdstport {ports} {tag} -j SNAT --to-source {source}"
            ),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::backend::iptables::chains;

    #[test]
    fn a_translated_range() {
        let hole = RangeHole {
            from: "192.0.2.7".parse().unwrap(),
            to: "203.0.113.1".parse().unwrap(),
            land: "10.0.0.2".parse().unwrap(),
            as_source: Some("10.0.0.1".parse().unwrap()),
        };
        let range = PortRange::new(40000, 40009).unwrap();
        let lines = rules_of(&hole, range, Mark::DEFAULT, None, 7);
        assert_eq!(
            verb_lines("-A", &lines),
            r#"-A FTPALG-RANGE-PRE -s 192.0.2.7/32 -d 203.0.113.1/32 -p tcp -m tcp --dport 40000:40009 -m comment --comment "ftpalg:range 7" -j CONNMARK --set-xmark 0x40000000/0x40000000
-A FTPALG-RANGE-PRE -s 192.0.2.7/32 -d 203.0.113.1/32 -p tcp -m tcp --dport 40000:40009 -m comment --comment "ftpalg:range 7" -j DNAT --to-destination 10.0.0.2
-A FTPALG-RANGE-POST -d 10.0.0.2/32 -p tcp -m connmark --mark 0x40000000/0x40000000 -m conntrack --ctorigsrc 192.0.2.7 --ctorigdst 203.0.113.1 --ctorigdstport 40000:40009 -m comment --comment "ftpalg:range 7" -j SNAT --to-source 10.0.0.1
"#
        );
    }

    #[test]
    fn pinholes_come_before_ranges() {
        let table = chains(&with_range(super::super::CHAINS));
        assert_eq!((table.chains.len(), table.rules.len()), (4, 8));
        let of = |chain: &str| table.rules.iter().rposition(|r| r.spec.contains(chain));
        assert!(of("FTPALG-PRE") > of("FTPALG-RANGE-PRE"), "inserted later");
    }
}
