//! `ftpalg sessions`: the control connections.

use std::process::ExitCode;

use super::table::table;
use super::{Failure, Format};
use crate::daemon::control::Request;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let columns = [
        ("SESSION", "id"),
        ("CLIENT", "client"),
        ("SERVER", "server"),
        ("STATE", "state"),
        ("AGE", "age"),
        ("IDLE", "idle"),
        ("ANNOUNCED", "announced"),
        ("REFUSED", "refused"),
    ];
    super::show(Request::Sessions, format, |rows| {
        table(rows, &columns, "no sessions")
    })?;
    Ok(ExitCode::SUCCESS)
}
