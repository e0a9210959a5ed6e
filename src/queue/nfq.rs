//! A queue, over the `nfq` crate.
//!
//! The crate binds and configures it. What it leaves open is done here. Its socket is made close-on-exec:
//! otherwise a tool that the daemon runs would keep the queue bound. Its receive buffer is made to hold
//! what the queue may hold: a full buffer drops packets even if the queue is to fail open. The crate
//! doesn't give its descriptor away, so it is looked up in `/proc/self/fd`.
//!
//! With that descriptor, packets are moved in batches (`batch`), which the crate can't do. Where
//! `/proc` doesn't show it, the crate moves them, one by one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use filedescriptor::FileDescriptor;
use nfq::{Queue, Verdict};
use nix::errno::Errno;
use nix::sys::socket::{NetlinkAddr, getsockname, setsockopt, sockopt};

use super::batch::{Batches, stamped};
use super::{Decider, Earlier, Hook, OpenError, Packet, QueueVerdict, ServeError, kernel};

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
    /// A second descriptor of its socket, where the first could be found out.
    socket: Option<OwnedFd>,
    number: u16,
    /// See [`NfqQueue::stamp`].
    stamp: u32,
}

/// A queue whose packets are served, by one thread.
pub struct QueueReader {
    queue: Queue,
    /// Moves the packets, where that is possible.
    batches: Option<Batches>,
    number: u16,
    stamp: u32,
    out: Vec<u8>,
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
            Some(socket) => widen(socket, MAX_LEN),
            None => log::warn!(
                "queue {number}: /proc/self/fd doesn't show its socket, so its buffer stays small, and \
                 packets are received one by one"
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
            socket,
            number,
            stamp: 0,
        })
    }

    /// Sets these bits in the packet mark of packets that go on from the hooks before conntrack.
    pub fn stamp(&mut self, bits: u32) {
        self.stamp = bits;
    }

    /// Has the calling thread serve its packets.
    #[must_use]
    pub fn reader(self) -> QueueReader {
        let number = self.number;
        QueueReader {
            queue: self.queue,
            batches: self.socket.map(|socket| Batches::new(socket, number)),
            number,
            stamp: self.stamp,
            out: Vec::new(),
        }
    }
}

impl QueueReader {
    /// The queue's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Waits for packets, has one after the other decided on, and gives their verdicts to the kernel.
    ///
    /// # Errors
    /// Packets were lost or are gone; the queue works on.
    pub fn serve(&mut self, decider: &mut impl Decider) -> Result<(), ServeError> {
        match &mut self.batches {
            Some(batches) => batches.serve(self.stamp, decider),
            None => self.serve_one(decider),
        }
    }

    /// The same, with the crate alone. If the kernel doesn't take a verdict, the packet holds its place
    /// in the queue: the crate can't give a verdict a second time.
    fn serve_one(&mut self, decider: &mut impl Decider) -> Result<(), ServeError> {
        let mut message = self.queue.recv().map_err(ServeError::Receive)?;
        self.out.clear();
        let hook = Hook::from_number(message.get_hook());
        let packet = Packet {
            id: message.get_packet_id(),
            hook,
            bytes: message.get_payload(),
        };
        let answer = decider.decide(packet, &mut self.out, &mut Earlier::none());
        if let Some(mark) = stamped(hook, message.get_nfmark(), self.stamp) {
            message.set_nfmark(mark);
        }
        message.set_verdict(match answer {
            QueueVerdict::Accept | QueueVerdict::Replace => Verdict::Accept,
            QueueVerdict::Drop | QueueVerdict::Later => Verdict::Drop,
        });
        if answer == QueueVerdict::Replace {
            message.set_payload(self.out.as_slice());
        }
        let failed = |error| ServeError::Verdict { error, packets: 1 };
        self.queue.verdict(message).map_err(failed)
    }
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

/// A second descriptor of the netlink socket that was opened after `before` was taken, if that is exactly
/// one socket.
fn socket_since(before: &HashMap<RawFd, PathBuf>) -> Option<OwnedFd> {
    let mut new = sockets()
        .into_iter()
        .filter(|(fd, target)| before.get(fd) != Some(target))
        .filter_map(|(fd, _)| FileDescriptor::dup(&fd).ok()?.as_file().ok())
        .map(OwnedFd::from)
        .filter(|socket| getsockname::<NetlinkAddr>(socket.as_raw_fd()).is_ok());
    let socket = new.next()?;
    new.next().is_none().then_some(socket)
}
