//! `ftpalg sessions`: the control connections.

use std::process::ExitCode;

use super::table::{Column, table};
use super::units::{size, span, text};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let bytes = if format.bytes { text } else { size };
    let columns: [Column; 11] = [
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
    ];
    super::show(ControlRequest::Sessions, format.json, |rows| {
        table(rows, &columns, "no sessions")
    })?;
    Ok(ExitCode::SUCCESS)
}
