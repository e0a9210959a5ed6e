//! The documents: no link leads nowhere, and every one of them is found from the README.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use testkit::paths::repository;

/// Directories that hold none of this repository's documents.
const ELSEWHERE: [&str; 5] = [".git", ".cache", "target", "node_modules", "corpus"];

/// A document, by its path in the repository.
struct Document {
    /// What links can point at.
    anchors: BTreeSet<String>,
    /// Where its links lead: line, file, anchor.
    links: Vec<(usize, String, Option<String>)>,
}

impl Document {
    fn parse(text: &str) -> Self {
        let mut anchors = BTreeSet::new();
        let mut links = Vec::new();
        for (number, line) in prose(text) {
            if let Some(heading) = line.strip_prefix('#') {
                let heading = heading.trim_start_matches('#').trim();
                let slug = slug(heading);
                // GitHub numbers headings that are the same.
                let mut name = slug.clone();
                let mut count = 0;
                while !anchors.insert(name.clone()) {
                    count += 1;
                    name = format!("{slug}-{count}");
                }
            }
            let targets = targets(&line)
                .into_iter()
                .map(|target| match target.split_once('#') {
                    Some((file, anchor)) => (number, file.to_owned(), Some(anchor.to_owned())),
                    None => (number, target, None),
                });
            links.extend(targets);
        }
        Self { anchors, links }
    }
}

/// The lines that aren't in a block of code, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, String)> {
    let mut code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            code = !code;
            return None;
        }
        (!code).then(|| (number + 1, line.to_owned()))
    })
}

/// The targets of a line's links, without those in `code`.
fn targets(line: &str) -> Vec<String> {
    let mut rest: String = line
        .split('`')
        .enumerate()
        .filter(|(at, _)| at % 2 == 0)
        .map(|(_, part)| part)
        .collect();
    let mut targets = Vec::new();
    while let Some(at) = rest.find("](") {
        rest = rest[at + 2..].to_owned();
        let end = rest.find(')').unwrap_or(rest.len());
        targets.push(rest[..end].to_owned());
    }
    targets
}

/// A heading's name in links, as GitHub makes it.
fn slug(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase)
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn collect(directory: &Path, found: &mut BTreeMap<PathBuf, Document>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() {
            if !ELSEWHERE.contains(&&*name) {
                collect(&path, found);
            }
        } else if name.ends_with(".md") {
            let text = std::fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(repository()).unwrap().to_owned();
            found.insert(path, Document::parse(&text));
        }
    }
}

/// The path that a link in `from` leads to, from the repository's root.
fn resolve(from: &Path, target: &str) -> PathBuf {
    if target.is_empty() {
        return from.to_owned();
    }
    let mut path = PathBuf::new();
    for part in from.parent().unwrap().join(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{target} leaves the repository"),
            other => path.push(other),
        }
    }
    path
}

fn documents() -> BTreeMap<PathBuf, Document> {
    let mut found = BTreeMap::new();
    collect(repository(), &mut found);
    found
}

fn local(target: &str) -> bool {
    !target.contains("://") && !target.starts_with("mailto:")
}

#[test]
fn no_link_leads_nowhere() {
    let documents = documents();
    let mut wrong = Vec::new();
    for (path, document) in &documents {
        for (line, target, anchor) in document.links.iter().filter(|(_, t, _)| local(t)) {
            let to = resolve(path, target);
            let place = format!("{}:{line}", path.display());
            if !repository().join(&to).exists() {
                wrong.push(format!("{place}: no file {}", to.display()));
            } else if let (Some(anchor), Some(other)) = (anchor, documents.get(&to))
                && !other.anchors.contains(anchor)
            {
                wrong.push(format!("{place}: no heading #{anchor} in {}", to.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_document_is_found_from_the_readme() {
    let documents = documents();
    let mut found = BTreeSet::new();
    let mut next = vec![PathBuf::from("README.md")];
    while let Some(path) = next.pop() {
        if let Some(document) = documents.get(&path)
            && found.insert(path.clone())
        {
            let links = document.links.iter().filter(|(_, t, _)| local(t));
            next.extend(links.map(|(_, target, _)| resolve(&path, target)));
        }
    }
    let lost: Vec<_> = (documents.keys())
        .filter(|path| path.starts_with("docs") && !found.contains(*path))
        .collect();
    assert!(lost.is_empty(), "nothing leads to {lost:?}");
}

/// The README is a page: what is longer belongs into `docs/`.
#[test]
fn the_readme_is_a_page() {
    let text = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= 130, "README.md has {lines} lines");
}

#[test]
fn links_and_headings_are_read_as_github_reads_them() {
    let text = "# `sessions --watch`, and *so* on\n## Twice\n## Twice\n[a](b.md#c), `[no](x)` [d](#e)\n\
                ```sh\n# no heading\n[no](y)\n```\n";
    let document = Document::parse(text);
    let anchors: Vec<_> = document.anchors.iter().map(String::as_str).collect();
    assert_eq!(anchors, ["sessions---watch-and-so-on", "twice", "twice-1"]);
    let some = |text: &str| Some(text.to_owned());
    let links = [
        (4, "b.md".to_owned(), some("c")),
        (4, String::new(), some("e")),
    ];
    assert_eq!(document.links, links);
    assert_eq!(
        resolve(Path::new("docs/a/b.md"), "../c.md"),
        Path::new("docs/c.md")
    );
}
