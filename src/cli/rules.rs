//! `ftpalg rules`: the steering rules by themselves, without the daemon.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::settings::Settings;
use super::{Failure, print};
use crate::daemon::control::{self, AskError, Request};
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{self, EXAMPLES, Rules, Steering};
use crate::net::Family;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the rules as text for `iptables-restore --noflush`. Takes run's flags
    Print(Box<Print>),
    /// Put the rules into place, all or none, and leave them there. Takes run's flags
    Install(Box<Settings>),
    /// Remove all rules that `install` or a killed daemon left
    Remove,
}

#[derive(Args, Debug)]
pub(super) struct Print {
    /// For iptables-restore (ipv4) or ip6tables-restore (ipv6)
    #[arg(long, value_enum, default_value = "ipv4")]
    family: Choice,
    /// A whole rule set to start from, with a firewall around the rules
    #[arg(long, value_name = "NAME", value_parser = EXAMPLES.map(|e| e.name))]
    example: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Choice {
    Ipv4,
    Ipv6,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Print(arguments) => {
            let family = match arguments.family {
                Choice::Ipv4 => Family::V4,
                Choice::Ipv6 => Family::V6,
            };
            let steering = steering(arguments.settings, None)?;
            let example = arguments.example;
            let example = example.and_then(|name| EXAMPLES.into_iter().find(|e| e.name == name));
            let text = match example {
                Some(example) => example.print(&steering, family),
                None => firewall::print(&steering, family),
            };
            print(&text.map_err(Failure::usage)?)?;
        }
        Command::Install(settings) => {
            nobody_else_manages()?;
            let mut rules = host()?;
            let steering = steering(*settings, Some(&rules))?;
            let installed = rules.install(&steering).map_err(Failure::usage)?;
            for place in installed.places {
                print(&format!("installed in {place}\n"))?;
            }
            for chain in installed.native {
                print(&format!("accept rule inserted in {chain}\n"))?;
            }
            for note in installed.notes {
                print(&format!("note: {note}\n"))?;
            }
        }
        Command::Remove => {
            nobody_else_manages()?;
            let removed = host()?.remove().map_err(Failure::usage)?;
            print(&format!("{removed} rules removed\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses to touch the rules of a running daemon: it couldn't work without them, and removes
/// them itself when it ends. One with `--rules external` leaves them to us.
fn nobody_else_manages() -> Result<(), Failure> {
    let status = match control::ask(Request::Status) {
        Ok(status) => status,
        Err(AskError::NotRunning) => return Ok(()),
        Err(e) => return Err(Failure::usage(e)),
    };
    if status.get("rules").and_then(Value::as_str) == Some("external") {
        return Ok(());
    }
    let pid = status.get("pid").unwrap_or(&Value::Null);
    Err(Failure::usage(format!(
        "the running ftpalg (pid {pid}) manages the rules; stop it, and it removes them"
    )))
}

/// The rules of this host.
fn host() -> Result<Rules, Failure> {
    let tools = Tools::find();
    if tools.is_empty() {
        return Err(Failure::usage(
            "no iptables found; install the iptables package",
        ));
    }
    Ok(Rules::new(tools))
}

/// What is to be steered; found in the host's rules where the flags don't say.
fn steering(settings: Settings, rules: Option<&Rules>) -> Result<Steering, Failure> {
    let mut steering = settings.resolve().map_err(Failure::usage)?.steering;
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
