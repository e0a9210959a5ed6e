//! A Valkey or Redis server: `--state valkey://HOST`.
//!
//! What a gateway writes there before a packet goes on is what the other one needs to go on with it:
//! the [records](crate::engine::gateway) of control connections whose numbers differ on the two sides,
//! and the pinholes that nobody has used yet. Everything in it ends by itself.
//!
//! | key | value | lasts for |
//! |---|---|---|
//! | `ftpalg:1:flow:SRC>DST` | a record; the addresses are those of what the inside end sends | 5 days |
//! | `ftpalg:1:hole:FROM>TO` | a [`Pinhole`] | the pinhole's deadline |
//!
//! The number is [`RECORD_FORMAT`].
//!
//! A packet never waits for longer than [`PATIENCE`]. A server that doesn't answer in time isn't asked
//! again for [`PAUSE`]. What couldn't be written is written once it answers: what it has is out of date.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Client, Commands, Connection, Pipeline, RedisResult};

use super::{Store, StoreHealth};

use crate::engine::{RECORD_FORMAT, Tuple};
use crate::pinholes::{Pinhole, PinholeKey};

/// How long an answer is waited for, and how long a connection.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a server that failed isn't asked.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a server that doesn't answer may do so again, before what it had counts as lost.
const GRACE: Duration = Duration::from_secs(3);
/// How long a record lasts: as `nf_conntrack_tcp_timeout_established`.
const RECORD_LIFE: Duration = Duration::from_secs(5 * 24 * 3600);
/// How many keys may wait to be deleted, and how many to be written. Those beyond it end by themselves, or
/// are written with the next packet.
const MAX_WAITING: usize = 4096;
/// How many keys are asked for at a time.
const SLICE: usize = 256;

/// A server, as the daemon's threads share it.
struct Valkey {
    client: Client,
    /// As it is shown: without user and password.
    name: String,
    link: Mutex<Link>,
    /// The keys that were written, and by which write. Never held while the server is asked.
    written: Mutex<Written>,
    /// What couldn't be written, by its key.
    unwritten: Mutex<HashMap<String, Unwritten>>,
    jobs: SyncSender<Job>,
}

/// What is done when there is time.
enum Job {
    Delete(Gone),
    /// Something couldn't be written.
    WriteAgain,
}

/// A value that is to be written.
#[derive(Clone, PartialEq)]
struct Unwritten {
    value: Vec<u8>,
    /// When it ends.
    until: Instant,
}

#[derive(Default)]
struct Written {
    keys: HashMap<String, u64>,
    last: u64,
}

/// A key to be deleted, unless it was written again after this write.
struct Gone {
    key: String,
    write: u64,
}

#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    /// When a server that failed is asked again.
    again: Option<Instant>,
    /// Since when it hasn't answered.
    silent: Option<Instant>,
    errors: u64,
}

/// See [`super::open`].
pub(super) fn open(url: &str) -> Result<Arc<dyn Store>, String> {
    let client = Client::open(url).map_err(|e| e.to_string())?;
    let (jobs, waiting) = sync_channel(MAX_WAITING);
    let valkey = Arc::new(Valkey {
        name: client.get_connection_info().addr().to_string(),
        client,
        link: Mutex::default(),
        written: Mutex::default(),
        unwritten: Mutex::default(),
        jobs,
    });
    let sweeper = Arc::clone(&valkey);
    let thread = thread::Builder::new().name("store".into());
    let started = thread.spawn(move || sweeper.sweep(&waiting));
    started.map_err(|e| format!("can't start a thread: {e}"))?;
    Ok(valkey)
}

impl Store for Valkey {
    fn keep_record(&self, outward: Tuple, record: &[u8]) -> bool {
        self.write(record_key(outward), record, RECORD_LIFE)
    }

    fn drop_record(&self, outward: Tuple) {
        self.drop_key(record_key(outward));
    }

    fn find_record(&self, outward: Tuple) -> Option<Option<Vec<u8>>> {
        let key = record_key(outward);
        let found = self.ask(|connection| connection.get::<_, Option<Vec<u8>>>(key));
        let gone = |since: Instant| since.elapsed() >= GRACE;
        match found {
            None if self.link().silent.is_some_and(gone) => Some(None),
            found => found,
        }
    }

    fn keep_pinhole(&self, pinhole: &Pinhole, left: Duration) -> bool {
        postcard::to_allocvec(pinhole)
            .is_ok_and(|value| self.write(pinhole_key(pinhole.key()), &value, left))
    }

    fn drop_pinhole(&self, key: PinholeKey) {
        self.drop_key(pinhole_key(key));
    }

    fn pinholes(&self, most: usize) -> Option<Vec<(Pinhole, Duration)>> {
        let pattern = format!("{}hole:*", prefix());
        let keys = self.ask(|connection| {
            let keys = connection.scan_match::<_, String>(&pattern)?;
            keys.take(most).collect::<RedisResult<Vec<String>>>()
        });
        let mut all = Vec::new();
        for slice in keys?.chunks(SLICE) {
            all.extend(self.pinholes_of(slice)?);
        }
        Some(all)
    }

    fn health(&self) -> StoreHealth {
        let link = self.link();
        StoreHealth {
            works: link.again.is_none(),
            errors: link.errors,
        }
    }
}

impl Valkey {
    fn pinholes_of(&self, keys: &[String]) -> Option<Vec<(Pinhole, Duration)>> {
        let mut questions = Pipeline::new();
        for key in keys {
            questions.get(key).pttl(key);
        }
        let answers: Vec<(Option<Vec<u8>>, i64)> =
            self.ask(|connection| questions.query(connection))?;
        let kept = answers.into_iter().filter_map(|(value, left)| {
            let pinhole = postcard::from_bytes(&value?).ok()?;
            let left = u64::try_from(left).ok().filter(|left| *left > 0)?;
            Some((pinhole, Duration::from_millis(left)))
        });
        Some(kept.collect())
    }

    /// Deletes keys as they come, and writes what couldn't be written, for as long as the process lives.
    fn sweep(&self, waiting: &Receiver<Job>) {
        let mut gone = Vec::new();
        loop {
            let idle = gone.is_empty() && self.unwritten().is_empty();
            let first = match idle {
                true => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => waiting.recv_timeout(PAUSE),
            };
            if let Err(RecvTimeoutError::Disconnected) = first {
                return;
            }
            let jobs = first.into_iter().chain(waiting.try_iter().take(SLICE));
            gone.extend(jobs.filter_map(|job| match job {
                Job::Delete(gone) => Some(gone),
                Job::WriteAgain => None,
            }));
            gone.truncate(MAX_WAITING);
            // A key that is written after this look is so after it was deleted.
            let deleted = self.ask(|connection| match self.still_gone(&gone) {
                keys if keys.is_empty() => Ok(()),
                keys => connection.del::<_, ()>(keys),
            });
            if deleted.is_some() {
                gone.clear();
            }
            if !self.unwritten().is_empty() {
                self.ask(|connection| self.write_again(connection));
            }
        }
    }

    /// Writes some of what couldn't be written. Nobody else writes meanwhile.
    fn write_again(&self, connection: &mut Connection) -> RedisResult<()> {
        let now = Instant::now();
        self.unwritten()
            .retain(|_, unwritten| unwritten.until > now);
        let some: Vec<_> = {
            let all = self.unwritten();
            let some = all.iter().take(SLICE);
            some.map(|(key, unwritten)| (key.clone(), unwritten.clone()))
                .collect()
        };
        let mut writes = Pipeline::new();
        for (key, Unwritten { value, until }) in &some {
            writes
                .pset_ex(key, value, millis(until.duration_since(now)))
                .ignore();
        }
        writes.query::<()>(connection)?;
        let mut all = self.unwritten();
        for (key, unwritten) in some {
            if all.get(&key) == Some(&unwritten) {
                all.remove(&key);
            }
        }
        Ok(())
    }

    /// Writes a value that lasts for so long. Returns whether it is there.
    fn write(&self, key: String, value: &[u8], life: Duration) -> bool {
        self.writes(&key);
        let written = self.ask(|connection| {
            self.unwritten().remove(&key);
            connection.pset_ex::<_, _, ()>(&key, value, millis(life))
        });
        if written.is_some() {
            return true;
        }
        let mut all = self.unwritten();
        if all.len() < MAX_WAITING || all.contains_key(&key) {
            let (value, until) = (value.to_vec(), Instant::now() + life);
            all.insert(key, Unwritten { value, until });
            // If there is no room, the thread is awake anyway.
            _ = self.jobs.try_send(Job::WriteAgain);
        }
        false
    }

    /// A key is about to be written.
    fn writes(&self, key: &str) {
        let mut written = self.written();
        written.last = written.last.wrapping_add(1);
        let write = written.last;
        written.keys.insert(key.to_owned(), write);
    }

    fn drop_key(&self, key: String) {
        // Another process's key, if it isn't there.
        let write = self.written().keys.get(&key).copied().unwrap_or(0);
        self.unwritten().remove(&key);
        if self
            .jobs
            .try_send(Job::Delete(Gone { key, write }))
            .is_err()
        {
            log::debug!("the store {}: a key ends by itself later", self.name);
        }
    }

    /// Those of the keys that weren't written again.
    fn still_gone(&self, gone: &[Gone]) -> Vec<String> {
        let mut written = self.written();
        let mut keys = Vec::with_capacity(gone.len());
        for Gone { key, write } in gone {
            if written.keys.get(key).is_none_or(|last| last == write) {
                written.keys.remove(key);
                keys.push(key.clone());
            }
        }
        keys
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, Unwritten>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server. `None`: it doesn't answer, which is said once.
    fn ask<T>(&self, question: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Option<T> {
        let mut link = self.link();
        if link.again.is_some_and(|again| Instant::now() < again) {
            return None;
        }
        let mut connection = match link.connection.take().map_or_else(|| self.connect(), Ok) {
            Ok(connection) => connection,
            Err(e) => return self.failed(&mut link, &e),
        };
        match question(&mut connection) {
            Ok(answer) => {
                link.connection = Some(connection);
                link.silent = None;
                if link.again.take().is_some() {
                    log::warn!("the store {} answers again", self.name);
                }
                Some(answer)
            }
            Err(e) => self.failed(&mut link, &e),
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    }

    fn failed<T>(&self, link: &mut Link, error: &redis::RedisError) -> Option<T> {
        if link.again.is_none() {
            log::warn!(
                "the store {} doesn't answer ({error}): until it does, another gateway can't go on with \
                 sessions whose numbers differ on the two sides, nor with announced data connections",
                self.name
            );
        }
        link.errors = link.errors.saturating_add(1);
        let now = Instant::now();
        link.silent.get_or_insert(now);
        link.again = Some(now + PAUSE);
        None
    }
}

/// In milliseconds, and at least one: the server refuses 0.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn prefix() -> String {
    format!("ftpalg:{RECORD_FORMAT}:")
}

fn record_key(Tuple { src, dst }: Tuple) -> String {
    format!("{}flow:{src}>{dst}", prefix())
}

fn pinhole_key(PinholeKey { from, to }: PinholeKey) -> String {
    format!("{}hole:{from}>{to}", prefix())
}
