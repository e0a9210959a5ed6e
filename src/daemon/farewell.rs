//! Tells both ends of a connection that it is over, where nobody else can go on with it.
//!
//! A RST goes out as its sender would have sent it: from that end's address to the address that the
//! end knows its peer by. So conntrack and NAT treat it like the other packets of the connection.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::conntrack::Conntrack;
use crate::engine::gateway::Gateway;
use crate::engine::{Entry, Rst, Side, Tuple, resets_of_record};

use super::config::StateChoice;
use super::journal::{self, JournalError};
use super::shared::{Door, Shared};
use super::worker::Worker;

/// How long the ends get to answer a RST that doesn't have the number that they expect.
const ROUND_TRIP: Duration = Duration::from_millis(100);
/// How long a handover waits for replies.
const REPLIES: Duration = Duration::from_millis(300);
/// The time between two looks at whether they have come.
const STEP: Duration = Duration::from_millis(5);
/// How often the ends are told again, with the numbers that they answered.
const ROUNDS: usize = 3;
/// What a host's own packets have.
const TTL: u8 = 64;

/// Prepares the sessions for a successor: waits for a moment until none awaits a reply that the successor
/// couldn't understand.
pub(super) fn settle(workers: &[Arc<Worker>]) {
    let deadline = Instant::now() + REPLIES;
    // Each engine is to hold commands, so none is left out.
    let awaits = || {
        let held = workers.iter().map(|worker| worker.engine().hold_commands());
        held.fold(false, |any, one| any | one)
    };
    while awaits() && Instant::now() < deadline {
        thread::sleep(STEP);
    }
}

/// Ends the sessions that can't go on without this process, and says so. From now on the numbers of
/// no other session begin to differ. `handover`: a successor comes, and goes on with what is recorded.
pub(super) fn farewell(workers: &[Arc<Worker>], handover: bool, shared: &Shared) {
    let mut sender = Sender::default();
    let mut look_up = |src, dst| Door::new(shared).conntrack(src, dst).ok();
    for _ in 0..ROUNDS {
        let mut fresh = false;
        for worker in workers {
            let resets = worker.engine().farewell(handover, &mut Door::new(shared));
            for reset in resets {
                fresh |= sender.send(&reset, &mut look_up);
            }
        }
        if !fresh || sender.failed.is_some() {
            break;
        }
        thread::sleep(ROUND_TRIP);
    }
    if let Some(line) = sender.report() {
        shared.output().line(line);
    }
}

/// Ends the connections that are recorded, whose engine can't do it, and says so.
pub(super) fn end_recorded(records: &[Vec<u8>], shared: &Shared) {
    let ended = end_records(records, |src, dst| {
        Door::new(shared).conntrack(src, dst).ok()
    });
    if let Some(line) = ended {
        shared.output().line(line);
    }
}

/// Ends the connections that a daemon which is gone has recorded, and drops its journal. Returns what to
/// say about that, in a line, if there were any.
///
/// # Errors
/// If the journal can't be read or removed.
pub fn end_left(state: &StateChoice) -> Result<Option<String>, JournalError> {
    let Some(directory) = state.directory() else {
        return Ok(None);
    };
    let records = journal::take(directory)?;
    let mut conntrack = Conntrack::open().ok();
    Ok(end_records(&records, |src, dst| {
        conntrack.as_mut()?.lookup(src, dst).ok()?
    }))
}

/// `look_up` asks conntrack about the connection with a direction from one address to the other.
fn end_records(
    records: &[Vec<u8>],
    mut look_up: impl FnMut(SocketAddr, SocketAddr) -> Option<Entry>,
) -> Option<String> {
    let mut sender = Sender::default();
    for reset in records.iter().flat_map(|bytes| resets_of_record(bytes)) {
        sender.send(&reset, &mut look_up);
    }
    sender.report()
}

/// Sends RSTs, each once.
#[derive(Default)]
struct Sender {
    sockets: Sockets,
    sent: HashSet<Rst>,
    /// The connections.
    ended: HashSet<Tuple>,
    /// The first failure.
    failed: Option<Errno>,
}

impl Sender {
    /// Returns whether it is one that wasn't sent before.
    fn send(
        &mut self,
        reset: &Rst,
        look_up: &mut impl FnMut(SocketAddr, SocketAddr) -> Option<Entry>,
    ) -> bool {
        self.ended.insert(reset.outward);
        let fresh = self.sent.insert(*reset);
        if fresh && let Err(e) = self.sockets.send(reset, look_up) {
            self.failed.get_or_insert(e);
        }
        fresh
    }

    /// What to say, in a line, if there was anything to send and it went out. If not, that is logged.
    fn report(&self) -> Option<String> {
        let sessions = match self.ended.len() {
            0 => return None,
            1 => "1 session".to_owned(),
            n => format!("{n} sessions"),
        };
        if let Some(e) = self.failed {
            log::warn!(
                "{sessions} can't go on without ftpalg, and will hang: their ends can't be told ({e}; it \
                 takes CAP_NET_RAW)"
            );
            return None;
        }
        Some(format!(
            "{sessions} ended by RST: nobody else knows how their numbers differ on the two sides"
        ))
    }
}

/// Raw sockets, opened when they are needed.
#[derive(Default)]
struct Sockets {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Sockets {
    fn send(
        &mut self,
        reset: &Rst,
        look_up: &mut impl FnMut(SocketAddr, SocketAddr) -> Option<Entry>,
    ) -> Result<(), Errno> {
        let Some(tuple) = addresses(reset, look_up) else {
            return Ok(());
        };
        let Ok(packet) = packet(&tuple, reset.seq) else {
            return Ok(());
        };
        let none = MsgFlags::empty();
        match tuple.dst {
            SocketAddr::V4(to) => {
                let to = SockaddrIn::from(std::net::SocketAddrV4::new(*to.ip(), 0));
                let socket = open(&mut self.v4, AddressFamily::Inet)?;
                sendto(socket.as_raw_fd(), &packet, &to, none)
            }
            SocketAddr::V6(to) => {
                let to = SockaddrIn6::from(std::net::SocketAddrV6::new(*to.ip(), 0, 0, 0));
                let socket = open(&mut self.v6, AddressFamily::Inet6)?;
                sendto(socket.as_raw_fd(), &packet, &to, none)
            }
        }
        .map(drop)
    }
}

/// The socket for a family. `IPPROTO_RAW` means that packets have their own IP header.
fn open(slot: &mut Option<OwnedFd>, family: AddressFamily) -> Result<&OwnedFd, Errno> {
    let open = match slot.take() {
        Some(open) => open,
        None => socket(
            family,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Raw,
        )?,
    };
    Ok(slot.insert(open))
}

/// The addresses with which the RST's sender sends. `None`: conntrack doesn't know the connection.
fn addresses(
    reset: &Rst,
    look_up: &mut impl FnMut(SocketAddr, SocketAddr) -> Option<Entry>,
) -> Option<Tuple> {
    if reset.side == Side::Egress {
        return Some(reset.outward);
    }
    let outward = reset.outward;
    let entry = look_up(outward.src, outward.dst)?;
    let (_, inward) = entry.from_sender(outward)?;
    Some(inward)
}

fn packet(tuple: &Tuple, seq: u32) -> io::Result<Vec<u8>> {
    let builder = match (tuple.src, tuple.dst) {
        (SocketAddr::V4(src), SocketAddr::V4(dst)) => {
            PacketBuilder::ipv4(src.ip().octets(), dst.ip().octets(), TTL)
        }
        (SocketAddr::V6(src), SocketAddr::V6(dst)) => {
            PacketBuilder::ipv6(src.ip().octets(), dst.ip().octets(), TTL)
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let builder = builder
        .tcp(tuple.src.port(), tuple.dst.port(), seq, 0)
        .rst();
    let mut packet = Vec::with_capacity(60);
    builder
        .write(&mut packet, &[])
        .map_err(|e| io::Error::other(e.to_string()))?;
    Ok(packet)
}
