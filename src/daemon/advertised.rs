//! The addresses of `--advertise`. Host names among them are [looked up again](Advertised::refresh)
//! from time to time.

use std::net::{IpAddr, ToSocketAddrs};

use crate::engine;

use super::StartError;
use super::config::{AdvertiseChoice, PublicName};

/// What is announced now.
#[derive(Debug)]
pub(super) struct Advertised {
    /// What was asked for, and what it is: at most one address per family.
    all: Vec<(AdvertiseChoice, Vec<IpAddr>)>,
}

impl Advertised {
    /// Looks all names up.
    pub(super) fn find(wanted: &[AdvertiseChoice]) -> Result<Self, StartError> {
        let nothing = Self { all: Vec::new() };
        nothing.replaced(wanted).map_err(StartError::Host)
    }

    /// Others in their place. Names that were there before keep their addresses.
    ///
    /// # Errors
    /// One line: a new name has no address that can be used.
    pub(super) fn replaced(&self, wanted: &[AdvertiseChoice]) -> Result<Self, String> {
        self.replaced_by(wanted, look_up)
    }

    fn replaced_by(
        &self,
        wanted: &[AdvertiseChoice],
        look_up: impl Fn(&str) -> Vec<IpAddr>,
    ) -> Result<Self, String> {
        let mut all = Vec::new();
        for wanted in wanted {
            if let Some(known) = self.all.iter().find(|(choice, _)| choice == wanted) {
                all.push(known.clone());
                continue;
            }
            let addresses = match &wanted.public {
                PublicName::Address(address) => vec![*address],
                PublicName::Name(name) => {
                    let found = look_up(name);
                    if found.is_empty() {
                        return Err(format!(
                            "--advertise: the host name {name} has no address; give the address itself"
                        ));
                    }
                    let picked = pick(&[], &found, wanted.inside);
                    if let (true, Some(inside)) = (picked.is_empty(), wanted.inside) {
                        let family = if inside.is_ipv4() { "IPv4" } else { "IPv6" };
                        return Err(format!(
                            "--advertise: the host name {name} has no {family} address, as {inside} needs; give the address itself"
                        ));
                    }
                    picked
                }
            };
            all.push((wanted.clone(), addresses));
        }
        Ok(Self { all })
    }

    /// As engines take it.
    pub(super) fn list(&self) -> Vec<engine::Advertise> {
        let each = |(wanted, addresses): &(AdvertiseChoice, Vec<IpAddr>)| {
            let inside = wanted.inside;
            let one = move |public: &IpAddr| engine::Advertise {
                inside,
                public: *public,
            };
            addresses.iter().map(one).collect::<Vec<_>>()
        };
        self.all.iter().flat_map(each).collect()
    }

    /// Whether there is a name among them.
    pub(super) fn has_names(&self) -> bool {
        let name = |wanted: &AdvertiseChoice| matches!(wanted.public, PublicName::Name(_));
        self.all.iter().any(|(wanted, _)| name(wanted))
    }

    /// Looks names up again. Returns what changed, a line each. A name that can't be looked up keeps
    /// its addresses.
    pub(super) fn refresh(&mut self) -> Vec<String> {
        self.refresh_by(look_up)
    }

    fn refresh_by(&mut self, look_up: impl Fn(&str) -> Vec<IpAddr>) -> Vec<String> {
        let mut changes = Vec::new();
        for (wanted, addresses) in &mut self.all {
            let PublicName::Name(name) = &wanted.public else {
                continue;
            };
            let found = look_up(name);
            if found.is_empty() {
                log::warn!(
                    "--advertise: the host name {name} can't be looked up; announcing what it was"
                );
                continue;
            }
            let picked = pick(addresses, &found, wanted.inside);
            if picked != *addresses {
                changes.push(format!(
                    "advertise {name}: {} is now {}",
                    words(addresses),
                    words(&picked)
                ));
                *addresses = picked;
            }
        }
        changes
    }
}

/// At most one address per family. It is the one from before, if it was found again (names may have
/// several, in changing order), or if none of its family was found; otherwise it is the first one
/// found. If there is an `inside`, only its family counts.
fn pick(before: &[IpAddr], found: &[IpAddr], inside: Option<IpAddr>) -> Vec<IpAddr> {
    let of_family = |v4: bool| {
        let wanted = inside.is_none_or(|inside| inside.is_ipv4() == v4);
        let found: Vec<_> = found
            .iter()
            .filter(|a| wanted && a.is_ipv4() == v4)
            .collect();
        let old = before.iter().find(|a| a.is_ipv4() == v4);
        old.filter(|old| found.is_empty() || found.contains(old))
            .or_else(|| found.first().copied())
            .copied()
    };
    of_family(true)
        .into_iter()
        .chain(of_family(false))
        .collect()
}

fn words(addresses: &[IpAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// All addresses of a name; none if it can't be looked up.
fn look_up(name: &str) -> Vec<IpAddr> {
    let found = (name, 0).to_socket_addrs();
    let usable = |a: &IpAddr| !a.is_unspecified() && !a.is_multicast();
    found
        .map(|all| all.map(|a| a.ip()).filter(usable).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace()
            .map(|a| a.parse().unwrap())
            .collect()
    }

    fn find(wanted: &[&str], found: &str) -> Result<Advertised, String> {
        let wanted: Vec<AdvertiseChoice> = wanted.iter().map(|w| w.parse().unwrap()).collect();
        Advertised { all: Vec::new() }.replaced_by(&wanted, |_| ips(found))
    }

    fn publics(all: &Advertised) -> Vec<IpAddr> {
        all.list().iter().map(|a| a.public).collect()
    }

    #[test]
    fn a_name_gives_one_address_per_family() {
        let all = find(&["ftp.example.org"], "2001:db8::1 203.0.113.1 203.0.113.2").unwrap();
        assert_eq!(publics(&all), ips("203.0.113.1 2001:db8::1"));
        assert!(all.has_names());
        let all = find(&["10.0.0.2=ftp.example.org"], "2001:db8::1 203.0.113.1").unwrap();
        assert_eq!(publics(&all), ips("203.0.113.1"));
        let all = find(&["203.0.113.9"], "").unwrap();
        assert!(!all.has_names() && publics(&all) == ips("203.0.113.9"));
        let e = find(&["10.0.0.2=ftp.example.org"], "2001:db8::1").unwrap_err();
        assert!(e.contains("no IPv4 address"), "{e}");
        assert!(
            find(&["ftp.example.org"], "")
                .unwrap_err()
                .contains("has no address")
        );
    }

    #[test]
    fn a_name_that_stays_isnt_looked_up_for_the_others() {
        let all = find(&["ftp.example.org", "10.0.0.2=203.0.113.9"], "203.0.113.1").unwrap();
        let with = |wanted: &[&str], found: &str| {
            let wanted: Vec<AdvertiseChoice> = wanted.iter().map(|w| w.parse().unwrap()).collect();
            all.replaced_by(&wanted, |_| ips(found))
        };
        let other = with(&["10.0.0.2=203.0.113.8", "ftp.example.org"], "").unwrap();
        assert_eq!(publics(&other), ips("203.0.113.8 203.0.113.1"));
        assert!(publics(&with(&[], "").unwrap()).is_empty());
        let e = with(&["ftp.example.org", "10.0.0.3=www.example.org"], "").unwrap_err();
        assert!(e.contains("www.example.org has no address"), "{e}");
    }

    #[test]
    fn a_name_is_followed_and_keeps_its_address_through_failures_and_rotation() {
        let mut all = find(&["10.0.0.3=203.0.113.9", "ftp.example.org"], "203.0.113.1").unwrap();
        for same in ["", "203.0.113.1", "203.0.113.2 203.0.113.1"] {
            assert_eq!(all.refresh_by(|_| ips(same)), [""; 0], "{same}");
        }
        assert_eq!(
            all.refresh_by(|_| ips("203.0.113.2")),
            ["advertise ftp.example.org: 203.0.113.1 is now 203.0.113.2"]
        );
        assert_eq!(publics(&all), ips("203.0.113.9 203.0.113.2"));
        assert_eq!(all.refresh_by(|_| ips("2001:db8::1")).len(), 1);
        assert_eq!(publics(&all), ips("203.0.113.9 203.0.113.2 2001:db8::1"));
    }
}
