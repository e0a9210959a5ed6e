//! Connections that are joined in their middle: after a restart, or by a gateway that takes over.
//!
//! Whoever sees a connection for the first time when it is under way knows neither what was edited in
//! it nor where its lines begin. A bit of its connection mark ([`Config::resume_mark`]) says what
//! matters: an `ftpalg` followed it, and its numbers are the same on both sides. So every process on
//! any gateway that has the mark can go on. Without the bit, the connection passes unread.
//!
//! The bit is set when the SYN-ACK comes, and cleared, acknowledged by the kernel, before
//! the first packet goes out that changes the numbers of either direction: an edit of another length,
//! or an acknowledgement of bytes that wait here. Where nothing is read any more, it is cleared, too.
//!
//! [`Config::resume_mark`]: super::Config::resume_mark

use std::collections::HashSet;
use std::time::Duration;

use super::endpoints::Endpoints;
use super::flow::{Flow, Joined};
use super::gateway::Gateway;
use super::{Decided, Engine, Name, Side, Verdict};
use crate::wire::{Flags, Segment};

/// How many connections are remembered that can't be joined.
const MAX_STRANGERS: usize = 4096;
/// How long they are: then conntrack is asked again. Their entry may be replaced by the one that another
/// gateway had.
const MEMORY: Duration = Duration::from_millis(100);

/// Connections that can't be joined, as conntrack said a moment ago.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    ends: HashSet<Endpoints>,
    since: Duration,
}

impl Strangers {
    /// Whether conntrack need not be asked about a connection.
    fn has(&mut self, ends: &Endpoints, now: Duration) -> bool {
        if now.saturating_sub(self.since) >= MEMORY {
            self.ends.clear();
            self.since = now;
        }
        self.ends.contains(ends)
    }

    fn add(&mut self, ends: Endpoints) {
        if self.ends.len() >= MAX_STRANGERS {
            self.ends.clear();
        }
        self.ends.insert(ends);
    }
}

/// Whether the mark of a connection says that it may be joined; `bit`: [`Config::resume_mark`].
///
/// [`Config::resume_mark`]: super::Config::resume_mark
pub(super) fn is_marked(ends: &Endpoints, bit: u32, gateway: &mut dyn Gateway) -> bool {
    let entry = gateway.conntrack(ends.inside(), ends.outside());
    entry.is_ok_and(|entry| entry.mark & bit != 0)
}

impl Engine {
    /// Handles a packet of a connection that no engine knows: joins it if it may be joined, counts the
    /// packet otherwise, which then goes on as it is.
    pub fn nobody_knows(
        &mut self,
        Name(ends): Name,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Verdict<'_> {
        if self.config.resume_mark != 0
            && !self.strangers.has(&ends, now)
            && let Ok(segment) = Segment::parse(packet)
            && self.join(ends, side, &segment, now, gateway)
            && let Decided::Verdict(fate) = self.place(side, &segment, packet, now, gateway)
        {
            return self.verdict(fate);
        }
        self.stats.mid_stream = self.stats.mid_stream.saturating_add(1);
        Verdict::Accept
    }

    /// Joins the connection that a segment belongs to, if its mark says that this is possible.
    fn join(
        &mut self,
        ends: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> bool {
        let flags = segment.flags();
        let goes_on = flags.has(Flags::ACK) && !flags.has(Flags::RST) && !flags.has(Flags::FIN);
        if !goes_on {
            return false;
        }
        // No entry, or none yet: what another gateway had comes a moment after its packets.
        let Ok(entry) = gateway.conntrack(ends.inside(), ends.outside()) else {
            return false;
        };
        let entry = Some(entry).filter(|entry| entry.mark & self.config.resume_mark != 0);
        let named = entry.and_then(|entry| {
            let ingress = ends.towards_inside(&entry)?;
            Some((entry, ingress, ends.at_other_end(&entry)?))
        });
        let Some((entry, ingress, other_end)) = named else {
            self.strangers.add(ends);
            return false;
        };
        if self.flows.len() >= self.config.max_flows && !self.clear(now, gateway) {
            self.stats.table_full = self.stats.table_full.saturating_add(1);
            return false;
        }
        let client = match entry.original.src == ends.inside() {
            true => Side::Egress,
            false => Side::Ingress,
        };
        let id = self.next_session();
        let admitted = self.admit(id, ends.client_and_server(client), true, now, gateway);
        self.give_name(ends, ingress, gateway);
        // Both ends may be inside: it is edited once.
        for name in other_end {
            if name != ends && name != ingress {
                self.pass_elsewhere(&[name], now);
            }
        }
        let joined = Joined {
            id,
            client,
            side,
            admitted,
        };
        let flow = Flow::joined(&joined, segment, &self.config, now);
        self.flows.insert(ends, Box::new(flow));
        self.stats.joined = self.stats.joined.saturating_add(1);
        true
    }
}
