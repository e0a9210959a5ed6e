//! Records for the system's log: to a syslog daemon as RFC 5424 says, or to journald with a field for
//! each of the record's.

use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;

use serde_json::Value;

use super::record::{Plain, Record};

/// Where a syslog daemon listens.
const SYSLOG: &str = "/dev/log";
/// Where journald takes fields (`systemd.io/JOURNAL_NATIVE_PROTOCOL`).
const JOURNALD: &str = "/run/systemd/journal/socket";
/// The facility `daemon` (RFC 5424 §6.2.1).
const DAEMON: u8 = 3;
/// The name of our structured data (RFC 5424 §7.2.2 keeps 32473 for documentation; no number is ours).
const SD_ID: &str = "ftpalg@32473";
/// The longest message that is sent, in bytes: every receiver takes as much.
const LONGEST: usize = 8192;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Syslog,
    Journald,
}

/// A connection to the system's log.
#[derive(Debug)]
pub(super) struct SystemLog {
    dialect: Dialect,
    socket: UnixDatagram,
    host: String,
}

impl SystemLog {
    /// Finds the daemon.
    pub(super) fn open(dialect: Dialect) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A log that doesn't read must not stop anything here.
        socket.set_nonblocking(true)?;
        let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
        let log = Self {
            dialect,
            socket,
            host: header(&host),
        };
        log.connect()?;
        Ok(log)
    }

    fn connect(&self) -> io::Result<()> {
        self.socket.connect(match self.dialect {
            Dialect::Syslog => SYSLOG,
            Dialect::Journald => JOURNALD,
        })
    }

    /// Sends a record.
    pub(super) fn write(&self, record: &Record) -> io::Result<()> {
        let message = match self.dialect {
            Dialect::Syslog => syslog(record, &self.host, std::process::id()).into_bytes(),
            Dialect::Journald => journald(record)?,
        };
        match self.socket.send(&message) {
            // It was started again.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotConnected
                ) =>
            {
                self.connect()?;
                self.socket.send(&message).map(drop)
            }
            sent => sent.map(drop),
        }
    }
}

/// The severity (RFC 5424 §6.2.1): warning, or informational.
fn severity(record: &Record) -> u8 {
    match record.what.is_warning() {
        true => 4,
        false => 6,
    }
}

/// A message as RFC 5424 §6 has it.
fn syslog(record: &Record, host: &str, pid: u32) -> String {
    let priority = DAEMON * 8 + severity(record);
    let mut text = format!(
        "<{priority}>1 {:.6} {host} ftpalg {pid} {} [{SD_ID}",
        record.time,
        record.what.kind()
    );
    for (name, value) in fields(record) {
        let param = format!(" {name}=\"{}\"", escaped(&value));
        // The message comes behind it.
        if text.len() + param.len() < LONGEST / 2 {
            text.push_str(&param);
        }
    }
    text.push_str("] ");
    text.push_str(&said(record));
    while text.len() > LONGEST {
        text.pop();
    }
    text
}

/// The record in words, without the time, which the log has.
fn said(record: &Record) -> String {
    let session = record.session.map(|session| format!("session {session} "));
    format!("{}{}", session.unwrap_or_default(), record.what)
}

/// A record as journald's native protocol has it.
fn journald(record: &Record) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut field = |name: &str, value: &str| -> io::Result<()> {
        if value.contains('\n') {
            // With its length in front, a value may have line feeds.
            writeln!(out, "{name}")?;
            out.extend(u64::try_from(value.len()).unwrap_or_default().to_le_bytes());
            out.extend_from_slice(value.as_bytes());
            out.push(b'\n');
            return Ok(());
        }
        writeln!(out, "{name}={value}")
    };
    field("MESSAGE", &said(record))?;
    field("PRIORITY", &severity(record).to_string())?;
    field("SYSLOG_FACILITY", &DAEMON.to_string())?;
    field("SYSLOG_IDENTIFIER", "ftpalg")?;
    field("FTPALG_KIND", record.what.kind())?;
    for (name, value) in fields(record) {
        field(&format!("FTPALG_{}", name.to_ascii_uppercase()), &value)?;
    }
    Ok(out)
}

/// The fields of a record that are known, as text.
fn fields(record: &Record) -> Vec<(String, String)> {
    let Ok(Value::Object(all)) = serde_json::to_value(record) else {
        return Vec::new();
    };
    let known = all
        .into_iter()
        .filter(|(name, _)| name != "time" && name != "kind");
    let text = |(name, value)| {
        let text = match value {
            Value::Null => return None,
            Value::String(text) => text,
            Value::Array(list) => {
                let texts = list.iter().map(|item| item.as_str().unwrap_or_default());
                texts.collect::<Vec<_>>().join("; ")
            }
            other => other.to_string(),
        };
        Some((name, text))
    };
    known.filter_map(text).collect()
}

/// A value of structured data (RFC 5424 §6.3.3). Control characters may be in it, but not everybody
/// copes.
fn escaped(value: &str) -> String {
    let mut out = String::new();
    for c in Plain(value).to_string().chars() {
        if matches!(c, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A field of the header: printable ASCII, or a dash.
fn header(text: &str) -> String {
    let plain: String = text
        .chars()
        .filter(char::is_ascii_graphic)
        .take(255)
        .collect();
    match plain.is_empty() {
        true => "-".to_owned(),
        false => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::What;
    use super::*;

    fn login(user: &str) -> Record {
        Record {
            seq: 7,
            time: "2026-11-29T11:27:03.5Z".parse().unwrap(),
            session: Some(3),
            client: Some("198.51.100.7:40113".parse().unwrap()),
            server: Some("10.0.0.2:21".parse().unwrap()),
            what: What::Login {
                user: Some(user.to_owned()),
            },
        }
    }

    #[test]
    fn syslog_has_structured_data() {
        let text = syslog(&login("a\"]\\b\n"), &header("gate way"), 12);
        assert_eq!(
            text,
            "<30>1 2026-11-29T11:27:03.500000Z gateway ftpalg 12 login [ftpalg@32473 \
             client=\"198.51.100.7:40113\" seq=\"7\" server=\"10.0.0.2:21\" session=\"3\" \
             user=\"a\\\"\\]\\\\b\\\\n\"] session 3 logged in as \"a\\\"]\\\\b\\u{a}\""
        );
    }

    #[test]
    fn journald_has_fields_of_its_own() {
        let bytes = journald(&login("two\nlines")).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        for line in [
            "PRIORITY=6\n",
            "SYSLOG_IDENTIFIER=ftpalg\n",
            "FTPALG_KIND=login\n",
            "FTPALG_CLIENT=198.51.100.7:40113\n",
            "FTPALG_USER\n\u{9}\0\0\0\0\0\0\0two\nlines\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text:?}");
        }
    }

    #[test]
    fn messages_are_bounded() {
        let text = syslog(&login(&"ü".repeat(20_000)), "-", 1);
        assert!(
            text.len() <= LONGEST && text.contains("] session 3 logged in as"),
            "{text}"
        );
    }
}
