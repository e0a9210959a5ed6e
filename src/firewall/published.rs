//! What the user's own rules publish: ports of public addresses that lead to somebody already.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::derive::destination;
use super::dnat::Span;
use super::is_ours;
use super::steering::Network;
use crate::firewall::xtables::save::Rule;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::net::PortRange;

/// A rule that leads certain TCP ports of public addresses somewhere (DNAT, REDIRECT).
///
/// Rules without ports (a DMZ host, 1:1 NAT) aren't among them: no port is free of those.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// The public addresses; `None`: any.
    net: Option<Arc<[Span]>>,
    /// Whom it is for; `None`: everybody.
    from: Option<Arc<[Span]>>,
    /// The public ports, both ends included.
    ports: Arc<[(u16, u16)]>,
    /// Where they lead; `None`: to this host, or somewhere that can't be told.
    to: Option<IpAddr>,
    /// The port there, where it isn't the public one.
    to_port: Option<u16>,
}

impl Published {
    /// Whether the rule leads a connection from `from` to `to` elsewhere than to `land`.
    #[must_use]
    pub fn takes(&self, from: IpAddr, to: SocketAddr, land: SocketAddr) -> bool {
        let covers = |spans: &Option<Arc<[Span]>>, ip| {
            let has = |(first, last): &Span| (*first..=*last).contains(&ip);
            spans.as_ref().is_none_or(|spans| spans.iter().any(has))
        };
        let (ip, port) = (to.ip(), to.port());
        let meant = covers(&self.net, ip)
            && covers(&self.from, from)
            && (self.to.is_none_or(|t| t.is_ipv4() == ip.is_ipv4()))
            && self.ports.iter().any(|(a, b)| (*a..=*b).contains(&port));
        let there = self.to == Some(land.ip()) && self.to_port.unwrap_or(port) == land.port();
        meant && !there
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
        self.ports.iter().find_map(|&(first, last)| {
            let (first, last) = (first.max(range.first()), last.min(range.last()));
            // At most one port may lead to where the range leads it: that isn't both of them.
            [first, last]
                .into_iter()
                .filter(|_| first <= last)
                .find(takes)
        })
    }

    /// From what a rule says.
    pub(super) fn new(
        net: Option<Arc<[Span]>>,
        from: Option<Arc<[Span]>>,
        ports: Arc<[(u16, u16)]>,
        to: Option<IpAddr>,
        to_port: Option<u16>,
    ) -> Self {
        Self {
            net,
            from,
            ports,
            to,
            to_port,
        }
    }

    /// Reads a rule; `None` if it publishes no certain TCP ports.
    fn read(rule: &Rule) -> Option<Self> {
        let target = rule
            .target()
            .filter(|t| matches!(*t, "DNAT" | "REDIRECT"))?;
        let plain = |names: &[&str]| rule.option(names).filter(|v| !v.negated);
        let protocol = plain(&["-p", "--protocol"])?;
        if !matches!(protocol.text, "tcp" | "6") {
            return None;
        }
        let list = plain(&[
            "--dport",
            "--dports",
            "--destination-port",
            "--destination-ports",
        ])?;
        let ports = list.text.split(',').filter_map(range).collect();
        let net = |names: &[&str]| {
            let net: Network = plain(names)?.text.parse().ok()?;
            Some(Arc::from([(net.addr(), net.last())]))
        };
        let (to, to_port) = match target {
            "DNAT" => rule
                .option(&["--to-destination"])
                .map_or((None, None), |to| destination(to.text)),
            _ => (None, None),
        };
        Some(Self::new(
            net(&["-d", "--destination"]),
            net(&["-s", "--source"]),
            ports,
            to,
            to_port,
        ))
    }
}

/// `21` or `1024:2048`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once(':').unwrap_or((text, text));
    let end = |text: &str, open| match text {
        "" => Some(open),
        _ => text.parse().ok(),
    };
    Some((end(low, 0)?, end(high, u16::MAX)?))
}

/// All that the rules of iptables publish; rules of ours left out.
pub(crate) fn published(snapshot: &Snapshot) -> Vec<Published> {
    snapshot
        .views
        .iter()
        .filter_map(|view| view.rules.table("nat"))
        .flat_map(|table| &table.rules)
        .filter(|rule| !is_ours(rule))
        .filter_map(Published::read)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(rule: &str, to: &str, land: &str) -> bool {
        let rule = Rule::parse(rule).unwrap();
        let peer = "198.51.100.7".parse().unwrap();
        Published::read(&rule)
            .is_some_and(|p| p.takes(peer, to.parse().unwrap(), land.parse().unwrap()))
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
            let rule = Published::read(&Rule::parse(rule).unwrap()).unwrap();
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
