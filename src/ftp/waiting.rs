//! The commands that wait for their reply, and which of them a reply answers.

use std::collections::VecDeque;

use super::command::Command;

/// How many commands wait without memory of their own: clients seldom pipeline more.
const NEAR: usize = 6;

/// Commands in the order they were sent.
///
/// Replies come in the same order, with these exceptions, each seen in common servers: `STAT` is
/// answered during a transfer (RFC 959 §4.1.3); an `ABOR` has a reply of its own besides the
/// transfer's, or not; an empty line has one (`500`) or none.
#[derive(Debug)]
pub(super) struct Waiting {
    near: [Command; NEAR],
    len: u8,
    /// A reply was taken for one of `ABOR` or an empty line that may have been the next command's.
    doubt: bool,
    #[expect(
        clippy::box_collection,
        reason = "an idle flow pays for the pointer only"
    )]
    far: Option<Box<VecDeque<Command>>>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            near: [Command::Unknown; NEAR],
            len: 0,
            doubt: false,
            far: None,
        }
    }
}

/// Which command a reply answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The command, and where it stands; `None`: no command that waits.
    pub(super) command: Option<(usize, Command)>,
    /// Commands before it that go without a reply.
    unanswered: usize,
    /// Whether the reply counts for a command that wasn't recorded.
    pub(super) beyond: bool,
}

impl Waiting {
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

    pub(super) fn push(&mut self, command: Command) {
        match self.near.get_mut(usize::from(self.len)) {
            Some(slot) if self.far.is_none() => {
                *slot = command;
                self.len = self.len.saturating_add(1);
            }
            _ => self.far.get_or_insert_default().push_back(command),
        }
    }

    /// Says which command a final reply (code 200 or more) answers.
    pub(super) fn answer(&self, code: u16) -> Answer {
        let none = Answer {
            command: None,
            unanswered: 0,
            beyond: false,
        };
        let Some(front) = self.iter().next() else {
            return Answer {
                beyond: true,
                ..none
            };
        };
        if front == Command::Transfer
            && (211..=213).contains(&code)
            && let Some(at) = self.iter().position(|command| command == Command::Stat)
        {
            return Answer {
                command: Some((at, Command::Stat)),
                ..none
            };
        }
        let skippable = |command| match command {
            Command::Blank => code < 500,
            Command::Abor => !Command::Abor.may_answer(code),
            _ => false,
        };
        let unanswered = self
            .iter()
            .take_while(|command| skippable(*command))
            .count();
        let Some(next) = self.iter().nth(unanswered) else {
            return Answer { unanswered, ..none };
        };
        if next.may_answer(code) {
            return Answer {
                command: Some((unanswered, next)),
                unanswered,
                beyond: false,
            };
        }
        let fitting = self
            .iter()
            .enumerate()
            .skip(unanswered)
            .find(|(_, command)| command.may_answer(code));
        match fitting {
            Some((at, command)) if self.doubt => Answer {
                command: Some((at, command)),
                unanswered: at,
                beyond: false,
            },
            // A transfer that was aborted may end with one reply more than it should.
            None if matches!(code, 225 | 226) => none,
            _ => Answer {
                command: Some((unanswered, next)),
                unanswered,
                beyond: false,
            },
        }
    }

    /// Takes off what [`Waiting::answer`] said.
    pub(super) fn take(&mut self, answer: Answer, code: u16) {
        let doubtful = matches!(
            answer.command,
            Some((_, Command::Abor | Command::Blank)) if code >= 400
        );
        if let Some((at, _)) = answer.command {
            self.remove(at);
        }
        for _ in 0..answer.unanswered {
            self.remove(0);
        }
        if answer.unanswered > 0 {
            self.doubt = false;
        }
        let left = self.len();
        self.doubt = (self.doubt || doubtful) && left > 0;
        if doubtful && left > 0 {
            // Whichever it was: no address is followed on a guess.
            self.each(|command| {
                if command.is_address() {
                    *command = Command::Other;
                }
            });
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

    fn waiting(commands: &[Command]) -> Waiting {
        let mut waiting = Waiting::default();
        commands.iter().for_each(|command| waiting.push(*command));
        waiting
    }

    /// Which commands the replies are taken for.
    fn answers(waiting: &mut Waiting, codes: &[u16]) -> Vec<Option<Command>> {
        let mut take = |code| {
            let answer = waiting.answer(code);
            waiting.take(answer, code);
            answer.command.map(|(_, command)| command)
        };
        codes.iter().map(|code| take(*code)).collect()
    }

    #[test]
    fn any_number_in_order() {
        let commands = [
            Command::Pasv,
            Command::Other,
            Command::Port,
            Command::Transfer,
        ];
        let mut all = Waiting::default();
        for n in 0..40 {
            all.push(commands[n % 4]);
        }
        for n in 0..40 {
            assert_eq!(all.len(), 40 - n);
            let code = if n % 4 == 0 { 227 } else { 250 };
            assert_eq!(answers(&mut all, &[code]), [Some(commands[n % 4])], "{n}");
        }
        assert!(all.far.is_none());
        assert!(all.answer(200).beyond);
    }

    #[test]
    fn an_abort_has_one_reply_or_two_or_three() {
        use Command::{Abor, Pasv, Transfer};
        for (codes, taken) in [
            (&[426, 226][..], &[Some(Transfer), Some(Abor)][..]),
            (&[226][..], &[Some(Transfer)][..]),
            (&[226, 225][..], &[Some(Transfer), Some(Abor)][..]),
            (
                &[426, 226, 225][..],
                &[Some(Transfer), Some(Abor), None][..],
            ),
        ] {
            let mut all = waiting(&[Transfer, Abor]);
            assert_eq!(answers(&mut all, codes), taken);
            all.push(Pasv);
            assert_eq!(answers(&mut all, &[227]), [Some(Pasv)], "after {codes:?}");
            assert_eq!(all.len(), 0);
        }
        let mut late = waiting(&[Pasv]);
        assert_eq!(answers(&mut late, &[226, 227]), [None, Some(Pasv)]);
    }

    #[test]
    fn in_step_again_after_an_abort_without_a_reply() {
        use Command::{Abor, Other, Pasv};
        let mut all = waiting(&[Abor, Other]);
        assert_eq!(answers(&mut all, &[550]), [Some(Abor)]);
        all.push(Pasv);
        assert_eq!(answers(&mut all, &[227]), [Some(Pasv)]);
        assert_eq!(all.len(), 0);
    }

    #[test]
    fn an_empty_line_is_answered_or_not() {
        use Command::{Blank, Pasv};
        let mut silent = waiting(&[Blank, Blank, Pasv]);
        assert_eq!(answers(&mut silent, &[227]), [Some(Pasv)]);
        let mut answered = waiting(&[Blank]);
        assert_eq!(answers(&mut answered, &[500]), [Some(Blank)]);
        // Whose the 500 is can't be told: the address isn't followed.
        let mut unclear = waiting(&[Blank, Pasv]);
        assert_eq!(answers(&mut unclear, &[500]), [Some(Blank)]);
        assert_ne!(answers(&mut unclear, &[227]), [Some(Pasv)]);
    }
}
