//! `ftpalg run`: the daemon, in the foreground.

use std::process::ExitCode;

use clap::Args;

use super::settings::Settings;
use super::{Failure, print};
use crate::daemon;

#[derive(Args, Debug)]
pub(super) struct Run {
    /// Take the place of the ftpalg that runs in this network namespace, if there is one: it hands over
    /// (as at SIGUSR2), and its sessions go on [default: no]
    #[arg(long)]
    takeover: bool,
    /// Print the rules and settings that a start would have, and change nothing. Another ftpalg may run
    /// [default: no]
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: Run) -> Result<ExitCode, Failure> {
    let settings = arguments.settings;
    let mut config = settings.clone().resolve()?;
    config.takeover = arguments.takeover;
    if arguments.dry_run {
        print(&daemon::dry_run(&config).map_err(Failure::usage)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    daemon::run(&config, settings.source()).map_err(Failure::usage)
}
