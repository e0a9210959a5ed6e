//! Any segments at all between two addresses: what leaves is a whole packet with right checksums,
//! no larger than allowed, and buffers stay within their limits. A gateway that puts packets off changes
//! nothing of it.

use std::net::Ipv4Addr;
use std::time::Duration;

use ftpalg::engine::{Config, Engine, Side};
use ftpalg::stream::BufferLimits;

use super::Bytes;
use crate::gateway::{Decision, FakeGateway, MARKS, decide, entry};
use crate::packet::{ACK, FIN, OUTSIDE, RST, SYN, Seg, build, read};

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const TEXTS: [&[u8]; 16] = [
    b"220 x\r\n",
    b"USER a\r\n",
    b"230 x\r\n",
    b"PASV\r\n",
    b"227 (10,0,0,2,200,1).\r\n",
    b"227 (10,0,0,",
    b"2,200,1)\r\n",
    b"EPSV\r\n",
    b"229 (|||3000|)\r\n",
    b"PORT 198,51,100,7,200,1\r\n",
    b"EPRT |1|198.51.100.7|5000|\r\n",
    b"200 x\r\n",
    b"RETR f\r\n",
    b"AUTH TLS\r\n",
    b"234 x\r\n",
    b"LPSV\r\n",
];

/// Records of segments; numbers are relative to what either side has said so far.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let head = bytes.byte();
    let limits = if head & 1 == 0 {
        BufferLimits::default()
    } else {
        BufferLimits {
            held: 16,
            unacked: 64,
            edits: 2,
            ahead: 32,
        }
    };
    // Shares a bit with the window scale.
    let joins = head & 32 == 0;
    let config = Config {
        limits,
        max_buffered: if head & 2 == 0 { 64 << 20 } else { 100 },
        max_flows: 3,
        marks: joins.then_some(MARKS),
        ..Config::default()
    };
    let most = 2 * (limits.held + limits.unacked + limits.ahead + 3000);
    let mut engine = Engine::new(config.clone(), 0);
    let mut patient_engine = Engine::new(config, 0);
    let server_inside = head & 4 == 0;
    let public = Ipv4Addr::new(203, 0, 113, 199);
    let [mut world, mut patient] = [false, true].map(|puts_off| {
        let entry = entry(server_inside, INSIDE, public, 4000);
        let mut world = FakeGateway::with_entry(entry).same_port(false);
        world.puts_off = puts_off;
        world
    });
    let mss: u16 = [64, 500, 1460, 65_535][usize::from(head >> 3 & 3)];
    let mut next = [bytes.long(), bytes.long()];
    let mut now = Duration::ZERO;
    // Side 0 is the client.
    let places = if server_inside {
        [(OUTSIDE, 4000), (INSIDE, 21)]
    } else {
        [(INSIDE, 4000), (OUTSIDE, 21)]
    };
    let side = |who: usize| {
        if (who == 1) == server_inside {
            Side::Egress
        } else {
            Side::Ingress
        }
    };
    let hello = |who: usize, next: &[u32; 2]| Seg {
        seq: next[who].wrapping_sub(1),
        ack: if who == 1 { next[0] } else { 0 },
        flags: if who == 1 { SYN | ACK } else { SYN },
        window: 1000,
        options: vec![2, 4, (mss >> 8) as u8, mss as u8, 1, 3, 3, head >> 5],
        ..Seg::default()
    };
    let mut shaken = 0;
    while !bytes.over() || shaken < 2 {
        let (who, seg) = if shaken < 2 {
            shaken += 1;
            (shaken - 1, hello(shaken - 1, &next))
        } else {
            let what = bytes.byte();
            let who = usize::from(what & 1);
            if what & 0x1e == 0x1e {
                now += Duration::from_secs(u64::from(bytes.byte()));
                engine.tick(now, &mut world);
                patient_engine.tick(now, &mut patient);
                continue;
            }
            let mut seg = Seg {
                seq: next[who],
                ack: next[1 - who],
                flags: ACK,
                window: 1000,
                ..Seg::default()
            };
            match what >> 1 & 3 {
                0 => {}
                1 => seg.seq = seg.seq.wrapping_add(bytes.byte() as i8 as u32),
                2 => seg.seq = seg.seq.wrapping_add(bytes.long()),
                _ => seg.seq = seg.seq.wrapping_sub(u32::from(bytes.word())),
            }
            match what >> 3 & 3 {
                0 => {}
                1 => seg.ack = seg.ack.wrapping_add(bytes.byte() as i8 as u32),
                2 => seg.ack = seg.ack.wrapping_add(bytes.long()),
                _ => seg.ack = seg.ack.wrapping_sub(u32::from(bytes.word())),
            }
            if what & 0x20 != 0 {
                seg.flags = bytes.byte() & 0x3f;
                seg.window = bytes.word();
                seg.urgent = bytes.word();
            }
            if what & 0x40 != 0 {
                let n = usize::from(bytes.byte() % 41);
                seg.options = bytes.take(n).to_vec();
                if n & 1 == 1 {
                    let edge = |n: u8| next[1 - who].wrapping_sub(u32::from(n)).to_be_bytes();
                    let (a, b) = (edge(bytes.byte()), edge(bytes.byte()));
                    seg.options = [&[1, 1, 5, 10][..], &a, &b].concat();
                }
            }
            if what & 0x80 != 0 {
                let text = bytes.byte();
                seg.payload = match text >> 6 {
                    0 | 1 => TEXTS[usize::from(text & 15)].to_vec(),
                    2 => TEXTS[usize::from(text & 15)].repeat(usize::from(text >> 2 & 15) + 1),
                    _ => bytes.take(usize::from(text & 63)).to_vec(),
                };
            }
            (who, seg)
        };
        let packet = build(places[who], places[1 - who], &seg);
        // Who says something new, goes on from there; what the other end knows of it includes
        // what the edits made of it.
        let end = seg.seq.wrapping_add(seg.payload.len() as u32);
        if seg.flags & (SYN | RST) == 0 && end.wrapping_sub(next[who]) < 4096 {
            next[who] = end.wrapping_add(u32::from(seg.flags & FIN));
        }
        let decision = decide(&mut engine, side(who), &packet, now, &mut world);
        let later = decide(&mut patient_engine, side(who), &packet, now, &mut patient);
        assert_eq!(decision, later, "it was put off");
        if let Decision::Replace(bytes) = decision {
            let out = read(&bytes);
            assert_eq!(out.flags & !seg.flags, 0, "flags it hadn't");
            assert_eq!(out.options.len(), packet_options(&packet));
            // In a connection that is joined, the handshake's isn't known.
            let largest = if joins { mss.max(536) } else { mss.max(64) };
            let room = usize::from(largest).saturating_sub(out.options.len());
            assert!(out.payload.len() <= room.max(seg.payload.len()));
        }
        assert!(engine.buffered() <= most, "{} bytes", engine.buffered());
        let told: usize = engine.sessions(now).map(|session| session.buffered).sum();
        assert!(told <= engine.buffered());
    }
    engine.tick(now + Duration::from_secs(6 * 24 * 3600), &mut world);
    assert_eq!(engine.buffered(), 0);
    assert_eq!(engine.stats(), patient_engine.stats());
}

fn packet_options(packet: &[u8]) -> usize {
    usize::from(packet[32] >> 4) * 4 - 20
}
