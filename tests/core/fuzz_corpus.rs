//! The fuzz targets' checks over the corpora that are committed (`fuzz/corpus/<target>/*`), and
//! over pseudo-random inputs.

use testkit::checks;

/// Runs `check` over a target's corpus, then over `FUZZ_INPUTS` (default 300) made-up inputs.
fn replay(target: &str, check: fn(&[u8])) {
    let dir = testkit::paths::repository()
        .join("fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(&file).unwrap());
    }
    let inputs = std::env::var("FUZZ_INPUTS").map_or(300, |n| n.parse().unwrap());
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    for n in 0..inputs {
        let input: Vec<u8> = (0..40 + n % 700)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        println!("{input:?}");
        check(&input);
    }
}

#[test]
fn packet() {
    replay("packet", checks::packet::check);
}

#[test]
fn session() {
    replay("session", checks::session::check);
}

#[test]
fn engine() {
    replay("engine", checks::engine::check);
}

#[test]
fn hostile() {
    replay("hostile", checks::hostile::check);
}
