//! TCP segments as values, written to IPv4 packets and read back.

use std::net::Ipv4Addr;

/// The address of the end outside.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// The flags of RFC 9293 §3.1.
pub const FIN: u8 = 1;
/// Synchronize sequence numbers.
pub const SYN: u8 = 2;
/// Reset.
pub const RST: u8 = 4;
/// Push.
pub const PSH: u8 = 8;
/// The acknowledgement counts.
pub const ACK: u8 = 16;
/// The urgent pointer counts.
pub const URG: u8 = 32;

/// A login: whether the server says it, and what.
pub const LOGIN: [(bool, &str); 5] = [
    (true, "220 x\r\n"),
    (false, "USER a\r\n"),
    (true, "331 x\r\n"),
    (false, "PASS b\r\n"),
    (true, "230 x\r\n"),
];

/// What a TCP segment says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seg {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Its flags.
    pub flags: u8,
    /// The window, unscaled.
    pub window: u16,
    /// The urgent pointer.
    pub urgent: u16,
    /// The options, as bytes.
    pub options: Vec<u8>,
    /// The data.
    pub payload: Vec<u8>,
}

/// A SYN or a SYN-ACK whose sender's text begins at 0.
pub fn syn(flags: u8) -> Seg {
    Seg {
        seq: u32::MAX,
        flags,
        window: 64_000,
        ..Seg::default()
    }
}

/// A segment with text.
pub fn data(seq: u32, ack: u32, text: &str) -> Seg {
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
pub fn build(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), seg: &Seg) -> Vec<u8> {
    build_with_ttl(from, to, 61, seg)
}

/// The same, with this time to live.
pub fn build_with_ttl(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), ttl: u8, seg: &Seg) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ipv4(from.0.octets(), to.0.octets(), ttl)
        .tcp_header(header(seg, from.1, to.1));
    let mut packet = Vec::with_capacity(builder.size(seg.payload.len()));
    if let Err(error) = builder.write(&mut packet, &seg.payload) {
        panic!("{error}");
    }
    packet
}

/// Reads a packet back; its lengths and checksums must be right.
pub fn read(packet: &[u8]) -> Seg {
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
