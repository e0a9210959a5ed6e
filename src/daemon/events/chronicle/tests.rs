use std::time::Duration;

use super::*;
use crate::conntrack::Bytes;
use crate::engine::gateway::PinholeId;
use crate::ftp::Mode;
use crate::pinholes::PinholeInfo;

const S: SessionId = SessionId(4);

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A chronicle of one session, fed step by step.
struct Story {
    chronicle: Chronicle,
    start: Instant,
    told: Vec<Record>,
}

impl Story {
    fn new(names: bool) -> Self {
        let start = Instant::now();
        let mut story = Self {
            chronicle: Chronicle::new(names),
            start,
            told: Vec::new(),
        };
        story.event(
            0,
            Event::SessionOpened {
                session: S,
                client: addr("198.51.100.7:4000"),
                server: addr("10.0.0.2:21"),
                joined: false,
            },
        );
        let user = "alice".to_owned();
        story.event(1, Event::LoggedIn { session: S, user });
        story
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn event(&mut self, ms: u64, event: Event) {
        let at = self.at(ms);
        self.chronicle.event(&event, at, &mut self.told);
    }

    fn report(&mut self, ms: u64, report: PlaneReport) {
        let at = self.at(ms);
        self.chronicle.report(&report, at, &mut self.told);
    }

    fn announced(&mut self, ms: u64, pinhole: u64) {
        self.event(
            ms,
            Event::Announced {
                session: S,
                pinhole: PinholeId(pinhole),
                verb: "227",
                mode: Mode::Passive,
                old: addr("10.0.0.2:5000"),
                new: addr("203.0.113.1:5001"),
                from: addr("198.51.100.7:0").ip(),
                land: addr("10.0.0.2:5000"),
            },
        );
    }

    fn begun(&mut self, ms: u64) {
        let (verb, name) = ("RETR", "a b".to_owned());
        self.event(
            ms,
            Event::TransferBegun {
                session: S,
                verb,
                name,
            },
        );
    }

    fn ended(&mut self, ms: u64, begun: bool, code: impl Into<Option<u16>>) {
        self.event(
            ms,
            Event::TransferEnded {
                session: S,
                verb: "RETR",
                name: "a b".to_owned(),
                begun,
                code: code.into(),
            },
        );
    }

    fn closed(&mut self, ms: u64) {
        let how = "FIN";
        self.event(ms, Event::SessionClosed { session: S, how });
    }

    fn transfers(&self) -> Vec<Transfer> {
        let transfer = |record: &Record| match &record.what {
            What::Transfer(transfer) => Some(transfer.as_ref().clone()),
            _ => None,
        };
        self.told.iter().filter_map(transfer).collect()
    }
}

fn connection(pinhole: u64) -> DataConnection {
    DataConnection {
        pinhole: PinholeId(pinhole),
        session: S,
        mode: Mode::Passive,
        from: addr("198.51.100.7:4001"),
        to: addr("203.0.113.1:5001"),
        land: addr("10.0.0.2:5000"),
        as_source: None,
        started: Duration::ZERO,
    }
}

fn finished(pinhole: u64, ms: u64) -> PlaneReport {
    PlaneReport::Finished(carried(pinhole, ms))
}

fn carried(pinhole: u64, ms: u64) -> Finished {
    Finished {
        connection: connection(pinhole),
        bytes: Some(Bytes {
            original: 100,
            reply: 900,
        }),
        duration: Duration::from_millis(ms),
        established: true,
        reset: false,
    }
}

#[test]
fn a_transfer_is_one_record_in_whatever_order_its_parts_come() {
    type Part = fn(&mut Story);
    let parts: [(u64, Part); 4] = [
        (0, |s| s.begun(100)),
        (1, |s| s.report(110, PlaneReport::Connected(connection(1)))),
        (2, |s| s.report(600, finished(1, 490))),
        (3, |s| s.ended(610, true, 226)),
    ];
    for order in [
        [0, 1, 2, 3],
        [1, 0, 2, 3],
        [1, 0, 3, 2],
        [0, 3, 1, 2],
        [1, 2, 0, 3],
    ] {
        let mut story = Story::new(true);
        story.announced(90, 1);
        for part in order {
            assert_eq!(story.transfers(), [], "{order:?}");
            (parts[part].1)(&mut story);
        }
        let transfers = story.transfers();
        let [transfer] = transfers.as_slice() else {
            panic!("{order:?}: {transfers:?}");
        };
        assert!(
            (0.5..0.52).contains(&transfer.seconds),
            "{order:?}: {transfer:?}"
        );
        let known = Transfer {
            seconds: transfer.seconds,
            rate: transfer.rate,
            ..transfer.clone()
        };
        assert_eq!(
            known,
            Transfer {
                command: Some("RETR".into()),
                file: Some("a b".into()),
                user: Some("alice".into()),
                direction: Some(Direction::Download),
                mode: Some(Mode::Passive),
                tls: false,
                reply: Some(226),
                complete: true,
                seconds: transfer.seconds,
                bytes: Some(1000),
                rate: transfer.rate,
                announced: Some(addr("10.0.0.2:5000")),
                rewritten: Some(addr("203.0.113.1:5001")),
                from: Some(addr("198.51.100.7:4001")),
                to: Some(addr("203.0.113.1:5001")),
                land: Some(addr("10.0.0.2:5000")),
            }
        );
        let line = transfer.to_string();
        assert!(
            line.starts_with("RETR \"a b\" done, 1000 B in 0.5 s ("),
            "{line}"
        );
        story.closed(700);
        assert!(story.chronicle.sessions.is_empty());
        assert_eq!(story.transfers().len(), 1);
    }
}

#[test]
fn names_can_be_left_out() {
    let mut story = Story::new(false);
    story.announced(90, 1);
    story.begun(100);
    story.report(110, PlaneReport::Connected(connection(1)));
    story.report(600, finished(1, 490));
    story.ended(610, true, 226);
    story.ended(700, false, 550);
    let user = "alice".to_owned();
    story.event(
        800,
        Event::LoginRefused {
            session: S,
            user,
            code: 530,
        },
    );
    let all = serde_json::to_string(&story.told).unwrap();
    assert!(!all.contains("alice") && !all.contains("a b"), "{all}");
    assert_eq!(story.transfers().len(), 2);
}

#[test]
fn a_refused_transfer_has_no_data_connection() {
    let mut story = Story::new(true);
    story.announced(90, 1);
    story.report(95, PlaneReport::Connected(connection(1)));
    story.ended(100, false, 550);
    let [transfer] = story.transfers().try_into().unwrap();
    assert_eq!(
        (transfer.reply, transfer.complete, transfer.from),
        (Some(550), false, None)
    );
    assert_eq!(transfer.to_string(), "RETR \"a b\" refused: 550");
    // Nor is the connection that came in vain a transfer.
    story.report(200, finished(1, 105));
    assert_eq!(story.transfers().len(), 1);
}

/// However late the connection that was meant for it ends.
#[test]
fn a_refused_transfer_is_told_once() {
    for (connects, finishes) in [(5, 30), (5, 70), (15, 70), (55, 70)] {
        let mut story = Story::new(true);
        story.announced(2, 1);
        let mut steps = [
            (connects, "connects"),
            (10, "refused"),
            (50, "closed"),
            (finishes, "finishes"),
        ];
        steps.sort_unstable();
        for (ms, step) in steps {
            match step {
                "connects" => story.report(ms, PlaneReport::Connected(connection(1))),
                "refused" => story.ended(ms, false, 550),
                "closed" => story.closed(ms),
                _ => story.report(ms, finished(1, 20)),
            }
        }
        let told = story.transfers();
        // What connects when the session is over was never part of it.
        if connects < 50 {
            assert_eq!(told.len(), 1, "{connects}, {finishes}: {told:#?}");
        }
        assert_eq!(told[0].reply, Some(550));
        assert!(story.chronicle.sessions.is_empty());
    }
}

#[test]
fn a_connection_that_nobody_answered_is_none() {
    let mut story = Story::new(true);
    story.announced(90, 1);
    story.begun(100);
    story.report(110, PlaneReport::Connected(connection(1)));
    let PlaneReport::Finished(over) = finished(1, 490) else {
        unreachable!()
    };
    let established = false;
    story.report(
        600,
        PlaneReport::Finished(Finished {
            established,
            ..over
        }),
    );
    story.ended(700, true, 425);
    let [transfer] = story.transfers().try_into().unwrap();
    assert_eq!(
        (transfer.bytes, transfer.from, transfer.complete),
        (None, None, false)
    );
    assert_eq!(transfer.reply, Some(425));
}

#[test]
fn a_transfer_whose_connection_is_never_seen_is_told_in_the_end() {
    let mut story = Story::new(true);
    story.announced(90, 1);
    story.begun(100);
    story.ended(200, true, 226);
    assert!(story.chronicle.is_waiting() && story.transfers().is_empty());
    let (soon, late) = (story.at(5100), story.at(5300));
    story.chronicle.tick(soon, &mut story.told);
    assert_eq!(story.transfers().len(), 0);
    story.chronicle.tick(late, &mut story.told);
    assert_eq!(story.transfers().len(), 1);
    assert!(!story.chronicle.is_waiting());
    // Or with its session.
    let mut story = Story::new(true);
    story.announced(90, 1);
    story.begun(100);
    story.closed(200);
    let [transfer] = story.transfers().try_into().unwrap();
    assert_eq!((transfer.reply, transfer.complete), (None, false));
    assert!(story.chronicle.sessions.is_empty());
}

#[test]
fn what_runs_when_the_daemon_ends_is_told_once() {
    for handover in [false, true] {
        let mut s = Story::new(true);
        s.announced(50, 1);
        s.begun(100);
        s.report(110, PlaneReport::Connected(connection(1)));
        s.report(600, PlaneReport::Running(carried(1, 490)));
        assert_eq!(s.transfers(), []);
        let end = s.at(610);
        s.chronicle.finish(end, handover, &mut s.told);
        let told = s.transfers();
        assert_eq!(told.len(), 1, "{told:#?}");
        let transfer = &told[0];
        assert_eq!(transfer.command.as_deref(), Some("RETR"));
        assert_eq!((transfer.bytes, transfer.reply), (Some(1000), None));
        assert_eq!(transfer.to, Some(connection(1).to));
        assert!(!transfer.complete);
        // Its end comes before the daemon's.
        s.report(620, finished(1, 500));
        s.ended(630, true, 226);
        s.closed(640);
        assert_eq!(s.transfers().len(), 1);
    }
}

/// The successor tells of the data connection.
#[test]
fn a_transfer_that_awaits_its_connection_is_left_to_a_successor() {
    for (handover, records) in [(false, 1), (true, 0)] {
        let mut s = Story::new(true);
        s.announced(50, 1);
        s.begun(100);
        let end = s.at(110);
        s.chronicle.finish(end, handover, &mut s.told);
        assert_eq!(s.transfers().len(), records);
    }
}

#[test]
fn a_session_that_waits_is_listed_once_and_may_wait_again() {
    let mut story = Story::new(true);
    for (second, transfers) in [(0, 1), (10, 2)] {
        let ms = second * 1000;
        for pinhole in 0..3 {
            story.announced(ms + 90, pinhole);
            story.begun(ms + 100);
            story.ended(ms + 200, true, 226);
            assert_eq!(story.chronicle.waiting.len(), 1);
        }
        let late = story.at(ms + 5300);
        story.chronicle.tick(late, &mut story.told);
        assert_eq!(story.transfers().len(), 3 * transfers);
        assert!(!story.chronicle.is_waiting());
    }
}

#[test]
fn under_tls_only_data_connections_are_known() {
    let mut story = Story::new(true);
    story.event(
        100,
        Event::Opaque {
            session: S,
            why: "TLS",
        },
    );
    story.report(110, PlaneReport::Connected(connection(1)));
    story.report(600, finished(1, 490));
    let [transfer] = story.transfers().try_into().unwrap();
    assert!(transfer.tls && transfer.complete && transfer.command.is_none());
    assert_eq!(transfer.bytes, Some(1000));
    // One goes on when its session has ended.
    story.report(700, PlaneReport::Connected(connection(2)));
    story.closed(800);
    assert_eq!(story.chronicle.sessions.len(), 1);
    story.report(900, finished(2, 200));
    assert_eq!(story.transfers().len(), 2);
    let last = story.told.last().unwrap();
    assert_eq!(last.client, Some(addr("198.51.100.7:4000")), "still known");
    assert!(story.chronicle.sessions.is_empty());
}

#[test]
fn sessions_are_bounded() {
    let mut story = Story::new(true);
    for n in 0..40 {
        story.announced(n, n);
        story.report(n, PlaneReport::Connected(connection(n)));
        story.begun(n);
    }
    let more = story.chronicle.more(S).unwrap();
    assert!(more.announced.len() <= MAX_EACH && more.unused.len() <= MAX_EACH);
    assert_eq!(more.transfers.len(), MAX_EACH);
    assert_eq!(story.transfers().len(), 40 - MAX_EACH, "none is forgotten");
}

#[test]
fn an_expired_pinhole_is_told() {
    let mut story = Story::new(true);
    let hole = PinholeInfo {
        id: PinholeId(1),
        session: S,
        mode: Mode::Passive,
        from: addr("198.51.100.7:1").ip(),
        to: addr("203.0.113.1:5001"),
        land: addr("10.0.0.2:5000"),
        as_source: None,
        state: crate::pinholes::PinholeState::Expired,
        expires_in: None,
        ports: None,
        seconds: None,
        bytes: None,
        connection: None,
    };
    story.report(100, PlaneReport::Expired(hole));
    let line = story.told.last().unwrap().to_string();
    assert!(
        line.ends_with(
            "session 4 198.51.100.7:4000 -> 10.0.0.2:21 pinhole 198.51.100.7 -> \
             203.0.113.1:5001 => 10.0.0.2:5000 not used in time"
        ),
        "{line}"
    );
}
