//! A queue, over the `nfq` crate.
//!
//! Three things that the crate leaves open are done here. Its socket is made close-on-exec: otherwise a
//! tool that the daemon runs would keep the queue bound. Its receive buffer is made to hold what the
//! queue may hold: a full buffer drops packets even if the queue is to fail open. The crate doesn't
//! give its descriptor away, so it is looked up in `/proc/self/fd`. And a packet whose verdict the kernel
//! didn't take is dropped later: otherwise it would hold its place in the queue for good.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;

use filedescriptor::FileDescriptor;
use nfq::{Queue, Verdict};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr, getsockname, sendto, setsockopt, sockopt};

use super::{Hook, OpenError, QueueVerdict, ServeError, kernel};

/// Receive buffer per packet that may wait, in bytes as `setsockopt` takes it (the kernel doubles
/// it). A queued packet of 1,480 bytes is accounted for with 2,304 bytes, an empty one with 832.
const BUFFER_PER_PACKET: u32 = 2304;

/// Never less than this, in bytes.
const MIN_BUFFER: usize = 256 * 1024;

/// How many packets may wait in the kernel: a second of heavy traffic, 16 MiB at most. The kernel
/// drops more, so TCP sends them again. Passed unseen, with the sequence numbers of the unedited
/// stream, they would damage the edited one.
const MAX_LEN: u32 = 4096;

/// A bound queue. Dropping it unbinds it, and the kernel drops the packets that wait.
pub struct NfqQueue {
    queue: Queue,
    /// The descriptor of its socket, where that could be found out.
    socket: Option<RawFd>,
    number: u16,
    /// See [`NfqQueue::stamp`].
    stamp: u32,
    out: Vec<u8>,
    /// Packets whose verdict the kernel didn't take. They hold places in the queue.
    unanswered: Vec<u32>,
}

impl NfqQueue {
    /// Binds and configures a queue of the calling thread's network namespace.
    ///
    /// To be called before any rule sends packets to it (the crate loses packets that arrive
    /// while it configures), and before other threads open sockets.
    ///
    /// # Errors
    /// If another program has it, or the kernel refuses.
    pub fn open(number: u16) -> Result<Self, OpenError> {
        let failed = |what| {
            move |source: io::Error| OpenError::System {
                number,
                what,
                source,
            }
        };
        let before = sockets();
        let mut queue = Queue::open().map_err(|e| match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT) => OpenError::Unsupported,
            _ => failed("socket")(e),
        })?;
        let socket = socket_since(&before);
        match &socket {
            Some((_, socket)) => widen(socket, MAX_LEN),
            None => log::warn!(
                "queue {number}: /proc/self/fd doesn't show its socket, so its buffer stays small"
            ),
        }
        // No descriptor of this process is meant for the tools that it runs.
        close_fds::set_fds_cloexec(3, &[]);

        queue.bind(number).map_err(|e| bind_error(number, e))?;
        queue
            .set_copy_range(number, u16::MAX)
            .map_err(failed("copy range"))?;
        queue
            .set_queue_max_len(number, MAX_LEN)
            .map_err(failed("length"))?;
        // The kernel cuts large packets and completes checksums before it queues them.
        queue.set_recv_gso(number, false).map_err(failed("GSO"))?;
        // ENOBUFS stays off, as the crate has it: a socket that reports it takes no packets until it
        // is read empty. The kernel's counters tell of overruns.
        Ok(Self {
            queue,
            socket: socket.map(|(fd, _)| fd),
            number,
            stamp: 0,
            out: Vec::new(),
            unanswered: Vec::new(),
        })
    }

    /// The queue's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Sets these bits in the packet mark of packets that go on from the hooks before conntrack.
    pub fn stamp(&mut self, bits: u32) {
        self.stamp = bits;
    }

    /// Waits for a packet, has `decide` look at it, and gives its verdict to the kernel.
    ///
    /// `decide` is given the hook that the packet was queued in (`None`: one that isn't known
    /// here), the packet from its IP header on, and an empty buffer: for [`QueueVerdict::Replace`] it
    /// writes the new packet there.
    ///
    /// # Errors
    /// The packet was lost or is gone; the queue works on.
    pub fn serve(
        &mut self,
        decide: impl FnOnce(Option<Hook>, &[u8], &mut Vec<u8>) -> QueueVerdict,
    ) -> Result<(), ServeError> {
        let mut message = self.queue.recv().map_err(ServeError::Receive)?;
        self.out.clear();
        let hook = Hook::from_number(message.get_hook());
        let answer = decide(hook, message.get_payload(), &mut self.out);
        let before_conntrack = matches!(hook, Some(Hook::Prerouting | Hook::Output));
        if self.stamp != 0 && before_conntrack {
            message.set_nfmark(message.get_nfmark() | self.stamp);
        }
        message.set_verdict(match answer {
            QueueVerdict::Accept | QueueVerdict::Replace => Verdict::Accept,
            QueueVerdict::Drop => Verdict::Drop,
        });
        if answer == QueueVerdict::Replace {
            if self.out.len() == message.get_payload().len() {
                message.get_payload_mut().copy_from_slice(&self.out);
            } else {
                message.set_payload(self.out.as_slice());
            }
        }
        self.drop_unanswered();
        let id = message.get_packet_id();
        self.queue.verdict(message).map_err(|e| {
            self.unanswered.push(id);
            ServeError::Verdict(e)
        })
    }

    /// Drops packets whose verdict the kernel didn't take before: their senders have sent them again.
    /// The crate can't give a verdict a second time.
    fn drop_unanswered(&mut self) {
        let Some(socket) = self.socket else { return };
        while let Some(id) = self.unanswered.last() {
            let kernel = NetlinkAddr::new(0, 0);
            let verdict = drop_verdict(self.number, *id);
            match sendto(socket, &verdict, &kernel, MsgFlags::empty()) {
                Ok(_) => _ = self.unanswered.pop(),
                Err(_) => return,
            }
        }
    }
}

/// The message that drops a packet (`NFQNL_MSG_VERDICT`).
fn drop_verdict(queue: u16, id: u32) -> Vec<u8> {
    const LENGTH: u32 = 32;
    const VERDICT: u16 = 3 << 8 | 1;
    const REQUEST: u16 = 1;
    const NFQA_VERDICT_HDR: u16 = 2;
    const NF_DROP: u32 = 0;
    [
        // The header; nobody reads its sequence number and port.
        &LENGTH.to_ne_bytes()[..],
        &VERDICT.to_ne_bytes(),
        &REQUEST.to_ne_bytes(),
        &[0; 8],
        // Any family, version 0.
        &[0; 2],
        &queue.to_be_bytes(),
        // The only attribute: its length, its kind, its two numbers.
        &12u16.to_ne_bytes(),
        &NFQA_VERDICT_HDR.to_ne_bytes(),
        &NF_DROP.to_be_bytes(),
        &id.to_be_bytes(),
    ]
    .concat()
}

/// What a failed `bind` means; the capability was checked before.
fn bind_error(number: u16, source: io::Error) -> OpenError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EBUSY) => OpenError::InUse {
            number,
            holder: kernel::holder(number)
                .map(|(pid, name)| format!(" (pid {pid}, {name})"))
                .unwrap_or_default(),
        },
        // nfnetlink answers this where no subsystem "queue" is registered.
        Some(Errno::EINVAL | Errno::EOPNOTSUPP) => OpenError::Unsupported,
        _ => OpenError::System {
            number,
            what: "bind",
            source,
        },
    }
}

/// Makes the receive buffer large enough for as many packets as the queue may hold, so that the
/// queue's limit is reached first.
fn widen(socket: &impl AsFd, max_len: u32) {
    let size = usize::try_from(u64::from(max_len) * u64::from(BUFFER_PER_PACKET))
        .unwrap_or(usize::MAX)
        .clamp(MIN_BUFFER, i32::MAX as usize / 2);
    // Beyond the system's limit with CAP_NET_ADMIN in the initial user namespace, else up to it.
    if setsockopt(socket, sockopt::RcvBufForce, &size).is_err()
        && let Err(e) = setsockopt(socket, sockopt::RcvBuf, &size)
    {
        log::warn!("the queue's receive buffer can't be widened: {e}");
    }
}

/// The sockets that this process has open: descriptor and identity.
fn sockets() -> HashMap<RawFd, PathBuf> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else {
        return HashMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let fd = entry.file_name().to_str()?.parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            target
                .to_str()?
                .starts_with("socket:")
                .then_some((fd, target))
        })
        .collect()
}

/// The descriptor of the netlink socket that was opened after `before` was taken, and a second one, if
/// that is exactly one socket.
fn socket_since(before: &HashMap<RawFd, PathBuf>) -> Option<(RawFd, File)> {
    let mut new = sockets()
        .into_iter()
        .filter(|(fd, target)| before.get(fd) != Some(target))
        .filter_map(|(fd, _)| Some((fd, FileDescriptor::dup(&fd).ok()?.as_file().ok()?)))
        .filter(|(_, socket)| {
            getsockname::<NetlinkAddr>(std::os::fd::AsRawFd::as_raw_fd(socket)).is_ok()
        });
    let socket = new.next()?;
    new.next().is_none().then_some(socket)
}
