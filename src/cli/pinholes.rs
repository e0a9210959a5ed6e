//! `ftpalg pinholes`: the data connections that are expected or there.

use std::process::ExitCode;

use super::table::{Column, span, table, text};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let columns: [Column; 10] = [
        ("PINHOLE", "id", text),
        ("SESSION", "session", text),
        ("MODE", "mode", text),
        ("FROM", "from", text),
        ("TO", "to", text),
        ("LAND", "land", text),
        ("PORTS", "ports", text),
        ("AS", "as_source", text),
        ("STATE", "state", text),
        ("EXPIRES", "expires_in", span),
    ];
    super::show(ControlRequest::Pinholes, format, |rows| {
        table(rows, &columns, "no pinholes")
    })?;
    Ok(ExitCode::SUCCESS)
}
