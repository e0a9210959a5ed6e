//! Pinholes as iptables rules in chains of our own, for hosts where nf_tables isn't there or isn't
//! wanted.
//!
//! Table `nat`: `FTPALG-PRE` is entered from the top of `PREROUTING` and `OUTPUT`, `FTPALG-POST`
//! from the top of `POSTROUTING` and `INPUT`. A hole is two rules in the former (set the mark, then
//! translate), and one in the latter where the landing side must see another source. All rules of a
//! hole come and go in one commit, by one run of the tool. Removing a rule takes the kernel longer
//! than adding one (iptables-nft waits for an RCU grace period, some 15 ms), so holes that are done
//! with are closed together, while others open.
//!
//! Where the kernel has the `time` match, a hole also dies by itself at its deadline: that of a
//! killed daemon doesn't stay open. Its clock is the wall clock, to the second; the daemon closes
//! holes by its own clock.

mod ranges;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Backend, BackendError, Closing, Mark};
use crate::nat::pinhole::{Key, Pinhole, RangeHole, RangeKey};
use crate::nat::ports::PortRange;
use crate::nat::rules::host::{Host, holds, missing};
use crate::nat::rules::{At, RulesError, TableStore, flavours, is_ours};
use crate::nat::xtables::save::{Rule, Ruleset, Table};
use crate::nat::xtables::tools::{Tool, Tools};
use crate::nat::xtables::{Family, Flavour};

const PRE: &str = "FTPALG-PRE";
const POST: &str = "FTPALG-POST";

/// What [`Backend::install`] loads.
const CHAINS: &str = r#"*nat
:FTPALG-PRE - [0:0]
:FTPALG-POST - [0:0]
-I PREROUTING -m comment --comment "ftpalg:pinholes" -j FTPALG-PRE
-I OUTPUT -m comment --comment "ftpalg:pinholes" -j FTPALG-PRE
-I INPUT -m comment --comment "ftpalg:pinholes" -j FTPALG-POST
-I POSTROUTING -m comment --comment "ftpalg:pinholes" -j FTPALG-POST
COMMIT
"#;

/// iptables' own limit for `--datestop`, 2038-01-19T03:14:07Z: later deadlines are left to us.
const MAX_STAMP: u64 = i32::MAX as u64;

/// How often a hole is tried again to be opened while others are being closed.
const ATTEMPTS: usize = 3;

/// A rule of a hole: its chain and its spec.
type Line = (&'static str, String);

/// The family's part: where its chains are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plane {
    family: Family,
    flavour: Flavour,
    /// Whether the kernel can end a hole at its deadline.
    timed: bool,
}

/// The backend `iptables`.
#[derive(Debug)]
pub struct Iptables {
    host: Host,
    mark: Mark,
    planes: Vec<Plane>,
    open: BTreeMap<Key, Vec<Line>>,
    /// The number of the last hole: no two have equal rules, so that `-D` finds its own.
    serial: u64,
    /// The rules that are being removed meanwhile.
    closing: Vec<(Key, Vec<Line>)>,
    range: Option<PortRange>,
    /// The rules of open ranges.
    ranges: BTreeMap<RangeKey, Vec<Line>>,
}

impl Iptables {
    /// A backend with these tools; nothing is installed yet.
    #[must_use]
    pub fn new(tools: Tools, store: Box<dyn TableStore>, mark: Mark) -> Self {
        Self {
            host: Host::new(tools, store),
            mark,
            planes: Vec::new(),
            open: BTreeMap::new(),
            serial: 0,
            closing: Vec::new(),
            range: None,
            ranges: BTreeMap::new(),
        }
    }

    /// With a range of ports for [`Backend::open_range`].
    #[must_use]
    pub fn with_range(mut self, range: Option<PortRange>) -> Self {
        self.range = range;
        self
    }

    /// The flavours in use, once installed: IPv4's first.
    #[must_use]
    pub fn flavours(&self) -> Vec<(Family, Flavour)> {
        self.planes.iter().map(|p| (p.family, p.flavour)).collect()
    }

    /// What [`Backend::install`] makes.
    fn chains(&self) -> Table {
        match self.range {
            // What is inserted last comes first: the pinholes' chains.
            Some(_) => chains(&ranges::with_range(CHAINS)),
            None => chains(CHAINS),
        }
    }

    fn plane(&self, family: Family) -> Result<Plane, BackendError> {
        self.planes
            .iter()
            .copied()
            .find(|p| p.family == family)
            .ok_or_else(|| {
                let program = family.program();
                BackendError::Unsupported(format!(
                    "no {family} pinholes: {program} isn't there or can't do NAT (install it, or use --backend nft)"
                ))
            })
    }

    /// The rules of a hole, as no other hole has them.
    fn lines(&mut self, plane: Plane, hole: &Pinhole, timeout: Duration) -> Vec<Line> {
        let until = if plane.timed { deadline(timeout) } else { None };
        self.serial = self.serial.wrapping_add(1);
        rules_of(hole, self.mark, until.as_deref(), self.serial)
    }

    /// Takes the rules of some holes out and puts those of another one in, all at once.
    ///
    /// If somebody else removed some of them meanwhile, fills the chains anew with all that should
    /// be in there.
    fn change(
        &mut self,
        plane: Plane,
        out: &[Key],
        into: Option<(Key, Vec<Line>)>,
    ) -> Result<(), BackendError> {
        let removed: Vec<(Key, Vec<Line>)> = out
            .iter()
            .filter_map(|key| self.open.remove_entry(key))
            .collect();
        let old: Vec<Line> = removed.iter().flat_map(|(_, l)| l.clone()).collect();
        let lines = into.as_ref().map_or(&[][..], |(_, lines)| lines);
        // It must count even while an older one with the same key is being removed.
        let first = self
            .closing
            .iter()
            .any(|(closing, _)| into.as_ref().is_some_and(|(key, _)| key == closing));
        let text = transaction(&old, lines, first);
        let mut done = self.restore(plane, &text);
        // iptables-nft says "before the rule that is the first now": it may be gone by then.
        for _ in 0..if first { ATTEMPTS } else { 0 } {
            done = done.or_else(|_| self.restore(plane, &text));
        }
        if done.is_err() && old.is_empty() {
            return done;
        }
        let added = into.map(|(key, lines)| {
            self.open.insert(key, lines);
            key
        });
        done.or_else(|_| self.refill(plane)).inspect_err(|_| {
            if let Some(key) = added {
                self.open.remove(&key);
            }
            // They may still be there: to be tried again.
            self.open.extend(removed);
        })
    }

    /// Makes our chains hold exactly the holes that are open. Fails if the chains are gone.
    fn refill(&self, plane: Plane) -> Result<(), BackendError> {
        let lines: Vec<Line> = self
            .open
            .iter()
            .filter(|(key, _)| Family::of(key.from) == plane.family)
            .flat_map(|(_, lines)| lines.iter().cloned())
            .collect();
        let text = format!(
            "*nat\n-F {PRE}\n-F {POST}\n{}COMMIT\n",
            verb_lines("-A", &lines)
        );
        self.restore(plane, &text)
    }

    /// The holes of a family that are open, out of these.
    fn open_of(&self, family: Family, holes: &[Pinhole]) -> Vec<Key> {
        holes
            .iter()
            .map(Pinhole::key)
            .filter(|key| Family::of(key.from) == family && self.open.contains_key(key))
            .collect()
    }

    /// Whether none of our chains is there: then no hole is open.
    fn is_gone(&self, plane: Plane) -> bool {
        self.host.snapshot().is_ok_and(|snapshot| {
            snapshot
                .table(plane.family, plane.flavour, "nat")
                .is_none_or(|t| t.chain(PRE).is_none())
        })
    }

    fn restore(&self, plane: Plane, text: &str) -> Result<(), BackendError> {
        Ok(self.host.restore(plane.family, plane.flavour, text)?)
    }

    /// Whether the kernel has the `time` match: tries it in a chain of its own.
    fn has_time(&self, family: Family, flavour: Flavour) -> bool {
        let text = "*nat\n:FTPALG-PROBE - [0:0]\n-A FTPALG-PROBE -m time --datestop 2037-01-01T00:00:00\nCOMMIT\n\
                    *nat\n-F FTPALG-PROBE\n-X FTPALG-PROBE\nCOMMIT\n";
        self.host.restore(family, flavour, text).is_ok()
    }

    fn install_all(&mut self) -> Result<(), RulesError> {
        let snapshot = self.host.snapshot()?;
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
        self.clear(&planned)?;
        for at in planned {
            if snapshot.is_hidden(at.family, at.flavour, "nat") {
                let why = format!("{at}: it holds rules written for nft: use --backend nft");
                if at.family == Family::V4 {
                    return Err(RulesError::Input(why));
                }
                log::info!("no IPv6 pinholes: {why}");
                continue;
            }
            let current = snapshot.table(at.family, at.flavour, "nat");
            match self.host.replace(&at, current, &wanted) {
                Ok(()) => self.planes.push(Plane {
                    family: at.family,
                    flavour: at.flavour,
                    timed: self.has_time(at.family, at.flavour),
                }),
                // Many kernels have IPv6 without NAT for it.
                Err(e) if at.family == Family::V6 => log::info!("no IPv6 pinholes: {e}"),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Removes what is ours from all `nat` tables but these.
    fn clear(&mut self, but: &[At]) -> Result<(), RulesError> {
        let snapshot = self.host.snapshot()?;
        let mut failed = self.host.out_of_reach(&snapshot, &["nat"]).err();
        for (at, table) in crate::nat::rules::ours(&snapshot, &["nat"]) {
            if !but.contains(&at)
                && let Err(e) = self.host.clear(&at, table)
            {
                failed.get_or_insert(e);
            }
        }
        if but.is_empty() {
            self.host.clear_made(&snapshot, &["nat"]);
        }
        failed.map_or(Ok(()), Err)
    }
}

impl Backend for Iptables {
    fn name(&self) -> &'static str {
        "iptables"
    }

    fn install(&mut self) -> Result<(), BackendError> {
        self.planes.clear();
        self.open.clear();
        self.ranges.clear();
        self.closing.clear();
        if let Err(e) = self.install_all() {
            self.planes.clear();
            if let Err(again) = self.clear(&[]) {
                log::warn!("rules that could not be removed again: {again}");
            }
            return Err(e.into());
        }
        Ok(())
    }

    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        let plane = self.plane(Family::of(hole.from))?;
        let lines = self.lines(plane, hole, timeout);
        let key = hole.key();
        self.change(plane, &[key], Some((key, lines)))
    }

    /// One run of the tool per family, however many holes there are.
    fn open_all(&mut self, holes: &[(Pinhole, Duration)]) -> Result<(), BackendError> {
        for plane in self.planes.clone() {
            let of_plane = |hole: &Pinhole| Family::of(hole.from) == plane.family;
            let mut wanted = Vec::new();
            for (hole, timeout) in holes.iter().filter(|(hole, _)| of_plane(hole)) {
                wanted.push((hole.key(), self.lines(plane, hole, *timeout)));
            }
            let lines: Vec<Line> = wanted.iter().flat_map(|(_, l)| l.clone()).collect();
            if !lines.is_empty() {
                self.restore(plane, &transaction(&[], &lines, false))?;
            }
            self.open.extend(wanted);
        }
        Ok(())
    }

    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError> {
        self.close_all(std::slice::from_ref(hole))
    }

    fn open_range(&mut self, hole: &RangeHole, timeout: Duration) -> Result<(), BackendError> {
        self.change_range(hole, Some(timeout))
    }

    fn close_range(&mut self, hole: &RangeHole) -> Result<(), BackendError> {
        self.change_range(hole, None)
    }

    /// One run of the tool per family, however many holes there are.
    fn close_all(&mut self, holes: &[Pinhole]) -> Result<(), BackendError> {
        let mut result = Ok(());
        for family in Family::ALL {
            let keys = self.open_of(family, holes);
            if keys.is_empty() {
                continue;
            }
            let closed = self.plane(family).and_then(|plane| {
                let closed = self.change(plane, &keys, None);
                if closed.is_err() && self.is_gone(plane) {
                    self.open.retain(|key, _| Family::of(key.from) != family);
                    return Ok(());
                }
                closed
            });
            result = result.and(closed);
        }
        result
    }

    fn closes_slowly(&self) -> bool {
        true
    }

    fn closing(&mut self, holes: Vec<Pinhole>) -> Result<Option<Closing>, BackendError> {
        let mut work = Vec::new();
        for family in Family::ALL {
            let keys = self.open_of(family, &holes);
            if keys.is_empty() {
                continue;
            }
            let plane = self.plane(family)?;
            let tool = self.host.tool(family, plane.flavour)?.clone();
            let removed: Vec<_> = keys
                .iter()
                .filter_map(|key| self.open.remove_entry(key))
                .collect();
            let lines: Vec<Line> = removed.iter().flat_map(|(_, l)| l.clone()).collect();
            self.closing.extend(removed);
            work.push((tool, transaction(&lines, &[], false)));
        }
        let restore = move |(tool, text): &(Tool, String)| tool.restore(text);
        Ok((!work.is_empty()).then(|| Closing {
            holes,
            work: Box::new(move || {
                Ok(work
                    .iter()
                    .try_for_each(restore)
                    .map_err(RulesError::from)?)
            }),
        }))
    }

    /// If somebody else removed some of the rules meanwhile, fills the chains anew.
    fn closed(&mut self, done: Result<(), BackendError>) -> Result<(), BackendError> {
        let removed = std::mem::take(&mut self.closing);
        if done.is_ok() {
            return Ok(());
        }
        let mut result = Ok(());
        for plane in self.planes.clone() {
            let of_plane = |key: &Key| Family::of(key.from) == plane.family;
            if !removed.iter().any(|(key, _)| of_plane(key)) {
                continue;
            }
            let Err(error) = self.refill(plane) else {
                continue;
            };
            if self.is_gone(plane) {
                self.open.retain(|key, _| !of_plane(key));
                continue;
            }
            // They may still be there: to be tried again.
            for (key, lines) in removed.iter().filter(|(key, _)| of_plane(key)) {
                self.open.entry(*key).or_default().extend(lines.clone());
            }
            result = Err(error);
        }
        result
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.planes.clear();
        self.open.clear();
        self.ranges.clear();
        self.closing.clear();
        Ok(self.clear(&[])?)
    }

    fn verify(&mut self) -> Result<bool, BackendError> {
        if self.planes.is_empty() {
            return Ok(false);
        }
        let snapshot = self.host.snapshot()?;
        let whole = self.planes.iter().all(|plane| {
            let at = At {
                flavour: plane.flavour,
                family: plane.family,
                table: "nat".into(),
            };
            let current = snapshot.table(at.family, at.flavour, "nat");
            let mut wanted = self.chains();
            let of_plane = |key: &Key| Family::of(key.from) == plane.family;
            let ranges = self.ranges.iter();
            let ranges = ranges.filter(|(key, _)| Family::of(key.from) == plane.family);
            wanted
                .rules
                .extend(ranges.flat_map(|(_, lines)| rules(lines)));
            let open = self.open.iter().filter(|(key, _)| of_plane(key));
            wanted
                .rules
                .extend(open.flat_map(|(_, lines)| rules(lines)));
            // They go at this moment: some may be there, some not.
            let closing = self.closing.iter().filter(|(key, _)| of_plane(key));
            wanted.rules.extend(
                closing
                    .flat_map(|(_, lines)| rules(lines))
                    .filter(|rule| current.is_some_and(|table| holds(table, rule))),
            );
            missing(&at, current, &wanted).is_empty()
        });
        Ok(whole)
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

/// The chains, without holes.
fn chains(text: &str) -> Table {
    let set = Ruleset::parse(text);
    set.tables.into_iter().next().unwrap_or_default()
}

/// The text that removes some rules and adds others at once, `first` before all that are there.
fn transaction(remove: &[Line], add: &[Line], first: bool) -> String {
    let mut text = format!("*nat\n{}", verb_lines("-D", remove));
    if first {
        for chain in [PRE, POST] {
            let of_chain = add.iter().filter(|(of, _)| *of == chain);
            for (at, (_, spec)) in of_chain.enumerate() {
                text.push_str(&format!("-I {chain} {} {spec}\n", at + 1));
            }
        }
    } else {
        text.push_str(&verb_lines("-A", add));
    }
    text.push_str("COMMIT\n");
    text
}

/// Lines as rules that can be looked for.
fn rules(lines: &[Line]) -> Vec<Rule> {
    let set = Ruleset::parse(&format!("*nat\n{}COMMIT\n", verb_lines("-A", lines)));
    set.tables.into_iter().flat_map(|t| t.rules).collect()
}

fn verb_lines(verb: &str, lines: &[Line]) -> String {
    lines
        .iter()
        .map(|(chain, spec)| format!("{verb} {chain} {spec}\n"))
        .collect()
}

/// The rules of a hole, in the words and the order in which the tools save them.
fn rules_of(hole: &Pinhole, mark: Mark, until: Option<&str>, serial: u64) -> Vec<Line> {
    let bit = mark.bit();
    let (from, to, port) = (hole.from, hole.to.ip(), hole.to.port());
    let bits = if from.is_ipv4() { 32 } else { 128 };
    let until = until.map_or_else(String::new, |t| format!(" -m time --datestop {t}"));
    let packet = format!(
        "-s {from}/{bits} -d {to}/{bits} -p tcp -m tcp --dport {port}{until} -m comment --comment \"ftpalg:pinhole {serial}\""
    );
    // A hole that translates nothing still keeps the user's own translations away.
    let deliver = if hole.land == hole.to {
        "-j ACCEPT".to_owned()
    } else {
        format!("-j DNAT --to-destination {}", hole.land)
    };
    let mut lines = Vec::new();
    if hole.mark != 0 {
        // The user's own mark on the data connection comes first. The packet's mark is set, too:
        // the next thing that happens to it is routing.
        let carried = hole.mark;
        lines.push((
            PRE,
            format!("{packet} -m connmark --mark 0x0 -j MARK --set-xmark {carried:#x}/0xffffffff"),
        ));
        lines.push((
            PRE,
            format!(
                "{packet} -m connmark --mark 0x0 -j CONNMARK --set-xmark {carried:#x}/0xffffffff"
            ),
        ));
    }
    lines.extend([
        (
            PRE,
            format!("{packet} -j CONNMARK --set-xmark {bit:#x}/{bit:#x}"),
        ),
        (PRE, format!("{packet} {deliver}")),
    ]);
    if let Some(source) = hole.as_source {
        lines.push((
            POST,
            format!(
                "-p tcp -m connmark --mark {bit:#x}/{bit:#x} -m conntrack --ctorigsrc {from} --ctorigdst {to} \
                 --ctorigdstport {port} -m comment --comment \"ftpalg:pinhole {serial}\" -j SNAT --to-source {source}"
            ),
        ));
    }
    lines
}

/// The moment `timeout` from now in UTC, rounded up to a second, as `--datestop` takes it; `None`
/// if it can't be written there.
fn deadline(timeout: Duration) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let end = now.checked_add(timeout)?;
    let stamp = end
        .as_secs()
        .checked_add(u64::from(end.subsec_nanos() > 0))?;
    (stamp < MAX_STAMP).then(|| date(stamp))
}

/// Seconds since 1970 as `YYYY-MM-DDThh:mm:ss`.
fn date(stamp: u64) -> String {
    let (mut days, seconds) = (stamp / 86_400, stamp % 86_400);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}",
        days + 1,
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
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
        verb_lines("-A", &rules_of(hole, Mark::DEFAULT, until, 7))
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
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(date(1_735_689_599), "2024-12-31T23:59:59");
        assert_eq!(date(1_772_323_200), "2026-03-01T00:00:00");
        assert_eq!(date(2_147_483_647), "2038-01-19T03:14:07");
        assert_eq!(deadline(Duration::MAX), None);
        assert_eq!(deadline(Duration::from_secs(1 << 40)), None);
        assert!(deadline(Duration::from_secs(60)).is_some());
    }

    #[test]
    fn the_chains_are_tagged() {
        let table = chains(CHAINS);
        assert_eq!((table.chains.len(), table.rules.len()), (2, 4));
        assert!(table.rules.iter().all(is_ours));
    }

    #[test]
    fn one_commit_removes_and_adds() {
        let lines = |chains: &[(&'static str, &str)]| -> Vec<Line> {
            let line = |(chain, spec): &(&'static str, &str)| (*chain, (*spec).to_owned());
            chains.iter().map(line).collect()
        };
        let old = lines(&[(PRE, "old")]);
        let new = lines(&[(PRE, "mark"), (PRE, "dnat"), (POST, "snat")]);
        assert_eq!(
            transaction(&old, &new, false),
            "*nat\n-D FTPALG-PRE old\n-A FTPALG-PRE mark\n-A FTPALG-PRE dnat\n\
             -A FTPALG-POST snat\nCOMMIT\n"
        );
        assert_eq!(
            transaction(&old, &new, true),
            "*nat\n-D FTPALG-PRE old\n-I FTPALG-PRE 1 mark\n-I FTPALG-PRE 2 dnat\n\
             -I FTPALG-POST 1 snat\nCOMMIT\n"
        );
    }
}
