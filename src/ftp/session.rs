//! The session machine: which bytes of the two control streams may pass, wait or must change.

mod client;
mod server;
mod step;
mod tls;

use std::num::NonZeroU16;
use std::sync::Arc;

pub use step::{Address, Announcement, Form, Outcome, Over, Peer, Refusal, Step};
use tls::Implicit;

use super::line::Line;
use super::policy::Policy;
use super::waiting::Waiting;

/// Where an active data connection stands. It is opened when a transfer is commanded, unless its
/// `PORT` was refused by then; a refusal that comes later closes it. For servers that connect as
/// soon as they read the `PORT`, and grant it only then (pyftpdlib), it is opened with the `PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
enum Active {
    #[default]
    None,
    /// The address went out; the server hasn't answered.
    Announced {
        /// The transfer command has come already (pipelining).
        transfer: bool,
    },
    /// The server answered `2yz`.
    Granted,
    /// The address went out to a server that connects at once: the hole must be open before.
    Early,
    /// Its hole was opened.
    Opened,
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
    /// Commands beyond the pipelining limit.
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
}

impl User {
    fn new(name: &[u8]) -> Self {
        let mut kept = [0; 64];
        kept.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        let len = u8::try_from(name.len().min(kept.len())).unwrap_or(0);
        Self { name: kept, len }
    }

    fn name(&self) -> String {
        let name = self.name.get(..usize::from(self.len));
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}

/// The state of one control connection's dialogue.
///
/// Replies are matched to commands in order. A `227` or `229` counts only as the last (or only)
/// line of the reply to a `PASV` or `EPSV`.
#[derive(Debug)]
pub struct Session {
    policy: Arc<Policy>,
    client: Line,
    server: Line,
    waiting: Waiting,
    /// Until the login.
    user: Option<Box<User>>,
    /// Commands that weren't recorded because too many were waiting: they come after those.
    unrecorded: u32,
    counts: Counts,
    /// The code of a multi-line reply whose last line hasn't come.
    multi: Option<NonZeroU16>,
    active: Active,
    over: Option<Over>,
    implicit: Implicit,
    greeted: bool,
    /// The first command was one of FTP's.
    spoken: bool,
    logged_in: bool,
    fresh_login: bool,
    epsv_all: bool,
    /// The address of the line that is under way went out with a pinhole reserved.
    followed: bool,
    transferring: bool,
    /// The server connects as soon as it reads a `PORT`.
    connects_early: bool,
    /// The reserved or open hole of a `PORT` won't be used.
    cancelled: bool,
    /// Since the last login that succeeded.
    failed_logins: u8,
}

impl Session {
    /// A session that hasn't begun: the server speaks first.
    ///
    /// `connects_early`: the server is known to connect as soon as it reads a `PORT` (see
    /// [`Session::connects_early`]).
    #[must_use]
    pub fn new(policy: Arc<Policy>, connects_early: bool) -> Self {
        Self {
            policy,
            client: Line::default(),
            server: Line::default(),
            waiting: Waiting::default(),
            user: None,
            unrecorded: 0,
            counts: Counts::default(),
            multi: None,
            active: Active::None,
            over: None,
            implicit: Implicit::default(),
            greeted: false,
            spoken: false,
            logged_in: false,
            fresh_login: false,
            epsv_all: false,
            followed: false,
            transferring: false,
            connects_early,
            cancelled: false,
            failed_logins: 0,
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
        match from {
            Peer::Client => self.next_command(pending),
            Peer::Server => self.next_reply(pending),
        }
    }

    /// Says what to do with bytes of the client's that have waited for too long for the rest of
    /// their line: it is refused, since what it says may come later. Never [`Step::Wait`].
    pub fn give_up(&mut self, pending: &[u8]) -> Step {
        self.abandon_command(pending)
    }

    /// What became of the last [`Step::Address`] of `from`'s stream.
    pub fn announced(&mut self, from: Peer, outcome: Outcome) {
        if from == Peer::Client {
            self.followed = matches!(outcome, Outcome::Accepted(_));
            // The caller replaces an older hole by the accepted one; else the older one must go.
            self.cancelled = !self.followed && (self.cancelled || self.active != Active::None);
            self.active = match outcome {
                Outcome::Accepted(_) if self.connects_early && self.may_open() => Active::Early,
                Outcome::Accepted(_) => Active::Announced { transfer: false },
                Outcome::PassedUnmodified | Outcome::Refused => Active::None,
            };
        }
    }

    /// What became of [`Step::OpenActive`].
    pub fn active_opened(&mut self, opened: bool) {
        self.active = if opened { Active::Opened } else { Active::None };
    }

    /// Whether the hole of the last `PORT` is open: a transfer may be under way to it, so that a
    /// later `PORT` doesn't take its place.
    #[must_use]
    pub fn active_is_open(&self) -> bool {
        self.active == Active::Opened
    }

    /// Whether the hole of a `PORT` won't be used, once: it must go. The server refused it, or
    /// another command took its place.
    pub fn take_cancelled(&mut self) -> bool {
        std::mem::take(&mut self.cancelled)
    }

    /// Whether the server has shown that it connects as soon as it reads a `PORT`, before it
    /// grants it: by its name in the greeting, or by complaining that it couldn't (`425`, which
    /// answers transfer commands only, RFC 959 §5.4).
    #[must_use]
    pub fn connects_early(&self) -> bool {
        self.connects_early
    }

    /// Whether the server's last line isn't one of several of a reply.
    #[must_use]
    pub fn begins_reply(&self) -> bool {
        self.multi.is_none()
    }

    fn may_open(&self) -> bool {
        self.logged_in || !self.policy.require_login
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
            None => !self.logged_in,
            Some(Over::NotFtp | Over::NotTls) => true,
            Some(_) => false,
        }
    }

    /// The user's name, once, when the login has just succeeded.
    pub fn take_login(&mut self) -> Option<String> {
        if !self.fresh_login {
            return None;
        }
        self.fresh_login = false;
        Some(self.user.take().map(|user| user.name()).unwrap_or_default())
    }

    /// Where the dialogue stands, in a word or two.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.over {
            Some(Over::Tls) => "tls",
            Some(Over::NotFtp) => "not ftp",
            Some(Over::NotTls) => "not tls",
            None if !self.greeted => "greeting",
            None if !self.logged_in => "login",
            None if self.transferring => "transfer",
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

    /// What a `PORT` prepared isn't wanted any more.
    fn forget_active(&mut self) {
        self.cancelled |= matches!(self.active, Active::Announced { .. } | Active::Granted);
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
