//! From what is chosen to the configuration: the file below the flags, the defaults, and what doesn't go
//! together.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::file::{File, at_start, place};
use super::host::{Fail, Host};
use super::limits::Limit;
use super::nat::Nat;
use super::place::Place;
use super::refusing::{DenyPorts, Refusing};
use super::restarts::{KeepLength, Restarts};
use super::tls::TlsSettings;
use super::watching::Watching;
use super::{Settings, or, text};
use crate::daemon::config::{Config, Conflict, Tls};
use crate::daemon::lock;
use crate::firewall::{Inside, Queues, Steering};
use crate::ftp::policy::Policy;
use crate::net::{Family, Mark};

/// The control port where none is given.
const DEFAULT_PORT: u16 = 21;
/// The first queue's number where none is given.
const DEFAULT_QUEUE: u16 = 2121;
/// How long a pinhole waits, in seconds, where nothing is given.
const DEFAULT_DEADLINE: u64 = 60;
/// How long the rules stay for a successor, in seconds, where nothing is given.
const DEFAULT_HANDOVER: u64 = 10;
/// How long a range stays open while nothing comes from its client, in seconds, where nothing is
/// given.
const DEFAULT_TLS_IDLE: u64 = 300;

/// The most mistakes of a file that are told one by one.
const MOST: usize = 50;

/// All that is wrong, a line each: what, and how to mend it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Mistakes(pub(in crate::cli) Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" | "))
    }
}

impl Settings {
    /// The flags, with what the file of `--config` says where they say nothing, checked.
    ///
    /// # Errors
    /// All mistakes.
    pub(in crate::cli) fn resolve(self) -> Result<Config, Mistakes> {
        match self.config.clone() {
            Some(path) => self.with_file(&path, text::read(&path)),
            None => self.config().map_err(|conflicts| {
                let lines = conflicts.iter().map(ToString::to_string);
                Mistakes(lines.collect())
            }),
        }
    }

    /// What a file by itself says, checked.
    ///
    /// # Errors
    /// All mistakes.
    pub(in crate::cli) fn check_file(path: &Path) -> Result<Config, Mistakes> {
        Self::default().with_file(path, text::read(path))
    }

    /// The settings, with those of a file's text where they say nothing, checked.
    pub(super) fn with_file(
        self,
        path: &Path,
        text: Result<String, String>,
    ) -> Result<Config, Mistakes> {
        let name = path.display();
        let text = text.map_err(|e| {
            let how = if e.contains("; ") {
                ""
            } else {
                "; name a readable file"
            };
            Mistakes(vec![format!("can't read {name}: {e}{how}")])
        })?;
        let File { settings, lines } = File::read(&text).map_err(|mistakes| {
            let lines = mistakes.iter().map(|m| place(path, m.line, &m.text));
            let mut lines: Vec<_> = lines.take(MOST).collect();
            if let Some(more) = mistakes.len().checked_sub(MOST).filter(|more| *more > 0) {
                lines.push(at_start(
                    path,
                    &format!("{more} more mistakes; mend these first"),
                ));
            }
            Mistakes(lines)
        })?;
        self.over(settings.clone()).config().map_err(|conflicts| {
            // Those that are there without the flags are the file's own.
            let own = settings.config().err().unwrap_or_default();
            let line = |conflict: &Conflict| {
                let line = lines
                    .get(conflict.setting)
                    .filter(|_| own.contains(conflict));
                match line {
                    Some(line) => {
                        let Conflict { setting, why } = conflict;
                        place(path, *line, &format!("{setting}: {why}"))
                    }
                    None => at_start(path, &conflict.to_string()),
                }
            };
            Mistakes(conflicts.iter().map(line).collect())
        })
    }

    /// The configuration, with the defaults filled in, checked.
    ///
    /// # Errors
    /// All that doesn't go together.
    pub(crate) fn config(self) -> Result<Config, Vec<Conflict>> {
        let Self {
            config: _,
            place:
                Place {
                    inside,
                    local,
                    port,
                    bypass,
                },
            nat:
                Nat {
                    advertise,
                    data_ports,
                    nat64,
                    backend,
                    deadline,
                },
            tls:
                TlsSettings {
                    tls,
                    tls_idle,
                    implicit_port,
                },
            refusing:
                Refusing {
                    strict,
                    allow_foreign,
                    deny_ports,
                    low_ports,
                    require_login,
                },
            limits,
            host:
                Host {
                    rules,
                    steering: placement,
                    fail,
                    queues,
                    queue_num,
                    mark,
                    resume_mark,
                    uneven_mark,
                },
            restarts:
                Restarts {
                    keep_length,
                    state,
                    handover,
                },
            watching: Watching { metrics },
            events,
        } = self;
        let queues = Queues {
            first: queue_num.unwrap_or(DEFAULT_QUEUE),
            count: queues.unwrap_or(1),
        };
        let plain = unique(or(port, vec![DEFAULT_PORT]));
        let implicit_ports = unique(implicit_port);
        let inside = unique(inside);
        let mark = mark.unwrap_or_default();
        let resume_mark = resume_mark.unwrap_or(Mark::RESUME);
        let uneven_mark = uneven_mark.unwrap_or(Mark::UNEVEN);
        let named = [
            ("mark", mark),
            ("resume-mark", resume_mark),
            ("uneven-mark", uneven_mark),
        ];
        let mut conflicts = [
            overlapping(&inside),
            ports_of_both(&plain, &implicit_ports),
            numbers(queues),
            bits(&named),
        ]
        .concat();
        let tls = tls.unwrap_or_default();
        let config = Config {
            steering: Steering {
                inside,
                local,
                ports: unique([plain, implicit_ports.clone()].concat()),
                queues,
                fail_open: fail.unwrap_or_default() == Fail::Open,
                mark,
                uneven_mark,
                families: Family::ALL.to_vec(),
                placement: placement.unwrap_or_default(),
            },
            advertise,
            data_ports,
            nat64: unique(nat64),
            backend: backend.unwrap_or_default(),
            rules: rules.unwrap_or_default(),
            tls,
            tls_idle: Duration::from_secs(tls_idle.unwrap_or(DEFAULT_TLS_IDLE)),
            implicit_ports,
            policy: Policy {
                require_login: require_login.unwrap_or(true),
                deny_ports: DenyPorts::ports(deny_ports),
                low_ports,
                allow_foreign,
                deny_tls: tls == Tls::Deny,
                strict: strict.unwrap_or_default().rules(),
                ..Policy::default()
            },
            deadline: Duration::from_secs(deadline.unwrap_or(DEFAULT_DEADLINE)),
            handover: Duration::from_secs(handover.unwrap_or(DEFAULT_HANDOVER)),
            takeover: false,
            resume_mark,
            state: state.unwrap_or_default(),
            bypass: unique(bypass),
            keep_length: keep_length.unwrap_or_default() == KeepLength::Prefer,
            metrics,
            limits: Limit::apply(&limits.limits),
            events: events.config(),
        };
        conflicts.extend(config.conflicts());
        match conflicts.is_empty() {
            true => Ok(config),
            false => Err(conflicts),
        }
    }
}

/// Each once, in the order given.
fn unique<T: PartialEq>(list: Vec<T>) -> Vec<T> {
    list.into_iter().fold(Vec::new(), |mut kept, one| {
        if !kept.contains(&one) {
            kept.push(one);
        }
        kept
    })
}

/// Networks that contain one another are most likely a mistake.
fn overlapping(inside: &[Inside]) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    for (i, one) in inside.iter().enumerate() {
        for other in inside.iter().skip(i + 1) {
            if let (Inside::Net(a), Inside::Net(b)) = (one, other)
                && (a.contains(b) || b.contains(a))
            {
                let why = format!("{a} and {b} overlap; give the wider one only");
                conflicts.push(Conflict::new("inside", why));
            }
        }
    }
    conflicts
}

fn ports_of_both(plain: &[u16], implicit: &[u16]) -> Vec<Conflict> {
    let both = implicit.iter().filter(|port| plain.contains(port));
    both.map(|port| {
        let why = format!("{port} is a --port, too; choose one of them");
        Conflict::new("implicit-port", why)
    })
    .collect()
}

fn numbers(queues: Queues) -> Vec<Conflict> {
    let Queues { first, count } = queues;
    let why = if first.checked_add(count.saturating_sub(1)).is_none() {
        format!("{first} and {count} queues end above 65535; choose a lower one")
    } else if queues.numbers().contains(&lock::QUEUE) {
        let lock = lock::QUEUE;
        format!("queue {lock} is ftpalg's lock against a second one; choose another first queue")
    } else {
        return Vec::new();
    };
    vec![Conflict::new("queue-num", why)]
}

fn bits(named: &[(&'static str, Mark)]) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    for (at, (one, bit)) in named.iter().enumerate() {
        for (other, _) in named.iter().skip(at + 1).filter(|(_, other)| other == bit) {
            let why = format!("--{one} is {:#x}, too; choose a bit for each", bit.bit());
            conflicts.push(Conflict::new(other, why));
        }
    }
    conflicts
}
