//! How flows begin: handshakes, and the room for new ones.

use std::time::Duration;

use super::event::Event;
use super::flow::{Context, Fate, Flow, Hello, Known};
use super::gateway::{Gateway, SessionId};
use super::names::Meaning;
use super::{Decided, Endpoints, Engine, Side, Syn, SynAck};
use crate::stream::Seq;
use crate::wire::{Flags, Segment, SegmentMut, blank_multipath};

/// How often a full table is searched for connections that may go.
const CLEARING: Duration = Duration::from_secs(1);

impl Engine {
    /// A SYN or a SYN-ACK. What a copy of it must not carry on is taken from that.
    ///
    /// A flow begins when a SYN-ACK answers a SYN that was seen: neither a forged SYN nor a reused
    /// port disturbs a connection that is there.
    pub(super) fn handshake_segment(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Decided {
        let ends = Endpoints::of(segment, side);
        let hello = Hello::read(segment);
        let mut asks = None;
        if segment.flags().has(Flags::ACK) {
            let syn_ack = SynAck::new(ends, side, hello, Seq(segment.ack()));
            asks = self.syn_ack(syn_ack, now, gateway);
        } else {
            self.syn_waits(Syn::new(ends, side, hello, now));
        }
        let fate = if Self::strip(segment, &mut self.scratch) {
            self.stats.stripped = self.stats.stripped.saturating_add(1);
            Fate::Changed
        } else {
            Fate::Same
        };
        match asks {
            Some(syn_ack) => Decided::SynAck(syn_ack, fate),
            None => Decided::Verdict(fate),
        }
    }

    /// A SYN: it waits for its SYN-ACK.
    fn syn_waits(&mut self, syn: Syn) {
        let forgotten = self.half_open.insert(syn, self.config.max_flows);
        let forgotten = u64::try_from(forgotten).unwrap_or(u64::MAX);
        self.stats.table_full = self.stats.table_full.saturating_add(forgotten);
    }

    /// A SYN-ACK. Returned if the other engines must be asked about it first, where there are such.
    fn syn_ack(
        &mut self,
        syn_ack: SynAck,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Option<SynAck> {
        let syn = self.syn(&syn_ack);
        let elsewhere = self.edits_other_end(&syn_ack);
        // Where the names differ, so may the queues that packets of either end come through.
        let incomplete = !elsewhere && (syn.is_none() || syn_ack.side == Side::Ingress);
        if incomplete && !self.is_known(&syn_ack) {
            return Some(syn_ack);
        }
        self.answered(&syn_ack, elsewhere, None, now, gateway);
        None
    }

    /// Takes from a SYN what would keep the connection from being read; whether there was such. `packet`
    /// is a copy of it that may be changed.
    ///
    /// Data in it (TCP Fast Open): it would be taken before anybody knows what the server makes of it. It
    /// may get lost on any path: then only the SYN is acknowledged, and the sender sends its data
    /// again in a segment of its own (RFC 7413 §4.2.2). Multipath TCP: its second sequence space and its
    /// checksums don't bear edits, and further subflows may take another way. Where the option doesn't
    /// arrive, both ends speak plain TCP (RFC 8684 §3.7).
    pub(super) fn strip(segment: &Segment<'_>, packet: &mut Vec<u8>) -> bool {
        let data = !segment.payload().is_empty();
        let multipath = segment.options().multipath;
        let mut out = SegmentMut::new(packet, segment.layout());
        if multipath {
            out.edit_options(blank_multipath);
        }
        if data {
            // Its place would be behind the data.
            if segment.flags().has(Flags::FIN) {
                out.clear_flags(Flags::FIN);
            }
            out.set_payload(&[]);
        }
        data || multipath
    }

    /// Passes the packets between these ends: the connection is edited at its other end.
    pub(super) fn pass_elsewhere(&mut self, names: &[Endpoints], now: Duration) {
        let max = self.config.max_names();
        for ends in names {
            let elsewhere = Meaning::Elsewhere { seen: now };
            self.names.insert(*ends, elsewhere, max);
        }
    }

    /// The SYN that it answers.
    pub(super) fn syn(&self, syn_ack: &SynAck) -> Option<Syn> {
        let half_open = &self.half_open;
        half_open
            .direct(syn_ack)
            .or_else(|| half_open.translated(syn_ack))
    }

    /// Whether the flow is there already: the SYN-ACK came again.
    fn is_known(&self, syn_ack: &SynAck) -> bool {
        let flow = self.flows.get(&self.names.flow(syn_ack.ends));
        flow.is_some_and(|flow| flow.began_with(syn_ack.client(), syn_ack.hello.isn))
    }

    /// Whether this engine edits the connection of a SYN-ACK at its other end, the server's: both
    /// ends are inside.
    #[must_use]
    pub fn edits_other_end(&self, syn_ack: &SynAck) -> bool {
        let flow = self.flows.get(&self.names.flow(syn_ack.mirrored()));
        syn_ack.side == Side::Ingress
            && flow.is_some_and(|flow| flow.began_with(syn_ack.client(), syn_ack.hello.isn))
    }

    /// A SYN was answered: its flow begins, unless the connection is edited `elsewhere`.
    pub(super) fn begin(
        &mut self,
        syn_ack: &SynAck,
        syn: &Syn,
        elsewhere: bool,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) {
        self.half_open.remove(syn);
        if elsewhere {
            self.pass_elsewhere(&[syn.ends, syn_ack.ends], now);
            return;
        }
        let (ends, ingress) = match syn_ack.side {
            Side::Egress => (syn_ack.ends, syn.ends),
            Side::Ingress => (syn.ends, syn_ack.ends),
        };
        if ends != ingress && !is_translation(gateway, ends, ingress) {
            return;
        }
        if !self.make_room(ends, syn, &syn_ack.hello, now, gateway) {
            return;
        }
        let (id, admitted) = self.admit(ends, syn.side, false, now, gateway);
        if ends != ingress {
            // The same client port towards another address, some time ago.
            self.replace(&ingress, gateway);
            let flow = Meaning::Flow(ends);
            self.names.insert(ingress, flow, self.config.max_names());
        }
        self.names.remove(&ends);
        let implicit = self.is_implicit(ends, syn.side);
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
            crowded: false,
        };
        let known = Known {
            v6: ends.inside.is_ipv6(),
            admitted,
            implicit,
        };
        let flow = Flow::new(id, syn.side, syn.hello, syn_ack.hello, known, &mut cx);
        self.flows.insert(ends, Box::new(flow));
    }

    /// Gives a session its number, and says whether the gateway counts it as one. `client`: the hook
    /// that the client's packets come through; `joined`: it is under way already.
    pub(super) fn admit(
        &mut self,
        ends: Endpoints,
        client: Side,
        joined: bool,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> (SessionId, bool) {
        let session = SessionId(self.next_id);
        let step = u64::from(self.config.workers.max(1));
        self.next_id = self.next_id.wrapping_add(step);
        let (client, server) = (ends.of_side(client), ends.of_side(client.opposite()));
        let mut admitted = gateway.admit(session, client.ip());
        if admitted.is_err() && self.clear(now, gateway) {
            admitted = gateway.admit(session, client.ip());
        }
        match &admitted {
            Err(error) => {
                self.stats.not_admitted = self.stats.not_admitted.saturating_add(1);
                gateway.event(Event::NotAdmitted {
                    session,
                    client,
                    server,
                    why: error.to_string(),
                });
            }
            Ok(()) => {
                self.stats.sessions = self.stats.sessions.saturating_add(1);
                gateway.event(Event::SessionOpened {
                    session,
                    client,
                    server,
                    joined,
                });
            }
        }
        (session, admitted.is_ok())
    }

    /// Whether the server between these ends is spoken to under TLS from the first byte.
    fn is_implicit(&self, ends: Endpoints, client: Side) -> bool {
        let server = ends.of_side(client.opposite());
        self.config.implicit_ports.contains(&server.port())
    }

    /// Makes room for a flow; false if it is there already, or if there are too many.
    fn make_room(
        &mut self,
        ends: Endpoints,
        syn: &Syn,
        hello: &Hello,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> bool {
        if let Some(old) = self.flows.get(&ends) {
            if old.began_with(syn.hello.isn, hello.isn) {
                return false;
            }
            self.replace(&ends, gateway);
        }
        if self.flows.len() >= self.config.max_flows {
            self.clear(now, gateway);
            if self.flows.len() >= self.config.max_flows {
                self.stats.table_full = self.stats.table_full.saturating_add(1);
                return false;
            }
        }
        true
    }

    /// Forgets flows that may go where room is needed; whether there were any. It isn't done for each
    /// connection of a flood.
    pub(super) fn clear(&mut self, now: Duration, gateway: &mut dyn Gateway) -> bool {
        if self
            .cleared
            .is_some_and(|at| now.saturating_sub(at) < CLEARING)
        {
            return false;
        }
        self.cleared = Some(now);
        let (before, patience) = (self.flows.len(), self.config.half_open);
        self.forget(
            |flow| flow.is_closed() || flow.is_idle_guest(now, patience),
            gateway,
        );
        self.flows.len() < before
    }

    /// Forgets a flow whose name a new connection has.
    fn replace(&mut self, ends: &Endpoints, gateway: &mut dyn Gateway) {
        if let Some(mut old) = self.flows.remove(ends) {
            old.close("replaced", gateway);
            self.buffered = self.buffered.saturating_sub(old.buffered());
            self.names.forget_flow(ends);
        }
    }
}

/// Whether conntrack says that `ingress` are the ends of the connection `ends` before the address of
/// the outside one is translated for the inside one.
fn is_translation(gateway: &mut dyn Gateway, ends: Endpoints, ingress: Endpoints) -> bool {
    let Ok(entry) = gateway.conntrack(ends.inside, ends.outside) else {
        return false;
    };
    let directions = entry.from_sender(ends.outward());
    directions
        .is_some_and(|(_, inward)| ingress.inside == ends.inside && ingress.outside == inward.src)
}
