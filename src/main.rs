//! The `ftpalg` command: see [`ftpalg::cli`].

fn main() -> std::process::ExitCode {
    #[cfg(target_env = "gnu")]
    give_memory_back();
    ftpalg::cli::main()
}

/// How much free memory the C library keeps at an arena's end is what it begins with by itself. If it
/// isn't told, it raises that to twice the largest block that was ever freed, and so keeps what a burst of
/// sessions needed: 10 to 20 MiB.
#[cfg(target_env = "gnu")]
fn give_memory_back() {
    /// In bytes.
    const SPARE: nix::libc::c_int = 128 * 1024;
    // SAFETY: it only sets a number, before there is a second thread.
    unsafe { nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, SPARE) };
}
