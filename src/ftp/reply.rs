//! Recognises reply lines (RFC 959 §4.2), as leniently as clients do.

use super::command::telnet_len;

/// The start of a reply line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyStart {
    /// Three digits and no more: a reply's only or last line.
    Last(Code),
    /// `xyz-`: the first line of several.
    First(Code),
    /// No code: text within a multi-line reply.
    Text,
    /// Too short to tell.
    Unknown,
}

/// A reply code at the beginning of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code {
    /// Its value.
    pub(super) value: u16,
    /// Where in the line it ends.
    pub(super) end: usize,
    /// As in RFC 959: nothing before it, and a blank or nothing behind it. Only such a line ends a
    /// multi-line reply; others may be text in it.
    pub(super) plain: bool,
}

impl ReplyStart {
    /// `ended`: the line is complete (its line end is left out).
    ///
    /// Telnet commands, NULs and blanks may come in front of the code (ProFTPD puts `IAC WONT x`
    /// there), and anything but a digit behind it (`220Welcome`).
    pub(super) fn of(line: &[u8], ended: bool) -> Self {
        let Some(lead) = lead_len(line) else {
            return if ended { Self::Text } else { Self::Unknown };
        };
        let text = line.get(lead..).unwrap_or_default();
        let digits = text.iter().take(3).take_while(|b| b.is_ascii_digit());
        let (count, value) = digits.fold((0usize, 0u16), |(count, value), digit| {
            let digit = u16::from(digit.wrapping_sub(b'0'));
            (
                count.saturating_add(1),
                value.saturating_mul(10).saturating_add(digit),
            )
        });
        let code = |plain| Code {
            value,
            end: lead.saturating_add(3),
            plain: plain && lead == 0,
        };
        match (count, text.get(3)) {
            (3, _) if !(100..700).contains(&value) => Self::Text,
            (3, Some(b' ')) => Self::Last(code(true)),
            (3, Some(b'-')) => Self::First(code(true)),
            (3, Some(b'0'..=b'9')) => Self::Text,
            (3, None) if ended => Self::Last(code(true)),
            (3, None) => Self::Unknown,
            // Blanks at the line's end don't count; more may follow.
            (3, _) if !ended && blank_from(text, 3) => Self::Unknown,
            (3, _) => Self::Last(code(false)),
            (n, _) if n == text.len() && !ended => Self::Unknown,
            _ => Self::Text,
        }
    }
}

/// How many bytes come in front of a line's text: Telnet commands, NULs, blanks. `None`: there is
/// nothing else, or a Telnet command isn't complete.
pub(super) fn lead_len(line: &[u8]) -> Option<usize> {
    let mut at = 0usize;
    loop {
        let rest = line.get(at..).unwrap_or_default();
        let skip = match rest.first()? {
            0 | b' ' | b'\t' => 1,
            255 => match (telnet_len(rest), rest) {
                // WILL, WONT, DO, DONT: the option is still to come.
                (0, [_] | [_, 251..=254]) => return None,
                (0, _) => return Some(at),
                (len, _) => len,
            },
            _ => return Some(at),
        };
        at = at.saturating_add(skip);
    }
}

fn blank_from(line: &[u8], at: usize) -> bool {
    line.iter().skip(at).all(u8::is_ascii_whitespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(value: u16) -> Code {
        Code {
            value,
            end: 3,
            plain: true,
        }
    }

    fn odd(value: u16, end: usize) -> Code {
        Code {
            value,
            end,
            plain: false,
        }
    }

    #[test]
    fn starts() {
        assert_eq!(
            ReplyStart::of(b"227 x", false),
            ReplyStart::Last(plain(227))
        );
        assert_eq!(
            ReplyStart::of(b"227-x", false),
            ReplyStart::First(plain(227))
        );
        assert_eq!(ReplyStart::of(b"200", true), ReplyStart::Last(plain(200)));
        assert_eq!(ReplyStart::of(b"200", false), ReplyStart::Unknown);
        assert_eq!(ReplyStart::of(b"22", false), ReplyStart::Unknown);
        assert_eq!(ReplyStart::of(b"220\r", false), ReplyStart::Unknown);
        assert_eq!(ReplyStart::of(b"", false), ReplyStart::Unknown);
        assert_eq!(ReplyStart::of(b"", true), ReplyStart::Text);
        for text in [
            &b"2x7 x"[..],
            b"2270 x",
            b"000 x",
            b"719 x",
            b"22",
            b"+OK",
            b"HTTP/1.1 200",
        ] {
            assert_eq!(
                ReplyStart::of(text, true),
                ReplyStart::Text,
                "{}",
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn lenient_starts() {
        for (text, code) in [
            (&b"220Welcome"[..], odd(220, 3)),
            (b"220\rx", odd(220, 3)),
            (b"227\tEntering", odd(227, 3)),
            (b"227. Entering", odd(227, 3)),
            (b" 227 x", odd(227, 4)),
            (b"\x00227 x", odd(227, 4)),
            (b"\xff\xfc\x01200 ok", odd(200, 6)),
            (b"\xff\xfc\xff\xff\xf1\0 200", odd(200, 10)),
        ] {
            let shown = text.escape_ascii();
            assert_eq!(
                ReplyStart::of(text, true),
                ReplyStart::Last(code),
                "{shown}"
            );
        }
        assert_eq!(ReplyStart::of(b"\xff\xfc", false), ReplyStart::Unknown);
        assert_eq!(ReplyStart::of(b"  ", false), ReplyStart::Unknown);
        assert_eq!(ReplyStart::of(b"\xff\xfc", true), ReplyStart::Text);
    }
}
