//! The command line: one file per subcommand.

mod settings;
/// Runs the command given by the process's arguments.
#[must_use]
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::from(2)
}
