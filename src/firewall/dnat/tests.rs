//! What a kernel of a little-endian host said about rule sets (`captured.txt`), followed and mutated.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::expression::{Set, elements, rule, set_flags};
use super::trace::{Found, Table, trace};
use super::*;
use crate::netlink::codec::{Message, Messages};

const CAPTURED: &str = include_str!("captured.txt");

/// The messages of the capture, with their kind.
fn captured() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |hex: &str| {
        (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect()
    };
    CAPTURED
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(kind, _)| *kind != "#")
        .map(|(kind, hex)| (kind, bytes(hex)))
        .collect()
}

/// The tables that messages tell of.
fn tables(messages: &[(&str, Vec<u8>)]) -> BTreeMap<(u8, String), Table> {
    let mut all: BTreeMap<_, Table> = BTreeMap::new();
    let text = |message: &Message<'_>, kind| {
        let found = message.attrs().find(kind).and_then(|a| a.text());
        found.unwrap_or_default().to_owned()
    };
    let mut raw = BTreeMap::new();
    for (kind, bytes) in messages {
        let Some(message) = Messages::new(bytes).next() else {
            continue;
        };
        let family = message.family();
        let table = all.entry((family, text(&message, 1))).or_default();
        table.family = family;
        match *kind {
            "rule" => {
                let chain = table.chains.entry(text(&message, 2)).or_default();
                chain.extend(rule(&message));
            }
            "set" => {
                let key = (family, text(&message, 1), text(&message, 2));
                raw.insert(key, (set_flags(&message), Vec::new()));
            }
            _ => {
                let key = (family, text(&message, 1), text(&message, 2));
                if let Some((_, all)) = raw.get_mut(&key) {
                    all.extend(elements(&message));
                }
            }
        }
    }
    for ((family, table, name), (flags, elements)) in raw {
        let table = all.entry((family, table)).or_default();
        let set = Set::new(flags, elements, true);
        table.sets.insert(name, Some(set));
    }
    all
}

fn found(family: u8, table: &str) -> Found {
    let tables = tables(&captured());
    let found = trace(&tables[&(family, table.to_owned())], &["pre".to_owned()]);
    assert!(found.chains.is_empty() && found.sets.is_empty() && !found.cut);
    found
}

/// Where connections are led that come from 198.51.100.7 (2001:db8:7::7); `*`: it can't be told.
fn leads(found: &Found, to: &str) -> Option<Vec<String>> {
    let to: SocketAddr = to.parse().unwrap();
    let from = match to.is_ipv4() {
        true => "198.51.100.7",
        false => "2001:db8:7::7",
    };
    let nowhere = SocketAddr::new(
        if to.is_ipv4() {
            "192.0.2.1"
        } else {
            "fd00::99"
        }
        .parse()
        .unwrap(),
        9,
    );
    let places = [
        "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8",
        "fd00::2", "fd00::3",
    ];
    let ports = [to.port(), 1, 2, 21, 80, 81, 8001];
    let takes: Vec<_> = found
        .published
        .iter()
        .filter(|p| p.takes(from.parse().unwrap(), to, nowhere))
        .collect();
    let mut all = BTreeSet::new();
    for published in &takes {
        let there = places
            .iter()
            .flat_map(|ip| ports.map(|port| SocketAddr::new(ip.parse().unwrap(), port)));
        let place = there
            .into_iter()
            .find(|at| !published.takes(from.parse().unwrap(), to, *at));
        all.insert(place.map_or("*".to_owned(), |at| at.to_string()));
    }
    (!takes.is_empty()).then(|| all.into_iter().collect())
}

#[track_caller]
fn check(found: &Found, expected: &[(&str, &str)]) {
    for (to, place) in expected {
        let got = leads(found, to).unwrap_or_default().join(" ");
        assert_eq!(got, *place, "{to}");
    }
}

#[test]
fn ports_and_addresses_are_read() {
    check(
        &found(1, "nat"),
        &[
            ("203.0.113.1:1001", "10.0.0.2:8001"),
            ("203.0.113.2:1001", ""),
            ("[2001:db8::1]:1001", ""),
            ("203.0.113.1:1099", ""),
            ("203.0.113.1:1100", "10.0.0.2:1100"),
            ("203.0.113.1:1109", "10.0.0.2:1109"),
            ("203.0.113.1:1110", ""),
            ("[2001:db8::1]:1105", ""),
            ("203.0.113.1:1300", "10.0.0.2:80"),
            ("203.0.113.1:1400", "*"),
            ("[2001:db8::1]:1400", "*"),
            ("203.0.113.1:1500", "10.0.0.2:1500"),
            ("[2001:db8::1]:2000", "[fd00::2]:80"),
            ("[2001:db8:0:1::1]:2000", ""),
            ("203.0.113.1:2000", ""),
            ("203.0.113.65:2102", "10.0.0.2:2102"),
            ("203.0.113.79:2102", "10.0.0.2:2102"),
            ("203.0.113.80:2102", ""),
            ("203.0.113.32:2101", "10.0.0.2:2101"),
            ("203.0.113.40:2101", "10.0.0.2:2101"),
            ("203.0.113.41:2101", ""),
            ("203.0.113.50:2900", "10.0.0.2:2900"),
            ("203.0.113.51:2900", ""),
            ("203.0.113.1:65530", ""),
            ("203.0.113.1:65531", "*"),
            ("203.0.113.1:65535", "*"),
            ("203.0.113.1:2500", "*"),
            ("203.0.113.1:2604", "10.0.0.2:2604"),
            ("203.0.113.1:2700", "*"),
            ("203.0.113.1:2800", "10.0.0.2:2800"),
            // What can't be told may be so.
            ("203.0.113.5:2103", "10.0.0.2:2103"),
        ],
    );
}

#[test]
fn sets_and_maps_are_read() {
    check(
        &found(1, "nat"),
        &[
            ("203.0.113.1:1200", "*"),
            ("203.0.113.1:1201", ""),
            ("203.0.113.1:1209", ""),
            ("203.0.113.1:1210", "*"),
            ("203.0.113.1:1219", "*"),
            ("203.0.113.1:1220", ""),
            ("203.0.113.1:1230", "*"),
            ("203.0.113.1:8079", ""),
            ("203.0.113.1:8080", "10.0.0.2:8080"),
            ("203.0.113.1:8090", "10.0.0.2:8090"),
            ("203.0.113.1:8091", ""),
            ("203.0.113.1:8443", "10.0.0.2:8443"),
            ("203.0.113.1:7001", "10.0.0.2:7001"),
            ("203.0.113.1:7002", ""),
            // Another client's.
            ("203.0.113.1:1250", ""),
            ("203.0.113.1:9001", "10.0.0.3:80"),
            ("203.0.113.1:9002", "10.0.0.4:81"),
            ("203.0.113.1:9003", ""),
            ("203.0.113.1:1700", "10.0.0.7:1700"),
            ("203.0.113.1:1701", "10.0.0.8:1701"),
            ("203.0.113.1:1710", "10.0.0.7:1"),
            ("203.0.113.1:1711", "10.0.0.8:2"),
            ("203.0.113.1:9099", ""),
            ("203.0.113.1:9100", "10.0.0.5:9100"),
            ("203.0.113.1:9109", "10.0.0.5:9109"),
            ("203.0.113.1:9110", ""),
            ("203.0.113.1:9200", "10.0.0.6:9200"),
            ("203.0.113.4:6000", "10.0.0.2:6000"),
            ("203.0.113.7:6009", "10.0.0.2:6009"),
            ("203.0.113.8:6009", ""),
            ("203.0.113.7:6010", ""),
            ("203.0.113.9:6100", "10.0.0.2:6100"),
            ("203.0.113.9:6000", ""),
            ("203.0.113.1:6200", "10.0.0.2:6200"),
            ("203.0.113.20:2100", "10.0.0.2:2100"),
            ("203.0.113.21:2100", "10.0.0.2:2100"),
            ("203.0.113.22:2100", ""),
            ("203.0.113.1:2202", "10.0.0.2:2202"),
            ("203.0.113.1:2203", ""),
            ("203.0.113.1:2204", ""),
            ("203.0.113.1:2205", "10.0.0.2:2205"),
            ("203.0.113.1:2300", "10.0.0.2:2300 10.0.0.3:2300"),
        ],
    );
}

#[test]
fn jumps_are_followed() {
    check(
        &found(1, "nat"),
        &[
            ("203.0.113.1:1800", "10.0.0.2:1800"),
            ("203.0.113.1:1801", "*"),
            ("203.0.113.1:1802", ""),
            ("203.0.113.1:1", ""),
            ("203.0.113.1:1950", "10.0.0.2:21"),
            ("203.0.113.1:1951", ""),
            // The ports were asked for before the jump.
            ("203.0.113.60:1951", "10.0.0.2:1951"),
            ("203.0.113.60:1800", "10.0.0.2:1800"),
            ("203.0.113.1:3000", "10.0.0.2:3000"),
            ("203.0.113.1:3001", "*"),
        ],
    );
}

#[test]
fn what_is_not_certain_tcp_ports_of_new_connections_is_left_out() {
    check(
        &found(1, "nat"),
        &[
            // UDP.
            ("203.0.113.1:1600", ""),
            ("203.0.113.1:1601", ""),
            ("203.0.113.1:6201", ""),
            // All ports, and all but one.
            ("203.0.113.99:5555", ""),
            ("203.0.113.1:5555", ""),
            // Accepted, of the output hook, reached by nothing.
            ("203.0.113.1:2400", ""),
            ("203.0.113.1:3100", ""),
            ("203.0.113.1:3200", ""),
        ],
    );
}

#[test]
fn tables_of_one_family_are_read() {
    check(
        &found(2, "mine"),
        &[
            ("203.0.113.1:4000", "*"),
            ("[2001:db8::1]:4000", ""),
            ("203.0.113.1:4001", "10.0.0.2:80"),
            ("203.0.113.1:4002", "10.0.0.2:80"),
            ("203.0.113.2:4002", ""),
            ("203.0.113.1:4003", "*"),
            ("203.0.113.1:4100", "10.0.0.2:80"),
            ("203.0.113.2:4100", ""),
            ("203.0.113.2:4101", "10.0.0.3:81"),
        ],
    );
    check(
        &found(10, "six"),
        &[
            ("[2001:db8::1]:5000", "[fd00::2]:80"),
            ("203.0.113.1:5000", ""),
            ("[2001:db8::1]:5001", "[fd00::3]:80"),
            ("[2001:db8::1]:5002", "*"),
            ("[2001:db8::2]:5002", ""),
        ],
    );
}

#[test]
fn rules_of_iptables_that_its_tools_do_not_show_are_read() {
    let tables = tables(&captured());
    check(
        &trace(&tables[&(2, "nat".to_owned())], &["PREROUTING".to_owned()]),
        &[
            ("203.0.113.1:6000", "10.0.0.2:80"),
            ("203.0.0.1:6100", "10.0.0.3:6100"),
            ("203.0.15.255:6109", "10.0.0.3:6109"),
            ("203.0.16.1:6109", ""),
            ("203.0.113.1:6200", "10.0.0.4:6200"),
            ("203.0.113.1:6201", ""),
            ("203.0.113.1:6210", "10.0.0.4:6210"),
            ("203.0.113.1:6219", "10.0.0.4:6219"),
            ("203.0.113.1:6220", ""),
            ("203.0.113.1:6300", ""),
            ("203.0.113.1:6400", ""),
            ("203.0.113.1:6500", "*"),
            ("203.0.113.1:6600", "*"),
            ("203.0.113.1:6700", "10.0.0.5:6700"),
        ],
    );
}

#[test]
fn what_is_needed_is_asked_for() {
    let mut all = tables(&captured());
    let table = all.get_mut(&(2, "mine".to_owned())).unwrap();
    let chains = std::mem::take(&mut table.chains);
    let sets = std::mem::take(&mut table.sets);
    let bases = ["pre".to_owned()];
    let first = trace(table, &bases);
    assert!(first.published.is_empty() && first.sets.is_empty());
    assert_eq!(first.chains, ["pre".to_owned()].into());
    table.chains = chains;
    let second = trace(table, &bases);
    assert!(second.chains.is_empty());
    assert_eq!(second.sets, sets.keys().cloned().collect());
    // A set that can't be had says nothing: these ports aren't certain.
    table.sets = sets.into_keys().map(|name| (name, None)).collect();
    let third = trace(table, &bases);
    assert!(third.sets.is_empty());
    assert_eq!(leads(&third, "203.0.113.1:4001"), None);
    assert!(leads(&third, "203.0.113.1:4000").is_some());
}

#[test]
fn a_set_that_is_read_in_part_is_told_where_that_matters() {
    let mut all = tables(&captured());
    let table = all.get_mut(&(1, "nat".to_owned())).unwrap();
    let base = ["pre".to_owned()];
    for (name, cut) in [("blocked", false), ("web", true), ("hosts", true)] {
        let set = table.sets.get_mut(name).unwrap();
        let whole = set.clone();
        set.as_mut().unwrap().complete = false;
        let found = trace(table, &base);
        assert_eq!(found.cut, cut, "{name}");
        // Who is meant isn't known: anybody.
        assert_eq!(
            leads(&found, "203.0.113.1:1250").is_some(),
            name == "blocked"
        );
        assert!(leads(&found, "203.0.113.1:8443").is_some());
        table.sets.insert(name.to_owned(), whole);
    }
}

#[test]
fn an_endless_or_growing_path_ends() {
    let jump = |to: &str| vec![super::Expression::Jump(to.to_owned())];
    let mut table = Table {
        family: 2,
        ..Table::default()
    };
    table.chains.insert("pre".into(), vec![jump("pre"); 100]);
    let found = trace(&table, &["pre".to_owned()]);
    assert!(found.cut && found.published.is_empty());
}

proptest! {
    #[test]
    fn garbage_is_followed_without_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..200)
    ) {
        let mut messages = captured();
        for (message, at, byte) in changes {
            let (_, bytes) = message.get(&messages).clone();
            let place = message.index(messages.len());
            let mut bytes = bytes;
            let at = at.index(bytes.len());
            bytes[at] = byte;
            messages[place].1 = bytes;
        }
        for (_, table) in tables(&messages) {
            let found = trace(&table, &["pre".to_owned(), "PREROUTING".to_owned()]);
            prop_assert!(found.published.len() <= 4096);
        }
    }

    #[test]
    fn truncated_messages_are_read_without_harm(cut in any::<prop::sample::Index>()) {
        for (_, bytes) in captured() {
            let cut = &bytes[..cut.index(bytes.len())];
            // The header says how long it was: as a value, attributes end anywhere.
            let message = Message { kind: 0, flags: 0, seq: 0, payload: cut.get(16..).unwrap_or(&[]) };
            let _ = (rule(&message), set_flags(&message));
            let _ = Set::new(4, elements(&message), true);
        }
    }
}
