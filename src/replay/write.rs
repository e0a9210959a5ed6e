//! Writes the edited packets: of the same kind of file, with the times and link types that were read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use super::capture::{Format, Frame};

/// Longer than any packet.
const SNAPLEN: u32 = 1 << 24;
/// `if_tsresol` of nanoseconds, the only one that is written.
const NANOSECONDS: u8 = 9;

/// The file that is written.
pub(super) enum Edited<'a> {
    Pcap(PcapWriter<Box<dyn Write + 'a>>),
    PcapNg(PcapNgWriter<Box<dyn Write + 'a>>, HashMap<u32, u32>),
}

impl<'a> Edited<'a> {
    pub(super) fn begin(to: Box<dyn Write + 'a>, format: Format) -> io::Result<Self> {
        match format {
            Format::Pcap { link, nanos } => {
                let header = PcapHeader {
                    snaplen: SNAPLEN,
                    datalink: DataLink::from(link),
                    endianness: Endianness::native(),
                    ts_resolution: match nanos {
                        true => TsResolution::NanoSecond,
                        false => TsResolution::MicroSecond,
                    },
                    ..PcapHeader::default()
                };
                PcapWriter::with_header(to, header).map(Self::Pcap)
            }
            Format::PcapNg => {
                PcapNgWriter::new(to).map(|writer| Self::PcapNg(writer, HashMap::new()))
            }
        }
        .map_err(plain)
    }

    /// Writes a packet with the headers of its link. `frame`: what it was before.
    pub(super) fn packet(&mut self, frame: &Frame, packet: &[u8]) -> io::Result<()> {
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        match self {
            Self::Pcap(writer) => {
                let packet = PcapPacket::new(frame.time, length, packet);
                writer.write_packet(&packet).map(|_| ())
            }
            Self::PcapNg(writer, interfaces) => {
                let next = u32::try_from(interfaces.len()).unwrap_or(u32::MAX);
                let id = *interfaces.entry(frame.interface).or_insert(next);
                let mut done = Ok(0);
                if id == next {
                    done = writer.write_pcapng_block(InterfaceDescriptionBlock {
                        linktype: DataLink::from(frame.link),
                        snaplen: SNAPLEN,
                        options: vec![InterfaceDescriptionOption::IfTsResol(NANOSECONDS)],
                    });
                }
                // Times beyond 2554 don't fit.
                let time = frame.time.min(Duration::from_nanos(u64::MAX));
                done.and_then(|_| {
                    writer.write_pcapng_block(EnhancedPacketBlock {
                        interface_id: id,
                        timestamp: time,
                        original_len: length,
                        data: Cow::Borrowed(packet),
                        options: Vec::new(),
                    })
                })
                .map(|_| ())
            }
        }
        .map_err(plain)
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Pcap(writer) => writer.into_writer().flush(),
            Self::PcapNg(writer, _) => writer.into_inner().flush(),
        }
    }
}

fn plain(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}
