//! The lock against a second daemon in a network namespace.
//!
//! It is an NFQUEUE that no rule sends packets to. Binding one takes `CAP_NET_ADMIN` in the network
//! namespace, only one socket can have it, and the kernel takes it back with the process. So nobody
//! else can hold it, two daemons that start at once can't both get it, and nothing is left of it:
//! no file, whatever mount namespace or read-only root either of them has.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::netlink::socket::{NetlinkRequest, Socket};
use crate::queue::kernel;

use super::guardian;

/// The queue's number, which `--queue-num` and `--queues` must leave alone.
pub const QUEUE: u16 = 0xf7a1;

/// `NFNL_SUBSYS_QUEUE` and `NFQNL_MSG_CONFIG`.
const CONFIG: u16 = 3 << 8 | 2;
/// `NFQA_CFG_CMD`.
const COMMAND: u16 = 1;
/// `NFQNL_CFG_CMD_BIND`.
const BIND: u8 = 1;
/// `NFQNL_CFG_CMD_PF_BIND`: since Linux 3.8 it only checks the permission.
const PF_BIND: u8 = 3;

/// How long to wait for a lock that has no visible holder.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time between two attempts then.
const STEP: Duration = Duration::from_millis(20);

/// Why the lock can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The process may not change this network namespace.
    #[error("no permission to change the network; run as root, or with CAP_NET_ADMIN")]
    NotPermitted,
    /// Another daemon has it.
    #[error("ftpalg already runs in this network namespace; stop that one first")]
    Held,
    /// The kernel has no NFQUEUE.
    #[error(
        "this kernel has no NFQUEUE; load the module nfnetlink_queue, or use a kernel with \
         CONFIG_NETFILTER_NETLINK_QUEUE"
    )]
    Unsupported,
    /// Something else was refused.
    #[error("the lock of this network namespace can't be taken ({0}); see the kernel's log")]
    System(io::Error),
}

/// The lock, held until this is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _socket: Socket,
}

impl Lock {
    /// Takes the lock of the calling thread's network namespace. If it is held, but no process can be
    /// seen that keeps it, waits for a moment: a tool that a killed daemon was starting, between fork
    /// and exec, may still have that daemon's sockets. A [guardian] that removes rules just now has the lock
    /// for a moment, too.
    ///
    /// # Errors
    /// [`LockError::Held`] if somebody has it.
    pub fn take() -> Result<Self, LockError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Self::take_now() {
                Err(LockError::Held)
                    if kernel::holder(QUEUE).is_none_or(|(_, name)| name == guardian::NAME)
                        && Instant::now() < deadline =>
                {
                    thread::sleep(STEP);
                }
                done => return done,
            }
        }
    }

    /// Takes it, or fails at once.
    pub(super) fn take_now() -> Result<Self, LockError> {
        let mut socket = Socket::open().map_err(|e| LockError::of(e, LockError::System))?;
        // The kernel has one error for both: the process may not bind, or another one has bound.
        command(&mut socket, PF_BIND).map_err(|e| LockError::of(e, |_| LockError::NotPermitted))?;
        command(&mut socket, BIND).map_err(|e| LockError::of(e, |_| LockError::Held))?;
        Ok(Self { _socket: socket })
    }
}

impl LockError {
    /// `refused` says what EPERM and EBUSY mean here.
    fn of(error: io::Error, refused: impl FnOnce(io::Error) -> Self) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EBUSY) => refused(error),
            // nfnetlink answers this where no subsystem "queue" is registered.
            Some(
                Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT,
            ) => Self::Unsupported,
            _ => Self::System(error),
        }
    }
}

fn command(socket: &mut Socket, command: u8) -> io::Result<()> {
    socket.change_of(
        QUEUE,
        &NetlinkRequest {
            kind: CONFIG,
            flags: 0,
            family: 0,
            // The command, a byte of padding, a protocol family that nobody reads.
            attrs: Box::new(move |attrs| {
                attrs.bytes(COMMAND, &[command, 0, 0, 0]);
            }),
        },
    )
}

/// Whether the kernel has NFQUEUE, and lets this process use it. Binds nothing.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), LockError> {
    let mut socket = Socket::open().map_err(|e| LockError::of(e, LockError::System))?;
    command(&mut socket, PF_BIND).map_err(|e| LockError::of(e, |_| LockError::NotPermitted))
}

/// Whether somebody holds it; `None` if the kernel doesn't show it to this process.
#[must_use]
pub fn is_held() -> Option<bool> {
    let queues = kernel::counters().ok()?;
    Some(queues.iter().any(|queue| queue.queue == QUEUE))
}
