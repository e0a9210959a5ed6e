//! Finds the iptables tools of the host, and speaks to one of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Flavour;
use super::command::{CommandError, run};
use crate::net::Family;

/// How long a tool waits for the lock that legacy tools share, in seconds.
const LOCK_WAIT: &str = "5";

/// How long a tool may take altogether: the lock, and then some for a very long rule set.
pub(super) const LIMIT: Duration = Duration::from_secs(15);

/// Changes are made to what is there.
pub(super) const RESTORE_ARGS: [&str; 3] = ["--noflush", "-w", LOCK_WAIT];

/// Where administration tools live even if `PATH` (of a service, of a plain user) doesn't say so.
const SBIN: [&str; 4] = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"];

/// The pair of save and restore for one family and flavour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The family that it is for.
    pub family: Family,
    /// The packet filter that it drives.
    pub flavour: Flavour,
    save: PathBuf,
    restore: PathBuf,
}

impl Tool {
    /// What `save` writes: all tables that are there.
    ///
    /// # Errors
    /// If the tool could not be run or failed.
    pub fn save(&self) -> Result<String, CommandError> {
        run(&self.save, &[], "", LIMIT)
    }

    /// Makes the changes that `text` says (save format, also with `-D`, `-F`, `-X`), leaving
    /// everything else as it is. Each table of the text is changed at once or not at all.
    ///
    /// # Errors
    /// If the tool could not be run or refused: tables before the one it refused are changed.
    pub fn restore(&self, text: &str) -> Result<(), CommandError> {
        run(&self.restore, &RESTORE_ARGS, text, LIMIT).map(drop)
    }

    /// The restore tool, for [`LastingTool`](super::lasting::LastingTool).
    pub(super) fn restore_path(&self) -> &Path {
        &self.restore
    }
}

/// The tools that a host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tools {
    tools: Vec<Tool>,
    plain: Option<Flavour>,
}

impl Tools {
    /// Looks for the tools in `PATH` and where they usually are.
    ///
    /// Takes `iptables-nft-save` and `iptables-legacy-save` (and their like), and where these
    /// names are missing plain `iptables-save`, whose `-V` tells the flavour.
    #[must_use]
    pub fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = std::env::split_paths(&path)
            .filter(|d| d.is_absolute())
            .chain(SBIN.iter().map(PathBuf::from))
            .collect();
        Self::find_in(&dirs)
    }

    /// [`find`](Self::find) in these directories only.
    #[must_use]
    pub fn find_in(dirs: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for family in Family::ALL {
            let program = family.program();
            for flavour in Flavour::ALL {
                found
                    .tools
                    .extend(pair(dirs, &format!("{program}-{flavour}"), family, flavour));
            }
            let Some(flavour) = look_up(dirs, program).and_then(|p| flavour_of(&p)) else {
                continue;
            };
            if family == Family::V4 {
                found.plain = Some(flavour);
            }
            if found.tool(family, flavour).is_none() {
                found.tools.extend(pair(dirs, program, family, flavour));
            }
        }
        found
    }

    /// The tool for a family and flavour, if the host has it.
    #[must_use]
    pub fn tool(&self, family: Family, flavour: Flavour) -> Option<&Tool> {
        self.tools
            .iter()
            .find(|t| t.family == family && t.flavour == flavour)
    }

    /// The same without those of a flavour.
    #[must_use]
    pub fn without(mut self, flavour: Flavour) -> Self {
        self.tools.retain(|tool| tool.flavour != flavour);
        self
    }

    /// Which flavour plain `iptables` is.
    #[must_use]
    pub fn plain(&self) -> Option<Flavour> {
        self.plain
    }

    /// Whether the host has none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }
}

fn pair(dirs: &[PathBuf], stem: &str, family: Family, flavour: Flavour) -> Option<Tool> {
    Some(Tool {
        family,
        flavour,
        save: look_up(dirs, &format!("{stem}-save"))?,
        restore: look_up(dirs, &format!("{stem}-restore"))?,
    })
}

fn look_up(dirs: &[PathBuf], program: &str) -> Option<PathBuf> {
    dirs.iter().map(|d| d.join(program)).find(|p| p.is_file())
}

/// What `iptables -V` says: `iptables v1.8.9 (nf_tables)`. Before 1.8 there was legacy only.
fn flavour_of(program: &Path) -> Option<Flavour> {
    let version = run(program, &["-V"], "", LIMIT).ok()?;
    Some(if version.contains("nf_tables") {
        Flavour::Nft
    } else {
        Flavour::Legacy
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    struct Dir(PathBuf);

    impl Dir {
        fn with(name: &str, programs: &[(&str, &str)]) -> Self {
            let dir = std::env::temp_dir().join(format!("ftpalg-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            for (program, says) in programs {
                let path = dir.join(program);
                // Written by a child: no other test's fork holds the file open for writing when
                // it is run ("text file busy").
                let made = std::process::Command::new("/bin/sh")
                    .args([
                        "-c",
                        "printf '#!/bin/sh\\necho \"%s\"\\n' \"$2\" > \"$1\"; chmod 755 \"$1\"",
                        "sh",
                    ])
                    .arg(&path)
                    .arg(says)
                    .status();
                assert!(made.unwrap().success());
            }
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn plain_names_are_told_apart_by_their_version() {
        for (says, flavour) in [
            ("iptables v1.8.9 (nf_tables)", Flavour::Nft),
            ("iptables v1.8.9 (legacy)", Flavour::Legacy),
            ("iptables v1.6.1", Flavour::Legacy),
        ] {
            let dir = Dir::with(
                &format!("plain-{}", says.len()),
                &[
                    ("iptables", says),
                    ("iptables-save", "saved"),
                    ("iptables-restore", ""),
                ],
            );
            let tools = Tools::find_in(std::slice::from_ref(&dir.0));
            assert_eq!(tools.plain(), Some(flavour), "{says}");
            assert_eq!(
                tools.tool(Family::V4, flavour).unwrap().save().unwrap(),
                "saved\n"
            );
            assert_eq!(tools.tools.len(), 1);
        }
    }

    #[test]
    fn flavoured_names_come_first() {
        let dir = Dir::with(
            "both",
            &[
                ("iptables", "iptables v1.8.9 (nf_tables)"),
                ("iptables-save", "plain"),
                ("iptables-restore", ""),
                ("iptables-nft-save", "nft"),
                ("iptables-nft-restore", ""),
                ("iptables-legacy-save", "legacy"),
                ("iptables-legacy-restore", ""),
                ("ip6tables-nft-save", "no restore beside it"),
            ],
        );
        let tools = Tools::find_in(std::slice::from_ref(&dir.0));
        let save = |flavour| tools.tool(Family::V4, flavour).unwrap().save().unwrap();
        assert_eq!(save(Flavour::Nft), "nft\n");
        assert_eq!(save(Flavour::Legacy), "legacy\n");
        assert_eq!(tools.tool(Family::V6, Flavour::Nft), None);
        assert_eq!(tools.plain(), Some(Flavour::Nft));
    }

    #[test]
    fn a_host_without_tools() {
        let tools = Tools::find_in(&[PathBuf::from("/nonexistent")]);
        assert!(tools.is_empty());
        assert_eq!(tools.plain(), None);
    }
}
