//! What the server's lines do to a session.

use std::num::NonZeroU16;

use super::super::command::Command;
use super::super::hostport::{Scan, scan_extended_port, scan_host_port};
use super::super::reply::Start;
use super::{Active, Address, Announcement, Form, Over, Session, Step, count, first_line, length};
use crate::ftp::Mode;

impl Session {
    pub(super) fn next_reply(&mut self, pending: &[u8]) -> Step {
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
        let multi = self.multi.map(NonZeroU16::get);
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
            self.multi = NonZeroU16::new(code);
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
                    return Some(Step::Address(Address {
                        at,
                        len,
                        announcement: Announcement {
                            verb,
                            mode,
                            form,
                            addr,
                            port,
                        },
                        refusal: None,
                    }));
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
                self.failed_logins = match code {
                    // 530 is RFC 959's; some servers have 430.
                    430 | 530 => self.failed_logins.saturating_add(1),
                    _ if success => 0,
                    _ => self.failed_logins,
                };
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

/// Whether a line of the greeting has the name of the server library that connects when it reads a
/// `PORT` (`FTPHandler.ftp_PORT`); others that do are found out by [`Session::connects_early`].
fn names_pyftpdlib(line: &[u8]) -> bool {
    line.windows(9)
        .any(|word| word.eq_ignore_ascii_case(b"pyftpdlib"))
}
