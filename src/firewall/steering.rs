//! What is to be steered: the inside, the ports, the queues. Parsed and checked once.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use nix::net::if_::if_nametoindex;

use super::RulesError;
use crate::firewall::xtables::Family;
use crate::net::Mark;

/// The longest name that an interface can have (`IFNAMSIZ` less its NUL).
const MAX_INTERFACE: usize = 15;

/// A network: an address without host bits, and how many bits of it count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    addr: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network that `addr` is in; `None` if it hasn't so many bits.
    #[must_use]
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(a) => {
                let off = 32u32.checked_sub(u32::from(prefix))?;
                let mask = u32::MAX.checked_shl(off).unwrap_or(0);
                IpAddr::from((u32::from(a) & mask).to_be_bytes())
            }
            IpAddr::V6(a) => {
                let off = 128u32.checked_sub(u32::from(prefix))?;
                let mask = u128::MAX.checked_shl(off).unwrap_or(0);
                IpAddr::from((u128::from(a) & mask).to_be_bytes())
            }
        };
        Some(Self { addr, prefix })
    }

    /// Whether `addr` is in it.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Self::new(addr, self.prefix).is_some_and(|n| n.addr == self.addr)
    }

    /// Its address, without host bits.
    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// The last address in it.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let prefix = u32::from(self.prefix);
        match self.addr {
            IpAddr::V4(a) => {
                let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::from((u32::from(a) | host).to_be_bytes())
            }
            IpAddr::V6(a) => {
                let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
                IpAddr::from((u128::from(a) | host).to_be_bytes())
            }
        }
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }

    /// How many bits of the address count.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it lies in private space (RFC 1918, RFC 6598, RFC 4193).
    #[must_use]
    pub fn is_private(&self) -> bool {
        match self.addr {
            IpAddr::V4(a) => {
                let [first, second, ..] = a.octets();
                (a.is_private() && self.prefix >= 8)
                    || (first == 100 && second & 0xc0 == 64 && self.prefix >= 10)
            }
            IpAddr::V6(a) => a.segments()[0] & 0xfe00 == 0xfc00 && self.prefix >= 7,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl FromStr for Network {
    type Err = RulesError;

    /// Reads `192.0.2.0/24`, `2001:db8::/64` or a single address. Host bits are cleared.
    fn from_str(text: &str) -> Result<Self, RulesError> {
        let bad = || {
            RulesError::Input(format!(
                "not a network: {text:?} (write it like 192.168.1.0/24)"
            ))
        };
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let prefix = match prefix {
            Some(p) if p.bytes().all(|b| b.is_ascii_digit()) => p.parse().map_err(|_| bad())?,
            Some(_) => return Err(bad()),
            None if addr.is_ipv4() => 32,
            None => 128,
        };
        Self::new(addr, prefix).ok_or_else(bad)
    }
}

/// One side of the gateway's that is private: see `--inside`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inside {
    /// Whatever is behind this interface.
    Iface(String),
    /// These addresses, whatever interface they are behind.
    Net(Network),
}

impl Inside {
    /// Whether it means anything in rules of that family.
    #[must_use]
    pub fn is_in(&self, family: Family) -> bool {
        match self {
            Self::Iface(_) => true,
            Self::Net(net) => net.family() == family,
        }
    }

    /// Whether there is such an interface in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`RulesError::Input`] if there isn't.
    pub fn check(&self) -> Result<(), RulesError> {
        match self {
            Self::Iface(name) if if_nametoindex(name.as_str()).is_err() => {
                Err(RulesError::Input(format!(
                    "no interface {name:?} here (see `ip link`, or name the inside network as a CIDR)"
                )))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Iface(name) => f.write_str(name),
            Self::Net(net) => net.fmt(f),
        }
    }
}

impl FromStr for Inside {
    type Err = RulesError;

    /// Reads an interface name or a network. Whether there is such an interface isn't looked at.
    fn from_str(text: &str) -> Result<Self, RulesError> {
        if text.contains('/') || text.parse::<IpAddr>().is_ok() {
            return text.parse().map(Self::Net);
        }
        let printable = text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'\'' | b':' | b'!'));
        // iptables takes a plus sign at the end for a wildcard, and a dash in front for an option.
        let odd = text.starts_with('-') || text.ends_with('+');
        if text.is_empty() || text.len() > MAX_INTERFACE || !printable || odd {
            return Err(RulesError::Input(format!(
                "not an interface: {text:?} (an interface name of at most 15 plain characters, \
                 or a network like 192.168.1.0/24)"
            )));
        }
        Ok(Self::Iface(text.to_owned()))
    }
}

/// The NFQUEUE numbers that control packets go to: `count` of them from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// The first number.
    pub first: u16,
    /// How many, at least 1. More than one share the flows by a hash of their two addresses.
    pub count: u16,
}

impl Queues {
    /// All numbers.
    #[must_use]
    pub fn numbers(self) -> RangeInclusive<u16> {
        let others = self.count.saturating_sub(1);
        self.first..=self.first.saturating_add(others)
    }
}

/// What `rules install` puts in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    /// The private sides of the gateway.
    pub inside: Vec<Inside>,
    /// Whether servers and clients on this host itself are served, too.
    pub local: bool,
    /// Control ports, as the inside sees them.
    pub ports: Vec<u16>,
    /// Where control packets go.
    pub queues: Queues,
    /// Whether control packets pass unseen while nobody reads the queue; otherwise they are
    /// dropped then.
    pub fail_open: bool,
    /// The bit of the connection mark that data connections carry.
    pub mark: Mark,
    /// Which families.
    pub families: Vec<Family>,
}

impl Default for Steering {
    /// Port 21, queue 0, both families, fail closed; nothing inside.
    fn default() -> Self {
        Self {
            inside: Vec::new(),
            local: false,
            ports: vec![21],
            queues: Queues { first: 0, count: 1 },
            fail_open: false,
            mark: Mark::DEFAULT,
            families: Family::ALL.to_vec(),
        }
    }
}

impl Steering {
    /// Whether rules can be made from it.
    ///
    /// # Errors
    /// [`RulesError::Input`] says what is wrong. Interfaces are not looked up.
    pub fn check(&self) -> Result<(), RulesError> {
        let wrong = |why: &str| Err(RulesError::Input(why.to_owned()));
        if self.inside.is_empty() && !self.local {
            return wrong("nothing to steer: give --inside IFACE, --inside CIDR or --local");
        }
        if self.ports.is_empty() || self.ports.contains(&0) {
            return wrong("no control port: give --port with a number from 1 to 65535");
        }
        if self.queues.count == 0
            || self
                .queues
                .first
                .checked_add(self.queues.count - 1)
                .is_none()
        {
            return wrong("queue numbers must lie within 0 to 65535: take fewer, or a lower first");
        }
        if self.families.is_empty() {
            return wrong("no address family to steer: take IPv4, IPv6 or both");
        }
        Ok(())
    }

    /// Whether there is anything to steer in that family.
    #[must_use]
    pub fn has(&self, family: Family) -> bool {
        self.families.contains(&family)
            && (self.local || self.inside.iter().any(|i| i.is_in(family)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let read = |s: &str| s.parse::<Network>().map(|n| n.to_string());
        assert_eq!(read("10.1.2.3/8").unwrap(), "10.0.0.0/8");
        assert_eq!(read("10.1.2.3").unwrap(), "10.1.2.3/32");
        assert_eq!(read("0.0.0.0/0").unwrap(), "0.0.0.0/0");
        assert_eq!(read("2001:db8::1/64").unwrap(), "2001:db8::/64");
        assert_eq!(read("::/0").unwrap(), "::/0");
        for bad in [
            "10.0.0.0/33",
            "10.0.0/8",
            "::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "x/8",
            "",
            "1.2.3.4/8/8",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        let net: Network = "172.16.0.0/12".parse().unwrap();
        assert!(net.contains("172.31.255.255".parse().unwrap()));
        assert!(!net.contains("172.32.0.0".parse().unwrap()));
        assert!(!net.contains("::1".parse().unwrap()));
        for (net, private) in [
            ("10.0.0.0/8", true),
            ("192.168.3.0/24", true),
            ("100.64.0.0/10", true),
            ("100.0.0.0/8", false),
            ("0.0.0.0/0", false),
            ("198.51.100.0/24", false),
            ("fd00::/8", true),
            ("fe80::/64", false),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(
                net.parse::<Network>().unwrap().is_private(),
                private,
                "{net}"
            );
        }
    }

    #[test]
    fn insides() {
        let read = |s: &str| s.parse::<Inside>();
        assert_eq!(read("eth1").unwrap(), Inside::Iface("eth1".into()));
        assert_eq!(read("br-lan.20").unwrap().to_string(), "br-lan.20");
        assert_eq!(read("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(matches!(read("fd00::1").unwrap(), Inside::Net(_)));
        for bad in [
            "",
            "a b",
            "a/b",
            "sixteen-letters-",
            "-i",
            "eth+",
            "a\"b",
            "a\nb",
            "ä",
            "e\\x",
            "!",
        ] {
            let e = read(bad).unwrap_err().to_string();
            assert!(!e.contains('\n'), "{bad}: {e}");
        }
    }

    #[test]
    fn unknown_interface() {
        assert!(Inside::Iface("lo".into()).check().is_ok());
        let e = Inside::Iface("nosuch0".into())
            .check()
            .unwrap_err()
            .to_string();
        assert!(e.contains("nosuch0") && e.contains("ip link"), "{e}");
    }

    #[test]
    fn what_cannot_be_steered() {
        let good = Steering {
            local: true,
            ..Steering::default()
        };
        assert!(good.check().is_ok());
        assert!(Steering::default().check().is_err());
        for bad in [
            Steering {
                ports: vec![],
                ..good.clone()
            },
            Steering {
                ports: vec![21, 0],
                ..good.clone()
            },
            Steering {
                families: vec![],
                ..good.clone()
            },
            Steering {
                queues: Queues {
                    first: 65535,
                    count: 2,
                },
                ..good.clone()
            },
            Steering {
                queues: Queues { first: 0, count: 0 },
                ..good.clone()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let last = Steering {
            queues: Queues {
                first: 65535,
                count: 1,
            },
            ..good
        };
        assert!(last.check().is_ok());
    }
}
