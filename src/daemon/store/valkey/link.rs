//! The connection to the server, and whether it answers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::{Client, Commands, Connection, RedisError, RedisResult};

use super::super::StoreHealth;
use crate::pinholes::Seldom;

/// How long a packet waits for an answer, and for a connection.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long one waits for whom no packet waits.
const LONG_PATIENCE: Duration = Duration::from_secs(1);
/// How long a server that doesn't answer may do so again, before what it had counts as lost.
const GRACE: Duration = Duration::from_secs(3);

/// A connection that all threads share.
pub(super) struct Link {
    client: Client,
    /// As it is shown: without user and password.
    name: String,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// Since when it hasn't answered. Until it is mended, nobody asks.
    silent: Option<Instant>,
    errors: u64,
    /// How often that is told.
    silences: Seldom,
    /// This silence was.
    told: bool,
}

impl Link {
    pub(super) fn new(client: Client) -> Self {
        Self {
            name: client.get_connection_info().addr().to_string(),
            client,
            begun: Instant::now(),
            state: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Asks the server. `None`: it doesn't answer.
    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let mut state = self.state();
        if state.silent.is_some() {
            return None;
        }
        let open = state.connection.take();
        let connection = open.map_or_else(|| self.connect(PATIENCE), Ok);
        let answer = connection.and_then(|mut connection| {
            let answer = question(&mut connection)?;
            state.connection = Some(connection);
            Ok(answer)
        });
        match answer {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.failed(&mut state, &error);
                None
            }
        }
    }

    /// Asks the server in a connection of its own, for longer than a packet may wait. `None`: it doesn't
    /// answer.
    pub(super) fn ask_patiently<T>(
        &self,
        question: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let connection = self.connect(LONG_PATIENCE);
        let answer = connection.and_then(|mut connection| question(&mut connection));
        // It is tried often. In other words than the warning, which is told once a minute at most.
        let told = |e| log::debug!("the store {} couldn't be read: {e}", self.name);
        answer.map_err(told).ok()
    }

    /// Whether it doesn't answer.
    pub(super) fn is_silent(&self) -> bool {
        self.state().silent.is_some()
    }

    /// Whether it hasn't answered for so long that what it had is lost.
    pub(super) fn is_lost(&self) -> bool {
        let gone = |since: Instant| since.elapsed() >= GRACE;
        self.state().silent.is_some_and(gone)
    }

    /// Connects anew to a server that didn't answer. `catch_up` does what couldn't be done meanwhile: a
    /// part each time, until it says that it is done. Returns whether the server may be asked again.
    pub(super) fn mend(
        &self,
        catch_up: impl Fn(&mut Connection) -> RedisResult<bool>,
    ) -> Option<()> {
        let mended = self.connect(LONG_PATIENCE).and_then(|mut connection| {
            while !catch_up(&mut connection)? {}
            // As quickly as a packet needs it.
            limit(&connection, PATIENCE / 2)?;
            connection.ping::<()>()?;
            limit(&connection, PATIENCE)?;
            Ok(connection)
        });
        let mut state = self.state();
        match mended {
            Ok(connection) => {
                state.connection = Some(connection);
                state.silent = None;
                if std::mem::take(&mut state.told) {
                    log::warn!("the store {} answers again", self.name);
                }
                Some(())
            }
            Err(error) => {
                self.failed(&mut state, &error);
                None
            }
        }
    }

    pub(super) fn health(&self, waiting: usize) -> StoreHealth {
        let state = self.state();
        StoreHealth {
            works: state.silent.is_none(),
            errors: state.errors,
            waiting,
        }
    }

    fn connect(&self, patience: Duration) -> RedisResult<Connection> {
        let connection = self.client.get_connection_with_timeout(patience)?;
        limit(&connection, patience)?;
        Ok(connection)
    }

    fn failed(&self, state: &mut State, error: &RedisError) {
        state.errors = state.errors.saturating_add(1);
        state.silent.get_or_insert_with(Instant::now);
        // One that isn't over when the next line may come is told then.
        if !state.told && state.silences.comes(self.begun.elapsed()).is_some() {
            state.told = true;
            log::warn!(
                "the store {} doesn't answer ({error}): until it does, another gateway can't go on with \
                 sessions whose numbers differ on the two sides, nor with announced data connections",
                self.name
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limit(connection: &Connection, patience: Duration) -> RedisResult<()> {
    connection.set_read_timeout(Some(patience))?;
    connection.set_write_timeout(Some(patience))
}
