//! Commands: what the client's lines mean, and which of them are refused.

use super::super::command::{
    Command, Guarded, argument, bare_verb, guarded, has_controls, is_before_login, is_long,
    name_of, telnet_len,
};
use super::super::hostport::{may_be_extended, may_be_host_port, parse_extended, parse_host_port};
use super::super::line::HEAD;
use super::{
    Active, Address, Announcement, Form, Hole, Refusal, Said, Session, Spoken, Step, User, count,
    first_line, length,
};
use crate::ftp::Mode;

impl Session {
    pub(super) fn next_command(&mut self, pending: &[u8]) -> Step {
        let (piece, ended) = first_line(pending);
        self.awaits_login = false;
        if self.client.gone() == 0 {
            self.lines_were_over();
        }
        if self.client.is_refused() {
            return self.rest_of_refused(piece, ended);
        }
        let head = self.client.head(piece);
        let overlong = length(self.client.gone(), piece, ended) > self.policy.max_command;
        if !self.client.is_settled()
            && self.policy.strict.holds_lines()
            && let Some(step) = self.whole_line(&head, piece, ended, overlong)
        {
            return step;
        }
        if self.told.is_some()
            && !self.client.is_settled()
            && let Some(step) = self.translated_command(&head, piece, ended)
        {
            return step;
        }
        if !self.client.is_settled()
            && let Some(guarded) = guarded(&head, head.len() >= HEAD)
            && let Some(step) = self.guarded(guarded, piece, ended, overlong)
        {
            return step;
        }
        if !ended {
            self.client.goes(piece);
            return Step::Pass(piece.len());
        }
        let line = head.trim_ascii_end();
        let command = Command::of(line);
        if !self.is_unfollowed() && self.is_no_ftp(line, command, overlong, piece) {
            return self.unfollow();
        }
        if overlong {
            count(&mut self.counts.overlong);
        } else if command == Command::Transfer
            && let Some(hole) = self.opens_with_transfer()
        {
            return Step::OpenActive(hole);
        }
        if command == Command::Transfer && !overlong && !self.is_unfollowed() {
            // Of a line that came in pieces, only the beginning is known.
            let gone = self.client.gone();
            let (line, cut) = match gone {
                0 => (content(piece, ended), false),
                _ => (line, gone.saturating_add(piece.len()) > HEAD),
            };
            self.told().asked(line, cut);
        }
        self.command_passes(command, line, overlong);
        self.client.end();
        Step::Pass(piece.len())
    }

    /// Whether a complete line shows that the client doesn't speak FTP.
    ///
    /// A web page can make a browser connect here. It chooses the request's method, which may be
    /// `USER`. But it can't avoid the protocol's name at the end of the request line, nor the
    /// header fields that come next.
    fn is_no_ftp(&self, line: &[u8], command: Command, overlong: bool, piece: &[u8]) -> bool {
        let begins = || !overlong && may_begin(line, command) && !self.client.is_binary(piece);
        // Of a stream that was joined in its middle, the first line may be the rest of one.
        let first = self.spoken == Spoken::Nothing && !self.client.is_settled();
        is_header_field(line) || first && !begins()
    }

    /// The reserved pinhole of a `PORT`, if it opens with this transfer command. That is so with
    /// the strict rule `active-late`, once the server has granted the `PORT`.
    fn opens_with_transfer(&self) -> Option<Hole> {
        match self.active {
            Active::Reserved {
                hole,
                granted: true,
                ..
            } if self.may_open() => Some(hole),
            _ => None,
        }
    }

    // ---- commands that may be refused ------------------------------------------------------

    /// A line with a verb that may be refused. What a refusal would replace waits until that is
    /// known. `None`: it is handled like other lines.
    fn guarded(
        &mut self,
        guarded: Guarded,
        piece: &[u8],
        ended: bool,
        overlong: bool,
    ) -> Option<Step> {
        let by_verb = !matches!(guarded.verb, "PORT" | "EPRT");
        let behind = guarded.last.saturating_add(usize::from(!by_verb));
        let at = behind.saturating_sub(self.client.gone());
        let why = match (guarded.ends, guarded.verb) {
            (Some(false), _) => return None,
            (_, "AUTH") if !self.policy.deny_tls => return None,
            (None, _) => return Some(self.wait_from(at, piece)),
            (Some(true), "LPRT" | "LPSV") => "RFC 1639 addresses aren't followed",
            (Some(true), "AUTH") => "TLS is denied",
            _ if !guarded.plain => "a command in disguise",
            // The server may act on the beginning of a line that is too long.
            _ if overlong => "a line over the limit",
            _ if !ended => return Some(self.wait_from(at, piece)),
            (_, verb) => match self.address_command(verb, guarded.last, piece) {
                Ok(step) => return step,
                Err(why) => why,
            },
        };
        if content(piece, ended).len() <= at {
            // Nothing is left to replace but the line end, or a CR that may begin it.
            return (!ended).then(|| self.wait_from(at, piece));
        }
        let spoilt = if by_verb {
            Spoilt::Verb(1)
        } else {
            Spoilt::Argument
        };
        Some(self.refuse(at, spoilt, guarded.verb, why, piece, ended))
    }

    /// With strict rules, a line waits until it is complete or over the limit, and is checked then.
    /// `None`: it breaks no rule.
    fn whole_line(
        &mut self,
        head: &[u8],
        piece: &[u8],
        ended: bool,
        overlong: bool,
    ) -> Option<Step> {
        // Telnet commands go at once: they come with an `ABOR`, and are urgent.
        let start = telnet_len(head).saturating_sub(self.client.gone());
        if !ended && !overlong {
            return Some(self.wait_from(start, piece));
        }
        let text = content(piece, ended).get(start..).unwrap_or_default();
        // The limit falls on the same byte however the line was segmented.
        let room = self.policy.max_command.saturating_sub(self.client.gone());
        let known = text
            .get(..room.saturating_sub(start))
            .unwrap_or(text)
            .trim_ascii_end();
        let verb = bare_verb(known);
        let why = self.breach(known, &verb, overlong)?;
        if !self.is_unfollowed() && self.is_no_ftp(known, Command::of(known), overlong, piece) {
            return Some(self.unfollow());
        }
        // The limit may fall into the verb.
        let letters = Spoilt::Verb(room.saturating_sub(start).min(4));
        Some(self.refuse(start, letters, name_of(&verb), why, piece, ended))
    }

    /// Which strict rule a line breaks; `verb` is in upper case.
    fn breach(&self, line: &[u8], verb: &[u8], overlong: bool) -> Option<&'static str> {
        let rules = &self.policy.strict;
        let command = Command::of(line);
        if line.is_empty() {
            return None;
        }
        if rules.before_greeting && !self.greeted {
            return Some("before the greeting");
        }
        let is_login = |command| matches!(command, Command::User | Command::Login);
        let asked = || self.waiting.iter().any(is_login);
        let spent = |limit| self.failed_logins >= limit;
        if rules.leaves_out(verb) {
            Some("not an allowed command")
        } else if overlong && (rules.long_lines || rules.control_bytes) {
            // What is behind the limit isn't known.
            Some("a line over the limit")
        } else if rules.control_bytes && has_controls(line) {
            Some("control characters")
        } else if rules.unknown_verbs && command == Command::Unknown && !is_long(verb) {
            Some("an unknown command")
        } else if rules.failed_logins.is_some_and(spent) && is_login(command) {
            Some("too many failed logins")
        } else if rules.order && !self.logged_in && !is_before_login(verb) && !asked() {
            Some("before the login")
        } else if rules.order && command == Command::Login && !self.user_is_given() {
            Some("no USER before it")
        } else {
            None
        }
    }

    /// Whether a `USER` has come whose login hasn't succeeded.
    fn user_is_given(&self) -> bool {
        self.user().is_some_and(|user| !user.logged_in)
    }

    /// What comes before `at` passes; the rest waits.
    pub(super) fn wait_from(&mut self, at: usize, piece: &[u8]) -> Step {
        if at == 0 {
            return Step::Wait;
        }
        self.client.goes(piece.get(..at).unwrap_or_default());
        Step::Pass(at)
    }

    /// A complete `PORT` or `EPRT`. `last` is where the verb's last byte is in the line. No step:
    /// it is handled like other lines.
    ///
    /// # Errors
    /// Why it must be refused.
    fn address_command(
        &mut self,
        verb: &'static str,
        last: usize,
        piece: &[u8],
    ) -> Result<Option<Step>, &'static str> {
        let blank = last.saturating_add(1).saturating_sub(self.client.gone());
        let line = content(piece, true).trim_ascii_end();
        let spaces = line.iter().skip(blank).take_while(|b| **b == b' ').count();
        let start = blank.saturating_add(spaces);
        let argument = line.get(start..).unwrap_or_default();
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
            let ambiguous = match verb {
                "PORT" => may_be_host_port(argument),
                _ => may_be_extended(argument),
            };
            if ambiguous {
                return Err("an address that may be read in more than one way");
            }
            if self.policy.strict.addresses {
                return Err("not an address");
            }
            return Ok(None);
        };
        if self.epsv_all {
            // RFC 2428 §4: the server must refuse it.
            return Err("EPSV ALL was sent");
        }
        // A pipelining client: the pinhole must be open before the server reads the command, but
        // must not be open before the login.
        let waits = self.patient && !self.policy.strict.active_late;
        let translated_from =
            (blank.checked_sub(verb.len())).filter(|_| verb == "EPRT" && self.translates());
        self.awaits_login = waits && self.login_is_under_way();
        if self.awaits_login {
            // Strict rules check all of the line again.
            let whole = self.policy.strict.holds_lines() || translated_from.is_some();
            return Ok(Some(match whole {
                true => Step::Wait,
                false => self.wait_from(blank, piece),
            }));
        }
        let follow = self.may_announce();
        if !follow {
            count(&mut self.counts.unasked);
            if self.policy.strict.addresses {
                return Err(match self.is_unfollowed() {
                    true => "not FTP",
                    false => "before the login",
                });
            }
        }
        self.client.goes(piece.get(..start).unwrap_or_default());
        self.client.settle();
        Ok(Some(Step::Address(Address {
            at: start,
            len: argument.len(),
            announcement,
            refusal: Some(Refusal {
                at: blank,
                with: Spoilt::Argument.text(line.get(blank..).unwrap_or_default()),
            }),
            follow,
            translated_from,
        })))
    }

    /// Refuses a line: nothing of it from `at` on goes out as it is.
    fn refuse(
        &mut self,
        at: usize,
        spoilt: Spoilt,
        verb: &'static str,
        why: &'static str,
        piece: &[u8],
        ended: bool,
    ) -> Step {
        let text = content(piece, ended);
        self.client.goes(text);
        self.client.refuse();
        Step::Refuse {
            at,
            with: spoilt.text(text.get(at..).unwrap_or_default()),
            verb,
            why,
        }
    }

    /// A line whose end has been waited for for too long.
    pub(super) fn abandon_command(&mut self, pending: &[u8]) -> Step {
        let (piece, ended) = first_line(pending);
        let refused = self.client.is_refused();
        if ended || refused || content(piece, ended).is_empty() {
            self.client.goes(piece);
            return match refused {
                true => Step::Blank(Spoilt::Rest.text(piece)),
                false => Step::Pass(piece.len()),
            };
        }
        let head = self.client.head(piece);
        let spoilt = match guarded(&head, false) {
            _ if self.policy.strict.holds_lines() => Spoilt::Verb(4),
            Some(Guarded {
                verb: "PORT" | "EPRT",
                ..
            }) => Spoilt::Argument,
            _ => Spoilt::Verb(1),
        };
        let verb = name_of(&bare_verb(&head));
        self.refuse(0, spoilt, verb, "a line that never ended", piece, ended)
    }

    /// What follows in a line that was refused.
    fn rest_of_refused(&mut self, piece: &[u8], ended: bool) -> Step {
        let text = content(piece, ended);
        if !text.is_empty() {
            self.client.goes(text);
            return Step::Blank(Spoilt::Rest.text(text));
        }
        if !ended {
            // A CR, which may belong to the line's end.
            return Step::Wait;
        }
        self.command_passes(Command::Unknown, &[], false);
        self.client.end();
        Step::Pass(piece.len())
    }

    /// Whether an announcement may be followed: after the login, or while its reply is awaited (a
    /// pipelining client). In either case nothing opens before the login succeeded.
    fn may_announce(&self) -> bool {
        self.may_open() || self.login_is_under_way()
    }

    /// A complete line goes out to the server.
    pub(super) fn command_passes(&mut self, command: Command, line: &[u8], overlong: bool) {
        if !matches!(command, Command::Unknown | Command::Blank) {
            self.spoken.ftp();
        }
        if let Some(told) = &mut self.told {
            told.says(|| Said::Command(name_of(&bare_verb(line))));
        }
        match command {
            Command::User => {
                // The name is kept until the login only, to be reported.
                let is_news = self.user().is_some_and(|user| user.is_news);
                let user = User::new(argument(line));
                self.told().user = Some(User { is_news, ..user });
                self.login_tried = true;
            }
            Command::Login => self.login_tried = true,
            Command::Pasv | Command::Epsv | Command::Translated => self.forget_active(),
            Command::Transfer if !overlong => match &mut self.active {
                Active::Reserved { commanded, .. } | Active::Open { commanded, .. } => {
                    *commanded = true;
                }
                Active::None | Active::Spent(_) | Active::Cancelled(_) => {}
            },
            _ => {}
        }
        let command = match command {
            Command::Port if self.client.is_followed() => Command::Followed,
            _ if overlong => Command::Overlong,
            command => command,
        };
        while self.waiting.len() >= self.policy.max_pipelined.max(1) {
            count(&mut self.counts.overrun);
            if self.waiting.forget_first() == Some(Command::Followed) {
                // Its reply can't be recognised any more.
                self.drop_active();
            }
        }
        self.waiting.push(command);
        self.keep_up();
    }
}

/// Whether a line is a header field of HTTP (RFC 9112 §5: no blank before the colon).
fn is_header_field(line: &[u8]) -> bool {
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let name = line.get(..end).unwrap_or_default();
    name.iter().skip(1).any(|b| *b == b':')
}

/// The first words of clients of other protocols, in upper case. Their servers' greetings may look
/// like FTP's (RFC 5321 §4.2).
const OTHER_PROTOCOLS: [&[u8]; 14] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
    b"PRI", b"HELO", b"EHLO", b"LHLO", b"INVITE",
];

/// Whether an FTP client may begin with this line: with a known verb, or one that looks like one
/// (`XAUT`).
fn may_begin(line: &[u8], command: Command) -> bool {
    let verb = bare_verb(line);
    let unknown = || {
        (3..=7).contains(&verb.len())
            && verb.iter().all(u8::is_ascii_alphabetic)
            && !OTHER_PROTOCOLS.contains(&verb.as_slice())
    };
    let named = line.windows(6).any(|part| part == b" HTTP/");
    let plausible = match command {
        Command::Unknown => unknown(),
        Command::Blank => true,
        _ => true,
    };
    plausible && !named && printable(line)
}

fn printable(line: &[u8]) -> bool {
    line.get(telnet_len(line)..)
        .unwrap_or_default()
        .iter()
        .all(|b| *b >= b' ' && *b != 0x7f)
}

/// What there is of a line, without its line end, or a CR that may begin it.
pub(super) fn content(piece: &[u8], ended: bool) -> &[u8] {
    let text = if ended {
        piece.strip_suffix(b"\n").unwrap_or(piece)
    } else {
        piece
    };
    text.strip_suffix(b"\r").unwrap_or(text)
}

/// Which part of a refused line is replaced. Each byte is replaced by itself, so the result doesn't
/// depend on how the text was segmented.
#[derive(Clone, Copy, Debug)]
enum Spoilt {
    /// That many bytes of the verb, and all behind it. No server knows the command, and it answers
    /// 500.
    Verb(usize),
    /// The argument, with the blank before it. The server answers 501.
    Argument,
    /// The rest of a line whose beginning was replaced.
    Rest,
}

impl Spoilt {
    /// What replaces `text`: as many bytes.
    fn text(self, text: &[u8]) -> Vec<u8> {
        let other = |(at, byte): (usize, &u8)| match (self, byte) {
            (Self::Argument, _) if at == 0 => b' ',
            (_, b' ') => b' ',
            (Self::Verb(letters), _) if at < letters => b'X',
            _ => b'x',
        };
        text.iter().enumerate().map(other).collect()
    }
}
