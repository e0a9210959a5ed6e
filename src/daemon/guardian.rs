//! Removes the rules that a daemon left for a successor, if none comes.
//!
//! It is a process of its own, since the daemon has ended by then: `ftpalg rules remove --after SECS`,
//! with options that aren't shown. Sessions that only the daemon could go on with are ended then. Once
//! another daemon has had the [lock], the rules are that one's: the guardian ends, whatever becomes of
//! that daemon.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::setsid;

use super::config::StateChoice;
use super::lock;
use crate::queue::kernel;

/// This program, even if its file was replaced since.
const SELF: &str = "/proc/self/exe";
/// The name that the kernel gives to a process started in that way.
pub(super) const NAME: &str = "exe";

/// How often the guardian looks whether a successor has come: sooner than any is ended again.
const STEP: Duration = Duration::from_millis(20);

/// Starts a guardian that removes the rules after this time.
pub(super) fn start(after: Duration, state: &StateChoice) -> io::Result<()> {
    // It must hold neither the lock nor the queues.
    close_fds::set_fds_cloexec(3, &[]);
    let seconds = after.as_secs().to_string();
    // Nobody reads the one or writes the other. An empty root file system has no /dev/null.
    let (input, output) = io::pipe()?;
    // It is never waited for: this process ends first, and another one inherits it.
    Command::new(SELF)
        .arg0("ftpalg")
        .args(["rules", "remove", "--after", &seconds])
        .args(["--of", &std::process::id().to_string(), "--state"])
        .arg(state.directory().unwrap_or(Path::new("none")))
        .current_dir("/")
        .stdin(input)
        .stdout(output)
        .spawn()
        .map(drop)
}

/// What the guardian does first: it leaves the daemon's session, so that nothing meant for that one
/// ends it, and waits. Returns whether a successor of the daemon `of` has come.
pub fn wait(time: Duration, of: u32) -> bool {
    if let Err(e) = setsid() {
        log::debug!("setsid: {e}");
    }
    let deadline = Instant::now() + time;
    loop {
        let holder = kernel::holder(lock::QUEUE);
        // Guardians have the lock while they remove rules.
        if holder.is_some_and(|(pid, name)| pid != of && name != NAME) {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        thread::sleep(left.min(STEP));
    }
}
