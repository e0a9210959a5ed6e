//! The sans-IO core's front door: packets, time and the kernel's answers in; verdicts out.
//!
//! [`Engine::packet`] takes one packet and says what becomes of it; [`Engine::tick`] forgets what
//! is over. The engine finds the flow of a packet, follows its handshake, takes its data
//! through the session machine ([`crate::ftp`]) and its stream ([`crate::stream`]), and asks the
//! [`gateway::Gateway`] for conntrack's answers and for pinholes while the packet waits.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod announce;
mod config;
mod connection;
mod flow;
mod handshake;
mod joining;
mod names;
mod opening;
mod second;
mod stats;

pub mod event;
pub mod gateway;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

pub use config::{Advertise, Config};
pub use connection::{Entry, Tuple};
pub use stats::{SessionInfo, Stats};

pub use handshake::{Syn, SynAck};

use flow::{Context, Fate, Flow};
use gateway::Gateway;
use handshake::HalfOpen;
use joining::Strangers;
use names::{Meaning, Names};

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

    /// The end whose packets come through `side`'s hook.
    fn of_side(&self, side: Side) -> SocketAddr {
        match side {
            Side::Egress => self.inside,
            Side::Ingress => self.outside,
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

/// What one engine of several says to a packet: see [`Engine::try_packet`].
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// What becomes of it.
    Verdict(Verdict<'a>),
    /// A segment of a connection that this engine doesn't know. Ask for the engine that
    /// [knows](Engine::knows) it, and give it the packet. If there is none, tell this one with
    /// [`nobody_knows`](Engine::nobody_knows).
    Unknown(Name),
    /// A SYN-ACK whose SYN may have come to another engine. The verdict stands. Before it is
    /// carried out, ask the others whether one [edits](Engine::edits_other_end) the connection, and
    /// for its [SYN](Engine::take_syn); then tell this engine with [`answered`](Engine::answered).
    SynAck(SynAck, Verdict<'a>),
}

/// An [`Outcome`] before the packet's bytes are lent to the caller.
enum Decided {
    Verdict(Fate),
    Unknown(Name),
    SynAck(SynAck, Fate),
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
    strangers: Strangers,
    /// When room was last made in a full table.
    cleared: Option<Duration>,
    stats: Stats,
    next_id: u64,
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
            strangers: Strangers::default(),
            cleared: None,
            stats: Stats::default(),
            next_id: u64::from(worker).saturating_add(1),
            buffered: 0,
            scratch: Vec::with_capacity(2048),
        }
    }

    /// Announces other addresses from now on: see [`Config::advertise`].
    pub fn advertise(&mut self, advertise: Vec<Advertise>) {
        self.config.advertise = advertise;
    }

    /// Handles one IP packet that came through the hook of `side`; `now` is the time since start.
    /// For an engine that has all traffic to itself; else see [`try_packet`](Self::try_packet).
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
        match self.decide(side, packet, now, gateway) {
            Decided::Verdict(fate) => self.verdict(fate),
            Decided::Unknown(name) => self.nobody_knows(name, side, packet, now, gateway),
            Decided::SynAck(syn_ack, fate) => {
                self.answered(&syn_ack, false, None, now, gateway);
                self.verdict(fate)
            }
        }
    }

    // ---- several engines -------------------------------------------------------------------

    /// The same for one of several engines ([`Config::workers`]): what it can't decide alone is
    /// part of the answer.
    ///
    /// The two directions of a connection can come through different queues where NAT shows the
    /// inside end another address than the outside end has.
    pub fn try_packet(
        &mut self,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Outcome<'_> {
        match self.decide(side, packet, now, gateway) {
            Decided::Verdict(fate) => Outcome::Verdict(self.verdict(fate)),
            Decided::Unknown(name) => Outcome::Unknown(name),
            Decided::SynAck(syn_ack, fate) => Outcome::SynAck(syn_ack, self.verdict(fate)),
        }
    }

    /// Whether a segment belongs to a connection of this engine's.
    #[must_use]
    pub fn knows(&self, Name(ends): &Name) -> bool {
        self.flows.contains_key(ends) || self.names.contains(ends)
    }

    /// Whether any connection of this engine has other names: else it knows nothing that another
    /// engine can't place, but SYNs.
    #[must_use]
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// The SYN that a SYN-ACK answers, if it came to this engine. It is another's from here on.
    pub fn take_syn(&mut self, syn_ack: &SynAck) -> Option<Syn> {
        let syn = self.syn(syn_ack)?;
        self.half_open.remove(&syn);
        Some(syn)
    }

    /// What the other engines said about a SYN-ACK: whether one of them edits the connection at its
    /// other end, and the SYN that it answers.
    pub fn answered(
        &mut self,
        syn_ack: &SynAck,
        elsewhere: bool,
        syn: Option<Syn>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) {
        if let Some(syn) = self.syn(syn_ack).or(syn) {
            self.begin(syn_ack, &syn, elsewhere, now, gateway);
        } else if elsewhere {
            self.pass_elsewhere(&[syn_ack.ends], now);
        }
    }

    /// Forgets connections that ended or went quiet. To be called now and then: once a second
    /// while packets flow is plenty, once a minute at least.
    pub fn tick(&mut self, now: Duration, gateway: &mut dyn Gateway) {
        self.half_open.forget(now, self.config.half_open);
        let (linger, idle) = (self.config.linger, self.config.idle);
        self.forget(
            |flow| flow.quiet(now) >= flow.patience(idle, linger),
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
            .filter(|(_, flow)| !flow.is_closed() && flow.is_admitted())
            .map(move |(ends, flow)| flow.info(ends, now))
    }

    /// Bytes in the buffers of all connections.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    // ---- one packet ------------------------------------------------------------------------

    /// Decides about a packet. What goes on in its place is in `scratch`.
    fn decide(
        &mut self,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Decided {
        self.stats.packets = self.stats.packets.saturating_add(1);
        let Some(segment) = self.read(packet) else {
            return Decided::Verdict(Fate::Same);
        };
        self.scratch.clear();
        self.scratch.extend_from_slice(packet);
        let decided = if segment.flags().has(Flags::SYN) {
            self.handshake_segment(side, &segment, now, gateway)
        } else {
            self.later_segment(side, &segment, now, gateway)
        };
        if let Decided::Verdict(Fate::Changed) | Decided::SynAck(_, Fate::Changed) = decided {
            self.stats.changed = self.stats.changed.saturating_add(1);
        }
        decided
    }

    /// The TCP segment in a packet; `None`, and counted, if it isn't looked at.
    fn read<'a>(&mut self, packet: &'a [u8]) -> Option<Segment<'a>> {
        let counter = match Segment::parse(packet) {
            // Its receiver throws it away: it must not move our state either.
            Ok(segment) if !segment.checksum_ok() => &mut self.stats.bad_checksum,
            Ok(segment) => return Some(segment),
            Err(Reject::Fragment) => &mut self.stats.fragments,
            Err(Reject::NotTcp | Reject::Malformed) => &mut self.stats.malformed,
        };
        *counter = counter.saturating_add(1);
        None
    }

    /// A segment without SYN.
    fn later_segment(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Decided {
        let mut ends = Endpoints::of(segment, side);
        if !self.names.is_empty() && !self.flows.contains_key(&ends) {
            match self.names.meaning(&ends, now) {
                Some(Meaning::Flow(flow)) => ends = flow,
                Some(Meaning::Elsewhere { .. }) => return Decided::Verdict(Fate::Same),
                None => {}
            }
        }
        match self.flow_segment(ends, side, segment, now, gateway) {
            Some(fate) => Decided::Verdict(fate),
            None => Decided::Unknown(Name(ends)),
        }
    }

    /// A segment of the flow between these ends, if there is one. `scratch` is a copy of its packet.
    fn flow_segment(
        &mut self,
        ends: Endpoints,
        side: Side,
        segment: &Segment<'_>,
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Option<Fate> {
        let flow = self.flows.get_mut(&ends)?;
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
            crowded: self.buffered > self.config.max_buffered / 2,
        };
        let before = flow.buffered();
        let fate = flow.segment(&ends, side, segment, &mut self.scratch, &mut cx);
        let mut after = flow.buffered();
        if after > before
            && self.buffered.saturating_add(after).saturating_sub(before) > self.config.max_buffered
        {
            flow.reach_limit(side, &mut cx);
            after = flow.buffered();
        }
        self.buffered = self.buffered.saturating_add(after).saturating_sub(before);
        Some(fate)
    }

    /// A fate as the caller sees it.
    fn verdict(&self, fate: Fate) -> Verdict<'_> {
        match fate {
            Fate::Same => Verdict::Accept,
            Fate::Changed => Verdict::Replace(&self.scratch),
            Fate::Dropped => Verdict::Drop,
        }
    }
}
