//! The line of a stream that isn't over yet.

/// What of the current line has gone out already, and what was found in it.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Its beginning, up to the limit; empty (and without memory) between lines.
    gone: Vec<u8>,
    /// It is longer than the limit: never acted on.
    pub(super) overlong: bool,
    /// Its address was dealt with, or it can't have one.
    pub(super) settled: bool,
    /// The digits that come next belong to a run that is no address.
    pub(super) bad_run: bool,
}

impl Line {
    /// Notes that bytes of it go out.
    pub(super) fn goes(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.gone.len());
        if bytes.len() > room {
            self.overlong = true;
        }
        self.gone.extend(bytes.iter().take(room));
    }

    /// The line so far: what has gone out and what is pending.
    pub(super) fn with<'a>(&'a self, pending: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if self.gone.is_empty() {
            pending.into()
        } else {
            [self.gone.as_slice(), pending].concat().into()
        }
    }

    /// How many bytes have gone out.
    pub(super) fn gone(&self) -> usize {
        self.gone.len()
    }

    /// The line ended: the next one begins.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }
}
