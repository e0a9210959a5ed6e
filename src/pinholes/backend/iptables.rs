//! The backend over iptables, for hosts without nf_tables: a pinhole is two to five rules in chains of
//! our own.
//!
//! In table `nat`, `PREROUTING` and `OUTPUT` begin with a jump to `FTPALG-PRE`, `POSTROUTING` and
//! `INPUT` with one to `FTPALG-POST`. A pinhole has rules in `FTPALG-PRE` that set marks and
//! translate the destination. If the landing side must see another source, it has one in
//! `FTPALG-POST`. All rules of a pinhole are added or removed in one commit.
//!
//! Rules are added by an `iptables-restore` that is kept running (`LastingTool`).
//!
//! **Opening with iptables-nft.** A pinhole's rules are added over netlink, as the tool would write
//! them (`moulds`).
//!
//! **Closing with iptables-nft.** After a rule was removed, the kernel lets the next one that has a target
//! of iptables wait for an RCU grace period of 10 to 15 ms. So used pinholes are closed together, a
//! quarter of a second later. Meanwhile a limit on the rule that marks the connection keeps others out:
//! without the mark, the next rule doesn't translate. If many are used before that, they are closed
//! earlier, since the kernel validates all other rules of the table with each new one. The rules are
//! removed over netlink, by their handles (`handles`): the tool would compare each with all others.
//!
//! **Opening together.** A commit takes long however many pinholes it opens, so those of several sessions
//! are opened in one ([`Backend::opens_slowly`]). What takes the place of a used one comes last.
//!
//! **With iptables-legacy** each change replaces the whole table, and so sets all limits back. Pinholes
//! are closed at once there, together with those that ended meanwhile.
//!
//! If the kernel has the `time` match, a killed daemon's pinholes end at their deadline. The match
//! goes by the wall clock, in whole seconds. A running daemon closes pinholes by its own clock. The next
//! daemon adopts those that are open: it finds them in the rules (`leftover`).

mod handles;
mod leftover;
mod lines;
mod moulds;
mod open;
mod ranges;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::leftover::Leftover;
use self::lines::{Conditions, DateStop, RuleLine, Wording, probe, rules, transaction};
use self::moulds::{Common, Moulds, Opening};
use self::open::{HoleKey, HoleRules, Nat, Open};
use super::{Backend, BackendError, Closed, ClosingWork, Verification};
use crate::firewall::host::{Host, holds, missing};
use crate::firewall::names::{RANGE_CHAINS, TAG};
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::lasting::LastingTool;
use crate::firewall::xtables::save::{Rule, Ruleset, Table};
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{At, PINHOLE_CHAINS, RulesError, flavours, is_ours, ours, tables};
use crate::net::{Family, Mark, PortRange};
use crate::pinholes::{Pinhole, PinholeKey, RangeHole, RangeKey};

/// How long a used pinhole keeps others out where its rules have a limit.
const HOLDS: Duration = Duration::from_millis(500);

/// How many used pinholes cost less than to close them at once: each adds some 0.6 us to the opening of
/// another one.
const RESTING: usize = 128;

/// How many pinholes are opened together over netlink. More than so many are opened by the tool, in one commit.
const TOGETHER: usize = 64;
/// How many of them are in one commit: a message may be as long as the socket's send buffer, which is 208 KiB,
/// and a pinhole's rules take 3 to 7 KiB.
const IN_ONE_MESSAGE: usize = 16;

/// It isn't known whether rules are there.
fn uncertain(source: io::Error) -> BackendError {
    let what = "can't add the rules of a pinhole";
    BackendError::System { what, source }
}

/// The table `nat` that holds a family's chains.
#[derive(Clone, Debug)]
struct NatTable {
    family: Family,
    flavour: Flavour,
    /// Whether the kernel has the `time` match.
    timed: bool,
    /// Whether a limit keeps others out after the first connection.
    limited: bool,
    /// Shared with the thread that closes pinholes.
    tool: Arc<Mutex<LastingTool>>,
}

impl NatTable {
    fn at(&self) -> At {
        At {
            flavour: self.flavour,
            family: self.family,
            table: "nat".into(),
        }
    }

    /// When the rules of a pinhole match that is open for `timeout` from now.
    fn conditions(&self, timeout: Duration, limited: bool) -> Conditions {
        Conditions {
            until: DateStop::after(timeout).filter(|_| self.timed),
            limited,
        }
    }

    /// Makes changes, in one commit.
    fn restore(&self, text: &str) -> Result<(), BackendError> {
        let mut tool = self.tool.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(tool.restore(text).map_err(RulesError::from)?)
    }
}

/// What should be ours in a table.
struct Expected {
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
fn are_whole(expected: &[Expected], tools: &Tools) -> Result<bool, RulesError> {
    if expected.is_empty() {
        return Ok(false);
    }
    let snapshot = Snapshot::take(tools)?;
    Ok(expected.iter().all(|one| one.is_in(&snapshot)))
}

/// The backend `iptables`.
#[derive(Debug)]
pub struct Iptables {
    host: Host,
    mark: Mark,
    tables: Vec<NatTable>,
    /// Where rules can be added over netlink.
    moulds: BTreeMap<Family, Moulds>,
    pinholes: Open<PinholeKey>,
    /// The number of the last pinhole or range. It is in the rules' comments, so that the right ones are
    /// found to be removed. Each process begins elsewhere: a tool of one that was killed may add a rule
    /// when its successor has begun.
    serial: u64,
    /// The rules that [`Backend::closing`]'s work is removing.
    closing: Vec<(PinholeKey, HoleRules)>,
    range: Option<PortRange>,
    ranges: Open<RangeKey>,
}

impl Iptables {
    /// A backend with these tools; nothing is installed yet.
    #[must_use]
    pub fn new(tools: Tools, mark: Mark) -> Self {
        Self {
            host: Host::new(tools),
            mark,
            tables: Vec::new(),
            moulds: BTreeMap::new(),
            pinholes: Open::new(PINHOLE_CHAINS),
            serial: RandomState::new().build_hasher().finish() >> 32,
            closing: Vec::new(),
            range: None,
            ranges: Open::new(RANGE_CHAINS),
        }
    }

    /// The flavours in use, once installed: IPv4's first.
    #[must_use]
    pub fn flavours(&self) -> Vec<(Family, Flavour)> {
        self.tables.iter().map(|p| (p.family, p.flavour)).collect()
    }

    /// What [`Backend::install`] makes.
    fn chains(&self) -> Table {
        chains(self.range.is_some())
    }

    fn table(&self, family: Family) -> Result<NatTable, BackendError> {
        self.tables
            .iter()
            .find(|p| p.family == family)
            .cloned()
            .ok_or_else(|| {
                let program = family.program();
                BackendError::Unsupported(format!(
                    "no {family} pinholes: {program} isn't there or can't do NAT (install it, or use --backend nft)"
                ))
            })
    }

    /// A pinhole that is to be opened, and its rules as the tool is told them.
    fn opening<'a>(
        &mut self,
        table: &NatTable,
        hole: &'a Pinhole,
        timeout: Duration,
    ) -> (Opening<'a>, Vec<RuleLine>) {
        let opening = Opening {
            hole,
            conditions: table.conditions(timeout, table.limited),
            serial: self.next_serial(),
        };
        let lines = wording(hole).rules(self.mark, opening.conditions, opening.serial);
        (opening, lines)
    }

    /// Opens pinholes over netlink, in one commit. False: nothing has changed, since that isn't possible.
    fn put(
        &mut self,
        table: &NatTable,
        holes: &[&(Pinhole, Duration)],
    ) -> Result<bool, BackendError> {
        let wanted: Vec<_> = holes
            .iter()
            .map(|(hole, timeout)| self.opening(table, hole, *timeout))
            .collect();
        let Some(moulds) = self.moulds.get_mut(&table.family) else {
            return Ok(false);
        };
        let old = holes
            .iter()
            .filter_map(|(hole, _)| self.pinholes.get(hole.key()));
        let openings: Vec<_> = wanted.iter().map(|(opening, _)| *opening).collect();
        match moulds.put(old, &openings, false) {
            Ok(Some(handles)) => {
                let mut handles = handles.into_iter();
                for (opening, lines) in wanted {
                    let own = handles.by_ref().take(lines.len()).collect();
                    let rules = HoleRules::with_handles(lines, own);
                    self.pinholes.insert(opening.hole.key(), rules);
                }
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(source) => {
                let (host, table) = (&self.host, table.clone());
                let _ = self.pinholes.mend(&Nat { host, table }, []);
                Err(uncertain(source))
            }
        }
    }

    /// Opens pinholes by the tool, in one commit if none takes the place of another.
    fn add(
        &mut self,
        table: &NatTable,
        holes: &[&(Pinhole, Duration)],
    ) -> Result<(), BackendError> {
        if holes
            .iter()
            .any(|(hole, _)| self.pinholes.contains(hole.key()))
        {
            return holes
                .iter()
                .try_for_each(|(hole, timeout)| self.open(hole, *timeout));
        }
        let wanted: Vec<_> = holes
            .iter()
            .map(|(hole, timeout)| (hole.key(), self.opening(table, hole, *timeout).1))
            .collect();
        let lines: Vec<RuleLine> = wanted.iter().flat_map(|(_, lines)| lines.clone()).collect();
        if let Err(error) = table.restore(&transaction(&[], &lines, false)) {
            // The tool may have been ended just after its commit.
            let (host, table) = (&self.host, table.clone());
            let _ = self.pinholes.mend(&Nat { host, table }, []);
            return Err(error);
        }
        self.pinholes.extend(wanted);
        Ok(())
    }

    /// What should be in each table.
    fn expected(&self) -> Vec<Expected> {
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

    /// The rules of a pinhole or range, with a number of their own.
    fn rules_of(
        &mut self,
        table: &NatTable,
        hole: Wording,
        timeout: Duration,
        limited: bool,
    ) -> Vec<RuleLine> {
        let conditions = table.conditions(timeout, limited);
        hole.rules(self.mark, conditions, self.next_serial())
    }

    fn next_serial(&mut self) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
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
            let moulds = Moulds::learn(common, restore);
            self.moulds
                .extend(moulds.map(|moulds| (table.family, moulds)));
        }
    }

    /// The open ones among these pinholes, of one family.
    fn open_of(&self, family: Family, holes: &[Pinhole]) -> Vec<PinholeKey> {
        let keys = holes.iter().map(Pinhole::key);
        keys.filter(|key| key.family() == family && self.pinholes.contains(*key))
            .collect()
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
        })
    }

    /// Whether the kernel has some matches: tries them in a chain that is removed again.
    fn has(&self, at: &At, matches: &str) -> bool {
        let text = probe([matches]).concat();
        self.host.restore(at.family, at.flavour, &text).is_ok()
    }

    /// Forgets all state, as if nothing were in the kernel.
    fn forget(&mut self) {
        self.tables.clear();
        self.moulds.clear();
        self.pinholes.clear();
        self.ranges.clear();
        self.closing.clear();
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

    /// Installs all, or nothing.
    fn install_with(
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

    /// Removes what is ours from all `nat` tables.
    fn clear_all(&mut self) -> Result<(), RulesError> {
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
}

impl Backend for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn set_range(&mut self, ports: PortRange) {
        self.range = Some(ports);
    }

    fn install(&mut self) -> Result<(), BackendError> {
        self.install_with(|_, _| Vec::new()).map(drop)
    }

    /// The pinholes' rules are written again, in the commit that makes the chains. A table of a killed
    /// daemon with the backend nft is removed.
    fn adopt(
        &mut self,
        most: usize,
        longest: Duration,
    ) -> Result<Vec<(Pinhole, Duration)>, BackendError> {
        let (mark, mut room) = (self.mark, most);
        let mut all = self.install_with(|snapshot, family| {
            let holes = leftover::pinholes(snapshot, family, mark, room, longest);
            room = room.saturating_sub(holes.len());
            holes
        })?;
        all.sort_by_key(|(_, left)| *left);
        if tables::available()
            && let Err(e) = tables::remove_abandoned()
        {
            log::warn!("a table ftpalg of an earlier ftpalg stays: {e}");
        }
        Ok(all)
    }

    fn leave(&mut self) {
        self.tables.clear();
    }

    fn holds(&self) -> Duration {
        match self.tables.iter().all(|table| table.limited) {
            true => HOLDS,
            false => Duration::ZERO,
        }
    }

    /// See the comment at the top.
    fn rests(&self) -> Duration {
        self.holds() / 2
    }

    fn may_rest(&self) -> usize {
        RESTING
    }

    fn opens_slowly(&self) -> bool {
        true
    }

    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        let table = self.table(Family::of(hole.from))?;
        let (opening, lines) = self.opening(&table, hole, timeout);
        let key = hole.key();
        // Rules of an older one with the same key may still be there: they are being removed.
        let first = self.closing.iter().any(|(closing, _)| *closing == key);
        let nat = Nat {
            host: &self.host,
            table,
        };
        if let Some(moulds) = self.moulds.get_mut(&nat.table.family) {
            let old = self.pinholes.get(key).into_iter();
            match moulds.put(old, &[opening], first) {
                Ok(Some(handles)) => {
                    let rules = HoleRules::with_handles(lines, handles);
                    self.pinholes.insert(key, rules);
                    return Ok(());
                }
                Ok(None) => {}
                Err(source) => {
                    let _ = self.pinholes.mend(&nat, []);
                    return Err(uncertain(source));
                }
            }
        }
        self.pinholes.change(&nat, key, lines, first)
    }

    /// In few commits for each family. One whose rules are being removed comes before these, and so by itself.
    fn open_all(&mut self, holes: &[(Pinhole, Duration)]) -> Result<(), BackendError> {
        let is_closing = |hole: &Pinhole| self.closing.iter().any(|(key, _)| *key == hole.key());
        let (first, rest): (Vec<_>, Vec<_>) = holes.iter().partition(|(hole, _)| is_closing(hole));
        for table in self.tables.clone() {
            let of_table = |hole: &Pinhole| Family::of(hole.from) == table.family;
            let mut rest = rest.clone();
            rest.retain(|(hole, _)| of_table(hole));
            // What removes others comes last, since the kernel lets the next commit wait for that.
            rest.sort_by_key(|(hole, _)| self.pinholes.contains(hole.key()));
            if rest.len() > TOGETHER {
                self.add(&table, &rest)?;
                continue;
            }
            for some in rest.chunks(IN_ONE_MESSAGE) {
                if !self.put(&table, some)? {
                    self.add(&table, some)?;
                }
            }
        }
        first
            .iter()
            .try_for_each(|(hole, timeout)| self.open(hole, *timeout))
    }

    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError> {
        let key = hole.key();
        if !self.pinholes.contains(key) {
            return Ok(());
        }
        let table = self.table(Family::of(hole.from))?;
        let host = &self.host;
        self.pinholes
            .change(&Nat { host, table }, key, Vec::new(), false)
    }

    fn open_range(&mut self, hole: &RangeHole, timeout: Duration) -> Result<(), BackendError> {
        let table = self.table(Family::of(hole.from))?;
        let Some(range) = self.range else {
            return Err(BackendError::Unsupported(
                "a hole for a range needs a range".into(),
            ));
        };
        let lines = self.rules_of(&table, ranges::wording(hole, range), timeout, false);
        let key = hole.key();
        let host = &self.host;
        self.ranges.change(&Nat { host, table }, key, lines, false)
    }

    fn close_range(&mut self, hole: &RangeHole) -> Result<(), BackendError> {
        let table = self.table(Family::of(hole.from))?;
        let key = hole.key();
        if !self.ranges.contains(key) {
            return Ok(());
        }
        let host = &self.host;
        self.ranges
            .change(&Nat { host, table }, key, Vec::new(), false)
    }

    /// Removing rules takes long.
    fn close_all(&mut self, _holes: &[Pinhole]) -> Result<Closed, BackendError> {
        Ok(Closed::Later)
    }

    /// Over netlink with iptables-nft, else by one run of the tool for each family.
    fn closing(&mut self, holes: &[Pinhole]) -> Result<Option<ClosingWork>, BackendError> {
        let mut runs = Vec::new();
        for table in self.tables.clone() {
            let keys = self.open_of(table.family, holes);
            if keys.is_empty() {
                continue;
            }
            let removed = self.pinholes.take(&keys);
            let rules: Vec<HoleRules> = removed.iter().map(|(_, rules)| rules.clone()).collect();
            self.closing.extend(removed);
            runs.push((table, rules));
        }
        if runs.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(move || {
            runs.iter()
                .try_for_each(|(table, rules)| match table.flavour {
                    Flavour::Nft => handles::delete(table.family, rules),
                    Flavour::Legacy => {
                        let lines: Vec<_> = rules.iter().flat_map(|r| r.lines.clone()).collect();
                        table.restore(&transaction(&lines, &[], false))
                    }
                })
        })))
    }

    /// If somebody else removed some of the rules meanwhile, fills the chains again.
    fn closed(&mut self, done: Result<(), BackendError>) -> Result<(), BackendError> {
        let mut removed = std::mem::take(&mut self.closing);
        if done.is_ok() {
            return Ok(());
        }
        let mut result = Ok(());
        for table in self.tables.clone() {
            let of_table = |(key, _): &mut (PinholeKey, _)| key.family() == table.family;
            let removed: Vec<_> = removed.extract_if(.., of_table).collect();
            if !removed.is_empty() {
                let host = &self.host;
                let mended = self.pinholes.mend(&Nat { host, table }, removed);
                result = result.and(mended);
            }
        }
        result
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.forget();
        Ok(self.clear_all()?)
    }

    fn verify(&mut self) -> Result<bool, BackendError> {
        Ok(are_whole(&self.expected(), self.host.tools())?)
    }

    fn verification(&self) -> Option<Verification> {
        let (expected, tools) = (self.expected(), self.host.tools().clone());
        Some(Box::new(move || Ok(are_whole(&expected, &tools)?)))
    }
}

impl From<RulesError> for BackendError {
    fn from(e: RulesError) -> Self {
        match e {
            RulesError::Tool(e) => Self::Program {
                program: e.program().to_owned(),
                message: e.message(),
            },
            RulesError::System { what, source } => Self::System { what, source },
            other => Self::Unsupported(other.to_string()),
        }
    }
}

/// The chains without pinholes, and the jumps to them.
fn chains(with_ranges: bool) -> Table {
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

/// What the rules of a pinhole say.
fn wording(hole: &Pinhole) -> Wording {
    Wording {
        chains: PINHOLE_CHAINS,
        kind: "pinhole",
        from: hole.from,
        to: hole.to.ip(),
        ports: hole.to.port().to_string(),
        land: (hole.land != hole.to).then(|| hole.land.to_string()),
        as_source: hole.as_source,
        delivered: None,
        carried: hole.mark,
    }
}

#[cfg(test)]
mod tests {
    use super::lines::verb_lines;
    use super::*;

    fn hole(from: &str, to: &str, land: &str, as_source: Option<&str>) -> Pinhole {
        Pinhole {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            land: land.parse().unwrap(),
            as_source: as_source.map(|a| a.parse().unwrap()),
            mark: 0,
        }
    }

    fn text(hole: &Pinhole, until: Option<&str>) -> String {
        let conditions = Conditions {
            until: until.map(|date| date.parse().unwrap()),
            limited: false,
        };
        verb_lines("-A", &wording(hole).rules(Mark::DEFAULT, conditions, 7))
    }

    #[test]
    fn a_translated_hole() {
        let hole = hole(
            "192.0.2.7",
            "203.0.113.1:4000",
            "10.0.0.2:5000",
            Some("10.0.0.1"),
        );
        assert_eq!(
            text(&hole, Some("2026-01-02T03:04:05")),
            r#"-A FTPALG-PRE -s 192.0.2.7/32 -d 203.0.113.1/32 -p tcp -m tcp --dport 4000 -m time --datestop 2026-01-02T03:04:05 -m comment --comment "ftpalg:pinhole 7" -j CONNMARK --set-xmark 0x40000000/0x40000000
-A FTPALG-PRE -s 192.0.2.7/32 -d 203.0.113.1/32 -p tcp -m tcp --dport 4000 -m time --datestop 2026-01-02T03:04:05 -m comment --comment "ftpalg:pinhole 7" -j DNAT --to-destination 10.0.0.2:5000
-A FTPALG-POST -p tcp -m connmark --mark 0x40000000/0x40000000 -m conntrack --ctorigsrc 192.0.2.7 --ctorigdst 203.0.113.1 --ctorigdstport 4000 -m comment --comment "ftpalg:pinhole 7" -j SNAT --to-source 10.0.0.1
"#
        );
    }

    #[test]
    fn an_untranslated_ipv6_hole() {
        let same = hole(
            "2001:db8::7",
            "[2001:db8::1]:4000",
            "[2001:db8::1]:4000",
            None,
        );
        let text = text(&same, None);
        assert!(text.ends_with("-j ACCEPT\n"), "{text}");
        assert!(text.contains("-s 2001:db8::7/128 -d 2001:db8::1/128"));
        let nat = hole("2001:db8::7", "[2001:db8::1]:4000", "[fd00::2]:4000", None);
        assert!(super::tests::text(&nat, None).contains("--to-destination [fd00::2]:4000"));
    }

    #[test]
    fn the_chains_are_tagged() {
        let table = chains(false);
        assert_eq!((table.chains.len(), table.rules.len()), (2, 4));
        assert!(table.rules.iter().all(is_ours));
    }
}
