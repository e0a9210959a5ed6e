//! When a table gives memory back.

/// A table that could hold so many times what it holds has too much room.
const TOO_MUCH: usize = 8;
/// No table has to be smaller than for so many.
const FEW: usize = 32;

/// For how many entries a table is to have room from now on, if it has too much: what a burst needed isn't
/// kept when it is over. `len` are in it, and `capacity` have room.
pub(crate) fn less_room(len: usize, capacity: usize) -> Option<usize> {
    let needed = len.max(FEW);
    (capacity / TOO_MUCH > needed).then(|| needed.saturating_mul(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_kept_as_was_needed_once_more() {
        assert_eq!(less_room(0, 0), None);
        assert_eq!(less_room(0, FEW * TOO_MUCH), None);
        assert_eq!(less_room(0, (FEW + 1) * TOO_MUCH), Some(2 * FEW));
        assert_eq!(less_room(1000, 8000), None);
        assert_eq!(less_room(999, 8000), Some(1998));
    }

    /// Whoever shrinks a table doesn't have to let it grow at once, and the reverse.
    #[test]
    fn what_was_given_back_is_not_needed_soon() {
        for len in [0, 1, FEW, 1000, 1_000_000] {
            let capacity = len.max(FEW) * TOO_MUCH * 4;
            let room = less_room(len, capacity).unwrap();
            assert!(room >= 2 * len);
            // A hash table rounds up, to less than four times as much.
            assert_eq!(less_room(len, room * 4 - 1), None);
        }
    }
}
