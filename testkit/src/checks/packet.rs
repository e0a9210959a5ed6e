//! Whatever [`Segment::parse`] accepts can be worked on, and checksums follow every change: right
//! ones stay right, wrong ones stay wrong. The oracle is etherparse.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ftpalg::wire::{Segment, SegmentMut, for_each_sack};

use super::Bytes;

/// The TCP checksum field, and what it should be.
fn sums(packet: &[u8]) -> Option<(u16, u16)> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
        return None;
    };
    if tcp.slice()[12] & 0x0e != 0 {
        // etherparse forgets the reserved bits.
        return None;
    }
    let header = tcp.to_header();
    let due = match sliced.net.as_ref()? {
        NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()),
        NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()),
        NetSlice::Arp(_) => return None,
    };
    Some((tcp.checksum(), due.ok()?))
}

fn right(packet: &[u8]) -> Option<bool> {
    // In ones' complement, 0x0000 and 0xffff are the same number.
    sums(packet).map(|(is, due)| is == due || (due == 0 && is == 0xffff))
}

fn ipv4_header_right(packet: &[u8]) -> Option<bool> {
    match SlicedPacket::from_ip(packet).ok()?.net? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            Some(header.calc_header_checksum() == header.header_checksum)
        }
        _ => None,
    }
}

/// The first byte says whether the checksums are made right before the packet (the rest, after as
/// many bytes of changes as the second byte says) is worked on.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mend = bytes.flag();
    let n = usize::from(bytes.byte() & 63);
    let mut changes = Bytes(bytes.take(n));
    let mut packet = bytes.0.to_vec();
    let Ok(segment) = Segment::parse(&packet) else {
        return;
    };
    let mut layout = segment.layout();
    assert!(layout.tcp >= 20 && layout.payload >= layout.tcp + 20);
    assert!(!layout.v6 || layout.tcp >= 40);
    if let Ok(SlicedPacket {
        transport: Some(TransportSlice::Tcp(tcp)),
        ..
    }) = SlicedPacket::from_ip(&packet)
    {
        assert_eq!(segment.source().port(), tcp.source_port());
        assert_eq!(segment.seq(), tcp.sequence_number());
        assert_eq!(segment.payload(), tcp.payload());
    }
    assert!(layout.payload <= layout.end && layout.end <= packet.len());
    if mend {
        if let Some((_, due)) = sums(&packet) {
            packet[layout.tcp + 16..layout.tcp + 18].copy_from_slice(&due.to_be_bytes());
        }
        if !layout.v6 {
            let len = usize::from(packet[0] & 15) * 4;
            packet[10..12].fill(0);
            let sum = ftpalg::wire::Sum::default().bytes(&packet[..len]);
            packet[10..12].copy_from_slice(&sum.checksum().to_be_bytes());
        }
    }
    let Ok(segment) = Segment::parse(&packet) else {
        panic!("other checksums make another packet of it")
    };
    let before = right(&packet);
    if let Some(before) = before {
        assert_eq!(segment.checksum_ok(), before, "whether a checksum is right");
    }
    let ip_before = ipv4_header_right(&packet);
    let valid = segment.checksum_ok();
    let _ = (segment.source(), segment.destination(), segment.options());
    let _ = (segment.flags(), segment.window(), segment.urgent());
    let sack = segment.options().sack;
    while !changes.over() {
        let mut out = SegmentMut::new(&mut packet, layout);
        match changes.byte() % 8 {
            0 => out.set_seq(changes.long()),
            1 => out.set_ack(changes.long()),
            2 => out.set_window(changes.word()),
            3 => out.set_urgent(changes.word()),
            4 => out.clear_flags(changes.byte()),
            5 => {
                let (by, keep) = (changes.long(), changes.byte());
                if let Some((at, blocks)) = sack {
                    let mut n = 0;
                    out.edit_options(|options| {
                        for_each_sack(&mut options[at..at + blocks * 8], |mut block| {
                            block.left = block.left.wrapping_add(by);
                            n += 1;
                            (keep >> (n & 7) & 1 == 1).then_some(block)
                        });
                    });
                }
            }
            _ if valid => {
                let n = usize::from(changes.byte());
                let text = changes.take(n);
                if layout.payload + text.len() * 2 <= 65_535 {
                    out.set_payload(&[text, text]);
                    let Ok(again) = Segment::parse(&packet) else {
                        panic!("it isn't a packet any more")
                    };
                    assert_eq!(again.payload(), [text, text].concat());
                    layout = again.layout();
                }
            }
            _ => {}
        }
        assert_eq!(right(&packet), before, "the TCP checksum");
        assert_eq!(ipv4_header_right(&packet), ip_before, "the IP checksum");
        let Ok(again) = Segment::parse(&packet) else {
            panic!("it isn't a packet any more")
        };
        assert_eq!(again.layout(), layout);
        assert_eq!(again.checksum_ok(), valid);
    }
}
