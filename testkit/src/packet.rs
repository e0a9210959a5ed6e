//! A kernel that says yes, and packets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ftpalg::engine::event::Event;
use ftpalg::engine::gateway::{Error, Gateway, PinholeId, Request, Reservation, SessionId};
use ftpalg::engine::{Entry, Tuple};

pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Conntrack and pinholes; the public port is a fixed function of the private one.
pub(crate) struct World {
    pub(crate) entry: Entry,
    pub(crate) same_port: bool,
    pub(crate) opened: usize,
    pub(crate) ended: usize,
    /// How many sessions there may be.
    pub(crate) room: usize,
    pub(crate) opaque: Option<&'static str>,
    requests: u64,
}

impl World {
    pub(crate) fn new(
        server_inside: bool,
        private: Ipv4Addr,
        public: Ipv4Addr,
        client_port: u16,
        same_port: bool,
    ) -> Self {
        let at = |ip: Ipv4Addr, port| SocketAddr::new(ip.into(), port);
        let (original, reply) = if server_inside {
            (
                (at(OUTSIDE, client_port), at(public, 21)),
                (at(private, 21), at(OUTSIDE, client_port)),
            )
        } else {
            (
                (at(private, client_port), at(OUTSIDE, 21)),
                (at(OUTSIDE, 21), at(public, client_port)),
            )
        };
        let tuple = |(src, dst)| Tuple { src, dst };
        Self {
            entry: Entry {
                original: tuple(original),
                reply: tuple(reply),
                mark: 0,
            },
            same_port,
            opened: 0,
            ended: 0,
            room: usize::MAX,
            opaque: None,
            requests: 0,
        }
    }
}

pub(crate) fn public_port(private: u16) -> u16 {
    1024 + (u32::from(private) * 7919 % 60_000) as u16
}

impl Gateway for World {
    fn conntrack(&mut self, _: SocketAddr, _: SocketAddr) -> Result<Entry, Error> {
        Ok(self.entry)
    }
    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        self.requests += 1;
        let port = request.land.port();
        let port = if request.published && !self.same_port {
            public_port(port)
        } else {
            port
        };
        Ok(Reservation {
            id: PinholeId(self.requests),
            to: SocketAddr::new(request.to, port),
        })
    }
    fn open(&mut self, _: PinholeId) -> Result<(), Error> {
        self.opened += 1;
        Ok(())
    }
    fn release(&mut self, _: PinholeId) {}
    fn admit(&mut self, _: SessionId, _: IpAddr) -> Result<(), Error> {
        let room = self.room.checked_sub(1);
        self.room = room.ok_or(Error::Limit("sessions"))?;
        Ok(())
    }
    fn session_ended(&mut self, _: SessionId) {
        self.ended += 1;
        self.room = self.room.saturating_add(1);
    }
    fn event(&mut self, event: Event) {
        if let Event::Opaque { why, .. } = event {
            self.opaque = Some(why);
        }
    }
}

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URG: u8 = 32;

/// A login: whether the server says it, and what.
pub(crate) const LOGIN: [(bool, &str); 5] = [
    (true, "220 x\r\n"),
    (false, "USER a\r\n"),
    (true, "331 x\r\n"),
    (false, "PASS b\r\n"),
    (true, "230 x\r\n"),
];

/// What a TCP segment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seg {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// A SYN or a SYN-ACK whose sender's text begins at 0.
pub(crate) fn syn(flags: u8) -> Seg {
    Seg {
        seq: u32::MAX,
        flags,
        window: 64_000,
        ..Seg::default()
    }
}

/// A segment with text.
pub(crate) fn data(seq: u32, ack: u32, text: &str) -> Seg {
    Seg {
        seq,
        ack,
        flags: ACK | PSH,
        window: 64_000,
        payload: text.as_bytes().to_vec(),
        ..Seg::default()
    }
}

fn header(seg: &Seg, from: u16, to: u16) -> etherparse::TcpHeader {
    let mut tcp = etherparse::TcpHeader::new(from, to, seg.seq, seg.window);
    tcp.acknowledgment_number = seg.ack;
    tcp.fin = seg.flags & FIN != 0;
    tcp.syn = seg.flags & SYN != 0;
    tcp.rst = seg.flags & RST != 0;
    tcp.psh = seg.flags & PSH != 0;
    tcp.ack = seg.flags & ACK != 0;
    tcp.urg = seg.flags & URG != 0;
    tcp.urgent_pointer = seg.urgent;
    let mut options = seg.options.clone();
    options.truncate(40);
    while !options.len().is_multiple_of(4) {
        options.push(1);
    }
    if let Err(error) = tcp.set_options_raw(&options) {
        panic!("options: {error}");
    }
    tcp
}

/// A packet with right checksums.
pub(crate) fn build(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), seg: &Seg) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ipv4(from.0.octets(), to.0.octets(), 61)
        .tcp_header(header(seg, from.1, to.1));
    let mut packet = Vec::with_capacity(builder.size(seg.payload.len()));
    if let Err(error) = builder.write(&mut packet, &seg.payload) {
        panic!("{error}");
    }
    packet
}

/// Reads a packet back; its lengths and checksums must be right.
pub(crate) fn read(packet: &[u8]) -> Seg {
    let Ok(sliced) = etherparse::SlicedPacket::from_ip(packet) else {
        panic!("no packet: {packet:02x?}")
    };
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
        (sliced.net, sliced.transport)
    else {
        panic!("no TCP over IPv4: {packet:02x?}")
    };
    let ip = ip.header().to_header();
    assert_eq!(ip.calc_header_checksum(), ip.header_checksum, "IP checksum");
    assert_eq!(usize::from(ip.total_len), packet.len(), "IP length");
    let head = tcp.to_header();
    let due = head.calc_checksum_ipv4(&ip, tcp.payload());
    assert_eq!(due.ok(), Some(tcp.checksum()), "TCP checksum");
    let bit = |on: bool, bit: u8| if on { bit } else { 0 };
    Seg {
        seq: tcp.sequence_number(),
        ack: tcp.acknowledgment_number(),
        flags: bit(tcp.fin(), FIN)
            | bit(tcp.syn(), SYN)
            | bit(tcp.rst(), RST)
            | bit(tcp.psh(), PSH)
            | bit(tcp.ack(), ACK)
            | bit(tcp.urg(), URG),
        window: tcp.window_size(),
        urgent: tcp.urgent_pointer(),
        options: tcp.options().to_vec(),
        payload: tcp.payload().to_vec(),
    }
}
