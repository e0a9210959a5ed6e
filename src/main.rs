//! The `ftpalg` command: see [`ftpalg::cli`].

fn main() -> std::process::ExitCode {
    ftpalg::cli::main()
}
