//! Puts the chains into table `nat`, with the pinholes of an earlier process, finds out what the kernel can
//! do there, and looks whether all is in place.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::leftover::Leftover;
use super::lines::{self, probe, rules};
use super::moulds::{Common, Moulds};
use super::open::HoleKey;
use super::{Iptables, NatTable, wording};
use crate::firewall::host::{holds, missing};
use crate::firewall::names::{RANGE_CHAINS, TAG};
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::lasting::LastingTool;
use crate::firewall::xtables::save::{Rule, Ruleset, Table};
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{At, PINHOLE_CHAINS, RulesError, flavours, is_ours, ours};
use crate::net::Family;
use crate::pinholes::Pinhole;
use crate::pinholes::backend::BackendError;

/// What should be ours in a table.
pub(super) struct Expected {
    at: At,
    wanted: Table,
    /// Rules that are being removed: some may be there, some not.
    closing: Vec<Rule>,
}

impl Expected {
    fn is_in(&self, snapshot: &Snapshot) -> bool {
        let At {
            family,
            flavour,
            table,
        } = &self.at;
        let current = snapshot.table(*family, *flavour, table);
        let is_there = |rule: &&Rule| current.is_some_and(|table| holds(table, rule));
        let mut wanted = self.wanted.clone();
        wanted
            .rules
            .extend(self.closing.iter().filter(is_there).cloned());
        missing(&self.at, current, &wanted).is_empty()
    }
}

/// Whether the tables hold what they should; false if there should be none.
pub(super) fn are_whole(expected: &[Expected], tools: &Tools) -> Result<bool, RulesError> {
    if expected.is_empty() {
        return Ok(false);
    }
    let snapshot = Snapshot::take(tools)?;
    Ok(expected.iter().all(|one| one.is_in(&snapshot)))
}

impl Iptables {
    /// What [`Backend::install`] makes.
    fn chains(&self) -> Table {
        chains(self.range.is_some())
    }

    /// Installs all, or nothing.
    pub(super) fn install_with(
        &mut self,
        leftover: impl FnMut(&Snapshot, Family) -> Vec<Leftover>,
    ) -> Result<Vec<(Pinhole, Duration)>, BackendError> {
        self.forget();
        self.install_all(leftover).map_err(|e| {
            self.forget();
            if let Err(again) = self.clear_all() {
                log::warn!("rules that could not be removed again: {again}");
            }
            e.into()
        })
    }

    /// Makes the chains, with the rules of pinholes that `leftover` finds in them from the start.
    /// Returns these pinholes, with the time that each has left.
    fn install_all(
        &mut self,
        mut leftover: impl FnMut(&Snapshot, Family) -> Vec<Leftover>,
    ) -> Result<Vec<(Pinhole, Duration)>, RulesError> {
        let snapshot = self.host.snapshot()?;
        let mut adopted = Vec::new();
        let users = snapshot.choose(is_ours).flavour;
        let wanted = self.chains();
        let mut planned = Vec::new();
        for family in Family::ALL.into_iter().filter(|f| snapshot.has(*f)) {
            planned.extend(
                flavours(&snapshot, users, family, "nat")
                    .first()
                    .map(|flavour| At {
                        flavour: *flavour,
                        family,
                        table: "nat".into(),
                    }),
            );
        }
        self.clear(&snapshot, &planned)?;
        for at in planned {
            if snapshot.is_hidden(at.family, at.flavour, "nat") {
                let why = format!("{at}: it holds rules written for nft: use --backend nft");
                if at.family == Family::V4 {
                    return Err(RulesError::Input(why));
                }
                log::info!("no IPv6 pinholes: {why}");
                continue;
            }
            let holes = leftover(&snapshot, at.family);
            match self.fill(&at, &snapshot, &wanted, holes) {
                Ok(holes) => {
                    adopted.extend(holes);
                    let table = self.probed(&at)?;
                    self.learn(&table);
                    self.tables.push(table);
                }
                // Many kernels have IPv6 without NAT for it.
                Err(e) if at.family == Family::V6 => log::info!("no IPv6 pinholes: {e}"),
                Err(e) => return Err(e),
            }
        }
        Ok(adopted)
    }

    /// Makes the chains of a table and the rules of pinholes in them, in one commit. Returns the
    /// pinholes, unless their rules were refused.
    fn fill(
        &mut self,
        at: &At,
        snapshot: &Snapshot,
        chains: &Table,
        holes: Vec<Leftover>,
    ) -> Result<Vec<(Pinhole, Duration)>, RulesError> {
        let current = snapshot.table(at.family, at.flavour, "nat");
        let mut open = Vec::new();
        let mut lines = Vec::new();
        for one in holes {
            self.serial = self.serial.wrapping_add(1);
            let rules = wording(&one.hole).rules(self.mark, one.conditions, self.serial);
            let Leftover { hole, left, .. } = one;
            lines.push((hole.key(), rules));
            open.push((hole, left));
        }
        if !open.is_empty() {
            let mut wanted = chains.clone();
            wanted
                .rules
                .extend(rules(lines.iter().flat_map(|(_, lines)| lines)));
            match self.host.replace(at, current, &wanted) {
                Ok(()) => {
                    self.pinholes.extend(lines);
                    return Ok(open);
                }
                Err(e) => {
                    let lost = open.len();
                    log::warn!("{lost} pinholes of an earlier ftpalg are dropped: {e}");
                }
            }
        }
        self.host.replace(at, current, chains)?;
        Ok(Vec::new())
    }

    /// The table with what the kernel can do there.
    fn probed(&self, at: &At) -> Result<NatTable, RulesError> {
        let At {
            family, flavour, ..
        } = *at;
        let time = "-m time --datestop 2037-01-01T00:00:00";
        let limit = match flavour {
            Flavour::Nft => lines::LIMIT,
            // See the comment at the top.
            Flavour::Legacy => "",
        };
        let both = self.has(at, &format!("{time} {limit}"));
        let limited = !limit.is_empty();
        Ok(NatTable {
            family,
            flavour,
            timed: both || self.has(at, time),
            limited: limited && (both || self.has(at, limit)),
            tool: Arc::new(Mutex::new(LastingTool::new(
                self.host.tool(family, flavour)?.clone(),
            ))),
            handle: Arc::default(),
        })
    }

    /// Whether the kernel has some matches: tries them in a chain that is removed again.
    fn has(&self, at: &At, matches: &str) -> bool {
        let text = probe([matches]).concat();
        self.host.restore(at.family, at.flavour, &text).is_ok()
    }

    /// Learns how rules are added over netlink, where they can be.
    fn learn(&mut self, table: &NatTable) {
        if table.flavour == Flavour::Nft {
            let restore = |text: &str| self.host.restore(table.family, table.flavour, text);
            let common = Common {
                family: table.family,
                mark: self.mark,
                timed: table.timed,
                limited: table.limited,
            };
            let moulds = Moulds::learn(common, Arc::clone(&table.handle), restore);
            self.moulds
                .extend(moulds.map(|moulds| (table.family, moulds)));
        }
    }

    /// Removes what is ours from all `nat` tables.
    pub(super) fn clear_all(&mut self) -> Result<(), RulesError> {
        let snapshot = self.host.snapshot()?;
        self.clear(&snapshot, &[])
    }

    /// Removes what is ours from all `nat` tables except these.
    fn clear(&mut self, snapshot: &Snapshot, but: &[At]) -> Result<(), RulesError> {
        let mut failed = self.host.out_of_reach(snapshot, &["nat"]).err();
        for (at, table) in ours(snapshot, &["nat"]) {
            if !but.contains(&at)
                && let Err(e) = self.host.clear(&at, table)
            {
                failed.get_or_insert(e);
            }
        }
        if but.is_empty() {
            self.host.clear_made(snapshot, &["nat"]);
        }
        failed.map_or(Ok(()), Err)
    }

    /// What should be in each table.
    pub(super) fn expected(&self) -> Vec<Expected> {
        let of_table = |table: &NatTable| {
            let family = table.family;
            let mut wanted = self.chains();
            let open = self.pinholes.lines(family).chain(self.ranges.lines(family));
            wanted.rules.extend(rules(open));
            let closing = self.closing.iter();
            let closing = closing
                .filter(|(key, _)| key.family() == family)
                .flat_map(|(_, rules)| &rules.lines);
            Expected {
                at: table.at(),
                wanted,
                closing: rules(closing),
            }
        };
        self.tables.iter().map(of_table).collect()
    }
}

/// The chains without pinholes, and the jumps to them.
pub(super) fn chains(with_ranges: bool) -> Table {
    let mut text = "*nat\n".to_owned();
    if with_ranges {
        // Each jump is inserted at the top. So the pinholes' chains, inserted last, come first.
        text += &declared(RANGE_CHAINS, "ranges");
    }
    text += &declared(PINHOLE_CHAINS, "pinholes");
    let set = Ruleset::parse(&text);
    set.tables.into_iter().next().unwrap_or_default()
}

/// Declares two chains and jumps to them.
fn declared([pre, post]: [&str; 2], of: &str) -> String {
    let jump =
        |from: &str, to: &str| format!("-I {from} -m comment --comment \"{TAG}{of}\" -j {to}\n");
    [
        format!(":{pre} - [0:0]\n:{post} - [0:0]\n"),
        jump("PREROUTING", pre),
        jump("OUTPUT", pre),
        jump("INPUT", post),
        jump("POSTROUTING", post),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chains_are_tagged() {
        let table = chains(false);
        assert_eq!((table.chains.len(), table.rules.len()), (2, 4));
        assert!(table.rules.iter().all(is_ours));
    }
}
