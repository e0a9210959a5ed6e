//! Handshakes that would keep a connection from being read: data in the SYN, Multipath TCP, signatures.

use ftpalg::engine::Config;
use testkit::packet::{ACK, FIN, LOGIN, PSH, SYN, Seg, data, syn};
use testkit::trace::{Client, Out, Server, Trace, ack, flagged, reply};

/// MP_CAPABLE (RFC 8684 §3.1), between others.
const MULTIPATH: [u8; 16] = [2, 4, 5, 0xb4, 30, 4, 1, 0x81, 3, 3, 7, 1, 4, 2, 1, 1];
const PLAIN: [u8; 16] = [2, 4, 5, 0xb4, 1, 1, 1, 1, 3, 3, 7, 1, 4, 2, 1, 1];
/// TCP-MD5 (RFC 2385).
const MD5: [u8; 20] = [
    19, 18, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 1,
];
/// TCP-AO (RFC 5925).
const AO: [u8; 16] = [29, 16, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9];

fn unborn() -> Trace {
    Trace::unborn(Config::default(), [1000, 5000])
}

// ---- data in the SYN ---------------------------------------------------------------------------

/// It goes on without: the server acknowledges the SYN alone, and the client sends its data again.
#[test]
fn data_in_a_syn_waits_for_the_handshake() {
    for (flags, left) in [(SYN, SYN), (SYN | FIN, SYN), (SYN | PSH, SYN | PSH)] {
        let mut t = unborn();
        let fast = Seg {
            flags,
            payload: b"PORT 10,0,0,3,0,22\r\n".to_vec(),
            // The cookie of RFC 7413 stays.
            options: vec![34, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1],
            ..syn(SYN)
        };
        let out = t.send(Client, fast.clone()).seg();
        let bare = Seg {
            flags: left,
            payload: Vec::new(),
            ..fast
        };
        assert_eq!(out, bare);
        assert_eq!(t.send(Server, syn(SYN | ACK)), Out::Same);
        t.is_followed();
        assert_eq!(t.engine.stats().stripped, 1);
    }
}

#[test]
fn data_in_a_syn_ack_waits_as_well() {
    let mut t = unborn();
    assert_eq!(t.send(Client, syn(SYN)), Out::Same);
    let greets = Seg {
        payload: b"220 x\r\n".to_vec(),
        ..syn(SYN | ACK)
    };
    assert_eq!(t.send(Server, greets).seg(), syn(SYN | ACK));
    t.is_followed();
}

/// Before anything is known of the connection, and even where it has no room.
#[test]
fn data_in_a_syn_never_passes() {
    let config = Config {
        max_flows: 0,
        ..Config::default()
    };
    let mut t = Trace::unborn(config, [1, 2]);
    for _ in 0..3 {
        let fast = Seg {
            payload: b"PORT 10,0,0,3,0,22\r\n".to_vec(),
            ..syn(SYN)
        };
        assert_eq!(t.send(Client, fast).seg().payload, b"");
    }
}

// ---- Multipath TCP -----------------------------------------------------------------------------

#[test]
fn multipath_falls_back_to_plain_tcp() {
    let mut t = unborn();
    let multipath = |flags| Seg {
        options: MULTIPATH.to_vec(),
        ..syn(flags)
    };
    let plain = |flags| Seg {
        options: PLAIN.to_vec(),
        ..syn(flags)
    };
    assert_eq!(t.send(Client, multipath(SYN)).seg(), plain(SYN));
    assert_eq!(t.send(Server, plain(SYN | ACK)), Out::Same);
    t.is_followed();
    // Where the SYN went round us, the answer doesn't.
    let out = t.send(Server, multipath(SYN | ACK)).seg();
    assert_eq!(out, plain(SYN | ACK));
}

// ---- signatures ----------------------------------------------------------------------------------

/// A server that doesn't sign its answer doesn't look at signatures.
#[test]
fn signatures_that_the_server_ignores() {
    for option in [&MD5[..], &AO] {
        let mut t = unborn();
        let signed = Seg {
            options: option.to_vec(),
            ..syn(SYN)
        };
        assert_eq!(t.send(Client, signed), Out::Same);
        t.send(Server, syn(SYN | ACK));
        t.is_followed();
        assert_eq!(t.engine.stats().untouchable, 0);
    }
}

/// Both sign: what goes on is as it came, to the bit, and nothing opens.
fn signed() -> Trace {
    signed_with(Config::default())
}

fn signed_with(config: Config) -> Trace {
    let options = MD5.to_vec();
    let mut t = Trace::begun(
        config,
        [1000, 5000],
        &Seg {
            options,
            ..syn(SYN)
        },
    );
    assert_eq!(t.engine.stats().untouchable, 1);
    t.now += std::time::Duration::from_secs(1);
    t
}

#[test]
fn a_signed_session_opens_nothing() {
    let mut t = signed();
    let (c, s) = t.ask();
    assert_eq!(t.send(Server, data(s, c, &reply())), Out::Same);
    let s = s + reply().len() as u32;
    assert_eq!(t.send(Client, ack(c, s)), Out::Same);
    // Its own address.
    let port = "PORT 198,51,100,7,20,20\r\n";
    assert_eq!(t.send(Client, data(c, s, port)), Out::Same);
    let c = c + port.len() as u32;
    assert_eq!(t.send(Server, data(s, c, "200 x\r\n")), Out::Same);
    assert_eq!(t.send(Client, data(c, s + 7, "LIST\r\n")), Out::Same);
    assert_eq!((t.world.opened.len(), t.engine.stats().announced), (0, 0));
    assert_eq!(t.engine.stats().not_opened, 2);
}

#[test]
fn refusals_in_a_signed_session() {
    for line in [
        "PORT 10,0,0,3,0,22\r\n",
        "EPRT |1|10.0.0.3|2222|\r\n",
        "LPRT 4,4,1,1,1,1,2,1,1\r\n",
    ] {
        let mut t = signed();
        let [c, s] = t.dialogue(64_000, &LOGIN);
        for _ in 0..3 {
            assert_eq!(t.send(Client, data(c, s, line)), Out::Dropped);
        }
        // In pieces, from wherever they begin: what isn't the line's end.
        for at in 1..line.len() - 2 {
            let out = t.send(Client, data(c + at as u32, s, &line[at..]));
            assert_eq!(out, Out::Dropped, "{at}");
        }
        assert_eq!(t.engine.stats().refused, 1);
        // Nothing behind it goes on either: its numbers are never reached.
        t.send(Client, ack(c, s));
        assert_eq!(t.world.ended, 0);
    }
}

/// What is cut goes on once all of it has been read, in the packets that it came in.
#[test]
fn pieces_of_a_signed_session() {
    let mut t = signed();
    let [c, s] = t.dialogue(64_000, &LOGIN);
    let line = "PORT 198,51,100,7,20,20\r\n";
    let mut at = c;
    for piece in [&line[..3], &line[3..12]] {
        t.send(Client, data(at, s, piece));
        at += piece.len() as u32;
    }
    let out = t.send(Client, data(at, s, &line[12..]));
    assert_eq!(out, Out::Same);
    // The client repeats what didn't arrive, in any pieces.
    for (from, to) in [(0, 3), (3, 12), (0, 25), (12, 25), (5, 7)] {
        let again = data(c + from as u32, s, &line[from..to]);
        assert_eq!(t.send(Client, again), Out::Same);
    }
    let end = c + line.len() as u32;
    assert_eq!(t.send(Server, ack(s, end)), Out::Same);
    // Replies wait for nothing.
    t.send(Client, data(end, s, "PASV\r\n"));
    let line = reply();
    let (first, rest) = line.split_at(12);
    assert_eq!(t.send(Server, data(s, end + 6, first)), Out::Same);
    assert_eq!(t.send(Client, ack(end + 6, s + 12)), Out::Same);
    assert_eq!(t.send(Server, data(s + 12, end + 6, rest)), Out::Same);
    // Behind a gap, and the gap; farewell.
    let s = s + reply().len() as u32;
    assert_eq!(t.send(Server, data(s + 3, end + 6, " x\r\n")), Out::Dropped);
    assert_eq!(t.send(Server, data(s, end + 6, "200")), Out::Same);
    assert_eq!(t.send(Server, data(s + 3, end + 6, " x\r\n")), Out::Same);
    assert_eq!(t.send(Server, flagged(FIN, ack(s + 7, end + 6))), Out::Same);
    assert_eq!(t.send(Client, flagged(FIN, ack(end + 6, s + 8))), Out::Same);
    assert_eq!(t.world.ended, 1);
    assert_eq!(t.engine.stats().changed, 0);
}

/// No range either, and nothing is kept of it.
#[test]
fn a_signed_session_under_tls() {
    let config = Config {
        tls_range: true,
        ..Config::default()
    };
    let mut t = signed_with(config);
    let [c, s] = t.dialogue(64_000, &LOGIN);
    assert_eq!(t.send(Client, data(c, s, "AUTH TLS\r\n")), Out::Same);
    assert_eq!(t.send(Server, data(s, c + 10, "234 x\r\n")), Out::Same);
    assert_eq!(t.world.opaque(), Some("TLS"));
    assert_eq!(t.engine.stats().not_opened, 0);
    let (c, s) = (c + 10, s + 7);
    assert_eq!(t.send(Client, data(c, s, "\x16\x03\x01")), Out::Same);
    assert_eq!(t.send(Server, data(s, c + 3, "\x16\x03\x01")), Out::Same);
    assert_eq!(t.send(Client, ack(c + 3, s + 3)), Out::Same);
    assert_eq!(t.engine.buffered(), 0);
}
