//! Sets of ports and of addresses, as ranges.

use std::net::IpAddr;
use std::sync::Arc;

/// A set of ports: ranges with both ends included, sorted, apart from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ports(Arc<[(u16, u16)]>);

impl Ports {
    pub(super) fn all() -> Self {
        Self([(0, u16::MAX)].into())
    }

    /// From ranges in any order.
    pub(super) fn new(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut all: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges.into_iter().filter(|(a, b)| a <= b) {
            match all.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => all.push((first, last)),
            }
        }
        Self(all.into())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn shared(&self) -> Arc<[(u16, u16)]> {
        Arc::clone(&self.0)
    }

    /// The ports that are in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(&&(a, b)), Some(&&(c, d))) = (ours.peek(), theirs.peek()) {
            if a.max(c) <= b.min(d) {
                both.push((a.max(c), b.min(d)));
            }
            if b <= d {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self(both.into())
    }

    /// The ports that aren't in the other one.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut rest = Vec::with_capacity(other.0.len().saturating_add(1));
        let mut next = Some(0);
        for &(first, last) in other.0.iter() {
            if let (Some(from), Some(to)) = (next, first.checked_sub(1)) {
                rest.push((from, to));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|from| (from, u16::MAX)));
        self.and(&Self::new(rest))
    }

    /// Whether all of them are between two ports.
    pub(super) fn are_within(&self, first: u16, last: u16) -> bool {
        self.0.iter().all(|(a, b)| first <= *a && *b <= last)
    }
}

/// A range of addresses of one family, both ends included.
pub(crate) type Span = (IpAddr, IpAddr);

/// The addresses that are in both; `None` is all addresses.
pub(super) fn common(one: Option<&[Span]>, other: Vec<Span>, limit: usize) -> Vec<Span> {
    let Some(one) = one else {
        return other;
    };
    one.iter()
        .flat_map(|(a, b)| other.iter().map(|(c, d)| (*a.max(c), *b.min(d))))
        .filter(|(first, last)| first <= last)
        .take(limit)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_joined() {
        let ports = Ports::new(vec![(80, 90), (1, 5), (91, 91), (6, 7), (9, 8)]);
        assert_eq!(*ports.0, [(1, 7), (80, 91)]);
        assert_eq!(
            *Ports::new(vec![(0, 9), (u16::MAX, u16::MAX)]).0,
            [(0, 9), (65535, 65535)]
        );
        assert!(ports.are_within(1, 91) && !ports.are_within(2, 91));
        assert!(Ports::all().without(&Ports::all()).is_empty());
    }

    #[test]
    fn addresses_of_two_families_have_nothing_in_common() {
        let span = |a: &str, b: &str| (a.parse().unwrap(), b.parse().unwrap());
        let four = [span("0.0.0.0", "255.255.255.255")];
        let six = vec![span("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")];
        assert_eq!(common(Some(&four), six.clone(), 9), []);
        assert_eq!(common(None, six.clone(), 9), six);
        let one = vec![span("10.0.0.4", "10.0.0.9")];
        assert_eq!(common(Some(&four), one.clone(), 9), one);
    }

    proptest! {
        #[test]
        fn sets_are_sets(
            one in prop::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            other in prop::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            probes in prop::collection::vec(any::<u16>(), 20)
        ) {
            let edges: Vec<u16> = one.iter().chain(&other).flat_map(|(a, b)| [*a, *b]).collect();
            let (one, other) = (Ports::new(one), Ports::new(other));
            let has = |set: &Ports, port| set.0.iter().any(|(a, b)| (*a..=*b).contains(&port));
            let (and, without) = (one.and(&other), one.without(&other));
            let near = edges.iter().flat_map(|e| [e.saturating_sub(1), *e, e.saturating_add(1)]);
            for port in probes.into_iter().chain(near).chain([0, u16::MAX]) {
                prop_assert_eq!(has(&and, port), has(&one, port) && has(&other, port));
                prop_assert_eq!(has(&without, port), has(&one, port) && !has(&other, port));
            }
        }
    }
}
