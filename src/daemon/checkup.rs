//! What [`doctor`] is to judge: the settings as it knows them, and what only the daemon's
//! own modules know of a daemon that runs.

use serde_json::Value;

use crate::doctor::{self, Daemon, Facts, Features, Finding, Support, Wanted};
use crate::firewall::xtables::Flavour;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{Rules, Steering};
use crate::net::Family;
use crate::pinholes::backend::nft::Nft;

use super::config::{Config, RulesMode};
use super::control::{self, ControlRequest};
use super::lock;
use super::setup::Steered;

/// Reads all that there is to be known of this host, for a `run` with this configuration. Where the
/// configuration names no inside, it is that of the daemon that runs, or what the host's rules tell.
#[must_use]
pub fn facts(config: &Config) -> Facts {
    let features = Features::read(
        || lock::probe().map_err(|e| e.to_string()),
        || Nft::check(config.steering.mark).map_err(|e| e.to_string()),
    );
    let mut tools = Tools::find();
    if features.nf_tables == Support::Loadable {
        // Its tools would load it.
        tools = tools.without(Flavour::Nft);
    }
    let netlink = matches!(features.nf_tables, Support::Works | Support::Loadable);
    let snapshot = match tools.is_empty() && netlink {
        // All is done over netlink. Nothing is asked of it that would load it.
        true => Ok(Snapshot::default()),
        false => Snapshot::take(&tools).map_err(|e| e.to_string()),
    };
    let daemon = Daemon {
        status: control::ask(ControlRequest::Status).ok(),
        runs: lock::is_held(),
        lock: lock::QUEUE,
    };
    let has = |flavour: &Flavour| tools.tool(Family::V4, *flavour).is_some();
    let flavours = Flavour::ALL.into_iter().filter(has).collect();
    let rules = Rules::new(tools);
    let mut wanted = wanted(config, &config.steering, Vec::new());
    if !wanted.named {
        find_inside(&mut wanted, &rules, daemon.status.as_ref());
    }
    let mut facts = Facts::read(wanted, flavours, snapshot, features, daemon);
    if facts.wanted.external && facts.wanted.nothing.is_none() {
        facts.missing = rules
            .verify_used(&facts.wanted.steering)
            .unwrap_or_else(|e| vec![e.to_string()]);
    }
    facts
}

/// What an ftpalg that starts says of itself and of the rules around it.
#[derive(Debug, Default)]
pub(super) struct Checkup {
    /// The servers that rules publish.
    pub(super) servers: Vec<String>,
    /// What contradicts the settings, or is in the way, a line each.
    pub(super) warnings: Vec<String>,
}

/// Goes by rules that were read already. Nothing of it keeps a daemon from starting.
pub(super) fn at_start(config: &Config, steered: &Steered, before: Snapshot) -> Checkup {
    let wanted = wanted(config, &steered.steering, steered.found.clone());
    let facts = Facts::at_start(wanted, before).map(|mut facts| {
        if !steered.manages() {
            facts.missing = steered.missing().unwrap_or_default();
        }
        facts
    });
    match facts {
        Ok(facts) => Checkup {
            servers: doctor::watched(&facts),
            warnings: doctor::at_start(&facts).iter().map(Finding::line).collect(),
        },
        Err(e) => {
            log::info!("the rules around ftpalg can't be judged: {e}");
            Checkup::default()
        }
    }
}

/// Fills in an inside that nobody named.
fn find_inside(wanted: &mut Wanted, rules: &Rules, status: Option<&Value>) {
    let steering = &mut wanted.steering;
    if let Some(status) = status {
        let inside = status.get("inside").and_then(Value::as_array);
        let names = inside.into_iter().flatten().filter_map(Value::as_str);
        steering.inside = names.filter_map(|name| name.parse().ok()).collect();
        steering.local = status.get("local") == Some(&Value::Bool(true));
        let ports = status.get("ports").and_then(Value::as_array);
        let ports = ports.into_iter().flatten().filter_map(Value::as_u64);
        let ports: Vec<u16> = ports.filter_map(|port| port.try_into().ok()).collect();
        if !ports.is_empty() && steering.ports == Steering::default().ports {
            steering.ports = ports;
        }
        wanted.named = true;
        return;
    }
    match rules.derive(&steering.ports) {
        Ok(derived) => {
            steering.inside = derived.inside;
            steering.local = derived.local;
            wanted.found = derived.found;
        }
        Err(e) => wanted.nothing = Some(e.to_string()),
    }
}

/// The settings. `steering` is that of the configuration, with the inside that was found.
pub(super) fn wanted(config: &Config, steering: &Steering, found: Vec<String>) -> Wanted {
    let own = &config.steering;
    Wanted {
        steering: steering.clone(),
        named: !own.inside.is_empty() || own.local,
        nothing: None,
        found,
        external: config.rules == RulesMode::External,
        advertised: !config.advertise.is_empty(),
        nat64: !config.nat64.is_empty(),
        flags: flags(config),
    }
}

/// The flags that make the rules what they are.
fn flags(config: &Config) -> Vec<String> {
    let steering = &config.steering;
    let mut flags = Vec::new();
    let mut flag = |name: &str, value: String| flags.push(format!("{name} {value}"));
    for inside in &steering.inside {
        flag("--inside", inside.to_string());
    }
    let plain: Vec<u16> = steering
        .ports
        .iter()
        .copied()
        .filter(|port| !config.implicit_ports.contains(port))
        .collect();
    if plain != Steering::default().ports {
        plain
            .iter()
            .for_each(|port| flag("--port", port.to_string()));
    }
    for port in &config.implicit_ports {
        flag("--implicit-port", port.to_string());
    }
    let first = steering.queues.first;
    if first != 2121 {
        flag("--queue-num", first.to_string());
    }
    if steering.queues.count != 1 {
        flag("--queues", steering.queues.count.to_string());
    }
    if steering.fail_open {
        flag("--fail", "open".into());
    }
    if steering.local {
        flags.push("--local".into());
    }
    flags
}
