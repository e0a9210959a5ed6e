//! Notices that somebody changes packet filter rules, so that ours can be checked and restored.
//!
//! It says *when* to look, never *what* changed. nf_tables sends netlink notifications. iptables-legacy
//! notifies nobody, but its tools open their lock file: inotify sees that, if they use the same
//! file system as this process.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::firewall::{PINHOLE_CHAINS, PINHOLE_TABLE, SetName};
use crate::netlink::codec::Message;
use crate::netlink::filter::{Filter, To};
use crate::netlink::nftables::{attr, msg};
use crate::netlink::socket::Socket;

/// `NFNLGRP_NFTABLES` (7) as a bit.
const GROUP: u32 = 1 << 6;
/// Receive buffer in bytes: some thousand notifications. More than that is a change in any case.
const BUFFER: usize = 1 << 20;
/// The most datagrams that are read at once, so that reading ends under any load.
const READ_AT_ONCE: usize = 65_536;
/// How long further notifications are collected after one that was of no interest.
const NOISE: Duration = Duration::from_millis(200);
/// The lock file of the legacy tools.
const LOCK: &str = "/run/xtables.lock";

/// Changes of rules in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Changes {
    nft: Option<Socket>,
    lock: Option<Inotify>,
    sets: BTreeSet<SetName>,
}

impl Changes {
    /// Subscribes to all of these sources that this host has.
    #[must_use]
    pub fn open() -> Self {
        let nft = Socket::subscribe(GROUP, BUFFER)
            .inspect_err(|e| log::info!("no notifications of rule changes: {e}"))
            .ok();
        if let Some(Err(e)) = nft.as_ref().map(|nft| nft.filter(&not_pinholes())) {
            log::info!("notifications of pinholes aren't filtered in the kernel: {e}");
        }
        let lock = watch(&lock_file())
            .inspect_err(|e| log::debug!("the xtables lock can't be watched: {e}"))
            .ok();
        let sets = BTreeSet::new();
        Self { nft, lock, sets }
    }

    /// From now on, changed elements of these sets matter, too, and of no others.
    pub fn follow(&mut self, sets: BTreeSet<SetName>) {
        self.sets = sets;
    }

    /// Whether every change of nf_tables is noticed: then there is no need to look from time to
    /// time, unless rules are in iptables-legacy.
    #[must_use]
    pub fn sees_nft(&self) -> bool {
        self.nft.is_some()
    }

    /// Waits until somebody may have changed rules, for at most `patience` (`None`: without limit).
    /// Returns `false` if the time is over.
    ///
    /// # Errors
    /// If waiting isn't possible.
    pub fn wait(&mut self, patience: Option<Duration>) -> io::Result<bool> {
        let end = patience.map(|time| Instant::now() + time);
        loop {
            let left = match end.map(|end| end.saturating_duration_since(Instant::now())) {
                // Rounded up: rounded down to milliseconds, the wait would end early, again and
                // again.
                Some(time) => PollTimeout::try_from(time + Duration::from_millis(1))
                    .unwrap_or(PollTimeout::MAX),
                None => PollTimeout::NONE,
            };
            let nft = self.nft.as_ref().map(AsFd::as_fd);
            let lock = self.lock.as_ref().map(AsFd::as_fd);
            let mut fds: Vec<_> = nft
                .into_iter()
                .chain(lock)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, left) {
                Ok(0) => return Ok(false),
                Err(Errno::EINTR) => {}
                Ok(_) if self.happened() => return Ok(true),
                // Pinholes come and go: not each of them needs to wake us.
                Ok(_) => thread::sleep(NOISE),
                Err(e) => return Err(e.into()),
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                return Ok(false);
            }
        }
    }

    /// Takes all notifications that have arrived. Returns whether any is of interest.
    pub fn happened(&mut self) -> bool {
        let mut changed = false;
        if let Some(socket) = &mut self.nft {
            for _ in 0..READ_AT_ONCE {
                match socket.events(|message| changed |= matters(message, &self.sets)) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // Notifications were lost (ENOBUFS), or can't be read: look.
                    Err(_) => changed = true,
                }
            }
        }
        if let Some(lock) = &self.lock {
            changed |= lock.read_events().is_ok_and(|events| !events.is_empty());
        }
        changed
    }
}

fn lock_file() -> PathBuf {
    // As the tools themselves do.
    std::env::var_os("XTABLES_LOCKFILE").map_or_else(|| LOCK.into(), PathBuf::from)
}

fn watch(path: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    // When a tool is done with it.
    inotify.add_watch(path, AddWatchFlags::IN_CLOSE)?;
    Ok(inotify)
}

/// Drops notifications that are about an element of our own tables, and about the end of a batch.
/// A datagram with several passes.
fn not_pinholes() -> Filter {
    Filter::new()
        .several(To::Pass)
        .kind(msg::NEW_GEN, To::Drop)
        .other_kind(&[msg::NEW_ELEM, msg::DEL_ELEM, msg::DESTROY_ELEM], To::Pass)
        .other_text(attr::ELEMS_TABLE, PINHOLE_TABLE, To::Pass)
}

/// Whether a notification may be about our rules, or about what the user's rules publish. Rules in the
/// chains of pinholes, and elements of sets that aren't followed, change all the time and don't
/// count. Rules of ranges do count: they stay for long.
fn matters(message: &Message<'_>, sets: &BTreeSet<SetName>) -> bool {
    let text = |kind| message.attrs().find(kind).and_then(|attr| attr.text());
    match message.kind {
        msg::NEW_TABLE
        | msg::DEL_TABLE
        | msg::DESTROY_TABLE
        | msg::NEW_CHAIN
        | msg::DEL_CHAIN
        | msg::DESTROY_CHAIN => true,
        msg::NEW_RULE | msg::DEL_RULE | msg::DESTROY_RULE => {
            let chain = text(attr::RULE_CHAIN);
            !chain.is_some_and(|chain| PINHOLE_CHAINS.contains(&chain))
        }
        msg::NEW_ELEM | msg::DEL_ELEM | msg::DESTROY_ELEM if !sets.is_empty() => {
            let set = |table: &str, name: &str| SetName {
                family: message.family(),
                table: table.to_owned(),
                name: name.to_owned(),
            };
            text(attr::ELEMS_TABLE)
                .zip(text(attr::ELEMS_SET))
                .is_some_and(|(table, name)| sets.contains(&set(table, name)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::{Builder, Messages};
    use crate::netlink::filter;

    fn notification(kind: u16, table: &str, chain: &str) -> Vec<u8> {
        let mut b = Builder::new();
        b.message(kind, 0, 0, 2, 0)
            .text(attr::RULE_TABLE, table)
            .text(attr::RULE_CHAIN, chain);
        b.finish().unwrap()
    }

    fn judge(kind: u16, table: &str, chain: &str) -> bool {
        let bytes = notification(kind, table, chain);
        let followed = SetName {
            family: 2,
            table: "nat".into(),
            name: "web".into(),
        };
        let matters = matters(&Messages::new(&bytes).next().unwrap(), &[followed].into());
        let [delivered] = filter::delivered(&not_pinholes(), &[&bytes])[..] else {
            unreachable!("one message");
        };
        assert!(delivered || !matters, "the kernel keeps it to itself");
        matters
    }

    #[test]
    fn the_kernel_delivers_no_pinholes() {
        let ours = |kind| notification(kind, "ftpalg", "pinholes4");
        let delivered = |bytes: &[u8]| filter::delivered(&not_pinholes(), &[bytes]) == [true];
        for kind in [msg::NEW_ELEM, msg::DEL_ELEM, msg::DESTROY_ELEM] {
            assert!(!delivered(&ours(kind)));
            assert!(delivered(&notification(kind, "ftpalg2", "pinholes4")));
            // The kernel may put several notifications into one datagram.
            let flush = notification(msg::DEL_TABLE, "raw", "");
            assert!(delivered(&[ours(kind), flush].concat()));
        }
        assert!(!delivered(&notification(msg::NEW_GEN, "", "")));
        assert!(delivered(&ours(msg::DEL_TABLE)));
    }

    #[test]
    fn pinholes_are_no_news() {
        assert!(judge(msg::DEL_RULE, "raw", "PREROUTING"));
        assert!(judge(msg::NEW_RULE, "filter", "FORWARD"));
        assert!(judge(msg::DEL_TABLE, "raw", ""));
        assert!(judge(msg::DESTROY_TABLE, "raw", ""));
        assert!(judge(msg::DESTROY_RULE, "raw", "PREROUTING"));
        assert!(judge(msg::DEL_RULE, "raw", "FTPALG-EGRESS"));
        assert!(!judge(msg::NEW_RULE, "nat", "FTPALG-PRE"));
        assert!(!judge(msg::DEL_RULE, "nat", "FTPALG-POST"));
        assert!(!judge(msg::NEW_ELEM, "ftpalg", "pinholes4"));
        assert!(!judge(msg::GET_GEN, "", ""));
        assert!(!judge(msg::NEW_ELEM, "filter", "web"));
        assert!(judge(msg::NEW_ELEM, "nat", "web"));
        assert!(judge(msg::DEL_ELEM, "nat", "web"));
    }

    #[test]
    fn a_tool_that_lets_go_of_the_lock_is_noticed() {
        let path = std::env::temp_dir().join(format!("ftpalg-lock-{}", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let mut changes = Changes {
            nft: None,
            lock: Some(watch(&path).unwrap()),
            sets: BTreeSet::new(),
        };
        assert!(!changes.wait(Some(Duration::from_millis(10))).unwrap());
        drop(std::fs::File::open(&path).unwrap());
        assert!(changes.wait(Some(Duration::from_secs(5))).unwrap());
        assert!(!changes.wait(Some(Duration::from_millis(10))).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
