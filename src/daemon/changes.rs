//! What a new configuration changes while the daemon runs, and what it can't change.
//!
//! Every setting has a row with its name and its value in words ([`settings`]). Two configurations are
//! compared row by row. Settings that the rules, the queues and the pinhole tables were made with stay
//! as they are until the next start.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::ops::RangeInclusive;

use crate::firewall::{Queues, Steering};
use crate::ftp::policy::{Policy, SERVICE_PORTS, SYSTEM_PORTS, Strict};
use crate::pinholes::PlaneLimits;

use super::config::{Config, Limits, Tls};
use super::events::{EventsConfig, FileLimits};

/// A new configuration beside the one that the daemon goes by.
#[derive(Debug)]
pub(super) struct Changes {
    /// What to go by from now on: all that can change is new, the rest is as it was.
    pub(super) config: Config,
    /// What is new, in words.
    pub(super) made: Vec<String>,
    /// What is wanted and can't be had without a restart, in words.
    pub(super) refused: Vec<String>,
}

impl Changes {
    /// Compares.
    ///
    /// # Errors
    /// What can change doesn't go together with what can't.
    pub(super) fn between(old: &Config, new: Config) -> Result<Self, Vec<String>> {
        let (before, wanted) = (settings(old), settings(&new));
        let config = merge(old, new);
        let conflicts = config.conflicts();
        if !conflicts.is_empty() {
            return Err(conflicts.iter().map(ToString::to_string).collect());
        }
        let after = settings(&config);
        let mut changes = Self {
            config,
            made: Vec::new(),
            refused: Vec::new(),
        };
        for (name, was) in &before {
            let differs = |rows: &BTreeMap<_, String>| {
                let now = rows.get(name).filter(|now| *now != was)?;
                Some(format!("{name} {was} -> {now}"))
            };
            changes.made.extend(differs(&after));
            if wanted.get(name) != after.get(name) {
                changes.refused.extend(differs(&wanted));
            }
        }
        Ok(changes)
    }
}

/// The new settings where they can change, else the old ones.
fn merge(old: &Config, new: Config) -> Config {
    // Whether there is a range of ports, and which, is built into the pinhole tables.
    let ranged = |tls: Tls| matches!(tls, Tls::Range(_));
    let tls = match ranged(old.tls) || ranged(new.tls) {
        true => old.tls,
        false => new.tls,
    };
    Config {
        steering: old.steering.clone(),
        backend: old.backend,
        rules: old.rules,
        tls,
        implicit_ports: old.implicit_ports.clone(),
        policy: Policy {
            deny_tls: tls == Tls::Deny,
            ..new.policy
        },
        takeover: old.takeover,
        resume_mark: old.resume_mark,
        state: old.state.clone(),
        metrics: old.metrics,
        // What is open stays open.
        events: EventsConfig {
            names: new.events.names,
            ..old.events.clone()
        },
        ..new
    }
}

/// Every setting by the name of its flag, with its value in words.
#[must_use]
pub fn settings(config: &Config) -> BTreeMap<&'static str, String> {
    // Without `..`: whoever adds a setting is told to add it here.
    let Config {
        steering,
        advertise,
        data_ports,
        nat64,
        backend,
        rules,
        tls,
        tls_idle,
        implicit_ports,
        policy,
        deadline,
        handover,
        takeover: _,
        resume_mark,
        state,
        keep_length,
        bypass,
        metrics,
        limits,
        events:
            EventsConfig {
                to,
                limits: FileLimits { size, files },
                names,
            },
    } = config;
    let Steering {
        inside,
        local,
        ports,
        queues: Queues { first, count },
        fail_open,
        mark,
        uneven_mark,
        families: _,
        placement,
    } = steering;
    let Policy {
        require_login,
        deny_ports,
        low_ports,
        allow_foreign,
        // It follows from `tls`.
        deny_tls: _,
        strict,
        // These are in `limits`.
        max_command: _,
        max_reply: _,
        max_pipelined: _,
    } = policy;
    let plain = ports.iter().filter(|port| !implicit_ports.contains(port));
    let mut rows = BTreeMap::from([
        ("inside", list(inside)),
        ("local", yes_or_no(*local)),
        ("port", list(plain)),
        ("queues", count.to_string()),
        ("queue-num", first.to_string()),
        ("fail", either(*fail_open, "open", "closed")),
        ("mark", format!("{:#x}", mark.bit())),
        ("advertise", list(advertise)),
        ("data-ports", list(data_ports)),
        ("nat64", list(nat64)),
        ("backend", backend.to_string()),
        ("rules", rules.to_string()),
        ("steering", placement.to_string()),
        ("tls", tls.to_string()),
        ("tls-idle", tls_idle.as_secs().to_string()),
        ("implicit-port", list(implicit_ports)),
        ("require-login", yes_or_no(*require_login)),
        ("deny-ports", denied(deny_ports)),
        ("low-ports", yes_or_no(*low_ports)),
        ("allow-foreign", list(allow_foreign)),
        ("strict", strict_rules(strict)),
        ("deadline", deadline.as_secs().to_string()),
        ("handover", handover.as_secs().to_string()),
        ("resume-mark", format!("{:#x}", resume_mark.bit())),
        ("uneven-mark", format!("{:#x}", uneven_mark.bit())),
        ("state", state.to_string()),
        ("metrics", list(metrics)),
        ("bypass", list(bypass)),
        ("keep-length", either(*keep_length, "prefer", "off")),
        ("events", to.to_string()),
        ("events-size", (size >> 20).to_string()),
        ("events-files", files.to_string()),
        ("events-names", yes_or_no(*names)),
    ]);
    rows.extend(limit_rows(limits));
    rows
}

fn limit_rows(limits: &Limits) -> impl Iterator<Item = (&'static str, String)> + use<> {
    let Limits {
        plane,
        command_line,
        reply_line,
        pipelined,
    } = *limits;
    let PlaneLimits {
        sessions,
        sessions_per_client,
        pinholes,
        pinholes_per_client,
        pinholes_per_session,
        pinholes_per_minute,
        pinholes_per_client_per_minute,
        // These can't be set.
        connections: _,
        ranges: _,
    } = plane;
    [
        ("limits.sessions", sessions.to_string()),
        (
            "limits.sessions-per-client",
            sessions_per_client.to_string(),
        ),
        ("limits.pinholes", pinholes.to_string()),
        (
            "limits.pinholes-per-client",
            pinholes_per_client.to_string(),
        ),
        (
            "limits.pinholes-per-session",
            pinholes_per_session.to_string(),
        ),
        (
            "limits.pinholes-per-minute",
            pinholes_per_minute.to_string(),
        ),
        (
            "limits.pinholes-per-client-per-minute",
            pinholes_per_client_per_minute.to_string(),
        ),
        ("limits.command-line", command_line.to_string()),
        ("limits.reply-line", reply_line.to_string()),
        ("limits.pipelined", pipelined.to_string()),
    ]
    .into_iter()
}

fn either(is: bool, yes: &str, no: &str) -> String {
    if is { yes } else { no }.to_owned()
}

fn yes_or_no(is: bool) -> String {
    either(is, "yes", "no")
}

/// With commas between them; `none` if there are none.
fn list<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    let mut text = String::new();
    for one in all {
        let comma = if text.is_empty() { "" } else { "," };
        // A string takes anything.
        let _ = write!(text, "{comma}{one}");
    }
    match text.is_empty() {
        true => "none".to_owned(),
        false => text,
    }
}

/// The values of `--deny-ports`. Ports below 1024 are always denied, and go without saying.
fn denied(ports: &[RangeInclusive<u16>]) -> String {
    let services = SERVICE_PORTS.iter().all(|range| ports.contains(range));
    let others = ports
        .iter()
        .filter(|range| **range != SYSTEM_PORTS && !(services && SERVICE_PORTS.contains(range)))
        .map(|range| match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{}-{}", range.start(), range.end()),
        });
    let services = services.then(|| "default".to_owned());
    list(services.into_iter().chain(others))
}

/// `off`, `on` (what `--strict` alone means), or the rules by name.
fn strict_rules(strict: &Strict) -> String {
    let Strict {
        order,
        unknown_verbs,
        long_lines,
        control_bytes,
        before_greeting,
        addresses,
        active_late,
        passive_ports,
        allow,
        deny,
        failed_logins,
    } = strict;
    if *strict == Strict::default() {
        return "off".to_owned();
    }
    if *strict == Strict::all() {
        return "on".to_owned();
    }
    let switches = [
        (order, "order"),
        (unknown_verbs, "unknown-verbs"),
        (long_lines, "long-lines"),
        (control_bytes, "control-bytes"),
        (before_greeting, "before-greeting"),
        (addresses, "addresses"),
        (active_late, "active-late"),
        (passive_ports, "passive-ports"),
    ];
    let named = switches
        .into_iter()
        .filter(|(on, _)| **on)
        .map(|(_, name)| name.to_owned());
    let verbs = |name: &str, verbs: &[String]| {
        (!verbs.is_empty()).then(|| format!("{name}={}", verbs.join("+")))
    };
    let logins = failed_logins.map(|logins| format!("failed-logins={logins}"));
    list(
        named
            .chain(logins)
            .chain(verbs("allow", allow))
            .chain(verbs("deny", deny)),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::daemon::config::{BackendChoice, RulesMode, StateChoice};
    use crate::firewall::{Inside, Placement};
    use crate::net::{Family, Mark};

    fn config() -> Config {
        Config {
            steering: Steering {
                inside: vec!["in0".parse::<Inside>().unwrap()],
                local: false,
                ports: vec![21],
                queues: Queues {
                    first: 2121,
                    count: 1,
                },
                fail_open: false,
                mark: Mark::DEFAULT,
                uneven_mark: Mark::UNEVEN,
                families: Family::ALL.to_vec(),
                placement: Placement::Auto,
            },
            advertise: Vec::new(),
            data_ports: None,
            nat64: Vec::new(),
            backend: BackendChoice::Auto,
            rules: RulesMode::Manage,
            tls: Tls::Pass,
            tls_idle: Duration::from_secs(300),
            implicit_ports: Vec::new(),
            policy: Policy::default(),
            deadline: Duration::from_secs(60),
            handover: Duration::from_secs(10),
            takeover: true,
            resume_mark: Mark::RESUME,
            state: StateChoice::Auto,
            keep_length: true,
            bypass: Vec::new(),
            metrics: None,
            limits: Limits::default(),
            events: EventsConfig::default(),
        }
    }

    type Edit = fn(&mut Config);

    /// What becomes of one change: what is made, what is refused.
    fn change(f: impl FnOnce(&mut Config)) -> (Vec<String>, Vec<String>) {
        let (old, mut new) = (config(), config());
        new.takeover = false;
        f(&mut new);
        let wanted = new.clone();
        let changes = Changes::between(&old, new).unwrap();
        assert!(changes.config.takeover, "no setting of the file");
        if changes.refused.is_empty() {
            let mut wanted = wanted;
            wanted.takeover = true;
            wanted.policy.deny_tls = wanted.tls == Tls::Deny;
            assert_eq!(changes.config, wanted);
        }
        // The second time there is nothing left to change.
        let again = Changes::between(&changes.config, changes.config.clone()).unwrap();
        assert!(again.made.is_empty() && again.refused.is_empty());
        (changes.made, changes.refused)
    }

    #[test]
    fn what_can_change_does() {
        assert_eq!(change(|_| ()), (vec![], vec![]));
        let cases: [(Edit, &str); 16] = [
            (
                |c| c.limits.plane.sessions = 100,
                "limits.sessions 65536 -> 100",
            ),
            (
                |c| c.limits.command_line = 64,
                "limits.command-line 2048 -> 64",
            ),
            (|c| c.policy.strict = Strict::all(), "strict off -> on"),
            (
                |c| {
                    c.policy.strict.order = true;
                    c.policy.strict.failed_logins = Some(5);
                    c.policy.strict.deny = vec!["SITE".into(), "MKD".into()];
                },
                "strict off -> order,failed-logins=5,deny=SITE+MKD",
            ),
            (
                |c| c.data_ports = Some("30000-30009".parse().unwrap()),
                "data-ports none -> 30000-30009",
            ),
            (
                |c| c.advertise = vec!["203.0.113.9".parse().unwrap()],
                "advertise none -> 203.0.113.9",
            ),
            (
                |c| c.nat64 = vec!["default".parse().unwrap()],
                "nat64 none -> 64:ff9b::/96",
            ),
            (|c| c.keep_length = false, "keep-length prefer -> off"),
            (
                |c| c.bypass = vec!["198.51.100.0/24".parse().unwrap()],
                "bypass none -> 198.51.100.0/24",
            ),
            (|c| c.deadline = Duration::from_secs(5), "deadline 60 -> 5"),
            (|c| c.handover = Duration::from_secs(0), "handover 10 -> 0"),
            (
                |c| c.policy.deny_ports = vec![SYSTEM_PORTS],
                "deny-ports default -> none",
            ),
            (
                |c| c.policy.deny_ports.push(8080..=8080),
                "deny-ports default -> default,8080",
            ),
            (
                |c| c.policy.allow_foreign = vec!["198.51.100.0/24".parse().unwrap()],
                "allow-foreign none -> 198.51.100.0/24",
            ),
            (
                |c| c.policy.require_login = false,
                "require-login yes -> no",
            ),
            (|c| c.tls = Tls::Deny, "tls pass -> deny"),
        ];
        for (f, made) in cases {
            assert_eq!(change(f), (vec![made.to_owned()], vec![]));
        }
    }

    #[test]
    fn what_cannot_change_is_named_and_stays() {
        let cases: [(Edit, &str); 12] = [
            (
                |c| c.metrics = Some("127.0.0.1:9119".parse().unwrap()),
                "metrics none -> 127.0.0.1:9119",
            ),
            (|c| c.backend = BackendChoice::Nft, "backend auto -> nft"),
            (
                |c| c.rules = RulesMode::External,
                "rules manage -> external",
            ),
            (|c| c.steering.inside.clear(), "inside in0 -> none"),
            (|c| c.steering.local = true, "local no -> yes"),
            (|c| c.steering.ports.push(2121), "port 21 -> 21,2121"),
            (|c| c.steering.queues.count = 2, "queues 1 -> 2"),
            (|c| c.steering.queues.first = 7, "queue-num 2121 -> 7"),
            (|c| c.steering.fail_open = true, "fail closed -> open"),
            (
                |c| c.steering.mark = Mark::new(16).unwrap(),
                "mark 0x40000000 -> 0x10",
            ),
            (
                |c| c.resume_mark = Mark::new(16).unwrap(),
                "resume-mark 0x20000000 -> 0x10",
            ),
            (
                |c| c.tls = "range:40000-40009".parse().unwrap(),
                "tls pass -> range:40000-40009",
            ),
        ];
        for (f, refused) in cases {
            assert_eq!(change(f), (vec![], vec![refused.to_owned()]));
            // It keeps nothing else from changing.
            let both = change(|c| {
                f(c);
                c.deadline = Duration::from_secs(7);
            });
            let made = "deadline 60 -> 7".to_owned();
            assert_eq!(both, (vec![made], vec![refused.to_owned()]));
        }
    }

    #[test]
    fn a_port_of_implicit_tls_is_told_once() {
        let (made, refused) = change(|c| {
            c.steering.ports.push(990);
            c.implicit_ports.push(990);
        });
        assert_eq!(
            (made.len(), &refused[..]),
            (0, &["implicit-port none -> 990".to_owned()][..])
        );
    }

    #[test]
    fn what_stays_must_go_together_with_what_changes() {
        let mut new = config();
        // By itself the file is fine: the control port is another there.
        new.steering.ports = vec![2121];
        new.data_ports = Some("20-30".parse().unwrap());
        assert_eq!(new.conflicts(), []);
        let why = Changes::between(&config(), new).unwrap_err();
        assert!(why[0].contains("control port 21"), "{why:?}");
    }
}
