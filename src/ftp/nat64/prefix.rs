//! IPv4 addresses in IPv6 ones (RFC 6052).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The lengths that a prefix may have (RFC 6052 §2.2).
const LENGTHS: [u8; 6] = [32, 40, 48, 56, 64, 96];
/// Bits 64 to 71, which no embedded address uses, and which are zero (RFC 6052 §2.2): this octet.
const UNUSED: usize = 8;
/// What a client's own translator gives IPv4 programs (464XLAT, RFC 7335).
const CLAT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 0), 29);

/// Whether an IPv4 address is one that programs have behind the client's own translator (RFC 7335):
/// outside the client, it is nobody's.
#[must_use]
pub fn is_clat(ip: Ipv4Addr) -> bool {
    CLAT.contains(&ip)
}

/// The prefix of a translator: the IPv6 addresses in it stand for IPv4 ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(Ipv6Net);

impl Prefix {
    /// 64:ff9b::/96 (RFC 6052 §2.1).
    pub const WELL_KNOWN: Self = Self(Ipv6Net::new_assert(
        Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0),
        96,
    ));

    /// The IPv4 address that `ip` stands for; `None` if it stands for none. What is behind the address
    /// isn't looked at (RFC 6052 §2.2: it is reserved).
    #[must_use]
    pub fn extract(&self, ip: Ipv6Addr) -> Option<Ipv4Addr> {
        if !self.0.contains(&ip) || has_unused(ip) {
            return None;
        }
        let mut octets = ip.octets();
        let mut place = self.place(&mut octets).map(|octet| *octet);
        let mut next = || place.next();
        Some(Ipv4Addr::new(next()?, next()?, next()?, next()?))
    }

    /// The IPv6 address that stands for `ip`.
    #[must_use]
    pub fn embed(&self, ip: Ipv4Addr) -> Ipv6Addr {
        let mut octets = self.0.network().octets();
        for (place, octet) in self.place(&mut octets).zip(ip.octets()) {
            *place = octet;
        }
        octets.into()
    }

    /// Where an embedded address is: behind the prefix, around the unused octet.
    fn place<'a>(&self, octets: &'a mut [u8; 16]) -> impl Iterator<Item = &'a mut u8> {
        let before = match self.0.prefix_len() {
            96 => 11,
            length => usize::from(length >> 3),
        };
        let used = octets
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| *at != UNUSED);
        used.skip(before).take(4).map(|(_, octet)| octet)
    }
}

fn has_unused(ip: Ipv6Addr) -> bool {
    ip.octets().get(UNUSED).is_some_and(|octet| *octet != 0)
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// Reads a prefix, or `default` for the [well-known](Self::WELL_KNOWN) one. Host bits are cleared.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self::WELL_KNOWN);
        }
        let net = match text.parse::<IpNet>() {
            Ok(IpNet::V6(net)) => net.trunc(),
            _ => return Err("write a prefix like 64:ff9b::/96, or default".to_owned()),
        };
        if !LENGTHS.contains(&net.prefix_len()) {
            return Err("a NAT64 prefix has a length of 32, 40, 48, 56, 64 or 96".to_owned());
        }
        if has_unused(net.network()) {
            return Err("bits 64 to 71 of a NAT64 prefix are zero (RFC 6052)".to_owned());
        }
        Ok(Self(net))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNUSED_BITS: u128 = 0xff << 56;

    #[test]
    fn the_examples_of_the_rfc() {
        // RFC 6052 §2.4.
        let server = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, embedded) in [
            ("2001:db8::/32", "2001:db8:c000:221::"),
            ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
            ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
            ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
            ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100:0"),
            ("2001:db8:122:344::/96", "2001:db8:122:344::192.0.2.33"),
            ("64:ff9b::/96", "64:ff9b::192.0.2.33"),
            ("default", "64:ff9b::192.0.2.33"),
        ] {
            let read: Prefix = prefix.parse().unwrap();
            let embedded: Ipv6Addr = embedded.parse().unwrap();
            assert_eq!(read.embed(server), embedded, "{prefix}");
            assert_eq!(read.extract(embedded), Some(server), "{prefix}");
        }
    }

    #[test]
    fn addresses_that_stand_for_none() {
        let prefix: Prefix = "2001:db8:122::/48".parse().unwrap();
        for other in ["2001:db8:123:c000:2:2100::", "2001:db8:122:c000:102:2100::"] {
            assert_eq!(prefix.extract(other.parse().unwrap()), None, "{other}");
        }
        // The suffix doesn't count.
        let suffixed = "2001:db8:122:c000:2:2100:0:1".parse().unwrap();
        assert_eq!(prefix.extract(suffixed), Some(Ipv4Addr::new(192, 0, 2, 33)));
    }

    #[test]
    fn what_is_no_prefix() {
        for bad in [
            "",
            "64:ff9b::",
            "64:ff9b::/95",
            "64:ff9b::/0",
            "10.0.0.0/8",
            "Default",
            "2001:db8:0:0:ff00::/96",
            "2001:db8::/128",
        ] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
        let read: Prefix = "2001:db8::1/96".parse().unwrap();
        assert_eq!(read.to_string(), "2001:db8::/96");
    }

    proptest! {
        /// What is embedded is found again, in the prefix, with the unused bits zero.
        #[test]
        fn embedded_addresses_are_found(bits: u128, v4: u32, which in 0usize..6) {
            let net = Ipv6Net::new(Ipv6Addr::from_bits(bits & !UNUSED_BITS), LENGTHS[which]).unwrap();
            let prefix: Prefix = net.to_string().parse().unwrap();
            let v4 = Ipv4Addr::from_bits(v4);
            let embedded = prefix.embed(v4);
            prop_assert!(net.trunc().contains(&embedded));
            prop_assert_eq!(embedded.to_bits() & UNUSED_BITS, 0);
            prop_assert_eq!(prefix.extract(embedded), Some(v4));
        }

        #[test]
        fn any_address_may_be_asked_about(bits: u128, which in 0usize..6, any: u128) {
            let net = Ipv6Net::new(Ipv6Addr::from_bits(bits & !UNUSED_BITS), LENGTHS[which]).unwrap();
            let prefix: Prefix = net.to_string().parse().unwrap();
            for ip in [any, any & !UNUSED_BITS & !u128::from(net.netmask()) | net.network().to_bits()] {
                let ip = Ipv6Addr::from_bits(ip);
                prop_assert!(prefix.extract(ip).is_none() || net.trunc().contains(&ip));
            }
        }
    }
}
