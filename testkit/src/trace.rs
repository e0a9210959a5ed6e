//! A conversation through the engine, packet by packet.
//!
//! A server at 10.0.0.2 is published as 203.0.113.199: its `227 (10,0,0,2,…)` grows by five bytes.

use std::net::Ipv4Addr;
use std::time::Duration;

use ftpalg::engine::{Config, Engine, Side, Verdict};

use crate::gateway::{FakeGateway, entry};
use crate::packet::{ACK, LOGIN, OUTSIDE, SYN, Seg, build, data, read, syn};

/// The server's own address.
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The address that clients dial.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 199);
/// The client's port.
pub const CLIENT_PORT: u16 = 40_000;
/// The address as written, and as read.
pub const OLD: &str = "10,0,0,2,195,80";
/// The same, as the client is to read it.
pub const NEW: &str = "203,0,113,199,195,80";
/// How many bytes longer that is.
pub const GROWTH: u32 = 5;
/// A line of a dialogue.
pub const PASV: (bool, &str) = (false, "PASV\r\n");

pub use Who::{Client, Server};

/// An end of the control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The one that dialled.
    Client,
    /// The one that was dialled.
    Server,
}

/// What became of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// It left as it came.
    Same,
    /// This left in its place.
    Became(Seg),
    /// It was dropped.
    Dropped,
}

impl Out {
    /// What left in its place.
    ///
    /// # Panics
    /// If it left as it came, or not at all.
    #[track_caller]
    pub fn seg(self) -> Seg {
        match self {
            Self::Became(seg) => seg,
            other => panic!("{other:?}"),
        }
    }
}

/// A conversation. Sequence numbers in segments are offsets from the byte behind the SYN.
pub struct Trace {
    /// The engine.
    pub engine: Engine,
    /// Its gateway.
    pub world: FakeGateway,
    /// Initial sequence numbers of client and server.
    pub isn: [u32; 2],
    /// The time.
    pub now: Duration,
}

impl Trace {
    /// Connected, nobody has said anything.
    #[expect(
        clippy::new_without_default,
        reason = "it does more than to begin empty"
    )]
    pub fn new() -> Self {
        Self::with(Config::default(), [1000, 5000], &[])
    }

    /// `isn`: of client and server; `options`: of both SYNs.
    pub fn with(config: Config, isn: [u32; 2], options: &[u8]) -> Self {
        let syn = Seg {
            options: options.to_vec(),
            ..syn(SYN)
        };
        Self::begun(config, isn, &syn)
    }

    /// Nobody has said anything.
    pub fn unborn(config: Config, isn: [u32; 2]) -> Self {
        Self {
            engine: Engine::new(config, 0),
            world: FakeGateway::with_entry(entry(true, INSIDE, PUBLIC, CLIENT_PORT)),
            isn,
            now: Duration::ZERO,
        }
    }

    /// `syn`: the client's, and that of the server's answer.
    pub fn begun(config: Config, isn: [u32; 2], syn: &Seg) -> Self {
        let mut trace = Self::unborn(config, isn);
        assert_eq!(trace.send(Client, syn.clone()), Out::Same);
        let syn = Seg {
            flags: SYN | ACK,
            ..syn.clone()
        };
        assert_eq!(trace.send(Server, syn), Out::Same);
        trace
    }

    /// Logged in; returns where client and server are.
    pub fn login(&mut self) -> [u32; 2] {
        self.dialogue(64_000, &LOGIN)
    }

    /// These lines, in segments that offer such a window; returns where client and server are.
    pub fn dialogue(&mut self, window: u16, lines: &[(bool, &str)]) -> [u32; 2] {
        let mut at = [0, 0];
        for &(by_server, text) in lines {
            let who = if by_server { Server } else { Client };
            let seg = Seg {
                window,
                ..data(at[who as usize], at[1 - who as usize], text)
            };
            assert_eq!(self.send(who, seg), Out::Same, "{text}");
            at[who as usize] += text.len() as u32;
        }
        at
    }

    /// Logged in, and `PASV` sent.
    pub fn asked() -> (Self, u32, u32) {
        let mut trace = Self::new();
        let (client, server) = trace.ask();
        (trace, client, server)
    }

    /// Logs in and sends `PASV`; returns where client and server are.
    pub fn ask(&mut self) -> (u32, u32) {
        let [client, server] = self.login();
        assert_eq!(
            self.send(Client, data(client, server, "PASV\r\n")),
            Out::Same
        );
        (client + 6, server)
    }

    /// As [`Trace::asked`], but the client never offered more than `window` bytes.
    pub fn asked_with_window(window: u16) -> (Self, u32, u32) {
        let mut t = Self::begun(Config::default(), [1000, 5000], &Seg { window, ..syn(SYN) });
        let [client, server] = t.dialogue(window, &[&LOGIN[..], &[PASV]].concat());
        (t, client, server)
    }

    /// A `227` has grown, everything is acknowledged, and nobody speaks; where both are.
    pub fn idle() -> (Self, u32, u32) {
        let (mut t, c, s) = Self::asked();
        t.send(Server, data(s, c, &reply()));
        t.send(Client, ack(c, s + told().len() as u32));
        (t, c, s + reply().len() as u32)
    }

    /// Time passes.
    pub fn later(&mut self, time: Duration) {
        self.now += time;
        self.engine.tick(self.now, &mut self.world);
    }

    /// Asserts that the session is still followed: `c` and `s` are both ends' own numbers.
    #[track_caller]
    pub fn goes_on(&mut self, c: u32, s: u32) {
        let out = self.send(Client, data(c, s + GROWTH, "PASV\r\n"));
        assert_eq!(out, Out::Became(data(c, s, "PASV\r\n")));
        let out = self.send(Server, data(s, c + 6, &reply())).seg();
        assert_eq!(out, data(s + GROWTH, c + 6, &told()));
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.engine.sessions(self.now).count()
    }

    /// A `PASV` and its answer are rewritten, a foreign `PORT` is refused.
    pub fn is_followed(&mut self) {
        let (c, s) = self.ask();
        let out = self.send(Server, data(s, c, &reply())).seg();
        assert_eq!(out.payload, told().into_bytes());
        let s = s + told().len() as u32;
        let refused = self
            .send(Client, data(c, s, "PORT 10,0,0,3,0,22\r\n"))
            .seg();
        assert!(!refused.payload.ends_with(b"0,22\r\n"), "{refused:?}");
        assert_eq!(self.world.opened.len(), 1);
    }

    /// A segment with the numbers that are on the wire.
    pub fn wire(&self, who: Who, mut seg: Seg) -> Seg {
        let base = |isn: u32| isn.wrapping_add(1);
        seg.seq = seg.seq.wrapping_add(base(self.isn[who as usize]));
        if seg.flags & ACK != 0 {
            seg.ack = seg.ack.wrapping_add(base(self.isn[1 - who as usize]));
        }
        seg
    }

    /// What becomes of a segment.
    pub fn send(&mut self, who: Who, seg: Seg) -> Out {
        let packet = pack(who, &self.wire(who, seg));
        match self.raw(who, &packet) {
            Verdict::Accept => Out::Same,
            Verdict::Drop => Out::Dropped,
            Verdict::Replace(bytes) => {
                let bytes = bytes.to_vec();
                assert_ne!(bytes, packet, "a change that changes nothing");
                let mut seg = read(&bytes);
                let base = |isn: u32| isn.wrapping_add(1);
                seg.seq = seg.seq.wrapping_sub(base(self.isn[who as usize]));
                if seg.flags & ACK != 0 {
                    seg.ack = seg.ack.wrapping_sub(base(self.isn[1 - who as usize]));
                }
                Out::Became(seg)
            }
        }
    }

    /// What the engine says of a packet.
    pub fn raw(&mut self, who: Who, packet: &[u8]) -> Verdict<'_> {
        let side = match who {
            Server => Side::Egress,
            Client => Side::Ingress,
        };
        self.engine.packet(side, packet, self.now, &mut self.world)
    }
}

/// A segment, its numbers those on the wire, as a packet.
pub fn pack(who: Who, seg: &Seg) -> Vec<u8> {
    let (client, server) = ((OUTSIDE, CLIENT_PORT), (INSIDE, 21));
    match who {
        Client => build(client, server, seg),
        Server => build(server, client, seg),
    }
}

/// A bare acknowledgement.
pub fn ack(seq: u32, ack: u32) -> Seg {
    Seg {
        flags: ACK,
        ..data(seq, ack, "")
    }
}

/// The same with further flags.
pub fn flagged(flags: u8, seg: Seg) -> Seg {
    Seg {
        flags: seg.flags | flags,
        ..seg
    }
}

/// A `227`, as the server writes it.
pub fn reply() -> String {
    format!("227 x ({OLD}).\r\n")
}

/// A `227`, as the client is to read it.
pub fn told() -> String {
    format!("227 x ({NEW}).\r\n")
}
