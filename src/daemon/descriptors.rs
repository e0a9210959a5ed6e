//! File descriptors: enough of them from the start, and some kept back for the end.
//!
//! All that the daemon opens while it runs is bounded, so one look at the limit is enough, unless
//! somebody lowers it later (`prlimit`). Even then the rules can be removed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::control::{MAX_CLIENTS, MAX_WAITING};

/// What is open besides queues and clients, and what looking at the rules takes, with room for libraries
/// (looking up names) and for what was inherited.
const BASE: u64 = 64;
/// What removing rules and pinholes takes: a tool with its three pipes, and sockets.
const RESERVE: usize = 16;

/// Descriptors that are kept back. They are the lowest free ones, so that they are below even a limit
/// that was lowered meanwhile.
#[derive(Debug)]
pub(super) struct Reserve(Vec<OwnedFd>);

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
        kept.map(Self).map_err(|e| {
            format!(
                "no file descriptors can be kept back ({e}); raise the limit (`ulimit -n {needed}`)"
            )
        })
    }

    /// Gives them back, for what removing rules takes.
    pub(super) fn give_back(&mut self) {
        self.0.clear();
    }
}
