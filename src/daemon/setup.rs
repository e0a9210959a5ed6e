//! The parts of the daemon, as the configuration and the host have them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::conntrack::{Conntrack, Events, Timeouts};
use crate::firewall::tables;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{Inside, Look, Preview, Rules, RulesError, Steering, SteeringWay};
use crate::net::{Family, Mark};
use crate::pinholes::PinholeKey;
use crate::pinholes::backend::iptables::Iptables;
use crate::pinholes::backend::nft::Nft;
use crate::pinholes::backend::{Backend, BackendError};
use crate::pinholes::ports::Listeners;
use crate::pinholes::{Parts, Plane};
use crate::queue::nfq::NfqQueue;
use crate::queue::{OpenError, kernel};

use super::StartError;
use super::config::{BackendChoice, Config, RulesMode, StateChoice};
use super::control::{self, BindError};
use super::journal::Journal;
use super::lock::{self, LockError};
use super::shared::Clock;
use super::store::{self, Store};

/// The time between two looks at whether the queues are empty.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// Why the lock can't be taken, and who has it, where that is known.
pub(super) fn explain(error: LockError) -> StartError {
    match error {
        LockError::NotPermitted => StartError::NotPermitted,
        LockError::Held => {
            let answers = || {
                let (pid, _) = control::holder().filter(|(_, uid)| control::trusted(*uid))?;
                u32::try_from(pid).ok()
            };
            // Another process may have that id in this process's view; then the socket's.
            let named = kernel::holder(lock::QUEUE);
            let daemon = named.clone().filter(|(_, name)| name == "ftpalg");
            let daemon = daemon.map(|(pid, _)| pid).or_else(answers);
            if let (None, Some((pid, name))) = (daemon, named) {
                return StartError::Host(format!(
                    "queue {}, ftpalg's lock in this network namespace, is bound by pid {pid} ({name}); \
                     stop it",
                    lock::QUEUE
                ));
            }
            let who = daemon.map(|pid| format!(" (pid {pid})"));
            StartError::Control(BindError::Running(who.unwrap_or_default()))
        }
        other => StartError::Lock(other),
    }
}

/// What [`Steered::install`] did.
#[derive(Default)]
pub(super) struct Placed {
    /// Where the rules are, a line each.
    pub(super) lines: Vec<String>,
    /// How many rules of an earlier ftpalg were replaced.
    pub(super) cleared: usize,
    /// The rules that were there before, if they could be read.
    pub(super) before: Option<Snapshot>,
}

/// The steering rules: what they are, and the host's tools to place them.
pub(super) struct Steered {
    pub(super) steering: Steering,
    /// How the inside was found, a line each, where it had to be.
    pub(super) found: Vec<String>,
    manage: bool,
    /// What places them on this host, if anything does.
    way: Option<SteeringWay>,
    host: Mutex<ManagedRules>,
}

struct ManagedRules {
    rules: Rules,
    /// Nothing more is installed, and no tool is run. Between fork and exec, a tool has copies of all
    /// descriptors, those of the lock and the queues included, and would keep a successor from
    /// starting.
    closing: bool,
}

impl Steered {
    /// Finds the tools, and the inside where the configuration names none.
    pub(super) fn prepare(config: &Config) -> Result<Self, StartError> {
        let manage = config.rules == RulesMode::Manage;
        let rules = Rules::new(Tools::find());
        let way = rules.way(&config.steering);
        if manage {
            way.as_ref().map_err(|e| StartError::Host(e.to_string()))?;
        }
        let mut steering = config.steering.clone();
        let mut found = Vec::new();
        if steering.inside.is_empty() && !steering.local {
            let derived = rules.derive(&steering.ports)?;
            steering.inside = derived.inside;
            steering.local = derived.local;
            found = derived.found;
        }
        steering.check()?;
        if !config.nat64.is_empty() && !Family::ALL.into_iter().all(|one| steering.has(one)) {
            return Err(StartError::Host(
                "--nat64 needs rules of both families; give --inside with the interface that the \
                 IPv6-only clients are behind"
                    .into(),
            ));
        }
        steering.inside.iter().try_for_each(Inside::check)?;
        Ok(Self {
            steering,
            found,
            manage,
            way: way.ok(),
            host: Mutex::new(ManagedRules {
                rules,
                closing: false,
            }),
        })
    }

    /// Puts the rules into place, unless somebody else does.
    pub(super) fn install(&self) -> Result<Placed, RulesError> {
        if !self.manage {
            let before = self.host().rules.snapshot().ok();
            return Ok(Placed {
                before,
                ..Placed::default()
            });
        }
        let installed = self.host().rules.install(&self.steering)?;
        for place in &installed.places {
            log::info!("rules installed in {place}");
        }
        for place in &installed.own {
            log::info!("rules installed in {place}");
        }
        for note in &installed.notes {
            log::warn!("{note}");
        }
        let chains = installed.native.iter();
        let chains = chains.map(|chain| format!("accept rule inserted in {chain}"));
        Ok(Placed {
            lines: [installed.how].into_iter().chain(chains).collect(),
            cleared: installed.replaced,
            before: Some(installed.before),
        })
    }

    /// What [`install`](Self::install) would do. Changes nothing.
    pub(super) fn preview(&self, anew: bool) -> Result<Preview, RulesError> {
        self.host().rules.preview(&self.steering, anew)
    }

    /// Puts the rules back that somebody else removed. After [`remove`](Self::remove) it does nothing,
    /// and returns false.
    pub(super) fn restore(&self) -> Result<bool, RulesError> {
        let mut host = self.host();
        if self.manage && !host.closing {
            host.rules.restore(&self.steering)?;
        }
        Ok(!host.closing)
    }

    /// What isn't in place of the rules that are ours to place, and which ports the user's own rules
    /// publish.
    pub(super) fn look(&self) -> Result<Look, RulesError> {
        let steering = self.manage.then_some(&self.steering);
        let host = self.host();
        match host.closing {
            true => Ok(Look::default()),
            false => host.rules.look(steering),
        }
    }

    /// Whether anything of ours is in iptables-legacy.
    pub(super) fn in_legacy(&self) -> bool {
        let host = self.host();
        !host.closing && host.rules.in_legacy()
    }

    /// Removes the rules, unless somebody else does. What waits in the queue is looked at before.
    pub(super) fn remove(&self, patience: Duration) -> Result<(), RulesError> {
        let mut host = self.host();
        host.closing = true;
        if !self.manage {
            return Ok(());
        }
        if self.way == Some(SteeringWay::Nft) {
            match host.rules.silence() {
                Ok(()) => drain(&self.steering, patience),
                Err(e) => log::debug!("{e}"),
            }
        }
        host.rules.remove().map(drop)
    }

    /// Leaves the rules as they are, for a successor, and runs no tool any more.
    pub(super) fn leave(&self) {
        self.host().closing = true;
    }

    /// What places the rules on this host.
    pub(super) fn way(&self) -> Option<SteeringWay> {
        self.way
    }

    /// Whether the rules are this process's to place and remove.
    pub(super) fn manages(&self) -> bool {
        self.manage
    }

    /// What isn't in place.
    pub(super) fn missing(&self) -> Result<Vec<String>, RulesError> {
        let host = self.host();
        match host.closing {
            true => Ok(vec!["ftpalg is ending, and removes its rules".into()]),
            false => host.rules.verify_used(&self.steering),
        }
    }

    fn host(&self) -> std::sync::MutexGuard<'_, ManagedRules> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens the journal, if there is to be one. Also says, in a line, what became of an earlier one that
/// can't be used. Where none was asked for, the daemon works without one, too.
pub(super) fn journal(
    choice: &StateChoice,
) -> Result<(Option<Journal>, Option<String>), StartError> {
    let Some(directory) = choice.directory() else {
        return Ok((None, None));
    };
    match Journal::open(directory) {
        Ok((journal, note)) => Ok((Some(journal), note)),
        Err(e) if *choice == StateChoice::Auto => {
            log::warn!(
                "sessions whose numbers differ on the two sides won't outlive this process: {e}"
            );
            Ok((None, None))
        }
        Err(e) => Err(StartError::Host(e.to_string())),
    }
}

/// The store that another gateway reads, if there is to be one. It need not answer yet.
pub(super) fn store(choice: &StateChoice) -> Result<Option<Arc<dyn Store>>, StartError> {
    let Some(url) = choice.store() else {
        return Ok(None);
    };
    let store = store::open(url);
    let store = store.map_err(|e| StartError::Host(format!("--state: {e}")))?;
    Ok(Some(store))
}

/// Binds all queues, or none.
pub(super) fn open_queues(steering: &Steering) -> Result<Vec<NfqQueue>, OpenError> {
    let open = |number| {
        let mut queue = NfqQueue::open(number)?;
        if steering.fail_open {
            queue.stamp(steering.uneven_mark.bit());
        }
        Ok(queue)
    };
    steering.queues.numbers().map(open).collect()
}

/// Waits until no packet waits for an answer, for at most `patience`.
pub(super) fn drain(steering: &Steering, patience: Duration) {
    let ours = steering.queues.numbers();
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        let Ok(all) = kernel::counters() else { return };
        let mut queues = all.iter().filter(|c| ours.contains(&c.queue));
        if queues.all(|c| c.waiting == 0) {
            return;
        }
        thread::sleep(DRAIN_STEP);
    }
}

/// Whether conntrack can be asked, and tells of connections.
pub(super) fn check_conntrack() -> Result<(), StartError> {
    Conntrack::probe().map_err(StartError::Host)?;
    if Events::enabled() == Some(false) {
        return Err(StartError::Host(
            "conntrack events are off; switch them on with `sysctl net.netfilter.nf_conntrack_events=1`"
                .into(),
        ));
    }
    Ok(())
}

/// The NAT plane over the chosen backend; nothing is in the kernel yet. With a descriptor that is
/// readable when conntrack has something to tell the plane.
pub(super) fn plane(config: &Config, clock: Clock) -> Result<(Plane, OwnedFd), StartError> {
    check_conntrack()?;
    let mark = config.steering.mark;
    let lookups = Conntrack::open().map_err(StartError::system("open a netlink socket"))?;
    let events = Events::open(mark).map_err(StartError::system("watch conntrack"))?;
    let readable = events.as_fd().try_clone_to_owned();
    let readable = readable.map_err(StartError::system("watch conntrack"))?;
    let mut plane = Plane::new(
        config.plane(),
        Parts {
            backend: backend(config)?,
            lookups: Box::new(lookups),
            events: Box::new(events),
            timeouts: Timeouts::read(),
            clock: Box::new(move || clock.now()),
        },
    );
    plane.begin_ports_at(random());
    Ok((plane, readable))
}

/// A number that differs from process to process.
fn random() -> u32 {
    let [.., a, b, c, d] = RandomState::new().build_hasher().finish().to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

/// Clears connection attempts out of a pinhole's way that were made before it was there.
pub(super) fn unblock(conntrack: &mut Conntrack, hole: PinholeKey, mark: Mark) -> usize {
    match conntrack.forget_unanswered(hole.from, hole.to, mark) {
        Ok(forgotten) => {
            if forgotten > 0 {
                log::info!(
                    "{} connection attempts from {} to {} were older than their pinhole: forgotten",
                    forgotten,
                    hole.from,
                    hole.to
                );
            }
            forgotten
        }
        Err(e) => {
            log::debug!("stale connection attempts to {}: {e}", hole.to);
            0
        }
    }
}

/// Says which ports of `--data-ports` other programs have.
pub(super) fn check_data_ports(config: &Config) {
    let Some(range) = config.data_ports else {
        return;
    };
    let listeners = Listeners::read();
    let anywhere = Ipv4Addr::UNSPECIFIED.into();
    let taken: Vec<_> = (range.first()..=range.last())
        .filter(|port| listeners.contains(anywhere, *port))
        .collect();
    if let Some(first) = taken.first() {
        log::warn!(
            "--data-ports {range}: programs on this host listen on {} of these ports ({first}{}), \
             which no data connection gets while they do",
            taken.len(),
            if taken.len() > 1 { ", …" } else { "" }
        );
    }
}

/// The backend that was chosen; by itself, nf_tables where the kernel has it, NAT included.
fn backend(config: &Config) -> Result<Box<dyn Backend>, BackendError> {
    let mark = config.steering.mark;
    let nft = || Nft::new(mark);
    let iptables = || Iptables::new(Tools::find(), mark);
    match config.backend {
        BackendChoice::Nft => return Ok(Box::new(nft()?)),
        BackendChoice::Auto if tables::available() => {}
        BackendChoice::Auto | BackendChoice::Iptables => return Ok(Box::new(iptables())),
    }
    let mut nft = nft()?;
    // What this makes is made again later, or is removed with the backend.
    let (most, longest) = (config.limits.plane.pinholes, config.deadline);
    let Err(BackendError::Lacking(why)) = nft.adopt(most, longest) else {
        return Ok(Box::new(nft));
    };
    let mut iptables = iptables();
    let tried = iptables.adopt(most, longest);
    tried.map_err(|e| BackendError::Lacking(format!("{why}; that fails, too: {e}")))?;
    log::warn!("using the backend iptables: {why}");
    Ok(Box::new(iptables))
}
