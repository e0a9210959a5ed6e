//! `ftpalg check FILE`: whether `run --config FILE` would take it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::settings::Settings;
use super::{Failure, print};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The configuration file, or `-` for the standard input: see `run --config`
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    Settings::from_file(&arguments.file)
        .and_then(Settings::config)
        .map_err(Failure::usage)?;
    print(&format!("{}: fine\n", arguments.file.display()))?;
    Ok(ExitCode::SUCCESS)
}
