//! Replies: what the server's lines mean, and where their addresses are.

use std::net::IpAddr;
use std::num::NonZeroU16;

use super::super::command::Command;
use super::super::hostport::{Scan, scan_extended_port, scan_host_port};
use super::super::reply::{Code, ReplyStart, lead_len};
use super::{
    Active, Address, Announcement, Form, Hole, Over, Said, Session, Step, User, count, first_line,
    length,
};
use crate::ftp::Mode;

/// How many lines of text may come before the greeting.
const PREFACE: u8 = 64;

/// The first words of servers of other protocols.
const OTHER_PROTOCOLS: [&[u8]; 9] = [
    b"HTTP/", b"RTSP/", b"SIP/", b"ICY ", b"SSH-", b"RFB ", b"+OK", b"* OK", b"@RSYNCD",
];

impl Session {
    pub(super) fn next_reply(&mut self, pending: &[u8]) -> Step {
        let (piece, ended) = first_line(pending);
        let head = self.server.head(piece);
        let text = if ended { head.trim_ascii_end() } else { &head };
        let start = ReplyStart::of(text, ended);
        if !self.greeted && self.multi.is_none() && start == ReplyStart::Text {
            if is_no_preface(text, piece, self.server.gone()) || self.preface >= PREFACE {
                return self.ends(Over::NotFtp);
            }
            self.preface = self.preface.saturating_add(u8::from(ended));
        }
        let last = self.last_of_reply(start);
        if self.told.is_some()
            && let Some(step) = self.translated_reply(start, last, piece, ended)
        {
            return step;
        }
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
            if let Some(hole) = self.opens_active(code.value) {
                return Step::OpenActive(hole);
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

    /// The code of a line, if it is the last one of its reply.
    fn last_of_reply(&self, start: ReplyStart) -> Option<Code> {
        let ReplyStart::Last(code) = start else {
            return None;
        };
        let ends = match self.multi {
            Some(first) => first.get() == code.value && code.plain,
            None => true,
        };
        ends.then_some(code)
    }

    /// A complete line that isn't the last one of its reply.
    fn within_reply(&mut self, start: ReplyStart) {
        match start {
            ReplyStart::First(code) if self.multi.is_none() => {
                self.multi = NonZeroU16::new(code.value);
            }
            // Clients that don't compare codes take it for the last line: see `lines_were_over`.
            ReplyStart::Last(code) if self.multi.is_some() && code.plain => {
                self.other_end = self.other_end.or(NonZeroU16::new(code.value));
            }
            _ => {}
        }
    }

    /// The client goes on although a multi-line reply isn't complete. If a line in it looked like a
    /// last line with another code, the client took that for the end, and so it was. Nothing in it
    /// was acted on.
    pub(super) fn lines_were_over(&mut self) {
        if let Some(code) = self.other_end.take() {
            // What comes after a 234 is clear text, or the client wouldn't have sent a line.
            self.reply_passes(code.get());
        }
    }

    /// Whether a reply with this code answers a `PASV` or `EPSV` that may be followed.
    fn expects_address(&self, code: u16) -> bool {
        let asked = match self.waiting.answered(code) {
            // RFC 2428 §4: after `EPSV ALL`, only `EPSV` is allowed.
            Some((_, Command::Pasv)) => !self.epsv_all,
            Some((_, Command::Epsv)) => true,
            // Joined in its middle, before any command: it answers one that wasn't seen.
            _ => self.client.was_lost(),
        };
        asked && self.may_open()
    }

    /// Looks for the address in the last line of a `227` or `229`. `None`: there is none in what
    /// has come, and the piece is handled like any other.
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

    /// Where an address may begin, from `at` on. `None`: nowhere within the limit on reply lines.
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

    /// How many more bytes of the line may be looked at.
    fn reply_room(&self) -> usize {
        self.policy.max_reply.saturating_sub(self.server.gone())
    }

    /// An address may begin at `at`. What comes before it passes.
    fn wait_for_address(&mut self, at: usize, piece: &[u8]) -> Step {
        match piece.get(..at) {
            Some(head) if at > 0 => {
                self.server.goes(head);
                Step::Pass(at)
            }
            _ => Step::Wait,
        }
    }

    /// An address was found at `at`. `None`: it goes beyond the limit on reply lines.
    fn found(
        &mut self,
        notation: Notation,
        found: FoundAddress,
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
            translated_from: None,
        }))
    }

    /// The reserved pinhole of a `PORT`, if it opens with this reply.
    fn opens_active(&self, code: u16) -> Option<Hole> {
        let Active::Reserved {
            hole,
            granted,
            commanded,
        } = self.active
        else {
            return None;
        };
        let answered = self.waiting.answered(code).map(|(_, command)| command);
        let login = self.greeted && self.logs_in(code, answered);
        let grants = (200..300).contains(&code) && answered == Some(Command::Followed);
        let last = self.waiting.iter().filter(|c| *c == Command::Followed);
        let granted = granted || grants && last.count() == 1;
        let may = self.may_open() || login && !self.is_unfollowed();
        let complete = !self.policy.strict.active_late || granted && commanded;
        (may && complete && (login || grants)).then_some(hole)
    }

    /// Whether a final reply completes a login. Any `2yz` to `USER`, `PASS` or `ACCT` does (RFC 959
    /// §6). So does a `230` whose command isn't known any more.
    fn logs_in(&self, code: u16, answered: Option<Command>) -> bool {
        match answered {
            Some(Command::User | Command::Login) => (200..300).contains(&code),
            Some(Command::Rein) => false,
            _ => self.login_tried && matches!(code, 230 | 232),
        }
    }

    /// A complete reply goes out to the client. Returns whether TLS begins behind it.
    pub(super) fn reply_passes(&mut self, code: u16) -> bool {
        self.multi = None;
        self.other_end = None;
        if let Some(told) = &mut self.told {
            told.says(|| Said::Reply(code));
        }
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
                if let Some(told) = &mut self.told {
                    told.begins(&self.waiting);
                }
                self.waiting.transfer_begins();
                self.keep_up();
            }
            return false;
        }
        // TLS follows (RFC 4217 §4), whichever command it is matched to.
        if code == 234 && self.waiting.may_have_auth() {
            return true;
        }
        let answered = self.waiting.answered(code);
        if let Some((at, command)) = answered {
            let running = command == Command::Running;
            if let Some(told) = &mut self.told
                && (running || command == Command::Transfer)
            {
                told.answered(running, code, &self.waiting);
            }
            self.waiting.take(at, code);
            self.keep_up();
        }
        let answered = answered.map(|(_, command)| command);
        self.translation_answered(answered, code);
        if self.logs_in(code, answered) {
            self.login_succeeds();
            return false;
        }
        let granted = (200..300).contains(&code);
        match answered {
            // RFC 959 §4.1.1: a new USER ends the login before it.
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
            Some(Command::Followed) if !self.waiting.has(Command::Followed) => {
                if !granted {
                    self.drop_active();
                } else if let Active::Reserved { granted, .. } = &mut self.active {
                    *granted = true;
                }
            }
            Some(Command::Transfer | Command::Running) => self.transfer_ends(code),
            _ => {}
        }
        false
    }

    fn login_succeeds(&mut self) {
        if !self.logged_in && !self.is_unfollowed() {
            // Some log in without a name, by their greeting.
            let nobody = || User::new(b"");
            self.told().user.get_or_insert_with(nobody).is_news = true;
        }
        self.logged_in = true;
        self.login_tried = false;
        if let Some(user) = self.told.as_mut().and_then(|told| told.user.as_mut()) {
            user.logged_in = true;
        }
        self.failed_logins = 0;
    }

    fn login_fails(&mut self, code: u16) {
        if !self.is_unfollowed() {
            self.told().login_failed(code);
        }
        // RFC 959 has 530; some servers send 430.
        if matches!(code, 430 | 530) {
            self.failed_logins = self.failed_logins.saturating_add(1);
        }
        let asked = self.waiting.has(Command::User) || self.waiting.has(Command::Login);
        if !asked && !self.may_open() {
            self.drop_active();
        }
    }

    /// Commands may have been forgotten.
    pub(super) fn keep_up(&mut self) {
        if let Some(told) = &mut self.told {
            told.keep_up(&self.waiting);
        }
    }

    /// The reply that ends a transfer, or refuses it.
    fn transfer_ends(&mut self, code: u16) {
        let more = self.waiting.has(Command::Transfer) || self.waiting.has(Command::Running);
        if more || !self.active_is_commanded() {
            return;
        }
        if code >= 400 {
            self.drop_active();
        } else {
            // Its data connection was made, which closed the pinhole.
            self.active = self.active.hole().map_or(Active::None, Active::Spent);
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
struct FoundAddress {
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

    fn scan(self, text: &[u8]) -> Scan<FoundAddress> {
        match self {
            Self::HostPort => scan_host_port(text).map(|(ip, port)| FoundAddress {
                skip: 0,
                form: Form::HostPort,
                addr: Some(ip.into()),
                port,
            }),
            Self::Extended => scan_extended_port(text).map(|(delimiter, port)| FoundAddress {
                skip: 1,
                form: Form::ExtendedPort(delimiter),
                addr: None,
                port,
            }),
        }
    }
}

/// Whether a line before the greeting shows that the server speaks another protocol. `piece` is the
/// pending part of it, behind `gone` bytes. Banners may have terminal escape sequences.
fn is_no_preface(head: &[u8], piece: &[u8], gone: usize) -> bool {
    let binary = |b: &u8| b.is_ascii_control() && !matches!(b, 0 | 8..=13 | 27);
    // Telnet commands in front of the text may have any bytes in them.
    let Some(lead) = lead_len(head) else {
        return false;
    };
    let text = piece.get(lead.saturating_sub(gone)..).unwrap_or_default();
    OTHER_PROTOCOLS.iter().any(|start| head.starts_with(start)) || text.iter().any(binary)
}
