//! The session machine: decides which bytes of the two control streams pass, wait or change.

mod client;
mod nat64;
mod server;
mod step;
mod tls;
mod told;

use std::num::NonZeroU16;
use std::sync::Arc;

pub use step::{Address, Announcement, Form, Hole, Outcome, Over, Peer, Refusal, Step};
pub use told::{News, Said, TransferCommand};

use super::command::{Command, guarded};
use super::line::PartialLine;
use super::policy::Policy;
use super::reply::ReplyStart;
use super::waiting::Unanswered;
use told::Told;

/// The pinhole of the last `PORT` or `EPRT` that was followed. No other part of the core keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
enum Active {
    #[default]
    None,
    /// It has a port but isn't open: the login is still under way, or the strict rule
    /// `active-late` holds.
    Reserved {
        hole: Hole,
        /// The server answered the `PORT` with `2yz`.
        granted: bool,
        /// A transfer command followed it.
        commanded: bool,
    },
    /// It is open.
    Open {
        hole: Hole,
        /// A transfer command followed it.
        commanded: bool,
    },
    /// Its transfer is over. Usually the data connection has closed it; if not, the next `PORT`
    /// does.
    Spent(Hole),
    /// It won't be used: the caller is to close it.
    Cancelled(Hole),
}

impl Active {
    fn hole(self) -> Option<Hole> {
        match self {
            Self::None => None,
            Self::Reserved { hole, .. }
            | Self::Open { hole, .. }
            | Self::Spent(hole)
            | Self::Cancelled(hole) => Some(hole),
        }
    }
}

/// How the two streams are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
enum Reading {
    /// FTP in clear text.
    #[default]
    Clear,
    /// Implicit FTPS: nothing has come.
    TlsExpected,
    /// Implicit FTPS: the client has begun a handshake.
    TlsHello,
    /// Not any more.
    Over(Over),
}

/// What the client has said so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
enum Spoken {
    /// No known command.
    #[default]
    Nothing,
    /// An FTP command.
    Ftp,
    /// Something that isn't FTP. Nothing opens any more. What is always refused still is, since the
    /// server may read it as FTP.
    Unfollowed,
}

impl Spoken {
    /// An FTP command has come.
    fn ftp(&mut self) {
        if *self == Self::Nothing {
            *self = Self::Ftp;
        }
    }
}

/// What a session has counted. Each counter stops at its maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Lines longer than the limit: passed, never acted on.
    pub overlong: u16,
    /// Addresses that couldn't be read strictly: passed as they were.
    pub unparsable: u16,
    /// Addresses in a reply that answers no `PASV`/`EPSV`, and in a `PORT`/`EPRT` that may not open
    /// anything yet (before the login): passed as they were.
    pub unasked: u16,
    /// Commands that were forgotten because too many waited for their reply.
    pub overrun: u16,
}

fn count(counter: &mut u16) {
    *counter = counter.saturating_add(1);
}

/// The user's name, up to 64 bytes of it.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct User {
    #[serde(with = "super::text")]
    name: [u8; 64],
    len: u8,
    /// The login succeeded. The name is kept until [`Session::take_login`] takes it.
    logged_in: bool,
    /// A login succeeded and wasn't taken yet: this user's, or an earlier one's.
    is_news: bool,
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
            is_news: false,
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
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Session {
    #[serde(skip)]
    policy: Arc<Policy>,
    client: PartialLine,
    server: PartialLine,
    waiting: Unanswered,
    told: Option<Box<Told>>,
    counts: Counts,
    /// The code of a multi-line reply whose last line hasn't come.
    multi: Option<NonZeroU16>,
    /// The code of the first line within it that looked like a reply's last line.
    other_end: Option<NonZeroU16>,
    active: Active,
    reading: Reading,
    spoken: Spoken,
    /// Lines of text before the greeting.
    preface: u8,
    greeted: bool,
    logged_in: bool,
    /// `USER` or `PASS` has come since the last login that succeeded.
    login_tried: bool,
    /// The client's pending bytes wait for the reply to the login.
    awaits_login: bool,
    /// Whether commands may wait for that.
    patient: bool,
    epsv_all: bool,
    /// Logins that failed since the last one that succeeded.
    failed_logins: u8,
}

impl Session {
    /// A session that hasn't begun.
    #[must_use]
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            client: PartialLine::default(),
            server: PartialLine::default(),
            waiting: Unanswered::default(),
            told: None,
            counts: Counts::default(),
            multi: None,
            other_end: None,
            active: Active::None,
            reading: Reading::default(),
            spoken: Spoken::default(),
            preface: 0,
            greeted: false,
            logged_in: false,
            login_tried: false,
            awaits_login: false,
            patient: true,
            epsv_all: false,
            failed_logins: 0,
        }
    }

    /// A session that is under way: the server has greeted, and the login is taken for granted. Its
    /// streams are followed from the first line on that is certainly one. Replies answer commands
    /// that were seen. Before the first command, a `227` or `229` may answer one that wasn't.
    #[must_use]
    pub fn joined(policy: Arc<Policy>) -> Self {
        let mut session = Self {
            greeted: true,
            logged_in: true,
            ..Self::new(policy)
        };
        session.loses_line(Peer::Client);
        session.loses_line(Peer::Server);
        session
    }

    /// The same session when bytes went by unread, of which only one end's acknowledgement tells. A web page's
    /// first lines could be among them, so nothing opens unless the session had begun as FTP does.
    #[must_use]
    pub fn with_a_gap(&self, policy: Arc<Policy>) -> Self {
        let begun = self.greeted && self.logged_in && self.spoken == Spoken::Ftp;
        Self {
            spoken: if begun {
                Spoken::Ftp
            } else {
                Spoken::Unfollowed
            },
            ..Self::joined(policy)
        }
    }

    /// Goes on with a session that another process has followed so far. Its pinholes had numbers that
    /// mean nothing here.
    pub fn resume(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
        self.active = Active::None;
    }

    /// A session that went on under TLS before it was seen here.
    #[must_use]
    pub fn joined_under_tls(policy: Arc<Policy>) -> Self {
        let mut session = Self::joined(policy);
        session.ends(Over::Tls);
        session
    }

    /// Says what to do with the pending bytes of `from`'s stream. To be called when new bytes have
    /// arrived, and again after each step was carried out, until it waits or nothing is pending.
    ///
    /// Only bytes that may belong to an address, or to a command that may be refused, wait.
    /// Everything else goes out at once. Nothing waits in a complete line, but for a `PORT` that
    /// waits for the reply to the login.
    pub fn next(&mut self, from: Peer, pending: &[u8]) -> Step {
        if !pending.is_empty() && self.line(from).was_lost() {
            self.find_line(from, pending);
        }
        match (self.reading, from) {
            (Reading::Over(over), _) => Step::Opaque(over),
            _ if pending.is_empty() => Step::Wait,
            (Reading::Clear, Peer::Client) => self.next_command(pending),
            (Reading::Clear, Peer::Server) => self.next_reply(pending),
            (Reading::TlsExpected | Reading::TlsHello, _) => self.next_record(from, pending),
        }
    }

    /// The first bytes of a stream that was joined in its middle may be the rest of a line. Then it is
    /// followed from the next line on.
    fn find_line(&mut self, from: Peer, pending: &[u8]) {
        let (piece, ended) = first_line(pending);
        let head = if ended { piece.trim_ascii_end() } else { piece };
        let begins = match from {
            // What may be refused is refused all the same.
            Peer::Client => Command::of(head) != Command::Unknown || guarded(head, false).is_some(),
            Peer::Server => ReplyStart::of(head, ended) != ReplyStart::Text,
        };
        let line = self.line(from);
        line.end();
        if !begins {
            line.settle();
        }
    }

    /// Bytes of a stream weren't seen here. The next ones may be the rest of a line.
    pub fn loses_line(&mut self, from: Peer) {
        self.line(from).is_lost();
    }

    fn line(&mut self, from: Peer) -> &mut PartialLine {
        match from {
            Peer::Client => &mut self.client,
            Peer::Server => &mut self.server,
        }
    }

    /// Whether the dialogue is followed: it is FTP as far as one can tell, and in clear text.
    #[must_use]
    pub fn is_followed(&self) -> bool {
        !self.is_unfollowed() && self.reading == Reading::Clear
    }

    /// Says what to do with bytes of the client that have waited for too long for the rest of their
    /// line. The line is refused, since its end isn't known. Never [`Step::Wait`].
    pub fn give_up(&mut self, pending: &[u8]) -> Step {
        self.abandon_command(pending)
    }

    /// Whether the client's bytes waited for something that has come since, in the server's stream.
    /// Then call [`Session::next`] for them again.
    #[must_use]
    pub fn resumes(&self) -> bool {
        self.awaits_login && !(self.patient && self.login_is_under_way())
    }

    /// Whether the client's bytes wait for the reply to its login. Whole lines may wait then.
    #[must_use]
    pub fn awaits_login(&self) -> bool {
        self.awaits_login
    }

    /// From here on no command waits for a login, since its bytes can't be kept, or not any longer.
    /// A pinhole that was to open before the command went on then opens with the login.
    pub fn lose_patience(&mut self) {
        self.patient = false;
    }

    fn login_is_under_way(&self) -> bool {
        let asked = self.waiting.has(Command::User) || self.waiting.has(Command::Login);
        asked && !self.is_unfollowed() && !self.logged_in && self.policy.require_login
    }

    /// Whether a reply is awaited that may mean nothing to somebody who hasn't read what it answers: a
    /// `227`, a `229`, the one to `AUTH`, or one that is to be translated.
    #[must_use]
    pub fn awaits_telling_reply(&self) -> bool {
        self.is_followed() && self.waiting.iter().any(Command::has_telling_reply)
    }

    /// Gives up on bytes of the server that have waited for too long for the rest of an address.
    /// Returns how many pass.
    pub fn give_up_reply(&mut self, pending: &[u8]) -> usize {
        let (piece, ended) = first_line(pending);
        if !ended {
            self.server.settle();
        }
        self.server.goes(piece);
        piece.len()
    }

    /// Tells what became of the last [`Step::Address`] of `from`'s stream. Returns the pinhole of
    /// an earlier `PORT` that this one supersedes; it is to be closed.
    #[must_use]
    pub fn announced(&mut self, from: Peer, outcome: Outcome) -> Option<Hole> {
        if from == Peer::Server {
            return None;
        }
        let Outcome::Accepted { hole, open } = outcome else {
            self.forget_active();
            return None;
        };
        self.client.follow();
        // A transfer that is under way keeps its pinhole.
        let superseded = match self.active_is_commanded() {
            true => None,
            false => self.active.hole(),
        };
        self.active = match open {
            true => Active::Open {
                hole,
                commanded: false,
            },
            false => Active::Reserved {
                hole,
                granted: false,
                commanded: false,
            },
        };
        superseded.filter(|old| *old != hole)
    }

    /// Whether the pinhole of an accepted `PORT` is to be open before the line goes out. If not,
    /// [`Step::OpenActive`] says when. Some servers connect as soon as they have read the `PORT`
    /// (pyftpdlib, twisted, libunftp), others with their own `200` (ftp-srv).
    #[must_use]
    pub fn opens_at_once(&self) -> bool {
        self.may_open() && !self.policy.strict.active_late
    }

    /// Tells what became of [`Step::OpenActive`].
    pub fn active_opened(&mut self, opened: bool) {
        self.active = match self.active {
            Active::Reserved {
                hole, commanded, ..
            } if opened => Active::Open { hole, commanded },
            _ => Active::None,
        };
    }

    /// The control connection ended, and its pinholes were closed with it.
    pub fn connection_ended(&mut self) {
        self.active = Active::None;
    }

    /// Whether a transfer command came that may use the pinhole of the last `PORT`. Then a later
    /// `PORT` doesn't supersede it.
    fn active_is_commanded(&self) -> bool {
        matches!(
            self.active,
            Active::Open {
                commanded: true,
                ..
            } | Active::Reserved {
                commanded: true,
                ..
            }
        )
    }

    /// Takes the pinhole of a `PORT` that won't be used, which is to be closed: the server refused
    /// the `PORT`, or another command took its place.
    pub fn take_cancelled(&mut self) -> Option<Hole> {
        let Active::Cancelled(hole) = self.active else {
            return None;
        };
        self.active = Active::None;
        Some(hole)
    }

    /// Whether the server's current line begins a reply: it isn't within a multi-line one.
    #[must_use]
    pub fn begins_reply(&self) -> bool {
        self.multi.is_none()
    }

    fn may_open(&self) -> bool {
        !self.is_unfollowed() && (self.logged_in || !self.policy.require_login)
    }

    /// Whether the login succeeded.
    #[must_use]
    pub fn logged_in(&self) -> bool {
        self.logged_in
    }

    /// Whether nobody has logged in, or it isn't FTP. False under TLS, where that can't be known.
    #[must_use]
    pub fn is_guest(&self) -> bool {
        match self.reading {
            Reading::Over(Over::Tls) => false,
            Reading::Over(Over::NotFtp | Over::NotTls) => true,
            _ => self.is_unfollowed() || !self.logged_in,
        }
    }

    /// Whether what the client said isn't FTP: nothing may open any more.
    #[must_use]
    pub fn is_unfollowed(&self) -> bool {
        self.spoken == Spoken::Unfollowed
    }

    /// Takes the user's name when the login has just succeeded.
    pub fn take_login(&mut self) -> Option<String> {
        let told = self.told.as_mut()?;
        let user = told.user.as_mut().filter(|user| user.is_news)?;
        user.is_news = false;
        // If another `USER` came since, the name isn't known any more.
        let user = told.user.take_if(|user| user.logged_in);
        self.told.take_if(|told| told.is_empty());
        Some(user.map(|user| user.name()).unwrap_or_default())
    }

    /// Takes what the dialogue has shown, one by one. To be called after each step, until there is
    /// nothing more.
    pub fn take_news(&mut self) -> Option<News> {
        let news = self.told.as_mut()?.take();
        self.told.take_if(|told| told.is_empty());
        news
    }

    /// The last lines of the dialogue, oldest first. They are kept from the first call on.
    pub fn watch(&mut self) -> Vec<Said> {
        self.told().watch()
    }

    fn user(&self) -> Option<&User> {
        self.told.as_ref()?.user.as_ref()
    }

    fn told(&mut self) -> &mut Told {
        self.told.get_or_insert_default()
    }

    /// Where the dialogue stands, in a word or two.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.reading {
            Reading::Over(Over::Tls) => "tls",
            Reading::Over(Over::NotFtp) => "not ftp",
            Reading::Over(Over::NotTls) => "not tls",
            _ if self.is_unfollowed() => "not ftp",
            _ if !self.greeted => "greeting",
            _ if !self.logged_in => "login",
            _ if self.waiting.has(Command::Running) => "transfer",
            _ => "ready",
        }
    }

    /// Why it reads no further, if it doesn't.
    #[must_use]
    pub fn over(&self) -> Option<Over> {
        match self.reading {
            Reading::Over(over) => Some(over),
            _ => None,
        }
    }

    /// What was counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn ends(&mut self, over: Over) -> Step {
        self.reading = Reading::Over(over);
        if let Some(told) = &mut self.told {
            told.forget_transfers();
        }
        self.client.end();
        self.server.end();
        Step::Opaque(over)
    }

    /// Nothing of this session is followed from here on.
    fn unfollow(&mut self) -> Step {
        self.spoken = Spoken::Unfollowed;
        self.drop_active();
        Step::Unfollowed
    }

    /// Cancels the pinhole of the last `PORT`, unless a transfer command came that may use it.
    fn forget_active(&mut self) {
        if !self.active_is_commanded() {
            self.drop_active();
        }
    }

    /// Cancels the pinhole of the last `PORT`.
    fn drop_active(&mut self) {
        if let Active::Reserved { hole, .. } | Active::Open { hole, .. } = self.active {
            self.active = Active::Cancelled(hole);
        }
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
