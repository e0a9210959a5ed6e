//! A worker: one queue, one engine, one thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::engine::gateway::Gateway;
use crate::queue::{Answer, Handler, Hook, PacketQueue, ServeError};

use super::shared::{Door, Shared};

/// Which hook a packet came through: its direction, seen from the private side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From the inside.
    Egress,
    /// Towards the inside.
    Ingress,
}

/// How often, at most, an engine forgets what is over while packets flow.
const TICK: Duration = Duration::from_secs(1);
/// Receive errors in a row after which the worker waits a moment between tries.
const PATIENCE: u32 = 16;

/// What decides about packets. `now` is the time since the daemon's start.
pub trait Core: Send {
    /// Looks at a packet; a replacement is written to `out`.
    fn packet(
        &mut self,
        side: Side,
        packet: &[u8],
        now: Duration,
        gateway: &mut dyn Gateway,
        out: &mut Vec<u8>,
    ) -> Answer;

    /// Forgets what is over.
    fn tick(&mut self, now: Duration, gateway: &mut dyn Gateway);

    /// What was counted: an object of numbers.
    fn stats(&self) -> Value;

    /// The control connections.
    fn sessions(&self, now: Duration) -> Vec<Value>;

    /// How many control connections there are.
    fn session_count(&self) -> usize;
}

/// What other threads see of a worker.
pub struct Worker {
    core: Mutex<Box<dyn Core>>,
    receive_errors: AtomicU64,
    verdict_errors: AtomicU64,
    unknown_hook: AtomicU64,
}

/// Which side a hook is on. Nothing is steered from the forward hook.
fn side(hook: Option<Hook>) -> Option<Side> {
    match hook {
        Some(Hook::Prerouting | Hook::Output) => Some(Side::Egress),
        Some(Hook::Postrouting | Hook::Input) => Some(Side::Ingress),
        Some(Hook::Forward) | None => None,
    }
}

impl Worker {
    /// A worker that has counted nothing yet.
    pub fn new(core: Box<dyn Core>) -> Arc<Self> {
        Arc::new(Self {
            core: Mutex::new(core),
            receive_errors: AtomicU64::new(0),
            verdict_errors: AtomicU64::new(0),
            unknown_hook: AtomicU64::new(0),
        })
    }

    /// The engine. Held while a packet is looked at, so for microseconds.
    pub fn core(&self) -> MutexGuard<'_, Box<dyn Core>> {
        // A worker that panicked ends the daemon, which may still want to tell what it counted.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failures to receive, failures to answer, and packets from a hook that isn't steered.
    pub fn errors(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            read(&self.receive_errors),
            read(&self.verdict_errors),
            read(&self.unknown_hook),
        )
    }

    /// Serves a queue for as long as the process lives.
    pub fn serve(&self, mut queue: impl PacketQueue, shared: &Shared) {
        let mut packets = Packets {
            worker: self,
            shared,
            ticked: shared.now(),
        };
        let mut failures = 0u32;
        loop {
            match queue.serve(&mut packets) {
                Ok(_) => failures = 0,
                Err(ServeError::Verdict(e)) => {
                    self.verdict_errors.fetch_add(1, Ordering::Relaxed);
                    log::debug!("queue {}: verdict: {e}", queue.number());
                }
                Err(ServeError::Receive(e)) => {
                    self.receive_errors.fetch_add(1, Ordering::Relaxed);
                    failures = failures.saturating_add(1);
                    if failures == 1 || failures == PATIENCE {
                        log::warn!("queue {}: receive: {e}", queue.number());
                    }
                    if failures >= PATIENCE {
                        thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }
}

/// Has all engines forget what is over; whether any has a session left.
pub fn tick(workers: &[Arc<Worker>], now: Duration, shared: &Shared) -> bool {
    let mut left = 0;
    for worker in workers {
        let mut core = worker.core();
        core.tick(now, &mut Door(shared));
        left += core.session_count();
    }
    left > 0
}

/// The engines' counters, summed up by name.
#[must_use]
pub fn sum(workers: &[Arc<Worker>]) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for worker in workers {
        let Value::Object(stats) = worker.core().stats() else {
            continue;
        };
        for (name, value) in stats {
            let sum: &mut u64 = sums.entry(name).or_default();
            *sum = sum.saturating_add(value.as_u64().unwrap_or(0));
        }
    }
    sums
}

/// Hands packets to the engine.
struct Packets<'a> {
    worker: &'a Worker,
    shared: &'a Shared,
    ticked: Duration,
}

impl Handler for Packets<'_> {
    fn packet(&mut self, hook: Option<Hook>, packet: &[u8], out: &mut Vec<u8>) -> Answer {
        let Some(side) = side(hook) else {
            self.worker.unknown_hook.fetch_add(1, Ordering::Relaxed);
            return Answer::Accept;
        };
        let now = self.shared.now();
        let mut door = Door(self.shared);
        let mut core = self.worker.core();
        if now.saturating_sub(self.ticked) >= TICK {
            self.ticked = now;
            core.tick(now, &mut door);
        }
        core.packet(side, packet, now, &mut door, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_have_sides() {
        assert_eq!(side(Some(Hook::Prerouting)), Some(Side::Egress));
        assert_eq!(side(Some(Hook::Output)), Some(Side::Egress));
        assert_eq!(side(Some(Hook::Postrouting)), Some(Side::Ingress));
        assert_eq!(side(Some(Hook::Input)), Some(Side::Ingress));
        assert_eq!(side(Some(Hook::Forward)), None);
        assert_eq!(side(None), None);
    }
}
