//! The sans-IO core's front door: packets, time and the kernel's answers in; verdicts out.
//!
//! [`Engine::packet`] takes one packet and says what becomes of it; [`Engine::tick`] forgets what
//! is over. The engine finds the flow of a packet, follows its handshake, takes its data
//! through the session machine ([`crate::ftp`]) and its stream ([`crate::stream`]), and asks the
//! [`gateway::Gateway`] for conntrack's answers and for pinholes while the packet waits.

mod announce;
mod config;
mod flow;
mod handshake;
mod names;
mod range;
mod second;
mod stats;
mod tls;

pub mod event;
pub mod gateway;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use config::{Advertise, Config};
pub use stats::{SessionInfo, Stats};

use event::Event;
pub use handshake::{Answer, Syn};

use flow::{Context, Fate, Flow, Hello, Known};
use gateway::{Gateway, SessionId};
use handshake::HalfOpen;
use names::{Meaning, Names};

use crate::nat::conntrack::Tuple;
use crate::stream::Seq;
use crate::wire::{Flags, Reject, Segment};

/// Which hook a packet came through: its direction, seen from the private side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// From the inside: `raw PREROUTING`, or `raw OUTPUT` for local processes.
    Egress,
    /// Towards the inside: `mangle POSTROUTING`, or `mangle INPUT` for local processes.
    Ingress,
}

impl Side {
    const fn opposite(self) -> Self {
        match self {
            Self::Egress => Self::Ingress,
            Self::Ingress => Self::Egress,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Egress => 0,
            Self::Ingress => 1,
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It goes on as it is.
    Accept,
    /// These bytes go on in its place.
    Replace(&'a [u8]),
    /// It doesn't go on: its sender will send it again.
    Drop,
}

/// The two ends of a control connection, as both hooks see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Endpoints {
    inside: SocketAddr,
    outside: SocketAddr,
}

impl Endpoints {
    fn of(segment: &Segment<'_>, side: Side) -> Self {
        let (source, destination) = (segment.source(), segment.destination());
        match side {
            Side::Egress => Self {
                inside: source,
                outside: destination,
            },
            Side::Ingress => Self {
                inside: destination,
                outside: source,
            },
        }
    }

    /// The tuple of what the inside end sends.
    fn outward(&self) -> Tuple {
        Tuple {
            src: self.inside,
            dst: self.outside,
        }
    }
}

/// How often a full table is searched for connections that may go.
const CLEARING: Duration = Duration::from_secs(1);
/// How many servers with that habit are remembered.
const EARLY_SERVERS: usize = 1024;

/// What an engine couldn't place by itself, while others have engines, too.
#[derive(Clone, Copy, Debug)]
pub enum Unplaced {
    /// A segment of a connection that it doesn't know.
    Segment(Name),
    /// A SYN-ACK: it may answer a SYN that came to another engine.
    Answer(Answer),
}

/// How a packet names the ends of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(Endpoints);

/// All control connections of one worker.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    /// Boxed, so that the room that the table keeps to grow costs little.
    flows: HashMap<Endpoints, Box<Flow>>,
    /// Other names of flows.
    names: Names,
    half_open: HalfOpen,
    /// When room was last made in a full table.
    cleared: Option<Duration>,
    unplaced: Option<Unplaced>,
    stats: Stats,
    next_id: u64,
    /// Servers that connect as soon as they read a `PORT`.
    early: HashSet<IpAddr>,
    /// Bytes in the buffers of all flows.
    buffered: usize,
    scratch: Vec<u8>,
}

impl Engine {
    /// An engine without flows, the one with number `worker` (from 0) of [`Config::workers`].
    ///
    /// Its sessions are numbered `worker + 1`, `worker + 1 + workers` and so on, so that several
    /// engines together use small numbers, each once.
    #[must_use]
    pub fn new(config: Config, worker: u16) -> Self {
        Self {
            config,
            flows: HashMap::new(),
            names: Names::default(),
            half_open: HalfOpen::default(),
            cleared: None,
            unplaced: None,
            stats: Stats::default(),
            next_id: u64::from(worker).saturating_add(1),
            early: HashSet::new(),
            buffered: 0,
            scratch: Vec::with_capacity(2048),
        }
    }

    /// Announces other addresses from now on: see [`Config::advertise`].
    pub fn advertise(&mut self, advertise: Vec<Advertise>) {
        self.config.advertise = advertise;
    }

    /// Handles one IP packet that came through the hook of `side`; `now` is the time since start.
    ///
    /// Whatever the packet is, there is no panic and no unbounded memory; what isn't understood
    /// passes unmodified and is counted.
    pub fn packet(
        &mut self,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Verdict<'_> {
        self.stats.packets = self.stats.packets.saturating_add(1);
        let segment = match Segment::parse(packet) {
            Ok(segment) => segment,
            Err(Reject::Fragment) => return pass(&mut self.stats.fragments),
            Err(Reject::NotTcp | Reject::Malformed) => return pass(&mut self.stats.malformed),
        };
        // The receiver will throw it away: it must not move our state either.
        if !segment.checksum_ok() {
            return pass(&mut self.stats.bad_checksum);
        }
        let mut ends = Endpoints::of(&segment, side);
        if segment.flags().has(Flags::SYN) {
            self.handshake(ends, side, &segment, now, gateway);
            return Verdict::Accept;
        }
        if !self.names.is_empty() && !self.flows.contains_key(&ends) {
            match self.names.meaning(&ends, now) {
                Some(Meaning::Flow(flow)) => ends = flow,
                Some(Meaning::Elsewhere { .. }) => return Verdict::Accept,
                None => {}
            }
        }
        let Some(flow) = self.flows.get_mut(&ends) else {
            if self.config.workers > 1 {
                self.unplaced = Some(Unplaced::Segment(Name(ends)));
                return Verdict::Accept;
            }
            return pass(&mut self.stats.mid_stream);
        };
        self.scratch.clear();
        self.scratch.extend_from_slice(packet);
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
            crowded: self.buffered > self.config.max_buffered / 2,
        };
        let before = flow.buffered();
        let fate = flow.segment(&ends, side, &segment, &mut self.scratch, &mut cx);
        let mut after = flow.buffered();
        if after > before
            && self.buffered.saturating_add(after).saturating_sub(before) > self.config.max_buffered
        {
            flow.reach_limit(side, &mut cx);
            after = flow.buffered();
        }
        self.buffered = self.buffered.saturating_add(after).saturating_sub(before);
        if flow.connects_early() && self.early.len() < EARLY_SERVERS {
            self.early.insert(flow.client_and_server(&ends).1.ip());
        }
        match fate {
            Fate::Same => Verdict::Accept,
            Fate::Dropped => Verdict::Drop,
            Fate::Changed => {
                self.stats.changed = self.stats.changed.saturating_add(1);
                Verdict::Replace(&self.scratch)
            }
        }
    }

    /// A flow begins when a SYN-ACK answers a SYN that was seen: neither a forged SYN nor a reused
    /// port disturbs a connection that is there.
    fn handshake(
        &mut self,
        ends: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) {
        let hello = Hello::read(segment);
        if !segment.flags().has(Flags::ACK) {
            let syn = Syn::new(ends, side, hello, now);
            let forgotten = self.half_open.insert(syn, self.config.max_flows);
            let forgotten = u64::try_from(forgotten).unwrap_or(u64::MAX);
            self.stats.table_full = self.stats.table_full.saturating_add(forgotten);
            return;
        }
        let answer = Answer::new(ends, side, hello, Seq(segment.ack()));
        let syn = self.syn(&answer);
        let handled = self.handles(&answer);
        // Where the names differ, so may the queues that packets of either end come through.
        let ask = self.config.workers > 1 && !handled && (syn.is_none() || side == Side::Ingress);
        if ask && !self.is_known(&answer) {
            self.unplaced = Some(Unplaced::Answer(answer));
        } else if let Some(syn) = syn {
            self.begin(&answer, &syn, handled, now, gateway);
        } else if handled {
            self.pass_elsewhere(&[answer.ends], now);
        }
    }

    /// Passes the packets between these ends: the connection is edited at its other end.
    fn pass_elsewhere(&mut self, names: &[Endpoints], now: Duration) {
        let max = self.config.max_names();
        for ends in names {
            let elsewhere = Meaning::Elsewhere { seen: now };
            self.names.insert(*ends, elsewhere, max);
        }
    }

    /// The SYN that it answers.
    fn syn(&self, answer: &Answer) -> Option<Syn> {
        let half_open = &self.half_open;
        half_open
            .direct(answer)
            .or_else(|| half_open.translated(answer))
    }

    /// Whether the flow is there already: the SYN-ACK came again.
    fn is_known(&self, answer: &Answer) -> bool {
        let flow = self.flows.get(&self.names.flow(answer.ends));
        flow.is_some_and(|flow| flow.began_with(answer.client(), answer.hello.isn))
    }

    /// Whether the connection is edited at its other end, the server's: both are inside.
    fn handles(&self, answer: &Answer) -> bool {
        let flow = self.flows.get(&self.names.flow(answer.mirrored()));
        answer.side == Side::Ingress
            && flow.is_some_and(|flow| flow.began_with(answer.client(), answer.hello.isn))
    }

    /// A SYN was answered.
    fn begin(
        &mut self,
        answer: &Answer,
        syn: &Syn,
        handled: bool,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) {
        self.half_open.remove(&syn.ends);
        if handled {
            self.pass_elsewhere(&[syn.ends, answer.ends], now);
            return;
        }
        let (ends, ingress) = match answer.side {
            Side::Egress => (answer.ends, syn.ends),
            Side::Ingress => (syn.ends, answer.ends),
        };
        if ends != ingress && !is_translation(gateway, ends, ingress) {
            return;
        }
        if !self.make_room(ends, syn, &answer.hello, now, gateway) {
            return;
        }
        let id = SessionId(self.next_id);
        let step = u64::from(self.config.workers.max(1));
        self.next_id = self.next_id.wrapping_add(step);
        let (client, server) = match syn.side {
            Side::Egress => (ends.inside, ends.outside),
            Side::Ingress => (ends.outside, ends.inside),
        };
        let mut admitted = gateway.admit(id, client.ip());
        if admitted.is_err() && self.clear(now, gateway) {
            admitted = gateway.admit(id, client.ip());
        }
        if let Err(error) = admitted {
            self.stats.not_admitted = self.stats.not_admitted.saturating_add(1);
            gateway.event(Event::NotAdmitted {
                session: id,
                client,
                server,
                why: error.to_string(),
            });
            return;
        }
        self.stats.sessions = self.stats.sessions.saturating_add(1);
        if ends != ingress {
            // The same client port towards another address, some time ago.
            self.replace(&ingress, gateway);
            let flow = Meaning::Flow(ends);
            self.names.insert(ingress, flow, self.config.max_names());
        }
        self.names.remove(&ends);
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
            crowded: false,
        };
        let known = Known {
            v6: ends.inside.is_ipv6(),
            connects_early: self.early.contains(&server.ip()),
            implicit: self.config.implicit_ports.contains(&server.port()),
        };
        let flow = Flow::new(id, syn.side, syn.hello, answer.hello, known, &mut cx);
        gateway.event(Event::SessionOpened {
            session: id,
            client,
            server,
        });
        self.flows.insert(ends, Box::new(flow));
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
    fn clear(&mut self, now: Duration, gateway: &mut dyn Gateway) -> bool {
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

    // ---- several engines -------------------------------------------------------------------

    /// What the last packet was, if it was accepted because this engine couldn't place it: to be
    /// asked for after each packet where there are several engines ([`Config::workers`]).
    ///
    /// The two directions of a connection can come through different queues where NAT shows the
    /// inside end another address than the outside end has. Then ask the other engines: for a
    /// segment, the one that [`knows`](Self::knows) it handles the packet; if there is none,
    /// [`nobodys`](Self::nobodys) counts it. For a SYN-ACK, ask them whether one knows it and for
    /// its [SYN](Self::take_syn), and tell this one with [`answered`](Self::answered).
    pub fn take_unplaced(&mut self) -> Option<Unplaced> {
        self.unplaced.take()
    }

    /// Whether a segment belongs to a connection of this engine's, or a SYN-ACK to one that it
    /// edits at the other end.
    #[must_use]
    pub fn knows(&self, what: &Unplaced) -> bool {
        match what {
            Unplaced::Segment(Name(ends)) => {
                self.flows.contains_key(ends) || self.names.contains(ends)
            }
            Unplaced::Answer(answer) => self.handles(answer),
        }
    }

    /// Whether any connection of this engine has other names: else it knows nothing that another
    /// engine can't place, but SYNs.
    #[must_use]
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// The SYN that it answers, if it came to this engine. It is another's from here on.
    pub fn take_syn(&mut self, answer: &Answer) -> Option<Syn> {
        let syn = self.syn(answer)?;
        self.half_open.remove(&syn.ends);
        Some(syn)
    }

    /// What the others said about a SYN-ACK: whether one knows it, and the SYN that it answers.
    pub fn answered(
        &mut self,
        answer: &Answer,
        known: bool,
        syn: Option<Syn>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) {
        if let Some(syn) = self.syn(answer).or(syn) {
            self.begin(answer, &syn, known, now, gateway);
        } else if known {
            self.pass_elsewhere(&[answer.ends], now);
        }
    }

    /// No engine knows the segment.
    pub fn nobodys(&mut self) {
        self.stats.mid_stream = self.stats.mid_stream.saturating_add(1);
    }

    /// Forgets connections that ended or went quiet. To be called now and then: once a second
    /// while packets flow is plenty, once a minute at least.
    pub fn tick(&mut self, now: Duration, gateway: &mut dyn Gateway) {
        self.half_open.forget(now, self.config.half_open);
        let (linger, idle) = (self.config.linger, self.config.idle);
        self.forget(
            |flow| flow.quiet(now) >= if flow.may_be_over() { linger } else { idle },
            gateway,
        );
        let flows = &self.flows;
        self.names.forget(now, |ends| flows.contains_key(ends));
    }

    fn forget(&mut self, which: impl Fn(&Flow) -> bool, gateway: &mut dyn Gateway) {
        let mut buffered = 0usize;
        self.flows.retain(|_, flow| {
            let gone = which(flow);
            if gone {
                flow.close("idle", gateway);
            } else {
                buffered = buffered.saturating_add(flow.buffered());
            }
            !gone
        });
        self.buffered = buffered;
    }

    /// What was counted since the start.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The control connections at `now`, closed ones left out.
    pub fn sessions(&self, now: Duration) -> impl Iterator<Item = SessionInfo> {
        self.flows
            .iter()
            .filter(|(_, flow)| !flow.is_closed())
            .map(move |(ends, flow)| flow.info(ends, now))
    }

    /// Bytes in the buffers of all connections.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered
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

fn pass(counter: &mut u64) -> Verdict<'static> {
    *counter = counter.saturating_add(1);
    Verdict::Accept
}
