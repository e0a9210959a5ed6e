//! Judges whether a host is fit for `ftpalg`, and what in its rules or settings will be in the way.
//!
//! [`Facts`] are what is known of the host: [`Facts::read`] reads them, and changes nothing. [`judge`] is
//! a pure function of them. Each theme has a file: `host`, `nat`, `passage`, `network`, `gateways`.
//! [`at_start`] is the part of it that `ftpalg run` says by itself.
//!
//! The daemon isn't known here: what it knows of itself comes as [`Facts::daemon`].

mod bundle;
mod facts;
mod gateways;
mod host;
mod nat;
mod network;
mod passage;
mod text;

pub use bundle::bundle;
pub use facts::{Daemon, Facts, Features, QueueUser, Support, Wanted};
pub use text::describe;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Some transfers will fail, or may.
    Warning,
    /// FTP won't work, or `ftpalg run` won't start.
    Problem,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Theme {
    /// The kernel, this process, other programs.
    Host,
    /// What is to be watched, and the NAT rules.
    Nat,
    /// The way of control packets through the user's rules.
    Rules,
    /// Addresses, routes, interfaces.
    Network,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, which stays the same: docs/doctor.md has a section for each.
    pub id: &'static str,
    /// What it is about.
    pub theme: Theme,
    /// How bad it is.
    pub level: Level,
    /// What was found, in a line.
    pub what: String,
    /// What it means for sessions and transfers.
    pub means: Option<String>,
    /// The command that mends it.
    pub command: Option<String>,
}

impl Finding {
    /// As it should be.
    fn ok(id: &'static str, theme: Theme, what: impl Into<String>) -> Self {
        Self {
            id,
            theme,
            level: Level::Ok,
            what: what.into(),
            means: None,
            command: None,
        }
    }

    fn warning(id: &'static str, theme: Theme, what: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            ..Self::ok(id, theme, what)
        }
    }

    fn problem(id: &'static str, theme: Theme, what: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            ..Self::ok(id, theme, what)
        }
    }

    fn means(self, means: impl Into<String>) -> Self {
        Self {
            means: Some(means.into()),
            ..self
        }
    }

    fn command(self, command: impl Into<String>) -> Self {
        Self {
            command: Some(command.into()),
            ..self
        }
    }

    /// All of it in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut line = self.what.clone();
        if let Some(means) = &self.means {
            line += &format!(": {means}");
        }
        if let Some(command) = &self.command {
            line += &format!("; {command}");
        }
        line
    }
}

/// Every id that a finding can have.
pub const IDS: [&str; 34] = [
    "accounting",
    "capabilities",
    "conntrack-events",
    "conntrack-table",
    "conntrack-tcp",
    "conntrackd",
    "ctnetlink",
    "external-rules",
    "firewall",
    "flavour",
    "flowtable",
    "forwarding",
    "hidden-packets",
    "inside",
    "inside-is-outside",
    "ipv6-forwarding",
    "kernel-helper",
    "masquerade",
    "mtu",
    "nat64",
    "nf-tables",
    "nfqueue",
    "nft-nat",
    "port-mismatch",
    "published",
    "queue-taken",
    "rp-filter",
    "rules-left",
    "running",
    "steering",
    "tools",
    "unseen",
    "untracked",
    "upstream-nat",
];

/// What `ftpalg run` says of by itself.
const AT_START: [&str; 9] = [
    "external-rules",
    "firewall",
    "flowtable",
    "forwarding",
    "hidden-packets",
    "inside-is-outside",
    "kernel-helper",
    "port-mismatch",
    "untracked",
];

/// All findings, by theme.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    host::judge(facts, &mut all);
    nat::judge(facts, &mut all);
    passage::judge(facts, &mut all);
    network::judge(facts, &mut all);
    gateways::judge(facts, &mut all);
    // The order within a theme stays.
    all.sort_by_key(|finding| finding.theme);
    all
}

/// What of it contradicts the settings of an ftpalg that starts, or keeps its packets from it.
#[must_use]
pub fn at_start(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    nat::judge(facts, &mut all);
    passage::judge(facts, &mut all);
    network::judge(facts, &mut all);
    all.retain(|finding| finding.level > Level::Ok && AT_START.contains(&finding.id));
    all
}

/// What is watched, a line for each published server: `203.0.113.7:21 -> 10.0.0.5:21 on eth1`.
#[must_use]
pub fn watched(facts: &Facts) -> Vec<String> {
    nat::watched(facts)
}

/// The worst of some findings.
#[must_use]
pub fn worst(findings: &[Finding]) -> Level {
    let levels = findings.iter().map(|finding| finding.level);
    levels.max().unwrap_or(Level::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_in_order_and_documented() {
        assert!(IDS.is_sorted());
        let text = include_str!("../../docs/doctor.md");
        let documented: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("### "))
            .collect();
        assert_eq!(documented, IDS, "docs/doctor.md has a section for each id");
        assert!(AT_START.iter().all(|id| IDS.contains(id)));
    }

    #[test]
    fn a_line_says_all() {
        let finding = Finding::warning("mtu", Theme::Network, "what")
            .means("means")
            .command("command");
        assert_eq!(finding.line(), "what: means; command");
    }
}
