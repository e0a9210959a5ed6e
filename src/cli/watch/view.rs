//! Draws the view.

use clap::builder::styling;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::Paragraph;
use serde_json::Value;

use super::model::{Link, Model, Sort, id};
use crate::cli::table::{Column, fitted};
use crate::cli::units::{bytes, duration, size, span, text};
use crate::daemon::events::Record;

const KEYS: &str = "↑↓ choose  Enter details  s sort  r reverse  / filter  b bytes  q leave";
const DETAIL_KEYS: &str = "Esc back  ↑↓ scroll  b bytes  q leave";

pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let [title, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(model), title);
    if model.in_detail {
        frame.render_widget(details(model, body), body);
    } else {
        frame.render_widget(list(model, body), body);
    }
    let dim = Style::new().add_modifier(Modifier::DIM);
    let line = match (model.writing, model.in_detail) {
        (true, _) => Line::from(format!(
            "filter: {}_  (Enter: done, Esc: none)",
            model.filter
        )),
        (_, true) => Line::styled(DETAIL_KEYS, dim),
        (_, false) => Line::styled(KEYS, dim),
    };
    frame.render_widget(line, keys);
}

/// How many there are, or that nobody says so.
fn headline(model: &Model) -> Line<'static> {
    let style = Style::new().add_modifier(Modifier::BOLD);
    if let Link::Lost(why, since) = &model.link {
        let style = match model.colors {
            true => style.fg(Color::Red),
            false => style.add_modifier(Modifier::REVERSED),
        };
        let time = duration(since.elapsed().as_secs());
        let why = match why.contains("doesn't run") {
            true => "ftpalg has ended",
            false => "ftpalg doesn't answer",
        };
        return Line::styled(
            format!("{why} ({time} ago): this is what was there; waiting for it"),
            style,
        );
    }
    let sessions = match model.count() {
        1 => "1 session".to_owned(),
        n => format!("{n} sessions"),
    };
    let order = if model.descending { ", descending" } else { "" };
    let mut line = format!(
        "ftpalg: {sessions}, {}/s, by {}{order}",
        amount(model, model.total_rate()),
        model.sort.name()
    );
    if !model.filter.is_empty() {
        line.push_str(&format!(
            ", {} with \"{}\"",
            model.rows().len(),
            model.filter
        ));
    }
    Line::styled(line, style)
}

fn amount(model: &Model, count: u64) -> String {
    match model.full_bytes {
        true => format!("{count} B"),
        false => bytes(count),
    }
}

/// The columns, the one that sorts never left out.
fn columns(model: &Model) -> Vec<Column> {
    let bytes = if model.full_bytes { text } else { size };
    let all = [
        (Sort::Session, Column::new("SESSION", "id", text).right()),
        (Sort::Client, Column::new("CLIENT", "client", text)),
        (Sort::Server, Column::new("SERVER", "server", text)),
        (Sort::State, Column::new("STATE", "state", text)),
        (
            Sort::Age,
            Column::new("AGE", "age", span).right().or_left_out(3),
        ),
        (
            Sort::Idle,
            Column::new("IDLE", "idle", span).right().or_left_out(2),
        ),
        (
            Sort::Data,
            Column::new("DATA", "data_connections", text)
                .right()
                .or_left_out(4),
        ),
        (
            Sort::Bytes,
            Column::new("BYTES", "bytes", bytes).right().or_left_out(1),
        ),
        (Sort::Rate, Column::new("RATE/s", "rate", bytes).right()),
    ];
    let kept = |(sort, column): (Sort, Column)| match sort == model.sort {
        true => column.or_left_out(0),
        false => column,
    };
    all.into_iter().map(kept).collect()
}

/// The list of sessions, with the chosen one in it.
fn list(model: &mut Model, area: Rect) -> Paragraph<'static> {
    let rows: Vec<Value> = model.rows().into_iter().cloned().collect();
    let none = match model.count() {
        0 => "no sessions",
        _ => "no session matches the filter",
    };
    let count = rows.len();
    let chosen = rows
        .iter()
        .position(|row| model.chosen.is_some() && id(row) == model.chosen);
    let plain = styling::Style::new();
    let table = fitted(
        &Value::Array(rows),
        &columns(model),
        none,
        area.width.into(),
        plain,
    );
    if count == 0 {
        return Paragraph::new(table);
    }
    let lines: Vec<&str> = table.lines().collect();
    // Each row takes as many lines as the heading does.
    let height = lines.len() / (count + 1);
    let room = (usize::from(area.height) / height.max(1))
        .saturating_sub(1)
        .max(1);
    model.room = room;
    if let Some(chosen) = chosen {
        model.top = model.top.clamp((chosen + 1).saturating_sub(room), chosen);
    }
    model.top = model.top.min(count.saturating_sub(room));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    let shown = lines
        .chunks(height.max(1))
        .enumerate()
        .filter_map(|(row, lines)| {
            let (style, is_shown) = match row.checked_sub(1) {
                None => (bold, true),
                Some(at) if Some(at) == chosen => (reversed, at >= model.top),
                Some(at) => (Style::new(), at >= model.top),
            };
            is_shown.then(|| {
                lines
                    .iter()
                    .map(move |line| Line::styled((*line).to_owned(), style))
            })
        });
    Paragraph::new(Text::from_iter(shown.flatten()))
}

/// All that is known of the chosen session.
fn details(model: &mut Model, area: Rect) -> Paragraph<'static> {
    let Some(session) = &model.last else {
        return Paragraph::new("no session is chosen");
    };
    let field = |name: &str| session.get(name).unwrap_or(&Value::Null);
    let seconds = |name| duration(field(name).as_u64().unwrap_or_default());
    let size = |name| match field(name).as_u64() {
        Some(count) => amount(model, count),
        None => "not counted".to_owned(),
    };
    let mut lines = vec![
        format!(
            "session {}: {} -> {}",
            text(field("id")),
            text(field("client")),
            text(field("server"))
        ),
        match model.has_ended() {
            true => "has ended; this is what was there last".to_owned(),
            false => format!("state      {}", text(field("state"))),
        },
        format!(
            "followed   {}",
            match field("not_followed") {
                Value::Null => "yes".to_owned(),
                why => format!("no: {}", text(why)),
            }
        ),
        format!(
            "age        {}, without a packet for {}",
            seconds("age"),
            seconds("idle")
        ),
        format!(
            "announced  {} addresses went out, {} were refused or got no pinhole",
            text(field("announced")),
            text(field("refused"))
        ),
        format!(
            "numbers    {} bytes to the server, {} bytes to the client",
            signed(field("delta_to_server")),
            signed(field("delta_to_client"))
        ),
        format!("held       {} bytes", text(field("buffered"))),
        format!(
            "data       {} connections, {}, {}/s",
            text(field("data_connections")),
            size("bytes"),
            match field("rate") {
                Value::Null => "-".to_owned(),
                _ => size("rate"),
            }
        ),
    ];
    if !field("range").is_null() {
        lines.push(format!(
            "range      ports {} are open to its client",
            text(field("range"))
        ));
    }
    let width = usize::from(area.width);
    lines.extend(broken(
        &format!("dialogue   {}", dialogue(&model.said)),
        width,
    ));
    lines.push(String::new());
    let own: Vec<Value> = model
        .pinholes
        .iter()
        .filter(|hole| hole.get("session") == session.get("id"))
        .cloned()
        .collect();
    let pinholes = [
        Column::new("PINHOLE", "id", text).right(),
        Column::new("MODE", "mode", text).or_left_out(2),
        Column::new("FROM", "from", text),
        Column::new("TO", "to", text),
        Column::new("LAND", "land", text),
        Column::new("STATE", "state", text),
        Column::new("EXPIRES", "expires_in", span)
            .right()
            .or_left_out(1),
    ];
    let none = "no pinhole waits, and no data connection is there";
    let table = fitted(
        &Value::Array(own),
        &pinholes,
        none,
        width,
        styling::Style::new(),
    );
    lines.extend(table.lines().map(str::to_owned));
    lines.extend(records(model, session.get("id"), width));
    let most = lines.len().saturating_sub(area.height.into());
    model.scroll = model.scroll.min(u16::try_from(most).unwrap_or(u16::MAX));
    let text = Text::from_iter(lines.into_iter().map(Line::from));
    Paragraph::new(text).scroll((model.scroll, 0))
}

/// Commands with their replies, the latest last.
fn dialogue(said: &[Value]) -> String {
    let mut text = String::new();
    for line in said {
        match (line.get("command"), line.get("reply")) {
            (Some(Value::String(verb)), _) => {
                text += if text.is_empty() { "" } else { ", " };
                text += verb;
            }
            (_, Some(code)) => text += &format!(" {code}"),
            _ => {}
        }
    }
    match text.trim_start() {
        "" => "nothing was said since this is looked at".to_owned(),
        text => text.to_owned(),
    }
}

/// What happened in a session, the latest first: logins, transfers, refusals. Long lines go on in the next.
fn records(model: &Model, session: Option<&Value>, width: usize) -> Vec<String> {
    let own = model.records.iter().rev();
    let own = own.filter(|record| record.get("session") == session);
    let texts = own.filter_map(|value| serde_json::from_value::<Record>(value.clone()).ok());
    let mut lines = Vec::new();
    let told = |record: Record| format!("{} {}", record.time.strftime("%H:%M:%S"), record.what);
    for text in texts.map(told) {
        if lines.is_empty() {
            lines.extend([
                String::new(),
                "what happened (UTC), the latest first".to_owned(),
            ]);
        }
        lines.extend(broken(&text, width));
    }
    lines
}

/// In lines of this width.
fn broken(text: &str, width: usize) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    letters
        .chunks(width.max(1))
        .map(String::from_iter)
        .collect()
}

/// A number with its sign.
fn signed(value: &Value) -> String {
    value
        .as_i64()
        .map_or_else(|| text(value), |n| format!("{n:+}"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyCode, KeyEvent};
    use serde_json::json;

    use super::super::model::tests::{session, snapshot};
    use super::*;
    use crate::daemon::control::AskError;

    fn shown(model: &mut Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(width.into());
        let text = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>());
        text.map(|line| line.trim_end().to_owned()).collect()
    }

    fn model(count: u64) -> Model {
        let sessions =
            (1..=count).map(|n| session(n, &format!("198.51.100.{n}:4000"), Some(n * 1024)));
        let sessions = Value::Array(sessions.collect());
        Model::new(snapshot(Instant::now(), sessions), false, true)
    }

    fn press(model: &mut Model, code: KeyCode) {
        assert!(!model.key(KeyEvent::from(code)));
    }

    #[test]
    fn the_list_fits_its_screen() {
        let mut model = model(2);
        let lines = shown(&mut model, 80, 6);
        assert_eq!(lines[0], "ftpalg: 2 sessions, 0 B/s, by session");
        assert!(
            lines[1].starts_with("SESSION  CLIENT             SERVER       STATE"),
            "{lines:#?}"
        );
        assert!(lines[1].ends_with("RATE/s"), "{lines:#?}");
        assert!(lines[2].contains("198.51.100.1:4000") && lines[2].contains("1.00 KiB"));
        assert!(lines[5].contains("q leave"), "{lines:#?}");
        // With less room, columns are left out, but not the one that sorts.
        for _ in 0..4 {
            press(&mut model, KeyCode::Char('s'));
        }
        let lines = shown(&mut model, 62, 6);
        assert!(
            lines[1].contains("AGE") && !lines[1].contains("IDLE"),
            "{lines:#?}"
        );
        for (width, height) in [(1, 1), (10, 2), (200, 3), (80, 1)] {
            shown(&mut model, width, height);
        }
    }

    #[test]
    fn the_chosen_one_is_always_on_the_screen() {
        let mut model = model(100);
        let has = |lines: &[String], n: u64| {
            let client = format!("198.51.100.{n}:4000");
            lines.iter().any(|line| line.contains(&client))
        };
        let lines = shown(&mut model, 80, 13);
        assert!(
            has(&lines, 1) && has(&lines, 10) && !has(&lines, 11),
            "{lines:#?}"
        );
        press(&mut model, KeyCode::End);
        let lines = shown(&mut model, 80, 13);
        assert!(
            has(&lines, 100) && has(&lines, 91) && !has(&lines, 90),
            "{lines:#?}"
        );
        press(&mut model, KeyCode::PageUp);
        assert!(has(&shown(&mut model, 80, 13), 90));
        press(&mut model, KeyCode::Home);
        assert!(has(&shown(&mut model, 80, 13), 1));
        // The screen becomes smaller.
        press(&mut model, KeyCode::End);
        assert!(has(&shown(&mut model, 80, 5), 100));
    }

    #[test]
    fn details_say_what_is_different_and_why() {
        let mut other = session(2, "198.51.100.2:4000", Some(2048));
        other["not_followed"] = json!("TLS");
        let sessions = json!([session(1, "198.51.100.1:4000", None), other]);
        let mut model = Model::new(snapshot(Instant::now(), sessions), false, false);
        press(&mut model, KeyCode::End);
        press(&mut model, KeyCode::Enter);
        let lines = shown(&mut model, 80, 24);
        for line in [
            "session 2: 198.51.100.2:4000 -> 10.0.0.2:21",
            "followed   no: TLS",
            "numbers    +0 bytes to the server, +12 bytes to the client",
            "data       1 connections, 2.00 KiB, -/s",
            "dialogue   PASV 227, RETR 150 226",
        ] {
            assert!(lines.iter().any(|l| l == line), "{line:?} in {lines:#?}");
        }
        assert!(
            lines.iter().any(|l| l.contains("203.0.113.1:50011")),
            "its pinhole: {lines:#?}"
        );
        let login = |lines: &[String]| lines.iter().any(|l| l == "11:27:03 logged in as \"alice\"");
        assert!(login(&lines), "its records: {lines:#?}");
        press(&mut model, KeyCode::Esc);
        press(&mut model, KeyCode::Home);
        press(&mut model, KeyCode::Enter);
        let lines = shown(&mut model, 80, 24);
        assert!(lines.iter().any(|l| l == "followed   yes"), "{lines:#?}");
        assert!(
            !lines.iter().any(|l| l.contains("203.0.113.1:50011")),
            "another's: {lines:#?}"
        );
        assert!(!login(&lines), "another's: {lines:#?}");
        model.update(Ok(snapshot(Instant::now(), json!([]))));
        let lines = shown(&mut model, 80, 24);
        assert!(lines[2].starts_with("has ended"), "{lines:#?}");
        // Scrolling ends where there is no more.
        for _ in 0..100 {
            press(&mut model, KeyCode::Down);
        }
        let lines = shown(&mut model, 80, 6);
        assert!(lines[4].starts_with("no pinhole waits"), "{lines:#?}");
    }

    #[test]
    fn a_daemon_that_has_ended_is_told() {
        let mut model = model(1);
        model.update(Err(AskError::NotRunning(String::new())));
        let lines = shown(&mut model, 80, 6);
        assert!(lines[0].starts_with("ftpalg has ended ("), "{lines:#?}");
        assert!(lines[2].contains("198.51.100.1:4000"), "{lines:#?}");
        model.update(Ok(snapshot(Instant::now(), json!([]))));
        let lines = shown(&mut model, 80, 6);
        assert!(lines[0].starts_with("ftpalg: 0 sessions"), "{lines:#?}");
        assert_eq!(lines[1], "no sessions");
    }
}
