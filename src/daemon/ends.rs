//! Finds out when data connections end: not when conntrack forgets them, minutes later, but when both
//! ends have closed them.
//!
//! The server's final reply says when to look: then conntrack is asked about the session's data
//! connections, as it is while they go on after that (a server replies when it has written the last
//! byte, not when that has arrived). Others, of sessions whose dialogue can't be read, are looked at
//! once a second while there are any. Conntrack's own events of changed states would wake nobody for
//! nothing, but have the kernel write a message at each of several state changes of each connection
//! that crosses the gateway, whoever's it is: 3 to 5 µs for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::engine::Tuple;
use crate::engine::gateway::SessionId;

/// How many sessions may wait to be looked at. Others are looked at with all the rest.
const BACKLOG: usize = 4096;
/// How long this thread rests after it was woken, so that many ends share a wake-up.
const REST: Duration = Duration::from_millis(10);
/// How soon conntrack is asked again about a connection whose transfer is over.
const AGAIN: Duration = Duration::from_millis(50);
/// How long it is asked so often, and how long one end is waited for when the other has closed.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often all others are looked at.
const ROUND: Duration = Duration::from_secs(1);
/// How many of them, at least; and which part of all. So an end is told within so many rounds.
const SOME: usize = 256;
const PART: usize = 8;
/// How many data connections are told of when the daemon ends.
const MOST: usize = 1000;

/// Where ends are told.
#[derive(Debug)]
pub(super) struct Ends {
    asked: SyncSender<SessionId>,
    /// Nothing runs, so the thread sleeps until it is told of something.
    asleep: Arc<AtomicBool>,
}

/// What the thread needs.
#[derive(Debug)]
pub(super) struct Look {
    asked: Receiver<SessionId>,
    asleep: Arc<AtomicBool>,
}

impl Ends {
    pub(super) fn new() -> (Self, Look) {
        let (sender, receiver) = mpsc::sync_channel(BACKLOG);
        let asleep: Arc<AtomicBool> = Arc::default();
        let ends = Self {
            asked: sender,
            asleep: Arc::clone(&asleep),
        };
        let look = Look {
            asked: receiver,
            asleep,
        };
        (ends, look)
    }

    /// The server says that a transfer of this session is over. Never blocks.
    pub(super) fn transfer_is_over(&self, session: SessionId) {
        // If too many wait, the next round comes to it.
        let _ = self.asked.try_send(session);
    }

    /// A data connection was made.
    pub(super) fn connected(&self, session: SessionId) {
        if self.asleep.swap(false, Ordering::AcqRel) {
            let _ = self.asked.try_send(session);
        }
    }
}

impl Look {
    /// Looks for ends for as long as the process lives.
    pub(super) fn serve(self, shared: &Shared) {
        let mut over: HashMap<Tuple, Instant> = HashMap::new();
        let mut round = Instant::now();
        let mut last = None;
        loop {
            let live = shared.with(|plane| plane.live_count());
            let told = match (over.is_empty(), live) {
                (false, _) => self.asked.recv_timeout(AGAIN),
                (true, 1..) => self.asked.recv_timeout(ROUND),
                (true, 0) => {
                    self.asleep.store(true, Ordering::Release);
                    // One may have come before that.
                    match shared.with(|plane| plane.live_count()) {
                        0 => self
                            .asked
                            .recv()
                            .map_err(|_| RecvTimeoutError::Disconnected),
                        _ => self.asked.recv_timeout(ROUND),
                    }
                }
            };
            self.asleep.store(false, Ordering::Release);
            match told {
                Ok(session) => {
                    thread::sleep(REST);
                    let sessions = std::iter::once(session).chain(self.asked.try_iter());
                    let sessions: Vec<_> = sessions.take(BACKLOG).collect();
                    let now = Instant::now();
                    shared.with(|plane| {
                        // The news that a connection was made may be waiting.
                        plane.catch_up();
                        for session in sessions {
                            for tuple in plane.live_of(session) {
                                over.entry(tuple).or_insert(now);
                            }
                        }
                    });
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            over.retain(|tuple, since| {
                let waited = now.saturating_duration_since(*since);
                let ended = look_at(shared, *tuple, waited >= PATIENCE);
                !ended && waited < PATIENCE
            });
            if now.saturating_duration_since(round) >= ROUND {
                round = now;
                let some = shared.with(|plane| plane.some_live(last, SOME.max(live / PART)));
                last = some.last().copied();
                for (_, tuple) in some {
                    look_at(shared, tuple, false);
                }
            }
        }
    }
}

/// Asks conntrack about a data connection. Returns whether there is nothing more to ask.
fn look_at(shared: &Shared, tuple: Tuple, half: bool) -> bool {
    match shared.progress(tuple) {
        Ok(Some(progress)) => shared.with(|plane| plane.on_progress(tuple, &progress, half)),
        // Its event comes, or has come.
        Ok(None) => true,
        Err(error) => {
            log::debug!("conntrack can't be asked about a data connection: {error}");
            false
        }
    }
}

/// The daemon ends: tells of the data connections that go on.
pub(super) fn take_leave(shared: &Shared) {
    let live = shared.with(|plane| {
        plane.catch_up();
        plane.some_live(None, MOST)
    });
    for (_, tuple) in live {
        if let Ok(Some(progress)) = shared.progress(tuple) {
            shared.with(|plane| plane.take_leave(tuple, &progress));
        }
    }
}
