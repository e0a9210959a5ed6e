//! What a session tells besides its addresses: logins that failed, and transfers as the dialogue shows
//! them. Nothing that the session machine decides goes by it.

use std::collections::VecDeque;

use super::super::command::{Command, argument, bare_verb, name_of};
use super::super::nat64::Nat64;
use super::super::waiting::Unanswered;
use super::User;

/// How many transfer commands are known at a time. Clients hardly ever pipeline them.
const MAX_TRANSFERS: usize = 8;
/// How much waits to be told. The caller takes it after each step, which adds less than this.
const MAX_NEWS: usize = 32;
/// How much of a dialogue is kept that somebody watches.
const MAX_SAID: usize = 40;
/// The longest name that is kept, in bytes as the client sent it.
const MAX_NAME: usize = 512;

/// A command that opens a data connection (RFC 959 §4.1.3, RFC 3659 §7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferCommand {
    /// `RETR`, `STOR`, `STOU`, `APPE`, `LIST`, `NLST` or `MLSD`.
    pub verb: &'static str,
    /// Its argument as the client sent it; empty if there is none. A long one is cut, and ends with
    /// `…`. Bytes that aren't UTF-8 are replaced.
    pub name: String,
}

/// Something that the dialogue shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The server refused a login.
    LoginFailed {
        /// The argument of `USER`; empty if there was none.
        user: String,
        /// The reply.
        code: u16,
    },
    /// The server's preliminary reply to a transfer command has come (RFC 959 §4.2: `125`, `150`).
    TransferBegun(TransferCommand),
    /// A transfer command has its final reply, or won't get one any more.
    TransferEnded {
        /// The command.
        command: TransferCommand,
        /// Whether it had begun.
        begun: bool,
        /// The reply; `None` if the server went on without one.
        code: Option<u16>,
    },
}

/// A line of a dialogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Said {
    /// A command, without its argument; `command` if its verb isn't known here.
    Command(&'static str),
    /// A reply, once for all its lines.
    Reply(u16),
}

/// The part of a session that is there only while it has something in it.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Told {
    /// Until the login.
    pub(super) user: Option<User>,
    /// The server is behind a translator.
    pub(super) nat64: Option<Box<Nat64>>,
    /// Transfer commands without a final reply, oldest first.
    #[serde(skip)]
    transfers: VecDeque<Transfer>,
    #[serde(skip)]
    news: VecDeque<News>,
    /// The last lines, if somebody watches.
    #[serde(skip)]
    said: Option<VecDeque<Said>>,
}

#[derive(Clone, Debug)]
struct Transfer {
    command: TransferCommand,
    begun: bool,
}

impl TransferCommand {
    /// `line` has no line end. `cut`: it went on.
    fn of(line: &[u8], cut: bool) -> Self {
        let argument = argument(line);
        let kept = argument.get(..MAX_NAME).unwrap_or(argument);
        let mut name = String::from_utf8_lossy(kept).into_owned();
        if cut || kept.len() < argument.len() {
            // The cut may have gone through a character.
            while name.ends_with(char::REPLACEMENT_CHARACTER) {
                name.pop();
            }
            name.push('…');
        }
        Self {
            verb: name_of(&bare_verb(line)),
            name,
        }
    }
}

impl Told {
    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        let told = self.transfers.is_empty() && self.news.is_empty();
        self.user.is_none() && self.nat64.is_none() && told && self.said.is_none()
    }

    /// The last lines since this was called first, oldest first.
    pub(super) fn watch(&mut self) -> Vec<Said> {
        self.said.get_or_insert_default().iter().copied().collect()
    }

    /// A line goes out.
    pub(super) fn says(&mut self, line: impl FnOnce() -> Said) {
        let Some(said) = &mut self.said else { return };
        if said.len() >= MAX_SAID {
            said.pop_front();
        }
        said.push_back(line());
    }

    /// A transfer command goes out to the server.
    pub(super) fn asked(&mut self, line: &[u8], cut: bool) {
        if self.transfers.len() >= MAX_TRANSFERS {
            self.transfers.pop_front();
        }
        self.transfers.push_back(Transfer {
            command: TransferCommand::of(line, cut),
            begun: false,
        });
    }

    /// The first transfer that hasn't begun begins. `waiting` are the commands before that.
    pub(super) fn begins(&mut self, waiting: &Unanswered) {
        let Some(at) = self.first_to_begin(waiting) else {
            return;
        };
        // What comes before it won't be answered any more.
        for transfer in self.transfers.drain(..at).collect::<Vec<_>>() {
            self.ended(transfer, None);
        }
        if let Some(transfer) = self.transfers.front_mut() {
            transfer.begun = true;
            let begun = News::TransferBegun(transfer.command.clone());
            self.tell(begun);
        }
    }

    /// A final reply answers a transfer; `running`: the one that has begun. `waiting` are the commands
    /// before that.
    pub(super) fn answered(&mut self, running: bool, code: u16, waiting: &Unanswered) {
        let at = match running {
            true => self.transfers.iter().position(|transfer| transfer.begun),
            false => self.first_to_begin(waiting),
        };
        if let Some(transfer) = at.and_then(|at| self.transfers.remove(at)) {
            self.ended(transfer, Some(code));
        }
    }

    /// Forgets the transfers that `waiting` doesn't have any more.
    pub(super) fn keep_up(&mut self, waiting: &Unanswered) {
        let runs = waiting.has(Command::Running);
        let mut surplus = self.to_begin().saturating_sub(count(waiting));
        let mut kept = VecDeque::new();
        for transfer in std::mem::take(&mut self.transfers) {
            let forgotten = match transfer.begun {
                true => !runs,
                false => surplus > 0,
            };
            if !forgotten {
                kept.push_back(transfer);
                continue;
            }
            if !transfer.begun {
                surplus = surplus.saturating_sub(1);
            }
            self.ended(transfer, None);
        }
        self.transfers = kept;
    }

    /// Nothing of the dialogue is read any more.
    pub(super) fn forget_transfers(&mut self) {
        self.transfers.clear();
    }

    /// The server refused a login.
    pub(super) fn login_failed(&mut self, code: u16) {
        let user = self.user.as_ref().map(User::name).unwrap_or_default();
        self.tell(News::LoginFailed { user, code });
    }

    /// What is to be told next.
    pub(super) fn take(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    fn tell(&mut self, news: News) {
        if self.news.len() >= MAX_NEWS {
            self.news.pop_front();
        }
        self.news.push_back(news);
    }

    fn ended(&mut self, transfer: Transfer, code: Option<u16>) {
        let Transfer { command, begun } = transfer;
        self.tell(News::TransferEnded {
            command,
            begun,
            code,
        });
    }

    fn to_begin(&self) -> usize {
        self.transfers.iter().filter(|t| !t.begun).count()
    }

    /// Where the first of those in `waiting` that haven't begun is. The oldest ones may be forgotten
    /// here, so they are counted from the end.
    fn first_to_begin(&self, waiting: &Unanswered) -> Option<usize> {
        let from_the_end = count(waiting);
        let here = self.to_begin();
        if from_the_end == 0 || here < from_the_end {
            return None;
        }
        let to_begin = self.transfers.iter().enumerate().filter(|(_, t)| !t.begun);
        let mut to_begin = to_begin.skip(here.saturating_sub(from_the_end));
        to_begin.next().map(|(at, _)| at)
    }
}

/// How many transfers haven't begun.
fn count(waiting: &Unanswered) -> usize {
    waiting.iter().filter(|c| *c == Command::Transfer).count()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ftp::policy::Policy;
    use crate::ftp::session::{Peer, Session, Step};

    /// What a dialogue tells: `>` are the client's lines, `<` the server's. With `cut`, each byte
    /// comes by itself.
    fn told(lines: &[&str], cut: bool) -> Vec<News> {
        let mut session = Session::new(Arc::new(Policy::default()));
        let mut news = Vec::new();
        let mut pending = [Vec::new(), Vec::new()];
        for line in lines {
            let (from, text) = line.split_at(1);
            let (peer, at) = match from {
                ">" => (Peer::Client, 0),
                _ => (Peer::Server, 1),
            };
            let bytes = format!("{text}\r\n").into_bytes();
            let pieces: Vec<&[u8]> = match cut {
                true => bytes.chunks(1).collect(),
                false => vec![&bytes],
            };
            for piece in pieces {
                let pending = &mut pending[at];
                pending.extend_from_slice(piece);
                loop {
                    let step = session.next(peer, pending);
                    news.extend(std::iter::from_fn(|| session.take_news()));
                    match step {
                        Step::Pass(n) => drop(pending.drain(..n)),
                        Step::Wait | Step::Opaque(_) => break,
                        Step::Refuse { at, with, .. } => drop(pending.drain(..at + with.len())),
                        Step::Replace { at, len, .. } => drop(pending.drain(..at + len)),
                        Step::Blank(with) => drop(pending.drain(..with.len())),
                        Step::Address(address) => {
                            drop(pending.drain(..address.at + address.len));
                        }
                        Step::OpenActive(_) | Step::Unfollowed => {}
                    }
                }
            }
            let _ = session.take_login();
        }
        news
    }

    fn both_ways(lines: &[&str]) -> Vec<News> {
        let whole = told(lines, false);
        assert_eq!(told(lines, true), whole, "cut at each byte");
        whole
    }

    const LOGIN: [&str; 5] = ["<220 x", ">USER u", "<331 x", ">PASS secret", "<230 x"];

    fn begun(verb: &'static str, name: &str) -> News {
        News::TransferBegun(TransferCommand {
            verb,
            name: name.into(),
        })
    }

    fn ended(verb: &'static str, name: &str, begun: bool, code: impl Into<Option<u16>>) -> News {
        News::TransferEnded {
            command: TransferCommand {
                verb,
                name: name.into(),
            },
            begun,
            code: code.into(),
        }
    }

    #[test]
    fn transfers_have_names_and_replies() {
        let dialogue = [
            ">retr a file.bin ",
            "<150-x",
            "<150 x",
            "<226 x",
            ">LIST",
            "<550 no",
            ">STOR up",
            "<125 x",
            ">STAT",
            "<213 x",
            ">ABOR",
            "<426 x",
            "<226 x",
            ">NOOP",
            "<200 x",
        ];
        assert_eq!(
            both_ways(&[&LOGIN[..], &dialogue].concat()),
            [
                begun("RETR", "a file.bin"),
                ended("RETR", "a file.bin", true, 226),
                ended("LIST", "", false, 550),
                begun("STOR", "up"),
                ended("STOR", "up", true, 426),
            ]
        );
    }

    #[test]
    fn a_reply_that_is_missing_ends_its_transfer_with_the_next() {
        let dialogue = [
            ">RETR a", "<150 x", ">RETR b", "<150 x", "<226 x", ">NOOP", "<200 x",
        ];
        assert_eq!(
            both_ways(&[&LOGIN[..], &dialogue].concat()),
            [
                begun("RETR", "a"),
                ended("RETR", "a", true, None),
                begun("RETR", "b"),
                ended("RETR", "b", true, 226),
            ]
        );
    }

    #[test]
    fn many_pipelined_transfers_are_bounded_and_in_order() {
        let names: Vec<_> = (0..20).map(|n| format!(">RETR {n}")).collect();
        let mut lines = LOGIN.to_vec();
        lines.extend(names.iter().map(String::as_str));
        for _ in 0..20 {
            lines.extend(["<150 x", "<226 x"]);
        }
        let news = both_ways(&lines);
        let ends: Vec<_> = (12..20).collect();
        let of = |n: &i32| {
            let name = n.to_string();
            [begun("RETR", &name), ended("RETR", &name, true, 226)]
        };
        assert_eq!(news, ends.iter().flat_map(of).collect::<Vec<_>>());
    }

    #[test]
    fn a_failed_login_names_the_user_and_no_password() {
        let lines = [
            "<220 x",
            ">USER eve",
            "<331 x",
            ">PASS hunter2",
            "<530 no",
            ">PASS hunter2",
            "<503 no",
            ">ACCT hunter2",
            "<530 no",
        ];
        let news = both_ways(&lines);
        let codes = [530, 503, 530].map(|code| News::LoginFailed {
            user: "eve".into(),
            code,
        });
        assert_eq!(news, codes);
        assert!(!format!("{news:?}").contains("hunter2"));
    }

    #[test]
    fn long_names_are_cut() {
        let long = "é".repeat(600);
        let line = format!(">RETR {long}");
        let whole = told(&[&LOGIN[..], &[&line, "<150 x", "<226 x"]].concat(), false);
        let [News::TransferBegun(command), _] = whole.as_slice() else {
            panic!("{whole:?}");
        };
        assert_eq!(command.name, format!("{}…", "é".repeat(256)));
        let pieces = told(&[&LOGIN[..], &[&line, "<150 x", "<226 x"]].concat(), true);
        let [News::TransferBegun(command), _] = pieces.as_slice() else {
            panic!("{pieces:?}");
        };
        assert!(command.name.ends_with("é…"), "{}", command.name);
        assert!(long.starts_with(command.name.trim_end_matches('…')));
    }

    #[test]
    fn who_watches_sees_commands_and_replies() {
        use Said::{Command, Reply};
        let mut session = Session::new(Arc::new(Policy::default()));
        let mut say = |from, line: &str, watched: &mut Vec<Said>| {
            let bytes = format!("{line}\r\n").into_bytes();
            assert_eq!(session.next(from, &bytes), Step::Pass(bytes.len()));
            *watched = session.watch();
        };
        let mut seen = Vec::new();
        for (from, line) in [
            (Peer::Server, "220 hello"),
            (Peer::Client, "USER alice"),
            (Peer::Server, "331 go on"),
            (Peer::Client, "pass secret"),
            (Peer::Client, "XYZZY secret"),
            (Peer::Server, "230-in"),
            (Peer::Server, "230 in"),
        ] {
            say(from, line, &mut seen);
        }
        let login = [
            Command("USER"),
            Reply(331),
            Command("PASS"),
            Command("command"),
            Reply(230),
        ];
        assert_eq!(seen, login, "what came before isn't known");
        for _ in 0..MAX_SAID {
            say(Peer::Client, "NOOP", &mut seen);
            say(Peer::Server, "200 x", &mut seen);
        }
        assert_eq!(seen.len(), MAX_SAID);
        assert_eq!(seen.last(), Some(&Reply(200)));
    }

    #[test]
    fn nothing_is_kept_when_nothing_is_to_be_told() {
        let mut session = Session::new(Arc::new(Policy::default()));
        let say = |session: &mut Session, peer, text: &[u8]| {
            assert_eq!(session.next(peer, text), Step::Pass(text.len()));
        };
        say(&mut session, Peer::Server, b"220 x\r\n");
        say(&mut session, Peer::Client, b"USER u\r\n");
        say(&mut session, Peer::Server, b"230 x\r\n");
        assert_eq!(session.take_login().as_deref(), Some("u"));
        assert!(session.told.is_none());
        say(&mut session, Peer::Client, b"LIST\r\n");
        say(&mut session, Peer::Server, b"150 x\r\n");
        assert!(session.take_news().is_some() && session.take_news().is_none());
        assert!(session.told.is_some(), "it runs");
        say(&mut session, Peer::Server, b"226 x\r\n");
        assert!(session.take_news().is_some() && session.take_news().is_none());
        assert!(session.told.is_none());
    }
}
