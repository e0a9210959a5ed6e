//! What a bug report needs, in one text: without names, and with pseudonyms for addresses.
//!
//! Public addresses, and those of peers, become `public-1`, `peer-1` and so on, each everywhere the same.
//! Private addresses that the host's own rules, routes or interfaces have stay as they are. Hardware
//! addresses are left out.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};

use crate::net::is_private;

/// Puts sections together, each with a heading. `own` are those whose private addresses stay.
#[must_use]
pub fn bundle(sections: &[(String, String)], own: &str) -> String {
    let mut names = Pseudonyms::new(own);
    let mut text = format!(
        "ftpalg {} bundle\nAddresses are pseudonyms: public-N, peer-N. The same address has the same one.\n",
        env!("CARGO_PKG_VERSION")
    );
    for (heading, content) in sections {
        text += &format!("\n=== {heading}\n{}\n", names.replace(content.trim_end()));
    }
    text
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Address(IpAddr),
    /// A hardware address.
    Hardware,
}

struct Pseudonyms {
    /// Private addresses that stay.
    own: BTreeSet<IpAddr>,
    public: HashMap<IpAddr, usize>,
    peers: HashMap<IpAddr, usize>,
}

impl Pseudonyms {
    fn new(own: &str) -> Self {
        let addresses = parts(own).into_iter().filter_map(|part| match part {
            Part::Address(address) => Some(address),
            _ => None,
        });
        Self {
            own: addresses
                .filter(|address| is_private(&(*address).into()))
                .collect(),
            public: HashMap::new(),
            peers: HashMap::new(),
        }
    }

    fn replace(&mut self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for part in parts(text) {
            match part {
                Part::Text(text) => out += text,
                Part::Hardware => out += "xx:xx:xx:xx:xx:xx",
                Part::Address(address) => out += &self.name(address),
            }
        }
        out
    }

    fn name(&mut self, address: IpAddr) -> String {
        if means_nothing(address) || self.own.contains(&address) {
            return address.to_string();
        }
        let (name, known) = match is_private(&address.into()) {
            true => ("peer", &mut self.peers),
            false => ("public", &mut self.public),
        };
        let next = known.len() + 1;
        format!("{name}-{}", known.entry(address).or_insert(next))
    }
}

/// An address that is everybody's: unspecified, loopback, link-local, multicast, a netmask.
fn means_nothing(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::from(v4);
            let is_mask = mask.leading_ones() + mask.trailing_zeros() == 32 && mask != 0;
            is_mask
                || v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
        }
        IpAddr::V6(v6) => {
            let own = v6.segments();
            let interface = v6.is_unicast_link_local() && own.iter().skip(1).any(|part| *part != 0);
            !interface
                && (v6.is_unspecified()
                    || v6.is_loopback()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local())
        }
    }
}

/// Finds the addresses in a text.
fn parts(text: &str) -> Vec<Part<'_>> {
    let belongs = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
    let mut parts = Vec::new();
    let mut rest = text;
    let mut before: Option<char> = None;
    while !rest.is_empty() {
        let run = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let (token, after) = rest.split_at(run);
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let alone = !before.is_some_and(word) && !after.starts_with(word);
        match address(token).filter(|_| alone) {
            Some((part, len)) => {
                parts.push(part);
                parts.push(Part::Text(token.get(len..).unwrap_or_default()));
            }
            None => parts.push(Part::Text(token)),
        }
        // What isn't part of an address, up to where one may begin.
        let next = after.find(belongs).unwrap_or(after.len());
        let (between, further) = after.split_at(next);
        parts.push(Part::Text(between));
        before = between
            .chars()
            .next_back()
            .or_else(|| token.chars().next_back());
        rest = further;
    }
    parts
}

/// The address at the beginning of a token, and how long it is: a port or a full stop may follow.
fn address(token: &str) -> Option<(Part<'_>, usize)> {
    let bytes = token.split(':');
    if bytes.clone().count() == 6 && bytes.clone().all(|byte| byte.len() == 2) {
        return Some((Part::Hardware, token.len()));
    }
    let trimmed = token.trim_end_matches('.');
    let colon = trimmed
        .strip_suffix(':')
        .filter(|rest| !rest.ends_with(':'));
    for candidate in [Some(trimmed), colon].into_iter().flatten() {
        if let Ok(address) = candidate.parse() {
            return Some((Part::Address(address), candidate.len()));
        }
    }
    let (first, _) = trimmed.split_once(':')?;
    let v4: Ipv4Addr = first.parse().ok()?;
    Some((Part::Address(v4.into()), first.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_get_names_that_stay_the_same() {
        let mut names = Pseudonyms::new("-d 10.0.0.5/32 203.0.113.7");
        for (text, want) in [
            (
                "203.0.113.7:21 -> 10.0.0.5:21",
                "public-1:21 -> 10.0.0.5:21",
            ),
            ("198.51.100.2, 203.0.113.7.", "public-2, public-1."),
            ("10.0.0.99 [2001:db8::5]:21", "peer-1 [public-3]:21"),
            (
                "-d 203.0.113.7/32 -s 10.0.0.99/32",
                "-d public-1/32 -s peer-1/32",
            ),
            ("203.0.113.7-198.51.100.2", "public-1-public-2"),
            (
                "0.0.0.0/0 ::1 127.0.0.1 255.255.255.0",
                "0.0.0.0/0 ::1 127.0.0.1 255.255.255.0",
            ),
            ("00:11:22:aa:bb:cc", "xx:xx:xx:xx:xx:xx"),
            (
                "12:34:56 1.8.9 0x40000000 face",
                "12:34:56 1.8.9 0x40000000 face",
            ),
            (
                "\"client\":\"198.51.100.2:1025\"",
                "\"client\":\"public-2:1025\"",
            ),
            ("fe80::1122:33ff:fe44:5566", "public-4"),
        ] {
            assert_eq!(names.replace(text), want);
        }
    }

    proptest! {
        /// Wherever an address stands, it isn't in the bundle any more.
        #[test]
        fn no_public_address_is_left(
            ip in any::<[u8; 4]>(), before in "[ ,\\[\"=/(-]", after in "[ ,:/\\])\"]([0-9]{1,3})?"
        ) {
            let ip = Ipv4Addr::from(ip);
            prop_assume!(!means_nothing(ip.into()));
            let text = format!("x{before}{ip}{after}");
            let made = bundle(&[("a".into(), text)], "");
            prop_assert!(!made.contains(&ip.to_string()), "{made}");
        }

        #[test]
        fn nothing_else_is_lost(text in "[g-z .:/\\n-]{0,60}") {
            let mut names = Pseudonyms::new("");
            prop_assume!(!text.contains("::"));
            prop_assert_eq!(names.replace(&text), text);
        }
    }
}
