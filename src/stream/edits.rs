//! The edits of one direction that its receiver hasn't acknowledged, and the mapping between
//! original and edited sequence numbers that they define.

use std::collections::VecDeque;

use super::seq::Seq;

/// `old_len` original bytes from `start` on became `new_len` others. Both lengths are at least 1,
/// and they differ: a replacement of equal length moves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Edit {
    pub(super) start: Seq,
    pub(super) old_len: u32,
    pub(super) new_len: u32,
}

/// Which end of an edit a position inside it is moved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// To the edit's start.
    Down,
    /// Behind the edit.
    Up,
}

/// A position in both spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Point {
    pub(super) original: Seq,
    pub(super) edited: Seq,
}

impl Point {
    fn plus(self, n: u32) -> Self {
        Self {
            original: self.original.plus(n),
            edited: self.edited.plus(n),
        }
    }
}

/// Edits in order, without overlap.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Edits(VecDeque<Edit>);

impl Edits {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many bytes `edited` bytes were, of which the edits are a part. `None` if they can't be.
    pub(super) fn original_len(&self, edited: usize) -> Option<usize> {
        let lengths = self.0.iter().try_fold((0u32, 0u32), |(old, new), edit| {
            Some((
                old.checked_add(edit.old_len)?,
                new.checked_add(edit.new_len)?,
            ))
        });
        let (old, new) = lengths?;
        edited.checked_sub(new as usize)?.checked_add(old as usize)
    }

    /// Appends an edit; it must start at or after the end of the last one.
    pub(super) fn push(&mut self, edit: Edit) {
        self.0.push_back(edit);
    }

    /// Forgets the edits that end at or before `original`.
    pub(super) fn fold(&mut self, original: Seq) {
        while let Some(edit) = self.0.front() {
            if edit.start.plus(edit.old_len).after(original) {
                break;
            }
            self.0.pop_front();
        }
    }

    /// The position of original byte `at`, at or after `base`, in both spaces.
    pub(super) fn at_original(&self, base: Point, at: Seq, round: Round) -> Point {
        self.walk(base, at.since(base.original), |edit| edit.old_len, round)
    }

    /// The position of edited byte `at`, at or after `base`, in both spaces.
    pub(super) fn at_edited(&self, base: Point, at: Seq, round: Round) -> Point {
        self.walk(base, at.since(base.edited), |edit| edit.new_len, round)
    }

    /// Goes `distance` bytes on from `base` in the space in which an edit takes `length` bytes.
    fn walk(
        &self,
        base: Point,
        mut distance: u32,
        length: fn(&Edit) -> u32,
        round: Round,
    ) -> Point {
        let mut here = base;
        for edit in &self.0 {
            let plain = edit.start.since(here.original);
            if distance <= plain {
                break;
            }
            here = here.plus(plain);
            let behind = Point {
                original: here.original.plus(edit.old_len),
                edited: here.edited.plus(edit.new_len),
            };
            distance = distance.wrapping_sub(plain);
            if distance < length(edit) {
                return match round {
                    Round::Down => here,
                    Round::Up => behind,
                };
            }
            distance = distance.wrapping_sub(length(edit));
            here = behind;
        }
        here.plus(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits() -> (Edits, Point) {
        let base = Point {
            original: Seq(u32::MAX - 9),
            edited: Seq(90),
        };
        let mut edits = Edits::default();
        edits.push(Edit {
            start: base.original.plus(5),
            old_len: 3,
            new_len: 7,
        });
        edits.push(Edit {
            start: base.original.plus(20),
            old_len: 6,
            new_len: 2,
        });
        (edits, base)
    }

    #[test]
    fn maps_are_inverse_outside_edits() {
        let (edits, base) = edits();
        for n in (0..=5).chain(8..=20).chain(26..40) {
            let there = edits.at_original(base, base.original.plus(n), Round::Down);
            assert_eq!(there.original, base.original.plus(n));
            assert_eq!(
                edits.at_edited(base, there.edited, Round::Down),
                there,
                "at {n}"
            );
            assert_eq!(
                edits.at_edited(base, there.edited, Round::Up),
                there,
                "at {n}"
            );
        }
    }

    #[test]
    fn a_position_inside_an_edit_moves_to_its_ends() {
        let (edits, base) = edits();
        for n in 6..8 {
            let down = edits.at_original(base, base.original.plus(n), Round::Down);
            let up = edits.at_original(base, base.original.plus(n), Round::Up);
            assert_eq!(
                (down.original, down.edited),
                (base.original.plus(5), base.edited.plus(5))
            );
            assert_eq!(
                (up.original, up.edited),
                (base.original.plus(8), base.edited.plus(12))
            );
        }
        let inside = edits.at_edited(base, base.edited.plus(11), Round::Down);
        assert_eq!(inside.original, base.original.plus(5));
    }

    #[test]
    fn folding_keeps_an_edit_until_its_last_byte() {
        let (mut edits, base) = edits();
        edits.fold(base.original.plus(7));
        assert_eq!(edits.len(), 2);
        edits.fold(base.original.plus(8));
        assert_eq!(edits.len(), 1);
        edits.fold(base.original.plus(100));
        assert!(edits.is_empty());
    }
}
