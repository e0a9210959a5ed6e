//! `ftpalg run`: the daemon, in the foreground.

use std::process::ExitCode;

use clap::Args;

use super::settings::Settings;
use super::{Failure, print};
use crate::daemon;

#[derive(Args, Debug)]
pub(super) struct Run {
    #[command(flatten)]
    settings: Settings,
    /// Take the place of the ftpalg that runs in this network namespace [default: no]
    ///
    /// It hands over, as at SIGUSR2, and its sessions go on. If none runs, this one just starts.
    #[arg(long, help_heading = "Restarts")]
    takeover: bool,
    /// Print the rules and settings that a start would have, and change nothing [default: no]
    ///
    /// Another ftpalg may run.
    #[arg(long, help_heading = "Trying it")]
    dry_run: bool,
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
