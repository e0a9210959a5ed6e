//! Two peers' lines through the session machine: it goes on with whatever comes, waits only for a
//! bounded number of bytes, and says the same however the bytes are cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ftpalg::ftp::Mode;
use ftpalg::ftp::hostport::encode;
use ftpalg::ftp::nat64::{Nat64, extended_reply};
use ftpalg::ftp::policy::{Policy, Strict};
use ftpalg::ftp::session::{Address, Form, Hole, Outcome, Peer, Session, Step};

use super::Bytes;

/// One side: what waits, and what went out.
#[derive(Default)]
struct Stream {
    pending: Vec<u8>,
    out: Vec<u8>,
}

struct Talk {
    session: Session,
    policy: Policy,
    sides: [Stream; 2],
    steps: Vec<String>,
    over: bool,
}

impl Talk {
    fn new(policy: &Policy) -> Self {
        Self {
            session: Session::new(Arc::new(policy.clone())),
            policy: policy.clone(),
            sides: [Stream::default(), Stream::default()],
            steps: Vec::new(),
            over: false,
        }
    }

    fn feed(&mut self, from: Peer, bytes: &[u8]) {
        // What waits goes on with the client's next packet: between which of the server's lines that
        // comes is the same however they are cut.
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            self.one_side(from, line);
            if self.session.resumes() {
                self.one_side(Peer::Client, b"");
            }
        }
    }

    fn one_side(&mut self, from: Peer, bytes: &[u8]) {
        let side = &mut self.sides[from as usize];
        side.pending.extend_from_slice(bytes);
        // Each step takes at least one byte, save for one opening before a byte and for each wait.
        let mut budget = side.pending.len() * 2 + 2;
        loop {
            let side = &mut self.sides[from as usize];
            assert!(budget > 0, "it doesn't get on: {:?}", self.steps.last());
            budget -= 1;
            if self.over {
                side.out.append(&mut side.pending);
                return;
            }
            if side.pending.is_empty() {
                return;
            }
            let step = self.session.next(from, &side.pending);
            while self.session.take_news().is_some() {}
            match &step {
                Step::Pass(n) => {
                    assert!((1..=side.pending.len()).contains(n));
                    side.out.extend(side.pending.drain(..*n));
                    continue;
                }
                Step::Wait if side.pending.len() > 4096 && self.session.awaits_login() => {
                    self.session.lose_patience();
                    continue;
                }
                Step::Wait if self.session.awaits_login() => return,
                Step::Wait => {
                    let most = 2 * self.policy.max_command.max(self.policy.max_reply) + 64;
                    assert!(
                        side.pending.len() <= most,
                        "{} bytes wait",
                        side.pending.len()
                    );
                    return;
                }
                Step::Address(Address {
                    at,
                    len,
                    announcement,
                    refusal,
                    follow,
                    translated_from,
                }) => {
                    if let Some(refusal) = refusal {
                        assert_eq!(refusal.at + refusal.with.len(), at + len);
                    }
                    assert!(*len >= 1 && at + len <= side.pending.len());
                    assert_ne!(announcement.port, 0);
                    if let (Some(start), true) = (translated_from, *follow) {
                        // The line is replaced from its beginning on.
                        assert!(start < at);
                        side.out.extend(side.pending.drain(..*start));
                        let room = at + len - start;
                        side.pending.drain(..room);
                        side.out.extend(match announcement.mode {
                            Mode::Passive => extended_reply(announcement.port, room),
                            Mode::Active => b"PORT 1,2,3,4,5,6".to_vec(),
                        });
                        let (hole, open) = (Hole(0), self.session.opens_at_once());
                        let outcome = Outcome::Accepted { hole, open };
                        let _ = self.session.announced(from, outcome);
                        self.steps
                            .push(format!("{from:?} {announcement:?} is translated"));
                        continue;
                    }
                    side.out.extend(side.pending.drain(..*at));
                    let said: Vec<u8> = side.pending.drain(..*len).collect();
                    if !follow {
                        side.out.extend(said);
                        let _ = self.session.announced(from, Outcome::PassedUnmodified);
                        self.steps
                            .push(format!("{from:?} {announcement:?} isn't followed"));
                        continue;
                    }
                    let addr = announcement.addr.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
                    let told = SocketAddr::new(addr, announcement.port);
                    // What was read is what its canonical form says.
                    let canonical = encode(announcement.form, told);
                    if !matches!(announcement.form, Form::ExtendedPort(_) | Form::HostPort) {
                        assert_eq!(said.first(), canonical.first());
                    }
                    side.out.extend(encode(
                        announcement.form,
                        SocketAddr::new(addr, announcement.port ^ 1 | 2),
                    ));
                    let open = self.session.opens_at_once();
                    let hole = Hole(0);
                    let _ = self
                        .session
                        .announced(from, Outcome::Accepted { hole, open });
                }
                Step::Refuse { at, with, .. } => {
                    assert!(
                        !with.is_empty() && at + with.len() <= side.pending.len(),
                        "{at} {with:?} of {:?}",
                        side.pending.escape_ascii().to_string()
                    );
                    side.out.extend(side.pending.drain(..*at));
                    side.pending.drain(..with.len());
                    side.out.extend_from_slice(with);
                }
                Step::Replace { at, len, with } => {
                    assert!(*len >= 1 && at + len <= side.pending.len());
                    side.out.extend(side.pending.drain(..*at));
                    side.pending.drain(..*len);
                    side.out.extend_from_slice(with);
                    self.steps.push(format!("{from:?} {with:?}"));
                    continue;
                }
                Step::Blank(with) => {
                    assert!((1..=side.pending.len()).contains(&with.len()));
                    side.pending.drain(..with.len());
                    side.out.extend_from_slice(with);
                    continue;
                }
                Step::OpenActive(_) => self.session.active_opened(true),
                Step::Unfollowed => {}
                Step::Opaque(_) => self.over = true,
            }
            // `at` depends on how much has gone out already, not on what is said.
            let said = match step {
                Step::Address(Address { announcement, .. }) => format!("{announcement:?}"),
                Step::Refuse { verb, why, .. } => format!("{verb} {why}"),
                other => format!("{other:?}"),
            };
            self.steps.push(format!("{from:?} {said}"));
            let _ = (self.session.take_cancelled(), self.session.take_login());
        }
    }
}

/// A flag byte, then records: one byte (the side in the top bit, the length below), and its bytes.
pub fn check(data: &[u8]) {
    let mut bytes = Bytes(data);
    let flags = bytes.byte();
    let mut policy = Policy {
        require_login: flags & 1 == 0,
        ..Policy::default()
    };
    if flags & 2 != 0 {
        (policy.max_command, policy.max_reply, policy.max_pipelined) = (24, 48, 3);
    }
    policy.strict.active_late = flags & 4 != 0;
    policy.deny_tls = flags & 8 != 0;
    if flags & 16 != 0 {
        policy.strict = Strict::all();
    } else if flags & 32 != 0 {
        // One rule by itself, and a list.
        let rules = &mut policy.strict;
        match flags >> 6 {
            0 => rules.control_bytes = true,
            1 => rules.long_lines = true,
            2 => rules.before_greeting = true,
            _ => rules.deny = vec!["PASV".to_owned(), "USER".to_owned()],
        }
    }
    let mut whole = Talk::new(&policy);
    let mut cut = Talk::new(&policy);
    if flags & (16 | 32 | 64) == 64 {
        for talk in [&mut whole, &mut cut] {
            let nat64 = Nat64::new(Ipv4Addr::LOCALHOST, flags & 128 != 0);
            talk.session.translate(nat64);
        }
    }
    while !bytes.over() {
        let head = bytes.byte();
        let from = if head & 0x80 == 0 {
            Peer::Client
        } else {
            Peer::Server
        };
        let text = bytes.take(usize::from(head & 0x7f) + 1);
        if text.is_empty() {
            break;
        }
        whole.feed(from, text);
        for byte in text {
            cut.feed(from, &[*byte]);
        }
    }
    assert_eq!(whole.steps, cut.steps);
    for (a, b) in whole.sides.iter().zip(&cut.sides) {
        assert_eq!(
            a.out.escape_ascii().to_string(),
            b.out.escape_ascii().to_string()
        );
        assert_eq!(a.pending, b.pending);
    }
}
