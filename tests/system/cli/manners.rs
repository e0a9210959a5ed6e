//! What a tool owes its user: help, suggestions, manual pages, completions, and words for what is wrong.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;

use super::*;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_is_mistyped_is_guessed() {
    for (args, part) in [
        (&["stauts"][..], "did you mean status?"),
        (&["rules", "prnt"], "did you mean print?"),
        (&["rules", "instal"], "did you mean install?"),
        (&["check", "--config", "x"], "see `ftpalg check --help`"),
        (&["run", "--prot", "21"], "did you mean --port?"),
        (&["run", "--data-port", "1-2"], "did you mean --data-ports?"),
        (&["status", "--jsn"], "did you mean --json?"),
        (&["run", "--fail", "opne"], "write one of closed, open"),
        (&["run", "--fail"], "write one of closed, open"),
        (&["help", "rnu"], "rnu"),
    ] {
        refused(&ftpalg(args), 2, part);
    }
}

#[test]
fn the_filter_of_the_log_is_checked() {
    let check = |filter: &str, args: &[&str]| {
        let mut command = Command::new(paths::ftpalg());
        command.args(args).env("FTPALG_LOG", filter);
        command.output().unwrap()
    };
    for bad in ["debgu", "warn,", "loud=debug", "ftpalg=loud"] {
        let output = check(bad, &["check", "/dev/null"]);
        refused(&output, 2, &format!("FTPALG_LOG={bad:?}"));
    }
    for good in ["", "off", "debug", "warn,ftpalg::daemon=trace"] {
        let output = check(good, &["check", "/dev/null"]);
        assert_eq!(output.status.code(), Some(0), "{good}: {output:?}");
    }
}

#[test]
fn check_says_what_a_file_will_do() {
    let directory = Directory::new();
    let path = directory.file("f.toml");
    let name = path.to_str().unwrap();
    let says = |content: &str| {
        fs::write(&path, content).unwrap();
        let output = ftpalg(&["check", name]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = text(&output.stdout);
        assert!(said.starts_with(&format!("{name}: fine\n")), "{said}");
        said
    };
    let said = says("");
    assert!(said.contains("watches what the host's DNAT and MASQUERADE rules tell, port 21\n"));
    assert!(said.ends_with("all settings are the defaults\n"), "{said}");
    let said = says(
        "inside = \"eth1\"\nlocal = true\nimplicit-port = 990\ntls = \"range:40000-40009\"\n\
         fail = \"open\"\nrules = \"external\"\n[limits]\nsessions = 5\n",
    );
    for part in [
        "watches inside eth1, and this host itself, ports 21, 990 (TLS from the first byte: 990)\n",
        "reach the ports 40000-40009 of their server\n",
        "somebody else puts the rules into place; control packets pass while",
        "limits.sessions 5",
        "rules external",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let differing = said.lines().last().unwrap();
    assert!(!differing.contains("deadline"), "{said}");
    // What is printed to start from is a file like that.
    says(&text(&ftpalg(&["check", "--example"]).stdout));
    refused(&ftpalg(&["check"]), 2, "<FILE>");
    refused(&ftpalg(&["check", "--example", name]), 2, "--example");
}

/// Each in a line of its own, and all of them.
#[test]
fn several_mistakes_are_several_lines() {
    let directory = Directory::new();
    let path = directory.file("f.toml");
    let name = path.to_str().unwrap();
    let content = "prot = 1\nport = 0\ndata-ports = 1-2\n[limits]\nlocal = true\n";
    fs::write(&path, content).unwrap();
    for args in [
        &["check", name][..],
        &["run", "--config", name],
        &["rules", "print", "--config", name],
    ] {
        let output = ftpalg(args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = text(&output.stderr);
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        for (line, start) in
            lines
                .iter()
                .zip(["1: prot: ", "2: port: ", "3: data-ports: ", "5: local: "])
        {
            assert!(
                line.starts_with(&format!("ftpalg: {name}:{start}")),
                "{line}"
            );
            assert!(line.contains("; "), "{line}");
        }
        assert!(output.stdout.is_empty());
    }
    // What doesn't go together: of the file alone with its line, with a flag without one.
    fs::write(&path, "port = 2121\ndata-ports = \"2100-2200\"\n").unwrap();
    let place = format!("{name}:2: data-ports: 2100-2200 contains the control port 2121;");
    refused(&ftpalg(&["check", name]), 2, &place);
    fs::write(&path, "data-ports = \"2100-2200\"\n").unwrap();
    let output = ftpalg(&["run", "--config", name, "--port", "2121"]);
    refused(
        &output,
        2,
        &format!("{name}: --data-ports 2100-2200 contains"),
    );
    // A file of nothing but mistakes doesn't flood the terminal.
    fs::write(&path, "port\n".repeat(10_000)).unwrap();
    let said = text(&ftpalg(&["check", name]).stderr);
    assert_eq!(said.lines().count(), 51, "{said}");
    assert!(
        said.ends_with("9950 more mistakes; mend these first\n"),
        "{said}"
    );
}

#[test]
fn what_is_no_text_is_one_line() {
    let directory = Directory::new();
    let path = directory.file("f.toml");
    let name = path.to_str().unwrap();
    for (bytes, part) in [
        (&b"# \xe4\n"[..], "line 1 isn't text in UTF-8; save it"),
        (b"\xff\xfep\0o\0", "UTF-16; save it as UTF-8"),
        (b"port = 21\0\n", ":1: port: "),
        (b"\xef\xbb\xbfport = 0\r\n", ":1: port: invalid value 0; "),
    ] {
        fs::write(&path, bytes).unwrap();
        refused(&ftpalg(&["check", name]), 2, part);
    }
    fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    refused(&ftpalg(&["check", name]), 2, "larger than 1048576 bytes; ");
}

#[test]
fn only_a_terminal_has_colour_and_only_if_wanted() {
    let colour = |set: &str, command: &str| {
        let program = paths::ftpalg();
        let line = format!("{set} {program} {command}");
        let output = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.stdout.is_empty(), "{output:?}");
        output.stdout.contains(&0x1b)
    };
    assert!(colour("", "run --help"), "a terminal");
    assert!(!colour("NO_COLOR=1", "run --help"));
    assert!(!colour("NO_COLOR=1", "run --colour || true"));
    assert!(
        !ftpalg(&["run", "--help"]).stdout.contains(&0x1b),
        "no terminal"
    );
}

/// Into a directory of its own.
fn generated(what: &str) -> Directory {
    let directory = Directory::new();
    let output = ftpalg(&["generate", what, directory.file("out").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    directory
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn manual_pages_are_clean_and_complete() {
    let directory = generated("man");
    let pages = files(&directory.file("out"));
    assert!(
        pages
            .iter()
            .any(|page| page.ends_with("ftpalg-rules-print.1")),
        "{pages:?}"
    );
    for page in &pages {
        let output = Command::new("groff")
            .args([
                "-k", "-ww", "-man", "-Tutf8", "-P-c", "-P-b", "-P-o", "-P-u",
            ])
            .arg(page)
            .output()
            .unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{page:?}: {}",
            text(&output.stderr)
        );
        let shown = text(&output.stdout);
        for section in [
            "NAME",
            "SYNOPSIS",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "EXAMPLES",
            "SEE ALSO",
        ] {
            let there = shown
                .lines()
                .any(|line| line.contains(section) && !line.starts_with(' '));
            assert!(there, "{page:?} has no {section}");
        }
    }
    let run = fs::read_to_string(directory.file("out").join("ftpalg-run.1")).unwrap();
    for part in [
        "SIGNALS",
        "SIGUSR2",
        "data\\-ports",
        "REFUSED",
        "FTPALG_LOG",
    ] {
        assert!(run.contains(part), "{part}: {run}");
    }
}

#[test]
fn completions_complete() {
    let directory = generated("completions");
    let out = directory.file("out");
    let complete = |words: &[&str]| {
        let words: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
        let last = words.len() - 1;
        let script = format!(
            "set -eu; COMP_WORDS=({}); COMP_CWORD={last}; set +e; . {}/ftpalg.bash; \
             _ftpalg ftpalg \"${{COMP_WORDS[{last}]}}\" \"${{COMP_WORDS[{}]}}\"; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            out.display(),
            last - 1
        );
        let output = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        text(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(complete(&["ftpalg", "st"]), ["status"]);
    assert_eq!(complete(&["ftpalg", "run", "--data"]), ["--data-ports"]);
    assert_eq!(
        complete(&["ftpalg", "run", "--fail", ""]),
        ["closed", "open"]
    );
    assert_eq!(complete(&["ftpalg", "rules", "in"]), ["install"]);
    assert!(
        complete(&["ftpalg", "gen"]).iter().all(String::is_empty),
        "it is hidden"
    );
    for file in ["_ftpalg", "ftpalg.fish"] {
        assert!(!fs::read(out.join(file)).unwrap().is_empty());
    }
}

/// A daemon of another version: it says something else, or asks for what isn't known.
#[test]
fn a_daemon_of_another_version_is_told_in_one_line() {
    in_namespace(|| {
        // One for all: a program that another test starts may hold it for a moment after it is closed.
        let name = SocketAddr::from_abstract_name("ftpalg").unwrap();
        let listener = UnixListener::bind_addr(&name).unwrap();
        for (answer, part) in [
            ("{\"fine\": 1}\n", "another version"),
            ("<html>\n", "another version"),
            ("{\"error\": \"unknown request\"}\n", "unknown request"),
        ] {
            let output = thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut byte = [0];
                    while stream.read(&mut byte).unwrap() == 1 && byte != *b"\n" {}
                    stream.write_all(answer.as_bytes()).unwrap();
                });
                ftpalg(&["status"])
            });
            let line = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{line}");
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert!(
                line.starts_with("ftpalg: ") && line.contains(part),
                "{line}"
            );
        }
    });
}
