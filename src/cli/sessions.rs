//! `ftpalg sessions`: the control connections.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::table::{Column, table};
use super::units::{size, span, text};
use super::watch::{self, Snapshot};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    format: Format,
    /// Show them again and again, every SECS seconds [default: 2]
    ///
    /// On a terminal as a view that is redrawn, with sorting, a filter and the details of one session; keys
    /// are shown in it. Elsewhere the table is printed again. SECS may be 0.1 to 3600
    #[arg(
        long,
        value_name = "SECS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = seconds,
        conflicts_with = "json"
    )]
    watch: Option<Duration>,
}

pub(super) fn show(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Format { json, bytes } = arguments.format;
    match arguments.watch {
        None => {
            super::show(ControlRequest::Sessions, json, |rows| {
                table(rows, &columns(bytes), "no sessions")
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Some(every) if is_terminal() => watch::watch(every, bytes),
        Some(every) => again_and_again(every, bytes),
    }
}

/// The columns of the table.
fn columns(full_bytes: bool) -> [Column; 11] {
    let bytes = if full_bytes { text } else { size };
    [
        Column::new("SESSION", "id", text).right(),
        Column::new("CLIENT", "client", text),
        Column::new("SERVER", "server", text),
        Column::new("STATE", "state", text),
        Column::new("AGE", "age", span).right().or_left_out(1),
        Column::new("IDLE", "idle", span).right().or_left_out(2),
        Column::new("ANNOUNCED", "announced", text)
            .right()
            .or_left_out(6),
        Column::new("REFUSED", "refused", text)
            .right()
            .or_left_out(4),
        Column::new("DATA", "data_connections", text)
            .right()
            .or_left_out(3),
        Column::new("BYTES", "bytes", bytes).right(),
        Column::new("RANGE", "range", text).or_left_out(5),
    ]
}

fn is_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stdout().is_terminal() && io::stdin().is_terminal() && !dumb
}

/// Prints the table every so often, until nobody reads it any more.
fn again_and_again(every: Duration, full_bytes: bool) -> Result<ExitCode, Failure> {
    let mut shown = Ok(watch::ask(None)?);
    loop {
        let page = match shown {
            Ok(Snapshot { sessions, .. }) => table(&sessions, &columns(full_bytes), "no sessions"),
            // It may come back.
            Err(why) => format!("{why}\n"),
        };
        match io::stdout().write_all(format!("{page}\n").as_bytes()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            Err(e) => {
                return Err(Failure::usage(format!(
                    "can't write: {e}; is the disk full?"
                )));
            }
            Ok(()) => {}
        }
        thread::sleep(every);
        shown = watch::ask(None);
    }
}

/// A number of seconds, with a fraction if wanted.
fn seconds(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().ok();
    let seconds = seconds.filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or("write seconds from 0.1 to 3600")
}
