//! Adds rules of iptables-nft over netlink, as the tool itself writes them.
//!
//! A commit of the tool takes some hundred microseconds, most of them its own. What it gives to the
//! kernel for a pinhole is the same each time, but for the pinhole's values. So when the chains are
//! made, it writes the rules of two examples into a chain that nothing jumps to, and the kernel tells
//! what it holds. The first example shows where the values stand: its bytes are found nowhere else. The
//! second one is the proof: with its values in these places, the first must become what the tool wrote
//! for the second. What stands where in a rule, and in which revision of a match, is for the tool to
//! know.
//!
//! Where anything of that isn't so, there are no moulds, and the tool makes all changes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use super::handles::{NatHandle, deletion, rule_in};
use super::lines::{Conditions, DateStop, RuleLine, probe};
use super::open::HoleRules;
use super::wording;
use crate::firewall::RulesError;
use crate::firewall::names::PROBE_CHAIN;
use crate::firewall::tables::rules_of;
use crate::net::{Family, Mark, TCP};
use crate::netlink::codec::{APPEND, Builder, CREATE, ECHO};
use crate::netlink::nftables::{attr, msg};
use crate::netlink::socket::{BatchError, NetlinkRequest, Socket};
use crate::pinholes::Pinhole;

/// The most bytes of a value: a number in a comment has at most 20 digits.
const LONGEST: usize = 20;
/// How many values a pinhole's rules have.
const VALUES: usize = 11;

/// Which rules a pinhole has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HoleKind {
    translated: bool,
    with_source: bool,
    with_mark: bool,
}

impl HoleKind {
    fn of(hole: &Pinhole) -> Self {
        Self {
            translated: hole.land != hole.to,
            with_source: hole.as_source.is_some(),
            with_mark: hole.mark != 0,
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self {
            translated: bits & 1 != 0,
            with_source: bits & 2 != 0,
            with_mark: bits & 4 != 0,
        })
    }
}

/// The bytes of a value as they stand in a rule; none if the pinhole hasn't got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RuleValue {
    bytes: [u8; LONGEST],
    len: usize,
}

impl RuleValue {
    fn new(value: &[u8]) -> Self {
        let mut bytes = [0; LONGEST];
        let len = value.len().min(LONGEST);
        for (to, from) in bytes.iter_mut().zip(value) {
            *to = *from;
        }
        Self { bytes, len }
    }

    fn of_ip(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::new(&ip.octets()),
            IpAddr::V6(ip) => Self::new(&ip.octets()),
        }
    }

    /// Digits, with zeros behind them, as they stand at the end of a comment.
    fn of_serial(serial: u64) -> Self {
        let len = LONGEST;
        Self {
            len,
            ..Self::new(serial.to_string().as_bytes())
        }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// All values of a pinhole's rules, always in the same order.
fn values(hole: &Pinhole, mark: Mark, conditions: Conditions, serial: u64) -> [RuleValue; VALUES] {
    let none = RuleValue::new(&[]);
    let number = |number: u32| RuleValue::new(&number.to_ne_bytes());
    let bit = if conditions.limited { mark.bit() } else { 0 };
    [
        RuleValue::of_ip(hole.from),
        RuleValue::of_ip(hole.to.ip()),
        // In the packet, and in structures of the matches.
        RuleValue::new(&hole.to.port().to_be_bytes()),
        RuleValue::new(&hole.to.port().to_ne_bytes()),
        RuleValue::of_ip(hole.land.ip()),
        RuleValue::new(&hole.land.port().to_be_bytes()),
        hole.as_source.map_or(none, RuleValue::of_ip),
        // The packet's mark, and the connection's.
        number(hole.mark),
        number(hole.mark | bit),
        conditions
            .until
            .map_or(none, |until| number(until.seconds())),
        RuleValue::of_serial(serial),
    ]
}

/// The expressions of a rule, and where its values stand in them.
#[derive(Clone, Debug)]
struct Mould {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Where a value stands.
#[derive(Clone, Debug)]
struct Place {
    bytes: Range<usize>,
    /// Which of the values.
    which: usize,
}

/// A rule with its values.
type CastRule<'a> = (&'a [u8], &'a [RuleValue]);

impl Mould {
    /// The mould of two rules that differ in their values only; `None` if they differ in more.
    fn new((bytes, values): CastRule<'_>, (other, of_other): CastRule<'_>) -> Option<Self> {
        let mut places = Vec::new();
        for (which, value) in values.iter().enumerate() {
            let value = value.bytes();
            if !value.is_empty() {
                let windows = bytes.windows(value.len()).enumerate();
                let found = windows.filter(|(_, window)| *window == value);
                places.extend(found.map(|(offset, _)| Place {
                    bytes: offset..offset.saturating_add(value.len()),
                    which,
                }));
            }
        }
        let bytes = bytes.to_vec();
        let mould = Self { bytes, places };
        (mould.cast(of_other)? == other).then_some(mould)
    }

    /// The rule with these values; `None` if one of them doesn't fit, such as an address of the other
    /// family.
    fn cast(&self, values: &[RuleValue]) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        for place in &self.places {
            let value = values.get(place.which)?.bytes();
            let bytes = bytes.get_mut(place.bytes.clone())?;
            if bytes.len() != value.len() {
                return None;
            }
            bytes.copy_from_slice(value);
        }
        Some(bytes)
    }
}

/// What the rules of all pinholes of a table have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub(super) family: Family,
    pub(super) mark: Mark,
    /// Whether they end at a moment.
    pub(super) timed: bool,
    /// As in [`Conditions`].
    pub(super) limited: bool,
}

/// A pinhole that is to be opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening<'a> {
    pub(super) hole: &'a Pinhole,
    pub(super) conditions: Conditions,
    /// The number in its rules' comments.
    pub(super) serial: u64,
}

/// The moulds of a table `nat`.
#[derive(Debug)]
pub(super) struct Moulds {
    socket: Socket,
    nat: Arc<NatHandle>,
    common: Common,
    of_kind: BTreeMap<HoleKind, Vec<(&'static str, Mould)>>,
}

impl Moulds {
    /// Has the tool write the examples; `restore` has it make a commit. `None` if the tool's rules can't be
    /// made in another way.
    pub(super) fn learn(
        common: Common,
        nat: Arc<NatHandle>,
        restore: impl Fn(&str) -> Result<(), RulesError>,
    ) -> Option<Self> {
        let Common { family, .. } = common;
        let told = |why: &dyn fmt::Display| {
            log::debug!("{family}: the tool makes a commit for each pinhole: {why}");
        };
        let examples: Vec<_> = HoleKind::all()
            .map(|kind| EXAMPLES.map(|numbers| Written::new(kind, &numbers, common)))
            .collect();
        let lines = examples.iter().flatten().flat_map(|one| &one.lines);
        let [make, remove] = probe(lines.map(|(_, spec)| spec.as_str()));
        restore(&make).inspect_err(|e| told(e)).ok()?;
        let written = Socket::open().and_then(|mut socket| {
            let rules = expressions(&mut socket, family)?;
            Ok((socket, rules))
        });
        restore(&remove).inspect_err(|e| told(e)).ok()?;
        let (mut socket, rules) = written.inspect_err(|e| told(e)).ok()?;
        let of_kind = moulds(&examples, &rules);
        if of_kind.is_none() {
            told(&"its rules differ in more than their values");
        }
        let of_kind = of_kind?;
        nat.look(&mut socket, family);
        Some(Self {
            socket,
            nat,
            common,
            of_kind,
        })
    }

    /// Puts the rules of pinholes into their chains, at the end or `first`, and removes the `old` ones, in
    /// one commit. Returns their handles, in order. `None`: nothing has changed, since there are no moulds
    /// for them, the old ones' handles aren't known, or the kernel has refused it.
    ///
    /// # Errors
    /// It isn't known whether the rules are there.
    pub(super) fn put<'a>(
        &mut self,
        old: impl Iterator<Item = &'a HoleRules>,
        openings: &[Opening<'_>],
        first: bool,
    ) -> io::Result<Option<Vec<u64>>> {
        let rules: Option<Vec<_>> = openings.iter().map(|opening| self.cast(opening)).collect();
        let Some(rules) = rules.map(|rules| rules.concat()) else {
            return Ok(None);
        };
        let Common { family, .. } = self.common;
        let mut old = old.peekable();
        // A question to the kernel, and so only where the answer matters.
        let table = match old.peek() {
            Some(_) => self.nat.look(&mut self.socket, family),
            None => 0,
        };
        let old: Option<Vec<_>> = old.map(|rules| rules.handles(table)).collect();
        let Some(old) = old else {
            return Ok(None);
        };
        let old: Vec<_> = old.into_iter().flatten().collect();
        let deletions = old
            .iter()
            .map(|&(chain, handle)| deletion(family, chain, handle));
        let additions = rules
            .iter()
            .map(|(chain, rule)| addition(family, chain, rule, first));
        let mut requests: Vec<_> = deletions.chain(additions).collect();
        if first {
            // Each goes in front of all that are there.
            requests.reverse();
        }
        let mut handles = Vec::new();
        let done = self.socket.batch_with_echo(&requests, |rule| {
            let handle = rule.attrs().find(attr::RULE_HANDLE);
            handles.extend(handle.and_then(|handle| handle.be64()));
        });
        if first {
            handles.reverse();
        }
        match done {
            Ok(()) => Ok(Some(handles)),
            Err(BatchError::Refused(refused)) => {
                log::debug!("{family}: a pinhole's rules are refused over netlink: {refused:?}");
                Ok(None)
            }
            // It is longer than the socket takes, and was not sent.
            Err(BatchError::Io(error)) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                Ok(None)
            }
            Err(BatchError::Io(error)) => {
                // Answers may be in it still, or on their way.
                if let Ok(socket) = Socket::open() {
                    self.socket = socket;
                }
                Err(error)
            }
        }
    }

    /// The expressions of a pinhole's rules, with their chains.
    fn cast(&self, opening: &Opening<'_>) -> Option<Vec<(&'static str, Vec<u8>)>> {
        let Opening {
            hole,
            conditions,
            serial,
        } = *opening;
        let Common {
            mark,
            timed,
            limited,
            ..
        } = self.common;
        if (conditions.until.is_some(), conditions.limited) != (timed, limited) {
            return None;
        }
        let values = values(hole, mark, conditions, serial);
        let moulds = self.of_kind.get(&HoleKind::of(hole))?.iter();
        moulds
            .map(|(chain, mould)| Some((*chain, mould.cast(&values)?)))
            .collect()
    }
}

/// What the two examples of a kind differ in.
struct Numbers {
    /// Of the peer, the public address, the host behind it, and the source that it sees.
    ips: [u8; 4],
    /// The public one, and that of the host behind it.
    ports: [u16; 2],
    mark: u32,
    /// In seconds since 1970.
    until: u32,
    serial: u64,
}

/// In the first one, no value has the bytes of another, or bytes that are common in rules.
const EXAMPLES: [Numbers; 2] = [
    Numbers {
        ips: [1, 2, 3, 4],
        ports: [0xd1b7, 0xc5e3],
        mark: 0x25d4_b93a,
        until: 0x7c2e_5b35,
        serial: u64::MAX,
    },
    Numbers {
        ips: [5, 6, 7, 8],
        ports: [0x1c2e, 0x2f4d],
        mark: 0x1a6b_5c7d,
        until: 0x6b6a_f76b,
        serial: 7,
    },
];

/// An example: the rules as the tool is told them, and their values.
struct Written {
    kind: HoleKind,
    lines: Vec<RuleLine>,
    values: [RuleValue; VALUES],
}

impl Written {
    fn new(kind: HoleKind, numbers: &Numbers, common: Common) -> Self {
        let Common {
            family,
            mark,
            timed,
            limited,
        } = common;
        let [from, to, land, source] = numbers.ips.map(|number| ip(family, number));
        let [to_port, land_port] = numbers.ports;
        let to = SocketAddr::new(to, to_port);
        let hole = Pinhole {
            from,
            to,
            land: match kind.translated {
                true => SocketAddr::new(land, land_port),
                false => to,
            },
            as_source: kind.with_source.then_some(source),
            mark: match kind.with_mark {
                true => numbers.mark & !mark.bit(),
                false => 0,
            },
        };
        let until = DateStop::new(numbers.until).filter(|_| timed);
        let conditions = Conditions { until, limited };
        Self {
            kind,
            lines: wording(&hole).rules(mark, conditions, numbers.serial),
            values: values(&hole, mark, conditions, numbers.serial),
        }
    }
}

/// An address for examples.
fn ip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 19, 0x53 ^ number, 0xa7 ^ number).into(),
        Family::V6 => {
            Ipv6Addr::from_bits(0x2001_0db8_53d7_61c9_7be3_35b1_a7d5_c9e7 ^ u128::from(number))
                .into()
        }
    }
}

/// The moulds of all kinds, by the rules that the kernel has of the examples; `None` if one isn't one.
fn moulds(
    examples: &[[Written; 2]],
    rules: &[Vec<u8>],
) -> Option<BTreeMap<HoleKind, Vec<(&'static str, Mould)>>> {
    let mut rest = rules;
    let mut all = BTreeMap::new();
    for [one, other] in examples {
        let count = one.lines.len();
        let (of_one, behind) = rest.split_at_checked(count)?;
        let (of_other, behind) = behind.split_at_checked(count)?;
        rest = behind;
        let pairs = one.lines.iter().zip(of_one.iter().zip(of_other));
        let moulds = pairs.map(|((chain, _), (a, b))| {
            let mould = Mould::new((a, &one.values), (b, &other.values))?;
            Some((*chain, mould))
        });
        all.insert(one.kind, moulds.collect::<Option<_>>()?);
    }
    rest.is_empty().then_some(all)
}

/// The expressions of all rules in the chain of the examples. A rule with anything else is left out.
fn expressions(socket: &mut Socket, family: Family) -> io::Result<Vec<Vec<u8>>> {
    let request = rules_of(family.number(), "nat", Some(PROBE_CHAIN));
    socket.dump(&request, |message| {
        let rule = rule_in(message, PROBE_CHAIN)?;
        match rule.find(attr::RULE_USERDATA) {
            Some(_) => None,
            None => Some(rule.find(attr::RULE_EXPRESSIONS)?.value.to_vec()),
        }
    })
}

fn addition<'a>(
    family: Family,
    chain: &'a str,
    expressions: &'a [u8],
    first: bool,
) -> NetlinkRequest<'a> {
    let place = if first { 0 } else { APPEND };
    NetlinkRequest {
        kind: msg::NEW_RULE,
        flags: CREATE | ECHO | place,
        family: family.number(),
        attrs: Box::new(move |b: &mut Builder| {
            b.text(attr::RULE_TABLE, "nat")
                .text(attr::RULE_CHAIN, chain)
                .nested(attr::RULE_EXPRESSIONS, expressions)
                // What a match may ask for (`-p tcp`); the kernel doesn't tell it.
                .nest(attr::RULE_COMPAT, |b| {
                    b.be32(attr::COMPAT_PROTOCOL, u32::from(TCP))
                        .be32(attr::COMPAT_FLAGS, 0);
                });
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mould(one: &[u8], other: &[u8]) -> Option<Mould> {
        let of = |serial: u64, port: u16| {
            [
                RuleValue::new(&port.to_be_bytes()),
                RuleValue::of_serial(serial),
            ]
        };
        let (first, second) = (of(u64::MAX, 0xd1b7), of(7, 0x1c2e));
        Mould::new((one, &first), (other, &second))
    }

    const ONE: &[u8] = b"port \xd1\xb7 no 18446744073709551615\0\0 \xd1\xb7.";
    const OTHER: &[u8] = b"port \x1c\x2e no 7\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0 \x1c\x2e.";

    #[test]
    fn a_value_is_put_wherever_the_example_has_it() {
        let mould = mould(ONE, OTHER).unwrap();
        let values = [
            RuleValue::new(&0x3132_u16.to_be_bytes()),
            RuleValue::of_serial(10),
        ];
        let padding = "\0".repeat(20);
        assert_eq!(
            String::from_utf8(mould.cast(&values).unwrap()).unwrap(),
            format!("port 12 no 10{padding} 12.")
        );
    }

    #[test]
    fn a_value_of_another_length_fits_nowhere() {
        let mould = mould(ONE, OTHER).unwrap();
        let serial = RuleValue::of_serial(10);
        for port in [&b"1"[..], b"123", b""] {
            assert_eq!(mould.cast(&[RuleValue::new(port), serial]), None);
        }
    }

    #[test]
    fn rules_that_differ_in_more_than_their_values_have_no_mould() {
        assert!(mould(&ONE[1..], OTHER).is_none());
        // By chance, what never changes looks like the value.
        assert!(mould(&[ONE, b"\xd1\xb7"].concat(), &[OTHER, b"\xd1\xb7"].concat()).is_none());
        // The value stands there in a way that isn't known.
        assert!(mould(&[ONE, b"53687"].concat(), &[OTHER, b"07214"].concat()).is_none());
    }

    #[test]
    fn the_examples_of_all_shapes_are_what_they_should_be() {
        for (family, kind) in Family::ALL
            .iter()
            .flat_map(|f| HoleKind::all().map(|s| (*f, s)))
        {
            for (timed, limited) in [(true, true), (false, false)] {
                let mark = Mark::DEFAULT;
                let common = Common {
                    family,
                    mark,
                    timed,
                    limited,
                };
                let [one, other] = EXAMPLES.map(|numbers| Written::new(kind, &numbers, common));
                assert_eq!(one.lines.len(), other.lines.len());
                for (which, (a, b)) in one.values.iter().zip(&other.values).enumerate() {
                    assert_eq!(a.len, b.len);
                    let is_mark = matches!(which, 7 | 8);
                    let differs = a.len > 0 && (kind.with_mark || !is_mark);
                    assert_eq!(a != b, differs, "{which}");
                }
                assert_eq!(one.values[9].len, if timed { 4 } else { 0 });
            }
        }
    }
}
