//! What ends the daemon: a signal, or a thread that it can't do without.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::StartError;

/// The signals that ask for an end. After SIGXCPU, of a limit of CPU time, comes SIGKILL.
const ENDS: [Signal; 5] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGQUIT,
    Signal::SIGABRT,
    Signal::SIGXCPU,
];

/// The signal that asks for an end at which the rules stay for a successor.
pub(super) const HAND_OVER: Signal = Signal::SIGUSR2;

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Somebody asked for it.
    Signal(Signal),
    /// Somebody asked for it, and a successor is to go on.
    HandOver,
    /// This thread returned or panicked.
    Failed(&'static str),
}

/// The daemon's threads and its signals.
pub(super) struct Lifetime {
    endings: SyncSender<Ending>,
    wait: Receiver<Ending>,
}

impl Lifetime {
    /// Blocks all signals in this thread and in all that it starts, so that none ends or stops the
    /// process before its rules are removed. A thread waits for those that ask for an end or for a handover,
    /// and for SIGHUP; all others stay blocked. (Some can't be blocked, and end the process as always: SIGKILL,
    /// faults of the process itself, and two signals that the C library keeps for itself.)
    ///
    /// A signal that comes before [`wait`](Self::wait) is kept until then, so the start is never
    /// left half done. Programs that the daemon runs start with no signals blocked: the standard
    /// library sees to that.
    ///
    /// The receiver gets a message for a SIGHUP, or for several that come before it is read.
    pub(super) fn begin() -> io::Result<(Self, Receiver<()>)> {
        SigSet::all().thread_block()?;
        let signals: SigSet = ENDS
            .into_iter()
            .chain([Signal::SIGHUP, HAND_OVER])
            .collect();
        // The first reason counts. Later ones find the channel full, and aren't waited for.
        let (endings, wait) = mpsc::sync_channel(1);
        let (hangup, hangups) = mpsc::sync_channel(1);
        let sender = endings.clone();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || wait_for(&signals, &sender, &hangup))?;
        Ok((Self { endings, wait }, hangups))
    }

    /// Starts a thread without which the daemon is to end.
    pub(super) fn thread(
        &self,
        name: &'static str,
        f: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let end = ThreadEnd {
            name,
            endings: self.endings.clone(),
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                // Dropped when `f` returns and when it panics.
                let _end = end;
                f();
            })
            .map(drop)
            .map_err(StartError::system("start a thread"))
    }

    /// Waits for the end.
    pub(super) fn wait(&self) -> Ending {
        // There is always a sender: our own.
        self.wait.recv().unwrap_or(Ending::Failed("everything"))
    }
}

/// Reports that its thread is gone.
struct ThreadEnd {
    name: &'static str,
    endings: SyncSender<Ending>,
}

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        let _ = self.endings.try_send(Ending::Failed(self.name));
    }
}

/// Passes signals on. A second signal that asks for an end changes nothing.
fn wait_for(signals: &SigSet, endings: &SyncSender<Ending>, hangup: &SyncSender<()>) {
    loop {
        match signals.wait() {
            // If a message waits already, that is enough.
            Ok(Signal::SIGHUP) => drop(hangup.try_send(())),
            Ok(HAND_OVER) => {
                let _ = endings.try_send(Ending::HandOver);
            }
            Ok(signal) => {
                let _ = endings.try_send(Ending::Signal(signal));
            }
            Err(e) => log::error!("signals: {e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_ends_or_panics_ends_the_daemon() {
        for panics in [false, true] {
            let (endings, wait) = mpsc::sync_channel(1);
            let lifetime = Lifetime { endings, wait };
            lifetime
                .thread("worker", move || assert!(!panics, "as the test wants it"))
                .unwrap();
            assert_eq!(lifetime.wait(), Ending::Failed("worker"));
        }
    }
}
