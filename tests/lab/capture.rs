//! What passes an interface, by tcpdump, and where urgent pointers in it point to.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ftpalg::wire::{Flags, Segment};
use nix::sys::signal::Signal;

use super::net::Net;
use super::process::{Process, require};

/// How long tcpdump may take to start and to stop.
const LIMIT: Duration = Duration::from_secs(10);
/// The header of a file and that of each packet in it, in bytes.
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
/// Ethernet's header, in bytes.
const ETHERNET: usize = 14;

/// A running tcpdump.
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Starts to capture what passes an interface and is TCP from or to this port.
    ///
    /// # Panics
    /// If tcpdump doesn't start.
    pub fn start(net: &Net, host: &str, interface: &str, port: u16) -> Self {
        require("tcpdump");
        let file = net.directory().join(format!("{host}-{interface}.pcap"));
        let mut command = net.command(host, "/bin/sh");
        // It says on standard error when it listens.
        command.args(["-c", "exec tcpdump \"$@\" 2>&1", "tcpdump"]);
        command.args(["-Z", "root", "-n", "-U", "--immediate-mode"]);
        // Control packets are small; its buffer has as many places as packets of that size fit in.
        command.args(["-s", "2048", "-B", "8192"]);
        command.args(["-i", interface, "-w"]).arg(&file);
        command.args(["tcp", "port", &port.to_string()]);
        let process = Process::spawn(command);
        if !process.wait_for("listening", LIMIT) {
            panic!("tcpdump doesn't listen: {}", process.finish(LIMIT));
        }
        Self { process, file }
    }

    /// Stops; the IP packets, in the order in which they passed.
    ///
    /// # Panics
    /// If tcpdump or its file isn't as expected.
    pub fn stop(self) -> Vec<Vec<u8>> {
        self.wait_for_all();
        self.process.signal(Signal::SIGINT);
        let log = self.process.finish(LIMIT).must().log;
        assert!(log.contains("\n0 packets dropped by kernel"), "{log}");
        let file = std::fs::read(&self.file).expect("tcpdump's file");
        let mut rest = file.get(FILE_HEADER..).expect("a header");
        let mut packets = Vec::new();
        while !rest.is_empty() {
            let length = rest[8..12].try_into().expect("four bytes");
            let (packet, next) =
                rest[PACKET_HEADER..].split_at(u32::from_ne_bytes(length) as usize);
            packets.push(packet[ETHERNET..].to_vec());
            rest = next;
        }
        packets
    }

    /// Waits until it has read all that came: what is left in its buffer when it ends is lost.
    fn wait_for_all(&self) {
        let deadline = Instant::now() + LIMIT;
        let mut told = self.process.log().len();
        while Instant::now() < deadline {
            self.process.signal(Signal::SIGUSR1);
            std::thread::sleep(Duration::from_millis(10));
            let log = self.process.log();
            let new = log.get(told..).unwrap_or_default();
            if new.contains("dropped by kernel") {
                if count(new, " packets captured") == count(new, " packets received by filter") {
                    return;
                }
                told = log.len();
            }
        }
        panic!(
            "tcpdump doesn't read all that comes: {}",
            self.process.log()
        );
    }
}

/// The number before the last of these words.
fn count(log: &str, words: &str) -> Option<u64> {
    let (before, _) = log.rsplit_once(words)?;
    before.split_whitespace().next_back()?.parse().ok()
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
