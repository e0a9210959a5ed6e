//! `ftpalg sessions`: the control connections.

use std::process::ExitCode;

use super::table::{Column, span, table, text};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let columns: [Column; 11] = [
        ("SESSION", "id", text),
        ("CLIENT", "client", text),
        ("SERVER", "server", text),
        ("STATE", "state", text),
        ("AGE", "age", span),
        ("IDLE", "idle", span),
        ("ANNOUNCED", "announced", text),
        ("REFUSED", "refused", text),
        ("DATA", "data_connections", text),
        ("BYTES", "bytes", text),
        ("RANGE", "range", text),
    ];
    super::show(ControlRequest::Sessions, format, |rows| {
        table(rows, &columns, "no sessions")
    })?;
    Ok(ExitCode::SUCCESS)
}
