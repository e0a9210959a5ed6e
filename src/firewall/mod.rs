//! Steering and accept rules: prints, installs, removes and verifies them.
//!
//! | module | does |
//! |---|---|
//! | [`steering`] | holds what a person asks for |
//! | [`template`] | makes rule text from that and from the files in `sets/` |
//! | [`host`] | puts our part of a table of iptables into place, and takes it out |
//! | `own_table` | places steering rules over netlink, in tables of our own |
//! | `stray` | finds and removes rules of ours in tables of iptables-nft, without its tools |
//! | `plan` | decides which rules go where |
//! | `names` | has the names of all that is ours, and tells it from the rest |
//! | `nat_rule` | reads the user's NAT rules in iptables |
//! | [`derive`](mod@derive), `surroundings` | find the inside from these rules, and from routes and addresses |
//! | [`published`] | finds the ports that these rules publish |
//! | `dnat` | finds the ports that rules written for nft publish |
//! | `forwarding` | finds the servers that these rules lead control connections to |
//! | [`probe`] | tells what the rules would do to a packet |
//! | `native` | accepts data connections in chains written for nft |
//! | [`xtables`] | runs the tools of both flavours |
//! | [`tables`] | lists the tables and chains of nf_tables |
//! | [`watch`] | notices that somebody changes rules |
//! | `left` | says what of ours is there while no daemon runs |
//!
//! Pinholes are not known here, but for their names.
//!
//! Where the rules go:
//!
//! - steering (`raw`, `mangle`): into the flavour that holds the user's rules, so that these come
//!   first in the same chains. A legacy table that doesn't exist isn't created, since nothing can
//!   remove it again. Steering then goes through iptables-nft, where the kernel has that. Both
//!   flavours work side by side: a packet passes the hooks of both.
//!   Without tools of iptables, or with `--steering nft`, it goes into tables of our own: see
//!   `own_table`.
//! - accept rules (`filter`): into the user's flavour, and into the other one if its table exists,
//!   since either can drop. A table that doesn't exist drops nothing. For firewalls written for
//!   nft see `native`.

pub mod derive;
mod dnat;
pub(crate) mod forwarding;
pub mod host;
mod left;
pub(crate) mod names;
pub(crate) mod nat_rule;
mod native;
mod own_table;
mod plan;
pub(crate) mod port_set;
pub mod probe;
pub mod published;
pub mod steering;
pub(crate) mod stray;
pub(crate) mod surroundings;
pub mod tables;
pub mod template;
pub mod watch;
pub mod xtables;

use std::collections::BTreeSet;
use std::io;

use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::command::CommandError;
use crate::firewall::xtables::save::Table;
use crate::firewall::xtables::snapshot::{FlavourChoice, Snapshot, SnapshotError};
use crate::firewall::xtables::tools::Tools;
use crate::net::Family;

pub use derive::Derived;
pub use dnat::SetName;
pub use host::At;
pub use left::{Left, Unread};
pub(crate) use names::{PINHOLE_CHAINS, PINHOLE_TABLE};
pub use names::{is_our_chain, is_ours};
pub use own_table::{InOwnTables, Queueing, in_own_tables, print_nft};
pub use plan::SteeringWay;
pub(crate) use plan::unseen;
pub use published::Published;
pub use steering::{Inside, Placement, Queues, Steering};
pub use template::{Around, EXAMPLES, Example, print};

use host::Host;
use plan::Plan;
pub(crate) use plan::flavours;
use surroundings::Surroundings;

/// The tables that steering and accept rules are in, in the order in which they are installed: what
/// accepts comes before what queues.
const TABLES: [&str; 3] = ["filter", "mangle", "raw"];

/// Why rules written for nft aren't known.
const UNLISTED: &str = "can't list the nft rules";

/// What failed about rules that the tools of iptables placed, without them.
const STRAY: &str = "can't remove rules of an earlier ftpalg from tables of iptables";

/// Why the rules aren't as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// What was asked for makes no sense here: what is wrong and how to mend it.
    #[error("{0}")]
    Input(String),
    /// The tools could not tell what is there.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A tool refused.
    #[error(transparent)]
    Tool(#[from] CommandError),
    /// The host lacks a tool.
    #[error("{0}")]
    NoTool(String),
    /// The operating system refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
}

impl RulesError {
    /// What the operating system refused, said of an error of its own.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    pub(crate) fn no_tool(family: Family, flavour: Flavour) -> Self {
        let program = family.program();
        Self::NoTool(format!(
            "no {program}-{flavour}-restore found: install the iptables package, or put it into PATH"
        ))
    }
}

/// What [`Rules::install`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Which flavour holds the user's rules, and why.
    pub choice: FlavourChoice,
    /// What steers, and why, in words.
    pub how: String,
    /// The tables of iptables that hold our rules now.
    pub places: Vec<At>,
    /// The tables of our own that hold steering rules now, in words.
    pub own: Vec<String>,
    /// How many rules of an earlier installation there were.
    pub replaced: usize,
    /// The chains of nft's own firewalls that hold an accept rule now, in words.
    pub native: Vec<String>,
    /// What a person should know, a line each.
    pub notes: Vec<String>,
    /// What was there before.
    pub before: Snapshot,
}

/// What [`Rules::install`] would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// Which flavour holds the user's rules, and why.
    pub choice: FlavourChoice,
    /// What would steer, and why, in words.
    pub how: String,
    /// Each table of iptables that would be changed, and the text that the tool would load for it.
    pub tables: Vec<(At, String)>,
    /// Each table of our own, as text for `nft -f`.
    pub own: Vec<String>,
    /// The chains of nft's own firewalls that would get an accept rule, in words.
    pub native: Vec<String>,
    /// What a person should know, a line each.
    pub notes: Vec<String>,
    /// What is there now.
    pub before: Snapshot,
}

/// What [`Rules::look`] saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What isn't in place, as [`Rules::verify`] says it.
    pub missing: Vec<String>,
    /// What the user's own rules publish.
    pub published: Vec<Published>,
    /// The sets and maps that this depends on: look again when they change.
    pub sets: BTreeSet<SetName>,
    /// Whether the user's nft rules are more than are read, so that not all is known.
    pub cut: bool,
}

/// The rules of the network namespace that the calling thread is in.
#[derive(Debug)]
pub struct Rules {
    host: Host,
}

impl Rules {
    /// Works with these tools.
    #[must_use]
    pub fn new(tools: Tools) -> Self {
        Self {
            host: Host::new(tools),
        }
    }

    /// Which flavour holds the user's rules.
    ///
    /// # Errors
    /// If the tools can't tell.
    pub fn flavour(&self) -> Result<FlavourChoice, RulesError> {
        Ok(self.host.snapshot()?.choose(is_ours))
    }

    /// Puts the rules into place, all or none. What was there of them is replaced, each table at
    /// once. Those of a pinhole backend (table `nat`) are left alone.
    ///
    /// Bind the queues before.
    ///
    /// # Errors
    /// What is wrong or was refused; no steering or accept rule of ours is left then.
    pub fn install(&mut self, steering: &Steering) -> Result<Installed, RulesError> {
        for inside in &steering.inside {
            inside.check()?;
        }
        self.restore(steering)
    }

    /// Like [`install`](Self::install), but an interface of `--inside` may be missing: the rules
    /// go by its name, and apply again when it comes back.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn restore(&mut self, steering: &Steering) -> Result<Installed, RulesError> {
        steering.check()?;
        let snapshot = self.snapshot()?;
        let plan = Plan::new(steering, self.way(steering)?, &snapshot)?;
        let replaced = Self::left_of(&snapshot)?.rules;
        match self.carry_out(&plan, &snapshot) {
            Ok(queueing) => Ok(Installed {
                how: self.how(&plan, queueing),
                choice: plan.choice,
                places: plan.tables.into_iter().map(|(at, _)| at).collect(),
                own: plan.own.iter().map(ToString::to_string).collect(),
                replaced,
                native: plan.native.iter().map(ToString::to_string).collect(),
                notes: plan.notes,
                before: snapshot,
            }),
            Err(e) => {
                let removed = [own_table::remove(), self.clear(&TABLES), remove_native()];
                if let Some(again) = removed.into_iter().find_map(Result::err) {
                    log::warn!("rules that could not be removed again: {again}");
                }
                Err(e)
            }
        }
    }

    /// What [`install`](Self::install) would do. Changes nothing. What is ours already is replaced, or
    /// with `anew` taken for absent.
    ///
    /// # Errors
    /// As [`install`](Self::install), as far as that is known without doing it.
    pub fn preview(&mut self, steering: &Steering, anew: bool) -> Result<Preview, RulesError> {
        steering.check()?;
        for inside in &steering.inside {
            inside.check()?;
        }
        let snapshot = self.snapshot()?;
        let plan = Plan::new(steering, self.way(steering)?, &snapshot)?;
        let mut tables = Vec::new();
        for (at, wanted) in &plan.tables {
            let current = snapshot.table(at.family, at.flavour, &at.table);
            let current = current.filter(|_| !anew);
            tables.push((at.clone(), self.host.preview(at, current, wanted)?));
        }
        Ok(Preview {
            how: self.how(&plan, None),
            choice: plan.choice,
            tables,
            own: plan.own.iter().map(own_table::as_text).collect(),
            native: plan.native.iter().map(ToString::to_string).collect(),
            notes: plan.notes,
            before: snapshot,
        })
    }

    /// What the tools say about all tables; nothing on a host without tools, where all is done over
    /// netlink.
    ///
    /// # Errors
    /// If they can't tell, or there are neither tools nor nf_tables.
    pub fn snapshot(&self) -> Result<Snapshot, RulesError> {
        match self.host.tools().is_empty() && tables::available() {
            true => Ok(Snapshot::default()),
            false => self.host.snapshot(),
        }
    }

    /// What a steering is placed by on this host.
    ///
    /// # Errors
    /// If the host doesn't have it: what is missing, and how to mend that.
    pub fn way(&self, steering: &Steering) -> Result<SteeringWay, RulesError> {
        let no_tools = self.host.tools().is_empty();
        match steering.placement {
            Placement::Iptables if no_tools => Err(RulesError::NoTool(
                "no iptables found; install the iptables package, or use --steering nft".into(),
            )),
            Placement::Iptables => Ok(SteeringWay::Iptables),
            Placement::Auto if !no_tools => Ok(SteeringWay::Iptables),
            Placement::Auto | Placement::Nft if tables::available() => Ok(SteeringWay::Nft),
            Placement::Nft => Err(RulesError::Input(
                "this kernel has no nf_tables, or CAP_NET_ADMIN is missing: use --steering iptables, or run \
                 as root"
                    .into(),
            )),
            Placement::Auto => Err(RulesError::NoTool(
                "no iptables found, and no nf_tables to do without; install the iptables package, or place \
                 the rules yourself with --rules external"
                    .into(),
            )),
        }
    }

    /// What steers, and why.
    fn how(&self, plan: &Plan, queueing: Option<Queueing>) -> String {
        if plan.way == SteeringWay::Iptables {
            return format!("following {}", plan.choice.why);
        }
        let tables: Vec<_> = plan.own.iter().map(ToString::to_string).collect();
        let by = queueing.map_or_else(String::new, |by| format!(", by {by}"));
        let why = match self.host.tools().is_empty() {
            true => "no iptables here",
            false => "--steering nft",
        };
        format!(
            "steering over netlink, in {}{by}: {why}",
            tables.join(" and ")
        )
    }

    fn carry_out(
        &mut self,
        plan: &Plan,
        snapshot: &Snapshot,
    ) -> Result<Option<Queueing>, RulesError> {
        native::install(&plan.native, plan.mark).map_err(RulesError::system(
            "can't put accept rules into your nft chains",
        ))?;
        for (at, current) in ours(snapshot, &TABLES) {
            if !plan.tables.iter().any(|(planned, _)| *planned == at) {
                self.host.clear(&at, current)?;
            }
        }
        stray::remove(snapshot, &TABLES).map_err(RulesError::system(STRAY))?;
        if plan.way == SteeringWay::Iptables {
            own_table::remove()?;
        }
        for (at, wanted) in &plan.tables {
            let current = snapshot.table(at.family, at.flavour, &at.table);
            self.host.replace(at, current, wanted)?;
        }
        match plan.way {
            SteeringWay::Iptables => Ok(None),
            SteeringWay::Nft => own_table::install(&plan.own).map(Some),
        }
    }

    /// Sends nothing more to the queue, where that can be done without losing what waits there: the kernel
    /// drops that when the tables of our own are [removed](Self::remove).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn silence(&self) -> Result<(), RulesError> {
        own_table::silence()
    }

    /// Removes everything that is ours, pinholes of the iptables backend among it, in both
    /// flavours and families. Needs no knowledge of what was installed. Returns the number of
    /// rules that were removed.
    ///
    /// # Errors
    /// The first thing that could not be removed; all else is.
    pub fn remove(&mut self) -> Result<usize, RulesError> {
        let (own, native) = (own_table::remove(), remove_native());
        let removed = self.clear(&xtables::TABLES)?;
        Ok(removed.saturating_add(own?).saturating_add(native?))
    }

    fn clear(&mut self, tables: &[&str]) -> Result<usize, RulesError> {
        let snapshot = self.snapshot()?;
        let mut failed = self.host.out_of_reach(&snapshot, tables).err();
        let stray = stray::remove(&snapshot, tables).map_err(RulesError::system(STRAY));
        let mut removed = stray.unwrap_or_else(|e| {
            failed.get_or_insert(e);
            0
        });
        for (at, current) in ours(&snapshot, tables) {
            match self.host.clear(&at, current) {
                Ok(()) => removed += current.rules.iter().filter(|r| is_ours(r)).count(),
                Err(e) => {
                    failed.get_or_insert(e);
                }
            }
        }
        self.host.clear_made(&snapshot, tables);
        failed.map_or(Ok(removed), Err)
    }

    /// What isn't in place, in words; nothing if all is.
    ///
    /// # Errors
    /// If it couldn't be found out.
    pub fn verify(&self, steering: &Steering) -> Result<Vec<String>, RulesError> {
        self.missing_in(&self.snapshot()?, steering)
    }

    /// Like [`verify`](Self::verify), but looks only at the address families that are in use here.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_used(&self, steering: &Steering) -> Result<Vec<String>, RulesError> {
        let families = Surroundings::read()?.families(steering);
        self.verify(&Steering {
            families,
            ..steering.clone()
        })
    }

    /// What isn't in place (nothing is looked for without `steering`), and which ports the user's
    /// own rules publish.
    ///
    /// # Errors
    /// If it couldn't be found out.
    pub fn look(&self, steering: Option<&Steering>) -> Result<Look, RulesError> {
        let snapshot = self.snapshot()?;
        let missing = match steering {
            Some(steering) => self.missing_in(&snapshot, steering)?,
            None => Vec::new(),
        };
        let native = dnat::published(&snapshot).map_err(RulesError::system(UNLISTED))?;
        let mut published = published::published(&snapshot);
        published.extend(native.published);
        Ok(Look {
            missing,
            published,
            sets: native.sets,
            cut: native.cut,
        })
    }

    /// What the tools say about all tables, with the name of each tool. Looking makes no table.
    ///
    /// # Errors
    /// If the tools can't tell.
    pub fn as_text(&self) -> Result<Vec<(String, String)>, RulesError> {
        let views = self.snapshot()?.views.into_iter();
        let seen =
            views.filter(|view| !view.rules.tables.is_empty() || !view.rules.hidden.is_empty());
        seen.map(|view| {
            let tool = self.host.tool(view.family, view.flavour)?;
            let name = format!("{}-{}-save", view.family.program(), view.flavour);
            Ok((name, tool.save()?))
        })
        .collect()
    }

    /// Whether anything of ours is in iptables-legacy; `false` if that can't be found out.
    #[must_use]
    pub fn in_legacy(&self) -> bool {
        self.snapshot().is_ok_and(|snapshot| {
            ours(&snapshot, &xtables::TABLES)
                .iter()
                .any(|(at, _)| at.flavour == Flavour::Legacy)
        })
    }

    /// Finds the inside from the user's DNAT rules that lead to one of the control ports, and from
    /// MASQUERADE and SNAT rules.
    ///
    /// # Errors
    /// If nothing was found, and how to mend that.
    pub fn derive(&self, ports: &[u16]) -> Result<Derived, RulesError> {
        let around = Surroundings::read()?;
        if self.host.tools().is_empty() {
            return Err(RulesError::Input(
                "there are no iptables tools here to read NAT rules with: name the inside with --inside IFACE \
                 or --inside CIDR, or serve this host itself with --local"
                    .into(),
            ));
        }
        derive::derive(&self.snapshot()?, &around, ports)
    }

    fn missing_in(
        &self,
        snapshot: &Snapshot,
        steering: &Steering,
    ) -> Result<Vec<String>, RulesError> {
        steering.check()?;
        let way = self.way(steering)?;
        let missing = Plan::new(steering, way, snapshot)?.missing(snapshot)?;
        // A person may have placed them over netlink. That works as well.
        let other = match (way, steering.placement, missing.is_empty()) {
            (SteeringWay::Iptables, Placement::Auto, false) => in_own_tables()
                .is_ok_and(|own| own.tables > 0)
                .then_some(SteeringWay::Nft),
            _ => None,
        };
        match other {
            Some(other) => {
                let elsewhere = Plan::new(steering, other, snapshot)?.missing(snapshot)?;
                Ok(if elsewhere.is_empty() {
                    elsewhere
                } else {
                    missing
                })
            }
            None => Ok(missing),
        }
    }
}

/// What NAT rules that were written for nft publish; nothing on a kernel without nf_tables.
pub(crate) fn native_published(snapshot: &Snapshot) -> Result<Vec<Published>, RulesError> {
    let native = dnat::published(snapshot).map_err(RulesError::system(UNLISTED))?;
    Ok(native.published)
}

/// Removes our rules from chains that iptables doesn't know.
fn remove_native() -> Result<usize, RulesError> {
    native::remove().map_err(RulesError::system(
        "can't remove accept rules from your nft chains",
    ))
}

/// The tables that hold something of ours.
pub(crate) fn ours<'a>(snapshot: &'a Snapshot, tables: &[&str]) -> Vec<(At, &'a Table)> {
    let mut found = Vec::new();
    for name in tables {
        for view in &snapshot.views {
            let Some(table) = view.rules.table(name) else {
                continue;
            };
            let ours = table.chains.iter().any(|c| is_our_chain(&c.name));
            if ours || table.rules.iter().any(is_ours) {
                found.push((At::new(view.flavour, view.family, name), table));
            }
        }
    }
    found
}
