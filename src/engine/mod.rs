//! The sans-IO core's front door: packets, time and the kernel's answers in; verdicts out.
//!
//! [`Engine::packet`] takes one packet and says what becomes of it; [`Engine::tick`] forgets what
//! is over. The engine finds the flow of a packet, follows its handshake, takes its data
//! through the session machine ([`crate::ftp`]) and its stream ([`crate::stream`]), and asks the
//! [`gateway::Gateway`] for conntrack's answers and for pinholes while the packet waits.

mod announce;
mod config;
mod flow;
mod range;
mod second;
mod stats;

pub mod event;
pub mod gateway;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use config::{Advertise, Config};
pub use stats::{SessionInfo, Stats};

use event::Event;
use flow::{Context, Fate, Flow, Hello, Known};
use gateway::{Gateway, SessionId};

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
}

/// How many servers with that habit are remembered.
const EARLY_SERVERS: usize = 1024;

/// A SYN that hasn't been answered.
#[derive(Clone, Copy, Debug)]
struct HalfOpen {
    side: Side,
    hello: Hello,
    at: Duration,
}

/// All control connections of one worker.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    flows: HashMap<Endpoints, Flow>,
    half_open: HashMap<Endpoints, HalfOpen>,
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
            half_open: HashMap::new(),
            stats: Stats::default(),
            next_id: u64::from(worker).saturating_add(1),
            early: HashSet::new(),
            buffered: 0,
            scratch: Vec::with_capacity(2048),
        }
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
        let ends = Endpoints::of(&segment, side);
        if segment.flags().has(Flags::SYN) {
            self.handshake(ends, side, &segment, now, gateway);
            return Verdict::Accept;
        }
        let Some(flow) = self.flows.get_mut(&ends) else {
            return pass(&mut self.stats.mid_stream);
        };
        self.scratch.clear();
        self.scratch.extend_from_slice(packet);
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
        };
        let before = flow.buffered();
        let fate = flow.segment(&ends, side, &segment, &mut self.scratch, &mut cx);
        let mut after = flow.buffered();
        if after > before
            && self.buffered.saturating_add(after).saturating_sub(before) > self.config.max_buffered
        {
            flow.end_inspection("limit", &mut cx);
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
            if self.half_open.len() >= self.config.max_flows {
                let limit = self.config.half_open;
                self.half_open
                    .retain(|_, syn| now.saturating_sub(syn.at) < limit);
            }
            if self.half_open.len() < self.config.max_flows {
                self.half_open.insert(
                    ends,
                    HalfOpen {
                        side,
                        hello,
                        at: now,
                    },
                );
            } else {
                self.stats.table_full = self.stats.table_full.saturating_add(1);
            }
            return;
        }
        let Some(syn) = self.half_open.get(&ends).copied() else {
            return;
        };
        let answered = Seq(segment.ack());
        let data_in_syn = syn.hello.untouchable;
        if syn.side == side || (answered != syn.hello.isn.plus(1) && !data_in_syn) {
            return;
        }
        self.half_open.remove(&ends);
        if let Some(old) = self.flows.get_mut(&ends) {
            if old.began_with(syn.hello.isn, hello.isn) {
                return;
            }
            old.close("replaced", gateway);
            self.buffered = self.buffered.saturating_sub(old.buffered());
            self.flows.remove(&ends);
        }
        if self.flows.len() >= self.config.max_flows {
            self.forget(|flow| flow.is_closed(), gateway);
            if self.flows.len() >= self.config.max_flows {
                self.stats.table_full = self.stats.table_full.saturating_add(1);
                return;
            }
        }
        let id = SessionId(self.next_id);
        let step = u64::from(self.config.workers.max(1));
        self.next_id = self.next_id.wrapping_add(step);
        self.stats.sessions = self.stats.sessions.saturating_add(1);
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
        };
        let server = segment.source().ip();
        let known = Known {
            v6: ends.inside.is_ipv6(),
            connects_early: self.early.contains(&server),
            implicit: self
                .config
                .implicit_ports
                .contains(&segment.source().port()),
        };
        let flow = Flow::new(id, syn.side, syn.hello, hello, known, &mut cx);
        let (client, server) = flow.client_and_server(&ends);
        gateway.event(Event::SessionOpened {
            session: id,
            client,
            server,
        });
        self.flows.insert(ends, flow);
    }

    /// Forgets connections that ended or went quiet. To be called now and then: once a second
    /// while packets flow is plenty, once a minute at least.
    pub fn tick(&mut self, now: Duration, gateway: &mut dyn Gateway) {
        let half_open = self.config.half_open;
        self.half_open
            .retain(|_, syn| now.saturating_sub(syn.at) < half_open);
        let (linger, idle) = (self.config.linger, self.config.idle);
        self.forget(
            |flow| flow.quiet(now) >= if flow.may_be_over() { linger } else { idle },
            gateway,
        );
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

fn pass(counter: &mut u64) -> Verdict<'static> {
    *counter = counter.saturating_add(1);
    Verdict::Accept
}
