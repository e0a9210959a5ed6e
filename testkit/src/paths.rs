//! Where things are: the program under test, the repository, the reports.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The program `ftpalg` that Cargo has built for the running test or benchmark.
///
/// Newer versions of Cargo say so at run time. With others it is found beside the running program, which
/// is `<target>/<profile>/deps/<name>-<hash>`.
///
/// # Panics
/// If it isn't there, or its path isn't UTF-8.
pub fn ftpalg() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let told = std::env::var_os("CARGO_BIN_EXE_ftpalg").map(PathBuf::from);
        let beside = || ancestor(2).join("ftpalg");
        let program = told.unwrap_or_else(beside);
        assert!(
            program.exists(),
            "{} is missing: `cargo test` and `cargo bench` build it",
            program.display()
        );
        program.into_os_string().into_string().expect("UTF-8")
    })
}

/// The root of the repository.
///
/// # Panics
/// If this crate isn't in a directory of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("testkit is a directory of the repository")
}

/// A program that `scripts/test` unpacked: some packages exclude each other or start services, so they
/// aren't installed.
///
/// # Panics
/// If it isn't there.
pub fn unpacked(path: &str) -> String {
    let full = repository().join(".cache/servers").join(path);
    assert!(
        full.exists(),
        "{} is missing: run ./scripts/test, which unpacks the servers that the tests need",
        full.display()
    );
    full.to_string_lossy().into_owned()
}

/// Where tables for people go: `<target>/lab-report/`.
///
/// # Panics
/// If the running program isn't in a target directory.
pub fn reports() -> PathBuf {
    let program = std::env::current_exe().expect("the running program");
    // Cargo marks its target directory, however deep the program is in it (`--target`).
    let marked = |directory: &&Path| directory.join("CACHEDIR.TAG").exists();
    let target = program.ancestors().find(marked).map(Path::to_owned);
    target.unwrap_or_else(|| ancestor(3)).join("lab-report")
}

/// The directory so many levels above the running program.
fn ancestor(levels: usize) -> PathBuf {
    let program = std::env::current_exe().expect("the running program");
    let directory = program.ancestors().nth(levels);
    directory.expect("a target directory").to_owned()
}
