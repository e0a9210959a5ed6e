//! Removes the rules that a daemon left for a successor, if none comes.
//!
//! It is a process of its own, since the daemon has ended by then: `ftpalg rules remove --after SECS`,
//! an option that isn't shown. Sessions that only the daemon could go on with are ended then. If a daemon has the [lock](super::lock) when the time is over, it does
//! nothing.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::unistd::setsid;

use super::config::StateChoice;

/// This program, even if its file was replaced since.
const SELF: &str = "/proc/self/exe";
/// The name that the kernel gives to a process started in that way.
pub(super) const NAME: &str = "exe";

/// Starts a guardian that removes the rules after this time.
pub(super) fn start(after: Duration, state: &StateChoice) -> io::Result<()> {
    // It must hold neither the lock nor the queues.
    close_fds::set_fds_cloexec(3, &[]);
    let seconds = after.as_secs().to_string();
    // It is never waited for: this process ends first, and another one inherits it.
    Command::new(SELF)
        .arg0("ftpalg")
        .args(["rules", "remove", "--after", &seconds, "--state"])
        .arg(state.directory().unwrap_or(Path::new("none")))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map(drop)
}

/// What the guardian does first: it leaves the daemon's session, so that nothing meant for that one
/// ends it, and waits.
pub fn wait(time: Duration) {
    if let Err(e) = setsid() {
        log::debug!("setsid: {e}");
    }
    thread::sleep(time);
}
