//! Reads and edits TCP options (RFC 9293 §3.1). Unknown options are skipped.

use std::ops::Range;

/// What the options of a segment say, as far as stream editing cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size (kind 2), in bytes.
    pub mss: Option<u16>,
    /// Window scale shift (kind 3), at most 14 (RFC 7323 §2.3).
    pub window_scale: Option<u8>,
    /// Where the first SACK block's first byte is (kind 5), relative to the options, and how many
    /// blocks there are (RFC 2018 §3).
    pub sack: Option<(usize, usize)>,
    /// An option that signs the segment: TCP-MD5 (kind 19, RFC 2385) or TCP-AO (kind 29, RFC 5925).
    pub signed: bool,
    /// Multipath TCP (kind 30, RFC 8684): the data has a second sequence space.
    pub multipath: bool,
}

/// A SACK block: the receiver has `left..right` (edges are sequence numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SackBlock {
    /// First sequence number of the block.
    pub left: u32,
    /// Sequence number after the block's last byte.
    pub right: u32,
}

impl Options {
    /// Reads the option bytes of a TCP header. Malformed lengths end the walk.
    #[must_use]
    pub fn parse(options: &[u8]) -> Self {
        let mut found = Self::default();
        let mut from = 0;
        while let Some((kind, at)) = next(options, from) {
            let start = at.start.saturating_add(2);
            let body = options.get(start..at.end).unwrap_or_default();
            match (kind, body) {
                (2, [hi, lo]) => found.mss = Some(u16::from_be_bytes([*hi, *lo])),
                (3, [shift]) => found.window_scale = Some((*shift).min(14)),
                (5, blocks) if blocks.len() >= 8 && blocks.len() % 8 == 0 => {
                    found.sack = Some((start, blocks.len() / 8));
                }
                (19 | 29, _) => found.signed = true,
                (MULTIPATH, _) => found.multipath = true,
                _ => {}
            }
            from = at.end;
        }
        found
    }
}

/// Multipath TCP's kind (RFC 8684 §3).
const MULTIPATH: u8 = 30;

/// The first option of more than one byte from `from` on: its kind, and where it is.
fn next(options: &[u8], from: usize) -> Option<(u8, Range<usize>)> {
    let padding = options.get(from..)?.iter().take_while(|kind| **kind == 1);
    let at = from.saturating_add(padding.count());
    let kind = options.get(at).copied().filter(|kind| *kind != 0)?;
    let end = at.saturating_add(usize::from(*options.get(at.saturating_add(1))?));
    options.get(at.saturating_add(2)..end)?;
    Some((kind, at..end))
}

/// Replaces the options of Multipath TCP by no-operations.
pub fn blank_multipath(options: &mut [u8]) {
    let mut from = 0;
    while let Some((kind, at)) = next(options, from) {
        from = at.end;
        if kind == MULTIPATH
            && let Some(option) = options.get_mut(at)
        {
            option.fill(1);
        }
    }
}

/// Rewrites SACK blocks (as found by [`Options::parse`]: a multiple of 8 bytes) through `map`.
///
/// The option can't become shorter, so a block that maps to nothing becomes a copy of one that
/// stays. Returns `false` if none stays: the caller then blanks the option with no-operations.
pub fn for_each_sack(
    blocks: &mut [u8],
    mut map: impl FnMut(SackBlock) -> Option<SackBlock>,
) -> bool {
    let mut kept: Option<[u8; 8]> = None;
    let (chunks, _) = blocks.as_chunks_mut::<8>();
    let mut vanished = false;
    for chunk in chunks.iter_mut() {
        let [a, b, c, d, e, f, g, h] = *chunk;
        let block = SackBlock {
            left: u32::from_be_bytes([a, b, c, d]),
            right: u32::from_be_bytes([e, f, g, h]),
        };
        match map(block) {
            Some(mapped) => {
                let [a, b, c, d] = mapped.left.to_be_bytes();
                let [e, f, g, h] = mapped.right.to_be_bytes();
                *chunk = [a, b, c, d, e, f, g, h];
                kept = kept.or(Some(*chunk));
            }
            None => {
                *chunk = [0; 8];
                vanished = true;
            }
        }
    }
    let Some(kept) = kept else { return false };
    if vanished {
        // A repeated block says nothing new; the option keeps its length.
        for chunk in chunks.iter_mut().filter(|chunk| **chunk == [0; 8]) {
            *chunk = kept;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn finds_sack_behind_an_option_it_does_not_know() {
        let mut options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 77, 4, 9, 9, 5, 10];
        options.extend(1u32.to_be_bytes());
        options.extend(9u32.to_be_bytes());
        assert_eq!(Options::parse(&options).sack, Some((18, 1)));
    }

    #[test]
    fn reads_a_syn() {
        let found = Options::parse(&[
            2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7,
        ]);
        assert_eq!((found.mss, found.window_scale), (Some(1460), Some(7)));
        assert!(!found.signed && !found.multipath && found.sack.is_none());
    }

    #[test]
    fn signed_and_multipath() {
        assert!(Options::parse(&[19, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).signed);
        assert!(Options::parse(&[29, 4, 0, 0]).signed);
        assert!(Options::parse(&[30, 4, 0, 0]).multipath);
    }

    #[test]
    fn multipath_is_blanked_and_nothing_else() {
        let mut options = vec![2, 4, 5, 0xb4, 1, 30, 4, 1, 0x81, 30, 3, 9, 8, 10];
        options.extend([30; 8]);
        let mut due = options.clone();
        due[5..12].fill(1);
        blank_multipath(&mut options);
        assert_eq!(options, due);
        // Lengths that lie end the walk, as they do at the receiver.
        for broken in [&[30, 1, 30, 4, 0, 0][..], &[30], &[30, 9, 0], &[0, 30, 2]] {
            let mut options = broken.to_vec();
            blank_multipath(&mut options);
            assert_eq!(options, broken);
        }
    }

    #[test]
    fn a_vanished_block_repeats_a_kept_one() {
        let mut blocks = Vec::new();
        for (left, right) in [(1u32, 2u32), (5, 9)] {
            blocks.extend(left.to_be_bytes());
            blocks.extend(right.to_be_bytes());
        }
        assert!(for_each_sack(&mut blocks, |b| (b.left != 1).then_some(b)));
        assert_eq!(blocks[..8], blocks[8..]);
        assert!(!for_each_sack(&mut blocks, |_| None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..44)) {
            let found = Options::parse(&bytes);
            if let Some((at, blocks)) = found.sack {
                prop_assert!(at + blocks * 8 <= bytes.len());
            }
            let mut blanked = bytes.clone();
            blank_multipath(&mut blanked);
            prop_assert_eq!(Options::parse(&blanked), Options { multipath: false, ..found });
        }
    }
}
