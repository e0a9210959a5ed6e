//! The userspace end of NFQUEUE: receives packets from the kernel and gives their verdicts back.
//!
//! [`nfq`] is the queue itself, `batch` moves many of its packets at once, and [`kernel`] reads the
//! kernel's counters of its queues. What happens to a packet is not decided here.

mod batch;
pub mod kernel;
pub mod nfq;
mod packet;

use std::io;

pub use batch::Earlier;

/// A packet that waits for its verdict.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Its number in its queue.
    pub id: u32,
    /// The hook that it was queued in; `None`: one that isn't known here.
    pub hook: Option<Hook>,
    /// From its IP header on.
    pub bytes: &'a [u8],
}

/// Decides what becomes of packets.
pub trait Decider {
    /// Decides about a packet. For [`QueueVerdict::Replace`], the new packet is written to `out`, which is
    /// empty. `earlier`: the packets before it. These may not have been sent on yet: it
    /// [has them sent](Earlier::send) before it does anything that may take long.
    fn decide(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        earlier: &mut Earlier<'_>,
    ) -> QueueVerdict;

    /// Does what the packets wait for that were put off ([`QueueVerdict::Later`]), for all of them. It may
    /// take long. Then they come again, in their order.
    fn catch_up(&mut self) {}
}

/// The netfilter hook that a packet was queued in, as the kernel numbers it (`NF_INET_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// Towards a process on this host.
    Input,
    /// Between two interfaces.
    Forward,
    /// From a process on this host.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// The hook that the kernel calls `number`, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::Prerouting,
            1 => Self::Input,
            2 => Self::Forward,
            3 => Self::Output,
            4 => Self::Postrouting,
            _ => return None,
        })
    }
}

/// What is done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueVerdict {
    /// It goes on as it is.
    Accept,
    /// The new packet goes on in its place.
    Replace,
    /// It is dropped.
    Drop,
    /// It is put off: see [`Decider::catch_up`]. Only where it [may be](Earlier::may_put_off).
    Later,
}

/// Why a queue couldn't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another program reads it.
    #[error(
        "queue {number} is already bound by another program{holder}; stop that program, or choose \
         other queue numbers with --queue-num"
    )]
    InUse {
        /// The queue's number.
        number: u16,
        /// ` (pid N, name)` where it is known, or nothing.
        holder: String,
    },
    /// The kernel has no NFQUEUE.
    #[error(
        "this kernel has no NFQUEUE; load the module nfnetlink_queue, or use a kernel with \
         CONFIG_NETFILTER_NETLINK_QUEUE"
    )]
    Unsupported,
    /// Something else was refused.
    #[error("queue {number} can't be set up ({what}: {source}); see the kernel's log")]
    System {
        /// The queue's number.
        number: u16,
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// What went wrong while packets were moved; the queue goes on in any case.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No packet could be received (`ENOBUFS`: some were lost).
    #[error("receive: {0}")]
    Receive(io::Error),
    /// Verdicts couldn't be given (the new packet was too large, or the kernel had no memory).
    #[error("verdict: {error}")]
    Verdict {
        /// The last error.
        error: io::Error,
        /// How many packets it concerns.
        packets: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_have_the_kernels_numbers() {
        let hooks: Vec<_> = (0..6).map(Hook::from_number).collect();
        assert_eq!(
            hooks,
            [
                Some(Hook::Prerouting),
                Some(Hook::Input),
                Some(Hook::Forward),
                Some(Hook::Output),
                Some(Hook::Postrouting),
                None
            ]
        );
    }
}
