//! `ftpalg run`: the daemon, in the foreground.

use std::process::ExitCode;

use clap::Args;

use super::Failure;
use super::settings::Settings;
use crate::daemon;

#[derive(Args, Debug)]
pub(super) struct Run {
    /// Take the place of the ftpalg that runs in this network namespace, if there is one: it hands over
    /// (as at SIGUSR2), and its sessions go on [default: no]
    #[arg(long)]
    takeover: bool,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: Run) -> Result<ExitCode, Failure> {
    let settings = arguments.settings;
    let mut config = settings.clone().resolve()?;
    config.takeover = arguments.takeover;
    daemon::run(&config, settings.source()).map_err(Failure::usage)
}
