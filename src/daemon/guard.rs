//! Puts back what is ours in the kernel, when somebody else has removed it.
//!
//! A flush or reload of a firewall takes our rules with it. Notifications of changed rules wake the
//! guard. It checks whether all is in place, and puts back what isn't, with the pinholes that are
//! open. Without changes it sleeps. Only where rules are in iptables-legacy, which sends no
//! notifications, it checks every few seconds.
//!
//! It doesn't fight: if rules are removed again and again, it waits longer each time before it puts
//! them back.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::firewall::watch::Changes;
use crate::pinholes::Seldom;

use super::setup::Steered;
use super::shared::Shared;

/// How long a change may take to become complete, before the guard looks.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the guard looks where not every change is notified.
const LOOK: Duration = Duration::from_secs(5);
/// Others may change rules all day. So many looks in a row that find nothing missing, each less than
/// [`OFTEN`] after the one before, are made at once. Further ones are made after a pause.
const EAGER: u32 = 4;
/// See [`EAGER`].
const OFTEN: Duration = Duration::from_secs(1);
/// The pause, as a multiple of the time that a look takes.
const REST: u32 = 20;
/// The longest pause.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// How often the guard tries again at once if the rules change while it puts them back.
const TRIES: u32 = 3;

/// The first of several waits between attempts; each is twice as long as the one before.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// If no attempt was made for this long after the last one's wait, the next one is made at once.
const PEACE: Duration = Duration::from_secs(30);
/// How many attempts in a row are a fight, which is logged.
const FIGHT: u32 = 6;

/// Watches for as long as the process lives.
pub(super) struct Guard {
    changes: Changes,
    steered: Arc<Steered>,
    shared: Arc<Shared>,
    pace: Pace,
    /// Whether rules are where changes aren't notified.
    blind: bool,
    /// Whether the user's rules were more than are read.
    cut: bool,
    /// Why the last look failed, as it was logged: each reason once, and another one after a minute.
    blocked: Option<String>,
    /// When such a reason was logged.
    told: Seldom,
}

/// What isn't in place.
#[derive(Debug, Default)]
struct Missing {
    rules: Vec<String>,
    holes: bool,
}

impl Guard {
    /// Watches from now on. Call it before anything is installed, so that no change is missed.
    pub(super) fn new(steered: &Arc<Steered>, shared: &Arc<Shared>) -> Self {
        Self {
            changes: Changes::open(),
            steered: Arc::clone(steered),
            shared: Arc::clone(shared),
            pace: Pace::default(),
            blind: false,
            cut: false,
            blocked: None,
            told: Seldom::default(),
        }
    }

    /// The guard's thread. Start it when all is installed.
    pub(super) fn serve(mut self) {
        self.blind = self.is_blind();
        let mut last = Duration::ZERO;
        let mut idle = 0;
        loop {
            thread::sleep(SETTLE);
            // Changes from here on are for the next look.
            self.changes.happened();
            let started = self.shared.now();
            let missing = self.missing();
            if missing.is_ok() && self.blocked.take().is_some() {
                log::warn!("whether all rules are in place can be told again");
            }
            let failed = match missing {
                Ok(missing) if missing.is_none() => {
                    let often = started.saturating_sub(last) < OFTEN;
                    idle = if often { idle + 1 } else { 0 };
                    false
                }
                Ok(_) => {
                    idle = 0;
                    !self.put_back()
                }
                Err(e) => {
                    // A trouble may show itself at another place each time.
                    if self.blocked.as_ref() != Some(&e)
                        && (self.told.comes(started).is_some() || self.blocked.is_none())
                    {
                        log::warn!("can't tell whether all rules are in place: {e}");
                        self.blocked = Some(e);
                    }
                    self.pace.attempt(started);
                    true
                }
            };
            let ended = self.shared.now();
            if idle > EAGER {
                let rest = ended.saturating_sub(started).saturating_mul(REST);
                thread::sleep(rest.min(LONGEST_REST));
            }
            last = ended;
            let patience = match failed {
                true => Some(self.pace.wait(ended).max(FIRST_WAIT)),
                false => self.blind.then_some(LOOK),
            };
            if let Err(e) = self.changes.wait(patience) {
                log::error!("changes of rules can't be waited for: {e}");
                thread::sleep(LOOK);
            }
        }
    }

    /// Puts back what is missing, after the wait that is due. Returns whether all is in place.
    fn put_back(&mut self) -> bool {
        let wait = self.pace.wait(self.shared.now());
        thread::sleep(wait);
        let mut tries = 1..=TRIES;
        let (missing, restored) = loop {
            self.changes.happened();
            let missing = match self.missing() {
                Ok(missing) if missing.is_none() => return true,
                Ok(missing) => missing,
                Err(_) => return false,
            };
            match self.restore(&missing) {
                Ok(false) => return true,
                // Somebody was still changing rules, after they were looked at.
                Err(_) if self.changes.happened() && tries.next().is_some() => {
                    thread::sleep(SETTLE);
                }
                restored => break (missing, restored),
            }
        };
        let attempts = self.pace.attempt(self.shared.now());
        if let Err(e) = &restored {
            log::error!("rules that somebody else removed can't be put back: {e}");
        }
        if attempts >= FIGHT {
            let next = self.pace.wait(self.shared.now());
            log::warn!(
                "somebody removes ftpalg's rules again and again ({attempts} times in a row); \
                 the next time they come back after {next:.1?}"
            );
        }
        let told = restored.is_ok().then(|| missing.words());
        self.shared.with(|plane| plane.restored(told));
        self.blind = self.is_blind();
        restored.is_ok()
    }

    /// False if ftpalg itself removed them, since it ends.
    fn restore(&self, missing: &Missing) -> Result<bool, String> {
        let mut wanted = true;
        // As at the start: what lets data connections in comes first.
        if missing.holes {
            wanted &= self.shared.restore().map_err(|e| e.to_string())?;
        }
        if !missing.rules.is_empty() {
            wanted &= self.steered.restore().map_err(|e| e.to_string())?;
        }
        Ok(wanted)
    }

    fn missing(&mut self) -> Result<Missing, String> {
        let look = self.steered.look().map_err(|e| e.to_string())?;
        self.changes.follow(look.sets);
        if look.cut && !self.cut {
            log::warn!(
                "your nft rules translate to more places than are read: data connections may get ports that the rest publishes (--data-ports keeps them apart)"
            );
        }
        self.cut = look.cut;
        self.shared.with(|plane| plane.avoid(look.published));
        let holes = self.shared.in_place();
        Ok(Missing {
            rules: look.missing,
            holes: !holes.map_err(|e| e.to_string())?,
        })
    }

    fn is_blind(&self) -> bool {
        !self.changes.sees_nft() || self.steered.in_legacy()
    }
}

impl Missing {
    fn is_none(&self) -> bool {
        self.rules.is_empty() && !self.holes
    }

    fn words(self) -> Vec<String> {
        let holes = self.holes.then(|| "the pinholes' tables".to_owned());
        self.rules.into_iter().chain(holes).collect()
    }
}

/// When the next attempt may be made.
#[derive(Debug, Default)]
struct Pace {
    /// Attempts in a row.
    attempts: u32,
    /// When the last one was.
    last: Duration,
}

impl Pace {
    /// How long to wait from `now` on.
    fn wait(&self, now: Duration) -> Duration {
        let since = now.saturating_sub(self.last);
        let wait = self.whole_wait();
        if since >= wait.saturating_add(PEACE) {
            return Duration::ZERO;
        }
        wait.saturating_sub(since)
    }

    /// Notes an attempt. Returns how many there were in a row, this one included.
    fn attempt(&mut self, now: Duration) -> u32 {
        if now.saturating_sub(self.last) >= self.whole_wait().saturating_add(PEACE) {
            self.attempts = 0;
        }
        self.attempts = self.attempts.saturating_add(1);
        self.last = now;
        self.attempts
    }

    fn whole_wait(&self) -> Duration {
        let Some(doublings) = self.attempts.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 1u32.checked_shl(doublings).unwrap_or(u32::MAX);
        FIRST_WAIT.saturating_mul(factor).min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_in_a_row_waits_longer() {
        let mut pace = Pace::default();
        let mut now = Duration::from_secs(100);
        let mut waits = Vec::new();
        for n in 1..=14 {
            waits.push(pace.wait(now).as_millis());
            now += pace.wait(now);
            assert_eq!(pace.attempt(now), n);
        }
        assert_eq!(
            waits,
            [
                0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000, 60000
            ]
        );
        now += Duration::from_secs(61);
        assert_eq!(pace.wait(now), Duration::ZERO);
        assert_eq!(
            pace.attempt(now),
            15,
            "removed again as soon as it came back"
        );
        now += LONGEST_WAIT + PEACE;
        assert_eq!(pace.wait(now), Duration::ZERO);
        assert_eq!(pace.attempt(now), 1, "peace");
        assert_eq!(pace.wait(now), FIRST_WAIT);
    }
}
