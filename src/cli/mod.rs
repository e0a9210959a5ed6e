//! The command line: one file per subcommand.
//!
//! A failure is one line on the standard error, `ftpalg: WHAT; HOW TO MEND IT`, and exit code 2.
//! `status`, `sessions`, `pinholes` and `events` have exit codes of their own.

mod check;
mod doctor;
mod events;
mod generate;
mod log;
mod manual;
mod pinholes;
mod replay;
mod rules;
mod run;
mod sessions;
mod settings;
mod status;
mod table;
mod units;
mod watch;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde_json::Value;

use crate::daemon::control::{self, AskError, ControlRequest};
use generate::Generate;
use settings::file::remedy;

/// Wrong flags, configuration or environment.
const USAGE: u8 = 2;
/// No daemon runs.
const NOT_RUNNING: u8 = 3;

/// A userspace FTP application-layer gateway: rewrites the addresses in FTP control connections
/// that pass NAT, and opens exactly the ports of the data connections that they announce.
#[derive(Debug, Parser)]
#[command(name = "ftpalg", version, term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    /// Work as a gateway, in the foreground, until SIGINT, SIGTERM or SIGUSR2
    Run(Box<run::Run>),
    /// Tell how the daemon of this network namespace is
    Status(status::Arguments),
    /// List the control connections
    Sessions(sessions::Arguments),
    /// List the data connections that are expected or there
    Pinholes(pinholes::Arguments),
    /// Show what happened: sessions, logins, transfers, refusals
    Events(events::Arguments),
    /// Print, install or remove the steering rules
    #[command(subcommand)]
    Rules(rules::RulesCommand),
    /// Check a configuration file, and say what it will do
    Check(check::Arguments),
    /// Judge whether this host is fit for `ftpalg run`, and say how to mend what isn't
    ///
    /// It changes nothing. It takes run's flags.
    Doctor(Box<doctor::Doctor>),
    /// Show what would become of the control connections in a capture (pcap, pcapng), line by line
    #[command(mut_args(replay::fit))]
    Replay(Box<replay::Arguments>),
}

/// The whole command line as clap has it, with examples and exit codes in the helps.
fn command() -> Command {
    manual::add(Cli::command())
}

/// With what packagers need, and people don't.
fn parse() -> Result<Result<Cli, Generate>, clap::Error> {
    let hidden = Generate::augment_subcommands(Command::new("generate").hide(true));
    let hidden = hidden.subcommand_required(true);
    let matches = command().subcommand(hidden).try_get_matches()?;
    match matches.subcommand() {
        Some(("generate", matches)) => Generate::from_arg_matches(matches).map(Err),
        _ => Cli::from_arg_matches(&matches).map(Ok),
    }
}

/// How answers are shown.
#[derive(Args, Clone, Copy, Debug)]
struct Format {
    /// Show one JSON value with stable field names
    #[arg(long)]
    json: bool,
    /// Show all numbers of bytes in full
    #[arg(long, conflicts_with = "json")]
    bytes: bool,
}

/// A reason to give up: the line, without `ftpalg: `, and the exit code. Several mistakes of one kind
/// have a line each.
#[derive(Debug)]
struct Failure {
    lines: Vec<String>,
    code: u8,
}

impl Failure {
    /// Wrong flags, configuration or environment.
    fn usage(line: impl fmt::Display) -> Self {
        Self {
            lines: vec![line.to_string()],
            code: USAGE,
        }
    }
}

impl From<settings::Mistakes> for Failure {
    fn from(mistakes: settings::Mistakes) -> Self {
        Self {
            lines: mistakes.0,
            code: USAGE,
        }
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        let code = match error {
            AskError::NotRunning(_) => NOT_RUNNING,
            AskError::Refused(_) | AskError::Failed(_) => 1,
        };
        Self {
            lines: vec![error.to_string()],
            code,
        }
    }
}

/// Runs the command given by the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match parse() {
        Ok(Ok(cli)) => cli,
        Ok(Err(what)) => return generate::run(&what).unwrap_or_else(|failure| fail(&failure)),
        Err(e) if !e.use_stderr() => {
            // --help and --version; a reader that went away is no failure of ours.
            let _ = e.print();
            return ExitCode::SUCCESS;
        }
        Err(e) => return fail(&Failure::usage(condense(&e))),
    };
    if let Err(why) = log::start() {
        return fail(&Failure::usage(why));
    }
    let done = match cli.command {
        CliCommand::Run(arguments) => run::run(*arguments),
        CliCommand::Status(arguments) => status::show(&arguments),
        CliCommand::Sessions(arguments) => sessions::show(&arguments),
        CliCommand::Pinholes(arguments) => pinholes::show(arguments),
        CliCommand::Events(arguments) => events::show(&arguments),
        CliCommand::Rules(command) => rules::run(command),
        CliCommand::Check(arguments) => check::run(&arguments),
        CliCommand::Doctor(arguments) => doctor::run(*arguments),
        CliCommand::Replay(arguments) => replay::run(*arguments),
    };
    done.unwrap_or_else(|failure| fail(&failure))
}

/// Says why, each reason in one line.
fn fail(failure: &Failure) -> ExitCode {
    let prefix = log::error_prefix();
    for line in &failure.lines {
        let line = line.replace(['\n', '\r'], " ");
        // Nobody is left to be told if this fails.
        let _ = writeln!(io::stderr(), "{prefix}ftpalg: {line}");
    }
    ExitCode::from(failure.code)
}

/// Clap's several lines as one: what is wrong, and how to mend it.
fn condense(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "no command given; see `ftpalg --help`".into();
    }
    let text = error.to_string();
    let what = text
        .lines()
        .take_while(|line| !line.trim().is_empty())
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    match error.kind() {
        ErrorKind::ValueValidation => {
            // Our own parsers say how to mend it.
            let how = remedy(error);
            let what = what.strip_suffix(&how).unwrap_or(what);
            return format!("{}; {how}", what.trim_end_matches([' ', ':']));
        }
        ErrorKind::InvalidValue => {
            let what = what.split(" [possible values").next().unwrap_or(what);
            return format!("{what}; {}", remedy(error));
        }
        _ => {}
    }
    let suggested = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg];
    match suggested.iter().find_map(|kind| error.get(*kind)) {
        Some(like) => format!("{what}; did you mean {}?", likeliest(like)),
        None => format!("{what}; see `{} --help`", command_of(&text)),
    }
}

/// The command that clap's usage line is about: `ftpalg`, or `ftpalg check`.
fn command_of(text: &str) -> String {
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    let words = usage.unwrap_or("ftpalg").split(' ');
    let is_name = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
    words.take_while(is_name).collect::<Vec<_>>().join(" ")
}

/// The likeliest of clap's suggestions: it sorts them that way.
fn likeliest(suggested: &ContextValue) -> String {
    match suggested {
        ContextValue::Strings(all) => all.last().cloned().unwrap_or_default(),
        one => one.to_string(),
    }
}

/// Asks the daemon and shows its answer, as JSON or by `text`.
fn show(
    request: ControlRequest,
    json: bool,
    text: impl FnOnce(&Value) -> String,
) -> Result<Value, Failure> {
    let answer = control::ask(request)?;
    let (own, its) = (
        env!("CARGO_PKG_VERSION"),
        answer.get("version").and_then(Value::as_str),
    );
    if let Some(its) = its.filter(|its| *its != own) {
        ::log::warn!("the daemon is ftpalg {its}, and this is {own}; restart the daemon");
    }
    let shown = if json {
        format!("{answer:#}\n")
    } else {
        text(&answer)
    };
    print(&shown)?;
    Ok(answer)
}

/// Prints to the standard output.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::usage(format!(
            "can't write to the standard output: {e}; is the disk full?"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_mistake_is_one_line() {
        for args in [
            &["ftpalg"][..],
            &["ftpalg", "fly"],
            &["ftpalg", "run", "--colour"],
            &["ftpalg", "run", "--prot", "21"],
            &["ftpalg", "run", "--port"],
            &["ftpalg", "run", "--port", "0"],
            &["ftpalg", "run", "extra"],
            &["ftpalg", "check"],
            &["ftpalg", "rules"],
        ] {
            let line = condense(&Cli::try_parse_from(args).unwrap_err());
            assert!(
                !line.contains('\n') && line.contains("; "),
                "{args:?}: {line}"
            );
            assert!(!line.starts_with("error"), "{line}");
        }
    }
}
