//! Queues that were full: the kernel dropped packets, and only its counters tell.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::time::Duration;

use crate::firewall::Queues;
use crate::pinholes::Seldom;
use crate::queue::kernel::{self, QueueCounters};

/// How often the counters are read, at most, by all threads together.
const PERIOD: Duration = Duration::from_secs(1);

/// What was dropped, as far as it was told.
#[derive(Debug)]
pub struct Overruns {
    ours: RangeInclusive<u16>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    looked: Option<Duration>,
    dropped: u64,
    trouble: Seldom,
}

impl Overruns {
    /// Of these queues, which have dropped nothing yet.
    #[must_use]
    pub fn of(queues: Queues) -> Self {
        Self {
            ours: queues.numbers(),
            seen: Mutex::default(),
        }
    }

    /// Warns if packets were dropped since the last time, once a minute. Reads a file of /proc, at most
    /// once a second.
    pub(super) fn look(&self, now: Duration) {
        // Another thread looks.
        let Ok(mut seen) = self.seen.try_lock() else {
            return;
        };
        if seen
            .looked
            .is_some_and(|at| now.saturating_sub(at) < PERIOD)
        {
            return;
        }
        seen.looked = Some(now);
        // Only root can read them.
        if let Ok(all) = kernel::counters() {
            seen.compare(now, all.iter().filter(|one| self.ours.contains(&one.queue)));
        }
    }
}

impl Seen {
    fn compare<'a>(&mut self, now: Duration, all: impl Iterator<Item = &'a QueueCounters>) {
        let dropped = all.fold(0u64, |sum, one| {
            sum.saturating_add(one.dropped_full)
                .saturating_add(one.dropped_buffer)
        });
        let new = dropped.saturating_sub(self.dropped);
        // What isn't told now is told with what comes later.
        if new > 0 && self.trouble.comes(now).is_some() {
            self.dropped = dropped;
            log::warn!(
                "a queue was full, and {new} packets were dropped (their senders send them again); \
                 `ftpalg status` counts them; if that goes on, give more --queues"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_told_once_a_minute() {
        let mut seen = Seen::default();
        let queue = |full, buffer| QueueCounters {
            queue: 1,
            port: 1,
            waiting: 0,
            dropped_full: full,
            dropped_buffer: buffer,
            queued: 9,
        };
        for (second, full, buffer, told) in [
            (1, 0, 0, 0),
            (2, 5, 0, 5),
            (3, 7, 1, 5),
            (62, 7, 1, 8),
            (200, 7, 1, 8),
        ] {
            seen.compare(Duration::from_secs(second), [queue(full, buffer)].iter());
            assert_eq!(seen.dropped, told, "{second}");
        }
    }
}
