//! Programs that are told what to do by scripts of their own: `tests/system/programs/servers/` and
//! `tests/system/programs/clients/`. A new program is a new file there.
//!
//! A script says at its top, behind `#` or `//`, what it is about:
//!
//! | line | says |
//! |---|---|
//! | `program: NAME…` | it needs these programs of the system's (one may stand for its package's modules) |
//! | `package: NAME…` | the packages that `scripts/test` installs for it |
//! | `unpack: PACKAGE` | it needs this package, which `scripts/test` unpacks |
//! | `npm: NAME` | it needs this package of `tests/system/programs/package.json` |
//! | `python: NAME` | it needs this module of the system's Python |
//! | `login: USER PASSWORD` | how to log in (servers) |
//! | `verbs: PASV EPSV PORT EPRT` | what it can be told to announce with (clients) |
//! | `does: list get put` | what it can do, if not all of these (clients) |
//!
//! All read the environment: `HOST` and `PORT`. A server offers `ROOT` and may write to its working
//! directory. A client logs in with `LOGIN` and `PASSWORD` (`URL`, `URL_WITH_LOGIN`), announces with
//! `VERB`, gives up after `PATIENCE` seconds, writes to its working directory what it lists (as
//! `listing`, or to standard output) and what it downloads, and uploads the file `UPLOAD` as `TARGET`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::process::{PATH, run};
use crate::paths::repository;

/// A script and what it says of itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// For reports: the file's name.
    pub name: String,
    /// The script.
    pub path: PathBuf,
    /// The ways in which a client can announce.
    pub modes: Vec<Mode>,
    /// Whether a client lists, downloads and uploads.
    pub does: [bool; 3],
    /// A server's login.
    pub login: (String, String),
    /// Why it can't run here, if so.
    pub missing: Option<String>,
}

/// A way to announce.
#[derive(Debug, PartialEq, Eq)]
pub struct Mode {
    /// For reports: the program's name and the verb.
    pub name: String,
    /// `PASV`, `EPSV`, `PORT`, `EPRT`.
    pub verb: String,
}

/// All servers with a script, in the order of their names.
pub fn servers() -> &'static [Program] {
    static ALL: OnceLock<Vec<Program>> = OnceLock::new();
    ALL.get_or_init(|| load("servers"))
}

/// All clients with a script, in the order of their names.
pub fn clients() -> &'static [Program] {
    static ALL: OnceLock<Vec<Program>> = OnceLock::new();
    ALL.get_or_init(|| load("clients"))
}

impl Program {
    /// Tells a command where things are.
    pub fn surroundings(command: &mut Command) {
        command
            .env("PROGRAMS", directory())
            .env("UNPACKED", cache("servers"))
            .env("NODE_PATH", cache("programs/node_modules"));
    }
}

fn directory() -> PathBuf {
    repository().join("tests/system/programs")
}

fn cache(path: &str) -> PathBuf {
    repository().join(".cache").join(path)
}

fn load(kind: &str) -> Vec<Program> {
    let files = std::fs::read_dir(directory().join(kind)).expect("the scripts are there");
    let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    paths.sort();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Program {
    let text = std::fs::read_to_string(&path).expect("a script");
    let name = path.file_stem().expect("a name").to_string_lossy();
    let words = |key: &str| -> Vec<String> {
        let mut lines = text.lines().filter_map(|line| {
            let line = line.trim_start_matches(['#', '/']);
            line.strip_prefix(' ')?
                .strip_prefix(key)?
                .strip_prefix(": ")
        });
        let words = lines.next().unwrap_or_default().split_whitespace();
        words.map(str::to_owned).collect()
    };
    let mode = |verb: String| Mode {
        name: format!("{name} {verb}"),
        verb,
    };
    let does = words("does");
    let mut login = words("login").into_iter();
    Program {
        modes: words("verbs").into_iter().map(mode).collect(),
        does: ["list", "get", "put"].map(|what| does.is_empty() || does.iter().any(|d| d == what)),
        login: (
            login.next().unwrap_or_default(),
            login.next().unwrap_or_default(),
        ),
        missing: missing(&words),
        name: name.into_owned(),
        path,
    }
}

fn missing(words: &dyn Fn(&str) -> Vec<String>) -> Option<String> {
    let there = |program: &str| {
        PATH.split(':')
            .any(|dir| Path::new(dir).join(program).exists())
    };
    for program in words("program") {
        if !there(&program) {
            return Some(format!("`{program}` isn't installed"));
        }
    }
    for package in words("unpack") {
        if !cache("servers").join(&package).join(".complete").exists() {
            return Some(format!("{package} isn't unpacked"));
        }
    }
    for package in words("npm") {
        if !there("node") {
            return Some("`node` isn't installed".to_owned());
        }
        if !cache("programs/node_modules").join(&package).exists() {
            return Some(format!("npm's {package} isn't installed"));
        }
    }
    for module in words("python") {
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", &format!("import {module}")]);
        if !there("python3") || !run(command, Duration::from_secs(20)).ok() {
            return Some(format!("Python's {module} isn't installed"));
        }
    }
    None
}
