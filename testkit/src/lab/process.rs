//! Programs with a time limit, and what they print.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// How often the exit of a program is looked for once it has closed its output.
const POLL: Duration = Duration::from_millis(3);

/// A program that runs in a process group of its own, killed when this is dropped.
pub struct Process {
    what: String,
    child: Child,
    output: Arc<Output>,
    reaped: bool,
}

/// What became of a program.
#[derive(Debug)]
pub struct Finished {
    /// The program and its arguments.
    pub what: String,
    /// `None` if the time limit ended it.
    pub status: Option<ExitStatus>,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// Standard output and error, in the order in which they came.
    pub log: String,
}

impl Finished {
    /// Whether it ended by itself, with exit code 0.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Itself if it succeeded.
    ///
    /// # Panics
    /// If it failed, with all that it printed.
    #[track_caller]
    pub fn must(self) -> Self {
        assert!(self.ok(), "{self}");
        self
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            None => write!(f, "`{}` was still running at its time limit", self.what)?,
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "`{}` ended with code {code}", self.what)?,
                (None, signal) => write!(f, "`{}` ended by signal {signal:?}", self.what)?,
            },
        }
        let log = self.log.trim_end();
        if let Some(last) = log.lines().next_back() {
            write!(f, "; at last it said: {last}\nAll that it said:\n{log}")?;
        }
        Ok(())
    }
}

impl Process {
    /// Starts a program without input.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn spawn(command: Command) -> Self {
        Self::spawn_with_input(command, "")
    }

    /// Starts a program that reads `input` from its standard input.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn spawn_with_input(mut command: Command, input: &str) -> Self {
        let what = describe(&command);
        command.stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("`{what}` can't be started: {error}"));
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_owned();
            // A program may well end without reading all of it.
            std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        }
        let output = Arc::new(Output::default());
        if let Some(stdout) = child.stdout.take() {
            Output::follow(&output, stdout, true);
        }
        if let Some(stderr) = child.stderr.take() {
            Output::follow(&output, stderr, false);
        }
        Self {
            what,
            child,
            output,
            reaped: false,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard output and error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.output.state.lock().unwrap().log).into_owned()
    }

    /// Whether it has not ended yet.
    pub fn running(&mut self) -> bool {
        !self.reaped && matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until its standard output contains this word (`ready`, but not `already`); false if it
    /// ended or time ran out first.
    pub fn wait_for(&self, word: &str, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.output.state.lock().unwrap();
        loop {
            let stdout = String::from_utf8_lossy(&state.stdout);
            if stdout
                .split(|c: char| !c.is_alphanumeric())
                .any(|w| w == word)
            {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.open == 0 {
                return false;
            }
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Sends a signal to the program itself (not to its children).
    pub fn signal(&self, signal: Signal) {
        if !self.reaped {
            let _ = kill(self.group(), signal);
        }
    }

    /// Waits for its end; kills the whole group at the limit.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = self.wait(limit);
        if status.is_none() {
            self.kill();
        }
        // A child that outlives it may hold the pipes open: don't wait for that long.
        self.output
            .wait_closed(Instant::now() + Duration::from_millis(200));
        let state = self.output.state.lock().unwrap();
        Finished {
            what: self.what.clone(),
            status,
            stdout: String::from_utf8_lossy(&state.stdout).into_owned(),
            log: String::from_utf8_lossy(&state.log).into_owned(),
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        self.output.wait_closed(deadline);
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.reaped = true;
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    fn kill(&mut self) {
        if !self.reaped {
            let _ = killpg(self.group(), Signal::SIGKILL);
            drop(self.child.wait());
            self.reaped = true;
        }
    }

    fn group(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end.
pub fn run(command: Command, limit: Duration) -> Finished {
    Process::spawn(command).finish(limit)
}

/// Makes sure that a program is there.
///
/// # Panics
/// If it isn't, with how to get it.
pub fn require(program: &str) {
    let found = PATH
        .split(':')
        .any(|dir| std::path::Path::new(dir).join(program).exists());
    assert!(
        found,
        "`{program}` is missing: run ./scripts/test, which installs what the tests need"
    );
}

/// Where programs are looked for: the system's own, whatever else the user has.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[derive(Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stdout: Vec<u8>,
    log: Vec<u8>,
    open: u8,
}

impl Output {
    fn follow(this: &Arc<Self>, mut from: impl Read + Send + 'static, stdout: bool) {
        this.state.lock().unwrap().open += 1;
        let this = Arc::clone(this);
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            loop {
                let n = from.read(&mut buffer).unwrap_or(0);
                let mut state = this.state.lock().unwrap();
                if n == 0 {
                    state.open -= 1;
                } else {
                    if stdout {
                        state.stdout.extend_from_slice(&buffer[..n]);
                    }
                    state.log.extend_from_slice(&buffer[..n]);
                }
                this.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
    }

    fn wait_closed(&self, deadline: Instant) {
        let mut state = self.state.lock().unwrap();
        while state.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}
