//! The choices of `run` and `rules`, from flags and from a configuration file.
//!
//! One structure serves for both: the keys of the file (TOML) are the names of the flags. A flag on
//! the command line wins over the file. A flag that can be repeated replaces the file's whole list.

mod again;
mod file;
mod limits;
mod session;
mod text;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use serde::Deserialize;

use crate::daemon::config::{
    self, AdvertiseChoice, BackendChoice, Config, RulesMode, StateChoice, Tls,
};
use crate::daemon::lock;
use crate::firewall::{Inside, Queues, Steering};
use crate::ftp::policy::Policy;
use crate::net::{Family, Mark, PortRange, parse_network};

use limits::Limit;
use session::{DenyPorts, StrictChoice, yes_or_no, yes_or_no_in_file};

/// The control port where none is given.
const DEFAULT_PORT: u16 = 21;
/// The first queue's number where none is given.
const DEFAULT_QUEUE: u16 = 2121;
/// The most queues: far more than the control connections of one machine can use.
const MAX_QUEUES: u16 = 64;
/// How long a pinhole waits, in seconds, where nothing is given.
const DEFAULT_DEADLINE: u64 = 60;
/// The longest that it can wait, in seconds.
const MAX_DEADLINE: u64 = 3600;
/// How long the rules stay for a successor, in seconds, where nothing is given.
const DEFAULT_HANDOVER: u64 = 10;
/// The longest that they can stay, in seconds.
const MAX_HANDOVER: u64 = 600;
/// How long a range stays open while nothing comes from its client, in seconds, where nothing is
/// given.
const DEFAULT_TLS_IDLE: u64 = 300;
/// The longest that it can do so, in seconds: a day.
const MAX_TLS_IDLE: u64 = 86_400;

/// Everything that can be chosen; nothing is filled in yet.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct Settings {
    /// The private side: an interface, or the network behind one. May be repeated
    /// [default, without --local: what the host's DNAT and MASQUERADE rules tell]
    #[arg(long, value_name = "IFACE|CIDR")]
    #[serde(deserialize_with = "file::many")]
    inside: Vec<Inside>,

    /// Serve FTP servers and clients on this host itself, too [default: no]
    #[arg(long)]
    local: bool,

    /// A control port, as the inside sees it. May be repeated [default: 21]
    #[arg(long, value_name = "PORT", value_parser = config::port)]
    #[serde(deserialize_with = "file::ports")]
    port: Vec<u16>,

    /// Read these settings from a file first (a pipe, or `-` for the standard input, will do), and a
    /// file again at SIGHUP: TOML, its keys are the names of these flags [default: none]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Announce this address (or host name), where NAT further out hides it; with INSIDE= only for
    /// endpoints with that address. May be repeated [default: the address that conntrack knows]
    #[arg(long, value_name = "[INSIDE=]PUBLIC")]
    #[serde(deserialize_with = "file::many")]
    advertise: Vec<AdvertiseChoice>,

    /// The public ports of data connections to published servers [default: those that the
    /// servers announce]
    #[arg(long, value_name = "A-B")]
    #[serde(deserialize_with = "file::one")]
    data_ports: Option<PortRange>,

    /// What opens the ports of data connections: auto, nft, iptables [default: auto]
    #[arg(long, value_name = "BACKEND")]
    #[serde(deserialize_with = "file::one")]
    backend: Option<BackendChoice>,

    /// Who puts the steering rules into place: manage (ftpalg does, while it runs) or external
    /// (you do: see `ftpalg rules print`) [default: manage]
    #[arg(long, value_name = "WHO")]
    #[serde(deserialize_with = "file::one")]
    rules: Option<RulesMode>,

    /// What happens to control packets while they can't be looked at: closed (they are dropped)
    /// or open (they pass) [default: closed]
    #[arg(long, value_name = "closed|open")]
    #[serde(deserialize_with = "file::one")]
    fail: Option<Fail>,

    /// What happens to sessions that turn to TLS: pass, deny, or range:A-B (pass, and open these
    /// ports of the server to their client, for as long as they live) [default: pass]
    #[arg(long, value_name = "MODE")]
    #[serde(deserialize_with = "file::one")]
    tls: Option<Tls>,

    /// How many seconds the range of --tls range:A-B stays open while nothing comes from the
    /// client: 1 to 86400. It opens again with the client's next command [default: 300]
    #[arg(long, value_name = "SECS", value_parser = number::<u64>)]
    #[serde(deserialize_with = "file::one")]
    tls_idle: Option<u64>,

    /// A control port on which TLS is spoken from the first byte (implicit FTPS), as the inside
    /// sees it. May be repeated [default: none]
    #[arg(long, value_name = "PORT", value_parser = config::port)]
    #[serde(deserialize_with = "file::ports")]
    implicit_port: Vec<u16>,

    /// Refuse what isn't strictly FTP: everything, or by these rules: order, unknown-verbs,
    /// long-lines, control-bytes, before-greeting, addresses, passive-ports (a server inside may not
    /// announce what --deny-ports names), failed-logins, and only if named active-late (a data port
    /// opens with the transfer command) [default: none]
    #[arg(
        long,
        value_name = "RULE,…",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    strict: Option<StrictChoice>,

    /// A network whose addresses a client may name in PORT and EPRT besides its own (for transfers
    /// between two servers). May be repeated [default: none]
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    #[serde(deserialize_with = "file::networks")]
    allow_foreign: Vec<IpNet>,

    /// A port or range that a client may not name in PORT and EPRT; `default` stands for well-known
    /// services, `none` for no more than the ports below 1024. May be repeated [default: default]
    #[arg(long, value_name = "PORT|A-B")]
    #[serde(deserialize_with = "file::some")]
    deny_ports: Option<Vec<DenyPorts>>,

    /// Let servers inside announce ports below 1024 for passive data connections, which otherwise are
    /// refused: services live there [default: no]
    #[arg(long)]
    low_ports: bool,

    /// A limit: sessions, sessions-per-client, pinholes, pinholes-per-client, pinholes-per-session,
    /// pinholes-per-minute, pinholes-per-client-per-minute, command-line, reply-line or pipelined.
    /// May be repeated; in the file a table [limits] [default: see docs/reference.md]
    #[arg(long = "limit", value_name = "NAME=N")]
    #[serde(deserialize_with = "limits::table")]
    limits: Vec<Limit>,

    /// Whether data connections need a login before them: yes or no [default: yes]
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no)]
    #[serde(deserialize_with = "yes_or_no_in_file")]
    require_login: Option<bool>,

    /// How many queues, with a thread each, share the sessions: 1 to 64 [default: 1]
    #[arg(long, value_name = "N", value_parser = number::<u16>)]
    #[serde(deserialize_with = "file::one")]
    queues: Option<u16>,

    /// The number of the first queue [default: 2121]
    #[arg(long, value_name = "BASE", value_parser = number::<u16>)]
    #[serde(deserialize_with = "file::one")]
    queue_num: Option<u16>,

    /// The bit of the connection mark that data connections carry, as a mask
    /// [default: 0x40000000]
    #[arg(long, value_name = "BIT", value_parser = mark)]
    #[serde(deserialize_with = "file::mark")]
    mark: Option<Mark>,

    /// The bit of the connection mark of control connections that a later ftpalg may go on with, as a
    /// mask [default: 0x20000000]
    #[arg(long, value_name = "BIT", value_parser = mark)]
    #[serde(deserialize_with = "file::mark")]
    resume_mark: Option<Mark>,

    /// The bit of the connection mark of control connections that have a sequence delta, as a mask
    /// [default: 0x10000000]
    #[arg(long, value_name = "BIT", value_parser = mark)]
    #[serde(deserialize_with = "file::mark")]
    uneven_mark: Option<Mark>,

    /// Where ftpalg keeps what a later one must know of control connections with a sequence delta: a
    /// directory, none, or a store that another gateway reads, too (valkey://HOST)
    /// [default: /run/ftpalg]
    #[arg(long, value_name = "DIR|none|URL")]
    #[serde(deserialize_with = "file::one")]
    state: Option<StateChoice>,

    /// Whether rewritten announcements keep the length of their line wherever that is possible, so
    /// that a later ftpalg, or another gateway, can go on with the connection: prefer or off
    /// [default: prefer]
    #[arg(long, value_name = "prefer|off")]
    #[serde(deserialize_with = "file::one")]
    keep_length: Option<KeepLength>,

    /// How many seconds an announced data connection is waited for: 1 to 3600 [default: 60]
    #[arg(long, value_name = "SECS", value_parser = number::<u64>)]
    #[serde(deserialize_with = "file::one")]
    deadline: Option<u64>,

    /// How many seconds the rules stay for a successor after SIGUSR2: 0 to 600 [default: 10]
    #[arg(long, value_name = "SECS", value_parser = number::<u64>)]
    #[serde(deserialize_with = "file::one")]
    handover: Option<u64>,
}

/// What happens to packets that nobody looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fail {
    /// They are dropped.
    #[default]
    Closed,
    /// They pass.
    Open,
}

impl FromStr for Fail {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err("write one of closed, open"),
        }
    }
}

/// Whether announcements keep the length of their line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum KeepLength {
    /// Wherever that is possible.
    #[default]
    Prefer,
    /// No more than by chance.
    Off,
}

impl FromStr for KeepLength {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "prefer" => Ok(Self::Prefer),
            "off" => Ok(Self::Off),
            _ => Err("write one of prefer, off"),
        }
    }
}

impl Settings {
    /// The flags, with what the file of `--config` says where they say nothing, checked.
    ///
    /// # Errors
    /// One line: what is wrong and how to mend it.
    pub(crate) fn resolve(self) -> Result<Config, String> {
        match self.config.clone() {
            Some(path) => self.over(Self::from_file(&path)?).config(),
            None => self.config(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// One line: where it is wrong, or that it can't be read.
    pub(crate) fn from_file(path: &Path) -> Result<Self, String> {
        let name = path.display().to_string();
        let text = text::read(path)
            .map_err(|e| format!("can't read {name}: {e}; name a readable file with --config"))?;
        toml::from_str(&text).map_err(|e| mistake(&name, &text, &e))
    }

    /// The same settings, with `--local`.
    pub(crate) fn with_local(self) -> Self {
        Self {
            local: true,
            ..self
        }
    }

    /// These settings, with those of `base` where they say nothing.
    fn over(self, base: Self) -> Self {
        Self {
            inside: or(self.inside, base.inside),
            local: self.local || base.local,
            port: or(self.port, base.port),
            config: self.config,
            advertise: or(self.advertise, base.advertise),
            data_ports: self.data_ports.or(base.data_ports),
            backend: self.backend.or(base.backend),
            rules: self.rules.or(base.rules),
            fail: self.fail.or(base.fail),
            tls: self.tls.or(base.tls),
            tls_idle: self.tls_idle.or(base.tls_idle),
            implicit_port: or(self.implicit_port, base.implicit_port),
            strict: match (self.strict, base.strict) {
                (Some(own), Some(base)) => Some(own.over(base)),
                (own, base) => own.or(base),
            },
            allow_foreign: or(self.allow_foreign, base.allow_foreign),
            deny_ports: self.deny_ports.or(base.deny_ports),
            low_ports: self.low_ports || base.low_ports,
            limits: [base.limits, self.limits].concat(),
            require_login: self.require_login.or(base.require_login),
            queues: self.queues.or(base.queues),
            queue_num: self.queue_num.or(base.queue_num),
            mark: self.mark.or(base.mark),
            resume_mark: self.resume_mark.or(base.resume_mark),
            uneven_mark: self.uneven_mark.or(base.uneven_mark),
            state: self.state.or(base.state),
            keep_length: self.keep_length.or(base.keep_length),
            deadline: self.deadline.or(base.deadline),
            handover: self.handover.or(base.handover),
        }
    }

    /// The configuration, with the defaults filled in, checked.
    ///
    /// # Errors
    /// One line: what is wrong and how to mend it.
    pub(crate) fn config(self) -> Result<Config, String> {
        let first = self.queue_num.unwrap_or(DEFAULT_QUEUE);
        let count = within("--queues", self.queues.unwrap_or(1), MAX_QUEUES, "")?;
        if first.checked_add(count - 1).is_none() {
            return Err(format!(
                "--queues {count} from --queue-num {first} on end above 65535; choose a lower --queue-num"
            ));
        }
        let queues = Queues { first, count };
        if queues.numbers().contains(&lock::QUEUE) {
            return Err(format!(
                "queue {} is ftpalg's lock against a second one; choose another --queue-num",
                lock::QUEUE
            ));
        }
        let deadline = self.deadline.unwrap_or(DEFAULT_DEADLINE);
        let deadline = within("--deadline", deadline, MAX_DEADLINE, " seconds")?;
        let handover = self.handover.unwrap_or(DEFAULT_HANDOVER);
        if handover > MAX_HANDOVER {
            return Err(format!(
                "--handover {handover} is out of range; choose 0 to {MAX_HANDOVER} seconds"
            ));
        }
        let tls_idle = self.tls_idle.unwrap_or(DEFAULT_TLS_IDLE);
        let tls_idle = within("--tls-idle", tls_idle, MAX_TLS_IDLE, " seconds")?;
        let plain = or(self.port, vec![DEFAULT_PORT]);
        let implicit_ports = unique(self.implicit_port);
        if let Some(port) = implicit_ports.iter().find(|port| plain.contains(port)) {
            return Err(format!(
                "port {port} can't be a --port and an --implicit-port; choose one of them"
            ));
        }
        let mark = self.mark.unwrap_or_default();
        let resume_mark = self.resume_mark.unwrap_or(Mark::RESUME);
        let uneven_mark = self.uneven_mark.unwrap_or(Mark::UNEVEN);
        let named = [
            ("--mark", mark),
            ("--resume-mark", resume_mark),
            ("--uneven-mark", uneven_mark),
        ];
        for (at, (one, bit)) in named.iter().enumerate() {
            if let Some((other, _)) = named.iter().skip(at + 1).find(|(_, other)| other == bit) {
                return Err(format!(
                    "{one} and {other} are both {:#x}; choose a bit for each",
                    bit.bit()
                ));
            }
        }
        let config = Config {
            steering: Steering {
                inside: separate(self.inside)?,
                local: self.local,
                ports: unique([plain, implicit_ports.clone()].concat()),
                queues,
                fail_open: self.fail.unwrap_or_default() == Fail::Open,
                mark,
                uneven_mark,
                families: Family::ALL.to_vec(),
            },
            advertise: self.advertise,
            data_ports: self.data_ports,
            backend: self.backend.unwrap_or_default(),
            rules: self.rules.unwrap_or_default(),
            tls: self.tls.unwrap_or_default(),
            tls_idle: Duration::from_secs(tls_idle),
            implicit_ports,
            policy: Policy {
                require_login: self.require_login.unwrap_or(true),
                deny_ports: DenyPorts::ports(self.deny_ports),
                low_ports: self.low_ports,
                allow_foreign: self.allow_foreign,
                deny_tls: self.tls == Some(Tls::Deny),
                strict: self.strict.unwrap_or_default().rules(),
                ..Policy::default()
            },
            deadline: Duration::from_secs(deadline),
            handover: Duration::from_secs(handover),
            takeover: false,
            resume_mark,
            state: self.state.unwrap_or_default(),
            keep_length: self.keep_length.unwrap_or_default() == KeepLength::Prefer,
            limits: Limit::apply(&self.limits),
        };
        config.check()?;
        Ok(config)
    }
}

/// One line: what is wrong in a file's text, and where.
fn mistake(name: &str, text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(1, |t| t.matches('\n').count() + 1);
    let what = error.message().replace('\n', " ");
    format!("{name}:{line}: {what}; mend that line (keys are the names of run's flags)")
}

/// A list that is given, or the other one.
fn or<T>(own: Vec<T>, base: Vec<T>) -> Vec<T> {
    if own.is_empty() { base } else { own }
}

/// A number from 1 on.
fn within<T>(flag: &str, number: T, last: T, unit: &str) -> Result<T, String>
where
    T: Copy + PartialOrd + From<u8> + fmt::Display,
{
    if (T::from(1)..=last).contains(&number) {
        return Ok(number);
    }
    Err(format!(
        "{flag} {number} is out of range; choose 1 to {last}{unit}"
    ))
}

/// Each once, in the order given.
fn unique<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    list.into_iter().fold(Vec::new(), |mut kept, one| {
        if !kept.contains(&one) {
            kept.push(one);
        }
        kept
    })
}

/// Each once; networks that contain one another are most likely a mistake.
fn separate(inside: Vec<Inside>) -> Result<Vec<Inside>, String> {
    let inside = unique(inside);
    for (i, one) in inside.iter().enumerate() {
        for other in inside.iter().skip(i + 1) {
            if let (Inside::Net(a), Inside::Net(b)) = (one, other)
                && (a.contains(b) || b.contains(a))
            {
                return Err(format!(
                    "--inside {a} and --inside {b} overlap; give the wider one only"
                ));
            }
        }
    }
    Ok(inside)
}

/// A number of decimal digits.
fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    config::decimal(text).ok_or("write a number in decimal digits, in range")
}

/// A mask of one bit.
fn mark(text: &str) -> Result<Mark, &'static str> {
    let number = match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u32::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None => number(text).ok(),
    };
    number
        .and_then(Mark::new)
        .ok_or("write a mask of exactly one bit, like 0x40000000")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::policy::Strict;

    fn file(text: &str) -> Result<Settings, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn nothing_chosen_gives_the_documented_defaults() {
        let config = Settings::default().config().unwrap();
        assert_eq!(config.steering.ports, [21]);
        assert_eq!(
            config.steering.queues,
            Queues {
                first: 2121,
                count: 1
            }
        );
        assert_eq!(config.steering.mark.bit(), 0x4000_0000);
        assert!(!config.steering.fail_open && !config.steering.local);
        assert_eq!(config.policy, Policy::default());
        assert_eq!(config.deadline, Duration::from_secs(60));
        assert_eq!(config.handover, Duration::from_secs(10));
        assert_eq!(config.tls, Tls::Pass);
        assert_eq!(config.tls_idle, Duration::from_secs(300));
        assert!(config.implicit_ports.is_empty());
        assert_eq!(config.backend, BackendChoice::Auto);
        assert_eq!(config.rules, RulesMode::Manage);
        assert_eq!(config.data_ports, None);
    }

    #[test]
    fn a_file_has_the_flags_names() {
        let config = file(
            r#"
            inside = ["eth1", "10.0.0.0/24"]
            local = true
            port = [21, 2121]
            advertise = "203.0.113.10"
            data-ports = "30000-30009"
            backend = "nft"
            rules = "external"
            fail = "open"
            tls = "range:40000-40009"
            tls-idle = 60
            implicit-port = [990]
            strict = true
            allow-foreign = ["198.51.100.0/24", "2001:db8::1"]
            deny-ports = [3306, "8000-8080"]
            low-ports = true
            require-login = false
            queues = 2
            queue-num = 7
            mark = 0x100
            deadline = 5
            handover = 0
            [limits]
            sessions-per-client = 7
            "#,
        )
        .unwrap()
        .config()
        .unwrap();
        assert_eq!(config.steering.inside.len(), 2);
        assert_eq!(config.steering.ports, [21, 2121, 990]);
        assert_eq!(config.implicit_ports, [990]);
        assert_eq!(config.tls_idle, Duration::from_secs(60));
        assert_eq!(config.steering.mark.bit(), 0x100);
        assert_eq!(config.steering.queues, Queues { first: 7, count: 2 });
        assert!(config.steering.fail_open && config.steering.local);
        assert_eq!(config.policy.strict, Strict::all());
        assert!(!config.policy.require_login && !config.policy.deny_tls);
        assert!(config.policy.low_ports);
        assert_eq!(config.policy.allow_foreign.len(), 2);
        assert_eq!(
            config.policy.deny_ports,
            [0..=1023, 3306..=3306, 8000..=8080]
        );
        assert_eq!(config.deadline, Duration::from_secs(5));
        assert_eq!(config.handover, Duration::ZERO);
        assert_eq!(config.limits.plane.sessions_per_client, 7);
        assert_eq!(config.limits.plane.sessions, 65_536);
        assert_eq!(config.data_ports.unwrap().to_string(), "30000-30009");
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        for (text, part) in [
            ("insid = \"eth1\"", "`insid`"),
            ("port = 0", "1 to 65535"),
            ("port = 99999", "1 to 65535"),
            ("port = -21", "1 to 65535"),
            ("port = true", "boolean"),
            ("local = 1", "integer"),
            ("data-ports = \"9-8\"", "bad port range"),
            ("backend = [\"nft\", \"iptables\"]", "only one"),
            ("mark = 3", "one bit"),
            ("config = \"other.toml\"", "`config`"),
            ("strict = \"orders\"", "order, "),
            ("[strict]\nordr = true", "`ordr`"),
            ("deny-ports = [\"9-8\"]", "9-8"),
            ("allow-foreign = \"10.0.0.0/33\"", "10.0.0.0/33"),
            ("require-login = 1", "true or false"),
            ("require-login = \"maybe\"", "yes or no"),
            ("[limits]\nsession = 1", "sessions-per-client"),
            ("[limits]\nsessions = 0", "1 to 1000000"),
            ("limits = 5", "[limits]"),
            ("a = ", ""),
        ] {
            let e = file(text).unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let base = file("port = [21, 2121]\nqueues = 4\nlocal = true").unwrap();
        let flags = file("port = 990\ndeadline = 7").unwrap();
        let config = flags.over(base).config().unwrap();
        assert_eq!(config.steering.ports, [990]);
        assert_eq!(config.steering.queues.count, 4);
        assert!(config.steering.local);
        assert_eq!(config.deadline, Duration::from_secs(7));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, part) in [
            ("data-ports = \"20-30\"", "control port 21"),
            (
                "data-ports = \"100-200\"\ntls = \"range:200-300\"",
                "overlap",
            ),
            ("tls = \"range:20-30\"", "control port 21"),
            ("tls = \"range:900-999\"\nimplicit-port = 990", "port 990"),
            ("tls = \"deny\"\nimplicit-port = 990", "contradicts"),
            ("implicit-port = 21", "choose one"),
            ("tls-idle = 0", "seconds"),
            ("tls-idle = 86401", "seconds"),
            ("inside = [\"10.0.0.0/8\", \"10.1.0.0/16\"]", "overlap"),
            (
                "inside = \"10.0.0.0/8\"\nadvertise = \"2001:db8::1\"",
                "another address family",
            ),
            ("queues = 0", "1 to 64"),
            ("queues = 65", "1 to 64"),
            ("queues = 2\nqueue-num = 65535", "65535"),
            ("queues = 4\nqueue-num = 63390", "lock"),
            ("deadline = 0", "seconds"),
            ("deadline = 3601", "seconds"),
            ("handover = 601", "seconds"),
            (
                "advertise = [\"203.0.113.1\", \"203.0.113.2\"]",
                "contradicts",
            ),
        ] {
            let e = file(text).unwrap().config().unwrap_err();
            assert!(e.contains(part) && !e.contains('\n'), "{text}: {e}");
            assert!(e.contains("; "), "says how to mend it: {e}");
        }
        // One public address per family is fine, and the same network twice, too.
        file("advertise = [\"203.0.113.1\", \"2001:db8::1\"]")
            .unwrap()
            .config()
            .unwrap();
        file("inside = [\"10.0.0.0/8\", \"10.0.0.0/8\"]")
            .unwrap()
            .config()
            .unwrap();
    }

    #[test]
    fn marks_are_one_bit() {
        assert_eq!(mark("0x80000000").unwrap().bit(), 1 << 31);
        assert_eq!(mark("16").unwrap().bit(), 16);
        for bad in [
            "",
            "0",
            "3",
            "0x",
            "0x+1",
            "+1",
            "0x100000000",
            "-1",
            "bit30",
        ] {
            assert!(mark(bad).is_err(), "{bad:?}");
        }
    }
}
