//! The rules for FTP sessions: what is allowed, and what is refused.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// The rules that sessions are held to. The defaults are what a careful administrator would choose
/// without breaking any client that is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// No data connection before the login succeeded. Default: yes.
    pub require_login: bool,
    /// Ports that a client may not name in `PORT`/`EPRT`. Default: [`SERVICE_PORTS`].
    pub deny_ports: Vec<RangeInclusive<u16>>,
    /// A server inside may announce a system port (RFC 6335 §6) for a passive data connection.
    /// Default: no.
    pub low_ports: bool,
    /// Networks whose addresses a client may name besides its own (FXP): address and prefix
    /// length. Default: none.
    pub allow_foreign: Vec<IpNet>,
    /// `AUTH` is refused in place. Clients that don't insist on TLS go on in clear text. Default:
    /// no.
    pub deny_tls: bool,
    /// Stricter rules, which ordinary clients keep. ftpalg doesn't need them. Default: none.
    pub strict: Strict,
    /// Longest command line, in bytes, that is acted on (default 2048: some servers take paths
    /// that long).
    pub max_command: usize,
    /// Longest reply line, in bytes, in which an address is looked for (default 1024).
    pub max_reply: usize,
    /// Commands that may wait for their reply at once (default 256). Beyond that, the oldest is
    /// forgotten.
    pub max_pipelined: usize,
}

/// What else is refused in place. The rules are independent of each other. With a rule about
/// command lines on, a command line waits until it is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strict {
    /// Commands before the login that need one; `PASS` and `ACCT` without a `USER` before.
    pub order: bool,
    /// Verbs that no document of FTP and no common server knows.
    pub unknown_verbs: bool,
    /// Lines longer than [`Policy::max_command`].
    pub long_lines: bool,
    /// Control characters: C0, DEL, and C1 (in UTF-8, or as single bytes in a line that isn't
    /// UTF-8). Telnet commands, unless before a verb (RFC 959 §4.1.3).
    pub control_bytes: bool,
    /// Commands before the server's greeting. Without this rule they pass.
    pub before_greeting: bool,
    /// `PORT` and `EPRT` whose argument isn't an address, or that come before the login. Without
    /// this rule they pass, and open nothing.
    pub addresses: bool,
    /// The pinhole of a `PORT` or `EPRT` opens when the server has granted it and a transfer
    /// command has come. Without this rule it opens as the command passes, since some servers
    /// connect before they reply.
    pub active_late: bool,
    /// `227` and `229` of a server inside with a port of [`Policy::deny_ports`].
    pub passive_ports: bool,
    /// The only verbs that may be used, in upper case; empty: all.
    pub allow: Vec<String>,
    /// Verbs that may not be used, in upper case.
    pub deny: Vec<String>,
    /// Failed logins (`430`, `530`) in a row after which `USER`, `PASS` and `ACCT` are refused.
    pub failed_logins: Option<u8>,
}

impl Strict {
    /// The failed logins that [`Strict::all`] lets pass.
    pub const FAILED_LOGINS: u8 = 3;

    /// Every rule; no list of verbs.
    #[must_use]
    pub fn all() -> Self {
        Self {
            order: true,
            unknown_verbs: true,
            long_lines: true,
            control_bytes: true,
            before_greeting: true,
            addresses: true,
            active_late: false,
            passive_ports: true,
            allow: Vec::new(),
            deny: Vec::new(),
            failed_logins: Some(Self::FAILED_LOGINS),
        }
    }

    /// Whether a command line must be complete before anything of it goes out.
    pub(super) fn holds_lines(&self) -> bool {
        // These aren't about command lines.
        let commands = Self {
            passive_ports: false,
            active_late: false,
            ..self.clone()
        };
        commands != Self::default()
    }

    /// Whether the lists exclude a verb, which is in upper case.
    pub(super) fn leaves_out(&self, verb: &[u8]) -> bool {
        let has = |list: &[String]| list.iter().any(|name| name.as_bytes() == verb);
        has(&self.deny) || !self.allow.is_empty() && !has(&self.allow)
    }
}

/// System ports (RFC 6335 §6).
pub const SYSTEM_PORTS: RangeInclusive<u16> = 0..=1023;

/// Ports that a server must not be made to connect to: system ports (RFC 6335 §6), and services
/// that often need no authentication.
pub const SERVICE_PORTS: [RangeInclusive<u16>; 14] = [
    SYSTEM_PORTS,
    1433..=1434,   // Microsoft SQL Server
    1521..=1521,   // Oracle
    2049..=2049,   // NFS
    2375..=2376,   // Docker
    3306..=3306,   // MySQL
    3389..=3389,   // RDP
    5432..=5432,   // PostgreSQL
    5900..=5910,   // VNC
    6000..=6063,   // X11
    6379..=6379,   // Redis
    9200..=9200,   // Elasticsearch
    11211..=11211, // memcached
    27017..=27019, // MongoDB
];

impl Default for Policy {
    fn default() -> Self {
        Self {
            require_login: true,
            deny_ports: SERVICE_PORTS.to_vec(),
            low_ports: false,
            allow_foreign: Vec::new(),
            deny_tls: false,
            strict: Strict::default(),
            max_command: 2048,
            max_reply: 1024,
            max_pipelined: 256,
        }
    }
}

impl Policy {
    /// Whether a client may announce this address and port for an active data connection. `own` is
    /// the client's address, `seen` the one that the server knows it by.
    ///
    /// # Errors
    /// Why not, in a few words (RFC 2577 §3: the bounce attack).
    pub fn check_active(
        &self,
        announced: Option<IpAddr>,
        port: u16,
        own: IpAddr,
        seen: IpAddr,
    ) -> Result<(), &'static str> {
        if self.deny_ports.iter().any(|range| range.contains(&port)) {
            return Err("a service port");
        }
        match announced {
            Some(ip) if ip != own && ip != seen && !self.allows_foreign(ip) => {
                Err("somebody else's address")
            }
            _ => Ok(()),
        }
    }

    /// Whether a server inside may announce this port for a passive data connection.
    ///
    /// # Errors
    /// Why not, in a few words. The server's host may have other services at such ports. A forged
    /// `227`, or a compromised server, could publish them.
    pub fn check_passive(&self, port: u16) -> Result<(), &'static str> {
        if SYSTEM_PORTS.contains(&port) {
            return match self.low_ports {
                true => Ok(()),
                false => Err("a port below 1024 (see --low-ports)"),
            };
        }
        let denied = self.deny_ports.iter().any(|range| range.contains(&port));
        match self.strict.passive_ports && denied {
            true => Err("a service port"),
            false => Ok(()),
        }
    }

    fn allows_foreign(&self, ip: IpAddr) -> bool {
        let nobodys = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
        !nobodys && self.allow_foreign.iter().any(|net| net.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_inside_publishes_no_service() {
        let mut policy = Policy::default();
        for (port, low) in [
            (1, true),
            (22, true),
            (1023, true),
            (1024, false),
            (3306, false),
        ] {
            assert_eq!(policy.check_passive(port).is_err(), low, "{port}");
        }
        policy.strict.passive_ports = true;
        assert!(policy.check_passive(3306).is_err());
        assert!(policy.check_passive(50_000).is_ok());
        // What is below 1024 is for the other switch alone.
        policy.low_ports = true;
        assert!(policy.check_passive(22).is_ok());
        assert!(policy.check_passive(3306).is_err());
        assert!(!policy.strict.holds_lines(), "it is about replies");
    }

    #[test]
    fn the_bounce_attack_is_refused() {
        let policy = Policy::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (own, seen) = (ip("192.168.1.5"), ip("203.0.113.1"));
        assert_eq!(policy.check_active(Some(own), 40_000, own, seen), Ok(()));
        assert_eq!(policy.check_active(Some(seen), 40_000, own, seen), Ok(()));
        assert_eq!(policy.check_active(None, 1024, own, seen), Ok(()));
        assert!(policy.check_active(Some(own), 22, own, seen).is_err());
        assert!(policy.check_active(Some(own), 6000, own, seen).is_err());
        assert!(
            policy
                .check_active(Some(ip("192.168.1.6")), 40_000, own, seen)
                .is_err()
        );
        let fxp = Policy {
            allow_foreign: vec!["192.168.0.0/16".parse().unwrap()],
            ..policy
        };
        assert!(
            fxp.check_active(Some(ip("192.168.1.6")), 40_000, own, seen)
                .is_ok()
        );
        assert!(
            fxp.check_active(Some(ip("192.169.1.6")), 40_000, own, seen)
                .is_err()
        );
        let all = Policy {
            allow_foreign: ["0.0.0.0/0", "::/0"].map(|net| net.parse().unwrap()).into(),
            ..fxp
        };
        for (text, allowed) in [
            ("192.0.2.1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
        ] {
            let checked = all.check_active(Some(ip(text)), 40_000, own, seen);
            assert_eq!(checked.is_ok(), allowed, "{text}");
        }
    }
}
