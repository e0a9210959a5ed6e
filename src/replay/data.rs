//! Data connections in the capture: which announcement each belongs to, and what became of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::engine::Tuple;
use crate::engine::gateway::SessionId;
use crate::wire::{Flags, Segment};

/// How many announcements and connections are remembered.
const MAX: usize = 65_536;
/// The same for one session. Beyond it, the oldest announcements are forgotten, and further connections
/// aren't looked at.
const MAX_OF_SESSION: usize = 1024;

/// A data connection that was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    pub(super) session: SessionId,
    /// Who may connect, as its packets come to the gateway.
    pub(super) from: IpAddr,
    /// Where its peer connects to.
    pub(super) to: SocketAddr,
    /// Where the announcer listens.
    pub(super) land: SocketAddr,
    /// The address that was written.
    pub(super) written: SocketAddr,
}

/// What a packet says of a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Somebody tries to connect.
    Tried,
    /// It was answered.
    Connected,
    /// The SYN was answered with a RST.
    Refused,
    /// It ended: how many bytes went from the end that connected, and to it.
    Ended {
        sent: u64,
        received: u64,
        by_reset: bool,
    },
}

/// News of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) announced: Announced,
    pub(super) original: Tuple,
    pub(super) news: News,
}

#[derive(Debug)]
struct Connection {
    announced: Announced,
    original: Tuple,
    began: Duration,
    answered: bool,
    /// The next byte of each direction: the end that connected, its peer.
    next: [Option<u32>; 2],
    bytes: [u64; 2],
    fins: [bool; 2],
}

/// What is remembered of a session.
#[derive(Debug, Default)]
struct OfSession {
    announced: VecDeque<SocketAddr>,
    connections: Vec<Tuple>,
    /// The initial sequence numbers of its connections: the same SYN on the other side of NAT has
    /// another destination, or another source.
    isns: HashSet<u32>,
}

/// What was announced, and what came of it.
#[derive(Debug, Default)]
pub(super) struct DataConnections {
    /// By each address that it may be known under.
    expected: HashMap<SocketAddr, Announced>,
    /// By source and destination of the end that connected.
    connections: HashMap<Tuple, Connection>,
    sessions: HashMap<SessionId, OfSession>,
    seen: bool,
}

impl DataConnections {
    /// Whether the capture has connections that aren't control connections, so that what isn't in it
    /// wasn't there.
    pub(super) fn are_captured(&self) -> bool {
        self.seen
    }

    pub(super) fn announce(&mut self, announced: Announced) {
        let of = self.sessions.entry(announced.session).or_default();
        for at in [announced.to, announced.land, announced.written] {
            if of.announced.len() >= MAX_OF_SESSION
                && let Some(oldest) = of.announced.pop_front()
            {
                self.expected.remove(&oldest);
            }
            if self.expected.len() < MAX && self.expected.insert(at, announced).is_none() {
                of.announced.push_back(at);
            }
        }
    }

    /// Takes a packet that belongs to no control connection.
    pub(super) fn packet(&mut self, segment: &Segment<'_>, now: Duration) -> Option<Told> {
        let there = Tuple {
            src: segment.source(),
            dst: segment.destination(),
        };
        let flags = segment.flags();
        if flags.has(Flags::SYN) && !flags.has(Flags::ACK) {
            self.seen = true;
            return self.first(there, segment, now);
        }
        let back = Tuple {
            src: there.dst,
            dst: there.src,
        };
        let (key, way) = match self.connections.contains_key(&there) {
            true => (there, 0),
            false => (back, 1),
        };
        let connection = self.connections.get_mut(&key)?;
        let news = connection.goes_on(segment, way)?;
        let told = Told {
            announced: connection.announced,
            original: connection.original,
            news,
        };
        if matches!(news, News::Ended { .. } | News::Refused) {
            self.connections.remove(&key);
            if let Some(of) = self.sessions.get_mut(&told.announced.session) {
                of.connections.retain(|original| *original != key);
            }
        }
        Some(told)
    }

    fn first(&mut self, original: Tuple, segment: &Segment<'_>, now: Duration) -> Option<Told> {
        let announced = *self.expected.get(&original.dst)?;
        let of = self.sessions.entry(announced.session).or_default();
        let full = self.connections.len() >= MAX || of.connections.len() >= MAX_OF_SESSION;
        if of.isns.len() >= MAX_OF_SESSION {
            of.isns.clear();
        }
        if full || self.connections.contains_key(&original) || !of.isns.insert(segment.seq()) {
            return None;
        }
        of.connections.push(original);
        let connection = Connection {
            announced,
            original,
            began: now,
            answered: false,
            next: [Some(segment.seq().wrapping_add(1)), None],
            bytes: [0; 2],
            fins: [false; 2],
        };
        self.connections.insert(original, connection);
        Some(Told {
            announced,
            original,
            news: News::Tried,
        })
    }

    /// Forgets what a session announced; returns the connections of it that were answered, and haven't
    /// ended.
    pub(super) fn forget(&mut self, session: SessionId) -> Vec<(Tuple, Duration)> {
        let Some(of) = self.sessions.remove(&session) else {
            return Vec::new();
        };
        for at in of.announced {
            if self
                .expected
                .get(&at)
                .is_some_and(|one| one.session == session)
            {
                self.expected.remove(&at);
            }
        }
        let gone = of.connections.into_iter();
        let gone = gone.filter_map(|original| self.connections.remove(&original));
        gone.filter(|connection| connection.answered)
            .map(|connection| (connection.original, connection.began))
            .collect()
    }
}

impl Connection {
    /// A further segment, of the original direction (`way` is 0) or of the other one.
    fn goes_on(&mut self, segment: &Segment<'_>, way: usize) -> Option<News> {
        let flags = segment.flags();
        if flags.has(Flags::RST) {
            return Some(if self.answered {
                self.ended(true)
            } else {
                News::Refused
            });
        }
        if flags.has(Flags::SYN) {
            let again = std::mem::replace(&mut self.answered, true);
            self.next[1] = Some(segment.seq().wrapping_add(1));
            return (!again).then_some(News::Connected);
        }
        let length = segment.payload().len();
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let end = segment.seq().wrapping_add(length);
        let next = self.next[way].get_or_insert(segment.seq());
        let fresh = end.wrapping_sub(*next);
        if fresh > 0 && fresh < u32::MAX / 2 {
            *next = end;
            // Its numbers tell how many bytes there were, even if only its end was captured.
            self.bytes[way] = self.bytes[way].saturating_add(fresh.into());
        }
        if flags.has(Flags::FIN) {
            self.fins[way] = true;
            if self.fins == [true; 2] {
                return Some(self.ended(false));
            }
        }
        None
    }

    fn ended(&self, by_reset: bool) -> News {
        News::Ended {
            sent: self.bytes[0],
            received: self.bytes[1],
            by_reset,
        }
    }
}
