//! Packets that wait for a pinhole which opens together with others.

use ftpalg::engine::event::Event;
use ftpalg::engine::{Placed, Side, Verdict};
use testkit::gateway::{Decision, decide};
use testkit::packet::{Seg, data};
use testkit::trace::{Client, Server, Trace, Who, pack, reply, told};

fn side(who: Who) -> Side {
    match who {
        Server => Side::Egress,
        Client => Side::Ingress,
    }
}

/// A conversation whose gateway puts packets off, up to the `PASV`; where both ends are.
fn asked() -> (Trace, u32, u32) {
    let (mut t, c, s) = Trace::asked();
    t.world.puts_off = true;
    (t, c, s)
}

/// Whether a segment is put off; if not, it isn't changed.
fn is_put_off(t: &mut Trace, who: Who, seg: &Seg) -> bool {
    let packet = pack(who, &t.wire(who, seg.clone()));
    match t.engine.try_packet(side(who), &packet, t.now, &mut t.world) {
        Placed::Later => true,
        Placed::Verdict(Verdict::Accept) => false,
        other => panic!("{other:?}"),
    }
}

/// What becomes of a segment when its pinholes are open.
fn in_the_end(t: &mut Trace, who: Who, seg: &Seg) -> Decision {
    let packet = pack(who, &t.wire(who, seg.clone()));
    decide(&mut t.engine, side(who), &packet, t.now, &mut t.world)
}

fn announced(t: &Trace) -> usize {
    let is_one = |event: &&Event| matches!(event, Event::Announced { .. });
    t.world.events.iter().filter(is_one).count()
}

#[test]
fn nothing_has_happened_until_it_comes_again() {
    let (mut t, c, s) = asked();
    let before = (*t.engine.stats(), t.engine.buffered());
    let line = data(s, c, &reply());
    for _ in 0..3 {
        assert!(is_put_off(&mut t, Server, &line));
        assert_eq!((*t.engine.stats(), t.engine.buffered()), before);
        t.engine.again();
    }
    assert_eq!(t.world.opened.len(), 0);
    let Decision::Replace(out) = in_the_end(&mut t, Server, &line) else {
        panic!("it isn't rewritten");
    };
    assert!(out.ends_with(told().as_bytes()));
    assert_eq!((t.world.opened.len(), announced(&t)), (1, 1));
    let [packets, announced] = [t.engine.stats().packets, t.engine.stats().announced];
    assert_eq!((packets, announced), (before.0.packets + 1, 1));
}

#[test]
fn one_that_waits_for_its_port_is_put_off_as_well() {
    let (mut t, c, s) = asked();
    t.world.busy = true;
    let before = *t.engine.stats();
    let line = data(s, c, &reply());
    assert!(is_put_off(&mut t, Server, &line));
    assert_eq!(*t.engine.stats(), before);
    t.engine.again();
    t.world.busy = false;
    let Decision::Replace(out) = in_the_end(&mut t, Server, &line) else {
        panic!("it isn't rewritten");
    };
    assert!(out.ends_with(told().as_bytes()));
    assert_eq!((t.world.opened.len(), announced(&t)), (1, 1));
}

#[test]
fn what_its_sender_sends_next_waits_behind_it_and_its_peer_goes_on() {
    let (mut t, c, s) = asked();
    let line = data(s, c, &reply());
    let next = data(s + reply().len() as u32, c, "200 x\r\n");
    assert!(is_put_off(&mut t, Server, &line));
    assert!(is_put_off(&mut t, Server, &next));
    assert!(!is_put_off(&mut t, Client, &data(c, s, "NOOP\r\n")));
    t.engine.again();
    let Decision::Replace(first) = in_the_end(&mut t, Server, &line) else {
        panic!("it isn't rewritten");
    };
    assert!(first.ends_with(told().as_bytes()));
    let Decision::Replace(second) = in_the_end(&mut t, Server, &next) else {
        panic!("its number isn't moved");
    };
    assert!(second.ends_with(b"200 x\r\n"));
    assert_eq!(t.engine.stats().out_of_order, 0);
}

#[test]
fn a_connection_that_ends_meanwhile_announces_nothing() {
    let (mut t, c, s) = asked();
    let line = data(s, c, &reply());
    assert!(is_put_off(&mut t, Server, &line));
    let rst = Seg {
        flags: testkit::packet::RST,
        ..data(c, s, "")
    };
    assert!(!is_put_off(&mut t, Client, &rst));
    assert_eq!((t.sessions(), t.world.ended), (0, 1));
    t.engine.again();
    assert_eq!(in_the_end(&mut t, Server, &line), Decision::Accept);
    assert_eq!((t.world.opened.len(), announced(&t)), (0, 0));
}

#[test]
fn without_a_caller_that_waits_it_is_dropped() {
    let (mut t, c, s) = asked();
    let packet = pack(Server, &t.wire(Server, data(s, c, &reply())));
    assert_eq!(t.raw(Server, &packet), Verdict::Drop);
}
