//! Which address families are in use: rules that somebody else places are missed in these only.

use std::net::IpAddr;

use ipnet::IpNet;

use super::derive::Surroundings;
use super::steering::{Inside, Steering};
use crate::net::Family;

impl Surroundings {
    /// The families in which control connections may pass.
    ///
    /// IPv6 is in use where a network of it is inside by name, or where a route leads out of an inside
    /// interface (of any but the loopback, if this host itself is served) to something else than
    /// link-local and multicast addresses, as it does as soon as the interface has an address. Kernels
    /// have IPv6 switched on by themselves, so the rest means nothing. IPv4 is in use unless IPv6
    /// alone has addresses here.
    pub(super) fn families(&self, steering: &Steering) -> Vec<Family> {
        let reaches = |route: fn(&IpNet) -> bool| {
            self.routes.iter().any(|r| {
                route(&r.net)
                    && (steering.local && r.iface != "lo"
                        || steering
                            .inside
                            .iter()
                            .any(|i| matches!(i, Inside::Iface(name) if *name == r.iface)))
            })
        };
        let named = |family| {
            let mut nets = steering.inside.iter();
            nets.any(|i| matches!(i, Inside::Net(net) if Family::of(net.addr()) == family))
        };
        let v6 = named(Family::V6) || reaches(is_wide_v6);
        let own_v4 = self.own.iter().any(|ip| ip.is_ipv4() && !ip.is_loopback());
        let v4 = named(Family::V4) || own_v4 || !v6;
        let all = [(Family::V4, v4), (Family::V6, v6)];
        let used = all.into_iter().filter(|(_, used)| *used);
        used.map(|(family, _)| family).collect()
    }
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
    use super::super::derive::Route;
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
}
