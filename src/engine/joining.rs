//! Connections that are joined in their middle: after a restart, or by a gateway that takes over.
//!
//! Whoever sees a connection for the first time when it is under way knows neither what was edited in
//! it nor where its lines begin. Two bits of its connection mark ([`Config::marks`]) say what
//! matters, to every process on any gateway that has the mark:
//!
//! | mark | numbers | who has no record of it |
//! |---|---|---|
//! | even | the same on both sides | joins it, and follows it from the first line that is certainly one |
//! | uneven | they differ: an edit of another length, or an acknowledgement of bytes that wait here | [ends](super::orphans) it |
//! | neither | the same: it isn't FTP, or went on under TLS, or nobody followed it | lets it pass unread |
//!
//! Even is set when the SYN-ACK comes, also by a process that hasn't seen its SYN. Uneven takes its place, acknowledged by the kernel, before
//! the first packet goes out that makes the numbers differ. Such a connection has a
//! [record](super::record), which is kept before each of its packets goes on; with it, a successor
//! knows all that its predecessor knew. A connection under TLS whose client reaches a range of ports
//! has a short one.
//!
//! [`Config::marks`]: super::Config::marks

use std::collections::HashSet;
use std::time::Duration;

use super::config::{Marks, Standing};
use super::endpoints::Endpoints;
use super::event::Event;
use super::flow::{Flow, Joined};
use super::gateway::{Error, Gateway};
use super::record::{self, Record, State};
use super::second::Second;
use super::{Decided, Engine, Entry, Name, Side, SynAck, Verdict};
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

/// What becomes of a packet of a connection that no engine knows.
enum Unknown {
    /// The connection is joined: its flow handles the packet.
    Joined,
    /// Nobody can go on with the connection; or nobody may be able to, if that isn't `certain` yet.
    Orphan { certain: bool },
    /// It passes unread.
    Stranger,
    /// Somebody who knows more couldn't be asked. The packet is to come again.
    Unanswered,
}

/// What is known of a connection that may be joined.
struct Found {
    entry: Entry,
    standing: Standing,
    record: Option<Record<Box<Flow>>>,
}

/// What the mark of a connection says that somebody followed; `None` if nobody did.
pub(super) fn followed(
    ends: &Endpoints,
    marks: Option<Marks>,
    gateway: &mut dyn Gateway,
) -> Option<Standing> {
    let entry = gateway.conntrack(ends.inside(), ends.outside()).ok()?;
    let standing = marks?.standing(entry.mark);
    (standing != Standing::Unfollowed).then_some(standing)
}

impl Engine {
    /// Handles a packet of a connection that no engine knows: joins it if it may be joined, ends it
    /// if nobody can go on with it. Otherwise the packet is counted, and goes on as it is. It can't be [put
    /// off](Gateway::may_put_off) here; if the gateway does that all the same, it is dropped.
    pub fn nobody_knows(
        &mut self,
        Name(ends): Name,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Verdict<'_> {
        if let Some(marks) = self.config.marks
            && !self.strangers.has(&ends, now)
            && let Ok(segment) = Segment::parse(packet)
        {
            match self.join(ends, side, &segment, marks, now, gateway) {
                Unknown::Joined => match self.place(side, &segment, packet, now, gateway) {
                    Decided::Verdict(fate) => return self.verdict(fate),
                    Decided::Later => return Verdict::Drop,
                    Decided::Unknown(_) | Decided::SynAck(..) => {}
                },
                Unknown::Orphan { certain } => {
                    let orphaned = u64::from(certain);
                    self.stats.orphaned = self.stats.orphaned.saturating_add(orphaned);
                    self.scratch.clear();
                    self.scratch.extend_from_slice(packet);
                    let packet = &mut self.scratch;
                    let fate = self.orphans.end(ends, side, &segment, certain, packet);
                    return self.verdict(fate);
                }
                Unknown::Unanswered => return Verdict::Drop,
                Unknown::Stranger => {}
            }
        }
        self.stats.mid_stream = self.stats.mid_stream.saturating_add(1);
        Verdict::Accept
    }

    /// A SYN-ACK whose SYN nobody here has seen: it came to a process before this one, and got lost or
    /// was sent again. Nothing was edited yet, so the mark says that the numbers are the same. The
    /// connection is joined with its next segment.
    pub(super) fn expect(&mut self, syn_ack: &SynAck, now: Duration, gateway: &mut dyn Gateway) {
        let ends = syn_ack.ends;
        let Some(marks) = self.config.marks else {
            return;
        };
        // A retransmission, or what conntrack doesn't know.
        if self.flows.get(&self.names.flow(ends)).is_some() || self.strangers.has(&ends, now) {
            return;
        }
        let (inside, outside) = (ends.inside(), ends.outside());
        let entry = gateway.conntrack(inside, outside);
        let from_client = |entry: &Entry| match syn_ack.side {
            Side::Egress => entry.original.src == inside,
            Side::Ingress => entry.original.src != inside,
        };
        match entry {
            Ok(entry) if from_client(&entry) => self.strangers.add(ends),
            Ok(entry) if marks.standing(entry.mark) == Standing::Unfollowed => {
                if gateway.mark(inside, outside, Standing::Even).is_err() {
                    self.stats.mark_errors = self.stats.mark_errors.saturating_add(1);
                }
            }
            Ok(_) => {}
            Err(_) => self.strangers.add(ends),
        }
    }

    /// Joins the connection that a segment belongs to, if that is possible.
    fn join(
        &mut self,
        name: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        marks: Marks,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Unknown {
        let record = gateway.find_record(name.outward());
        let record = record.and_then(|bytes| record::read(&bytes));
        let ends = record.as_ref().map_or(name, |record| record.ends);
        let entry = match gateway.conntrack(ends.inside(), ends.outside()) {
            Ok(entry) => entry,
            Err(Error::Kernel(_)) => return Unknown::Unanswered,
            // No entry, or none yet: what another gateway had comes a moment after its packets.
            Err(_) => return Unknown::Stranger,
        };
        let standing = marks.standing(entry.mark);
        if standing == Standing::Uneven && gateway.is_elsewhere(&entry) {
            return Unknown::Unanswered;
        }
        // Another gateway's mark may be a moment late. What it has recorded isn't.
        let followed = standing != Standing::Unfollowed || self.config.tls_range;
        let mut record = match record {
            None if followed => match gateway.fetch_record(ends.outward()) {
                Ok(found) => found.and_then(|bytes| record::read(&bytes)),
                // Without it, the connection would end.
                Err(_) if standing == Standing::Uneven => {
                    return Unknown::Orphan { certain: false };
                }
                Err(_) => None,
            },
            here => here,
        };
        // What an even connection needs is in its mark. This may be of an earlier one with the same ends.
        if standing == Standing::Even
            && let Some(Record {
                state: State::Exact(flow),
                ..
            }) = &mut record
            && !flow.goes_on_with(side, segment)
        {
            gateway.drop_record(ends.outward());
            record = None;
        }
        let found = Found {
            entry,
            standing,
            record,
        };
        let flags = segment.flags();
        let goes_on = flags.has(Flags::ACK) && !flags.has(Flags::RST) && !flags.has(Flags::FIN);
        match (found.standing, &found.record) {
            // The connection that it was about is over: this one has the same ends.
            (
                Standing::Unfollowed,
                Some(Record {
                    state: State::Exact(_),
                    ..
                }),
            ) => {
                gateway.drop_record(ends.outward());
            }
            (_, Some(_)) => return self.take_over(ends, side, segment, found, now, gateway),
            (Standing::Uneven, None) => return Unknown::Orphan { certain: true },
            // It passes unread here, and is listed; nothing in it was edited.
            (Standing::Even | Standing::Unfollowed, None)
                if goes_on && self.bypassed(&ends, &found.entry).is_some() =>
            {
                return self.take_over(ends, side, segment, found, now, gateway);
            }
            (Standing::Even, None) if goes_on => {
                return self.take_over(ends, side, segment, found, now, gateway);
            }
            (Standing::Even, None) => return Unknown::Stranger,
            (Standing::Unfollowed, None) => {}
        }
        self.strangers.add(name);
        Unknown::Stranger
    }

    /// By which setting a connection passes unread, whichever of its names is meant.
    fn bypassed(&self, ends: &Endpoints, entry: &Entry) -> Option<String> {
        let names = [Some(*ends), ends.towards_inside(entry)];
        let mut by = names
            .iter()
            .flatten()
            .map(|ends| self.config.bypassed(ends));
        by.find_map(|by| Some(by?.to_string()))
    }

    /// Goes on with a connection that somebody else has followed so far, or that nobody is to read.
    fn take_over(
        &mut self,
        ends: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        found: Found,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Unknown {
        let names = ends.towards_inside(&found.entry);
        let Some((ingress, other_end)) = names.zip(ends.at_other_end(&found.entry)) else {
            self.strangers.add(ends);
            return Unknown::Stranger;
        };
        let client = match &found.record {
            Some(record) => record.client(),
            None if found.entry.original.src == ends.inside() => Side::Egress,
            None => Side::Ingress,
        };
        let uneven = found.standing == Standing::Uneven;
        let (from, to) = ends.client_and_server(client);
        if !uneven && self.config.is_data(from, to) {
            self.strangers.add(ends);
            return Unknown::Stranger;
        }
        if self.flows.len() >= self.config.max_flows && !self.clear(now, gateway) {
            self.stats.table_full = self.stats.table_full.saturating_add(1);
            return if uneven {
                Unknown::Orphan { certain: true }
            } else {
                Unknown::Stranger
            };
        }
        let id = self.next_session();
        let admitted = self.admit(id, (from, to), true, now, gateway);
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
        let unedited = found.record.is_none();
        let bypassed = self.bypassed(&ends, &found.entry).filter(|_| unedited);
        let mut flow = match found.record.map(|record| record.state) {
            Some(State::Exact(mut flow)) => {
                flow.resume(&joined, &self.config, Second::of(now));
                *flow
            }
            Some(State::Tls { .. }) => {
                let mut flow = Flow::joined(&joined, segment, &self.config, now);
                flow.is_under_tls(&self.config);
                flow
            }
            None => {
                let mut flow = Flow::joined(&joined, segment, &self.config, now);
                if let Some(server) = self.config.embedded(to.ip()) {
                    flow.translate(server, self.epsv_servers.has(server));
                }
                flow
            }
        };
        flow.is_marked(found.standing);
        if let Some(by) = bypassed {
            flow.pass_unread();
            gateway.event(Event::Bypassed { session: id, by });
        }
        self.buffered = self.buffered.saturating_add(flow.buffered());
        self.flows.insert(ends, flow);
        self.orphans.forget(&ends);
        self.stats.joined = self.stats.joined.saturating_add(1);
        Unknown::Joined
    }
}
