//! Sequence numbers modulo 2³² (RFC 9293 §3.4).

/// A TCP sequence number. It has no order of its own: comparisons are relative, and right for
/// numbers less than 2³¹ apart.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize,
)]
pub struct Seq(pub u32);

impl Seq {
    /// The number `n` bytes later.
    #[must_use]
    pub fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The number `n` bytes later, for lengths of buffers (which are far below 2³²).
    #[must_use]
    pub fn plus_len(self, n: usize) -> Self {
        Self(self.0.wrapping_add(n as u32))
    }

    /// How far it is from `earlier` to here, modulo 2³².
    #[must_use]
    pub fn since(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// [`Seq::since`] as a length.
    #[must_use]
    pub fn len_since(self, earlier: Self) -> usize {
        self.since(earlier) as usize
    }

    /// Whether it comes before `other`.
    #[must_use]
    pub fn before(self, other: Self) -> bool {
        self.since(other) >= 1 << 31
    }

    /// Whether it comes after `other`.
    #[must_use]
    pub fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// The later of two.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if self.before(other) { self } else { other }
    }
}

#[cfg(test)]
mod tests {
    use super::Seq;

    #[test]
    fn order_survives_the_wrap() {
        let high = Seq(u32::MAX - 1);
        let low = high.plus(5);
        assert_eq!(low, Seq(3));
        assert!(high.before(low) && low.after(high) && !high.before(high));
        assert_eq!(low.since(high), 5);
        assert_eq!((high.max(low), high.min(low)), (low, high));
    }
}
