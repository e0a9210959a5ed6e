//! What the user's own rules in iptables publish: public ports that they lead somewhere already.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::nat_rule::{Action, NatRule, nat_rules};
use super::port_set::PortSet;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::net::PortRange;

/// A rule that leads certain TCP ports of public addresses somewhere (DNAT, REDIRECT).
///
/// Rules without ports (a DMZ host, 1:1 NAT) aren't among them: no port is free of those.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The public addresses; `None`: any.
    net: Option<IpNet>,
    /// Whom it is for; `None`: everybody.
    from: Option<IpNet>,
    /// The public ports.
    ports: PortSet,
    /// Where they lead; `None`: to this host, or somewhere that can't be told.
    to: Option<IpAddr>,
    /// The port there, where it isn't the public one.
    to_port: Option<u16>,
}

impl Published {
    /// Ports of any address, for everybody.
    pub(super) fn of_ports(ports: PortSet, to: Option<IpAddr>, to_port: Option<u16>) -> Self {
        Self {
            net: None,
            from: None,
            ports,
            to,
            to_port,
        }
    }

    /// Whether the rule leads a connection from `from` to `to` elsewhere than to `land`.
    #[must_use]
    pub fn takes(&self, from: IpAddr, to: SocketAddr, land: SocketAddr) -> bool {
        let (ip, port) = (to.ip(), to.port());
        let meant = self.net.is_none_or(|net| net.contains(&ip))
            && self.from.is_none_or(|net| net.contains(&from))
            && (self.to.is_none_or(|t| t.is_ipv4() == ip.is_ipv4()))
            && self.ports.contains(port);
        let there = self.to == Some(land.ip()) && self.to_port.unwrap_or(port) == land.port();
        meant && !there
    }

    /// The public ports.
    pub(super) fn ports(&self) -> &PortSet {
        &self.ports
    }

    /// Where it leads, and to which port, as far as that is known.
    pub(super) fn target(&self) -> (Option<IpAddr>, Option<u16>) {
        (self.to, self.to_port)
    }

    /// A port of the range for which [`takes`](Self::takes) holds, where connections to `to` would
    /// be led to `land` under the same ports.
    #[must_use]
    pub fn takes_of(
        &self,
        from: IpAddr,
        to: IpAddr,
        range: PortRange,
        land: IpAddr,
    ) -> Option<u16> {
        let takes = |port: &u16| {
            let at = |ip| SocketAddr::new(ip, *port);
            self.takes(from, at(to), at(land))
        };
        self.ports.ranges().find_map(|ports| {
            let first = ports.first().max(range.first());
            let last = ports.last().min(range.last());
            // At most one port can lead to where the range leads it. So of two ports, at least one is taken.
            [first, last]
                .into_iter()
                .filter(|_| first <= last)
                .find(takes)
        })
    }

    /// `None` if the rule publishes no certain TCP ports.
    fn of_rule(rule: NatRule<'_>) -> Option<Self> {
        if !matches!(rule.action, Action::Dnat | Action::Redirect) || rule.ports_negated {
            return None;
        }
        Some(Self {
            net: rule.destination,
            from: rule.source,
            ports: rule.ports?,
            to: rule.to,
            to_port: rule.to_port,
        })
    }
}

/// All that the rules of iptables publish; rules of ours left out.
pub(crate) fn published(snapshot: &Snapshot) -> Vec<Published> {
    nat_rules(snapshot)
        .filter_map(|(_, rule)| Published::of_rule(rule))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::xtables::save::Rule;

    fn read(rule: &str) -> Option<Published> {
        let rule = Rule::parse(rule).unwrap();
        Published::of_rule(NatRule::read(&rule)?)
    }

    fn takes(rule: &str, to: &str, land: &str) -> bool {
        let peer = "198.51.100.7".parse().unwrap();
        read(rule).is_some_and(|p| p.takes(peer, to.parse().unwrap(), land.parse().unwrap()))
    }

    #[test]
    fn a_published_port_is_taken_unless_it_leads_to_the_same_place() {
        let web = "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.9:80";
        assert!(takes(web, "203.0.113.1:8080", "10.0.0.2:8080"));
        assert!(!takes(web, "203.0.113.1:8081", "10.0.0.2:8081"));
        assert!(!takes(web, "203.0.113.2:8080", "10.0.0.2:8080"));
        assert!(!takes(web, "203.0.113.1:8080", "10.0.0.9:80"));
        let range = "-A DOCKER ! -i docker0 -p tcp -m multiport --dports 22,50000:50100 -j DNAT --to-destination 10.0.0.2";
        assert!(!takes(range, "203.0.113.1:50011", "10.0.0.2:50011"));
        assert!(takes(range, "203.0.113.1:50011", "10.0.0.2:50012"));
        assert!(takes(range, "203.0.113.1:22", "10.0.0.3:22"));
        let redirect = "-A PREROUTING -p tcp --dport 3128: -j REDIRECT --to-ports 1";
        assert!(takes(redirect, "203.0.113.1:60000", "10.0.0.2:60000"));
        assert!(!takes(redirect, "203.0.113.1:3127", "10.0.0.2:3127"));
        let six = "-A PREROUTING -p tcp --dport 5000 -j DNAT --to-destination [fd00::2]:5000";
        assert!(takes(six, "[2001:db8::1]:5000", "[fd00::3]:5000"));
        assert!(!takes(six, "[2001:db8::1]:5000", "[fd00::2]:5000"));
    }

    #[test]
    fn a_rule_in_a_range_is_found() {
        let of = |rule: &str, range: &str| {
            let ip = |text: &str| text.parse().unwrap();
            let rule = read(rule).unwrap();
            let (from, to, land) = (ip("198.51.100.7"), ip("203.0.113.1"), ip("10.0.0.2"));
            rule.takes_of(from, to, range.parse().unwrap(), land)
        };
        let web = "-A PREROUTING -p tcp --dport 8080:8090 -j DNAT --to-destination 10.0.0.9";
        assert_eq!(of(web, "8085-9000"), Some(8085));
        assert_eq!(of(web, "8000-8080"), Some(8080));
        assert_eq!(of(web, "8091-9000"), None);
        let same = "-A PREROUTING -p tcp --dport 40000:40009 -j DNAT --to-destination 10.0.0.2";
        assert_eq!(of(same, "40000-40009"), None);
        let one =
            "-A PREROUTING -p tcp --dport 40000:40009 -j DNAT --to-destination 10.0.0.2:40000";
        assert_eq!(of(one, "40000-40009"), Some(40009));
    }

    #[test]
    fn what_takes_all_ports_or_other_protocols_or_peers_is_left_out() {
        for rule in [
            "-A PREROUTING -d 203.0.113.1/32 -j DNAT --to-destination 10.0.0.99",
            "-A PREROUTING -p udp --dport 5000 -j DNAT --to-destination 10.0.0.99",
            "-A PREROUTING -s 192.0.2.0/24 -p tcp --dport 5000 -j DNAT --to-destination 10.0.0.99",
            "-A PREROUTING -p tcp ! --dport 21 -j DNAT --to-destination 10.0.0.99",
            "-A PREROUTING -p tcp --dport 5000 -j ACCEPT",
        ] {
            assert!(!takes(rule, "203.0.113.1:5000", "10.0.0.2:5000"), "{rule}");
        }
    }
}
