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

    fn key(&self) -> Key {
        (self.ends, self.hello.isn)
    }

    fn start(&self) -> Start {
        (self.ends.inside, self.hello.isn)
    }
}

/// What tells SYNs apart. Two of the same name may wait: then one is forged, or from an earlier attempt,
/// and the answer says by its number which of them the server means.
type Key = (Endpoints, Seq);

/// The inside end, which no NAT changes on its own side, and the number that the client begins with.
type Start = (SocketAddr, Seq);

/// A SYN-ACK, and what it answers.
#[derive(Clone, Copy, Debug)]
pub struct SynAck {
    pub(super) ends: Endpoints,
    pub(super) side: Side,
    pub(super) hello: Hello,
    /// The number that it acknowledges: the one behind the SYN's, since no data goes on with a SYN.
    acknowledged: Seq,
}

impl SynAck {
    pub(super) fn new(ends: Endpoints, side: Side, hello: Hello, acknowledged: Seq) -> Self {
        Self {
            ends,
            side,
            hello,
            acknowledged,
        }
    }

    /// The client's initial sequence number.
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
        syn.side != self.side && syn.hello.isn == self.client()
    }
}

/// All of them, in two generations: when the younger one is full, it takes the older one's place. So
/// a flood of SYNs that nobody answers takes the place of older ones, bounded memory and no search; an
/// honest answer comes long before as many SYNs as fit.
#[derive(Debug, Default)]
pub(super) struct HalfOpen {
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    syns: HashMap<Key, Syn>,
    by_start: HashMap<Start, Endpoints>,
}

impl HalfOpen {
    /// Remembers a SYN; returns how many others are forgotten for it, so that there are no more than
    /// `max` (at least two). Of those with the same number between the same ends, which are
    /// repetitions, the last one counts.
    pub(super) fn insert(&mut self, syn: Syn, max: usize) -> usize {
        self.remove(&syn);
        let mut forgotten = 0;
        if self.young.syns.len() >= (max / 2).max(1) {
            forgotten = self.old.syns.len();
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(syn);
        forgotten
    }

    /// The SYN between the same ends.
    pub(super) fn direct(&self, syn_ack: &SynAck) -> Option<Syn> {
        let key = (syn_ack.ends, syn_ack.client());
        let syn = self.generations().find_map(|g| g.syns.get(&key))?;
        syn_ack.answers(syn).then_some(*syn)
    }

    /// The SYN that the answer belongs to by its number, though the outside end has another address
    /// in it. Whoever takes it for one must make sure with conntrack.
    pub(super) fn translated(&self, syn_ack: &SynAck) -> Option<Syn> {
        let start = (syn_ack.ends.inside, syn_ack.client());
        let find = |g: &Generation| {
            let ends = g.by_start.get(&start)?;
            g.syns.get(&(*ends, start.1)).copied()
        };
        let syn = self.generations().find_map(find)?;
        syn_ack.answers(&syn).then_some(syn)
    }

    pub(super) fn remove(&mut self, syn: &Syn) {
        self.young.remove(syn);
        self.old.remove(syn);
    }

    pub(super) fn forget(&mut self, now: Duration, life: Duration) {
        self.young.forget(now, life);
        self.old.forget(now, life);
    }

    fn generations(&self) -> impl Iterator<Item = &Generation> {
        [&self.young, &self.old].into_iter()
    }
}

impl Generation {
    fn insert(&mut self, syn: Syn) {
        self.by_start.insert(syn.start(), syn.ends);
        self.syns.insert(syn.key(), syn);
    }

    fn remove(&mut self, syn: &Syn) {
        if self.syns.remove(&syn.key()).is_some() {
            self.by_start.remove(&syn.start());
        }
    }

    fn forget(&mut self, now: Duration, life: Duration) {
        let young = |syn: &Syn| now.saturating_sub(syn.at) < life;
        self.syns.retain(|_, syn| young(syn));
        let syns = &self.syns;
        self.by_start
            .retain(|(_, isn), ends| syns.contains_key(&(*ends, *isn)));
    }
}
