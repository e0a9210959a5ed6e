//! Reads the settings again while the daemon runs (SIGHUP).

use std::path::Path;

use super::{Mistakes, Settings, text};
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
        self.with_file(path, text::read_again(path))
            .map_err(|Mistakes(lines)| lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_a_file_that_is_read_again() {
        let path = std::env::temp_dir().join(format!("ftpalg-again-{}", std::process::id()));
        let mut settings = Settings {
            config: Some(path.clone()),
            ..Settings::default()
        };
        settings.nat.deadline = Some(7);
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
