//! A worker: one queue, one engine, one thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use crate::engine::{Engine, Name, Placed, Side, Stats, SynAck, Verdict};
use crate::pinholes::Seldom;
use crate::queue::nfq::NfqQueue;
use crate::queue::{Decider, Earlier, Hook, Packet, QueueVerdict, ServeError};

use super::metrics::Durations;
use super::shared::{Door, Openings, Shared};

/// How often, at most, an engine forgets what is over while packets flow.
const TICK: Duration = Duration::from_secs(1);
/// How long an engine is left to its worker between two slices of a round.
const BETWEEN_SLICES: Duration = Duration::from_micros(100);
/// Receive errors in a row after which the worker waits a moment between tries.
const PATIENCE: u32 = 16;

/// What other threads see of a worker.
pub struct Worker {
    engine: Mutex<Engine>,
    receive_errors: AtomicU64,
    verdict_errors: AtomicU64,
    unknown_hook: AtomicU64,
    /// The engine had connections with other names, once: see [`Engine::has_names`].
    names: AtomicBool,
    /// How long packets wait, where somebody wants to know.
    durations: Option<Durations>,
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
    pub fn new(engine: Engine, durations: Option<Durations>) -> Arc<Self> {
        Arc::new(Self {
            engine: Mutex::new(engine),
            receive_errors: AtomicU64::new(0),
            verdict_errors: AtomicU64::new(0),
            unknown_hook: AtomicU64::new(0),
            names: AtomicBool::new(false),
            durations,
        })
    }

    /// The engine. Held while a packet is looked at, so for microseconds.
    pub fn engine(&self) -> MutexGuard<'_, Engine> {
        // A worker that panicked ends the daemon, which may still want to tell what it counted.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for a worker, which sends on what it has decided about before it waits.
    fn engine_after(&self, earlier: &mut Earlier<'_>) -> MutexGuard<'_, Engine> {
        match self.engine.try_lock() {
            Ok(engine) => engine,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                earlier.send();
                self.engine()
            }
        }
    }

    fn tell_names(&self, engine: &Engine) {
        if engine.has_names() && !self.names.load(Ordering::Relaxed) {
            self.names.store(true, Ordering::Release);
        }
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

    /// Serves a queue for as long as the process lives; `others` are the workers of the other queues.
    pub fn serve(&self, queue: NfqQueue, shared: &Shared, others: &[Arc<Self>]) {
        let mut queue = queue.reader();
        let mut packets = Packets {
            worker: self,
            others,
            shared,
            now: None,
            ticked: shared.now(),
            openings: Openings::default(),
        };
        let mut failures = 0u32;
        let (mut trouble, mut lost) = (Seldom::default(), Seldom::default());
        loop {
            match queue.serve(&mut packets) {
                Ok(()) => failures = 0,
                Err(ServeError::Verdict { error, packets }) => {
                    self.verdict_errors.fetch_add(packets, Ordering::Relaxed);
                    lost.warn(shared.now(), || {
                        let number = queue.number();
                        format!("queue {number}: verdict: {error}; the packet is dropped")
                    });
                }
                Err(ServeError::Receive(e)) => {
                    self.receive_errors.fetch_add(1, Ordering::Relaxed);
                    failures = failures.saturating_add(1);
                    trouble.warn(shared.now(), || {
                        format!("queue {}: receive: {e}; trying again", queue.number())
                    });
                    if failures >= PATIENCE {
                        thread::sleep(Duration::from_millis(100));
                    }
                }
            }
        }
    }
}

/// Has all engines forget what is over; whether any knows a connection still.
pub fn tick(workers: &[Arc<Worker>], now: Duration, shared: &Shared) -> bool {
    let mut left = false;
    for worker in workers {
        // The first round may have been under way; the second one visits everything.
        for _ in 0..2 {
            while !worker.engine().tick(now, &mut Door::new(shared)) {
                // Without a pause, this thread would take the lock again before the worker does.
                thread::sleep(BETWEEN_SLICES);
            }
        }
        forget_unseen(worker, now, shared);
        left |= !worker.engine().is_empty();
    }
    left
}

/// Ends sessions that conntrack has forgotten, where an engine can't have seen their end.
fn forget_unseen(worker: &Worker, now: Duration, shared: &Shared) {
    let mut door = Door::new(shared);
    let mut is_over = false;
    while !is_over {
        let mut found = Vec::new();
        is_over = worker.engine().doubtful(now, &mut found);
        found.retain(|name| !shared.exists(name.outward()));
        let mut engine = worker.engine();
        for name in &found {
            engine.is_gone(name, now, &mut door);
        }
        drop(engine);
        thread::sleep(BETWEEN_SLICES);
    }
}

/// What all engines have counted.
#[must_use]
pub fn sum(workers: &[Arc<Worker>]) -> Stats {
    let mut sum = Stats::default();
    for worker in workers {
        sum.add(worker.engine().stats());
    }
    sum
}

/// Hands packets to the engine.
struct Packets<'a> {
    worker: &'a Worker,
    others: &'a [Arc<Worker>],
    shared: &'a Shared,
    /// The time of the packets before that still wait, if nothing has taken long since.
    now: Option<Duration>,
    ticked: Duration,
    /// What packets that were put off wait for.
    openings: Openings,
}

impl Decider for Packets<'_> {
    /// Decides, and notes how long that takes. Nobody reads the clock for it unless there are metrics.
    fn decide(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        earlier: &mut Earlier<'_>,
    ) -> QueueVerdict {
        let Some(durations) = &self.worker.durations else {
            return self.decide_now(packet, out, earlier);
        };
        let came = self.shared.now();
        let began = self.openings.came(packet.id).unwrap_or(came);
        let verdict = self.decide_now(packet, out, earlier);
        match verdict {
            QueueVerdict::Later => self.openings.note(packet.id, began),
            _ => durations.observe(self.shared.now().saturating_sub(began)),
        }
        verdict
    }

    fn catch_up(&mut self) {
        self.openings.open(self.shared);
        self.worker.engine().again();
    }
}

impl Packets<'_> {
    fn decide_now(
        &mut self,
        packet: Packet<'_>,
        out: &mut Vec<u8>,
        earlier: &mut Earlier<'_>,
    ) -> QueueVerdict {
        let Some(side) = side(packet.hook) else {
            self.worker.unknown_hook.fetch_add(1, Ordering::Relaxed);
            return QueueVerdict::Accept;
        };
        let known = self.now.take().filter(|_| earlier.any_wait());
        let now = known.unwrap_or_else(|| self.shared.now());
        let answer = self.decide_at(now, side, packet, out, earlier);
        self.now = Some(now).filter(|_| !earlier.has_waited());
        answer
    }

    fn decide_at(
        &mut self,
        now: Duration,
        side: Side,
        Packet { id, bytes, .. }: Packet<'_>,
        out: &mut Vec<u8>,
        earlier: &mut Earlier<'_>,
    ) -> QueueVerdict {
        let mut engine = self.worker.engine_after(earlier);
        let together = self.shared.opens_together() && earlier.may_put_off();
        let mut door = Door::of_worker(self.shared, earlier);
        if now.saturating_sub(self.ticked) >= TICK {
            self.ticked = now;
            door.may_wait();
            engine.tick(now, &mut door);
            self.shared.look_at_queues(now);
        }
        if together {
            let wishes = self.openings.take(id);
            door.of_packet(wishes, &self.openings);
        }
        let outcome = match engine.try_packet(side, bytes, now, &mut door) {
            Placed::Verdict(verdict) => Asked::Nobody(answer(verdict, out)),
            Placed::Later => {
                let wishes = door.wishes();
                self.openings.put_off(id, wishes);
                return QueueVerdict::Later;
            }
            Placed::Unknown(name) => Asked::Segment(name),
            Placed::SynAck(syn_ack, verdict) => Asked::SynAck(syn_ack, answer(verdict, out)),
        };
        door.settle();
        // Told before the packet goes on, and so before anybody can answer it.
        self.worker.tell_names(&engine);
        // Never two engines at a time: another worker may want them the other way round.
        drop(engine);
        match outcome {
            Asked::Nobody(answer) => answer,
            Asked::Segment(name) => self.ask_for(&name, side, bytes, now, out, &mut door),
            Asked::SynAck(syn_ack, answer) => {
                self.ask_about(&syn_ack, now, &mut door);
                answer
            }
        }
    }
}

/// A [`Placed`] without its borrow of the engine: what to ask the other engines.
enum Asked {
    Nobody(QueueVerdict),
    Segment(Name),
    SynAck(SynAck, QueueVerdict),
}

impl Packets<'_> {
    /// The other workers whose connections have other names.
    fn named(&self) -> impl Iterator<Item = &Arc<Worker>> {
        let named = |worker: &&Arc<Worker>| worker.names.load(Ordering::Acquire);
        self.others.iter().filter(named)
    }

    /// What the engine that knows a segment says to it, if there is one.
    fn ask_for(
        &self,
        name: &Name,
        side: Side,
        packet: &[u8],
        now: Duration,
        out: &mut Vec<u8>,
        door: &mut Door<'_, '_>,
    ) -> QueueVerdict {
        for other in self.named() {
            let mut engine = other.engine();
            if engine.knows(name) {
                return answer(engine.packet(side, packet, now, door), out);
            }
        }
        let mut engine = self.worker.engine();
        let answer = answer(engine.nobody_knows(*name, side, packet, now, door), out);
        self.worker.tell_names(&engine);
        answer
    }

    /// Asks the other engines about a SYN-ACK.
    fn ask_about(&self, syn_ack: &SynAck, now: Duration, door: &mut Door<'_, '_>) {
        let elsewhere = self
            .named()
            .any(|other| other.engine().edits_other_end(syn_ack));
        let mut others = self.others.iter();
        let syn = others.find_map(|other| other.engine().take_syn(syn_ack));
        let mut engine = self.worker.engine();
        engine.answered(syn_ack, elsewhere, syn, now, door);
        self.worker.tell_names(&engine);
    }
}

fn answer(verdict: Verdict<'_>, out: &mut Vec<u8>) -> QueueVerdict {
    match verdict {
        Verdict::Accept => QueueVerdict::Accept,
        Verdict::Replace(bytes) => {
            out.extend_from_slice(bytes);
            QueueVerdict::Replace
        }
        Verdict::Drop => QueueVerdict::Drop,
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
