//! Decides which rules go where.

use super::names::{DATA_CHAIN, TAG, is_ours};
use super::own_table::{self, OwnTable};
use super::template::print;
use super::{At, RulesError, Steering, TABLES, UNLISTED, host, native};
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::save::{Rule, Ruleset, Table};
use crate::firewall::xtables::snapshot::{FlavourChoice, Snapshot, read_proc};
use crate::net::{Family, Mark};

/// Docker's chain for the user's own rules. When Docker starts, it puts its chains in front of
/// everything in FORWARD, but keeps the rules of this one.
const DOCKER: &str = "DOCKER-USER";

/// What places the steering rules on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SteeringWay {
    /// The tools of iptables, in its tables.
    Iptables,
    /// nf_tables over netlink, in tables of our own.
    Nft,
}

impl std::fmt::Display for SteeringWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nft => "nft",
        })
    }
}

/// Which rules go where.
pub(super) struct Plan {
    pub(super) way: SteeringWay,
    pub(super) choice: FlavourChoice,
    /// Tables of iptables.
    pub(super) tables: Vec<(At, Table)>,
    /// Tables of our own.
    pub(super) own: Vec<OwnTable>,
    /// Chains of nft's own firewalls.
    pub(super) native: Vec<native::DroppingChain>,
    pub(super) mark: Mark,
    pub(super) notes: Vec<String>,
}

impl Plan {
    pub(super) fn new(
        steering: &Steering,
        way: SteeringWay,
        snapshot: &Snapshot,
    ) -> Result<Self, RulesError> {
        let choice = snapshot.choose(is_ours);
        let own = match way {
            SteeringWay::Iptables => Vec::new(),
            SteeringWay::Nft => own_table::plan(steering)?,
        };
        let mut tables = Vec::new();
        let mut notes = Vec::new();
        for family in Family::ALL {
            // A host without IPv6, or without its tools, is steered for IPv4.
            if !steering.has(family) || !snapshot.has(family) {
                continue;
            }
            let set = Ruleset::parse(&print(steering, family)?);
            for name in TABLES {
                let Some(wanted) = set.table(name) else {
                    continue;
                };
                for flavour in places(snapshot, way, choice.flavour, family, name) {
                    let at = At::new(flavour, family, name);
                    if !snapshot.is_hidden(family, flavour, name) {
                        let mut wanted = wanted.clone();
                        let current = snapshot.table(family, flavour, name);
                        if current.is_some_and(|table| table.chain(DOCKER).is_some()) {
                            wanted.rules.extend(docker_jump());
                        }
                        tables.push((at, wanted));
                    } else if name != "filter" {
                        return Err(RulesError::Input(format!(
                            "{at}: it holds rules written for nft, beside which ours couldn't be removed \
                             again: move them to a table of another name, or use --rules external"
                        )));
                    }
                }
            }
        }
        let mut native =
            native::places(snapshot, steering.local).map_err(RulesError::system(UNLISTED))?;
        let bit = steering.mark.bit();
        let owned = native.extract_if(.., |place| place.is_out_of_reach());
        notes.extend(owned.map(|place| {
            format!(
                "{place}: the table belongs to a running program, which alone can change it: have it accept \
                 data connections that it would drop (ct mark and {bit:#x} == {bit:#x} accept; firewalld gives \
                 the table up with NftablesTableOwner=no in firewalld.conf)"
            )
        }));
        if way == SteeringWay::Iptables && tables.is_empty() {
            return Err(RulesError::Input(
                "nothing to steer: all of --inside is IPv6, and there is no ip6tables here".into(),
            ));
        }
        if way == SteeringWay::Nft {
            if own.is_empty() {
                return Err(RulesError::Input(
                    "nothing to steer: all of --inside is IPv6, and there is no IPv6 here".into(),
                ));
            }
            notes.extend(unseen(snapshot, steering.mark));
        }
        tables.sort_by_key(|(at, _)| TABLES.iter().position(|t| *t == at.table));
        Ok(Self {
            way,
            choice,
            tables,
            own,
            native,
            mark: steering.mark,
            notes,
        })
    }

    /// What of it isn't in place, in words.
    pub(super) fn missing(&self, snapshot: &Snapshot) -> Result<Vec<String>, RulesError> {
        let mut all = Vec::new();
        for (at, wanted) in &self.tables {
            let in_flavour = |flavour| {
                let current = snapshot.table(at.family, flavour, &at.table);
                (current.is_some(), host::missing(at, current, wanted))
            };
            let (there, missing) = in_flavour(at.flavour);
            // A person may have loaded them with the tool of the other flavour. That works as well:
            // a packet passes both, and a table that doesn't exist drops nothing.
            let elsewhere = || Flavour::ALL.iter().any(|f| in_flavour(*f).1.is_empty());
            if there || !elsewhere() {
                all.extend(missing);
            }
        }
        if !self.own.is_empty() {
            let own = own_table::missing(&self.own);
            all.extend(own.map_err(RulesError::system(UNLISTED))?);
        }
        let bare = self.native.iter().filter(|place| !place.is_taken());
        all.extend(bare.map(|place| format!("{place}: the accept rule is gone")));
        Ok(all)
    }
}

/// The flavours that our rules of a table go to, in tables of iptables.
fn places(
    snapshot: &Snapshot,
    way: SteeringWay,
    users: Flavour,
    family: Family,
    table: &str,
) -> Vec<Flavour> {
    let mut all = flavours(snapshot, users, family, table);
    if way == SteeringWay::Nft {
        // Data connections are accepted where the user's rules may drop them. All else is elsewhere.
        let of_users = |flavour: &Flavour| {
            let table = snapshot.table(family, *flavour, table);
            table.is_some_and(|table| !is_ours_alone(table))
        };
        all.retain(|flavour| table == "filter" && of_users(flavour));
    }
    all
}

/// Whether a table is there for our rules only.
fn is_ours_alone(table: &Table) -> bool {
    let mut policies = table.chains.iter().filter_map(|c| c.policy.as_deref());
    !table.rules.is_empty()
        && table.rules.iter().all(is_ours)
        && policies.all(|policy| policy == "ACCEPT")
}

/// Rules of iptables-legacy that no tool here can show, in words.
pub(crate) fn unseen(snapshot: &Snapshot, mark: Mark) -> Option<String> {
    let tables = |family, names| {
        let seen = snapshot.view(family, Flavour::Legacy).is_some();
        let names = read_proc(names).ok().flatten().filter(|_| !seen);
        names.filter(|names| !names.trim().is_empty())
    };
    let names = tables(Family::V4, "ip_tables_names").or(tables(Family::V6, "ip6_tables_names"))?;
    let (bit, names) = (mark.bit(), names.split_whitespace().collect::<Vec<_>>());
    Some(format!(
        "iptables-legacy has tables here ({}), and no tool here reads them: ports that they publish aren't \
         avoided, and where they drop, accept data connections yourself (-m connmark --mark {bit:#x}/{bit:#x} \
         -j ACCEPT)",
        names.join(", ")
    ))
}

/// The jump in Docker's chain, as those in FORWARD.
fn docker_jump() -> Option<Rule> {
    Rule::parse(&format!(
        "-I {DOCKER} -m comment --comment \"{TAG}data\" -j {DATA_CHAIN}"
    ))
}

/// The flavours that our rules of a table go to.
pub(crate) fn flavours(
    snapshot: &Snapshot,
    users: Flavour,
    family: Family,
    table: &str,
) -> Vec<Flavour> {
    let there = |flavour| snapshot.table(family, flavour, table).is_some();
    let works = |flavour| snapshot.view(family, flavour).is_some();
    // nft creates a missing table where it works, since only nft can delete it again.
    if table == "filter" {
        return Flavour::ALL
            .into_iter()
            .filter(|f| there(*f) || (*f == Flavour::Nft && users == *f && works(*f)))
            .collect();
    }
    let legacy = !works(Flavour::Nft)
        || (users == Flavour::Legacy && works(Flavour::Legacy) && there(Flavour::Legacy));
    vec![if legacy {
        Flavour::Legacy
    } else {
        Flavour::Nft
    }]
}
