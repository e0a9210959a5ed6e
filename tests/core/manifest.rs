//! What a release promises: the oldest Rust, and the changelog's form.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use testkit::paths::repository;

/// A version as numbers, the missing ones 0.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    for (number, text) in numbers.iter_mut().zip(version.split('.')) {
        *number = text.parse().unwrap();
    }
    numbers
}

fn oldest_rust() -> [u32; 3] {
    numbers(env!("CARGO_PKG_RUST_VERSION"))
}

/// What the standard library lacks in that version is clippy's to say (`incompatible_msrv`).
#[test]
fn no_dependency_needs_a_newer_rust() {
    // Others needn't have been downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", &platform])
        .current_dir(repository())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let newer: Vec<_> = packages
        .iter()
        .filter_map(|package| {
            let rust = package["rust_version"].as_str()?;
            let name = package["name"].as_str().unwrap();
            (numbers(rust) > oldest_rust()).then(|| format!("{name} needs Rust {rust}"))
        })
        .collect();
    assert!(packages.len() > 100 && newer.is_empty(), "{newer:?}");
}

#[test]
fn the_oldest_rust_is_the_same_wherever_it_is_named() {
    for (file, before) in [
        ("testkit/Cargo.toml", "rust-version = \""),
        ("CONTRIBUTING.md", "You need Rust "),
        ("README.md", "Rust ("),
    ] {
        let text = fs::read_to_string(repository().join(file)).unwrap();
        for (_, version) in text
            .match_indices(before)
            .map(|(i, _)| text.split_at(i + before.len()))
        {
            let end = version.find(|c: char| c != '.' && !c.is_ascii_digit());
            let version = &version[..end.unwrap()];
            assert_eq!(numbers(version), oldest_rust(), "{file}: {version}");
        }
    }
}

/// <https://keepachangelog.com/en/1.1.0/>
#[test]
fn the_changelog_keeps_its_form() {
    const KINDS: [&str; 6] = [
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    ];
    let text = fs::read_to_string(repository().join("CHANGELOG.md")).unwrap();
    assert!(text.starts_with("# Changelog\n"));
    let mut sections = text.split("\n## ").skip(1);
    let unreleased = sections.next().unwrap();
    assert!(unreleased.starts_with("[Unreleased]\n"), "{unreleased}");
    let mut later = numbers("999");
    for section in sections {
        let heading = section.lines().next().unwrap();
        // `[1.2.3] - 2026-11-29`
        let (version, date) = heading[1..].split_once("] - ").unwrap();
        assert!(numbers(version) < later, "{heading}: behind an older one");
        assert!(date.parse::<jiff::civil::Date>().is_ok(), "{heading}");
        later = numbers(version);
    }
    for section in text.split("\n## ").skip(1) {
        let mut seen = BTreeSet::new();
        for part in section.split("\n### ").skip(1) {
            let (kind, list) = part.split_once("\n\n").unwrap();
            assert!(KINDS.contains(&kind) && seen.insert(kind), "{kind}");
            for line in list.lines().filter(|line| !line.is_empty()) {
                assert!(line.starts_with("- ") || line.starts_with("  "), "{line}");
            }
        }
    }
}
