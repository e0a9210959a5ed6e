//! What the view shows, and what keys do to it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use super::Snapshot;
use crate::daemon::control::AskError;

/// The longest filter.
const LONGEST: usize = 64;

/// By what sessions are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    Session,
    Client,
    Server,
    State,
    Age,
    Idle,
    Data,
    Bytes,
    Rate,
}

impl Sort {
    const ALL: [Self; 9] = [
        Self::Session,
        Self::Client,
        Self::Server,
        Self::State,
        Self::Age,
        Self::Idle,
        Self::Data,
        Self::Bytes,
        Self::Rate,
    ];

    /// The field of a session.
    pub(super) const fn field(self) -> &'static str {
        match self {
            Self::Session => "id",
            Self::Client => "client",
            Self::Server => "server",
            Self::State => "state",
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Data => "data_connections",
            Self::Bytes => "bytes",
            Self::Rate => "rate",
        }
    }

    /// As its column is called.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Client => "client",
            Self::Server => "server",
            Self::State => "state",
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Data => "data",
            Self::Bytes => "bytes",
            Self::Rate => "rate",
        }
    }

    fn after(self, steps: usize) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self);
        let next = (at.unwrap_or_default() + steps) % Self::ALL.len();
        Self::ALL.get(next).copied().unwrap_or(self)
    }

    fn compare(self, a: &Value, b: &Value) -> Ordering {
        let field = |row: &Value| row.get(self.field()).cloned().unwrap_or(Value::Null);
        let (a, b) = (field(a), field(b));
        match (&a, &b) {
            (Value::String(a), Value::String(b)) => {
                match (a.parse::<SocketAddr>(), b.parse::<SocketAddr>()) {
                    (Ok(a), Ok(b)) => a.cmp(&b),
                    _ => a.cmp(b),
                }
            }
            // What isn't known comes first.
            _ => a.as_u64().cmp(&b.as_u64()),
        }
    }
}

/// Whether the daemon answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// Why not, and since when.
    Lost(String, Instant),
}

/// All that is shown.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) full_bytes: bool,
    pub(super) colors: bool,
    pub(super) link: Link,
    pub(super) sort: Sort,
    pub(super) descending: bool,
    pub(super) filter: String,
    /// The filter is being written.
    pub(super) writing: bool,
    /// The details of the chosen session are shown.
    pub(super) in_detail: bool,
    /// The chosen session.
    pub(super) chosen: Option<u64>,
    /// How far the details are scrolled.
    pub(super) scroll: u16,
    /// The first row that is shown. The view keeps the chosen one among those that are.
    pub(super) top: usize,
    /// How many rows there is room for, as of the last drawing.
    pub(super) room: usize,
    /// All sessions, with a field `rate`: bytes per second since the answer before.
    sessions: Vec<Value>,
    pub(super) pinholes: Vec<Value>,
    /// The records of the session whose details are shown.
    pub(super) records: Vec<Value>,
    /// The last commands and replies of that session.
    pub(super) said: Vec<Value>,
    /// The chosen session as it was last; kept when it ends.
    pub(super) last: Option<Value>,
    at: Instant,
}

impl Model {
    pub(super) fn new(first: Snapshot, full_bytes: bool, colors: bool) -> Self {
        let mut model = Self {
            full_bytes,
            colors,
            link: Link::Up,
            sort: Sort::Session,
            descending: false,
            filter: String::new(),
            writing: false,
            in_detail: false,
            chosen: None,
            scroll: 0,
            top: 0,
            room: 1,
            sessions: Vec::new(),
            pinholes: Vec::new(),
            records: Vec::new(),
            said: Vec::new(),
            last: None,
            at: first.at,
        };
        model.take(first);
        model
    }

    /// Takes what the daemon says, or why it says nothing.
    pub(super) fn update(&mut self, update: Result<Snapshot, AskError>) {
        match (update, &self.link) {
            (Ok(snapshot), _) => {
                self.link = Link::Up;
                self.take(snapshot);
            }
            (Err(why), Link::Lost(_, since)) => self.link = Link::Lost(why.to_string(), *since),
            (Err(why), Link::Up) => self.link = Link::Lost(why.to_string(), Instant::now()),
        }
    }

    fn take(&mut self, snapshot: Snapshot) {
        let list = |value: Value| match value {
            Value::Array(list) => list,
            _ => Vec::new(),
        };
        let seconds = snapshot.at.saturating_duration_since(self.at).as_secs_f64();
        let before: HashMap<_, _> = self.sessions.iter().map(|row| (id(row), row)).collect();
        let mut sessions = list(snapshot.sessions);
        for session in &mut sessions {
            // The number may be that of another daemon's session.
            let same = before
                .get(&id(session))
                .filter(|b| b.get("client") == session.get("client"));
            let rate = same.and_then(|before| rate(before, session, seconds));
            if let Some(fields) = session.as_object_mut() {
                fields.insert("rate".into(), rate.into());
            }
        }
        self.sessions = sessions;
        self.pinholes = list(snapshot.pinholes);
        self.records = list(snapshot.records);
        self.said = list(snapshot.said);
        self.at = snapshot.at;
        let chosen = self.sessions.iter().find(|row| id(row) == self.chosen);
        if let Some(row) = chosen {
            self.last = Some(row.clone());
        }
    }

    /// The sessions that are shown, in their order.
    pub(super) fn rows(&self) -> Vec<&Value> {
        let wanted = self.filter.to_lowercase();
        let mut rows: Vec<_> = self
            .sessions
            .iter()
            .filter(|row| matches(row, &wanted))
            .collect();
        rows.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            let order = if self.descending {
                order.reverse()
            } else {
                order
            };
            order.then_with(|| id(a).cmp(&id(b)))
        });
        rows
    }

    /// How many sessions there are, shown or not.
    pub(super) fn count(&self) -> usize {
        self.sessions.len()
    }

    /// Bytes per second of all sessions.
    pub(super) fn total_rate(&self) -> u64 {
        let rates = self
            .sessions
            .iter()
            .filter_map(|row| row.get("rate")?.as_u64());
        rates.fold(0, u64::saturating_add)
    }

    /// Whether the chosen session is there no more.
    pub(super) fn has_ended(&self) -> bool {
        self.chosen.is_some() && !self.sessions.iter().any(|row| id(row) == self.chosen)
    }

    /// The session whose details are shown.
    pub(super) fn detailed(&self) -> Option<u64> {
        self.chosen.filter(|_| self.in_detail)
    }

    /// Takes a key; whether the user leaves.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return matches!(key.code, KeyCode::Char('c' | 'd'));
        }
        if self.writing {
            self.write(key.code);
            return false;
        }
        if self.in_detail {
            return self.detail_key(key.code);
        }
        match key.code {
            KeyCode::Char('q') => return true,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::PageUp => self.step(-self.page()),
            KeyCode::PageDown => self.step(self.page()),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Char('s') | KeyCode::Right => self.sort = self.sort.after(1),
            KeyCode::Char('S') | KeyCode::Left => self.sort = self.sort.after(Sort::ALL.len() - 1),
            KeyCode::Char('r') => self.descending = !self.descending,
            KeyCode::Char('b') => self.full_bytes = !self.full_bytes,
            KeyCode::Char('/') => self.writing = true,
            KeyCode::Enter => {
                if self.chosen.is_none() || self.has_ended() {
                    self.step(0);
                }
                self.in_detail = self.chosen.is_some();
                self.scroll = 0;
            }
            _ => {}
        }
        false
    }

    fn detail_key(&mut self, code: KeyCode) -> bool {
        match code {
            KeyCode::Char('q') => return true,
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace | KeyCode::Left => {
                self.in_detail = false;
            }
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.scroll = self.scroll.saturating_add(1),
            KeyCode::Char('b') => self.full_bytes = !self.full_bytes,
            _ => {}
        }
        false
    }

    fn write(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.writing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.writing = false;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.len() < LONGEST => self.filter.push(c),
            _ => {}
        }
    }

    fn page(&self) -> isize {
        isize::try_from(self.room).unwrap_or(isize::MAX).max(1)
    }

    /// Chooses a session so many rows further down.
    fn step(&mut self, by: isize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let now = rows.iter().position(|row| id(row) == self.chosen);
        // The first key chooses the first one.
        let to = match now {
            Some(now) => now.saturating_add_signed(by).min(last),
            None if by == isize::MAX => last,
            None => 0,
        };
        let row = rows.get(to).map(|row| (*row).clone());
        self.chosen = row.as_ref().and_then(id);
        self.last = row;
    }
}

/// A session's number.
pub(super) fn id(row: &Value) -> Option<u64> {
    row.get("id")?.as_u64()
}

fn matches(row: &Value, wanted: &str) -> bool {
    let fields = ["id", "client", "server", "state", "range", "not_followed"];
    let mut texts = fields.iter().filter_map(|field| match row.get(*field)? {
        Value::String(text) => Some(text.to_lowercase()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    });
    wanted.is_empty() || texts.any(|text| text.contains(wanted))
}

/// Bytes per second between two answers about a session.
fn rate(before: &Value, now: &Value, seconds: f64) -> Option<u64> {
    let bytes = |row: &Value| row.get("bytes").and_then(Value::as_u64);
    let more = bytes(now)?.saturating_sub(bytes(before).unwrap_or_default());
    if seconds <= 0.0 {
        return None;
    }
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // a few digits are shown; it isn't negative, and a cast doesn't wrap
    Some((more as f64 / seconds) as u64)
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    pub(in super::super) fn snapshot(at: Instant, sessions: Value) -> Snapshot {
        Snapshot {
            at,
            sessions,
            pinholes: json!([{
                "id": 5, "session": 2, "mode": "passive", "from": "198.51.100.2", "state": "open",
                "to": "203.0.113.1:50011", "land": "10.0.0.2:50011", "expires_in": 42, "ports": null,
                "as_source": null,
            }]),
            said: json!([
                {"command": "PASV"}, {"reply": 227}, {"command": "RETR"}, {"reply": 150}, {"reply": 226}
            ]),
            records: json!([{
                "seq": 7, "time": "2026-11-29T11:27:03.5Z", "session": 2,
                "client": "198.51.100.2:4000", "server": "10.0.0.2:21",
                "kind": "login", "user": "alice",
            }]),
        }
    }

    pub(in super::super) fn session(id: u64, client: &str, bytes: Option<u64>) -> Value {
        json!({
            "id": id, "client": client, "server": "10.0.0.2:21", "state": "ready", "age": 100 - id,
            "idle": 3, "announced": 1, "refused": 0, "buffered": 0, "data_connections": 1,
            "bytes": bytes, "range": null, "delta_to_server": 0, "delta_to_client": 12,
            "not_followed": null,
        })
    }

    fn model() -> Model {
        let sessions = json!([
            session(1, "198.51.100.20:40000", Some(500)),
            session(2, "198.51.100.3:40001", Some(100)),
            session(3, "203.0.113.9:40002", None),
        ]);
        Model::new(snapshot(Instant::now(), sessions), false, false)
    }

    fn ids(model: &Model) -> Vec<u64> {
        model.rows().into_iter().filter_map(id).collect()
    }

    fn press(model: &mut Model, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\u{1b}' => KeyCode::Esc,
                '\u{8}' => KeyCode::Backspace,
                c => KeyCode::Char(c),
            };
            assert!(!model.key(KeyEvent::from(code)), "{key:?} doesn't leave");
        }
    }

    #[test]
    fn sessions_are_sorted_by_what_their_values_are() {
        let mut model = model();
        assert_eq!(ids(&model), [1, 2, 3]);
        press(&mut model, "s");
        assert_eq!(
            (model.sort, ids(&model)),
            (Sort::Client, vec![2, 1, 3]),
            "as addresses"
        );
        press(&mut model, "r");
        assert_eq!(ids(&model), [3, 1, 2]);
        press(&mut model, "sss");
        assert_eq!((model.sort, ids(&model)), (Sort::Age, vec![1, 2, 3]));
        press(&mut model, "rsss");
        assert_eq!((model.sort, ids(&model)), (Sort::Bytes, vec![3, 2, 1]));
        press(&mut model, "ss");
        assert_eq!(model.sort, Sort::Session, "it goes round");
        press(&mut model, "S");
        assert_eq!(model.sort, Sort::Rate);
    }

    #[test]
    fn a_filter_leaves_what_it_matches() {
        let mut model = model();
        press(&mut model, "/198.51.100.3:");
        assert_eq!(ids(&model), [2]);
        press(&mut model, "q");
        assert!(ids(&model).is_empty(), "a letter of the filter");
        press(&mut model, "\u{8}\n");
        assert_eq!(ids(&model), [2]);
        press(&mut model, "\u{1b}");
        assert_eq!(ids(&model), [1, 2, 3]);
        press(&mut model, "/READY\n");
        assert_eq!(ids(&model), [1, 2, 3], "in whatever letters");
        for _ in 0..1000 {
            model.writing = true;
            press(&mut model, "x");
        }
        assert!(model.filter.len() <= LONGEST);
    }

    #[test]
    fn one_is_chosen_and_stays_chosen() {
        let mut model = model();
        press(&mut model, "jj");
        assert_eq!(model.chosen, Some(2));
        press(&mut model, "rs");
        assert_eq!(model.chosen, Some(2), "in another order, too");
        press(&mut model, "\n");
        assert!(model.in_detail);
        // It ends, and others begin.
        let sessions = json!([session(3, "203.0.113.9:40002", None)]);
        model.update(Ok(snapshot(Instant::now(), sessions)));
        assert!(model.has_ended() && model.in_detail);
        assert_eq!(model.last.as_ref().and_then(id), Some(2));
        press(&mut model, "\u{1b}");
        assert!(!model.in_detail);
        press(&mut model, "j\n");
        assert_eq!((model.chosen, model.in_detail), (Some(3), true));
        // There is nothing to choose.
        model.in_detail = false;
        model.update(Ok(snapshot(Instant::now(), json!([]))));
        press(&mut model, "jkgG\n");
        assert_eq!((model.chosen, model.in_detail), (None, false));
    }

    #[test]
    fn rates_are_those_of_the_time_between_two_answers() {
        let start = Instant::now();
        let first = json!([
            session(1, "198.51.100.2:4", Some(1000)),
            session(2, "198.51.100.3:4", None)
        ]);
        let mut model = Model::new(snapshot(start, first), false, false);
        assert_eq!(model.total_rate(), 0);
        let later = json!([
            session(1, "198.51.100.2:4", Some(5000)),
            session(2, "198.51.100.3:4", Some(200)),
            session(3, "198.51.100.4:4", Some(77)),
        ]);
        model.update(Ok(snapshot(start + Duration::from_secs(2), later)));
        let rates: Vec<_> = model.rows().iter().map(|row| row["rate"].clone()).collect();
        assert_eq!(rates, [json!(2000), json!(100), Value::Null]);
        assert_eq!(model.total_rate(), 2100);
        // Another daemon's session 1.
        let other = json!([session(1, "198.51.100.9:4", Some(10))]);
        model.update(Ok(snapshot(start + Duration::from_secs(4), other)));
        assert_eq!(model.rows()[0]["rate"], Value::Null);
    }

    #[test]
    fn a_daemon_that_ends_is_no_end_of_the_view() {
        let mut model = model();
        let gone = || Err(AskError::NotRunning(String::new()));
        model.update(gone());
        let Link::Lost(why, since) = model.link.clone() else {
            panic!("{:?}", model.link);
        };
        assert!(why.contains("doesn't run"), "{why}");
        model.update(gone());
        assert_eq!(model.link, Link::Lost(why, since));
        assert_eq!(ids(&model), [1, 2, 3], "what was there last");
        model.update(Ok(snapshot(Instant::now(), json!([]))));
        assert_eq!(model.link, Link::Up);
    }

    #[test]
    fn two_keys_leave() {
        let mut model = model();
        assert!(model.key(KeyEvent::from(KeyCode::Char('q'))));
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut model, "/");
        assert!(model.key(control_c), "also while a filter is written");
        press(&mut model, "\nj\n");
        assert!(model.in_detail && model.key(control_c));
    }
}
