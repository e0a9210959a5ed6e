//! What the daemon tells about itself. The field names are a contract: add, never change.
//!
//! | question | `--json` answer |
//! |---|---|
//! | `status` | one object: the fields of `Report` below; `queues` is a list of `Queue`, `counters` are those of [`engine::Stats`](crate::engine::Stats), `nat` those of [`pinholes::PlaneCounters`] |
//! | `sessions` | a list of [`SessionInfo`] with [`Transferred`](pinholes::Transferred) and its `range`, ordered by `id` |
//! | `events` | a list of [`Record`]s, oldest first; with `follow` one in each line |
//! | `pinholes` | a list of `PinholeReport`: with `allpinholes` those of the past, then pending ones first, then ranges, then data connections, each ordered by `id` |
//!
//! Times are whole seconds, addresses are text (`10.0.0.2:21`, `[fd00::2]:21`), counters start at 0
//! with the daemon and never go back, and what isn't known or doesn't apply is `null`. An exit code
//! other than 0 leaves the standard output of these empty, except for `status` with 1 (not all is in place),
//! and for `status --json` with 3 (none runs), whose object the client makes itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::conntrack::Events;
use crate::engine::gateway::SessionId;
use crate::engine::{SessionInfo, Stats};
use crate::firewall::SteeringWay;
use crate::pinholes;
use crate::queue::kernel;

use super::config::{Config, Limits, RulesMode};
use super::control::{Answer, ControlRequest, Reply};
use super::events::{Batch, Record, human};
use super::journal::{Health, Journal};
use super::metrics::Sample;
use super::reload::CurrentConfig;
use super::setup::Steered;
use super::shared::Shared;
use super::store::StoreHealth;
use super::worker::Worker;

/// Answers to `ftpalg status`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// True: this daemon answers. `ftpalg status --json` itself says false where none does.
    running: bool,
    /// The daemon's version.
    version: &'static str,
    /// Its process.
    pid: u32,
    /// Seconds since its start.
    uptime: u64,
    /// Whether its rules and its backend's objects are in place.
    in_place: bool,
    /// What isn't.
    missing: Vec<String>,
    /// The private side: interfaces and networks.
    inside: Vec<String>,
    /// Whether local processes are served.
    local: bool,
    /// The control ports, those of implicit FTPS among them.
    ports: &'a [u16],
    /// The control ports of implicit FTPS.
    implicit_ports: &'a [u16],
    /// `pass`, `deny` or `range:A-B`.
    tls: String,
    /// Seconds that such a range stays open while nothing comes from the client.
    tls_idle: u64,
    /// `nft` or `iptables`.
    backend: &'static str,
    /// `manage` or `external`.
    rules: RulesMode,
    /// What places the steering rules here: `iptables` or `nft`; `null` where nothing here can.
    steering: Option<SteeringWay>,
    /// `closed` or `open`.
    fail: &'static str,
    /// The connection mark's bit.
    mark: u32,
    /// The range of `--data-ports`.
    data_ports: Option<String>,
    /// The prefixes of `--nat64`.
    nat64: Vec<String>,
    /// Seconds that a pinhole waits.
    deadline: u64,
    /// How much of each there may be.
    limits: Limits,
    /// Whether conntrack counts the bytes of data connections.
    accounting: bool,
    /// Control connections now.
    sessions: usize,
    /// Pinholes that are reserved or open.
    pinholes: usize,
    /// Sessions under TLS whose range is open.
    ranges: usize,
    /// Data connections now.
    data_connections: usize,
    /// One entry per queue: the kernel's counters and the worker's.
    queues: Vec<Queue>,
    /// What the engines counted, summed up.
    counters: Stats,
    /// What the NAT plane counted.
    nat: pinholes::PlaneCounters,
    /// Bytes that data connections carried, current ones included.
    carried: u64,
    /// What is kept for a successor; `null` with `--state none`.
    journal: Option<Health>,
    /// What another gateway finds, too; `null` without `--state valkey://…`.
    store: Option<StoreHealth>,
    /// Lines that were not printed because the reader stalled.
    lines_lost: u64,
    /// Where metrics are served.
    metrics: Option<String>,
}

/// A control connection, and its data connections.
#[derive(Debug, Serialize)]
struct SessionReport {
    #[serde(flatten)]
    session: SessionInfo,
    #[serde(flatten)]
    transferred: pinholes::Transferred,
    /// The ports of its server that its client reaches, while they are open to it.
    range: Option<String>,
}

/// One queue. What the kernel counts is `null` for other users than root.
#[derive(Debug, Serialize)]
pub(super) struct Queue {
    /// Its number.
    pub(super) queue: u16,
    /// Packets that wait for an answer now.
    pub(super) waiting: Option<u64>,
    /// Packets queued since the start.
    pub(super) queued: Option<u64>,
    /// Packets dropped because the queue was full.
    pub(super) dropped_full: Option<u64>,
    /// Packets dropped because the socket's buffer was full.
    pub(super) dropped_buffer: Option<u64>,
    /// Failures to receive packets.
    pub(super) receive_errors: u64,
    /// Failures to answer.
    pub(super) verdict_errors: u64,
    /// Packets from a hook that nothing is steered from: passed.
    pub(super) unknown_hook: u64,
}

/// A pinhole or a data connection.
#[derive(Debug, Serialize)]
struct PinholeReport {
    #[serde(flatten)]
    pinhole: pinholes::PinholeInfo,
    /// Bytes per second of its connection.
    rate: Option<u64>,
}

/// How long an answer waits for what is being recorded.
const SETTLE: Duration = Duration::from_secs(1);
/// How many records a follower gets at once.
const AT_ONCE: usize = 256;

fn unwritable(error: &serde_json::Error) -> Reply {
    Reply::Error(format!("the answer can't be written: {error}"))
}

/// Whether a record is wanted by who asked for those of one session.
fn is_of(record: &Record, session: Option<u64>) -> bool {
    session.is_none() || record.session == session
}

/// Knows whom to ask.
pub(super) struct Status {
    config: CurrentConfig,
    steered: Arc<Steered>,
    shared: Arc<Shared>,
    workers: Vec<Arc<Worker>>,
    /// What wasn't in place, and when looking for it began.
    looked: Mutex<Option<(Instant, Vec<String>)>>,
}

impl Status {
    pub(super) fn new(
        config: &CurrentConfig,
        steered: &Arc<Steered>,
        shared: &Arc<Shared>,
        workers: &[Arc<Worker>],
    ) -> Self {
        Self {
            config: config.clone(),
            steered: Arc::clone(steered),
            shared: Arc::clone(shared),
            workers: workers.to_vec(),
            looked: Mutex::default(),
        }
    }

    /// Answers a request.
    pub(super) fn answer(&self, request: ControlRequest) -> Answer {
        // Events may wait for a moment (`Plane::patience`), but who asks knows of all of them.
        self.shared.with(pinholes::Plane::catch_up);
        let value = match request {
            ControlRequest::Status => serde_json::to_value(self.report(&self.config.now())),
            ControlRequest::Sessions => serde_json::to_value(self.session_reports()),
            ControlRequest::Pinholes => serde_json::to_value(self.pinhole_reports(false)),
            ControlRequest::AllPinholes => serde_json::to_value(self.pinhole_reports(true)),
            ControlRequest::Dialogue { session } => {
                let workers = self.workers.iter();
                let mut said = workers.filter_map(|w| w.engine().watch(SessionId(session)));
                serde_json::to_value(said.next().unwrap_or_default())
            }
            ControlRequest::Events {
                session,
                follow: true,
            } => return self.follow(session),
            ControlRequest::Events { session, .. } => {
                // What happened until now is to be among them.
                self.shared.output().settle(SETTLE);
                let (records, _) = self.shared.records().all();
                let wanted = records.iter().filter(|record| is_of(record, session));
                serde_json::to_value(wanted.map(AsRef::as_ref).collect::<Vec<&Record>>())
            }
        };
        Answer::Reply(match value {
            Ok(value) => Reply::Ok(value),
            Err(e) => unwritable(&e),
        })
    }

    /// The records that are kept, and those that come.
    fn follow(&self, session: Option<u64>) -> Answer {
        self.shared.output().settle(SETTLE);
        let records = self.shared.records().clone();
        let (mut old, mut cursor) = {
            let (old, cursor) = records.all();
            (Some(old), cursor)
        };
        Answer::Follow(Box::new(move |patience| {
            let batch = match old.take() {
                Some(records) => Batch { lost: 0, records },
                None => records.wait(&mut cursor, AT_ONCE, patience),
            };
            let lost = (batch.lost > 0).then(|| Reply::Ok(serde_json::json!({"lost": batch.lost})));
            let wanted = batch.records.iter().filter(|record| is_of(record, session));
            let lines = wanted.map(|record| match serde_json::to_value(record.as_ref()) {
                Ok(value) => Reply::Ok(value),
                Err(e) => unwritable(&e),
            });
            lost.into_iter().chain(lines).collect()
        }))
    }

    fn pinhole_reports(&self, past: bool) -> Vec<PinholeReport> {
        let all = self.shared.pinholes(past).into_iter();
        let report = |pinhole: pinholes::PinholeInfo| PinholeReport {
            rate: pinhole
                .bytes
                .zip(pinhole.seconds)
                .and_then(|(bytes, seconds)| human::rate(bytes, seconds)),
            pinhole,
        };
        all.map(report).collect()
    }

    /// What is printed when all is in place; the last line has the word `ready`. `servers`: those that
    /// rules publish.
    pub(super) fn greeting(&self, servers: &[String]) -> Vec<String> {
        let steering = &self.steered.steering;
        let mut lines = self.steered.found.clone();
        lines.extend(
            steering
                .inside
                .iter()
                .map(|inside| format!("watching inside {inside}")),
        );
        lines.extend(servers.iter().map(|server| format!("watching {server}")));
        if steering.local {
            lines.push("watching local servers and clients".into());
        }
        let prefixes = &self.config.now().nat64;
        lines.extend(
            prefixes
                .iter()
                .map(|prefix| format!("translating for IPv6-only clients: {prefix}")),
        );
        let ports: Vec<_> = steering.ports.iter().map(u16::to_string).collect();
        let queues = match steering.queues.numbers().into_inner() {
            (one, last) if one == last => one.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        lines.push(format!(
            "ftpalg ready: port {}, queue {queues}, backend {}, rules {}",
            ports.join(" "),
            self.shared.with(|plane| plane.backend()),
            self.config.now().rules,
        ));
        lines
    }

    fn sessions(&self) -> Vec<SessionInfo> {
        let now = self.shared.now();
        let mut all = Vec::new();
        for worker in &self.workers {
            all.extend(worker.engine().sessions(now));
        }
        all.sort_by_key(|session| session.id);
        all
    }

    fn session_reports(&self) -> Vec<SessionReport> {
        let transferred = self.shared.transferred();
        let pinholes = self.shared.with(|plane| plane.pinholes());
        let ranges: HashMap<_, _> = pinholes
            .into_iter()
            .filter_map(|p| Some((p.session, p.ports?)))
            .collect();
        let report = |session: SessionInfo| SessionReport {
            transferred: transferred.get(&session.id).copied().unwrap_or_default(),
            range: ranges.get(&session.id).cloned(),
            session,
        };
        self.sessions().into_iter().map(report).collect()
    }

    fn report<'a>(&'a self, config: &'a Config) -> Report<'a> {
        let steering = &self.steered.steering;
        let missing = self.missing();
        let (pinholes, backend, nat) = self
            .shared
            .with(|plane| (plane.pinholes(), plane.backend(), plane.counters()));
        let used = pinholes
            .iter()
            .filter(|p| p.state == pinholes::PinholeState::Used)
            .count();
        let ranges = pinholes.iter().filter(|p| p.ports.is_some()).count();
        Report {
            running: true,
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime: self.shared.now().as_secs(),
            in_place: missing.is_empty(),
            missing,
            inside: steering.inside.iter().map(ToString::to_string).collect(),
            local: steering.local,
            ports: &steering.ports,
            implicit_ports: &config.implicit_ports,
            tls: config.tls.to_string(),
            tls_idle: config.tls_idle.as_secs(),
            backend,
            rules: config.rules,
            steering: self.steered.way(),
            fail: if steering.fail_open { "open" } else { "closed" },
            mark: steering.mark.bit(),
            data_ports: config.data_ports.map(|range| range.to_string()),
            nat64: config.nat64.iter().map(ToString::to_string).collect(),
            deadline: config.deadline.as_secs(),
            limits: config.limits,
            accounting: Events::counts_bytes(),
            sessions: self.sessions().len(),
            pinholes: pinholes.len() - used - ranges,
            ranges,
            data_connections: used,
            queues: self.queues(),
            counters: super::worker::sum(&self.workers),
            nat,
            carried: self.shared.carried(),
            journal: self.shared.journal().map(Journal::health),
            store: self.shared.store(),
            lines_lost: self.shared.output().lost(),
            metrics: config.metrics.map(|address| address.to_string()),
        }
    }

    /// What the metrics show. `in_place` is what [`is_in_place`](Self::is_in_place) said last: looking at
    /// the rules takes long.
    pub(super) fn sample(&self, in_place: bool) -> Sample {
        self.shared.with(pinholes::Plane::catch_up);
        let (pinholes, nat) = self
            .shared
            .with(|plane| (plane.pinholes(), plane.counters()));
        let count =
            |f: fn(&pinholes::PinholeInfo) -> bool| pinholes.iter().filter(|p| f(p)).count();
        let data_connections = count(|p| p.state == pinholes::PinholeState::Used);
        let ranges = count(|p| p.ports.is_some());
        let sessions = self
            .workers
            .iter()
            .map(|worker| worker.engine().session_count());
        let held = self.workers.iter().map(|worker| worker.engine().buffered());
        Sample {
            uptime: self.shared.now().as_secs(),
            in_place,
            sessions: sessions.sum(),
            pinholes: pinholes.len() - data_connections - ranges,
            ranges,
            data_connections,
            held: held.sum(),
            carried: self.shared.carried(),
            queues: self.queues(),
            counters: super::worker::sum(&self.workers),
            nat,
            lines_lost: self.shared.output().lost(),
            journal: self.shared.journal().map(|journal| journal.health().works),
            store: self.shared.store().map(|store| store.works),
        }
    }

    /// Whether all rules are in place.
    pub(super) fn is_in_place(&self) -> bool {
        self.missing().is_empty()
    }

    /// What isn't in place, or why that can't be told. Those who ask while somebody looks share the
    /// next look: it takes several programs.
    fn missing(&self) -> Vec<String> {
        let asked = Instant::now();
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((began, missing)) = &*looked
            && *began >= asked
        {
            return missing.clone();
        }
        let began = Instant::now();
        let missing = self.look();
        *looked = Some((began, missing.clone()));
        missing
    }

    fn look(&self) -> Vec<String> {
        let mut missing = self
            .steered
            .missing()
            .unwrap_or_else(|e| vec![e.to_string()]);
        match self.shared.in_place() {
            Ok(true) => {}
            Ok(false) => missing.push("the pinhole backend's objects".into()),
            Err(e) => missing.push(e.to_string()),
        }
        missing
    }

    fn queues(&self) -> Vec<Queue> {
        let kernel = kernel::counters().unwrap_or_default();
        let numbers = self.steered.steering.queues.numbers();
        numbers
            .zip(&self.workers)
            .map(|(queue, worker)| {
                let counters = kernel.iter().find(|c| c.queue == queue);
                let (receive_errors, verdict_errors, unknown_hook) = worker.errors();
                Queue {
                    queue,
                    waiting: counters.map(|c| c.waiting),
                    queued: counters.map(|c| c.queued),
                    dropped_full: counters.map(|c| c.dropped_full),
                    dropped_buffer: counters.map(|c| c.dropped_buffer),
                    receive_errors,
                    verdict_errors,
                    unknown_hook,
                }
            })
            .collect()
    }
}
