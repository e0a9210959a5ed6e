//! Log lines on the standard error, which nobody may be reading: a line is lost rather than waited for.
//!
//! If the standard error is the journal, each line begins with its priority (`<4>`, see sd-daemon(3)), and
//! the journal adds the time. Elsewhere it begins with the time.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use log::Level;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::fstat;

/// How long a line waits for a reader who was there before, in milliseconds. Then none waits until there
/// is room again.
const PATIENCE: u16 = 200;
/// The longest line, in bytes. A pipe that is ready to be written takes as much (POSIX: `PIPE_BUF`).
const LONGEST: usize = 4096;
/// What stands behind the time or the priority.
const TAG: &[u8] = b"ftpalg: ";

/// Shows log lines as `FTPALG_LOG` (or `RUST_LOG`) says; warnings and worse where neither does.
///
/// # Errors
/// What is wrong with `FTPALG_LOG`, and how to mend it. `RUST_LOG` is for other programs, too: what is
/// wrong there is left out.
pub(super) fn start() -> Result<(), String> {
    let chosen = |name| std::env::var_os(name).filter(|text| !text.is_empty());
    let filter = match (chosen("FTPALG_LOG"), chosen("RUST_LOG")) {
        (Some(own), _) => check(&own.to_string_lossy())?,
        (None, Some(others)) => others.to_string_lossy().into_owned(),
        (None, None) => "warn".into(),
    };
    let journal = is_journal();
    env_logger::Builder::new()
        .parse_filters(&filter)
        .format(move |to, record| {
            let level = record.level();
            match journal {
                true => write!(to, "{}", priority(level))?,
                false => write!(to, "{} ", to.timestamp())?,
            }
            let name = level.as_str().to_ascii_lowercase();
            writeln!(to, "ftpalg: {name}: {}", record.args())
        })
        .target(env_logger::Target::Pipe(Box::new(Unwaiting::new(
            io::stderr(),
        ))))
        .init();
    Ok(())
}

/// A filter that means something. A word that is no level would be taken for a module, and nothing
/// would be shown.
fn check(text: &str) -> Result<String, String> {
    let wrong = |what: &str| {
        Err(format!(
            "FTPALG_LOG={text:?}: {what} is no level; write error, warn, info, debug, trace or off, \
             or with a module like ftpalg::daemon=debug"
        ))
    };
    let mut levels = 0;
    for part in text.split(',').map(str::trim) {
        let (module, level) = part.split_once('=').unwrap_or(("ftpalg", part));
        let ours = module == "ftpalg" || module.starts_with("ftpalg::");
        if !ours || level.parse::<log::LevelFilter>().is_err() {
            return wrong(&format!("{part:?}"));
        }
        levels += 1;
    }
    match levels {
        0 => wrong("nothing"),
        _ => Ok(text.to_owned()),
    }
}

/// What an error line that isn't logged begins with: its priority in the journal, else nothing.
pub(super) fn error_prefix() -> &'static str {
    match is_journal() {
        true => priority(Level::Error),
        false => "",
    }
}

/// The priority of syslog as the journal reads it, from the beginning of a line.
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Whether the standard error goes to the journal. The service manager names its device and inode; it may
/// have been redirected since.
fn is_journal() -> bool {
    let named = std::env::var("JOURNAL_STREAM").ok();
    named.is_some_and(|name| is_stream(io::stderr().as_fd(), &name))
}

/// Whether a descriptor is what `DEVICE:INODE` names.
fn is_stream(fd: BorrowedFd<'_>, name: &str) -> bool {
    let (Some((device, inode)), Ok(stat)) = (name.split_once(':'), fstat(fd)) else {
        return false;
    };
    device.parse() == Ok(stat.st_dev) && inode.parse() == Ok(stat.st_ino)
}

/// Writes whole lines, and loses those that would have to wait.
struct Unwaiting<W> {
    to: W,
    /// Lines that were lost since one was written.
    lost: u64,
}

impl<W: Write + AsFd> Unwaiting<W> {
    fn new(to: W) -> Self {
        Self { to, lost: 0 }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let patience = match self.lost {
            0 => PollTimeout::from(PATIENCE),
            _ => PollTimeout::ZERO,
        };
        if !has_room(self.to.as_fd(), patience) {
            self.lost = self.lost.saturating_add(1);
            return Ok(());
        }
        let lost = std::mem::take(&mut self.lost);
        if lost > 0 {
            // It begins as the line after it does: with a priority, or with the time.
            let start = line.windows(TAG.len()).position(|part| part == TAG);
            let start = line.get(..start.unwrap_or(0)).unwrap_or_default();
            self.to.write_all(match start.first() {
                Some(b'<') => priority(Level::Warn).as_bytes(),
                _ => start,
            })?;
            writeln!(
                self.to,
                "ftpalg: warn: {lost} log lines were lost: nobody read the standard error"
            )?;
            if !has_room(self.to.as_fd(), PollTimeout::ZERO) {
                self.lost = 1;
                return Ok(());
            }
        }
        match line.get(..LONGEST - 1) {
            Some(start) if line.len() > LONGEST => {
                self.to.write_all(start)?;
                self.to.write_all(b"\n")
            }
            _ => self.to.write_all(line),
        }
    }
}

impl<W: Write + AsFd> Write for Unwaiting<W> {
    /// Takes a line as a whole, as `env_logger` gives it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line can be written without waiting. If that can't be told, it is tried.
fn has_room(to: BorrowedFd<'_>, patience: PollTimeout) -> bool {
    let mut fds = [PollFd::new(to, PollFlags::POLLOUT)];
    loop {
        match poll(&mut fds, patience) {
            Ok(ready) => return ready > 0,
            Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn filters_are_levels() {
        for good in [
            "warn",
            "DEBUG",
            "off",
            "ftpalg=info",
            "warn,ftpalg::daemon=debug",
            "warn, info",
        ] {
            assert_eq!(check(good), Ok(good.to_owned()));
        }
        for bad in [
            "debgu",
            "ftpalg=loud",
            "loud=debug",
            "warn,",
            "a=b=c",
            "ftpalg",
            "warn/x",
            "ftpalgx=info",
            "1",
        ] {
            let why = check(bad).unwrap_err();
            assert!(why.contains("; write error, warn"), "{bad}: {why}");
        }
    }

    #[test]
    fn a_full_pipe_costs_lines_and_says_how_many() {
        let (reader, writer) = pipe().unwrap();
        let (mut reader, mut log) = (File::from(reader), Unwaiting::new(File::from(writer)));
        let long = [b'x'; 2 * LONGEST];
        while log.lost < 3 {
            assert_eq!(log.write(&long).unwrap(), long.len());
        }
        let mut full = vec![0; 64 * 1024];
        reader.read_exact(&mut full).unwrap();
        assert!(full.split(|b| *b == b'\n').all(|line| line.len() < LONGEST));
        log.write_all(b"<6>ftpalg: info: again\n").unwrap();
        drop(log);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let told = "<4>ftpalg: warn: 3 log lines were lost: nobody read the standard error\n\
                    <6>ftpalg: info: again\n";
        assert_eq!(rest, told);
    }

    #[test]
    fn the_journal_is_known_by_its_device_and_inode() {
        let (reader, writer) = pipe().unwrap();
        let stat = fstat(&writer).unwrap();
        let name = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(writer.as_fd(), &name));
        let other = File::open("/dev/null").unwrap();
        for name in [
            "",
            ":",
            "8:1:2",
            &format!("{}:{}", stat.st_ino, stat.st_dev),
        ] {
            assert!(!is_stream(writer.as_fd(), name), "{name}");
        }
        assert!(!is_stream(other.as_fd(), &name));
        drop(reader);
    }
}
