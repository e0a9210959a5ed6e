//! `ftpalg pinholes`: the data connections that are expected or there.

use std::process::ExitCode;

use super::table::table;
use super::{Failure, Format};
use crate::daemon::control::Request;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let columns = [
        ("PINHOLE", "id"),
        ("SESSION", "session"),
        ("MODE", "mode"),
        ("FROM", "from"),
        ("TO", "to"),
        ("LAND", "land"),
        ("AS", "as_source"),
        ("STATE", "state"),
        ("EXPIRES", "expires_in"),
    ];
    super::show(Request::Pinholes, format, |rows| {
        table(rows, &columns, "no pinholes")
    })?;
    Ok(ExitCode::SUCCESS)
}
