//! The keys that a file can have: the flags of `run`, as clap knows them.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, Command};

use crate::cli::run::Run;
use crate::cli::settings::Settings;

/// Settings that are given on the command line only.
const FLAGS_ONLY: [&str; 1] = ["config"];

/// How alike two names are that may be meant for one another: 0 to 1.
const ALIKE: f64 = 0.8;

/// All flags.
#[derive(Debug)]
pub(in crate::cli) struct Keys {
    /// The flags of [`Settings`].
    settings: Command,
    /// The flags of `run`, which has more.
    run: Command,
}

impl Keys {
    pub(in crate::cli) fn new() -> Self {
        let command = || {
            Command::new("ftpalg")
                .no_binary_name(true)
                .disable_help_flag(true)
        };
        let (mut settings, mut run) = (
            Settings::augment_args(command()),
            Run::augment_args(command()),
        );
        settings.build();
        run.build();
        Self { settings, run }
    }

    /// The flag that a key stands for.
    pub(in crate::cli) fn arg(&self, name: &str) -> Option<&Arg> {
        self.all().find(|arg| arg.get_long() == Some(name))
    }

    /// All flags that are keys. That of the limits is `limit`, though the file has a table `limits`.
    pub(in crate::cli) fn all(&self) -> impl Iterator<Item = &Arg> {
        let key = |arg: &&Arg| {
            arg.get_long()
                .is_some_and(|long| !FLAGS_ONLY.contains(&long))
        };
        self.settings.get_arguments().filter(key)
    }

    /// The names of all keys and tables.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let of_flag = |long| if long == "limit" { "limits" } else { long };
        self.all().filter_map(Arg::get_long).map(of_flag)
    }

    /// Whether there is such a key of a value.
    pub(super) fn has(&self, name: &str) -> bool {
        name != "limit" && self.arg(name).is_some()
    }

    /// Whether there is such a flag that is no key.
    pub(super) fn is_flag(&self, name: &str) -> bool {
        let mut flags = self.run.get_arguments().filter_map(Arg::get_long);
        self.arg(name).is_none() && flags.any(|flag| flag == name)
    }

    /// Whether it can be given several times.
    pub(in crate::cli) fn repeats(&self, name: &str) -> bool {
        let arg = self.arg(name);
        arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::Append))
    }

    /// Whether it can be given without a value.
    pub(in crate::cli) fn takes_none(&self, name: &str) -> bool {
        let least = self.arg(name).and_then(Arg::get_num_args);
        least.is_some_and(|range| range.min_values() == 0)
    }

    /// Why a flag with its value can't be given: what to write instead.
    pub(in crate::cli) fn refuses(&self, word: &str) -> Option<String> {
        self.settings
            .clone()
            .try_get_matches_from([word])
            .err()
            .map(|e| remedy(&e))
    }

    /// The flags as clap reads them.
    pub(super) fn matches(&self, words: &[String]) -> Result<ArgMatches, String> {
        self.settings
            .clone()
            .try_get_matches_from(words)
            .map_err(|e| remedy(&e))
    }
}

/// What clap, or one of our parsers, wants instead of a value.
pub(in crate::cli) fn remedy(error: &clap::Error) -> String {
    if let (ErrorKind::InvalidValue, Some(ContextValue::Strings(all))) =
        (error.kind(), error.get(ContextKind::ValidValue))
        && !all.is_empty()
    {
        return format!("write one of {}", all.join(", "));
    }
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string().replace('\n', " ");
    }
    match error.kind() {
        ErrorKind::InvalidValue => "write a value".to_owned(),
        _ => error.kind().to_string(),
    }
}

/// Whether a word is one of those that a flag takes.
pub(in crate::cli) fn possible(arg: &Arg, word: &str) -> bool {
    let mut all = arg.get_possible_values().into_iter();
    all.any(|value| value.matches(word, false))
}

/// A flag's help, of which the short one is the first paragraph.
pub(in crate::cli) fn help(arg: &Arg) -> String {
    let text = arg.get_long_help().or_else(|| arg.get_help());
    text.map(StyledStr::to_string).unwrap_or_default()
}

/// The name that was most likely meant.
pub(in crate::cli) fn closest<'a>(
    name: &str,
    names: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let wanted = name.to_lowercase().replace('_', "-");
    let wanted = wanted.trim_start_matches('-');
    names
        .map(|known| (strsim::jaro(wanted, known), known))
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}
