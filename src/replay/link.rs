//! Finds the IP packet in a frame.

/// Link types (<https://www.tcpdump.org/linktypes.html>).
const NULL: u32 = 0;
const ETHERNET: u32 = 1;
const PPP: u32 = 9;
/// What `LINKTYPE_RAW` is called on some systems.
const RAW_HERE: [u32; 2] = [12, 14];
const PPP_HDLC: u32 = 50;
const PPP_ETHER: u32 = 51;
const RAW: u32 = 101;
const LOOP: u32 = 108;
const LINUX_SLL: u32 = 113;
const IPV4: u32 = 228;
const IPV6: u32 = 229;
const LINUX_SLL2: u32 = 276;

/// `EtherType`s.
const IP: [u16; 2] = [0x0800, 0x86dd];
const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
const PPPOE: u16 = 0x8864;
/// Protocols of PPP: IPv4, IPv6.
const OVER_PPP: [u16; 2] = [0x0021, 0x0057];
/// The most VLAN tags.
const MAX_TAGS: usize = 4;

/// Where a packet was seen. A router's packets may be seen at two or more places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Tap {
    /// The interface as the file numbers it.
    pub(super) interface: u32,
    /// The interface as the kernel numbers it (SLL2); else 0.
    index: u32,
    /// Whether it came, or was sent (SLL, SLL2): `sll_pkttype`.
    kind: u16,
    /// The innermost VLAN, with its priority left out; else 0.
    vlan: u16,
}

/// The IP packet in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Where it begins.
    pub(super) at: usize,
    /// Where the frame was seen.
    pub(super) tap: Tap,
    /// Where the link has a length of two bytes (`PPPoE`), if it has one. It counts what is behind it.
    pub(super) length: Option<usize>,
}

/// Finds the IP packet. `None`: there is none.
pub(super) fn find(link: u32, interface: u32, frame: &[u8]) -> Option<Place> {
    let mut place = Place {
        at: 0,
        tap: Tap {
            interface,
            ..Tap::default()
        },
        length: None,
    };
    place.at = match link {
        ETHERNET => by_type(frame, 12, &mut place)?,
        RAW | IPV4 | IPV6 => 0,
        other if RAW_HERE.contains(&other) => 0,
        // An address family, whose number depends on the system; what follows speaks for itself.
        NULL | LOOP => 4,
        PPP => after_ppp(frame, 0)?,
        // Address and control come before the protocol.
        PPP_HDLC => after_ppp(frame, 2)?,
        PPP_ETHER => after_pppoe(frame, 0, &mut place)?,
        LINUX_SLL => {
            place.tap.kind = word(frame, 0)?;
            by_type(frame, 14, &mut place)?
        }
        LINUX_SLL2 => {
            let [a, b] = [word(frame, 4)?, word(frame, 6)?];
            place.tap.index = u32::from(a) << 16 | u32::from(b);
            place.tap.kind = word(frame, 10)? >> 8;
            // Its type comes first, its payload behind all else.
            typed(frame, word(frame, 0)?, 20, &mut place)?
        }
        _ => return None,
    };
    let version = frame.get(place.at)? >> 4;
    matches!(version, 4 | 6).then_some(place)
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    let bytes = frame.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*bytes))
}

/// What is behind the `EtherType` at `at`.
fn by_type(frame: &[u8], at: usize, place: &mut Place) -> Option<usize> {
    typed(frame, word(frame, at)?, at.checked_add(2)?, place)
}

/// Where the packet is in what begins at `at` and has this `EtherType`.
fn typed(frame: &[u8], mut kind: u16, mut at: usize, place: &mut Place) -> Option<usize> {
    for _ in 0..=MAX_TAGS {
        if IP.contains(&kind) {
            return Some(at);
        }
        if kind == PPPOE {
            return after_pppoe(frame, at, place);
        }
        if !VLAN.contains(&kind) {
            return None;
        }
        place.tap.vlan = word(frame, at)? & 0x0fff;
        kind = word(frame, at.checked_add(2)?)?;
        at = at.checked_add(4)?;
    }
    None
}

/// What is behind the header of `PPPoE` at `at`.
fn after_pppoe(frame: &[u8], at: usize, place: &mut Place) -> Option<usize> {
    place.length = Some(at.checked_add(4)?);
    after_ppp(frame, at.checked_add(6)?)
}

/// Where the packet is, if PPP's protocol at `at` says that there is one.
fn after_ppp(frame: &[u8], at: usize) -> Option<usize> {
    // Address and control may be there, and the protocol may be one byte.
    let at = match frame.get(at..)? {
        [0xff, 0x03, ..] => at.checked_add(2)?,
        _ => at,
    };
    let first = u16::from(*frame.get(at)?);
    if OVER_PPP.contains(&first) {
        return at.checked_add(1);
    }
    OVER_PPP
        .contains(&word(frame, at)?)
        .then(|| at.saturating_add(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(link: u32, head: &[u8]) -> Option<Place> {
        let frame = [head, &[0x45, 0, 0, 20]].concat();
        find(link, 0, &frame)
    }

    #[test]
    fn headers_of_links_are_left_out() {
        let mac = [0; 12];
        let ether = |rest: &[u8]| [&mac[..], rest].concat();
        let sll = [&[0, 4][..], &[0; 12], &[8, 0]].concat();
        let sll2 = [&[8, 0, 0, 0, 0, 0, 0, 7, 0, 1, 4][..], &[0; 9]].concat();
        for (link, head) in [
            (ETHERNET, ether(&[8, 0])),
            (ETHERNET, ether(&[0x81, 0, 0, 5, 8, 0])),
            (ETHERNET, ether(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 8, 0])),
            (
                ETHERNET,
                ether(&[0x88, 0x64, 0x11, 0, 0, 1, 0, 22, 0, 0x21]),
            ),
            (RAW, vec![]),
            (12, vec![]),
            (IPV4, vec![]),
            (NULL, vec![2, 0, 0, 0]),
            (LOOP, vec![0, 0, 0, 2]),
            (PPP, vec![0xff, 3, 0, 0x21]),
            (PPP, vec![0x21]),
            (LINUX_SLL, sll),
            (LINUX_SLL2, sll2),
        ] {
            let found = place(link, &head).map(|place| place.at);
            assert_eq!(found, Some(head.len()), "{link} {head:02x?}");
            for cut in 0..head.len() {
                assert!(
                    find(link, 0, &head[..cut]).is_none(),
                    "{link} {head:02x?} cut at {cut}"
                );
            }
        }
        assert_eq!(place(ETHERNET, &ether(&[8, 6])), None);
        assert_eq!(place(147, &[]), None, "a user's own");
    }

    #[test]
    fn places_are_told_apart() {
        let sll2 = |index: u8, kind: u8| {
            let head = [&[8, 0, 0, 0, 0, 0, 0, index, 0, 1, kind][..], &[0; 9]].concat();
            place(LINUX_SLL2, &head).unwrap().tap
        };
        assert_ne!(sll2(1, 0), sll2(2, 0));
        assert_ne!(sll2(1, 0), sll2(1, 4));
        let vlan = |vlan: u8| {
            let head = [&[0; 12][..], &[0x81, 0, 0xe0, vlan, 8, 0]].concat();
            place(ETHERNET, &head).unwrap().tap
        };
        assert_ne!(vlan(1), vlan(2));
    }
}
