//! What a reply line is (RFC 959 §4.2).

/// The start of a reply line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// `xyz` and a space (or the line's end): a reply's only or last line.
    Last(u16),
    /// `xyz-`: the first line of several.
    First(u16),
    /// Something else: text within a multi-line reply.
    Text,
    /// Too short to tell.
    Unknown,
}

impl Start {
    /// `ended`: the line is complete (its line end is left out).
    pub(super) fn of(line: &[u8], ended: bool) -> Self {
        let digits = line
            .iter()
            .take(3)
            .take_while(|b| b.is_ascii_digit())
            .count();
        let code = || {
            line.iter().take(3).fold(0u16, |code, digit| {
                code.saturating_mul(10)
                    .saturating_add(u16::from(digit.wrapping_sub(b'0')))
            })
        };
        match (digits, line.get(3)) {
            (3, Some(b' ')) => Self::Last(code()),
            (3, Some(b'-')) => Self::First(code()),
            (3, None) if ended => Self::Last(code()),
            (3, None) => Self::Unknown,
            // Blanks at the line's end don't count; more may follow.
            (3, _) if !ended && blank_from(line, 3) => Self::Unknown,
            (n, _) if n == line.len() && !ended => Self::Unknown,
            _ => Self::Text,
        }
    }
}

fn blank_from(line: &[u8], at: usize) -> bool {
    line.iter().skip(at).all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use super::Start;

    #[test]
    fn starts() {
        assert_eq!(Start::of(b"227 x", false), Start::Last(227));
        assert_eq!(Start::of(b"227-x", false), Start::First(227));
        assert_eq!(Start::of(b"200", true), Start::Last(200));
        assert_eq!(Start::of(b"200", false), Start::Unknown);
        assert_eq!(Start::of(b"22", false), Start::Unknown);
        assert_eq!(Start::of(b"220\r", false), Start::Unknown);
        assert_eq!(Start::of(b"220\rx", false), Start::Text);
        assert_eq!(Start::of(b"", false), Start::Unknown);
        assert_eq!(Start::of(b"", true), Start::Text);
        assert_eq!(Start::of(b" 227 x", true), Start::Text);
        assert_eq!(Start::of(b"2x7 x", true), Start::Text);
    }
}
