//! Connections that begin: SYNs that wait for their answer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::flow::Hello;
use super::{Endpoints, Side};
use crate::stream::Seq;

/// A SYN that hasn't been answered.
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    /// The two ends, as the SYN names them.
    pub(super) ends: Endpoints,
    pub(super) side: Side,
    pub(super) hello: Hello,
    at: Duration,
}

impl Syn {
    pub(super) fn new(ends: Endpoints, side: Side, hello: Hello, at: Duration) -> Self {
        Self {
            ends,
            side,
            hello,
            at,
        }
    }

    fn start(&self) -> Start {
        (self.ends.inside, self.hello.isn)
    }
}

/// The inside end, which no NAT changes on its own side, and the number that the client begins with.
type Start = (SocketAddr, Seq);

/// A SYN-ACK, and what it answers.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub(super) ends: Endpoints,
    pub(super) side: Side,
    pub(super) hello: Hello,
    /// The number that it acknowledges: behind that of the SYN, and behind data in the SYN.
    acknowledged: Seq,
}

impl Answer {
    pub(super) fn new(ends: Endpoints, side: Side, hello: Hello, acknowledged: Seq) -> Self {
        Self {
            ends,
            side,
            hello,
            acknowledged,
        }
    }

    /// The client's initial sequence number, if there was no data in the SYN.
    pub(super) fn client(&self) -> Seq {
        self.acknowledged.plus(u32::MAX)
    }

    /// The two ends as a hook at the other end of the connection names them.
    pub(super) fn mirrored(&self) -> Endpoints {
        Endpoints {
            inside: self.ends.outside,
            outside: self.ends.inside,
        }
    }

    fn answers(&self, syn: &Syn) -> bool {
        // Data in the SYN makes the connection untouchable, whatever of it is acknowledged.
        syn.side != self.side && (syn.hello.isn == self.client() || syn.hello.untouchable)
    }
}

/// The time after which hardly any answer comes; and after which most have come.
const PATIENCE: Duration = Duration::from_secs(3);
const IMPATIENCE: Duration = Duration::from_millis(300);

/// All of them.
#[derive(Debug, Default)]
pub(super) struct HalfOpen {
    syns: HashMap<Endpoints, Syn>,
    by_start: HashMap<Start, Endpoints>,
}

impl HalfOpen {
    /// Remembers a SYN. The last one between two ends counts. Where there are `max` already, the
    /// oldest make room, at least those that waited for `life`; false if younger ones had to. So a
    /// flood of SYNs costs those whose answer takes longer than it takes to fill the table.
    pub(super) fn insert(&mut self, syn: Syn, max: usize, life: Duration) -> bool {
        let mut enough = true;
        for life in [life, PATIENCE, IMPATIENCE, Duration::ZERO] {
            if self.syns.len() < max {
                break;
            }
            enough &= life > PATIENCE;
            self.forget(syn.at, life);
        }
        if let Some(old) = self.syns.insert(syn.ends, syn) {
            self.by_start.remove(&old.start());
        }
        self.by_start.insert(syn.start(), syn.ends);
        enough
    }

    /// The SYN between the same ends.
    pub(super) fn direct(&self, answer: &Answer) -> Option<Syn> {
        let syn = self.syns.get(&answer.ends).copied()?;
        answer.answers(&syn).then_some(syn)
    }

    /// The SYN that the answer belongs to by its number, though the outside end has another address
    /// in it. Whoever takes it for one must make sure with conntrack.
    pub(super) fn translated(&self, answer: &Answer) -> Option<Syn> {
        let ends = self.by_start.get(&(answer.ends.inside, answer.client()))?;
        let syn = self.syns.get(ends).copied()?;
        answer.answers(&syn).then_some(syn)
    }

    pub(super) fn remove(&mut self, ends: &Endpoints) {
        if let Some(syn) = self.syns.remove(ends) {
            self.by_start.remove(&syn.start());
        }
    }

    pub(super) fn forget(&mut self, now: Duration, life: Duration) {
        let young = |syn: &Syn| now.saturating_sub(syn.at) < life;
        self.syns.retain(|_, syn| young(syn));
        let syns = &self.syns;
        self.by_start.retain(|_, ends| syns.contains_key(ends));
    }
}
