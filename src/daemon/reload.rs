//! SIGHUP: reads the configuration file again, and goes by what can change while the daemon runs. No
//! session ends, and no pinhole closes. The thread also follows the names of `--advertise`.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;

use super::advertised::Advertised;
use super::changes::Changes;
use super::config::Config;
use super::events::What;
use super::output::Output;
use super::shared::Shared;
use super::worker::Worker;
use super::{notify, setup};

/// How often names are looked up again.
const PERIOD: Duration = Duration::from_secs(60);

/// Where the settings came from, to be read again.
pub struct Source {
    /// The file's name.
    pub name: String,
    /// Reads it, and puts the flags of the command line over it. All mistakes, a line each, with what
    /// is expected.
    pub read: Box<dyn Fn() -> Result<Config, Vec<String>> + Send>,
}

/// The settings that the daemon goes by now.
#[derive(Clone, Debug)]
pub(super) struct CurrentConfig(Arc<Mutex<Arc<Config>>>);

impl CurrentConfig {
    pub(super) fn new(config: &Config) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(config.clone()))))
    }

    /// As they are at this moment.
    pub(super) fn now(&self) -> Arc<Config> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, config: Config) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

/// Reads the settings again when it is asked to.
pub(super) struct Reloader {
    pub(super) source: Option<Source>,
    pub(super) config: CurrentConfig,
    pub(super) advertised: Advertised,
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Vec<Arc<Worker>>,
}

impl Reloader {
    /// Serves each message of `asked`, and looks names up every minute, for as long as the process
    /// lives. Sleeps where there are no names.
    pub(super) fn serve(mut self, asked: &Receiver<()>) {
        loop {
            let asked = match self.advertised.has_names() {
                true => asked.recv_timeout(PERIOD),
                false => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match asked {
                Ok(()) => self.reload(),
                Err(RecvTimeoutError::Timeout) => {}
                // The thread that waits for signals is gone.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(PERIOD),
            }
            self.look_up_names();
            if asked.is_ok() {
                // Only now, with the names looked up, is it done.
                notify(&[NotifyState::Ready]);
            }
        }
    }

    /// Reads the file again, and tells what came of it.
    fn reload(&mut self) {
        tell_reloading();
        let Some(source) = &self.source else {
            let names = match self.advertised.has_names() {
                true => "; names in --advertise are looked up again",
                false => "",
            };
            let line = format!("SIGHUP: there is no --config file to read again{names}");
            return self.output().line(line);
        };
        let name = source.name.clone();
        let read = (source.read)();
        let changed = read.and_then(|new| self.change(new));
        match changed {
            Ok((made, refused)) => {
                for setting in &refused {
                    log::warn!(
                        "{setting}: can't change while running; restart ftpalg \
                         (`systemctl restart ftpalg` hands its sessions over)"
                    );
                }
                let what = match (made.is_empty(), refused.is_empty()) {
                    (false, _) => made.join(", "),
                    (true, true) => "nothing changed".to_owned(),
                    (true, false) => "nothing else changed".to_owned(),
                };
                self.output().line(format!("reloaded {name}: {what}"));
                let what = format!("{name}: {what}");
                self.output().note(What::Reload { what });
            }
            Err(mistakes) => {
                for mistake in mistakes {
                    log::error!("{mistake}");
                }
                log::error!("{name} isn't reloaded: all settings stay as they were");
            }
        }
    }

    /// Goes by new settings, as far as they can change. Returns what changed and what can't.
    fn change(&mut self, new: Config) -> Result<(Vec<String>, Vec<String>), Vec<String>> {
        let old = self.config.now();
        let Changes {
            config,
            made,
            refused,
        } = Changes::between(&old, new)?;
        if made.is_empty() {
            return Ok((made, refused));
        }
        if config.advertise != old.advertise {
            self.advertised = self
                .advertised
                .replaced(&config.advertise)
                .map_err(|e| vec![e])?;
        }
        if config.data_ports != old.data_ports {
            setup::check_data_ports(&config);
        }
        let plane = config.plane();
        self.shared.with(|state| state.reconfigure(&plane));
        let engines = config.engine(self.advertised.list());
        for worker in &self.workers {
            worker.engine().reconfigure(engines.clone());
        }
        self.output().names(config.events.names);
        self.config.set(config);
        Ok((made, refused))
    }

    fn look_up_names(&mut self) {
        let changes = self.advertised.refresh();
        if changes.is_empty() {
            return;
        }
        let list = self.advertised.list();
        for worker in &self.workers {
            worker.engine().advertise(list.clone());
        }
        for line in changes {
            self.output().line(line);
        }
    }

    fn output(&self) -> &Output {
        self.shared.output()
    }
}

/// Tells the service manager that a reload begins. `Type=notify-reload` waits for the end of it, and
/// needs the time as well.
fn tell_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(e) => log::warn!("the service manager can't be told of the reload: {e}"),
    }
}
