//! The names of all that is ours in the kernel's rule sets: chains, tables and comments.
//!
//! Whatever bears one of these names is ftpalg's, and is replaced or removed without asking.
//! Whatever doesn't is somebody else's. The steering rules have their names in
//! `sets/steering.rules`, where people read them; a test compares the two.

use crate::firewall::xtables::save::Rule;

/// How the names of all chains in iptables' tables start.
pub(super) const CHAIN_PREFIX: &str = "FTPALG";
/// How the comments of all rules start.
pub(crate) const TAG: &str = "ftpalg:";

/// The chains that send control packets to the queue: from the inside, and to the inside.
#[cfg(test)]
pub(super) const QUEUE_CHAINS: [&str; 2] = ["FTPALG-EGRESS", "FTPALG-INGRESS"];
/// The chain that accepts data connections.
pub(super) const DATA_CHAIN: &str = "FTPALG-DATA";
/// The chain that holds back what passed the queue unseen and mustn't: see `--fail open`.
#[cfg(test)]
pub(super) const SEEN_CHAIN: &str = "FTPALG-SEEN";
/// The comment of the accept rules in tables that are written for nft itself.
pub(super) const ACCEPT_COMMENT: &str = "ftpalg:accept";

/// What the comment of a jump adds if its table was made for it.
pub(super) const NEW_TABLE: &str = "new-table";
/// What the comment of a jump adds if the builtin chain that it is in was made for it.
pub(super) const NEW_CHAIN: &str = "new-chain";

/// The tables of the nft backend, one of each family.
pub(crate) const PINHOLE_TABLE: &str = "ftpalg";
/// The tables that steering rules are in where they are placed over netlink, one of each family.
pub(crate) const STEERING_TABLE: &str = "ftpalg-steering";
/// The chains of the iptables backend for pinholes, before and after routing. Their rules come and
/// go with each pinhole.
pub(crate) const PINHOLE_CHAINS: [&str; 2] = ["FTPALG-PRE", "FTPALG-POST"];
/// Its chains for ranges of ports, before and after routing.
pub(crate) const RANGE_CHAINS: [&str; 2] = ["FTPALG-RANGE-PRE", "FTPALG-RANGE-POST"];
/// Its chain for trying what the kernel can do; removed at once.
pub(crate) const PROBE_CHAIN: &str = "FTPALG-PROBE";

/// Whether a table of nf_tables is ours.
pub(super) fn is_our_table(name: &str) -> bool {
    [PINHOLE_TABLE, STEERING_TABLE].contains(&name)
}

/// Whether a chain is ours.
#[must_use]
pub fn is_our_chain(name: &str) -> bool {
    name.starts_with(CHAIN_PREFIX)
}

/// Whether a rule is ours: tagged, or in one of our chains, or leading there.
#[must_use]
pub fn is_ours(rule: &Rule) -> bool {
    is_our_chain(&rule.chain)
        || rule.comment().is_some_and(|c| c.starts_with(TAG))
        || rule.target().is_some_and(is_our_chain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::xtables::save::Ruleset;
    use crate::firewall::{Steering, print};
    use crate::net::Family;

    #[test]
    fn the_steering_rules_have_these_names() {
        let steering = Steering {
            local: true,
            fail_open: true,
            ..Steering::default()
        };
        let text = print(&steering, Family::V4).unwrap();
        let set = Ruleset::parse(&text);
        let chains = set.tables.iter().flat_map(|table| &table.chains);
        let names: Vec<&str> = chains.map(|chain| chain.name.as_str()).collect();
        assert_eq!(
            names,
            [&QUEUE_CHAINS[..], &[SEEN_CHAIN, DATA_CHAIN]].concat()
        );
        assert!(set.tables.iter().flat_map(|t| &t.rules).all(is_ours));
    }

    #[test]
    fn all_names_are_told_as_ours() {
        let chains = [QUEUE_CHAINS, PINHOLE_CHAINS, RANGE_CHAINS].concat();
        assert!(chains.into_iter().all(is_our_chain));
        assert!(
            [DATA_CHAIN, PROBE_CHAIN, SEEN_CHAIN]
                .into_iter()
                .all(is_our_chain)
        );
        assert!(ACCEPT_COMMENT.starts_with(TAG));
        assert!(!is_our_chain("FORWARD"));
    }
}
