//! One end of a TCP connection made of raw packets: it says what no kernel would say.
//!
//! It has no timers and repeats nothing by itself. Its host's kernel, which knows nothing of the
//! connection, is kept from resetting it.

use std::io::{Error, ErrorKind};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::net::Net;
pub use crate::packet::{ACK, FIN, PSH, RST, SYN, URG};
use crate::packet::{Seg, build_with_ttl};

/// What its own packets are marked with: the host's firewall drops resets without it.
const MARK: u32 = 0x5c;

/// One end of a connection.
pub struct Craft {
    out: OwnedFd,
    taken: OwnedFd,
    /// Its own address, as packets say it.
    pub local: SocketAddrV4,
    /// The peer's.
    pub remote: SocketAddrV4,
    /// The sequence number of what it says next.
    pub next: u32,
    /// What it has heard is acknowledged up to here.
    pub ack: u32,
    /// All that it has heard, in order.
    pub heard: Vec<u8>,
    /// The window that it offers.
    pub window: u16,
    /// The longest segment that it takes, it says.
    pub mss: u16,
    /// Its window scale (RFC 7323 §2), if it offers one.
    pub shift: Option<u8>,
    /// Whether it acknowledges what it hears.
    pub acknowledges: bool,
}

/// A segment to be.
#[derive(Clone, Copy)]
pub struct Shot<'a> {
    /// Sequence number.
    pub seq: u32,
    /// Its flags.
    pub flags: u8,
    /// The data.
    pub payload: &'a [u8],
    /// How many routers it lives through, and one more.
    pub ttl: u8,
    /// Whether its checksum is right.
    pub good_checksum: bool,
    /// The urgent pointer.
    pub urgent: u16,
}

impl<'a> Shot<'a> {
    /// A segment with data, as it should be.
    pub fn data(seq: u32, payload: &'a [u8]) -> Self {
        Self {
            seq,
            flags: PSH | ACK,
            payload,
            ttl: 64,
            good_checksum: true,
            urgent: 0,
        }
    }

    /// The same with these flags.
    pub fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }

    /// The same, not to live longer than so many routers and one.
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// The same with a wrong checksum.
    pub fn wrong(self) -> Self {
        Self {
            good_checksum: false,
            ..self
        }
    }
}

impl Craft {
    /// An end on a host, before any packet.
    ///
    /// # Panics
    /// Without root's rights.
    pub fn new(net: &Net, host: &str, local: SocketAddrV4, remote: SocketAddrV4) -> Self {
        let port = local.port().to_string();
        let mark = format!("{MARK:#x}");
        let rule = [
            "iptables-nft",
            "-A",
            "OUTPUT",
            "-p",
            "tcp",
            "--sport",
            &port,
        ];
        let resets = [
            "--tcp-flags",
            "RST",
            "RST",
            "-m",
            "mark",
            "!",
            "--mark",
            &mark,
        ];
        net.exec(host, &[&rule[..], &resets, &["-j", "DROP"]].concat())
            .must();
        let raw = |protocol| {
            let flags = SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Inet, SockType::Raw, flags, protocol).expect("root")
        };
        let (out, taken) = net.within(host, || {
            // `IPPROTO_RAW`: the packets bring their own headers.
            (raw(SockProtocol::Raw), raw(SockProtocol::Tcp))
        });
        setsockopt(&out, sockopt::Mark, &MARK).expect("root");
        Self {
            out,
            taken,
            local,
            remote,
            next: 0x1000_0000 ^ u32::from(local.port()) << 8,
            ack: 0,
            heard: Vec::new(),
            window: 60_000,
            mss: 1460,
            shift: None,
            acknowledges: true,
        }
    }

    /// The client's side of a handshake.
    pub fn connect(&mut self, limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        self.shoot(Shot::data(self.next, b"").flags(SYN));
        let answer = self.take(deadline, |packet| packet.flags & (SYN | ACK) == SYN | ACK)?;
        self.next = answer.ack;
        self.ack = answer.seq.wrapping_add(1);
        self.shoot(Shot::data(self.next, b"").flags(ACK));
        Ok(())
    }

    /// The server's side of a handshake; `first` is said at once, without waiting for the client.
    pub fn accept(&mut self, first: &[u8], limit: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + limit;
        let call = self.take(deadline, |packet| packet.flags & (SYN | ACK) == SYN)?;
        self.remote = call.from;
        self.ack = call.seq.wrapping_add(1);
        self.shoot(Shot::data(self.next, b"").flags(SYN | ACK));
        self.next = self.next.wrapping_add(1);
        if !first.is_empty() {
            self.say(first);
        }
        Ok(())
    }

    /// Says this in one segment.
    pub fn say(&mut self, text: &[u8]) {
        self.shoot(Shot::data(self.next, text));
        self.went(text.len());
    }

    /// Counts this as said.
    pub fn went(&mut self, length: usize) {
        self.next = self
            .next
            .wrapping_add(u32::try_from(length).expect("short"));
    }

    /// Sends a segment; nothing is counted.
    pub fn shoot(&self, shot: Shot) {
        self.launch(&self.packet(shot));
    }

    /// Sends a segment in IP fragments (RFC 791 §3.2) of `size` bytes, a multiple of 8.
    pub fn shoot_in_fragments(&self, shot: Shot, size: usize) {
        let packet = self.packet(shot);
        let (header, body) = packet.split_at(20);
        let count = body.len().div_ceil(size);
        for (number, part) in body.chunks(size).enumerate() {
            let more = u16::from(number + 1 < count) << 13;
            let offset = u16::try_from(number * size / 8).expect("short");
            let length = u16::try_from(20 + part.len()).expect("short");
            let mut fragment = header.to_vec();
            fragment[2..4].copy_from_slice(&length.to_be_bytes());
            fragment[4..6].copy_from_slice(&0x4242_u16.to_be_bytes());
            fragment[6..8].copy_from_slice(&(more | offset).to_be_bytes());
            fragment.extend(part);
            self.launch(&fragment);
        }
    }

    fn launch(&self, packet: &[u8]) {
        let to = SockaddrIn::from(SocketAddrV4::new(*self.remote.ip(), 0));
        // What can't be sent is lost like any other.
        let _ = sendto(self.out.as_raw_fd(), packet, &to, MsgFlags::empty());
    }

    /// Listens until it has heard this (after `from` bytes that it heard before).
    pub fn hear(&mut self, text: &str, from: usize, limit: Duration) -> Result<String, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let new = String::from_utf8_lossy(self.heard.get(from..).unwrap_or_default());
            if let Some(at) = new.find(text)
                && let Some(end) = new[at..].find('\n')
            {
                return Ok(new[at..=at + end].to_owned());
            }
            self.listen(deadline)?;
        }
    }

    /// Takes in one segment of the peer's with data.
    pub fn listen(&mut self, deadline: Instant) -> Result<(), Error> {
        let got = self.take(deadline, |packet| !packet.payload.is_empty())?;
        let skip = self.ack.wrapping_sub(got.seq) as usize;
        if let Some(fresh) = got.payload.get(skip..) {
            self.heard.extend_from_slice(fresh);
            self.ack = self
                .ack
                .wrapping_add(u32::try_from(fresh.len()).expect("short"));
        }
        if self.acknowledges {
            self.shoot(Shot::data(self.next, b"").flags(ACK));
        }
        Ok(())
    }

    /// The next packet of the connection that is like that.
    pub fn take(&self, deadline: Instant, like: impl Fn(&Packet) -> bool) -> Result<Packet, Error> {
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::WouldBlock.into());
            }
            let left = TimeVal::new(
                left.as_secs().try_into().expect("short"),
                i64::from(left.subsec_micros()).max(1000),
            );
            setsockopt(&self.taken, sockopt::ReceiveTimeout, &left)?;
            let n = match recv(self.taken.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => n,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(packet) = Packet::parse(&buffer[..n]) else {
                continue;
            };
            let mine = packet.to == self.local.port()
                && (self.remote.port() == 0 || packet.from == self.remote);
            if mine && like(&packet) {
                return Ok(packet);
            }
        }
    }

    fn packet(&self, shot: Shot) -> Vec<u8> {
        // The SYN says how long segments may be.
        let [high, low] = self.mss.to_be_bytes();
        let mut options = Vec::new();
        if shot.flags & SYN != 0 {
            options.extend([2, 4, high, low]);
            options.extend(self.shift.iter().flat_map(|shift| [1, 3, 3, *shift]));
        }
        let seg = Seg {
            seq: shot.seq,
            ack: if shot.flags & ACK != 0 { self.ack } else { 0 },
            flags: shot.flags,
            window: self.window,
            urgent: shot.urgent,
            options,
            payload: shot.payload.to_vec(),
        };
        let end = |at: SocketAddrV4| (*at.ip(), at.port());
        let mut packet = build_with_ttl(end(self.local), end(self.remote), shot.ttl, &seg);
        if !shot.good_checksum {
            // Of an IPv4 header without options, and TCP's behind it.
            packet[36..38].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        packet
    }
}

/// A packet that came.
pub struct Packet {
    /// Its source.
    pub from: SocketAddrV4,
    /// The port that it came to.
    pub to: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Its flags.
    pub flags: u8,
    /// The data.
    pub payload: Vec<u8>,
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 15) * 4;
        let ip: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
        let tcp = bytes.get(header..)?;
        let two = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let four = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let data = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddrV4::new(ip.into(), two(0)?),
            to: two(2)?,
            seq: four(4)?,
            ack: four(8)?,
            flags: *tcp.get(13)?,
            payload: tcp.get(data..)?.to_vec(),
        })
    }
}
