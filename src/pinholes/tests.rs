//! The plane against a kernel made of maps.

mod ranges;
mod twins;

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::holes::{MAX_OVERDUE, OVERDUE_AFTER};
use super::*;
use crate::conntrack::{Bytes, Completeness, ConntrackEvent, Kept, TcpState};
use crate::engine::Entry;
use crate::ftp::Mode;
use crate::ftp::fit::Fitting;
use crate::net::Mark;
use crate::net::PortRange;
use crate::pinholes::backend::{Backend, BackendError, Closed, ClosingWork};
use crate::pinholes::{RangeHole, RangeKey};
use std::collections::{BTreeMap, HashSet};
use std::io;

/// What a test sees of the plane's surroundings.
#[derive(Default)]
struct World {
    now: Duration,
    kernel: HashMap<PinholeKey, (Pinhole, Duration)>,
    ranges: BTreeMap<RangeKey, (RangeHole, Duration)>,
    /// How often a range was put into the kernel.
    range_writes: u32,
    watched: HashSet<Tuple>,
    installed: bool,
    refuse_open: bool,
    /// The pinhole with this port can't be opened.
    refused_port: Option<u16>,
    /// How many pinholes each call opened that opened several.
    together: Vec<usize>,
    refuse_close: bool,
    /// Whether closing is left to somebody else.
    slow: bool,
    /// How long a used pinhole lets nobody in by itself.
    holds: Duration,
    /// How many used ones may wait for that, if there is a limit.
    may_rest: Option<usize>,
    /// How many holes each call closed.
    closed: Vec<usize>,
    events: Vec<ConntrackEvent>,
    missed: bool,
    /// Conntrack's list can't be read.
    unlisted: bool,
    entries: Vec<Entry>,
    /// How long conntrack still keeps those that have ended.
    kept: HashMap<Tuple, Kept>,
    listening: String,
    listeners_read: u32,
}

#[derive(Clone, Default)]
struct FakeKernel(Arc<Mutex<World>>);

impl FakeKernel {
    fn with<T>(&self, what: impl FnOnce(&mut World) -> T) -> T {
        what(&mut self.0.lock().unwrap())
    }

    fn open_keys(&self) -> Vec<PinholeKey> {
        let mut keys: Vec<_> = self.with(|w| w.kernel.keys().copied().collect());
        keys.sort();
        keys
    }

    fn opening(&self, change: impl FnOnce(&mut World)) -> Result<(), BackendError> {
        self.with(|w| unless(w.refuse_open, w, change))
    }

    fn closing_one(&self, change: impl FnOnce(&mut World)) -> Result<(), BackendError> {
        self.with(|w| unless(w.refuse_close, w, change))
    }

    fn close_now(&mut self, holes: &[Pinhole]) -> Result<(), BackendError> {
        self.with(|w| w.closed.push(holes.len()));
        holes.iter().try_for_each(|hole| self.close(hole))
    }

    /// Has the plane learn what listens, where it asks for that.
    fn tell_listeners(&self, plane: &mut Plane, request: &Request) {
        if plane.needs_listeners(request) {
            let listeners = self.with(|w| {
                w.listeners_read += 1;
                Listeners::parse(&w.listening)
            });
            plane.learn_listeners(listeners);
        }
    }

    fn wait(&self, seconds: u64) {
        self.with(|w| w.now += Duration::from_secs(seconds));
    }
}

/// Changes the kernel, unless that is refused.
fn unless(
    refused: bool,
    world: &mut World,
    change: impl FnOnce(&mut World),
) -> Result<(), BackendError> {
    if refused {
        return Err(BackendError::System {
            what: "change",
            source: io::ErrorKind::PermissionDenied.into(),
        });
    }
    change(world);
    Ok(())
}

impl Backend for FakeKernel {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn install(&mut self) -> Result<(), BackendError> {
        self.with(|w| {
            w.installed = true;
            w.kernel.clear();
            w.ranges.clear();
        });
        Ok(())
    }
    fn adopt(
        &mut self,
        most: usize,
        longest: Duration,
    ) -> Result<Vec<(Pinhole, Duration)>, BackendError> {
        Ok(self.with(|w| {
            w.installed = true;
            w.ranges.clear();
            let mut all: Vec<_> = w.kernel.values().cloned().collect();
            all.sort_by_key(|(_, left)| *left);
            let dropped = all.drain(..all.len().saturating_sub(most));
            dropped.for_each(|(hole, _)| _ = w.kernel.remove(&hole.key()));
            let bounded = |(hole, left): (Pinhole, Duration)| (hole, left.min(longest));
            all.into_iter().map(bounded).collect()
        }))
    }
    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        self.with(|w| {
            let refused = w.refuse_open || w.refused_port == Some(hole.to.port());
            let open = |w: &mut World| _ = w.kernel.insert(hole.key(), (hole.clone(), timeout));
            unless(refused, w, open)
        })
    }
    fn open_all(&mut self, holes: &[(Pinhole, Duration)]) -> Result<(), BackendError> {
        let refused = self.with(|w| w.refused_port);
        if holes
            .iter()
            .any(|(hole, _)| Some(hole.to.port()) == refused)
        {
            return self.with(|w| unless(true, w, |_| ()));
        }
        self.with(|w| w.together.push(holes.len()));
        holes
            .iter()
            .try_for_each(|(hole, timeout)| self.open(hole, *timeout))
    }
    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError> {
        self.closing_one(|w| _ = w.kernel.remove(&hole.key()))
    }
    fn open_range(&mut self, hole: &RangeHole, timeout: Duration) -> Result<(), BackendError> {
        self.opening(|w| {
            w.ranges.insert(hole.key(), (*hole, w.now + timeout));
            w.range_writes += 1;
        })
    }
    fn close_range(&mut self, hole: &RangeHole) -> Result<(), BackendError> {
        self.closing_one(|w| _ = w.ranges.remove(&hole.key()))
    }
    fn holds(&self) -> Duration {
        self.with(|w| w.holds)
    }
    fn may_rest(&self) -> usize {
        self.with(|w| w.may_rest).unwrap_or(usize::MAX)
    }
    fn close_all(&mut self, holes: &[Pinhole]) -> Result<Closed, BackendError> {
        if self.with(|w| w.slow) {
            return Ok(Closed::Later);
        }
        self.close_now(holes).map(|()| Closed::Now)
    }
    fn closing(&mut self, holes: &[Pinhole]) -> Result<Option<ClosingWork>, BackendError> {
        let (mut world, holes) = (self.clone(), holes.to_vec());
        Ok(Some(Box::new(move || world.close_now(&holes))))
    }
    fn remove(&mut self) -> Result<(), BackendError> {
        self.with(|w| {
            w.installed = false;
            w.kernel.clear();
            w.ranges.clear();
        });
        Ok(())
    }
    fn verify(&mut self) -> Result<bool, BackendError> {
        Ok(self.with(|w| w.installed))
    }
}

impl Lookups for FakeKernel {
    fn lookup(&mut self, src: SocketAddr, dst: SocketAddr) -> io::Result<Option<Entry>> {
        let wanted = Tuple { src, dst };
        Ok(self.with(|w| {
            let mut entries = w.entries.iter();
            entries
                .find(|e| e.original == wanted || e.reply == wanted)
                .copied()
        }))
    }
    fn marked(&mut self, mark: Mark) -> io::Result<Vec<Entry>> {
        self.with(|w| match w.unlisted {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => {
                let entries = w.entries.iter();
                Ok(entries.filter(|e| mark.is_in(e.mark)).copied().collect())
            }
        })
    }
    fn marked_with_state(&mut self, mark: Mark) -> io::Result<Vec<(Entry, Option<Kept>)>> {
        let entries = self.marked(mark)?;
        let kept = |w: &mut World, entry: Entry| (entry, w.kept.get(&entry.original).copied());
        Ok(self.with(|w| entries.into_iter().map(|entry| kept(w, entry)).collect()))
    }
}

impl EventSource for FakeKernel {
    fn watch(&mut self, original: Tuple, watched: bool) {
        self.with(|w| {
            if watched {
                w.watched.insert(original);
            } else {
                w.watched.remove(&original);
            }
        });
    }
    fn read(&mut self, out: &mut Vec<ConntrackEvent>) -> io::Result<Completeness> {
        self.with(|w| {
            out.append(&mut w.events);
            Ok(if std::mem::take(&mut w.missed) {
                Completeness::Missed
            } else {
                Completeness::Complete
            })
        })
    }
}

fn plane(config: PlaneConfig) -> (Plane, FakeKernel) {
    let world = FakeKernel::default();
    let clock = world.clone();
    let plane = Plane::new(
        config,
        Parts {
            backend: Box::new(world.clone()),
            lookups: Box::new(world.clone()),
            events: Box::new(world.clone()),
            timeouts: [(TIME_WAIT, Duration::from_secs(120))]
                .into_iter()
                .collect(),
            clock: Box::new(move || clock.with(|w| w.now)),
        },
    );
    (plane, world)
}

fn limited(limits: PlaneLimits) -> (Plane, FakeKernel) {
    plane(PlaneConfig {
        limits,
        ..PlaneConfig::default()
    })
}

fn with_ports(range: &str) -> PlaneConfig {
    PlaneConfig {
        data_ports: Some(range.parse().unwrap()),
        ..PlaneConfig::default()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn passive(session: u64, from: &str, port: u16) -> Request {
    Request {
        session: SessionId(session),
        mode: Mode::Passive,
        from: ip(from),
        to: ip("198.51.100.1"),
        land: SocketAddr::new(ip("10.0.0.2"), port),
        as_source: None,
        published: true,
        from_range: true,
        fitting: Fitting::ANY,
        twin: None,
        mark: 0,
    }
}

/// `TCP_CONNTRACK_TIME_WAIT`
const TIME_WAIT: TcpState = TcpState(7);
const ANN: &str = "203.0.113.10";
const BOB: &str = "203.0.113.11";

fn open(plane: &mut Plane, request: &Request) -> Reservation {
    let reservation = plane.reserve(request).unwrap();
    plane.open(reservation.id).unwrap();
    reservation
}

fn dialled(from: &str, to: SocketAddr) -> Tuple {
    Tuple {
        src: SocketAddr::new(ip(from), 33_333),
        dst: to,
    }
}

fn entry(original: Tuple) -> Entry {
    Entry {
        original,
        reply: Tuple {
            src: original.dst,
            dst: original.src,
        },
        mark: Mark::DEFAULT.bit(),
    }
}

fn new_event(original: Tuple) -> ConntrackEvent {
    ConntrackEvent::New {
        entry: entry(original),
        id: 1,
        status: 0,
    }
}

/// Three pinholes that are reserved.
fn three(plane: &mut Plane) -> [PinholeId; 3] {
    [40001, 40002, 40003].map(|port| plane.reserve(&passive(1, ANN, port)).unwrap().id)
}

#[test]
fn several_pinholes_open_in_one_change() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let ids = three(&mut plane);
    assert_eq!(plane.open_together(&ids), [Ok(()), Ok(()), Ok(())]);
    assert_eq!(world.with(|w| w.together.clone()), [3]);
    assert_eq!(world.open_keys().len(), 3);
    assert!(
        plane
            .pinholes()
            .iter()
            .all(|hole| hole.state == PinholeState::Open)
    );
    assert_eq!(plane.counters().opened, 3);
    // They are open already, and one is gone.
    plane.release(ids[1]);
    let [first, gone, last] = plane.open_together(&ids).try_into().unwrap();
    assert!(first.is_ok() && matches!(gone, Err(Error::Kernel(_))) && last.is_ok());
    assert_eq!(plane.counters().opened, 3);
    assert_eq!(plane.open_together(&[]), []);
}

#[test]
fn few_open_together_where_ports_are_few() {
    let request = passive(1, ANN, 40001);
    let outside = Request {
        from_range: false,
        ..request.clone()
    };
    for (range, most) in [
        ("30000-30000", 1),
        ("30000-30009", 1),
        ("30000-30015", 2),
        ("30000-30999", 8),
    ] {
        let (plane, _) = plane(with_ports(range));
        assert_eq!(plane.most_together(&request), most, "{range}");
        assert_eq!(
            plane.most_together(&outside),
            8,
            "it needs no port of the range"
        );
    }
    assert_eq!(plane(PlaneConfig::default()).0.most_together(&request), 8);
}

#[test]
fn one_that_is_refused_keeps_no_other_from_opening() {
    let (mut plane, world) = plane(PlaneConfig::default());
    world.with(|w| w.refused_port = Some(40002));
    let ids = three(&mut plane);
    let [first, refused, last] = plane.open_together(&ids).try_into().unwrap();
    assert!(first.is_ok() && matches!(refused, Err(Error::Kernel(_))) && last.is_ok());
    assert_eq!((world.open_keys().len(), plane.pinholes().len()), (2, 2));
    let counters = plane.counters();
    assert_eq!((counters.opened, counters.kernel_errors), (2, 1));
}

#[test]
fn one_that_replaces_another_opens_with_the_others() {
    let (mut plane, world) = plane(PlaneConfig::default());
    world.with(|w| w.holds = Duration::from_millis(500));
    let used = open(&mut plane, &passive(1, ANN, 40001));
    plane.on_conntrack_new(dialled(ANN, used.to)).unwrap();
    assert_eq!(world.open_keys().len(), 1, "it rests");
    let ids = three(&mut plane);
    assert_eq!(plane.open_together(&ids), [Ok(()), Ok(()), Ok(())]);
    assert_eq!(world.with(|w| w.together.clone()), [3]);
    world.wait(1);
    plane.expire();
    assert_eq!(world.open_keys().len(), 3, "the one that replaced it stays");
}

#[test]
fn a_reservation_is_in_the_kernel_only_once_it_is_opened() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let reservation = plane.reserve(&passive(1, ANN, 40000)).unwrap();
    assert_eq!(reservation.to, "198.51.100.1:40000".parse().unwrap());
    assert_eq!(world.open_keys(), vec![]);
    assert_eq!(plane.pinholes()[0].state, PinholeState::Reserved);
    world.wait(10);
    plane.open(reservation.id).unwrap();
    plane.open(reservation.id).unwrap();
    let info = &plane.pinholes()[0];
    assert_eq!(
        (info.state, info.expires_in),
        (PinholeState::Open, Some(60))
    );
    assert_eq!(world.open_keys().len(), 1);
    let json = serde_json::to_value(info).unwrap();
    assert_eq!(json["state"], "open");
    assert_eq!(json["to"], "198.51.100.1:40000");
}

#[test]
fn used_holes_that_the_backend_holds_are_closed_together_a_moment_later() {
    let (mut plane, world) = plane(PlaneConfig::default());
    world.with(|w| w.holds = Duration::from_millis(500));
    let now = |ms| world.with(|w| w.now = Duration::from_millis(ms));
    let used = |plane: &mut Plane, port| {
        let hole = open(plane, &passive(1, ANN, port));
        let tuple = dialled(ANN, hole.to);
        world.with(|w| w.events.push(new_event(tuple)));
        assert!(plane.catch_up());
        (hole, tuple)
    };
    now(1000);
    let (_, first) = used(&mut plane, 40000);
    now(1030);
    used(&mut plane, 40001);
    plane.expire();
    assert_eq!(world.open_keys().len(), 2);
    assert_eq!(plane.counters().used, 2);
    assert_eq!(plane.on_conntrack_new(first), None, "it isn't pending");
    // Long before the backend lets anybody in again.
    assert_eq!(plane.next_deadline(), Some(Duration::from_millis(1050)));
    now(1050);
    plane.expire();
    assert_eq!(world.open_keys(), vec![]);
    assert_eq!(world.with(|w| w.closed.clone()), [2]);
    assert_eq!(plane.next_deadline(), None);

    // A new pinhole in the place of a used one stays.
    used(&mut plane, 40002);
    let (again, other) = (passive(2, ANN, 40002), passive(2, ANN, 40003));
    open(&mut plane, &again);
    used(&mut plane, 40004);
    plane.reserve(&other).unwrap();
    now(1100);
    plane.expire();
    let ports: Vec<_> = world.open_keys().iter().map(|key| key.to.port()).collect();
    assert_eq!(ports, [40002]);

    // What the kernel refuses is tried again.
    used(&mut plane, 40005);
    world.with(|w| w.refuse_close = true);
    now(1200);
    plane.expire();
    world.with(|w| w.refuse_close = false);
    world.wait(60);
    plane.expire();
    assert_eq!(world.open_keys(), vec![]);
}

#[test]
fn used_holes_are_closed_before_their_time_if_there_are_many() {
    let (mut plane, world) = plane(PlaneConfig::default());
    world.with(|w| (w.holds, w.may_rest) = (Duration::from_millis(500), Some(2)));
    for (port, left) in [(40000, 1), (40001, 2), (40002, 0), (40003, 1)] {
        let hole = open(&mut plane, &passive(1, ANN, port));
        plane.on_conntrack_new(dialled(ANN, hole.to)).unwrap();
        assert_eq!(world.open_keys().len(), left, "{port}");
    }
    assert_eq!(world.with(|w| w.closed.clone()), [3]);
    world.wait(1);
    plane.expire();
    assert_eq!(world.open_keys(), vec![]);
}

#[test]
fn used_and_ended_holes_are_closed_before_the_others_are_left_to_a_successor() {
    for slow in [false, true] {
        let (mut plane, world) = plane(PlaneConfig::default());
        world.with(|w| (w.holds, w.slow) = (Duration::from_millis(500), slow));
        let hole = open(&mut plane, &passive(1, ANN, 40000));
        open(&mut plane, &passive(1, ANN, 40001));
        open(&mut plane, &passive(2, ANN, 40002));
        plane.on_conntrack_new(dialled(ANN, hole.to)).unwrap();
        plane.session_ended(SessionId(2));
        plane.close_for_successor();
        let ports: Vec<_> = world.open_keys().iter().map(|key| key.to.port()).collect();
        assert_eq!(ports, [40001], "{slow}");
        assert!(!plane.has_closing());
    }
}

#[test]
fn a_hole_is_used_once_and_its_connection_outlives_the_session() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let hole = open(&mut plane, &passive(1, ANN, 40000));
    assert_eq!(plane.on_conntrack_new(dialled(BOB, hole.to)), None);
    let tuple = dialled(ANN, hole.to);
    let connection = plane.on_conntrack_new(tuple).unwrap();
    assert_eq!((connection.pinhole, connection.session.0), (hole.id, 1));
    assert_eq!(world.open_keys(), vec![]);
    assert_eq!(plane.on_conntrack_new(tuple), None);
    plane.session_ended(SessionId(1));
    assert_eq!(plane.pinholes()[0].state, PinholeState::Used);
    world.wait(5);
    let bytes = Bytes {
        original: 1,
        reply: 2,
    };
    let finished = plane
        .on_conntrack_destroy(tuple, Some(bytes), None, None)
        .unwrap();
    assert_eq!(
        (finished.bytes, finished.duration.as_secs()),
        (Some(bytes), 5)
    );
    assert_eq!(plane.pinholes(), vec![]);
    let reports: Vec<_> = plane.take_reports().collect();
    assert_eq!(
        reports,
        vec![
            PlaneReport::Connected(connection),
            PlaneReport::Finished(finished)
        ]
    );
    assert_eq!(plane.counters().unattributed, 2);
}

#[test]
fn a_duration_ends_where_conntrack_began_to_wait() {
    let (mut plane, _) = plane(PlaneConfig::default());
    let seconds = Duration::from_secs;
    for (n, state, lifetime, duration) in [
        (1, Some(TIME_WAIT), seconds(125), seconds(5)),
        // Somebody made conntrack forget it.
        (2, Some(TIME_WAIT), seconds(5), seconds(5)),
        // Still established, and a kernel that doesn't tell.
        (3, Some(TcpState(3)), seconds(125), seconds(125)),
        (4, None, seconds(125), seconds(125)),
    ] {
        let hole = open(&mut plane, &passive(n, ANN, 40000));
        let tuple = dialled(ANN, hole.to);
        plane.on_conntrack_new(tuple).unwrap();
        let finished = plane.on_conntrack_destroy(tuple, None, Some(lifetime), state);
        assert_eq!(finished.unwrap().duration, duration, "{n}");
    }
}

#[test]
fn bytes_are_summed_up_per_session_while_it_is_there() {
    let (mut plane, _) = plane(PlaneConfig::default());
    let mut tuples = Vec::new();
    for (session, port) in [(1, 40000), (1, 40001), (2, 40002)] {
        let hole = open(&mut plane, &passive(session, ANN, port));
        let tuple = dialled(ANN, hole.to);
        plane.on_conntrack_new(tuple).unwrap();
        tuples.push(tuple);
    }
    let bytes = Bytes {
        original: 40,
        reply: 2,
    };
    plane.on_conntrack_destroy(tuples[0], Some(bytes), None, None);
    let carried = Bytes {
        original: 1000,
        reply: 1,
    };
    // The first ended after conntrack was asked: what it said then doesn't count.
    let running = tuples.iter().map(|tuple| (*tuple, carried)).collect();
    let all = plane.transferred(&running);
    let told = |session| {
        all.get(&SessionId(session))
            .map(|t| (t.data_connections, t.bytes))
    };
    assert_eq!(
        told(1),
        Some((2, Some(42 + 1001))),
        "one is gone, one is there"
    );
    assert_eq!(told(2), Some((1, Some(1001))));
    plane.session_ended(SessionId(1));
    plane.session_ended(SessionId(2));
    plane.on_conntrack_destroy(tuples[1], Some(bytes), None, None);
    assert!(plane.transferred(&running).is_empty());
}

#[test]
fn a_reserved_hole_is_not_used() {
    let (mut plane, _) = plane(PlaneConfig::default());
    let hole = plane.reserve(&passive(1, ANN, 40000)).unwrap();
    assert_eq!(plane.on_conntrack_new(dialled(ANN, hole.to)), None);
    plane.open(hole.id).unwrap();
}

#[test]
fn holes_expire_and_say_so() {
    let (mut plane, world) = plane(PlaneConfig::default());
    assert_eq!(plane.next_deadline(), None);
    let first = open(&mut plane, &passive(1, ANN, 40000));
    world.wait(30);
    let second = open(&mut plane, &passive(1, ANN, 40001));
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(60)));
    world.wait(30);
    plane.expire();
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(90)));
    let expired: Vec<_> = plane.take_reports().collect();
    assert!(
        matches!(&expired[..], [PlaneReport::Expired(info)] if info.id == first.id && info.state == PinholeState::Expired),
        "{expired:?}"
    );
    assert_eq!(plane.pinholes()[0].id, second.id);
    assert_eq!(world.open_keys().len(), 1);
}

#[test]
fn a_session_has_a_limited_number_of_pending_holes() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let ids: Vec<_> = (0..6)
        .map(|n| open(&mut plane, &passive(1, ANN, 40000 + n)).id)
        .collect();
    let pending: Vec<_> = plane.pinholes().iter().map(|info| info.id).collect();
    assert_eq!(pending, ids[2..]);
    assert_eq!(world.open_keys().len(), 4);
    assert_eq!(plane.counters().superseded, 2);
    open(&mut plane, &passive(2, ANN, 41000));
    plane.session_ended(SessionId(1));
    assert_eq!(world.open_keys().len(), 1);
    plane.session_ended(SessionId(2));
    assert_eq!(world.open_keys(), vec![]);
    assert_eq!(plane.next_deadline(), None);
}

#[test]
fn one_port_serves_any_number_of_peers_and_one_session_of_each() {
    let (mut plane, world) = plane(with_ports("8080-8080"));
    let first = open(&mut plane, &passive(1, ANN, 40000));
    assert_eq!(first.to.port(), 8080);
    assert_eq!(open(&mut plane, &passive(2, BOB, 40000)).to.port(), 8080);
    let taken = plane.reserve(&passive(3, ANN, 40001)).unwrap_err();
    assert_eq!(taken, Error::NoPort(ip(ANN)));
    assert_eq!(world.open_keys().len(), 2);
    // The same session replaces its own at once.
    let again = plane.reserve(&passive(1, ANN, 40007)).unwrap();
    assert_eq!(world.open_keys().len(), 1);
    assert!(plane.open(first.id).is_err());
    plane.open(again.id).unwrap();
    let landed = world.with(|w| w.kernel.values().map(|(h, _)| h.land.port()).max().unwrap());
    assert_eq!(landed, 40007);
    // Used, the port is free again.
    plane.on_conntrack_new(dialled(ANN, again.to)).unwrap();
    open(&mut plane, &passive(3, ANN, 40001));
    assert_eq!(plane.counters().no_port, 1);
}

/// A server that connects from port 20 can't do that twice in TIME_WAIT, to the same address and port.
#[test]
fn a_port_comes_again_only_when_a_fixed_port_is_forgotten() {
    for known_before in [false, true] {
        let (mut plane, world) = plane(with_ports("8080-8081"));
        let next = |plane: &mut Plane, source: u16| {
            let hole = open(plane, &passive(1, ANN, 40000));
            let mut tuple = dialled(ANN, hole.to);
            tuple.src.set_port(source);
            world.with(|w| w.events.push(new_event(tuple)));
            plane.catch_up();
            tuple
        };
        let first = match known_before {
            false => next(&mut plane, 20),
            true => {
                let mut tuple = dialled(ANN, "198.51.100.1:8080".parse().unwrap());
                tuple.src.set_port(20);
                world.with(|w| w.entries = vec![entry(tuple)]);
                plane.adopt().unwrap();
                tuple
            }
        };
        let second = next(&mut plane, 20);
        assert_ne!(first.dst, second.dst);
        // There is no better one.
        let third = plane.reserve(&passive(1, ANN, 40000)).unwrap();
        assert!([first.dst, second.dst].contains(&third.to));
        plane.release(third.id);
        let forgotten = ConntrackEvent::Destroy {
            entry: entry(second),
            id: 1,
            bytes: None,
            lifetime: None,
            state: Some(TIME_WAIT),
            status: 0,
        };
        world.with(|w| w.events.push(forgotten));
        for source in [33_333, 33_334] {
            assert_eq!(next(&mut plane, source).dst, second.dst, "free again");
        }
    }
}

#[test]
fn a_connection_that_is_not_yet_reported_does_not_use_up_the_next_hole() {
    let (mut plane, world) = plane(with_ports("8080"));
    let first = open(&mut plane, &passive(1, ANN, 40000));
    world.with(|w| w.events.push(new_event(dialled(ANN, first.to))));
    let second = open(&mut plane, &passive(1, ANN, 40001));
    plane.catch_up();
    let states: Vec<_> = plane
        .pinholes()
        .iter()
        .map(|info| (info.id, info.state))
        .collect();
    assert_eq!(
        states,
        vec![
            (second.id, PinholeState::Open),
            (first.id, PinholeState::Used)
        ]
    );
    assert_eq!(world.open_keys().len(), 1);
    assert_eq!(plane.counters().superseded, 0);
}

#[test]
fn lost_events_are_made_up_for() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let one = open(&mut plane, &passive(1, ANN, 40000));
    let two = open(&mut plane, &passive(1, ANN, 40001));
    plane.on_conntrack_new(dialled(ANN, one.to)).unwrap();
    world.with(|w| {
        w.missed = true;
        w.entries = vec![entry(dialled(ANN, two.to))];
    });
    plane.catch_up();
    let used: Vec<_> = plane.pinholes().iter().map(|info| info.id).collect();
    assert_eq!(used, vec![two.id]);
    assert_eq!(plane.take_reports().count(), 4);
    assert_eq!(plane.counters().missed_events, 1);
}

/// A port comes again after a while, so conntrack may still have a connection through an earlier pinhole.
#[test]
fn a_connection_that_ended_before_the_pinhole_opened_does_not_use_it() {
    for (quiet_for, used) in [(20, 0), (5, 1)] {
        let (mut plane, world) = plane(PlaneConfig::default());
        let hole = open(&mut plane, &passive(1, ANN, 40000));
        let tuple = dialled(ANN, hole.to);
        let kept = Kept {
            state: TIME_WAIT,
            left: Duration::from_secs(120 - quiet_for),
        };
        world.wait(10);
        world.with(|w| {
            w.missed = true;
            w.entries = vec![entry(tuple)];
            w.kept.insert(tuple, kept);
        });
        assert!(plane.catch_up());
        assert_eq!(plane.counters().used, used);
        // Its own connection has the same ends.
        world.with(|w| w.events.push(new_event(tuple)));
        assert!(plane.catch_up());
        assert_eq!(plane.counters().used, 1);
    }
}

#[test]
fn a_list_that_cannot_be_read_is_read_later() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let hole = open(&mut plane, &passive(1, ANN, 40000));
    world.with(|w| {
        (w.missed, w.unlisted) = (true, true);
        w.entries = vec![entry(dialled(ANN, hole.to))];
    });
    for _ in 0..3 {
        assert!(!plane.catch_up());
    }
    assert_eq!(plane.counters().used, 0);
    world.with(|w| w.unlisted = false);
    assert!(plane.catch_up());
    let counters = plane.counters();
    assert_eq!((counters.used, counters.missed_events), (1, 1));
    // Told once a minute, however often it happens.
    let told = |plane: &mut Plane| {
        let missed = |report: &PlaneReport| matches!(report, PlaneReport::MissedEvents);
        plane.take_reports().filter(missed).count()
    };
    assert_eq!(told(&mut plane), 1);
    for (wait, lines) in [(1, 0), (58, 0), (1, 1)] {
        world.wait(wait);
        world.with(|w| w.missed = true);
        assert!(plane.catch_up());
        assert_eq!(told(&mut plane), lines);
    }
    assert_eq!(plane.counters().missed_events, 4);
}

#[test]
fn a_pinhole_that_was_used_in_time_is_not_late() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let used = open(&mut plane, &passive(1, ANN, 40000));
    open(&mut plane, &passive(1, ANN, 40001));
    // Nobody looked for long, and the deadline has passed.
    world.with(|w| w.events.push(new_event(dialled(ANN, used.to))));
    world.wait(100);
    plane.expire();
    let counters = plane.counters();
    assert_eq!(
        (counters.used, counters.expired, counters.unattributed),
        (1, 1, 0)
    );
}

#[test]
fn ports_that_the_gateway_listens_on_are_left_alone_where_published() {
    let (mut plane, world) = plane(with_ports("30000-30001"));
    world.with(|w| w.listening = "sl\n 0: 00000000:7530 00000000:0000 0A\n".into());
    let published = passive(1, ANN, 30000);
    world.tell_listeners(&mut plane, &published);
    assert_eq!(
        open(&mut plane, &published).to.port(),
        30001,
        "30000 is 0x7530"
    );
    let mut own = passive(2, ANN, 30000);
    own.published = false;
    world.tell_listeners(&mut plane, &own);
    assert_eq!(open(&mut plane, &own).to.port(), 30000);
    assert_eq!(world.with(|w| w.listeners_read), 1);
    world.wait(6);
    let later = passive(3, BOB, 30000);
    world.tell_listeners(&mut plane, &later);
    let _ = plane.reserve(&later).unwrap();
    assert_eq!(world.with(|w| w.listeners_read), 2);
}

#[test]
fn a_server_on_the_gateway_listens_where_its_own_hole_leads() {
    let (mut plane, world) = plane(PlaneConfig::default());
    world.with(|w| w.listening = "sl\n 0: 00000000:9C40 00000000:0000 0A\n".into());
    let mut request = passive(1, ANN, 40000);
    request.land = SocketAddr::new(request.to, 40000);
    world.tell_listeners(&mut plane, &request);
    assert_eq!(open(&mut plane, &request).to.port(), 40000);
}

#[test]
fn limits_are_answers() {
    let (mut plane, _) = limited(PlaneLimits {
        pinholes: 2,
        pinholes_per_session: 2,
        ..PlaneLimits::default()
    });
    open(&mut plane, &passive(1, ANN, 40000));
    open(&mut plane, &passive(1, ANN, 40001));
    let error = plane.reserve(&passive(2, ANN, 40003)).unwrap_err();
    assert!(matches!(error, Error::Limit(_)));
    // It makes room by itself.
    open(&mut plane, &passive(1, ANN, 40002));
    assert_eq!(plane.pinholes().len(), 2);
    assert_eq!(plane.counters().limited, 1);
}

#[test]
fn one_client_leaves_others_their_pinholes() {
    let (mut plane, _) = limited(PlaneLimits {
        pinholes: 4,
        pinholes_per_client: 2,
        pinholes_per_session: 2,
        ..PlaneLimits::default()
    });
    let hole = open(&mut plane, &passive(1, ANN, 40000));
    open(&mut plane, &passive(2, ANN, 40001));
    let error = plane.reserve(&passive(3, ANN, 40002)).unwrap_err();
    assert_eq!(error, Error::Limit("pinholes-per-client"));
    open(&mut plane, &passive(4, BOB, 40000));
    // One that goes makes room.
    plane.release(hole.id);
    open(&mut plane, &passive(3, ANN, 40002));
    plane.session_ended(SessionId(2));
    plane.session_ended(SessionId(3));
    open(&mut plane, &passive(5, ANN, 40002));
    open(&mut plane, &passive(5, ANN, 40003));
    assert_eq!(plane.counters().limited_per_client, 1);
    assert_eq!(plane.counters().limited, 1);
}

#[test]
fn everybody_together_gets_so_many_per_minute() {
    let (mut plane, world) = limited(PlaneLimits {
        pinholes_per_minute: 2,
        ..PlaneLimits::default()
    });
    open(&mut plane, &passive(1, ANN, 40000));
    open(&mut plane, &passive(2, BOB, 40000));
    let error = plane.reserve(&passive(3, BOB, 40001)).unwrap_err();
    assert_eq!(error, Error::Limit("pinholes-per-minute"));
    world.wait(60);
    open(&mut plane, &passive(3, BOB, 40001));
}

#[test]
fn one_client_with_many_sessions_leaves_room_for_others() {
    let (mut plane, world) = limited(PlaneLimits {
        pinholes: 4,
        pinholes_per_session: 2,
        ..PlaneLimits::default()
    });
    for session in 0..4 {
        let port = 40_000 + u16::try_from(session).unwrap();
        open(&mut plane, &passive(session, ANN, port));
    }
    // The oldest ones go, up to an equal share.
    open(&mut plane, &passive(8, BOB, 50_000));
    open(&mut plane, &passive(9, BOB, 50_001));
    assert!(plane.reserve(&passive(10, BOB, 50_002)).is_err());
    assert!(plane.reserve(&passive(10, ANN, 50_002)).is_err());
    let ports: Vec<_> = plane.pinholes().iter().map(|i| i.land.port()).collect();
    assert_eq!(ports, [40_002, 40_003, 50_000, 50_001]);
    assert_eq!(world.open_keys().len(), 4);
    assert_eq!(plane.counters().superseded, 2);
}

#[test]
fn a_client_gets_so_many_per_minute() {
    let (mut plane, world) = limited(PlaneLimits {
        pinholes_per_client_per_minute: 2,
        ..PlaneLimits::default()
    });
    let mut active = passive(1, "10.0.0.9", 40000);
    active.mode = Mode::Active;
    active.land.set_ip(ip(ANN));
    open(&mut plane, &active);
    open(&mut plane, &passive(1, ANN, 40001));
    assert!(plane.reserve(&passive(1, ANN, 40002)).is_err());
    open(&mut plane, &passive(2, BOB, 40002));
    world.wait(60);
    open(&mut plane, &passive(1, ANN, 40002));
}

#[test]
fn what_the_kernel_refuses_is_an_answer_and_is_tried_again() {
    let (mut plane, world) = plane(with_ports("8080"));
    world.with(|w| w.refuse_open = true);
    let hole = plane.reserve(&passive(1, ANN, 40000)).unwrap();
    assert!(matches!(plane.open(hole.id), Err(Error::Kernel(_))));
    assert_eq!(plane.pinholes(), vec![]);
    assert!(plane.open(hole.id).is_err());

    world.with(|w| {
        w.refuse_open = false;
        w.refuse_close = true;
    });
    let hole = open(&mut plane, &passive(1, ANN, 40000));
    plane.release(hole.id);
    plane.release(hole.id);
    assert_eq!(world.open_keys().len(), 1);
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(1)));
    world.wait(1);
    plane.expire();
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(2)));
    world.with(|w| w.refuse_close = false);
    world.wait(1);
    plane.expire();
    assert_eq!(world.open_keys(), vec![]);
    assert_eq!(plane.next_deadline(), None);
}

#[test]
fn flushed_holes_are_put_back_with_the_time_they_have_left() {
    let (mut plane, world) = plane(PlaneConfig::default());
    plane.install().unwrap();
    open(&mut plane, &passive(1, ANN, 40000));
    plane.reserve(&passive(2, ANN, 40001)).unwrap();
    assert!(plane.in_place().unwrap());
    world.with(|w| {
        w.installed = false;
        w.kernel.clear();
    });
    assert!(!plane.in_place().unwrap());
    world.wait(20);
    plane.install().unwrap();
    let left: Vec<_> = world.with(|w| w.kernel.values().map(|(_, left)| left.as_secs()).collect());
    assert_eq!(left, vec![40]);
    plane.remove().unwrap();
    assert_eq!(plane.pinholes(), vec![]);
}

#[derive(Clone, Debug)]
enum Op {
    Reserve(u64, u8, u16, bool),
    OpenLast,
    ReleaseLast,
    Use(usize),
    End(u64),
    Wait(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u64..4, 0u8..3, 29_999u16..30_004, any::<bool>())
            .prop_map(|(s, c, p, published)| Op::Reserve(s, c, p, published)),
        6 => Just(Op::OpenLast),
        1 => Just(Op::ReleaseLast),
        2 => (0usize..8).prop_map(Op::Use),
        1 => (0u64..4).prop_map(Op::End),
        1 => (1u64..40).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn the_kernel_never_has_more_than_the_plane_knows(
        ops in prop::collection::vec(any_op(), 1..80)
    ) {
        let limits = PlaneLimits { pinholes: 6, pinholes_per_session: 3, ..PlaneLimits::default() };
        let (mut plane, world) = plane(PlaneConfig { limits, ..with_ports("30000-30002") });
        let range: PortRange = "30000-30002".parse().unwrap();
        let mut last = None;
        for op in ops {
            match op {
                Op::Reserve(session, client, port, published) => {
                    let mut request = passive(session, &format!("203.0.113.{client}"), port);
                    request.published = published;
                    if !published {
                        request.to = request.land.ip();
                    }
                    if let Ok(got) = plane.reserve(&request) {
                        prop_assert!(!published || range.contains(got.to.port()));
                        prop_assert!(published || got.to.port() == port);
                        last = Some(got.id);
                    }
                }
                Op::OpenLast => if let Some(id) = last { let _ = plane.open(id); },
                Op::ReleaseLast => if let Some(id) = last { plane.release(id); },
                Op::Use(n) => {
                    let keys = world.open_keys();
                    if let Some(key) = keys.get(n) {
                        let used = plane.on_conntrack_new(Tuple {
                            src: SocketAddr::new(key.from, 33_333), dst: key.to });
                        prop_assert!(used.is_some());
                    }
                }
                Op::End(session) => plane.session_ended(SessionId(session)),
                Op::Wait(seconds) => { world.wait(seconds); plane.expire(); }
            }
            let all = plane.pinholes();
            let pending: Vec<_> = all.iter().filter(|i| i.state != PinholeState::Used).collect();
            let keys: std::collections::HashSet<_> =
                pending.iter().map(|i| PinholeKey { from: i.from, to: i.to }).collect();
            prop_assert_eq!(keys.len(), pending.len(), "two holes with one key");
            prop_assert!(pending.len() <= 6);
            for session in 0..4 {
                prop_assert!(pending.iter().filter(|i| i.session.0 == session).count() <= 3);
            }
            let mut open: Vec<_> = pending.iter().filter(|i| i.state == PinholeState::Open)
                .map(|i| PinholeKey { from: i.from, to: i.to }).collect();
            open.sort();
            prop_assert_eq!(open, world.open_keys());
            prop_assert_eq!(plane.next_deadline().is_some(), !pending.is_empty());
        }
        for session in 0..4 {
            plane.session_ended(SessionId(session));
        }
        prop_assert_eq!(world.open_keys(), vec![]);
        prop_assert!(plane.holes.holds_nothing());
    }
}

#[test]
fn holes_used_together_are_closed_together() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let holes: Vec<_> = (1..=3)
        .map(|n| open(&mut plane, &passive(n, ANN, 5000 + n as u16)))
        .collect();
    let events = holes.iter().map(|hole| new_event(dialled(ANN, hole.to)));
    world.with(|w| w.events.extend(events));
    plane.catch_up();
    assert_eq!(world.with(|w| w.closed.clone()), [3]);
    assert!(world.open_keys().is_empty());
    assert_eq!(plane.counters().used, 3);
}

#[test]
fn an_active_pinhole_that_nobody_uses_is_overdue_once() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let active = |n: u64| Request {
        mode: Mode::Active,
        published: false,
        ..passive(n, ANN, 6000 + n as u16)
    };
    // Passive holes wait for people.
    open(&mut plane, &passive(1, ANN, 5001));
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(60)));
    let hole = open(&mut plane, &active(2));
    assert_eq!(plane.next_deadline(), Some(OVERDUE_AFTER));
    assert_eq!(plane.overdue(), []);
    world.wait(1);
    let key = PinholeKey {
        from: ip(ANN),
        to: hole.to,
    };
    assert_eq!(plane.overdue(), [key]);
    assert_eq!(plane.overdue(), []);
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(60)));

    // One that is used in time wakes nobody.
    let hole = open(&mut plane, &active(3));
    plane.on_conntrack_new(dialled(ANN, hole.to)).unwrap();
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(60)));
    // Only so many are named at a time.
    for n in 100..200 {
        open(&mut plane, &active(n));
    }
    world.wait(1);
    assert_eq!(plane.overdue().len(), MAX_OVERDUE);
    assert_eq!(plane.overdue(), []);
    assert!(plane.holes.all_overdue());
}

#[test]
fn slow_closing_is_left_to_others_and_done_together() {
    let (mut plane, world) = plane(PlaneConfig::default());
    world.with(|w| w.slow = true);
    let holes: Vec<_> = (1..=3)
        .map(|n| open(&mut plane, &passive(n, ANN, 5000 + n as u16)))
        .collect();
    assert!(!plane.has_closing());
    for hole in &holes {
        plane.on_conntrack_new(dialled(ANN, hole.to)).unwrap();
    }
    assert_eq!(world.open_keys().len(), 3);
    // One is opened anew before it was closed: it stays.
    open(&mut plane, &passive(4, ANN, 5001));
    let work = plane.take_closing().unwrap();
    // One piece of work at a time, however much there is to do.
    let later = open(&mut plane, &passive(5, ANN, 5004));
    plane.on_conntrack_new(dialled(ANN, later.to)).unwrap();
    assert!(!plane.has_closing() && plane.take_closing().is_none());
    plane.closed(work());
    assert_eq!(world.with(|w| w.closed.clone()), [2]);
    let kept: Vec<_> = world.open_keys().iter().map(|k| k.to.port()).collect();
    assert_eq!(kept, [5001, 5004]);

    // What the kernel refuses is tried again.
    world.with(|w| w.refuse_close = true);
    let work = plane.take_closing().unwrap();
    plane.closed(work());
    assert_eq!(plane.counters().kernel_errors, 1);
    world.with(|w| w.refuse_close = false);
    world.wait(2);
    plane.expire();
    assert_eq!(world.open_keys().len(), 1);
    assert!(plane.take_closing().is_none());
}

/// A plane whose kernel holds the pinholes of another one, which was killed: with these ports, and so
/// many seconds left.
fn after_a_crash(limits: PlaneLimits, holes: &[(u16, u64)]) -> (Plane, FakeKernel) {
    let (plane, world) = limited(limits);
    for (port, left) in holes {
        let hole = Pinhole {
            from: ip(ANN),
            to: SocketAddr::new(ip("198.51.100.1"), *port),
            land: SocketAddr::new(ip("10.0.0.2"), *port),
            as_source: None,
            mark: 0,
        };
        let left = Duration::from_secs(*left);
        world.with(|w| w.kernel.insert(hole.key(), (hole, left)));
    }
    (plane, world)
}

#[test]
fn adopted_pinholes_are_used_once_and_end_at_their_deadline() {
    let left = [(40_000, 30), (40_001, 10), (40_002, 20)];
    let (mut plane, world) = after_a_crash(PlaneLimits::default(), &left);
    assert_eq!(plane.adopt().unwrap(), 3);
    let listed: Vec<_> = plane.pinholes().iter().map(|i| i.expires_in).collect();
    assert_eq!(listed, [Some(10), Some(20), Some(30)]);
    let mut infos = plane.pinholes().into_iter();
    assert!(infos.all(|i| i.session == NO_SESSION && i.state == PinholeState::Open));
    assert_eq!(plane.counters().adopted, 3);
    assert_eq!(plane.next_deadline(), Some(Duration::from_secs(10)));

    let to = |port| SocketAddr::new(ip("198.51.100.1"), port);
    let tuple = dialled(ANN, to(40_000));
    world.with(|w| w.events.push(new_event(tuple)));
    assert!(plane.catch_up());
    assert_eq!(plane.counters().used, 1);
    assert!(plane.on_conntrack_new(tuple).is_none(), "only once");
    plane.on_conntrack_destroy(tuple, None, None, None).unwrap();
    assert!(plane.transferred(&HashMap::new()).is_empty());
    world.wait(10);
    plane.expire();
    assert_eq!(plane.counters().expired, 1);
    let left: Vec<_> = world.open_keys().iter().map(|k| k.to.port()).collect();
    assert_eq!(left, [40_002]);
    // It holds its port for that peer, unless the same endpoint is announced again.
    let mut other = passive(1, ANN, 40_002);
    other.land.set_ip(ip("10.0.0.3"));
    assert_ne!(open(&mut plane, &other).to.port(), 40_002);
    let same = open(&mut plane, &passive(2, ANN, 40_002));
    assert_eq!(same.to.port(), 40_002);
    assert_eq!(plane.counters().superseded, 1);
    plane.session_ended(SessionId(1));
    plane.session_ended(SessionId(2));
    assert!(plane.holes.holds_nothing() && world.open_keys().is_empty());
}

#[test]
fn no_more_pinholes_are_adopted_than_there_may_be() {
    let limits = PlaneLimits {
        pinholes: 2,
        ..PlaneLimits::default()
    };
    let left = [(40_000, 30), (40_001, 1000), (40_002, 20)];
    let (mut plane, world) = after_a_crash(limits, &left);
    assert_eq!(plane.adopt().unwrap(), 2);
    let listed: Vec<_> = plane.pinholes().iter().map(|i| i.expires_in).collect();
    assert_eq!(listed, [Some(30), Some(60)], "the deadline of this plane");
    assert_eq!(world.open_keys().len(), 2);
}

/// conntrackd copies the connections of another gateway, of which an older one may have had the port of a
/// pinhole that nobody has used yet.
#[test]
fn connections_of_another_gateway_use_no_pinhole() {
    let (mut plane, world) = plane(PlaneConfig::default());
    plane.remember_ended();
    let hole = |port| Pinhole {
        from: ip(ANN),
        to: SocketAddr::new(ip("198.51.100.1"), port),
        land: SocketAddr::new(ip("10.0.0.2"), port),
        as_source: None,
        mark: 0,
    };
    let left = Duration::from_secs(30);
    let older = dialled(ANN, hole(40_000).to);
    world.with(|w| w.entries.push(entry(older)));
    plane.adopt_from_elsewhere(vec![(hole(40_000), left), (hole(40_001), left)]);
    let copied = ConntrackEvent::New {
        entry: entry(older),
        id: 1,
        status: 0xe,
    };
    world.with(|w| w.events.push(copied));
    assert!(plane.catch_up());
    assert_eq!((world.open_keys().len(), plane.counters().adopted), (2, 2));
    // Used there since. It isn't this gateway's to say so.
    plane.adopt_from_elsewhere(vec![(hole(40_001), left)]);
    assert_eq!(world.open_keys(), [hole(40_001).key()]);
    assert!(plane.take_ended().is_empty());
    // Used here.
    world.with(|w| w.events.push(new_event(dialled(ANN, hole(40_001).to))));
    assert!(plane.catch_up());
    assert_eq!(plane.take_ended(), [hole(40_001).key()]);
    assert!(plane.holes.holds_nothing() && world.open_keys().is_empty());
}

/// An address has come or gone: sessions are forgotten, and what they announced isn't.
#[test]
fn disowned_pinholes_stay_open() {
    let (mut plane, world) = plane(PlaneConfig::default());
    plane.remember_ended();
    let opened = open(&mut plane, &passive(1, ANN, 40_000));
    let reserved = plane.reserve(&passive(1, ANN, 40_001)).unwrap();
    plane.disown();
    plane.session_ended(SessionId(1));
    assert_eq!(world.open_keys().len(), 1);
    assert!(plane.open(reserved.id).is_err(), "it was the session's");
    assert!(plane.take_ended().is_empty());
    let listed: Vec<_> = plane.pinholes().iter().map(|i| i.session).collect();
    assert_eq!(listed, [NO_SESSION]);
    world.with(|w| w.events.push(new_event(dialled(ANN, opened.to))));
    assert!(plane.catch_up());
    assert_eq!(plane.take_ended().len(), 1);
    assert!(plane.holes.holds_nothing() && world.open_keys().is_empty());
}

#[test]
fn a_pinhole_that_was_used_while_no_daemon_ran_is_closed() {
    let left = [(40_000, 30), (40_001, 30)];
    let (mut plane, world) = after_a_crash(PlaneLimits::default(), &left);
    let used = dialled(ANN, SocketAddr::new(ip("198.51.100.1"), 40_000));
    world.with(|w| w.entries.push(entry(used)));
    assert_eq!(plane.adopt().unwrap(), 1);
    let open: Vec<_> = world.open_keys().iter().map(|k| k.to.port()).collect();
    assert_eq!(open, [40_001]);
    assert_eq!((plane.counters().adopted, plane.counters().used), (1, 0));
}

/// Ports come again after a while: a connection that has ended may have been made through an earlier pinhole.
#[test]
fn a_pinhole_that_may_have_been_used_is_not_lost() {
    // Open for 30, 20 and 55 s.
    let left = [(40_000, 30), (40_001, 40), (40_002, 5)];
    let (mut plane, world) = after_a_crash(PlaneLimits::default(), &left);
    for (port, since) in [(40_000, 29), (40_001, 40), (40_002, 3)] {
        let used = dialled(ANN, SocketAddr::new(ip("198.51.100.1"), port));
        let kept = Kept {
            state: TIME_WAIT,
            left: Duration::from_secs(120 - since),
        };
        world.with(|w| {
            w.entries.push(entry(used));
            w.kept.insert(used, kept);
        });
    }
    assert_eq!(plane.adopt().unwrap(), 3);
    let left: Vec<_> = plane.pinholes().iter().map(|i| i.expires_in).collect();
    let doubtful = Some(10);
    assert_eq!(left, [Some(5), doubtful, Some(40)]);
    let in_kernel = |port| {
        let key = PinholeKey {
            from: ip(ANN),
            to: SocketAddr::new(ip("198.51.100.1"), port),
        };
        world.with(|w| w.kernel[&key].1)
    };
    assert_eq!(in_kernel(40_000), Duration::from_secs(10));
    world.wait(10);
    plane.expire();
    assert_eq!(world.open_keys().len(), 1);
}
