//! `ftpalg status`: how the daemon is.

use std::process::ExitCode;

use clap::Args;
use clap::builder::styling::{AnsiColor, Style};
use serde_json::{Value, json};

use super::table::{self, Column, table};
use super::units::{bytes, duration, span, text};
use super::{Failure, Format, NOT_RUNNING};
use crate::daemon::control::{AskError, ControlRequest, ask};
use crate::daemon::lock;
use crate::firewall::xtables::tools::Tools;
use crate::firewall::{Left, Rules, Unread};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    format: Format,
    /// Show the settings, the queues and all counters, too
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
}

pub(super) fn show(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Format { json, bytes } = arguments.format;
    match ask(ControlRequest::Status) {
        Ok(status) => {
            let page = Page {
                status: &status,
                full_bytes: bytes,
            };
            super::print(&match json {
                true => format!("{status:#}\n"),
                false => page.text(arguments.verbose),
            })?;
            Ok(match status.get("in_place") {
                Some(Value::Bool(true)) => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            })
        }
        Err(AskError::NotRunning(who)) => Err(not_running(json, who)?),
        Err(e) => Err(e.into()),
    }
}

/// Says that none runs, and what of it is there all the same.
fn not_running(json: bool, who: String) -> Result<Failure, Failure> {
    // If the lock is taken, one starts or ends just now, and its rules come or go.
    let left = match lock::is_held() {
        Some(true) => None,
        _ => left_behind(),
    };
    if json {
        let there = left.map(|left| !left.is_nothing());
        let control = left
            .and_then(|left| left.control)
            .map(|control| match control {
                Unread::Dropped => "dropped",
                Unread::Passed => "passed",
            });
        let answer = json!({"running": false, "rules_left": there, "control_packets": control});
        super::print(&format!("{answer:#}\n"))?;
    }
    let line = match left {
        Some(left) if !left.is_nothing() => format!("{}{who}", of_left(left)),
        _ => AskError::NotRunning(who).to_string(),
    };
    Ok(Failure {
        lines: vec![line],
        code: NOT_RUNNING,
    })
}

/// What of ours is in the kernel; `None` if that can't be told.
fn left_behind() -> Option<Left> {
    match Rules::new(Tools::find()).left() {
        Ok(left) => Some(left),
        Err(e) => {
            log::debug!("whether rules are left can't be told: {e}");
            None
        }
    }
}

fn of_left(left: Left) -> String {
    let what = match (left.rules, left.control) {
        (0, _) => "its tables are still here",
        (_, None) => "some of its rules are still here",
        (_, Some(Unread::Dropped)) => "its rules are still here: FTP is being dropped",
        (_, Some(Unread::Passed)) => "its rules are still here: FTP passes unread",
    };
    format!(
        "NOT RUNNING, and {what}; start it (`systemctl start ftpalg`, `ftpalg run`), or \
         `ftpalg rules remove`"
    )
}

/// The width of the page, and of the labels at its left.
const WIDTH: usize = 80;
const LABEL: usize = 11;

/// A setting: its label, its field, and how that is shown.
type Setting = (&'static str, &'static str, fn(&Value) -> String);

/// The settings, in this order.
const SETTINGS: [Setting; 16] = [
    ("control ports", "ports", text),
    ("of implicit FTPS", "implicit_ports", text),
    ("this host served", "local", text),
    ("backend", "backend", text),
    ("rules", "rules", text),
    ("steering", "steering", text),
    ("fail", "fail", text),
    ("mark", "mark", hex),
    ("data ports", "data_ports", text),
    ("NAT64", "nat64", text),
    ("pinholes wait", "deadline", seconds),
    ("TLS", "tls", text),
    ("ranges wait", "tls_idle", seconds),
    ("bytes counted", "accounting", text),
    ("metrics", "metrics", text),
    ("pid", "pid", text),
];

/// What an admin may want to look into, if it isn't 0: the field, and what it means.
const ATTENTION: [(&str, &str); 22] = [
    (
        "/nat/restored",
        "times that rules which somebody else removed were put back",
    ),
    (
        "/nat/restore_failures",
        "times that such rules couldn't be put back",
    ),
    (
        "/nat/kernel_errors",
        "changes of pinholes that the kernel refused",
    ),
    ("/nat/no_port", "data connections refused: no port was free"),
    (
        "/nat/limited_total",
        "data connections refused: limit pinholes",
    ),
    (
        "/nat/limited_per_client",
        "data connections refused: limit pinholes-per-client",
    ),
    (
        "/nat/limited_rate",
        "data connections refused: limit pinholes-per-minute",
    ),
    (
        "/nat/limited_rate_per_client",
        "data connections refused: limit pinholes-per-client-per-minute",
    ),
    (
        "/nat/limited_sessions",
        "sessions beyond the limit sessions",
    ),
    (
        "/nat/limited_sessions_per_client",
        "sessions beyond the limit sessions-per-client",
    ),
    (
        "/nat/missed_events",
        "times that conntrack's events were lost",
    ),
    (
        "/counters/table_full",
        "connections passed unread: the table was full",
    ),
    (
        "/counters/limit_reached",
        "sessions no longer read: limits on buffers",
    ),
    (
        "/counters/not_opened",
        "announcements that passed without a pinhole",
    ),
    (
        "/counters/orphaned",
        "packets of sessions that nobody can go on with",
    ),
    (
        "/counters/mark_errors",
        "failures to set a connection's mark",
    ),
    (
        "/journal/errors",
        "failures to write what a successor must know",
    ),
    ("/store/errors", "failures of the store"),
    ("/lines_lost", "printed lines lost: nobody read them"),
    ("/queue_drops", "packets dropped: a queue was full"),
    ("/queue_errors", "failures to receive or answer packets"),
    (
        "/queue_unknown",
        "packets that no rule of ftpalg's sent to the queue",
    ),
];

/// The daemon's answer, to be read by a person.
struct Page<'a> {
    status: &'a Value,
    /// Bytes are shown in full.
    full_bytes: bool,
}

impl Page<'_> {
    fn text(&self, verbose: bool) -> String {
        let mut out = self.verdict();
        let missing = self.missing();
        let rules = [self.rules(missing.len())].into_iter();
        let rules = rules.chain(missing.iter().map(|one| format!("- {one}")));
        let mut attention = self.attention();
        if attention.is_empty() {
            attention.push("nothing".into());
        }
        for (label, lines) in [
            ("rules", rules.collect()),
            ("inside", folded(&self.inside(), "; ")),
            ("now", folded(&self.now(), ", ")),
            ("so far", folded(&self.so_far(), ", ")),
            ("attention", attention),
        ] {
            for (at, line) in lines.iter().enumerate() {
                let label = if at == 0 { label } else { "" };
                out.push_str(&format!("{label:<LABEL$}{line}\n"));
            }
        }
        if verbose {
            out.push_str(&self.settings());
        }
        out
    }

    fn at(&self, pointer: &str) -> &Value {
        self.status.pointer(pointer).unwrap_or(&Value::Null)
    }

    fn count(&self, pointer: &str) -> u64 {
        match pointer {
            "/queue_drops" => self.of_queues(&["dropped_full", "dropped_buffer"]),
            "/queue_errors" => self.of_queues(&["receive_errors", "verdict_errors"]),
            "/queue_unknown" => self.of_queues(&["unknown_hook"]),
            _ => self.at(pointer).as_u64().unwrap_or_default(),
        }
    }

    fn of_queues(&self, fields: &[&str]) -> u64 {
        let queues = self.at("/queues").as_array().into_iter().flatten();
        let counts = queues.flat_map(|queue| fields.iter().map(|field| queue.get(*field)));
        counts.flatten().filter_map(Value::as_u64).sum()
    }

    fn missing(&self) -> Vec<String> {
        let missing = self.at("/missing").as_array().into_iter().flatten();
        missing.map(text).collect()
    }

    /// The first line.
    fn verdict(&self) -> String {
        let mut but = Vec::new();
        if self.at("/in_place") != true {
            but.push(match self.missing().len() {
                1 => "a rule is missing".to_owned(),
                _ => "rules are missing".to_owned(),
            });
        }
        if self.at("/journal/works") == false {
            but.push("what a successor must know can't be written".into());
        }
        if self.at("/store/works") == false {
            but.push("the store doesn't answer".into());
        }
        let time = duration(self.count("/uptime"));
        let (verdict, color) = match but.is_empty() {
            true => (format!("working for {time}"), AnsiColor::Green),
            false => (
                format!("working, but {}", but.join(", and ")),
                AnsiColor::Yellow,
            ),
        };
        let style = table::style(Style::new().bold().fg_color(Some(color.into())));
        let (version, pid) = (text(self.at("/version")), text(self.at("/pid")));
        let since = match but.is_empty() {
            true => String::new(),
            false => format!(", for {time}"),
        };
        format!("{style}{verdict}{style:#} (ftpalg {version}, pid {pid}{since})\n")
    }

    fn rules(&self, missing: usize) -> String {
        let who = match self.at("/rules").as_str() {
            Some("external") => "yours (--rules external)",
            _ => "ftpalg's own",
        };
        let state = match missing {
            0 => "in place".to_owned(),
            n => format!("{n} missing"),
        };
        let steering = match self.at("/steering").as_str() {
            Some("nft") => "steering nft, ",
            _ => "",
        };
        format!(
            "{state}, {who}; {steering}backend {}",
            text(self.at("/backend"))
        )
    }

    fn inside(&self) -> Vec<String> {
        let mut sides: Vec<_> = match self.at("/inside").as_array() {
            Some(sides) => sides.iter().map(text).collect(),
            None => Vec::new(),
        };
        if self.at("/local") == true {
            sides.push("this host itself".into());
        }
        let ports = text(self.at("/ports"));
        let s = if ports.contains(',') { "s" } else { "" };
        vec![sides.join(", "), format!("control port{s} {ports}")]
    }

    fn now(&self) -> Vec<String> {
        let many = |field, one, more| many(self.count(field), one, more);
        let mut parts = vec![
            many("/sessions", "session", "sessions"),
            many("/pinholes", "pinhole waits", "pinholes wait"),
            many("/data_connections", "data connection", "data connections"),
        ];
        if self.count("/ranges") > 0 {
            parts.push(many("/ranges", "range under TLS", "ranges under TLS"));
        }
        parts
    }

    fn so_far(&self) -> Vec<String> {
        let many = |field, one, more| many(self.count(field), one, more);
        let mut parts = vec![
            many("/counters/sessions", "session", "sessions"),
            many(
                "/counters/announced",
                "address announced",
                "addresses announced",
            ),
            format!("{} of them rewritten", self.count("/counters/rewritten")),
            many("/nat/used", "data connection", "data connections"),
        ];
        let carried = self.count("/carried");
        if self.at("/accounting") == true || carried > 0 {
            parts.push(match self.full_bytes {
                true => format!("{carried} bytes"),
                false => bytes(carried),
            });
        }
        if self.count("/counters/refused") > 0 {
            parts.push(many(
                "/counters/refused",
                "command refused",
                "commands refused",
            ));
        }
        parts
    }

    fn attention(&self) -> Vec<String> {
        let worth = ATTENTION.iter().filter_map(|(field, meaning)| {
            let count = self.count(field);
            (count > 0).then(|| format!("{count} {meaning}"))
        });
        let mut worth: Vec<_> = worth.collect();
        if self.at("/accounting") == false {
            worth.push("bytes aren't counted: sysctl -w net.netfilter.nf_conntrack_acct=1".into());
        }
        worth
    }

    /// Settings, queues, and the counters that aren't zero.
    fn settings(&self) -> String {
        let field = |name| self.status.get(name).unwrap_or(&Value::Null);
        let mut out = "\nsettings\n".to_owned();
        for (label, name, show) in SETTINGS {
            out.push_str(&format!("  {label}: {}\n", show(field(name))));
        }
        for (name, limit) in field("limits").as_object().into_iter().flatten() {
            let name = name.replace('_', "-");
            out.push_str(&format!("  limit {name}: {limit}\n"));
        }
        let columns: [Column; 8] = [
            Column::new("QUEUE", "queue", text).right(),
            Column::new("WAITING", "waiting", text).right(),
            Column::new("QUEUED", "queued", text).right(),
            Column::new("FULL", "dropped_full", text).right(),
            Column::new("BUFFER", "dropped_buffer", text).right(),
            Column::new("RECEIVE-ERR", "receive_errors", text).right(),
            Column::new("VERDICT-ERR", "verdict_errors", text).right(),
            Column::new("UNKNOWN", "unknown_hook", text).right(),
        ];
        out.push('\n');
        out.push_str(&table(field("queues"), &columns, "no queues"));
        for (name, label) in [("counters", "control connections"), ("nat", "pinholes")] {
            out.push_str(&format!(
                "\n{label}, counted since the start (zeros left out)\n"
            ));
            let counts = field(name).as_object().into_iter().flatten();
            for (name, count) in counts.filter(|(_, n)| n.as_u64() != Some(0)) {
                out.push_str(&format!("  {}: {count}\n", name.replace('_', " ")));
            }
        }
        out
    }
}

/// Parts with `between` them, in lines that fit beside their label.
fn folded(parts: &[String], between: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if LABEL + line.len() + between.len() + part.len() < WIDTH => {
                line.push_str(between);
                line.push_str(part);
            }
            Some(line) => {
                line.push_str(between.trim_end());
                lines.push(part.clone());
            }
            None => lines.push(part.clone()),
        }
    }
    lines
}

fn many(count: u64, one: &str, more: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        n => format!("{n} {more}"),
    }
}

/// A number of seconds.
fn seconds(value: &Value) -> String {
    value.as_u64().map_or_else(|| span(value), duration)
}

/// A bit of a mark, as iptables writes it.
fn hex(value: &Value) -> String {
    value
        .as_u64()
        .map_or_else(|| text(value), |bits| format!("{bits:#x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({
            "version": "0.1.0",
            "pid": 7,
            "in_place": true,
            "missing": [],
            "rules": "manage",
            "backend": "nft",
            "inside": ["eth1", "10.0.0.0/8"],
            "local": false,
            "ports": [21],
            "accounting": true,
            "sessions": 1,
            "pinholes": 0,
            "data_connections": 2,
            "queues": [{"queue": 2121, "waiting": 0, "dropped_full": 0}],
            "mark": 1 << 30,
            "nat64": ["64:ff9b::/96"],
            "metrics": null,
            "uptime": 273_600,
            "counters": {"mid_stream": 5, "refused": 0, "sessions": 12, "announced": 1, "rewritten": 1},
            "nat": {"opened": 3, "expired": 0, "used": 3},
            "carried": 1_070_652,
        })
    }

    fn page(status: &Value, verbose: bool) -> String {
        let full_bytes = false;
        Page { status, full_bytes }.text(verbose)
    }

    #[test]
    fn it_opens_with_a_verdict() {
        assert_eq!(
            page(&status(), false),
            "working for 3 d 4 h (ftpalg 0.1.0, pid 7)\n\
             rules      in place, ftpalg's own; backend nft\n\
             inside     eth1, 10.0.0.0/8; control port 21\n\
             now        1 session, 0 pinholes wait, 2 data connections\n\
             so far     12 sessions, 1 address announced, 1 of them rewritten,\n           \
                        3 data connections, 1.02 MiB\n\
             attention  nothing\n"
        );
    }

    #[test]
    fn bytes_may_be_shown_in_full() {
        let status = status();
        let full_bytes = true;
        let text = Page {
            status: &status,
            full_bytes,
        }
        .text(false);
        assert!(text.contains(", 1070652 bytes\n"), "{text}");
    }

    #[test]
    fn what_is_wrong_stands_in_its_first_line() {
        let mut status = status();
        status["in_place"] = json!(false);
        status["missing"] = json!(["raw: rule is gone: A", "filter: rule is gone: B"]);
        status["journal"] = json!({"works": false, "errors": 3});
        status["queues"][0]["dropped_full"] = json!(9);
        status["accounting"] = json!(false);
        let text = page(&status, false);
        let first = "working, but rules are missing, and what a successor must know can't be written \
                     (ftpalg 0.1.0, pid 7, for 3 d 4 h)";
        assert_eq!(text.lines().next(), Some(first));
        for line in [
            "rules      2 missing, ftpalg's own; backend nft",
            "           - raw: rule is gone: A",
            "           - filter: rule is gone: B",
            "attention  3 failures to write what a successor must know",
            "           9 packets dropped: a queue was full",
            "           bytes aren't counted: sysctl -w net.netfilter.nf_conntrack_acct=1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} in {text}");
        }
    }

    #[test]
    fn settings_and_counters_are_shown_if_asked_for() {
        let short = page(&status(), false);
        let long = page(&status(), true);
        for part in [
            "  mark: 0x40000000\n",
            "  NAT64: 64:ff9b::/96\n",
            "  metrics: -\n",
            "  mid stream: 5\n",
            "  opened: 3\n",
            "2121",
        ] {
            assert!(long.contains(part), "{part:?} in {long}");
            assert!(!short.contains(part), "{part:?} in {short}");
        }
        for zero in ["refused", "expired"] {
            assert!(!long.contains(zero), "{long}");
        }
    }

    #[test]
    fn what_is_left_is_told_with_what_it_does() {
        let left = |rules, control| {
            of_left(Left {
                rules,
                tables: 2,
                control,
            })
        };
        let dropped = left(8, Some(Unread::Dropped));
        assert!(
            dropped.starts_with(
                "NOT RUNNING, and its rules are still here: FTP is being dropped; start"
            ),
            "{dropped}"
        );
        assert!(dropped.ends_with("or `ftpalg rules remove`"), "{dropped}");
        assert!(left(8, Some(Unread::Passed)).contains("FTP passes unread"));
        assert!(left(0, None).contains("its tables are still here"));
        assert!(left(3, None).contains("some of its rules"));
    }
}
