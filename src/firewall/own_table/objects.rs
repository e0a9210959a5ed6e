//! The table, its chains, rules and sets, as netlink requests.

use ipnet::IpNet;

use super::compile::{Action, Condition, End, MarkOf, OwnChain, OwnRule};
use super::{NFQUEUE, OwnTable, Queueing, There};
use crate::firewall::names::STEERING_TABLE;
use crate::net::{Family, TCP};
use crate::netlink::codec::{self, Builder};
use crate::netlink::nftables::expression::{Base, Ct, Expressions, Extension};
use crate::netlink::nftables::set::Set;
use crate::netlink::nftables::{SET_ANONYMOUS, SET_CONSTANT, attr, comment, datatype, msg, policy};
use crate::netlink::socket::NetlinkRequest;

/// What `nft` calls a set without a name; the kernel puts a number in.
const NAMELESS: &str = "__set%d";
/// The most ports of a rule.
pub(super) const MOST_PORTS: usize = u16::MAX as usize;
/// The revision of `struct xt_NFQ_info_v3`, and its flag for bypass.
const NFQUEUE_REVISION: u32 = 3;
const NFQUEUE_BYPASS: u16 = 1;
/// The register that everything is loaded to.
const REGISTER: u32 = 0;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A rule that queues packets.
    QueueingRule,
    Other,
}

/// The requests that turn what is there into what is planned, for one batch.
pub(super) fn installation<'a>(
    plan: &'a [OwnTable],
    there: &'a There,
    queueing: Queueing,
) -> Vec<(What, NetlinkRequest<'a>)> {
    let mut all = Vec::new();
    let planned = |family: u8| plan.iter().any(|table| table.family.number() == family);
    let others = there.families.iter().filter(|family| !planned(**family));
    all.extend(others.map(|family| (What::Other, delete_table(*family))));
    let mut sets = 0;
    for table in plan {
        let family = table.family.number();
        let mut add = |what, request| all.push((what, request));
        add(What::Other, new_table(family));
        if there.families.contains(&family) {
            add(What::Other, flush(family));
        }
        let old = there.chains.iter().filter(|chain| chain.family == family);
        for chain in old {
            let stays = |wanted: &OwnChain| wanted.name == chain.name && wanted.is_hooked_as(chain);
            if !table.chains.iter().any(stays) {
                add(What::Other, delete_chain(family, &chain.name));
            }
        }
        for chain in &table.chains {
            add(What::Other, new_chain(family, chain));
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                if rule.ports().len() > 1 {
                    sets += 1;
                    add(What::Other, new_set(family, sets));
                    add(What::Other, new_elements(family, sets, rule.ports()));
                }
                let what = match rule.action {
                    Action::Queue { .. } => What::QueueingRule,
                    _ => What::Other,
                };
                add(what, new_rule(table.family, chain, rule, queueing, sets));
            }
        }
    }
    all
}

pub(super) fn delete_table(family: u8) -> NetlinkRequest<'static> {
    request(msg::DEL_TABLE, 0, family, |b| {
        b.text(attr::TABLE_NAME, STEERING_TABLE);
    })
}

fn new_table(family: u8) -> NetlinkRequest<'static> {
    request(msg::NEW_TABLE, codec::CREATE, family, |b| {
        b.text(attr::TABLE_NAME, STEERING_TABLE)
            .bytes(attr::TABLE_USERDATA, &comment(0, "ftpalg:steering"));
    })
}

/// Removes all rules of the table, and with them the sets without names.
pub(super) fn flush(family: u8) -> NetlinkRequest<'static> {
    request(msg::DEL_RULE, 0, family, |b| {
        b.text(attr::RULE_TABLE, STEERING_TABLE);
    })
}

fn delete_chain(family: u8, name: &str) -> NetlinkRequest<'_> {
    request(msg::DEL_CHAIN, 0, family, move |b| {
        b.text(attr::CHAIN_TABLE, STEERING_TABLE)
            .text(attr::CHAIN_NAME, name);
    })
}

fn new_chain(family: u8, chain: &OwnChain) -> NetlinkRequest<'_> {
    request(msg::NEW_CHAIN, codec::CREATE, family, move |b| {
        b.text(attr::CHAIN_TABLE, STEERING_TABLE)
            .text(attr::CHAIN_NAME, &chain.name);
        if let Some((hook, priority)) = chain.hook {
            b.nest(attr::CHAIN_HOOK, |b| {
                b.be32(attr::HOOK_NUM, hook)
                    .be32(attr::HOOK_PRIORITY, priority.cast_unsigned());
            });
            b.be32(attr::CHAIN_POLICY, policy::ACCEPT)
                .text(attr::CHAIN_TYPE, "filter");
        }
    })
}

fn new_set(family: u8, id: u32) -> NetlinkRequest<'static> {
    request(msg::NEW_SET, codec::CREATE, family, move |b| {
        b.text(attr::SET_TABLE, STEERING_TABLE)
            .text(attr::SET_NAME, NAMELESS)
            .be32(attr::SET_FLAGS, SET_ANONYMOUS | SET_CONSTANT)
            .be32(attr::SET_KEY_TYPE, datatype::PORT)
            .be32(attr::SET_KEY_LEN, 2)
            .be32(attr::SET_ID, id);
    })
}

fn new_elements(family: u8, id: u32, ports: &[u16]) -> NetlinkRequest<'_> {
    request(msg::NEW_ELEM, codec::CREATE, family, move |b| {
        b.text(attr::ELEMS_TABLE, STEERING_TABLE)
            .text(attr::ELEMS_SET, NAMELESS)
            .be32(attr::ELEMS_SET_ID, id);
        b.nest(attr::ELEMS_LIST, |b| {
            for port in ports {
                b.nest(attr::LIST_ELEM, |b| {
                    b.nest(attr::ELEM_KEY, |b| {
                        b.bytes(attr::DATA_VALUE, &port.to_be_bytes());
                    });
                });
            }
        });
    })
}

fn new_rule<'a>(
    family: Family,
    chain: &'a OwnChain,
    rule: &'a OwnRule,
    queueing: Queueing,
    set: u32,
) -> NetlinkRequest<'a> {
    let flags = codec::CREATE | codec::APPEND;
    request(msg::NEW_RULE, flags, family.number(), move |b| {
        b.text(attr::RULE_TABLE, STEERING_TABLE)
            .text(attr::RULE_CHAIN, &chain.name);
        b.nest(attr::RULE_EXPRESSIONS, |b| {
            rule.put(b, family, queueing, set)
        });
        b.bytes(attr::RULE_USERDATA, &comment(0, &rule.comment));
    })
}

fn request<'a>(
    kind: u16,
    flags: u16,
    family: u8,
    attrs: impl Fn(&mut Builder) + 'a,
) -> NetlinkRequest<'a> {
    let attrs = Box::new(attrs);
    NetlinkRequest {
        kind,
        flags,
        family,
        attrs,
    }
}

impl OwnRule {
    /// Its expressions. `set`: that of its ports, if it has several.
    pub(super) fn put(&self, b: &mut Builder, family: Family, queueing: Queueing, set: u32) {
        let mut list = Expressions::new(b);
        for condition in &self.conditions {
            put_condition(&mut list, condition, family, set);
        }
        match &self.action {
            Action::Drop => _ = list.drop(),
            Action::Jump(chain) => _ = list.jump(chain),
            Action::SetMark { value, mask } => {
                list.packet_mark(REGISTER)
                    .bits(REGISTER, !mask, *value)
                    .set_packet_mark(REGISTER);
            }
            Action::Queue {
                first,
                count,
                bypass,
            } => match queueing {
                Queueing::Queue => _ = list.queue(*first, *count, *bypass),
                Queueing::Target => {
                    list.xt_target(Extension {
                        name: NFQUEUE,
                        revision: NFQUEUE_REVISION,
                        info: &nfqueue(*first, *count, *bypass),
                    });
                }
            },
        }
    }
}

fn put_condition(list: &mut Expressions<'_>, condition: &Condition, family: Family, set: u32) {
    match condition {
        Condition::Tcp => _ = list.protocol(REGISTER, TCP),
        Condition::Port { end, ports } => {
            let offset = if *end == End::Source { 0 } else { 2 };
            list.payload(REGISTER, Base::Transport, offset, 2);
            match ports.as_slice() {
                [port] => _ = list.compare(REGISTER, true, &port.to_be_bytes()),
                _ => _ = list.is_in(NAMELESS, set, REGISTER),
            }
        }
        Condition::Address { end, network } => put_address(list, *end, network, family),
        Condition::Interface { end, is, name } => match end {
            End::Source => _ = list.came_by(REGISTER, *is, name),
            End::Destination => _ = list.leaves_by(REGISTER, *is, name),
        },
        Condition::Mark {
            of,
            is,
            value,
            mask,
        } => {
            match of {
                MarkOf::Packet => list.packet_mark(REGISTER),
                MarkOf::Connection => list.ct(REGISTER, Ct::Mark),
            }
            .bits(REGISTER, *mask, 0)
            .compare(REGISTER, *is, &value.to_ne_bytes());
        }
    }
}

/// As `nft` writes it: of a prefix of whole bytes, only these are loaded.
fn put_address(list: &mut Expressions<'_>, end: End, network: &IpNet, family: Family) {
    let offset = match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    };
    let bytes = |address| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (mut address, mask) = (bytes(network.network()), bytes(network.netmask()));
    let prefix = usize::from(network.prefix_len());
    if prefix == 0 {
        return;
    }
    if prefix.is_multiple_of(8) {
        address.truncate(prefix / 8);
    }
    let len = u32::try_from(address.len()).unwrap_or_default();
    list.payload(REGISTER, Base::Network, offset, len);
    if !prefix.is_multiple_of(8) {
        list.mask(REGISTER, &mask);
    }
    list.compare(REGISTER, true, &address);
}

/// `struct xt_NFQ_info_v3`, with the bytes that align it: first queue, how many, flags.
fn nfqueue(first: u16, count: u16, bypass: bool) -> [u8; 8] {
    let flags = if bypass { NFQUEUE_BYPASS } else { 0 };
    let [a, b] = first.to_ne_bytes();
    let [c, d] = count.to_ne_bytes();
    let [e, f] = flags.to_ne_bytes();
    [a, b, c, d, e, f, 0, 0]
}

/// Whether packets pass a target `NFQUEUE` while nobody reads the queue.
pub(super) fn bypasses(target: &Extension<'_>) -> bool {
    let flags = target.info.get(4..).and_then(|rest| rest.first_chunk());
    flags.is_some_and(|flags| u16::from_ne_bytes(*flags) & NFQUEUE_BYPASS != 0)
}

/// Whether a set is of exactly these ports.
pub(super) fn is_of(set: &Set, ports: &[u16]) -> bool {
    let mut wanted = ports.to_vec();
    wanted.sort_unstable();
    let mut found = Vec::new();
    for element in &set.elements {
        let Some((first, last)) = &element.keys else {
            return false;
        };
        let port = |key: &[u8]| Some(u16::from_be_bytes(*key.first_chunk()?));
        let (Some(first), Some(last)) = (port(first), port(last)) else {
            return false;
        };
        found.extend(first..=last);
    }
    found.sort_unstable();
    set.complete && found == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::own_table::queues;
    use crate::netlink::codec::Messages;
    use crate::netlink::nftables::expression::{self, Expression};
    use crate::netlink::nftables::set::Element;

    fn expressions(rule: &OwnRule, family: Family, queueing: Queueing) -> Vec<u8> {
        let mut builder = Builder::new();
        builder.message(0, 0, 0, 0, 0);
        builder.nest(1, |b| rule.put(b, family, queueing, 1));
        let bytes = builder.finish().unwrap();
        let message = Messages::new(&bytes).next().unwrap();
        message.attrs().find(1).unwrap().value.to_vec()
    }

    fn rule(conditions: Vec<Condition>, action: Action) -> OwnRule {
        OwnRule {
            conditions,
            action,
            comment: String::new(),
        }
    }

    /// This kernel may have one of the two only.
    #[test]
    fn both_ways_to_queue_say_the_same() {
        for bypass in [false, true] {
            let action = Action::Queue {
                first: 0x1234,
                count: 3,
                bypass,
            };
            let rule = rule(vec![Condition::Tcp], action);
            for queueing in [Queueing::Queue, Queueing::Target] {
                let list = expressions(&rule, Family::V4, queueing);
                assert_eq!(queues(&list), Some((queueing, bypass)));
                let last = expression::read(&list).last().unwrap();
                match last {
                    Expression::Queue { first, count, .. } => {
                        assert_eq!((first, count), (0x1234, 3));
                    }
                    Expression::XtTarget(target) => {
                        assert_eq!((target.name, target.revision), ("NFQUEUE", 3));
                        assert_eq!(target.info.len(), 8, "aligned");
                        assert_eq!(target.info[..2], 0x1234u16.to_ne_bytes());
                        assert_eq!(target.info[2..4], 3u16.to_ne_bytes());
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn networks_are_compared_as_nft_does_it() {
        for (network, family, at, len, masked) in [
            ("10.0.0.0/8", Family::V4, 12, 1, false),
            ("172.16.0.0/12", Family::V4, 12, 4, true),
            ("192.168.1.2/32", Family::V4, 12, 4, false),
            ("fd00::/8", Family::V6, 8, 1, false),
            ("2001:db8::/33", Family::V6, 8, 16, true),
        ] {
            let condition = Condition::Address {
                end: End::Source,
                network: network.parse().unwrap(),
            };
            let list = expressions(
                &rule(vec![condition], Action::Drop),
                family,
                Queueing::Queue,
            );
            let all: Vec<_> = expression::read(&list).collect();
            assert_eq!(
                all[0],
                Expression::Payload {
                    to: 0,
                    transport: false,
                    offset: at,
                    len
                },
                "{network}"
            );
            assert_eq!(
                matches!(all[1], Expression::Mask { .. }),
                masked,
                "{network}"
            );
        }
        let any = Condition::Address {
            end: End::Destination,
            network: "0.0.0.0/0".parse().unwrap(),
        };
        let list = expressions(&rule(vec![any], Action::Drop), Family::V4, Queueing::Queue);
        assert_eq!(expression::read(&list).count(), 1, "nothing to compare");
    }

    #[test]
    fn sets_are_compared_by_what_is_in_them() {
        let set = |ranges: &[(u16, u16)], complete| Set {
            elements: ranges
                .iter()
                .map(|(first, last)| Element {
                    keys: Some((first.to_be_bytes().into(), last.to_be_bytes().into())),
                    jump: None,
                    verdict: None,
                })
                .collect(),
            complete,
        };
        assert!(is_of(&set(&[(990, 990), (21, 22)], true), &[21, 22, 990]));
        assert!(!is_of(&set(&[(21, 22)], true), &[21, 22, 990]));
        assert!(!is_of(&set(&[(21, 23), (990, 990)], true), &[21, 22, 990]));
        assert!(!is_of(&set(&[(21, 22), (990, 990)], false), &[21, 22, 990]));
    }
}
