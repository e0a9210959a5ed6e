//! Troubles that may come again and again are told once a minute.

use std::time::Duration;

/// How long nothing is told after a line.
const SILENCE: Duration = Duration::from_secs(60);

/// One kind of trouble.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seldom {
    told: Option<Duration>,
    /// How often it has come since.
    kept_back: u64,
}

impl Seldom {
    /// The trouble has come. Says whether to tell of it `now`, and if so, how often it came since that
    /// was done last.
    pub fn comes(&mut self, now: Duration) -> Option<u64> {
        if self
            .told
            .is_some_and(|told| now.saturating_sub(told) < SILENCE)
        {
            self.kept_back = self.kept_back.saturating_add(1);
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.kept_back))
    }

    /// Warns that the trouble has come, if it is time to.
    pub fn warn(&mut self, now: Duration, what: impl FnOnce() -> String) {
        match self.comes(now) {
            Some(0) => log::warn!("{}", what()),
            Some(more) => log::warn!("{} ({more} times more since it was told last)", what()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_a_minute_with_the_number_of_the_others() {
        let mut trouble = Seldom::default();
        let at = Duration::from_secs;
        let comes = |second| trouble.comes(at(second));
        let told: Vec<_> = [5, 5, 6, 64, 65, 66, 200].into_iter().map(comes).collect();
        assert_eq!(told, [Some(0), None, None, None, Some(3), None, Some(1)]);
    }
}
