//! Networks: their text, and which are private.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// RFC 6598: addresses that providers share among their customers.
const SHARED: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10);

/// Reads `192.0.2.0/24`, `2001:db8::/64` or a single address. Host bits are cleared.
///
/// # Errors
/// What a network looks like.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(addr) => Ok(addr.into()),
        Err(_) => text.parse::<IpNet>(),
    };
    net.map(|net| net.trunc())
        .map_err(|_| "write a network like 192.168.1.0/24".to_owned())
}

/// Whether a network lies in private space (RFC 1918, RFC 6598, RFC 4193).
#[must_use]
pub fn is_private(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => {
            let shared = SHARED.contains(net);
            shared || (net.network().is_private() && net.broadcast().is_private())
        }
        IpNet::V6(net) => net.network().is_unique_local() && net.broadcast().is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let read = |s: &str| parse_network(s).map(|n| n.to_string());
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
        let net = parse_network("172.16.0.0/12").unwrap();
        assert!(net.contains(&"172.31.255.255".parse::<IpAddr>().unwrap()));
        assert!(!net.contains(&"172.32.0.0".parse::<IpAddr>().unwrap()));
        assert!(!net.contains(&"::1".parse::<IpAddr>().unwrap()));
        for (net, private) in [
            ("10.0.0.0/8", true),
            ("10.0.0.0/7", false),
            ("172.16.0.0/11", false),
            ("192.168.3.0/24", true),
            ("100.64.0.0/10", true),
            ("100.64.0.0/9", false),
            ("100.0.0.0/8", false),
            ("0.0.0.0/0", false),
            ("198.51.100.0/24", false),
            ("fd00::/8", true),
            ("fc00::/6", false),
            ("fe80::/64", false),
            ("2001:db8::/32", false),
        ] {
            assert_eq!(is_private(&parse_network(net).unwrap()), private, "{net}");
        }
    }
}
