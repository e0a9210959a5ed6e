//! Recognises command lines, as far as the session machine needs it.

use super::nat64::Owed;

/// The commands that the session machine tells apart (RFC 959 §4.1, 2228, 2428, 3659). One byte
/// each, since many may wait for their reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Command {
    User,
    /// `PASS`, `ACCT`: what may complete a login.
    Login,
    Pasv,
    Epsv,
    /// `EPSV ALL` (RFC 2428 §4).
    EpsvAll,
    /// `PORT`, `EPRT` whose address isn't followed.
    Port,
    /// `PORT`, `EPRT` whose address went out with a pinhole.
    Followed,
    /// `RETR STOR STOU APPE LIST NLST MLSD`: opens a data connection.
    Transfer,
    /// The same, once its preliminary reply (`125`, `150`) has come.
    Running,
    Stat,
    Abor,
    Rein,
    Auth,
    /// Any other FTP command.
    Other,
    /// An empty line.
    Blank,
    /// A line over the limit.
    Overlong,
    /// Not a known command.
    Unknown,
    /// An `EPSV` that went out as `PASV` (RFC 6384 §6).
    Translated,
    /// A command that went out as `NOOP`, and the reply that its client is to get (RFC 6384 §12).
    Owed(Owed),
}

/// All other verbs of the FTP documents and of common servers.
const OTHERS: &[&[u8]] = &[
    b"ADAT", b"ADMN", b"ALGS", b"ALLO", b"AVBL", b"CCC", b"CDUP", b"CLNT", b"COMB", b"CONF",
    b"CPSV", b"CSID", b"CWD", b"DELE", b"DSIZ", b"ENC", b"ESTA", b"ESTP", b"FEAT", b"HASH",
    b"HELP", b"HOST", b"LANG", b"MDTM", b"MFCT", b"MFF", b"MFMT", b"MIC", b"MKD", b"MLST", b"MODE",
    b"NOOP", b"NOP", b"OPTS", b"PBSZ", b"PRET", b"PROT", b"PWD", b"QUIT", b"RANG", b"REST", b"RMD",
    b"RMDA", b"RNFR", b"RNTO", b"SITE", b"SIZE", b"SMNT", b"SPSV", b"SSCN", b"STRU", b"SYST",
    b"THMB", b"TYPE", b"XCRC", b"XCUP", b"XCWD", b"XMD5", b"XMKD", b"XPWD", b"XRMD", b"XRSQ",
    b"XSHA", b"XSHA1", b"XSHA256", b"XSHA512", b"XSEM", b"XSEN",
];

/// The verbs that are told apart.
const TOLD_APART: &[(&[u8], Command)] = &[
    (b"USER", Command::User),
    (b"PASS", Command::Login),
    (b"ACCT", Command::Login),
    (b"PASV", Command::Pasv),
    (b"EPSV", Command::Epsv),
    (b"PORT", Command::Port),
    (b"EPRT", Command::Port),
    (b"RETR", Command::Transfer),
    (b"STOR", Command::Transfer),
    (b"STOU", Command::Transfer),
    (b"APPE", Command::Transfer),
    (b"LIST", Command::Transfer),
    (b"NLST", Command::Transfer),
    (b"MLSD", Command::Transfer),
    (b"STAT", Command::Stat),
    (b"ABOR", Command::Abor),
    (b"REIN", Command::Rein),
    (b"AUTH", Command::Auth),
];

/// The verbs of RFC 1639, which are always refused.
const LONG: [&[u8]; 2] = [b"LPRT", b"LPSV"];

/// Verbs that may come before the login (RFC 959 §5.4, 2228, 2389, 2577, 2640, 4217, 6384,
/// 7151).
const BEFORE_LOGIN: &[&[u8]] = &[
    b"USER", b"PASS", b"ACCT", b"AUTH", b"ADAT", b"PBSZ", b"PROT", b"CCC", b"MIC", b"CONF", b"ENC",
    b"FEAT", b"OPTS", b"HOST", b"LANG", b"HELP", b"NOOP", b"NOP", b"QUIT", b"CLNT", b"CSID",
    b"SYST", b"STAT", b"ABOR", b"REIN", b"ALGS",
];

impl Command {
    /// The command of a line without its line end. Verbs are case-insensitive (RFC 959 §5.3).
    pub(super) fn of(line: &[u8]) -> Self {
        let (verb, argument) = split(line);
        // The first letter decides about nearly all of them.
        let initial = verb.first().map(u8::to_ascii_uppercase);
        let is = |name: &[u8]| name.first() == initial.as_ref() && verb.eq_ignore_ascii_case(name);
        let known = TOLD_APART.iter().find(|(name, _)| is(name));
        match known.map(|(_, command)| *command) {
            Some(Self::Epsv) if argument.eq_ignore_ascii_case(b"ALL") => Self::EpsvAll,
            Some(command) => command,
            None if verb.is_empty() && argument.is_empty() => Self::Blank,
            None if OTHERS.iter().any(|name| is(name)) => Self::Other,
            None => Self::Unknown,
        }
    }

    /// Whether a final reply (200 or more) with this code can answer this command (RFC 959 §5.4,
    /// and what servers send instead).
    pub(super) fn may_be_answered_by(self, code: u16) -> bool {
        let granted = (200..300).contains(&code);
        let address = matches!(code, 227 | 229);
        // Only a transfer ends with these.
        let transfers_own = matches!(code, 225 | 226 | 425 | 426 | 450 | 452 | 551..=553);
        let refused = code >= 400;
        match self {
            Self::Pasv | Self::Translated => {
                code == 227 || refused && (code == 425 || !transfers_own)
            }
            Self::Epsv => code == 229 || refused && (code == 425 || !transfers_own),
            Self::Running => {
                matches!(code, 225 | 226 | 250 | 400..=499 | 550..=559)
            }
            Self::Transfer => {
                refused || granted && !address && !matches!(code, 211..=215 | 220 | 230 | 257)
            }
            Self::Stat => refused || matches!(code, 211..=213),
            Self::Abor => matches!(code, 225 | 226 | 400..=499 | 500 | 502 | 503 | 530),
            Self::Blank => code >= 500,
            Self::Overlong => !address,
            Self::User => refused || matches!(code, 331 | 332) || granted && !address,
            // Not 331: that may be a second one to USER, and the reply to PASS is still to come.
            Self::Login => refused || code == 332 || granted && !address,
            // pyftpdlib connects before it replies to the PORT, and refuses with 425.
            Self::Port | Self::Followed => {
                refused && (code == 425 || !transfers_own) || granted && !address && !transfers_own
            }
            Self::Auth | Self::Rein | Self::EpsvAll => !address && !matches!(code, 225 | 226 | 426),
            Self::Other | Self::Unknown | Self::Owed(_) => {
                !address && !matches!(code, 225 | 226 | 331 | 332 | 425 | 426)
            }
        }
    }

    /// Whether its reply names an address.
    pub(super) fn is_question(self) -> bool {
        matches!(self, Self::Pasv | Self::Epsv | Self::Translated)
    }

    /// Whether it or its reply names an address.
    pub(super) fn is_announcement(self) -> bool {
        self.is_question() || matches!(self, Self::Port | Self::Followed)
    }

    /// Whether its reply means something else to the client than to the server.
    pub(super) fn is_translated(self) -> bool {
        matches!(self, Self::Translated | Self::Owed(_))
    }

    /// Whether its reply may mean nothing to somebody who doesn't know it.
    pub(super) fn has_telling_reply(self) -> bool {
        self.is_question() || self.is_translated() || self == Self::Auth
    }
}

/// The verb of a line (what comes before the first space, behind Telnet commands: `IAC IP`,
/// `IAC DM` and their like precede an `ABOR`, RFC 959 §4.1.3, RFC 854) and its argument.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.get(telnet_len(line)..).unwrap_or_default();
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    let (verb, argument) = line.split_at_checked(end).unwrap_or_default();
    (verb, argument.trim_ascii())
}

/// The argument of a line, without the blanks around it.
pub(super) fn argument(line: &[u8]) -> &[u8] {
    split(line).1
}

/// The verb of a line as a lenient server may read it, in upper case: without blanks and Telnet
/// commands before it, and without Telnet commands and NULs in it. Verbs that are longer than any
/// known one are cut.
pub(super) fn bare_verb(line: &[u8]) -> Vec<u8> {
    let mut verb = Vec::new();
    let mut at = telnet_len(line);
    while let Some(byte) = line.get(at) {
        let rest = line.get(at..).unwrap_or_default();
        let skip = match noise(rest, verb.is_empty()) {
            0 if byte.is_ascii_whitespace() || verb.len() > 16 => break,
            0 => {
                verb.push(byte.to_ascii_uppercase());
                1
            }
            skip => skip,
        };
        at = at.saturating_add(skip);
    }
    verb
}

/// The name of a verb in upper case; `command` if it isn't known.
pub(super) fn name_of(verb: &[u8]) -> &'static str {
    let told_apart = TOLD_APART.iter().map(|(name, _)| name);
    let mut known = told_apart.chain(&LONG).chain(OTHERS);
    let name = known.find(|name| **name == verb).copied();
    name.and_then(|name| std::str::from_utf8(name).ok())
        .unwrap_or("command")
}

/// Whether a verb in upper case is one of RFC 1639's.
pub(super) fn is_long(verb: &[u8]) -> bool {
    LONG.contains(&verb)
}

/// Whether a verb in upper case may come before the login.
pub(super) fn is_before_login(verb: &[u8]) -> bool {
    BEFORE_LOGIN.contains(&verb)
}

/// Whether a line has control characters or Telnet commands in it. Telnet commands before the line,
/// and the line end, are to be left out.
pub(super) fn has_controls(text: &[u8]) -> bool {
    let telnet = text
        .iter()
        .zip(text.iter().skip(1))
        .any(|(iac, command)| *iac == 255 && (236..=254).contains(command));
    // A line over the limit is cut, perhaps within a character.
    let c1 = || match std::str::from_utf8(text) {
        Ok(text) => text.chars().any(char::is_control),
        Err(error) if error.error_len().is_none() => text
            .utf8_chunks()
            .any(|part| part.valid().chars().any(char::is_control)),
        Err(_) => text.iter().any(|byte| (0x80..0xa0).contains(byte)),
    };
    telnet || text.iter().any(u8::is_ascii_control) || c1()
}

/// How many bytes at the beginning of `rest` a lenient server may ignore within a verb.
fn noise(rest: &[u8], before: bool) -> usize {
    match rest {
        // Nearly all.
        [b'!'..=254, ..] => 0,
        [0, ..] => 1,
        // Apache FtpServer trims them all.
        [1..=9 | 11..=b' ', ..] if before => 1,
        [255, 251..=254, ..] => 3,
        [255, 236..=250, ..] => 2,
        [255] => 1,
        _ => 0,
    }
}

/// How many bytes of Telnet commands a line starts with.
pub(super) fn telnet_len(line: &[u8]) -> usize {
    let mut at = 0usize;
    loop {
        let rest = line.get(at..).unwrap_or_default();
        let skip = match rest {
            // WILL, WONT, DO, DONT carry an option.
            [255, 251..=254, _, ..] => 3,
            [255, 236..=250, ..] => 2,
            // The data mark of a Synch may arrive without its IAC (it is the urgent byte).
            [242, ..] => 1,
            _ => return at,
        };
        at = at.saturating_add(skip);
    }
}

/// A line whose verb is one that may be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guarded {
    /// The verb.
    pub(super) verb: &'static str,
    /// Where its last byte is. With another byte there, it is another verb.
    pub(super) last: usize,
    /// Whether it ends there; `None` until what follows has come.
    pub(super) ends: Option<bool>,
    /// Nothing that a lenient server would ignore is before it, in it or directly behind it.
    pub(super) plain: bool,
}

/// The verbs that may be refused.
const GUARDED: [&str; 5] = ["PORT", "EPRT", "LPRT", "LPSV", "AUTH"];

/// Finds a guarded verb at a line's beginning, as a lenient server reads it: blanks and control characters
/// before the verb, and Telnet commands and NULs anywhere, don't hide it. Nor does an X: Apache FtpServer
/// takes it off any verb (RFC 775 has `XCWD` and its like).
///
/// `cut`: the line goes on behind `line`. If `line` is nothing but ignored bytes, it counts as a
/// guarded verb.
pub(super) fn guarded(line: &[u8], cut: bool) -> Option<Guarded> {
    let mut at = telnet_len(line);
    let mut letters = [0u8; 4];
    let mut count = 0usize;
    let mut last = at;
    let mut plain = true;
    let mut with_x = false;
    let guarded = |letters: &[u8; 4]| {
        let is = |name: &&str| name.as_bytes().eq_ignore_ascii_case(letters);
        GUARDED.into_iter().find(is)
    };
    loop {
        let rest = line.get(at..).unwrap_or_default();
        let Some(byte) = rest.first().copied() else {
            break;
        };
        let before = count == 0 && !with_x;
        let skip = noise(rest, before);
        if skip == 0 && before && byte.eq_ignore_ascii_case(&b'X') {
            with_x = true;
            at = at.saturating_add(1);
            continue;
        }
        if skip > 0 {
            plain = false;
            at = at.saturating_add(skip);
            continue;
        }
        let Some(slot) = letters.get_mut(count) else {
            return Some(Guarded {
                verb: guarded(&letters)?,
                last,
                ends: Some(byte.is_ascii_whitespace()),
                plain: plain && !with_x && byte != b'\t',
            });
        };
        *slot = byte;
        last = at;
        at = at.saturating_add(1);
        count = count.saturating_add(1);
        if count == letters.len() {
            guarded(&letters)?;
        }
    }
    let disguise = cut && !plain;
    let plain = plain && !with_x;
    let ends = disguise.then_some(true);
    match guarded(&letters).filter(|_| count == letters.len()) {
        None if disguise => Some(Guarded {
            verb: "command",
            last: line.len().saturating_sub(1),
            ends,
            plain,
        }),
        verb => Some(Guarded {
            verb: verb?,
            last,
            ends,
            plain,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_in_any_case_and_behind_telnet_commands() {
        assert_eq!(Command::of(b"pasv"), Command::Pasv);
        assert_eq!(Command::of(b"Retr a b"), Command::Transfer);
        assert_eq!(Command::of(b"\xff\xf4\xff\xf2ABOR"), Command::Abor);
        assert_eq!(Command::of(b"\xf2ABOR"), Command::Abor);
        assert_eq!(Command::of(b"POST / HTTP/1.1"), Command::Unknown);
        assert_eq!(Command::of(b""), Command::Blank);
        assert_eq!(Command::of(b"\xff"), Command::Unknown);
        assert_eq!(Command::of(b" PASV"), Command::Unknown);
        assert_eq!(Command::of(b"epsv  all "), Command::EpsvAll);
        assert_eq!(Command::of(b"EPSV 1"), Command::Epsv);
    }

    #[test]
    fn guarded_verbs_and_their_disguises() {
        let plain = |verb, last, ends| {
            Some(Guarded {
                verb,
                last,
                ends,
                plain: true,
            })
        };
        assert_eq!(guarded(b"POR", false), None);
        assert_eq!(guarded(b"POST /", false), None);
        assert_eq!(guarded(b"port", false), plain("PORT", 3, None));
        assert_eq!(guarded(b"EPRT |", false), plain("EPRT", 3, Some(true)));
        assert_eq!(guarded(b"PORTX", false), plain("PORT", 3, Some(false)));
        assert_eq!(guarded(b"LPSV\r", false), plain("LPSV", 3, Some(true)));
        assert_eq!(
            guarded(b"\xff\xf4\xf2PORT 1", false),
            plain("PORT", 6, Some(true))
        );
        for (text, last) in [
            (&b" PORT 1"[..], 4),
            (b"\0\0PORT 1", 5),
            (b"PO\xff\xf1RT 1", 5),
            (b"POR\xff\xfb\x01T 1", 6),
            (b"PORT\xff\xf1 1", 3),
            (b"PORT\t1", 3),
            (b"\xff\xf1 \xff\xf1PORT\r\n", 8),
            (b"\rPORT 1", 4),
            (b"\x01\x0b\x1fPORT 1", 6),
            (b"XPORT 1", 4),
            (b" xpo\0rt 1", 6),
        ] {
            let disguised = Guarded {
                verb: "PORT",
                last,
                ends: Some(true),
                plain: false,
            };
            let shown = text.escape_ascii();
            assert_eq!(guarded(text, false), Some(disguised), "{shown}");
        }
        for text in [
            &b"\r\n"[..],
            b"\nPORT 1",
            b"X PORT 1",
            b"XXPORT 1",
            b"XPWD\r\n",
            b"X",
        ] {
            assert_eq!(guarded(text, false), None, "{}", text.escape_ascii());
            assert_eq!(
                guarded(text, true).map(|it| it.verb),
                (text == b"\r\n").then_some("command")
            );
        }
        assert_eq!(guarded(&[b' '; 50], false), None);
        for text in [&b"  X"[..], b"X\0\0\0", b"\0x"] {
            let verb = guarded(text, true).map(|it| it.verb);
            assert_eq!(verb, Some("command"), "{}", text.escape_ascii());
        }
        let all = guarded(&[b' '; 50], true).unwrap();
        assert_eq!((all.last, all.ends, all.plain), (49, Some(true), false));
        assert_eq!(guarded(b"PORT", true), plain("PORT", 3, None));
    }
}
