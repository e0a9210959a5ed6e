//! Data connections that come from a fixed port of their peer's.
//!
//! Servers may connect from port 20, one below their control port, or another port that only root has
//! (RFC 959 §3.2). Such a server can't connect to the same address and port twice within TIME_WAIT, since
//! both connections would have the same ends; and conntrack may still know the first one, with where it
//! led. So as long as conntrack has such a connection, another public port is better.

use std::collections::HashMap;

use super::PinholeKey;
use crate::engine::Tuple;

/// Ports below this one aren't chosen at random (RFC 6335 §6).
const FIRST_FREE: u16 = 1024;

/// The connections from fixed ports that conntrack has, by the pinhole that they came through.
#[derive(Debug, Default)]
pub(super) struct FixedPorts {
    from: HashMap<PinholeKey, Vec<u16>>,
    count: usize,
}

impl FixedPorts {
    /// A connection has begun. No more than `most` are remembered.
    pub(super) fn begun(&mut self, original: Tuple, most: usize) {
        let port = original.src.port();
        if port >= FIRST_FREE || self.count >= most {
            return;
        }
        let ports = self.from.entry(PinholeKey::of(original)).or_default();
        if !ports.contains(&port) {
            ports.push(port);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Conntrack has forgotten a connection.
    pub(super) fn forgotten(&mut self, original: Tuple) {
        let key = PinholeKey::of(original);
        let Some(ports) = self.from.get_mut(&key) else {
            return;
        };
        let before = ports.len();
        ports.retain(|port| *port != original.src.port());
        self.count = self.count.saturating_sub(before - ports.len());
        if ports.is_empty() {
            self.from.remove(&key);
        }
    }

    /// Whether conntrack has one that came through a pinhole like this.
    pub(super) fn has(&self, key: &PinholeKey) -> bool {
        self.from.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(port: u16) -> Tuple {
        Tuple {
            src: ([198, 51, 100, 2], port).into(),
            dst: ([203, 0, 113, 1], 1025).into(),
        }
    }

    #[test]
    fn only_those_from_fixed_ports_are_kept_and_each_once() {
        let mut fixed = FixedPorts::default();
        fixed.begun(tuple(40_000), 9);
        assert!(!fixed.has(&PinholeKey::of(tuple(20))));
        for port in [20, 20, 989] {
            fixed.begun(tuple(port), 9);
        }
        fixed.forgotten(tuple(40_000));
        fixed.forgotten(tuple(20));
        assert!(fixed.has(&PinholeKey::of(tuple(20))), "the other one");
        fixed.forgotten(tuple(989));
        fixed.forgotten(tuple(989));
        assert!(!fixed.has(&PinholeKey::of(tuple(20))));
        assert_eq!(fixed.count, 0);
        fixed.begun(tuple(20), 0);
        assert!(fixed.from.is_empty(), "bounded");
    }
}
