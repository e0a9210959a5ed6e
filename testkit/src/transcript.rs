//! Feeds the two streams of a dialogue to the session machine, in any pieces, and notes what it
//! decides and what goes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ftpalg::ftp::Mode;
use ftpalg::ftp::hostport::encode;
use ftpalg::ftp::nat64::{Nat64, extended_reply, port_command};
use ftpalg::ftp::policy::Policy;
use ftpalg::ftp::session::{Address, Form, Hole, Outcome, Peer, Session, Step};

/// The client's address and the server's, as each itself knows it; whatever is announced becomes
/// one of [`PUBLIC`].
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 5);
/// The client's address if it has IPv6 only.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 5);
/// What the peers are told instead.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// A port for which there is no pinhole to be had.
pub const UNAVAILABLE: u16 = 4242;

/// How many bytes may wait for a login.
pub const MOST: usize = 4096;

/// A session machine, its streams and its decisions.
pub struct Machine {
    /// The session machine.
    pub session: Session,
    policy: Arc<Policy>,
    pending: [Vec<u8>; 2],
    /// What has gone out, of the client's bytes and the server's.
    pub out: [Vec<u8>; 2],
    /// One line per decision.
    pub decisions: Vec<String>,
    opaque: bool,
    unfollowed: bool,
}

fn index(peer: Peer) -> usize {
    usize::from(peer == Peer::Server)
}

impl Machine {
    /// A session of which nothing was said.
    pub fn new(policy: Policy) -> Self {
        let policy = Arc::new(policy);
        Self {
            session: Session::new(policy.clone()),
            policy,
            pending: Default::default(),
            out: Default::default(),
            decisions: Vec::new(),
            opaque: false,
            unfollowed: false,
        }
    }

    /// The same with a server behind a translator, for an IPv6-only client.
    pub fn translated(policy: Policy, speaks_epsv: bool) -> Self {
        let mut machine = Self::new(policy);
        let server = Ipv4Addr::new(10, 0, 0, 2);
        machine.session.translate(Nat64::new(server, speaks_epsv));
        machine
    }

    /// How many bytes of a peer's wait.
    pub fn held(&self, peer: Peer) -> usize {
        self.pending[index(peer)].len()
    }

    /// New bytes of one peer's arrive. Checks what every step must keep to.
    pub fn feed(&mut self, peer: Peer, bytes: &[u8]) {
        self.one_side(peer, bytes);
        if self.session.resumes() {
            self.one_side(Peer::Client, b"");
        }
    }

    fn one_side(&mut self, peer: Peer, bytes: &[u8]) {
        let i = index(peer);
        self.pending[i].extend_from_slice(bytes);
        let mut opened = false;
        while !self.pending[i].is_empty() {
            let pending = self.pending[i].clone();
            let step = self.session.next(peer, &pending);
            while self.session.take_news().is_some() {}
            match step {
                Step::Pass(n) => {
                    assert!(
                        0 < n && n <= pending.len(),
                        "passes {n} of {}",
                        pending.len()
                    );
                    self.goes(i, n, None);
                }
                Step::Wait if pending.len() > MOST && self.session.awaits_login() => {
                    self.session.lose_patience();
                }
                Step::Wait => {
                    assert!(
                        !pending.contains(&b'\n')
                            || peer == Peer::Client && self.session.awaits_login(),
                        "waits in {:?}",
                        pending.escape_ascii().to_string()
                    );
                    break;
                }
                Step::Address(Address {
                    at,
                    len,
                    announcement: said,
                    refusal,
                    follow,
                    translated_from,
                }) => {
                    assert!(len > 0 && at + len <= pending.len());
                    let own = match self.session.nat64() {
                        None => IpAddr::from(CLIENT),
                        Some(_) => CLIENT6.into(),
                    };
                    let foreign = said.verb.starts_with(|c: char| c.is_alphabetic()).then(|| {
                        self.policy
                            .check_active(said.addr, said.port, own, PUBLIC.into())
                    });
                    let old = said
                        .addr
                        .map_or_else(|| "-".to_owned(), |ip| ip.to_string());
                    let what = format!("{} {old} {}", said.verb, said.port);
                    let (outcome, with) = match foreign {
                        Some(Err(why)) => {
                            self.decide(format!("refuse {what}: {why}"));
                            let refusal =
                                refusal.unwrap_or_else(|| panic!("{what} can't be refused"));
                            assert_eq!(refusal.at + refusal.with.len(), at + len);
                            let _ = self.session.announced(peer, Outcome::Refused);
                            let len = refusal.with.len();
                            self.goes(i, refusal.at, Some((len, &refusal.with)));
                            opened = false;
                            continue;
                        }
                        _ if !follow => (Outcome::PassedUnmodified, pending[at..at + len].to_vec()),
                        _ if said.port == UNAVAILABLE => {
                            self.decide(format!("leave {what}"));
                            (Outcome::PassedUnmodified, pending[at..at + len].to_vec())
                        }
                        _ => {
                            self.decide(format!("announce {what}"));
                            let new = SocketAddr::new(PUBLIC.into(), said.port);
                            let open = foreign.is_none() || self.session.opens_at_once();
                            if foreign.is_some() && open {
                                self.decide("open".to_owned());
                            }
                            let hole = Hole(0);
                            (Outcome::Accepted { hole, open }, encode(said.form, new))
                        }
                    };
                    if let (Some(start), Outcome::Accepted { .. }) = (translated_from, outcome) {
                        let closes = pending.get(at + len) == Some(&b')');
                        let len =
                            at + len - start + usize::from(closes && said.mode == Mode::Passive);
                        let text = match said.mode {
                            Mode::Passive => extended_reply(said.port, len),
                            Mode::Active => {
                                port_command(SocketAddr::new(PUBLIC.into(), said.port)).unwrap()
                            }
                        };
                        self.decide(format!("becomes {}", text.escape_ascii()));
                        let _ = self.session.announced(peer, outcome);
                        self.goes(i, start, Some((len, &text)));
                        opened = false;
                        continue;
                    }
                    assert_eq!(
                        said.addr.is_none(),
                        matches!(said.form, Form::ExtendedPort(_))
                    );
                    let _ = self.session.announced(peer, outcome);
                    self.goes(i, at, Some((len, &with)));
                }
                Step::Refuse {
                    at,
                    with,
                    verb,
                    why,
                } => {
                    assert!(!with.is_empty() && at + with.len() <= pending.len());
                    self.decide(format!("refuse {verb}: {why}"));
                    self.goes(i, at, Some((with.len(), &with)));
                }
                Step::Replace { at, len, with } => {
                    assert!(len > 0 && at + len <= pending.len());
                    self.decide(format!("becomes {}", with.trim_ascii_end().escape_ascii()));
                    self.goes(i, at, Some((len, &with)));
                }
                Step::Blank(with) => {
                    assert!(!with.is_empty() && with.len() <= pending.len());
                    assert!(!pending[..with.len()].contains(&b'\n'));
                    self.goes(i, 0, Some((with.len(), &with)));
                }
                Step::OpenActive(_) => {
                    assert!(!opened, "opens twice without a byte between");
                    opened = true;
                    self.decide("open".to_owned());
                    self.session.active_opened(true);
                    continue;
                }
                Step::Unfollowed => {
                    assert!(!self.unfollowed, "said twice");
                    self.unfollowed = true;
                    self.decide("not ftp".to_owned());
                    continue;
                }
                Step::Opaque(why) => {
                    if !self.opaque {
                        self.decide(format!("opaque {}", why.why()));
                    }
                    self.opaque = true;
                    for i in 0..2 {
                        let rest = std::mem::take(&mut self.pending[i]);
                        self.out[i].extend(rest);
                    }
                }
            }
            opened = false;
        }
        if self.session.take_cancelled().is_some() {
            self.decide("close".to_owned());
        }
        if let Some(user) = self.session.take_login() {
            self.decide(format!("login {user}"));
        }
    }

    fn decide(&mut self, what: String) {
        self.decisions.push(what);
    }

    fn goes(&mut self, i: usize, at: usize, replaced: Option<(usize, &[u8])>) {
        let pending = &mut self.pending[i];
        self.out[i].extend(pending.drain(..at));
        if let Some((len, with)) = replaced {
            pending.drain(..len);
            self.out[i].extend_from_slice(with);
        }
    }
}
