//! Two honest TCPs with an unkind network on both sides of the engine: whatever is lost, repeated,
//! overtaken, cut and coalesced, each end reads the reference rewrite of what the other wrote, is
//! never offered anything else, and nothing is acknowledged that doesn't arrive in the end.
//!
//! A second engine sees the same packets, and has each of them put off that asks for a pinhole. It must say
//! the same in the end.

use std::net::Ipv4Addr;
use std::time::Duration;

use ftpalg::engine::{Config, Engine, Side};

use super::Bytes;
use crate::gateway::{Decision, FakeGateway, MARKS, decide, entry, public_port};
use crate::packet::{ACK, FIN, OUTSIDE, RST, SYN, Seg, URG, build, read};
use crate::tcp::endpoint::End;

const CLIENT: usize = 0;
const SERVER: usize = 1;
const WINDOW: u32 = 0xffff;

/// Who says what in one go, and what the other must read.
struct Turn {
    who: usize,
    written: Vec<u8>,
    read: Vec<u8>,
}

struct Script {
    server_inside: bool,
    private: Ipv4Addr,
    public: Ipv4Addr,
    same_port: bool,
    turns: Vec<Turn>,
}

impl Script {
    fn say(&mut self, who: usize, written: &str, read: &str) {
        let (written, read) = (written.as_bytes(), read.as_bytes());
        match self.turns.last_mut() {
            Some(turn) if turn.who == who => {
                turn.written.extend_from_slice(written);
                turn.read.extend_from_slice(read);
            }
            _ => self.turns.push(Turn {
                who,
                written: written.to_vec(),
                read: read.to_vec(),
            }),
        }
    }

    fn plain(&mut self, who: usize, text: &str) {
        self.say(who, text, text);
    }

    /// An endpoint's own address, and how its peer must be told of it.
    fn place(&self, who: usize, port: u16) -> [(Ipv4Addr, u16); 2] {
        if (who == SERVER) == self.server_inside {
            let moved = self.private != self.public && !self.same_port;
            let public = if moved { public_port(port) } else { port };
            [(self.private, port), (self.public, public)]
        } else {
            [(OUTSIDE, port); 2]
        }
    }

    fn line(&mut self, who: usize, port: u16, write: impl Fn(Ipv4Addr, u16) -> String) {
        let [own, told] = self.place(who, port).map(|(ip, port)| write(ip, port));
        self.say(who, &own, &told);
    }

    fn read(bytes: &mut Bytes<'_>) -> Self {
        let head = bytes.byte();
        let (private, public) = [
            (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(203, 0, 113, 199)),
            (Ipv4Addr::new(192, 168, 100, 200), Ipv4Addr::new(9, 1, 2, 3)),
            (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(10, 1, 2, 3)),
            (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(20, 4, 5, 6)),
        ][usize::from(head & 3)];
        let mut script = Self {
            server_inside: head & 4 != 0,
            private,
            public,
            same_port: head & 8 != 0,
            turns: Vec::new(),
        };
        script.plain(SERVER, "220 x\r\n");
        script.plain(CLIENT, "USER a\r\n");
        script.plain(SERVER, "331 x\r\n");
        script.plain(CLIENT, "PASS b\r\n");
        script.plain(SERVER, "230 x\r\n");
        let mut clear = true;
        for _ in 0..(head >> 4) % 6 {
            script.add(bytes, &mut clear);
        }
        script
    }

    fn add(&mut self, bytes: &mut Bytes<'_>, clear: &mut bool) {
        let what = bytes.byte();
        let port = 30_000 + u16::from(bytes.byte()) * 36;
        let many = 1 + u16::from(what >> 5);
        let tuple = |ip: Ipv4Addr, port: u16| {
            let [a, b, c, d] = ip.octets();
            format!("{a},{b},{c},{d},{},{}", port >> 8, port & 255)
        };
        if !*clear {
            // No lines any more, and nobody may look for addresses in it.
            let text = format!("\x17\x03\x03227 ({})\r\nPORT 10", tuple(self.private, port));
            self.plain(usize::from(what & 1), &text.repeat(usize::from(many)));
            return;
        }
        match what & 7 {
            0 | 1 => {
                for n in 0..many {
                    self.plain(CLIENT, if n & 1 == 0 { "PASV\r\n" } else { "pasv\r\n" });
                }
                for n in 0..many {
                    let write = |ip, port| format!("227 Entering ({}).\r\n", tuple(ip, port));
                    self.line(SERVER, port + n, write);
                }
            }
            2 => {
                for _ in 0..many {
                    self.plain(CLIENT, "EPSV\r\n");
                }
                for n in 0..many {
                    self.line(SERVER, port + n, |_, port| {
                        format!("229 e (|||{port}|)\r\n")
                    });
                }
            }
            3 | 4 => {
                for n in 0..many {
                    let write = |ip, port| format!("PORT {}\r\n", tuple(ip, port));
                    self.line(CLIENT, port + n, write);
                }
                self.plain(SERVER, &"200 x\r\n".repeat(usize::from(many)));
                self.plain(CLIENT, "RETR f\r\n");
                self.plain(SERVER, "150 x\r\n226 x\r\n");
            }
            5 => {
                for n in 0..many {
                    self.line(CLIENT, port + n, |ip, port| {
                        format!("EPRT |1|{ip}|{port}|\r\n")
                    });
                }
                self.plain(SERVER, &"200 x\r\n".repeat(usize::from(many)));
            }
            6 => {
                self.plain(CLIENT, &"NOOP\r\n".repeat(usize::from(many)));
                let text = "200-y\r\n227 (1,2,3,4,5,6)\r\n200 x\r\n";
                self.plain(SERVER, &text.repeat(usize::from(many)));
            }
            _ => {
                self.plain(CLIENT, "AUTH TLS\r\n");
                self.plain(SERVER, "234 x\r\n");
                *clear = false;
            }
        }
    }
}

struct Net {
    engine: Engine,
    world: FakeGateway,
    /// The same with a gateway that puts packets off.
    patient: (Engine, FakeGateway),
    ends: [End; 2],
    places: [(Ipv4Addr, u16); 2],
    server_inside: bool,
    mss: u32,
    now: Duration,
    flying: [Vec<Seg>; 2],
    /// How much of either stream the engine has been shown without a gap.
    shown: [Vec<bool>; 2],
}

impl Net {
    fn side(&self, who: usize) -> Side {
        if (who == SERVER) == self.server_inside {
            Side::Egress
        } else {
            Side::Ingress
        }
    }

    /// What both engines say of a packet.
    fn decide(&mut self, side: Side, packet: &[u8]) -> Decision {
        let decision = decide(&mut self.engine, side, packet, self.now, &mut self.world);
        let (engine, world) = &mut self.patient;
        let later = decide(engine, side, packet, self.now, world);
        assert_eq!(decision, later, "it was put off");
        decision
    }

    /// Sends a segment through the engine; what comes out flies on.
    fn send(&mut self, who: usize, seg: &Seg) -> Option<Seg> {
        let packet = build(self.places[who], self.places[1 - who], seg);
        let side = self.side(who);
        let out = match self.decide(side, &packet) {
            Decision::Accept => packet,
            Decision::Replace(bytes) => {
                assert_eq!(bytes[..2], packet[..2]);
                assert_eq!(bytes[4..10], packet[4..10], "the IP header's other fields");
                bytes
            }
            Decision::Drop => return None,
        };
        let out = read(&out);
        assert_eq!(out.flags & !seg.flags, 0, "flags it hadn't");
        let room = (self.mss as usize).saturating_sub(seg.options.len());
        assert!(
            out.payload.len() <= room.max(seg.payload.len()),
            "{} bytes in a segment for {room}",
            out.payload.len()
        );
        if seg.flags & (FIN | RST | SYN) == 0 && seg.payload.is_empty() {
            // What it carries besides must fit into the window.
            let end = out.seq.wrapping_add(out.payload.len() as u32);
            let peer = &self.ends[1 - who];
            let right = peer.peer_isn.wrapping_add(1).wrapping_add(peer.edge);
            assert!(
                out.payload.is_empty() || right.wrapping_sub(end) < 1 << 31,
                "beyond the window"
            );
        }
        self.mark(who, seg);
        Some(out)
    }

    fn mark(&mut self, who: usize, seg: &Seg) {
        let start = seg.seq.wrapping_sub(self.ends[who].isn.wrapping_add(1));
        let shown = &mut self.shown[who];
        for n in 0..seg.payload.len() as u32 {
            let at = start.wrapping_add(n) as usize;
            if at < self.ends[who].text.len() {
                if shown.len() <= at {
                    shown.resize(at + 1, false);
                }
                shown[at] = true;
            }
        }
    }

    /// One decision of the network's or of an endpoint's.
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let what = bytes.byte();
        let who = usize::from(what & 1);
        self.now += Duration::from_millis(u64::from(what));
        let sent = match (what >> 1) & 15 {
            // The next bytes, or any bytes again.
            0..=3 => {
                let end = &mut self.ends[who];
                let len = u32::from(bytes.byte()).min(self.mss);
                let from = end.sent.max(end.una);
                let seg = end.segment(from, len);
                self.send(who, &seg)
            }
            4..=6 => {
                let end = &mut self.ends[who];
                let back = u32::from(bytes.byte());
                let len = u32::from(bytes.byte()).min(self.mss);
                let seg = end.segment(end.sent.saturating_sub(back), len);
                self.send(who, &seg)
            }
            7 => {
                let end = &mut self.ends[who];
                let len = u32::from(bytes.byte()).min(self.mss);
                let seg = end.segment(end.una, len);
                self.send(who, &seg)
            }
            8 => {
                let sack = self.ends[who].sack();
                let end = &mut self.ends[who];
                let mut seg = end.segment(end.sent, 0);
                seg.options = sack;
                self.send(who, &seg)
            }
            9 => {
                // A keep-alive, with or without a byte of garbage.
                let end = &mut self.ends[who];
                let mut seg = end.segment(end.una, 0);
                if end.una > 0 && bytes.flag() {
                    seg.payload = vec![b'?'];
                }
                seg.seq = seg.seq.wrapping_sub(1);
                // Where the garbage was never acknowledged to us it would be taken for data.
                if end.una != end.sent {
                    return;
                }
                self.send(who, &seg)
            }
            10 => {
                self.ends[who].window =
                    [0, 1, 20, self.ends[who].wide][usize::from(bytes.byte() & 3)];
                let end = &mut self.ends[who];
                let seg = end.segment(end.sent, 0);
                self.send(who, &seg)
            }
            11 => {
                // A retransmission that says something else: the first sending counts, while the
                // stream is looked at.
                if self.world.opaque().is_some() {
                    return;
                }
                let known = self.shown[who].iter().take_while(|seen| **seen).count() as u32;
                let from = known.saturating_sub(u32::from(bytes.byte()));
                let len = u32::from(bytes.byte()).min(known - from).min(self.mss);
                let mut seg = self.ends[who].segment(from, len);
                if len == 0 || seg.flags & FIN != 0 {
                    return;
                }
                seg.payload.iter_mut().for_each(|byte| *byte ^= 0x20);
                self.send(who, &seg)
            }
            12 => {
                // A decoy that no receiver takes.
                let len = u32::from(bytes.byte()).min(self.mss);
                let end = &mut self.ends[who];
                let mut seg = end.segment(end.sent, 0);
                seg.payload = vec![b'!'; len as usize];
                seg.ack = seg.ack.wrapping_add(7);
                let mut packet = build(self.places[who], self.places[1 - who], &seg);
                packet[36] ^= 0x40;
                let side = self.side(who);
                let decision = self.decide(side, &packet);
                assert_eq!(decision, Decision::Accept, "a wrong checksum");
                return;
            }
            13 => {
                self.ends[who].window = self.ends[who].wide;
                let end = &mut self.ends[who];
                let mut seg = end.segment(end.una, u32::from(bytes.byte()).min(self.mss));
                seg.flags |= URG;
                seg.urgent = u16::from(bytes.byte());
                self.send(who, &seg)
            }
            // The network delivers, repeats or loses.
            _ => {
                let pick = bytes.byte();
                let flying = &mut self.flying[who];
                if flying.is_empty() {
                    return;
                }
                let at = usize::from(pick >> 2) % flying.len();
                match pick & 3 {
                    0 => {
                        flying.remove(at);
                    }
                    1 => {
                        let seg = flying[at].clone();
                        self.ends[1 - who].take(&seg);
                    }
                    2 if flying[at].payload.len() > 1 => {
                        // The path cuts it in two, and the second half may come first.
                        let n = 1 + usize::from(bytes.byte()) % (flying[at].payload.len() - 1);
                        let mut rest = flying[at].clone();
                        flying[at].payload.truncate(n);
                        flying[at].flags &= !FIN;
                        rest.payload.drain(..n);
                        rest.seq = rest.seq.wrapping_add(n as u32);
                        flying.push(rest);
                    }
                    _ => {
                        let seg = flying.remove(at);
                        self.ends[1 - who].take(&seg);
                    }
                }
                return;
            }
        };
        if let Some(out) = sent
            && self.flying[who].len() < 16
        {
            self.flying[who].push(out);
        }
    }

    /// Lets both TCPs do what they do on a network without loss, until all is delivered.
    fn settle(&mut self) {
        for end in &mut self.ends {
            end.window = end.wide;
        }
        let most = 16 + 4 * self.ends.iter().map(|e| e.text.len()).sum::<usize>();
        for _ in 0..most {
            let mut quiet = true;
            for who in [CLIENT, SERVER] {
                let end = &mut self.ends[who];
                if end.una >= end.end() {
                    continue;
                }
                quiet = false;
                let seg = end.missing(self.mss);
                if let Some(out) = self.send(who, &seg) {
                    self.ends[1 - who].take(&out);
                }
                let peer = &mut self.ends[1 - who];
                let mut ack = peer.segment(peer.sent, 0);
                ack.options = peer.sack();
                if let Some(out) = self.send(1 - who, &ack) {
                    self.ends[who].take(&out);
                }
                self.now += Duration::from_millis(200);
            }
            let all = self.ends.iter().all(|end| end.got.len() == end.due.len());
            if all && quiet {
                return;
            }
            if quiet {
                // An endpoint that believes everything delivered speaks only when spoken to. What
                // it was promised must not depend on that for long.
                for who in [CLIENT, SERVER] {
                    let end = &mut self.ends[who];
                    let seg = end.segment(end.sent, 0);
                    if let Some(out) = self.send(who, &seg) {
                        self.ends[1 - who].take(&out);
                    }
                }
            }
        }
        for end in &self.ends {
            assert_eq!(
                String::from_utf8_lossy(&end.got),
                String::from_utf8_lossy(&end.due),
                "it doesn't arrive"
            );
        }
        panic!("it doesn't come to rest");
    }
}

/// A head (script, sequence numbers, segment size), then decisions.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let script = Script::read(&mut bytes);
    let head = bytes.byte();
    // Near the wrap, so that some session crosses it anywhere.
    let isn = |byte: u8| u32::MAX.wrapping_sub(u32::from(byte)).wrapping_sub(2);
    let isns = [isn(bytes.byte()), isn(bytes.byte())];
    let mss = [64, 100, 536, 1460][usize::from(head & 3)];
    let wide = if head & 4 == 0 { WINDOW } else { 40 };
    let client_port = 40_000;
    let (client, server) = if script.server_inside {
        ((OUTSIDE, client_port), (script.private, 21))
    } else {
        ((script.private, client_port), (OUTSIDE, 21))
    };
    let world = || {
        let (private, public) = (script.private, script.public);
        let entry = entry(script.server_inside, private, public, client_port);
        FakeGateway::with_entry(entry).same_port(script.same_port)
    };
    let mut patient = world();
    patient.puts_off = true;
    let mut net = Net {
        engine: Engine::new(uneven(), 0),
        world: world(),
        patient: (Engine::new(uneven(), 0), patient),
        ends: [
            End::new(isns[0], isns[1], wide),
            End::new(isns[1], isns[0], wide),
        ],
        places: [client, server],
        server_inside: script.server_inside,
        mss,
        now: Duration::ZERO,
        flying: [Vec::new(), Vec::new()],
        shown: [Vec::new(), Vec::new()],
    };
    let options = vec![2, 4, (mss >> 8) as u8, mss as u8];
    for (who, flags) in [(CLIENT, SYN), (SERVER, SYN | ACK)] {
        let syn = Seg {
            seq: isns[who],
            ack: if who == SERVER {
                isns[0].wrapping_add(1)
            } else {
                0
            },
            flags,
            window: wide as u16,
            options: options.clone(),
            ..Seg::default()
        };
        let out = net.send(who, &syn);
        assert_eq!(out.as_ref(), Some(&syn), "a handshake");
    }
    net.shown = [Vec::new(), Vec::new()];
    for (n, turn) in script.turns.iter().enumerate() {
        if n + 1 == script.turns.len() && head & 8 != 0 {
            // The last words carry the FIN.
            net.ends[turn.who].fin = true;
            net.ends[1 - turn.who].peer_fin = true;
        }
        net.ends[turn.who].text.extend_from_slice(&turn.written);
        net.ends[1 - turn.who].due.extend_from_slice(&turn.read);
        let n = if bytes.over() { 0 } else { bytes.byte() % 40 };
        for _ in 0..n {
            if bytes.over() {
                break;
            }
            net.step(&mut bytes);
        }
        net.settle();
    }
    for who in [CLIENT, SERVER] {
        net.ends[who].fin = true;
        net.ends[1 - who].peer_fin = true;
        for _ in 0..8 {
            if bytes.over() {
                break;
            }
            net.step(&mut bytes);
        }
        net.settle();
        assert_eq!(
            net.ends[1 - who].fin_at,
            Some(net.ends[1 - who].due.len() as u32)
        );
    }
    assert_eq!(net.world.ended, 1, "the session didn't end");
    assert_eq!(net.engine.sessions(net.now).count(), 0);
    assert_eq!(net.engine.stats().limit_reached, 0);
    assert!(
        matches!(net.world.opaque(), None | Some("TLS")),
        "{:?}",
        net.world.opaque()
    );
    // Once all is acknowledged nothing is kept.
    for who in [CLIENT, SERVER] {
        let end = &mut net.ends[who];
        let seg = end.segment(end.sent, 0);
        net.send(who, &seg);
    }
    assert_eq!(net.engine.buffered(), 0);
    let (patient, world) = &net.patient;
    assert_eq!(patient.stats(), net.engine.stats());
    assert_eq!(world.events, net.world.events);
    assert_eq!(world.opened, net.world.opened);
}

/// Edits of other lengths, as often as can be had: they are the hard ones.
fn uneven() -> Config {
    Config {
        keep_length: false,
        marks: Some(MARKS),
        ..Config::default()
    }
}
