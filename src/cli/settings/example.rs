//! A file to start from: every key with its help, and its default in a comment.

use std::fmt::Write as _;

use clap::Arg;

use super::file::{Keys, help, possible};
use super::{Settings, limits, strict};
use crate::daemon::changes;

/// What the file has for settings whose default is no value, as flags have it.
const EXAMPLES: [(&str, &str); 9] = [
    ("inside", "eth1"),
    ("bypass", "198.51.100.0/24"),
    ("advertise", "203.0.113.10"),
    ("data-ports", "30000-30009"),
    ("nat64", "default"),
    ("implicit-port", "990"),
    ("strict", "all"),
    ("allow-foreign", "198.51.100.0/24"),
    ("metrics", "127.0.0.1:9119"),
];

/// What an empty list means where that isn't the same as none.
pub(super) const EMPTY: [(&str, &str); 1] = [("deny-ports", "none")];

/// The longest line, in characters.
const WIDTH: usize = 100;

/// A flag's default, as its help tells it: `[default: 21]`, `[default, without --local: …]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Default {
    /// When it holds, if not always.
    pub(in crate::cli) condition: String,
    /// A value, or what happens without one.
    pub(in crate::cli) text: String,
}

/// What a help text says, without the default, and the default.
pub(in crate::cli) fn parts(help: &str) -> (String, Option<Default>) {
    let found = help.split_once("[default").and_then(|(before, rest)| {
        let (default, after) = rest.split_once(']')?;
        let (condition, text) = default.split_once(": ")?;
        let default = Default {
            condition: condition.trim_start_matches(", ").to_owned(),
            text: text.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        Some((format!("{}{after}", before.trim_end()), default))
    });
    match found {
        Some((text, default)) => (text, Some(default)),
        None => (help.to_owned(), None),
    }
}

/// The file: everything in it is a comment.
pub(in crate::cli) fn print() -> String {
    let keys = Keys::new();
    let mut text = String::from(TOP);
    let mut heading = None;
    for arg in keys.all() {
        let name = arg.get_long().unwrap_or_default();
        if name == "limit" {
            continue;
        }
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let _ = write!(text, "\n## {}\n", heading.unwrap_or("Others"));
        }
        text += &key(&keys, arg, name);
    }
    text += &tables();
    text
}

const TOP: &str = "\
# ftpalg's configuration. Each key is a flag of `ftpalg run`; behind each # is the default, or an example
# where the default isn't a value. `ftpalg check FILE` says what a file will do, and
# `systemctl reload ftpalg` applies it and says what takes a restart.
";

/// One key with its help.
fn key(keys: &Keys, arg: &Arg, name: &str) -> String {
    let (about, default) = parts(&help(arg));
    let mut text = String::from("\n");
    for paragraph in about.split("\n\n") {
        text += &comment(paragraph);
    }
    if let Some(default) = default.filter(|_| EXAMPLES.iter().any(|(key, _)| *key == name)) {
        let Default {
            condition,
            text: of,
        } = default;
        let comma = if condition.is_empty() { "" } else { ", " };
        text += &comment(&format!("Default{comma}{condition}: {of}"));
    }
    let _ = writeln!(text, "#{}", line(keys, name));
    text
}

/// The tables, which must be last.
fn tables() -> String {
    let mut text = String::from("\n## Limits\n\n");
    text += &comment(
        "Tables like this one and the next must come last: what follows a table's name belongs to it. \
         docs/reference.md says what happens at each limit.",
    );
    text += "#[limits]\n";
    let defaults = Settings::default()
        .config()
        .map(|config| changes::settings(&config));
    let defaults = defaults.unwrap_or_default();
    for limits::Known {
        name, range, about, ..
    } in &limits::ALL
    {
        let default = defaults.get(format!("limits.{name}").as_str());
        let (first, last) = (range.start(), range.end());
        let set = format!("#{name} = {}", default.map_or("", String::as_str));
        let _ = writeln!(text, "{set:<40} # {about}; {first} to {last}");
    }
    text += "\n";
    text += &comment(
        "Strict rules one by one, instead of a line `strict`. Each refuses something. Default: none.",
    );
    text += "#[strict]\n";
    for strict::Rule { name, takes, about } in &strict::TABLE {
        let value = match takes {
            strict::Takes::Switch => "false",
            strict::Takes::Number => "0",
            strict::Takes::Commands => "[]",
        };
        let set = format!("#{name} = {value}");
        let _ = writeln!(text, "{set:<26} # {about}");
    }
    text
}

/// A paragraph as lines of a comment.
fn comment(paragraph: &str) -> String {
    let mut text = String::new();
    let mut line = String::from("#");
    for word in paragraph.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            text += &line;
            text += "\n";
            line = String::from("#");
        }
        line.push(' ');
        line += word;
    }
    let stop = if line.ends_with(['.', ':']) { "" } else { "." };
    text + &line + stop + "\n"
}

/// A key with a value to start from: `port = [21]`.
pub(super) fn line(keys: &Keys, name: &str) -> String {
    let Some(arg) = keys.arg(name) else {
        return format!("{name} = …");
    };
    let example = EXAMPLES.iter().find(|(key, _)| *key == name);
    let default = || parts(&help(arg)).1.map(|default| default.text);
    let word = example.map(|(_, word)| (*word).to_owned()).or_else(default);
    format!("{name} = {}", value(keys, name, &word.unwrap_or_default()))
}

/// A flag's value as a key has it.
pub(super) fn value(keys: &Keys, name: &str, word: &str) -> String {
    let arg = keys.arg(name);
    if arg.is_some_and(|arg| !arg.get_action().takes_values()) {
        return matches!(word, "yes" | "true").to_string();
    }
    if keys.takes_none(name) && word == "all" {
        return "true".to_owned();
    }
    if arg.is_some_and(|arg| possible(arg, "true") && possible(arg, word)) {
        return matches!(word, "yes" | "true").to_string();
    }
    let number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let one = match number || word.starts_with("0x") {
        true => word.to_owned(),
        false => format!("{word:?}"),
    };
    match keys.repeats(name) {
        true => format!("[{one}]"),
        false => one,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::super::file::File;
    use super::*;

    /// Compares a file of the repository with what it is made of; `FTPALG_BLESS=1` writes it instead.
    fn held(name: &str, wanted: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        if std::env::var_os("FTPALG_BLESS").is_some() {
            std::fs::write(&path, wanted).unwrap();
        }
        let is = std::fs::read_to_string(&path).unwrap();
        let same = is == wanted;
        assert!(
            same,
            "{name} isn't what the flags say; FTPALG_BLESS=1 writes it anew"
        );
    }

    fn config(text: &str) -> BTreeMap<&'static str, String> {
        let file = File::read(text).unwrap_or_else(|e| panic!("{e:#?}\n{text}"));
        changes::settings(&file.settings.config().unwrap())
    }

    fn defaults() -> BTreeMap<&'static str, String> {
        changes::settings(&Settings::default().config().unwrap())
    }

    #[test]
    fn the_packaged_file_is_the_one_that_is_printed() {
        held("packaging/ftpalg.toml", &print());
    }

    #[test]
    fn every_flag_has_a_heading_a_default_and_an_example_that_is_read() {
        let keys = Keys::new();
        for arg in keys.all() {
            let name = arg.get_long().unwrap();
            assert!(arg.get_help_heading().is_some(), "--{name} has no heading");
            let (about, default) = parts(&help(arg));
            assert!(default.is_some(), "--{name} tells no default");
            assert!(!about.contains("[default"), "--{name}: {about}");
            if name == "limit" {
                continue;
            }
            let line = line(&keys, name);
            let file = File::read(&line).unwrap_or_else(|e| panic!("{line}: {e:?}"));
            // What is shown as the default is what holds without it.
            if !EXAMPLES.iter().any(|(key, _)| *key == name) {
                let config = file.settings.config().unwrap();
                assert_eq!(changes::settings(&config), defaults(), "{line}");
            }
        }
        for (name, _) in EXAMPLES.iter().chain(&EMPTY) {
            assert!(keys.arg(name).is_some(), "there is no --{name} any more");
        }
    }

    #[test]
    fn the_file_says_the_defaults_and_has_every_key() {
        let text = print();
        let set = |line: &str| {
            line.starts_with('#') && !line.starts_with("# ") && !line.starts_with("##")
        };
        let is_example = |line: &str| {
            EXAMPLES
                .iter()
                .any(|(key, _)| line.starts_with(&format!("#{key} =")))
        };
        let uncomment = |keep: &dyn Fn(&str) -> bool| -> String {
            let lines = text.lines().filter(|line| set(line) && keep(line));
            lines.map(|line| format!("{}\n", &line[1..])).collect()
        };
        assert_eq!(config(&text), defaults(), "all of it is a comment");
        assert_eq!(config(&uncomment(&|line| !is_example(line))), defaults());
        // The line and the table exclude each other.
        let all = uncomment(&|line| !line.starts_with("#strict ="));
        config(&all);
        for name in defaults().keys() {
            let name = name.strip_prefix("limits.").unwrap_or(name);
            let has = text
                .lines()
                .any(|line| line.starts_with(&format!("#{name} = ")));
            assert!(has, "{name} isn't in the file");
        }
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH + 10),
            "lines are short"
        );
    }

    #[test]
    fn defaults_are_found_in_help_texts() {
        let parts = |text| {
            let (about, default) = parts(text);
            let default = default.map(|d| (d.condition, d.text));
            (about, default)
        };
        let some = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(
            parts("A port [default: 21]"),
            ("A port".into(), some("", "21"))
        );
        assert_eq!(
            parts("A side [default, without\n--local: what the\nrules: tell]\n\nMore."),
            (
                "A side\n\nMore.".into(),
                some("without\n--local", "what the rules: tell")
            )
        );
        assert_eq!(parts("A thing"), ("A thing".into(), None));
    }
}
