//! `ftpalg check FILE`: whether `run --config FILE` would take it, and what it would do.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::settings::{Settings, example};
use super::{Failure, print};
use crate::daemon::changes;
use crate::daemon::config::{BackendChoice, Config, RulesMode, Tls};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The configuration file, or `-` for the standard input: see `run --config`
    #[arg(required_unless_present = "example")]
    file: Option<PathBuf>,
    /// Print a file to start from: every key with its default, all of it commented out
    #[arg(long, conflicts_with = "file")]
    example: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Some(file) = &arguments.file else {
        print(&example::print())?;
        return Ok(ExitCode::SUCCESS);
    };
    let config = Settings::check_file(file)?;
    print(&format!("{}: fine\n{}", file.display(), meaning(&config)))?;
    Ok(ExitCode::SUCCESS)
}

/// What a configuration will do, in a few lines.
fn meaning(config: &Config) -> String {
    let steering = &config.steering;
    let inside = match (steering.inside.is_empty(), steering.local) {
        (true, true) => "this host itself".to_owned(),
        (true, false) => "what the host's DNAT and MASQUERADE rules tell".to_owned(),
        (false, false) => format!("inside {}", list(&steering.inside)),
        (false, true) => format!("inside {}, and this host itself", list(&steering.inside)),
    };
    let ports = match steering.ports.as_slice() {
        [port] => format!("port {port}"),
        ports => format!("ports {}", list(ports)),
    };
    let implicit = match config.implicit_ports.is_empty() {
        true => String::new(),
        false => format!(
            " (TLS from the first byte: {})",
            list(&config.implicit_ports)
        ),
    };
    let advertised = match config.advertise.is_empty() {
        true => "the address that conntrack knows".to_owned(),
        false => list(&config.advertise),
    };
    let data_ports = match config.data_ports {
        None => "the ports that servers announce".to_owned(),
        Some(range) => format!("ports {range}"),
    };
    let backend = match config.backend {
        BackendChoice::Auto => "nft or iptables, whichever the host has".to_owned(),
        chosen => chosen.to_string(),
    };
    let tls = match config.tls {
        Tls::Pass => "pass unread".to_owned(),
        Tls::Deny => "are refused".to_owned(),
        Tls::Range(range) => format!("pass, and reach the ports {range} of their server"),
    };
    let rules = match config.rules {
        RulesMode::Manage => "ftpalg puts its rules into place while it runs",
        RulesMode::External => "somebody else puts the rules into place",
    };
    let fail = match steering.fail_open {
        true => "pass",
        false => "are dropped",
    };
    format!(
        "watches {inside}, {ports}{implicit}\n\
         announces {advertised}, and {data_ports}\n\
         opens pinholes with {backend}, for up to {} s\n\
         sessions under TLS {tls}\n\
         {rules}; control packets {fail} while nobody looks at them\n\
         {}\n",
        config.deadline.as_secs(),
        differences(config)
    )
}

/// The settings that aren't the defaults.
fn differences(config: &Config) -> String {
    let defaults = Settings::default()
        .config()
        .map(|config| changes::settings(&config));
    let defaults = defaults.unwrap_or_default();
    let other = changes::settings(config).into_iter();
    let other: Vec<_> = other
        .filter(|(name, value)| defaults.get(name) != Some(value))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    match other.is_empty() {
        true => "all settings are the defaults".to_owned(),
        false => format!("other than the defaults: {}", other.join("; ")),
    }
}

fn list<T: Display>(all: &[T]) -> String {
    let all: Vec<_> = all.iter().map(ToString::to_string).collect();
    all.join(", ")
}
