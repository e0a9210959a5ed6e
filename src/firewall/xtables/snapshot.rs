//! Everything that the tools say about a network namespace at one moment, and which flavour holds
//! the user's rules.

use std::fs;
use std::io;

use super::Flavour;
use super::command::CommandError;
use super::save::{Rule, Ruleset, Table};
use super::tools::Tools;
use crate::net::Family;

/// The rule set of one family and flavour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its family.
    pub family: Family,
    /// Its flavour.
    pub flavour: Flavour,
    /// What its save tool says. Legacy: only tables that are there already, since looking at
    /// another one would make it.
    pub rules: Ruleset,
}

/// What all tools say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// One per family and flavour that the host has tools and kernel support for.
    pub views: Vec<View>,
    /// What plain `iptables` is.
    pub plain: Option<Flavour>,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No tools.
    #[error("no iptables found: install the iptables package, or put it into PATH")]
    NoTools,
    /// There are tools, but none works: what one of them said.
    #[error("{0}")]
    Tool(#[from] CommandError),
    /// Not allowed to look.
    #[error(
        "can't read {path}: {source} (root, or CAP_NET_ADMIN in this network namespace, is needed)"
    )]
    Read {
        /// The file.
        path: String,
        /// The error.
        source: io::Error,
    },
}

/// Which flavour holds the user's rules, and how that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlavourChoice {
    /// The flavour.
    pub flavour: Flavour,
    /// Why, in words for the log.
    pub why: String,
}

impl Snapshot {
    /// Asks all tools. Looking creates no table.
    ///
    /// A family or flavour that the kernel or the host lacks is left out.
    ///
    /// # Errors
    /// If there is nothing for IPv4, or a tool failed for a momentary reason: the rules that it didn't
    /// show would be taken for absent, and left behind.
    pub fn take(tools: &Tools) -> Result<Self, SnapshotError> {
        if tools.is_empty() {
            return Err(SnapshotError::NoTools);
        }
        let mut snapshot = Self {
            views: Vec::new(),
            plain: tools.plain(),
        };
        let mut failed = None;
        for family in Family::ALL {
            if family == Family::V6 && read_proc("if_inet6")?.is_none() {
                continue;
            }
            for flavour in Flavour::ALL {
                let nft_works = snapshot.view(family, Flavour::Nft).is_some();
                match view(tools, family, flavour, nft_works) {
                    Ok(view) => snapshot.views.extend(view),
                    Err(ViewError::Tool(e)) if e.is_passing() => return Err(e.into()),
                    Err(ViewError::Tool(e)) if family == Family::V4 => {
                        failed.get_or_insert(e);
                    }
                    Err(ViewError::Tool(e)) => log::debug!("{family} left out: {e}"),
                    Err(ViewError::Read(e)) => return Err(e),
                }
            }
        }
        if snapshot.has(Family::V4) {
            return Ok(snapshot);
        }
        Err(failed.map_or(SnapshotError::NoTools, SnapshotError::Tool))
    }

    /// The view of a family and flavour.
    #[must_use]
    pub fn view(&self, family: Family, flavour: Flavour) -> Option<&View> {
        self.views
            .iter()
            .find(|v| v.family == family && v.flavour == flavour)
    }

    /// The table of a family and flavour, if it is there.
    #[must_use]
    pub fn table(&self, family: Family, flavour: Flavour, name: &str) -> Option<&Table> {
        self.view(family, flavour)?.rules.table(name)
    }

    /// Whether the table is there, but holds rules that its tool can't show.
    #[must_use]
    pub fn is_hidden(&self, family: Family, flavour: Flavour, name: &str) -> bool {
        self.view(family, flavour)
            .is_some_and(|v| v.rules.hidden.iter().any(|t| t == name))
    }

    /// Whether there is any view of the family.
    #[must_use]
    pub fn has(&self, family: Family) -> bool {
        self.views.iter().any(|v| v.family == family)
    }

    /// Which flavour holds the user's rules: all rules but those that `is_ours` says are our own.
    ///
    /// Where both do: the one that translates addresses. Where none does: what plain `iptables` is.
    #[must_use]
    pub fn choose(&self, is_ours: impl Fn(&Rule) -> bool) -> FlavourChoice {
        let [nft, legacy] = Flavour::ALL.map(|flavour| {
            let mut held = Held::default();
            for view in self.views.iter().filter(|v| v.flavour == flavour) {
                held.add(&view.rules, &is_ours);
            }
            held
        });
        let available = |flavour| self.view(Family::V4, flavour).is_some();
        let plain = self.plain.unwrap_or(Flavour::Nft);
        let (flavour, why) = match (available(Flavour::Nft), available(Flavour::Legacy)) {
            (true, false) => (
                Flavour::Nft,
                "legacy isn't there, or not for us to look at".to_owned(),
            ),
            (false, true) => (Flavour::Legacy, "iptables-nft doesn't work here".to_owned()),
            _ => match (nft.any(), legacy.any()) {
                (true, false) => (Flavour::Nft, format!("it holds {nft}")),
                (false, true) => (Flavour::Legacy, format!("it holds {legacy}")),
                (true, true) => {
                    let flavour = match (nft.nat > 0, legacy.nat > 0) {
                        (true, false) => Flavour::Nft,
                        (false, true) => Flavour::Legacy,
                        _ => plain,
                    };
                    (flavour, format!("nft holds {nft}, legacy {legacy}"))
                }
                (false, false) => (
                    plain,
                    "no rules yet, it is what iptables is here".to_owned(),
                ),
            },
        };
        FlavourChoice {
            flavour,
            why: format!("iptables-{flavour}: {why}"),
        }
    }
}

/// How much a flavour holds of the user's.
#[derive(Default)]
struct Held {
    rules: usize,
    nat: usize,
    /// A builtin chain has another policy than `ACCEPT`.
    drops: bool,
    /// A table holds rules that aren't shown.
    hidden: bool,
}

impl Held {
    fn add(&mut self, set: &Ruleset, is_ours: impl Fn(&Rule) -> bool) {
        self.hidden |= !set.hidden.is_empty();
        for table in &set.tables {
            for rule in table.rules.iter().filter(|r| !is_ours(r)) {
                self.rules += 1;
                self.nat += usize::from(matches!(
                    rule.target(),
                    Some("DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP")
                ));
            }
            let mut policies = table.chains.iter().filter_map(|c| c.policy.as_deref());
            self.drops |= policies.any(|policy| policy != "ACCEPT");
        }
    }

    fn any(&self) -> bool {
        self.rules > 0 || self.drops || self.hidden
    }
}

impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = if self.rules == 1 { "" } else { "s" };
        write!(f, "{} rule{s}, {} of them NAT", self.rules, self.nat)
    }
}

enum ViewError {
    Tool(CommandError),
    Read(SnapshotError),
}

fn view(
    tools: &Tools,
    family: Family,
    flavour: Flavour,
    nft_works: bool,
) -> Result<Option<View>, ViewError> {
    let Some(tool) = tools.tool(family, flavour) else {
        return Ok(None);
    };
    let saved = || {
        let text = tool.save().map_err(ViewError::Tool)?;
        Ok(Ruleset::parse(&text))
    };
    let rules = match flavour {
        Flavour::Nft => saved()?,
        Flavour::Legacy => {
            let names = match family {
                Family::V4 => "ip_tables_names",
                Family::V6 => "ip6_tables_names",
            };
            let names = match read_proc(names) {
                // CAP_NET_ADMIN alone is enough for nft, but neither to read this nor to take the
                // lock of the legacy tools.
                Err(SnapshotError::Read { path, source })
                    if nft_works && source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    log::debug!("legacy left out: can't read {path}: {source}");
                    return Ok(None);
                }
                names => names.map_err(ViewError::Read)?,
            };
            match names {
                // The module isn't loaded. Running the tool would load it.
                None if nft_works => return Ok(None),
                None => Ruleset::default(),
                Some(names) if names.trim().is_empty() => Ruleset::default(),
                Some(_) => saved()?,
            }
        }
    };
    Ok(Some(View {
        family,
        flavour,
        rules,
    }))
}

/// Reads a file of the calling thread's network namespace in `/proc/net`; `None` if there is none.
pub(crate) fn read_proc(name: &str) -> Result<Option<String>, SnapshotError> {
    let path = format!("/proc/thread-self/net/{name}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SnapshotError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(nft: Option<&str>, legacy: Option<&str>, plain: Flavour) -> Snapshot {
        let view = |flavour, text: Option<&str>| {
            text.map(|text| View {
                family: Family::V4,
                flavour,
                rules: Ruleset::parse(text),
            })
        };
        Snapshot {
            views: [view(Flavour::Nft, nft), view(Flavour::Legacy, legacy)]
                .into_iter()
                .flatten()
                .collect(),
            plain: Some(plain),
        }
    }

    fn chosen(s: &Snapshot) -> Flavour {
        let choice = s.choose(|r| r.comment().is_some_and(|c| c == "ours"));
        assert!(
            choice.why.contains(&format!("iptables-{}", choice.flavour)),
            "{choice:?}"
        );
        choice.flavour
    }

    const DNAT: &str =
        "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j DNAT --to-destination 10.0.0.1\nCOMMIT\n";
    const FILTER: &str =
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n";
    const OURS: &str =
        "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m comment --comment ours -j DNAT\nCOMMIT\n";
    const POLICY: &str = "*filter\n:FORWARD DROP [0:0]\nCOMMIT\n";

    #[test]
    fn the_flavour_with_the_users_rules() {
        use Flavour::{Legacy, Nft};
        for (nft, legacy, plain, expected) in [
            (Some(""), Some(DNAT), Nft, Legacy),
            (Some(DNAT), Some(""), Legacy, Nft),
            (Some(FILTER), Some(DNAT), Nft, Legacy),
            (Some(DNAT), Some(FILTER), Legacy, Nft),
            (Some(DNAT), Some(DNAT), Legacy, Legacy),
            (Some(FILTER), Some(FILTER), Nft, Nft),
            (Some(""), Some(""), Nft, Nft),
            (Some(""), Some(""), Legacy, Legacy),
            (Some(OURS), Some(FILTER), Nft, Legacy),
            (Some(OURS), Some(POLICY), Nft, Legacy),
            (
                Some("# Table `filter' is incompatible, use 'nft' tool."),
                Some(""),
                Legacy,
                Nft,
            ),
            (Some(DNAT), None, Legacy, Nft),
            (None, Some(""), Nft, Legacy),
        ] {
            assert_eq!(
                chosen(&snapshot(nft, legacy, plain)),
                expected,
                "{nft:?} {legacy:?} {plain:?}"
            );
        }
    }
}
