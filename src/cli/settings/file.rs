//! A configuration file: TOML whose keys are the names of the flags.
//!
//! Each value is read as its flag's value would be, by the same parser. All mistakes are told, each
//! with its line, its key, and what to write instead.

mod keys;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use clap::{ArgAction, FromArgMatches};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Settings;
use super::example;
use super::limits;
use super::strict::{self, StrictChoice, Takes};
pub(in crate::cli) use keys::{Keys, closest, help, possible, remedy};

/// What a file says.
#[derive(Debug)]
pub(super) struct File {
    pub(super) settings: Settings,
    /// The line of each setting that is there.
    pub(super) lines: BTreeMap<String, usize>,
}

/// Something wrong in a file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Where: a line, from 1 on.
    pub(super) line: usize,
    /// The key, what is wrong, and how to mend it.
    pub(super) text: String,
}

/// A mistake of a file's line, as it is told.
pub(super) fn place(path: &Path, line: usize, text: &str) -> String {
    format!("{}:{line}: {text}", path.display())
}

/// A mistake that has no line of its own.
pub(super) fn at_start(path: &Path, text: &str) -> String {
    format!("{}: {text}", path.display())
}

impl File {
    /// Reads a file's text.
    ///
    /// # Errors
    /// All mistakes, in the order of their lines.
    pub(super) fn read(text: &str) -> Result<Self, Vec<Mistake>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let table = table.into_inner();
        let mut reader = Reader {
            text,
            keys: Keys::new(),
            broken: Vec::new(),
            words: Vec::new(),
            strict: None,
            lines: BTreeMap::new(),
            mistakes: Vec::new(),
        };
        reader.syntax(&table, &errors);
        for (key, value) in &table {
            reader.entry(key, value);
        }
        reader.finish()
    }
}

/// A key or a value, and where it is.
type Key<'a> = Spanned<std::borrow::Cow<'a, str>>;
type Value<'a> = Spanned<DeValue<'a>>;

struct Reader<'a> {
    text: &'a str,
    keys: Keys,
    /// Where the text isn't TOML: what was made of it says nothing.
    broken: Vec<Range<usize>>,
    /// The good values, as a command line has them.
    words: Vec<String>,
    /// What the table `[strict]` says.
    strict: Option<StrictChoice>,
    lines: BTreeMap<String, usize>,
    /// With their places in the text.
    mistakes: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn finish(mut self) -> Result<File, Vec<Mistake>> {
        let read = match self.mistakes.is_empty() {
            true => self.keys.matches(&self.words),
            false => Err(String::new()),
        };
        let settings = read.and_then(|matches| {
            Settings::from_arg_matches(&matches).map_err(|e| e.to_string().replace('\n', " "))
        });
        match settings {
            Ok(mut settings) => {
                if self.strict.is_some() {
                    settings.refusing.strict = self.strict;
                }
                Ok(File {
                    settings,
                    lines: self.lines,
                })
            }
            Err(why) => {
                if self.mistakes.is_empty() {
                    self.mistakes.push((0, why));
                }
                self.mistakes.sort();
                self.mistakes.dedup();
                let line = |(at, text): &(usize, String)| Mistake {
                    line: self.line(*at),
                    text: text.clone(),
                };
                Err(self.mistakes.iter().map(line).collect())
            }
        }
    }

    /// One key of the file, or one of its tables.
    fn entry(&mut self, key: &Key<'_>, value: &Value<'_>) {
        let name = key.get_ref().as_ref();
        self.lines.insert(name.into(), self.line(key.span().start));
        match (name, value.get_ref()) {
            ("limits", DeValue::Table(table)) => self.limits(table, key.span().start),
            ("strict", DeValue::Table(table)) => self.strict(table, key.span().start),
            _ if self.is_broken(key, value) => {}
            ("limits", _) => self.wrong(
                key,
                "it is no table; write a line [limits], and below it lines like sessions = 65536",
            ),
            _ if !self.keys.has(name) => self.unknown(key, value),
            (_, DeValue::Table(_)) => {
                let write = example::line(&self.keys, name);
                self.wrong(
                    key,
                    &format!("it is a setting, and no table; write {write}"),
                );
            }
            _ => self.setting(name, value),
        }
    }

    /// The value or values of a setting.
    fn setting(&mut self, name: &str, value: &Value<'_>) {
        let DeValue::Array(list) = value.get_ref() else {
            return self.one(name, value);
        };
        if !self.keys.repeats(name) && list.len() > 1 {
            let at = value.span().start;
            return self.tell(
                at,
                format!(
                    "{name}: only one value can be given; write {}",
                    example::line(&self.keys, name)
                ),
            );
        }
        if let Some(word) = example::EMPTY
            .iter()
            .find(|(key, _)| *key == name && list.is_empty())
        {
            self.words.push(format!("--{name}={}", word.1));
        }
        for one in list {
            self.one(name, one);
        }
    }

    /// One value of a setting.
    fn one(&mut self, name: &str, value: &Value<'_>) {
        if self.in_broken(&value.span()) {
            return;
        }
        let Some(word) = self.word(name, value.get_ref()) else {
            let (raw, kind) = (self.raw(value), kind(value.get_ref()));
            let write = example::line(&self.keys, name);
            let what = format!("{name}: {raw} is {kind}; write {write}");
            return self.tell(value.span().start, what);
        };
        let Some(word) = word else { return };
        let word = match word.is_empty() && self.keys.takes_none(name) {
            true => format!("--{name}"),
            false => format!("--{name}={word}"),
        };
        match self.keys.refuses(&word) {
            None => self.words.push(word),
            Some(why) => {
                let raw = self.raw(value);
                self.tell(
                    value.span().start,
                    format!("{name}: invalid value {raw}; {why}"),
                );
            }
        }
    }

    /// A value as the command line has it; `Some(None)` where a flag isn't given, `None` where the value
    /// is of the wrong kind.
    fn word(&self, name: &str, value: &DeValue<'_>) -> Option<Option<String>> {
        let arg = self.keys.arg(name)?;
        let switch = matches!(arg.get_action(), ArgAction::SetTrue);
        let on = |on: bool| Some(on.then(String::new));
        match value {
            DeValue::Boolean(yes) if switch || self.keys.takes_none(name) => on(*yes),
            DeValue::Boolean(yes) if possible(arg, &yes.to_string()) => Some(Some(yes.to_string())),
            DeValue::String(text) if switch => match text.as_ref() {
                "yes" | "true" => on(true),
                "no" | "false" => on(false),
                _ => None,
            },
            _ if switch => None,
            DeValue::String(text) => Some(Some(text.to_string())),
            DeValue::Integer(_) => Some(Some(digits(value)?)),
            _ => None,
        }
    }

    fn limits(&mut self, table: &DeTable<'_>, header: usize) {
        for (key, value) in table {
            if self.is_broken(key, value) {
                continue;
            }
            let name = key.get_ref().as_ref();
            let Some(known) = limits::ALL.iter().find(|known| known.name == name) else {
                let names = limits::ALL.iter().map(|known| known.name);
                let example = "sessions = 65536";
                self.misplaced(key, "limits", header, names, example);
                continue;
            };
            let text = match value.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                other => digits(other),
            };
            let word = format!("--limit={name}={}", text.clone().unwrap_or_default());
            match text.and_then(|_| self.keys.refuses(&word).is_none().then_some(word)) {
                Some(word) => self.words.push(word),
                None => {
                    let (first, last) = (known.range.start(), known.range.end());
                    let raw = self.raw(value);
                    let what =
                        format!("limits.{name}: invalid value {raw}; choose {first} to {last}");
                    self.tell(value.span().start, what);
                }
            }
        }
    }

    fn strict(&mut self, table: &DeTable<'_>, header: usize) {
        let mut choice = StrictChoice::default();
        for (key, value) in table {
            if self.is_broken(key, value) {
                continue;
            }
            let name = key.get_ref().as_ref();
            let Some(rule) = strict::TABLE.iter().find(|rule| rule.name == name) else {
                let names = strict::TABLE.iter().map(|rule| rule.name);
                self.misplaced(key, "strict", header, names, "order = true");
                continue;
            };
            if let Err((at, raw, how)) = self.rule(&mut choice, rule, value) {
                self.tell(at, format!("strict.{name}: invalid value {raw}; {how}"));
            }
        }
        self.strict = Some(choice);
    }

    /// One key of `[strict]`. A mistake is told with its place, the value, and what to write.
    fn rule(
        &self,
        choice: &mut StrictChoice,
        rule: &strict::Rule,
        value: &Value<'_>,
    ) -> Result<(), (usize, String, String)> {
        let wrong = |value: &Value<'_>, how: &str| {
            Err((value.span().start, self.raw(value), how.to_owned()))
        };
        match (rule.takes, value.get_ref()) {
            (Takes::Switch, DeValue::Boolean(on)) => choice.switch(rule.name, *on),
            (Takes::Switch, _) => return wrong(value, "write true or false"),
            (Takes::Number, number) => {
                let text = digits(number).unwrap_or_default();
                return choice
                    .failed_logins(&text)
                    .or_else(|how| wrong(value, &how));
            }
            (Takes::Commands, DeValue::Array(list)) => {
                choice.list(rule.name);
                for one in list {
                    let text = one.get_ref().as_str().unwrap_or_default();
                    choice
                        .command(rule.name, text)
                        .or_else(|how| wrong(one, &how))?;
                }
            }
            (Takes::Commands, one) => {
                let text = one.as_str().unwrap_or_default();
                return choice
                    .command(rule.name, text)
                    .or_else(|_| wrong(value, "write a list of commands like [\"SITE\"]"));
            }
        }
        Ok(())
    }

    /// A key that is none, at the top of the file.
    fn unknown(&mut self, key: &Key<'_>, value: &Value<'_>) {
        let name = key.get_ref().as_ref();
        let table = value.get_ref().is_table();
        let what = match () {
            () if self.keys.is_flag(name) => format!("it can't be in a file; give it as the flag --{name}"),
            () if name == "limit" => "limits are a table; write a line [limits], and below it lines like sessions = 65536".into(),
            () if !table && limits::ALL.iter().any(|known| known.name == name) => {
                "it is a limit; move it below a line [limits]".into()
            }
            () if !table && strict::TABLE.iter().any(|rule| rule.name == name) => {
                "it is a strict rule; move it below a line [strict]".into()
            }
            () => {
                let kind = if table { "unknown table" } else { "unknown key" };
                match closest(name, self.keys.names()) {
                    Some(like) => format!("{kind}; did you mean {like}?"),
                    None => format!("{kind}; `ftpalg check --example` lists all keys"),
                }
            }
        };
        self.wrong(key, &what);
    }

    /// A key that its table doesn't have: mistyped, or below the table's header by mistake.
    fn misplaced(
        &mut self,
        key: &Key<'_>,
        table: &str,
        header: usize,
        names: impl Iterator<Item = &'static str>,
        example: &str,
    ) {
        let name = key.get_ref().as_ref();
        let line = self.line(header);
        let told = short(name);
        let other = match table {
            "limits" => ("strict", strict::TABLE.iter().any(|rule| rule.name == name)),
            _ => ("limits", limits::ALL.iter().any(|known| known.name == name)),
        };
        let what = match (self.keys.has(name) || name == "limits", other) {
            (true, _) => format!(
                "{told}: all lines below [{table}] (line {line}) belong to that table; \
                 move this one above line {line}"
            ),
            (_, (other, true)) => {
                format!(
                    "{table}.{told}: it belongs to the table [{other}]; move it below that line"
                )
            }
            _ => match closest(name, names) {
                Some(like) => format!("{table}.{told}: unknown key; did you mean {like}?"),
                None => match closest(name, self.keys.names()) {
                    Some(like) => format!(
                        "{table}.{told}: unknown key; if you mean {like}, move it above line {line} [{table}]"
                    ),
                    None => format!(
                        "{table}.{told}: unknown key; write lines like {example} below [{table}]"
                    ),
                },
            },
        };
        self.tell(key.span().start, what);
    }

    fn wrong(&mut self, key: &Key<'_>, what: &str) {
        self.tell(
            key.span().start,
            format!("{}: {what}", short(key.get_ref())),
        );
    }

    fn tell(&mut self, at: usize, what: String) {
        let what = what.replace(char::is_control, " ");
        self.mistakes.push((at, what));
    }

    /// Whether what was read of a key comes from text that isn't TOML.
    fn is_broken(&self, key: &Key<'_>, value: &Value<'_>) -> bool {
        let (key, value) = (key.span(), value.span());
        let all = key.start..value.end.max(key.end);
        self.in_broken(&key) || self.in_broken(&value) || self.in_broken(&all)
    }

    fn in_broken(&self, span: &Range<usize>) -> bool {
        let meets = |broken: &Range<usize>| {
            broken.start < span.end.max(span.start + 1) && span.start < broken.end
        };
        self.broken.iter().any(meets)
    }

    /// A value as it is written, on one line and not too long.
    fn raw(&self, value: &Value<'_>) -> String {
        let raw = self.text.get(value.span()).unwrap_or_default();
        short(raw)
    }

    /// The line of a place in the text.
    fn line(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or(self.text);
        before.matches('\n').count() + 1
    }
}

/// Text for a line: without control characters, and not too long.
fn short(raw: &str) -> String {
    const MOST: usize = 40;
    let mut plain = raw.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = plain.by_ref().take(MOST).collect();
    if plain.next().is_some() {
        short.push('…');
    }
    short
}

/// A whole number's decimal digits.
fn digits(value: &DeValue<'_>) -> Option<String> {
    let number = value.as_integer()?;
    Some(
        match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => number.to_string(),
            Err(_) => number.as_str().to_owned(),
        },
    )
}

/// What a value is, in plain words.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "no whole number",
        DeValue::Boolean(_) => "neither text nor a number",
        DeValue::Datetime(_) => "a date or a time",
        DeValue::Array(_) => "a list within a list",
        DeValue::Table(_) => "a table",
    }
}
