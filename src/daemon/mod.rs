//! The daemon: start-up, signals, control socket and output.
//!
//! [`run`] builds everything up in an order in which nothing is ever half there: a queue is read
//! before packets are steered to it, pinholes can be opened before a packet asks for one. What was
//! built is torn down the other way round, whether by a signal, a failure or a panic.

pub mod config;
pub mod control;
pub mod output;
pub mod shared;
pub mod status;
pub mod worker;

mod lifetime;
mod setup;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::nat::backend::BackendError;
use crate::nat::rules::RulesError;
use crate::queue::OpenError;

use config::{Config, RulesMode};
use control::{BindError, ControlSocket};
use lifetime::{Ending, Lifetime};
use output::Output;
use setup::Steered;
use shared::{Clock, Shared};
use status::Status;
use worker::Worker;

/// How often engines forget what is over when no packets come.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How long packets that are queued already get to pass when the daemon ends.
const DRAIN: Duration = Duration::from_secs(1);

/// Why the daemon couldn't start; nothing is installed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not change the network.
    #[error("no permission to change the network; run as root, or with CAP_NET_ADMIN")]
    NotPermitted,
    /// There is one already, or the socket's name is taken.
    #[error(transparent)]
    Control(#[from] BindError),
    /// A queue couldn't be had.
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
        source: std::io::Error,
    },
}

/// Runs until SIGINT or SIGTERM: exit code 0, or 1 if something failed on the way.
///
/// # Errors
/// If it couldn't start.
pub fn run(config: Config) -> Result<ExitCode, Error> {
    // Before there is any other thread, so that all of them inherit it.
    let lifetime = Lifetime::begin().map_err(|source| Error::System {
        what: "wait for signals",
        source,
    })?;
    setup::check_permission()?;
    let socket = ControlSocket::bind()?;
    let mut steered = Steered::prepare(&config)?;
    steered.check_inside()?;
    let queues = setup::open_queues(&steered.steering)?;

    let clock = Clock::start();
    let output = Output::start().map_err(|source| Error::System {
        what: "start a thread",
        source,
    })?;
    let (plane, events) = setup::plane(&config, clock)?;
    let shared = Arc::new(Shared::new(plane, clock, output.clone()));
    let workers: Vec<_> = (0..).zip(&queues).map(|(n, _)| Worker::new(setup::core(&config, n))).collect();

    for (worker, queue) in workers.iter().zip(queues) {
        let (worker, shared) = (Arc::clone(worker), Arc::clone(&shared));
        lifetime.thread("worker", move || worker.serve(queue, &shared))?;
    }
    let house = (Arc::clone(&shared), workers.clone());
    lifetime.thread("housekeeping", move || {
        let (shared, workers) = house;
        shared.keep_house(HOUSEKEEPING, |now| worker::tick(&workers, now, &shared));
    })?;
    let watch = Arc::clone(&shared);
    lifetime.thread("conntrack", move || {
        if let Err(e) = watch.watch(&events) {
            log::error!("conntrack events can't be waited for: {e}");
        }
    })?;

    // From here on there is something to take back.
    let mut installed = Installed {
        shared: Arc::clone(&shared),
        steered: Some(steered),
    };
    shared.with(crate::nat::plane::Plane::install)?;
    let manage = config.rules == RulesMode::Manage;
    if let Some(steered) = installed.steered.as_mut().filter(|_| manage) {
        steered.install()?;
    }
    let status = Arc::new(Status::new(&config, &installed.steered, Arc::clone(&shared), workers));
    lifetime.thread("control", {
        let status = Arc::clone(&status);
        move || socket.serve(Arc::new(move |request| status.answer(request)))
    })?;
    for line in status.greeting() {
        output.line(line);
    }
    output.flush(DRAIN);
    notify(sd_notify::NotifyState::Ready);

    let ending = lifetime.wait();
    notify(sd_notify::NotifyState::Stopping);
    let clean = installed.remove(&output);
    output.flush(DRAIN);
    Ok(match ending {
        Ending::Signal(_) if clean => ExitCode::SUCCESS,
        Ending::Signal(_) => ExitCode::FAILURE,
        Ending::Failed(what) => {
            log::error!("{what} ended; so does ftpalg");
            ExitCode::FAILURE
        }
    })
}
