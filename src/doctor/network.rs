//! Addresses, routes, interfaces and the settings for them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::facts::Facts;
use super::host::set;
use super::{Finding, Theme};
use crate::firewall::Inside;
use crate::firewall::xtables::Flavour;
use crate::net::{Family, is_private};

/// RFC 6052, section 2.1.
const NAT64: &str = "64:ff9b::/96";
/// What NAT64 programs call their interfaces.
const TRANSLATORS: [&str; 4] = ["nat64", "tayga", "siit", "clat"];

pub(super) fn judge(facts: &Facts, all: &mut Vec<Finding>) {
    all.extend(forwarding(facts));
    all.extend(forwarding_v6(facts));
    all.extend(upstream(facts));
    all.extend(rp_filter(facts));
    all.extend(mtu(facts));
    all.extend(nat64(facts));
}

fn ok(id: &'static str, what: impl Into<String>) -> Finding {
    Finding::ok(id, Theme::Network, what)
}

/// Whether packets are forwarded at all.
fn routes(facts: &Facts) -> bool {
    facts.wanted.nothing.is_none() && !facts.wanted.steering.inside.is_empty()
}

fn uses(facts: &Facts, family: Family) -> bool {
    facts
        .around
        .families(&facts.wanted.steering)
        .contains(&family)
}

fn forwarding(facts: &Facts) -> Option<Finding> {
    let path = "net/ipv4/ip_forward";
    let on = facts
        .number(path)
        .filter(|_| routes(facts) && uses(facts, Family::V4))?;
    Some(match on {
        0 => Finding::problem(
            "forwarding",
            Theme::Network,
            "this host forwards no IPv4 packets",
        )
        .means("nothing gets from one side to the other")
        .command(set(path, 1)),
        _ => ok("forwarding", "IPv4 packets are forwarded"),
    })
}

fn forwarding_v6(facts: &Facts) -> Option<Finding> {
    let path = "net/ipv6/conf/all/forwarding";
    let on = facts
        .number(path)
        .filter(|_| routes(facts) && uses(facts, Family::V6))?;
    Some(match on {
        0 => Finding::warning(
            "ipv6-forwarding",
            Theme::Network,
            "IPv6 has addresses inside, but this host forwards no IPv6 packets",
        )
        .means("sessions over IPv6 don't get through")
        .command(set(path, 1)),
        _ => ok("ipv6-forwarding", "IPv6 packets are forwarded"),
    })
}

/// An address that nobody outside can reach.
fn upstream(facts: &Facts) -> Option<Finding> {
    if facts.wanted.nothing.is_some() {
        return None;
    }
    let around = &facts.around;
    let own: Vec<IpAddr> = around
        .own
        .iter()
        .copied()
        .filter(|ip| ip.is_ipv4() && !ip.is_loopback())
        .collect();
    let ways_out = around.ways_out(Family::V4);
    let hidden = |ip: &IpAddr| is_private(&(*ip).into());
    let outside = around
        .addresses
        .iter()
        .filter(|(iface, ip)| ip.is_ipv4() && ways_out.contains(iface.as_str()));
    let (iface, ip) = outside.clone().next()?;
    if facts.wanted.advertised {
        return Some(ok(
            "upstream-nat",
            "an address to announce is given (--advertise)",
        ));
    }
    if !own.iter().all(hidden) {
        return Some(ok("upstream-nat", format!("{iface} has a public address")));
    }
    let shared = match ip {
        IpAddr::V4(v4) if v4.octets().first() == Some(&100) => "the provider's own (CGNAT)",
        _ => "private",
    };
    Some(
        Finding::warning(
            "upstream-nat",
            Theme::Network,
            format!("{ip} on {iface} is {shared}: NAT is further out"),
        )
        .means(format!(
            "peers beyond that NAT would read {ip}; announce the address that they know"
        ))
        .command(facts.wanted.command("ftpalg run", "--advertise PUBLIC")),
    )
}

fn rp_filter(facts: &Facts) -> Option<Finding> {
    let of = |name: &str| facts.number(&format!("net/ipv4/conf/{name}/rp_filter"));
    let all = of("all")?;
    let ways_out = facts.around.ways_out(Family::V4);
    let strict = |iface: &&&str| of(iface).unwrap_or(0).max(all) == 1;
    let first = ways_out.iter().find(strict);
    match first {
        Some(iface) if ways_out.len() > 1 => Some(
            Finding::warning(
                "rp-filter",
                Theme::Network,
                format!(
                    "rp_filter is strict on {iface}, and there are {} ways out",
                    ways_out.len()
                ),
            )
            .means("first packets of data connections that come by the other way are dropped")
            .command(set(&format!("net/ipv4/conf/{iface}/rp_filter"), 2)),
        ),
        Some(_) => Some(ok(
            "rp-filter",
            "rp_filter is strict; there is only one way out",
        )),
        None => Some(ok(
            "rp-filter",
            "rp_filter isn't strict where the default route leaves",
        )),
    }
}

/// A path outside that takes shorter packets, without anything that tells both ends so.
fn mtu(facts: &Facts) -> Option<Finding> {
    if !routes(facts) {
        return None;
    }
    let around = &facts.around;
    let mtu = |name: &str| {
        let link = facts.links.iter().find(|link| link.name == name)?;
        Some(link.mtu)
    };
    let inside: BTreeSet<&str> = facts
        .wanted
        .steering
        .inside
        .iter()
        .filter_map(|inside| match inside {
            Inside::Iface(name) => Some(name.as_str()),
            Inside::Net(net) => around.iface_to(net.addr()),
        })
        .collect();
    let longest = inside.iter().filter_map(|name| mtu(name)).max()?;
    let ways_out = around.ways_out(Family::V4);
    let narrow = ways_out.iter().filter(|name| !inside.contains(*name));
    let (name, outside) = narrow
        .filter_map(|name| Some((*name, mtu(name)?)))
        .min_by_key(|(_, mtu)| *mtu)?;
    if outside >= longest {
        return Some(ok(
            "mtu",
            format!("{name} takes packets of {outside} bytes, as the inside does"),
        ));
    }
    if clamps(facts) {
        return Some(ok(
            "mtu",
            format!("{name} takes {outside} bytes, and a rule clamps the MSS"),
        ));
    }
    let flavour = facts.snapshot.choose(crate::firewall::is_ours).flavour;
    Some(
        Finding::warning(
            "mtu",
            Theme::Network,
            format!("{name} takes packets of {outside} bytes, the inside {longest}, and no rule clamps the MSS"),
        )
        .means("transfers hang where ICMP is filtered on the way")
        .command(clamp(flavour, name)),
    )
}

fn clamp(flavour: Flavour, out: &str) -> String {
    format!(
        "iptables-{flavour} -t mangle -A FORWARD -o {out} -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu"
    )
}

/// Whether any rule changes the MSS.
fn clamps(facts: &Facts) -> bool {
    let tables = facts
        .snapshot
        .views
        .iter()
        .flat_map(|view| &view.rules.tables);
    let mut rules = tables.flat_map(|table| &table.rules);
    rules.any(|rule| rule.target() == Some("TCPMSS")) || facts.native.mentions("exthdr")
}

fn nat64(facts: &Facts) -> Option<Finding> {
    let prefix = NAT64.parse().ok()?;
    let mut routes = facts.around.routes.iter();
    let route = routes.find(|route| route.net == prefix && route.iface != "lo");
    let mut links = facts.links.iter();
    let link = links.find(|link| TRANSLATORS.iter().any(|name| link.name.starts_with(name)));
    let iface = route
        .map(|r| r.iface.as_str())
        .or(link.map(|l| l.name.as_str()))?;
    let what = format!("NAT64 translates by {iface}");
    if facts.wanted.nat64 {
        return Some(Finding::ok("nat64", Theme::Network, what));
    }
    Some(
        Finding::warning("nat64", Theme::Network, what)
            .means(
                "clients that use EPSV work if the server speaks it; EPSV 2, EPRT and servers without EPSV need `--nat64 PREFIX` (default: 64:ff9b::/96)",
            ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::nat::tests::facts;
    use crate::doctor::{Level, judge};
    use crate::firewall::surroundings::Route;
    use crate::netlink::links::Link;

    fn level(facts: &Facts, id: &str) -> Option<Level> {
        let all = judge(facts).into_iter();
        all.filter(|one| one.id == id).map(|one| one.level).max()
    }

    fn set(facts: &mut Facts, path: &str, value: &str) {
        facts.settings.insert(path.into(), value.into());
    }

    #[test]
    fn a_router_that_does_not_forward() {
        let mut facts = facts("");
        set(&mut facts, "net/ipv4/ip_forward", "0");
        assert_eq!(level(&facts, "forwarding"), Some(Level::Problem));
        set(&mut facts, "net/ipv4/ip_forward", "1");
        assert_eq!(level(&facts, "forwarding"), Some(Level::Ok));
        // A host that serves itself needn't.
        facts.wanted.steering.inside.clear();
        facts.wanted.steering.local = true;
        set(&mut facts, "net/ipv4/ip_forward", "0");
        assert_eq!(level(&facts, "forwarding"), None);
    }

    #[test]
    fn ipv6_that_is_not_forwarded() {
        let mut facts = facts("");
        set(&mut facts, "net/ipv6/conf/all/forwarding", "0");
        assert_eq!(level(&facts, "ipv6-forwarding"), None);
        facts.around.routes.push(Route {
            net: "2001:db8:1::/64".parse().unwrap(),
            iface: "lan".into(),
        });
        assert_eq!(level(&facts, "ipv6-forwarding"), Some(Level::Warning));
    }

    #[test]
    fn an_address_that_nobody_can_reach() {
        let mut facts = facts("");
        assert_eq!(level(&facts, "upstream-nat"), Some(Level::Ok));
        for ip in ["192.168.178.2", "100.72.1.2"] {
            facts.around.addresses[0].1 = ip.parse().unwrap();
            facts.around.own = facts.around.addresses.iter().map(|(_, ip)| *ip).collect();
            assert_eq!(level(&facts, "upstream-nat"), Some(Level::Warning), "{ip}");
        }
        facts.wanted.advertised = true;
        assert_eq!(level(&facts, "upstream-nat"), Some(Level::Ok));
    }

    #[test]
    fn a_strict_filter_matters_with_two_ways_out() {
        let mut facts = facts("");
        set(&mut facts, "net/ipv4/conf/all/rp_filter", "0");
        set(&mut facts, "net/ipv4/conf/wan/rp_filter", "1");
        assert_eq!(level(&facts, "rp-filter"), Some(Level::Ok));
        facts.around.routes.push(Route {
            net: "0.0.0.0/0".parse().unwrap(),
            iface: "wan2".into(),
        });
        assert_eq!(level(&facts, "rp-filter"), Some(Level::Warning));
        // The loose mode of "all" wins over the interface's.
        set(&mut facts, "net/ipv4/conf/all/rp_filter", "2");
        assert_eq!(level(&facts, "rp-filter"), Some(Level::Ok));
    }

    #[test]
    fn a_narrow_way_out_needs_a_clamp() {
        let link = |name: &str, mtu| Link {
            name: name.into(),
            mtu,
            kind: String::new(),
        };
        let mut facts = facts("*mangle\n:FORWARD ACCEPT [0:0]\nCOMMIT\n");
        facts.links = vec![link("wan", 1500), link("lan", 1500)];
        assert_eq!(level(&facts, "mtu"), Some(Level::Ok));
        facts.links[0].mtu = 1492;
        assert_eq!(level(&facts, "mtu"), Some(Level::Warning));
        let clamped = crate::doctor::nat::tests::facts(
            "*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu\nCOMMIT\n",
        );
        facts.snapshot = clamped.snapshot;
        assert_eq!(level(&facts, "mtu"), Some(Level::Ok));
    }

    #[test]
    fn nat64_is_told_by_its_route_or_interface() {
        let mut facts = facts("");
        assert_eq!(level(&facts, "nat64"), None);
        facts.around.routes.push(Route {
            net: NAT64.parse().unwrap(),
            iface: "tun7".into(),
        });
        assert_eq!(level(&facts, "nat64"), Some(Level::Warning));
        facts.wanted.nat64 = true;
        assert_eq!(level(&facts, "nat64"), Some(Level::Ok));
    }
}
