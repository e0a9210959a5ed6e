//! Whether a program has printed what a recipe shows.

/// The first line of `shown` that isn't in `printed` where it should be; `None` if all are.
pub(super) fn missing<'a>(shown: &'a str, printed: &str) -> Option<&'a str> {
    let mut printed = printed.lines();
    (shown.lines())
        .filter(|line| line.trim() != "…" && !line.trim().is_empty())
        .find(|line| !printed.any(|p| fits(&tokens(line), &tokens(p))))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// `…`: anything.
    Any,
    /// Some blanks.
    Blank,
    /// A number, of whatever size.
    Number,
    /// Exactly this: an address, or a character.
    Exact(String),
}

fn tokens(line: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = line.trim();
    while let Some(first) = rest.chars().next() {
        let length = |is: fn(char) -> bool| rest.find(|c| !is(c)).unwrap_or(rest.len());
        let (token, taken) = match first {
            '…' => (Token::Any, first.len_utf8()),
            _ if first.is_whitespace() => (Token::Blank, length(char::is_whitespace)),
            _ if first.is_ascii_digit() => {
                // Addresses are one token; a fraction is a number.
                let word = &rest[..length(|c| c.is_ascii_digit() || c == '.')];
                let word = word.trim_end_matches('.');
                match word.matches('.').count() {
                    3 => (Token::Exact(word.to_owned()), word.len()),
                    _ => (Token::Number, word.len()),
                }
            }
            _ => (Token::Exact(first.to_string()), first.len_utf8()),
        };
        tokens.push(token);
        rest = &rest[taken..];
    }
    tokens
}

fn fits(shown: &[Token], printed: &[Token]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((Token::Any, rest)) => (0..=printed.len()).any(|at| fits(rest, &printed[at..])),
        Some((token, rest)) => printed
            .split_first()
            .is_some_and(|(first, others)| first == token && fits(rest, others)),
    }
}

#[test]
fn numbers_differ_and_addresses_don_t() {
    let printed =
        "a\nsession 12 227 10.0.0.5:50161 -> 203.0.113.7:4711 (passive)\nend after 1.25 s\n";
    assert_eq!(missing("a\nend after 0.1 s\n", printed), None);
    let shown = "session 1 227 10.0.0.5:2 -> 203.0.113.7:99 (…)\n…\nend after …\n";
    assert_eq!(missing(shown, printed), None);
    let other = "session 1 227 10.0.0.6:2 -> 203.0.113.7:99 (…)";
    assert_eq!(missing(other, printed), Some(other));
    // In the order in which they are shown, and whole lines.
    assert_eq!(missing("end after 1 s\na", printed), Some("a"));
    assert_eq!(missing("end", printed), Some("end"));
}
