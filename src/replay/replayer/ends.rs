//! How connections end, and the capture.

use std::time::Duration;

use super::{LINGER, Packet, Replayer, Summary};
use crate::engine::Tuple;
use crate::engine::gateway::SessionId;
use crate::replay::connection::way;
use crate::replay::transcript::{CROWDED, MAX_TEXT, MAX_TEXT_CROWDED};
use crate::replay::{End, ReplayError};
use crate::wire::{Flags, Segment};

impl Replayer<'_, '_> {
    /// Notes the end of a connection that the engine doesn't follow.
    pub(super) fn note_end(
        &mut self,
        packet: &Packet<'_>,
        segment: &Segment<'_>,
        key: Tuple,
    ) -> Result<(), ReplayError> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        let flags = segment.flags();
        let time = packet.frame.time;
        connection.fins[way(packet.stand.side)] |= flags.has(Flags::FIN);
        let reset = flags.has(Flags::RST);
        let ended = reset || connection.fins == [true; 2];
        if connection.over || connection.transcript.session.is_some() || !ended {
            return Ok(());
        }
        if reset && connection.unfollowed.is_none() {
            let text = "refused: a RST answered its SYN".to_owned();
            connection.trouble(time, "closed", text);
            connection.unfollowed = Some("refused");
        }
        self.finish_connection(key, time)
    }

    /// Shows a connection that is over.
    pub(super) fn finish_connection(
        &mut self,
        key: Tuple,
        time: Duration,
    ) -> Result<(), ReplayError> {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        if std::mem::replace(&mut connection.over, true) {
            return Ok(());
        }
        if let Some(number) = connection.transcript.session {
            let session = SessionId(number);
            self.sessions.remove(&session);
            for (Tuple { src, dst }, began) in self.data.forget(session) {
                let lasts = self.now.saturating_sub(began).as_secs_f64();
                let text = format!("data {src} -> {dst} goes on, for {lasts:.1} s so far");
                connection.note(time, "data", text);
            }
        } else {
            self.summary.unfollowed += 1;
        }
        let transcript = &mut connection.transcript;
        self.size = self.size.saturating_sub(transcript.size);
        let failed = !transcript.troubles.is_empty();
        self.summary.failed += u64::from(failed);
        if failed || !self.show.view.failures {
            let shown = self.show.transcript(transcript, false);
            shown.map_err(ReplayError::Show)?;
        }
        transcript.entries = Vec::new();
        transcript.size = 0;
        Ok(())
    }

    /// Keeps a transcript from growing without a bound.
    pub(super) fn bound(&mut self, key: Tuple, before: usize) -> Result<(), ReplayError> {
        let failures = self.show.view.failures;
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(());
        };
        let transcript = &mut connection.transcript;
        self.size = self
            .size
            .saturating_add(transcript.size)
            .saturating_sub(before);
        let most = match self.size > CROWDED {
            true => MAX_TEXT_CROWDED,
            false => MAX_TEXT,
        };
        if connection.over || transcript.size <= most {
            return Ok(());
        }
        self.size = self.size.saturating_sub(transcript.size);
        if failures && transcript.troubles.is_empty() {
            transcript.shorten();
            return Ok(());
        }
        let part = transcript.take_part();
        self.show.transcript(&part, true).map_err(ReplayError::Show)
    }

    /// Forgets what is over.
    pub(super) fn tick(&mut self) -> Result<(), ReplayError> {
        self.ticked = self.now;
        self.engine.tick(self.now, &mut self.world);
        let time = self.started.unwrap_or_default().saturating_add(self.now);
        self.tell_events(time)?;
        let now = self.now;
        let world = &mut self.world;
        self.connections.retain(|_, connection| {
            let gone = connection.over && now.saturating_sub(connection.seen) >= LINGER;
            if gone {
                world.forget(&connection.named);
            }
            !gone
        });
        Ok(())
    }

    /// The capture is over.
    pub(in crate::replay) fn finish(mut self, end: End) -> Result<Summary, ReplayError> {
        let time = self.started.unwrap_or_default().saturating_add(self.now);
        let mut left: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, one)| !one.over)
            .collect();
        left.sort_by_key(|(key, one)| {
            (
                one.transcript.session.unwrap_or(u64::MAX),
                one.transcript.began,
                key.src,
                key.dst,
            )
        });
        let left: Vec<_> = left.into_iter().map(|(key, _)| *key).collect();
        for key in left {
            let session = self
                .connections
                .get(&key)
                .and_then(|one| one.transcript.session);
            if let Some(session) = session {
                self.judge_expected(SessionId(session), time);
            }
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.leave_rest(time);
                match (session, connection.unfollowed) {
                    (None, None) => {
                        let text = "not followed: no answer to its SYN".to_owned();
                        connection.trouble(time, "unfollowed", text);
                    }
                    (None, Some(_)) => {}
                    (Some(_), _) => {
                        let text = "still open where the capture ends".to_owned();
                        connection.note(time, "closed", text);
                    }
                }
            }
            self.finish_connection(key, time)?;
        }
        self.summary.end = end;
        self.show
            .summary(&self.summary)
            .map_err(ReplayError::Show)?;
        if let Some(edited) = self.edited {
            edited.finish().map_err(ReplayError::Write)?;
        }
        Ok(self.summary)
    }
}
