//! A Valkey or Redis server: `--state valkey://HOST`.
//!
//! What a gateway writes there before a packet goes on is what the other one needs to go on with it:
//! the [records](crate::engine::gateway) of control connections whose numbers differ on the two sides,
//! and the pinholes that nobody has used yet. Everything in it ends by itself.
//!
//! | key | value, behind a [`tag::Tag`] | lasts for |
//! |---|---|---|
//! | `ftpalg:N:flow:SRC>DST` | a record; the addresses are those of what the inside end sends | 5 days |
//! | `ftpalg:N:hole:FROM>TO` | a [`Pinhole`] | the pinhole's deadline |
//!
//! N is [`RECORD_FORMAT`].
//!
//! A packet never waits for longer than a bound ([`link`]). While a server doesn't answer, packets go on
//! without it, and a thread of its own tries to reach it again. What couldn't be written is written then:
//! what the server has is out of date.

mod link;
mod tag;

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use redis::{Client, Commands, Connection, Pipeline, RedisResult};

use super::{Store, StoreHealth};
use link::Link;
use tag::{Claim, Claims, Tag};

use crate::engine::{RECORD_FORMAT, Tuple};
use crate::pinholes::{Pinhole, PinholeKey};

/// How often a server that doesn't answer is tried.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a record lasts: as `nf_conntrack_tcp_timeout_established`.
const RECORD_LIFE: Duration = Duration::from_secs(5 * 24 * 3600);
/// How many keys may wait to be deleted, and how many to be written. Those beyond it end by themselves, or
/// are written with the next packet.
const MAX_WAITING: usize = 4096;
/// How many keys are asked for at a time.
const SLICE: usize = 256;

/// A server, as the daemon's threads share it.
struct Valkey {
    link: Link,
    /// Never held while the server is asked.
    claims: Mutex<Claims>,
    /// What couldn't be written, by its key.
    unwritten: Mutex<HashMap<String, Unwritten>>,
    jobs: SyncSender<Job>,
}

/// What is done when there is time.
enum Job {
    /// This key is to be deleted, if that takes nothing from another gateway.
    Delete(String, Claim),
    /// Something couldn't be written, or the server doesn't answer.
    Mend,
}

/// A value that is to be written.
#[derive(Clone, PartialEq)]
struct Unwritten {
    value: Vec<u8>,
    claim: Claim,
    /// When it ends.
    until: Instant,
}

/// See [`super::open`].
pub(super) fn open(url: &str) -> Result<Arc<dyn Store>, String> {
    let client = Client::open(url).map_err(|e| e.to_string())?;
    let claims = Claims::new().map_err(|e| format!("can't tell this gateway from others: {e}"))?;
    let (jobs, waiting) = sync_channel(MAX_WAITING);
    let valkey = Arc::new(Valkey {
        link: Link::new(client),
        claims: Mutex::new(claims),
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
        match self.ask(|connection| connection.get::<_, Option<Vec<u8>>>(&key)) {
            Some(found) => Some(found.and_then(|stored| self.claims().reads(&key, &stored))),
            None if self.link.is_lost() => Some(None),
            None => None,
        }
    }

    fn find_record_of_another(&self, outward: Tuple) -> Option<Vec<u8>> {
        let found = self.find_record(outward)??;
        let other = self.claims().has_read(&record_key(outward));
        other.then_some(found)
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
        let mut all = self.link.ask_patiently(|connection| {
            let keys = connection.scan_match::<_, String>(&pattern)?;
            let keys: Vec<_> = keys.take(most).collect::<RedisResult<_>>()?;
            let slices = keys.chunks(SLICE);
            let kept: Vec<_> = slices
                .map(|slice| self.pinholes_of(slice, connection))
                .collect::<RedisResult<_>>()?;
            Ok(kept.concat())
        })?;
        let there: HashSet<_> = all.iter().map(|(pinhole, _)| pinhole.key()).collect();
        let waiting = self.unwritten_pinholes();
        all.extend(waiting.filter(|(pinhole, _)| !there.contains(&pinhole.key())));
        all.truncate(most);
        Some(all)
    }

    fn health(&self) -> StoreHealth {
        self.link.health(self.unwritten().len())
    }
}

impl Valkey {
    fn pinholes_of(
        &self,
        keys: &[String],
        connection: &mut Connection,
    ) -> RedisResult<Vec<(Pinhole, Duration)>> {
        let mut questions = Pipeline::new();
        for key in keys {
            questions.get(key).pttl(key);
        }
        let answers: Vec<(Option<Vec<u8>>, i64)> = questions.query(connection)?;
        let mut claims = self.claims();
        let kept = keys
            .iter()
            .zip(answers)
            .filter_map(|(key, (stored, left))| {
                let value = claims.reads(key, &stored?)?;
                let pinhole = postcard::from_bytes(&value).ok()?;
                let left = u64::try_from(left).ok().filter(|left| *left > 0)?;
                Some((pinhole, Duration::from_millis(left)))
            });
        Ok(kept.collect())
    }

    /// Those that couldn't be written yet.
    fn unwritten_pinholes(&self) -> impl Iterator<Item = (Pinhole, Duration)> + use<> {
        let holes = format!("{}hole:", prefix());
        let now = Instant::now();
        let all = self.unwritten();
        let waiting = all.iter().filter_map(|(key, unwritten)| {
            let (_, value) = Tag::split(&unwritten.value).filter(|_| key.starts_with(&holes))?;
            let left = unwritten.until.saturating_duration_since(now);
            Some((postcard::from_bytes(value).ok()?, left))
        });
        waiting.collect::<Vec<_>>().into_iter()
    }

    /// Deletes keys as they come, and tries to reach a server that doesn't answer, for as long as the
    /// process lives.
    fn sweep(&self, waiting: &Receiver<Job>) {
        let mut gone = HashMap::new();
        let mut next_try = Instant::now();
        loop {
            let idle = gone.is_empty() && self.unwritten().is_empty() && !self.link.is_silent();
            let first = match idle {
                true => waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => waiting.recv_timeout(PAUSE),
            };
            if let Err(RecvTimeoutError::Disconnected) = first {
                return;
            }
            let jobs = first.into_iter().chain(waiting.try_iter().take(SLICE));
            for job in jobs {
                match job {
                    Job::Delete(key, claim) if gone.len() < MAX_WAITING => {
                        gone.insert(key, claim);
                    }
                    _ => {}
                }
            }
            if self.link.is_silent() {
                if Instant::now() < next_try {
                    continue;
                }
                let mended = self.link.mend(|connection| self.write_again(connection));
                // One that goes on failing makes packets wait once in a pause.
                next_try = Instant::now() + PAUSE;
                if mended.is_none() {
                    continue;
                }
            }
            self.ask(|connection| delete(connection, &mut gone));
            if !self.unwritten().is_empty() {
                self.ask(|connection| self.write_again(connection));
            }
        }
    }

    /// Writes some of what couldn't be written, unless another gateway has written there since. Returns
    /// whether that was all. Nobody else writes meanwhile.
    fn write_again(&self, connection: &mut Connection) -> RedisResult<bool> {
        let now = Instant::now();
        self.unwritten()
            .retain(|_, unwritten| unwritten.until > now);
        let some: Vec<_> = {
            let all = self.unwritten();
            let some = all.iter().take(SLICE);
            some.map(|(key, unwritten)| (key.clone(), unwritten.clone()))
                .collect()
        };
        let keys: Vec<_> = some.iter().map(|(key, _)| key.as_str()).collect();
        let done = change(connection, &keys, |stored, changes| {
            for ((key, unwritten), stored) in some.iter().zip(stored) {
                let Unwritten {
                    value,
                    claim,
                    until,
                } = unwritten;
                if stored.as_ref().is_none_or(|stored| claim.covers(stored)) {
                    let left = millis(until.saturating_duration_since(now));
                    changes.pset_ex(key, value, left).ignore();
                }
            }
        })?;
        let mut all = self.unwritten();
        if done {
            for (key, unwritten) in some {
                if all.get(&key) == Some(&unwritten) {
                    all.remove(&key);
                }
            }
        }
        Ok(all.is_empty())
    }

    /// Writes a value that lasts for so long. Returns whether it is there.
    fn write(&self, key: String, value: &[u8], life: Duration) -> bool {
        let claim = self.claims().writes(&key);
        let value = claim.tag().put_before(value);
        let written = self.ask(|connection| {
            self.unwritten().remove(&key);
            connection.pset_ex::<_, _, ()>(&key, &value, millis(life))
        });
        if written.is_some() {
            return true;
        }
        let mut all = self.unwritten();
        if all.len() < MAX_WAITING || all.contains_key(&key) {
            let until = Instant::now() + life;
            let unwritten = Unwritten {
                value,
                claim,
                until,
            };
            all.insert(key, unwritten);
        }
        drop(all);
        self.needs_mending();
        false
    }

    fn drop_key(&self, key: String) {
        let claim = self.claims().gives_up(&key);
        self.unwritten().remove(&key);
        if self.jobs.try_send(Job::Delete(key, claim)).is_err() {
            log::debug!("the store {}: a key ends by itself later", self.link.name());
        }
    }

    /// Asks the server. `None`: it doesn't answer, which is told.
    fn ask<T>(&self, question: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Option<T> {
        let answer = self.link.ask(question);
        if answer.is_none() {
            self.needs_mending();
        }
        answer
    }

    /// Wakes the thread. If there is no room, it is awake.
    fn needs_mending(&self) {
        _ = self.jobs.try_send(Job::Mend);
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwritten(&self) -> MutexGuard<'_, HashMap<String, Unwritten>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes these keys, and takes them out of the list. What another gateway has written since stays.
fn delete(connection: &mut Connection, gone: &mut HashMap<String, Claim>) -> RedisResult<()> {
    let some: Vec<_> = gone.iter().take(SLICE).collect();
    let keys: Vec<_> = some.iter().map(|(key, _)| key.as_str()).collect();
    let done = change(connection, &keys, |stored, changes| {
        for ((key, claim), stored) in some.iter().zip(stored) {
            if stored.as_ref().is_some_and(|stored| claim.covers(stored)) {
                changes.del(key.as_str()).ignore();
            }
        }
    })?;
    if done {
        let keys: Vec<_> = some.into_iter().map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| {
            gone.remove(key);
        });
    }
    Ok(())
}

/// Looks at the values of keys, and makes changes, provided that nobody else has made any meanwhile:
/// returns whether that was so.
fn change(
    connection: &mut Connection,
    keys: &[&str],
    changes: impl FnOnce(&[Option<Vec<u8>>], &mut Pipeline),
) -> RedisResult<bool> {
    if keys.is_empty() {
        return Ok(true);
    }
    let mut look = Pipeline::new();
    look.cmd("WATCH").arg(keys).ignore();
    for key in keys {
        look.get(key);
    }
    let stored: Vec<Option<Vec<u8>>> = look.query(connection)?;
    let mut all = Pipeline::new();
    all.atomic();
    changes(&stored, &mut all);
    if all.is_empty() {
        redis::cmd("UNWATCH").exec(connection)?;
        return Ok(true);
    }
    let made: Option<()> = all.query(connection)?;
    Ok(made.is_some())
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
