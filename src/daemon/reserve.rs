//! Enough file descriptors from the start, and what removing the rules takes kept back for the end.
//!
//! All that the daemon opens while it runs is bounded, so one look at the limit is enough, unless
//! somebody lowers it later (`prlimit`). How many processes there may be isn't the daemon's alone to
//! know: others of the user or the control group have their part of them. In any case the rules can be
//! removed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::control::{MAX_CLIENTS, MAX_WAITING};

/// What is open besides queues and clients, and what looking at the rules takes, with room for libraries
/// (looking up names) and for what was inherited.
const BASE: u64 = 64;
/// What removing rules and pinholes takes: a tool with its three pipes, and sockets.
const RESERVE: usize = 16;

/// How many tools run at a time: one for the rules, one for pinholes. A thread counts as a process.
const TOOLS: usize = 2;
/// Enough for a thread that does nothing, in bytes.
const STACK: usize = 64 * 1024;

/// What is kept back.
#[derive(Debug)]
pub(super) struct Reserve {
    /// The lowest free ones, so that they are below even a limit that was lowered meanwhile.
    descriptors: Vec<OwnedFd>,
    /// Threads that wait for their senders to be dropped.
    threads: Vec<(Sender<()>, JoinHandle<()>)>,
}

impl Reserve {
    /// Makes sure that there may be as many descriptors as `queues` queues need, and keeps some back.
    /// To be called before anything is opened.
    ///
    /// # Errors
    /// In one line, that there may not be so many.
    pub(super) fn take(queues: u16) -> Result<Self, String> {
        let clients = u64::try_from(MAX_CLIENTS + MAX_WAITING + RESERVE).unwrap_or(u64::MAX);
        let needed = clients.saturating_add(BASE).saturating_add(queues.into());
        // Where it isn't told, it turns out.
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

    /// Keeps room for tools as well. To be called once signals are taken care of.
    ///
    /// # Errors
    /// If there is no such room.
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

    /// Gives all back, for what removing rules takes.
    pub(super) fn give_back(&mut self) {
        self.descriptors.clear();
        for (sender, thread) in self.threads.drain(..) {
            drop(sender);
            // It can't have panicked.
            let _ = thread.join();
        }
    }
}
