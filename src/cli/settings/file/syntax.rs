//! What isn't TOML, in plain words.

use std::ops::Range;

use toml::de::{DeTable, DeValue, Error};

use super::{Reader, example, short};

/// A value in the text, and the key that it belongs to.
struct Spot {
    key: String,
    key_at: usize,
    span: Range<usize>,
}

impl Reader<'_> {
    /// Tells what isn't TOML: once for each value, and once a line.
    pub(super) fn syntax(&mut self, table: &DeTable<'_>, errors: &[Error]) {
        let mut spots = Vec::new();
        collect(table, "", &mut spots);
        let mut errors: Vec<_> = errors
            .iter()
            .map(|e| (e.span().unwrap_or_default().start, e.message()))
            .collect();
        errors.sort_by_key(|(at, _)| *at);
        let mut told: Vec<Range<usize>> = Vec::new();
        for (at, message) in &errors {
            if told.iter().any(|range| range.contains(at)) {
                continue;
            }
            // The innermost value, and the outermost.
            let of_line = |spot: &&Spot| self.line(spot.key_at) == self.line(*at);
            let holds = |spot: &&Spot| spot.span.start <= *at && *at <= spot.span.end;
            let outer = spots.iter().find(holds);
            let inner = spots
                .iter()
                .rev()
                .find(holds)
                .or_else(|| spots.iter().find(of_line));
            let range = match outer {
                Some(spot) => spot.key_at.min(*at)..self.end_of_line(spot.span.end.max(*at)),
                None => self.start_of_line(*at)..self.end_of_line(*at),
            };
            // A list that doesn't end takes what is below for its values.
            let unclosed = errors
                .iter()
                .find(|(at, message)| range.contains(at) && message.starts_with("unclosed array"));
            let (place, text) = match (unclosed, outer) {
                (Some(_), Some(list)) => (
                    list.span.start,
                    format!(
                        "{}: the list has no end; write ] behind its last value",
                        list.key
                    ),
                ),
                _ => (*at, self.plain(*at, message, inner)),
            };
            let column = self.column(place);
            let text = match text.split_once("; ") {
                Some((what, how)) => format!("{what} (column {column}); {how}"),
                None => format!("{text} (column {column}); mend that line"),
            };
            self.tell(place, text);
            told.push(range.clone());
            self.broken.push(range);
        }
    }

    /// What is wrong, and how to mend it.
    fn plain(&self, at: usize, message: &str, spot: Option<&Spot>) -> String {
        let key = spot.map_or("", |spot| spot.key.as_str());
        let begins = |parts: &[&str]| parts.iter().any(|part| message.starts_with(part));
        let of_key = |text: &str| match key {
            "" => text.to_owned(),
            key => format!("{key}: {text}"),
        };
        let line = self.whole_line(at);
        if begins(&["carriage return"]) {
            return "the line ends in a carriage return alone; save the file with usual line ends"
                .into();
        }
        if begins(&["duplicate key"]) {
            return self.twice(at);
        }
        if begins(&["key with no value", "invalid unquoted key"]) {
            return self.no_value(line);
        }
        if begins(&["unexpected leading zero"]) {
            return of_key("a number can't begin with 0; leave the 0 out");
        }
        if begins(&[
            "string values must be quoted",
            "invalid boolean",
            "invalid value",
            "missing value",
            "redundant",
            "radix",
            "integers with",
            "unexpected sign",
            "`_` may only",
            "invalid float",
            "invalid integer",
            "invalid date",
            "invalid time",
            "invalid hour",
            "invalid offset",
        ]) && let Some(spot) = spot
        {
            return self.unquoted(spot);
        }
        let plain: [(&[&str], &str); 10] = [
            (
                &["unclosed table", "unclosed array table"],
                "the table's name isn't closed; write it like [limits]",
            ),
            (
                &["missing comma"],
                "a comma is missing; write one between two values",
            ),
            (
                &[
                    "invalid basic string",
                    "invalid literal string",
                    "invalid multi-line",
                ],
                "the closing quote is missing, or there is a control character; write quotes around the value",
            ),
            (
                &[
                    "missing escaped value",
                    "invalid escape",
                    "too few unicode",
                    "too many unicode",
                ],
                "a backslash within double quotes has a meaning of its own; write it twice",
            ),
            (
                &["extra `=`"],
                "there is one equals sign too many; write one",
            ),
            (
                &["unquoted keys cannot be empty"],
                "a name is missing; write it like port = 21, or [limits]",
            ),
            (
                &["unexpected key or value"],
                "something is left behind the value; write each key on a line of its own",
            ),
            (
                &["unclosed inline table"],
                "a closing } is missing; write it",
            ),
            (
                &["invalid control", "unexpected control", "invalid comment"],
                "there is a control character; remove it",
            ),
            (
                &["extra comma", "unexpected `,`"],
                "there is a comma too many; remove it",
            ),
        ];
        let known = plain.iter().find(|(parts, _)| begins(parts));
        let text = known.map_or(
            "this is no TOML; write lines like port = 21",
            |(_, text)| text,
        );
        of_key(text)
    }

    /// A key, or the header of a table, that was there before.
    fn twice(&self, at: usize) -> String {
        let line = self.whole_line(at);
        let name = self.text.get(at..).unwrap_or_default();
        let end = name
            .find(['=', ']', '.', ' ', '\t', '\r', '\n'])
            .unwrap_or(name.len());
        let name = name.get(..end).unwrap_or_default();
        // The first line that has it, whatever it is: a key, or a table.
        let first = self.text.lines().position(|line| {
            let line = line.trim_start().trim_start_matches('[').trim_start();
            line.strip_prefix(name).is_some_and(|rest| {
                let rest = rest.trim_start();
                rest.is_empty() || rest.starts_with(['=', ']', '.'])
            })
        });
        let first = first.map_or(1, |line| line + 1);
        let name = match line.starts_with('[') {
            true => format!("[{name}]"),
            false => name.to_owned(),
        };
        format!("{name}: given twice, first on line {first}; keep one of them")
    }

    /// A line that has no equals sign.
    fn no_value(&self, line: &str) -> String {
        if line.starts_with("//") || line.starts_with(';') {
            return "a comment begins with #; write # in front".into();
        }
        let name = line.split([' ', '\t', ':', '=']).next().unwrap_or_default();
        let name = name.trim_matches('"');
        match self.keys.has(name) {
            true => format!(
                "{name}: an equals sign must follow; write {}",
                example::line(&self.keys, name)
            ),
            false => format!(
                "{}: this is no key with a value; write lines like port = 21",
                short(line)
            ),
        }
    }

    /// A value without quotes, or one that is missing.
    fn unquoted(&self, spot: &Spot) -> String {
        let Spot { key, span, .. } = spot;
        let raw = self.text.get(span.clone()).unwrap_or_default().trim();
        let write = example::line(&self.keys, key);
        if raw.is_empty() {
            return format!("{key}: no value follows; write {write}");
        }
        let inner = raw.trim_matches(['"', '\'', '“', '”', '„', '‘', '’', '«', '»']);
        let short = short(raw);
        if self
            .keys
            .arg(key)
            .is_some_and(|arg| !arg.get_action().takes_values())
            || key.starts_with("strict.")
        {
            return format!(
                "{key}: {short} is neither true nor false; write {key} = true or {key} = false"
            );
        }
        let quoted = super::example::value(&self.keys, key, inner);
        match self.keys.refuses(&format!("--{key}={inner}")) {
            None if self.keys.has(key) => {
                format!("{key}: {short} needs plain quotes around it; write {key} = {quoted}")
            }
            Some(how) if self.keys.has(key) => format!("{key}: invalid value {short}; {how}"),
            _ => format!("{key}: {short} needs plain quotes around it; write \"{inner}\""),
        }
    }

    /// The line of a place, without blanks around it.
    fn whole_line(&self, at: usize) -> &str {
        let end = self.end_of_line(at).min(self.text.len());
        let line = self.text.get(self.start_of_line(at)..end);
        line.unwrap_or_default().trim()
    }

    fn start_of_line(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or(self.text);
        before.rfind('\n').map_or(0, |end| end + 1)
    }

    /// The end of a line, with its line feed.
    fn end_of_line(&self, at: usize) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        rest.find('\n')
            .map_or(self.text.len() + 1, |end| at + end + 1)
    }

    /// The column of a place in the text, in characters from 1 on.
    fn column(&self, at: usize) -> usize {
        let line = self.text.get(self.start_of_line(at)..at);
        line.unwrap_or_default().chars().count() + 1
    }
}

/// All values that are no tables, those in lists as well, outer ones first.
fn collect(table: &DeTable<'_>, prefix: &str, spots: &mut Vec<Spot>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", short(key.get_ref()));
        match value.get_ref() {
            DeValue::Table(table) => collect(table, &format!("{name}."), spots),
            _ => values(&name, key.span().start, value, spots),
        }
    }
}

fn values(key: &str, key_at: usize, value: &toml::Spanned<DeValue<'_>>, spots: &mut Vec<Spot>) {
    spots.push(Spot {
        key: key.to_owned(),
        key_at,
        span: value.span(),
    });
    if let DeValue::Array(list) = value.get_ref() {
        for one in list {
            values(key, key_at, one, spots);
        }
    }
}
