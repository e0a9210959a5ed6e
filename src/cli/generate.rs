//! `ftpalg generate` (hidden): manual pages and completions, for whoever installs ftpalg.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, Subcommand};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::manual::{self, ENVIRONMENT, FILES, SIGNALS};
use super::{Failure, command};

#[derive(Debug, Subcommand)]
pub(super) enum Generate {
    /// Write a manual page for each command
    Man(Directory),
    /// Write completions for bash, zsh and fish
    Completions(Directory),
}

#[derive(Args, Debug)]
pub(super) struct Directory {
    /// Where to; it is made if it isn't there
    directory: PathBuf,
}

pub(super) fn run(what: &Generate) -> Result<ExitCode, Failure> {
    let (Generate::Man(Directory { directory }) | Generate::Completions(Directory { directory })) =
        what;
    let written = fs::create_dir_all(directory).and_then(|()| match what {
        Generate::Man(_) => pages(directory),
        Generate::Completions(_) => completions(directory),
    });
    written.map_err(|e| {
        let directory = directory.display();
        Failure::usage(format!(
            "can't write to {directory}: {e}; name another directory"
        ))
    })?;
    Ok(ExitCode::SUCCESS)
}

fn completions(directory: &Path) -> io::Result<()> {
    let mut command = visible();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "ftpalg", directory)?;
    }
    Ok(())
}

/// The commands that people see.
fn visible() -> Command {
    command().disable_help_subcommand(true)
}

/// Writes `ftpalg.1`, `ftpalg-run.1`, and so on.
fn pages(directory: &Path) -> io::Result<()> {
    let mut all = visible();
    all.build();
    for page in manual::PAGES {
        let path: Vec<_> = page.command.split_whitespace().collect();
        let found = path
            .iter()
            .try_fold(&all, |command, name| command.find_subcommand(name));
        let found =
            found.ok_or_else(|| io::Error::other(format!("no command {:?}", page.command)))?;
        let name = [&["ftpalg"], path.as_slice()].concat().join("-");
        let file = fs::File::create(directory.join(format!("{name}.1")))?;
        write(page, found, &name, file)?;
    }
    Ok(())
}

fn write(
    page: &manual::Page,
    command: &Command,
    name: &str,
    mut to: impl io::Write,
) -> io::Result<()> {
    // The version is in the page's foot.
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .source(concat!("ftpalg ", env!("CARGO_PKG_VERSION")))
        .manual("ftpalg");
    man.render_title(&mut to)?;
    man.render_name_section(&mut to)?;
    man.render_synopsis_section(&mut to)?;
    man.render_description_section(&mut to)?;
    man.render_options_section(&mut to)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut to)?;
    }
    let mut roff = Roff::new();
    list(&mut roff, "EXIT STATUS", page.exits);
    if page.command == "run" {
        list(&mut roff, "SIGNALS", &SIGNALS);
    }
    list(&mut roff, "ENVIRONMENT", &ENVIRONMENT);
    list(&mut roff, "FILES", &FILES);
    list(&mut roff, "EXAMPLES", page.examples);
    roff.control("SH", ["SEE ALSO"]);
    let others = manual::PAGES
        .iter()
        .map(|page| page.command)
        .filter(|other| *other != page.command);
    let others: Vec<_> = others
        .map(|other| {
            [
                &["ftpalg"],
                other.split_whitespace().collect::<Vec<_>>().as_slice(),
            ]
            .concat()
        })
        .map(|words| format!("{}(1)", words.join("-")))
        .collect();
    roff.text([roman(format!(
        "{}, iptables(8), conntrack(8), nft(8)",
        others.join(", ")
    ))]);
    roff.to_writer(&mut to)
}

/// A section of terms, each with its explanation.
fn list(roff: &mut Roff, heading: &str, terms: &[(&str, &str)]) {
    roff.control("SH", [heading]);
    for (term, about) in terms {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(*about)]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cli::Cli;
    use crate::cli::settings::example;
    use crate::cli::settings::file::help;
    use clap::Parser;

    /// All commands that people see, without `ftpalg`, and their definitions.
    fn commands() -> Vec<(String, Command)> {
        fn below(command: &Command, path: &str, all: &mut Vec<(String, Command)>) {
            all.push((path.to_owned(), command.clone()));
            for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let path = format!("{path} {}", sub.get_name());
                below(sub, path.trim_start(), all);
            }
        }
        let mut all = Vec::new();
        let mut command = visible();
        command.build();
        below(&command, "", &mut all);
        all
    }

    #[test]
    fn the_first_page_has_every_exit_code() {
        let codes = |page: &manual::Page| -> BTreeSet<_> {
            page.exits.iter().map(|(code, _)| *code).collect()
        };
        let (first, others) = manual::PAGES.split_first().unwrap();
        assert_eq!(first.command, "");
        let all: BTreeSet<_> = others.iter().flat_map(codes).collect();
        assert_eq!(codes(first), all);
    }

    #[test]
    fn every_command_has_a_page_with_examples_that_are_read_and_exit_codes() {
        let wanted: BTreeSet<_> = commands().into_iter().map(|(path, _)| path).collect();
        let is: BTreeSet<_> = manual::PAGES
            .iter()
            .map(|page| page.command.to_owned())
            .collect();
        assert_eq!(is, wanted, "manual.rs has a page for each command");
        for page in manual::PAGES {
            assert!(
                !page.examples.is_empty() && !page.exits.is_empty(),
                "{}",
                page.command
            );
            for (line, _) in page.examples {
                let read = Cli::try_parse_from(line.split_whitespace());
                let is_help = |e: &clap::Error| !e.use_stderr();
                assert!(read.as_ref().err().is_none_or(is_help), "{line}: {read:?}");
                assert!(
                    line.starts_with(&format!("ftpalg {}", page.command))
                        || page.command.is_empty(),
                    "{line}"
                );
            }
        }
    }

    #[test]
    fn helps_fit_a_terminal() {
        for (path, command) in commands() {
            for text in [
                command.clone().render_help(),
                command.clone().render_long_help(),
            ] {
                for line in text.to_string().lines() {
                    let width = line.chars().count();
                    assert!(width <= 80, "{path}: {width} columns: {line}");
                }
            }
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                let short = arg.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!short.is_empty(), "{path}: {arg} has no help");
                assert!(
                    short.chars().count() <= 160,
                    "{path}: {arg}: the first paragraph is long"
                );
                assert!(!short.ends_with('.'), "{path}: {arg}: {short}");
            }
        }
    }

    fn flags_of_run() -> Vec<clap::Arg> {
        let mut all = commands().into_iter();
        let (_, run) = all.find(|(path, _)| path == "run").unwrap();
        let flags = run.get_arguments();
        let flags = flags.filter(|arg| arg.get_long() != Some("help"));
        flags.cloned().collect()
    }

    #[test]
    fn every_flag_of_run_tells_its_default_in_its_short_help() {
        for arg in &flags_of_run() {
            let short = arg.get_help().map(ToString::to_string).unwrap_or_default();
            assert!(example::parts(&short).1.is_some(), "{arg}: {short}");
            assert!(arg.get_help_heading().is_some(), "{arg} has no heading");
            assert!(!help(arg).is_empty());
        }
    }

    /// The rows of the table of flags in docs/reference.md: what its first two cells say.
    fn documented() -> Vec<(String, String)> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
        let text = fs::read_to_string(path).unwrap();
        let (_, table) = text
            .split_once("| flag, key | default | |\n|---|---|---|\n")
            .unwrap();
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        rows.map(|row| {
            let row = row.replace("\\|", "\0");
            let cell = |n: usize| row.split('|').nth(n).unwrap().trim().replace('\0', "|");
            (cell(1).replace('`', ""), cell(2).replace('`', ""))
        })
        .collect()
    }

    #[test]
    fn the_reference_has_each_flag_with_its_values_and_its_default() {
        let mut rows = documented();
        for arg in &flags_of_run() {
            let name = format!("--{}", arg.get_long().unwrap());
            let value = arg.get_value_names().unwrap_or_default().first();
            let value = value.filter(|_| arg.get_action().takes_values());
            let spelled = match value {
                None => name,
                Some(value) if arg.is_require_equals_set() => format!("{name}[={value}]"),
                Some(value) => format!("{name} {value}"),
            };
            let at = rows.iter().position(|(flag, _)| *flag == spelled);
            let at = at.unwrap_or_else(|| panic!("docs/reference.md has no row `{spelled}`"));
            let (_, told) = rows.remove(at);
            let default = example::parts(&help(arg)).1.unwrap().text;
            // Words are free, values aren't.
            if !default.contains(' ') {
                assert_eq!(told, default, "docs/reference.md on {spelled}");
            }
            assert!(!told.is_empty(), "{spelled}");
        }
        assert!(
            rows.is_empty(),
            "flags that aren't there any more: {rows:?}"
        );
    }

    #[test]
    fn pages_and_completions_are_written() {
        let directory =
            std::env::temp_dir().join(format!("ftpalg-generate-{}", std::process::id()));
        run(&Generate::Man(Directory {
            directory: directory.clone(),
        }))
        .unwrap();
        run(&Generate::Completions(Directory {
            directory: directory.clone(),
        }))
        .unwrap();
        let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let run_page = text("ftpalg-run.1");
        for part in [
            "EXIT STATUS",
            "SIGNALS",
            "ENVIRONMENT",
            "FILES",
            "EXAMPLES",
            "TLS",
            "handover",
        ] {
            assert!(run_page.contains(part), "{part}: {run_page}");
        }
        for name in ["ftpalg.bash", "_ftpalg", "ftpalg.fish"] {
            assert!(text(name).contains("data-ports"), "{name}");
            assert!(!text(name).contains("generate"), "{name}");
        }
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "").unwrap();
        let failure = run(&Generate::Man(Directory {
            directory: directory.clone(),
        }))
        .unwrap_err();
        assert!(failure.lines[0].contains("; "), "{failure:?}");
        fs::remove_file(&directory).unwrap();
    }
}
