//! Which IPv4 address a translator on this gateway (NAT64) has for an IPv6-only client.
//!
//! An IPv4 connection of a translator's is found by its server and by its client's port. Two clients may
//! have the same port. Then it helps to know from other sessions which address is whose. TAYGA keeps an
//! address for a client for two hours at least after its last packet.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::engine::Entry;
use crate::engine::gateway::Error;

/// How many clients are remembered; with more, all are forgotten.
const MAX: usize = 4096;
/// For how long what was seen is believed.
const BELIEVED: Duration = Duration::from_secs(3600);

/// Clients, and the IPv4 address that each was last seen to have.
#[derive(Debug, Default)]
pub(super) struct Translations(HashMap<IpAddr, (IpAddr, Duration)>);

impl Translations {
    /// The client's connection among those that it may be.
    ///
    /// # Errors
    /// [`Error::NoConntrack`] or [`Error::Ambiguous`].
    pub(super) fn choose(
        &mut self,
        client: IpAddr,
        found: &[Entry],
        now: Duration,
    ) -> Result<Entry, Error> {
        match found {
            [] => return Err(Error::NoConntrack),
            [entry] => {
                self.learn(client, entry.original.src.ip(), now);
                return Ok(*entry);
            }
            [..] => {}
        }
        let own = self.own(client, now);
        let others = || {
            let known = self.0.iter().filter(|(other, _)| **other != client);
            known.filter(|(_, (_, seen))| now.saturating_sub(*seen) < BELIEVED)
        };
        let may_be = |entry: &&Entry| {
            let ip = entry.original.src.ip();
            match own {
                Some(own) => ip == own,
                None => !others().any(|(_, (address, _))| *address == ip),
            }
        };
        let mut left = found.iter().filter(may_be);
        match (left.next(), left.next()) {
            (Some(entry), None) => Ok(*entry),
            _ => Err(Error::Ambiguous),
        }
    }

    fn own(&self, client: IpAddr, now: Duration) -> Option<IpAddr> {
        let (address, seen) = self.0.get(&client)?;
        (now.saturating_sub(*seen) < BELIEVED).then_some(*address)
    }

    fn learn(&mut self, client: IpAddr, address: IpAddr, now: Duration) {
        if self.0.len() >= MAX {
            self.0.clear();
        }
        self.0.insert(client, (address, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Tuple;

    fn entry(client: &str) -> Entry {
        let at = |text: &str| text.parse().unwrap();
        let (src, dst) = (at(&format!("{client}:40000")), at("198.51.100.2:21"));
        Entry {
            original: Tuple { src, dst },
            reply: Tuple { src: dst, dst: src },
            mark: 0,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_known_of_either_tells_two_apart() {
        let (ann, bob) = (ip("2001:db8::a"), ip("2001:db8::b"));
        let (a, b) = (entry("192.168.255.1"), entry("192.168.255.2"));
        let now = Duration::from_secs;
        let mut known = Translations::default();
        assert_eq!(known.choose(ann, &[], now(0)), Err(Error::NoConntrack));
        assert_eq!(known.choose(ann, &[a, b], now(0)), Err(Error::Ambiguous));
        assert_eq!(known.choose(ann, &[a], now(1)), Ok(a));
        assert_eq!(known.choose(ann, &[b, a], now(2)), Ok(a));
        assert_eq!(known.choose(bob, &[a, b], now(3)), Ok(b), "it isn't Ann's");
        // Not for good.
        let later = now(1) + BELIEVED;
        assert_eq!(known.choose(ann, &[a, b], later), Err(Error::Ambiguous));
        assert_eq!(known.choose(bob, &[a, b], later), Err(Error::Ambiguous));
        // Another address than the one that is known.
        assert_eq!(known.choose(ann, &[b], later), Ok(b));
        assert_eq!(known.choose(ann, &[a, b], later), Ok(b));
        let other = entry("192.168.255.3");
        assert_eq!(known.choose(ann, &[a, other], later), Err(Error::Ambiguous));
    }

    #[test]
    fn no_more_than_so_many_are_kept() {
        let mut known = Translations::default();
        for n in 0..3 * MAX as u128 {
            let client = std::net::Ipv6Addr::from_bits(n).into();
            let entry = entry("192.168.255.1");
            assert!(known.choose(client, &[entry], Duration::ZERO).is_ok());
            assert!(known.0.len() <= MAX);
        }
    }
}
