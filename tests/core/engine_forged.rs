//! Packets of somebody who doesn't see the connection: what its ends don't believe changes nothing.

use std::time::Duration;

use ftpalg::engine::Config;
use testkit::gateway::MARKS;
use testkit::packet::{ACK, FIN, PSH, RST, SYN, Seg, data, syn};
use testkit::trace::{Client, GROWTH, Out, Server, Trace, ack, flagged, reply, told};

/// Longer than what closed connections are kept.
const LINGER: Duration = Duration::from_secs(61);
const HOUR: Duration = Duration::from_secs(3600);
/// The window that both ends offer.
const WINDOW: u32 = 64_000;

fn rst(seq: u32) -> Seg {
    Seg {
        flags: RST,
        ..ack(seq, 0)
    }
}

// ---- RST ---------------------------------------------------------------------------------------

#[test]
fn a_reset_with_any_number_moves_nothing() {
    for who in [Client, Server] {
        for off in [
            WINDOW + 1000,
            1 << 20,
            1 << 30,
            1 << 31,
            0u32.wrapping_sub(1),
            0u32.wrapping_sub(100_000),
        ] {
            let (mut t, c, s) = Trace::idle();
            let at = if who == Client { c } else { s };
            let out = t.send(who, rst(at.wrapping_add(off)));
            let due = at
                .wrapping_add(off)
                .wrapping_add(if who == Server { GROWTH } else { 0 });
            let left = match out {
                Out::Same => at.wrapping_add(off),
                out => out.seg().seq,
            };
            assert_eq!(left, due, "as far off as it was");
            // Later than any connection that is over is forgotten.
            t.later(24 * HOUR);
            t.goes_on(c, s);
            assert_eq!(t.world.ended, 0);
            assert_eq!(t.engine.stats().unacceptable, 1);
        }
    }
}

#[test]
fn a_reset_in_the_window_is_no_end_where_the_receiver_asks_back() {
    let (mut t, c, s) = Trace::idle();
    t.send(Server, rst(s + 100));
    // RFC 5961 §3.2: the client says what it expects.
    t.send(Client, ack(c, s + GROWTH));
    // It needn't do so for each.
    t.send(Server, rst(s + 200));
    t.later(24 * HOUR);
    t.goes_on(c, s);
}

#[test]
fn a_reset_in_the_window_that_nobody_answers_is_an_end_in_the_end() {
    let (mut t, c, s) = Trace::idle();
    t.send(Server, rst(s + 100));
    t.later(2 * HOUR);
    assert_eq!(t.sessions(), 1);
    t.later(HOUR);
    assert_eq!(t.sessions(), 0);
    // If either end speaks meanwhile, it was none.
    let (mut t, c2, s2) = Trace::idle();
    assert_eq!((c, s), (c2, s2));
    t.send(Client, rst(c + 100));
    t.later(2 * HOUR);
    t.goes_on(c, s);
    t.later(24 * HOUR);
    assert_eq!(t.sessions(), 1);
}

/// What is sent and not acknowledged: the receiver may have it or not.
#[test]
fn a_reset_that_may_be_exact_is_an_end_unless_somebody_speaks() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "200 x\r\n"));
    t.send(Server, rst(s + 3));
    t.later(LINGER);
    assert_eq!(t.sessions(), 0);
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "200 x\r\n"));
    t.send(Server, rst(s + 3));
    // A forged segment is no sign of life …
    t.send(Client, data(c + 70_000, s, "NOOP\r\n"));
    let mut dead = t;
    dead.later(LINGER);
    assert_eq!(dead.sessions(), 0);
    // … but the acknowledgement is.
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "200 x\r\n"));
    t.send(Server, rst(s + 3));
    t.send(Client, ack(c, s + 7));
    t.later(24 * HOUR);
    assert_eq!(t.sessions(), 1);
}

#[test]
fn a_reset_while_bytes_are_held() {
    let held = || {
        let (mut t, c, s) = Trace::asked();
        t.send(Server, data(s, c, "227 x (10"));
        // The server is told that its nine bytes have come, the client has seven.
        assert_eq!(t.send(Client, ack(c, s + 7)).seg().ack, s + 9);
        t.send(Server, data(s + 9, c, ",0,0"));
        (t, c, s)
    };
    // What a host answers that knows nothing of the connection: the number it reads in the packet.
    let (mut t, _, s) = held();
    assert_eq!(t.send(Server, rst(s + 9)).seg().seq, s + 7);
    assert_eq!(t.world.ended, 1);
    // What a server sends that gives up.
    let (mut t, _, s) = held();
    assert_eq!(t.send(Server, rst(s + 13)).seg().seq, s + 7);
    assert_eq!(t.world.ended, 1);
    // Neither of the two.
    for off in [8, 10, 12, 14] {
        let (mut t, _, s) = held();
        let left = match t.send(Server, rst(s + off)) {
            Out::Same => s + off,
            out => out.seg().seq,
        };
        assert_ne!(left, s + 7, "{off}");
        assert_eq!(t.world.ended, 0);
    }
}

/// Nothing is read there, but the numbers still differ.
#[test]
fn resets_under_tls() {
    let begun = || {
        let (mut t, c, s) = Trace::idle();
        t.send(Client, data(c, s + GROWTH, "AUTH TLS\r\n"));
        t.send(Server, data(s, c + 10, "234 x\r\n"));
        t.send(
            Client,
            data(c + 10, s + GROWTH + 7, "\x16\x03\x01\x00\x02ab"),
        );
        let (c, s) = (c + 17, s + 7);
        t.send(Server, data(s, c, "\x16\x03\x01\x00\x02ab"));
        t.send(Client, ack(c, s + GROWTH + 7));
        (t, c, s + 7)
    };
    for off in [WINDOW + 1000, 1 << 30, 0u32.wrapping_sub(3000)] {
        for who in [Client, Server] {
            let (mut t, c, s) = begun();
            let at = if who == Client { c } else { s };
            t.send(who, rst(at.wrapping_add(off)));
            t.send(who, flagged(FIN, ack(at.wrapping_add(off), 0)));
            t.later(24 * HOUR);
            let out = t.send(Server, data(s, c, "\x17\x03\x03\x00\x01a")).seg();
            assert_eq!(out.seq, s + GROWTH);
            assert_eq!(t.world.ended, 0);
        }
    }
    let (mut t, _, s) = begun();
    assert_eq!(t.send(Server, rst(s)).seg().seq, s + GROWTH);
    assert_eq!(t.world.ended, 1);
    // Both FINs, as they come.
    let (mut t, c, s) = begun();
    t.send(Client, flagged(FIN, ack(c, s + GROWTH)));
    t.send(Server, flagged(FIN, ack(s, c + 1)));
    assert_eq!(t.world.ended, 1);
}

// ---- FIN, data, acknowledgements -------------------------------------------------------------------

#[test]
fn a_fin_that_nobody_believes_ends_nothing() {
    let (mut t, c, s) = Trace::idle();
    for (seq, acked) in [
        // The right number, but an acknowledgement of nothing that was sent, or of long ago.
        (c, s + GROWTH + (1 << 21)),
        (c, (s + GROWTH).wrapping_sub(1 << 20)),
        (c + WINDOW + 1000, s + GROWTH),
    ] {
        t.send(Client, flagged(FIN, ack(seq, acked)));
        t.send(Client, flagged(FIN | PSH, data(seq, acked, "QUIT\r\n")));
    }
    // Behind a gap it isn't the end yet.
    t.send(Client, flagged(FIN, ack(c + 1, s + GROWTH)));
    t.goes_on(c, s);
    t.send(Server, flagged(FIN, ack(s + reply().len() as u32, c + 6)));
    assert_eq!(t.world.ended, 0);
}

/// RFC 5961 §5: the receiver throws it away, and takes the true bytes.
#[test]
fn data_with_a_nonsensical_acknowledgement_is_not_taken_for_the_senders() {
    let (mut t, c, s) = Trace::idle();
    for (seq, flags, acked) in [
        (c, ACK, s + (1 << 21)),
        (c + 3, ACK, s + (1 << 21)),
        (c + 3, ACK, s.wrapping_sub(1 << 20)),
        (c, PSH, s + GROWTH),
        (c + 3, PSH, s + GROWTH),
        (c + WINDOW + 1000, ACK, s + GROWTH),
    ] {
        let forged = Seg {
            flags,
            ..data(seq, acked, "QUIT\r\nQUIT\r\n")
        };
        assert_eq!(t.send(Client, forged), Out::Dropped);
    }
    assert_eq!(t.engine.buffered(), 0);
    t.goes_on(c, s);
}

#[test]
fn an_acknowledgement_from_beside_the_window_acknowledges_nothing() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()));
    let all = s + told().len() as u32;
    for seq in [c + WINDOW + 1000, c.wrapping_sub(10), c + (1 << 30)] {
        t.send(Client, ack(seq, all));
    }
    // The client still lacks it, and gets it.
    let out = t.send(Server, data(s, c, &reply())).seg();
    assert_eq!(out, data(s, c, &told()));
    assert!(t.engine.buffered() > 0);
}

/// What is left to send on goes with packets of the sender's, not with any that looks like one: that
/// would make a wrong number right.
#[test]
fn a_forged_packet_carries_nothing() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()[..12]));
    t.send(Client, ack(c, s + 7));
    t.send(Server, data(s + 12, c, &reply()[12..]));
    let end = s + reply().len() as u32;
    for (seq, acked) in [(end + (1 << 20), c), (end, c + (1 << 21))] {
        let out = t.send(Server, ack(seq, acked));
        assert!(
            !matches!(&out, Out::Became(seg) if !seg.payload.is_empty()),
            "{out:?}"
        );
    }
    let out = t.send(Server, ack(end, c)).seg();
    assert_eq!(out.payload, &told().as_bytes()[7..]);
}

/// While bytes wait here, an acknowledgement that no receiver sends doesn't become one of what was sent
/// on, which may be lost behind us.
#[test]
fn a_forged_acknowledgement_is_not_made_possible() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "227 x (10,0"));
    for (seq, off) in [(c, 1 << 21), (c, 1 << 30), (c + 10, 5000)] {
        let out = t.send(Client, ack(seq, s + 7 + off)).seg();
        assert_eq!(out.ack, s + 11 + off, "as far off as it was");
    }
    // Acknowledged early, they wait still.
    assert_eq!(t.send(Client, ack(c, s + 7)).seg().ack, s + 11);
    for back in [1 << 21, 1 << 30] {
        let old = (s + 7).wrapping_sub(back);
        let out = t.send(Client, ack(c, old));
        assert_eq!(out, Out::Same, "as far off as it was");
    }
}

#[test]
fn forged_bytes_do_not_lose_the_thread_of_tls() {
    let (mut t, c, s) = Trace::idle();
    t.send(Client, data(c, s + GROWTH, "AUTH TLS\r\n"));
    t.send(Server, data(s, c + 10, "234 x\r\n"));
    let (mut c, mut s) = (c + 10, s + 7);
    for (kind, who) in [(22, Client), (22, Server), (23, Client), (23, Server)] {
        let record = String::from_utf8(vec![kind, 3, 3, 0, 1, b'x']).unwrap_or_default();
        for forged in [WINDOW + 5000, 1 << 29] {
            let seq = if who == Client { c } else { s };
            t.send(who, data(seq + forged, 0, "PORT 10,0,0,3,0,22\r\n"));
        }
        match who {
            Client => t.send(who, data(c, s + GROWTH, &record)),
            Server => t.send(who, data(s, c, &record)),
        };
        match who {
            Client => c += 6,
            Server => s += 6,
        }
    }
    t.send(Client, data(c, s + GROWTH, "PASV\r\n"));
    let out = t.send(Server, data(s, c + 6, &reply())).seg();
    assert_eq!(out.payload, told().into_bytes());
    assert_eq!(t.engine.stats().clear_again, 1);
}

// ---- what went round a full queue ----------------------------------------------------------------

/// The client's command is lost behind us, what the server says meanwhile doesn't come by, and the client
/// repeats itself.
#[test]
fn a_repetition_may_acknowledge_what_went_round() {
    let (mut t, c, s) = Trace::asked();
    let again = data(c - 6, s + 20, "PASV\r\n");
    assert_eq!(t.send(Client, again), Out::Same);
    assert_eq!(t.send(Server, data(s + 20, c, "200 x\r\n")), Out::Same);
    assert_eq!(t.world.opaque(), Some("missed"));
}

#[test]
fn the_end_is_seen_behind_what_went_round() {
    let begun = || {
        let (mut t, c, s) = Trace::idle();
        t.send(Client, data(c, s + GROWTH, "AUTH TLS\r\n"));
        t.send(Server, data(s, c + 10, "234 x\r\n"));
        let (mut c, mut s) = (c + 10, s + 7);
        t.send(Client, ack(c, s + GROWTH));
        // Of each turn, one segment of each doesn't come by.
        for _ in 0..50 {
            c += 5000;
            s += 9000;
            t.send(Client, data(c, s + GROWTH, "x"));
            t.send(Server, data(s, c + 1, "y"));
            (c, s) = (c + 1, s + 1);
        }
        t.send(Client, ack(c, s + GROWTH));
        (t, c, s)
    };
    let (mut t, _, s) = begun();
    t.send(Server, rst(s));
    assert_eq!(t.world.ended, 1);
    let (mut t, c, s) = begun();
    t.send(Server, flagged(FIN, ack(s, c)));
    t.send(Client, flagged(FIN, ack(c, s + GROWTH + 1)));
    assert_eq!(t.world.ended, 1);
}

// ---- SYN ---------------------------------------------------------------------------------------

/// Of several SYNs the answer says which one the server means.
#[test]
fn a_forged_syn_before_the_answer() {
    let mss = |n: u8| vec![2, 4, n, 0, 3, 3, n, 1];
    for forged_first in [true, false] {
        let mut t = Trace::unborn(Config::default(), [1000, 5000]);
        let honest = Seg {
            options: mss(4),
            ..syn(SYN)
        };
        let forged = Seg {
            seq: 77_777,
            options: mss(1),
            ..honest.clone()
        };
        let both = if forged_first {
            [forged, honest.clone()]
        } else {
            [honest.clone(), forged]
        };
        for syn in both {
            assert_eq!(t.send(Client, syn), Out::Same);
        }
        let answer = Seg {
            flags: SYN | ACK,
            ..honest
        };
        t.send(Server, answer);
        let (c, s) = t.ask();
        // The MSS of the true one: the reply outgrows the forged one's 256 bytes.
        let line = format!("227 {}{}", "y".repeat(240), &reply()[4..]);
        let out = t.send(Server, data(s, c, &line)).seg();
        assert_eq!(out.payload.len(), line.len() + GROWTH as usize);
    }
}

#[test]
fn a_syn_within_the_session_begins_nothing() {
    let (mut t, c, s) = Trace::idle();
    for seq in [c, c + 99, c + (1 << 30)] {
        t.send(Client, Seg { seq, ..syn(SYN) });
        t.send(
            Server,
            Seg {
                seq: s + 99,
                ack: c + 5,
                ..syn(SYN | ACK)
            },
        );
    }
    t.goes_on(c, s);
    assert_eq!(t.engine.stats().sessions, 1);
}

// ---- one end that acknowledges what the other's lost segment had ---------------------------------

fn marked() -> Config {
    Config {
        marks: Some(MARKS),
        ..Config::default()
    }
}

/// The request line of a web page is lost before us, its server acknowledges it all the same, and the page goes
/// on with lines of FTP. What the server says meanwhile doesn't help.
#[test]
fn a_web_page_whose_first_segment_went_by_opens_nothing() {
    let talks = [
        &[][..],
        &["220 x\r\n"],
        &["230 x\r\n"],
        &["220 x\r\n", "331 x\r\n", "230 x\r\n"],
    ];
    for talk in talks {
        let mut t = Trace::unborn(marked(), [1000, 5000]);
        t.send(Client, syn(SYN));
        t.send(Server, syn(SYN | ACK));
        t.send(Client, ack(0, 0));
        let (mut c, mut s) = (500, 0);
        t.send(Server, ack(s, c));
        for (at, line) in ["USER a\r\n", "PASS b\r\n", "PORT 198,51,100,7,200,1\r\n"]
            .iter()
            .enumerate()
        {
            t.send(Client, data(c, s, line));
            c += line.len() as u32;
            if let Some(reply) = talk.get(at) {
                t.send(Server, data(s, c, reply));
                s += reply.len() as u32;
            }
        }
        t.send(Client, ack(c, s));
        assert_eq!(t.world.opened.len(), 0, "{talk:?}");
        // What is always refused is refused still.
        let out = t.send(Client, data(c, s, "PORT 10,0,0,99,195,81\r\n"));
        assert_ne!(out, Out::Same, "{talk:?}");
    }
}

/// A reply is lost before us, and the client acknowledges it.
#[test]
fn a_client_that_acknowledges_a_lost_reply_is_refused_what_others_are() {
    let mut t = Trace::with(marked(), [1000, 5000], &[]);
    let [c, s] = t.login();
    t.send(Client, data(c, s, "SYST\r\nPORT 10,0"));
    // What waits is acknowledged early, so for a moment the numbers differ.
    t.send(Server, ack(s, c + 10));
    t.send(Client, ack(c + 15, s + 20));
    t.send(Server, data(s + 20, c + 10, "200 x\r\n"));
    assert_eq!(t.world.opaque(), Some("missed"));
    let rest = ",0,99,195,81\r\n";
    let out = t.send(Client, data(c + 15, s + 27, rest)).seg();
    assert!(
        !String::from_utf8_lossy(&out.payload).contains("99"),
        "{out:?}"
    );
    let out = t.send(
        Client,
        data(
            c + 15 + rest.len() as u32,
            s + 27,
            "PORT 10,0,0,99,195,81\r\n",
        ),
    );
    assert_ne!(out, Out::Same);
    assert_eq!(t.world.opened.len(), 0);
}

/// Its time to live ends behind us. conntrack keeps the entry, and the server knows nothing of it.
#[test]
fn a_bounce_some_seconds_after_a_reset_that_died_is_refused() {
    for wait in [0, 1, 4, 30] {
        let mut t = Trace::with(marked(), [1000, 5000], &[]);
        let [c, s] = t.login();
        t.send(Client, ack(c, s));
        t.send(
            Client,
            flagged(
                RST,
                Seg {
                    flags: RST,
                    ..ack(c, 0)
                },
            ),
        );
        t.later(Duration::from_secs(wait));
        let out = t.send(Client, data(c, s, "PORT 10,0,0,99,195,81\r\n"));
        assert_ne!(out, Out::Same, "after {wait} s");
    }
}

/// Apache FtpServer trims control characters, and takes an X off a verb.
#[test]
fn verbs_as_a_lenient_server_reads_them_are_refused() {
    for before in ["X", "x", "\r", "\x0b", " \x01", "\tX"] {
        for verb in ["PORT 10,0,0,99,195,81", "EPRT |1|10.0.0.99|5000|"] {
            let mut t = Trace::new();
            let [c, s] = t.login();
            let line = format!("{before}{verb}\r\n");
            let out = t.send(Client, data(c, s, &line)).seg();
            let text = String::from_utf8_lossy(&out.payload);
            assert!(!text.contains("99"), "{line:?}: {text:?}");
        }
    }
}
