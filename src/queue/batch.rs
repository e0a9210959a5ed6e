//! The packets of a queue in batches: all that wait are received by one system call, and their verdicts
//! go back in one message.
//!
//! The kernel carries a packet on within the call that brings its verdict, one after the other, so the
//! packets keep their order. A packet whose decision takes long doesn't delay the verdicts before it:
//! see [`Earlier::send`].

use std::io::{self, IoSliceMut};
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, NetlinkAddr, recvmmsg, sendto};

use super::packet::{Answer, Queued};
use super::{Decider, Hook, Packet, QueueVerdict, ServeError};
use crate::netlink::codec::{Builder, Messages, messages};

/// The most packets that are received at once.
const MOST: usize = 32;
/// Room for one of them, in bytes: 64 KiB, and what the kernel tells beside it. Not a whole number of
/// pages, or else the beginnings of all would be in the same few lines of the processor's cache.
const ROOM: usize = 64 * 1024 + 4 * 1024 + 192;
/// Verdicts are sent when they are longer than this together, in bytes. A message may be as long as the
/// socket's send buffer: 208 KiB, unless somebody made it smaller.
const LONG: usize = 32 * 1024;
/// How often further packets are received before the decider catches up with what was put off.
const ROUNDS: u32 = 2;
/// The longest packet that fits into an attribute, in bytes.
const LONGEST: usize = u16::MAX as usize - 4;

/// Receives the packets of a queue from its socket, and sends their verdicts.
pub(super) struct Batches {
    socket: OwnedFd,
    /// [`MOST`] times [`ROOM`]. Memory is taken for what is used of it.
    room: Vec<u8>,
    headers: MultiHeaders<NetlinkAddr>,
    /// How long the packets of this batch are.
    lengths: Vec<usize>,
    /// How many packets are asked for next: see [`more_or_fewer`].
    ask: usize,
    /// Packets that come again, in their order.
    put_off: Vec<PutOff>,
    out: Vec<u8>,
    verdicts: Verdicts,
}

/// A packet that was put off.
struct PutOff {
    id: u32,
    hook: Option<Hook>,
    mark: u32,
    payload: Vec<u8>,
}

impl PutOff {
    fn new(packet: Queued<'_>) -> Self {
        Self {
            id: packet.id,
            hook: packet.hook,
            mark: packet.mark,
            payload: packet.payload.to_vec(),
        }
    }

    fn queued(&self) -> Queued<'_> {
        Queued {
            id: self.id,
            hook: self.hook,
            mark: self.mark,
            payload: &self.payload,
        }
    }
}

/// Verdicts that are to be sent.
struct Verdicts {
    queue: u16,
    messages: Builder,
    /// Whose they are.
    ids: Vec<u32>,
    /// Packets whose verdict the kernel didn't take. They hold places in the queue.
    unanswered: Vec<u32>,
    /// Why the last of them was not taken.
    failed: Option<Failed>,
}

/// Verdicts that could not be given.
struct Failed {
    error: io::Error,
    packets: u64,
}

/// The packets before the one that is decided on.
pub struct Earlier<'a> {
    sending: Sending<'a>,
    /// The decision may have taken long.
    waited: bool,
}

enum Sending<'a> {
    /// Their verdicts are sent already.
    Done,
    Batch(&'a mut Verdicts, &'a OwnedFd),
}

impl<'a> Earlier<'a> {
    fn new(sending: Sending<'a>) -> Self {
        let waited = false;
        Self { sending, waited }
    }

    /// There are none that wait.
    pub(super) fn none() -> Self {
        Self::new(Sending::Done)
    }

    /// Whether any of them waits for its verdict to be sent.
    #[must_use]
    pub fn any_wait(&self) -> bool {
        matches!(&self.sending, Sending::Batch(verdicts, _) if !verdicts.ids.is_empty())
    }

    /// Whether the packet after these may be put off: see [`QueueVerdict::Later`].
    #[must_use]
    pub fn may_put_off(&self) -> bool {
        matches!(&self.sending, Sending::Batch(..))
    }

    /// Whether [`send`](Self::send) was called: the packet after these comes later.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.waited
    }

    /// Sends their verdicts. To be called before anything that may take long.
    pub fn send(&mut self) {
        self.waited = true;
        if let Sending::Batch(verdicts, socket) = &mut self.sending {
            verdicts.send(socket);
        }
    }
}

impl Batches {
    /// Goes on with the socket of a queue that is configured.
    pub(super) fn new(socket: OwnedFd, queue: u16) -> Self {
        Self {
            socket,
            room: vec![0; MOST * ROOM],
            headers: MultiHeaders::preallocate(MOST, None),
            lengths: Vec::with_capacity(MOST),
            ask: MOST,
            put_off: Vec::new(),
            out: Vec::new(),
            verdicts: Verdicts {
                queue,
                messages: Builder::new(),
                ids: Vec::with_capacity(MOST),
                unanswered: Vec::new(),
                failed: None,
            },
        }
    }

    /// See [`QueueReader::serve`](super::nfq::QueueReader::serve).
    pub(super) fn serve(
        &mut self,
        stamp: u32,
        decider: &mut impl Decider,
    ) -> Result<(), ServeError> {
        self.receive(MsgFlags::MSG_WAITFORONE)
            .map_err(ServeError::Receive)?;
        let mut refused = self.decide_received(stamp, decider);
        let mut rounds = 0;
        while !self.put_off.is_empty() {
            self.verdicts.send(&self.socket);
            // What has come meanwhile may wait for the same.
            let at_once = MsgFlags::MSG_WAITFORONE | MsgFlags::MSG_DONTWAIT;
            if rounds < ROUNDS && self.put_off.len() < MOST && self.receive(at_once).is_ok() {
                rounds += 1;
                refused = self.decide_received(stamp, decider).or(refused);
                continue;
            }
            rounds = 0;
            decider.catch_up();
            for packet in mem::take(&mut self.put_off) {
                self.decide(packet.queued(), stamp, decider);
            }
        }
        self.verdicts.send(&self.socket);
        match (self.verdicts.failed.take(), refused) {
            (Some(Failed { error, packets }), _) => Err(ServeError::Verdict { error, packets }),
            (None, Some(error)) => Err(ServeError::Receive(error)),
            (None, None) => Ok(()),
        }
    }

    /// Decides about what was received. Returns the last error that the kernel told.
    fn decide_received(&mut self, stamp: u32, decider: &mut impl Decider) -> Option<io::Error> {
        let mut refused = None;
        let (room, lengths) = (mem::take(&mut self.room), mem::take(&mut self.lengths));
        for (bytes, length) in room.chunks_exact(ROOM).zip(&lengths) {
            for message in Messages::new(bytes.get(..*length).unwrap_or_default()) {
                if let Some(errno) = message.errno().filter(|errno| *errno != 0) {
                    refused = Some(io::Error::from_raw_os_error(errno));
                }
                if let Some(packet) = Queued::read(&message) {
                    self.decide(packet, stamp, decider);
                }
            }
        }
        (self.room, self.lengths) = (room, lengths);
        refused
    }

    /// Decides about a packet, and adds its verdict to those that are to be sent.
    fn decide(&mut self, packet: Queued<'_>, stamp: u32, decider: &mut impl Decider) {
        self.out.clear();
        let earlier = Sending::Batch(&mut self.verdicts, &self.socket);
        let given = Packet {
            id: packet.id,
            hook: packet.hook,
            bytes: packet.payload,
        };
        let verdict = decider.decide(given, &mut self.out, &mut Earlier::new(earlier));
        if verdict == QueueVerdict::Later {
            self.put_off.push(PutOff::new(packet));
            return;
        }
        let answer = Answer {
            id: packet.id,
            verdict,
            mark: stamped(packet.hook, packet.mark, stamp),
            packet: &self.out,
        };
        self.verdicts.add(&answer, &self.socket);
    }

    /// Waits for a packet (unless the flags say otherwise), and takes all that are there.
    fn receive(&mut self, flags: MsgFlags) -> io::Result<()> {
        self.lengths.clear();
        let mut slices: Vec<_> = self
            .room
            .chunks_exact_mut(ROOM)
            .take(self.ask)
            .map(|room| [IoSliceMut::new(room)])
            .collect();
        let received = recvmmsg(
            self.socket.as_raw_fd(),
            &mut self.headers,
            slices.iter_mut(),
            flags,
            None,
        );
        let received = match received {
            Ok(received) => received,
            Err(Errno::EINTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // What another process sends to this socket is ignored.
        let from_kernel = |from: Option<NetlinkAddr>| from.is_none_or(|from| from.pid() == 0);
        self.lengths
            .extend(received.map(|one| match from_kernel(one.address) {
                true => one.bytes,
                false => 0,
            }));
        self.ask = more_or_fewer(self.ask, self.lengths.len());
        Ok(())
    }
}

/// How many packets to ask for when so many came of those that were asked for. Every further one costs,
/// whether it comes or not, so with packets that come singly only every second call asks for more.
fn more_or_fewer(asked: usize, came: usize) -> usize {
    match (asked, came) {
        (1, _) => 4,
        (_, 0 | 1) => 1,
        (_, came) => came.saturating_mul(2).min(MOST),
    }
}

impl Verdicts {
    /// Adds one, and sends all if they are long together.
    fn add(&mut self, answer: &Answer<'_>, socket: &OwnedFd) {
        if answer.packet.len() > LONGEST {
            self.not_taken(answer.id, Errno::EMSGSIZE);
            return;
        }
        if self.messages.len().saturating_add(answer.packet.len()) > LONG {
            self.send(socket);
        }
        answer.put(self.queue, &mut self.messages);
        self.ids.push(answer.id);
    }

    /// Sends all that there are.
    fn send(&mut self, socket: &OwnedFd) {
        if self.ids.is_empty() {
            return;
        }
        self.drop_unanswered(socket);
        let ids = mem::take(&mut self.ids);
        let mut messages = mem::take(&mut self.messages);
        let bytes = messages.finished().unwrap_or_default();
        if let Err(errno) = send(socket, bytes) {
            self.send_singly(&ids, bytes, errno, socket);
        }
        messages.clear();
        (self.messages, self.ids) = (messages, ids);
        self.ids.clear();
    }

    /// The kernel didn't take them together.
    fn send_singly(&mut self, ids: &[u32], bytes: &[u8], together: Errno, socket: &OwnedFd) {
        if let [id] = ids {
            self.not_taken(*id, together);
            return;
        }
        for (id, message) in ids.iter().zip(messages(bytes)) {
            if let Err(errno) = send(socket, message) {
                self.not_taken(*id, errno);
            }
        }
    }

    fn not_taken(&mut self, id: u32, errno: Errno) {
        self.unanswered.push(id);
        let before = self.failed.take().map_or(0, |failed| failed.packets);
        self.failed = Some(Failed {
            error: errno.into(),
            packets: before.saturating_add(1),
        });
    }

    /// Drops packets whose verdict the kernel didn't take before: their senders send them again.
    fn drop_unanswered(&mut self, socket: &OwnedFd) {
        while let Some(id) = self.unanswered.last() {
            let mut message = Builder::new();
            Answer::drop(*id).put(self.queue, &mut message);
            let sent = message.finished().map(|bytes| send(socket, bytes));
            match sent {
                Some(Err(_)) => return,
                Some(Ok(())) | None => _ = self.unanswered.pop(),
            }
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> nix::Result<()> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty()).map(drop)
}

/// The mark with the bits of `stamp`, for a packet that goes on from a hook before conntrack.
pub(super) fn stamped(hook: Option<Hook>, mark: u32, stamp: u32) -> Option<u32> {
    let before_conntrack = matches!(hook, Some(Hook::Prerouting | Hook::Output));
    (stamp != 0 && before_conntrack).then_some(mark | stamp)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    use super::*;

    #[test]
    fn a_packet_that_is_too_long_takes_no_other_with_it() {
        let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
        // Not where there is no nfnetlink.
        let Ok(socket) = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol) else {
            return;
        };
        let mut batches = Batches::new(socket, 1);
        let long = vec![0; LONGEST + 1];
        for (id, packet) in [(1, &long[..]), (2, &long[..LONGEST])] {
            let answer = Answer {
                id,
                verdict: QueueVerdict::Replace,
                mark: None,
                packet,
            };
            batches.verdicts.add(&answer, &batches.socket);
        }
        let verdicts = &mut batches.verdicts;
        let failed = verdicts.failed.take().unwrap();
        assert_eq!(
            (failed.error.raw_os_error(), failed.packets),
            (Some(nix::libc::EMSGSIZE), 1)
        );
        assert_eq!(
            (&verdicts.unanswered[..], &verdicts.ids[..]),
            (&[1][..], &[2][..])
        );
        assert!(verdicts.messages.finished().is_some());
    }

    #[test]
    fn as_many_are_asked_for_as_may_come() {
        let come = |waiting: [usize; 8]| {
            let mut ask = MOST;
            waiting.map(|waiting| {
                let came = waiting.min(ask);
                ask = more_or_fewer(ask, came);
                (came, ask)
            })
        };
        let one_by_one = come([1; 8]).map(|(_, ask)| ask);
        assert_eq!(one_by_one, [1, 4, 1, 4, 1, 4, 1, 4]);
        // A burst is met by the third call.
        let burst = come([1, 100, 99, 95, 87, 71, 39, 7]).map(|(came, _)| came);
        assert_eq!(burst, [1, 1, 4, 8, 16, 32, 32, 7]);
    }

    #[test]
    fn only_packets_before_conntrack_are_stamped() {
        assert_eq!(stamped(Some(Hook::Prerouting), 1, 6), Some(7));
        assert_eq!(stamped(Some(Hook::Output), 1, 6), Some(7));
        for (hook, stamp) in [
            (Some(Hook::Prerouting), 0),
            (Some(Hook::Postrouting), 6),
            (Some(Hook::Input), 6),
            (None, 6),
        ] {
            assert_eq!(stamped(hook, 1, stamp), None);
        }
    }
}
