//! Opens pinholes: over netlink where there are moulds for their rules, else by the tool.

use std::io;
use std::time::Duration;

use super::lines::{RuleLine, transaction};
use super::moulds::Opening;
use super::open::{HoleRules, Nat};
use super::{Iptables, NatTable, wording};
use crate::net::Family;
use crate::pinholes::Pinhole;
use crate::pinholes::backend::BackendError;

/// How many pinholes are opened together over netlink. More than so many come only with those of an earlier
/// process: these the tool opens, in one commit.
const TOGETHER: usize = 64;
/// How many of them are in one commit: a message must fit into the socket's send buffer, and the kernel's
/// answer, which repeats it, into the receive buffer. Both have 208 KiB by themselves, and a pinhole's rules
/// take 3 to 7 KiB.
const IN_ONE_MESSAGE: usize = 16;

impl Iptables {
    /// See [`Backend::open`](super::Backend::open).
    pub(super) fn open_one(
        &mut self,
        hole: &Pinhole,
        timeout: Duration,
    ) -> Result<(), BackendError> {
        let table = self.table(Family::of(hole.from))?;
        let key = hole.key();
        // Rules of an older one with the same key may still be there: they are being removed.
        let first = self.closing.iter().any(|(closing, _)| *closing == key);
        if self.put(&table, &[(hole, timeout)], first)? {
            return Ok(());
        }
        let (_, lines) = self.opening(&table, hole, timeout);
        let host = &self.host;
        self.pinholes
            .change(&Nat { host, table }, key, lines, first)
    }

    /// In few commits for each family. One whose rules are being removed comes before these, and so by itself.
    /// If one has no table, none opens.
    pub(super) fn open_together(
        &mut self,
        holes: &[(Pinhole, Duration)],
    ) -> Result<(), BackendError> {
        for (hole, _) in holes {
            self.table(Family::of(hole.from))?;
        }
        let is_closing = |hole: &Pinhole| self.closing.iter().any(|(key, _)| *key == hole.key());
        let holes = holes.iter().map(|(hole, timeout)| (hole, *timeout));
        let (first, rest): (Vec<_>, Vec<_>) = holes.partition(|(hole, _)| is_closing(hole));
        for table in self.tables.clone() {
            let of_table = |hole: &Pinhole| Family::of(hole.from) == table.family;
            let mut rest = rest.clone();
            rest.retain(|(hole, _)| of_table(hole));
            // What removes others comes last, since the kernel lets the next commit wait for that.
            rest.sort_by_key(|(hole, _)| self.pinholes.contains(hole.key()));
            if rest.len() > TOGETHER || !self.moulds.contains_key(&table.family) {
                self.add(&table, &rest)?;
                continue;
            }
            for some in rest.chunks(IN_ONE_MESSAGE) {
                if !self.put(&table, some, false)? {
                    self.add(&table, some)?;
                }
            }
        }
        first
            .into_iter()
            .try_for_each(|(hole, timeout)| self.open_one(hole, timeout))
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

    /// Opens pinholes over netlink, in one commit; `first`: before all others. False: nothing has changed,
    /// since that isn't possible.
    fn put(
        &mut self,
        table: &NatTable,
        holes: &[(&Pinhole, Duration)],
        first: bool,
    ) -> Result<bool, BackendError> {
        if !self.moulds.contains_key(&table.family) {
            return Ok(false);
        }
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
        // Before the rules are there: see `NatHandle::last`.
        let nat = table.handle.last();
        match moulds.put(old, &openings, first) {
            Ok(Some(handles)) => {
                let mut handles = handles.into_iter();
                for (opening, lines) in wanted {
                    let own = handles.by_ref().take(lines.len()).collect();
                    let rules = HoleRules::with_handles(lines, own, nat);
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

    /// Opens pinholes by the tool: those that take the place of another singly, the others in one commit.
    fn add(
        &mut self,
        table: &NatTable,
        holes: &[(&Pinhole, Duration)],
    ) -> Result<(), BackendError> {
        let replaces = |(hole, _): &&(&Pinhole, Duration)| self.pinholes.contains(hole.key());
        let (replacing, new): (Vec<_>, Vec<_>) = holes.iter().partition(replaces);
        for (hole, timeout) in replacing {
            self.open_one(hole, timeout)?;
        }
        if new.is_empty() {
            return Ok(());
        }
        let wanted: Vec<_> = new
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
}

/// It isn't known whether rules are there.
fn uncertain(source: io::Error) -> BackendError {
    let what = "can't add the rules of a pinhole";
    BackendError::System { what, source }
}
