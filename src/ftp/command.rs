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
    /// `PORT`, `EPRT`.
    Port,
    /// `RETR STOR STOU APPE LIST NLST MLSD`: opens a data connection.
    Transfer,
    Stat,
    Rein,
    Auth,
    /// `LPRT`, `LPSV` (RFC 1639): never followed.
    Long,
    /// Any other command of FTP's.
    Other,
    /// No command that anybody knows.
    Unknown,
}

/// Every verb of the FTP documents and of common servers that isn't told apart above.
const OTHERS: &[&[u8]] = &[
    b"ABOR", b"ADAT", b"ADMN", b"ALGS", b"ALLO", b"AVBL", b"CCC", b"CDUP", b"CLNT", b"COMB",
    b"CONF", b"CSID", b"CWD", b"DELE", b"DSIZ", b"ENC", b"ESTA", b"ESTP", b"FEAT", b"HASH",
    b"HELP", b"HOST", b"LANG", b"MDTM", b"MFCT", b"MFF", b"MFMT", b"MIC", b"MKD", b"MLST", b"MODE",
    b"NOOP", b"NOP", b"OPTS", b"PBSZ", b"PROT", b"PWD", b"QUIT", b"RANG", b"REST", b"RMD", b"RMDA",
    b"RNFR", b"RNTO", b"SITE", b"SIZE", b"SMNT", b"SPSV", b"SSCN", b"STRU", b"SYST", b"THMB",
    b"TYPE", b"XCRC", b"XCUP", b"XCWD", b"XMD5", b"XMKD", b"XPWD", b"XRMD", b"XRSQ", b"XSHA",
    b"XSEM", b"XSEN",
];

impl Command {
    /// The command of a line without its line end. Verbs are case-insensitive (RFC 959 §5.3).
    pub(super) fn of(line: &[u8]) -> Self {
        let verb = verb(line);
        let is = |names: &[&[u8]]| names.iter().any(|name| verb.eq_ignore_ascii_case(name));
        match verb.len() {
            4 if is(&[b"USER"]) => Self::User,
            4 if is(&[b"PASS", b"ACCT"]) => Self::Login,
            4 if is(&[b"PASV"]) => Self::Pasv,
            4 if is(&[b"EPSV"]) => Self::Epsv,
            4 if is(&[b"PORT", b"EPRT"]) => Self::Port,
            4 if is(&[
                b"RETR", b"STOR", b"STOU", b"APPE", b"LIST", b"NLST", b"MLSD",
            ]) =>
            {
                Self::Transfer
            }
            4 if is(&[b"STAT"]) => Self::Stat,
            4 if is(&[b"REIN"]) => Self::Rein,
            4 if is(&[b"AUTH"]) => Self::Auth,
            4 if is(&[b"LPRT", b"LPSV"]) => Self::Long,
            _ if is(OTHERS) => Self::Other,
            _ => Self::Unknown,
        }
    }
}

/// The verb of a line: what comes before the first space, behind Telnet commands (`IAC IP`,
/// `IAC DM` and their like precede an `ABOR`: RFC 959 §4.1.3, RFC 854).
fn verb(line: &[u8]) -> &[u8] {
    let line = &line[telnet_len(line)..];
    let end = line.iter().position(|b| *b == b' ').unwrap_or(line.len());
    &line[..end]
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

/// Whether the line is `EPSV ALL` (RFC 2428 §4).
pub(super) fn is_epsv_all(line: &[u8]) -> bool {
    line.get(5..)
        .is_some_and(|argument| argument.trim_ascii().eq_ignore_ascii_case(b"ALL"))
}

/// Where the argument of `PORT` or `EPRT` starts, if the line is one and it has begun; `None` for
/// the offset while only verb and spaces are there.
pub(super) fn address_command(line: &[u8]) -> Option<(&'static str, Option<usize>)> {
    let verb = line.first_chunk::<5>()?;
    let name = match verb.to_ascii_uppercase().as_slice() {
        b"PORT " => "PORT",
        b"EPRT " => "EPRT",
        b"LPRT " => "LPRT",
        _ => return None,
    };
    let spaces = line.iter().skip(4).take_while(|b| **b == b' ').count();
    let start = spaces.saturating_add(4);
    Some((name, (start < line.len()).then_some(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_in_any_case_and_behind_telnet_commands() {
        assert_eq!(Command::of(b"pasv"), Command::Pasv);
        assert_eq!(Command::of(b"Retr a b"), Command::Transfer);
        assert_eq!(Command::of(b"\xff\xf4\xff\xf2ABOR"), Command::Other);
        assert_eq!(Command::of(b"\xf2ABOR"), Command::Other);
        assert_eq!(Command::of(b"POST / HTTP/1.1"), Command::Unknown);
        assert_eq!(Command::of(b""), Command::Unknown);
        assert_eq!(Command::of(b"\xff"), Command::Unknown);
    }

    #[test]
    fn where_an_address_may_start() {
        assert_eq!(address_command(b"PORT"), None);
        assert_eq!(address_command(b"port "), Some(("PORT", None)));
        assert_eq!(address_command(b"EPRT  |"), Some(("EPRT", Some(6))));
        assert_eq!(address_command(b"PORTX1"), None);
    }
}
