//! How large a packet may become: a path may take less than both ends say.

use ftpalg::engine::Config;
use testkit::packet::{ACK, Seg, data};
use testkit::trace::{Client, GROWTH, Out, Server, Trace, ack, reply, told};

/// Header bytes of these packets.
const HEADERS: usize = 40;

/// Both ends say 1,460; logged in, and `NOOP` and `PASV` sent.
fn asked() -> (Trace, u32, u32) {
    let mut t = Trace::with(Config::default(), [1000, 5000], &[2, 4, 5, 0xb4]);
    let [c, s] = t.login();
    t.send(Client, data(c, s, "NOOP\r\nPASV\r\n"));
    (t, c + 12, s)
}

/// The same, where the server has said something in a packet of `size` bytes before.
fn asked_after(size: usize) -> (Trace, u32, u32) {
    let mut t = Trace::with(Config::default(), [1000, 5000], &[2, 4, 5, 0xb4]);
    let [c, s] = t.login();
    t.send(Client, data(c, s, "NOOP\r\nNOOP\r\nPASV\r\n"));
    let long = answer(size - HEADERS);
    assert_eq!(t.send(Server, data(s, c, &long)), Out::Same);
    let s = s + long.len() as u32;
    t.send(Client, ack(c + 18, s));
    (t, c + 18, s)
}

/// A reply of several lines, `length` bytes long in all.
fn answer(length: usize) -> String {
    let end = "\r\n200 x\r\n";
    let lines = ("y".repeat(78) + "\r\n").repeat(20);
    "200-".to_owned() + &lines[..length - 4 - end.len()] + end
}

/// The answers to both commands in a packet of `size` bytes, as the server writes it and as the client is
/// to read it.
fn sized(size: usize) -> (String, String) {
    let first = answer(size - HEADERS - reply().len());
    (first.clone() + &reply(), first + &told())
}

/// The server's way takes packets of 1,400 bytes, and the server knows.
#[test]
fn a_packet_never_outgrows_its_senders_largest() {
    let (mut t, c, s) = asked_after(1400);
    let (line, due) = sized(1400);
    let out = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(out.payload, &due.as_bytes()[..1360]);
    // The client has that; the rest goes with whatever comes next.
    assert_ne!(t.send(Client, ack(c, s + 1360)), Out::Dropped);
    let out = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(out.payload, &due.as_bytes()[1360..]);
    assert_eq!(out.seq, s + 1360);
}

/// Up to what nearly every path takes, and no larger where nothing larger was seen.
#[test]
fn a_small_packet_grows_at_once() {
    for (size, cut) in [(60 + reply().len(), 0), (1275, 0), (1276, 1), (1280, 5)] {
        let (mut t, c, s) = asked();
        let (line, due) = sized(size);
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out.payload, &due.as_bytes()[..due.len() - cut], "{size}");
    }
}

/// Silence may mean that the packet was too large.
#[test]
fn what_is_repeated_does_not_grow_again() {
    // The way took 1,500 bytes, once.
    let (mut t, c, s) = asked_after(1500);
    let (line, due) = sized(1400);
    let out = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(out.payload, due.as_bytes());
    // It got lost, for its size or not.
    for _ in 0..3 {
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out.payload, &due.as_bytes()[..1360]);
    }
    t.send(Client, ack(c, s + 1360));
    let out = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(out.payload, &due.as_bytes()[1360..]);
    t.send(Client, ack(c, s + due.len() as u32));
    // From here on, no packet gets larger than that.
    let s = s + line.len() as u32;
    t.send(Client, data(c, s + GROWTH, "NOOP\r\nPASV\r\n"));
    let out = t.send(Server, data(s, c + 12, &line)).seg();
    assert_eq!(out.payload.len(), 1360);
}

/// Not even up to that, but for what every path takes.
#[test]
fn a_path_that_takes_little() {
    for (size, cut) in [(571, 0), (572, 1), (576, 5), (1000, 5)] {
        let (mut t, c, s) = asked();
        let (line, due) = sized(size);
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out.payload, due.as_bytes(), "{size}");
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out.payload, &due.as_bytes()[..due.len() - cut], "{size}");
    }
}

/// Where the receiver answers, it isn't the size: it may have had no room.
#[test]
fn what_was_answered_is_repeated_whole() {
    let (mut t, c, s) = asked_after(1500);
    let (line, due) = sized(1400);
    for _ in 0..3 {
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out.payload, due.as_bytes());
        t.send(Client, ack(c, s));
    }
}

/// What went on before nothing was read any more is repeated by the same rule.
#[test]
fn what_is_repeated_behind_the_inspection_does_not_grow_again() {
    let (mut t, c, s) = asked_after(1500);
    let (line, due) = sized(1400);
    let out = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(out.payload, due.as_bytes());
    t.send(Client, data(c, s, "AUTH TLS\r\n"));
    t.send(Server, data(s + line.len() as u32, c + 10, "234 x\r\n"));
    assert_eq!(t.world.opaque(), Some("TLS"));
    let out = t.send(Server, data(s, c + 10, &line)).seg();
    assert_eq!(out.payload, &due.as_bytes()[..1360]);
}

/// Small ones are repeated whole: only the size may have been what was wrong.
#[test]
fn a_small_reply_is_repeated_whole() {
    let (mut t, c, s) = asked();
    let (line, due) = sized(200);
    for _ in 0..3 {
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out, data(s, c, &due));
    }
}

/// Whoever doesn't see the session can't widen the way.
#[test]
fn a_forged_packet_says_nothing_of_the_path() {
    let (mut t, c, s) = asked();
    let long = "x".repeat(1460);
    for (seq, ack) in [(s + 70_000, c), (s, c + (1 << 21))] {
        assert_eq!(t.send(Server, data(seq, ack, &long)), Out::Dropped);
    }
    let (line, due) = sized(1280);
    let out = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(out.payload, &due.as_bytes()[..1240]);
    // A bare acknowledgement of the server's may carry the rest.
    t.send(Client, ack(c, s + 1240));
    let out = t.send(Server, ack(s + 1240, c)).seg();
    let rest = Seg {
        flags: ACK,
        ..data(s + 1240, c, &due[1240..])
    };
    assert_eq!(out, rest);
}
