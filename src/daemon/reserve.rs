//! Reserves the file descriptors and processes that the removal of the rules needs.
//!
//! The number of descriptors that the daemon opens is bounded. So it checks the limit once, at its
//! start, and raises it if need be. But somebody may lower the limit later (`prlimit`), and other
//! processes of the user or the control group may use up the number of processes. With the reserve,
//! the rules can be removed all the same.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::control::{MAX_CLIENTS, MAX_FOLLOWERS, MAX_WAITING};

/// Descriptors for all but queues, clients and the reserve: what is always open, what looking at the
/// rules needs, and room for libraries (looking up names) and for inherited ones.
const BASE: u64 = 64;
/// Descriptors that removing rules and pinholes needs: a tool with its three pipes, and sockets.
const RESERVE: usize = 16;

/// How many tools run at a time: one for the rules, one for pinholes. A thread counts as a process.
const TOOLS: usize = 2;
/// The stack of a thread that does nothing, in bytes.
const STACK: usize = 64 * 1024;

/// What is reserved.
#[derive(Debug)]
pub(super) struct Reserve {
    /// The lowest free ones: they stay below a limit that somebody lowers later.
    descriptors: Vec<OwnedFd>,
    /// Threads that wait for their senders to be dropped.
    threads: Vec<(Sender<()>, JoinHandle<()>)>,
}

impl Reserve {
    /// Makes sure that the limit allows as many descriptors as a daemon with `queues` queues needs, and
    /// `more` of them, and reserves some. Call it before anything is opened.
    ///
    /// # Errors
    /// One line, if the limit is too low and can't be raised.
    pub(super) fn take(queues: u16, more: usize) -> Result<Self, String> {
        let most = MAX_CLIENTS + MAX_FOLLOWERS + MAX_WAITING + RESERVE + more;
        let clients = u64::try_from(most).unwrap_or(u64::MAX);
        let needed = clients.saturating_add(BASE).saturating_add(queues.into());
        // Where the limit can't be read, opening will fail if it is too low.
        if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
            && soft < needed
            && (hard < needed || setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_err())
        {
            return Err(format!(
                "{needed} file descriptors are needed, and the limit is {}; raise it \
                 (`ulimit -n {needed}`, LimitNOFILE= in a systemd unit)",
                soft.min(hard)
            ));
        }
        let kept: io::Result<Vec<_>> = (0..RESERVE)
            .map(|_| io::stderr().as_fd().try_clone_to_owned())
            .collect();
        let descriptors = kept.map_err(|e| {
            format!(
                "no file descriptors can be kept back ({e}); raise the limit (`ulimit -n {needed}`)"
            )
        })?;
        Ok(Self {
            descriptors,
            threads: Vec::new(),
        })
    }

    /// Reserves processes for tools as well, as threads. Call it when signals are blocked.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(super) fn park(&mut self) -> io::Result<()> {
        for _ in 0..TOOLS {
            let (sender, wait) = mpsc::channel();
            let thread = thread::Builder::new()
                .name("reserve".into())
                .stack_size(STACK)
                // It ends when the sender does.
                .spawn(move || _ = wait.recv())?;
            self.threads.push((sender, thread));
        }
        Ok(())
    }

    /// Frees all of it, so that removing the rules can use it.
    pub(super) fn give_back(&mut self) {
        self.descriptors.clear();
        for (sender, thread) in self.threads.drain(..) {
            drop(sender);
            // It can't have panicked.
            let _ = thread.join();
        }
    }
}
