//! The kernel's own counters of its queues.

use std::{fs, io};

use serde::Serialize;

/// The kernel's list of queues, of the reader's network namespace. Only root can read it.
const PATH: &str = "/proc/net/netfilter/nfnetlink_queue";

/// What the kernel counts for one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct QueueCounters {
    /// The queue's number.
    pub queue: u16,
    /// The netlink port of the program that reads it: of its first netlink socket, its process id.
    #[serde(skip)]
    pub port: u32,
    /// Packets that wait for an answer now.
    pub waiting: u64,
    /// Packets dropped because the queue was full.
    pub dropped_full: u64,
    /// Packets dropped because the reader's socket buffer was full.
    pub dropped_buffer: u64,
    /// Packets queued so far.
    pub queued: u64,
}

impl QueueCounters {
    /// Reads a line: number, port, waiting, copy mode, copy range, both drops, sequence, 1.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let queue = fields.next()?.parse().ok()?;
        let port = fields.next()?.parse().ok()?;
        let waiting = fields.next()?.parse().ok()?;
        let dropped_full = fields.nth(2)?.parse().ok()?;
        let dropped_buffer = fields.next()?.parse().ok()?;
        let queued = fields.next()?.parse().ok()?;
        Some(Self {
            queue,
            port,
            waiting,
            dropped_full,
            dropped_buffer,
            queued,
        })
    }
}

/// The counters of all queues of this network namespace that have a reader.
///
/// # Errors
/// If `/proc` doesn't show them (not root, not mounted, no NFQUEUE).
pub fn counters() -> io::Result<Vec<QueueCounters>> {
    // /proc/net would be the namespace of the main thread.
    let text = fs::read_to_string(PATH.replace("/proc/", "/proc/thread-self/"))?;
    Ok(text.lines().filter_map(QueueCounters::parse).collect())
}

/// The process that reads a queue, by id and name; `None` if that can't be told.
#[must_use]
pub fn holder(queue: u16) -> Option<(u32, String)> {
    let all = counters().ok()?;
    let port = all.into_iter().find(|c| c.queue == queue)?.port;
    // Only a program's first netlink socket has its process id for a port.
    let name = fs::read_to_string(format!("/proc/{port}/comm")).ok()?;
    Some((port, name.trim_end().escape_default().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read() {
        let line = " 2121  25253     3 2 65535     7     9     1042  1";
        assert_eq!(
            QueueCounters::parse(line),
            Some(QueueCounters {
                queue: 2121,
                port: 25253,
                waiting: 3,
                dropped_full: 7,
                dropped_buffer: 9,
                queued: 1042
            })
        );
        assert_eq!(QueueCounters::parse(""), None);
        assert_eq!(QueueCounters::parse("2121 1 2"), None);
    }
}
