//! Captures as values: files in every form that capture programs write, and read back.

use ftpalg::wire::{Flags, Segment};

/// The form of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The link type.
    pub link: u16,
    /// The bytes before each packet.
    pub head: &'static [u8],
    /// Numbers begin with their highest byte.
    pub big: bool,
    /// Times are in nanoseconds.
    pub nanos: bool,
    /// It is a pcapng file, in sections of so many packets; 0: it is a pcap file.
    pub section: usize,
}

/// What tcpdump writes on Ethernet.
pub const ETHERNET: Form = Form {
    link: 1,
    head: &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0],
    big: false,
    nanos: false,
    section: 0,
};

/// A packet and its time, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// Since 1970, in microseconds.
    pub at: u64,
    /// From its IP header on.
    pub packet: Vec<u8>,
}

struct Writer {
    big: bool,
    bytes: Vec<u8>,
}

impl Writer {
    fn u16(&mut self, number: u16) {
        self.bytes.extend(match self.big {
            true => number.to_be_bytes(),
            false => number.to_le_bytes(),
        });
    }

    fn u32(&mut self, number: u32) {
        self.bytes.extend(match self.big {
            true => number.to_be_bytes(),
            false => number.to_le_bytes(),
        });
    }

    /// A pcapng block.
    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.u32(kind);
        self.u32(0);
        body(self);
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
        let length = (self.bytes.len() - start + 4) as u32;
        self.u32(length);
        let mut there = Self {
            big: self.big,
            bytes: Vec::new(),
        };
        there.u32(length);
        self.bytes[start + 4..start + 8].copy_from_slice(&there.bytes);
    }
}

/// Writes a file; of each packet at most `snaplen` bytes, its link's headers included.
pub fn write(form: Form, packets: &[Timed], snaplen: usize) -> Vec<u8> {
    let mut out = Writer {
        big: form.big,
        bytes: Vec::new(),
    };
    if form.section == 0 {
        out.u32(if form.nanos { 0xa1b2_3c4d } else { 0xa1b2_c3d4 });
        out.u16(2);
        out.u16(4);
        out.u32(0);
        out.u32(0);
        out.u32(262_144);
        out.u32(form.link.into());
    }
    for (number, Timed { at, packet }) in packets.iter().enumerate() {
        let frame = [form.head, packet].concat();
        let kept = &frame[..frame.len().min(snaplen)];
        let (length, captured) = (frame.len() as u32, kept.len() as u32);
        if form.section == 0 {
            let fraction = (at % 1_000_000) as u32;
            out.u32((at / 1_000_000) as u32);
            out.u32(if form.nanos {
                fraction * 1000
            } else {
                fraction
            });
            out.u32(captured);
            out.u32(length);
            out.bytes.extend(kept);
            continue;
        }
        if number % form.section == 0 {
            out.block(0x0a0d_0d0a, |out| {
                out.u32(0x1a2b_3c4d);
                out.u16(1);
                out.u16(0);
                out.u32(u32::MAX);
                out.u32(u32::MAX);
            });
            // One of another kind, which nothing is seen on, before it.
            for link in [147, form.link] {
                out.block(1, |out| {
                    out.u16(link);
                    out.u16(0);
                    out.u32(0);
                    // The resolution of times.
                    out.u16(9);
                    out.u16(1);
                    out.bytes.push(if form.nanos { 9 } else { 6 });
                    out.bytes.extend([0; 3]);
                    out.u32(0);
                });
            }
        }
        let ticks = if form.nanos { at * 1000 } else { *at };
        out.block(6, |out| {
            out.u32(1);
            out.u32((ticks >> 32) as u32);
            out.u32(ticks as u32);
            out.u32(captured);
            out.u32(length);
            out.bytes.extend(kept);
        });
    }
    out.bytes
}

/// Reads a little-endian pcap file; `head`: how many bytes each packet's link has before it.
///
/// # Panics
/// If it isn't one, or not whole.
pub fn read(file: &[u8], head: usize) -> Vec<Timed> {
    let number = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
    let per = match number(0) {
        0xa1b2_c3d4 => 1,
        0xa1b2_3c4d => 1000,
        other => panic!("{other:#x}"),
    };
    let mut at = 24;
    let mut packets = Vec::new();
    while at < file.len() {
        let time = u64::from(number(at)) * 1_000_000 + u64::from(number(at + 4) / per);
        let length = number(at + 8) as usize;
        at += 16;
        packets.push(Timed {
            at: time,
            packet: file[at + head..at + length].to_vec(),
        });
        at += length;
    }
    packets
}

/// Asserts that TCP packets are those of sound connections: right checksums, no byte missing, and
/// nothing acknowledged that wasn't sent. Returns what was sent from each port.
///
/// # Panics
/// If they aren't.
pub fn sound(packets: &[Timed]) -> std::collections::BTreeMap<(u16, u16), Vec<u8>> {
    let mut streams = std::collections::BTreeMap::new();
    let mut begins = std::collections::BTreeMap::new();
    for (number, Timed { packet, .. }) in packets.iter().enumerate() {
        let Ok(segment) = Segment::parse(packet) else {
            panic!("packet {number} is no TCP segment")
        };
        assert!(segment.checksum_ok(), "packet {number}: TCP checksum");
        let key = (segment.source().port(), segment.destination().port());
        let other = (key.1, key.0);
        let flags = segment.flags();
        if flags.has(Flags::SYN) {
            begins.insert(key, segment.seq().wrapping_add(1));
            streams.insert(key, Vec::new());
            continue;
        }
        let first = *begins
            .get(&key)
            .unwrap_or_else(|| panic!("packet {number}: no SYN"));
        let stream: &mut Vec<u8> = streams.get_mut(&key).expect("as its SYN");
        let at = segment.seq().wrapping_sub(first) as usize;
        let data = segment.payload();
        if !data.is_empty() {
            assert!(at <= stream.len(), "packet {number}: bytes are missing");
            let old = (stream.len() - at).min(data.len());
            assert_eq!(
                stream[at..at + old],
                data[..old],
                "packet {number}: other bytes"
            );
            stream.extend(&data[old..]);
        }
        if flags.has(Flags::ACK)
            && let (Some(first), Some(sent)) = (begins.get(&other), streams.get(&other))
        {
            let ack = segment.ack().wrapping_sub(*first) as usize;
            // A FIN has a number as well.
            assert!(
                ack <= sent.len() + 1,
                "packet {number}: it acknowledges {ack} of {}",
                sent.len()
            );
        }
    }
    streams
}
