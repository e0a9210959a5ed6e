//! `ftpalg check FILE`: whether `run --config FILE` would take it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::settings::{Settings, example};
use super::{Failure, print};

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
    Settings::check_file(file)?;
    print(&format!("{}: fine\n", file.display()))?;
    Ok(ExitCode::SUCCESS)
}
