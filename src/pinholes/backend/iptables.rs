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
//! **Opening together** (`opening`). A commit takes long however many pinholes it opens, so those of several
//! sessions are opened in one ([`Backend::opens_slowly`]). What takes the place of a used one comes last.
//!
//! **With iptables-legacy** each change replaces the whole table, and so sets all limits back. Pinholes
//! are closed at once there, together with those that ended meanwhile.
//!
//! If the kernel has the `time` match, a killed daemon's pinholes end at their deadline. The match
//! goes by the wall clock, in whole seconds. A running daemon closes pinholes by its own clock. The next
//! daemon adopts those that are open: it finds them in the rules (`leftover`).

mod handles;
mod installing;
mod leftover;
mod lines;
mod moulds;
mod open;
mod opening;
mod ranges;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::handles::NatHandle;
use self::installing::are_whole;
use self::lines::{Conditions, DateStop, Wording, transaction};
use self::moulds::Moulds;
use self::open::{HoleKey, HoleRules, Nat, Open};
use super::{Backend, BackendError, Closed, ClosingWork, Verification};
use crate::firewall::host::Host;
use crate::firewall::names::RANGE_CHAINS;
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::lasting::LastingTool;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{At, PINHOLE_CHAINS, RulesError, tables};
use crate::net::{Family, Mark, PortRange};
use crate::pinholes::{Pinhole, PinholeKey, RangeHole, RangeKey};

/// How long a used pinhole keeps others out where its rules have a limit.
const HOLDS: Duration = Duration::from_millis(500);

/// How many used pinholes cost less than to close them at once: each adds some 0.6 us to the opening of
/// another one.
const RESTING: usize = 128;

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
    /// Of the table itself, with iptables-nft. Shared alike.
    handle: Arc<NatHandle>,
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

    fn next_serial(&mut self) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// The open ones among these pinholes, of one family.
    fn open_of(&self, family: Family, holes: &[Pinhole]) -> Vec<PinholeKey> {
        let keys = holes.iter().map(Pinhole::key);
        keys.filter(|key| key.family() == family && self.pinholes.contains(*key))
            .collect()
    }

    /// Forgets all state, as if nothing were in the kernel.
    fn forget(&mut self) {
        self.tables.clear();
        self.moulds.clear();
        self.pinholes.clear();
        self.ranges.clear();
        self.closing.clear();
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
        self.open_one(hole, timeout)
    }

    fn open_all(&mut self, holes: &[(Pinhole, Duration)]) -> Result<(), BackendError> {
        self.open_together(holes)
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
        let (conditions, serial) = (table.conditions(timeout, false), self.next_serial());
        let lines = ranges::wording(hole, range).rules(self.mark, conditions, serial);
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
                    Flavour::Nft => handles::delete(table.family, &table.handle, rules),
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

    /// IPv6 without NAT, or rules that somebody has flushed and that couldn't be made again.
    #[test]
    fn without_a_table_nothing_counts_as_open() {
        let mut backend = Iptables::new(Tools::find_in(&[]), Mark::DEFAULT);
        let holes = ["2001:db8::7", "2001:db8::8"].map(|from| {
            let to = "[2001:db8::1]:4000";
            (hole(from, to, to, None), Duration::from_secs(60))
        });
        let refused = |result| matches!(result, Err(BackendError::Unsupported(_)));
        assert!(refused(backend.open(&holes[0].0, holes[0].1)));
        assert!(refused(backend.open_all(&holes)));
    }
}
