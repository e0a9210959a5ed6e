//! What is known of a session's transfers until they are told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::human;
use super::super::record::Transfer;
use crate::engine::gateway::PinholeId;
use crate::ftp::Mode;
use crate::pinholes::{DataConnection, Finished};

/// How much of each is known of a session at a time.
pub(super) const MAX_EACH: usize = 8;
/// How long a transfer whose reply has come waits for word of its data connection.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// What is known of a session that does something.
#[derive(Debug, Default)]
pub(super) struct More {
    pub(super) tls: bool,
    /// It has ended, and its last data connection hasn't.
    pub(super) closed: bool,
    /// It is in the chronicle's list of sessions that wait.
    pub(super) waits: bool,
    /// Announcements that no transfer has used.
    pub(super) announced: VecDeque<Announced>,
    /// Data connections that belong to no transfer yet.
    pub(super) unused: VecDeque<Data>,
    /// Pinholes for commands that the server refused: their data connections are none of a transfer.
    pub(super) refused: VecDeque<PinholeId>,
    pub(super) transfers: VecDeque<Going>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    pub(super) pinhole: PinholeId,
    pub(super) mode: Mode,
    pub(super) old: SocketAddr,
    pub(super) new: SocketAddr,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Data {
    pub(super) connection: DataConnection,
    pub(super) at: Instant,
    pub(super) finished: Option<Finished>,
}

#[derive(Debug)]
pub(super) struct Going {
    pub(super) verb: &'static str,
    pub(super) name: String,
    pub(super) began: Instant,
    pub(super) announced: Option<Announced>,
    pub(super) data: Option<Data>,
    pub(super) ended: Option<Ended>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) at: Instant,
    pub(super) begun: bool,
    pub(super) code: Option<u16>,
}

impl More {
    /// A transfer that uses the last announcement.
    pub(super) fn going(&mut self, verb: &'static str, name: String, at: Instant) -> Going {
        let announced = self.announced.pop_back();
        // What was announced before wasn't used.
        self.announced.clear();
        let mut data = None;
        if let Some(announced) = announced {
            let is_its = |data: &Data| data.connection.pinhole == announced.pinhole;
            let at = self.unused.iter().position(is_its);
            data = at.and_then(|at| self.unused.remove(at));
            self.unused.retain(|data| data.finished.is_none());
        }
        Going {
            verb,
            name,
            began: at,
            announced,
            data,
            ended: None,
        }
    }
}

impl Going {
    /// The pinhole that was meant for it, if the server refused it.
    pub(super) fn refused_pinhole(&self) -> Option<PinholeId> {
        let refused = self.ended.is_some_and(|ended| ended.is_refusal());
        let announced = self.announced.filter(|_| refused)?;
        Some(announced.pinhole)
    }

    /// It has begun, and its pinhole isn't used yet.
    pub(super) fn awaits_connection(&self) -> bool {
        self.ended.is_none() && self.data.is_none() && self.announced.is_some()
    }
}

impl Ended {
    /// The server refused the command.
    pub(super) fn is_refusal(&self) -> bool {
        !self.begun && self.code.is_some_and(|code| code >= 400)
    }
}

pub(super) enum Ripeness {
    Told,
    /// For word of its data connection.
    Waits(Instant),
    Runs,
}

impl Going {
    pub(super) fn ripeness(&self, now: Instant, hurry: bool) -> Ripeness {
        let finished = self.data.is_some_and(|data| data.finished.is_some());
        let Some(ended) = self.ended else {
            return match hurry && (finished || self.data.is_none()) {
                true => Ripeness::Told,
                false => Ripeness::Runs,
            };
        };
        if finished || ended.is_refusal() || self.announced.is_none() {
            return Ripeness::Told;
        }
        match self.data {
            // It goes on: the server's last bytes are still under way.
            Some(_) => Ripeness::Runs,
            None if hurry || now.saturating_duration_since(ended.at) >= GRACE => Ripeness::Told,
            None => Ripeness::Waits(ended.at),
        }
    }
}

impl Data {
    /// One of which nothing was known before its end.
    pub(super) fn over(finished: Finished, at: Instant) -> Self {
        Self {
            connection: finished.connection,
            at: at.checked_sub(finished.duration).unwrap_or(at),
            finished: Some(finished),
        }
    }

    pub(super) fn end(&self) -> Instant {
        let lasted = self
            .finished
            .map_or(Duration::ZERO, |finished| finished.duration);
        self.at.checked_add(lasted).unwrap_or(self.at)
    }
}

impl Transfer {
    /// Adds what the data connection shows. The dialogue's times are `began` and `ended`.
    pub(super) fn carried(&mut self, data: &Data, began: Instant, ended: Instant) {
        let Some(finished) = data.finished else {
            return;
        };
        if !finished.established {
            return;
        }
        self.mode = Some(data.connection.mode);
        self.from = Some(data.connection.from);
        self.to = Some(data.connection.to);
        self.land = Some(data.connection.land);
        self.bytes = finished
            .bytes
            .map(|bytes| bytes.original.saturating_add(bytes.reply));
        let start = began.min(data.at);
        let end = data.end().max(ended);
        self.seconds = end.saturating_duration_since(start).as_secs_f64();
        self.rate = self
            .bytes
            .and_then(|bytes| human::rate(bytes, self.seconds));
    }
}

/// Adds to a list of a session; the oldest makes room.
pub(super) fn push<T>(list: &mut VecDeque<T>, new: T) {
    if list.len() >= MAX_EACH {
        list.pop_front();
    }
    list.push_back(new);
}
