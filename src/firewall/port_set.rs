//! Sets of ports.

use std::sync::Arc;

use crate::net::PortRange;

/// Ports: ranges in order, apart from each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortSet(Arc<[PortRange]>);

impl PortSet {
    /// From the first and last ports of ranges in any order.
    pub(crate) fn new(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges.into_iter().filter(|(first, last)| first <= last) {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => joined.push((first, last)),
            }
        }
        let ranges = joined.into_iter();
        let ranges = ranges.filter_map(|(first, last)| PortRange::new(first.max(1), last));
        Self(ranges.collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = PortRange> + '_ {
        self.0.iter().copied()
    }

    /// The ports that are in both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let mut both = Vec::new();
        let (mut ours, mut theirs) = (self.ranges().peekable(), other.ranges().peekable());
        while let (Some(a), Some(b)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (a.first().max(b.first()), a.last().min(b.last()));
            both.extend(PortRange::new(first, last));
            if a.last() <= b.last() {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self(both.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_joined() {
        let of = |ranges: &[(u16, u16)]| -> Vec<String> {
            let ports = PortSet::new(ranges.to_vec());
            ports.ranges().map(|range| range.to_string()).collect()
        };
        let joined = of(&[(80, 90), (1, 5), (91, 91), (6, 7), (9, 8)]);
        assert_eq!(joined, ["1-7", "80-91"]);
        assert_eq!(of(&[(0, 9), (65535, 65535)]), ["1-9", "65535-65535"]);
        assert!(PortSet::new(vec![(0, 0)]).is_empty());
    }

    proptest! {
        #[test]
        fn sets_are_sets(
            one in prop::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            other in prop::collection::vec((any::<u16>(), any::<u16>()), 0..6),
            probes in prop::collection::vec(any::<u16>(), 20)
        ) {
            let edges = one.iter().chain(&other).flat_map(|(a, b)| [*a, *b]);
            let probes: Vec<u16> = edges.chain(probes).filter(|port| *port > 0).collect();
            let has = |ranges: &[(u16, u16)], port: u16| ranges.iter().any(|(a, b)| (*a..=*b).contains(&port));
            let (first, second) = (PortSet::new(one.clone()), PortSet::new(other.clone()));
            let both = first.and(&second);
            for port in probes {
                prop_assert_eq!(first.contains(port), has(&one, port));
                prop_assert_eq!(both.contains(port), has(&one, port) && has(&other, port));
            }
        }
    }
}
