//! `ftpalg rules`: the steering rules by themselves, without the daemon.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use nix::sys::signal::SigSet;
use serde_json::Value;

use super::settings::Settings;
use super::{Failure, print};
use crate::daemon::config::StateChoice;
use crate::daemon::control::{self, AskError, ControlRequest};
use crate::daemon::farewell;
use crate::daemon::guardian;
use crate::daemon::lock::{Lock, LockError};
use crate::daemon::predecessor::Note;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{self, Around, EXAMPLES, Inside, Placement, Rules, Steering, tables};
use crate::net::Family;

#[derive(Debug, Subcommand)]
pub(super) enum RulesCommand {
    /// Print the rules as text for `iptables-restore --noflush`, or with --steering nft for `nft -f`.
    /// Takes run's flags
    Print(Box<Print>),
    /// Put the rules into place, all or none, and leave them there. Takes run's flags
    Install(Box<Settings>),
    /// Remove all rules that `install` or a killed daemon left
    Remove(Remove),
}

#[derive(Args, Debug)]
pub(super) struct Remove {
    /// Wait this many seconds, and then do nothing if a daemon runs
    #[arg(long, value_name = "SECS", hide = true)]
    after: Option<u64>,
    /// The daemon that they are after, by its process id: only another one counts
    #[arg(long, value_name = "PID", hide = true, default_value_t = 0)]
    of: u32,
    /// Where the daemon kept what it knew of sessions that nobody else can go on with: they are ended. A
    /// directory, or none [default: /run/ftpalg]
    #[arg(
        long,
        value_name = "DIR|none",
        default_value_t,
        hide_default_value = true
    )]
    state: StateChoice,
}

#[derive(Args, Debug)]
pub(super) struct Print {
    /// For iptables-restore (ipv4) or ip6tables-restore (ipv6)
    #[arg(long, value_enum, default_value = "ipv4")]
    family: Choice,
    /// A whole rule set to start from, with a firewall around the rules
    #[arg(long, value_name = "NAME", value_parser = EXAMPLES.map(|e| e.name))]
    example: Option<String>,
    /// The outside interface of the examples gateway and client-firewall [default: eth0]
    #[arg(long, value_name = "IFACE", requires = "example", value_parser = interface)]
    outside: Option<String>,
    /// The server inside of the example gateway: an address of --family
    /// [default: 192.168.1.2 or 2001:db8:1::2]
    #[arg(long, value_name = "ADDRESS", requires = "example")]
    server: Option<IpAddr>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    Ipv4,
    Ipv6,
}

pub(super) fn run(command: RulesCommand) -> Result<ExitCode, Failure> {
    match command {
        RulesCommand::Print(arguments) => {
            let family = match arguments.family {
                Choice::Ipv4 => Family::V4,
                Choice::Ipv6 => Family::V6,
            };
            let around = around(&arguments, family)?;
            let example = arguments.example.as_deref();
            let example = example.and_then(|name| EXAMPLES.into_iter().find(|e| e.name == name));
            let mut settings = arguments.settings;
            if example.is_some_and(|e| e.is_local()) {
                settings = settings.with_local();
            }
            let steering = steering(settings, None)?;
            let text = match example {
                Some(_) if steering.placement == Placement::Nft => {
                    return Err(Failure::usage(
                        "the examples are for iptables: leave out --steering nft, or --example",
                    ));
                }
                Some(example) => example.print(&steering, &around, family),
                None if prints_nft(&steering) => firewall::print_nft(&steering, family),
                None => firewall::print(&steering, family),
            };
            print(&text.map_err(Failure::usage)?)?;
        }
        RulesCommand::Install(settings) => {
            all_or_none()?;
            let _lock = nobody_else_manages()?;
            let mut rules = host()?;
            let steering = steering(*settings, Some(&rules))?;
            let installed = rules.install(&steering).map_err(Failure::usage)?;
            for place in installed.places {
                print(&format!("installed in {place}\n"))?;
            }
            for table in installed.own {
                print(&format!("installed in {table}\n"))?;
            }
            for chain in installed.native {
                print(&format!("accept rule inserted in {chain}\n"))?;
            }
            for note in installed.notes {
                print(&format!("note: {note}\n"))?;
            }
        }
        RulesCommand::Remove(Remove {
            after: Some(after),
            of,
            state,
        }) => {
            all_or_none()?;
            if guardian::wait(Duration::from_secs(after), of) {
                return Ok(ExitCode::SUCCESS);
            }
            match Lock::take() {
                Err(LockError::Held) => {}
                Err(e) => return Err(Failure::usage(e)),
                Ok(lock) => {
                    remove(Some(&lock))?;
                    end_recorded(&state)?;
                }
            }
        }
        RulesCommand::Remove(Remove {
            after: None, state, ..
        }) => {
            all_or_none()?;
            let lock = nobody_else_manages()?;
            let removed = remove(lock.as_ref())?;
            if lock.is_some() {
                end_recorded(&state)?;
            }
            print(&format!("{removed} rules removed\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes all that is ours; returns how many rules and tables.
fn remove(lock: Option<&Lock>) -> Result<usize, Failure> {
    let mut removed = host()?.remove().map_err(Failure::usage)?;
    // Without the lock, a daemon may run whose tables have no owner on an old kernel.
    if lock.is_some() && tables::available() {
        let of_tables = tables::remove_abandoned()
            .map_err(|e| Failure::usage(format!("can't remove the tables ftpalg: {e}")))?;
        removed = removed.saturating_add(of_tables);
    }
    Ok(removed)
}

/// Ends the sessions that only a daemon which is gone could have gone on with.
fn end_recorded(state: &StateChoice) -> Result<(), Failure> {
    Note::of(state).remove();
    match farewell::end_left(state).map_err(Failure::usage)? {
        Some(line) => print(&format!("{line}\n")),
        None => Ok(()),
    }
}

/// Blocks signals, so that none stops a change of rules halfway. The tools that are run still get
/// theirs.
fn all_or_none() -> Result<(), Failure> {
    SigSet::all().thread_block().map_err(|e| {
        Failure::usage(format!(
            "signals can't be held back: {e}; nothing was changed"
        ))
    })
}

/// What an example is written around.
fn around(arguments: &Print, family: Family) -> Result<Around, Failure> {
    let mut around = Around::default();
    if let Some(outside) = &arguments.outside {
        around.outside.clone_from(outside);
    }
    match (arguments.server, family) {
        (None, _) => {}
        (Some(IpAddr::V4(server)), Family::V4) => around.server.0 = server,
        (Some(IpAddr::V6(server)), Family::V6) => around.server.1 = server,
        (Some(server), _) => {
            return Err(Failure::usage(format!(
                "--server {server} isn't of --family; give an address of the same family"
            )));
        }
    }
    Ok(around)
}

/// The name of an interface.
fn interface(text: &str) -> Result<String, String> {
    match text.parse() {
        Ok(Inside::Iface(name)) => Ok(name),
        Ok(Inside::Net(_)) => Err("name an interface, not a network".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Refuses to touch the rules of a running daemon: it couldn't work without them, and removes them
/// itself when it ends. A daemon with `--rules external` doesn't manage rules. If no daemon runs,
/// none can start while the returned lock is held.
fn nobody_else_manages() -> Result<Option<Lock>, Failure> {
    match Lock::take() {
        Ok(lock) => return Ok(Some(lock)),
        // Rules need no queue that works.
        Err(LockError::Unsupported) => return Ok(None),
        Err(LockError::Held) => {}
        Err(e) => return Err(Failure::usage(e)),
    }
    let status = match control::ask(ControlRequest::Status) {
        Ok(status) => status,
        // It starts or ends just now.
        Err(AskError::NotRunning(_)) => return Err(Failure::usage(LockError::Held)),
        Err(e) => return Err(Failure::usage(e)),
    };
    if status.get("rules").and_then(Value::as_str) == Some("external") {
        return Ok(None);
    }
    let pid = status.get("pid").unwrap_or(&Value::Null);
    Err(Failure::usage(format!(
        "the running ftpalg (pid {pid}) manages the rules; stop it, and it removes them"
    )))
}

/// The rules of this host.
fn host() -> Result<Rules, Failure> {
    let tools = Tools::find();
    if tools.is_empty() && !tables::available() {
        return Err(Failure::usage(
            "no iptables found, and no nf_tables to do without; install the iptables package, or run as root",
        ));
    }
    Ok(Rules::new(tools))
}

/// Whether the text is for `nft -f`: as it would be placed on this host. Where nothing could place it,
/// it is for iptables.
fn prints_nft(steering: &Steering) -> bool {
    match steering.placement {
        Placement::Nft => true,
        Placement::Iptables => false,
        Placement::Auto => Tools::find().is_empty() && tables::available(),
    }
}

/// What is to be steered; found in the host's rules where the flags don't say.
fn steering(settings: Settings, rules: Option<&Rules>) -> Result<Steering, Failure> {
    let mut steering = settings.resolve()?.steering;
    if steering.inside.is_empty() && !steering.local {
        let derived = match rules {
            Some(rules) => rules.derive(&steering.ports),
            None => host()?.derive(&steering.ports),
        }
        .map_err(Failure::usage)?;
        steering.inside = derived.inside;
        steering.local = derived.local;
    }
    Ok(steering)
}
