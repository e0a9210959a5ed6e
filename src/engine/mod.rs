//! The core's interface: packets, time and the kernel's answers in, verdicts out. No I/O.
//!
//! [`Engine::packet`] takes one packet and returns its verdict; [`Engine::tick`] forgets
//! connections that are over. The engine finds the flow of a packet and follows its handshake. It
//! takes the data through the session machine ([`crate::ftp`]) and edits the stream
//! ([`crate::stream`]). While the packet waits, it asks the [`gateway::Gateway`] for conntrack's
//! answers and for pinholes.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod announce;
mod config;
mod connection;
mod endpoints;
mod epsv_servers;
mod farewell;
mod flow;
mod handshake;
mod hash;
mod joining;
mod names;
mod opening;
mod orphans;
mod record;
mod replayed;
pub(crate) mod room;
mod second;
mod stats;
mod table;

pub mod event;
pub mod gateway;

use std::time::Duration;

pub use config::{Advertise, Config, Marks, Standing};
pub use connection::{Entry, Tuple};
pub use farewell::{Rst, resets_of_record};
pub use hash::hash_ends;
pub use record::FORMAT as RECORD_FORMAT;
pub use stats::{SessionInfo, Stats};

pub use handshake::{Syn, SynAck};

use endpoints::Endpoints;
use epsv_servers::EpsvServers;
use flow::{Context, Fate, Flow};
use gateway::{Gateway, SessionId};
use handshake::HalfOpen;
use joining::Strangers;
use names::{Meaning, Names};
use orphans::Orphans;
use table::{EndpointTable, Walk};

use crate::ftp::session::Said;
use crate::wire::{Flags, Reject, Segment};

/// Which hook a packet came through: its direction, seen from the private side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
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

/// What one engine of several says to a packet: see [`Engine::try_packet`].
#[derive(Clone, Copy, Debug)]
pub enum Placed<'a> {
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
    /// Give it again, after [`again`](Engine::again), when the pinholes are open that the gateway has
    /// [put off](Gateway::may_put_off), and in the order in which these packets came. Nothing has happened
    /// yet.
    Later,
}

/// [`Placed`], before the packet's bytes are lent to the caller.
enum Decided {
    Verdict(Fate),
    Unknown(Name),
    SynAck(SynAck, Fate),
    Later,
}

/// How a packet names the ends of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(Endpoints);

impl Name {
    /// Its packets from the inside.
    #[must_use]
    pub fn outward(&self) -> Tuple {
        self.0.outward()
    }
}

/// What is left of a round through all flows and names: see [`Engine::tick`].
#[derive(Debug, Default)]
struct Sweep {
    flows: Walk,
    names: Walk,
}

impl Sweep {
    fn is_over(&self) -> bool {
        self.flows.is_over() && self.names.is_over()
    }
}

/// A search of the full table for connections that may go: see [`Engine::clear`].
#[derive(Debug, Default)]
struct Clearing {
    /// When the last one began.
    began: Option<Duration>,
    walk: Walk,
}

/// All control connections of one worker.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    flows: EndpointTable<Flow>,
    /// Other names of flows.
    names: Names,
    half_open: HalfOpen,
    strangers: Strangers,
    orphans: Orphans,
    epsv_servers: EpsvServers,
    /// What [`tick`](Self::tick) still has to look at.
    sweep: Sweep,
    /// What [`doubtful`](Self::doubtful) still has to look at.
    doubts: Walk,
    clearing: Clearing,
    stats: Stats,
    next_id: u64,
    /// Bytes in the buffers of all flows.
    buffered: usize,
    /// See [`hold_commands`](Self::hold_commands).
    holding: bool,
    /// See [`farewell`](Self::farewell).
    ending: bool,
    /// Directions of flows with packets that were put off: further ones wait behind them.
    put_off: Vec<(Endpoints, Side)>,
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
            flows: EndpointTable::default(),
            names: Names::default(),
            half_open: HalfOpen::new(config.max_flows, config.half_open),
            config,
            strangers: Strangers::default(),
            orphans: Orphans::default(),
            epsv_servers: EpsvServers::default(),
            sweep: Sweep::default(),
            doubts: Walk::default(),
            clearing: Clearing::default(),
            stats: Stats::default(),
            next_id: u64::from(worker).saturating_add(1),
            buffered: 0,
            holding: false,
            ending: false,
            put_off: Vec::new(),
            scratch: Vec::with_capacity(2048),
        }
    }

    /// Goes by other settings from now on. No connection is ended, and no pinhole closes.
    ///
    /// [`Config::policy`] is kept by each connection as it was at its beginning, for all that concerns
    /// the dialogue. Whether an announced address is allowed goes by the new one at once, and so does
    /// everything else. [`Config::workers`], [`Config::marks`], [`Config::tls_range`],
    /// [`Config::control_ports`] and [`Config::implicit_ports`] stay: the connections that exist, the other
    /// engines and the steering rules rely on them.
    pub fn reconfigure(&mut self, new: Config) {
        self.half_open.resize(new.max_flows);
        self.config = Config {
            workers: self.config.workers,
            marks: self.config.marks,
            tls_range: self.config.tls_range,
            control_ports: std::mem::take(&mut self.config.control_ports),
            implicit_ports: std::mem::take(&mut self.config.implicit_ports),
            ..new
        };
    }

    /// Replaces the addresses to announce: see [`Config::advertise`].
    pub fn advertise(&mut self, advertise: Vec<Advertise>) {
        self.config.advertise = advertise;
    }

    /// Handles one IP packet that came through the hook of `side`; `now` is the time since start.
    /// For an engine that sees all traffic; for one of several see
    /// [`try_packet`](Self::try_packet). A packet that is put off is dropped: its sender sends it again.
    ///
    /// No packet causes a panic or unbounded memory. What isn't understood passes unmodified and is
    /// counted.
    pub fn packet(
        &mut self,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Verdict<'_> {
        match self.decide(side, packet, now, gateway) {
            Decided::Verdict(fate) => self.verdict(fate),
            Decided::Later => Verdict::Drop,
            Decided::Unknown(name) => self.nobody_knows(name, side, packet, now, gateway),
            Decided::SynAck(syn_ack, fate) => {
                self.answered(&syn_ack, false, None, now, gateway);
                self.verdict(fate)
            }
        }
    }

    // ---- several engines -------------------------------------------------------------------

    /// Handles one IP packet, like [`packet`](Self::packet), in one of several engines
    /// ([`Config::workers`]). If this one can't decide alone, the result says whom to ask.
    ///
    /// The two directions of a connection may come through different queues if NAT shows the
    /// inside end another address than the outside end has.
    pub fn try_packet(
        &mut self,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Placed<'_> {
        match self.decide(side, packet, now, gateway) {
            Decided::Verdict(fate) => Placed::Verdict(self.verdict(fate)),
            Decided::Later => Placed::Later,
            Decided::Unknown(name) => Placed::Unknown(name),
            Decided::SynAck(syn_ack, fate) => Placed::SynAck(syn_ack, self.verdict(fate)),
        }
    }

    /// The packets that were put off are given again, from the first one on.
    pub fn again(&mut self) {
        self.put_off.clear();
    }

    /// Whether a segment belongs to a connection of this engine's.
    #[must_use]
    pub fn knows(&self, Name(ends): &Name) -> bool {
        self.flows.contains(ends) || self.names.contains(ends)
    }

    /// Whether any connection of this engine has another name. If not, the other engines need to
    /// ask it for SYNs only.
    #[must_use]
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Takes the SYN that a SYN-ACK answers out of this engine, if it came here.
    pub fn take_syn(&mut self, syn_ack: &SynAck) -> Option<Syn> {
        let syn = self.syn(syn_ack)?;
        self.half_open.remove(&syn);
        Some(syn)
    }

    /// Goes on with a SYN-ACK after the other engines were asked: whether one of them edits the
    /// connection at its other end, and the SYN if one had it.
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
        } else {
            self.expect(syn_ack, now, gateway);
        }
    }

    /// Forgets connections that ended or went quiet. Returns whether a round is complete: every
    /// connection was visited.
    ///
    /// One call visits at most 8,192 connections and as many names, however many there are; a
    /// round takes as many calls as that needs. To be called once a second while packets flow. Once
    /// a minute, to be called for a whole round. So every connection is visited at least once a
    /// minute, and is forgotten no more than a minute late.
    ///
    /// No other timer depends on these calls. How long bytes have waited is checked with each
    /// segment, and the age of a SYN with its SYN-ACK.
    pub fn tick(&mut self, now: Duration, gateway: &mut dyn Gateway) -> bool {
        self.half_open.forget(now);
        if self.sweep.is_over() {
            self.sweep = Sweep {
                flows: self.flows.walk(),
                names: self.names.walk(),
            };
        }
        let (linger, idle) = (self.config.linger, self.config.idle);
        let over = |flow: &Flow| flow.quiet(now) >= flow.patience(idle, linger);
        self.sweep.flows = self.forget(self.sweep.flows, over, gateway);
        self.names.forget(&mut self.sweep.names, now);
        self.sweep.is_over()
    }

    /// Adds connections that may have ended unseen to `found`: some of their packets came to another
    /// process, or one end has said that it is over, and they have been silent since. If conntrack doesn't
    /// know one, it [is gone](Self::is_gone). Returns whether a round is complete, as [`tick`](Self::tick).
    ///
    /// Nothing is asked here, so that no lock need be held while conntrack is.
    pub fn doubtful(&mut self, now: Duration, found: &mut Vec<Name>) -> bool {
        if self.doubts.is_over() {
            self.doubts = self.flows.walk();
        }
        self.flows.sweep(&mut self.doubts, |ends, flow| {
            if flow.is_doubtful(now) {
                found.push(Name(*ends));
            }
            true
        });
        self.doubts.is_over()
    }

    /// Conntrack doesn't know a connection. It is over, unless a packet of it came meanwhile.
    pub fn is_gone(&mut self, Name(ends): &Name, now: Duration, gateway: &mut dyn Gateway) {
        if let Some(flow) = self
            .flows
            .get_mut(ends)
            .filter(|flow| flow.is_doubtful(now))
        {
            flow.close("conntrack has forgotten it", gateway);
        }
    }

    /// Whether it knows no connection, not even one that has been closed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Visits the next slice of flows, and forgets those that `which` names. Returns what is left
    /// of the walk.
    fn forget(
        &mut self,
        mut walk: Walk,
        which: impl Fn(&Flow) -> bool,
        gateway: &mut dyn Gateway,
    ) -> Walk {
        self.flows.sweep(&mut walk, |ends, flow| {
            let gone = which(flow);
            if gone {
                self.buffered = self.buffered.saturating_sub(flow.buffered());
                flow.close("idle", gateway);
                flow.take_word_back(ends, gateway);
                self.names.forget_flow(ends);
            }
            !gone
        });
        walk
    }

    /// Forgets all connections, without a word to whoever goes on with them: another gateway may have
    /// gone on with them, or does from now on. If their packets come here, they are
    /// [joined](Self::nobody_knows) again.
    pub fn forget_all(&mut self, gateway: &mut dyn Gateway) {
        for (ends, flow) in self.flows.iter_mut() {
            // A later connection with the same ends is not to meet what was kept of this one.
            if flow.is_closed() {
                flow.take_word_back(ends, gateway);
            }
            flow.close("another gateway may go on with it", gateway);
        }
        self.flows = EndpointTable::default();
        self.names = Names::default();
        self.buffered = 0;
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

    /// The last lines of a session's dialogue, oldest first, since this was called first for it. `None`:
    /// there is no such session here.
    pub fn watch(&mut self, session: SessionId) -> Option<Vec<Said>> {
        let mut flows = self.flows.iter_mut().map(|(_, flow)| flow);
        let flow = flows.find(|flow| flow.id == session && !flow.is_closed())?;
        Some(flow.session.watch())
    }

    /// How many [`sessions`](Self::sessions) there are.
    #[must_use]
    pub fn session_count(&self) -> usize {
        let flows = self.flows.iter().map(|(_, flow)| flow);
        flows
            .filter(|flow| !flow.is_closed() && flow.is_admitted())
            .count()
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
        let decided = self.place(side, &segment, packet, now, gateway);
        if let Decided::Later = decided {
            // It is counted when it comes again.
            self.stats.packets = self.stats.packets.saturating_sub(1);
        }
        decided
    }

    /// Decides about a packet whose segment was read.
    fn place(
        &mut self,
        side: Side,
        segment: &Segment<'_>,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
    ) -> Decided {
        self.scratch.clear();
        self.scratch.extend_from_slice(packet);
        let decided = if segment.flags().has(Flags::SYN) {
            self.handshake_segment(side, segment, now, gateway)
        } else {
            self.later_segment(side, segment, now, gateway)
        };
        if let Decided::Verdict(Fate::Changed) | Decided::SynAck(_, Fate::Changed) = decided {
            self.stats.changed = self.stats.changed.saturating_add(1);
        }
        decided
    }

    /// The TCP segment in a packet. `None`: it isn't looked at, and is counted.
    fn read<'a>(&mut self, packet: &'a [u8]) -> Option<Segment<'a>> {
        let counter = match Segment::parse(packet) {
            // Its receiver drops it, so it must not change our state either.
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
        if !self.names.is_empty() && !self.flows.contains(&ends) {
            match self.names.meaning(&ends, now) {
                Some(Meaning::Flow(flow)) => ends = flow,
                Some(Meaning::Elsewhere { .. }) => return Decided::Verdict(Fate::Same),
                None => {}
            }
        }
        let Some(flow) = self.flows.get_mut(&ends) else {
            return Decided::Unknown(Name(ends));
        };
        if flow.is_succeeded(side, segment)
            && joining::followed(&ends, self.config.marks, gateway).is_some()
            || flow.is_outdated(side, segment)
        {
            flow.close("its record is out of date", gateway);
            flow.take_word_back(&ends, gateway);
            self.buffered = self.buffered.saturating_sub(flow.buffered());
            self.names.forget_flow(&ends);
            self.flows.remove(&ends);
            return Decided::Unknown(Name(ends));
        }
        if self.put_off.contains(&(ends, side)) {
            return Decided::Later;
        }
        let undoable = flow.is_undoable(side, segment);
        let kept = gateway
            .may_put_off(undoable)
            .then(|| (flow.clone(), self.stats));
        let mut cx = Context {
            config: &self.config,
            gateway,
            stats: &mut self.stats,
            now,
            crowded: self.buffered > self.config.max_buffered / 2,
            holding: self.holding,
            ending: self.ending,
            put_off: false,
        };
        let before = flow.buffered();
        let fate = flow.segment(&ends, side, segment, &mut self.scratch, &mut cx);
        debug_assert!(kept.is_some() || !cx.put_off, "it can't be undone");
        if cx.put_off
            && let Some(before) = kept
        {
            (*flow, self.stats) = before;
            self.put_off.push((ends, side));
            return Decided::Later;
        }
        let mut after = flow.buffered();
        if after > before
            && self.buffered.saturating_add(after).saturating_sub(before) > self.config.max_buffered
        {
            flow.reach_limit(side, &mut cx);
            after = flow.buffered();
        }
        self.buffered = self.buffered.saturating_add(after).saturating_sub(before);
        flow.leave_word(&ends, &self.names, &mut cx);
        if let Some((server, news)) = flow.nat64_news() {
            self.stats.count_nat64(news);
            if let Some(speaks) = news.speaks_epsv {
                self.epsv_servers.note(server, speaks);
            }
        }
        Decided::Verdict(fate)
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

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use etherparse::PacketBuilder;

    use super::event::Event;
    use super::gateway::{Error, PinholeId, Request, Reservation, SessionId};
    use super::table::SLICE;
    use super::*;

    /// Counts the sessions that ended.
    #[derive(Default)]
    struct Ended(usize);

    impl Gateway for Ended {
        fn conntrack(&mut self, _: SocketAddr, _: SocketAddr) -> Result<Entry, Error> {
            Err(Error::NoConntrack)
        }
        fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
            Err(Error::NoPort(request.from))
        }
        fn open(&mut self, _: PinholeId) -> Result<(), Error> {
            Ok(())
        }
        fn release(&mut self, _: PinholeId) {}
        fn session_ended(&mut self, _: SessionId) {
            self.0 += 1;
        }
        fn event(&mut self, _: Event) {}
    }

    fn connect(engine: &mut Engine, number: usize, now: Duration) {
        let (server, client) = ([10, 0, 0, 2], Ipv4Addr::from_bits(number as u32).octets());
        let syn = PacketBuilder::ipv4(client, server, 64)
            .tcp(40_000, 21, 99, 1000)
            .syn();
        let syn_ack = PacketBuilder::ipv4(server, client, 64)
            .tcp(21, 40_000, 999, 1000)
            .syn()
            .ack(100);
        for (side, packet) in [(Side::Ingress, syn), (Side::Egress, syn_ack)] {
            let mut bytes = Vec::new();
            packet.write(&mut bytes, &[]).unwrap();
            engine.packet(side, &bytes, now, &mut Ended::default());
        }
    }

    #[test]
    fn other_settings_end_no_connection() {
        let config = |max_flows, workers| Config {
            max_flows,
            workers,
            implicit_ports: vec![990],
            ..Config::default()
        };
        let now = Duration::from_secs(1);
        let mut engine = Engine::new(config(4, 2), 0);
        (0..4).for_each(|number| connect(&mut engine, number, now));
        engine.reconfigure(Config {
            implicit_ports: Vec::new(),
            marks: Some(Marks { even: 1, uneven: 2 }),
            ..config(2, 1)
        });
        connect(&mut engine, 4, now);
        assert_eq!(engine.sessions(now).count(), 4, "no more, and no fewer");
        engine.reconfigure(config(10, 1));
        connect(&mut engine, 5, now);
        let ids = engine.sessions(now).map(|session| session.id.0);
        let odd = ids.inspect(|id| assert!(id % 2 == 1, "the other engine's: {id}"));
        assert_eq!(odd.count(), 5);
        assert_eq!(engine.config.marks, None);
        assert_eq!(engine.config.implicit_ports, [990]);
    }

    /// The handshake of a connection that a server makes from its control port.
    fn connect_back(engine: &mut Engine) {
        let (client, server) = ([198, 51, 100, 1], [10, 0, 0, 2]);
        let syn = PacketBuilder::ipv4(server, client, 64)
            .tcp(21, 40_000, 99, 1000)
            .syn();
        let syn_ack = PacketBuilder::ipv4(client, server, 64)
            .tcp(40_000, 21, 999, 1000)
            .syn()
            .ack(100);
        for (side, packet) in [(Side::Egress, syn), (Side::Ingress, syn_ack)] {
            let mut bytes = Vec::new();
            packet.write(&mut bytes, &[]).unwrap();
            let verdict = engine.packet(side, &bytes, Duration::ZERO, &mut Ended::default());
            assert_eq!(verdict, Verdict::Accept);
        }
    }

    #[test]
    fn a_data_connection_from_the_control_port_is_no_session() {
        for (control_ports, sessions) in [(vec![21], 0), (vec![], 1), (vec![21, 40_000], 1)] {
            let mut engine = Engine::new(
                Config {
                    control_ports,
                    ..Config::default()
                },
                0,
            );
            connect_back(&mut engine);
            assert_eq!(engine.sessions(Duration::ZERO).count(), sessions);
            connect(&mut engine, 1, Duration::ZERO);
            assert_eq!(engine.sessions(Duration::ZERO).count(), sessions + 1);
        }
    }

    #[test]
    fn a_tick_looks_at_a_slice_and_a_round_at_everything() {
        const OLD: usize = 2 * SLICE + 100;
        let mut engine = Engine::new(Config::default(), 0);
        let idle = engine.config.idle;
        (0..OLD).for_each(|number| connect(&mut engine, number, Duration::ZERO));
        let mut world = Ended::default();
        for (young, complete) in [(1, false), (2, false), (3, true)] {
            // One that begins between two calls stays.
            connect(&mut engine, OLD + young, idle);
            let before = world.0;
            assert_eq!(engine.tick(idle, &mut world), complete);
            assert!((1..=SLICE).contains(&(world.0 - before)));
            assert_eq!(engine.sessions(idle).count(), OLD + young - world.0);
        }
        assert_eq!(world.0, OLD);
        assert!(engine.tick(2 * idle, &mut world), "there are few now");
        assert_eq!(engine.sessions(idle).count(), 0);
    }
}
