//! What becomes of connections when the gateway ends.

use ftpalg::engine::{Config, Engine, Side};
use testkit::gateway::MARKS;
use testkit::packet::{OUTSIDE, RST, SYN, Seg, data, syn};
use testkit::trace::{Client, GROWTH, Out, Server, Trace, Who, ack, reply, told};

/// The RSTs of a farewell: their direction, and their offset from the first byte of their sender.
fn farewell(trace: &mut Trace) -> Vec<(Who, u32)> {
    let resets = trace.engine.farewell(false, &mut trace.world);
    let [client, server] = trace.isn.map(|isn| isn.wrapping_add(1));
    let of = |reset: ftpalg::engine::Rst| match reset.side {
        Side::Egress => (Server, reset.seq.wrapping_sub(server)),
        Side::Ingress => (Client, reset.seq.wrapping_sub(client)),
    };
    resets.into_iter().map(of).collect()
}

fn rst(seq: u32) -> Seg {
    Seg {
        flags: RST,
        window: 0,
        ..data(seq, 0, "")
    }
}

#[test]
fn each_end_of_an_uneven_connection_gets_the_number_that_it_expects() {
    let (mut t, c, s) = Trace::idle();
    assert_eq!(farewell(&mut t), [(Server, s + GROWTH), (Client, c)]);
    assert_eq!(t.sessions(), 0);
    // Nothing else goes on, in either direction.
    let noop = data(c, s + GROWTH, "NOOP\r\n");
    assert_eq!(t.send(Client, noop.clone()), Out::Dropped);
    assert_eq!(t.send(Server, data(s, c, "421 x\r\n")), Out::Dropped);
    assert_eq!(t.send(Client, noop), Out::Dropped);
    // They pass the hooks as they are.
    assert_eq!(t.send(Client, rst(c)), Out::Same);
    assert_eq!(t.send(Server, rst(s + GROWTH)), Out::Same);
    // The server's own.
    assert_eq!(t.send(Server, rst(s)), Out::Became(rst(s + GROWTH)));
    assert_eq!(farewell(&mut t), [(Server, s + GROWTH), (Client, c)]);
}

#[test]
fn an_end_with_data_in_flight_says_what_it_expects() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()));
    let end = s + told().len() as u32;
    let first = farewell(&mut t);
    for expected in [(Server, s), (Server, end), (Client, c)] {
        assert!(first.contains(&expected), "{first:?}");
    }
    assert_eq!(t.send(Client, ack(c, s + 7)), Out::Dropped);
    assert!(farewell(&mut t).contains(&(Server, s + 7)));
}

#[test]
fn an_even_connection_goes_on_and_stays_even() {
    let mut t = Trace::new();
    let [c, s] = t.login();
    assert_eq!(farewell(&mut t), []);
    assert_eq!(t.send(Client, data(c, s, "PASV\r\n")), Out::Same);
    let c = c + 6;
    // It would get longer.
    for _ in 0..2 {
        assert_eq!(t.send(Server, data(s, c, &reply())), Out::Dropped);
    }
    assert_eq!(t.send(Client, data(c, s, "NOOP\r\n")), Out::Dropped);
    assert_eq!(farewell(&mut t), []);
    assert_eq!(t.sessions(), 1);
}

#[test]
fn a_handover_waits_for_what_a_successor_could_not_follow() {
    let mut t = Trace::unborn(Config::default(), [1000, 5000]);
    t.send(Client, syn(SYN));
    assert!(t.engine.hold_commands(), "a connection begins");

    let mut t = Trace::new();
    assert!(t.engine.hold_commands(), "the SYN-ACK isn't answered");
    assert_eq!(t.send(Client, ack(0, 0)), Out::Same);
    assert!(!t.engine.hold_commands());
    assert_eq!(t.send(Server, data(0, 0, "220 x\r\n")), Out::Same);
    let user = data(0, 7, "USER a\r\n");
    assert_eq!(t.send(Client, user.clone()), Out::Dropped);
    assert_eq!(t.send(Client, user), Out::Dropped);
    assert_eq!(t.send(Client, ack(0, 7)), Out::Same);
    let again = Seg {
        seq: 99,
        ..syn(SYN)
    };
    assert_eq!(t.send(Client, again), Out::Dropped);

    let (mut t, c, s) = Trace::asked();
    assert!(t.engine.hold_commands(), "a 227 is awaited");
    assert_eq!(t.send(Client, data(c, s, "NOOP\r\n")), Out::Same);
    let read = t.send(Server, data(s, c + 6, &reply())).seg();
    assert_eq!(read.payload, told().into_bytes());
    assert!(!t.engine.hold_commands());
}

/// What would open something doesn't go on, so that it comes again to a successor.
#[test]
fn an_announcement_that_comes_too_late_is_left_to_the_successor() {
    let even = || Config {
        marks: Some(MARKS),
        ..Config::default()
    };
    // The port is chosen so that the reply keeps its length.
    let mut t = Trace::with(even(), [1000, 5000], &[]);
    let (c, s) = t.ask();
    t.world.closing = true;
    let late = data(s, c, &reply());
    assert_eq!(t.send(Server, late.clone()), Out::Dropped);
    assert_eq!(t.send(Server, late.clone()), Out::Dropped);
    t.engine = Engine::new(even(), 0);
    t.world.closing = false;
    let read = t.send(Server, late).seg().payload;
    assert!(read.starts_with(b"227 "), "{read:?}");
    assert!(!read.windows(8).any(|w| w == b"10,0,0,2"), "{read:?}");
    assert_eq!(t.world.opened.len(), 1);

    // A client announces.
    let mut t = Trace::with(even(), [1000, 5000], &[]);
    let [c, s] = t.login();
    t.world.closing = true;
    let port = data(
        c,
        s,
        &format!("PORT {},200,13\r\n", OUTSIDE.to_string().replace('.', ",")),
    );
    assert_eq!(t.send(Client, port.clone()), Out::Dropped);
    t.engine = Engine::new(even(), 0);
    t.world.closing = false;
    assert_ne!(t.send(Client, port), Out::Dropped);
    assert_eq!(t.world.opened.len(), 1);

    // TLS begins, and the client is to reach a range.
    let config = || Config {
        tls_range: true,
        ..even()
    };
    let mut t = Trace::with(config(), [1000, 5000], &[]);
    t.world.ranges = Some(Vec::new());
    let [c, s] = t.login();
    t.send(Client, data(c, s, "AUTH TLS\r\n"));
    t.world.closing = true;
    let accepted = data(s, c + 10, "234 Go on\r\n");
    assert_eq!(t.send(Server, accepted.clone()), Out::Dropped);
    t.engine = Engine::new(config(), 0);
    t.world.closing = false;
    assert_eq!(t.send(Server, accepted), Out::Same);
}
