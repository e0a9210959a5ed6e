//! What a host's TCP has counted.

use super::net::Net;

/// Counters of a network namespace's TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Segments sent again, for whatever reason (`RetransSegs`).
    pub retransmitted: u64,
    /// Retransmission timeouts (`TCPTimeouts`).
    pub timeouts: u64,
    /// Segments with a wrong checksum (`InCsumErrors`).
    pub bad_checksums: u64,
    /// Keep-alives sent (`TCPKeepAlive`).
    pub keep_alives: u64,
    /// Segments that came in before the ones in front of them (`TCPOFOQueue`).
    pub out_of_order: u64,
    /// Segments that came in twice: a D-SACK said so (`TCPDSACKOldSent`).
    pub twice: u64,
}

impl Tcp {
    /// The sum over some hosts of a network.
    ///
    /// # Panics
    /// If the kernel doesn't count: a test that can't count must not pass.
    pub fn of(net: &Net, hosts: &[&str]) -> Self {
        let mut sum = Self::default();
        for host in hosts {
            let text = net.within(host, || {
                ["snmp", "netstat"]
                    .map(|name| {
                        std::fs::read_to_string(format!("/proc/thread-self/net/{name}"))
                            .expect("the kernel's counters")
                    })
                    .concat()
            });
            sum.retransmitted += value(&text, "Tcp:", "RetransSegs");
            sum.timeouts += value(&text, "TcpExt:", "TCPTimeouts");
            sum.bad_checksums += value(&text, "Tcp:", "InCsumErrors");
            sum.keep_alives += value(&text, "TcpExt:", "TCPKeepAlive");
            sum.out_of_order += value(&text, "TcpExt:", "TCPOFOQueue");
            sum.twice += value(&text, "TcpExt:", "TCPDSACKOldSent");
        }
        sum
    }

    /// What was counted since.
    pub fn since(self, before: Self) -> Self {
        Self {
            retransmitted: self.retransmitted - before.retransmitted,
            timeouts: self.timeouts - before.timeouts,
            bad_checksums: self.bad_checksums - before.bad_checksums,
            keep_alives: self.keep_alives - before.keep_alives,
            out_of_order: self.out_of_order - before.out_of_order,
            twice: self.twice - before.twice,
        }
    }
}

/// A line with the names, below it one with the values.
fn value(text: &str, protocol: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with(protocol));
    let (names, values) = (lines.next(), lines.next());
    names
        .and_then(|names| names.split_whitespace().position(|word| word == name))
        .and_then(|at| values?.split_whitespace().nth(at)?.parse().ok())
        .unwrap_or_else(|| panic!("no counter {protocol} {name}"))
}
