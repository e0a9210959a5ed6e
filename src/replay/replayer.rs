//! Takes packets through the engine, and tells what becomes of them.

mod ends;
mod tell;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::capture::Frame;
use super::connection::{Connection, opposite, way};
use super::data::DataConnections;
use super::gateway::{MARKS, World};
use super::link::{self, Place};
use super::packet;
use super::show::Show;
use super::views::{Pair, Stand, Views, reversed};
use super::write::Edited;
use super::{End, Options, ReplayError};
use crate::engine::gateway::SessionId;
use crate::engine::{Config, Engine, Side, Tuple, Verdict};
use crate::wire::{Flags, Reject, Segment};
use tell::tell_stats;

/// How often the engine forgets what is over, in the capture's time.
const TICK: Duration = Duration::from_secs(1);
/// How long a connection that is over is remembered, so that its last packets are known.
const LINGER: Duration = Duration::from_secs(120);
/// How many connections there may be at a time.
const MAX_CONNECTIONS: usize = 65_536;

/// What was counted in a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// All packets of the capture.
    pub packets: u64,
    /// Of these, packets of control connections.
    pub control: u64,
    /// Control connections that were followed.
    pub sessions: u64,
    /// Connections in which something went wrong.
    pub failed: u64,
    /// Connections that weren't followed.
    pub unfollowed: u64,
    /// Addresses that were rewritten.
    pub rewritten: u64,
    /// Commands and replies that were refused.
    pub refused: u64,
    /// Packets that were seen at another place, or on the other side of NAT, too.
    pub copies: u64,
    /// Packets without a checksum, since the sender's card adds it.
    pub offloaded: u64,
    /// Packets with a wrong checksum.
    pub bad_checksum: u64,
    /// Packets of control connections of which the capture has a part only.
    pub cut: u64,
    /// IP fragments.
    pub fragments: u64,
    /// Packets of control connections with no end inside.
    pub neither_inside: u64,
    /// How the capture ended.
    #[serde(skip)]
    pub end: End,
}

/// A packet that is being replayed.
struct Packet<'a> {
    frame: &'a Frame,
    place: Place,
    stand: Stand,
    /// Since the capture's first packet.
    now: Duration,
}

/// The engine over a capture.
pub(super) struct Replayer<'a, 'w> {
    engine: Engine,
    world: World,
    views: Views,
    data: DataConnections,
    connections: HashMap<Tuple, Connection>,
    /// Which connection a session is.
    sessions: HashMap<SessionId, Tuple>,
    /// The connection whose packet is looked at.
    current: Option<Tuple>,
    show: Show<'w>,
    edited: Option<Edited<'a>>,
    join: bool,
    started: Option<Duration>,
    now: Duration,
    ticked: Duration,
    /// The bytes of all transcripts.
    size: usize,
    summary: Summary,
}

impl<'a, 'w> Replayer<'a, 'w> {
    pub(super) fn new(options: Options, show: Show<'w>, edited: Option<Edited<'a>>) -> Self {
        let config = Config {
            marks: Some(MARKS),
            workers: 1,
            ..options.engine
        };
        Self {
            engine: Engine::new(config, 0),
            world: World::new(options.plane),
            views: Views::new(options.inside, options.public, options.ports),
            data: DataConnections::default(),
            connections: HashMap::new(),
            sessions: HashMap::new(),
            current: None,
            show,
            edited,
            join: options.join,
            started: None,
            now: Duration::ZERO,
            ticked: Duration::ZERO,
            size: 0,
            summary: Summary::default(),
        }
    }

    /// Takes the next packet of the capture.
    pub(super) fn frame(&mut self, frame: &Frame) -> Result<(), ReplayError> {
        self.summary.packets += 1;
        let started = *self.started.get_or_insert(frame.time);
        // Packets of several interfaces may be a little out of order. Time never goes back.
        self.now = self.now.max(frame.time.saturating_sub(started));
        self.world.set_time(self.now);
        if self.now.saturating_sub(self.ticked) >= TICK {
            self.tick()?;
        }
        let Some(place) = link::find(frame.link, frame.tap, &frame.data) else {
            return Ok(());
        };
        let bytes = frame.data.get(place.at..).unwrap_or_default();
        match Segment::parse(bytes) {
            Ok(segment) => self.segment(frame, place, &segment),
            Err(Reject::Fragment) => {
                self.summary.fragments += 1;
                Ok(())
            }
            Err(Reject::Malformed) => self.cut(frame, bytes),
            Err(Reject::NotTcp) => Ok(()),
        }
    }

    fn segment(
        &mut self,
        frame: &Frame,
        place: Place,
        segment: &Segment<'_>,
    ) -> Result<(), ReplayError> {
        let tuple = Tuple {
            src: segment.source(),
            dst: segment.destination(),
        };
        let flags = segment.flags();
        let first = flags.has(Flags::SYN) && !flags.has(Flags::ACK);
        let pair = first
            .then(|| self.views.syn(tuple, segment.seq()))
            .flatten();
        // Data connections are known under either name.
        let pair = pair.filter(|pair| self.views.is_control(&pair.inner));
        if let Some(pair) = pair {
            self.views.remember(pair);
            self.forget_copy(pair);
        }
        if self.views.is_copy(&tuple) {
            self.summary.copies += 1;
            self.learn_pair(pair);
            return Ok(());
        }
        if !self.views.is_control(&tuple) {
            if let Some(told) = self.data.packet(segment, self.now) {
                self.tell_data(&told, frame.time);
            }
            return Ok(());
        }
        self.summary.control += 1;
        let Some(stand) = self.views.stand(tuple) else {
            self.summary.neither_inside += 1;
            return Ok(());
        };
        let packet = Packet {
            frame,
            place,
            stand,
            now: self.now,
        };
        self.control(&packet, segment, first)?;
        self.learn_pair(pair);
        Ok(())
    }

    // ---- control connections ---------------------------------------------------------------

    /// Takes a packet of a control connection.
    fn control(
        &mut self,
        packet: &Packet<'_>,
        segment: &Segment<'_>,
        first: bool,
    ) -> Result<(), ReplayError> {
        let key = packet.stand.outward;
        let side = packet.stand.side;
        self.current = Some(key);
        if first {
            self.make_way(key, side, segment.seq(), packet.frame.time)?;
        }
        if !self.connections.contains_key(&key) {
            if self.connections.len() >= MAX_CONNECTIONS {
                self.summary.unfollowed += 1;
                return Ok(());
            }
            self.meet(packet, segment, first);
        }
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        let syn = segment.flags().has(Flags::SYN).then(|| segment.seq());
        if connection.is_copy(side, packet.place.tap, syn) {
            self.summary.copies += 1;
            return Ok(());
        }
        connection.seen = self.now;
        connection.transcript.packets += 1;
        if let Some(isn) = syn
            && connection.isns[way(side)] != Some(isn)
        {
            connection.begins(side, isn);
        }
        let before = connection.transcript.size;
        self.through(packet, segment, key)?;
        self.tell_events(packet.frame.time)?;
        self.note_end(packet, segment, key)?;
        self.bound(key, before)
    }

    /// A new connection takes the place of one with the same ends.
    fn make_way(
        &mut self,
        key: Tuple,
        side: Side,
        isn: u32,
        time: Duration,
    ) -> Result<(), ReplayError> {
        let Some(old) = self.connections.get(&key) else {
            return Ok(());
        };
        // Before its SYN-ACK, a SYN may be sent by either end's reckoning only once.
        let same = old.isns[way(side)].is_none_or(|known| known == isn);
        if same && old.unfollowed.is_none() && !(old.over && old.isns[way(side)] != Some(isn)) {
            return Ok(());
        }
        self.finish_connection(key, time)?;
        if let Some(old) = self.connections.remove(&key) {
            self.world.forget(&old.named);
        }
        Ok(())
    }

    /// A connection is seen for the first time.
    fn meet(&mut self, packet: &Packet<'_>, segment: &Segment<'_>, first: bool) {
        let Packet { frame, stand, .. } = packet;
        let mut named = stand.outward;
        if stand.outer
            && let Some(private) = self.views.only_inside(named.src.ip())
        {
            named.src = SocketAddr::new(private, named.src.port());
        }
        let names = self.show.view.names;
        let mut stand = *stand;
        if first {
            stand.client = stand.side;
        }
        let mut connection = Connection::new(&stand, named, frame.time, names);
        let mut entry = self.views.entry(named, stand.client, None);
        let middle = !segment.flags().has(Flags::SYN);
        if middle && self.join {
            entry.mark = MARKS.even;
        } else if middle {
            let why = "not followed: the capture begins in its middle (--join)";
            connection.unfollowed = Some(why);
            connection.trouble(frame.time, "unfollowed", why.to_owned());
        }
        self.world.forget(&named);
        self.world.know(named, entry);
        self.connections.insert(stand.outward, connection);
    }

    /// The outside's view of a connection isn't one of its own.
    fn forget_copy(&mut self, pair: Pair) {
        for key in [pair.outer, reversed(pair.outer)] {
            if self.connections.get(&key).is_some_and(|one| one.outer)
                && let Some(copy) = self.connections.remove(&key)
            {
                self.world.forget(&copy.named);
            }
        }
    }

    /// Both names of a connection are known.
    fn learn_pair(&mut self, pair: Option<Pair>) {
        let Some(pair) = pair else { return };
        for key in [pair.inner, reversed(pair.inner)] {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.pair = Some(pair);
            let entry = self
                .views
                .entry(connection.named, connection.client, Some(pair));
            self.world.know(connection.named, entry);
        }
    }

    /// The inside end, seen from outside, tells its own address: from here on it has that.
    fn learn_private(&mut self, key: Tuple, packet: &Packet<'_>, segment: &Segment<'_>) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let known = connection.named.src.ip() != key.src.ip();
        if !connection.outer || known || packet.stand.side != Side::Egress {
            return;
        }
        let text = [connection.begun(Side::Egress), segment.payload()].concat();
        let mut told = packet::announced(&text).into_iter();
        let family = key.src.is_ipv4();
        let private = told.find(|ip| ip.is_ipv4() == family && self.views.is_inside(*ip));
        let Some(private) = private else { return };
        let named = Tuple {
            src: SocketAddr::new(private, key.src.port()),
            ..key
        };
        if self.engine.rename(connection.named, named) {
            self.world.forget(&connection.named);
            let entry = self.views.entry(named, connection.client, None);
            let mut entry = entry;
            entry.mark = MARKS.even;
            self.world.know(named, entry);
            connection.named = named;
        }
    }

    /// Takes a packet through the engine.
    fn through(
        &mut self,
        packet: &Packet<'_>,
        segment: &Segment<'_>,
        key: Tuple,
    ) -> Result<(), ReplayError> {
        let side = packet.stand.side;
        let time = packet.frame.time;
        let whole = packet.place.at.saturating_add(segment.layout().end);
        let bytes = packet.frame.data.get(packet.place.at..whole);
        let mut came = bytes.unwrap_or_default().to_vec();
        if !segment.checksum_ok() {
            if !packet::is_offloaded(&came, segment) {
                self.summary.bad_checksum += 1;
                if let Some(connection) = self.connections.get_mut(&key) {
                    let text = "a wrong checksum: its receiver drops it".to_owned();
                    connection.trouble(time, "checksum", text);
                }
                return Ok(());
            }
            self.summary.offloaded += 1;
            packet::mend(&mut came, segment.layout());
        }
        self.learn_private(key, packet, segment);
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        let named = connection.named;
        let flags = segment.flags();
        if !flags.has(Flags::SYN) {
            connection.came(side, segment.seq(), segment.payload(), time);
        }
        if named != key {
            packet::readdress(&mut came, segment.layout(), side, named.src.ip());
        }
        packet::acknowledge(&self.engine, named, side, &mut came);
        let before = *self.engine.stats();
        let verdict = self.engine.packet(side, &came, packet.now, &mut self.world);
        let mut goes = match verdict {
            Verdict::Accept => Some(came.clone()),
            Verdict::Replace(bytes) => Some(bytes.to_vec()),
            Verdict::Drop => None,
        };
        tell_stats(connection, &before, self.engine.stats(), time);
        if let Some(goes) = &mut goes {
            packet::keep_acknowledgement(&came, goes);
        }
        if let Some(out) = goes.as_deref().and_then(|goes| Segment::parse(goes).ok()) {
            if !flags.has(Flags::SYN) {
                connection.went_on(side, out.seq(), out.payload(), time);
            }
            if flags.has(Flags::ACK) && !flags.has(Flags::SYN) {
                connection.received(opposite(side), segment.ack(), out.ack(), time);
            }
        }
        let Some(mut goes) = goes else { return Ok(()) };
        if named != key
            && let Ok(out) = Segment::parse(&goes)
        {
            let layout = out.layout();
            packet::readdress(&mut goes, layout, side, key.src.ip());
        }
        self.write(packet, &goes)
    }

    /// Writes a packet that goes on, behind the headers of its link.
    fn write(&mut self, packet: &Packet<'_>, goes: &[u8]) -> Result<(), ReplayError> {
        let Some(edited) = &mut self.edited else {
            return Ok(());
        };
        let head = packet.frame.data.get(..packet.place.at).unwrap_or_default();
        let mut frame = [head, goes].concat();
        if let Some(at) = packet.place.length {
            let end = at.saturating_add(2);
            let length = u16::try_from(frame.len().saturating_sub(end)).unwrap_or(u16::MAX);
            if let Some(field) = frame.get_mut(at..end) {
                field.copy_from_slice(&length.to_be_bytes());
            }
        }
        edited
            .packet(packet.frame, &frame)
            .map_err(ReplayError::Write)
    }

    /// A packet that the capture has in part only.
    fn cut(&mut self, frame: &Frame, bytes: &[u8]) -> Result<(), ReplayError> {
        if usize::try_from(frame.length).unwrap_or(usize::MAX) <= frame.data.len() {
            return Ok(());
        }
        let Ok(packet) = etherparse::LaxSlicedPacket::from_ip(bytes) else {
            return Ok(());
        };
        let (Some(net), Some(etherparse::TransportSlice::Tcp(tcp))) =
            (&packet.net, &packet.transport)
        else {
            return Ok(());
        };
        let Some((src, dst)) = addresses(net) else {
            return Ok(());
        };
        let tuple = Tuple {
            src: SocketAddr::new(src, tcp.source_port()),
            dst: SocketAddr::new(dst, tcp.destination_port()),
        };
        let Some(stand) = self.views.stand(tuple) else {
            return Ok(());
        };
        let Some(connection) = self.connections.get_mut(&stand.outward) else {
            return Ok(());
        };
        self.summary.cut += 1;
        let (has, had) = (frame.data.len(), frame.length);
        let text = format!(
            "a packet is cut: the capture has {has} of its {had} bytes (capture with `-s 0`)"
        );
        connection.trouble(frame.time, "cut", text);
        Ok(())
    }
}

/// Source and destination of a packet that may be cut.
fn addresses(net: &etherparse::LaxNetSlice<'_>) -> Option<(std::net::IpAddr, std::net::IpAddr)> {
    match net {
        etherparse::LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
            ))
        }
        etherparse::LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((
                header.source_addr().into(),
                header.destination_addr().into(),
            ))
        }
        _ => None,
    }
}
