//! IPv6-only clients: which lines of either end are translated (RFC 6384). See [`crate::ftp::nat64`].
//!
//! A line that may be translated waits from its beginning on. All others go as ever.

use super::super::command::{Command, argument, telnet_len};
use super::super::hostport::{Scan, scan_host_port};
use super::super::line::HEAD;
use super::super::nat64::{Algs, EpsvArgument, NOOP, Nat64, OWED_BY, Owed, PASV};
use super::super::reply::{Code, ReplyStart};
use super::client::content;
use super::{Address, Announcement, Form, Session, Step, count};
use crate::ftp::Mode;

/// How many bytes may come before a reply's code is known: Telnet commands and the code itself.
const LEAD: usize = 16;

/// The verbs of commands that may be translated.
const VERBS: [&[u8; 4]; 3] = [b"EPSV", b"ALGS", b"EPRT"];

impl Session {
    /// The server is behind a translator, and the client knows it by an IPv6 address.
    pub fn translate(&mut self, nat64: Nat64) {
        self.told().nat64 = Some(Box::new(nat64));
    }

    /// What is known of that, if it is so.
    #[must_use]
    pub fn nat64(&self) -> Option<&Nat64> {
        self.told.as_ref()?.nat64.as_deref()
    }

    /// The same, to be changed.
    pub fn nat64_mut(&mut self) -> Option<&mut Nat64> {
        self.told.as_mut()?.nat64.as_deref_mut()
    }

    /// Whether a reply is awaited that means something else to the client than to the server.
    #[must_use]
    pub fn awaits_translation(&self) -> bool {
        self.nat64().is_some() && self.waiting.iter().any(Command::is_translated)
    }

    /// Whether an `EPRT` becomes a `PORT`.
    pub(super) fn translates(&self) -> bool {
        self.nat64().is_some_and(Nat64::is_on) && !self.is_unfollowed()
    }

    fn count_translated(&mut self) {
        if let Some(nat64) = self.nat64_mut() {
            nat64.count();
        }
    }

    // ---- commands --------------------------------------------------------------------------

    /// A command that may be translated. `None`: it is handled like other lines.
    pub(super) fn translated_command(
        &mut self,
        head: &[u8],
        piece: &[u8],
        ended: bool,
    ) -> Option<Step> {
        let nat64 = self.nat64().filter(|_| !self.is_unfollowed())?;
        let on = nat64.is_on();
        let start = telnet_len(head);
        let at = start.checked_sub(self.client.gone())?;
        let line = head.get(start..).unwrap_or_default();
        let verb = may_be_translated(line.trim_ascii_end(), on)?;
        if self.client.gone().saturating_add(piece.len()) > HEAD {
            return None;
        }
        if !ended {
            return Some(self.wait_from(at, piece));
        }
        let line = line.trim_ascii_end();
        if line.len() < verb.len() {
            return None;
        }
        let (command, with) = match verb {
            b"EPSV" => self.epsv(argument(line))?,
            b"ALGS" => {
                let owed = self.nat64_mut()?.algs(Algs::of(argument(line)));
                (Command::Owed(owed), NOOP)
            }
            // Its address is looked at as ever.
            _ => return None,
        };
        self.count_translated();
        let text = content(piece, true);
        let end = piece.get(text.len()..).unwrap_or_default();
        let step = Step::Replace {
            at,
            len: piece.len().saturating_sub(at),
            with: [with, end].concat(),
        };
        self.command_passes(command, line, false);
        self.client.end();
        Some(step)
    }

    /// What an `EPSV` becomes (RFC 6384 §6). `None`: it goes as it is.
    fn epsv(&self, argument: &[u8]) -> Option<(Command, &'static [u8])> {
        let owed = |owed| Some((Command::Owed(owed), NOOP));
        match EpsvArgument::of(argument) {
            EpsvArgument::None if self.nat64()?.speaks_epsv() => None,
            EpsvArgument::None | EpsvArgument::Known => Some((Command::Translated, PASV)),
            EpsvArgument::Number => owed(Owed::Protocol),
            EpsvArgument::All => owed(Owed::EpsvAll),
            EpsvArgument::Other => None,
        }
    }

    // ---- replies ---------------------------------------------------------------------------

    /// A line of the server of which nothing has gone, if it may have to be translated. `None`: it is
    /// handled like other lines.
    pub(super) fn translated_reply(
        &mut self,
        start: ReplyStart,
        last: Option<Code>,
        piece: &[u8],
        ended: bool,
    ) -> Option<Step> {
        if self.server.gone() > 0 || self.server.is_settled() || !self.awaits_translation() {
            return None;
        }
        match start {
            ReplyStart::Unknown if !ended && piece.len() <= LEAD => return Some(Step::Wait),
            ReplyStart::First(code) if self.multi.is_none() => {
                return self.first_of_lines(code, piece);
            }
            _ => {}
        }
        let code = last?;
        let (_, command) = self.waiting.answered(code.value)?;
        let translated = match command {
            Command::Owed(_) => code.value == OWED_BY,
            Command::Translated => code.value == 227 && self.may_open(),
            _ => false,
        };
        if !translated {
            return None;
        }
        if !ended {
            return (piece.len() < self.policy.max_reply).then_some(Step::Wait);
        }
        match command {
            Command::Owed(owed) => {
                let text = content(piece, true);
                let end = piece.get(text.len()..).unwrap_or_default();
                let with = [owed.text(), end].concat();
                self.count_translated();
                let at = code_at(code);
                self.reply_passes(code.value);
                self.server.end();
                Some(Step::Replace {
                    at,
                    len: piece.len().saturating_sub(at),
                    with,
                })
            }
            _ => self.address_for_229(code, piece),
        }
    }

    /// The first of several lines: its code must be that of the last one (RFC 959 §4.2).
    fn first_of_lines(&mut self, code: Code, piece: &[u8]) -> Option<Step> {
        let (_, command) = self.waiting.answered(code.value)?;
        let with = match command {
            Command::Owed(owed) if code.value == OWED_BY => owed.code(),
            Command::Translated if code.value == 227 && self.may_open() => b"229",
            _ => return None,
        };
        self.code_becomes(code, with, piece)
    }

    fn code_becomes(&mut self, code: Code, with: &[u8], piece: &[u8]) -> Option<Step> {
        self.server.goes(piece.get(..code.end)?);
        self.server.settle();
        Some(Step::Replace {
            at: code_at(code),
            len: with.len(),
            with: with.to_vec(),
        })
    }

    /// The address of a `227` that is to become a `229`.
    fn address_for_229(&mut self, code: Code, piece: &[u8]) -> Option<Step> {
        let found = find_host_port(piece, code.end)
            .filter(|(at, len, _)| at.saturating_add(*len) <= self.policy.max_reply);
        let Some((at, len, (ip, port))) = found else {
            count(&mut self.counts.unparsable);
            self.server.settle();
            // What its first line has become, it becomes as well.
            return match self.multi {
                Some(_) => self.code_becomes(code, b"229", piece),
                None => None,
            };
        };
        self.count_translated();
        self.server.goes(piece.get(..at)?);
        self.server.settle();
        Some(Step::Address(Address {
            at,
            len,
            announcement: Announcement {
                verb: "227",
                mode: Mode::Passive,
                form: Form::HostPort,
                addr: Some(ip.into()),
                port,
            },
            refusal: None,
            follow: true,
            translated_from: Some(code_at(code)),
        }))
    }

    /// A final reply answers a command. Returns whether nothing is translated from here on: other
    /// security than TLS was agreed on (RFC 6384 §5, RFC 2228).
    pub(super) fn translation_answered(&mut self, command: Option<Command>, code: u16) {
        let Some(nat64) = self.told.as_mut().and_then(|told| told.nat64.as_mut()) else {
            return;
        };
        match command {
            Some(Command::Owed(_)) if code != OWED_BY => {
                nat64.reset();
            }
            Some(Command::Epsv) => nat64.epsv_answered(code),
            Some(Command::Auth) if matches!(code, 234 | 334) => {
                self.told.as_mut().and_then(|told| told.nat64.take());
            }
            _ => {}
        }
    }
}

/// Which verb a line has, or may have when more of it comes. `on`: everything is translated.
fn may_be_translated(line: &[u8], on: bool) -> Option<&'static [u8; 4]> {
    let verb = line.split(|b| *b == b' ').next().unwrap_or_default();
    let begins = |name: &&&[u8; 4]| {
        let known = name.get(..verb.len());
        known.is_some_and(|known| known.eq_ignore_ascii_case(verb))
            && (verb.len() == name.len() || verb.len() == line.len())
    };
    let mut names = VERBS.iter().filter(|name| on || **name == b"ALGS");
    names.find(begins).copied().filter(|_| !line.is_empty())
}

/// Where a code begins.
fn code_at(code: Code) -> usize {
    code.end.saturating_sub(3)
}

/// The first strict address in a complete line, from `at` on: where it is, its length, what it says.
fn find_host_port(line: &[u8], mut at: usize) -> Option<(usize, usize, (std::net::Ipv4Addr, u16))> {
    loop {
        let rest = line.get(at..)?;
        at = at.saturating_add(rest.iter().position(u8::is_ascii_digit)?);
        let rest = line.get(at..)?;
        match scan_host_port(rest) {
            Scan::Found { len, value } => return Some((at, len, value)),
            Scan::Partial => return None,
            Scan::No { len } => at = at.saturating_add(len.max(1)),
        }
    }
}
