//! The session machine: which bytes of the two control streams may pass, wait or must change.

mod client;
mod server;
mod step;
mod tls;

use std::num::NonZeroU16;
use std::sync::Arc;

pub use step::{Address, Announcement, Form, Outcome, Over, Peer, Refusal, Step};
use tls::Implicit;

use super::command::{Command, guarded};
use super::line::Line;
use super::policy::Policy;
use super::reply::Start;
use super::waiting::Waiting;

/// Where the data connection of the last `PORT` or `EPRT` that was followed stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Active {
    #[default]
    None,
    /// Its hole has a port but isn't open: the login is still under way, or the strict rule
    /// `active-late` holds.
    Reserved {
        /// The server answered the `PORT` with `2yz`.
        granted: bool,
        /// A transfer command followed it.
        commanded: bool,
    },
    /// Its hole is open.
    Open {
        /// A transfer command followed it.
        commanded: bool,
    },
}

/// What a session has counted; each stops at its greatest value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines longer than the limit: passed, never acted on.
    pub overlong: u16,
    /// Addresses that couldn't be read strictly: passed as they were.
    pub unparsable: u16,
    /// Addresses in a reply that answers no `PASV`/`EPSV`, or before the login: passed as they were.
    pub unasked: u16,
    /// Commands that were forgotten because too many waited for their reply.
    pub overrun: u16,
}

fn count(counter: &mut u16) {
    *counter = counter.saturating_add(1);
}

/// The beginning of a user's name.
#[derive(Clone, Copy, Debug)]
struct User {
    name: [u8; 64],
    len: u8,
    /// The login succeeded; the name is kept until somebody asks for it.
    logged_in: bool,
}

impl User {
    fn new(name: &[u8]) -> Self {
        let mut kept = [0; 64];
        kept.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        let len = u8::try_from(name.len().min(kept.len())).unwrap_or(0);
        Self {
            name: kept,
            len,
            logged_in: false,
        }
    }

    fn name(&self) -> String {
        let name = self.name.get(..usize::from(self.len));
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

/// The state of one control connection's dialogue.
///
/// A reply answers the first waiting command that it can answer. A `227` or `229` counts only as
/// the last (or only) line of a reply, and only while a `PASV` or `EPSV` waits.
#[derive(Debug)]
pub struct Session {
    policy: Arc<Policy>,
    client: Line,
    server: Line,
    waiting: Waiting,
    /// Until the login.
    user: Option<Box<User>>,
    counts: Counts,
    /// The code of a multi-line reply whose last line hasn't come.
    multi: Option<NonZeroU16>,
    /// The code of the first line within it that looked like the end of another reply.
    other_end: Option<NonZeroU16>,
    active: Active,
    over: Option<Over>,
    implicit: Implicit,
    /// Lines of text before the greeting.
    preface: u8,
    /// Of client and server: the stream may have been joined in the middle of a line.
    unsure: [bool; 2],
    greeted: bool,
    /// A command of FTP's has come.
    spoken: bool,
    /// What the client said isn't FTP: nothing opens any more. What is refused stays refused, since
    /// the server may read it as FTP all the same.
    unfollowed: bool,
    logged_in: bool,
    fresh_login: bool,
    /// A login was tried that hasn't succeeded.
    login_tried: bool,
    /// What the client's bytes last waited for was the reply to the login.
    awaits_login: bool,
    /// Whether one may.
    patient: bool,
    epsv_all: bool,
    /// The address of the line that is under way went out with a pinhole.
    followed: bool,
    /// An `AUTH` was forgotten when too many commands waited.
    forgot_auth: bool,
    /// The reserved or open hole of a `PORT` won't be used.
    cancelled: bool,
    /// Since the last login that succeeded.
    failed_logins: u8,
}

impl Session {
    /// A session that hasn't begun.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            client: Line::default(),
            server: Line::default(),
            waiting: Waiting::default(),
            user: None,
            counts: Counts::default(),
            multi: None,
            other_end: None,
            active: Active::None,
            over: None,
            implicit: Implicit::default(),
            preface: 0,
            unsure: [false; 2],
            greeted: false,
            spoken: false,
            unfollowed: false,
            logged_in: false,
            fresh_login: false,
            login_tried: false,
            awaits_login: false,
            patient: true,
            epsv_all: false,
            followed: false,
            forgot_auth: false,
            cancelled: false,
            failed_logins: 0,
        }
    }

    /// A session that is under way: the server has greeted, and the login is taken for granted. Its
    /// streams are followed from the first line on that is certainly one; replies answer commands
    /// that were seen.
    #[must_use]
    pub fn joined(policy: Arc<Policy>) -> Self {
        Self {
            greeted: true,
            spoken: true,
            logged_in: true,
            unsure: [true; 2],
            ..Self::new(policy)
        }
    }

    /// Says what to do with the bytes of `from`'s stream that haven't gone out. To be called when
    /// new bytes arrived, and again after each step was carried out, until it waits or nothing is
    /// pending.
    ///
    /// Only bytes that may belong to an address or to a verb that is refused wait; everything else
    /// goes out at once. Nothing waits in a line that is complete.
    pub fn next(&mut self, from: Peer, pending: &[u8]) -> Step {
        if let Some(over) = self.over {
            return Step::Opaque(over);
        }
        if pending.is_empty() {
            return Step::Wait;
        }
        if self.implicit != Implicit::No {
            return self.next_record(from, pending);
        }
        self.find_line(from, pending);
        match from {
            Peer::Client => self.next_command(pending),
            Peer::Server => self.next_reply(pending),
        }
    }

    /// Of a stream that was joined in its middle, the first bytes may be the rest of a line. Then it
    /// is followed from the next one on.
    fn find_line(&mut self, from: Peer, pending: &[u8]) {
        let [client, server] = &mut self.unsure;
        let unsure = match from {
            Peer::Client => client,
            Peer::Server => server,
        };
        if !std::mem::take(unsure) {
            return;
        }
        let (piece, ended) = first_line(pending);
        let line = match ended {
            true => piece.trim_ascii_end(),
            false => piece,
        };
        match from {
            // What may be refused is no less so for being cut.
            Peer::Client
                if Command::of(line) != Command::Unknown || guarded(line, false).is_some() => {}
            Peer::Server if Start::of(line, ended) != Start::Text => {}
            Peer::Client => self.client.settle(),
            Peer::Server => self.server.settle(),
        }
    }

    /// Whether the dialogue is followed: it is FTP as far as one can tell, and in clear text.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        self.greeted && !self.unfollowed && self.over.is_none() && self.implicit == Implicit::No
    }

    /// Says what to do with bytes of the client's that have waited for too long for the rest of
    /// their line: it is refused, since what it says may come later. Never [`Step::Wait`].
    pub fn give_up(&mut self, pending: &[u8]) -> Step {
        self.abandon_command(pending)
    }

    /// Whether the client's bytes wait for something that has come since, in the server's stream: call
    /// [`Session::next`] for them again.
    #[must_use]
    pub fn resumes(&self) -> bool {
        self.awaits_login && !(self.patient && self.login_is_under_way())
    }

    /// Whether the client's bytes wait for a reply to its login. Whole lines may wait then.
    #[must_use]
    pub fn awaits_login(&self) -> bool {
        self.awaits_login
    }

    /// Lets no command wait for a login (any more): its bytes can't be kept, or kept any longer. What
    /// was to be open before the command went on then opens with the login.
    pub fn lose_patience(&mut self) {
        self.patient = false;
    }

    fn login_is_under_way(&self) -> bool {
        let asked = self.waiting.has(Command::User) || self.waiting.has(Command::Login);
        asked && !self.unfollowed && !self.logged_in && self.policy.require_login
    }

    /// How many bytes of the server's that have waited for too long for the rest of an address pass
    /// now: they are none.
    pub fn give_up_reply(&mut self, pending: &[u8]) -> usize {
        let (piece, ended) = first_line(pending);
        if !ended {
            self.server.settle();
        }
        self.server.goes(piece);
        piece.len()
    }

    /// What became of the last [`Step::Address`] of `from`'s stream.
    pub fn announced(&mut self, from: Peer, outcome: Outcome) {
        if from == Peer::Server {
            return;
        }
        self.followed = matches!(outcome, Outcome::Accepted { .. });
        if let Outcome::Accepted { open } = outcome {
            // The caller has given the older hole up, unless its transfer is under way.
            self.cancelled = false;
            self.active = match open {
                true => Active::Open { commanded: false },
                false => Active::Reserved {
                    granted: false,
                    commanded: false,
                },
            };
        } else {
            self.forget_active();
        }
    }

    /// Whether the hole of an accepted `PORT` is to be open before the line goes out: servers exist
    /// that connect as soon as they have read it (pyftpdlib, twisted, libunftp), or with their
    /// own `200` (ftp-srv). Otherwise [`Step::OpenActive`] says when.
    #[must_use]
    pub fn opens_at_once(&self) -> bool {
        self.may_open() && !self.policy.strict.active_late
    }

    /// What became of [`Step::OpenActive`].
    pub fn active_opened(&mut self, opened: bool) {
        self.active = match self.active {
            Active::Reserved { commanded, .. } if opened => Active::Open { commanded },
            _ => Active::None,
        };
    }

    /// Whether a transfer was commanded that may use the hole of the last `PORT`: a later `PORT`
    /// doesn't take its place.
    #[must_use]
    pub fn active_is_commanded(&self) -> bool {
        matches!(
            self.active,
            Active::Open { commanded: true }
                | Active::Reserved {
                    commanded: true,
                    ..
                }
        )
    }

    /// Whether the hole of a `PORT` won't be used, once: it must go. The server refused it, or
    /// another command took its place.
    pub fn take_cancelled(&mut self) -> bool {
        std::mem::take(&mut self.cancelled)
    }

    /// Whether the server's last line isn't one of several of a reply.
    #[must_use]
    pub fn begins_reply(&self) -> bool {
        self.multi.is_none()
    }

    fn may_open(&self) -> bool {
        !self.unfollowed && (self.logged_in || !self.policy.require_login)
    }

    /// Whether the login succeeded.
    #[must_use]
    pub fn logged_in(&self) -> bool {
        self.logged_in
    }

    /// Whether nobody has logged in, or it isn't FTP. What is under TLS can't be known.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        match self.over {
            None => self.unfollowed || !self.logged_in,
            Some(Over::NotFtp | Over::NotTls) => true,
            Some(_) => false,
        }
    }

    /// Whether what the client said isn't FTP: nothing may open any more.
    #[must_use]
    pub fn is_unfollowed(&self) -> bool {
        self.unfollowed
    }

    /// The user's name, once, when the login has just succeeded.
    pub fn take_login(&mut self) -> Option<String> {
        if !self.fresh_login {
            return None;
        }
        self.fresh_login = false;
        // A `USER` that came since is another one's.
        let user = self.user.take_if(|user| user.logged_in);
        Some(user.map(|user| user.name()).unwrap_or_default())
    }

    /// Where the dialogue stands, in a word or two.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.over {
            Some(Over::Tls) => "tls",
            Some(Over::NotFtp) => "not ftp",
            Some(Over::NotTls) => "not tls",
            None if self.unfollowed => "not ftp",
            None if !self.greeted => "greeting",
            None if !self.logged_in => "login",
            None if self.waiting.has(Command::Running) => "transfer",
            None => "ready",
        }
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn ends(&mut self, over: Over) -> Step {
        self.over = Some(over);
        self.client.end();
        self.server.end();
        Step::Opaque(over)
    }

    /// Nothing of this session is followed from here on.
    fn unfollow(&mut self) -> Step {
        self.unfollowed = true;
        self.drop_active();
        Step::Unfollowed
    }

    /// What a `PORT` prepared isn't wanted any more, unless a transfer that uses it was commanded.
    fn forget_active(&mut self) {
        if !self.active_is_commanded() {
            self.drop_active();
        }
    }

    /// What a `PORT` prepared must go.
    fn drop_active(&mut self) {
        self.cancelled |= self.active != Active::None;
        self.active = Active::None;
    }
}

/// The first line of `pending`, with its line feed, or what there is of it; and whether it is
/// complete.
fn first_line(pending: &[u8]) -> (&[u8], bool) {
    match pending.iter().position(|b| *b == b'\n') {
        Some(at) => (pending.get(..=at).unwrap_or(pending), true),
        None => (pending, false),
    }
}

/// The length of the line so far, without its line feed.
fn length(gone: usize, piece: &[u8], ended: bool) -> usize {
    gone.saturating_add(piece.len())
        .saturating_sub(usize::from(ended))
}
