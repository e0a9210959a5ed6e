//! Which module of the crate may import from which: read from the source files, doc links included.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module of the crate, and those that it imports from: all of them, and none besides. They stand
/// above it, so that there are no circles.
const LAYERS: [(&str, &[&str]); 14] = [
    // The core.
    ("wire", &[]),
    ("stream", &[]),
    ("ftp", &[]),
    ("engine", &["wire", "stream", "ftp"]),
    // The shell.
    ("net", &[]),
    ("netlink", &[]),
    ("queue", &["netlink"]),
    ("conntrack", &["engine", "net", "netlink"]),
    ("firewall", &["net", "netlink"]),
    (
        "pinholes",
        &["ftp", "engine", "net", "netlink", "conntrack", "firewall"],
    ),
    (
        "doctor",
        &["net", "netlink", "queue", "conntrack", "firewall"],
    ),
    (
        "replay",
        &["wire", "engine", "net", "conntrack", "pinholes"],
    ),
    (
        "daemon",
        &[
            "ftp",
            "engine",
            "net",
            "netlink",
            "queue",
            "conntrack",
            "firewall",
            "pinholes",
            "doctor",
        ],
    ),
    (
        "cli",
        &["ftp", "net", "firewall", "replay", "doctor", "daemon"],
    ),
];

/// The layers that are told everything and own nothing.
const CORE: [&str; 4] = ["wire", "stream", "ftp", "engine"];

/// What the core has no use for: clocks, files, sockets, threads, the process's surroundings.
const OUTSIDE: [&str; 18] = [
    "std::env",
    "std::fs",
    "std::io",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "Mutex",
    "RwLock",
    "nix::",
    "nfq::",
];

fn sources() -> PathBuf {
    testkit::paths::repository().join("src")
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The names that a path goes on with: one, or those of a list in braces.
fn heads(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(list) = rest.strip_prefix('{') else {
        return vec![rest.chars().take_while(|c| is_name(*c)).collect()];
    };
    let mut depth = 0;
    let mut items = vec![String::new()];
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().unwrap().push(c),
            _ => {}
        }
    }
    items.iter().flat_map(|item| heads(item)).collect()
}

/// The modules of the crate that a text names: after `crate::`, or after as many `super::` as lead
/// out of a module `depth` levels below the crate's root.
fn named(text: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        if !text[..at].ends_with(is_name) {
            let rest = &text[at + "crate::".len()..];
            found.extend(heads(rest).into_iter().map(|head| (at, head)));
        }
    }
    let up = "super::";
    for (at, _) in text.match_indices(up) {
        let before = &text[..at];
        if before.ends_with(is_name) || before.ends_with(up) {
            continue;
        }
        let mut rest = &text[at..];
        let mut levels = 0;
        while let Some(further) = rest.strip_prefix(up) {
            (rest, levels) = (further, levels + 1);
        }
        if levels >= depth {
            found.extend(heads(rest).into_iter().map(|head| (at, head)));
        }
    }
    let layer = |name: &str| LAYERS.iter().any(|(layer, _)| *layer == name);
    found.retain(|(_, head)| layer(head));
    found
}

/// How many modules a file stands below the crate's root; `path` is relative to `src`.
fn depth(path: &Path) -> usize {
    let names = path.components().count();
    if path.ends_with("mod.rs") {
        names - 1
    } else {
        names
    }
}

#[test]
fn every_module_imports_only_from_those_it_stands_on() {
    let mut wrong = Vec::new();
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (layer, allowed) in LAYERS {
        let dir = sources().join(layer);
        for file in files(&dir) {
            let path = file.strip_prefix(sources()).unwrap();
            let text = std::fs::read_to_string(&file).unwrap();
            for (at, head) in named(&text, depth(path)) {
                if head == layer {
                    continue;
                }
                if !allowed.contains(&head.as_str()) {
                    let line = text[..at].matches('\n').count() + 1;
                    wrong.push(format!(
                        "src/{}:{line}: `{layer}` imports from `{head}`; it may from {allowed:?} only",
                        path.display()
                    ));
                }
                seen.entry(layer).or_default().insert(head);
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
    for (layer, allowed) in LAYERS {
        let seen = seen.remove(layer).unwrap_or_default();
        for other in allowed {
            assert!(
                seen.contains(*other),
                "`{layer}` imports nothing from `{other}` any more: take that out of LAYERS"
            );
        }
    }
}

#[test]
fn the_table_knows_every_module_and_has_no_circles() {
    let mut above = Vec::new();
    for (layer, allowed) in LAYERS {
        for other in allowed {
            assert!(
                above.contains(other),
                "`{other}` has to stand above `{layer}`"
            );
        }
        above.push(layer);
    }
    let mut modules = Vec::new();
    for entry in std::fs::read_dir(sources()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            if !files(&path).is_empty() {
                modules.push(name);
            }
        } else {
            assert!(name == "lib" || name == "main", "which layer is {name}.rs?");
        }
    }
    modules.sort();
    above.sort_unstable();
    assert_eq!(modules, above);
}

#[test]
fn the_core_owns_nothing() {
    for layer in CORE {
        for file in files(&sources().join(layer)) {
            let text = std::fs::read_to_string(&file).unwrap();
            for word in OUTSIDE {
                assert!(!text.contains(word), "{}: {word}", file.display());
            }
        }
    }
}

#[test]
fn paths_are_found_however_they_are_written() {
    let heads = |text: &str, depth| -> Vec<String> {
        named(text, depth)
            .into_iter()
            .map(|(_, head)| head)
            .collect()
    };
    assert_eq!(heads("use crate::wire::Segment;", 2), ["wire"]);
    assert_eq!(heads("pub use crate::net;", 2), ["net"]);
    assert_eq!(heads("    crate::daemon::run()", 2), ["daemon"]);
    assert_eq!(
        heads("use crate::{ftp::{self, session}, cli};", 2),
        ["ftp", "cli"]
    );
    assert_eq!(
        heads("use crate::{\n    queue,\n    net::{Mark}\n};", 2),
        ["queue", "net"]
    );
    assert_eq!(heads("/// See [`run`](crate::daemon::run).", 2), ["daemon"]);
    assert_eq!(heads("use super::daemon;", 1), ["daemon"]);
    assert_eq!(heads("use super::daemon;", 2), Vec::<String>::new());
    assert_eq!(heads("use super::super::{daemon, x};", 2), ["daemon"]);
    assert_eq!(heads("use my_crate::wire;", 2), Vec::<String>::new());
    assert_eq!(heads("use crate::Error;", 2), Vec::<String>::new());
}
