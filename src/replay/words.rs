//! What of a line may be shown.

/// Verbs whose argument is a secret, or leads to one (RFC 959 §4.1.1, RFC 2228 §3).
const SECRET: [&[u8]; 7] = [b"PASS", b"ACCT", b"ADAT", b"MIC", b"CONF", b"ENC", b"SASL"];
/// Verbs whose argument is no name of a user or a file.
const PLAIN: [&[u8]; 25] = [
    b"PORT", b"EPRT", b"PASV", b"EPSV", b"TYPE", b"MODE", b"STRU", b"REST", b"ALLO", b"AUTH",
    b"PBSZ", b"PROT", b"CCC", b"FEAT", b"OPTS", b"HELP", b"NOOP", b"QUIT", b"SYST", b"ABOR",
    b"REIN", b"CDUP", b"XCUP", b"PWD", b"XPWD",
];
/// Replies in which no name can be: those with an address, and those that servers make up from their
/// own words.
const PLAIN_REPLIES: [&[u8]; 7] = [b"227", b"228", b"229", b"234", b"334", b"425", b"426"];
/// What stands for what isn't shown.
pub(super) const HIDDEN: &str = "****";

/// Which end said a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Client,
    Server,
}

/// A line as it may be shown. `names`: with the names of users and files.
pub(super) fn shown(from: From, line: &[u8], names: bool) -> String {
    let kept = match from {
        From::Client => kept_of_command(line, names),
        From::Server => kept_of_reply(line, names),
    };
    let head = line.get(..kept).unwrap_or(line);
    let mut text = printable(head);
    if kept < line.len() {
        text.push_str(HIDDEN);
    }
    text
}

/// Text of which every byte can be shown.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c.is_control() || is_format(c) {
                true => text.extend(c.escape_unicode()),
                false => text.push(c),
            }
        }
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Characters that change how the rest of a line is shown (Unicode's bidirectional controls).
fn is_format(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The verb of a command in upper case, and where its argument begins. What lenient servers ignore
/// before a verb doesn't hide it: blanks, NULs, Telnet commands.
pub(super) fn verb(line: &[u8]) -> (Vec<u8>, usize) {
    let noise = line.iter().take_while(|byte| !byte.is_ascii_graphic());
    let at = noise.count();
    let letters = line
        .iter()
        .skip(at)
        .take_while(|b| !b.is_ascii_whitespace());
    let verb: Vec<u8> = letters
        .filter(|byte| byte.is_ascii_graphic())
        .map(u8::to_ascii_uppercase)
        .collect();
    let end = line.iter().skip(at).position(u8::is_ascii_whitespace);
    let end = end.map_or(line.len(), |end| at.saturating_add(end));
    (verb, end.saturating_add(1).min(line.len()))
}

/// How many bytes of a command may be shown.
fn kept_of_command(line: &[u8], names: bool) -> usize {
    let (verb, argument) = verb(line);
    // Whatever stands before it, and however it goes on.
    let has = |word: &[u8]| verb.windows(word.len()).any(|part| part == word);
    if SECRET.iter().any(|secret| has(secret)) {
        return argument;
    }
    if verb == b"SITE" {
        let rest = line
            .get(argument..)
            .unwrap_or_default()
            .to_ascii_uppercase();
        let secret = [&b"PSW"[..], b"PASS", b"PWD", b"PW"];
        let is = |word: &&[u8]| rest.windows(word.len()).any(|part| part == *word);
        if secret.iter().any(is) {
            return argument;
        }
    }
    match names || PLAIN.contains(&verb.as_slice()) {
        true => line.len(),
        false => argument,
    }
}

/// How many bytes of a reply may be shown.
fn kept_of_reply(line: &[u8], names: bool) -> usize {
    let plain = PLAIN_REPLIES.iter().any(|code| line.starts_with(code));
    if names || plain {
        return line.len();
    }
    match line {
        [a, b, c, b' ' | b'-', ..] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => 4,
        [a, b, c] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        for line in [
            "PASS secret",
            "pass secret",
            "  PASS secret",
            "\0PASS secret",
            "\t Pass\tsecret",
            "ACCT secret",
            "ADAT secret",
            "SITE PSWD secret secret",
            "site chpass secret",
            "xPASS secret",
        ] {
            for names in [true, false] {
                let text = shown(From::Client, line.as_bytes(), names);
                assert!(!text.contains("secret") && text.ends_with(HIDDEN), "{text}");
            }
        }
        let telnet = [&[0xff, 0xf4, 0xff, 0xf2][..], b"PASS secret"].concat();
        assert!(!shown(From::Client, &telnet, true).contains("secret"));
        assert_eq!(shown(From::Client, b"PASS", true), "PASS");
    }

    #[test]
    fn names_are_shown_if_wanted() {
        let both =
            |from, line: &str| [true, false].map(|names| shown(from, line.as_bytes(), names));
        assert_eq!(both(From::Client, "USER ann"), ["USER ann", "USER ****"]);
        assert_eq!(both(From::Client, "RETR a b"), ["RETR a b", "RETR ****"]);
        assert_eq!(both(From::Client, "TYPE I"), ["TYPE I", "TYPE I"]);
        let reply = "150 opening secret.txt";
        assert_eq!(both(From::Server, reply), [reply, "150 ****"]);
        let reply = "227 x (1,2,3,4,5,6)";
        assert_eq!(both(From::Server, reply), [reply, reply]);
        assert_eq!(both(From::Server, " ann.txt"), [" ann.txt", "****"]);
        assert_eq!(both(From::Server, "226"), ["226", "226"]);
    }

    #[test]
    fn nothing_reaches_the_terminal() {
        let line = b"220 \x1b[2J\xff\xe2\x80\xaex";
        let text = shown(From::Server, line, true);
        assert_eq!(text, "220 \\u{1b}[2J\\xff\\u{202e}x");
    }
}
