//! What a kernel of a little-endian host said about rule sets (`captured.txt`), read and mutated.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::collect::{Found, NftTable, collect};
use super::*;
use crate::netlink::codec::{Builder, Message, Messages};
use crate::netlink::nftables::expression::{self, Base, Ct, Expressions};
use crate::netlink::nftables::{SET_INTERVAL, family};

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
fn tables(messages: &[(&str, Vec<u8>)]) -> BTreeMap<(u8, String), NftTable> {
    let mut all: BTreeMap<_, NftTable> = BTreeMap::new();
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
        match *kind {
            "rule" => {
                let chain = table.chains.entry(text(&message, 2)).or_default();
                chain.push(expressions(&message));
            }
            "set" => {
                let key = (family, text(&message, 1), text(&message, 2));
                raw.insert(key, (set::flags(&message), Vec::new()));
            }
            _ => {
                let key = (family, text(&message, 1), text(&message, 2));
                if let Some((_, all)) = raw.get_mut(&key) {
                    all.extend(set::elements(&message));
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
    let found = collect(&tables[&(family, table.to_owned())], &["pre".to_owned()]);
    assert!(found.chains.is_empty() && found.sets.is_empty() && !found.cut);
    found
}

/// Where connections to a port are led, by IPv4 or IPv6; `*`: it can't be told.
fn leads(found: &Found, port: u16) -> Vec<String> {
    let connections = [
        ("198.51.100.7", "203.0.113.1", "192.0.2.1"),
        ("2001:db8:7::7", "2001:db8::1", "fd00::99"),
    ];
    let places = [
        "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "fd00::2", "fd00::3",
    ];
    let ports = [port, 21, 80, 8001];
    let mut all = BTreeSet::new();
    for (from, to, nowhere) in connections {
        let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
        let takes = |published: &Published, land| {
            published.takes(from.parse().unwrap(), at(to, port), land)
        };
        let published = found.published.iter();
        for published in published.filter(|p| takes(p, at(nowhere, 9))) {
            let there = places.iter().flat_map(|ip| ports.map(|port| at(ip, port)));
            let place = there.into_iter().find(|there| !takes(published, *there));
            all.insert(place.map_or("*".to_owned(), |at| at.to_string()));
        }
    }
    all.into_iter().collect()
}

/// Checks where ports lead; `PORT` stands for the port itself.
#[track_caller]
fn check(found: &Found, expected: &[(&str, &[u16])]) {
    for (place, ports) in expected {
        for port in *ports {
            let place = place.replace("PORT", &port.to_string());
            assert_eq!(leads(found, *port).join(" "), place, "{port}");
        }
    }
}

#[test]
fn ports_are_found() {
    check(
        &found(family::INET, "nat"),
        &[
            ("10.0.0.2:8001", &[1001]),
            ("", &[1099, 1110, 65530]),
            (
                "10.0.0.2:PORT",
                &[
                    1100, 1109, 1500, 2100, 2101, 2102, 2103, 2202, 2205, 2800, 2900,
                ],
            ),
            ("10.0.0.2:80", &[1300]),
            ("*", &[1400, 2300, 2500, 2604, 2700, 65531, 65535]),
            ("[fd00::2]:80", &[2000]),
        ],
    );
}

#[test]
fn ports_are_found_in_sets_and_maps() {
    check(
        &found(family::INET, "nat"),
        &[
            (
                "*",
                &[
                    1200, 1210, 1219, 1230, 9001, 9002, 1700, 1701, 1710, 1711, 9100, 9109, 9200,
                ],
            ),
            (
                "",
                &[
                    1201, 1209, 1220, 8079, 8091, 7002, 9003, 1702, 9099, 9110, 5999, 6010,
                ],
            ),
            (
                "10.0.0.2:PORT",
                &[8080, 8090, 8443, 7001, 6000, 6009, 6100, 6200],
            ),
        ],
    );
}

#[test]
fn ports_are_found_across_jumps() {
    check(
        &found(family::INET, "nat"),
        &[
            ("10.0.0.2:PORT", &[1800]),
            ("*", &[1801]),
            ("", &[1802, 1]),
            // One rule asks for the port again; another one goes by those of the jump.
            ("10.0.0.2:PORT 10.0.0.2:21", &[1950]),
            ("10.0.0.2:PORT", &[1951, 3000]),
            ("", &[2001]),
            ("*", &[3001]),
        ],
    );
}

#[test]
fn what_is_not_certain_tcp_ports_of_new_connections_is_left_out() {
    check(
        &found(family::INET, "nat"),
        &[
            // UDP.
            ("", &[1600, 1601, 6201]),
            // All ports, and all but one.
            ("", &[5555]),
            // Accepted, of the output hook, reached by nothing.
            ("", &[2400, 3100, 3200]),
        ],
    );
}

#[test]
fn ports_too_many_do_no_harm() {
    check(
        &found(family::INET, "nat"),
        // Another client's, and two that a later comparison leaves out.
        &[("*", &[1250]), ("10.0.0.2:PORT", &[2203, 2204])],
    );
}

#[test]
fn tables_of_one_family_are_read() {
    check(
        &found(family::IPV4, "mine"),
        &[
            ("*", &[4000, 4003, 4100, 4101]),
            ("10.0.0.2:80", &[4001, 4002]),
            ("", &[4004, 4102]),
        ],
    );
    check(
        &found(family::IPV6, "six"),
        &[
            ("[fd00::2]:80", &[5000]),
            ("*", &[5001, 5002]),
            ("", &[5003]),
        ],
    );
}

#[test]
fn rules_of_iptables_that_its_tools_do_not_show_are_read() {
    let tables = tables(&captured());
    let nat = &tables[&(family::IPV4, "nat".to_owned())];
    check(
        &collect(nat, &["PREROUTING".to_owned()]),
        &[
            ("*", &[6000, 6100, 6109, 6200, 6210, 6219, 6500, 6600]),
            ("", &[6110, 6201, 6220, 6300, 6400]),
            ("10.0.0.5:PORT", &[6700]),
        ],
    );
}

/// A rule that ends in a redirect, behind these expressions.
fn redirect_behind(put: impl FnOnce(&mut Expressions<'_>)) -> Vec<u8> {
    let mut b = Builder::new();
    b.message(0, 0, 0, 0, 0).nest(attr::RULE_EXPRESSIONS, |b| {
        put(&mut Expressions::new(b));
        b.nest(attr::LIST_ELEM, |b| {
            b.text(1, "redir");
        });
    });
    let bytes = b.finish().unwrap();
    expressions(&Messages::new(&bytes).next().unwrap())
}

fn ports_of(rule: Vec<u8>) -> Vec<u16> {
    let mut table = NftTable::default();
    table.chains.insert("pre".into(), vec![rule]);
    let found = collect(&table, &["pre".to_owned()]);
    (1..=u16::MAX)
        .filter(|port| !leads(&found, *port).is_empty())
        .collect()
}

#[test]
fn a_masked_port_may_be_any_of_its_values() {
    let masked = |mask: u16, value: u16| {
        ports_of(redirect_behind(|rule| {
            let mask =
                u32::from_ne_bytes([mask.to_be_bytes(), [0; 2]].concat().try_into().unwrap());
            rule.payload(0, Base::Transport, 2, 2)
                .bits(0, mask, 0)
                .compare(0, true, &value.to_be_bytes());
        }))
    };
    let all: Vec<u16> = (0x1230..=0x123f).collect();
    assert_eq!(masked(0xfff0, 0x1230), all);
    // Not in a row: those in between as well.
    let odd = masked(0xfff1, 0x1231);
    assert!(
        (0x1230..=0x123f)
            .filter(|port| port & 1 == 1)
            .all(|port| odd.contains(&port))
    );
    // No bit of the port is left: it was about the source port.
    assert_eq!(masked(0, 0), [0; 0]);
}

#[test]
fn only_what_is_loaded_last_is_compared() {
    // Source and destination port at once.
    let both = ports_of(redirect_behind(|rule| {
        rule.payload(0, Base::Transport, 0, 4)
            .compare(0, true, &[0, 5, 0x12, 0x34]);
    }));
    assert_eq!(both, [0x1234]);
    // The register holds part of an address by the time of the second comparison.
    let address = ports_of(redirect_behind(|rule| {
        rule.payload(0, Base::Transport, 2, 2)
            .port_within(0, 80, 81)
            .payload(0, Base::Network, 16, 2)
            .compare(0, true, &[203, 0]);
    }));
    assert_eq!(address, [80, 81]);
    // Beside the port, in the same key, is a mark.
    let beside = ports_of(redirect_behind(|rule| {
        rule.payload(0, Base::Transport, 2, 2)
            .ct(1, Ct::Mark)
            .compare(0, true, &[0x12, 0x34, 0, 0, 0, 0, 0, 1]);
    }));
    assert_eq!(beside, [0x1234]);
    // The source port says nothing.
    let source = ports_of(redirect_behind(|rule| {
        rule.payload(0, Base::Transport, 0, 2)
            .compare(0, true, &[0, 80]);
    }));
    assert_eq!(source, [0; 0]);
}

#[test]
fn what_is_needed_is_asked_for() {
    let mut all = tables(&captured());
    let table = all.get_mut(&(family::IPV4, "mine".to_owned())).unwrap();
    let chains = std::mem::take(&mut table.chains);
    let sets = std::mem::take(&mut table.sets);
    let bases = ["pre".to_owned()];
    let first = collect(table, &bases);
    assert!(first.published.is_empty() && first.sets.is_empty());
    assert_eq!(first.chains, ["pre".to_owned()].into());
    table.chains = chains;
    let second = collect(table, &bases);
    assert!(second.chains.is_empty());
    assert_eq!(second.sets, sets.keys().cloned().collect());
    // A set that can't be had says nothing: these ports aren't certain.
    table.sets = sets.into_keys().map(|name| (name, None)).collect();
    let third = collect(table, &bases);
    assert!(third.sets.is_empty());
    assert_eq!(leads(&third, 4001), [""; 0]);
    assert_eq!(leads(&third, 4000), ["*"]);
}

#[test]
fn a_set_that_is_read_in_part_is_told_where_that_matters() {
    let mut all = tables(&captured());
    let table = all.get_mut(&(family::INET, "nat".to_owned())).unwrap();
    let base = ["pre".to_owned()];
    for (name, cut) in [("blocked", false), ("web", true), ("hosts", true)] {
        let set = table.sets.get_mut(name).unwrap();
        let whole = set.clone();
        set.as_mut().unwrap().complete = false;
        let found = collect(table, &base);
        assert_eq!(found.cut, cut, "{name}");
        assert!(!leads(&found, 8443).is_empty());
        table.sets.insert(name.to_owned(), whole);
    }
}

/// A rule that jumps, behind a comparison if there are ports.
fn jump(to: &str, ports: Option<(u16, u16)>) -> Vec<u8> {
    let mut b = Builder::new();
    b.message(0, 0, 0, 0, 0).nest(attr::RULE_EXPRESSIONS, |b| {
        if let Some((first, last)) = ports {
            let mut rule = Expressions::new(b);
            rule.payload(0, Base::Transport, 2, 2)
                .port_within(0, first, last);
        }
        b.nest(attr::LIST_ELEM, |b| {
            b.text(1, "immediate").nest(2, |b| {
                b.be32(1, 0).nest(2, |b| {
                    b.nest(attr::DATA_VERDICT, |b| {
                        b.be32(1, (-3i32).cast_unsigned()).text(2, to);
                    });
                });
            });
        });
    });
    let bytes = b.finish().unwrap();
    expressions(&Messages::new(&bytes).next().unwrap())
}

#[test]
fn an_endless_or_growing_path_ends() {
    let mut table = NftTable::default();
    table
        .chains
        .insert("pre".into(), vec![jump("pre", None); 100]);
    let found = collect(&table, &["pre".to_owned()]);
    assert!(!found.cut && found.published.is_empty());
    // Each jump of many for other ports, in circles.
    let jumps = (1..=1000).map(|port| jump("pre", Some((port, 40_000 + port))));
    table.chains.insert("pre".into(), jumps.collect());
    let found = collect(&table, &["pre".to_owned()]);
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
            let found = collect(&table, &["pre".to_owned(), "PREROUTING".to_owned()]);
            prop_assert!(found.published.len() <= 4096);
        }
    }

    #[test]
    fn truncated_messages_are_read_without_harm(cut in any::<prop::sample::Index>()) {
        for (_, bytes) in captured() {
            let cut = &bytes[..cut.index(bytes.len())];
            // The header says how long it was: as a value, attributes end anywhere.
            let message = Message { kind: 0, flags: 0, seq: 0, payload: cut.get(16..).unwrap_or(&[]) };
            let list = expressions(&message);
            let _ = (expression::read(&list).count(), set::flags(&message));
            let _ = Set::new(SET_INTERVAL, set::elements(&message), true);
        }
    }
}
