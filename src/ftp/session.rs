//! The session machine: which bytes of the two control streams may pass, wait or must change.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::command::{Command, address_command, is_epsv_all, telnet_len};
use super::hostport::{Scan, parse_extended, parse_host_port, scan_extended_port, scan_host_port};
use super::line::Line;
use super::policy::Policy;
use super::reply::Start;
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

/// A command that waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    command: Command,
    /// A `PORT`/`EPRT` whose address went out with a pinhole reserved.
    followed: bool,
}

/// What a session has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines longer than the limit: passed, never acted on.
    pub overlong: u32,
    /// Addresses that couldn't be read strictly: passed as they were.
    pub unparsable: u32,
    /// Addresses in a reply that answers no `PASV`/`EPSV`, or before the login: passed as they were.
    pub unasked: u32,
    /// Commands beyond the pipelining limit.
    pub overrun: u32,
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
    waiting: VecDeque<Pending>,
    /// Commands that weren't recorded because too many were waiting: they come after those.
    unrecorded: u32,
    /// The code of a multi-line reply whose last line hasn't come.
    multi: Option<u16>,
    greeted: bool,
    /// The first command was one of FTP's.
    spoken: bool,
    logged_in: bool,
    epsv_all: bool,
    active: Active,
    /// The address of the line that is under way went out with a pinhole reserved.
    followed: bool,
    transferring: bool,
    over: Option<&'static str>,
    user: Option<Box<str>>,
    fresh_login: bool,
    /// The server connects as soon as it reads a `PORT`.
    connects_early: bool,
    /// The server refused the `PORT` whose hole is reserved or open.
    cancelled: bool,
    counts: Counts,
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
            waiting: VecDeque::new(),
            unrecorded: 0,
            multi: None,
            greeted: false,
            spoken: false,
            logged_in: false,
            epsv_all: false,
            active: Active::None,
            followed: false,
            transferring: false,
            over: None,
            user: None,
            fresh_login: false,
            connects_early,
            cancelled: false,
            counts: Counts::default(),
        }
    }

    /// Says what to do with the bytes of `from`'s stream that haven't gone out. To be called when
    /// new bytes arrived, and again after each step was carried out, until it waits or nothing is
    /// pending.
    ///
    /// Only bytes that may belong to an address wait; everything else goes out at once.
    pub fn next(&mut self, from: Peer, pending: &[u8]) -> Step {
        if let Some(why) = self.over {
            return Step::Opaque(why);
        }
        if pending.is_empty() {
            return Step::Wait;
        }
        let step = match from {
            Peer::Client => self.next_command(pending),
            Peer::Server => self.next_reply(pending),
        };
        if let Step::Opaque(why) = step {
            self.over = Some(why);
        }
        step
    }

    /// What became of the last [`Step::Address`] of `from`'s stream.
    pub fn announced(&mut self, from: Peer, outcome: Outcome) {
        if from == Peer::Client {
            self.followed = matches!(outcome, Outcome::Accepted(_));
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

    /// Whether the server refused a `PORT`, once: its hole must go.
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
        Some(self.user.take().map(String::from).unwrap_or_default())
    }

    /// Where the dialogue stands, in a word or two.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.over {
            Some("TLS") => "tls",
            Some("not FTP") => "not ftp",
            Some(_) => "opaque",
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

    // ---- the client's lines ----------------------------------------------------------------

    fn next_command(&mut self, pending: &[u8]) -> Step {
        if !self.greeted {
            // RFC 959 §5.4: a client waits for the greeting. Whoever doesn't, speaks another protocol.
            return Step::Opaque("not FTP");
        }
        if self.active == Active::Early {
            return Step::OpenActive;
        }
        let end = pending
            .iter()
            .position(|b| *b == b'\n')
            .map(|at| at.saturating_add(1));
        let piece = pending
            .get(..end.unwrap_or(pending.len()))
            .unwrap_or_default();
        if !self.client.settled && !self.client.overlong {
            let line = self.client.with(piece);
            if let Some((verb, start)) = address_command(&line) {
                let start = start.map(|at| at.saturating_sub(self.client.gone()));
                if let Some(step) = self.address_command(verb, start, piece, end.is_some()) {
                    return step;
                }
            }
        }
        let Some(end) = end else {
            self.client.goes(piece, self.policy.max_command);
            return Step::Pass(piece.len());
        };
        let line = self.client.with(piece).trim_ascii_end().to_vec();
        if self.client.overlong || line.len() > self.policy.max_command {
            self.counts.overlong = self.counts.overlong.saturating_add(1);
            self.expect(Command::Unknown);
            self.client.end();
            return Step::Pass(end);
        }
        let command = Command::of(&line);
        if !self.spoken && (command == Command::Unknown || !printable(&line)) {
            return Step::Opaque("not FTP");
        }
        if command == Command::Transfer {
            match self.active {
                Active::Granted if self.may_open() => return Step::OpenActive,
                Active::Announced { .. } => self.active = Active::Announced { transfer: true },
                Active::Granted | Active::None | Active::Early | Active::Opened => {}
            }
        }
        if command == Command::Long && !self.client.settled && self.client.gone() == 0 {
            return self.refuse(&line, "LPSV", "RFC 1639 addresses aren't followed");
        }
        self.command_passes(command, &line);
        self.client.end();
        Step::Pass(end)
    }

    /// A line that is (or may be) a `PORT`, `EPRT` or `LPRT`; `start`: where in `piece` its
    /// argument begins. `None`: it is no different from other lines.
    fn address_command(
        &mut self,
        verb: &'static str,
        start: Option<usize>,
        piece: &[u8],
        ended: bool,
    ) -> Option<Step> {
        let start = start?;
        if !ended {
            if piece.len().saturating_sub(start) > self.policy.max_command {
                self.client.overlong = true;
                return None;
            }
            // The verb goes; the argument waits for the end of the line: whatever follows it,
            // even a blank, decides whether it is an address.
            let Some(head) = piece.get(..start).filter(|head| !head.is_empty()) else {
                return Some(Step::Wait);
            };
            self.client.goes(head, self.policy.max_command);
            return Some(Step::Pass(head.len()));
        }
        self.client.settled = true;
        let argument = piece.get(start..)?;
        let argument = argument.strip_suffix(b"\n").unwrap_or(argument);
        let argument = argument.strip_suffix(b"\r").unwrap_or(argument);
        let argument = argument.trim_ascii_end();
        let announcement = match verb {
            "PORT" => parse_host_port(argument).map(|(ip, port)| Announcement {
                verb,
                mode: Mode::Active,
                form: Form::HostPort,
                addr: Some(ip.into()),
                port,
            }),
            "EPRT" => parse_extended(argument).map(|(delimiter, addr, port)| Announcement {
                verb,
                mode: Mode::Active,
                form: Form::Extended(delimiter),
                addr: Some(addr),
                port,
            }),
            _ => {
                let with = vec![b'x'; argument.len().max(1)];
                return Some(self.refuse_argument(start, piece, with, verb));
            }
        };
        let Some(announcement) = announcement else {
            self.counts.unparsable = self.counts.unparsable.saturating_add(1);
            return None;
        };
        if self.epsv_all {
            // RFC 2428 §4: the server must refuse it, and does.
            return None;
        }
        if !self.may_announce() {
            self.counts.unasked = self.counts.unasked.saturating_add(1);
            return None;
        }
        self.client
            .goes(piece.get(..start)?, self.policy.max_command);
        Some(Step::Address {
            at: start,
            len: argument.len(),
            announcement,
        })
    }

    fn refuse_argument(
        &mut self,
        at: usize,
        piece: &[u8],
        with: Vec<u8>,
        verb: &'static str,
    ) -> Step {
        self.client
            .goes(piece.get(..at).unwrap_or_default(), self.policy.max_command);
        self.client.goes(&with, self.policy.max_command);
        Step::Refuse {
            at,
            with,
            verb,
            why: "RFC 1639 addresses aren't followed",
        }
    }

    /// Replaces a whole line by a verb that no server knows, so the server itself answers 500.
    fn refuse(&mut self, line: &[u8], verb: &'static str, why: &'static str) -> Step {
        self.client.settled = true;
        let with = vec![b'X'; line.len().max(1)];
        self.client.goes(&with, self.policy.max_command);
        Step::Refuse {
            at: 0,
            with,
            verb,
            why,
        }
    }

    /// Whether a data connection may be prepared: after the login, or while its reply is on the
    /// way (a pipelining client); nothing opens before the login succeeded in any case.
    fn may_announce(&self) -> bool {
        !self.policy.require_login
            || self.logged_in
            || self
                .waiting
                .iter()
                .any(|pending| pending.command == Command::Login)
    }

    /// A complete line goes out to the server.
    fn command_passes(&mut self, command: Command, line: &[u8]) {
        self.spoken = true;
        match command {
            Command::User => {
                // Kept only until the login: it is part of the explicit session output.
                let name = line.get(5..).unwrap_or_default().trim_ascii();
                let name =
                    String::from_utf8_lossy(name.get(..name.len().min(64)).unwrap_or_default());
                self.user = Some(name.into());
            }
            Command::Pasv => self.active = Active::None,
            Command::Epsv if is_epsv_all(line) => self.epsv_all = true,
            Command::Epsv => self.active = Active::None,
            _ => {}
        }
        let command = if command == Command::Epsv && is_epsv_all(line) {
            Command::Other
        } else {
            command
        };
        if line.get(telnet_len(line)..).is_some_and(<[u8]>::is_empty) {
            // An empty line is no command; servers don't answer it.
            return;
        }
        self.expect(command);
    }

    fn expect(&mut self, command: Command) {
        if self.unrecorded > 0 || self.waiting.len() >= self.policy.max_pipelined {
            self.followed = false;
            self.unrecorded = self.unrecorded.saturating_add(1);
            self.counts.overrun = self.counts.overrun.saturating_add(1);
            return;
        }
        let followed = std::mem::take(&mut self.followed);
        self.waiting.push_back(Pending { command, followed });
    }

    // ---- the server's lines ----------------------------------------------------------------

    fn next_reply(&mut self, pending: &[u8]) -> Step {
        let end = pending
            .iter()
            .position(|b| *b == b'\n')
            .map(|at| at.saturating_add(1));
        let piece = pending
            .get(..end.unwrap_or(pending.len()))
            .unwrap_or_default();
        let line = self.server.with(piece);
        let text = if end.is_some() {
            line.trim_ascii_end()
        } else {
            &line
        };
        let start = Start::of(text, end.is_some());
        if !self.greeted {
            if self.multi.is_none() && start == Start::Text {
                return Step::Opaque("not FTP");
            }
            self.connects_early |= end.is_some() && names_pyftpdlib(text);
        }
        let last = match start {
            Start::Last(code) => self.multi.is_none_or(|first| first == code).then_some(code),
            _ => None,
        };
        if let (Some(code @ (227 | 229)), false) =
            (last, self.server.settled || self.server.overlong)
        {
            if self.expects_address(code) {
                drop(line);
                if let Some(step) = self.address_reply(code, piece, end.is_some()) {
                    return step;
                }
            } else if end.is_some() {
                self.counts.unasked = self.counts.unasked.saturating_add(1);
            }
        }
        let Some(end) = end else {
            self.server.goes(piece, self.policy.max_reply);
            return Step::Pass(piece.len());
        };
        if let Some(code) = last {
            if self.opens_active(code) {
                return Step::OpenActive;
            }
            self.multi = None;
            if self.reply_passes(code) {
                return Step::Opaque("TLS");
            }
        } else if let (Start::First(code), None) = (start, self.multi) {
            self.multi = Some(code);
        }
        if self.server.overlong {
            self.counts.overlong = self.counts.overlong.saturating_add(1);
        }
        self.server.end();
        Step::Pass(end)
    }

    /// Whether the reply with this code answers the command that asks for an address.
    fn expects_address(&self, code: u16) -> bool {
        let asked = match self.waiting.front().map(|pending| pending.command) {
            Some(Command::Pasv) => code == 227,
            Some(Command::Epsv) => code == 229,
            _ => false,
        };
        asked && self.may_open()
    }

    /// Looks for the address in the last line of a `227` or `229`. `None`: there is none (any more),
    /// and the piece is like any other.
    fn address_reply(&mut self, code: u16, piece: &[u8], ended: bool) -> Option<Step> {
        // The code's digits are no address.
        let mut at = 4usize.saturating_sub(self.server.gone());
        loop {
            let rest = piece.get(at..).unwrap_or_default();
            if self.server.bad_run {
                let run = rest
                    .iter()
                    .take_while(|b| b.is_ascii_digit() || **b == b',')
                    .count();
                self.server.bad_run = run == rest.len();
                at = at.saturating_add(run);
                if self.server.bad_run {
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
                    self.counts.unparsable = self.counts.unparsable.saturating_add(1);
                }
                return None;
            };
            at = at.saturating_add(offset);
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
                    self.server.settled = true;
                    self.server.goes(piece.get(..at)?, self.policy.max_reply);
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
                    self.server.goes(head, self.policy.max_reply);
                    return Some(Step::Pass(head.len()));
                }
                Scan::No { len } => {
                    // The rest of a run of digits isn't the beginning of another one.
                    self.server.bad_run = code == 227;
                    at = at.saturating_add(if code == 227 { 0 } else { len });
                }
            }
        }
    }

    /// Whether this reply grants a `PORT` whose transfer was commanded already.
    fn opens_active(&self, code: u16) -> bool {
        (200..300).contains(&code)
            && self.waiting.front().is_some_and(|pending| pending.followed)
            && !self.waiting.iter().skip(1).any(|pending| pending.followed)
            && self.active == (Active::Announced { transfer: true })
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
            self.transferring |= self
                .waiting
                .front()
                .is_some_and(|p| p.command == Command::Transfer);
            return false;
        }
        let Some(answered) = self.answered(code) else {
            return false;
        };
        let granted = (200..300).contains(&code);
        match answered.command {
            Command::User | Command::Login => {
                let success = matches!(code, 230 | 232);
                self.fresh_login |= success && !self.logged_in;
                self.logged_in |= success;
            }
            Command::Rein if granted => {
                self.logged_in = false;
                self.active = Active::None;
                self.epsv_all = false;
            }
            Command::Auth if code == 234 => return true,
            // Of several in a row the last one counts.
            Command::Port if answered.followed && !self.waiting.iter().any(|p| p.followed) => {
                self.connects_early |= code == 425;
                self.cancelled |= !granted;
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

    /// Takes the command off the queue that a reply with this code answers.
    fn answered(&mut self, code: u16) -> Option<Pending> {
        let front = self.waiting.front().copied();
        // During a transfer `STAT` is answered at once, before the transfer's own reply (RFC 959
        // §4.1.3).
        let stat = self
            .waiting
            .iter()
            .position(|pending| pending.command == Command::Stat);
        if let (
            Some(Pending {
                command: Command::Transfer,
                ..
            }),
            Some(at),
            211..=213,
        ) = (front, stat, code)
        {
            return self.waiting.remove(at);
        }
        let answered = self.waiting.pop_front();
        if answered.is_none() {
            self.unrecorded = self.unrecorded.saturating_sub(1);
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to_fit();
        }
        answered
    }
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
