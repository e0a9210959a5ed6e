//! Connections whose packets name the outside end differently in the two directions, and those of
//! which both ends are inside: which packets belong to which flow.
//!
//! A client dials the gateway's public address; the gateway leads it to the server, under an
//! address of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ftpalg::engine::{Config, Engine, Entry, Side, Tuple, Verdict};
use testkit::gateway::{FakeGateway, entry};
use testkit::packet::{ACK, LOGIN, SYN, Seg, build, data, read, syn};
use testkit::trace::Who;

const CLIENT: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 0, 2), 40_000);
const PUBLIC: (Ipv4Addr, u16) = (Ipv4Addr::new(203, 0, 113, 199), 21);
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 2), 21);
const GATEWAY: (Ipv4Addr, u16) = (Ipv4Addr::new(10, 0, 1, 1), 40_001);
const STARTS: [u32; 2] = [1000, 5000];

struct Lab {
    engine: Engine,
    world: FakeGateway,
    now: Duration,
}

impl Lab {
    fn new() -> Self {
        let mut world = FakeGateway::with_entry(entry(true, SERVER.0, PUBLIC.0, CLIENT.1));
        *world.entry() = Entry {
            original: tuple(CLIENT, PUBLIC),
            reply: tuple(SERVER, GATEWAY),
            mark: 0,
        };
        Self {
            engine: Engine::new(Config::default(), 0),
            world,
            now: Duration::ZERO,
        }
    }

    /// At the hook of the sender's side, if the sender is inside.
    fn leaves(&mut self, who: Who, seg: &Seg) -> Option<Seg> {
        let (from, to) = match who {
            Who::Client => (CLIENT, PUBLIC),
            Who::Server => (SERVER, GATEWAY),
        };
        self.packet(Side::Egress, &build(from, to, &numbered(who, seg)), who)
    }

    /// At the hook of the receiver's side: its destination is translated, its source isn't yet.
    fn arrives(&mut self, who: Who, seg: &Seg) -> Option<Seg> {
        let (from, to) = match who {
            Who::Client => (CLIENT, SERVER),
            Who::Server => (SERVER, CLIENT),
        };
        self.packet(Side::Ingress, &build(from, to, &numbered(who, seg)), who)
    }

    /// What it became, if it was changed.
    fn packet(&mut self, side: Side, packet: &[u8], who: Who) -> Option<Seg> {
        let verdict = self.engine.packet(side, packet, self.now, &mut self.world);
        match verdict {
            Verdict::Accept => None,
            Verdict::Replace(bytes) => {
                let mut seg = read(bytes);
                let [mine, peers] = starts(who);
                seg.seq = seg.seq.wrapping_sub(mine + 1);
                seg.ack = seg.ack.wrapping_sub(peers + 1);
                Some(seg)
            }
            Verdict::Drop => panic!("dropped"),
        }
    }

    /// A segment on its whole way, through the client's hooks as well if it is inside.
    fn through(&mut self, client_inside: bool, who: Who, seg: &Seg) -> Seg {
        let mut seg = seg.clone();
        if who == Who::Server || client_inside {
            seg = self.leaves(who, &seg).unwrap_or(seg);
        }
        if who == Who::Client || client_inside {
            seg = self.arrives(who, &seg).unwrap_or(seg);
        }
        seg
    }

    /// The handshake, the login, `PASV` and its reply; returns what the client reads.
    fn session(&mut self, client_inside: bool) -> Seg {
        for (who, flags) in [(Who::Client, SYN), (Who::Server, SYN | ACK)] {
            let seg = syn(flags);
            assert_eq!(self.through(client_inside, who, &seg), seg);
        }
        let mut at = [0, 0];
        for (by_server, text) in LOGIN.into_iter().chain([(false, "PASV\r\n")]) {
            let who = if by_server { Who::Server } else { Who::Client };
            let seg = data(at[who as usize], at[1 - who as usize], text);
            assert_eq!(self.through(client_inside, who, &seg), seg, "{text}");
            at[who as usize] += text.len() as u32;
        }
        let reply = "227 x (10,0,1,2,195,80).\r\n";
        let read = self.through(client_inside, Who::Server, &data(at[1], at[0], reply));
        // The server's numbers in what it is acknowledged.
        let acked = data(at[0], at[1] + read.payload.len() as u32, "NOOP\r\n");
        let got = self.through(client_inside, Who::Client, &acked);
        assert_eq!(got, data(at[0], at[1] + reply.len() as u32, "NOOP\r\n"));
        read
    }

    fn counted(&self) -> (u64, u64, u64) {
        let stats = self.engine.stats();
        (stats.sessions, stats.rewritten, stats.mid_stream)
    }
}

fn starts(who: Who) -> [u32; 2] {
    match who {
        Who::Client => STARTS,
        Who::Server => [STARTS[1], STARTS[0]],
    }
}

/// Sequence numbers in segments are offsets from the byte behind the SYN.
fn numbered(who: Who, seg: &Seg) -> Seg {
    let [mine, peers] = starts(who);
    let ack = seg.ack.wrapping_add(peers + 1);
    Seg {
        seq: seg.seq.wrapping_add(mine + 1),
        ack: if seg.flags & ACK == 0 { 0 } else { ack },
        ..seg.clone()
    }
}

fn tuple(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16)) -> Tuple {
    Tuple {
        src: SocketAddr::from(src),
        dst: SocketAddr::from(dst),
    }
}

const TOLD: &[u8] = b"227 x (203,0,113,199,195,80).\r\n";

#[test]
fn clients_that_are_translated_towards_the_server() {
    let mut lab = Lab::new();
    assert_eq!(lab.session(false).payload, TOLD);
    assert_eq!(lab.counted(), (1, 1, 0));
}

#[test]
fn both_ends_inside_are_one_session() {
    let mut lab = Lab::new();
    assert_eq!(lab.session(true).payload, TOLD);
    assert_eq!(lab.counted(), (1, 1, 0));
    assert_eq!(lab.world.opened.len(), 1);
}

/// Without NAT the two ends see each other's own addresses.
#[test]
fn both_ends_inside_without_nat_are_one_session() {
    let mut lab = Lab::new();
    for (who, from, to, flags) in [
        (Who::Client, CLIENT, SERVER, SYN),
        (Who::Server, SERVER, CLIENT, SYN | ACK),
        (Who::Client, CLIENT, SERVER, ACK),
    ] {
        let seg = Seg {
            seq: if flags == ACK { 0 } else { u32::MAX },
            ..syn(flags)
        };
        let packet = build(from, to, &numbered(who, &seg));
        for side in [Side::Egress, Side::Ingress] {
            assert_eq!(lab.packet(side, &packet, who), None);
        }
    }
    assert_eq!(lab.counted(), (1, 0, 0));
}

#[test]
fn conntrack_must_know_the_translation() {
    for reply in [tuple(SERVER, CLIENT), tuple(PUBLIC, GATEWAY)] {
        let mut lab = Lab::new();
        lab.world.entry().reply = reply;
        let reply = lab_reply(&mut lab);
        assert_eq!(reply, None, "a flow that conntrack doesn't confirm");
        assert_eq!(lab.counted().0, 0);
    }
}

/// Somebody else's handshake, with the numbers of another.
fn lab_reply(lab: &mut Lab) -> Option<Seg> {
    lab.arrives(Who::Client, &syn(SYN));
    lab.leaves(Who::Server, &syn(SYN | ACK));
    lab.leaves(Who::Server, &data(0, 0, "220 x\r\n"))
}

#[test]
fn names_go_with_their_flow() {
    let mut lab = Lab::new();
    lab.session(true);
    assert!(lab.engine.has_names());
    // Quiet for longer than any connection may be.
    lab.now = Duration::from_secs(6 * 24 * 3600);
    lab.engine.tick(lab.now, &mut lab.world);
    assert!(!lab.engine.has_names());
    // And the next one between the same ends is right as well.
    assert_eq!(lab.session(true).payload, TOLD);
}

/// The same client port led to the server under its own address before: that connection's name is
/// now the new one's.
#[test]
fn a_name_that_another_connection_had() {
    let mut lab = Lab::new();
    lab.arrives(Who::Client, &syn(SYN));
    let answer = numbered(Who::Server, &syn(SYN | ACK));
    lab.packet(Side::Egress, &build(SERVER, CLIENT, &answer), Who::Server);
    assert_eq!(lab.counted().0, 1);
    assert_eq!(lab.session(false).payload, TOLD);
    assert_eq!((lab.counted(), lab.world.ended), ((2, 1, 0), 1));
}
