//! What becomes of single packets, as a packet trace reads.
//!
//! A server at 10.0.0.2 is published as 203.0.113.199: its `227 (10,0,0,2,…)` grows by five bytes.

use std::time::Duration;

use etherparse::PacketBuilder;
use ftpalg::engine::{Config, Engine, Side, Verdict};
use ftpalg::stream::Limits;
use testkit::gateway::{FakeGateway, entry};
use testkit::packet::{ACK, FIN, OUTSIDE, RST, SYN, Seg, URG, build, data, read};
use testkit::trace::{
    CLIENT_PORT, Client, GROWTH, INSIDE, NEW, OLD, Out, PUBLIC, Server, Trace, ack, flagged, pack,
    reply, told,
};

fn sack(blocks: &[(u32, u32)]) -> Vec<u8> {
    let mut options = vec![1, 1, 5, 2 + 8 * blocks.len() as u8];
    for (left, right) in blocks {
        options.extend(left.to_be_bytes());
        options.extend(right.to_be_bytes());
    }
    options
}

// ---- edits ---------------------------------------------------------------------------------

#[test]
fn an_address_grows_and_what_follows_moves() {
    let (mut t, c, s) = Trace::asked();
    let (old, new) = (reply().len() as u32, told().len() as u32);
    assert_eq!(
        t.send(Server, data(s, c, &reply())),
        Out::Became(data(s, c, &told()))
    );
    // All acknowledged, in the client's numbers: the server gets its own.
    assert_eq!(
        t.send(Client, ack(c, s + new)),
        Out::Became(ack(c, s + old))
    );
    let more = t.send(Server, data(s + old, c, "200 x\r\n"));
    assert_eq!(more, Out::Became(data(s + new, c, "200 x\r\n")));
    assert_eq!(t.engine.stats().rewritten, 1);
}

#[test]
fn a_retransmission_is_rendered_again() {
    let (mut t, c, s) = Trace::asked();
    let first = t.send(Server, data(s, c, &reply()));
    assert_eq!(t.send(Server, data(s, c, &reply())), first);
    // Starting in the middle of the address: the whole edit goes again, and nothing before it.
    let tail = t.send(Server, data(s + 9, c, &reply()[9..])).seg();
    assert_eq!(tail, data(s + 7, c, &told()[7..]));
    // Ending in the middle of it.
    let head = t.send(Server, data(s, c, &reply()[..10])).seg();
    assert_eq!(head, data(s, c, &told()[..7 + NEW.len()]));
    // Coalesced with what comes next.
    let both = t.send(Server, data(s, c, &(reply() + "200 y\r\n"))).seg();
    assert_eq!(both, data(s, c, &(told() + "200 y\r\n")));
}

#[test]
fn an_acknowledgement_inside_an_address_stays_before_it() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()));
    assert_eq!(t.send(Client, ack(c, s + 12)), Out::Became(ack(c, s + 7)));
    let out = t.send(Client, ack(c, s + 7)).seg();
    // The window's right end is where the growth will have gone.
    assert_eq!((out.ack, out.window), (s + 7, 64_000 - GROWTH as u16));
    // What was acknowledged of it doesn't go again.
    let again = t.send(Server, data(s + 7, c, &reply()[7..])).seg();
    assert_eq!(again, data(s + 12, c, &told()[12..]));
}

#[test]
fn sack_edges_lie_outside_edits() {
    let (mut t, c, s) = Trace::asked();
    let base = t.isn[1].wrapping_add(1 + s);
    let (old, new) = (reply().len() as u32, told().len() as u32);
    t.send(Server, data(s, c, &reply()));
    t.send(Server, data(s + old, c, "200 x\r\n"));
    let with = |options| Seg {
        options,
        ..ack(c, s)
    };
    // The block behind the address, with an unknown option in front of it.
    let unknown = [253, 4, 0, 0].to_vec();
    let theirs = [unknown.clone(), sack(&[(base + new, base + new + 7)])].concat();
    let ours = [unknown, sack(&[(base + old, base + old + 7)])].concat();
    assert_eq!(t.send(Client, with(theirs)).seg().options, ours);
    // A left edge inside the address moves behind it.
    let out = t.send(Client, with(sack(&[(base + 9, base + new)]))).seg();
    assert_eq!(
        out.options,
        sack(&[(base + 7 + OLD.len() as u32, base + old)])
    );
    // Only a part of the address: nothing is left to say.
    let out = t.send(Client, with(sack(&[(base + 9, base + 12)]))).seg();
    assert_eq!(out.options, [1; 12]);
    // One block vanishes, the other is said twice.
    let two = sack(&[(base + 9, base + 12), (base + new, base + new + 3)]);
    let out = t.send(Client, with(two)).seg();
    assert_eq!(out.options, sack(&[(base + old, base + old + 3); 2]));
}

#[test]
fn hundreds_of_edits_in_a_session() {
    let mut t = Trace::new();
    let [mut c, mut s] = t.login();
    let mut grown = 0;
    for _ in 0..500 {
        let pasv = t.send(Client, data(c, s + grown, "PASV\r\n"));
        let expect = data(c, s, "PASV\r\n");
        assert_eq!(
            pasv,
            if grown == 0 {
                Out::Same
            } else {
                Out::Became(expect)
            }
        );
        c += 6;
        let out = t.send(Server, data(s, c, &reply())).seg();
        assert_eq!(out, data(s + grown, c, &told()));
        s += reply().len() as u32;
        grown += GROWTH;
    }
    t.send(Client, ack(c, s + grown));
    assert_eq!(t.engine.buffered(), 0, "an idle flow keeps nothing");
    assert_eq!(t.world.opened.len(), 500);
}

#[test]
fn sequence_numbers_wrap_within_the_session() {
    for before in 0..60 {
        let mut t = Trace::with(
            Config::default(),
            [u32::MAX - before, u32::MAX - before],
            &[],
        );
        let (c, s) = t.ask();
        let (old, new) = (reply().len() as u32, told().len() as u32);
        assert_eq!(
            t.send(Server, data(s, c, &reply())),
            Out::Became(data(s, c, &told()))
        );
        assert_eq!(
            t.send(Server, data(s, c, &reply())),
            Out::Became(data(s, c, &told()))
        );
        assert_eq!(
            t.send(Client, ack(c, s + new)),
            Out::Became(ack(c, s + old))
        );
        let more = t.send(Server, data(s + old, c, "200 x\r\n"));
        assert_eq!(more, Out::Became(data(s + new, c, "200 x\r\n")));
    }
}

#[test]
fn a_segment_that_outgrows_the_mss_leaves_the_rest_for_later() {
    // MSS 64: 60 bytes fit, 65 don't.
    let mut t = Trace::with(Config::default(), [1000, 5000], &[2, 4, 0, 64]);
    let (c, s) = t.ask();
    let pad = "y".repeat(60 - reply().len());
    let (line, due) = (pad.clone() + &reply()[4..], pad + &told()[4..]);
    let line = format!("227 {line}");
    let due = format!("227 {due}");
    assert_eq!(line.len(), 60);
    let first = t.send(Server, data(s, c, &line)).seg();
    assert_eq!(first, data(s, c, &due[..64]));
    // The next packet of the server's carries the rest, even a bare one.
    t.send(Client, ack(c, s + 64));
    let rest = t.send(Server, ack(s + 60, c)).seg();
    assert_eq!(
        rest,
        Seg {
            flags: ACK,
            ..data(s + 64, c, &due[64..])
        }
    );
}

#[test]
fn options_count_against_the_mss() {
    let mut t = Trace::with(Config::default(), [1000, 5000], &[2, 4, 0, 64]);
    let (c, s) = t.ask();
    let mut seg = data(s, c, &reply());
    let pad = "y".repeat(52 - seg.payload.len());
    seg.payload = format!("227 {pad}{}", &reply()[4..]).into_bytes();
    seg.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let out = t.send(Server, seg.clone()).seg();
    assert_eq!(out.payload.len(), 52);
    assert_eq!(out.options, seg.options, "timestamps stay");
}

// ---- bytes that wait -----------------------------------------------------------------------

#[test]
fn held_bytes_are_acknowledged_early_and_then_guaranteed() {
    let (mut t, c, s) = Trace::asked();
    // Only what may belong to the address waits.
    let out = t.send(Server, data(s, c, &reply()[..12])).seg();
    assert_eq!(out, data(s, c, "227 x ("));
    // The client has all that was sent on: the server is told so, for the held bytes, too.
    assert_eq!(t.send(Client, ack(c, s + 7)).seg().ack, s + 12);
    // The rest completes it, and gets lost behind us …
    let out = t.send(Server, data(s + 12, c, &reply()[12..])).seg();
    assert_eq!(out, data(s + 7, c, &told()[7..]));
    // … so the retransmission carries what the server believes delivered,
    let out = t.send(Server, data(s + 12, c, &reply()[12..])).seg();
    assert_eq!(out, data(s + 7, c, &told()[7..]));
    // and so does a bare acknowledgement, without flags that it hadn't.
    let out = t.send(Server, ack(s + reply().len() as u32, c)).seg();
    assert_eq!(
        out,
        Seg {
            flags: ACK,
            ..data(s + 7, c, &told()[7..])
        }
    );
    // Nothing more was acknowledged than the held bytes.
    assert_eq!(t.send(Client, ack(c, s + 7)).seg().ack, s + 12);
}

#[test]
fn a_bare_segment_carries_no_more_than_the_window() {
    // It ends ten bytes behind what the client acknowledges.
    let (mut t, c, s) = Trace::asked_with_window(7 + 10);
    let last = s + reply().len() as u32;
    t.send(Server, data(s, c, &reply()[..12]));
    let narrow = |n, at| Seg {
        window: n,
        ..ack(c, at)
    };
    t.send(Client, narrow(10, s + 7));
    t.send(Server, data(s + 12, c, &reply()[12..]));
    let out = t.send(Server, ack(last, c)).seg();
    assert_eq!(out.payload, &told().as_bytes()[7..17]);
}

#[test]
fn sack_starts_behind_what_was_acknowledged_early() {
    let (mut t, c, s) = Trace::asked();
    let base = t.isn[1].wrapping_add(1 + s);
    t.send(Server, data(s, c, "227 x (10,0"));
    assert_eq!(t.send(Client, ack(c, s + 7)).seg().ack, s + 11);
    // It was no address after all.
    let out = t.send(Server, data(s + 11, c, "x)\r\n")).seg();
    assert_eq!(out, data(s + 7, c, "10,0x)\r\n"));
    // The client lacks "10": below the acknowledgement it would read as a needless repetition.
    let mut seg = ack(c, s + 7);
    seg.options = sack(&[(base + 9, base + 15)]);
    let out = t.send(Client, seg).seg();
    assert_eq!(out.ack, s + 11);
    assert_eq!(out.options, sack(&[(base + 11, base + 15)]));
}

#[test]
fn a_segment_of_held_bytes_only_becomes_a_probe() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()[..12]));
    let out = t.send(Server, data(s + 12, c, &reply()[12..14])).seg();
    assert_eq!(
        out,
        Seg {
            flags: ACK,
            ..data(s + 6, c, "(")
        }
    );
    assert_eq!(t.engine.stats().held, 1);
}

#[test]
fn keep_alives_and_window_probes_keep_their_meaning() {
    let (mut t, c, s) = Trace::asked();
    let end = reply().len() as u32;
    t.send(Server, data(s, c, &reply()));
    t.send(Client, ack(c, s + told().len() as u32));
    for byte in ["", "?"] {
        let mut probe = data(s + end - 1, c, byte);
        probe.flags = ACK;
        let out = t.send(Server, probe.clone()).seg();
        assert_eq!(
            out,
            Seg {
                seq: probe.seq + GROWTH,
                ..probe
            }
        );
    }
    // With bytes held, one below what the client expects.
    t.send(Client, data(c, s + end + GROWTH, "PASV\r\n"));
    let held = t.send(Server, data(s + end, c + 6, "227 x (10,0")).seg();
    assert_eq!(held.payload, b"227 x (");
    t.send(Client, ack(c + 6, s + end + GROWTH + 7));
    let out = t.send(Server, ack(s + end + 10, c + 6)).seg();
    assert_eq!((out.seq, out.payload.len()), (s + end + GROWTH + 6, 0));
}

#[test]
fn an_address_that_never_ends_goes_out_after_a_while() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "227 x (10,0"));
    t.now = Duration::from_secs(30);
    // The other side's packets don't make it younger.
    assert_eq!(t.send(Client, data(c, s + 7, "NOOP\r\n")).seg().ack, s + 11);
    t.now = Duration::from_secs(61);
    let out = t.send(Server, ack(s + 11, c + 6)).seg();
    assert_eq!(
        out,
        Seg {
            flags: ACK,
            ..data(s + 7, c + 6, "10,0")
        }
    );
    // It was none, and the session goes on.
    assert_eq!(t.world.opaque(), None);
    t.send(Client, data(c + 6, s + 11, "NOOP\r\nPASV\r\n"));
    t.send(Server, data(s + 11, c + 18, ",0,2,195,80)\r\n200 ok\r\n"));
    t.send(Client, ack(c + 18, s + 33));
    assert_eq!(t.world.opened.len(), 0);
    let out = t.send(Server, data(s + 33, c + 18, &reply())).seg();
    assert_eq!(out.payload, told().as_bytes());
    assert_eq!(t.world.opened.len(), 1);
}

/// A pipelining client: the hole must be open before the server reads the `PORT`, and may not be before
/// the login.
#[test]
fn a_port_waits_for_the_login_and_goes_with_the_next_segment() {
    let mut t = Trace::new();
    let [c, s] = t.dialogue(64_000, &[(true, "220 x\r\n")]);
    let login = "USER a\r\nPASS b\r\n";
    let rest = " 198,51,100,7,200,1\r\nLIST\r\n";
    let all = format!("{login}PORT{rest}");
    let out = t.send(Client, data(c, s, &all)).seg();
    assert_eq!(out.payload, format!("{login}PORT").into_bytes());
    let (gone, end) = (c + out.payload.len() as u32, c + all.len() as u32);
    let replies = "331 x\r\n230 x\r\n";
    // What waits is acknowledged to the client, which needn't send it again.
    let out = t.send(Server, data(s, gone, replies)).seg();
    assert_eq!((out.ack, out.payload), (end, replies.as_bytes().to_vec()));
    assert_eq!(t.world.opened.len(), 0);
    let heard = s + replies.len() as u32;
    let out = t.send(Client, ack(end, heard)).seg();
    assert_eq!((out.seq, out.payload), (gone, rest.as_bytes().to_vec()));
    assert_eq!(t.world.opened.len(), 1);
}

/// What waits behind it is judged even if nothing comes any more.
#[test]
fn commands_behind_a_port_that_waits_are_refused_at_the_end_of_the_stream() {
    let mut t = Trace::new();
    let [c, s] = t.dialogue(64_000, &[(true, "220 x\r\n")]);
    let all = "USER a\r\nPORT 198,51,100,7,200,1\r\nPORT 10,0,0,3,0,22\r\n";
    let out = t
        .send(
            Client,
            Seg {
                flags: ACK | FIN,
                ..data(c, s, all)
            },
        )
        .seg();
    let expected = "USER a\r\nPORT 198,51,100,7,200,1\r\nPORT xxxxxxxxxxxxx\r\n";
    assert_eq!(out.payload, expected.as_bytes());
    assert_eq!((out.flags & FIN, t.world.opened.len()), (FIN, 0));
}

/// Else whoever waits long enough could say what is refused.
#[test]
fn a_command_that_never_ends_is_refused_after_a_while() {
    let mut t = Trace::new();
    let [c, s] = t.login();
    let line = "PORT 10,0,0,99,195,81\r\n";
    let (first, rest) = line.split_at(18);
    let out = t.send(Client, data(c, s, first)).seg();
    assert_eq!(out.payload, b"PORT");
    t.now = Duration::from_secs(61);
    let out = t.send(Client, ack(c + 18, s)).seg();
    assert_eq!(out.payload, b" xxxxxxxxxxxxx");
    let out = t.send(Client, data(c + 18, s, rest)).seg();
    assert_eq!(out.payload, b"xxx\r\n");
    assert_eq!(t.world.opaque(), None);
    assert_eq!(t.engine.stats().refused, 1);
    assert_eq!(t.send(Client, data(c + 23, s, "NOOP\r\n")), Out::Same);
}

// ---- segments out of order, twice, too early, too far ------------------------------------------

#[test]
fn a_gap_waits_for_what_is_missing() {
    let (mut t, c, s) = Trace::asked();
    assert_eq!(
        t.send(Server, data(s + 10, c, &reply()[10..])),
        Out::Dropped
    );
    let out = t.send(Server, data(s, c, &reply()[..10])).seg();
    assert_eq!(out, data(s, c, &told()));
    assert_eq!(t.engine.stats().out_of_order, 1);
}

#[test]
fn far_out_of_window_nothing_is_kept_or_sent_on() {
    let (mut t, c, s) = Trace::asked();
    for far in [20_000, 1 << 20, 1 << 30, (1 << 31) - 1] {
        let seg = data(s + far, c, "227 (6,6,6,6,6,6)\r\n");
        assert_eq!(t.send(Server, seg), Out::Dropped, "{far}");
    }
    assert_eq!(t.engine.buffered(), 0);
    // Very old: the receiver has it and answers.
    let old = data(s.wrapping_sub(1 << 30), c, "old");
    assert_eq!(t.send(Server, old), Out::Same);
}

#[test]
fn the_first_copy_counts() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "200 first\r\n"));
    let out = t.send(Server, data(s, c, "200 other\r\n")).seg();
    assert_eq!(out, data(s, c, "200 first\r\n"));
    assert_eq!(t.engine.stats().contradicted, 1);
}

#[test]
fn a_rewritten_retransmission_contradicts_nothing() {
    let (mut t, c, s) = Trace::asked();
    // As long as before: only the digits change.
    t.world.entry().original.dst = "11.0.0.2:21".parse().unwrap();
    for _ in 0..2 {
        let out = t.send(Server, data(s, c, &reply())).seg();
        assert_eq!(out.payload, reply().replace("10,", "11,").into_bytes());
    }
    assert_eq!(t.engine.stats().contradicted, 0);
}

#[test]
fn partially_old_segments() {
    let mut t = Trace::new();
    let [c, s] = t.login();
    t.send(Client, data(c, s, "NOOP\r\nNOOP\r\nPASV\r\n"));
    let c = c + 18;
    t.send(Server, data(s, c, "200 one\r\n"));
    t.send(Client, ack(c, s + 9));
    // Nothing was edited: it passes as it is.
    assert_eq!(
        t.send(Server, data(s + 4, c, "one\r\n200 two\r\n")),
        Out::Same
    );
    // With an edit behind the old part, only what is new goes on.
    t.send(Client, ack(c, s + 18));
    let out = t
        .send(Server, data(s + 13, c, &("two\r\n".to_owned() + &reply())))
        .seg();
    assert_eq!(out, data(s + 18, c, &told()));
}

#[test]
fn bytes_that_went_round_a_full_queue_end_the_inspection() {
    let (mut t, c, s) = Trace::asked();
    // The client has 20 bytes that we never saw, and says so; the server goes on behind them.
    assert_eq!(t.send(Client, ack(c, s + 20)), Out::Same);
    assert_eq!(t.send(Server, data(s + 20, c, "200 x\r\n")), Out::Same);
    assert_eq!(t.world.opaque(), Some("missed"));
    assert_eq!(t.send(Client, ack(c, s + 27)), Out::Same);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_opens_nothing() {
    let (mut t, c, s) = Trace::asked();
    // Beyond everything: as it is, so that the server throws it away.
    assert_eq!(t.send(Client, ack(c, s + 5_000_000)), Out::Same);
    assert_eq!(t.send(Server, data(s + 20, c, "200 x\r\n")), Out::Dropped);
    // While bytes wait: no more than what was sent on.
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "227 x (10,0"));
    assert_eq!(t.send(Client, ack(c, s + 11)).seg().ack, s + 7);
}

#[test]
fn a_wrong_checksum_stays_wrong_and_moves_nothing() {
    let (mut t, c, s) = Trace::asked();
    let mut packet = pack(
        Server,
        &t.wire(Server, data(s, c, "227 x (6,6,6,6,6,6)\r\n")),
    );
    packet[36] ^= 1;
    assert_eq!(t.raw(Server, &packet), Verdict::Accept);
    assert_eq!(t.engine.stats().bad_checksum, 1);
    let out = t.send(Server, data(s, c, &reply())).seg();
    assert_eq!(out, data(s, c, &told()));
    // Acknowledgements, too.
    let mut packet = pack(Client, &t.wire(Client, ack(c, s + 21)));
    packet[37] ^= 1;
    assert_eq!(t.raw(Client, &packet), Verdict::Accept);
    assert!(t.engine.buffered() > 0);
}

// ---- FIN, RST, SYN -----------------------------------------------------------------------------

#[test]
fn fin_with_the_address() {
    let (mut t, c, s) = Trace::asked();
    let out = t.send(Server, flagged(FIN, data(s, c, &reply()))).seg();
    assert_eq!(out, flagged(FIN, data(s, c, &told())));
    let (old, new) = (reply().len() as u32, told().len() as u32);
    // Its acknowledgement, its retransmission alone, and the last word.
    assert_eq!(
        t.send(Server, flagged(FIN, ack(s + old, c))).seg().seq,
        s + new
    );
    let out = t.send(Client, flagged(FIN, ack(c, s + new + 1))).seg();
    assert_eq!(out, flagged(FIN, ack(c, s + old + 1)));
    let out = t.send(Server, ack(s + old + 1, c + 1)).seg();
    assert_eq!(out, ack(s + new + 1, c + 1));
    assert_eq!(t.world.ended, 1);
}

#[test]
fn fin_releases_what_waits() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "227 x (10,0"));
    let out = t.send(Server, flagged(FIN, ack(s + 11, c))).seg();
    assert_eq!(
        out,
        Seg {
            flags: ACK | FIN,
            ..data(s + 7, c, "10,0")
        }
    );
}

#[test]
fn a_fin_in_the_wrong_place_stays_behind() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "200 one\r\n"));
    let out = t.send(Server, flagged(FIN, ack(s + 4, c))).seg();
    assert_eq!(out.flags & FIN, 0);
    assert_eq!(t.world.ended, 0);
}

#[test]
fn simultaneous_close() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()));
    let (old, new) = (reply().len() as u32, told().len() as u32);
    t.send(Client, ack(c, s + new));
    assert_eq!(
        t.send(Client, flagged(FIN, ack(c, s + new))).seg().ack,
        s + old
    );
    let out = t.send(Server, flagged(FIN, ack(s + old, c))).seg();
    assert_eq!(out.seq, s + new);
    assert_eq!(
        t.send(Client, ack(c + 1, s + new + 1)).seg().ack,
        s + old + 1
    );
    assert_eq!(
        t.send(Server, ack(s + old + 1, c + 1)).seg().seq,
        s + new + 1
    );
    assert_eq!(t.world.ended, 1);
}

#[test]
fn an_exact_reset_ends_the_session() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()));
    let reset = Seg {
        flags: RST,
        ack: 0,
        ..ack(s + reply().len() as u32, 0)
    };
    let out = t.send(Server, reset.clone()).seg();
    assert_eq!(out.seq, reset.seq + GROWTH);
    assert_eq!(t.world.ended, 1);
}

#[test]
fn a_forged_reset_is_not_made_exact() {
    let (mut t, c, s) = Trace::asked();
    // Bytes wait: what the client expects next is behind the seven bytes that went on.
    t.send(Server, data(s, c, "227 x (10,0"));
    for off in [1, 5000, 1 << 20, 1 << 30] {
        let reset = Seg {
            flags: RST,
            ack: 0,
            ..ack(s + 11 + off, 0)
        };
        let out = t.send(Server, reset).seg();
        assert_eq!(out.seq, s + 7 + off, "as far off as it was");
    }
    assert_eq!(t.world.ended, 0);
    // The real one is exact for the client.
    let reset = Seg {
        flags: RST,
        ack: 0,
        ..ack(s + 11, 0)
    };
    assert_eq!(t.send(Server, reset).seg().seq, s + 7);
    assert_eq!(t.world.ended, 1);
}

// ---- urgent data, opaque streams, limits ---------------------------------------------------------

#[test]
fn the_urgent_pointer_follows_the_edits_before_it() {
    let (mut t, c, s) = Trace::asked();
    let text = reply() + "\u{7f}";
    let seg = Seg {
        urgent: text.len() as u16,
        ..flagged(URG, data(s, c, &text))
    };
    let out = t.send(Server, seg.clone()).seg();
    assert_eq!(usize::from(out.urgent), text.len() + GROWTH as usize);
    assert_ne!(out.flags & URG, 0);
    // Behind the edit, in a segment of its own.
    let end = text.len() as u32;
    let seg = Seg {
        urgent: 2,
        ..flagged(URG, data(s + end, c, "\r\n"))
    };
    let out = t.send(Server, seg.clone()).seg();
    assert_eq!(
        out,
        Seg {
            seq: seg.seq + GROWTH,
            ..seg
        }
    );
}

#[test]
fn an_urgent_pointer_behind_bytes_that_wait_waits() {
    let (mut t, c, s) = Trace::asked();
    let seg = Seg {
        urgent: 30,
        ..flagged(URG, data(s, c, "227 x (10,0"))
    };
    let out = t.send(Server, seg).seg();
    assert_eq!((out.flags & URG, out.urgent), (0, 0));
}

#[test]
fn edits_outlive_the_inspection() {
    let (mut t, c, s) = Trace::asked();
    let (old, new) = (reply().len() as u32, told().len() as u32);
    t.send(Server, data(s, c, &reply()));
    t.send(Client, data(c, s, "AUTH TLS\r\n"));
    let go = t.send(Server, data(s + old, c + 10, "234 x\r\n")).seg();
    assert_eq!(go.seq, s + new);
    assert_eq!(t.world.opaque(), Some("TLS"));
    // Nothing of it was acknowledged: the retransmission still has the edit, and binary follows.
    let out = t
        .send(Server, data(s, c + 10, &(reply() + "234 x\r\n\x17\x03")))
        .seg();
    assert_eq!(out, data(s, c + 10, &(told() + "234 x\r\n\x17\x03")));
    t.send(Client, ack(c + 10, s + new + 9));
    assert_eq!(t.engine.buffered(), 0);
    // Under the sum of the edits for good, across any number of bytes: even where the numbers come
    // round to the place at which inspection ended.
    for far in [9, 1 << 20, 1 << 31, u32::MAX - 3, 2] {
        let seg = data((s + old).wrapping_add(far), c + 10, "0123456789");
        let out = t.send(Server, seg.clone()).seg();
        assert_eq!(
            out,
            Seg {
                seq: seg.seq.wrapping_add(GROWTH),
                ..seg
            },
            "{far}"
        );
    }
}

/// A TLS record with a body of `length` bytes.
fn record(kind: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let body = vec![b'1'; usize::from(length)];
    [&[kind, 3, 3, high, low][..], &body].concat()
}

fn binary(seq: u32, ack: u32, payload: Vec<u8>) -> Seg {
    Seg {
        payload,
        ..data(seq, ack, "")
    }
}

/// A session with a rewritten reply before TLS, and everything acknowledged up to the end of TLS;
/// where client and server are, in their own numbers.
fn under_tls() -> (Trace, u32, u32) {
    let (mut t, mut c, s) = Trace::asked();
    t.send(Server, data(s, c, &reply()));
    let mut told = s + told().len() as u32;
    t.send(Client, data(c, told, "AUTH TLS\r\n"));
    c += 10;
    let mut s = s + reply().len() as u32;
    t.send(Server, data(s, c, "234 x\r\n"));
    (s, told) = (s + 7, told + 7);
    for kind in [22, 23] {
        let payload = record(kind, 700);
        t.send(Client, binary(c, told, payload.clone()));
        c += 705;
        let out = t.send(Server, binary(s, c, payload.clone()));
        assert_eq!(out, Out::Became(binary(told, c, payload)));
        (s, told) = (s + 705, told + 705);
    }
    t.send(Client, ack(c, told));
    assert_eq!(t.engine.buffered(), 0);
    (t, c, s)
}

#[test]
fn clear_text_after_tls_is_read_again() {
    let (mut t, c, s) = under_tls();
    let seen = s + GROWTH;
    // Both say goodbye to TLS, and the client goes on at once.
    let alert = record(21, 2);
    let goodbye = [&alert[..], b"PASV\r\n"].concat();
    let out = t.send(Client, binary(c, seen, goodbye)).seg();
    assert_eq!(out.payload.len(), 13);
    let c = c + 13;
    let both = [&alert[..], reply().as_bytes()].concat();
    let out = t.send(Server, binary(s, c, both.clone())).seg();
    assert_eq!(out.payload, [&alert[..], told().as_bytes()].concat());
    assert_eq!(out.seq, seen);
    // Lost, and sent again: the same.
    assert_eq!(t.send(Server, binary(s, c, both)).seg(), out);
    let stats = t.engine.stats();
    assert_eq!((stats.clear_again, stats.rewritten), (1, 2));
    let (s, seen) = (s + 7 + reply().len() as u32, seen + 7 + told().len() as u32);
    assert_eq!(t.send(Client, ack(c, seen)).seg(), ack(c, s));
    assert_eq!(t.engine.buffered(), 0);
    // The bounce is refused as ever.
    let port = data(c, seen, "PORT 9,9,9,9,200,1\r\n");
    assert_eq!(
        t.send(Client, port).seg().payload,
        b"PORT xxxxxxxxxxxxx\r\n"
    );
}

#[test]
fn clear_text_behind_unacknowledged_records_is_read_again() {
    let (mut t, c, s) = under_tls();
    let seen = s + GROWTH;
    t.send(Client, binary(c, seen, record(21, 2)));
    t.send(Client, data(c + 7, seen, "PASV\r\n"));
    t.send(Server, binary(s, c, record(21, 2)));
    let out = t.send(Server, data(s + 7, c, &reply())).seg();
    assert_eq!(out, data(seen + 7, c, &told()));
    // All of it again, in one segment, as the server's TCP may send it.
    let again = [&record(21, 2)[..], reply().as_bytes()].concat();
    let out = t.send(Server, binary(s, c + 13, again)).seg();
    assert_eq!(out.seq, seen);
    assert_eq!(
        out.payload,
        [&record(21, 2)[..], told().as_bytes()].concat()
    );
}

#[test]
fn clear_text_after_a_gap_stays_unread() {
    let (mut t, c, s) = under_tls();
    let seen = s + GROWTH;
    t.send(Client, binary(c + 7, seen, record(23, 20)));
    t.send(Client, binary(c, seen, record(21, 2)));
    t.send(Client, data(c + 32, seen, "PASV\r\n"));
    let out = t.send(Server, data(s, c + 38, &reply())).seg();
    assert_eq!(out, data(seen, c + 38, &reply()));
    assert_eq!(t.engine.stats().clear_again, 0);
    assert_eq!(t.engine.stats().rewritten, 1);
}

#[test]
fn clear_text_in_the_place_of_tls_stays_unread() {
    let (mut t, c, s) = Trace::asked();
    t.send(Server, data(s, c, "200 x\r\n"));
    t.send(Client, data(c, s + 7, "AUTH TLS\r\n"));
    t.send(Server, data(s + 7, c + 10, "234 x\r\n"));
    t.send(Client, data(c + 10, s + 14, "PASV\r\n"));
    let out = t.send(Server, data(s + 14, c + 16, &reply()));
    assert_eq!(out, Out::Same);
    assert_eq!(t.engine.stats().clear_again, 0);
}

#[test]
fn nothing_opens_after_a_reset() {
    let (mut t, c, s) = Trace::asked();
    // Exact, so its receiver heeds it: if it is what it gets.
    t.send(Client, flagged(RST, ack(c, s)));
    assert_eq!(t.world.ended, 1);
    let reply = reply();
    assert_eq!(t.send(Server, data(s, c, &reply)), Out::Same);
    let port = data(c, s + reply.len() as u32, "PORT 10,0,0,3,0,22\r\n");
    let refused = t.send(Client, port).seg().payload;
    assert_eq!(refused, b"PORT xxxxxxxxxxxxx\r\n");
    assert_eq!(t.world.opened.len(), 0);
    let stats = t.engine.stats();
    assert_eq!((stats.not_opened, stats.refused), (1, 1));
}

#[test]
fn commands_wait_where_too_many_are_on_their_way() {
    let mut t = Trace::new();
    let [c, s] = t.login();
    let noops = "NOOP 6789012\r\n".repeat(100);
    let length = noops.len() as u32;
    let count = 32 * 1024 / length;
    for n in 0..count {
        assert_eq!(t.send(Client, data(c + n * length, s, &noops)), Out::Same);
    }
    let at = c + count * length;
    let foreign = "PORT 10,0,0,3,0,22\r\n";
    let more = noops.clone() + foreign;
    assert_eq!(t.send(Client, data(at, s, &more)), Out::Dropped);
    // Behind what was sent before, nothing new goes along.
    let both = noops[..14].to_owned() + &more;
    let again = t.send(Client, data(at - 14, s, &both)).seg();
    assert_eq!(again, data(at - 14, s, &noops[..14]));
    // The server has it all; its acknowledgement got lost on the way to the client.
    assert_eq!(t.send(Server, ack(s, at)), Out::Same);
    let refused = t.send(Client, data(at - 14, s, &both)).seg();
    let text = String::from_utf8(refused.payload).unwrap();
    assert!(
        text.starts_with(&noops) && !text.contains("10,0,0,3"),
        "{text}"
    );
    assert_eq!(t.engine.stats().waited, 2);
    assert_eq!(t.engine.stats().limit_reached, 0);
    assert_eq!(t.engine.stats().refused, 1);
}

#[test]
fn a_long_reply_in_flight_is_followed_to_its_end() {
    let mut t = Trace::new();
    let [c, s] = t.login();
    t.send(Client, data(c, s, "STAT\r\n"));
    let c = c + 6;
    t.send(Server, data(s, c, "213-Status\r\n"));
    let mut at = s + 12;
    let lines = " -rw-r--r-- 1 ftp ftp 227 Jan 01 00:00 (10,0,0,2,1,2)\r\n".repeat(20);
    // Half a megabyte, and the client acknowledges nothing.
    while at - s < 512 * 1024 {
        assert_eq!(t.send(Server, data(at, c, &lines)), Out::Same);
        at += lines.len() as u32;
    }
    assert_eq!(t.send(Server, data(at, c, "213 End\r\n")), Out::Same);
    at += 9;
    assert_eq!(t.send(Client, ack(c, at)), Out::Same);
    t.send(Client, data(c, at, "PASV\r\n"));
    let out = t.send(Server, data(at, c + 6, &reply())).seg();
    assert_eq!(out, data(at, c + 6, &told()));
    assert_eq!(t.engine.stats().limit_reached, 0);
    assert_eq!(t.world.opened.len(), 1);
}

#[test]
fn replies_wait_at_their_sender_where_too_many_are_in_flight() {
    let config = Config {
        long_reply: 0,
        ..Config::default()
    };
    let mut t = Trace::with(config, [1000, 5000], &[]);
    let [c, s] = t.login();
    let reply = "200 x\r\n".repeat(200);
    let length = reply.len() as u32;
    // The client acknowledges nothing.
    let passed = (0..60).take_while(|n| {
        let said = data(s + n * length, c, &reply);
        t.send(Server, said) == Out::Same
    });
    let at = s + passed.count() as u32 * length;
    assert!(
        (32 * 1024 - length..64 * 1024).contains(&(at - s)),
        "{}",
        at - s
    );
    assert_eq!(t.engine.stats().waited, 1);
    let refused = t.send(Client, data(c, s, "PORT 10,0,0,3,0,22\r\n")).seg();
    assert_eq!(refused.payload, b"PORT xxxxxxxxxxxxx\r\n");
    // They go on with the acknowledgement, and the session with them.
    assert_eq!(t.send(Client, ack(c + 20, at)), Out::Same);
    assert_eq!(t.send(Server, data(at, c + 20, &reply)), Out::Same);
    let at = at + length;
    t.send(Client, data(c + 20, at, "PASV\r\n"));
    let out = t.send(Server, data(at, c + 26, &self::reply())).seg();
    assert_eq!(out.payload, told().as_bytes());
    assert_eq!(t.world.opened.len(), 1);
    assert_eq!(t.engine.stats().limit_reached, 0);
}

#[test]
fn commands_wait_sooner_where_all_sessions_keep_much() {
    let config = Config {
        max_buffered: 16 * 1024,
        ..Config::default()
    };
    let mut t = Trace::with(config, [1000, 5000], &[]);
    let [c, s] = t.login();
    let noops = "NOOP 6789012\r\n".repeat(100);
    let length = noops.len() as u32;
    let sent = (0..20).map(|n| t.send(Client, data(c + n * length, s, &noops)));
    let sent: Vec<_> = sent.collect();
    let kept = sent.iter().take_while(|out| **out == Out::Same).count() as u32;
    assert!((8 * 1024..16 * 1024).contains(&(kept * length)), "{kept}");
    assert!(sent[kept as usize..].iter().all(|out| *out == Out::Dropped));
    assert_eq!(t.engine.stats().limit_reached, 0);
}

#[test]
fn edits_beyond_the_limit_wait_at_their_sender() {
    let limits = Limits {
        edits: 2,
        ..Limits::default()
    };
    let config = Config {
        limits,
        ..Config::default()
    };
    let mut t = Trace::with(config, [1000, 5000], &[]);
    let [c, s] = t.login();
    t.send(Client, data(c, s, &"PASV\r\n".repeat(6)));
    let c = c + 36;
    // A segment is taken in as a whole, and the next one waits.
    let said = reply().repeat(4);
    let out = t.send(Server, data(s, c, &said)).seg();
    assert_eq!(out, data(s, c, &told().repeat(4)));
    let next = data(s + said.len() as u32, c, &reply());
    assert_eq!(t.send(Server, next.clone()), Out::Dropped);
    assert_eq!(t.engine.stats().limit_reached, 0);
    let heard = ack(c, s + out.payload.len() as u32);
    let out = t.send(Client, heard.clone()).seg();
    assert_eq!(out.ack, s + said.len() as u32);
    let out = t.send(Server, next).seg();
    assert_eq!((out.seq, out.payload), (heard.ack, told().into_bytes()));
}

#[test]
fn many_flows_leave_nothing_behind() {
    let mut engine = Engine::new(Config::default(), 0);
    let mut world = FakeGateway::with_entry(entry(true, INSIDE, PUBLIC, CLIENT_PORT));
    for port in 1024..6024 {
        let at = [(OUTSIDE, port), (INSIDE, 21)];
        let mut feed = |who: usize, seg: &Seg| {
            let packet = build(at[who], at[1 - who], seg);
            let side = [Side::Ingress, Side::Egress][who];
            engine.packet(side, &packet, Duration::ZERO, &mut world);
        };
        feed(
            0,
            &Seg {
                flags: SYN,
                seq: 99,
                ..Seg::default()
            },
        );
        feed(
            1,
            &Seg {
                flags: SYN | ACK,
                seq: 199,
                ack: 100,
                ..Seg::default()
            },
        );
        feed(1, &data(200, 100, "220 x\r\n"));
        feed(
            0,
            &Seg {
                flags: RST,
                ..data(100, 0, "")
            },
        );
        feed(
            1,
            &Seg {
                flags: RST,
                ..data(207 + u32::from(port & 1), 0, "")
            },
        );
    }
    engine.tick(Duration::from_secs(61), &mut world);
    assert_eq!(
        (engine.sessions(Duration::ZERO).count(), engine.buffered()),
        (0, 0)
    );
    assert_eq!(world.ended, 5000);
}

// ---- the rest of the packet ----------------------------------------------------------------------

#[test]
fn what_is_not_ours_stays() {
    let (mut t, c, s) = Trace::asked();
    let seg = t.wire(Server, data(s, c, &reply()));
    // DSCP and ECN, identification, TTL, an IPv4 option (router alert), ECE and CWR, timestamps.
    let mut ip = etherparse::Ipv4Header::new(
        0,
        37,
        etherparse::ip_number::TCP,
        INSIDE.octets(),
        OUTSIDE.octets(),
    )
    .unwrap();
    ip.dscp = 34.try_into().unwrap();
    ip.ecn = 2.try_into().unwrap();
    ip.identification = 0xbeef;
    ip.options = [148, 4, 0, 0].into();
    let stamps = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let mut tcp = etherparse::TcpHeader::new(21, CLIENT_PORT, seg.seq, 64_000);
    tcp.acknowledgment_number = seg.ack;
    (tcp.ack, tcp.psh, tcp.ece, tcp.cwr) = (true, true, true, true);
    tcp.set_options_raw(&stamps).unwrap();
    let mut packet = Vec::new();
    PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .tcp_header(tcp.clone())
        .write(&mut packet, &seg.payload)
        .unwrap();
    let Verdict::Replace(out) = t.raw(Server, &packet) else {
        panic!("unchanged")
    };
    let out = out.to_vec();
    assert_eq!(read(&out).payload, told().as_bytes());
    // IP: all but length and checksum; TCP: all but the checksum.
    assert_eq!(out[..2], packet[..2]);
    assert_eq!(out[4..10], packet[4..10]);
    assert_eq!(out[12..24], packet[12..24]);
    assert_eq!(out[24..24 + 16], packet[24..24 + 16]);
    assert_eq!(out[24 + 18..24 + 32], packet[24 + 18..24 + 32]);
}

#[test]
fn authenticated_and_broken_packets_pass() {
    let (mut t, c, s) = Trace::asked();
    let packet = pack(Server, &t.wire(Server, data(s, c, &reply())));
    // RFC 4302: 24 bytes of authentication header in front of TCP.
    let mut signed = packet[..20].to_vec();
    signed[9] = 51;
    let len = (packet.len() + 24) as u16;
    signed[2..4].copy_from_slice(&len.to_be_bytes());
    signed.extend([
        6, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
    ]);
    signed.extend(&packet[20..]);
    assert_eq!(t.raw(Server, &signed), Verdict::Accept);
    for cut in [0, 1, 19, 20, 39, packet.len() - 1] {
        assert_eq!(t.raw(Server, &packet[..cut]), Verdict::Accept, "{cut}");
    }
    assert_eq!(t.engine.stats().malformed, 7);
    assert!(matches!(t.raw(Server, &packet), Verdict::Replace(_)));
}

#[test]
fn eprt_over_ipv6() {
    let (client, server) = ("2001:db8::7", "2001:db8:1::21");
    let inside: std::net::Ipv6Addr = "fd00::2".parse().unwrap();
    let outside: std::net::Ipv6Addr = client.parse().unwrap();
    let mut engine = Engine::new(Config::default(), 0);
    let mut world = FakeGateway::with_entry(entry(true, INSIDE, PUBLIC, CLIENT_PORT));
    // The client is inside (fd00::2), and known outside as 2001:db8::7.
    let server: std::net::Ipv6Addr = server.parse().unwrap();
    world.entry().original.src = (inside, CLIENT_PORT).into();
    world.entry().original.dst = (server, 21).into();
    world.entry().reply.src = (server, 21).into();
    world.entry().reply.dst = (outside, CLIENT_PORT).into();
    let mut feed = |from_client: bool, seq: u32, ack: Option<u32>, syn: bool, text: &str| {
        let (src, dst) = if from_client {
            (inside, server)
        } else {
            (server, inside)
        };
        let ports = if from_client {
            (CLIENT_PORT, 21)
        } else {
            (21, CLIENT_PORT)
        };
        let mut builder =
            PacketBuilder::ipv6(src.octets(), dst.octets(), 9).tcp(ports.0, ports.1, seq, 9000);
        if syn {
            builder = builder.syn();
        }
        if let Some(ack) = ack {
            builder = builder.ack(ack);
        }
        let mut packet = Vec::new();
        builder.write(&mut packet, text.as_bytes()).unwrap();
        let side = if from_client {
            Side::Egress
        } else {
            Side::Ingress
        };
        match engine.packet(side, &packet, Duration::ZERO, &mut world) {
            Verdict::Replace(bytes) => bytes.to_vec(),
            Verdict::Accept => packet,
            Verdict::Drop => Vec::new(),
        }
    };
    feed(true, 9, None, true, "");
    feed(false, 99, Some(10), true, "");
    feed(false, 100, Some(10), false, "220 x\r\n");
    feed(true, 10, Some(107), false, "USER a\r\n");
    feed(false, 107, Some(18), false, "230 x\r\n");
    let out = feed(true, 18, Some(114), false, "EPRT |2|fd00::2|50000|\r\n");
    let sliced = etherparse::SlicedPacket::from_ip(&out).unwrap();
    let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
        (&sliced.net, &sliced.transport)
    else {
        panic!("no TCP over IPv6")
    };
    assert_eq!(tcp.payload(), b"EPRT |2|2001:db8::7|50000|\r\n");
    let due = tcp
        .to_header()
        .calc_checksum_ipv6(&ip.header().to_header(), tcp.payload());
    assert_eq!(due.unwrap(), tcp.checksum());
    assert_eq!(usize::from(ip.header().payload_length()), out.len() - 40);
}
