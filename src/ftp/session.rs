//! The session machine: which bytes of the two control streams may pass, wait or must change.

use std::net::SocketAddr;
use std::sync::Arc;

use super::command::{Command, address_command, argument, long_command, telnet_len};
use super::hostport::{Scan, parse_extended, parse_host_port, scan_extended_port, scan_host_port};
use super::line::Line;
use super::policy::Policy;
use super::reply::Start;
use super::waiting::Waiting;
use crate::engine::gateway::Mode;

/// Who wrote a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// The FTP client (it sent the first SYN): commands.
    Client,
    /// The FTP server: replies.
    Server,
}

/// How an announced address is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// `h1,h2,h3,h4,p1,p2` (RFC 959 §4.1.2): `PORT` and `227`.
    HostPort,
    /// `<d>net-prt<d>net-addr<d>tcp-port<d>` (RFC 2428 §2): `EPRT`, with its delimiter.
    Extended(u8),
    /// `<d><d><d>tcp-port<d>` (RFC 2428 §3): `229`, with its delimiter. Carries no address.
    ExtendedPort(u8),
}

/// An address that an endpoint announces to its peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// `227`, `229`, `PORT` or `EPRT`.
    pub verb: &'static str,
    /// Who connects to whom.
    pub mode: Mode,
    /// How it is written.
    pub form: Form,
    /// The address as written; `None` for a `229`, which names none.
    pub addr: Option<std::net::IpAddr>,
    /// The port as written (never 0).
    pub port: u16,
}

/// What to do with the pending bytes of one stream: see [`Session::next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first `n` pending bytes (n ≥ 1) go out as they are.
    Pass(usize),
    /// All of the pending bytes may belong to an address: more is needed to tell.
    Wait,
    /// `pending[..at]` passes as it is, `pending[at..at + len]` is an address. The caller decides
    /// and calls [`Session::announced`] with the outcome, then removes `at + len` bytes from pending.
    Address {
        /// Where the address text starts.
        at: usize,
        /// How many bytes it takes (≥ 1).
        len: usize,
        /// What it says.
        announcement: Announcement,
    },
    /// `pending[..at]` passes as it is, `pending[at..at + with.len()]` is replaced by `with`,
    /// so that the receiver refuses it itself; both are removed from pending.
    Refuse {
        /// Where the replaced text starts.
        at: usize,
        /// What goes out in its place, of the same length (≥ 1).
        with: Vec<u8>,
        /// The command or reply it was.
        verb: &'static str,
        /// Why, in a few words.
        why: &'static str,
    },
    /// The pinhole that an earlier `PORT`/`EPRT` reserved must be open before any of the pending
    /// bytes go out. Nothing is removed from pending; call [`Session::next`] again.
    OpenActive,
    /// Both streams are passed on without looking from here on. The pending bytes go out as they are.
    Opaque(&'static str),
}

/// What became of an [`Announcement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes out (rewritten or not), and its pinhole is open (passive) or reserved (active).
    Accepted(SocketAddr),
    /// It goes out unmodified and there is no pinhole.
    PassedUnmodified,
    /// It was replaced in place: its receiver will refuse it.
    Refused,
}

/// Where an active data connection stands. It is opened only when both its `PORT` was granted and
/// a transfer was commanded; except for servers that connect as soon as they read the `PORT`, and
/// grant it only then (pyftpdlib).
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

/// Why a session isn't looked at any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Tls,
    NotFtp,
}

impl Over {
    const fn why(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::NotFtp => "not FTP",
        }
    }
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
    multi: Option<std::num::NonZeroU16>,
    active: Active,
    over: Option<Over>,
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
            greeted: false,
            spoken: false,
            logged_in: false,
            fresh_login: false,
            epsv_all: false,
            followed: false,
            transferring: false,
            connects_early,
            cancelled: false,
        }
    }

    /// Says what to do with the bytes of `from`'s stream that haven't gone out. To be called when
    /// new bytes arrived, and again after each step was carried out, until it waits or nothing is
    /// pending.
    ///
    /// Only bytes that may belong to an address wait; everything else goes out at once. Nothing
    /// waits in a line that is complete.
    pub fn next(&mut self, from: Peer, pending: &[u8]) -> Step {
        if let Some(over) = self.over {
            return Step::Opaque(over.why());
        }
        if pending.is_empty() {
            return Step::Wait;
        }
        match from {
            Peer::Client => self.next_command(pending),
            Peer::Server => self.next_reply(pending),
        }
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

    fn may_open(&self) -> bool {
        self.logged_in || !self.policy.require_login
    }

    /// Whether the login succeeded.
    #[must_use]
    pub fn logged_in(&self) -> bool {
        self.logged_in
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
        Step::Opaque(over.why())
    }

    // ---- the client's lines ----------------------------------------------------------------

    fn next_command(&mut self, pending: &[u8]) -> Step {
        if !self.greeted {
            // RFC 959 §5.4: a client waits for the greeting. Whoever doesn't, speaks another protocol.
            return self.ends(Over::NotFtp);
        }
        if self.active == Active::Early {
            return Step::OpenActive;
        }
        let (piece, ended) = first_line(pending);
        let head = self.client.head(piece);
        let overlong = length(self.client.gone(), piece, ended) > self.policy.max_command;
        if !overlong && !self.client.is_settled() {
            if let Some((verb, Some(start))) = address_command(&head) {
                let start = start.saturating_sub(self.client.gone());
                if let Some(step) = self.address_command(verb, start, piece, ended) {
                    return step;
                }
            } else if let Some((verb, at, is)) = long_command(&head)
                && is != Some(false)
            {
                let at = at.saturating_sub(self.client.gone());
                return self.long_command(verb, at, piece, is.is_some());
            }
        }
        if !ended {
            self.client.goes(piece);
            return Step::Pass(piece.len());
        }
        let line = head.trim_ascii_end();
        let command = Command::of(line);
        if !self.spoken
            && (overlong
                || matches!(command, Command::Unknown | Command::Blank)
                || !printable(line)
                || self.client.is_binary(piece))
        {
            return self.ends(Over::NotFtp);
        }
        if overlong {
            count(&mut self.counts.overlong);
        } else if command == Command::Transfer {
            match self.active {
                Active::Granted if self.may_open() => return Step::OpenActive,
                Active::Announced { .. } => self.active = Active::Announced { transfer: true },
                Active::Granted | Active::None | Active::Early | Active::Opened => {}
            }
        }
        self.command_passes(command, line, overlong);
        self.client.end();
        Step::Pass(piece.len())
    }

    /// A line that is a `PORT` or `EPRT`; `start`: where in `piece` its argument begins. `None`: it
    /// is no different from other lines.
    fn address_command(
        &mut self,
        verb: &'static str,
        start: usize,
        piece: &[u8],
        ended: bool,
    ) -> Option<Step> {
        let (head, argument) = piece.split_at_checked(start)?;
        if !ended {
            // The verb goes; the argument waits for the end of the line: whatever follows it,
            // even a blank, decides whether it is an address.
            if head.is_empty() {
                return Some(Step::Wait);
            }
            self.client.goes(head);
            return Some(Step::Pass(head.len()));
        }
        let argument = argument.trim_ascii_end();
        let announcement = match verb {
            "PORT" => parse_host_port(argument).map(|(ip, port)| Announcement {
                verb,
                mode: Mode::Active,
                form: Form::HostPort,
                addr: Some(ip.into()),
                port,
            }),
            _ => parse_extended(argument).map(|(delimiter, addr, port)| Announcement {
                verb,
                mode: Mode::Active,
                form: Form::Extended(delimiter),
                addr: Some(addr),
                port,
            }),
        };
        let Some(announcement) = announcement else {
            count(&mut self.counts.unparsable);
            return None;
        };
        if self.epsv_all {
            // RFC 2428 §4: the server must refuse it, and does.
            return None;
        }
        if !self.may_announce() {
            count(&mut self.counts.unasked);
            return None;
        }
        self.client.goes(head);
        self.client.settle();
        Some(Step::Address {
            at: start,
            len: argument.len(),
            announcement,
        })
    }

    /// A line that is (or, while not `known`, may be) an `LPRT` or `LPSV`. The last byte of its
    /// verb, which is at `at`, waits until that is known; another one in its place makes a verb
    /// that no server knows.
    fn long_command(&mut self, verb: &'static str, at: usize, piece: &[u8], known: bool) -> Step {
        self.client.goes(piece.get(..at).unwrap_or_default());
        if known {
            self.client.goes(b"X");
            self.client.settle();
            return Step::Refuse {
                at,
                with: b"X".to_vec(),
                verb,
                why: "RFC 1639 addresses aren't followed",
            };
        }
        if at == 0 { Step::Wait } else { Step::Pass(at) }
    }

    /// Whether a data connection may be prepared: after the login, or while its reply is on the
    /// way (a pipelining client); nothing opens before the login succeeded in any case.
    fn may_announce(&self) -> bool {
        !self.policy.require_login
            || self.logged_in
            || self
                .waiting
                .iter()
                .any(|command| matches!(command, Command::User | Command::Login))
    }

    /// A complete line goes out to the server.
    fn command_passes(&mut self, command: Command, line: &[u8], overlong: bool) {
        self.spoken = true;
        match command {
            // Kept only until the login: it is part of the explicit session output.
            Command::User => self.user = Some(Box::new(User::new(argument(line)))),
            Command::Pasv | Command::Epsv => self.forget_active(),
            _ => {}
        }
        let followed = std::mem::take(&mut self.followed);
        let command = match command {
            Command::Port if followed => Command::Followed,
            command if overlong && command.is_address() => Command::Other,
            command => command,
        };
        if self.unrecorded > 0 || self.waiting.len() >= self.policy.max_pipelined {
            self.unrecorded = self.unrecorded.saturating_add(1);
            count(&mut self.counts.overrun);
        } else {
            self.waiting.push(command);
        }
    }

    /// What a `PORT` prepared isn't wanted any more.
    fn forget_active(&mut self) {
        self.cancelled |= matches!(self.active, Active::Announced { .. } | Active::Granted);
        self.active = Active::None;
    }

    // ---- the server's lines ----------------------------------------------------------------

    fn next_reply(&mut self, pending: &[u8]) -> Step {
        let (piece, ended) = first_line(pending);
        let head = self.server.head(piece);
        let text = if ended { head.trim_ascii_end() } else { &head };
        let start = Start::of(text, ended);
        if !self.greeted {
            if self.multi.is_none() && start == Start::Text {
                return self.ends(Over::NotFtp);
            }
            self.connects_early |= ended && names_pyftpdlib(text);
        }
        let multi = self.multi.map(std::num::NonZeroU16::get);
        let last = match start {
            Start::Last(code) => multi.is_none_or(|first| first == code).then_some(code),
            _ => None,
        };
        if let (Some(code @ (227 | 229)), false) = (last, self.server.is_settled()) {
            if self.expects_address(code) {
                if let Some(step) = self.address_reply(code, piece, ended) {
                    return step;
                }
            } else if ended {
                count(&mut self.counts.unasked);
            }
        }
        if !ended {
            self.server.goes(piece);
            return Step::Pass(piece.len());
        }
        if let Some(code) = last {
            if self.opens_active(code) {
                return Step::OpenActive;
            }
            self.multi = None;
            if self.reply_passes(code) {
                return self.ends(Over::Tls);
            }
        } else if let (Start::First(code), None) = (start, self.multi) {
            self.multi = std::num::NonZeroU16::new(code);
        }
        if length(self.server.gone(), piece, ended) > self.policy.max_reply {
            count(&mut self.counts.overlong);
        }
        self.server.end();
        Step::Pass(piece.len())
    }

    /// Whether the reply with this code answers the command that asks for an address.
    fn expects_address(&self, code: u16) -> bool {
        let asked = match self.waiting.answer(code).command {
            // RFC 2428 §4: after `EPSV ALL` there is no other way.
            Some((_, Command::Pasv)) => code == 227 && !self.epsv_all,
            Some((_, Command::Epsv)) => code == 229,
            _ => false,
        };
        asked && self.may_open()
    }

    /// Looks for the address in the last line of a `227` or `229`. `None`: there is none (any more),
    /// and the piece is like any other.
    fn address_reply(&mut self, code: u16, piece: &[u8], ended: bool) -> Option<Step> {
        // The code's digits are no address.
        let mut at = 4usize.saturating_sub(self.server.gone());
        let limit = self.policy.max_reply.saturating_sub(self.server.gone());
        let mut in_run = self.server.is_in_run();
        loop {
            let rest = piece.get(at..).unwrap_or_default();
            if in_run {
                let run = rest
                    .iter()
                    .take_while(|b| b.is_ascii_digit() || **b == b',')
                    .count();
                in_run = run == rest.len();
                at = at.saturating_add(run);
                self.server.set_in_run(in_run);
                if in_run {
                    return None;
                }
                continue;
            }
            let begins = |b: &u8| {
                if code == 227 {
                    b.is_ascii_digit()
                } else {
                    *b == b'('
                }
            };
            let Some(offset) = rest.iter().position(begins) else {
                if ended {
                    count(&mut self.counts.unparsable);
                }
                return None;
            };
            at = at.saturating_add(offset);
            if at >= limit {
                self.server.settle();
                return None;
            }
            let text = piece.get(at..).unwrap_or_default();
            let scan = if code == 227 {
                match scan_host_port(text) {
                    Scan::Found {
                        len,
                        value: (ip, port),
                    } => Scan::Found {
                        len,
                        value: (0, Form::HostPort, Some(ip.into()), port),
                    },
                    Scan::Partial => Scan::Partial,
                    Scan::No { len } => Scan::No { len },
                }
            } else {
                match scan_extended_port(text) {
                    Scan::Found {
                        len,
                        value: (delimiter, port),
                    } => Scan::Found {
                        len,
                        value: (1, Form::ExtendedPort(delimiter), None, port),
                    },
                    Scan::Partial => Scan::Partial,
                    Scan::No { len } => Scan::No { len },
                }
            };
            match scan {
                Scan::Found {
                    len,
                    value: (skip, form, addr, port),
                } => {
                    let at = at.saturating_add(skip);
                    self.server.settle();
                    if at.saturating_add(len) > limit {
                        return None;
                    }
                    self.server.goes(piece.get(..at)?);
                    let verb = if code == 227 { "227" } else { "229" };
                    let mode = Mode::Passive;
                    return Some(Step::Address {
                        at,
                        len,
                        announcement: Announcement {
                            verb,
                            mode,
                            form,
                            addr,
                            port,
                        },
                    });
                }
                Scan::Partial if at == 0 => return Some(Step::Wait),
                Scan::Partial => {
                    let head = piece.get(..at)?;
                    self.server.goes(head);
                    return Some(Step::Pass(head.len()));
                }
                Scan::No { len } => {
                    // The rest of a run of digits isn't the beginning of another one.
                    in_run = code == 227;
                    at = at.saturating_add(if code == 227 { 0 } else { len });
                }
            }
        }
    }

    /// Whether this reply grants a `PORT` whose transfer was commanded already.
    fn opens_active(&self, code: u16) -> bool {
        (200..300).contains(&code)
            && self.active == (Active::Announced { transfer: true })
            && matches!(
                self.waiting.answer(code).command,
                Some((_, Command::Followed))
            )
            && self
                .waiting
                .iter()
                .filter(|c| *c == Command::Followed)
                .count()
                == 1
            && self.may_open()
    }

    /// A complete reply goes out to the client; returns whether TLS begins behind it.
    fn reply_passes(&mut self, code: u16) -> bool {
        if !self.greeted {
            // RFC 959 §5.4: 120 announces a delay, 220 follows.
            self.greeted = code >= 200;
            return false;
        }
        if code < 200 {
            let next = self.waiting.iter().find(|c| *c != Command::Blank);
            self.transferring |= next == Some(Command::Transfer);
            return false;
        }
        // Nothing but TLS can follow (RFC 4217 §4), whichever command it is taken for.
        if code == 234 && (self.unrecorded > 0 || self.waiting.iter().any(|c| c == Command::Auth)) {
            return true;
        }
        let answer = self.waiting.answer(code);
        self.waiting.take(answer, code);
        if answer.beyond {
            self.unrecorded = self.unrecorded.saturating_sub(1);
        }
        let Some((_, answered)) = answer.command else {
            return false;
        };
        let granted = (200..300).contains(&code);
        match answered {
            // RFC 959 §4.1.1: a new USER flushes the login there was.
            Command::User if matches!(code, 331 | 332) => self.logged_in = false,
            Command::User | Command::Login => {
                let success = matches!(code, 230 | 232);
                self.fresh_login |= success && !self.logged_in;
                self.logged_in |= success;
            }
            Command::Rein if granted => {
                self.logged_in = false;
                self.epsv_all = false;
                self.forget_active();
            }
            Command::EpsvAll if granted => {
                self.epsv_all = true;
                self.forget_active();
            }
            // Of several in a row the last one counts.
            Command::Followed if !self.waiting.iter().any(|c| c == Command::Followed) => {
                self.connects_early |= code == 425;
                self.cancelled |= !granted && self.active != Active::None;
                self.active = match self.active {
                    Active::Announced { transfer: false } if granted => Active::Granted,
                    Active::Opened if granted => Active::Opened,
                    _ => Active::None,
                };
            }
            Command::Transfer => self.transferring = false,
            _ => {}
        }
        false
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

/// Whether a line of the greeting has the name of the server library that connects when it reads a
/// `PORT` (`FTPHandler.ftp_PORT`); others that do are found out by [`Session::connects_early`].
fn names_pyftpdlib(line: &[u8]) -> bool {
    line.windows(9)
        .any(|word| word.eq_ignore_ascii_case(b"pyftpdlib"))
}

fn printable(line: &[u8]) -> bool {
    line.get(telnet_len(line)..)
        .unwrap_or_default()
        .iter()
        .all(|b| *b >= b' ' && *b != 0x7f)
}
