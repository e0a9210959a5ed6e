//! `ftpalg pinholes`: the data connections that are expected or there.

use std::process::ExitCode;

use super::table::{Column, table};
use super::units::{span, text};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let columns: [Column; 10] = [
        Column::new("PINHOLE", "id", text).right(),
        Column::new("SESSION", "session", text).right(),
        Column::new("MODE", "mode", text).or_left_out(2),
        Column::new("FROM", "from", text),
        Column::new("TO", "to", text),
        Column::new("LAND", "land", text),
        Column::new("PORTS", "ports", text).or_left_out(4),
        Column::new("AS", "as_source", text).or_left_out(3),
        Column::new("STATE", "state", text),
        Column::new("EXPIRES", "expires_in", span)
            .right()
            .or_left_out(1),
    ];
    super::show(ControlRequest::Pinholes, format.json, |rows| {
        table(rows, &columns, "no pinholes")
    })?;
    Ok(ExitCode::SUCCESS)
}
