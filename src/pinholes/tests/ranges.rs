//! Ranges of sessions under TLS.

use super::*;
use crate::engine::gateway::RangeRequest;

const IDLE: u64 = 300;

fn with_range() -> PlaneConfig {
    PlaneConfig {
        tls_range: Some(TlsRange {
            ports: "40000-40009".parse().unwrap(),
            idle: Duration::from_secs(IDLE),
        }),
        ..PlaneConfig::default()
    }
}

fn control(session: u64) -> Tuple {
    Tuple {
        src: SocketAddr::new(ip(ANN), 50_000 + u16::try_from(session).unwrap()),
        dst: "198.51.100.1:21".parse().unwrap(),
    }
}

fn request(session: u64, from: &str, land: &str) -> RangeRequest {
    RangeRequest {
        session: SessionId(session),
        control: control(session),
        from: ip(from),
        to: ip("198.51.100.1"),
        land: ip(land),
        as_source: None,
    }
}

fn open_to(world: &FakeKernel) -> Vec<(IpAddr, IpAddr)> {
    world.with(|w| {
        let holes = w.ranges.values();
        holes.map(|(hole, _)| (hole.from, hole.land)).collect()
    })
}

const S1: &str = "10.0.0.2";
const S2: &str = "10.0.0.3";

#[test]
fn a_range_lives_as_long_as_its_last_session() {
    let (mut plane, world) = plane(with_range());
    for session in [1, 2] {
        plane.open_range(&request(session, ANN, S1)).unwrap();
    }
    plane.open_range(&request(3, BOB, S1)).unwrap();
    assert_eq!(open_to(&world), [(ip(ANN), ip(S1)), (ip(BOB), ip(S1))]);
    assert_eq!(world.with(|w| w.watched.len()), 3);
    let infos = plane.pinholes();
    assert_eq!(infos.len(), 3);
    let json = serde_json::to_value(&infos[0]).unwrap();
    assert_eq!(json["ports"], "40000-40009");
    assert_eq!(json["to"], "198.51.100.1:40000");
    assert_eq!(json["land"], "10.0.0.2:40000");
    plane.session_ended(SessionId(1));
    assert_eq!(open_to(&world).len(), 2);
    plane.session_ended(SessionId(2));
    plane.session_ended(SessionId(2));
    assert_eq!(open_to(&world), [(ip(BOB), ip(S1))]);
    plane.session_ended(SessionId(3));
    assert_eq!((open_to(&world), plane.pinholes()), (vec![], vec![]));
    assert!(world.with(|w| w.watched.is_empty()));
    assert_eq!(plane.next_deadline(), None);
}

#[test]
fn it_ends_when_idle_and_opens_again_with_activity() {
    let (mut plane, world) = plane(with_range());
    plane.open_range(&request(1, ANN, S1)).unwrap();
    world.wait(IDLE - 1);
    plane.open_range(&request(1, ANN, S1)).unwrap();
    assert_eq!(world.with(|w| w.range_writes), 1, "the kernel's is long");
    world.wait(IDLE - 1);
    plane.expire();
    assert_eq!(open_to(&world).len(), 1);
    plane.open_range(&request(1, ANN, S1)).unwrap();
    assert_eq!(world.with(|w| w.range_writes), 1);
    world.wait(10);
    plane.open_range(&request(1, ANN, S1)).unwrap();
    assert_eq!(world.with(|w| w.range_writes), 2, "half of it is over");
    world.wait(IDLE);
    plane.expire();
    assert_eq!(open_to(&world), []);
    assert_eq!(plane.counters().ranges_idle, 1);
    plane.open_range(&request(1, ANN, S1)).unwrap();
    assert_eq!(open_to(&world).len(), 1);
    let told: Vec<_> = plane.take_reports().collect();
    assert!(
        matches!(
            told[..],
            [
                PlaneReport::RangeOpened(_),
                PlaneReport::RangeClosed(_, RangeEnd::Idle),
                PlaneReport::RangeOpened(_)
            ]
        ),
        "{told:?}"
    );
}

#[test]
fn it_ends_with_the_conntrack_entry() {
    let (mut plane, world) = plane(with_range());
    plane.open_range(&request(1, ANN, S1)).unwrap();
    world.with(|w| {
        w.events.push(ConntrackEvent::Destroy {
            entry: entry(control(1)),
            id: 1,
            bytes: None,
            lifetime: None,
            state: None,
            status: 0,
        });
    });
    plane.catch_up();
    assert_eq!(open_to(&world), []);
    // Events may be lost.
    plane.open_range(&request(1, ANN, S1)).unwrap();
    plane.open_range(&request(2, BOB, S1)).unwrap();
    world.with(|w| {
        w.missed = true;
        w.entries = vec![entry(control(2))];
    });
    plane.catch_up();
    assert_eq!(open_to(&world), [(ip(BOB), ip(S1))]);
}

#[test]
fn the_first_server_wins_and_its_range_hides_no_other_servers_pinhole() {
    let (mut plane, world) = plane(with_range());
    plane.open_range(&request(1, ANN, S1)).unwrap();
    assert_eq!(
        plane.open_range(&request(2, ANN, S2)),
        Err(Error::RangeTaken(ip(S1)))
    );
    plane.open_range(&request(3, BOB, S2)).unwrap();
    assert_eq!(plane.counters().ranges_taken, 1);
    // A plain session with the second server doesn't take a port that means the first one.
    let mut plain = passive(4, ANN, 40005);
    plain.land.set_ip(ip(S2));
    assert!(plane.reserve(&plain).unwrap().to.port() >= 49152);
    // One with the first server may: it leads there in any case.
    let own = passive(5, ANN, 40005);
    assert_eq!(plane.reserve(&own).unwrap().to.port(), 40005);
    plane.session_ended(SessionId(1));
    plane.open_range(&request(2, ANN, S2)).unwrap();
    assert_eq!(open_to(&world), [(ip(ANN), ip(S2)), (ip(BOB), ip(S2))]);
}

#[test]
fn connections_through_a_range_are_told_of() {
    let (mut plane, _) = plane(with_range());
    plane.open_range(&request(1, ANN, S1)).unwrap();
    let to = |port| SocketAddr::new(ip("198.51.100.1"), port);
    for port in [40000, 40000, 40009] {
        let connection = plane.on_conntrack_new(dialled(ANN, to(port))).unwrap();
        assert_eq!(connection.session, SessionId(1));
        assert_eq!(connection.land, SocketAddr::new(ip(S1), port));
    }
    assert_eq!(plane.on_conntrack_new(dialled(ANN, to(40010))), None);
    assert_eq!(plane.on_conntrack_new(dialled(BOB, to(40000))), None);
    let counters = plane.counters();
    assert_eq!((counters.range_connections, counters.unattributed), (3, 2));
    // A pinhole in the range counts by itself, and goes.
    let hole = open(&mut plane, &passive(2, ANN, 40003));
    let connection = plane.on_conntrack_new(dialled(ANN, hole.to)).unwrap();
    assert_eq!((connection.pinhole, connection.session.0), (hole.id, 2));
}

fn destroy_event(original: Tuple) -> ConntrackEvent {
    ConntrackEvent::Destroy {
        entry: entry(original),
        id: 1,
        bytes: None,
        lifetime: None,
        state: Some(TIME_WAIT),
        status: 0xe,
    }
}

/// Events were lost, and conntrack's list is read while the event of a connection in it is on its way.
#[test]
fn a_connection_that_the_list_and_an_event_tell_of_is_one() {
    let (mut plane, world) = plane(with_range());
    plane.open_range(&request(1, ANN, S1)).unwrap();
    let tuple = dialled(ANN, "198.51.100.1:40000".parse().unwrap());
    let connections = |plane: &mut Plane| {
        let told: Vec<_> = plane.take_reports().collect();
        let count = |kind: fn(&PlaneReport) -> bool| told.iter().filter(|r| kind(r)).count();
        let total = plane.transferred(&HashMap::new())[&SessionId(1)].data_connections;
        (
            count(|report| matches!(report, PlaneReport::Connected(_))),
            count(|report| matches!(report, PlaneReport::Finished(_))),
            total,
            plane.counters().range_connections,
        )
    };
    world.with(|w| {
        w.missed = true;
        let mark = 0;
        let control = entry(control(1));
        w.entries = vec![entry(tuple), Entry { mark, ..control }];
    });
    assert!(plane.catch_up());
    world.with(|w| w.events.push(new_event(tuple)));
    assert!(plane.catch_up());
    assert_eq!(connections(&mut plane), (1, 0, 1, 1));
    // Another one with the same ends.
    world.with(|w| w.events = vec![destroy_event(tuple), new_event(tuple)]);
    assert!(plane.catch_up());
    assert_eq!(connections(&mut plane), (1, 1, 2, 2));
    // The event of its end is lost.
    world.with(|w| w.events = vec![new_event(tuple)]);
    assert!(plane.catch_up());
    assert_eq!(connections(&mut plane), (1, 1, 3, 3));
    assert_eq!(plane.live_count(), 1);
    // The same, with all that the list told of.
    world.with(|w| {
        w.missed = true;
        w.events = vec![destroy_event(tuple)];
    });
    assert!(plane.catch_up());
    world.with(|w| w.events = vec![destroy_event(tuple), new_event(tuple)]);
    assert!(plane.catch_up());
    assert_eq!(connections(&mut plane), (2, 2, 5, 5));
}

#[test]
fn a_kernel_that_refuses() {
    let (mut plane, world) = plane(with_range());
    world.with(|w| w.refuse_open = true);
    let refused = plane.open_range(&request(1, ANN, S1));
    assert!(matches!(refused, Err(Error::Kernel(_))));
    assert_eq!(plane.pinholes(), vec![]);
    world.with(|w| w.refuse_open = false);
    plane.open_range(&request(1, ANN, S1)).unwrap();
    world.with(|w| w.refuse_close = true);
    plane.session_ended(SessionId(1));
    assert_eq!(open_to(&world).len(), 1);
    assert!(plane.next_deadline().is_some(), "tried again");
    world.with(|w| w.refuse_close = false);
    world.wait(2);
    plane.expire();
    assert_eq!(open_to(&world), []);
    assert_eq!(plane.next_deadline(), None);
}

#[test]
fn ranges_are_bounded_and_survive_a_flush() {
    let mut config = with_range();
    config.limits.ranges = 2;
    let (mut plane, world) = plane(config);
    plane.open_range(&request(1, ANN, S1)).unwrap();
    plane.open_range(&request(2, BOB, S1)).unwrap();
    let limited = plane.open_range(&request(3, "203.0.113.12", S1));
    assert!(matches!(limited, Err(Error::Limit(_))));
    plane.open_range(&request(1, ANN, S1)).unwrap();
    world.with(|w| w.ranges.clear());
    plane.install().unwrap();
    assert_eq!(open_to(&world).len(), 2);
    plane.remove().unwrap();
    assert_eq!(open_to(&world), []);
    assert!(world.with(|w| w.watched.is_empty()));
}

#[test]
fn without_a_range_there_is_none() {
    let (mut plane, _) = plane(PlaneConfig::default());
    assert!(plane.open_range(&request(1, ANN, S1)).is_err());
}
