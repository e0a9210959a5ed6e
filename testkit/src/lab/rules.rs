//! The user's own firewall and NAT rules, snapshots of them, and conntrack's counters.

use super::net::Net;
use super::process::require;

/// Which of the two iptables holds the user's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl Flavour {
    /// The program.
    pub fn iptables(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        }
    }

    fn restore(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft-restore",
            Self::Legacy => "iptables-legacy-restore",
        }
    }
}

/// What the user's FORWARD chain does with what nobody accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Everything passes.
    Accept,
    /// Only ESTABLISHED, RELATED and new control connections pass.
    Drop,
}

/// Installs the user's rules on the gateway.
pub fn install(net: &Net, flavour: Flavour, policy: Policy, drop_invalid: bool) {
    let topology = net.topology();
    let mut text = String::from("*nat\n");
    for rule in &topology.nat {
        text += &format!("{rule}\n");
    }
    text += "COMMIT\n";
    if drop_invalid {
        text += "*mangle\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n";
    }
    text += "*filter\n";
    if policy == Policy::Drop {
        text += ":FORWARD DROP [0:0]\n";
    }
    if drop_invalid {
        text += "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    }
    if policy == Policy::Drop {
        text += "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
        text += &format!(
            "-A FORWARD -p tcp -m tcp --dport {} -m conntrack --ctstate NEW -j ACCEPT\n",
            topology.listen.port()
        );
    }
    text += "COMMIT\n";
    if flavour == Flavour::Legacy {
        // A legacy table is listed for good once anybody has looked at it: as on most hosts, all of
        // them have been.
        text += "*mangle\nCOMMIT\n*raw\nCOMMIT\n";
    }
    // Lets the legacy flavour wait for the lock that all namespaces of the host share.
    net.feed(
        topology.router,
        &[flavour.restore(), "-w", "10", "--noflush"],
        &text,
    )
    .must();
}

/// All the rules of a host, whoever made them, without counters and dates.
pub fn snapshot(net: &Net, host: &str) -> String {
    [
        &["iptables-nft-save"][..],
        &["iptables-legacy-save"],
        &["ip6tables-nft-save"],
        &["ip6tables-legacy-save"],
        &["nft", "list", "ruleset"],
    ]
    .iter()
    .map(|words| {
        let text = net.exec(host, words).must().stdout;
        format!("--- {}\n{}", words.join(" "), without_counters(&text))
    })
    .collect()
}

/// A listing of rules without its dates, and without the numbers that the kernel counts meanwhile.
pub fn without_counters(text: &str) -> String {
    text.lines()
        .filter(|line| !line.starts_with("# Generated") && !line.starts_with("# Completed"))
        .map(|line| {
            // `:FORWARD DROP [12:345]` and `counter packets 12 bytes 345`.
            let line = match line.rfind(" [") {
                Some(at) if line.starts_with(':') => &line[..at],
                _ => line,
            };
            let mut words: Vec<&str> = line.split(' ').collect();
            for at in 0..words.len() {
                if at >= 1
                    && at + 1 < words.len()
                    && (words[at] == "packets" || words[at] == "bytes")
                {
                    words[at + 1] = "N";
                }
            }
            words.join(" ") + "\n"
        })
        .collect()
}

/// How many packets of a host conntrack has found INVALID so far.
///
/// # Panics
/// If the counters can't be read: a test that can't count must not pass.
pub fn invalid(net: &Net, host: &str) -> u64 {
    require("conntrack");
    let text = net.exec(host, &["conntrack", "-S"]).must().stdout;
    let counts: Vec<u64> = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("invalid=")?.parse().ok())
        .collect();
    assert!(!counts.is_empty(), "no counters in `conntrack -S`:\n{text}");
    counts.iter().sum()
}

/// Makes a host lose a part of the packets that reach it.
pub fn lose(net: &Net, host: &str, probability: f64) {
    let probability = probability.to_string();
    let matches = ["-m", "statistic", "--mode", "random", "--probability"];
    let rule = [
        &["iptables-nft", "-A", "INPUT"][..],
        &matches,
        &[&probability, "-j", "DROP"],
    ];
    net.exec(host, &rule.concat()).must();
}
