//! `ftpalg status`: how the daemon is.

use std::process::ExitCode;

use serde_json::Value;

use super::table::{Column, span, table, text};
use super::{Failure, Format};
use crate::daemon::control::ControlRequest;

pub(super) fn show(format: Format) -> Result<ExitCode, Failure> {
    let answer = super::show(ControlRequest::Status, format, describe)?;
    Ok(match answer.get("in_place") {
        Some(Value::Bool(true)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// What is shown first, in this order.
const LINES: [Column; 22] = [
    ("in place", "in_place", text),
    ("missing", "missing", text),
    ("inside", "inside", text),
    ("this host served", "local", text),
    ("control ports", "ports", text),
    ("of implicit FTPS", "implicit_ports", text),
    ("sessions", "sessions", text),
    ("pinholes", "pinholes", text),
    ("ranges under TLS", "ranges", text),
    ("data connections", "data_connections", text),
    ("backend", "backend", text),
    ("rules", "rules", text),
    ("fail", "fail", text),
    ("mark", "mark", hex),
    ("data ports", "data_ports", text),
    ("pinholes wait", "deadline", span),
    ("bytes counted", "accounting", text),
    ("TLS", "tls", text),
    ("ranges wait", "tls_idle", span),
    ("lines lost", "lines_lost", text),
    ("running for", "uptime", span),
    ("pid", "pid", text),
];

/// A line for each single value, the table of queues, and the counters that aren't zero.
fn describe(status: &Value) -> String {
    let field = |name| status.get(name).unwrap_or(&Value::Null);
    let mut out = format!("ftpalg {}\n", text(field("version")));
    for (label, name, show) in LINES {
        out.push_str(&format!("{label}: {}\n", show(field(name))));
    }
    let columns: [Column; 8] = [
        ("QUEUE", "queue", text),
        ("WAITING", "waiting", text),
        ("QUEUED", "queued", text),
        ("DROPPED-FULL", "dropped_full", text),
        ("DROPPED-BUFFER", "dropped_buffer", text),
        ("RECEIVE-ERRORS", "receive_errors", text),
        ("VERDICT-ERRORS", "verdict_errors", text),
        ("UNKNOWN-HOOK", "unknown_hook", text),
    ];
    out.push_str(&table(field("queues"), &columns, "no queues"));
    for (name, label) in [("counters", "control connections"), ("nat", "pinholes")] {
        out.push_str(&format!(
            "{label}, counted since the start (zeros left out):\n"
        ));
        let counts = field(name).as_object().into_iter().flatten();
        for (name, count) in counts.filter(|(_, n)| n.as_u64() != Some(0)) {
            out.push_str(&format!("  {}: {count}\n", name.replace('_', " ")));
        }
    }
    out
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
    use serde_json::json;

    #[test]
    fn a_person_can_read_it() {
        let status = json!({
            "pid": 7,
            "in_place": true,
            "missing": [],
            "queues": [{"queue": 2121, "waiting": 0}],
            "mark": 1 << 30,
            "uptime": 125,
            "counters": {"mid_stream": 5, "refused": 0},
            "nat": {"opened": 3, "expired": 0},
        });
        let text = describe(&status);
        for part in [
            "pid: 7\n",
            "in place: yes\n",
            "missing: -\n",
            "2121",
            "mark: 0x40000000\n",
            "running for: 2m05s\n",
            "  mid stream: 5\n",
            "  opened: 3\n",
        ] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        for zero in ["refused", "expired"] {
            assert!(!text.contains(zero), "{text}");
        }
    }
}
