//! Reads the user's NAT rules, as iptables saves them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::is_ours;
use super::port_set::PortSet;
use crate::firewall::xtables::save::{OptionValue, Rule};
use crate::firewall::xtables::snapshot::Snapshot;
use crate::net::{Family, parse_network};

/// What a rule does with a connection's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Dnat,
    Redirect,
    Snat,
    Masquerade,
}

/// A rule that translates TCP connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NatRule<'a> {
    pub(crate) action: Action,
    /// Whose connections; `None` where the rule names no network, or one with `!`.
    pub(crate) source: Option<IpNet>,
    /// To which addresses; `None` as for `source`.
    pub(crate) destination: Option<IpNet>,
    /// To which ports; with `ports_negated`, to all others.
    pub(crate) ports: Option<PortSet>,
    pub(crate) ports_negated: bool,
    /// The interface that they come in by.
    pub(crate) came_by: Option<OptionValue<'a>>,
    /// The interface that they leave by.
    pub(crate) out: Option<OptionValue<'a>>,
    /// DNAT: the address, or the first of several.
    pub(crate) to: Option<IpAddr>,
    /// DNAT: the port, or the first of several.
    pub(crate) to_port: Option<u16>,
}

impl<'a> NatRule<'a> {
    /// `None` for other rules, and for those that no TCP connection meets.
    pub(crate) fn read(rule: &'a Rule) -> Option<Self> {
        let action = match rule.target()? {
            "DNAT" => Action::Dnat,
            "REDIRECT" => Action::Redirect,
            "SNAT" => Action::Snat,
            "MASQUERADE" => Action::Masquerade,
            _ => return None,
        };
        if let Some(protocol) = rule.option(&["-p", "--protocol"]) {
            let tcp = matches!(protocol.text, "tcp" | "6" | "all" | "0");
            if tcp == protocol.negated {
                return None;
            }
        }
        let net = |names: &[&str]| {
            let net = rule.option(names).filter(|net| !net.negated)?;
            parse_network(net.text).ok()
        };
        let ports = rule.option(&[
            "--dport",
            "--dports",
            "--ports",
            "--destination-port",
            "--destination-ports",
        ]);
        let (to, to_port) = match rule.option(&["--to-destination"]) {
            Some(to) if action == Action::Dnat => destination(to.text),
            _ => (None, None),
        };
        Some(Self {
            action,
            source: net(&["-s", "--source"]),
            destination: net(&["-d", "--destination"]),
            ports: ports.map(|list| {
                let ranges = list.text.split(',').filter_map(range);
                PortSet::new(ranges.collect())
            }),
            ports_negated: ports.is_some_and(|list| list.negated),
            came_by: rule.option(&["-i", "--in-interface"]),
            out: rule.option(&["-o", "--out-interface"]),
            to,
            to_port,
        })
    }

    /// Whether it may apply to connections to a port.
    pub(crate) fn may_be_for(&self, port: u16) -> bool {
        let named = self.ports.as_ref().map(|ports| ports.contains(port));
        named.is_none_or(|named| named != self.ports_negated)
    }
}

/// All NAT rules of iptables, without ours.
pub(crate) fn nat_rules(snapshot: &Snapshot) -> impl Iterator<Item = (Family, NatRule<'_>)> {
    snapshot.views.iter().flat_map(|view| {
        let rules = view.rules.table("nat").map_or(&[][..], |nat| &nat.rules);
        let users = rules.iter().filter(|rule| !is_ours(rule));
        users.filter_map(|rule| Some((view.family, NatRule::read(rule)?)))
    })
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

/// Reads DNAT's `ADDR[-ADDR][:PORT[-PORT]]`, with IPv6 addresses in brackets where a port follows:
/// the first address, the first port.
fn destination(text: &str) -> (Option<IpAddr>, Option<u16>) {
    let first = |s: &str| s.split('-').next().unwrap_or_default().to_owned();
    if let Ok(both) = text.parse::<SocketAddr>() {
        return (Some(both.ip()), Some(both.port()));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (addrs, port) = rest.split_once(']').unwrap_or((rest, ""));
        let port = first(port.trim_start_matches(':')).parse().ok();
        return (first(addrs).parse().ok(), port);
    }
    if let Ok(addr) = first(text).parse() {
        return (Some(addr), None);
    }
    let (addrs, port) = text.split_once(':').unwrap_or((text, ""));
    (first(addrs).parse().ok(), first(port).parse().ok())
}
