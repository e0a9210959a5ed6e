//! Pinholes with a twin: one data connection, on both sides of a translator.

use super::*;
use crate::engine::gateway::Twin;

const CLIENT: &str = "2001:db8:1::2";
const POOL: &str = "192.168.255.7";

/// A client announces to a server behind the translator, on this port.
fn active(session: u64, port: u16) -> Request {
    let twin = |port| Twin {
        from: ip("64:ff9b::c633:6402"),
        to: SocketAddr::new(ip(CLIENT), port),
        land: SocketAddr::new(ip(CLIENT), port),
        as_source: None,
        mark: 0,
    };
    Request {
        mode: Mode::Active,
        from: ip("198.51.100.2"),
        to: ip("203.0.113.1"),
        land: SocketAddr::new(ip(POOL), port),
        twin: Some(twin(port)),
        ..passive(session, POOL, port)
    }
}

/// The connection that comes to the twin.
fn of_twin(port: u16) -> Tuple {
    dialled("64:ff9b::c633:6402", SocketAddr::new(ip(CLIENT), port))
}

#[test]
fn both_open_and_close_together() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let reservation = plane.reserve(&active(1, 40_000)).unwrap();
    assert_eq!(world.open_keys(), []);
    plane.open(reservation.id).unwrap();
    let keys = world.open_keys();
    assert_eq!(keys.len(), 2);
    assert!(
        keys.iter()
            .any(|key| key.to == SocketAddr::new(ip(CLIENT), 40_000))
    );
    plane.release(reservation.id);
    assert_eq!(world.open_keys(), []);
    assert!(plane.twins.is_empty() && plane.holes.holds_nothing());

    // With the session, and at the deadline.
    open(&mut plane, &active(1, 40_001));
    plane.session_ended(SessionId(1));
    assert_eq!(world.open_keys(), []);
    open(&mut plane, &active(2, 40_002));
    world.wait(60);
    plane.expire();
    assert_eq!(world.open_keys(), []);
    assert!(plane.twins.is_empty() && plane.holes.holds_nothing());
    let expired = plane.take_reports().collect::<Vec<_>>();
    assert!(
        matches!(&expired[..], [PlaneReport::Expired(_)]),
        "{expired:?}"
    );
    assert_eq!(plane.counters().expired, 1);
}

#[test]
fn each_is_used_by_its_own_connection_and_told_once() {
    for twin_first in [true, false] {
        let (mut plane, world) = plane(PlaneConfig::default());
        let hole = open(&mut plane, &active(1, 40_000));
        let own = dialled("198.51.100.2", hole.to);
        let mut events = [own, of_twin(40_000)];
        if twin_first {
            events.reverse();
        }
        for (n, event) in events.into_iter().enumerate() {
            world.with(|w| w.events.push(new_event(event)));
            assert!(plane.catch_up());
            assert_eq!(world.open_keys().len(), 1 - n, "{twin_first}");
        }
        let told: Vec<_> = plane.take_reports().collect();
        assert!(matches!(&told[..], [PlaneReport::Connected(_)]), "{told:?}");
        assert_eq!(
            (plane.counters().used, plane.counters().unattributed),
            (1, 0)
        );
        assert!(plane.twins.is_empty() && plane.holes.holds_nothing());
        assert_eq!(plane.live_count(), 1);
        // A second one finds nothing.
        assert_eq!(plane.on_conntrack_new(of_twin(40_000)), None);
        assert_eq!(plane.counters().unattributed, 1);
    }
}

#[test]
fn a_session_has_as_many_as_any_other() {
    let (mut plane, world) = plane(PlaneConfig::default());
    for port in 40_000..40_010 {
        open(&mut plane, &active(1, port));
        assert!(world.open_keys().len() <= 8);
    }
    assert_eq!(world.open_keys().len(), 8, "four, and their twins");
    let ports: Vec<_> = world.with(|w| {
        w.kernel
            .values()
            .map(|(hole, _)| hole.land.port())
            .collect()
    });
    assert!(ports.iter().all(|port| *port >= 40_006), "{ports:?}");
    plane.session_ended(SessionId(1));
    assert!(plane.twins.is_empty() && plane.holes.holds_nothing());
}

#[test]
fn the_same_announcement_again_replaces_both() {
    let (mut plane, world) = plane(PlaneConfig::default());
    for session in [1, 1, 2] {
        open(&mut plane, &active(session, 40_000));
        assert_eq!(world.open_keys().len(), 2);
    }
    // What is left of the first is out of the way as well.
    let hole = open(&mut plane, &active(3, 40_000));
    plane.on_conntrack_new(dialled("198.51.100.2", hole.to));
    open(&mut plane, &active(3, 40_000));
    assert_eq!(world.open_keys().len(), 2);
}

#[test]
fn if_one_cannot_open_neither_stays_open() {
    let (mut plane, world) = plane(PlaneConfig::default());
    let reservation = plane.reserve(&active(1, 40_000)).unwrap();
    world.with(|w| w.refuse_open = true);
    assert!(plane.open(reservation.id).is_err());
    assert_eq!(world.open_keys(), []);
    assert!(plane.twins.is_empty() && plane.holes.holds_nothing());
}
