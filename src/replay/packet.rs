//! Changes to a packet besides those that the engine makes.

use std::net::IpAddr;

use super::connection::opposite;
use crate::engine::{Engine, Side, Tuple};
use crate::wire::{Flags, Layout, SackBlock, Segment, SegmentMut, Sum, for_each_sack};

/// The number of TCP among protocols.
const TCP: u16 = 6;

/// Whether a wrong checksum is one that the sender's card was to fill in: the field is empty, or has
/// the sum of the pseudo-header, as kernels leave it.
pub(super) fn is_offloaded(packet: &[u8], segment: &Segment<'_>) -> bool {
    let layout = segment.layout();
    let addresses = if layout.v6 { 8..40 } else { 12..20 };
    let length = layout.end.saturating_sub(layout.tcp);
    let partial = Sum::default()
        .bytes(packet.get(addresses).unwrap_or_default())
        .word(TCP)
        .word(u16::try_from(length).unwrap_or(u16::MAX))
        .fold();
    matches!(segment.checksum(), 0) || segment.checksum() == partial
}

/// Computes both checksums anew.
pub(super) fn mend(packet: &mut Vec<u8>, layout: Layout) {
    let payload = packet
        .get(layout.payload..layout.end)
        .unwrap_or_default()
        .to_vec();
    SegmentMut::new(packet, layout).set_payload(&[&payload]);
    let header = usize::from(packet.first().copied().unwrap_or_default() & 0x0f) * 4;
    if layout.v6 || header > layout.tcp {
        return;
    }
    if let Some(field) = packet.get_mut(10..12) {
        field.fill(0);
    }
    let sum = Sum::default().bytes(packet.get(..header).unwrap_or_default());
    if let Some(field) = packet.get_mut(10..12) {
        field.copy_from_slice(&sum.checksum().to_be_bytes());
    }
}

/// Gives the inside end of a packet another address.
pub(super) fn readdress(packet: &mut Vec<u8>, layout: Layout, side: Side, to: IpAddr) {
    let at = match (layout.v6, side) {
        (false, Side::Egress) => 12..16,
        (false, Side::Ingress) => 16..20,
        (true, Side::Egress) => 8..24,
        (true, Side::Ingress) => 24..40,
    };
    let Some(field) = packet.get_mut(at) else {
        return;
    };
    match to {
        IpAddr::V4(ip) if !layout.v6 => field.copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) if layout.v6 => field.copy_from_slice(&ip.octets()),
        _ => return,
    }
    mend(packet, layout);
}

/// Has a packet acknowledge what its sender would have received, had the other end's stream been
/// edited.
pub(super) fn acknowledge(engine: &Engine, outward: Tuple, side: Side, packet: &mut Vec<u8>) {
    let Ok(segment) = Segment::parse(packet) else {
        return;
    };
    let received = |number| engine.as_received(outward, opposite(side), number);
    if !segment.flags().has(Flags::ACK) || segment.flags().has(Flags::SYN) {
        return;
    }
    let (layout, ack, sack) = (segment.layout(), segment.ack(), segment.options().sack);
    let Some(mapped) = received(ack) else { return };
    let mut out = SegmentMut::new(packet, layout);
    if mapped != ack {
        out.set_ack(mapped);
    }
    let Some((at, blocks)) = sack else { return };
    out.edit_options(|options| {
        let end = at.saturating_add(blocks.saturating_mul(8));
        let Some(body) = options.get_mut(at..end) else {
            return;
        };
        let left = for_each_sack(body, |block| {
            let left = received(block.left)?;
            let right = received(block.right)?;
            let order = right.wrapping_sub(left);
            (1..u32::MAX / 2)
                .contains(&order)
                .then_some(SackBlock { left, right })
        });
        if !left && let Some(option) = options.get_mut(at.saturating_sub(2)..end) {
            option.fill(1);
        }
    });
}

/// Gives a packet that goes on the acknowledgements with which it came, so that both directions in the
/// written capture are those of one conversation: that of two ends of which each said what the other
/// one reads.
pub(super) fn keep_acknowledgement(came: &[u8], goes: &mut Vec<u8>) {
    let (Ok(old), Ok(new)) = (Segment::parse(came), Segment::parse(goes)) else {
        return;
    };
    if !new.flags().has(Flags::ACK) {
        return;
    }
    let (layout, ack) = (new.layout(), old.ack());
    let (differs, sack) = (new.ack() != ack, old.options().sack);
    let same = old.options_len() == new.options_len();
    let body = sack.filter(|_| same).and_then(|(at, blocks)| {
        let start = old.layout().tcp.checked_add(20)?.checked_add(at)?;
        let range = start.checked_sub(2)?..start.checked_add(blocks.checked_mul(8)?)?;
        Some((at.checked_sub(2)?, came.get(range)?))
    });
    let mut out = SegmentMut::new(goes, layout);
    if differs {
        out.set_ack(ack);
    }
    if let Some((at, body)) = body {
        out.edit_options(|options| {
            if let Some(there) = options.get_mut(at..at.saturating_add(body.len())) {
                there.copy_from_slice(body);
            }
        });
    }
}

/// The six numbers or the address between bars in a text: the address that an end inside says is its
/// own (RFC 959 §4.1.2, RFC 2428 §2).
pub(super) fn announced(text: &[u8]) -> Vec<IpAddr> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    for run in text.split(|c: char| !c.is_ascii_digit() && c != ',') {
        let numbers: Vec<u8> = run.split(',').filter_map(|n| n.parse().ok()).collect();
        if let [a, b, c, d, _, _] = numbers[..] {
            found.push(IpAddr::from([a, b, c, d]));
        }
    }
    let bars = text
        .split('|')
        .filter_map(|part| part.parse::<IpAddr>().ok());
    found.extend(bars);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn packet() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [198, 51, 100, 2], 64)
            .tcp(21, 4000, 7, 1000)
            .ack(9)
            .write(&mut bytes, b"227 x\r\n")
            .unwrap();
        bytes
    }

    #[test]
    fn checksums_that_a_card_fills_in_are_told_from_damage() {
        let whole = packet();
        let mut partial = whole.clone();
        let layout = Segment::parse(&whole).unwrap().layout();
        let sum = Sum::default().bytes(&whole[12..20]).word(TCP).word(27);
        partial[36..38].copy_from_slice(&sum.fold().to_be_bytes());
        let segment = Segment::parse(&partial).unwrap();
        assert!(!segment.checksum_ok() && is_offloaded(&partial, &segment));
        let mut damaged = whole.clone();
        damaged[42] ^= 1;
        let segment = Segment::parse(&damaged).unwrap();
        assert!(!segment.checksum_ok() && !is_offloaded(&damaged, &segment));
        partial[10] ^= 0x55;
        mend(&mut partial, layout);
        assert_eq!(partial, whole);
    }

    #[test]
    fn an_address_is_replaced_with_its_checksums() {
        let mut bytes = packet();
        let layout = Segment::parse(&bytes).unwrap().layout();
        readdress(&mut bytes, layout, Side::Egress, [203, 0, 113, 1].into());
        let segment = Segment::parse(&bytes).unwrap();
        assert_eq!(segment.source().to_string(), "203.0.113.1:21");
        assert!(segment.checksum_ok());
        readdress(&mut bytes, layout, Side::Egress, [10, 0, 0, 2].into());
        assert_eq!(bytes, packet());
    }

    #[test]
    fn announced_addresses_are_found_in_any_text() {
        let found = |text: &str| announced(text.as_bytes());
        assert_eq!(found("PORT 10,0,0,2,4,5"), [IpAddr::from([10, 0, 0, 2])]);
        assert_eq!(
            found("227 x (10,0,0,2,4,5)."),
            [IpAddr::from([10, 0, 0, 2])]
        );
        assert_eq!(found("EPRT |1|10.0.0.2|5|"), [IpAddr::from([10, 0, 0, 2])]);
        assert_eq!(found("EPRT |2|fd00::2|5|").len(), 1);
        assert!(found("229 x (|||5|)").is_empty());
        assert!(found("1,2,3,4,5 1,2,3,4,5,6,7 1,2,3,400,5,6").is_empty());
    }
}
