//! A TCP segment in its IP packet: read through [`Segment`], changed in place through
//! [`SegmentMut`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::ipv6::MutableIpv6Packet;
use pnet_packet::tcp::{MutableTcpPacket, TcpPacket};

use super::checksum::{Sum, adjust};
use super::layout::{Layout, Reject};
use super::options::Options;

/// The control bits of a TCP header that matter here (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer is significant.
    pub const URG: u8 = 0x20;

    /// Whether all of `bits` are set.
    #[must_use]
    pub fn has(self, bits: u8) -> bool {
        self.0 & bits == bits
    }

    /// The eight flag bits, as on the wire.
    #[must_use]
    pub fn bits(self) -> u8 {
        self.0
    }
}

/// A validated TCP segment, to be read.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    packet: &'a [u8],
    layout: Layout,
}

impl<'a> Segment<'a> {
    /// Validates a packet.
    ///
    /// # Errors
    /// [`Reject`] if it isn't a whole TCP segment.
    pub fn parse(packet: &'a [u8]) -> Result<Self, Reject> {
        Ok(Self {
            packet,
            layout: Layout::parse(packet)?,
        })
    }

    /// Where its parts are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.packet
            .get(at..)
            .and_then(<[u8]>::first_chunk::<N>)
            .copied()
            .unwrap_or([0; N])
    }

    fn tcp_u16(&self, offset: usize) -> u16 {
        u16::from_be_bytes(self.bytes(self.layout.tcp.saturating_add(offset)))
    }

    fn tcp_u32(&self, offset: usize) -> u32 {
        u32::from_be_bytes(self.bytes(self.layout.tcp.saturating_add(offset)))
    }

    /// Source address and port.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(self.address(12, 8), self.tcp_u16(0))
    }

    /// Destination address and port.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.address(16, 24), self.tcp_u16(2))
    }

    fn address(&self, v4: usize, v6: usize) -> IpAddr {
        if self.layout.v6 {
            IpAddr::V6(Ipv6Addr::from(self.bytes::<16>(v6)))
        } else {
            IpAddr::V4(Ipv4Addr::from(self.bytes::<4>(v4)))
        }
    }

    /// Sequence number of the first byte (or of the SYN).
    #[must_use]
    pub fn seq(&self) -> u32 {
        self.tcp_u32(4)
    }

    /// Acknowledgement number.
    #[must_use]
    pub fn ack(&self) -> u32 {
        self.tcp_u32(8)
    }

    /// Control bits.
    #[must_use]
    pub fn flags(&self) -> Flags {
        let [bits] = self.bytes(self.layout.tcp.saturating_add(13));
        Flags(bits)
    }

    /// Window field, unscaled.
    #[must_use]
    pub fn window(&self) -> u16 {
        self.tcp_u16(14)
    }

    /// Checksum field.
    #[must_use]
    pub fn checksum(&self) -> u16 {
        self.tcp_u16(16)
    }

    /// Urgent pointer field.
    #[must_use]
    pub fn urgent(&self) -> u16 {
        self.tcp_u16(18)
    }

    /// The option bytes.
    #[must_use]
    pub fn options(&self) -> Options {
        Options::parse(self.option_bytes())
    }

    /// How many bytes of options there are.
    #[must_use]
    pub fn options_len(&self) -> usize {
        self.option_bytes().len()
    }

    fn option_bytes(&self) -> &'a [u8] {
        self.packet
            .get(self.layout.tcp.saturating_add(20)..self.layout.payload)
            .unwrap_or_default()
    }

    /// The data.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.packet
            .get(self.layout.payload..self.layout.end)
            .unwrap_or_default()
    }

    /// Whether the TCP checksum is right.
    #[must_use]
    pub fn checksum_ok(&self) -> bool {
        tcp_sum(self.packet, self.layout).fold() == 0xffff
    }
}

/// The sum over pseudo-header and segment, checksum field included (RFC 9293 §3.1, RFC 8200 §8.1).
fn tcp_sum(packet: &[u8], layout: Layout) -> Sum {
    let addresses = if layout.v6 { 8..40 } else { 12..20 };
    let length = layout.end.saturating_sub(layout.tcp);
    Sum::default()
        .bytes(packet.get(addresses).unwrap_or_default())
        .word(6)
        .word(u16::try_from(length).unwrap_or(u16::MAX))
        .bytes(packet.get(layout.tcp..layout.end).unwrap_or_default())
}

/// A validated packet that may be changed: header fields in place, with the checksum following
/// incrementally; or its whole payload, with the checksum computed anew.
#[derive(Debug)]
pub struct SegmentMut<'a> {
    packet: &'a mut Vec<u8>,
    layout: Layout,
}

impl<'a> SegmentMut<'a> {
    /// `packet` must hold the bytes that `layout` was parsed from.
    #[must_use]
    pub fn new(packet: &'a mut Vec<u8>, layout: Layout) -> Self {
        Self { packet, layout }
    }

    fn tcp<R: Default>(&mut self, change: impl FnOnce(&mut MutableTcpPacket<'_>) -> R) -> R {
        self.packet
            .get_mut(self.layout.tcp..self.layout.end)
            .and_then(MutableTcpPacket::new)
            .map(|mut tcp| change(&mut tcp))
            .unwrap_or_default()
    }

    fn adjust(&mut self, old: &[u16], new: &[u16]) {
        self.tcp(|tcp| tcp.set_checksum(adjust(tcp.get_checksum(), old, new)));
    }

    /// Sets the sequence number.
    pub fn set_seq(&mut self, seq: u32) {
        let old = self.tcp(|tcp| tcp.get_sequence());
        self.tcp(|tcp| tcp.set_sequence(seq));
        self.adjust(&halves(old), &halves(seq));
    }

    /// Sets the acknowledgement number.
    pub fn set_ack(&mut self, ack: u32) {
        let old = self.tcp(|tcp| tcp.get_acknowledgement());
        self.tcp(|tcp| tcp.set_acknowledgement(ack));
        self.adjust(&halves(old), &halves(ack));
    }

    /// Sets the window field.
    pub fn set_window(&mut self, window: u16) {
        let old = self.tcp(|tcp| tcp.get_window());
        self.tcp(|tcp| tcp.set_window(window));
        self.adjust(&[old], &[window]);
    }

    /// Sets the urgent pointer.
    pub fn set_urgent(&mut self, urgent: u16) {
        let old = self.tcp(|tcp| tcp.get_urgent_ptr());
        self.tcp(|tcp| tcp.set_urgent_ptr(urgent));
        self.adjust(&[old], &[urgent]);
    }

    /// Clears control bits.
    pub fn clear_flags(&mut self, bits: u8) {
        self.change_flags(|old| old & !bits);
    }

    /// Sets control bits.
    pub fn set_flags(&mut self, bits: u8) {
        self.change_flags(|old| old | bits);
    }

    fn change_flags(&mut self, change: impl FnOnce(u8) -> u8) {
        let old = self.tcp(|tcp| tcp.get_flags());
        let new = change(old);
        self.tcp(|tcp| tcp.set_flags(new));
        // The word that holds them starts with the data offset, which doesn't change.
        self.adjust(&[u16::from(old)], &[u16::from(new)]);
    }

    /// Changes option bytes in place; the length stays.
    pub fn edit_options(&mut self, change: impl FnOnce(&mut [u8])) {
        let at = self.layout.tcp.saturating_add(20)..self.layout.payload;
        let Some(options) = self.packet.get_mut(at) else {
            return;
        };
        let before = Sum::default().bytes(options).fold();
        change(options);
        let after = Sum::default().bytes(options).fold();
        self.adjust(&[before], &[after]);
    }

    /// Replaces the payload: lengths and both checksums follow. To be used only on a segment whose
    /// checksum was right. The IP packet must stay within 65,535 bytes (the caller limits payloads
    /// to the path's MSS).
    pub fn set_payload(&mut self, parts: &[&[u8]]) {
        self.packet.truncate(self.layout.payload);
        for part in parts {
            self.packet.extend_from_slice(part);
        }
        self.layout.end = self.packet.len();
        let v6 = self.layout.v6;
        let ip_len = self.layout.end.saturating_sub(if v6 { 40 } else { 0 });
        let ip_len = u16::try_from(ip_len).unwrap_or(u16::MAX);
        if v6 {
            if let Some(mut ip) = MutableIpv6Packet::new(self.packet) {
                ip.set_payload_length(ip_len);
            }
        } else if let Some(mut ip) = MutableIpv4Packet::new(self.packet) {
            let field = adjust(ip.get_checksum(), &[ip.get_total_length()], &[ip_len]);
            ip.set_total_length(ip_len);
            ip.set_checksum(field);
        }
        self.tcp(|tcp| tcp.set_checksum(0));
        let checksum = tcp_sum(self.packet, self.layout).checksum();
        self.tcp(|tcp| tcp.set_checksum(checksum));
    }
}

fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_be_bytes();
    [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]
}

/// pnet's minimum is the fixed TCP header, which [`Layout::parse`] guarantees.
const _: () = assert!(TcpPacket::minimum_packet_size() == 20);
