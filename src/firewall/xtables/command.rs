//! Runs a program to its end: no shell, bounded in time and in output.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// More than this much output of a program is an error: 64 MiB, some 500,000 rules.
const MAX_OUTPUT: usize = 64 << 20;

/// Why a program didn't do what it was started for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started or spoken to.
    #[error("{program}: {source}")]
    Io {
        /// The program's file name.
        program: String,
        /// The error.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program}: {message}")]
    Failed {
        /// The program's file name.
        program: String,
        /// The first line that it wrote to stderr, or its exit status.
        message: String,
    },
    /// It took too long and was killed.
    #[error(
        "{program}: no end after {limit:?}: killed (is another program holding the xtables lock?)"
    )]
    TimedOut {
        /// The program's file name.
        program: String,
        /// What it was given.
        limit: Duration,
    },
}

impl CommandError {
    /// The program's file name.
    #[must_use]
    pub fn program(&self) -> &str {
        match self {
            Self::Io { program, .. }
            | Self::Failed { program, .. }
            | Self::TimedOut { program, .. } => program,
        }
    }

    /// Whether a later run may succeed: the reason is momentary, not something that the host lacks.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Io { source, .. } => matches!(
                source.raw_os_error().map(Errno::from_raw),
                Some(Errno::EAGAIN | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
            ),
            Self::TimedOut { .. } => true,
            Self::Failed { .. } => false,
        }
    }

    /// What went wrong, without the program's name.
    #[must_use]
    pub fn message(&self) -> String {
        let whole = self.to_string();
        whole
            .strip_prefix(&format!("{}: ", self.program()))
            .map_or_else(|| whole.clone(), str::to_owned)
    }
}

/// Runs `program` with `input` on its stdin, in the calling thread's network namespace, and
/// returns what it wrote to stdout (invalid UTF-8 replaced).
///
/// The program gets its own process group, so that a Ctrl-C meant for us doesn't stop it halfway.
///
/// # Errors
/// It could not be started, ended with an error, or wasn't done within `limit`.
pub fn run(
    program: &Path,
    args: &[&str],
    input: &str,
    limit: Duration,
) -> Result<String, CommandError> {
    let deadline = Instant::now() + limit;
    let mut running = Running::start(program, args)?;
    let output = running.talk(input.as_bytes(), deadline, None);
    running.end(output, deadline, limit)
}

/// A program that was started. It is killed when this is dropped, if it hasn't ended by then.
#[derive(Debug)]
pub(super) struct Running {
    /// The program's file name.
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
}

impl Running {
    /// Starts a program in the calling thread's network namespace.
    pub(super) fn start(program: &Path, args: &[&str]) -> Result<Self, CommandError> {
        let name = program
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let io_error = |source| CommandError::Io {
            program: name.clone(),
            source,
        };
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(io_error)?;
        let running = Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child,
            name: name.clone(),
        };
        running.set_nonblocking().map_err(io_error)?;
        Ok(running)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        let pipes = [
            self.stdin.as_ref().map(AsFd::as_fd),
            self.stdout.as_ref().map(AsFd::as_fd),
            self.stderr.as_ref().map(AsFd::as_fd),
        ];
        for pipe in pipes.into_iter().flatten() {
            // A pipe end that was just made has no other status flags.
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    /// Whether it hasn't ended yet.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Why a program that should have gone on ended; it is killed if it hasn't. `output`: what
    /// [`talk`](Self::talk) returned.
    pub(super) fn failure(
        self,
        output: io::Result<ToolOutput>,
        deadline: Instant,
        limit: Duration,
    ) -> CommandError {
        let program = self.name.clone();
        let ended = self.end(output, deadline, limit);
        ended.err().unwrap_or_else(|| CommandError::Io {
            program,
            source: io::ErrorKind::UnexpectedEof.into(),
        })
    }

    #[cfg(test)]
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    #[cfg(test)]
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for the end of a program that has closed its output: what it wrote to stdout, or why it
    /// failed. `output`: what [`talk`](Self::talk) returned.
    pub(super) fn end(
        mut self,
        output: io::Result<ToolOutput>,
        deadline: Instant,
        limit: Duration,
    ) -> Result<String, CommandError> {
        let ended = output
            .and_then(|output| wait(&mut self.child, deadline).map(|status| (output, status)));
        let program = self.name.clone();
        let (output, status) = match ended {
            Ok(ended) => ended,
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(CommandError::TimedOut { program, limit });
            }
            Err(source) => return Err(CommandError::Io { program, source }),
        };
        if status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(CommandError::Failed {
            message: complaint(&output.stderr, &program).unwrap_or_else(|| status.to_string()),
            program,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the program has ended, and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program has written.
#[derive(Debug, Default)]
pub(super) struct ToolOutput {
    pub(super) stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Whether a program that goes on has written all that is waited for.
pub(super) type IsAll<'a> = &'a dyn Fn(&ToolOutput) -> bool;

impl Running {
    /// Feeds stdin and drains stdout and stderr: until the program closes both, or until there `is_all`
    /// that is waited for. In the second case, stdin stays open.
    pub(super) fn talk(
        &mut self,
        mut input: &[u8],
        deadline: Instant,
        is_all: Option<IsAll<'_>>,
    ) -> io::Result<ToolOutput> {
        let Self {
            stdin,
            stdout,
            stderr,
            ..
        } = self;
        let mut output = ToolOutput::default();
        loop {
            if let Some(pipe) = stdin {
                match pipe.write(input) {
                    Ok(n) => input = input.get(n..).unwrap_or_default(),
                    Err(e) if is_transient(&e) => {}
                    // It reads no further: its exit status says why.
                    Err(_) => input = &[],
                }
                if input.is_empty() && is_all.is_none() {
                    *stdin = None;
                }
            }
            drain(stdout, &mut output.stdout)?;
            drain(stderr, &mut output.stderr)?;
            let ended = stdout.is_none() && stderr.is_none();
            if ended || (input.is_empty() && is_all.is_some_and(|is_all| is_all(&output))) {
                return Ok(output);
            }
            let to_write = stdin.as_ref().filter(|_| !input.is_empty());
            let ends = [
                (to_write.map(AsFd::as_fd), PollFlags::POLLOUT),
                (stdout.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
                (stderr.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            ];
            let open = ends
                .into_iter()
                .filter_map(|(fd, events)| Some(PollFd::new(fd?, events)));
            let mut fds: Vec<_> = open.collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let millis = u16::try_from(left.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn is_transient(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Reads what is there; `pipe` becomes `None` at its end.
fn drain<R: Read>(pipe: &mut Option<R>, into: &mut Vec<u8>) -> io::Result<()> {
    let Some(reader) = pipe else { return Ok(()) };
    match reader.read_to_end(into) {
        Ok(_) => *pipe = None,
        Err(e) if is_transient(&e) => {}
        Err(e) => return Err(e),
    }
    if into.len() > MAX_OUTPUT {
        return Err(io::Error::other("wrote more than 64 MiB"));
    }
    Ok(())
}

/// Waits for the exit status of a program that has closed its output. Most have ended by then.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    let mut pause = Duration::from_micros(50);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// The first line of `stderr` that says something, without the tool's own name and version.
fn complaint(stderr: &[u8], program: &str) -> Option<String> {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#') && !l.starts_with("Another app is"));
    let first = lines.next()?;
    // `iptables-nft-restore v1.8.9 (nf_tables): what` and, broken, `…: ` with `what` below it.
    let stem = program.split('-').next().unwrap_or(program);
    let said = match first.split_once(": ") {
        Some((head, rest)) if head.starts_with(stem) => rest,
        _ if first.starts_with(stem) && first.ends_with(':') => "",
        _ => first,
    };
    let said = match said.trim() {
        "" => lines.next()?,
        said => said,
    };
    Some(said.chars().take(300).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(100);

    fn run_path(
        program: &str,
        args: &[&str],
        input: &str,
        limit: Duration,
    ) -> Result<String, CommandError> {
        run(Path::new(program), args, input, limit)
    }

    #[test]
    fn input_larger_than_a_pipe_comes_back_or_is_left_unread() {
        let input = "x".repeat(1 << 20);
        assert_eq!(run_path("/bin/cat", &[], &input, LONG).unwrap(), input);
        assert_eq!(run_path("/bin/true", &[], &input, LONG).unwrap(), "");
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let closes_its_output = ["-c", "exec >&- 2>&-; sleep 60"];
        for (program, args) in [("/bin/sleep", &["60"][..]), ("/bin/sh", &closes_its_output)] {
            let start = Instant::now();
            let e = run_path(program, args, "", SHORT).unwrap_err();
            assert!(matches!(e, CommandError::TimedOut { .. }), "{e}");
            assert!(start.elapsed() < LONG);
        }
    }

    #[test]
    fn failure_tells_the_first_line_of_stderr() {
        let talks = ["-c", "echo >&2; echo wrong >&2; echo more >&2; exit 3"];
        let e = run_path("/bin/sh", &talks, "", LONG).unwrap_err();
        assert_eq!(e.to_string(), "sh: wrong");
        assert_eq!(e.message(), "wrong");
        let e = run_path("/bin/false", &[], "", LONG).unwrap_err();
        assert_eq!(e.to_string(), "false: exit status: 1");
        let e = run_path("/nonexistent/tool", &[], "", LONG).unwrap_err();
        assert!(e.to_string().starts_with("tool: "), "{e}");
    }

    #[test]
    fn the_name_and_version_before_a_complaint_are_dropped() {
        let said = |s: &str| complaint(s.as_bytes(), "iptables-nft-restore");
        assert_eq!(
            said("iptables-nft-restore v1.8.9 (nf_tables): Chain 'X' does not exist\nError"),
            Some("Chain 'X' does not exist".into())
        );
        assert_eq!(
            said("iptables-nft-restore v1.8.9 (nf_tables): \nline 2: CHAIN_ADD failed"),
            Some("line 2: CHAIN_ADD failed".into())
        );
        assert_eq!(said("# Warning: x\n\n"), None);
    }
}
