//! What a successor must know of control connections, on disk: see [`crate::engine::gateway`].
//!
//! One file for each network namespace, on a file system in memory by default. Changes are appended,
//! and the file is written anew when most of it is out of date. A change is in the file when
//! [`Journal::keep`] returns. It isn't synchronised to a disk: connections don't outlive the kernel.
//!
//! The file holds addresses, and pieces of control connections in clear text: whatever of them is on
//! its way. Nobody else may read it.

mod format;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::unistd::Uid;

use crate::engine::Tuple;
use format::{Header, JournalEntry, Unusable};

/// The file is written anew when it is longer than this, and than four times what is kept.
const COMPACT: usize = 256 * 1024;
/// How long to wait before a file that couldn't be written is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// What is kept of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    /// How packets towards the inside name it, if they do otherwise.
    name: Option<Tuple>,
    record: Vec<u8>,
}

/// Why there can be no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The directory can't be made or used.
    #[error("can't use the directory {} ({source}); choose another one with --state DIR, or --state none", .place.display())]
    Directory {
        /// The directory.
        place: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// Somebody else could write to it.
    #[error("others may write to the directory {}; choose another one with --state DIR, or take their permission (chmod go-w)", .0.display())]
    Open(PathBuf),
}

/// The journal of this network namespace.
#[derive(Debug)]
pub struct Journal {
    state: Mutex<State>,
}

/// How a journal is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Health {
    /// Connections of which something is kept.
    pub records: usize,
    /// Whether what is to be kept can be written.
    pub works: bool,
    /// How often it couldn't.
    pub errors: u64,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    header: Header,
    /// `None`: it couldn't be written, or is to be written no more.
    file: Option<File>,
    /// The length of the file.
    length: usize,
    /// How long it may become before it is made smaller, since that failed before.
    patient: usize,
    /// What is kept, by the name that packets from the inside give it.
    live: HashMap<Tuple, Kept>,
    /// The names that packets towards the inside give, where they differ.
    names: HashMap<Tuple, Tuple>,
    /// The bytes in `live`.
    kept: usize,
    errors: u64,
    /// When the file is tried again.
    again: Option<Instant>,
    ended: bool,
}

impl Journal {
    /// Opens the journal of the calling thread's network namespace in a directory, which is made if
    /// it isn't there. What an earlier process kept there is kept on. Also says, in a line, why that
    /// can't be used, if it can't.
    ///
    /// # Errors
    /// If there can be none.
    pub fn open(directory: &Path) -> Result<(Self, Option<String>), JournalError> {
        let failed = unusable(directory);
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(failed)?;
        let about = fs::metadata(directory).map_err(failed)?;
        let own = about.uid() == Uid::effective().as_raw() || about.uid() == 0;
        if !own || about.mode() & 0o022 != 0 {
            return Err(JournalError::Open(directory.to_owned()));
        }
        let header = Header::here().map_err(failed)?;
        let path = path(directory, &header);
        let (live, note) = read_or_set_aside(&path, &header).map_err(failed)?;
        let mut state = State {
            path,
            header,
            file: None,
            length: 0,
            patient: 0,
            kept: live.values().map(|kept| kept.record.len()).sum(),
            names: named(&live),
            live,
            errors: 0,
            again: None,
            ended: false,
        };
        state.rewrite().map_err(failed)?;
        let journal = Self {
            state: Mutex::new(state),
        };
        Ok((journal, note))
    }

    /// Keeps a record in place of what was kept of the connection. Returns false if it isn't in the
    /// file. Then nothing of this connection is.
    pub fn keep(&self, outward: Tuple, name: Option<Tuple>, record: &[u8]) -> bool {
        let mut state = self.lock();
        let known = state.live.get(&outward);
        if state.file.is_some()
            && known.is_some_and(|kept| kept.record == record && kept.name == name)
        {
            return true;
        }
        state.forget(outward);
        let entry = JournalEntry {
            outward,
            name,
            record: Some(record),
        };
        let written = state.append(&entry);
        if written {
            if let Some(name) = name {
                state.names.insert(name, outward);
            }
            let record = record.to_vec();
            state.kept = state.kept.saturating_add(record.len());
            state.live.insert(outward, Kept { name, record });
        }
        written
    }

    /// Keeps nothing of a connection any more.
    pub fn drop_record(&self, outward: Tuple) {
        let mut state = self.lock();
        if state.forget(outward) {
            state.append(&JournalEntry::<&[u8]> {
                outward,
                name: None,
                record: None,
            });
        }
    }

    /// What is kept of a connection, by either of its names.
    #[must_use]
    pub fn find(&self, name: Tuple) -> Option<Vec<u8>> {
        let state = self.lock();
        if state.live.is_empty() {
            return None;
        }
        let outward = state.names.get(&name).unwrap_or(&name);
        state.live.get(outward).map(|kept| kept.record.clone())
    }

    /// Keeps only what is about a connection that there still is.
    pub fn retain(&self, exists: impl Fn(Tuple) -> bool) {
        let known: Vec<Tuple> = self.lock().live.keys().copied().collect();
        for outward in known.into_iter().filter(|outward| !exists(*outward)) {
            self.drop_record(outward);
        }
    }

    /// Keeps nothing any more of what was kept up to now.
    pub fn clear(&self) {
        self.retain(|_| false);
    }

    /// All that is kept.
    #[must_use]
    pub fn records(&self) -> Vec<Vec<u8>> {
        let state = self.lock();
        state
            .live
            .values()
            .map(|kept| kept.record.clone())
            .collect()
    }

    /// How it is doing.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = self.lock();
        Health {
            records: state.live.len(),
            works: state.file.is_some(),
            errors: state.errors,
        }
    }

    /// Removes the file. Nothing is kept from now on.
    pub fn remove(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.file = None;
        state.live.clear();
        state.names.clear();
        if let Err(e) = remove_if_there(&state.path) {
            log::warn!("the journal {} can't be removed: {e}", state.path.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets a connection in memory. Returns whether anything was kept of it.
    fn forget(&mut self, outward: Tuple) -> bool {
        let Some(gone) = self.live.remove(&outward) else {
            return false;
        };
        self.kept = self.kept.saturating_sub(gone.record.len());
        if let Some(name) = gone.name {
            self.names.remove(&name);
        }
        true
    }

    /// Appends a change. Returns false if it can't be written; then the file says nothing at all,
    /// since what it says is out of date.
    fn append<B: serde::Serialize>(&mut self, entry: &JournalEntry<B>) -> bool {
        if !self.is_writable() {
            return false;
        }
        let mut bytes = Vec::new();
        let framed = format::frame(entry, &mut bytes).map_err(io::Error::other);
        let written = framed.and_then(|()| {
            let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
            file.write_all(&bytes)
        });
        self.length = self.length.saturating_add(bytes.len());
        match written {
            Ok(()) => true,
            Err(e) => {
                self.suspend(&e);
                false
            }
        }
    }

    /// Whether the file can be appended to. Writes it anew if that is due.
    fn is_writable(&mut self) -> bool {
        let least = COMPACT.max(self.kept.saturating_mul(4)).max(self.patient);
        let bloated = self.length > least;
        let due = match self.again {
            Some(again) => Instant::now() >= again,
            None => self.file.is_none() || bloated,
        };
        if due && !self.ended {
            match self.rewrite() {
                Ok(()) if self.again.take().is_some() => {
                    log::warn!("the journal {} can be written again", self.path.display());
                }
                Ok(()) => {}
                // There is no room for a second file. The first one is right, and can be appended to.
                Err(e) if self.file.is_some() => {
                    log::debug!(
                        "the journal {} can't be made smaller: {e}",
                        self.path.display()
                    );
                    self.patient = self.length.saturating_mul(2);
                }
                Err(e) => self.suspend(&e),
            }
        }
        self.file.is_some()
    }

    /// Nothing can be written for now.
    fn suspend(&mut self, error: &io::Error) {
        self.errors = self.errors.saturating_add(1);
        if self.again.is_none() {
            log::warn!(
                "the journal {} can't be written ({error}): sessions whose numbers differ on the two sides \
                 won't outlive this process until it can",
                self.path.display()
            );
        }
        // What is in the file gets out of date now. This works even if the disk is full.
        let emptied = self.file.take().map(|file| file.set_len(0));
        if !matches!(emptied, Some(Ok(())))
            && let Err(e) = remove_if_there(&self.path)
        {
            log::error!("the journal {} can't be removed: {e}", self.path.display());
        }
        self.again = Some(Instant::now() + PAUSE);
    }

    /// Writes a new file with what is kept, in place of the old one.
    fn rewrite(&mut self) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(self.kept.saturating_mul(2).saturating_add(256));
        format::frame(&self.header, &mut bytes).map_err(io::Error::other)?;
        for (outward, kept) in &self.live {
            let entry = JournalEntry {
                outward: *outward,
                name: kept.name,
                record: Some(&kept.record),
            };
            format::frame(&entry, &mut bytes).map_err(io::Error::other)?;
        }
        let new = self.path.with_extension("new");
        let made = create(&new, &bytes);
        match made.and_then(|file| fs::rename(&new, &self.path).map(|()| file)) {
            Ok(file) => {
                self.length = bytes.len();
                self.patient = 0;
                self.file = Some(file);
                Ok(())
            }
            Err(e) => {
                _ = fs::remove_file(&new);
                Err(e)
            }
        }
    }
}

/// Takes what a process that is gone kept in a directory for the calling thread's network namespace:
/// nothing stays there. A journal that can't be used is left alone.
///
/// # Errors
/// If it can't be read or removed.
pub fn take(directory: &Path) -> Result<Vec<Vec<u8>>, JournalError> {
    let failed = unusable(directory);
    let header = Header::here().map_err(failed)?;
    let path = path(directory, &header);
    let Ok(live) = read(&path, &header).map_err(failed)? else {
        return Ok(Vec::new());
    };
    remove_if_there(&path).map_err(failed)?;
    Ok(live.into_values().map(|kept| kept.record).collect())
}

fn unusable(directory: &Path) -> impl Fn(io::Error) -> JournalError + Copy {
    |source| JournalError::Directory {
        place: directory.to_owned(),
        source,
    }
}

fn path(directory: &Path, header: &Header) -> PathBuf {
    directory.join(format!("journal-{}", header.network()))
}

/// Makes a file that nobody else may read, and to which more can be appended.
fn create(path: &Path, bytes: &[u8]) -> io::Result<File> {
    remove_if_there(path)?;
    let mut file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(bytes)?;
    Ok(file)
}

/// What an earlier process kept, or why that can't be used.
fn read(path: &Path, header: &Header) -> io::Result<Result<HashMap<Tuple, Kept>, Unusable>> {
    match fs::read(path) {
        Ok(bytes) => Ok(format::read(&bytes, header)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Ok(HashMap::new())),
        Err(e) => Err(e),
    }
}

/// The same. What can't be used gets another name, and a line says so.
fn read_or_set_aside(
    path: &Path,
    header: &Header,
) -> io::Result<(HashMap<Tuple, Kept>, Option<String>)> {
    let why = match read(path, header)? {
        Ok(live) => return Ok((live, None)),
        Err(why) => why,
    };
    let aside = path.with_extension("unusable");
    fs::rename(path, &aside)?;
    let note = format!(
        "the journal {} isn't used: {why}; it is {} now",
        path.display(),
        aside.display()
    );
    Ok((HashMap::new(), Some(note)))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// The connections by their other names.
fn named(live: &HashMap<Tuple, Kept>) -> HashMap<Tuple, Tuple> {
    let names = live.iter();
    names
        .filter_map(|(outward, kept)| Some((kept.name?, *outward)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new() -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("ftpalg-journal-{}-{number}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }

        fn open(&self) -> (Journal, Option<String>) {
            Journal::open(&self.0).unwrap()
        }

        fn file(&self) -> PathBuf {
            self.0
                .join(format!("journal-{}", Header::here().unwrap().network()))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    fn tuple(n: u16) -> Tuple {
        Tuple {
            src: SocketAddr::from(([10, 0, 0, 2], 21)),
            dst: SocketAddr::from(([192, 0, 2, 1], n)),
        }
    }

    /// A second file doesn't fit beside the first one.
    #[test]
    fn what_cannot_be_made_smaller_is_kept() {
        let place = Place::new();
        let (journal, _) = place.open();
        let beside = place.file().with_extension("new");
        fs::create_dir(&beside).unwrap();
        let keep = |times: usize| {
            for n in 0..times * COMPACT / 1000 {
                let record = [n as u8; 1000];
                assert!(journal.keep(tuple(n as u16 % 9), None, &record), "{n}");
            }
        };
        keep(3);
        let long = fs::metadata(place.file()).unwrap().len();
        assert!(long > 3 * COMPACT as u64 - 1000, "{long}");
        fs::remove_dir(&beside).unwrap();
        keep(2);
        assert!(fs::metadata(place.file()).unwrap().len() < long);
        drop(journal);
        assert_eq!(place.open().0.health().records, 9);
    }

    #[test]
    fn the_next_process_finds_what_was_kept_last() {
        let place = Place::new();
        let (journal, _) = place.open();
        assert!(journal.keep(tuple(1), Some(tuple(101)), b"old"));
        assert!(journal.keep(tuple(1), Some(tuple(102)), b"new"));
        assert!(journal.keep(tuple(2), None, b"two"));
        assert!(journal.keep(tuple(3), Some(tuple(103)), b"three"));
        journal.drop_record(tuple(3));
        drop(journal);
        for _ in 0..2 {
            let (journal, note) = place.open();
            assert_eq!(note, None);
            for name in [1, 102] {
                assert_eq!(journal.find(tuple(name)).as_deref(), Some(&b"new"[..]));
            }
            assert_eq!(journal.find(tuple(2)).as_deref(), Some(&b"two"[..]));
            for gone in [3, 101, 103, 4] {
                assert_eq!(journal.find(tuple(gone)), None, "{gone}");
            }
            assert_eq!(journal.health().records, 2);
        }
        let (journal, _) = place.open();
        journal.retain(|outward| outward == tuple(2));
        assert_eq!(journal.records(), [b"two"]);
        journal.remove();
        assert!(!place.file().exists());
        assert!(!journal.keep(tuple(1), None, b"late") && !place.file().exists());
        let kept = place.open().0.records();
        assert!(kept.is_empty());
    }

    #[test]
    fn nobody_else_reads_it() {
        let place = Place::new();
        let (journal, _) = place.open();
        assert!(journal.keep(tuple(1), None, b"x"));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&place.0), mode(&place.file())), (0o700, 0o600));
        drop(journal);
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        fs::set_permissions(&place.0, open).unwrap();
        let error = Journal::open(&place.0).unwrap_err().to_string();
        assert!(
            error.contains("others may write") && !error.contains('\n'),
            "{error}"
        );
    }

    #[test]
    fn it_stays_small() {
        let place = Place::new();
        let (journal, _) = place.open();
        for n in 0..20_000u32 {
            assert!(journal.keep(tuple((n % 7) as u16), None, &n.to_le_bytes().repeat(20)));
        }
        let length = fs::metadata(place.file()).unwrap().len();
        assert!(length <= (COMPACT + 1000) as u64, "{length}");
        drop(journal);
        assert_eq!(place.open().0.health().records, 7);
    }

    /// Its writer may be killed in the middle of a change: that one wasn't acted upon.
    #[test]
    fn cut_at_any_byte() {
        let place = Place::new();
        let (journal, _) = place.open();
        let start = fs::metadata(place.file()).unwrap().len() as usize;
        let mut ends = vec![start];
        for record in [&b"one"[..], b"two", b"three"] {
            assert!(journal.keep(tuple(1), None, record));
            ends.push(fs::metadata(place.file()).unwrap().len() as usize);
        }
        drop(journal);
        let whole = fs::read(place.file()).unwrap();
        let header = Header::here().unwrap();
        for cut in 0..=whole.len() {
            let read = format::read(&whole[..cut], &header);
            if cut > 0 && cut < start {
                assert_eq!(read, Err(format::Unusable::Other), "{cut}");
                continue;
            }
            let complete = ends.iter().filter(|end| **end <= cut).count();
            let expected = [None, None, Some("one"), Some("two"), Some("three")][complete];
            let live = read.unwrap();
            let record = live.get(&tuple(1)).map(|kept| kept.record.clone());
            assert_eq!(record.as_deref(), expected.map(str::as_bytes), "{cut}");
        }
    }

    #[test]
    fn damage_is_noticed_at_any_byte() {
        let place = Place::new();
        let (journal, _) = place.open();
        assert!(journal.keep(tuple(1), None, b"one"));
        assert!(journal.keep(tuple(1), None, b"two"));
        drop(journal);
        let whole = fs::read(place.file()).unwrap();
        let header = Header::here().unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert!(format::read(&damaged, &header).is_err(), "{at}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_set_aside() {
        let place = Place::new();
        drop(place.open());
        let header = Header::here().unwrap();
        let written = |change: fn(&mut serde_json::Value)| {
            let mut value = serde_json::to_value(&header).unwrap();
            change(&mut value);
            let header: Header = serde_json::from_value(value).unwrap();
            let mut bytes = Vec::new();
            format::frame(&header, &mut bytes).unwrap();
            bytes
        };
        let cases = [
            (b"#!/bin/sh\necho hello\n".to_vec(), "isn't a journal"),
            (written(|v| v["format"] = 99.into()), "another version"),
            (written(|v| v["boot"] = "x".into()), "last boot"),
            (
                written(|v| v["network"] = "net:[1]".into()),
                "another network namespace",
            ),
        ];
        for (bytes, why) in cases {
            fs::write(place.file(), &bytes).unwrap();
            let (journal, note) = place.open();
            let note = note.unwrap();
            assert!(note.contains(why) && !note.contains('\n'), "{note}");
            assert_eq!(
                fs::read(place.file().with_extension("unusable")).unwrap(),
                bytes
            );
            assert!(journal.keep(tuple(1), None, b"x"));
        }
    }
}
