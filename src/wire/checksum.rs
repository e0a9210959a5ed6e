//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! The checksum field holds the complement of the ones'-complement sum of all 16-bit words.
//! If a word changes from `m` to `m'`, the field changes from `HC` to `~(~HC + ~m + m')`
//! (RFC 1624 equation 3): the rest of the packet needn't be read, and a field that was wrong
//! before is wrong by the same amount afterwards. In ones' complement 0x0000 and 0xffff are the
//! same number; equation 3 never turns a valid 0x0000 into 0xffff for TCP, where the sum of a
//! packet is never zero.

/// A ones'-complement sum, before it is folded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of the packet; an odd last byte is the high half
    /// of a word whose low half is zero.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<4>();
        for word in words {
            // 32-bit words add up like pairs of 16-bit words once the carries are folded.
            self.0 = self.0.wrapping_add(u64::from(u32::from_be_bytes(*word)));
        }
        let (pairs, odd) = rest.as_chunks::<2>();
        for pair in pairs {
            self.0 = self.0.wrapping_add(u64::from(u16::from_be_bytes(*pair)));
        }
        if let [last] = odd {
            self.0 = self.0.wrapping_add(u64::from(*last) << 8);
        }
        self
    }

    /// Adds one 16-bit word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        Self(self.0.wrapping_add(u64::from(word)))
    }

    /// The sum folded to 16 bits: 0xffff for data that includes its own valid checksum.
    #[must_use]
    pub fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff).wrapping_add(sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// What the checksum field must hold (its complement).
    #[must_use]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// RFC 1624 equation 3: the checksum field `field` after the 16-bit words `old` became `new`.
#[must_use]
pub fn adjust(field: u16, old: &[u16], new: &[u16]) -> u16 {
    let mut sum = Sum::default().word(!field);
    for word in old {
        sum = sum.word(!word);
    }
    for word in new {
        sum = sum.word(*word);
    }
    sum.checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc_1624_section_4_example() {
        assert_eq!(adjust(0xDD2F, &[0x5555], &[0x3285]), 0x0000);
    }

    #[test]
    fn rfc_1071_section_3_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&data).fold(), 0xddf2);
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut data in proptest::collection::vec(any::<u8>(), 4..200), at in 0usize..99, new: u16) {
            data.truncate(data.len() & !1);
            let at = (at * 2) % data.len();
            // A packet always has a non-zero word: without one, 0x0000 and 0xffff can't be told
            // apart.
            data.extend([0x45, 0x00]);
            let before = Sum::default().bytes(&data).checksum();
            let old = u16::from_be_bytes([data[at], data[at + 1]]);
            data[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(adjust(before, &[old], &[new]), Sum::default().bytes(&data).checksum());
        }

        #[test]
        fn a_wrong_checksum_stays_wrong_by_the_same_amount(field: u16, old: u16, new: u16) {
            let back = adjust(adjust(field, &[old], &[new]), &[new], &[old]);
            prop_assert!(back == field || (back == 0 && field == 0xffff) || (back == 0xffff && field == 0));
        }
    }
}
