//! Reads the settings again while the daemon runs (SIGHUP).

use std::path::Path;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{Settings, mistake, text};
use crate::daemon::config::Config;
use crate::daemon::reload::Source;

impl Settings {
    /// Where to read these settings from again, if there is a file.
    pub(crate) fn source(self) -> Option<Source> {
        let path = self.config.clone()?;
        Some(Source {
            name: path.display().to_string(),
            read: Box::new(move || self.clone().read_again(&path)),
        })
    }

    /// The flags, with what the file says now where they say nothing, checked.
    fn read_again(self, path: &Path) -> Result<Config, Vec<String>> {
        let name = path.display().to_string();
        let text = text::read_again(path)
            .map_err(|e| vec![format!("can't read {name}: {e}; make it a readable file")])?;
        let file = toml::from_str(&text).map_err(|_| mistakes(&name, &text))?;
        let config = self.over(file).config();
        config.map_err(|e| vec![format!("{name}: {e}")])
    }
}

/// All mistakes in a file's text, a line each.
fn mistakes(name: &str, text: &str) -> Vec<String> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return errors.iter().map(|e| mistake(name, text, e)).collect();
    }
    // Each key by itself, since the first mistake ends the reading.
    let alone = table.into_inner().into_iter().flat_map(|(key, value)| {
        let span = value.span();
        let parts: Vec<_> = match value.into_inner() {
            DeValue::Table(table) => table
                .into_iter()
                .map(|(inner, value)| (value.span(), DeTable::from_iter([(inner, value)])))
                .map(|(span, part)| Spanned::new(span, DeValue::Table(part)))
                .collect(),
            other => vec![Spanned::new(span, other)],
        };
        parts.into_iter().map(move |part| {
            let span = part.span();
            let table = DeTable::from_iter([(key.clone(), part)]);
            Deserializer::from(Spanned::new(span, table))
        })
    });
    let mut errors: Vec<_> = alone
        .map(Settings::deserialize)
        .filter_map(Result::err)
        .collect();
    errors.sort_by_key(|e| e.span().map(|span| span.start));
    let mut all: Vec<_> = errors.iter().map(|e| mistake(name, text, e)).collect();
    // An unknown table is told once, and not for each of its keys.
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mistake_is_a_line() {
        let text = "port = 0\nlocal = true\nbackend = \"nftables\"\nfoo = 1\n\
                    [limits]\nsessions = 0\npinholes = 5\nfish = 9\n[strict]\nordr = true\n\
                    [other]\na = 1\nb = 2\n";
        let all = mistakes("f", text);
        let expected = [
            ("f:1:", "1 to 65535"),
            ("f:3:", "auto, nft, iptables"),
            ("f:4:", "`foo`"),
            ("f:6:", "1 to 1000000"),
            ("f:8:", "sessions-per-client"),
            ("f:10:", "`ordr`"),
            ("f:11:", "`other`"),
        ];
        assert_eq!(all.len(), expected.len(), "{all:#?}");
        for (line, part) in expected {
            let told = |one: &&String| one.starts_with(line) && one.contains(part);
            assert_eq!(
                all.iter().filter(told).count(),
                1,
                "{line} {part}: {all:#?}"
            );
        }
        for text in ["port = \n", "port = 21\nport = 22\n", "[limits\n"] {
            assert!(!mistakes("f", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn flags_win_over_a_file_that_is_read_again() {
        let path = std::env::temp_dir().join(format!("ftpalg-again-{}", std::process::id()));
        let settings = Settings {
            config: Some(path.clone()),
            deadline: Some(7),
            ..Settings::default()
        };
        let source = settings.source().unwrap();
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            (source.read)()
        };
        let config = read("deadline = 5\nhandover = 3").unwrap();
        assert_eq!(
            (config.deadline.as_secs(), config.handover.as_secs()),
            (7, 3)
        );
        assert_eq!(read("").unwrap().handover.as_secs(), 10);
        for text in ["handover = 601", "handover = \"x\""] {
            let why = read(text).unwrap_err();
            assert_eq!(why.len(), 1, "{why:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!((source.read)().unwrap_err()[0].contains("can't read"));
        assert!(Settings::default().source().is_none());
    }
}
