//! What is told of what the engine, the plane and the data connections say.

use std::net::SocketAddr;
use std::time::Duration;

use super::Replayer;
use crate::engine::event::Event;
use crate::engine::gateway::SessionId;
use crate::engine::{Stats, Tuple};
use crate::pinholes::PlaneReport;
use crate::replay::connection::{Connection, Expected};
use crate::replay::data::{Announced, News, Told};
use crate::replay::transcript::What;
use crate::replay::{ReplayError, words};

impl Replayer<'_, '_> {
    pub(super) fn tell_events(&mut self, time: Duration) -> Result<(), ReplayError> {
        for event in self.world.take_events() {
            self.tell_event(event, time)?;
        }
        let reports: Vec<_> = self.world.take_reports().collect();
        for report in reports {
            self.tell_report(&report, time);
        }
        Ok(())
    }

    pub(super) fn of_session(&mut self, session: SessionId) -> Option<&mut Connection> {
        let key = self.sessions.get(&session)?;
        self.connections.get_mut(key)
    }

    /// A session has just begun: it is the connection whose packet is looked at.
    pub(super) fn adopt(&mut self, session: SessionId, time: Duration) {
        let Some((key, connection)) = self
            .current
            .and_then(|key| Some((key, self.connections.get_mut(&key)?)))
        else {
            return;
        };
        if connection.over {
            // It took the place of one with the same ends.
            connection.begin_again(time);
        }
        connection.transcript.session = Some(session.0);
        self.sessions.insert(session, key);
    }

    pub(super) fn tell_event(&mut self, event: Event, time: Duration) -> Result<(), ReplayError> {
        let names = self.show.view.names;
        match event {
            Event::SessionOpened {
                session, joined, ..
            } => {
                self.adopt(session, time);
                self.summary.sessions += 1;
                if joined && let Some(connection) = self.of_session(session) {
                    let text = "joined in its middle";
                    connection.note(time, "joined", text.to_owned());
                }
            }
            Event::NotAdmitted { session, why, .. } => {
                self.adopt(session, time);
                if let Some(connection) = self.of_session(session) {
                    connection.trouble(time, "limit", format!("opens nothing: {why}"));
                }
            }
            Event::Announced {
                session,
                verb,
                old,
                new,
                from,
                land,
                ..
            } => {
                let what = What::Announced {
                    verb,
                    old,
                    new,
                    from,
                    land,
                };
                let announced = Announced {
                    session,
                    from,
                    to: new,
                    land,
                    written: old,
                };
                self.announced(announced, what, time);
            }
            Event::Refused {
                session,
                verb,
                why,
                replaced,
                ..
            } => {
                let how = match replaced {
                    true => "refused",
                    false => "passed as it is, nothing opens",
                };
                self.summary.refused += u64::from(replaced);
                if let Some(connection) = self.of_session(session) {
                    connection.transcript.refused += 1;
                    let why = words::printable(why.as_bytes());
                    connection.trouble(time, "refused", format!("{verb} {how}: {why}"));
                }
            }
            Event::LoggedIn { session, user } => {
                if let Some(connection) = self.of_session(session) {
                    let text = match names {
                        true => {
                            format!("logged in: {}", words::printable(user.as_bytes()))
                        }
                        false => "logged in".to_owned(),
                    };
                    connection.note(time, "login", text);
                }
            }
            Event::LoginRefused { session, code, .. } => {
                if let Some(connection) = self.of_session(session) {
                    connection.trouble(time, "login", format!("login refused: {code}"));
                }
            }
            // The lines tell it.
            Event::TransferBegun { .. } | Event::TransferEnded { code: Some(_), .. } => {}
            Event::TransferEnded {
                session,
                verb,
                code: None,
                ..
            } => {
                if let Some(connection) = self.of_session(session) {
                    connection.trouble(time, "failed", format!("{verb} got no final reply"));
                }
            }
            Event::Opaque { session, why } => {
                if let Some(connection) = self.of_session(session) {
                    let text = format!("no longer read: {why}");
                    match why == "TLS" {
                        true => connection.note(time, "unread", text),
                        false => connection.trouble(time, "unread", text),
                    }
                    if !matches!(why, "limit" | "missed") {
                        connection.set_mute(true);
                    }
                }
            }
            Event::TlsPassed { session, .. } => {
                if let Some(connection) = self.of_session(session) {
                    let text = "TLS hides its data connections: they get no pinholes \
                                (--tls range:A-B, --tls deny)";
                    connection.note(time, "tls", text.to_owned());
                }
            }
            Event::ClearAgain { session, followed } => {
                if let Some(connection) = self.of_session(session) {
                    let text = match followed {
                        true => "in clear text again: read again",
                        false => "in clear text again, but not followed",
                    };
                    connection.note(time, "tls", text.to_owned());
                    connection.set_mute(false);
                }
            }
            Event::Bypassed { session, by } => {
                if let Some(connection) = self.of_session(session) {
                    let text = format!("passes unread: --bypass {by}");
                    connection.note(time, "unread", text);
                    connection.set_mute(true);
                }
            }
            Event::SessionClosed { session, how } => {
                self.judge_expected(session, time);
                if let Some(connection) = self.of_session(session) {
                    connection.closed(how, time);
                }
                if let Some(key) = self.sessions.get(&session).copied() {
                    self.finish_connection(key, time)?;
                }
            }
        }
        Ok(())
    }

    /// An address was announced, and let through.
    pub(super) fn announced(&mut self, announced: Announced, what: What, time: Duration) {
        self.judge_expected(announced.session, time);
        self.summary.rewritten += u64::from(announced.written != announced.to);
        self.data.announce(announced);
        let Some(connection) = self.of_session(announced.session) else {
            return;
        };
        connection.expected = Some(Expected {
            announced,
            wanted: false,
            tried: false,
            answered: false,
        });
        connection.transcript.add(time, what);
    }

    pub(super) fn tell_report(&mut self, report: &PlaneReport, time: Duration) {
        if let PlaneReport::RangeOpened(range) = report {
            let ports = range.ports.clone().unwrap_or_default();
            let text = format!(
                "opens ports {ports} of {} for {}",
                range.to.ip(),
                range.from
            );
            if let Some(connection) = self.of_session(range.session) {
                connection.note(time, "range", text);
            }
        }
    }

    /// Something happened to a data connection.
    pub(super) fn tell_data(&mut self, told: &Told, time: Duration) {
        let Told {
            announced,
            original,
            news,
        } = *told;
        if news == News::Tried {
            self.world.used(Tuple {
                src: SocketAddr::new(announced.from, original.src.port()),
                dst: announced.to,
            });
        }
        let Some(connection) = self.of_session(announced.session) else {
            return;
        };
        if let Some(expected) = &mut connection.expected
            && expected.announced == announced
        {
            expected.tried = true;
            expected.answered |= news != News::Tried;
        }
        let Tuple { src, dst } = original;
        let text = format!("data {src} -> {dst}");
        match news {
            News::Tried => {}
            News::Connected => connection.note(time, "data", format!("{text} connected")),
            News::Refused => connection.trouble(time, "data", format!("{text} was refused: RST")),
            News::Ended {
                sent,
                received,
                by_reset,
            } => {
                let how = if by_reset { "RST" } else { "FIN" };
                let text = format!("{text} closed: {how}, {sent} bytes sent, {received} received");
                connection.note(time, "data", text);
            }
        }
    }

    /// What came of a session's last announcement.
    pub(super) fn judge_expected(&mut self, session: SessionId, time: Duration) {
        let captured = self.data.are_captured();
        let Some(connection) = self.of_session(session) else {
            return;
        };
        let Some(expected) = connection.expected.take() else {
            return;
        };
        let to = expected.announced.to;
        if expected.tried && !expected.answered {
            let text = format!("the data connection to {to} got no answer");
            connection.trouble(time, "data", text);
        } else if captured && expected.wanted && !expected.tried {
            let text = format!("no data connection to {to} came");
            connection.trouble(time, "data", text);
        }
    }
}

/// What the engine's counters say of one packet.
pub(super) fn tell_stats(
    connection: &mut Connection,
    before: &Stats,
    after: &Stats,
    time: Duration,
) {
    let quiet = [
        (
            before.held,
            after.held,
            "held: its bytes wait for the rest of an address",
        ),
        (
            before.out_of_order,
            after.out_of_order,
            "kept back: bytes before it are missing",
        ),
        (
            before.stripped,
            after.stripped,
            "data or Multipath TCP is taken out of its SYN",
        ),
    ];
    for (_, _, text) in quiet
        .into_iter()
        .filter(|(before, after, _)| before != after)
    {
        connection.note(time, "held", text.to_owned());
    }
    let loud = [
        (before.waited, after.waited, "waits: too much is in flight"),
        (
            before.contradicted,
            after.contradicted,
            "sent again with other bytes: the first ones go out",
        ),
        (
            before.unacceptable,
            after.unacceptable,
            "its numbers don't fit: its receiver doesn't accept it",
        ),
        (
            before.orphaned,
            after.orphaned,
            "nobody can go on with it: it is ended",
        ),
        (
            before.overlong,
            after.overlong,
            "a line is too long: it passes unread",
        ),
        (
            before.unparsable,
            after.unparsable,
            "its address can't be read strictly: it passes as it is",
        ),
        (
            before.unasked,
            after.unasked,
            "an address that nobody asked for, or before the login: it passes as it is",
        ),
    ];
    for (_, _, text) in loud
        .into_iter()
        .filter(|(before, after, _)| before != after)
    {
        connection.trouble(time, "engine", text.to_owned());
    }
}
