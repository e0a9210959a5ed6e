//! Takes the place of the daemon that runs in this network namespace.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::queue::kernel;

use super::StartError;
use super::advertised::Advertised;
use super::config::Config;
use super::control;
use super::lifetime::HAND_OVER;
use super::lock::{self, Lock, LockError};
use super::setup::{self, Steered};

/// How long the other daemon may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time between two attempts to take the lock.
const STEP: Duration = Duration::from_millis(5);

/// Takes the lock. If a daemon has it, asks that one to hand over, and waits until it has.
///
/// # Errors
/// If the daemon can't be asked or goes on, or if this one would fail to start. Then it isn't asked.
pub(super) fn lock(config: &Config) -> Result<Lock, StartError> {
    match Lock::take() {
        Err(LockError::Held) => {}
        done => return done.map_err(setup::explain),
    }
    // What fails here would fail later, when the other one has ended.
    drop(Advertised::find(&config.advertise)?);
    drop(Steered::prepare(config)?);
    let Some(pid) = holder() else {
        return Err(setup::explain(LockError::Held));
    };
    match kill(pid, HAND_OVER) {
        // It has just ended.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => {
            return Err(StartError::Host(format!(
                "the running ftpalg (pid {pid}) can't be asked to hand over: {e}; run this as the same user"
            )));
        }
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Lock::take_now() {
            Err(LockError::Held) if Instant::now() < deadline => thread::sleep(STEP),
            Err(LockError::Held) => {
                return Err(StartError::Host(format!(
                    "the running ftpalg (pid {pid}) doesn't hand over within {} s; stop it",
                    PATIENCE.as_secs()
                )));
            }
            done => {
                let lock = done.map_err(setup::explain)?;
                wait_for_end(pid, deadline);
                return Ok(lock);
            }
        }
    }
}

/// Waits until nothing is left of the process whose lock was freed: its queues, its socket and its nft
/// tables go with its last thread.
fn wait_for_end(pid: Pid, deadline: Instant) {
    while is_alive(pid) && Instant::now() < deadline {
        thread::sleep(STEP);
    }
}

/// Whether a thread of a process may still have open descriptors: a zombie has none.
fn is_alive(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    threads.flatten().any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // Behind the name, which is in parentheses and may have any character.
        let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
        state.is_some_and(|state| !state.starts_with(['Z', 'X']))
    })
}

/// The daemon that has the lock.
fn holder() -> Option<Pid> {
    let listens = control::holder().filter(|(_, uid)| control::trusted(*uid));
    let named = kernel::holder(lock::QUEUE).filter(|(_, name)| name == "ftpalg");
    let named = named.and_then(|(pid, _)| i32::try_from(pid).ok());
    let mut pids = named.into_iter().chain(listens.map(|(pid, _)| pid));
    // A number that the kernel shows may be of another process in this process's view.
    pids.find(|pid| *pid > 0 && is_here(*pid))
        .map(Pid::from_raw)
}

/// Whether a process is in this network namespace.
fn is_here(pid: i32) -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let own = of("thread-self");
    own.is_some() && of(&pid.to_string()) == own
}
