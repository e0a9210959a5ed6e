//! A deterministic simulator: two real TCP implementations (smoltcp's) with the engine between
//! them, in virtual time, over links that lose, duplicate, delay and reorder packets.
//!
//! ```text
//!   inside endpoint ──link──▶ Engine (Egress)  ──link──▶ outside endpoint
//!                   ◀──link── Engine (Ingress) ◀──link──
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use ftpalg::engine::event::Event;
use ftpalg::engine::gateway::Request;
use ftpalg::engine::{Config, Engine, Side, Verdict};
use ftpalg::wire::{Flags, Segment, SegmentMut, for_each_sack};
use smoltcp::iface::{Config as IfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, Ipv4Address};

use crate::gateway::{FakeGateway, MARKS, entry};
use crate::packet::{ACK, FIN, OUTSIDE, PSH, RST, SYN, Seg, read};
use crate::random::Rng;
use crate::trace::Who;

/// What a link does to packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Lost, per mille.
    pub loss: u64,
    /// Sent twice, per mille.
    pub duplicate: u64,
    /// Delayed by up to 30 ms more than others, per mille (so they are overtaken).
    pub late: u64,
    /// Cut in two, per mille of those with more than one byte of data.
    pub split: u64,
}

struct Link {
    weather: Weather,
    queue: BinaryHeap<Reverse<(u64, u64, Vec<u8>)>>,
    count: u64,
}

impl Link {
    fn new(weather: Weather) -> Self {
        Self {
            weather,
            queue: BinaryHeap::new(),
            count: 0,
        }
    }
    fn send(&mut self, now: u64, packet: Vec<u8>, rng: &mut Rng) {
        if self.weather.split > 0 && rng.chance(self.weather.split) {
            for part in split(&packet, rng) {
                self.carry(now, part, rng);
            }
        } else {
            self.carry(now, packet, rng);
        }
    }
    fn carry(&mut self, now: u64, packet: Vec<u8>, rng: &mut Rng) {
        if rng.chance(self.weather.loss) {
            return;
        }
        let copies = 1 + u64::from(rng.chance(self.weather.duplicate));
        for _ in 0..copies {
            let late = if rng.chance(self.weather.late) {
                rng.below(30_000)
            } else {
                0
            };
            self.count += 1;
            self.queue
                .push(Reverse((now + 500 + late, self.count, packet.clone())));
        }
    }
    fn due(&mut self, now: u64) -> Option<Vec<u8>> {
        if self
            .queue
            .peek()
            .is_some_and(|Reverse((at, _, _))| *at <= now)
        {
            self.queue.pop().map(|Reverse((_, _, packet))| packet)
        } else {
            None
        }
    }
    fn next(&self) -> Option<u64> {
        self.queue.peek().map(|Reverse((at, _, _))| *at)
    }
}

/// A segment as two that say the same.
fn split(packet: &[u8], rng: &mut Rng) -> Vec<Vec<u8>> {
    let segment = Segment::parse(packet).unwrap();
    let data = segment.payload();
    if data.len() < 2 {
        return vec![packet.to_vec()];
    }
    let at = 1 + rng.below(data.len() as u64 - 1) as usize;
    let (mut first, mut second) = (packet.to_vec(), packet.to_vec());
    let mut out = SegmentMut::new(&mut first, segment.layout());
    out.clear_flags(Flags::FIN | Flags::PSH);
    out.set_payload(&[&data[..at]]);
    let mut out = SegmentMut::new(&mut second, segment.layout());
    out.set_seq(segment.seq().wrapping_add(at as u32));
    out.set_payload(&[&data[at..]]);
    vec![first, second]
}

/// Sequence numbers between the two links of an endpoint and the engine: moved so that they wrap
/// early in the session. smoltcp doesn't let us choose them, and can't make SACK blocks near the
/// wrap; so either end sees the numbers unmoved.
#[derive(Clone, Copy, Debug, Default)]
struct Shift {
    /// Where the SYN is to be; `None`: where it is.
    isn: Option<u32>,
    by: u32,
}

/// Adds `seq` and `ack` to the numbers of a packet's sender and receiver.
fn shift(packet: &mut Vec<u8>, seq: u32, ack: u32) {
    let segment = Segment::parse(packet).unwrap();
    let (layout, sack) = (segment.layout(), segment.options().sack);
    let (old_seq, old_ack) = (segment.seq(), segment.ack());
    let acks = segment.flags().has(Flags::ACK);
    let mut out = SegmentMut::new(packet, layout);
    out.set_seq(old_seq.wrapping_add(seq));
    if !acks {
        return;
    }
    out.set_ack(old_ack.wrapping_add(ack));
    if let Some((at, blocks)) = sack {
        out.edit_options(|options| {
            for_each_sack(&mut options[at..at + 8 * blocks], |mut block| {
                block.left = block.left.wrapping_add(ack);
                block.right = block.right.wrapping_add(ack);
                Some(block)
            });
        });
    }
}

impl Shift {
    /// A packet of this endpoint's leaves it.
    fn outwards(&mut self, mut packet: Vec<u8>, peer: u32) -> Vec<u8> {
        let segment = Segment::parse(&packet).unwrap();
        if let (Some(isn), true) = (self.isn, segment.flags().has(Flags::SYN)) {
            self.by = isn.wrapping_sub(segment.seq());
        }
        shift(&mut packet, self.by, peer);
        packet
    }

    /// A packet reaches this endpoint.
    fn inwards(&self, mut packet: Vec<u8>, peer: u32) -> Vec<u8> {
        shift(&mut packet, peer.wrapping_neg(), self.by.wrapping_neg());
        packet
    }
}

/// An in-memory network interface.
#[derive(Default)]
struct Wire {
    rx: VecDeque<Vec<u8>>,
    tx: VecDeque<Vec<u8>>,
    mtu: usize,
}
struct Rx(Vec<u8>);
struct Tx<'a>(&'a mut VecDeque<Vec<u8>>);
impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}
impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;
    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        self.rx
            .pop_front()
            .map(|packet| (Rx(packet), Tx(&mut self.tx)))
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        Some(Tx(&mut self.tx))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu;
        caps
    }
}

struct Host {
    wire: Wire,
    iface: Interface,
    sockets: SocketSet<'static>,
    tcp: SocketHandle,
    pub read: Vec<u8>,
    /// What is still to be handed to TCP, piece by piece.
    pieces: VecDeque<Piece>,
    not_before: u64,
    closing: bool,
}

/// Bytes that an application writes at once.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What it writes.
    pub bytes: Vec<u8>,
    /// µs to wait after it was written.
    pub pause: u64,
    /// Whether to go on only when it was acknowledged.
    pub wait_ack: bool,
}

impl Host {
    fn new(address: Ipv4Addr, mtu: usize, seed: u64, nagle: bool, delay: bool) -> Self {
        let mut wire = Wire {
            mtu,
            ..Wire::default()
        };
        let mut config = IfaceConfig::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut wire, Instant::ZERO);
        iface.update_ip_addrs(|addrs| {
            addrs
                .push(IpCidr::new(IpAddress::Ipv4(address), 0))
                .unwrap();
        });
        iface
            .routes_mut()
            .add_default_ipv4_route(Ipv4Address::new(10, 9, 9, 9))
            .unwrap();
        let buffer = || tcp::SocketBuffer::new(vec![0; 16 * 1024]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(nagle);
        socket.set_ack_delay(delay.then_some(smoltcp::time::Duration::from_millis(10)));
        let mut sockets = SocketSet::new(Vec::new());
        let tcp = sockets.add(socket);
        Self {
            wire,
            iface,
            sockets,
            tcp,
            read: Vec::new(),
            pieces: VecDeque::new(),
            not_before: 0,
            closing: false,
        }
    }

    fn run(&mut self, now: u64) {
        let at = Instant::from_micros(now as i64);
        self.iface.poll(at, &mut self.wire, &mut self.sockets);
        let socket = self.sockets.get_mut::<tcp::Socket>(self.tcp);
        while socket.can_recv() {
            let mut buffer = [0; 2048];
            let n = socket.recv_slice(&mut buffer).unwrap();
            self.read.extend_from_slice(&buffer[..n]);
        }
        while now >= self.not_before && socket.may_send() {
            let Some(piece) = self.pieces.front_mut() else {
                break;
            };
            if piece.bytes.is_empty() {
                if piece.wait_ack && socket.send_queue() > 0 {
                    break;
                }
                self.not_before = now + piece.pause;
                self.pieces.pop_front();
                continue;
            }
            let n = socket.send_slice(&piece.bytes).unwrap();
            piece.bytes.drain(..n);
            if n == 0 {
                break;
            }
            // A write that TCP may send at once: the next one is another segment.
            self.iface.poll(at, &mut self.wire, &mut self.sockets);
            break;
        }
        let socket = self.sockets.get_mut::<tcp::Socket>(self.tcp);
        if self.closing && self.pieces.is_empty() {
            socket.close();
        }
        self.iface.poll(at, &mut self.wire, &mut self.sockets);
    }

    fn wakes(&mut self, now: u64) -> Option<u64> {
        let at = Instant::from_micros(now as i64);
        let tcp = self
            .iface
            .poll_at(at, &self.sockets)
            .map(|t| (t.total_micros() as u64).max(now + 1));
        let app = (!self.pieces.is_empty()).then(|| self.not_before.max(now + 1000));
        tcp.into_iter().chain(app).min()
    }

    fn state(&self) -> tcp::State {
        self.sockets.get::<tcp::Socket>(self.tcp).state()
    }
}

/// One contribution to the dialogue; it starts when everything before it has been read.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The speaker.
    pub who: Who,
    /// What it writes, one after the other.
    pub pieces: Vec<Piece>,
}

/// A whole experiment.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What all chance in it comes from.
    pub seed: u64,
    /// Whether the server is on the private side (DNAT), or the client (MASQUERADE).
    pub server_inside: bool,
    /// The address of the end inside.
    pub private: Ipv4Addr,
    /// The address by which the outside knows it.
    pub public: Ipv4Addr,
    /// The largest packet on all links.
    pub mtu: usize,
    /// Whether senders wait for acknowledgements before they send small segments.
    pub nagle: bool,
    /// inside→ALG, ALG→outside, outside→ALG, ALG→inside.
    pub weather: [Weather; 4],
    /// The dialogue.
    pub turns: Vec<Turn>,
    /// Whether public ports are the private ones.
    pub same_port: bool,
    /// Whether acknowledgements wait 10 ms for company.
    pub delayed_ack: bool,
    /// Initial sequence numbers of the inside and the outside endpoint, where they matter.
    pub isn: [Option<u32>; 2],
    /// Nothing stands between the links: what the endpoints do by themselves.
    pub transparent: bool,
    /// Somebody who doesn't see the session sends a packet in the name of its ends, after one of theirs,
    /// per mille.
    pub forged: u64,
    /// Once the numbers on the two sides differ, the engine ends after a packet, and another one goes
    /// on with what the first one has recorded, per mille. In half of these cases the packet is lost.
    pub ends: u64,
}

/// What came out of it.
#[derive(Debug)]
pub struct Outcome {
    /// What the client read.
    pub client_read: Vec<u8>,
    /// What the server read.
    pub server_read: Vec<u8>,
    /// Whether everything was read.
    pub finished: bool,
    /// Whether both ends have closed, or one gave up.
    pub closed: bool,
    /// The state of an endpoint that stopped to send its FIN, though it isn't acknowledged.
    pub gave_up: Option<tcp::State>,
    /// TCP states of the inside and the outside endpoint, and the end of virtual time in µs.
    pub states: String,
    /// µs of virtual time until the last turn was read.
    pub took: u64,
    /// What the engine told.
    pub events: Vec<Event>,
    /// The pinholes.
    pub opened: Vec<Request>,
    /// The counters of the last engine.
    pub stats: ftpalg::engine::Stats,
    /// Packets that the engine changed.
    pub changed: usize,
    /// How many engines ended.
    pub ended: usize,
}

/// Runs an experiment; `expect(who, n)`: how many bytes `who`'s peer must have read when the first
/// `n` turns are over.
pub fn run(setup: &Setup, expect: &dyn Fn(Who, usize) -> usize) -> Outcome {
    let mut rng = Rng::new(setup.seed);
    let server_at = if setup.server_inside {
        setup.private
    } else {
        OUTSIDE
    };
    let mut inside = Host::new(
        setup.private,
        setup.mtu,
        rng.draw(),
        setup.nagle,
        setup.delayed_ack,
    );
    let mut outside = Host::new(
        OUTSIDE,
        setup.mtu,
        rng.draw(),
        setup.nagle,
        setup.delayed_ack,
    );
    let client_port = 40_000 + (rng.below(20_000) as u16);
    {
        let (server, client) = if setup.server_inside {
            (&mut inside, &mut outside)
        } else {
            (&mut outside, &mut inside)
        };
        server
            .sockets
            .get_mut::<tcp::Socket>(server.tcp)
            .listen(21)
            .unwrap();
        let Host {
            iface,
            sockets,
            tcp,
            ..
        } = client;
        let remote = (IpAddress::Ipv4(server_at), 21);
        sockets
            .get_mut::<tcp::Socket>(*tcp)
            .connect(iface.context(), remote, client_port)
            .unwrap();
    }
    let entry = entry(
        setup.server_inside,
        setup.private,
        setup.public,
        client_port,
    );
    let mut gateway = FakeGateway::with_entry(entry).same_port(setup.same_port);
    let mut engine = Engine::new(uneven(), 0);
    let mut reaper = Rng::new(setup.seed ^ 0xDEAD);
    let mut links = setup.weather.map(Link::new);
    // Forgeries have a source of chance of their own: the weather is the same with and without them.
    let mut forger = Rng::new(setup.seed ^ 0xF0_6E);
    let mut shifts = setup.isn.map(|isn| Shift { isn, by: 0 });
    let mut now = 0u64;
    let mut turn = 0usize;
    let mut took = 0;
    let mut changed = 0;
    let mut ended = 0;
    let mut idle = 0;
    let limit = 3_600_000_000u64;
    let trace = std::env::var_os("SIM_TRACE").is_some();
    let mut finished = false;
    while now < limit {
        // The dialogue.
        loop {
            let (server, client) = if setup.server_inside {
                (&mut inside, &mut outside)
            } else {
                (&mut outside, &mut inside)
            };
            let all = server.read.len() >= expect(Who::Client, turn)
                && client.read.len() >= expect(Who::Server, turn);
            if !all || !server.pieces.is_empty() || !client.pieces.is_empty() {
                break;
            }
            if let Some(next) = setup.turns.get(turn) {
                let host = match next.who {
                    Who::Client => client,
                    Who::Server => server,
                };
                host.pieces.extend(next.pieces.iter().cloned());
                turn += 1;
            } else {
                if !finished {
                    finished = true;
                    took = now;
                }
                // The client hangs up first; simultaneous closing is left to unlossy links, where
                // smoltcp doesn't depend on a retransmission in CLOSING.
                client.closing = true;
                let bad = setup
                    .weather
                    .iter()
                    .any(|w| w.loss + w.late + w.duplicate > 0);
                let heard = server.state() == tcp::State::CloseWait;
                server.closing = heard || !bad;
                break;
            }
        }
        inside.run(now);
        outside.run(now);
        while let Some(packet) = inside.wire.tx.pop_front() {
            let peer = shifts[1].by;
            links[0].send(now, shifts[0].outwards(packet, peer), &mut rng);
        }
        while let Some(packet) = outside.wire.tx.pop_front() {
            let peer = shifts[0].by;
            links[2].send(now, shifts[1].outwards(packet, peer), &mut rng);
        }
        let clock = Duration::from_micros(now);
        // What becomes of a packet, and whether another one takes its place.
        let mut through = |side, packet: Vec<u8>| {
            if setup.transparent {
                return (Some(packet), false);
            }
            let out = match engine.packet(side, &packet, clock, &mut gateway) {
                Verdict::Accept => (Some(packet), false),
                Verdict::Replace(bytes) => (Some(bytes.to_vec()), true),
                Verdict::Drop => (None, false),
            };
            if setup.ends > 0 && !gateway.records.is_empty() && reaper.chance(setup.ends) {
                engine = Engine::new(uneven(), 0);
                ended += 1;
                if reaper.chance(500) {
                    return (None, false);
                }
            }
            out
        };
        for (from, to, side) in [(0, 1, Side::Egress), (2, 3, Side::Ingress)] {
            while let Some(packet) = links[from].due(now) {
                let forge = turn > 2 && !finished && forger.chance(setup.forged);
                if forge && let Some(packet) = forged(&packet, &mut forger) {
                    if trace {
                        println!("{now} {side:?} forged {}", show(&packet));
                    }
                    if let (Some(out), _) = through(side, packet) {
                        if trace {
                            println!("    -> {}", show(&out));
                        }
                        check_packet(&out, setup.mtu);
                        links[to].send(now, out, &mut forger);
                    }
                }
                if trace {
                    println!("{now} {side:?} {}", show(&packet));
                }
                let (out, replaced) = through(side, packet);
                changed += usize::from(replaced);
                let Some(out) = out else {
                    continue;
                };
                if trace {
                    println!("    -> {}", show(&out));
                }
                check_packet(&out, setup.mtu);
                links[to].send(now, out, &mut rng);
            }
        }
        let mut arrived = false;
        while let Some(packet) = links[1].due(now) {
            outside
                .wire
                .rx
                .push_back(shifts[1].inwards(packet, shifts[0].by));
            arrived = true;
        }
        while let Some(packet) = links[3].due(now) {
            inside
                .wire
                .rx
                .push_back(shifts[0].inwards(packet, shifts[1].by));
            arrived = true;
        }
        if arrived {
            continue;
        }
        let over = |host: &Host| matches!(host.state(), tcp::State::Closed | tcp::State::TimeWait);
        if finished && over(&inside) && over(&outside) {
            break;
        }
        let wake = links
            .iter()
            .filter_map(Link::next)
            .chain(inside.wakes(now))
            .chain(outside.wakes(now))
            .min();
        match wake {
            Some(at) => {
                now = at.max(now + 1);
                idle = 0;
            }
            // An application may have something to say although TCP has not.
            None if idle < 3 => {
                now += 1000;
                idle += 1;
            }
            None => break,
        }
    }
    // A TCP whose FIN isn't acknowledged must have a timer to send it again. smoltcp 0.12 stops it in
    // LAST-ACK and CLOSING at any acknowledgement, a late one of earlier data as well (`process` in
    // its `socket/tcp.rs` sets the timer to idle): then nobody between the two can help them to close.
    // `smoltcp_forgets_its_fin` shows it without the engine.
    let gave_up = |host: &mut Host| {
        let state = host.state();
        let forgotten = matches!(state, tcp::State::LastAck | tcp::State::Closing);
        (forgotten && host.wakes(now).is_none()).then_some(state)
    };
    let gave_up = gave_up(&mut inside).or_else(|| gave_up(&mut outside));
    let over = |host: &Host| matches!(host.state(), tcp::State::Closed | tcp::State::TimeWait);
    let closed = gave_up.is_some() || (over(&inside) && over(&outside));
    let states = format!("{} {} {now}", inside.state(), outside.state());
    let (server, client) = if setup.server_inside {
        (inside, outside)
    } else {
        (outside, inside)
    };
    Outcome {
        states,
        client_read: client.read,
        server_read: server.read,
        finished,
        closed,
        gave_up,
        took,
        events: gateway.events,
        opened: gateway.opened,
        stats: *engine.stats(),
        changed,
        ended,
    }
}

/// A packet between the ends of a true one, with numbers that their receiver doesn't accept: a sequence
/// number far from its window (RFC 9293 §3.10.7.4), or an acknowledgement far from all that it sent
/// (RFC 5961 §5). Everything else is as it comes.
fn forged(like: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let sliced = etherparse::SlicedPacket::from_ip(like).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
        (sliced.net, sliced.transport)
    else {
        return None;
    };
    let (ip, mut tcp) = (ip.header().to_header(), tcp.to_header());
    if tcp.syn || tcp.rst {
        return None;
    }
    tcp.set_options_raw(&[]).unwrap();
    // Neither windows nor what is in flight are as large here.
    let mut far = || (1 << 21) + rng.below((1 << 32) - (1 << 22)) as u32;
    let (seq, ack) = (far(), far());
    let near = |rng: &mut Rng| (rng.below(3000) as u32).wrapping_sub(1500);
    let reset = rng.chance(250);
    // An acknowledgement doesn't matter to a RST or a SYN.
    tcp.rst = reset;
    tcp.syn = !reset && rng.chance(150);
    tcp.fin = rng.chance(250);
    tcp.psh = rng.chance(500);
    if tcp.rst || tcp.syn || rng.chance(600) {
        tcp.ack = rng.chance(850);
        tcp.sequence_number = tcp.sequence_number.wrapping_add(seq);
        if rng.chance(500) {
            tcp.acknowledgment_number = tcp.acknowledgment_number.wrapping_add(ack);
        }
    } else {
        // In the window, or what is expected.
        tcp.ack = rng.chance(850);
        let off = if rng.chance(500) { 0 } else { near(rng) };
        tcp.sequence_number = tcp.sequence_number.wrapping_add(off);
        tcp.acknowledgment_number = tcp.acknowledgment_number.wrapping_add(ack);
    }
    tcp.window_size = rng.draw() as u16;
    let text = "227 x (6,6,6,6,6,6)\r\nPASV\r\nPORT 6,6,6,6,6,6\r\nQUIT\r\n";
    let text = &text.as_bytes()[..rng.below(text.len() as u64 + 1) as usize];
    let builder = etherparse::PacketBuilder::ipv4(ip.source, ip.destination, 64).tcp_header(tcp);
    let mut packet = Vec::new();
    builder.write(&mut packet, text).unwrap();
    Some(packet)
}

/// Checksums, lengths and size of a packet that left the engine.
///
/// # Panics
/// If one of them isn't right.
pub fn check_packet(packet: &[u8], mtu: usize) {
    read(packet);
    assert!(
        packet.len() <= mtu,
        "{} bytes leave, the path takes {mtu}",
        packet.len()
    );
}

/// A packet in one line, for a trace (`SIM_TRACE=1`).
fn show(packet: &[u8]) -> String {
    let seg = read(packet);
    let names = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (ACK, '.')];
    let set = names.iter().filter(|(bit, _)| seg.flags & bit != 0);
    let flags: String = set.map(|(_, name)| *name).collect();
    let text = String::from_utf8_lossy(&seg.payload);
    let Seg {
        seq, ack, window, ..
    } = seg;
    format!("{flags} seq {seq} ack {ack} win {window} {text:?}")
}

/// Edits of other lengths, as often as can be had: they are the hard ones.
fn uneven() -> Config {
    Config {
        keep_length: false,
        marks: Some(MARKS),
        ..Config::default()
    }
}
