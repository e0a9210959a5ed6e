//! What of ftpalg's is in the kernel while no daemon runs.

use super::names::PINHOLE_TABLE;
use super::xtables::save::Table;
use super::xtables::snapshot::Snapshot;
use super::{Rules, RulesError, is_our_chain, is_ours, ours, own_table, stray, tables, xtables};

/// What of ours is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Rules in iptables, of both flavours and families, and steering rules in tables of our own.
    pub rules: usize,
    /// Tables of the nft backend.
    pub tables: usize,
    /// What rules of ours do with control packets that nobody looks at.
    pub control: Option<Unread>,
}

/// What becomes of control packets that are sent to a queue without a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// They are dropped: control connections hang.
    Dropped,
    /// They pass (`--fail open`).
    Passed,
}

impl Left {
    /// Whether nothing is there.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Rules {
    /// What of ours is there, whoever put it there. Changes nothing.
    ///
    /// # Errors
    /// If it couldn't be found out.
    pub fn left(&self) -> Result<Left, RulesError> {
        Self::left_of(&self.snapshot()?)
    }

    pub(super) fn left_of(snapshot: &Snapshot) -> Result<Left, RulesError> {
        let failed = || RulesError::system("can't list the nft rules");
        let mut left = Left::default();
        for (_, table) in ours(snapshot, &xtables::TABLES) {
            left.add(table);
        }
        let stray = stray::find(snapshot, &xtables::TABLES).map_err(failed())?;
        left.rules += stray.rules;
        left.unread(stray.control);
        if tables::available() {
            let all = tables::tables();
            let all = all.map_err(RulesError::system("can't list the nft tables"))?;
            left.tables = all.iter().filter(|t| t.name == PINHOLE_TABLE).count();
        }
        let own = own_table::in_own_tables().map_err(failed())?;
        left.rules += own.rules;
        left.unread(own.control);
        Ok(left)
    }
}

impl Left {
    /// What drops wins.
    fn unread(&mut self, other: Option<Unread>) {
        self.control = match (self.control, other) {
            (_, Some(Unread::Dropped)) => other,
            (one, other) => one.or(other),
        };
    }

    fn add(&mut self, table: &Table) {
        self.rules += table.rules.iter().filter(|rule| is_ours(rule)).count();
        let is_reached = |chain: &str| {
            let mut jumps = table.rules.iter().filter(|rule| !is_our_chain(&rule.chain));
            jumps.any(|jump| jump.target() == Some(chain))
        };
        for rule in table.rules.iter().filter(|rule| is_ours(rule)) {
            let has = |word: &str| rule.words.iter().any(|w| w == word);
            // The rule for connections with a sequence delta alone has a match of their mark. It drops
            // with `--fail open`, too.
            if rule.target() != Some("NFQUEUE") || has("connmark") || !is_reached(&rule.chain) {
                continue;
            }
            if !has("--queue-bypass") {
                self.control = Some(Unread::Dropped);
            } else {
                self.control.get_or_insert(Unread::Passed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::xtables::save::Ruleset;
    use crate::firewall::{Steering, print};
    use crate::net::Family;

    fn left(text: &str) -> Left {
        let mut left = Left::default();
        let set = Ruleset::parse(text);
        set.tables.iter().for_each(|table| left.add(table));
        left
    }

    #[test]
    fn what_the_rules_do_without_a_reader() {
        let steering = |fail_open| Steering {
            local: true,
            fail_open,
            ..Steering::default()
        };
        let text = print(&steering(false), Family::V4).unwrap();
        let closed = left(&text);
        assert!(closed.rules > 4, "{closed:?}");
        assert_eq!(closed.control, Some(Unread::Dropped));
        let open = left(&print(&steering(true), Family::V4).unwrap());
        assert_eq!(open.control, Some(Unread::Passed));
        // Chains that nothing leads to drop nothing.
        let unreached = text.lines().filter(|line| !line.contains("-j FTPALG"));
        let unreached = left(&unreached.collect::<Vec<_>>().join("\n"));
        assert!(
            unreached.rules > 0 && unreached.control.is_none(),
            "{unreached:?}"
        );
        assert!(left("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n").is_nothing());
    }
}
