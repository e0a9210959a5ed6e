//! How flows begin: handshakes, and evictions from a full table.

use std::net::SocketAddr;
use std::time::Duration;

use super::endpoints::Endpoints;
use super::event::Event;
use super::flow::{Context, Fate, Flow, FlowOptions, Hello};
use super::gateway::{Gateway, SessionId};
use super::names::Meaning;
use super::{Decided, Engine, Side, Syn, SynAck};
use crate::stream::Seq;
use crate::wire::{Flags, Segment, SegmentMut, blank_multipath};

/// How often a search of a full table may begin.
const CLEARING: Duration = Duration::from_secs(1);

impl Engine {
    /// Handles a SYN or a SYN-ACK.
    ///
    /// A flow begins when a SYN-ACK answers a SYN that was seen. So neither a forged SYN nor a
    /// reused port disturbs a connection that exists.
    pub(super) fn handshake_segment(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Decided {
        let ends = Endpoints::of(segment, side);
        let is_answer = segment.flags().has(Flags::ACK);
        let client_at = if is_answer { side.opposite() } else { side };
        let (client, server) = ends.client_and_server(client_at);
        if self.config.is_data(client, server) {
            return Decided::Verdict(Fate::Same);
        }
        let hello = Hello::read(segment);
        let mut asks = None;
        if is_answer {
            let syn_ack = SynAck::new(ends, side, hello, Seq(segment.ack()), now);
            asks = self.syn_ack(syn_ack, now, gateway);
        } else if self.holding {
            return Decided::Verdict(Fate::Dropped);
        } else {
            self.syn_waits(Syn::new(ends, side, hello, now));
        }
        let fate =
            if self.config.bypassed(&ends).is_none() && Self::strip(segment, &mut self.scratch) {
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
        let forgotten = self.half_open.insert(syn);
        let forgotten = u64::try_from(forgotten).unwrap_or(u64::MAX);
        self.stats.table_full = self.stats.table_full.saturating_add(forgotten);
    }

    /// A SYN-ACK. Returned if the other engines, if any, must be asked about it first.
    fn syn_ack(
        &mut self,
        syn_ack: SynAck,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Option<SynAck> {
        let syn = self.syn(&syn_ack);
        let elsewhere = self.edits_other_end(&syn_ack);
        // If NAT gives the connection another name here, its SYN may have come through another
        // queue.
        let incomplete = !elsewhere && (syn.is_none() || syn_ack.side == Side::Ingress);
        if incomplete && !self.is_known(&syn_ack) {
            return Some(syn_ack);
        }
        self.answered(&syn_ack, elsewhere, None, now, gateway);
        None
    }

    /// Removes from a SYN or SYN-ACK what would prevent the inspection of the connection. Returns
    /// whether anything was removed. `packet` is a copy of it that may be changed.
    ///
    /// - Data (TCP Fast Open). It would be taken in before the server has accepted it. Without it,
    ///   only the SYN is acknowledged, and the sender sends the data again in a segment of its own
    ///   (RFC 7413 §4.2.2).
    /// - Multipath TCP. Its data sequence numbers and checksums don't survive edits, and further
    ///   subflows may take another path. Without the option, both ends use plain TCP (RFC 8684
    ///   §3.7).
    pub(super) fn strip(segment: &Segment<'_>, packet: &mut Vec<u8>) -> bool {
        let data = !segment.payload().is_empty();
        let multipath = segment.options().multipath;
        let mut out = SegmentMut::new(packet, segment.layout());
        if multipath {
            out.edit_options(blank_multipath);
        }
        if data {
            // It comes after the data, and so with it.
            if segment.flags().has(Flags::FIN) {
                out.clear_flags(Flags::FIN);
            }
            out.set_payload(&[]);
        }
        data || multipath
    }

    /// Remembers that a connection with these names is edited at its other end, and passes here.
    pub(super) fn pass_elsewhere(&mut self, names: &[Endpoints], now: Duration) {
        let max = self.config.max_names();
        for ends in names {
            let elsewhere = Meaning::Elsewhere { seen: now };
            self.names.insert(*ends, elsewhere, max);
        }
    }

    /// The SYN that a SYN-ACK answers.
    pub(super) fn syn(&self, syn_ack: &SynAck) -> Option<Syn> {
        let half_open = &self.half_open;
        half_open
            .direct(syn_ack)
            .or_else(|| half_open.translated(syn_ack))
    }

    /// Whether the flow exists: the SYN-ACK is a retransmission.
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
        let id = self.next_session();
        let admitted = self.admit(id, ends.client_and_server(syn.side), false, now, gateway);
        self.give_name(ends, ingress, gateway);
        let (_, server) = ends.client_and_server(syn.side);
        let options = FlowOptions {
            v6: ends.inside().is_ipv6(),
            admitted,
            implicit: self.config.implicit_ports.contains(&server.port()),
        };
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
            crowded: false,
            holding: false,
            ending: false,
            put_off: false,
        };
        let mut flow = Flow::new(id, syn.side, syn.hello, syn_ack.hello, options, &mut cx);
        if let Some(server) = cx.config.embedded(server.ip()) {
            flow.translate(server, self.epsv_servers.has(server));
        }
        let names = [syn.ends, syn_ack.ends];
        if let Some(by) = names.iter().find_map(|ends| cx.config.bypassed(ends)) {
            flow.pass_unread();
            let by = by.to_string();
            cx.gateway.event(Event::Bypassed { session: id, by });
        }
        // Whatever of the handshake gets lost with this process, the next one can go on.
        flow.leave_word(&ends, &self.names, &mut cx);
        self.flows.insert(ends, flow);
    }

    pub(super) fn next_session(&mut self) -> SessionId {
        let id = SessionId(self.next_id);
        let step = u64::from(self.config.workers.max(1));
        self.next_id = self.next_id.wrapping_add(step);
        id
    }

    /// Asks the gateway to admit a session, and reports what it says. If a limit is reached, flows
    /// are evicted, and it is asked once more. `joined`: the session is under way already.
    pub(super) fn admit(
        &mut self,
        session: SessionId,
        (client, server): (SocketAddr, SocketAddr),
        joined: bool,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> bool {
        let mut admitted = gateway.admit(session, client.ip());
        if admitted.is_err() && self.clear(now, gateway) {
            admitted = gateway.admit(session, client.ip());
        }
        let (counter, event) = match &admitted {
            Ok(()) => (
                &mut self.stats.sessions,
                Event::SessionOpened {
                    session,
                    client,
                    server,
                    joined,
                },
            ),
            Err(error) => (
                &mut self.stats.not_admitted,
                Event::NotAdmitted {
                    session,
                    client,
                    server,
                    why: error.to_string(),
                },
            ),
        };
        *counter = counter.saturating_add(1);
        gateway.event(event);
        admitted.is_ok()
    }

    /// Remembers that packets towards the inside name a new flow `ingress`, if that differs.
    pub(super) fn give_name(
        &mut self,
        ends: Endpoints,
        ingress: Endpoints,
        gateway: &mut dyn Gateway,
    ) {
        if ends != ingress {
            // An earlier connection of the same client port to another address.
            self.replace(&ingress, gateway);
            let flow = Meaning::Flow(ends);
            self.names.insert(ingress, flow, self.config.max_names());
        }
        self.names.remove(&ends);
    }

    /// Makes room for a flow. False if it exists, or if the table is full and nothing can be
    /// evicted.
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

    /// Evicts flows from a full table. Returns whether there were any to evict.
    ///
    /// One call visits a slice of the table, as in [`tick`](Self::tick), and the next one goes on
    /// from there. A new search begins no earlier than a second after the last one began.
    pub(super) fn clear(&mut self, now: Duration, gateway: &mut dyn Gateway) -> bool {
        if self.clearing.walk.is_over() {
            let began = self.clearing.began;
            if began.is_some_and(|at| now.saturating_sub(at) < CLEARING) {
                return false;
            }
            self.clearing.began = Some(now);
            self.clearing.walk = self.flows.walk();
        }
        let (before, patience) = (self.flows.len(), self.config.half_open);
        let may_go = |flow: &Flow| flow.is_closed() || flow.is_idle_guest(now, patience);
        self.clearing.walk = self.forget(self.clearing.walk, may_go, gateway);
        self.flows.len() < before
    }

    /// Forgets a flow whose ends a new connection has.
    fn replace(&mut self, ends: &Endpoints, gateway: &mut dyn Gateway) {
        if let Some(mut old) = self.flows.remove(ends) {
            self.buffered = self.buffered.saturating_sub(old.buffered());
            old.close("replaced", gateway);
            old.take_word_back(ends, gateway);
            self.names.forget_flow(ends);
        }
    }
}

/// Whether conntrack confirms that `ingress` is the other name of the connection `ends`, before its
/// source is translated.
fn is_translation(gateway: &mut dyn Gateway, ends: Endpoints, ingress: Endpoints) -> bool {
    let entry = gateway.conntrack(ends.inside(), ends.outside());
    entry.is_ok_and(|entry| ends.towards_inside(&entry) == Some(ingress))
}
