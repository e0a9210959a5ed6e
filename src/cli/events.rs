//! `ftpalg events`: what happened.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use clap::Args;
use ipnet::IpNet;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde_json::Value;

use super::Failure;
use crate::daemon::control::{self, ControlRequest};
use crate::daemon::events::{KINDS, Record};
use crate::net::parse_network;

#[derive(Args, Clone, Debug)]
pub(super) struct Arguments {
    /// Show what comes as well, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Only what is about sessions of this client, or of clients in this network. May be repeated
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    client: Vec<IpNet>,
    /// Only what is about sessions with this server, or with servers in this network. May be repeated
    #[arg(long, value_name = "CIDR", value_parser = parse_network)]
    server: Vec<IpNet>,
    /// Only what is about this session. May be repeated
    #[arg(long, value_name = "N")]
    session: Vec<u64>,
    /// Only records of these kinds
    ///
    /// session-start, session-end, reading, login, login-refused, transfer, refused, limit, unused,
    /// range-open, range-close, rules-restored, events-missed, start, took-over, addresses, stop, reload
    #[arg(long, value_name = "KIND,…", value_delimiter = ',', value_parser = kind)]
    kind: Vec<&'static str>,
    /// Only what was refused: by ftpalg, by the server, or because of a limit
    #[arg(long)]
    refused: bool,
    /// Only what happened since then: a time (2026-11-29T11:27:03Z), or how long ago (10m, 2h, 1d)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Timestamp>,
    /// Show JSON, one object in a line, with stable field names
    #[arg(long)]
    json: bool,
}

fn kind(text: &str) -> Result<&'static str, String> {
    let known = KINDS.into_iter().find(|kind| *kind == text);
    known.ok_or_else(|| format!("write one of {}", KINDS.join(", ")))
}

/// A point in time, from a time or from how long ago it was.
fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago = || -> Result<Timestamp, jiff::Error> {
        let span: Span = text.parse()?;
        let ago: SignedDuration = span.to_duration(SpanRelativeTo::days_are_24_hours())?;
        Timestamp::now().checked_sub(ago.abs())
    };
    ago().map_err(|_| "write a time like 2026-11-29T11:27:03Z, or how long ago, like 10m".into())
}

pub(super) fn show(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let session = match arguments.session.as_slice() {
        [one] => Some(*one),
        _ => None,
    };
    let request = ControlRequest::Events {
        session,
        follow: arguments.follow,
    };
    let mut to = io::stdout().lock();
    let mut failed = None;
    let mut tell = |value: &Value| match arguments.tell(value, &mut to) {
        Ok(()) => true,
        Err(e) => {
            failed = Some(e);
            false
        }
    };
    if arguments.follow {
        control::follow(request, |value| tell(&value))?;
    } else {
        let answer = control::ask(request)?;
        let records = answer.as_array().map(Vec::as_slice).unwrap_or_default();
        // Until one can't be written.
        let _ = records.iter().all(tell);
    }
    match failed {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::usage(format!(
            "can't write to the standard output: {e}; is the disk full?"
        ))),
        _ => Ok(ExitCode::SUCCESS),
    }
}

impl Arguments {
    /// Shows a record, if it is wanted.
    fn tell(&self, value: &Value, to: &mut impl Write) -> io::Result<()> {
        if let Some(lost) = value.get("lost").and_then(Value::as_u64) {
            if self.json {
                writeln!(to, "{value}")?;
            } else {
                // Nobody is left to be told if this fails.
                let _ = writeln!(
                    io::stderr(),
                    "ftpalg: {lost} records were lost: they came faster than they were read"
                );
            }
            return to.flush();
        }
        if !self.wants(value) {
            return Ok(());
        }
        match serde_json::from_value::<Record>(value.clone()) {
            Ok(record) if !self.json => writeln!(to, "{record}")?,
            // As it came, also from a daemon of another version.
            _ => writeln!(to, "{value}")?,
        }
        to.flush()
    }

    fn wants(&self, value: &Value) -> bool {
        let text = |name| value.get(name).and_then(Value::as_str);
        let within = |networks: &[IpNet], name| {
            let ip = || Some(text(name)?.parse::<SocketAddr>().ok()?.ip());
            let in_one = |ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
            networks.is_empty() || ip().is_some_and(in_one)
        };
        let session = value.get("session").and_then(Value::as_u64);
        let time = || text("time")?.parse::<Timestamp>().ok();
        within(&self.client, "client")
            && within(&self.server, "server")
            && (self.session.is_empty() || session.is_some_and(|n| self.session.contains(&n)))
            && (self.kind.is_empty() || text("kind").is_some_and(|kind| self.kind.contains(&kind)))
            && (!self.refused || is_refusal(value))
            && self
                .since
                .is_none_or(|since| time().is_some_and(|time| time >= since))
    }
}

fn is_refusal(value: &Value) -> bool {
    let record = serde_json::from_value::<Record>(value.clone());
    record.is_ok_and(|record| record.what.is_refusal())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(words: &[&str]) -> Arguments {
        let words = [&["events"], words].concat();
        Line::try_parse_from(words).unwrap().arguments
    }

    fn login() -> Value {
        json!({
            "seq": 5, "time": "2026-11-29T11:27:03.5Z", "session": 3,
            "client": "198.51.100.7:40113", "server": "10.0.0.2:21",
            "kind": "login-refused", "user": "al\u{1b}ice", "reply": 530,
        })
    }

    #[test]
    fn the_help_names_every_kind() {
        let command = Line::command();
        let kind = command.get_arguments().find(|arg| arg.get_id() == "kind");
        let help = kind.unwrap().get_long_help().unwrap().to_string();
        let (_, listed) = help.split_once("\n\n").unwrap();
        let listed: Vec<_> = listed
            .split([',', ' ', '\n'])
            .filter(|word| !word.is_empty())
            .collect();
        assert_eq!(listed, KINDS);
    }

    #[test]
    fn filters_choose() {
        for (words, wanted) in [
            (&[][..], true),
            (&["--client", "198.51.100.7"], true),
            (
                &["--client", "10.9.0.0/16", "--client", "198.51.100.0/24"],
                true,
            ),
            (&["--client", "10.0.0.2"], false),
            (&["--server", "10.0.0.2"], true),
            (&["--server", "10.0.0.3"], false),
            (&["--session", "3"], true),
            (&["--session", "4", "--session", "5"], false),
            (&["--kind", "login,login-refused"], true),
            (&["--kind", "transfer"], false),
            (&["--refused"], true),
            (&["--since", "2026-11-29T11:27:03Z"], true),
            (&["--since", "2026-11-29T11:27:04Z"], false),
            (&["--refused", "--kind", "refused"], false),
        ] {
            assert_eq!(arguments(words).wants(&login()), wanted, "{words:?}");
        }
    }

    #[test]
    fn times_and_how_long_ago() {
        let ago = |text| Timestamp::now().as_second() - since(text).unwrap().as_second();
        for (text, seconds) in [
            ("10m", 600),
            ("2h", 7200),
            ("90s", 90),
            ("1d", 86_400),
            ("1h30m", 5400),
        ] {
            assert!((seconds..seconds + 5).contains(&ago(text)), "{text}");
        }
        assert_eq!(
            since("2026-11-29T12:27:03+01:00").unwrap().to_string(),
            "2026-11-29T11:27:03Z"
        );
        for text in ["", "soon", "10", "yesterday"] {
            assert!(since(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_record_is_one_line_and_does_nothing_to_a_terminal() {
        let mut out = Vec::new();
        arguments(&[]).tell(&login(), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-11-29T11:27:03.500Z session 3 198.51.100.7:40113 -> 10.0.0.2:21 \
             login refused for \"al\\u{1b}ice\": 530\n"
        );
        let mut out = Vec::new();
        arguments(&["--json"]).tell(&login(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), login());
    }
}
