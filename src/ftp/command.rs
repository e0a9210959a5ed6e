//! What a command line is, as far as the session depends on it.

/// The commands that the session machine tells apart (RFC 959 §4.1, 2228, 2428, 3659). One byte,
/// because many may be pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// `PORT`, `EPRT` whose address went out with a pinhole reserved.
    Followed,
    /// `RETR STOR STOU APPE LIST NLST MLSD`: opens a data connection.
    Transfer,
    Stat,
    Abor,
    Rein,
    Auth,
    /// Any other command of FTP's.
    Other,
    /// An empty line.
    Blank,
    /// No command that anybody knows.
    Unknown,
}

/// Every verb of the FTP documents and of common servers that isn't told apart above.
const OTHERS: &[&[u8]] = &[
    b"ADAT", b"ADMN", b"ALGS", b"ALLO", b"AVBL", b"CCC", b"CDUP", b"CLNT", b"COMB", b"CONF",
    b"CPSV", b"CSID", b"CWD", b"DELE", b"DSIZ", b"ENC", b"ESTA", b"ESTP", b"FEAT", b"HASH",
    b"HELP", b"HOST", b"LANG", b"MDTM", b"MFCT", b"MFF", b"MFMT", b"MIC", b"MKD", b"MLST", b"MODE",
    b"NOOP", b"NOP", b"OPTS", b"PBSZ", b"PRET", b"PROT", b"PWD", b"QUIT", b"RANG", b"REST", b"RMD",
    b"RMDA", b"RNFR", b"RNTO", b"SITE", b"SIZE", b"SMNT", b"SPSV", b"SSCN", b"STRU", b"SYST",
    b"THMB", b"TYPE", b"XCRC", b"XCUP", b"XCWD", b"XMD5", b"XMKD", b"XPWD", b"XRMD", b"XRSQ",
    b"XSHA", b"XSHA1", b"XSHA256", b"XSHA512", b"XSEM", b"XSEN",
];

impl Command {
    /// The command of a line without its line end. Verbs are case-insensitive (RFC 959 §5.3).
    pub(super) fn of(line: &[u8]) -> Self {
        let (verb, argument) = split(line);
        let is = |names: &[&[u8]]| names.iter().any(|name| verb.eq_ignore_ascii_case(name));
        match verb.len() {
            4 if is(&[b"USER"]) => Self::User,
            4 if is(&[b"PASS", b"ACCT"]) => Self::Login,
            4 if is(&[b"PASV"]) => Self::Pasv,
            4 if is(&[b"EPSV"]) && argument.eq_ignore_ascii_case(b"ALL") => Self::EpsvAll,
            4 if is(&[b"EPSV"]) => Self::Epsv,
            4 if is(&[b"PORT", b"EPRT"]) => Self::Port,
            4 if is(&[
                b"RETR", b"STOR", b"STOU", b"APPE", b"LIST", b"NLST", b"MLSD",
            ]) =>
            {
                Self::Transfer
            }
            4 if is(&[b"STAT"]) => Self::Stat,
            4 if is(&[b"ABOR"]) => Self::Abor,
            4 if is(&[b"REIN"]) => Self::Rein,
            4 if is(&[b"AUTH"]) => Self::Auth,
            0 if argument.is_empty() => Self::Blank,
            _ if is(OTHERS) => Self::Other,
            _ => Self::Unknown,
        }
    }

    /// Whether a final reply with this code can be this command's.
    pub(super) fn may_answer(self, code: u16) -> bool {
        let refused = code >= 400;
        match self {
            Self::Pasv => refused || code == 227,
            Self::Epsv => refused || code == 229,
            Self::Abor => refused || matches!(code, 225 | 226),
            Self::Transfer | Self::Other | Self::Unknown | Self::Stat => !matches!(code, 227 | 229),
            Self::Blank => code >= 500,
            _ => !matches!(code, 225..=227 | 229),
        }
    }

    /// Whether an address comes with it or its reply.
    pub(super) fn is_address(self) -> bool {
        matches!(self, Self::Pasv | Self::Epsv | Self::Followed)
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

/// What follows the verb of a line, without the blanks around it.
pub(super) fn argument(line: &[u8]) -> &[u8] {
    split(line).1
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

/// Where the argument of `PORT` or `EPRT` starts, if the line is one and it has begun; `None` for
/// the offset while only verb and spaces are there.
pub(super) fn address_command(line: &[u8]) -> Option<(&'static str, Option<usize>)> {
    let telnet = telnet_len(line);
    let verb = line.get(telnet..)?.first_chunk::<5>()?;
    let name = match verb.to_ascii_uppercase().as_slice() {
        b"PORT " => "PORT",
        b"EPRT " => "EPRT",
        _ => return None,
    };
    let blank = telnet.saturating_add(4);
    let spaces = line.iter().skip(blank).take_while(|b| **b == b' ').count();
    let start = spaces.saturating_add(blank);
    Some((name, (start < line.len()).then_some(start)))
}

/// Where the last byte of the verb is, if the line is (or may become) an `LPRT` or `LPSV`
/// (RFC 1639), and whether it is one: `None` until the byte behind it has come.
pub(super) fn long_command(line: &[u8]) -> Option<(&'static str, usize, Option<bool>)> {
    let telnet = telnet_len(line);
    let verb = line.get(telnet..)?.first_chunk::<4>()?;
    let name = match verb.to_ascii_uppercase().as_slice() {
        b"LPRT" => "LPRT",
        b"LPSV" => "LPSV",
        _ => return None,
    };
    let next = line.get(telnet.saturating_add(4));
    let is = next.map(u8::is_ascii_whitespace);
    Some((name, telnet.saturating_add(3), is))
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
    fn where_an_address_may_start() {
        assert_eq!(address_command(b"PORT"), None);
        assert_eq!(address_command(b"port "), Some(("PORT", None)));
        assert_eq!(address_command(b"EPRT  |"), Some(("EPRT", Some(6))));
        assert_eq!(address_command(b"PORTX1"), None);
        assert_eq!(
            address_command(b"\xff\xf4\xf2PORT 1"),
            Some(("PORT", Some(8)))
        );
        assert_eq!(long_command(b"lpsv"), Some(("LPSV", 3, None)));
        assert_eq!(long_command(b"LPSV\r"), Some(("LPSV", 3, Some(true))));
        assert_eq!(long_command(b"LPSVX"), Some(("LPSV", 3, Some(false))));
    }
}
