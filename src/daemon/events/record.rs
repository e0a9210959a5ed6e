//! What a record says, as JSON and as a line for people. The field names are a contract: add, never
//! change. docs/events.md lists them.

use std::fmt::{self, Display, Write as _};
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ftp::Mode;

use super::human;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, from 1 on in each process.
    pub seq: u64,
    /// When it happened, in UTC.
    pub time: Timestamp,
    /// The session's number, if it is about one. Sessions are numbered from 1 on in each process.
    #[serde(default)]
    pub session: Option<u64>,
    /// The client of that session, as the inside sees it.
    #[serde(default)]
    pub client: Option<SocketAddr>,
    /// The server, as the inside sees it.
    #[serde(default)]
    pub server: Option<SocketAddr>,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened, by kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum What {
    /// A control connection is followed from here on.
    SessionStart {
        /// It was under way already.
        joined: bool,
    },
    /// A control connection ended.
    SessionEnd {
        /// How: `FIN`, `RST`, `idle`, …
        cause: String,
        /// How long it was followed.
        seconds: f64,
    },
    /// A session isn't read any more, or is read again.
    Reading {
        /// Why not; `None`: it is read again.
        why: Option<String>,
    },
    /// A user logged in.
    Login {
        /// The argument of `USER`; `None` with `--events-names no`.
        user: Option<String>,
    },
    /// The server refused a login.
    LoginRefused {
        /// As above.
        user: Option<String>,
        /// The reply.
        reply: u16,
    },
    /// A transfer ended, or was refused by the server.
    Transfer(Box<Transfer>),
    /// ftpalg refused a command or an announcement, or opened nothing for it.
    Refused(Box<Refused>),
    /// A limit on sessions was reached: nothing opens for this one.
    Limit {
        /// Which, in words.
        why: String,
    },
    /// A pinhole was not used in time.
    Unused {
        /// Who could have connected.
        from: IpAddr,
        /// Where.
        to: SocketAddr,
        /// Where it would have been delivered.
        land: SocketAddr,
    },
    /// A range of ports opened for a session under TLS.
    RangeOpen {
        /// Whose client may connect.
        from: IpAddr,
        /// The address to connect to.
        to: IpAddr,
        /// `A-B`.
        ports: String,
    },
    /// It closed.
    RangeClose {
        /// Whose client could connect.
        from: IpAddr,
        /// The address to connect to.
        to: IpAddr,
        /// Why.
        why: String,
    },
    /// Rules that somebody else had removed were put back.
    RulesRestored {
        /// What was missing, in words.
        missing: Vec<String>,
    },
    /// Events of conntrack were lost, and its list was read in their place.
    EventsMissed {},
    /// The daemon is in place.
    Start {
        /// Its version.
        version: String,
        /// Its process.
        pid: u32,
        /// What it found and took over, as printed.
        notes: Vec<String>,
    },
    /// It took the place of a daemon that left its rules behind.
    TookOver {
        /// That daemon's process, if it is known.
        predecessor: Option<u32>,
        /// Whether it handed over; if not, it died.
        handover: bool,
        /// How many of its rules were replaced.
        rules: u64,
    },
    /// Addresses of this host came or went, as when two gateways change places. Watched with a store only.
    Addresses {
        /// Those that came.
        came: Vec<IpAddr>,
        /// Those that went.
        went: Vec<IpAddr>,
    },
    /// The daemon ends.
    Stop {
        /// The rules stay for a successor.
        handover: bool,
    },
    /// The configuration was read again.
    Reload {
        /// What came of it, as printed.
        what: String,
    },
}

/// A transfer: what the dialogue says of it, and its data connection. What isn't known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Transfer {
    /// `RETR`, `STOR`, `STOU`, `APPE`, `LIST`, `NLST` or `MLSD`. `None`: the dialogue can't be read.
    pub command: Option<String>,
    /// Its argument as the client sent it; `None` with `--events-names no`.
    pub file: Option<String>,
    /// Who logged in; `None` with `--events-names no`.
    pub user: Option<String>,
    /// Which way the content went.
    pub direction: Option<Direction>,
    /// Who connected to whom. Under TLS, `passive`.
    pub mode: Option<Mode>,
    /// Whether the dialogue was under TLS, so that only the data connection is known.
    pub tls: bool,
    /// The server's final reply.
    pub reply: Option<u16>,
    /// Whether it came to an end as it should: the server said so, or under TLS, both ends of the data
    /// connection did.
    pub complete: bool,
    /// Seconds from the server's preliminary reply, or the begin of the data connection, to the end.
    pub seconds: f64,
    /// What the data connection carried in both directions, headers included, where conntrack counts.
    pub bytes: Option<u64>,
    /// `bytes` per second, where the time is long enough to tell.
    pub rate: Option<u64>,
    /// The address that was announced.
    pub announced: Option<SocketAddr>,
    /// The address that its peer read.
    pub rewritten: Option<SocketAddr>,
    /// The data connection: where it came from.
    pub from: Option<SocketAddr>,
    /// Where it went.
    pub to: Option<SocketAddr>,
    /// Where it was delivered.
    pub land: Option<SocketAddr>,
}

/// Which way the content of a transfer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the client.
    Download,
    /// To the server.
    Upload,
}

impl Direction {
    /// That of a command.
    #[must_use]
    pub fn of(command: &str) -> Self {
        match command {
            "STOR" | "STOU" | "APPE" => Self::Upload,
            _ => Self::Download,
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// The command or reply.
    pub command: String,
    /// Why, in words.
    pub why: String,
    /// The address that it named.
    pub address: Option<SocketAddr>,
    /// The setting that refuses it.
    pub rule: Option<String>,
    /// What would allow it, if anything does.
    pub allowed_by: Option<String>,
    /// Whether the text was replaced; if not, it passed and nothing opened.
    pub replaced: bool,
}

impl What {
    /// Its kind, as in JSON.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SessionStart { .. } => "session-start",
            Self::SessionEnd { .. } => "session-end",
            Self::Reading { .. } => "reading",
            Self::Login { .. } => "login",
            Self::LoginRefused { .. } => "login-refused",
            Self::Transfer(_) => "transfer",
            Self::Refused(_) => "refused",
            Self::Limit { .. } => "limit",
            Self::Unused { .. } => "unused",
            Self::RangeOpen { .. } => "range-open",
            Self::RangeClose { .. } => "range-close",
            Self::RulesRestored { .. } => "rules-restored",
            Self::EventsMissed {} => "events-missed",
            Self::Start { .. } => "start",
            Self::TookOver { .. } => "took-over",
            Self::Addresses { .. } => "addresses",
            Self::Stop { .. } => "stop",
            Self::Reload { .. } => "reload",
        }
    }

    /// Whether something was refused: by ftpalg, by the server, or because of a limit.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::LoginRefused { .. } | Self::Refused(_) | Self::Limit { .. } => true,
            Self::Transfer(transfer) => transfer.reply.is_some_and(|code| code >= 400),
            _ => false,
        }
    }

    /// Whether it is worth a warning in a log.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        let daemons = matches!(self, Self::RulesRestored { .. } | Self::EventsMissed {});
        daemons || matches!(self, Self::Refused(_) | Self::Limit { .. })
    }
}

/// All kinds, in the order of the documentation.
pub const KINDS: [&str; 18] = [
    "session-start",
    "session-end",
    "reading",
    "login",
    "login-refused",
    "transfer",
    "refused",
    "limit",
    "unused",
    "range-open",
    "range-close",
    "rules-restored",
    "events-missed",
    "start",
    "took-over",
    "addresses",
    "stop",
    "reload",
];

/// The record as one line: time, session, kind, and the rest in words.
impl Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ", self.time)?;
        if let Some(session) = self.session {
            write!(f, "session {session} ")?;
        }
        match (&self.what, self.client, self.server) {
            (What::Transfer(_) | What::SessionEnd { .. }, Some(client), _) => {
                write!(f, "{} ", client.ip())?;
            }
            (_, Some(client), Some(server)) => write!(f, "{client} -> {server} ")?,
            _ => {}
        }
        write!(f, "{}", self.what)
    }
}

impl Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SessionStart { joined: false } => f.write_str("open"),
            Self::SessionStart { joined: true } => f.write_str("joined"),
            Self::SessionEnd { cause, seconds } => {
                write!(f, "closed after {seconds:.1} s: {}", Plain(cause))
            }
            Self::Reading { why: Some(why) } => write!(f, "no longer read: {}", Plain(why)),
            Self::Reading { why: None } => f.write_str("read again"),
            Self::Login { user } => {
                f.write_str("logged in")?;
                name(f, " as ", user.as_deref())
            }
            Self::LoginRefused { user, reply } => {
                f.write_str("login refused")?;
                name(f, " for ", user.as_deref())?;
                write!(f, ": {reply}")
            }
            Self::Transfer(transfer) => transfer.fmt(f),
            Self::Refused(refused) => refused.fmt(f),
            Self::Limit { why } => write!(f, "opens nothing: {}", Plain(why)),
            Self::Unused { from, to, land } => {
                write!(f, "pinhole {from} -> {to} => {land} not used in time")
            }
            Self::RangeOpen { from, to, ports } => {
                write!(f, "range {from} -> {to} ports {} open", Plain(ports))
            }
            Self::RangeClose { from, to, why } => {
                write!(f, "range {from} -> {to} closed: {}", Plain(why))
            }
            Self::RulesRestored { missing } => write!(
                f,
                "rules were removed by somebody else; they are back ({})",
                Plain(&missing.join("; "))
            ),
            Self::EventsMissed {} => f.write_str("conntrack events were missed; looked again"),
            Self::Start {
                version,
                pid,
                notes,
            } => {
                write!(f, "ftpalg {} started, pid {pid}", Plain(version))?;
                notes
                    .iter()
                    .try_for_each(|note| write!(f, "; {}", Plain(note)))
            }
            Self::TookOver {
                predecessor,
                handover,
                rules,
            } => {
                let count = format!("{rules} rule{}", if *rules == 1 { "" } else { "s" });
                match (predecessor, handover) {
                    (Some(pid), true) => write!(
                        f,
                        "took over from pid {pid}, which handed over; {count} replaced"
                    ),
                    (Some(pid), false) => {
                        write!(f, "took over from pid {pid}, which died; {count} cleared")
                    }
                    (None, _) => write!(f, "{count} of an earlier ftpalg cleared"),
                }
            }
            Self::Addresses { came, went } => {
                let list = |all: &[IpAddr], what: &str| {
                    let all: Vec<_> = all.iter().map(IpAddr::to_string).collect();
                    (!all.is_empty()).then(|| format!("{} {what}", all.join(", ")))
                };
                let changes = [list(came, "came"), list(went, "went")];
                let changes: Vec<_> = changes.into_iter().flatten().collect();
                write!(f, "addresses: {}", changes.join("; "))
            }
            Self::Stop { handover: true } => f.write_str("ftpalg hands over"),
            Self::Stop { handover: false } => f.write_str("ftpalg ends"),
            Self::Reload { what } => write!(f, "reloaded {}", Plain(what)),
        }
    }
}

impl Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command.as_deref().unwrap_or("transfer"))?;
        name(f, " ", self.file.as_deref())?;
        let refused = self.from.is_none() && self.reply.is_some_and(|code| code >= 400);
        match (refused, self.complete, self.reply) {
            (true, _, Some(reply)) => return write!(f, " refused: {reply}"),
            (_, true, _) => f.write_str(" done")?,
            (_, false, Some(reply)) => write!(f, " failed ({reply})")?,
            (_, false, None) => f.write_str(" broken off")?,
        }
        if let Some(bytes) = self.bytes {
            write!(f, ", {}", human::bytes(bytes))?;
        }
        write!(f, " in {:.1} s", self.seconds)?;
        if let Some(rate) = self.rate {
            write!(f, " ({}/s)", human::bytes(rate))?;
        }
        match (self.tls, self.mode) {
            (true, _) => f.write_str(", TLS")?,
            (false, Some(Mode::Passive)) => f.write_str(", passive")?,
            (false, Some(Mode::Active)) => f.write_str(", active")?,
            (false, None) => {}
        }
        match (self.announced, self.rewritten) {
            (Some(old), Some(new)) if old == new => write!(f, ", {old}")?,
            (Some(old), Some(new)) => write!(f, ", {old} announced as {new}")?,
            _ => {}
        }
        match (self.from, self.to, self.land) {
            (Some(from), Some(to), Some(land)) => write!(f, ", data {from} -> {to} => {land}"),
            _ => Ok(()),
        }
    }
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.replaced {
            true => "refused",
            false => "passed as it is",
        };
        write!(f, "{} {how}: {}", Plain(&self.command), Plain(&self.why))?;
        match (self.address, &self.allowed_by) {
            (Some(address), Some(flag)) => write!(f, " ({address}; {} allows it)", Plain(flag)),
            (Some(address), None) => write!(f, " ({address})"),
            (None, Some(flag)) => write!(f, " ({} allows it)", Plain(flag)),
            (None, None) => Ok(()),
        }
    }
}

/// A user's or a file's name between quotes, if it is known and not empty.
fn name(f: &mut fmt::Formatter<'_>, before: &str, name: Option<&str>) -> fmt::Result {
    match name {
        Some(name) if !name.is_empty() => write!(f, "{before}\"{}\"", Quoted(name)),
        _ => Ok(()),
    }
}

/// A text without what would end a line or act on a terminal.
pub(in super::super) struct Plain<'a>(pub(in super::super) &'a str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match is_plain(c) {
            false => write!(f, "{}", c.escape_debug()),
            true => f.write_char(c),
        })
    }
}

/// The same for a text between double quotes.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '"' | '\\' => write!(f, "\\{c}"),
            c if is_plain(c) => f.write_char(c),
            c => write!(f, "{}", c.escape_unicode()),
        })
    }
}

/// Neither a control character nor one that changes the direction of text, nor a line separator.
fn is_plain(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && !turns && !matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// One record of each kind.
    fn all() -> Vec<What> {
        let ip: IpAddr = "10.0.0.2".parse().unwrap();
        let at = SocketAddr::new(ip, 5000);
        let text = || "x".to_owned();
        vec![
            What::SessionStart { joined: true },
            What::SessionEnd {
                cause: text(),
                seconds: 1.5,
            },
            What::Reading { why: Some(text()) },
            What::Login { user: Some(text()) },
            What::LoginRefused {
                user: None,
                reply: 530,
            },
            What::Transfer(Box::default()),
            What::Refused(Box::default()),
            What::Limit { why: text() },
            What::Unused {
                from: ip,
                to: at,
                land: at,
            },
            What::RangeOpen {
                from: ip,
                to: ip,
                ports: text(),
            },
            What::RangeClose {
                from: ip,
                to: ip,
                why: text(),
            },
            What::RulesRestored {
                missing: vec![text()],
            },
            What::EventsMissed {},
            What::Start {
                version: text(),
                pid: 1,
                notes: vec![text()],
            },
            What::TookOver {
                predecessor: Some(1),
                handover: true,
                rules: 1,
            },
            What::Addresses {
                came: vec![ip],
                went: vec![ip],
            },
            What::Stop { handover: true },
            What::Reload { what: text() },
        ]
    }

    fn record(what: What) -> Record {
        Record {
            seq: 1,
            time: Timestamp::UNIX_EPOCH,
            session: None,
            client: None,
            server: None,
            what,
        }
    }

    #[test]
    fn every_kind_and_field_is_documented_and_read_back() {
        let documented = include_str!("../../../docs/events.md");
        let kinds: Vec<_> = all().iter().map(What::kind).collect();
        assert_eq!(kinds, KINDS);
        for what in all() {
            let record = record(what);
            let json = serde_json::to_value(&record).unwrap();
            assert_eq!(json["kind"], record.what.kind());
            let Value::Object(fields) = &json else {
                panic!("{json}");
            };
            for name in fields.keys() {
                assert!(
                    documented.contains(&format!("`{name}`")),
                    "{name} of {json}"
                );
            }
            let kind = format!("`{}`", record.what.kind());
            assert!(documented.contains(&kind), "{kind}");
            assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record);
        }
    }

    #[test]
    fn the_fields_are_a_contract() {
        let names = |what| {
            let json = serde_json::to_value(record(what)).unwrap();
            let mut names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
            names.sort_unstable();
            names.join(" ")
        };
        assert_eq!(
            names(What::Transfer(Box::default())),
            "announced bytes client command complete direction file from kind land mode rate reply \
             rewritten seconds seq server session time tls to user"
        );
        assert_eq!(
            names(What::Refused(Box::default())),
            "address allowed_by client command kind replaced rule seq server session time why"
        );
    }

    #[test]
    fn lines_do_nothing_to_a_terminal() {
        let name = "a\n\x1b[2J\u{202e}\"\u{2028}b".to_owned();
        let user = Some(name.clone());
        let refused = Refused {
            command: name.clone(),
            why: name,
            ..Refused::default()
        };
        for what in [What::Login { user }, What::Refused(Box::new(refused))] {
            let line = record(what).to_string();
            assert!(
                line.chars().all(|c| c.is_ascii() && !c.is_control()),
                "{line}"
            );
        }
    }
}
