//! `ftpalg pinholes`: the data connections that are expected or there.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::table::{Column, table};
use super::units::{bytes, size, span, text};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct Arguments {
    /// Those of the past, too: the last 1000 that were used or have expired
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    format: Format,
}

type Show = fn(&Value) -> String;

pub(super) fn show(arguments: Arguments) -> Result<ExitCode, Failure> {
    // In full where that is asked for.
    let (carried, per_second): (Show, Show) = match arguments.format.bytes {
        true => (text, text),
        false => (size, rate),
    };
    let columns: [Column; 13] = [
        Column::new("PINHOLE", "id", text).right(),
        Column::new("SESSION", "session", text).right(),
        Column::new("MODE", "mode", text).or_left_out(2),
        Column::new("FROM", "from", text),
        Column::new("TO", "to", text),
        Column::new("LAND", "land", text).or_left_out(6),
        Column::new("PORTS", "ports", text).or_left_out(4),
        Column::new("AS", "as_source", text).or_left_out(9),
        Column::new("STATE", "state", text),
        Column::new("EXPIRES", "expires_in", span)
            .right()
            .or_left_out(1),
        Column::new("TIME", "seconds", seconds)
            .right()
            .or_left_out(8),
        Column::new("BYTES", "bytes", carried)
            .right()
            .or_left_out(7),
        Column::new("RATE", "rate", per_second).right(),
    ];
    let request = match arguments.all {
        true => ControlRequest::AllPinholes,
        false => ControlRequest::Pinholes,
    };
    super::show(request, arguments.format.json, |rows| {
        table(rows, &columns, "no pinholes")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A time with a fraction; a longer one in its two largest units.
fn seconds(value: &Value) -> String {
    match value.as_f64() {
        Some(seconds) if seconds < 60.0 => format!("{seconds:.1}s"),
        Some(seconds) => span(&(seconds as u64).into()),
        None => text(value),
    }
}

fn rate(value: &Value) -> String {
    match value.as_u64() {
        Some(rate) => format!("{}/s", bytes(rate)),
        None => text(value),
    }
}
