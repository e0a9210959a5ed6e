//! Matches replies to the commands that wait for one.

use std::collections::VecDeque;

use super::command::Command;

/// How many commands fit without an allocation. Clients seldom pipeline more.
const NEAR: usize = 6;

/// Commands in the order they were sent.
///
/// Replies should come one per command and in order (RFC 959 §4.2, §5.4). Real servers answer some
/// commands before a running transfer ends, some twice, and some never. Some split or join lines at
/// a lone line feed. So a reply answers the first command that it *can* answer.
///
/// Commands before that one are forgotten, which brings both ends back into step. There are two
/// exceptions. A running transfer is answered when it ends. A `PASV` or `EPSV` is answered by a
/// `227`, a `229` or a refusal only.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Unanswered {
    near: [Command; NEAR],
    len: u8,
    /// An `AUTH` was forgotten when too many commands waited.
    forgot_auth: bool,
    #[expect(
        clippy::box_collection,
        reason = "an idle flow pays for the pointer only"
    )]
    far: Option<Box<VecDeque<Command>>>,
}

impl Default for Unanswered {
    fn default() -> Self {
        Self {
            near: [Command::Unknown; NEAR],
            len: 0,
            forgot_auth: false,
            far: None,
        }
    }
}

impl Unanswered {
    pub(super) fn len(&self) -> usize {
        let far = self.far.as_ref().map_or(0, |far| far.len());
        usize::from(self.len).saturating_add(far)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Command> + '_ {
        let near = self
            .near
            .get(..usize::from(self.len))
            .unwrap_or_default()
            .iter();
        near.chain(self.far.iter().flat_map(|far| far.iter()))
            .copied()
    }

    pub(super) fn has(&self, command: Command) -> bool {
        self.iter().any(|waits| waits == command)
    }

    /// Adds a command. Empty lines in a row count as one: some servers answer each of them, some
    /// none.
    pub(super) fn push(&mut self, command: Command) {
        if command == Command::Blank && self.iter().last() == Some(Command::Blank) {
            return;
        }
        match self.near.get_mut(usize::from(self.len)) {
            Some(slot) if self.far.is_none() => {
                *slot = command;
                self.len = self.len.saturating_add(1);
            }
            _ => self.far.get_or_insert_default().push_back(command),
        }
    }

    /// Forgets the oldest command, and returns it.
    pub(super) fn forget_first(&mut self) -> Option<Command> {
        let first = self.iter().next()?;
        self.forgot_auth |= first == Command::Auth;
        self.remove(0);
        Some(first)
    }

    /// Whether an `AUTH` waits, or was forgotten while it did.
    pub(super) fn may_have_auth(&self) -> bool {
        self.forgot_auth || self.has(Command::Auth)
    }

    /// Which command a final reply (code 200 or more) answers: its place and what it is. `None`:
    /// none that waits.
    pub(super) fn answered(&self, code: u16) -> Option<(usize, Command)> {
        let mut waiting = self.iter().enumerate();
        waiting.find(|(_, command)| command.may_be_answered_by(code))
    }

    /// Removes the command at `at`, which a final reply with this code answers, and those before it
    /// that are forgotten with it.
    pub(super) fn take(&mut self, at: usize, code: u16) {
        let answered = self.iter().nth(at);
        // Servers refuse each of several empty lines, or a line that is too long once for each
        // buffer.
        let keep_answered = match answered {
            Some(Command::Blank) => true,
            Some(Command::Overlong) => code >= 500,
            _ => false,
        };
        // A new announcement supersedes an earlier one.
        let settles = answered.is_some_and(Command::is_announcement);
        // Backwards, so that a removal doesn't move what is still to be visited.
        for place in (0..=at).rev() {
            let keep = match self.iter().nth(place) {
                _ if place == at => keep_answered,
                Some(Command::Running) => true,
                Some(command) => command.is_question() && !settles,
                None => true,
            };
            if !keep {
                self.remove(place);
            }
        }
    }

    /// A transfer has begun (`125`, `150`): the first one that isn't running yet. Commands before
    /// it are forgotten, a running transfer included, whether their replies came or not.
    pub(super) fn transfer_begins(&mut self) {
        let Some(at) = self.iter().position(|command| command == Command::Transfer) else {
            return;
        };
        let mut place = 0usize;
        self.each(|command| {
            if place == at {
                *command = Command::Running;
            }
            place = place.saturating_add(1);
        });
        for _ in 0..at {
            self.remove(0);
        }
    }

    fn each(&mut self, mut change: impl FnMut(&mut Command)) {
        let near = self.near.get_mut(..usize::from(self.len));
        near.unwrap_or_default().iter_mut().for_each(&mut change);
        if let Some(far) = &mut self.far {
            far.iter_mut().for_each(change);
        }
    }

    fn remove(&mut self, at: usize) {
        let len = usize::from(self.len);
        if at >= len {
            if let Some(far) = &mut self.far {
                far.remove(at.saturating_sub(len));
            }
        } else {
            if let Some(rest) = self.near.get_mut(at..len) {
                rest.rotate_left(1);
            }
            self.len = self.len.saturating_sub(1);
            if let Some(command) = self.far.as_mut().and_then(|far| far.pop_front())
                && let Some(slot) = self.near.get_mut(usize::from(self.len))
            {
                *slot = command;
                self.len = self.len.saturating_add(1);
            }
        }
        if self.far.as_ref().is_some_and(|far| far.is_empty()) {
            self.far = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Command::{
        Abor, Blank, Epsv, Followed, Login, Other, Overlong, Pasv, Running, Stat, Transfer, User,
    };

    fn waiting(commands: &[Command]) -> Unanswered {
        let mut waiting = Unanswered::default();
        commands.iter().for_each(|command| waiting.push(*command));
        waiting
    }

    /// Which commands the replies are taken for; `150` is the beginning of a transfer.
    fn answers(waiting: &mut Unanswered, codes: &[u16]) -> Vec<Option<Command>> {
        let mut take = |code| {
            if code < 200 {
                waiting.transfer_begins();
                return None;
            }
            let (at, command) = waiting.answered(code)?;
            waiting.take(at, code);
            Some(command)
        };
        codes.iter().map(|code| take(*code)).collect()
    }

    #[test]
    fn any_number_in_order() {
        let commands = [Pasv, Other, Command::Port, Transfer];
        let mut all = Unanswered::default();
        for n in 0..40 {
            all.push(commands[n % 4]);
        }
        for n in 0..40 {
            assert_eq!(all.len(), 40 - n);
            let code = [227, 250, 200, 550][n % 4];
            assert_eq!(answers(&mut all, &[code]), [Some(commands[n % 4])], "{n}");
        }
        assert!(all.far.is_none());
        assert_eq!(all.answered(200), None);
    }

    #[test]
    fn an_abort_has_one_reply_or_two_or_three() {
        for (codes, taken) in [
            (&[426, 226][..], &[Some(Running), Some(Abor)][..]),
            (&[226][..], &[Some(Running)][..]),
            (&[226, 225][..], &[Some(Running), Some(Abor)][..]),
            (&[426, 226, 225][..], &[Some(Running), Some(Abor), None][..]),
        ] {
            let mut all = waiting(&[Transfer, Abor]);
            assert_eq!(answers(&mut all, &[150]), [None]);
            assert_eq!(answers(&mut all, codes), taken);
            all.push(Pasv);
            assert_eq!(answers(&mut all, &[227]), [Some(Pasv)], "after {codes:?}");
            assert_eq!(all.len(), 0);
        }
        let mut late = waiting(&[Pasv]);
        assert_eq!(
            answers(&mut late, &[226, 426, 227]),
            [None, None, Some(Pasv)]
        );
    }

    #[test]
    fn commands_answered_before_the_running_transfer_ends() {
        for (command, code) in [
            (Pasv, 227),
            (Epsv, 229),
            (Followed, 200),
            (User, 331),
            (Command::Rein, 230),
            (Stat, 211),
            (Other, 200),
            (Pasv, 500),
            (Followed, 500),
            (Epsv, 500),
        ] {
            let mut all = waiting(&[Transfer]);
            answers(&mut all, &[150]);
            all.push(command);
            let taken = answers(&mut all, &[code, 226]);
            assert_eq!(taken, [Some(command), Some(Running)], "{code}");
            assert_eq!(all.len(), 0);
        }
    }

    #[test]
    fn a_transfer_that_is_never_answered_ends_with_the_next_one() {
        let mut all = waiting(&[Transfer]);
        answers(&mut all, &[150]);
        all.push(Pasv);
        all.push(Transfer);
        assert_eq!(
            answers(&mut all, &[227, 150, 226]),
            [Some(Pasv), None, Some(Running)]
        );
        assert_eq!(all.len(), 0);
    }

    #[test]
    fn commands_without_a_reply_are_forgotten_once_a_later_one_has_its_own() {
        let mut all = waiting(&[Other, Abor, Stat, Pasv, Other]);
        assert_eq!(answers(&mut all, &[227]), [Some(Pasv)]);
        assert_eq!(all.len(), 1);
        let mut all = waiting(&[User, Login]);
        assert_eq!(answers(&mut all, &[230]), [Some(User)]);
    }

    #[test]
    fn a_question_waits_for_its_answer_or_a_refusal() {
        let mut all = waiting(&[Pasv, Other]);
        assert_eq!(
            answers(&mut all, &[200, 226, 331, 227]),
            [Some(Other), None, None, Some(Pasv)]
        );
        let mut refused = waiting(&[Pasv]);
        assert_eq!(answers(&mut refused, &[502, 227]), [Some(Pasv), None]);
        let mut other = waiting(&[Epsv]);
        assert_eq!(answers(&mut other, &[227, 229]), [None, Some(Epsv)]);
    }

    #[test]
    fn an_empty_line_is_answered_any_number_of_times() {
        for refusals in 0..3 {
            let mut all = waiting(&[Blank, Blank, Pasv]);
            assert_eq!(all.len(), 2);
            for _ in 0..refusals {
                assert_eq!(answers(&mut all, &[500]), [Some(Blank)]);
            }
            assert_eq!(answers(&mut all, &[227]), [Some(Pasv)]);
            assert_eq!(all.len(), 0);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_refused_any_number_of_times() {
        let mut all = waiting(&[Overlong, Pasv, Other]);
        let taken = answers(&mut all, &[500, 500, 500, 227, 215]);
        assert_eq!(taken[3..], [Some(Pasv), Some(Other)]);
        let mut all = waiting(&[Overlong, Pasv]);
        assert_eq!(answers(&mut all, &[250, 227]), [Some(Overlong), Some(Pasv)]);
    }

    #[test]
    fn the_first_one_is_forgotten() {
        let mut all = waiting(&[Pasv, Other]);
        assert_eq!(all.forget_first(), Some(Pasv));
        assert_eq!(all.forget_first(), Some(Other));
        assert_eq!(all.forget_first(), None);
    }
}
