//! What a person may choose, as checked values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Serialize;

use super::events::EventsConfig;
use crate::engine::{self, Marks};
use crate::firewall::{Inside, Steering};
use crate::ftp::nat64::Prefix;
use crate::ftp::policy::Policy;
use crate::net::{Mark, PortRange};
use crate::pinholes::{PlaneConfig, PlaneLimits, TlsRange};

/// All that the daemon goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which packets are looked at. Nothing inside and not local: to be derived from the host's
    /// rules.
    pub steering: Steering,
    /// Addresses to announce where conntrack can't know them.
    pub advertise: Vec<AdvertiseChoice>,
    /// The public ports of data connections to published servers; `None` keeps the announced ones.
    pub data_ports: Option<PortRange>,
    /// The prefixes by which IPv6-only clients reach IPv4-only servers.
    pub nat64: Vec<Prefix>,
    /// What puts pinholes into the kernel.
    pub backend: BackendChoice,
    /// Who puts the steering rules into place.
    pub rules: RulesMode,
    /// What is done about TLS.
    pub tls: Tls,
    /// How long a range that TLS sessions have stays open while nothing comes from the client.
    pub tls_idle: Duration,
    /// Those of the control ports on which TLS is spoken from the first byte.
    pub implicit_ports: Vec<u16>,
    /// What FTP sessions may do.
    pub policy: Policy,
    /// How long a pinhole waits for its connection.
    pub deadline: Duration,
    /// How long the rules stay for a successor when the daemon hands over; zero: they don't.
    pub handover: Duration,
    /// Whether to take the place of a daemon that runs.
    pub takeover: bool,
    /// The bit of control connections' marks by which they may be joined in their middle.
    pub resume_mark: Mark,
    /// Where what a successor must know is kept.
    pub state: StateChoice,
    /// Whether rewritten announcements keep their length where that is possible.
    pub keep_length: bool,
    /// Networks whose control connections pass unread.
    pub bypass: Vec<IpNet>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
    /// How much of each there may be.
    pub limits: Limits,
    /// What is recorded, and where.
    pub events: EventsConfig,
}

impl Config {
    /// The bits of control connections' marks.
    #[must_use]
    pub fn marks(&self) -> Marks {
        Marks {
            even: self.resume_mark.bit(),
            uneven: self.steering.uneven_mark.bit(),
        }
    }
}

/// What is limited, for all workers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Sessions and pinholes.
    #[serde(flatten)]
    pub plane: PlaneLimits,
    /// Bytes of a command line that is acted on: [`Policy::max_command`].
    pub command_line: usize,
    /// Bytes of a reply line in which an address is looked for: [`Policy::max_reply`].
    pub reply_line: usize,
    /// Commands that wait for their reply at once: [`Policy::max_pipelined`].
    pub pipelined: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let policy = Policy::default();
        Self {
            plane: PlaneLimits::default(),
            command_line: policy.max_command,
            reply_line: policy.max_reply,
            pipelined: policy.max_pipelined,
        }
    }
}

/// What puts pinholes into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// What the host has: nf_tables before iptables.
    #[default]
    Auto,
    /// nf_tables, over netlink.
    Nft,
    /// iptables, a few rules per pinhole.
    Iptables,
}

/// Who puts the steering rules into place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RulesMode {
    /// The daemon, for as long as it runs.
    #[default]
    Manage,
    /// Somebody else, going by `ftpalg rules print`.
    External,
}

/// What is done about control connections that turn to TLS (RFC 4217).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// They pass, unread.
    #[default]
    Pass,
    /// `AUTH` is refused, so that clients fall back.
    Deny,
    /// They pass, and their client reaches this range of the server's ports.
    Range(PortRange),
}

/// Where what a successor must know of control connections is kept.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum StateChoice {
    /// In [`STATE_DIRECTORY`], if that can be had.
    #[default]
    Auto,
    /// Nowhere.
    Nowhere,
    /// In this directory.
    Directory(PathBuf),
    /// In [`STATE_DIRECTORY`], and where another gateway finds it: the URL, which may have a password.
    Shared(String),
}

/// The directory where none is given.
pub const STATE_DIRECTORY: &str = "/run/ftpalg";

impl StateChoice {
    /// The store that another gateway reads, too.
    #[must_use]
    pub fn store(&self) -> Option<&str> {
        match self {
            Self::Shared(url) => Some(url),
            _ => None,
        }
    }

    /// The directory, if there is to be one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Auto | Self::Shared(_) => Some(Path::new(STATE_DIRECTORY)),
            Self::Nowhere => None,
            Self::Directory(directory) => Some(directory),
        }
    }
}

impl fmt::Debug for StateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Without user and password.
impl fmt::Display for StateChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.store(), self.directory()) {
            (Some(url), _) => {
                let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                write!(f, "{scheme}://{host}")
            }
            (None, Some(directory)) => directory.display().fmt(f),
            (None, None) => f.write_str("none"),
        }
    }
}

impl FromStr for StateChoice {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "none" => Ok(Self::Nowhere),
            _ if text.starts_with('/') => Ok(Self::Directory(text.into())),
            _ if text.contains("://") => Ok(Self::Shared(text.to_owned())),
            _ => Err(BadValue(
                "write a directory, with all of its path, or valkey://HOST, or none".into(),
            )),
        }
    }
}

/// The address that is announced instead of the one that conntrack knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdvertiseChoice {
    /// For endpoints with this address only; `None` for all others.
    pub inside: Option<IpAddr>,
    /// What their peers read.
    pub public: PublicName,
}

/// An address, or the name of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicName {
    /// As it is.
    Address(IpAddr),
    /// A host name, to be looked up.
    Name(String),
}

/// Text that isn't a value: what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadValue(pub(super) String);

/// Reads one of a few words.
macro_rules! words {
    ($type:ty: $($word:literal => $value:expr),+) => {
        impl FromStr for $type {
            type Err = BadValue;

            fn from_str(text: &str) -> Result<Self, BadValue> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(BadValue(format!("write one of {}", [$($word),+].join(", ")))),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(if *self == $value {
                    return f.write_str($word);
                })+
                Ok(())
            }
        }
    };
}

words!(BackendChoice: "auto" => Self::Auto, "nft" => Self::Nft, "iptables" => Self::Iptables);
words!(RulesMode: "manage" => Self::Manage, "external" => Self::External);

/// Reads a TCP port: decimal digits only, 1 to 65535.
///
/// # Errors
/// Says what a port is.
pub fn port(text: &str) -> Result<u16, BadValue> {
    decimal(text)
        .filter(|&p| p != 0)
        .ok_or_else(|| BadValue("write a port from 1 to 65535".into()))
}

/// Reads a number of decimal digits only: no sign, no space.
pub(crate) fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

impl FromStr for Tls {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        match text {
            "pass" => Ok(Self::Pass),
            "deny" => Ok(Self::Deny),
            _ => match text.strip_prefix("range:") {
                Some(range) => range.parse().map(Self::Range).map_err(BadValue),
                None => Err(BadValue("write one of pass, deny, range:A-B".into())),
            },
        }
    }
}

impl fmt::Display for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Deny => f.write_str("deny"),
            Self::Range(range) => write!(f, "range:{range}"),
        }
    }
}

impl FromStr for AdvertiseChoice {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (inside, public) = match text.split_once('=') {
            Some((inside, public)) => (Some(inside), public),
            None => (None, text),
        };
        let inside: Option<IpAddr> = inside
            .map(|a| {
                a.parse().map_err(|_| {
                    BadValue("write INSIDE=PUBLIC with an address before the equals sign".into())
                })
            })
            .transpose()?;
        let public: PublicName = public.parse()?;
        if let (Some(inside), PublicName::Address(public)) = (inside, &public)
            && inside.is_ipv4() != public.is_ipv4()
        {
            return Err(BadValue("both addresses must be IPv4, or both IPv6".into()));
        }
        Ok(Self { inside, public })
    }
}

impl fmt::Display for AdvertiseChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(inside) = self.inside {
            write!(f, "{inside}=")?;
        }
        match &self.public {
            PublicName::Address(addr) => addr.fmt(f),
            PublicName::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for PublicName {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        if let Ok(addr) = text.parse::<IpAddr>() {
            if addr.is_unspecified() || addr.is_multicast() {
                return Err(BadValue(format!("nobody can be reached at {addr}")));
            }
            return Ok(Self::Address(addr));
        }
        // RFC 1123 §2.1; all digits would be a mistyped address.
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        let digits = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if text.len() <= 253 && !digits && text.split('.').all(label) {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(BadValue(
            "write the public address like 203.0.113.10, or a host name".into(),
        ))
    }
}

impl Config {
    /// What clients under TLS reach at their server, if they do.
    #[must_use]
    pub fn tls_range(&self) -> Option<TlsRange> {
        match self.tls {
            Tls::Range(ports) => Some(TlsRange {
                ports,
                idle: self.tls_idle,
            }),
            Tls::Pass | Tls::Deny => None,
        }
    }

    /// What engines go by. `advertise`: what is announced where conntrack can't know it.
    #[must_use]
    pub fn engine(&self, advertise: Vec<engine::Advertise>) -> engine::Config {
        engine::Config {
            workers: self.steering.queues.count,
            policy: Arc::new(Policy {
                max_command: self.limits.command_line,
                max_reply: self.limits.reply_line,
                max_pipelined: self.limits.pipelined,
                ..self.policy.clone()
            }),
            // The plane admits as many as there may be; any worker may get all of them, and those that
            // ended linger for a while.
            max_flows: self.limits.plane.sessions.saturating_mul(2),
            advertise,
            marks: Some(self.marks()),
            keep_length: self.keep_length,
            bypass: self.bypass.clone(),
            nat64: self.nat64.clone(),
            tls_range: self.tls_range().is_some(),
            control_ports: self.steering.ports.clone(),
            implicit_ports: self.implicit_ports.clone(),
            ..engine::Config::default()
        }
    }

    /// What the plane goes by.
    #[must_use]
    pub fn plane(&self) -> PlaneConfig {
        PlaneConfig {
            data_ports: self.data_ports,
            deadline: self.deadline,
            limits: self.limits.plane,
            mark: self.steering.mark,
            tls_range: self.tls_range(),
        }
    }

    /// What is announced where conntrack can't know it, without looking names up.
    ///
    /// # Errors
    /// The first host name.
    pub fn advertised_addresses(&self) -> Result<Vec<engine::Advertise>, String> {
        let one = |choice: &AdvertiseChoice| match &choice.public {
            PublicName::Address(public) => Ok(engine::Advertise {
                inside: choice.inside,
                public: *public,
            }),
            PublicName::Name(name) => Err(name.clone()),
        };
        self.advertise.iter().map(one).collect()
    }

    /// What doesn't go together.
    #[must_use]
    pub fn conflicts(&self) -> Vec<Conflict> {
        let mut conflicts = self.ranges_and_ports();
        if let (Tls::Deny, Some(port)) = (self.tls, self.implicit_ports.first()) {
            let why = format!(
                "deny contradicts --implicit-port {port}, where nothing but TLS is spoken; \
                 leave one of them out"
            );
            conflicts.push(Conflict::new("tls", why));
        }
        conflicts.extend(self.advertised());
        conflicts
    }

    fn ranges_and_ports(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let range = self.tls_range().map(|range| range.ports);
        for (setting, prefix, range) in [
            ("data-ports", "", self.data_ports),
            ("tls", "range:", range),
        ] {
            let Some(range) = range else { continue };
            let ports = &self.steering.ports;
            for port in ports.iter().filter(|&&port| range.contains(port)) {
                let why = format!(
                    "{prefix}{range} contains the control port {port}; choose a range without it"
                );
                conflicts.push(Conflict::new(setting, why));
            }
        }
        if let (Some(data), Some(tls)) = (self.data_ports, range)
            && data.overlaps(tls)
        {
            let why = format!("{data} and --tls range:{tls} overlap; choose two separate ranges");
            conflicts.push(Conflict::new("data-ports", why));
        }
        conflicts
    }

    fn advertised(&self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        for (i, one) in self.advertise.iter().enumerate() {
            let of_family = |inside: &Inside| match (inside, &one.public) {
                (Inside::Net(net), PublicName::Address(public)) => {
                    net.addr().is_ipv4() == public.is_ipv4()
                }
                _ => true,
            };
            let inside = &self.steering.inside;
            if !self.steering.local && !inside.is_empty() && !inside.iter().any(of_family) {
                let why = format!(
                    "{one} is of another address family than all of --inside; give one of the \
                     same family"
                );
                conflicts.push(Conflict::new("advertise", why));
            }
            for other in self.advertise.iter().skip(i + 1) {
                if one.rivals(other) {
                    let why = format!("{one} contradicts {other}, for the same side; keep one");
                    conflicts.push(Conflict::new("advertise", why));
                }
            }
        }
        conflicts
    }
}

/// A setting that doesn't go together with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The name of its flag.
    pub setting: &'static str,
    /// Its value, what is wrong with it, and how to mend it, in one line.
    pub why: String,
}

impl Conflict {
    pub(crate) fn new(setting: &'static str, why: String) -> Self {
        Self { setting, why }
    }
}

/// As a flag.
impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{} {}", self.setting, self.why)
    }
}

impl AdvertiseChoice {
    /// Whether both say something about the same endpoints.
    fn rivals(&self, other: &Self) -> bool {
        let family = |a: &Self| match &a.public {
            PublicName::Address(addr) => Some(addr.is_ipv4()),
            PublicName::Name(_) => None,
        };
        self.inside == other.inside && (self.inside.is_some() || family(self) == family(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_digits_in_range() {
        assert_eq!(port("21"), Ok(21));
        assert_eq!(port("65535"), Ok(65535));
        for bad in [
            "", "0", "65536", "+21", " 21", "21 ", "0x15", "ftp", "-1", "２１",
        ] {
            assert!(port(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ranges() {
        let range: PortRange = "30000-30009".parse().unwrap();
        assert_eq!((range.first(), range.last()), (30000, 30009));
        assert!(range.contains(30009) && !range.contains(30010));
        assert_eq!(
            "8080-8080".parse::<PortRange>().unwrap().to_string(),
            "8080-8080"
        );
        for bad in [
            "", "-", "1-", "-1", "0-1", "2-1", "1-2-3", "1:2", "1-65536", "a-b",
        ] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?}");
        }
        let overlap =
            |a: &str, b: &str| a.parse::<PortRange>().unwrap().overlaps(b.parse().unwrap());
        assert!(overlap("10-20", "20-30"));
        assert!(overlap("10-40", "20-30"));
        assert!(!overlap("10-19", "20-30"));
    }

    #[test]
    fn tls_modes() {
        for text in ["pass", "deny", "range:990-995"] {
            assert_eq!(text.parse::<Tls>().unwrap().to_string(), text);
        }
        for bad in ["", "Pass", "range", "range:", "range:0", "range:9-8"] {
            assert!(bad.parse::<Tls>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn advertised_addresses() {
        for text in [
            "203.0.113.10",
            "10.0.0.2=203.0.113.10",
            "fd00::2=2001:db8::1",
            "10.0.0.2=ftp.example.org",
            "ftp.example.org",
        ] {
            assert_eq!(text.parse::<AdvertiseChoice>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "=203.0.113.10",
            "10.0.0.2=",
            "eth0=203.0.113.10",
            "10.0.0.2=2001:db8::1",
            "0.0.0.0",
            "224.0.0.1",
            "203.0.113.256",
            "203.0.113",
            "a b",
            "-x.example",
            "x..y",
            "203.0.113.10/24",
        ] {
            assert!(bad.parse::<AdvertiseChoice>().is_err(), "{bad:?}");
        }
    }
}
