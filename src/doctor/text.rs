//! Findings as people read them: within 80 columns, but for commands.

use std::fmt::Write;

use super::{Finding, Level, Theme, worst};

/// How wide a line may be.
const WIDTH: usize = 80;
/// Where the text of a finding begins.
const INDENT: usize = 11;

/// All findings, by theme, with what they mean and the command that mends them.
#[must_use]
pub fn describe(findings: &[Finding]) -> String {
    let mut text = format!(
        "ftpalg {}: {}\n",
        env!("CARGO_PKG_VERSION"),
        verdict(findings)
    );
    let mut theme = None;
    for finding in findings {
        if theme != Some(finding.theme) {
            theme = Some(finding.theme);
            // Writing to a String doesn't fail.
            let _ = writeln!(text, "\n{}", heading(finding.theme));
        }
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        let _ = write!(text, "  {level:<width$}", width = INDENT - 2);
        wrap(&finding.what, &mut text);
        if let Some(means) = &finding.means {
            let _ = write!(text, "{:INDENT$}", "");
            wrap(means, &mut text);
        }
        if let Some(command) = &finding.command {
            let _ = writeln!(text, "{:INDENT$}$ {command}", "");
        }
    }
    text
}

fn heading(theme: Theme) -> &'static str {
    match theme {
        Theme::Host => "This host",
        Theme::Nat => "What is watched",
        Theme::Rules => "Your rules",
        Theme::Network => "The network",
    }
}

fn verdict(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let some = |n: usize, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let problems = some(count(Level::Problem), "problem");
    let warnings = some(count(Level::Warning), "warning");
    match worst(findings) {
        Level::Ok => "this host is fit for FTP".into(),
        _ => problems
            .into_iter()
            .chain(warnings)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// Writes words into lines. The first line has its indent already.
fn wrap(words: &str, text: &mut String) {
    let mut column = INDENT;
    for (at, word) in words.split(' ').enumerate() {
        let width = word.chars().count();
        if at > 0 && column + 1 + width > WIDTH {
            let _ = write!(text, "\n{:INDENT$}", "");
            column = INDENT;
        } else if at > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_commands_stay_whole() {
        let long = "word ".repeat(60);
        let findings = [
            Finding::ok("tools", Theme::Host, "fine"),
            Finding::warning("mtu", Theme::Network, long.trim())
                .means(long.trim())
                .command(long.trim()),
            Finding::problem("nat64", Theme::Network, "bad"),
        ];
        let text = describe(&findings);
        assert!(text.contains(": 1 problem, 1 warning\n"), "{text}");
        let (command, others): (Vec<&str>, Vec<&str>) = text
            .lines()
            .partition(|line| line.trim_start().starts_with('$'));
        assert_eq!(command.len(), 1);
        assert!(
            others.iter().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert!(text.contains("\nThis host\n  ok       fine\n"), "{text}");
        assert!(describe(&findings[..1]).contains("fit for FTP"));
    }
}
