//! Notices an announced address that its reader most likely can't reach.

use std::net::IpAddr;

use crate::engine::event::Event;
use crate::net::is_private;

/// Tells of the first one, and of no other.
#[derive(Debug, Default)]
pub(super) struct UpstreamNat {
    told: bool,
}

impl UpstreamNat {
    /// A line about a private address that a public peer reads, the first time.
    pub(super) fn look(&mut self, event: &Event) -> Option<String> {
        if self.told {
            return None;
        }
        let Event::Announced {
            session, new, from, ..
        } = event
        else {
            return None;
        };
        let private = |ip: IpAddr| is_private(&ip.into());
        if !private(new.ip()) || !is_public(*from) {
            return None;
        }
        self.told = true;
        Some(format!(
            "session {} announces {}, a private address, to {from}, a public one: is NAT upstream? \
             --advertise PUBLIC announces another one (said once)",
            session.0,
            new.ip()
        ))
    }
}

fn is_public(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !local && !ip.is_loopback() && !ip.is_unspecified() && !is_private(&ip.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::gateway::{PinholeId, SessionId};
    use crate::ftp::Mode;

    fn announced(new: &str, from: &str) -> Event {
        Event::Announced {
            session: SessionId(1),
            pinhole: PinholeId(1),
            verb: "227",
            mode: Mode::Passive,
            old: new.parse().unwrap(),
            new: new.parse().unwrap(),
            from: from.parse().unwrap(),
            land: new.parse().unwrap(),
        }
    }

    #[test]
    fn the_first_private_address_for_a_public_peer_is_told() {
        let mut nat = UpstreamNat::default();
        for (new, from) in [
            ("203.0.113.1:5000", "198.51.100.2"),
            ("10.0.0.2:5000", "10.0.0.9"),
            ("10.0.0.2:5000", "127.0.0.1"),
            ("10.0.0.2:5000", "100.64.0.9"),
            ("[2001:db8::1]:5000", "2001:db8::2"),
        ] {
            assert_eq!(nat.look(&announced(new, from)), None, "{new} {from}");
        }
        let line = nat
            .look(&announced("100.64.0.2:5000", "198.51.100.2"))
            .unwrap();
        assert!(
            line.contains("100.64.0.2") && line.contains("--advertise PUBLIC"),
            "{line}"
        );
        assert_eq!(nat.look(&announced("10.0.0.2:5000", "198.51.100.2")), None);
    }
}
