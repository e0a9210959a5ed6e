//! Which public port an announced data connection gets, and on which ports the gateway itself
//! listens.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ftp::fit::{Fitting, Lengths, PortText, PortsOfLength};
use crate::ftp::policy::SERVICE_PORTS;
use crate::net::PortRange;
use crate::netlink::listeners::listeners;

/// On a published address, lower ports are used only if `--data-ports` names them: the same peer
/// may want to reach a service there.
const FIRST_UNPRIVILEGED: u16 = 1024;

/// The lowest port that is chosen because of its length: BSD's ftpd refuses 1024 in a `PORT`.
const FIRST_HARMLESS: u16 = 1025;

/// Who uses a port already, as far as one peer and one public address are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Nobody.
    Nobody,
    /// Nobody; but the peer has made a connection through it from a port that it may use again.
    Lately,
    /// One of the user's rules publishes another service there. Until it is used, a pinhole would
    /// hide that service from this peer.
    User,
    /// The session that asks: it has an unused pinhole there, for something else. That one may be
    /// replaced if no other port is left.
    Same,
    /// Another session, or a process on the gateway that listens.
    Other,
}

/// What is known of an announced data connection whose public port is to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct PortRequest {
    /// The port that was announced.
    pub announced: u16,
    /// Whether only NAT leads to the announcer: the public port may be another one.
    pub published: bool,
    /// The range that public ports come from, if one is configured for it.
    pub range: Option<PortRange>,
    /// Where in a range the search begins.
    pub start: u32,
    /// The ports with which the announcement keeps its length.
    pub fitting: Fitting,
}

/// Chooses the public port of an announced data connection.
///
/// The candidates, in order:
///
/// - where the address is the announcer's own (`published` is false): the announced port only;
/// - on a published address: the announced port, if it is in the range (without a range: if it isn't
///   below 1024); then all ports of the range (without one: the dynamic ports), from the `start`-th
///   on.
///
/// Of these, ports with which the announcement keeps its length come before all others, if nobody
/// has them. Without a range, any port from 1025 on may be one of them, but for those of services that
/// servers may refuse in a `PORT`. There are 58 at least (`4,1` to `9,9`), and a pinhole belongs to one
/// peer.
///
/// The first free candidate is chosen. If there is none, the first that was used lately; then the first on
/// which the user publishes something else; then the first on which the same session has an unused pinhole. `None`: all are
/// taken by others.
pub fn choose(wanted: &PortRequest, holder: impl Fn(u16) -> Holder) -> Option<u16> {
    let PortRequest {
        announced,
        published,
        range,
        start,
        fitting,
    } = *wanted;
    let may_keep = match range {
        _ if !published => announced > 0,
        Some(range) => range.contains(announced),
        None => announced >= FIRST_UNPRIVILEGED,
    };
    let fits = |lengths: Lengths| {
        let free = |port: &u16| holder(*port) == Holder::Nobody;
        let keeps = may_keep && lengths.contains(fitting.text.length(announced));
        let same = Some(announced).filter(|_| keeps).filter(free);
        same.or_else(|| {
            let pools = match range {
                _ if !published || lengths.is_empty() => [None, None],
                Some(range) => [Some(range), None],
                None => [
                    Some(PortRange::DYNAMIC),
                    PortRange::new(FIRST_HARMLESS, PortRange::DYNAMIC.first() - 1),
                ],
            };
            let may_be_refused = |port: &u16| {
                let mut services = SERVICE_PORTS.iter();
                range.is_none() && services.any(|range| range.contains(port))
            };
            pools.into_iter().flatten().find_map(|pool| {
                let mut ports = of_length(pool, start, fitting.text, lengths);
                ports.find(|port| free(port) && !may_be_refused(port))
            })
        })
    };
    if fitting.best != Lengths::ALL
        && let Some(port) = fits(fitting.best).or_else(|| fits(fitting.without_dot))
    {
        return Some(port);
    }
    let ports = range.unwrap_or(PortRange::DYNAMIC);
    [Holder::Nobody, Holder::Lately, Holder::User, Holder::Same]
        .into_iter()
        .find_map(|wanted| {
            if may_keep && holder(announced) == wanted {
                return Some(announced);
            }
            if !published {
                return None;
            }
            ports
                .starting_at(start)
                .find(|&port| holder(port) == wanted)
        })
}

/// The ports of a pool whose text has one of these lengths, from the `start`-th one on, and around.
fn of_length(
    pool: PortRange,
    start: u32,
    text: PortText,
    lengths: Lengths,
) -> impl Iterator<Item = u16> {
    let (first, end) = (u32::from(pool.first()), u32::from(pool.last()) + 1);
    let all = PortsOfLength::new(text, lengths);
    let before = all.below(first);
    let count = all.below(end).saturating_sub(before);
    let nth = move |n: u32| {
        // The first port up to which there are more than n of them in the pool.
        let (mut low, mut high) = (first, end);
        while low < high {
            let middle = low.midpoint(high);
            match all.below(middle + 1) - before > n {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        u16::try_from(low).ok()
    };
    let start = start.checked_rem(count).unwrap_or(0);
    (start..count).chain(0..start).filter_map(nth)
}

/// TCP ports on which processes of this network namespace listen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    ports: HashSet<(IpAddr, u16)>,
}

impl Listeners {
    /// Asks the kernel, for the calling thread's network namespace. A list that can't be read counts as
    /// empty.
    #[must_use]
    pub fn read() -> Self {
        match listeners() {
            Ok(ports) => Self { ports },
            Err(_) => Self::read_file(),
        }
    }

    /// The same where the kernel has no `tcp_diag`.
    fn read_file() -> Self {
        let mut listeners = Self::default();
        for file in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            if let Ok(file) = File::open(file) {
                let lines = BufReader::new(file).lines();
                listeners.add(lines.map_while(Result::ok));
            }
        }
        listeners
    }

    /// Whether a process accepts connections to this address.
    #[must_use]
    pub fn contains(&self, ip: IpAddr, port: u16) -> bool {
        // The list doesn't say whether an IPv6 wildcard socket takes IPv4, too: most do.
        [
            ip,
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv6Addr::UNSPECIFIED.into(),
        ]
        .iter()
        .any(|&ip| self.ports.contains(&(ip, port)))
    }

    /// Reads a text in the format of `/proc/net/tcp` or `tcp6`. Lines that can't be read are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut listeners = Self::default();
        listeners.add(text.lines());
        listeners
    }

    /// Reads up to the first socket that doesn't listen: the kernel lists listeners first, and there
    /// may be many others.
    fn add(&mut self, lines: impl Iterator<Item = impl AsRef<str>>) {
        for line in lines.skip(1) {
            let mut fields = line.as_ref().split_ascii_whitespace().skip(1);
            let at = fields.next().and_then(parse_local);
            match (at, fields.nth(1)) {
                (Some(at), Some("0A")) => self.ports.insert(at),
                (Some(_), Some(_)) => break,
                _ => continue,
            };
        }
    }
}

/// `0100007F:0016`: words of the address in host byte order, the port as a number.
fn parse_local(field: &str) -> Option<(IpAddr, u16)> {
    let (ip, port) = field.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let octets = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?);
            ip.to_canonical()
        }
        _ => return None,
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn choose(
        announced: u16,
        published: bool,
        range: Option<PortRange>,
        start: u32,
        holder: impl Fn(u16) -> Holder,
    ) -> Option<u16> {
        let fitting = Fitting::ANY;
        super::choose(
            &PortRequest {
                announced,
                published,
                range,
                start,
                fitting,
            },
            holder,
        )
    }

    #[test]
    fn ports_are_chosen_in_order() {
        const FREE: Holder = Holder::Nobody;
        const TAKEN: Holder = Holder::Other;
        const OWN: Holder = Holder::Same;
        // The announced port, whether the address is published, the range and where to start in it;
        // who holds one port, and all others; the choice.
        #[rustfmt::skip]
        let cases = [
            // The announced port is kept where it may be.
            (40000, true, "", 5, (0, FREE), FREE, Some(40000)),
            (40000, false, "", 5, (0, FREE), FREE, Some(40000)),
            (40000, true, "40000-40009", 5, (0, FREE), FREE, Some(40000)),
            (40000, true, "30000-30009", 5, (0, FREE), FREE, Some(30005)),
            (40000, false, "30000-30009", 5, (0, FREE), FREE, Some(40000)),
            (22, true, "", 0, (0, FREE), FREE, Some(49152)),
            (22, true, "20-30", 0, (0, FREE), FREE, Some(22)),
            // What others hold is left alone.
            (40000, false, "", 0, (0, FREE), TAKEN, None),
            (40000, true, "", 0, (0, FREE), TAKEN, None),
            (40000, true, "", 3, (40000, TAKEN), FREE, Some(49155)),
            (40000, true, "40000-40001", 0, (40000, TAKEN), FREE, Some(40001)),
            (40000, true, "40000", 0, (40000, TAKEN), FREE, None),
            // One's own pinhole is replaced where there is no other port.
            (40000, true, "8080", 0, (0, FREE), OWN, Some(8080)),
            (40000, false, "", 0, (0, FREE), OWN, Some(40000)),
            (40000, true, "", 0, (0, FREE), OWN, Some(40000)),
            (1, true, "30000-30001", 0, (30000, OWN), FREE, Some(30001)),
        ];
        for case in cases {
            let (announced, published, range, start, (one, its), others, chosen) = case;
            let range = (!range.is_empty()).then(|| range.parse().unwrap());
            let holder = |port| if port == one { its } else { others };
            let got = choose(announced, published, range, start, holder);
            assert_eq!(got, chosen, "{case:?}");
        }
    }

    #[test]
    fn listeners_are_read_from_the_kernels_list() {
        let mut listeners = Listeners::default();
        listeners.add(
            "  sl  local_address rem_address   st tx_queue\n\
             \x20  0: 0100007F:0CEA 00000000:0000 0A 00000000:00000000\n\
             \x20  1: 00000000:0016 00000000:0000 0A 00000000:00000000\n\
             garbage\n\
             \x20  3: zz:zz 00000000:0000 0A\n\
             \x20  4: 0100007F:1F90 0100007F:C350 01 00000000:00000000\n"
                .lines(),
        );
        listeners.add(
            "  sl\n\
             \x20  0: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A\n"
                .lines(),
        );
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(listeners.contains(ip("127.0.0.1"), 3306));
        assert!(!listeners.contains(ip("192.0.2.1"), 3306));
        assert!(listeners.contains(ip("192.0.2.1"), 22));
        assert!(listeners.contains(ip("2001:db8::1"), 22));
        assert!(!listeners.contains(ip("127.0.0.1"), 8080), "not listening");
        assert!(listeners.contains(ip("2001:db8::1"), 80));
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        for read in [Listeners::read, Listeners::read_file] {
            assert!(read().contains(at.ip(), at.port()));
        }
    }

    #[test]
    fn ports_of_a_length_come_once_each_and_from_somewhere_on() {
        let pool = PortRange::new(9_990, 10_012).unwrap();
        let all = |text: PortText, lengths, start| -> Vec<u16> {
            of_length(pool, start, text, lengths).collect()
        };
        for text in [PortText::Number, PortText::Pair] {
            for bits in 0..=u8::MAX {
                let mut lengths = Lengths::default();
                (0..8)
                    .filter(|n| bits & 1 << n != 0)
                    .for_each(|n| lengths.add(n));
                let fits = |port: &u16| lengths.contains(text.length(*port));
                let whole: Vec<u16> = (9_990..=10_012).filter(fits).collect();
                for start in 0..50 {
                    let mut ports = whole.clone();
                    ports.rotate_left(start as usize % whole.len().max(1));
                    assert_eq!(
                        all(text, lengths, start),
                        ports,
                        "{text:?} {lengths:?} {start}"
                    );
                }
            }
        }
    }

    fn any_range() -> impl Strategy<Value = Option<PortRange>> {
        prop::option::of(
            (1u16.., 0u16..50).prop_map(|(a, n)| PortRange::new(a, a.saturating_add(n)).unwrap()),
        )
    }

    proptest! {
        #[test]
        fn a_chosen_port_is_allowed_and_none_is_overlooked(
            announced in 1u16.., published: bool, range in any_range(), start: u32,
            taken in prop::collection::hash_map(any::<u16>(), prop::bool::ANY, 0..20),
            dense in prop::option::of(prop::bool::ANY),
        ) {
            let holder = |port| match (taken.get(&port).copied(), dense) {
                (Some(true), _) | (None, Some(true)) => Holder::Other,
                (Some(false), _) | (None, Some(false)) => Holder::Same,
                (None, None) => Holder::Nobody,
            };
            match choose(announced, published, range, start, holder) {
                Some(port) => {
                    prop_assert!(port > 0);
                    prop_assert!(holder(port) != Holder::Other);
                    match (published, range) {
                        (false, _) => prop_assert_eq!(port, announced),
                        (true, Some(range)) => prop_assert!(range.contains(port)),
                        (true, None) => prop_assert!(port == announced || PortRange::DYNAMIC.contains(port)),
                    }
                }
                None if !published => prop_assert_eq!(holder(announced), Holder::Other),
                None => {
                    let range = range.unwrap_or(PortRange::DYNAMIC);
                    prop_assert!(range.starting_at(0).all(|port| holder(port) == Holder::Other));
                }
            }
        }
    }
}
