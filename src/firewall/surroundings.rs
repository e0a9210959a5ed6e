//! The network as it is: routes, addresses, interfaces, and the address families in use.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::RulesError;
use super::steering::{Inside, Steering};
use super::xtables::snapshot::read_proc;
use crate::net::Family;

/// A route: which networks are behind which interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) net: IpNet,
    pub(crate) iface: String,
}

/// The network as it is: routes, own addresses, interfaces that are up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    pub(crate) routes: Vec<Route>,
    pub(crate) own: BTreeSet<IpAddr>,
    /// The same, each with its interface.
    pub(crate) addresses: Vec<(String, IpAddr)>,
    pub(crate) up: BTreeSet<String>,
}

impl Surroundings {
    /// Reads them in the calling thread's network namespace (main routing table).
    pub(crate) fn read() -> Result<Self, RulesError> {
        let mut found = Self::default();
        if let Some(text) = read_proc("route")? {
            found.routes.extend(text.lines().filter_map(route_v4));
        }
        if let Some(text) = read_proc("ipv6_route")? {
            found.routes.extend(text.lines().filter_map(route_v6));
        }
        let interfaces = getifaddrs().map_err(io::Error::from);
        let interfaces = interfaces.map_err(RulesError::system("can't list the interfaces"))?;
        for interface in interfaces {
            if let Some(addr) = interface.address {
                let v4 = addr.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                let v6 = addr.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
                if let Some(addr) = v4.or(v6) {
                    found.own.insert(addr);
                    found
                        .addresses
                        .push((interface.interface_name.clone(), addr));
                }
            }
            if interface.flags.contains(InterfaceFlags::IFF_UP)
                && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            {
                found.up.insert(interface.interface_name);
            }
        }
        Ok(found)
    }

    pub(crate) fn is_own(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.own.contains(&addr)
    }

    /// The interface that an address is behind.
    pub(crate) fn iface_to(&self, addr: IpAddr) -> Option<&str> {
        self.routes
            .iter()
            .filter(|r| r.net.contains(&addr))
            .max_by_key(|r| r.net.prefix_len())
            .map(|r| r.iface.as_str())
    }

    /// The interfaces that default routes leave by, of a family.
    pub(crate) fn ways_out(&self, family: Family) -> BTreeSet<&str> {
        let routes = self.routes.iter();
        let default = |route: &&Route| {
            route.net.prefix_len() == 0
                && Family::of(route.net.addr()) == family
                && route.iface != "lo"
        };
        routes
            .filter(default)
            .map(|route| route.iface.as_str())
            .collect()
    }

    /// The families in which control connections may pass.
    ///
    /// IPv6 is in use if an IPv6 network is inside, or if an inside interface (any interface but
    /// the loopback, if this host itself is served) has an IPv6 route to more than link-local and
    /// multicast addresses. It has one as soon as it has a global address. Kernels switch IPv6 on
    /// by themselves, so link-local addresses alone mean nothing. IPv4 is in use unless only IPv6
    /// has addresses here.
    pub(crate) fn families(&self, steering: &Steering) -> Vec<Family> {
        let behind = |iface: &str| {
            (steering.local && iface != "lo")
                || steering.inside.contains(&Inside::Iface(iface.to_owned()))
        };
        let mut routes = self.routes.iter();
        let reaches_v6 = routes.any(|r| is_wide_v6(&r.net) && behind(&r.iface));
        let named = |family| {
            let mut nets = steering.inside.iter();
            nets.any(|i| matches!(i, Inside::Net(net) if Family::of(net.addr()) == family))
        };
        let v6 = named(Family::V6) || reaches_v6;
        let own_v4 = self.own.iter().any(|ip| ip.is_ipv4() && !ip.is_loopback());
        let v4 = named(Family::V4) || own_v4 || !v6;
        let used = |family: &Family| match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        Family::ALL.into_iter().filter(used).collect()
    }
}

/// One line of `/proc/net/route`: interface, destination, gateway, …, mask is the eighth; numbers
/// in hexadecimal as the host's CPU reads the four bytes.
fn route_v4(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let octets = |at: usize| {
        let number = u32::from_str_radix(words.get(at)?, 16).ok()?;
        Some(number.to_ne_bytes())
    };
    let mask = u32::from_be_bytes(octets(7)?);
    let prefix = u8::try_from(mask.leading_ones()).ok()?;
    Some(Route {
        net: Ipv4Net::new(Ipv4Addr::from(octets(1)?), prefix)
            .ok()?
            .into(),
        iface: (*words.first()?).to_owned(),
    })
}

/// One line of `/proc/net/ipv6_route`: destination, its prefix length, …, interface is the last;
/// numbers in hexadecimal.
fn route_v6(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let addr = u128::from_str_radix(words.first()?, 16).ok()?;
    let prefix = u8::from_str_radix(words.get(1)?, 16).ok()?;
    Some(Route {
        net: Ipv6Net::new(Ipv6Addr::from(addr), prefix).ok()?.into(),
        iface: (*words.get(9)?).to_owned(),
    })
}

/// Whether it is of IPv6 and neither link-local nor multicast.
fn is_wide_v6(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(addr) => {
            let link_local = addr.is_unicast_link_local() && net.prefix_len() >= 10;
            let multicast = addr.is_multicast() && net.prefix_len() >= 8;
            !link_local && !multicast
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn families(inside: &[&str], local: bool, routes: &[&str], own: &[&str]) -> Vec<Family> {
        let route = |text: &&str| {
            let (net, iface) = text.split_once(' ').unwrap();
            Route {
                net: net.parse().unwrap(),
                iface: iface.to_owned(),
            }
        };
        let around = Surroundings {
            routes: routes.iter().map(route).collect(),
            own: own.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Surroundings::default()
        };
        around.families(&Steering {
            inside: inside.iter().map(|i| i.parse().unwrap()).collect(),
            local,
            ..Steering::default()
        })
    }

    #[test]
    fn ipv6_counts_where_it_leads_somewhere() {
        let v4 = ["10.0.0.1", "127.0.0.1", "::1", "fe80::1"];
        let bare = [
            "fe80::/64 in0",
            "ff00::/8 in0",
            "::1/128 lo",
            "2001:db8::/64 out0",
        ];
        assert_eq!(families(&["in0"], false, &bare, &v4), [Family::V4]);
        assert_eq!(families(&["10.0.0.0/8"], false, &bare, &v4), [Family::V4]);
        // A host's own programs reach whatever it has.
        assert_eq!(families(&[], true, &bare, &v4), Family::ALL);
        assert_eq!(families(&[], true, &bare[..3], &v4), [Family::V4]);
        for route in ["fd00::/64 in0", "2001:db8:1::/48 in0", "::/0 in0"] {
            assert_eq!(
                families(&["in0"], false, &[route], &v4),
                Family::ALL,
                "{route}"
            );
        }
        assert_eq!(
            families(&["fd00::/64", "10.0.0.0/8"], false, &[], &v4),
            Family::ALL
        );
    }

    #[test]
    fn ipv4_counts_unless_there_is_none() {
        let v6 = ["::1", "fd00::1", "127.0.0.1"];
        assert_eq!(
            families(&["in0"], false, &["fd00::/64 in0"], &v6),
            [Family::V6]
        );
        assert_eq!(families(&["in0"], false, &[], &[]), [Family::V4]);
    }

    #[test]
    fn routes_are_read() {
        let line = format!(
            "eth1\t{:08X}\t00000000\t0001\t0\t0\t0\t{:08X}\t0\t0\t0",
            u32::from_ne_bytes([192, 168, 1, 0]),
            u32::from_ne_bytes([255, 255, 255, 0])
        );
        let route = route_v4(&line).unwrap();
        assert_eq!(
            (route.iface.as_str(), route.net.to_string().as_str()),
            ("eth1", "192.168.1.0/24")
        );
        assert_eq!(route_v4("Iface\tDestination\tGateway \tFlags"), None);
        let route = route_v6("fd000001000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth1").unwrap();
        assert_eq!(
            (route.iface.as_str(), route.net.to_string().as_str()),
            ("eth1", "fd00:1::/64")
        );
        assert_eq!(route_v6(""), None);
    }
}
