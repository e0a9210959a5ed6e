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

pub use handshake::{Answer, Syn};

use flow::{Context, Fate, Flow};
use gateway::Gateway;
use handshake::HalfOpen;
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
            self.scratch.clear();
            self.scratch.extend_from_slice(packet);
            if !Self::strip(&segment, &mut self.scratch) {
                return Verdict::Accept;
            }
            self.stats.stripped = self.stats.stripped.saturating_add(1);
            self.stats.changed = self.stats.changed.saturating_add(1);
            return Verdict::Replace(&self.scratch);
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
        match fate {
            Fate::Same => Verdict::Accept,
            Fate::Dropped => Verdict::Drop,
            Fate::Changed => {
                self.stats.changed = self.stats.changed.saturating_add(1);
                Verdict::Replace(&self.scratch)
            }
        }
    }

    // ---- several engines -------------------------------------------------------------------

    /// What the last packet was, if this engine couldn't place it: to be asked for after each packet
    /// where there are several engines ([`Config::workers`]).
    ///
    /// The two directions of a connection can come through different queues where NAT shows the
    /// inside end another address than the outside end has. Then ask the other engines: for a
    /// segment, which was accepted, the one that [`knows`](Self::knows) it handles the packet; if there is
    /// none, [`nobodys`](Self::nobodys) counts it. For a SYN-ACK, whose verdict stands, ask them whether one knows it and for
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
        self.half_open.remove(&syn);
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
}

fn pass(counter: &mut u64) -> Verdict<'static> {
    *counter = counter.saturating_add(1);
    Verdict::Accept
}
