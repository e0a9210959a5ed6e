//! `ftpalg run`: the daemon, in the foreground.

use std::process::ExitCode;

use super::Failure;
use super::settings::Settings;
use crate::daemon;

pub(super) fn run(settings: Settings) -> Result<ExitCode, Failure> {
    let config = settings.resolve().map_err(Failure::usage)?;
    daemon::run(&config).map_err(Failure::usage)
}
