//! Finds the servers that the user's rules lead control connections to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::nat_rule::{Action, NatRule, nat_rules};
use super::published::Published;
use super::surroundings::Surroundings;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::net::Family;

/// A rule for more ports than this isn't about FTP.
const MANY: u32 = 16;

/// A rule that leads connections to a public port to a server.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forwarding {
    pub(crate) family: Family,
    /// The public addresses; `None`: any.
    pub(crate) net: Option<IpNet>,
    /// The public port.
    pub(crate) port: u16,
    /// The server; `None`: this host.
    pub(crate) server: Option<IpAddr>,
    /// The server's port.
    pub(crate) server_port: u16,
    /// The interface that they come in by, if the rule names one.
    pub(crate) came_by: Option<String>,
}

impl Forwarding {
    /// The public address and port.
    pub(crate) fn public(&self, around: &Surroundings) -> String {
        let port = self.port;
        let of_iface = || {
            let iface = self.came_by.as_deref()?;
            let mut own = around.addresses.iter();
            let family = |ip: &IpAddr| Family::of(*ip) == self.family;
            let (_, ip) = own.find(|(name, ip)| name == iface && family(ip))?;
            Some(*ip)
        };
        match self.net {
            Some(net) if net.prefix_len() == net.max_prefix_len() => {
                SocketAddr::new(net.addr(), port).to_string()
            }
            Some(net) => format!("{net} port {port}"),
            None => match of_iface() {
                Some(ip) => SocketAddr::new(ip, port).to_string(),
                None => format!("any address, port {port}"),
            },
        }
    }

    /// The server's address and port.
    pub(crate) fn target(&self) -> Target {
        Target(self.server, self.server_port)
    }
}

/// Where a rule leads, in words.
pub(crate) struct Target(Option<IpAddr>, u16);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(server) => SocketAddr::new(server, self.1).fmt(f),
            None => write!(f, "this host, port {}", self.1),
        }
    }
}

/// The rules that are about one of these ports: as the public one, or as the server's. `native` has
/// those that were written for nft.
pub(crate) fn forwardings(
    snapshot: &Snapshot,
    native: &[Published],
    around: &Surroundings,
    ports: &[u16],
) -> Vec<Forwarding> {
    let mut found: Vec<Forwarding> = nat_rules(snapshot)
        .flat_map(|(family, rule)| of_rule(family, &rule, around, ports))
        .collect();
    for rule in native {
        let (to, to_port) = rule.target();
        let many = rule.ports().ranges().map(|range| range.size()).sum::<u32>() > MANY;
        for port in ports.iter().copied() {
            // What leads to a port of its own for each connection isn't known.
            if !many && rule.ports().contains(port) && to.is_some() {
                found.push(Forwarding {
                    family: to.map_or(Family::V4, Family::of),
                    net: None,
                    port,
                    server: to.filter(|to| !around.is_own(*to)),
                    server_port: to_port.unwrap_or(port),
                    came_by: None,
                });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn of_rule(
    family: Family,
    rule: &NatRule<'_>,
    around: &Surroundings,
    ports: &[u16],
) -> Vec<Forwarding> {
    let to = match rule.action {
        Action::Dnat if rule.to.is_none() && rule.to_port.is_none() => return Vec::new(),
        Action::Dnat => rule.to.filter(|to| !around.is_own(*to)),
        Action::Redirect => None,
        Action::Snat | Action::Masquerade => return Vec::new(),
    };
    let few = rule.ports.as_ref().filter(|set| {
        let size: u32 = set.ranges().map(|range| range.size()).sum();
        !rule.ports_negated && size <= MANY
    });
    let public: Vec<u16> = match few {
        Some(set) => set
            .ranges()
            .flat_map(|range| range.first()..=range.last())
            .filter(|port| {
                let inner = rule.to_port.unwrap_or(*port);
                ports.contains(port) || ports.contains(&inner)
            })
            .collect(),
        None => {
            let meant =
                |port: &u16| rule.may_be_for(*port) && rule.to_port.is_none_or(|to| to == *port);
            ports.iter().copied().filter(meant).collect()
        }
    };
    let came_by = rule.came_by.filter(|iface| !iface.negated);
    public
        .into_iter()
        .map(|port| Forwarding {
            family,
            net: rule.destination,
            port,
            server: to,
            server_port: rule.to_port.unwrap_or(port),
            came_by: came_by.map(|iface| iface.text.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::xtables::Flavour;
    use crate::firewall::xtables::save::Ruleset;
    use crate::firewall::xtables::snapshot::View;

    fn found(rule: &str, ports: &[u16]) -> Vec<String> {
        let text = format!("*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {rule}\nCOMMIT\n");
        let snapshot = Snapshot {
            views: vec![View {
                family: Family::V4,
                flavour: Flavour::Nft,
                rules: Ruleset::parse(&text),
            }],
            plain: None,
        };
        let around = Surroundings {
            own: ["203.0.113.7".parse().unwrap()].into(),
            addresses: vec![("wan".into(), "203.0.113.7".parse().unwrap())],
            ..Surroundings::default()
        };
        forwardings(&snapshot, &[], &around, ports)
            .iter()
            .map(|one| format!("{} {}", one.public(&around), one.target()))
            .collect()
    }

    #[test]
    fn public_and_inner_ports_are_told() {
        let to = "-j DNAT --to-destination 10.0.0.5";
        for (rule, ports, want) in [
            (
                format!("-d 203.0.113.7/32 -p tcp --dport 21 {to}"),
                [21],
                "203.0.113.7:21 10.0.0.5:21",
            ),
            (
                format!("-i wan -p tcp --dport 21 {to}"),
                [21],
                "203.0.113.7:21 10.0.0.5:21",
            ),
            (
                format!("-p tcp --dport 21 {to}"),
                [21],
                "any address, port 21 10.0.0.5:21",
            ),
            (
                format!("-p tcp --dport 2121 {to}:21"),
                [21],
                "any address, port 2121 10.0.0.5:21",
            ),
            (
                format!("-p tcp --dport 21 {to}:2121"),
                [21],
                "any address, port 21 10.0.0.5:2121",
            ),
            (
                format!("-p tcp -m multiport --dports 21,80 {to}"),
                [21],
                "any address, port 21 10.0.0.5:21",
            ),
            (
                format!("-d 203.0.113.0/24 {to}"),
                [21],
                "203.0.113.0/24 port 21 10.0.0.5:21",
            ),
            (
                "-p tcp --dport 21 -j REDIRECT".into(),
                [21],
                "any address, port 21 this host, port 21",
            ),
            (format!("-p tcp --dport 80 {to}"), [21], ""),
            (format!("-p udp --dport 21 {to}"), [21], ""),
            (format!("-p tcp --dport 1000:2000 {to}"), [21], ""),
        ] {
            assert_eq!(found(&rule, &ports).join("; "), want, "{rule}");
        }
    }
}
