//! A recipe as it is written: what of it a test does, and where.
//!
//! Comments that a reader doesn't see say what can't be seen from the text. Each stands on a line of its own,
//! right before what it is about:
//!
//! | comment | says |
//! |---|---|
//! | `<!-- lab: NAME -->` | the network that the recipe is tried in (`labs.rs`); once, anywhere |
//! | `<!-- needs: nf_nat_ftp -->` | it can't be tried where the kernel has no helper of its own |
//! | `<!-- on: HOST -->` | the host that the block below is for |
//! | `<!-- on: HOST; fails -->` | the same, and the block ends with an error, as the text says |
//! | `<!-- on: HOST`, commands on further lines, `-->` | what happens behind the reader's back |
//! | `<!-- not run: WHY -->` | the block below isn't run here, for that reason; the test prints it |
//! | `<!-- try: in passive fails, out active works -->` | transfers are tried here: part of the lab, how, result. How: `passive` (PASV and EPSV), `active` (PORT and EPRT), or one of these verbs; `tls` behind it: FTPS |
//! | `<!-- tested by: FILE -->` | no lab: that file holds tests of its own |
//!
//! - A block of `sh` is run. Each of its commands must succeed.
//! - A block of `text` right behind it is what it prints: each line must be there, in this order. `…`
//!   stands for any text, a line of it alone for any lines; a number stands for any number, but in
//!   an address. A block of `text` elsewhere is a picture.
//! - Any other block is a file. Its first line says which: `# /etc/x.conf` (all of it), or
//!   `# in /etc/x.conf` (added at its end).

use std::path::Path;

/// A recipe.
pub(super) struct Page {
    /// The file's name without its ending.
    pub(super) name: String,
    /// Which lab it is for; none if it has tests of its own.
    pub(super) lab: Option<String>,
    /// The file that holds those.
    pub(super) tested_by: Option<String>,
    /// Whether the kernel's own helper takes part.
    pub(super) needs_helper: bool,
    /// What is done, in order.
    pub(super) steps: Vec<Step>,
    /// Its headings, in order.
    pub(super) sections: Vec<String>,
}

/// One thing to do.
pub(super) struct Step {
    /// Where it is, for messages: `vsftpd.md:12`.
    pub(super) place: String,
    /// The heading that it is below.
    pub(super) section: String,
    pub(super) what: What,
}

pub(super) enum What {
    /// Commands.
    Run {
        host: String,
        script: String,
        fails: bool,
        shows: Option<String>,
    },
    /// A file that the reader writes, or adds to.
    Write {
        host: String,
        path: String,
        text: String,
        adds: bool,
    },
    /// Transfers.
    Try(Vec<Trial>),
    /// A block that isn't run here.
    Skip { why: String },
}

impl What {
    fn hidden(host: String, script: String) -> Self {
        Self::Run {
            host,
            script,
            fails: false,
            shows: None,
        }
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run { host, script, .. } => {
                write!(f, "{} commands on {host}", script.lines().count())
            }
            Self::Write { host, path, .. } => write!(f, "{path} on {host}"),
            Self::Try(trials) => {
                let each: Vec<_> = trials.iter().map(ToString::to_string).collect();
                f.write_str(&each.join(", "))
            }
            Self::Skip { why } => write!(f, "not run: {why}"),
        }
    }
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tls = if self.tls { " tls" } else { "" };
        let result = if self.works { "works" } else { "fails" };
        write!(f, "{} {}{tls} {result}", self.part, self.verbs.join("+"))
    }
}

/// Transfers, and what is expected of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// The part of the lab: who dials whom.
    pub(super) part: String,
    /// What announces their data connections.
    pub(super) verbs: &'static [&'static str],
    pub(super) tls: bool,
    pub(super) works: bool,
}

impl Page {
    pub(super) fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Self::parse(&name, &std::fs::read_to_string(path).unwrap())
    }

    /// # Panics
    /// At what isn't written as described above.
    pub(super) fn parse(name: &str, text: &str) -> Self {
        let mut page = Self {
            name: name.to_owned(),
            lab: None,
            tested_by: None,
            needs_helper: false,
            steps: Vec::new(),
            sections: Vec::new(),
        };
        let mut lines = text.lines().enumerate();
        let mut comment: Option<(String, String)> = None;
        // Whether nothing but blank lines has come since a block of commands.
        let mut behind_commands = false;
        while let Some((number, line)) = lines.next() {
            let place = format!("{name}.md:{}", number + 1);
            // In a list, all of a block is indented.
            let indent = line.len() - line.trim_start().len();
            let line = line.trim_start();
            if let Some(fence) = line.strip_prefix("```") {
                let block = (lines.by_ref().map(|(_, line)| line))
                    .take_while(|line| !line.trim_start().starts_with("```"))
                    .map(|line| line.get(indent..).unwrap_or_default());
                let text = block.fold(String::new(), |text, line| text + line + "\n");
                if fence == "text" && comment.is_none() {
                    if let (true, Some(What::Run { shows, .. })) =
                        (behind_commands, page.steps.last_mut().map(|s| &mut s.what))
                    {
                        *shows = Some(text);
                    }
                    behind_commands = false;
                    continue;
                }
                let (key, value) = (comment.take())
                    .unwrap_or_else(|| panic!("{place}: no comment says where this is run"));
                let what = block_of(&place, fence, &key, &value, text);
                behind_commands = matches!(what, What::Run { .. });
                page.add(place, what);
                continue;
            }
            if line.trim().is_empty() {
                continue;
            }
            assert!(
                comment.is_none(),
                "{place}: a comment must stand right before its block"
            );
            behind_commands = false;
            if let Some(heading) = line.strip_prefix("## ") {
                page.sections.push(heading.to_owned());
            }
            if let Some(host) = line.strip_prefix("<!-- on: ")
                && !line.ends_with("-->")
            {
                let hidden = (lines.by_ref().map(|(_, line)| line))
                    .take_while(|line| line.trim() != "-->")
                    .fold(String::new(), |text, line| text + line + "\n");
                let host = host.to_owned();
                page.add(place, What::hidden(host, hidden));
                continue;
            }
            let Some(inner) = (line.strip_prefix("<!-- ")).and_then(|l| l.strip_suffix(" -->"))
            else {
                continue;
            };
            let (key, value) = inner
                .split_once(": ")
                .unwrap_or_else(|| panic!("{place}: a comment is `key: value`"));
            match key {
                "lab" => page.lab = Some(value.to_owned()),
                "needs" => {
                    assert_eq!(value, "nf_nat_ftp", "{place}");
                    page.needs_helper = true;
                }
                "tested by" => page.tested_by = Some(value.to_owned()),
                "on" | "not run" => comment = Some((key.to_owned(), value.to_owned())),
                "try" => {
                    let trials = value.split(", ").map(|text| Trial::parse(&place, text));
                    page.add(place.clone(), What::Try(trials.collect()));
                }
                _ => panic!("{place}: no comment begins with {key:?}"),
            }
        }
        assert!(comment.is_none(), "{name}.md: a comment without a block");
        page
    }

    fn add(&mut self, place: String, what: What) {
        let section = self.sections.last().cloned().unwrap_or_default();
        self.steps.push(Step {
            place,
            section,
            what,
        });
    }
}

fn block_of(place: &str, language: &str, key: &str, value: &str, text: String) -> What {
    if key == "not run" {
        return What::Skip {
            why: value.to_owned(),
        };
    }
    let (host, fails) = match value.split_once("; ") {
        None => (value.to_owned(), false),
        Some((host, "fails")) => (host.to_owned(), true),
        Some((_, other)) => panic!("{place}: {other:?} says nothing about a block"),
    };
    if language == "sh" {
        return What::Run {
            host,
            script: text,
            fails,
            shows: None,
        };
    }
    let first = text.lines().next().unwrap_or_default();
    let path = first
        .strip_prefix("# ")
        .unwrap_or_else(|| panic!("{place}: the first line of a file says which one it is"));
    let (path, adds) = match path.strip_prefix("in ") {
        Some(path) => (path, true),
        None => (path, false),
    };
    assert!(
        path.starts_with('/') && !path.contains(' '),
        "{place}: {path:?} is no path"
    );
    What::Write {
        host,
        path: path.to_owned(),
        text,
        adds,
    }
}

impl Trial {
    fn parse(place: &str, text: &str) -> Self {
        let words: Vec<_> = text.split(' ').collect();
        let (tls, words) = match words[..] {
            [part, mode, "tls", result] => (true, [part, mode, result]),
            [part, mode, result] => (false, [part, mode, result]),
            _ => panic!("{place}: {text:?} isn't `PART passive|active [tls] works|fails`"),
        };
        let verbs: &[_] = match words[1] {
            "passive" => &["PASV", "EPSV"],
            "active" => &["PORT", "EPRT"],
            "PASV" => &["PASV"],
            "EPSV" => &["EPSV"],
            "PORT" => &["PORT"],
            "EPRT" => &["EPRT"],
            other => panic!("{place}: {other:?} announces nothing"),
        };
        let works = match words[2] {
            "works" => true,
            "fails" => false,
            other => panic!("{place}: {other:?} is neither works nor fails"),
        };
        Self {
            part: words[0].to_owned(),
            verbs,
            tls,
            works,
        }
    }
}

#[test]
fn a_page_is_read_as_it_is_written() {
    let text = "# T\n\n<!-- lab: router -->\n\n```text\na picture\n```\n\n## One\n\n1. First:\n\n   \
        <!-- on: router; fails -->\n   ```sh\n   a\n     b\n   ```\n\n   ```text\n   shown\n   ```\n\n\
        <!-- on: server -->\n```conf\n# in /etc/x\ny\n```\n\n<!-- try: in PASV tls works, out active fails -->\n\
        <!-- on: pc\nbehind\n-->\n\n## Two\n\n<!-- not run: why -->\n```sh\nreboot\n```\n";
    let page = Page::parse("t", text);
    assert_eq!(page.lab.as_deref(), Some("router"));
    assert_eq!(page.sections, ["One", "Two"]);
    let steps: Vec<_> = page
        .steps
        .iter()
        .map(|s| (&*s.place, s.what.to_string()))
        .collect();
    let wanted = [
        ("t.md:14", "2 commands on router"),
        ("t.md:24", "/etc/x on server"),
        ("t.md:29", "in PASV tls works, out PORT+EPRT fails"),
        ("t.md:30", "1 commands on pc"),
        ("t.md:37", "not run: why"),
    ];
    let wanted: Vec<_> = wanted
        .map(|(place, what)| (place, what.to_owned()))
        .to_vec();
    assert_eq!(steps, wanted);
    let What::Run {
        script,
        fails,
        shows,
        ..
    } = &page.steps[0].what
    else {
        panic!("commands come first");
    };
    assert_eq!(
        (&**script, *fails, shows.as_deref()),
        ("a\n  b\n", true, Some("shown\n"))
    );
    let What::Write { text, adds, .. } = &page.steps[1].what else {
        panic!("then a file");
    };
    assert_eq!((&**text, *adds), ("# in /etc/x\ny\n", true));
}

#[test]
fn a_block_without_a_place_is_a_mistake() {
    for text in [
        "```sh\nrm -r /\n```\n",
        "<!-- on: router -->\n\nSome text.\n```sh\na\n```\n",
        "<!-- on: router -->\n```conf\nno path\n```\n",
        "<!-- try: in passive perhaps -->\n",
        "<!-- one: router -->\n",
        "<!-- on: router -->\n",
    ] {
        let read = std::panic::catch_unwind(|| Page::parse("t", text));
        assert!(read.is_err(), "{text}");
    }
}
