//! The `ftpalg` command: see [`ftpalg::cli`].

fn main() -> std::process::ExitCode {
    give_memory_back();
    ftpalg::cli::main()
}

/// Has the C library give memory back once so much of it is free at an arena's end, in bytes. By itself
/// it raises its limit to twice the largest block that was ever freed, and keeps what a burst of
/// sessions needed: 10 to 20 MiB.
#[cfg(target_env = "gnu")]
const SPARE: nix::libc::c_int = 128 * 1024;

#[cfg(target_env = "gnu")]
fn give_memory_back() {
    // SAFETY: it only sets a number, before there is a second thread.
    unsafe { nix::libc::mallopt(nix::libc::M_TRIM_THRESHOLD, SPARE) };
}

#[cfg(not(target_env = "gnu"))]
fn give_memory_back() {}
