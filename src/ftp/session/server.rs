//! What the server's lines do to a session.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::super::command::Command;
use super::super::hostport::{Scan, scan_extended_port, scan_host_port};
use super::super::reply::{Code, Start, lead_len};
use super::{Active, Address, Announcement, Form, Over, Session, Step, count, first_line, length};
use crate::ftp::Mode;

/// How many lines of text may come before the greeting.
const PREFACE: u8 = 64;

/// What servers of other protocols say first.
const OTHER_PROTOCOLS: [&[u8]; 9] = [
    b"HTTP/", b"RTSP/", b"SIP/", b"ICY ", b"SSH-", b"RFB ", b"+OK", b"* OK", b"@RSYNCD",
];

impl Session {
    pub(super) fn next_reply(&mut self, pending: &[u8]) -> Step {
        let (piece, ended) = first_line(pending);
        let head = self.server.head(piece);
        let text = if ended { head.trim_ascii_end() } else { &head };
        let start = Start::of(text, ended);
        if !self.greeted && self.multi.is_none() && start == Start::Text {
            if is_no_preface(text, piece, self.server.gone()) || self.preface >= PREFACE {
                return self.ends(Over::NotFtp);
            }
            self.preface = self.preface.saturating_add(u8::from(ended));
        }
        let last = self.last_of_reply(start);
        if let (Some(code), false) = (last, self.server.is_settled())
            && matches!(code.value, 227 | 229)
        {
            if self.expects_address(code.value) {
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
            if self.opens_active(code.value) {
                return Step::OpenActive;
            }
            if self.reply_passes(code.value) {
                return self.ends(Over::Tls);
            }
        } else {
            self.within_reply(start);
        }
        if length(self.server.gone(), piece, ended) > self.policy.max_reply {
            count(&mut self.counts.overlong);
        }
        self.server.end();
        Step::Pass(piece.len())
    }

    /// The code of a line, if it is its reply's last one.
    fn last_of_reply(&self, start: Start) -> Option<Code> {
        let Start::Last(code) = start else {
            return None;
        };
        let ends = match self.multi {
            Some(first) => first.get() == code.value && code.plain,
            None => true,
        };
        ends.then_some(code)
    }

    /// A complete line that isn't its reply's last one.
    fn within_reply(&mut self, start: Start) {
        match start {
            Start::First(code) if self.multi.is_none() => {
                self.multi = NonZeroU16::new(code.value);
            }
            // The end for clients that don't compare codes: see `lines_were_over`.
            Start::Last(code) if self.multi.is_some() && code.plain => {
                self.other_end = self.other_end.or(NonZeroU16::new(code.value));
            }
            _ => {}
        }
    }

    /// The client goes on although a reply of several lines is under way. If there was a line in it
    /// that looked like the end of another reply, that was the end. Nothing in it was acted on.
    pub(super) fn lines_were_over(&mut self) {
        if let Some(code) = self.other_end.take() {
            // What comes after a 234 is clear text, or the client wouldn't have sent a line.
            self.reply_passes(code.get());
        }
    }

    /// Whether the reply with this code answers the command that asks for an address.
    fn expects_address(&self, code: u16) -> bool {
        let asked = match self.waiting.answered(code) {
            // RFC 2428 §4: after `EPSV ALL` there is no other way.
            Some((_, Command::Pasv)) => !self.epsv_all,
            Some((_, Command::Epsv)) => true,
            _ => false,
        };
        asked && self.may_open()
    }

    /// Looks for the address in the last line of a `227` or `229`. `None`: there is none (any more),
    /// and the piece is like any other.
    fn address_reply(&mut self, code: Code, piece: &[u8], ended: bool) -> Option<Step> {
        // The code's digits are no address.
        let mut at = code.end.saturating_sub(self.server.gone());
        let notation = Notation::of(code);
        if self.server.is_in_run() {
            at = self.skip_run(piece, at)?;
        }
        loop {
            at = self.next_candidate(notation, piece, at, ended)?;
            match notation.scan(piece.get(at..).unwrap_or_default()) {
                Scan::Found { len, value } => return self.found(notation, value, at, len, piece),
                Scan::Partial => return Some(self.wait_for_address(at, piece)),
                // The rest of a run of digits isn't the beginning of another address.
                Scan::No { .. } if notation == Notation::HostPort => {
                    at = self.skip_run(piece, at)?;
                }
                Scan::No { len } => at = at.saturating_add(len),
            }
        }
    }

    /// The end of the run of digits and commas at `at`; `None`: it may go on behind `piece`.
    fn skip_run(&mut self, piece: &[u8], at: usize) -> Option<usize> {
        let rest = piece.get(at..).unwrap_or_default();
        let in_run = |b: &&u8| b.is_ascii_digit() || **b == b',';
        let run = rest.iter().take_while(in_run).count();
        let goes_on = run == rest.len();
        self.server.set_in_run(goes_on);
        (!goes_on).then(|| at.saturating_add(run))
    }

    /// Where, from `at` on, an address may begin; `None`: nowhere within the limit on lines.
    fn next_candidate(
        &mut self,
        notation: Notation,
        piece: &[u8],
        at: usize,
        ended: bool,
    ) -> Option<usize> {
        let mut rest = piece.get(at..).unwrap_or_default().iter();
        let Some(offset) = rest.position(|b| notation.begins_with(*b)) else {
            if ended {
                count(&mut self.counts.unparsable);
            }
            return None;
        };
        let at = at.saturating_add(offset);
        if at >= self.reply_room() {
            self.server.settle();
            return None;
        }
        Some(at)
    }

    /// How many more bytes of the line are looked at.
    fn reply_room(&self) -> usize {
        self.policy.max_reply.saturating_sub(self.server.gone())
    }

    /// What begins at `at` may become an address: what comes before it passes.
    fn wait_for_address(&mut self, at: usize, piece: &[u8]) -> Step {
        match piece.get(..at) {
            Some(head) if at > 0 => {
                self.server.goes(head);
                Step::Pass(at)
            }
            _ => Step::Wait,
        }
    }

    /// An address was found at `at`; `None`: it is beyond the limit on lines.
    fn found(
        &mut self,
        notation: Notation,
        found: Found,
        at: usize,
        len: usize,
        piece: &[u8],
    ) -> Option<Step> {
        let at = at.saturating_add(found.skip);
        self.server.settle();
        if at.saturating_add(len) > self.reply_room() {
            return None;
        }
        self.server.goes(piece.get(..at)?);
        Some(Step::Address(Address {
            at,
            len,
            announcement: Announcement {
                verb: notation.verb(),
                mode: Mode::Passive,
                form: found.form,
                addr: found.addr,
                port: found.port,
            },
            refusal: None,
            follow: true,
        }))
    }

    /// Whether this reply says what the reserved hole of a `PORT` waited for.
    fn opens_active(&self, code: u16) -> bool {
        let Active::Reserved { granted, commanded } = self.active else {
            return false;
        };
        let answered = self.waiting.answered(code).map(|(_, command)| command);
        let login = self.greeted && self.logs_in(code, answered);
        let grants = (200..300).contains(&code) && answered == Some(Command::Followed);
        let last = self.waiting.iter().filter(|c| *c == Command::Followed);
        let granted = granted || grants && last.count() == 1;
        let may = self.may_open() || login && !self.unfollowed;
        may && (!self.policy.strict.active_late || granted && commanded) && (login || grants)
    }

    /// Whether a final reply completes a login: any `2yz` to `USER`, `PASS` or `ACCT` does (RFC 959
    /// §6). A `230` says so even if the command it answers can't be told any more.
    fn logs_in(&self, code: u16, answered: Option<Command>) -> bool {
        match answered {
            Some(Command::User | Command::Login) => (200..300).contains(&code),
            Some(Command::Rein) => false,
            _ => self.login_tried && matches!(code, 230 | 232),
        }
    }

    /// A complete reply goes out to the client; returns whether TLS begins behind it.
    fn reply_passes(&mut self, code: u16) -> bool {
        self.multi = None;
        self.other_end = None;
        if !self.greeted {
            // RFC 959 §5.4: 120 announces a delay, 220 follows. Some log in by their greeting.
            self.greeted = code >= 200;
            if matches!(code, 230 | 232) {
                self.login_succeeds();
            }
            return false;
        }
        if code < 200 {
            // 110 is a restart marker within a transfer, 120 a delay.
            if !matches!(code, 110 | 120) {
                self.waiting.transfer_begins();
            }
            return false;
        }
        // Nothing but TLS can follow (RFC 4217 §4), whichever command it is taken for.
        if code == 234 && (self.forgot_auth || self.waiting.has(Command::Auth)) {
            return true;
        }
        let answered = self.waiting.answered(code);
        if let Some((at, _)) = answered {
            self.waiting.take(at, code);
        }
        let answered = answered.map(|(_, command)| command);
        if self.logs_in(code, answered) {
            self.login_succeeds();
            return false;
        }
        let granted = (200..300).contains(&code);
        match answered {
            // RFC 959 §4.1.1: a new USER flushes the login there was.
            Some(Command::User) if matches!(code, 331 | 332) => {
                self.logged_in = false;
                self.login_tried = true;
            }
            Some(Command::User | Command::Login) if code >= 400 => self.login_fails(code),
            Some(Command::Rein) if granted => {
                self.logged_in = false;
                self.login_tried = false;
                self.epsv_all = false;
                self.drop_active();
            }
            Some(Command::EpsvAll) if granted => {
                self.epsv_all = true;
                self.forget_active();
            }
            // Of several in a row the last one counts.
            Some(Command::Followed) if !self.waiting.has(Command::Followed) => match self.active {
                _ if !granted => self.drop_active(),
                Active::Reserved { commanded, .. } => {
                    self.active = Active::Reserved {
                        granted: true,
                        commanded,
                    };
                }
                Active::Open { .. } | Active::None => {}
            },
            Some(Command::Transfer | Command::Running) => self.transfer_ends(code),
            _ => {}
        }
        false
    }

    fn login_succeeds(&mut self) {
        self.fresh_login |= !self.logged_in && !self.unfollowed;
        self.logged_in = true;
        self.login_tried = false;
        if let Some(user) = &mut self.user {
            user.logged_in = true;
        }
        self.failed_logins = 0;
    }

    fn login_fails(&mut self, code: u16) {
        // 530 is RFC 959's; some servers have 430.
        if matches!(code, 430 | 530) {
            self.failed_logins = self.failed_logins.saturating_add(1);
        }
        let asked = self.waiting.has(Command::User) || self.waiting.has(Command::Login);
        if !asked && !self.may_open() {
            self.drop_active();
        }
    }

    /// The reply that ends a transfer, or says that there is none.
    fn transfer_ends(&mut self, code: u16) {
        let more = self.waiting.has(Command::Transfer) || self.waiting.has(Command::Running);
        if more || !self.active_is_commanded() {
            return;
        }
        if code >= 400 {
            self.drop_active();
        } else {
            // Its connection was made, and took the hole with it.
            self.active = Active::None;
        }
    }
}

/// How a reply writes an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notation {
    /// `227`: six numbers, anywhere in the line (RFC 1123 §4.1.2.6).
    HostPort,
    /// `229`: a port between parentheses (RFC 2428 §3).
    Extended,
}

/// An address in a reply.
struct Found {
    /// What comes before it in the scanned text: the parenthesis.
    skip: usize,
    form: Form,
    addr: Option<IpAddr>,
    port: u16,
}

impl Notation {
    /// That of a `227` or `229`.
    fn of(code: Code) -> Self {
        match code.value {
            227 => Self::HostPort,
            _ => Self::Extended,
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::HostPort => "227",
            Self::Extended => "229",
        }
    }

    fn begins_with(self, byte: u8) -> bool {
        match self {
            Self::HostPort => byte.is_ascii_digit(),
            Self::Extended => byte == b'(',
        }
    }

    fn scan(self, text: &[u8]) -> Scan<Found> {
        match self {
            Self::HostPort => scan_host_port(text).map(|(ip, port)| Found {
                skip: 0,
                form: Form::HostPort,
                addr: Some(ip.into()),
                port,
            }),
            Self::Extended => scan_extended_port(text).map(|(delimiter, port)| Found {
                skip: 1,
                form: Form::ExtendedPort(delimiter),
                addr: None,
                port,
            }),
        }
    }
}

/// Whether a line before the greeting shows that the server speaks another protocol; `piece` is
/// what has come of it just now, behind `gone` bytes. Terminal sequences are seen in banners.
fn is_no_preface(head: &[u8], piece: &[u8], gone: usize) -> bool {
    let binary = |b: &u8| b.is_ascii_control() && !matches!(b, 0 | 8..=13 | 27);
    // Telnet commands in front of the text may have any bytes in them.
    let Some(lead) = lead_len(head) else {
        return false;
    };
    let text = piece.get(lead.saturating_sub(gone)..).unwrap_or_default();
    OTHER_PROTOCOLS.iter().any(|start| head.starts_with(start)) || text.iter().any(binary)
}
