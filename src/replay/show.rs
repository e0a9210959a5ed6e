//! Shows transcripts: as text for people, or as a JSON value on each line.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::replayer::Summary;
use super::transcript::{Change, Entry, Transcript, What};
use super::words::From;
use super::{End, View};

/// Where transcripts are shown.
pub(super) struct Show<'a> {
    to: &'a mut dyn Write,
    pub(super) view: View,
}

impl<'a> Show<'a> {
    pub(super) fn new(to: &'a mut dyn Write, view: View) -> Self {
        Self { to, view }
    }

    /// Shows a connection, or a part of one. `more`: it goes on.
    pub(super) fn transcript(&mut self, transcript: &Transcript, more: bool) -> io::Result<()> {
        let text = match self.view.json {
            true => format!("{}\n", json_of(transcript, more)),
            false => text_of(transcript, more),
        };
        self.write(&text)
    }

    /// Shows what was counted.
    pub(super) fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let text = match self.view.json {
            true => {
                let value = serde_json::to_value(summary).unwrap_or(Value::Null);
                format!("{}\n", json!({ "type": "summary", "summary": value }))
            }
            false => summary_text(summary),
        };
        self.write(&text)?;
        match self.to.flush() {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
            _ => Ok(()),
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.to.write_all(text.as_bytes())
    }
}

/// Seconds with as many digits as captures have.
fn seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}

/// A time of day in UTC.
fn date(time: Duration) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(time.subsec_micros()).unwrap_or(0) * 1000;
    match jiff::Timestamp::new(seconds, nanos) {
        Ok(time) => format!("{time:.6}"),
        Err(_) => format!("{seconds} s"),
    }
}

fn text_of(transcript: &Transcript, more: bool) -> String {
    let mut text = String::new();
    let name = match transcript.session {
        Some(number) => format!("session {number}"),
        None => "connection".to_owned(),
    };
    let (client, server) = (transcript.client, transcript.server);
    let began = match transcript.continued {
        true => "continued".to_owned(),
        false => date(transcript.began),
    };
    // A string takes anything.
    let _ = writeln!(text, "{name} {client} -> {server}  {began}");
    for entry in &transcript.entries {
        entry_text(&mut text, entry);
    }
    if transcript.left_out > 0 {
        let _ = writeln!(
            text,
            "{:>12}  {} entries are left out",
            "…", transcript.left_out
        );
    }
    if more {
        let _ = writeln!(text, "{:>12}  it goes on below", "…");
    }
    text.push('\n');
    text
}

fn entry_text(text: &mut String, entry: &Entry) {
    let at = seconds(entry.at);
    let _ = match &entry.what {
        What::Line {
            from,
            text: line,
            becomes,
            waited,
        } => {
            let arrow = match from {
                From::Client => '>',
                From::Server => '<',
            };
            let _ = writeln!(text, "{at:>12} {arrow} {line}");
            if let Some((new, change)) = becomes {
                let _ = writeln!(text, "{:>12} = {new}", "");
                let Change { at, old, new } = *change;
                let last = at.saturating_add(u64::try_from(old).unwrap_or(u64::MAX));
                let last = last.saturating_sub(1).max(at);
                let _ = match old == new {
                    true => writeln!(text, "{:>14} bytes {at} to {last}", ""),
                    false => writeln!(text, "{:>14} bytes {at} to {last}: {old} became {new}", ""),
                };
            }
            match waited.is_zero() {
                true => Ok(()),
                false => writeln!(text, "{:>14} went on {} s later", "", seconds(*waited)),
            }
        }
        What::Announced {
            new, from, land, ..
        } if new == land => writeln!(text, "{at:>12} : opens {new} for {from}"),
        What::Announced {
            new, from, land, ..
        } => writeln!(
            text,
            "{at:>12} : opens {new} for {from}, which leads to {land}"
        ),
        What::Note {
            text: note,
            trouble,
            ..
        } => {
            let mark = if *trouble { '!' } else { ':' };
            writeln!(text, "{at:>12} {mark} {note}")
        }
    };
}

fn json_of(transcript: &Transcript, more: bool) -> Value {
    let entries: Vec<Value> = transcript.entries.iter().map(json_of_entry).collect();
    json!({
        "type": "session",
        "session": transcript.session,
        "client": transcript.client,
        "server": transcript.server,
        "began": transcript.began.as_secs_f64(),
        "packets": transcript.packets,
        "rewritten": transcript.rewritten,
        "refused": transcript.refused,
        "troubles": transcript.troubles,
        "continued": transcript.continued,
        "continues": more,
        "left_out": transcript.left_out,
        "entries": entries,
    })
}

fn json_of_entry(entry: &Entry) -> Value {
    let mut value = Map::new();
    let mut set = |name: &str, to: Value| value.insert(name.to_owned(), to);
    set("at", json!(entry.at.as_secs_f64()));
    match &entry.what {
        What::Line {
            from,
            text,
            becomes,
            waited,
        } => {
            let from = match from {
                From::Client => "client",
                From::Server => "server",
            };
            set("kind", json!("line"));
            set("from", json!(from));
            set("text", json!(text));
            if let Some((new, change)) = becomes {
                set("becomes", json!(new));
                set("first_byte", json!(change.at));
                set("old_length", json!(change.old));
                set("new_length", json!(change.new));
            }
            if !waited.is_zero() {
                set("waited", json!(waited.as_secs_f64()));
            }
        }
        What::Announced {
            verb,
            old,
            new,
            from,
            land,
        } => {
            set("kind", json!("announced"));
            set("verb", json!(verb));
            set("old", json!(old));
            set("new", json!(new));
            set("from", json!(from));
            set("land", json!(land));
        }
        What::Note {
            kind,
            text,
            trouble,
        } => {
            set("kind", json!(kind));
            set("text", json!(text));
            set("trouble", json!(trouble));
        }
    }
    Value::Object(value)
}

fn summary_text(summary: &Summary) -> String {
    let Summary {
        packets,
        control,
        sessions,
        failed,
        unfollowed,
        rewritten,
        refused,
        copies,
        offloaded,
        bad_checksum,
        cut,
        fragments,
        neither_inside,
        end,
    } = summary;
    let mut text = format!(
        "{packets} packets, {control} of control connections: {sessions} sessions, {failed} with trouble, \
         {unfollowed} connections not followed; {rewritten} addresses rewritten, {refused} commands or \
         replies refused\n"
    );
    for (count, what) in [
        (
            copies,
            "seen at another place, too (or on the other side of NAT): left out",
        ),
        (
            offloaded,
            "had no checksum yet (the sender's card adds it): computed",
        ),
        (bad_checksum, "had a wrong checksum: not read"),
        (
            cut,
            "were cut by the capture: not read (capture with `-s 0`)",
        ),
        (fragments, "were IP fragments: not read"),
        (
            neither_inside,
            "of control connections had no end inside: left out (--inside, --public)",
        ),
    ] {
        if *count > 0 {
            let _ = writeln!(text, "{count} packets {what}");
        }
    }
    match end {
        End::Whole => {}
        End::CutShort => text.push_str("the capture ends in the middle of a packet\n"),
        End::Damaged(at) => {
            let _ = writeln!(
                text,
                "the capture is damaged behind byte {at}: nothing is read from there"
            );
        }
    }
    text
}
