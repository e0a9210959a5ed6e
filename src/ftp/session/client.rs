//! What the client's lines do to a session.

use super::super::command::{Command, address_command, argument, long_command, telnet_len};
use super::super::hostport::{parse_extended, parse_host_port};
use super::{Active, Announcement, Form, Over, Session, Step, User, count, first_line, length};
use crate::engine::gateway::Mode;

impl Session {
    pub(super) fn next_command(&mut self, pending: &[u8]) -> Step {
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
        if !self.client.is_settled() {
            let address = address_command(&head).filter(|_| !overlong);
            if let Some((verb, Some(start))) = address {
                let start = start.saturating_sub(self.client.gone());
                if let Some(step) = self.address_command(verb, start, piece, ended) {
                    return step;
                }
            } else if let Some((verb, at, is)) = long_command(&head)
                && is != Some(false)
            {
                // However long the line is: that it is may show only later.
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
        // A page chooses its request's method, which may well be `USER`, but not that there are
        // headers between the method and all else that it chooses.
        if is_header_field(line) {
            return self.ends(Over::NotFtp);
        }
        if overlong {
            count(&mut self.counts.overlong);
        } else if command == Command::Transfer {
            match self.active {
                // A pipelined command comes before the reply to its `PORT`. Once the server has both
                // it connects at once, faster than its reply gets here: the hole can't wait for
                // that, and goes again if the reply is a refusal.
                Active::Granted | Active::Announced { .. } if self.may_open() => {
                    return Step::OpenActive;
                }
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
}

/// Whether a line is a field of an HTTP request (RFC 9112 §5: the colon follows the name at once).
fn is_header_field(line: &[u8]) -> bool {
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let name = line.get(..end).unwrap_or_default();
    name.iter().skip(1).any(|b| *b == b':')
}

fn printable(line: &[u8]) -> bool {
    line.get(telnet_len(line)..)
        .unwrap_or_default()
        .iter()
        .all(|b| *b >= b' ' && *b != 0x7f)
}
