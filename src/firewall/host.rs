//! Puts our part of a table into place and takes it out, in one commit, leaving the rest as it is.
//!
//! iptables-nft creates the table and the builtin chain that a rule needs. The comment of the jump
//! in that chain says which of them it created for us: `ftpalg:egress new-table new-chain`. So
//! they can be removed again, even by another process after this one was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::io;

use super::names::{CHAIN_PREFIX, NEW_CHAIN, NEW_TABLE, TAG, is_our_chain, is_ours};
use super::{RulesError, tables};
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::save::{Position, Rule, Table};
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::tools::{Tool, Tools};
use crate::net::Family;

/// One table of one family and flavour.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The flavour.
    pub flavour: Flavour,
    /// The family.
    pub family: Family,
    /// The table's name.
    pub table: String,
}

impl At {
    pub(crate) fn new(flavour: Flavour, family: Family, table: &str) -> Self {
        let table = table.to_owned();
        Self {
            flavour,
            family,
            table,
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (program, flavour) = (self.family.program(), self.flavour);
        write!(f, "{program}-{flavour} {}", self.table)
    }
}

/// The host's tools.
#[derive(Debug)]
pub(crate) struct Host {
    tools: Tools,
    /// What was made for our rules, by handle: a flush removes the comments that say so.
    made: BTreeMap<At, Handles>,
}

/// The handles of a table and of some of its chains.
#[derive(Debug, Default)]
struct Handles {
    table: Option<u64>,
    chains: BTreeSet<u64>,
}

impl Host {
    pub(crate) fn new(tools: Tools) -> Self {
        Self {
            tools,
            made: BTreeMap::new(),
        }
    }

    pub(crate) fn tools(&self) -> &Tools {
        &self.tools
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, RulesError> {
        Ok(Snapshot::take(&self.tools)?)
    }

    /// The tool for a family and flavour.
    pub(crate) fn tool(&self, family: Family, flavour: Flavour) -> Result<&Tool, RulesError> {
        self.tools
            .tool(family, flavour)
            .ok_or_else(|| RulesError::no_tool(family, flavour))
    }

    /// Loads a text as it is.
    pub(crate) fn restore(
        &self,
        family: Family,
        flavour: Flavour,
        text: &str,
    ) -> Result<(), RulesError> {
        Ok(self.tool(family, flavour)?.restore(text)?)
    }

    /// Replaces all that is ours in a table by `wanted`, in one commit.
    pub(crate) fn replace(
        &mut self,
        at: &At,
        current: Option<&Table>,
        wanted: &Table,
    ) -> Result<(), RulesError> {
        let mut made = Made::by_tags(current);
        if at.flavour == Flavour::Nft {
            self.note_missing(at, wanted, &mut made)?;
        }
        let text = commit(&at.table, current, Some(wanted), &made);
        log::debug!("{at}:\n{text}");
        let done = self.restore(at.family, at.flavour, &text);
        if done.is_ok() && at.flavour == Flavour::Nft {
            self.remember(at, &made);
        }
        let kept: Vec<&str> = match &done {
            Ok(()) => wanted.rules.iter().map(|r| r.chain.as_str()).collect(),
            // Nothing was committed, but the tool may have created the table before it failed.
            Err(_) if current.is_some_and(|t| t.rules.iter().any(is_ours)) => return done,
            Err(_) => Vec::new(),
        };
        made.chains.retain(|chain| !kept.contains(&chain.as_str()));
        self.tidy(at, current, &made);
        done
    }

    /// The text that [`replace`](Self::replace) would load.
    pub(crate) fn preview(
        &mut self,
        at: &At,
        current: Option<&Table>,
        wanted: &Table,
    ) -> Result<String, RulesError> {
        let mut made = Made::by_tags(current);
        if at.flavour == Flavour::Nft {
            self.note_missing(at, wanted, &mut made)?;
        }
        Ok(commit(&at.table, current, Some(wanted), &made))
    }

    /// Removes all that is ours from a table, in one commit, and what was made for it.
    pub(crate) fn clear(&mut self, at: &At, current: &Table) -> Result<(), RulesError> {
        let mut made = Made::by_tags(Some(current));
        self.recall(at, &mut made);
        let text = commit(&at.table, Some(current), None, &made);
        log::debug!("{at}:\n{text}");
        self.restore(at.family, at.flavour, &text)?;
        self.tidy(at, Some(current), &made);
        self.made.remove(at);
        Ok(())
    }

    /// Removes what was made for our rules where somebody else has removed the rules themselves.
    pub(crate) fn clear_made(&mut self, snapshot: &Snapshot, tables: &[&str]) {
        let remembered = self.made.keys().cloned().collect::<Vec<_>>();
        for at in remembered {
            if !tables.contains(&at.table.as_str()) {
                continue;
            }
            let mut made = Made::default();
            self.recall(&at, &mut made);
            let current = snapshot.table(at.family, at.flavour, &at.table);
            self.tidy(&at, current, &made);
            self.made.remove(&at);
        }
    }

    /// Looks for chains of ours in tables that the tools can't show any more, since somebody has
    /// added rules written for nft.
    pub(crate) fn out_of_reach(
        &mut self,
        snapshot: &Snapshot,
        tables: &[&str],
    ) -> Result<(), RulesError> {
        for view in &snapshot.views {
            let hidden = view.rules.hidden.iter();
            for table in hidden.filter(|table| tables.contains(&table.as_str())) {
                let chains =
                    kernel_chains(&At::new(view.flavour, view.family, table)).unwrap_or_default();
                if chains.iter().any(|(c, _)| is_our_chain(c)) {
                    let program = view.family.program();
                    return Err(RulesError::Input(format!(
                        "{program}-{} can't show table {table}, since it holds rules written for nft: remove \
                         those with the comment {TAG} and the chains {CHAIN_PREFIX}-* with nft",
                        view.flavour
                    )));
                }
            }
        }
        Ok(())
    }

    /// Notes which of the table and chains that `wanted` needs are not there yet.
    fn note_missing(&mut self, at: &At, wanted: &Table, made: &mut Made) -> Result<(), RulesError> {
        let failed = || RulesError::system("can't list the kernel's tables");
        self.recall(at, made);
        let mut chains = Vec::new();
        match kernel_table(at).map_err(failed())? {
            Some(_) => chains = kernel_chains(at).map_err(failed())?,
            None => made.table = true,
        }
        for rule in wanted.rules.iter().filter(|r| !is_our_chain(&r.chain)) {
            if !chains.iter().any(|(name, _)| *name == rule.chain) {
                made.chains.insert(rule.chain.clone());
            }
        }
        Ok(())
    }

    /// Adds what this process made there earlier, if it still exists.
    fn recall(&mut self, at: &At, made: &mut Made) {
        let Some(handles) = self.made.get(at) else {
            return;
        };
        let table = kernel_table(at).unwrap_or_default();
        made.table |= table.is_some() && table == handles.table;
        let mut chains = kernel_chains(at).unwrap_or_default();
        chains.retain(|(_, handle)| handles.chains.contains(handle));
        made.chains.extend(chains.into_iter().map(|(name, _)| name));
    }

    /// Remembers by handle what was made for our rules.
    fn remember(&mut self, at: &At, made: &Made) {
        let mut handles = Handles::default();
        if made.table {
            handles.table = kernel_table(at).unwrap_or_default();
        }
        if !made.chains.is_empty() {
            let mut chains = kernel_chains(at).unwrap_or_default();
            chains.retain(|(name, _)| made.chains.contains(name));
            handles.chains = chains.into_iter().map(|(_, handle)| handle).collect();
        }
        self.made.insert(at.clone(), handles);
    }

    /// Deletes the chains and the table that were made for our rules, if nobody else uses them.
    fn tidy(&mut self, at: &At, before: Option<&Table>, made: &Made) {
        if at.flavour != Flavour::Nft {
            return;
        }
        for chain in &made.chains {
            let used = before.is_some_and(|table| {
                table.rules_of(chain).any(|r| !is_ours(r))
                    || table
                        .chain(chain)
                        .is_some_and(|c| c.policy.as_deref() != Some("ACCEPT"))
            });
            if used {
                continue;
            }
            // The kernel refuses if somebody has added a rule meanwhile: then the chain is theirs.
            if let Err(e) = tables::delete_chain(at.family.number(), &at.table, chain) {
                log::debug!("{at}: chain {chain} stays: {e}");
            }
        }
        if !made.table {
            return;
        }
        let empty = kernel_chains(at).is_ok_and(|chains| chains.is_empty());
        if empty && let Err(e) = tables::delete_table(at.family.number(), &at.table) {
            log::debug!("{at}: the table stays: {e}");
        }
    }
}

/// The handle of a table in nf_tables, if it is there. `iptables-nft-save` doesn't tell a builtin
/// chain that is there from one that isn't, and can't delete a table.
fn kernel_table(at: &At) -> io::Result<Option<u64>> {
    let mut all = tables::tables()?.into_iter();
    let found = all.find(|table| table.family == at.family.number() && table.name == at.table);
    Ok(found.map(|table| table.handle))
}

/// The names and handles of a table's chains.
fn kernel_chains(at: &At) -> io::Result<Vec<(String, u64)>> {
    let mut all = tables::chains()?;
    all.retain(|chain| chain.family == at.family.number() && chain.table == at.table);
    Ok(all.into_iter().map(|c| (c.name, c.handle)).collect())
}

/// What was not there before our rules came.
#[derive(Debug, Default)]
struct Made {
    table: bool,
    chains: BTreeSet<String>,
}

impl Made {
    /// What the comments of our own rules say.
    fn by_tags(table: Option<&Table>) -> Self {
        let mut made = Self::default();
        for rule in table.map_or(&[][..], |t| &t.rules) {
            let Some(tag) = rule.comment().filter(|c| c.starts_with(TAG)) else {
                continue;
            };
            for word in tag.split(' ').skip(1) {
                made.table |= word == NEW_TABLE;
                if word == NEW_CHAIN {
                    made.chains.insert(rule.chain.clone());
                }
            }
        }
        made
    }

    /// The spec of a jump, its comment telling what was made for it.
    fn tagged(&self, rule: &Rule) -> String {
        let Some(comment) = rule.comment().filter(|_| !is_our_chain(&rule.chain)) else {
            return rule.spec.clone();
        };
        let mut tag = comment.to_owned();
        if self.table {
            tag += &format!(" {NEW_TABLE}");
        }
        if self.chains.contains(&rule.chain) {
            tag += &format!(" {NEW_CHAIN}");
        }
        rule.spec
            .replacen(&format!("\"{comment}\""), &format!("\"{tag}\""), 1)
    }
}

/// The text that turns what is ours in `current` into `wanted`, or into nothing.
fn commit(name: &str, current: Option<&Table>, wanted: Option<&Table>, made: &Made) -> String {
    let mut out = format!("*{name}\n");
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a String doesn't fail.
        let _ = out.write_fmt(text);
        out.push('\n');
    };
    // Declaring a chain makes it, or empties it.
    for chain in wanted.map_or(&[][..], |t| &t.chains) {
        line(format_args!(":{} - [0:0]", chain.name));
    }
    if let Some(current) = current {
        for rule in &current.rules {
            if is_ours(rule) && !is_our_chain(&rule.chain) {
                line(format_args!("-D {} {}", rule.chain, rule.spec));
            }
        }
        let unwanted = |name: &str| wanted.is_none_or(|w| w.chain(name).is_none());
        let names = current.chains.iter().map(|chain| &chain.name);
        let old = names.filter(|name| is_our_chain(name) && unwanted(name));
        old.clone().for_each(|name| line(format_args!("-F {name}")));
        old.for_each(|name| line(format_args!("-X {name}")));
    }
    for rule in wanted.map_or(&[][..], |t| &t.rules) {
        let verb = match rule.position {
            Position::Top => "-I",
            Position::End => "-A",
        };
        line(format_args!("{verb} {} {}", rule.chain, made.tagged(rule)));
    }
    line(format_args!("COMMIT"));
    out
}

/// What of `wanted` isn't in `current`, in words; empty if all of it is there.
///
/// The tools write a rule out with more words than it was given (`-m tcp`), never with fewer.
pub(crate) fn missing(at: &At, current: Option<&Table>, wanted: &Table) -> Vec<String> {
    let Some(current) = current else {
        return vec![format!("{at}: the table is gone")];
    };
    let mut missing = Vec::new();
    for chain in &wanted.chains {
        let count = |t: &Table| t.rules_of(&chain.name).count();
        if current.chain(&chain.name).is_none() {
            missing.push(format!("{at}: chain {} is gone", chain.name));
        } else if count(current) != count(wanted) {
            missing.push(format!("{at}: chain {} was changed", chain.name));
        }
    }
    for rule in &wanted.rules {
        if !holds(current, rule) {
            missing.push(format!("{at}: rule is gone: {} {}", rule.chain, rule.spec));
        }
    }
    missing
}

/// Whether a table holds a rule, perhaps written out with more words.
pub(crate) fn holds(table: &Table, rule: &Rule) -> bool {
    table.rules_of(&rule.chain).any(|r| covers(r, rule))
}

/// Whether all words of `wanted` are in `rule`, in order.
fn covers(rule: &Rule, wanted: &Rule) -> bool {
    let mut words = rule.words.iter();
    wanted
        .words
        .iter()
        .all(|want| words.any(|w| w == want || is_tag_of(w, want)))
}

fn is_tag_of(word: &str, wanted: &str) -> bool {
    wanted.starts_with(TAG)
        && word
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.starts_with(' '))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::xtables::save::Ruleset;

    fn table(text: &str) -> Table {
        let set = Ruleset::parse(text);
        assert_eq!(set.skipped, 0);
        set.tables.into_iter().next().unwrap()
    }

    const WANTED: &str = r#"*raw
:FTPALG-EGRESS - [0:0]
-A FTPALG-EGRESS -p tcp --dport 21 -m comment --comment "ftpalg:egress" -j NFQUEUE --queue-num 0
-A PREROUTING -i eth1 -m comment --comment "ftpalg:egress" -j FTPALG-EGRESS
-I OUTPUT -m comment --comment "ftpalg:egress" -j FTPALG-EGRESS
COMMIT
"#;

    const LEFTOVER: &str = r#"*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:FTPALG-EGRESS - [0:0]
:FTPALG-OLD - [0:0]
-A PREROUTING -p udp -j NOTRACK
-A PREROUTING -i eth0 -m comment --comment "ftpalg:egress new-table new-chain" -j FTPALG-EGRESS
-A OUTPUT -j FTPALG-OLD
-A FTPALG-EGRESS -p tcp -m tcp --dport 21 -m comment --comment "ftpalg:egress" -j NFQUEUE --queue-num 0
COMMIT
"#;

    #[test]
    fn the_first_install() {
        let made = Made {
            table: true,
            chains: ["OUTPUT".to_owned()].into(),
        };
        let text = commit("raw", None, Some(&table(WANTED)), &made);
        assert_eq!(
            text,
            r#"*raw
:FTPALG-EGRESS - [0:0]
-A FTPALG-EGRESS -p tcp --dport 21 -m comment --comment "ftpalg:egress" -j NFQUEUE --queue-num 0
-A PREROUTING -i eth1 -m comment --comment "ftpalg:egress new-table" -j FTPALG-EGRESS
-I OUTPUT -m comment --comment "ftpalg:egress new-table new-chain" -j FTPALG-EGRESS
COMMIT
"#
        );
    }

    #[test]
    fn what_a_killed_daemon_left_is_replaced_in_one_commit() {
        let leftover = table(LEFTOVER);
        let made = Made::by_tags(Some(&leftover));
        assert!(made.table);
        assert_eq!(made.chains.iter().collect::<Vec<_>>(), ["PREROUTING"]);
        let text = commit("raw", Some(&leftover), Some(&table(WANTED)), &made);
        assert_eq!(
            text,
            r#"*raw
:FTPALG-EGRESS - [0:0]
-D PREROUTING -i eth0 -m comment --comment "ftpalg:egress new-table new-chain" -j FTPALG-EGRESS
-D OUTPUT -j FTPALG-OLD
-F FTPALG-OLD
-X FTPALG-OLD
-A FTPALG-EGRESS -p tcp --dport 21 -m comment --comment "ftpalg:egress" -j NFQUEUE --queue-num 0
-A PREROUTING -i eth1 -m comment --comment "ftpalg:egress new-table new-chain" -j FTPALG-EGRESS
-I OUTPUT -m comment --comment "ftpalg:egress new-table" -j FTPALG-EGRESS
COMMIT
"#
        );
    }

    #[test]
    fn removal_takes_ours_and_nothing_else() {
        let leftover = table(LEFTOVER);
        let made = Made::by_tags(Some(&leftover));
        assert_eq!(
            commit("raw", Some(&leftover), None, &made),
            r#"*raw
-D PREROUTING -i eth0 -m comment --comment "ftpalg:egress new-table new-chain" -j FTPALG-EGRESS
-D OUTPUT -j FTPALG-OLD
-F FTPALG-EGRESS
-F FTPALG-OLD
-X FTPALG-EGRESS
-X FTPALG-OLD
COMMIT
"#
        );
    }

    #[test]
    fn what_is_missing() {
        let at = At::new(Flavour::Nft, Family::V4, "raw");
        let wanted = table(WANTED);
        let saved = |text: &str| missing(&at, Some(&table(text)), &wanted);
        let whole = WANTED.replace("--dport", "-m tcp --dport").replace(
            "\"ftpalg:egress\" -j FTP",
            "\"ftpalg:egress new-chain\" -j FTP",
        );
        assert_eq!(saved(&whole), [""; 0]);
        assert_eq!(missing(&at, None, &wanted).len(), 1);
        for gone in ["-A PREROUTING", "-I OUTPUT", "-A FTPALG-EGRESS", ":FTPALG"] {
            let rest: String = whole
                .lines()
                .filter(|l| !l.starts_with(gone))
                .map(|l| format!("{l}\n"))
                .collect();
            assert!(!saved(&rest).is_empty(), "{gone}");
        }
        assert!(!saved(&whole.replace("--queue-num 0", "--queue-num 1")).is_empty());
        assert!(!saved(&whole.replace("eth1", "eth2")).is_empty());
    }
}
