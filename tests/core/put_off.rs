//! Packets that wait for a pinhole which opens together with others.

use ftpalg::engine::event::Event;
use ftpalg::engine::{Placed, Side, Verdict};
use testkit::gateway::{Decision, decide};
use testkit::packet::{ACK, FIN, Seg, data};
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

/// A login and a `PORT` in one segment, and the replies to the login; where both ends are then.
fn logged_in_with_a_port_that_waits() -> (Trace, u32, u32) {
    let mut t = Trace::new();
    t.world.puts_off = true;
    let [c, s] = t.dialogue(64_000, &[(true, "220 x\r\n")]);
    let all = "USER a\r\nPASS b\r\nPORT 198,51,100,7,200,1\r\n";
    let gone = "USER a\r\nPASS b\r\nPORT".len() as u32;
    let Decision::Replace(_) = in_the_end(&mut t, Client, &data(c, s, all)) else {
        panic!("nothing is held back");
    };
    let replies = "331 x\r\n230 x\r\n";
    in_the_end(&mut t, Server, &data(s, c + gone, replies));
    (t, c + all.len() as u32, s + replies.len() as u32)
}

#[test]
fn a_segment_without_data_that_lets_a_port_go_on_is_put_off() {
    for flags in [ACK, ACK | FIN] {
        let (mut t, c, s) = logged_in_with_a_port_that_waits();
        let bare = Seg {
            flags,
            ..data(c, s, "")
        };
        assert!(is_put_off(&mut t, Client, &bare));
        assert_eq!(t.world.opened.len(), 0);
        t.engine.again();
        let Decision::Replace(out) = in_the_end(&mut t, Client, &bare) else {
            panic!("what waited doesn't go on");
        };
        assert!(out.ends_with(b" 198,51,100,7,200,1\r\n"));
        assert_eq!((t.world.opened.len(), announced(&t)), (1, 1));
        let next = data(s, c + u32::from(flags & FIN != 0), "200 x\r\n");
        assert_ne!(in_the_end(&mut t, Server, &next), Decision::Drop);
    }
}

/// A copy of the flow for each packet would cost more than opening together brings.
#[test]
fn with_much_in_its_buffers_it_opens_by_itself() {
    let mut t = Trace::new();
    t.world.puts_off = true;
    let [mut c, received] = t.login();
    let mut s = received;
    let line = format!("200 {}\r\n", "x".repeat(1000));
    let mut says = |t: &mut Trace, command: &str| {
        assert!(!is_put_off(t, Client, &data(c, received, command)));
        c += command.len() as u32;
        c
    };
    for _ in 0..9 {
        let c = says(&mut t, "NOOP\r\n");
        assert!(!is_put_off(&mut t, Server, &data(s, c, &line)));
        s += line.len() as u32;
    }
    let c = says(&mut t, "PASV\r\n");
    let packet = pack(Server, &t.wire(Server, data(s, c, &reply())));
    let placed = t
        .engine
        .try_packet(Side::Egress, &packet, t.now, &mut t.world);
    let Placed::Verdict(Verdict::Replace(out)) = placed else {
        panic!("{placed:?}");
    };
    assert!(out.ends_with(told().as_bytes()));
    assert_eq!((t.world.opened.len(), announced(&t)), (1, 1));
}
