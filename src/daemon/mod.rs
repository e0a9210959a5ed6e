//! The daemon: its start and end, its workers, signals, control socket and output.
//!
//! [`run`] starts the parts in such an order that nothing is missing when it is needed: a queue is
//! read before packets are steered to it, and pinholes can be opened before a packet asks for one.
//! The end takes the reverse order, whether a signal, a failure or a panic is the reason.

pub mod checkup;
pub mod config;
pub mod control;
pub mod events;
pub mod farewell;
pub mod guardian;
pub mod journal;
pub mod lock;
pub mod metrics;
pub mod output;
pub mod overruns;
pub mod predecessor;
pub mod reload;
pub mod shared;
pub mod status;
pub mod store;
pub mod worker;

mod addresses;
mod advertised;
pub mod changes;
mod dry_run;
mod ends;
mod guard;
mod lifetime;
mod privileges;
mod reserve;
mod setup;
mod takeover;
mod translations;
mod upstream;
mod watchdog;

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::conntrack::Conntrack;
use crate::engine::Engine;
use crate::firewall::RulesError;
use crate::net::Mark;
use crate::pinholes::Plane;
use crate::pinholes::backend::BackendError;
use crate::queue::OpenError;
use crate::queue::nfq::NfqQueue;

use addresses::Addresses;
use advertised::Advertised;
use config::Config;
use control::{Answerer, BindError, ControlSocket};
pub use dry_run::dry_run;
use ends::Ends;
use events::{Recorder, Ring, What};
use guard::Guard;
use lifetime::{Ending, Lifetime};
use lock::{Lock, LockError};
use metrics::Metrics;
use output::Output;
use overruns::Overruns;
use predecessor::Note;
use reload::{CurrentConfig, Reloader, Source};
use reserve::Reserve;
use setup::Steered;
use shared::{Clock, Door, Shared};
use status::Status;
use worker::Worker;

/// How often engines forget what is over when no packets come.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How long packets that are queued already get to pass when the daemon ends.
const DRAIN: Duration = Duration::from_secs(1);
/// How often a store that doesn't answer is asked for pinholes, and how long is waited in between: as
/// long as somebody may want to use one.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// Why the daemon couldn't start; nothing is installed then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process may not change the network.
    #[error("no permission to change the network; run as root, or with CAP_NET_ADMIN")]
    NotPermitted,
    /// The lock of the network namespace can't be taken.
    #[error(transparent)]
    Lock(LockError),
    /// There is a daemon already, or there can be no control socket.
    #[error(transparent)]
    Control(#[from] BindError),
    /// A queue couldn't be bound.
    #[error(transparent)]
    Queue(#[from] OpenError),
    /// The steering rules couldn't be put into place.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The pinhole backend doesn't work.
    #[error("pinholes can't be opened: {0}")]
    Backend(#[from] BackendError),
    /// Something that the host lacks: what, and how to mend it.
    #[error("{0}")]
    Host(String),
    /// The operating system refused.
    #[error("can't {what}: {source}; see the limits of this process (`ulimit -a`)")]
    System {
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl StartError {
    /// What the operating system refused, said of an error of its own.
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Runs until SIGINT, SIGTERM or SIGUSR2: exit code 0, or 1 if something failed on the way. SIGHUP
/// reads `source` again.
///
/// # Errors
/// If it couldn't start.
pub fn run(config: &Config, source: Option<Source>) -> Result<ExitCode, StartError> {
    privileges::check()?;
    privileges::reduce(config.takeover);
    let more = config.metrics.map_or(0, |_| metrics::MAX_CLIENTS + 1);
    let mut reserve =
        Reserve::take(config.steering.queues.count, more).map_err(StartError::Host)?;
    // Before there is any other thread, so that all of them inherit it.
    let (lifetime, hangups) = Lifetime::begin().map_err(StartError::system("wait for signals"))?;
    reserve
        .park()
        .map_err(StartError::system("start a thread"))?;
    // The first netlink socket of the process: its port, which the kernel shows, is the process id.
    let lock = match config.takeover {
        true => takeover::lock(config)?,
        false => Lock::take().map_err(setup::explain)?,
    };
    setup::check_data_ports(config);
    let advertised = Advertised::find(&config.advertise)?;
    let socket = ControlSocket::bind()?;
    let metrics = config.metrics.map(Metrics::bind).transpose()?;
    let steered = Arc::new(Steered::prepare(config)?);
    let queues = setup::open_queues(&steered.steering)?;

    let clock = Clock::start();
    let records = Ring::default();
    let recorder = Recorder::open(&config.events, records.clone()).map_err(StartError::Host)?;
    let output = Output::start(recorder).map_err(StartError::system("start a thread"))?;
    let (ends, look) = Ends::new();
    let (plane, events) = setup::plane(config, clock)?;
    let (journal, unusable) = setup::journal(&config.state)?;
    let store = setup::store(&config.state)?;
    let addresses = match store {
        Some(_) => Some(Addresses::watch().map_err(StartError::system("watch addresses"))?),
        None => None,
    };
    let shared = Arc::new(Shared::new(
        plane,
        clock,
        (output.clone(), records, ends),
        Overruns::of(steered.steering.queues),
        config.marks(),
        journal,
        store,
    ));
    // From here on there is something to remove: the backend may have been tried.
    let note = Note::of(&config.state);
    let mut installed = InKernel {
        steered: Arc::clone(&steered),
        shared: Arc::clone(&shared),
        note: note.clone(),
        reserve,
        closing: socket.closing(),
        there: true,
    };
    let engines = config.engine(advertised.list());
    let workers: Vec<_> = (0..engines.workers)
        .map(|number| {
            let durations = metrics.as_ref().map(Metrics::durations);
            Worker::new(Engine::new(engines.clone(), number), durations)
        })
        .collect();
    let mark = steered.steering.mark;
    // An earlier one's rules may steer packets already: they need pinholes at once.
    let adopted = match shared.with(Plane::adopt)? {
        0 => None,
        n => Some(format!("pinholes taken over from an earlier ftpalg: {n}")),
    };
    shared.forget_records();
    let before = note.read();
    // After a handover they go on as if nothing had happened.
    let earlier = match before {
        Some(before) if before.handed_over => Vec::new(),
        _ => predecessor::sessions(&steered.steering, config.marks(), shared.journal()),
    };
    if let Some(addresses) = addresses {
        shared.with(Plane::remember_ended);
        let most = config.limits.plane.pinholes;
        shared.adopt_from_elsewhere(most);
        // Nobody could say so while no daemon ran.
        shared.with(Plane::close_used_meanwhile);
        let (shared, workers) = (Arc::clone(&shared), workers.clone());
        lifetime.thread("addresses", move || {
            follow_addresses(addresses, &shared, &workers, most);
        })?;
    }
    start_threads(&lifetime, &shared, &workers, queues, events, mark)?;
    let watch = Arc::clone(&shared);
    lifetime.thread("ends", move || look.serve(&watch))?;

    let guard = Guard::new(&steered, &shared);
    let placed = steered.install()?;
    match steered.look() {
        Ok(look) => shared.with(|plane| plane.avoid(look.published)),
        Err(e) => log::info!("ports that your own rules publish aren't avoided: {e}"),
    }
    let current = CurrentConfig::new(config);
    let status = Arc::new(Status::new(&current, &steered, &shared, &workers));
    let rules = placed.before.unwrap_or_default();
    let checkup = checkup::at_start(config, &steered, rules);
    let taken_over = predecessor::taken_over(before, placed.cleared);
    let greeting = (taken_over.iter().map(What::to_string))
        .chain(placed.lines)
        .chain(adopted)
        .chain(earlier)
        .chain(config.metrics.map(metrics::greeting))
        .chain(status.greeting(&checkup.servers));
    if let Some(metrics) = metrics {
        let status = Arc::clone(&status);
        lifetime.thread("metrics", move || {
            metrics.serve(|in_place| status.sample(in_place), || status.is_in_place());
        })?;
    }
    lifetime.thread("control", move || {
        socket.serve(&(Arc::new(move |request| status.answer(request)) as Arc<Answerer>));
    })?;
    lifetime.thread("guard", move || guard.serve())?;
    let reloader = Reloader {
        source,
        config: current.clone(),
        advertised,
        shared: Arc::clone(&shared),
        workers: workers.clone(),
    };
    lifetime.thread("reload", move || reloader.serve(&hangups))?;
    watchdog::start(&lifetime, &steered, &shared, &workers)?;
    // Nothing can fail any more.
    if let Some(note) = unusable {
        log::warn!("{note}");
    }
    note.write(false);
    for warning in checkup.warnings {
        log::warn!("{warning}");
    }
    let greeting: Vec<_> = greeting.collect();
    output.note(What::Start {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        notes: greeting.clone(),
    });
    if let Some(what) = taken_over {
        output.note(what);
    }
    for line in greeting {
        output.line(line);
    }
    output.flush(DRAIN);
    notify(&[sd_notify::NotifyState::Ready]);

    let ending = lifetime.wait();
    notify(&[sd_notify::NotifyState::Stopping]);
    if let Ending::Failed(thread) = ending {
        log::error!("the thread {thread} ended, so ftpalg ends, too; its panic message is above");
    }
    let handover = ending == Ending::HandOver && installed.can_be_left(current.now().handover);
    if handover {
        farewell::settle(&workers);
    }
    ends::take_leave(&shared);
    output.note(What::Stop { handover });
    if !matches!(ending, Ending::Failed(_)) {
        farewell::farewell(&workers, handover, &shared);
    }
    let handed_over = handover && installed.hand_over(&current.now());
    let done = handed_over || installed.remove();
    output.line(match (handed_over, done) {
        (true, _) => format!(
            "ftpalg: rules stay for a successor for {} s, bye",
            current.now().handover.as_secs()
        ),
        (_, true) => "ftpalg: rules removed, bye".into(),
        (_, false) => "ftpalg: not everything could be removed; run `ftpalg rules remove`".into(),
    });
    output.flush(DRAIN);
    // A successor reads what is recorded: nothing more may be added to it.
    let _stopped: Vec<_> = workers.iter().map(|worker| worker.engine()).collect();
    // Only now may a successor start: nothing is left of this daemon but what it left on purpose.
    drop(lock);
    Ok(match ending {
        Ending::Signal(_) | Ending::HandOver if done => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Starts the workers, the housekeeping and the thread that reads conntrack's events.
fn start_threads(
    lifetime: &Lifetime,
    shared: &Arc<Shared>,
    workers: &[Arc<Worker>],
    queues: Vec<NfqQueue>,
    events: OwnedFd,
    mark: Mark,
) -> Result<(), StartError> {
    for (worker, queue) in workers.iter().zip(queues) {
        let mut others = workers.to_vec();
        others.retain(|other| !Arc::ptr_eq(other, worker));
        let (worker, shared) = (Arc::clone(worker), Arc::clone(shared));
        lifetime.thread("worker", move || worker.serve(queue, &shared, &others))?;
    }
    let (house, rooms) = (Arc::clone(shared), workers.to_vec());
    let mut asked = Conntrack::open().map_err(StartError::system("open a netlink socket"))?;
    lifetime.thread("housekeeping", move || {
        let tick = |now| {
            let connections = worker::tick(&rooms, now, &house);
            house.forget_records() | connections
        };
        house.keep_house(HOUSEKEEPING, tick, |hole| {
            setup::unblock(&mut asked, hole, mark)
        });
    })?;
    let watch = Arc::clone(shared);
    lifetime.thread("conntrack", move || {
        if let Err(e) = watch.watch(&events) {
            log::error!("conntrack events can't be waited for: {e}");
        }
    })
}

/// Has the engines forget what may have moved to another gateway, or come back, for as long as the
/// process lives.
fn follow_addresses(
    mut addresses: Addresses,
    shared: &Shared,
    workers: &[Arc<Worker>],
    most: usize,
) {
    let mut tries = 0;
    loop {
        // Addresses move one after another. The next one isn't to wait until the store answers.
        let change = match addresses.wait((tries > 0).then_some(BETWEEN_TRIES)) {
            Ok(change) => change,
            Err(e) => {
                log::error!("addresses can't be watched: {e}");
                return;
            }
        };
        let forget = || {
            for worker in workers {
                worker.engine().forget_all(&mut Door::new(shared));
            }
        };
        if let Some(change) = change {
            shared.output().note(change.what());
            shared.moved(change, forget);
            tries = TRIES;
        }
        tries = match shared.adopt_from_elsewhere(most) {
            true => 0,
            false => tries.saturating_sub(1),
        };
    }
}

/// What the daemon has put into the kernel; removed when dropped.
struct InKernel {
    steered: Arc<Steered>,
    shared: Arc<Shared>,
    /// Says who is the daemon.
    note: Note,
    /// Descriptors and processes that the removal needs.
    reserve: Reserve,
    /// Set when the removal begins: from then on, clients get no descriptors.
    closing: Arc<AtomicBool>,
    there: bool,
}

impl InKernel {
    /// Whether everything may stay in place for so long. Rules that somebody else placed aren't the
    /// guardian's to remove.
    fn can_be_left(&self, patience: Duration) -> bool {
        !patience.is_zero() && self.steered.manages()
    }

    /// Leaves everything in place for a successor, and has it removed after a while if there is none.
    /// Returns false if it has to be removed now.
    fn hand_over(&mut self, config: &Config) -> bool {
        self.closing.store(true, Ordering::Relaxed);
        self.reserve.give_back();
        setup::drain(&self.steered.steering, DRAIN);
        self.steered.leave();
        self.shared.hand_over();
        match guardian::start(config.handover, &config.state) {
            Ok(()) => {
                self.note.write(true);
                self.there = false;
            }
            Err(e) => {
                log::error!("nobody can be left to remove the rules later ({e}): they go now")
            }
        }
        !self.there
    }

    /// Removes everything: first what steers packets to the queues, last what lets data connections
    /// in. Returns whether all could be removed.
    fn remove(&mut self) -> bool {
        self.there = false;
        self.closing.store(true, Ordering::Relaxed);
        self.reserve.give_back();
        let rules = self.steered.remove(DRAIN);
        if let Err(e) = &rules {
            log::error!("rules can't be removed: {e}");
        }
        setup::drain(&self.steered.steering, DRAIN);
        let holes = self.shared.close();
        if let Err(e) = &holes {
            log::error!("the pinhole backend can't be removed: {e}");
        }
        if let Some(journal) = self.shared.journal() {
            farewell::end_recorded(&journal.records(), &self.shared);
            journal.remove();
        }
        let all = rules.is_ok() && holes.is_ok();
        if all {
            self.note.remove();
        }
        all
    }
}

impl Drop for InKernel {
    fn drop(&mut self) {
        if self.there {
            self.remove();
        }
    }
}

/// Tells the service manager, if there is one.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        log::warn!("the service manager can't be told: {e}");
    }
}
