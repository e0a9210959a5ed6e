//! Tells the service manager again and again that packets are being looked at. When it isn't told any
//! more, it starts the daemon anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use sd_notify::NotifyState;

use crate::pinholes::Plane;
use crate::queue::kernel;

use super::StartError;
use super::lifetime::Lifetime;
use super::notify;
use super::setup::Steered;
use super::shared::Shared;
use super::worker::Worker;

/// How many signs of life the service manager gets in the time after which it would give up.
const SIGNS: u32 = 3;

/// Sends signs of life, if the service manager wants any. Without them, no thread is started.
pub(super) fn start(
    lifetime: &Lifetime,
    steered: &Arc<Steered>,
    shared: &Arc<Shared>,
    workers: &[Arc<Worker>],
) -> Result<(), StartError> {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return Ok(());
    };
    let queues = steered.steering.queues.numbers();
    let (shared, workers) = (Arc::clone(shared), workers.to_vec());
    lifetime.thread("watchdog", move || {
        let mut seen = Progress::default();
        loop {
            // Whoever holds a lock for good keeps this thread waiting, too.
            shared.with(Plane::expire);
            let read = workers.iter().map(|worker| worker.engine().stats().packets);
            let now = Progress::read(queues.clone().zip(read).collect());
            match now.stuck_since(&seen) {
                None => notify(&[NotifyState::Watchdog]),
                Some(queue) => log::error!(
                    "queue {queue}: packets come, and none is looked at; the service manager will \
                     start ftpalg anew"
                ),
            }
            seen = now;
            thread::sleep(limit / SIGNS);
        }
    })
}

/// How far each queue and its worker have come: packets that the kernel queued, and packets looked at.
#[derive(Debug, Default)]
struct Progress(HashMap<u16, (u64, u64)>);

impl Progress {
    /// Adds what the kernel has queued. Where it doesn't tell, nothing is known of a queue.
    fn read(looked_at: HashMap<u16, u64>) -> Self {
        let queued = kernel::counters().unwrap_or_default();
        let of = |counters: kernel::QueueCounters| {
            let looked_at = looked_at.get(&counters.queue)?;
            Some((counters.queue, (counters.queued, *looked_at)))
        };
        Self(queued.into_iter().filter_map(of).collect())
    }

    /// A queue in which packets came after `earlier`, and none was looked at.
    fn stuck_since(&self, earlier: &Self) -> Option<u16> {
        let is_stuck = |(queue, (queued, looked_at)): (&u16, &(u64, u64))| {
            let (before, then) = earlier.0.get(queue)?;
            (queued > before && looked_at == then).then_some(*queue)
        };
        self.0.iter().find_map(is_stuck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(queues: &[(u16, u64, u64)]) -> Progress {
        let each = queues
            .iter()
            .map(|(queue, queued, at)| (*queue, (*queued, *at)));
        Progress(each.collect())
    }

    #[test]
    fn a_worker_that_looks_at_nothing_is_found() {
        let before = progress(&[(1, 10, 10), (2, 10, 10)]);
        let stuck = |now: &[(u16, u64, u64)]| progress(now).stuck_since(&before);
        assert_eq!(stuck(&[(1, 10, 10), (2, 10, 10)]), None, "nothing came");
        assert_eq!(stuck(&[(1, 15, 11), (2, 10, 10)]), None, "slow");
        assert_eq!(stuck(&[(1, 15, 15), (2, 12, 10)]), Some(2));
        assert_eq!(stuck(&[(3, 15, 0)]), None, "not seen before");
        assert_eq!(
            progress(&[(1, 5, 0)]).stuck_since(&Progress::default()),
            None
        );
    }
}
