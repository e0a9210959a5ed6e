//! A file of records, one line of JSON each, with a bound on its size.
//!
//! When it is full it becomes FILE.1, FILE.1 becomes FILE.2, and so on; the last one goes. If somebody
//! else moves the file away or removes it (logrotate), a new one is made. A file that can't be moved (it
//! is a mount of its own, say) grows: records matter more than the bound.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Who may read the file: its owner, and its group (names are in it).
const MODE: u32 = 0o640;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLimits {
    /// Bytes in a file (`--events-size`, in MiB).
    pub size: u64,
    /// How many files, the one that is written to included (`--events-files`).
    pub files: u32,
}

/// The file.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    limits: FileLimits,
    open: Option<Opened>,
    /// It was said that the file can't be moved.
    told: bool,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// Up to where it holds whole lines.
    len: u64,
    /// It is full beyond that. More than the limit if it couldn't be moved then.
    full_at: u64,
    /// Its device and inode.
    id: (u64, u64),
}

impl EventFile {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path, limits: FileLimits) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            limits,
            open: Some(Opened::at(path, limits.size)?),
            told: false,
        })
    }

    /// Writes whole lines. If that fails, none of them is in the file.
    pub(super) fn write(&mut self, lines: &str) -> io::Result<()> {
        self.follow()?;
        let added = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        let full = self.open.as_ref().is_some_and(|opened| {
            opened.len > 0 && opened.len.saturating_add(added) > opened.full_at
        });
        if full {
            self.make_room();
        }
        let opened = match &mut self.open {
            Some(opened) => opened,
            none => none.insert(Opened::at(&self.path, self.limits.size)?),
        };
        match opened.file.write_all(lines.as_bytes()) {
            Ok(()) => {
                opened.len = opened.len.saturating_add(added);
                Ok(())
            }
            Err(error) => {
                // The part of them that had room; if it can't be cut off, a reader skips it.
                let _ = opened.file.set_len(opened.len);
                Err(error)
            }
        }
    }

    /// Lets go of a file that isn't at its place any more.
    fn follow(&mut self) -> io::Result<()> {
        let there = match fs::metadata(&self.path) {
            Ok(there) => Some((there.dev(), there.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if self
            .open
            .as_ref()
            .is_some_and(|opened| there != Some(opened.id))
        {
            self.open = None;
        }
        if let Some(opened) = &mut self.open {
            // Somebody may have emptied it (`copytruncate`).
            let len = opened.file.metadata()?.len();
            if len < opened.len {
                opened.len = len;
                opened.full_at = self.limits.size;
            }
        }
        Ok(())
    }

    /// Moves the full file away. If that fails it is used on, and moved when as much again is in it: a try
    /// at each record would cost each of them some system calls.
    fn make_room(&mut self) {
        match self.rotate() {
            Ok(()) => {
                self.open = None;
                self.told = false;
            }
            Err(error) => {
                if let Some(opened) = &mut self.open {
                    opened.full_at = opened.len.saturating_add(self.limits.size);
                }
                if !std::mem::replace(&mut self.told, true) {
                    log::warn!(
                        "events: {} is full and can't be moved on ({error}), so it grows until it can be; \
                         name a file in a directory where ftpalg may rename files, and mount that one \
                         rather than the file",
                        self.path.display()
                    );
                }
            }
        }
    }

    /// Moves all files on by one.
    fn rotate(&self) -> io::Result<()> {
        let number = |n: u32| match n {
            0 => self.path.clone(),
            n => {
                let mut name = self.path.clone().into_os_string();
                name.push(format!(".{n}"));
                PathBuf::from(name)
            }
        };
        let unless_gone = |done: io::Result<()>| match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let last = self.limits.files.saturating_sub(1);
        if last == 0 {
            return unless_gone(fs::remove_file(&self.path));
        }
        // Only up to the first gap: where the file itself can't be moved, each try would else move the
        // old ones on until none is left.
        let is_gap = |n: &u32| fs::symlink_metadata(number(*n)).is_err();
        let gap = (1..last).find(is_gap).unwrap_or(last);
        (0..gap)
            .rev()
            .try_for_each(|n| unless_gone(fs::rename(number(n), number(n + 1))))
    }
}

impl Opened {
    fn at(path: &Path, full_at: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it isn't a regular file",
            ));
        }
        Ok(Self {
            file,
            len: meta.len(),
            full_at,
            id: (meta.dev(), meta.ino()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let place = std::env::temp_dir().join(format!("ftpalg-{name}-{}", std::process::id()));
            fs::create_dir_all(&place).unwrap();
            Self(place)
        }

        fn file(&self) -> PathBuf {
            self.0.join("events")
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap_or_default()
        }

        fn count(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const SMALL: FileLimits = FileLimits { size: 10, files: 3 };

    #[test]
    fn full_files_move_on_and_the_last_goes() {
        let place = Place::new("rotates");
        let mut file = EventFile::open(&place.file(), SMALL).unwrap();
        for n in 1..=6 {
            file.write(&format!("line{n}\n")).unwrap();
        }
        assert_eq!(place.read("events"), "line6\n");
        assert_eq!(place.read("events.1"), "line5\n");
        assert_eq!(place.read("events.2"), "line4\n");
        assert_eq!(place.count(), 3);
        // What is there counts at the next start.
        let mut file = EventFile::open(&place.file(), SMALL).unwrap();
        file.write("line7\n").unwrap();
        assert_eq!(place.read("events.1"), "line6\n");
        assert_eq!(place.read("events"), "line7\n");
        let one = FileLimits { size: 10, files: 1 };
        let mut file = EventFile::open(&place.file(), one).unwrap();
        file.write("line8\n").unwrap();
        assert_eq!(place.read("events"), "line8\n");
        assert_eq!(place.read("events.1"), "line6\n");
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_again() {
        let place = Place::new("moved");
        let mut file = EventFile::open(&place.file(), SMALL).unwrap();
        file.write("one\n").unwrap();
        fs::rename(place.file(), place.0.join("old")).unwrap();
        file.write("two\n").unwrap();
        assert_eq!(
            (place.read("old"), place.read("events")),
            ("one\n".into(), "two\n".into())
        );
        fs::remove_file(place.file()).unwrap();
        file.write("three\n").unwrap();
        assert_eq!(place.read("events"), "three\n");
        // Emptied where it is.
        File::create(place.file()).unwrap();
        file.write("four\n").unwrap();
        assert_eq!(place.read("events"), "four\n");
    }

    #[test]
    fn a_file_that_cannot_be_moved_is_written_on() {
        for files in [2, 3, 4] {
            let place = Place::new(&format!("stays-{files}"));
            for n in 1..files - 1 {
                fs::write(place.0.join(format!("events.{n}")), "old").unwrap();
            }
            let in_the_way = place.0.join(format!("events.{}", files - 1));
            fs::create_dir_all(in_the_way.join("full")).unwrap();
            let mut file = EventFile::open(&place.file(), FileLimits { size: 20, files }).unwrap();
            let lines = |from: u32, to: u32| -> String {
                (from..=to).map(|n| format!("line{n}\n")).collect()
            };
            let mut write = |n| file.write(&lines(n, n)).map(|()| file.told);
            for n in 1..=3 {
                assert!(!write(n).unwrap());
            }
            assert!(write(4).unwrap(), "it is full, and stays where it is");
            assert_eq!(place.read("events"), lines(1, 4));
            // That is tried again, but not with each record.
            fs::remove_dir_all(&in_the_way).unwrap();
            assert!(write(5).unwrap() && write(6).unwrap());
            assert_eq!(place.read("events"), lines(1, 6));
            assert!(!write(7).unwrap());
            assert_eq!(place.read("events"), lines(7, 7));
            assert_eq!(place.read("events.1"), lines(1, 6));
            // The bound is the old one again.
            for n in 8..=9 {
                write(n).unwrap();
            }
            write(0).unwrap();
            assert_eq!(place.read("events"), lines(0, 0));
        }
    }

    #[test]
    fn what_cannot_be_moved_pushes_no_old_ones_out() {
        let place = Place::new("gap");
        for name in ["events", "events.1", "events.2"] {
            fs::write(place.0.join(name), name).unwrap();
        }
        let four = FileLimits { size: 10, files: 4 };
        let mut file = EventFile::open(&place.file(), four).unwrap();
        fs::remove_file(place.0.join("events.1")).unwrap();
        file.write("next\n").unwrap();
        assert_eq!(place.read("events.1"), "events");
        assert_eq!(place.read("events.2"), "events.2");
    }

    #[test]
    fn a_full_disk_leaves_whole_lines() {
        let full = Path::new("/dev/full");
        let error = EventFile::open(full, SMALL).unwrap_err();
        assert!(error.to_string().contains("regular file"), "{error}");
        // The file system has no room beyond the file's limit.
        let place = Place::new("fails");
        let mut file = EventFile::open(&place.file(), SMALL).unwrap();
        file.write("one\n").unwrap();
        fs::remove_dir_all(&place.0).unwrap();
        assert!(file.write("two\n").is_err(), "there is no directory");
        fs::create_dir_all(&place.0).unwrap();
        file.write("three\n").unwrap();
        assert_eq!(place.read("events"), "three\n");
    }
}
