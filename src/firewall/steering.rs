//! What is to be steered: the inside, the ports, the queues. Parsed and checked once.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use nix::net::if_::if_nametoindex;

use super::RulesError;
use crate::net::{Family, Mark, parse_network};

/// The longest name that an interface can have (`IFNAMSIZ` less its NUL).
const MAX_INTERFACE: usize = 15;

/// A private side of the gateway: see `--inside`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Inside {
    /// Whatever is behind this interface.
    Iface(String),
    /// These addresses, whatever interface they are behind.
    Net(IpNet),
}

impl Inside {
    /// Whether it means anything in rules of that family.
    #[must_use]
    pub fn is_in(&self, family: Family) -> bool {
        match self {
            Self::Iface(_) => true,
            Self::Net(net) => Family::of(net.addr()) == family,
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
            return parse_network(text)
                .map(Self::Net)
                .map_err(RulesError::Input);
        }
        let printable = text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'\'' | b':' | b'!'));
        // iptables takes a plus sign at the end for a wildcard, and a dash in front for an option.
        let odd = text.starts_with('-') || text.ends_with('+');
        if text.is_empty() || text.len() > MAX_INTERFACE || !printable || odd {
            return Err(RulesError::Input(
                "write an interface name of at most 15 plain characters, or a network like \
                 192.168.1.0/24"
                    .to_owned(),
            ));
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

/// What places the steering rules: see `--steering`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// What the host has: the tools of iptables, or else nf_tables.
    #[default]
    Auto,
    /// The tools of iptables.
    Iptables,
    /// nf_tables, over netlink: no program is run.
    Nft,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Iptables => "iptables",
            Self::Nft => "nft",
        })
    }
}

impl FromStr for Placement {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "iptables" => Ok(Self::Iptables),
            "nft" => Ok(Self::Nft),
            _ => Err("write one of auto, iptables, nft"),
        }
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
    /// The bit of the connection mark that control connections with a sequence delta carry. Their
    /// packets never pass unseen.
    pub uneven_mark: Mark,
    /// Which families.
    pub families: Vec<Family>,
    /// What places the rules.
    pub placement: Placement,
}

impl Default for Steering {
    /// Port 21, queue 0, both families, fail closed, placed by what the host has; nothing inside.
    fn default() -> Self {
        Self {
            inside: Vec::new(),
            local: false,
            ports: vec![21],
            queues: Queues { first: 0, count: 1 },
            fail_open: false,
            mark: Mark::DEFAULT,
            uneven_mark: Mark::UNEVEN,
            families: Family::ALL.to_vec(),
            placement: Placement::Auto,
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
        let Queues { first, count } = self.queues;
        if count == 0 || first.checked_add(count - 1).is_none() {
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
        let changed = |change: fn(&mut Steering)| {
            let mut steering = good.clone();
            change(&mut steering);
            steering.check()
        };
        assert!(changed(|s| s.ports = vec![]).is_err());
        assert!(changed(|s| s.ports = vec![21, 0]).is_err());
        assert!(changed(|s| s.families = vec![]).is_err());
        for (first, count, fits) in [(65535, 2, false), (0, 0, false), (65535, 1, true)] {
            let queues = Queues { first, count };
            let steering = Steering {
                queues,
                ..good.clone()
            };
            assert_eq!(steering.check().is_ok(), fits, "{queues:?}");
        }
    }
}
