//! Reads captures: pcap and pcapng, as a stream, whichever end comes first in their numbers.

use std::io::{self, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{Block, PcapBlockOwned, PcapError, PcapHeader, create_reader};

/// How many bytes are read ahead, to begin with.
const BUFFER: usize = 256 << 10;
/// The longest block of a file, in bytes. A packet has 256 KiB at most, and a few options.
const MAX_BLOCK: usize = 16 << 20;
/// The most interfaces in one section of a file.
const MAX_INTERFACES: usize = 4096;
/// What is read to find out what a file is.
const HEAD: usize = 28;

/// What is at the beginning of files that are compressed, and what unpacks them.
const COMPRESSED: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "zcat"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstdcat"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xzcat"),
    (b"BZh", "bzcat"),
];

/// Why a file can't be read as a capture.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is something else.
    #[error("it is no capture (pcap or pcapng)")]
    NotACapture,
    /// It has to be unpacked first: by this program.
    #[error("it is compressed; unpack it: {0} FILE | ftpalg replay - …")]
    Compressed(&'static str),
    /// The operating system's reason.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How a capture ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// Behind its last packet.
    #[default]
    Whole,
    /// In the middle of a packet.
    CutShort,
    /// With something that isn't a packet, behind so many bytes.
    Damaged(u64),
}

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// All packets are of one link type.
    Pcap {
        link: u32,
        /// Whether times are in nanoseconds; else in microseconds.
        nanos: bool,
    },
    /// Each interface has its link type.
    PcapNg,
}

/// A packet with the headers of its link.
#[derive(Debug, Default)]
pub(super) struct Frame {
    /// Since 1970.
    pub(super) time: Duration,
    /// The link type, as <https://www.tcpdump.org/linktypes.html> numbers them.
    pub(super) link: u32,
    /// The interface: each of each section has a number of its own.
    pub(super) interface: u32,
    /// Its number within its section.
    pub(super) tap: u32,
    /// What was captured of it.
    pub(super) data: Vec<u8>,
    /// How many bytes it had on the wire.
    pub(super) length: u32,
}

/// An interface of a pcapng section.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snaplen: u32,
    /// What is to be added to times, in seconds.
    offset: i64,
    /// The resolution of times: see [`time`].
    resolution: u8,
}

/// A capture that is being read.
pub(super) struct Capture<'a> {
    reader: Box<dyn PcapReaderIterator + Send + 'a>,
    source: Source,
    format: Format,
    interfaces: Vec<Interface>,
    /// How many interfaces earlier sections had.
    earlier: u32,
    capacity: usize,
    /// The time of the last packet.
    last: Duration,
    end: End,
}

/// What became of the bytes that a capture is read from.
#[derive(Clone, Debug, Default)]
struct Source {
    read: Arc<AtomicU64>,
    failed: Arc<Mutex<Option<io::Error>>>,
}

struct Watched<R> {
    from: R,
    source: Source,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = loop {
            match self.from.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match read {
            Ok(n) => {
                let n64 = u64::try_from(n).unwrap_or(u64::MAX);
                self.source.read.fetch_add(n64, Ordering::Relaxed);
                Ok(n)
            }
            Err(e) => {
                // The parser keeps no more than that something failed.
                let again = io::Error::from(e.kind());
                let mut failed = self.source.failed.lock();
                let failed = failed.as_deref_mut();
                if let Ok(failed) = failed {
                    *failed = Some(e);
                }
                Err(again)
            }
        }
    }
}

impl Source {
    fn take_failure(&self) -> Option<io::Error> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take()
    }
}

/// Reads until there are `n` bytes, or none are left.
fn fill(from: &mut dyn Read, into: &mut Vec<u8>, n: usize) -> io::Result<()> {
    let missing = u64::try_from(n.saturating_sub(into.len())).unwrap_or(u64::MAX);
    from.take(missing).read_to_end(into).map(|_| ())
}

impl<'a> Capture<'a> {
    /// Reads as much as is needed to see what it is.
    pub(super) fn open(mut input: Box<dyn Read + Send + 'a>) -> Result<Self, CaptureError> {
        let mut head = Vec::new();
        fill(&mut input, &mut head, HEAD)?;
        if head.is_empty() {
            return Err(CaptureError::Empty);
        }
        for (magic, program) in COMPRESSED {
            if head.starts_with(magic) {
                return Err(CaptureError::Compressed(program));
            }
        }
        // The parser wants the first block of a pcapng file as a whole.
        if let Some(length) = first_block(&head) {
            fill(&mut input, &mut head, length.min(BUFFER / 2))?;
        }
        let source = Source::default();
        let watched = Watched {
            from: Cursor::new(head).chain(input),
            source: source.clone(),
        };
        let reader = create_reader(BUFFER, watched).map_err(|e| match e {
            PcapError::ReadError => {
                let failed = source.take_failure();
                failed.map_or(CaptureError::NotACapture, CaptureError::Io)
            }
            _ => CaptureError::NotACapture,
        })?;
        let mut capture = Self {
            reader,
            source,
            // Until the first block is read.
            format: Format::PcapNg,
            interfaces: Vec::new(),
            earlier: 0,
            capacity: BUFFER,
            last: Duration::ZERO,
            end: End::Whole,
        };
        capture.read_header();
        Ok(capture)
    }

    /// The first block says of which kind the file is. `create_reader` has seen it already.
    fn read_header(&mut self) {
        if let Ok((offset, PcapBlockOwned::LegacyHeader(header))) = self.reader.next() {
            self.format = format(&header);
            self.reader.consume(offset);
        }
    }

    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> u64 {
        self.source.read.load(Ordering::Relaxed)
    }

    /// How it ended, once there are no more packets.
    pub(super) fn end(&self) -> End {
        self.end
    }

    /// The next packet. `false`: there are no more.
    pub(super) fn next(&mut self, frame: &mut Frame) -> Result<bool, CaptureError> {
        loop {
            let have = self.reader.data().len();
            match self.reader.next() {
                Ok((offset, block)) => {
                    let mut read = Blocks {
                        format: self.format,
                        interfaces: &mut self.interfaces,
                        earlier: &mut self.earlier,
                        last: &mut self.last,
                    };
                    let found = read.block(&block, frame);
                    drop(block);
                    self.reader.consume(offset);
                    match found {
                        Found::Packet => return Ok(true),
                        Found::Other => {}
                        Found::Nonsense => return Ok(self.damaged()),
                    }
                }
                Err(PcapError::Eof) => return Ok(false),
                Err(PcapError::UnexpectedEof) => return Ok(self.cut_short()),
                Err(PcapError::Incomplete(_) | PcapError::BufferTooSmall) => {
                    if !self.more(have)? {
                        return Ok(false);
                    }
                }
                Err(_) => return Ok(self.damaged()),
            }
        }
    }

    /// Gets more bytes, beyond the `have` that aren't enough. `false`: there are none.
    fn more(&mut self, have: usize) -> Result<bool, CaptureError> {
        if have >= self.capacity.saturating_sub(self.capacity / 4) {
            if self.capacity >= MAX_BLOCK {
                return Ok(self.damaged());
            }
            self.capacity = self.capacity.saturating_mul(2);
            self.reader.grow(self.capacity);
        }
        let refilled = self.reader.refill().is_ok();
        if let Some(failed) = self.source.take_failure() {
            return Err(failed.into());
        }
        if refilled && self.reader.data().len() > have {
            return Ok(true);
        }
        if self.reader.reader_exhausted() || !refilled {
            return Ok(if have == 0 { false } else { self.cut_short() });
        }
        if self.capacity >= MAX_BLOCK {
            return Ok(self.damaged());
        }
        self.capacity = self.capacity.saturating_mul(2);
        self.reader.grow(self.capacity);
        Ok(true)
    }

    fn cut_short(&mut self) -> bool {
        self.end = End::CutShort;
        false
    }

    fn damaged(&mut self) -> bool {
        let at = u64::try_from(self.reader.consumed()).unwrap_or(u64::MAX);
        self.end = End::Damaged(at);
        false
    }
}

/// The length of the first block, if it begins a pcapng section.
fn first_block(head: &[u8]) -> Option<usize> {
    let rest = head.strip_prefix(&[0x0a, 0x0d, 0x0d, 0x0a])?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = match rest.first_chunk::<4>()? {
        [0x1a, 0x2b, 0x3c, 0x4d] => u32::from_be_bytes(*length),
        _ => u32::from_le_bytes(*length),
    };
    usize::try_from(length).ok()
}

fn format(header: &PcapHeader) -> Format {
    Format::Pcap {
        link: u32::from_ne_bytes(header.network.0.to_ne_bytes()) & 0xffff,
        nanos: header.is_nanosecond_precision(),
    }
}

/// What a block was.
enum Found {
    Packet,
    Other,
    /// It can't be.
    Nonsense,
}

/// What blocks are read with.
struct Blocks<'a> {
    format: Format,
    interfaces: &'a mut Vec<Interface>,
    earlier: &'a mut u32,
    last: &'a mut Duration,
}

impl Blocks<'_> {
    fn block(&mut self, block: &PcapBlockOwned<'_>, frame: &mut Frame) -> Found {
        match block {
            PcapBlockOwned::Legacy(packet) => {
                let Format::Pcap { link, nanos } = self.format else {
                    return Found::Nonsense;
                };
                let fraction = u64::from(packet.ts_usec);
                let fraction = if nanos { fraction } else { fraction * 1000 };
                let seconds = Duration::from_secs(packet.ts_sec.into());
                frame.time = seconds.saturating_add(Duration::from_nanos(fraction));
                frame.link = link;
                (frame.interface, frame.tap) = (0, 0);
                self.packet(packet.data, packet.origlen, frame)
            }
            PcapBlockOwned::LegacyHeader(_) => Found::Other,
            PcapBlockOwned::NG(block) => self.ng(block, frame),
        }
    }

    fn ng(&mut self, block: &Block<'_>, frame: &mut Frame) -> Found {
        match block {
            Block::SectionHeader(_) => {
                let here = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
                *self.earlier = self.earlier.saturating_add(here);
                self.interfaces.clear();
                Found::Other
            }
            Block::InterfaceDescription(interface) => {
                if self.interfaces.len() >= MAX_INTERFACES {
                    return Found::Nonsense;
                }
                self.interfaces.push(Interface {
                    link: u32::from_ne_bytes(interface.linktype.0.to_ne_bytes()) & 0xffff,
                    snaplen: interface.snaplen,
                    offset: interface.if_tsoffset,
                    resolution: interface.if_tsresol,
                });
                Found::Other
            }
            Block::EnhancedPacket(packet) => {
                let Some(interface) = self.interface(packet.if_id, frame) else {
                    return Found::Nonsense;
                };
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                frame.time = time(ticks, &interface);
                let captured = usize::try_from(packet.caplen).unwrap_or(usize::MAX);
                let data = packet.data.get(..captured).unwrap_or(packet.data);
                self.packet(data, packet.origlen, frame)
            }
            Block::SimplePacket(packet) => {
                let Some(interface) = self.interface(0, frame) else {
                    return Found::Nonsense;
                };
                // It has no time of its own, and is cut where its interface says.
                frame.time = *self.last;
                let snaplen = match interface.snaplen {
                    0 => u32::MAX,
                    snaplen => snaplen,
                };
                let captured = usize::try_from(packet.origlen.min(snaplen)).unwrap_or(usize::MAX);
                let data = packet.data.get(..captured).unwrap_or(packet.data);
                self.packet(data, packet.origlen, frame)
            }
            _ => Found::Other,
        }
    }

    fn interface(&self, id: u32, frame: &mut Frame) -> Option<Interface> {
        let interface = self.interfaces.get(usize::try_from(id).ok()?)?;
        frame.link = interface.link;
        frame.interface = self.earlier.saturating_add(id);
        frame.tap = id;
        Some(*interface)
    }

    fn packet(&mut self, data: &[u8], length: u32, frame: &mut Frame) -> Found {
        frame.data.clear();
        frame.data.extend_from_slice(data);
        frame.length = length.max(u32::try_from(data.len()).unwrap_or(u32::MAX));
        *self.last = frame.time;
        Found::Packet
    }
}

/// A time of a pcapng packet. `if_tsresol`: a power of 10, or of 2 if the highest bit is set.
fn time(ticks: u64, interface: &Interface) -> Duration {
    let exponent = u32::from(interface.resolution & 0x7f);
    let base: u128 = if interface.resolution & 0x80 == 0 {
        10
    } else {
        2
    };
    let per_second = base.checked_pow(exponent).unwrap_or(u128::MAX);
    let nanos = u128::from(ticks).saturating_mul(1_000_000_000) / per_second;
    let nanos = nanos.saturating_add_signed(i128::from(interface.offset) * 1_000_000_000);
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    let rest = u32::try_from(nanos % 1_000_000_000).unwrap_or(0);
    Duration::new(seconds, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_resolution_of_their_interface() {
        let at = |ticks, resolution, offset| {
            let interface = Interface {
                link: 1,
                snaplen: 0,
                offset,
                resolution,
            };
            time(ticks, &interface)
        };
        assert_eq!(at(1_500_000, 6, 0), Duration::from_millis(1500));
        assert_eq!(at(1_500_000_000, 9, 0), Duration::from_millis(1500));
        assert_eq!(at(3 << 9, 0x80 | 10, 0), Duration::from_millis(1500));
        assert_eq!(at(5, 0, -3), Duration::from_secs(2));
        assert_eq!(at(5, 0, -6), Duration::ZERO);
        // What can't be is no more than wrong.
        assert_eq!(at(u64::MAX, 0x7f, 0), Duration::ZERO);
        at(u64::MAX, 0, i64::MAX);
    }
}
