//! What passes an interface, by tcpdump, and where urgent pointers in it point to.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ftpalg::wire::{Flags, Segment};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use super::net::Net;
use super::process::{Process, require};

/// How long tcpdump may take to start and to stop.
const LIMIT: Duration = Duration::from_secs(10);
/// How often its file is looked at for the last packet.
const POLL: Duration = Duration::from_millis(5);
/// The header of a file and that of each packet in it, in bytes.
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
/// Ethernet's header, in bytes.
const ETHERNET: usize = 14;

/// Where the datagram goes that ends a capture: to a group that nobody is in, so that nobody answers
/// (RFC 5771 §3: a router doesn't forward it), and to `discard`.
const END_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 253);
const END_PORT: u16 = 9;
/// What it says.
const END: &[u8] = b"all that the capture is about was before this";

/// A running tcpdump that writes a file.
///
/// That it has read all that came is known by a last packet, sent when it is to stop: whatever passed
/// before is before it in tcpdump's buffer, and so in its file. (Its own counters don't say so: what
/// passes before its filter is set is captured, but wasn't received by the filter.)
pub struct Recording {
    process: Process,
    file: PathBuf,
    /// On the captured host and interface.
    last: UdpSocket,
}

impl Recording {
    /// Starts to capture what passes an interface and its filter.
    ///
    /// # Panics
    /// If tcpdump doesn't start, or the interface has no IPv4 address.
    pub fn start(net: &Net, host: &str, interface: &str, filter: &str) -> Self {
        Self::start_on(net, host, interface, interface, filter)
    }

    /// The same for what passes any interface.
    ///
    /// # Panics
    /// As [`start`](Self::start); `interface` is one with an IPv4 address.
    pub fn start_any(net: &Net, host: &str, interface: &str, filter: &str) -> Self {
        Self::start_on(net, host, "any", interface, filter)
    }

    fn start_on(net: &Net, host: &str, captured: &str, interface: &str, filter: &str) -> Self {
        require("tcpdump");
        let file = net.directory().join(format!("{host}-{captured}.pcap"));
        drop(std::fs::remove_file(&file));
        let last = net.within(host, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a datagram socket");
            setsockopt(&socket, sockopt::BindToDevice, &interface.into()).expect("an interface");
            socket
        });
        let mut command = net.command(host, "/bin/sh");
        // It says on standard error when it listens.
        command.args(["-c", "exec tcpdump \"$@\" 2>&1", "tcpdump"]);
        command.args(["-Z", "root", "-n", "-U", "--immediate-mode"]);
        // Control packets are small; its buffer has as many places as packets of that size fit in.
        command.args(["-s", "2048", "-B", "8192"]);
        command.args(["-i", captured, "-w"]).arg(&file);
        command.arg(format!(
            "({filter}) or (udp dst port {END_PORT} and dst host {END_GROUP})"
        ));
        let process = Process::spawn(command);
        if !process.wait_for("listening", LIMIT) {
            panic!("tcpdump doesn't listen: {}", process.finish(LIMIT));
        }
        Self {
            process,
            file,
            last,
        }
    }

    /// Stops; the file that tcpdump has written.
    ///
    /// # Panics
    /// If tcpdump or its file isn't as expected.
    pub fn stop(self) -> Vec<u8> {
        let sent = self.last.send_to(END, (END_GROUP, END_PORT));
        assert_eq!(sent.expect("the last packet can be sent"), END.len());
        let deadline = Instant::now() + LIMIT;
        let file = loop {
            // Written packet by packet, so that the last one may be there in part.
            let mut file = std::fs::read(&self.file).expect("tcpdump's file");
            let end = places(&file).find(|packet| file[packet.clone()].ends_with(END));
            if let Some(end) = end {
                file.truncate(end.start - PACKET_HEADER);
                break file;
            }
            if Instant::now() > deadline {
                let count = places(&file).count();
                let log = self.process.finish(Duration::ZERO);
                panic!("{count} packets, but not the last one: {log}");
            }
            std::thread::sleep(POLL);
        };
        self.process.signal(Signal::SIGINT);
        let log = self.process.finish(LIMIT).must().log;
        assert!(log.contains("\n0 packets dropped by kernel"), "{log}");
        file
    }
}

/// What passes an interface, and is TCP from or to a port.
pub struct Capture(Recording);

impl Capture {
    /// Starts to capture.
    ///
    /// # Panics
    /// As [`Recording::start`].
    pub fn start(net: &Net, host: &str, interface: &str, port: u16) -> Self {
        let filter = format!("tcp port {port}");
        Self(Recording::start(net, host, interface, &filter))
    }

    /// Stops; the IP packets, in the order in which they passed.
    ///
    /// # Panics
    /// As [`Recording::stop`].
    pub fn stop(self) -> Vec<Vec<u8>> {
        let file = self.0.stop();
        let packet = |place: Range<usize>| file[place].get(ETHERNET..).expect("Ethernet").to_vec();
        places(&file).map(packet).collect()
    }
}

/// Where the packets are that a file holds whole, with their Ethernet headers.
fn places(file: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut at = FILE_HEADER;
    std::iter::from_fn(move || {
        let header = file.get(at..)?.get(..PACKET_HEADER)?;
        let length = header[8..12].try_into().expect("four bytes");
        let length = usize::try_from(u32::from_ne_bytes(length)).expect("it fits");
        let start = at + PACKET_HEADER;
        file.get(start..start + length)?;
        at = start + length;
        Some(start..at)
    })
}

/// A place in the stream from a client to a server: the number of the connection (from 0), how many
/// line ends are before it, and how many bytes of its line.
pub type Place = (usize, usize, usize);

/// All places that urgent pointers of clients point to (behind the urgent byte, as Linux has it).
///
/// # Panics
/// If a connection's beginning wasn't captured.
pub fn urgent_places(packets: &[Vec<u8>], port: u16) -> BTreeSet<Place> {
    // For each connection: the client's port, its initial sequence number, what it sent.
    let mut streams: Vec<(u16, u32, Vec<u8>)> = Vec::new();
    let mut urgent = Vec::new();
    for packet in packets {
        let segment = Segment::parse(packet).expect("TCP");
        if segment.destination().port() != port {
            continue;
        }
        let (from, seq) = (segment.source().port(), segment.seq());
        if segment.flags().has(Flags::SYN) {
            if streams
                .last()
                .is_none_or(|last| (last.0, last.1) != (from, seq))
            {
                streams.push((from, seq, Vec::new()));
            }
            continue;
        }
        let number = streams.iter().rposition(|stream| stream.0 == from);
        let number = number.expect("the connection's SYN");
        let (_, first, stream) = &mut streams[number];
        let start = seq.wrapping_sub(*first).wrapping_sub(1) as usize;
        let payload = segment.payload();
        // Not a keep-alive, one byte before the first.
        if !payload.is_empty() {
            let end = start + payload.len();
            stream.resize(stream.len().max(end), 0);
            stream[start..end].copy_from_slice(payload);
        }
        if segment.flags().has(Flags::URG) {
            urgent.push((number, start + usize::from(segment.urgent())));
        }
    }
    let place = |(number, at): (usize, usize)| {
        let before = streams[number].2.get(..at).expect("what it points to came");
        let lines = before.iter().filter(|&&byte| byte == b'\n').count();
        let column = before.iter().rev().take_while(|&&byte| byte != b'\n');
        (number, lines, column.count())
    };
    urgent.into_iter().map(place).collect()
}
