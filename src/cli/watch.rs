//! `ftpalg sessions --watch` on a terminal: a view that is renewed every so often.
//!
//! | module | does |
//! |---|---|
//! | `model` | holds what is shown: sessions, how they are sorted and filtered, which one is chosen; takes keys |
//! | `view` | draws it |
//!
//! A thread of its own asks the daemon, which may take its time. If the daemon ends, what was there last stays
//! on the screen until another one runs.

mod model;
mod view;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use serde_json::Value;

use super::Failure;
use crate::daemon::control::{self, AskError, ControlRequest};

use model::Model;

/// How long a key may wait for somebody to look.
const LOOK: Duration = Duration::from_millis(100);
/// How often the clock on the screen goes on.
const TICK: Duration = Duration::from_secs(1);

/// What the daemon said at one moment.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// When.
    at: Instant,
    /// The answer to `sessions`.
    pub(super) sessions: Value,
    /// The answer to `pinholes`.
    pinholes: Value,
    /// The records of the session whose details are shown.
    records: Value,
    /// Its last commands and replies.
    said: Value,
}

/// Asks the daemon. `detailed`: the session whose records are wanted.
pub(super) fn ask(detailed: Option<u64>) -> Result<Snapshot, AskError> {
    let records = |session| {
        control::ask(ControlRequest::Events {
            session: Some(session),
            follow: false,
        })
    };
    let said = |session| control::ask(ControlRequest::Dialogue { session });
    Ok(Snapshot {
        said: detailed.map_or(Ok(Value::Null), said)?,
        sessions: control::ask(ControlRequest::Sessions)?,
        pinholes: control::ask(ControlRequest::Pinholes)?,
        records: detailed.map_or(Ok(Value::Null), records)?,
        at: Instant::now(),
    })
}

/// Shows the view until the user leaves it, or a signal ends it.
pub(super) fn watch(every: Duration, full_bytes: bool) -> Result<ExitCode, Failure> {
    let failed = |e: io::Error| Failure::usage(format!("the terminal can't be used: {e}"));
    // If none runs at all, that is said as always.
    let mut model = Model::new(ask(None)?, full_bytes, colors());
    let ended = ended_by_signal().map_err(failed)?;
    let (sender, updates) = mpsc::sync_channel(1);
    let detailed = Arc::new(AtomicU64::new(0));
    let wanted = Arc::clone(&detailed);
    thread::Builder::new()
        .name("ask".into())
        .spawn(move || keep_asking(every, &sender, &wanted))
        .map_err(failed)?;
    // A panic restores the terminal as well.
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let done = run(&mut terminal, &mut model, &updates, &ended, &detailed);
    ratatui::restore();
    done.map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

fn run(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    updates: &mpsc::Receiver<Result<Snapshot, AskError>>,
    ended: &AtomicBool,
    detailed: &AtomicU64,
) -> io::Result<()> {
    let mut drawn: Option<Instant> = None;
    while !ended.load(Ordering::Relaxed) {
        while let Ok(update) = updates.try_recv() {
            model.update(update);
            drawn = None;
        }
        if drawn.is_none_or(|at| at.elapsed() >= TICK) {
            terminal.draw(|frame| view::draw(frame, model))?;
            drawn = Some(Instant::now());
        }
        if !event::poll(LOOK)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && model.key(key)
        {
            return Ok(());
        }
        // A key, or another size. Sessions are numbered from 1 on.
        detailed.store(model.detailed().unwrap_or(0), Ordering::Relaxed);
        drawn = None;
    }
    Ok(())
}

/// Asks every so often, until nobody wants to know any more.
fn keep_asking(
    every: Duration,
    sender: &SyncSender<Result<Snapshot, AskError>>,
    detailed: &AtomicU64,
) {
    loop {
        thread::sleep(every);
        let detailed = Some(detailed.load(Ordering::Relaxed)).filter(|session| *session > 0);
        if sender.send(ask(detailed)).is_err() {
            return;
        }
    }
}

/// Set by signals that ask for an end, so that the terminal is as it was afterwards.
fn ended_by_signal() -> io::Result<Arc<AtomicBool>> {
    let ends = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ];
    let signals: SigSet = ends.into_iter().collect();
    signals.thread_block()?;
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let _ = signals.wait();
            told.store(true, Ordering::Relaxed);
        })?;
    Ok(ended)
}

/// Whether colours may be used (<https://no-color.org>).
fn colors() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
