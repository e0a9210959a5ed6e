//! The records of the last while, in memory, and those who follow them.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::record::Record;

/// How many records are kept.
const CAPACITY: usize = 2048;

/// A handle to the ring; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Ring(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    records: Mutex<VecDeque<Arc<Record>>>,
    grown: Condvar,
}

/// Where somebody who reads the ring is: the number of the next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(u64);

/// What came for a reader.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// How many records had gone before they were read.
    pub lost: u64,
    /// The records, oldest first.
    pub records: Vec<Arc<Record>>,
}

impl Ring {
    /// Adds records. The oldest ones make room.
    pub(super) fn add(&self, new: impl IntoIterator<Item = Record>) {
        let mut records = self.lock();
        let before = records.len();
        for record in new {
            if records.len() >= CAPACITY {
                records.pop_front();
            }
            records.push_back(Arc::new(record));
        }
        if records.len() != before || before == CAPACITY {
            self.0.grown.notify_all();
        }
    }

    /// All records that are kept, and where to go on.
    #[must_use]
    pub fn all(&self) -> (Vec<Arc<Record>>, Cursor) {
        let records = self.lock();
        let next = records.back().map_or(1, |last| last.seq + 1);
        (records.iter().cloned().collect(), Cursor(next))
    }

    /// Waits for records from `cursor` on, at most `most` of them, for at most `patience`.
    pub fn wait(&self, cursor: &mut Cursor, most: usize, patience: Duration) -> Batch {
        let deadline = Instant::now() + patience;
        let mut records = self.lock();
        loop {
            let next = records.back().map_or(1, |last| last.seq + 1);
            if next > cursor.0 {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Batch::default();
            }
            (records, _) = self
                .0
                .grown
                .wait_timeout(records, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let first = records.front().map_or(cursor.0, |first| first.seq);
        let lost = first.saturating_sub(cursor.0);
        let from = cursor.0.max(first);
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        let some: Vec<_> = records.iter().skip(skip).take(most).cloned().collect();
        cursor.0 = some.last().map_or(from, |last| last.seq + 1);
        Batch {
            lost,
            records: some,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Record>>> {
        self.0
            .records
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::What;
    use super::*;

    fn record(seq: u64) -> Record {
        Record {
            seq,
            time: jiff::Timestamp::UNIX_EPOCH,
            session: None,
            client: None,
            server: None,
            what: What::EventsMissed {},
        }
    }

    fn numbers(records: &[Arc<Record>]) -> Vec<u64> {
        records.iter().map(|record| record.seq).collect()
    }

    #[test]
    fn the_oldest_make_room_and_readers_are_told() {
        let ring = Ring::default();
        ring.add((1..=3).map(record));
        let (all, mut cursor) = ring.all();
        assert_eq!(numbers(&all), [1, 2, 3]);
        let none = ring.wait(&mut cursor, 10, Duration::ZERO);
        assert_eq!(none, Batch::default());
        let more = CAPACITY as u64 + 10;
        ring.add((4..4 + more).map(record));
        let batch = ring.wait(&mut cursor, 2, Duration::ZERO);
        assert_eq!((batch.lost, numbers(&batch.records)), (10, vec![14, 15]));
        let batch = ring.wait(&mut cursor, usize::MAX, Duration::ZERO);
        assert_eq!((batch.lost, batch.records.len()), (0, CAPACITY - 2));
        assert_eq!(ring.all().0.len(), CAPACITY);
    }

    #[test]
    fn a_reader_is_woken() {
        let ring = Ring::default();
        let (_, mut cursor) = ring.all();
        let writer = ring.clone();
        let thread = std::thread::spawn(move || writer.add([record(1)]));
        let batch = ring.wait(&mut cursor, 10, Duration::from_secs(10));
        assert_eq!(numbers(&batch.records), [1]);
        thread.join().unwrap();
    }
}
