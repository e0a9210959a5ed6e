//! Servers behind a translator that speak `EPSV`: they are asked by it (RFC 6384 §6: only with positive
//! knowledge).

use std::collections::HashSet;
use std::net::Ipv4Addr;

/// How many servers are remembered. With more, all are forgotten: they are asked by `PASV` again.
const MAX: usize = 4096;

/// Servers that have answered an `EPSV` with a `229`.
#[derive(Debug, Default)]
pub(super) struct EpsvServers(HashSet<Ipv4Addr>);

impl EpsvServers {
    pub(super) fn has(&self, server: Ipv4Addr) -> bool {
        self.0.contains(&server)
    }

    /// Notes whether a server speaks it.
    pub(super) fn note(&mut self, server: Ipv4Addr, speaks: bool) {
        if !speaks {
            self.0.remove(&server);
            return;
        }
        if self.0.len() >= MAX {
            self.0.clear();
        }
        self.0.insert(server);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_so_many_are_kept() {
        let mut servers = EpsvServers::default();
        for n in 0..10 * MAX as u32 {
            servers.note(Ipv4Addr::from_bits(n), true);
            assert!(servers.has(Ipv4Addr::from_bits(n)) && servers.0.len() <= MAX);
        }
        let last = Ipv4Addr::from_bits(10 * MAX as u32 - 1);
        servers.note(last, false);
        assert!(!servers.has(last));
    }
}
