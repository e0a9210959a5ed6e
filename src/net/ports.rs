//! Ranges of ports.

use std::fmt;
use std::str::FromStr;

/// A range of ports, both ends included; never empty and never with port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The dynamic ports (RFC 6335 §6).
    pub const DYNAMIC: Self = Self {
        first: 49_152,
        last: 65_535,
    };

    /// The range from `first` to `last`; `None` if it would be empty or hold port 0.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first > 0 && first <= last).then_some(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether some port is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether it holds a port.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// How many ports it holds.
    #[must_use]
    pub fn size(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// All of its ports, starting somewhere in the middle.
    pub(crate) fn starting_at(self, start: u32) -> impl Iterator<Item = u16> {
        let offset = start % self.size();
        (0..self.size()).filter_map(move |n| {
            let n = (u64::from(offset) + u64::from(n)) % u64::from(self.size());
            u16::try_from(u64::from(self.first) + n).ok()
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;

    /// Reads `A-B` or `A`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            if digits { text.parse().ok() } else { None }
        };
        port(first)
            .zip(port(last))
            .and_then(|(first, last)| Self::new(first, last))
            .ok_or_else(|| {
                "write FIRST-LAST with 1 ≤ FIRST ≤ LAST ≤ 65535, such as 30000-30009".to_owned()
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;

    fn range(text: &str) -> Option<PortRange> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!(range("30000-30009"), PortRange::new(30000, 30009));
        assert_eq!(range("8080"), PortRange::new(8080, 8080));
        for bad in [
            "", "-", "0-5", "5-4", "1-65536", "a-b", "1-", "+1-5", " 1-2", "1-2-3",
        ] {
            let error = bad.parse::<PortRange>().unwrap_err();
            assert!(error.contains("FIRST-LAST"), "{bad}: {error}");
        }
    }

    fn any_range() -> impl Strategy<Value = Option<PortRange>> {
        prop::option::of(
            (1u16.., 0u16..50).prop_map(|(a, n)| PortRange::new(a, a.saturating_add(n)).unwrap()),
        )
    }

    proptest! {
        #[test]
        fn a_range_names_each_of_its_ports_once(range in any_range(), start: u32) {
            let range = range.unwrap_or(PortRange::DYNAMIC);
            let ports: HashSet<_> = range.starting_at(start).collect();
            prop_assert_eq!(u32::try_from(ports.len()).unwrap(), range.size());
            prop_assert!(ports.iter().all(|&port| range.contains(port)));
        }
    }
}
