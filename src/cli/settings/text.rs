//! Reads a configuration file's text: bounded in size and in time, whatever the name leads to.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::stat::makedev;

/// The most that is read, in bytes.
const MAX: usize = 1 << 20;
/// How long a pipe may take until its end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The text of a file or of a pipe (`<(…)` in a shell, a FIFO); of the standard input for `-`.
///
/// # Errors
/// In a few words, why there is none.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let file = match path.to_str() {
        Some("-") => io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map(File::from)
            .map_err(|e| e.to_string())?,
        // Checked before it is opened: with some devices, opening alone has an effect.
        _ => std::fs::metadata(path)
            .map_err(|e| e.to_string())
            .and_then(|metadata| check(&metadata))
            .and_then(|()| open(path).map_err(|e| e.to_string()))?,
    };
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    check(&metadata)?;
    let bytes = drain(&file, Instant::now() + PATIENCE)?;
    String::from_utf8(bytes).map_err(|e| {
        if matches!(e.as_bytes(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
            return "it is text in UTF-16; save it as UTF-8".to_owned();
        }
        let valid = e.as_bytes().get(..e.utf8_error().valid_up_to());
        let feeds = valid.unwrap_or_default().iter().filter(|b| **b == b'\n');
        format!(
            "line {} isn't text in UTF-8; save it as UTF-8",
            feeds.count() + 1
        )
    })
}

/// The text of a file, as [`read`] gives it. Nothing that is empty the second time is read: a pipe or
/// the standard input.
///
/// # Errors
/// In a few words, why there is none.
pub(super) fn read_again(path: &Path) -> Result<String, String> {
    let metadata = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if path.as_os_str() == "-" || metadata.file_type().is_fifo() {
        return Err("it can be read only once".to_owned());
    }
    read(path)
}

/// Opens a file. Doesn't wait for a FIFO's writer, and doesn't make a terminal the controlling one.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}

/// Whether a file of this kind can be read as text.
fn check(metadata: &Metadata) -> Result<(), String> {
    let kind: FileType = metadata.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_fifo() || is_null(metadata) => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(format!("it is {what}"))
}

/// Whether it is `/dev/null`, which some use as an empty file.
fn is_null(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == makedev(1, 3)
}

fn drain(mut file: &File, deadline: Instant) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Without a writer, reading a FIFO returns its end at once; polling waits for a writer.
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        let timeout = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) => return Err(format!("it doesn't end within {} s", PATIENCE.as_secs())),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.to_string()),
        }
        match file.read(&mut piece) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(piece.get(..n).unwrap_or_default()),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(e) => return Err(e.to_string()),
        }
        if bytes.len() > MAX {
            return Err(format!("it is larger than {MAX} bytes"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::thread;

    use nix::sys::stat::Mode;
    use nix::unistd::{mkfifo, pipe};

    use super::*;

    #[test]
    fn files_and_pipes_are_read_up_to_a_bound() {
        let path = std::env::temp_dir().join(format!("ftpalg-text-{}", std::process::id()));
        fs::write(&path, "x".repeat(MAX)).unwrap();
        assert_eq!(read(&path).unwrap().len(), MAX);
        fs::write(&path, "x".repeat(MAX + 1)).unwrap();
        assert!(read(&path).unwrap_err().contains("larger than 1048576"));
        fs::write(&path, b"port = 21\n# \xe4\n").unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .contains("line 2 isn't text in UTF-8")
        );
        fs::write(&path, b"\xff\xfep\0").unwrap();
        assert!(read(&path).unwrap_err().contains("UTF-16"));
        fs::remove_file(&path).unwrap();

        mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert!(read_again(&path).unwrap_err().contains("only once"));
        let fifo = path.clone();
        let writer = thread::spawn(move || fs::write(fifo, "port = 21"));
        assert_eq!(read(&path), Ok("port = 21".into()));
        writer.join().unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(read(Path::new("/dev/null")), Ok(String::new()));
    }

    #[test]
    fn what_has_no_text_is_named() {
        for (path, what) in [
            ("/", "a directory"),
            ("/dev/zero", "a device"),
            ("/dev/full", "a device"),
            ("/nonexistent", "No such file"),
        ] {
            let why = read(Path::new(path)).unwrap_err();
            assert!(why.contains(what), "{path}: {why}");
        }
    }

    #[test]
    fn a_pipe_that_nobody_closes_is_given_up() {
        let (reader, writer) = pipe().unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"port").unwrap();
        let deadline = Instant::now() + Duration::from_millis(50);
        let why = drain(&File::from(reader), deadline).unwrap_err();
        assert!(why.contains("doesn't end"), "{why}");
        // One without end is given up at the bound.
        let (reader, writer) = pipe().unwrap();
        let mut writer = File::from(writer);
        let endless = thread::spawn(move || while writer.write_all(&[b'#'; 4096]).is_ok() {});
        let why = drain(&File::from(reader), Instant::now() + PATIENCE).unwrap_err();
        assert!(why.contains("larger"), "{why}");
        endless.join().unwrap();
    }
}
