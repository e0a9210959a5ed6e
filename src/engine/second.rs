//! Points in time to the second, in four bytes: each flow keeps several.

use std::num::NonZeroU32;
use std::time::Duration;

/// A whole second since the start of the engine's clock. An `Option` of it has four bytes as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Second(NonZeroU32);

impl Default for Second {
    /// The first second.
    fn default() -> Self {
        Self(NonZeroU32::MIN)
    }
}

impl Second {
    /// The second that `now` is in.
    pub(super) fn of(now: Duration) -> Self {
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        Self(NonZeroU32::MIN.saturating_add(seconds))
    }

    /// How long it has been since it began.
    pub(super) fn until(self, now: Duration) -> Duration {
        let since = Duration::from_secs(u64::from(self.0.get()).saturating_sub(1));
        now.saturating_sub(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_the_second() {
        let at = Second::of(Duration::from_millis(5_900));
        assert_eq!(at.until(Duration::from_secs(7)), Duration::from_secs(2));
        assert_eq!(at.until(Duration::ZERO), Duration::ZERO);
        assert_eq!(size_of::<Option<Second>>(), 4);
    }
}
