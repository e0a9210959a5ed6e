//! Half-open connections: SYNs that wait for their SYN-ACK.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::Side;
use super::endpoints::Endpoints;
use super::flow::Hello;
use crate::stream::Seq;

/// A SYN without its SYN-ACK.
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

    fn key(&self) -> SynKey {
        (self.ends, self.hello.isn)
    }

    fn start(&self) -> SynStart {
        (self.ends.inside(), self.hello.isn)
    }
}

/// What tells SYNs apart. Two between the same ends may wait, if one is forged or from an earlier
/// attempt. The SYN-ACK says by its number which of them it answers.
type SynKey = (Endpoints, Seq);

/// The inside end, which NAT doesn't change at its own hooks, and the client's initial sequence
/// number.
type SynStart = (SocketAddr, Seq);

/// A SYN-ACK, and what it answers.
#[derive(Clone, Copy, Debug)]
pub struct SynAck {
    pub(super) ends: Endpoints,
    pub(super) side: Side,
    pub(super) hello: Hello,
    /// The number that it acknowledges. It is one more than the SYN's, since a SYN goes on without
    /// data.
    acknowledged: Seq,
    at: Duration,
}

impl SynAck {
    pub(super) fn new(
        ends: Endpoints,
        side: Side,
        hello: Hello,
        acknowledged: Seq,
        at: Duration,
    ) -> Self {
        Self {
            ends,
            side,
            hello,
            acknowledged,
            at,
        }
    }

    /// The client's initial sequence number.
    pub(super) fn client(&self) -> Seq {
        self.acknowledged.plus(u32::MAX)
    }

    /// The two ends as the hooks of the connection's other end name them.
    pub(super) fn mirrored(&self) -> Endpoints {
        self.ends.mirrored()
    }

    fn answers(&self, syn: &Syn) -> bool {
        syn.side != self.side && syn.hello.isn == self.client()
    }
}

/// SYNs that wait for their SYN-ACK, in two generations.
///
/// The younger generation replaces the older one when it is full, or as old as a SYN may get. So
/// memory is bounded, and old SYNs are dropped without a search. A flood of unanswered SYNs evicts
/// older ones; an honest SYN-ACK comes long before that.
#[derive(Debug)]
pub(super) struct HalfOpen {
    young: Generation,
    old: Generation,
    /// How many SYNs a generation has room for.
    room: usize,
    /// How long a SYN may wait.
    life: Duration,
    /// When the younger generation began.
    began: Duration,
}

#[derive(Debug, Default)]
struct Generation {
    syns: HashMap<SynKey, Syn>,
    by_start: HashMap<SynStart, Endpoints>,
}

impl HalfOpen {
    /// Room for `max` SYNs (at least two), each of which may wait for `life`.
    pub(super) fn new(max: usize, life: Duration) -> Self {
        let mut half_open = Self {
            young: Generation::default(),
            old: Generation::default(),
            room: 0,
            life,
            began: Duration::ZERO,
        };
        half_open.resize(max);
        half_open
    }

    /// Changes the room. SYNs that are too many for a smaller one leave with their generation.
    pub(super) fn resize(&mut self, max: usize) {
        self.room = (max / 2).max(1);
    }

    /// Whether no SYN waits.
    pub(super) fn is_empty(&self) -> bool {
        self.generations().all(|g| g.syns.is_empty())
    }

    /// Remembers a SYN, and returns how many others are evicted for it. A retransmission (the same
    /// ends and number) replaces the SYN.
    pub(super) fn insert(&mut self, syn: Syn) -> usize {
        self.remove(&syn);
        let mut forgotten = 0;
        if self.young.syns.len() >= self.room {
            forgotten = self.old.syns.len();
            self.next_generation(syn.at);
        }
        self.young.insert(syn);
        forgotten
    }

    /// The SYN between the same ends.
    pub(super) fn direct(&self, syn_ack: &SynAck) -> Option<Syn> {
        let key = (syn_ack.ends, syn_ack.client());
        let syn = self.generations().find_map(|g| g.syns.get(&key))?;
        self.is_answered_by(syn, syn_ack).then_some(*syn)
    }

    /// The SYN with the same inside end, and the number that the SYN-ACK acknowledges, whatever the
    /// outside end's address is. The caller must check with conntrack that NAT explains the
    /// difference.
    pub(super) fn translated(&self, syn_ack: &SynAck) -> Option<Syn> {
        let start = (syn_ack.ends.inside(), syn_ack.client());
        let find = |g: &Generation| {
            let ends = g.by_start.get(&start)?;
            g.syns.get(&(*ends, start.1)).copied()
        };
        let syn = self.generations().find_map(find)?;
        self.is_answered_by(&syn, syn_ack).then_some(syn)
    }

    pub(super) fn remove(&mut self, syn: &Syn) {
        self.young.remove(syn);
        self.old.remove(syn);
    }

    /// Frees the memory of SYNs that have waited for too long, within twice the time they had.
    pub(super) fn forget(&mut self, now: Duration) {
        if now.saturating_sub(self.began) >= self.life {
            self.next_generation(now);
        }
    }

    fn next_generation(&mut self, now: Duration) {
        self.old = std::mem::take(&mut self.young);
        self.began = now;
    }

    fn is_answered_by(&self, syn: &Syn, syn_ack: &SynAck) -> bool {
        syn_ack.answers(syn) && syn_ack.at.saturating_sub(syn.at) < self.life
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(60);

    fn hello(isn: u32) -> Hello {
        Hello {
            isn: Seq(isn),
            mss: None,
            shift: None,
            window: 1000,
            signed: false,
        }
    }

    fn syn(number: u32, at: Duration) -> Syn {
        Syn::new(
            Endpoints::numbered(number),
            Side::Ingress,
            hello(number),
            at,
        )
    }

    fn syn_ack(number: u32, at: Duration) -> SynAck {
        let ends = Endpoints::numbered(number);
        SynAck::new(ends, Side::Egress, hello(7), Seq(number + 1), at)
    }

    #[test]
    fn a_syn_waits_for_its_time_and_no_longer() {
        let mut half_open = HalfOpen::new(100, LIFE);
        let start = Duration::from_secs(1000);
        for at in [start, start + LIFE / 2] {
            half_open.forget(at);
            half_open.insert(syn(1, at));
            half_open.forget(at + LIFE / 2);
            let last = at + LIFE - Duration::from_millis(1);
            half_open.forget(last);
            assert!(half_open.direct(&syn_ack(1, last)).is_some());
            assert!(half_open.translated(&syn_ack(1, last)).is_some());
            assert!(half_open.direct(&syn_ack(1, at + LIFE)).is_none());
            assert!(half_open.translated(&syn_ack(1, at + LIFE)).is_none());
        }
        half_open.forget(start + 3 * LIFE);
        half_open.forget(start + 4 * LIFE);
        assert!(
            half_open
                .generations()
                .all(|g| g.syns.is_empty() && g.by_start.is_empty())
        );
    }

    #[test]
    fn less_room_leaves_those_that_wait_until_the_next_comes() {
        let mut half_open = HalfOpen::new(100, LIFE);
        let now = Duration::from_secs(1);
        let known = |half_open: &HalfOpen| {
            let known = (0..20).filter(|n| half_open.direct(&syn_ack(*n, now)).is_some());
            known.count()
        };
        (0..10).for_each(|n| assert_eq!(half_open.insert(syn(n, now)), 0));
        half_open.resize(4);
        assert_eq!(known(&half_open), 10);
        let forgotten: usize = (10..14).map(|n| half_open.insert(syn(n, now))).sum();
        assert_eq!((forgotten, known(&half_open)), (10, 4));
    }

    #[test]
    fn a_full_generation_takes_the_place_of_the_older_one() {
        let mut half_open = HalfOpen::new(4, LIFE);
        let now = Duration::from_secs(1);
        let forgotten: Vec<usize> = (0..7).map(|n| half_open.insert(syn(n, now))).collect();
        assert_eq!(forgotten, [0, 0, 0, 0, 2, 0, 2]);
        let known = |n| half_open.direct(&syn_ack(n, now)).is_some();
        assert_eq!(
            (0..7).map(known).collect::<Vec<_>>(),
            [false, false, false, false, true, true, true]
        );
    }
}
