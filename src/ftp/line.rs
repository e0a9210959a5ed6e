//! The current line of a stream, of which a part may have gone out.

/// How many bytes at a line's beginning are kept to decide what it is. What follows is looked at
/// only while it waits.
pub(super) const HEAD: usize = 96;

/// The part of the current line that has gone out. Needs no memory for a line that arrives whole.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct PartialLine(Option<Box<Begun>>);

#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Begun {
    #[serde(with = "super::text")]
    head: [u8; HEAD],
    gone: usize,
    settled: bool,
    refused: bool,
    followed: bool,
    in_run: bool,
    binary: bool,
    lost: bool,
}

/// Leaves out the text, which may be a password.
impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun")
            .field("gone", &self.gone)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}

impl PartialLine {
    /// How many bytes of it have gone out.
    pub(super) fn gone(&self) -> usize {
        self.0.as_ref().map_or(0, |begun| begun.gone)
    }

    /// The line's beginning, of what has gone out and the `piece` of it that is pending.
    pub(super) fn head<'a>(&self, piece: &'a [u8]) -> Head<'a> {
        match &self.0 {
            None => Head::Whole(piece.get(..HEAD).unwrap_or(piece)),
            Some(begun) => {
                let mut head = begun.head;
                let room = head.get_mut(begun.gone..).unwrap_or_default();
                for (to, from) in room.iter_mut().zip(piece) {
                    *to = *from;
                }
                let len = begun.gone.saturating_add(piece.len()).min(HEAD);
                Head::Joined { head, len }
            }
        }
    }

    /// Notes that the next bytes of it go out.
    pub(super) fn goes(&mut self, bytes: &[u8]) {
        let begun = self.begun();
        let room = begun.head.get_mut(begun.gone..).unwrap_or_default();
        let kept = room.len();
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        begun.binary |= has_control(bytes.get(kept..).unwrap_or_default());
        begun.gone = begun.gone.saturating_add(bytes.len());
    }

    /// Its address was handled, or it can't have one.
    pub(super) fn settle(&mut self) {
        self.begun().settled = true;
    }

    pub(super) fn is_settled(&self) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.settled)
    }

    /// It is refused: nothing that follows in it goes out as it is.
    pub(super) fn refuse(&mut self) {
        self.begun().refused = true;
    }

    pub(super) fn is_refused(&self) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.refused)
    }

    /// Its address went out with a pinhole.
    pub(super) fn follow(&mut self) {
        self.begun().followed = true;
    }

    pub(super) fn is_followed(&self) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.followed)
    }

    /// Whether the digits that come next belong to a run that is no address.
    pub(super) fn is_in_run(&self) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.in_run)
    }

    pub(super) fn set_in_run(&mut self, in_run: bool) {
        if in_run != self.is_in_run() {
            self.begun().in_run = in_run;
        }
    }

    /// Whether a control byte comes behind its beginning; `piece` is its end.
    pub(super) fn is_binary(&self, piece: &[u8]) -> bool {
        let room = HEAD.saturating_sub(self.gone());
        self.0.as_ref().is_some_and(|begun| begun.binary)
            || has_control(piece.get(room..).unwrap_or_default())
    }

    /// Bytes weren't seen: what comes next may be any part of any line.
    pub(super) fn is_lost(&mut self) {
        self.end();
        self.begun().lost = true;
    }

    /// Whether bytes before the next ones weren't seen.
    pub(super) fn was_lost(&self) -> bool {
        self.0.as_ref().is_some_and(|begun| begun.lost)
    }

    /// The line ended: the next one begins.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }

    fn begun(&mut self) -> &mut Begun {
        self.0.get_or_insert_with(|| {
            Box::new(Begun {
                head: [0; HEAD],
                gone: 0,
                settled: false,
                refused: false,
                followed: false,
                in_run: false,
                binary: false,
                lost: false,
            })
        })
    }
}

/// Line ends and blanks don't count.
fn has_control(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .any(|b| b.is_ascii_control() && !b.is_ascii_whitespace())
}

/// The beginning of a line: see [`PartialLine::head`].
pub(super) enum Head<'a> {
    Whole(&'a [u8]),
    Joined { head: [u8; HEAD], len: usize },
}

impl std::ops::Deref for Head<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Whole(head) => head,
            Self::Joined { head, len } => head.get(..*len).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_the_same_for_any_cut() {
        let text: Vec<u8> = (b' '..b'~').chain(b' '..b'~').collect();
        let whole = PartialLine::default().head(&text).to_vec();
        assert_eq!(whole, text[..HEAD]);
        for cut in 0..=text.len() {
            let (gone, piece) = text.split_at(cut);
            let mut line = PartialLine::default();
            line.goes(gone);
            assert_eq!(*line.head(piece), whole, "{cut}");
            assert_eq!(line.gone(), cut);
        }
    }

    #[test]
    fn control_bytes_are_found_for_any_cut() {
        let mut text = vec![b'a'; HEAD + 20];
        text[HEAD + 10] = 0;
        text.push(b'\r');
        for cut in 0..=text.len() {
            let (gone, piece) = text.split_at(cut);
            let mut line = PartialLine::default();
            line.goes(gone);
            assert!(line.is_binary(piece), "{cut}");
        }
        text[HEAD + 10] = b'b';
        assert!(!PartialLine::default().is_binary(&text));
    }
}
