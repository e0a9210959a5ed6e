//! Connections that a successor can't go on with by their mark alone: what is recorded of them, and what
//! becomes of them without a record.

use std::net::Ipv4Addr;
use std::time::Duration;

use ftpalg::engine::{Config, Engine, RECORD_FORMAT, Side, Standing, resets_of_record};
use testkit::gateway::{MARKS, entry};
use testkit::packet::{ACK, FIN, RST, SYN, Seg, data, syn};
use testkit::trace::{
    CLIENT_PORT, Client, GROWTH, INSIDE, Out, Server, Trace, ack, flagged, reply, told,
};

fn config() -> Config {
    Config {
        keep_length: false,
        marks: Some(MARKS),
        ..Config::default()
    }
}

fn begun() -> Trace {
    Trace::with(config(), [1000, 5000], &[])
}

/// A `227` has grown, all is acknowledged; where both ends are, by their own numbers.
fn uneven() -> (Trace, u32, u32) {
    let mut t = begun();
    let (c, s) = t.ask();
    t.send(Server, data(s, c, &reply()));
    t.send(Client, ack(c, s + told().len() as u32));
    (t, c, s + reply().len() as u32)
}

/// The process ends, and another one begins.
fn restart(t: &mut Trace) {
    t.engine = Engine::new(config(), 0);
}

fn standing(t: &mut Trace) -> Standing {
    MARKS.standing(t.world.entry().mark)
}

#[test]
fn a_session_of_another_length_goes_on() {
    let (mut t, c, s) = uneven();
    assert_eq!(standing(&mut t), Standing::Uneven);
    restart(&mut t);
    t.goes_on(c, s);
    let stats = *t.engine.stats();
    assert_eq!((stats.joined, stats.mid_stream, stats.orphaned), (1, 0, 0));
}

/// The `227` is on its way, or has been lost, or the process ended with it in its hands.
#[test]
fn what_is_in_flight_is_sent_again_as_it_was() {
    for read in [0, 1, 7, told().len()] {
        let mut t = begun();
        let (c, s) = t.ask();
        let out = t.send(Server, data(s, c, &reply())).seg();
        assert_eq!(out, data(s, c, &told()));
        restart(&mut t);
        t.send(Client, ack(c, s + read as u32));
        restart(&mut t);
        let again = t.send(Server, data(s, c, &reply()));
        if read < told().len() {
            let again = again.seg();
            let rest = &told()[read..];
            let (at, text) = (again.seq, String::from_utf8(again.payload).unwrap());
            assert!(text.ends_with(rest) && at + text.len() as u32 == s + told().len() as u32);
        }
        restart(&mut t);
        t.send(Client, ack(c, s + told().len() as u32));
        t.goes_on(c, s + reply().len() as u32);
        assert_eq!(t.world.opened.len(), 2, "{read}: each of them once");
    }
}

/// Held bytes that were acknowledged early are nobody's but ours.
#[test]
fn what_was_acknowledged_early_arrives() {
    let mut t = begun();
    let (c, s) = t.ask();
    let text = reply();
    let (head, rest) = text.split_at(text.find(",2,").unwrap() + 2);
    let out = t.send(Server, data(s, c, head)).seg();
    let gone = out.payload.len() as u32;
    assert!(gone < head.len() as u32, "{out:?}");
    assert_eq!(standing(&mut t), Standing::Even);
    assert!(t.world.records.is_empty());
    let answer = t.send(Client, ack(c, s + gone)).seg();
    assert_eq!(answer.ack, s + head.len() as u32, "early");
    assert_eq!(standing(&mut t), Standing::Uneven);
    restart(&mut t);
    let out = t.send(Server, data(s + head.len() as u32, c, rest)).seg();
    assert_eq!(
        (out.seq, out.payload),
        (s + gone, told().as_bytes()[gone as usize..].to_vec())
    );
}

/// The same with a text that turns out to be no address: then nothing of it is uneven any more.
#[test]
fn a_difference_for_a_while_leaves_nothing_behind() {
    let mut t = begun();
    let (c, s) = t.ask();
    let out = t.send(Server, data(s, c, "227 x (10,0,0")).seg();
    let gone = s + out.payload.len() as u32;
    t.send(Client, ack(c, gone));
    assert_eq!(standing(&mut t), Standing::Uneven);
    assert_eq!(t.world.records.len(), 1);
    let s = s + 13;
    t.send(Server, data(s, c, " nothing\r\n"));
    t.send(Client, ack(c, s + 10));
    assert_eq!(standing(&mut t), Standing::Even);
    t.send(Client, ack(c, s + 10));
    assert!(t.world.records.is_empty());
    restart(&mut t);
    assert_eq!(t.send(Client, data(c, s + 10, "NOOP\r\n")), Out::Same);
    assert_eq!(t.engine.stats().joined, 1);
}

#[test]
fn a_session_that_keeps_its_lengths_is_never_recorded() {
    let config = Config {
        keep_length: true,
        ..config()
    };
    let mut t = Trace::unborn(config, [1000, 5000]);
    let public = Ipv4Addr::new(20, 9, 8, 7);
    *t.world.entry() = entry(true, INSIDE, public, CLIENT_PORT);
    t.send(Client, syn(SYN));
    t.send(Server, syn(SYN | ACK));
    let (c, s) = t.ask();
    let out = t.send(Server, data(s, c, &reply())).seg();
    assert_eq!(out.payload.len(), reply().len());
    let s = s + reply().len() as u32;
    assert_eq!(t.send(Client, data(c, s, "NOOP\r\n")), Out::Same);
    assert_eq!(standing(&mut t), Standing::Even);
    assert_eq!(t.world.written, 0);
}

/// Conntrack's mark is the witness: a connection with the same ends has come since.
#[test]
fn a_record_of_another_connection_is_not_used() {
    let (mut t, c, s) = uneven();
    restart(&mut t);
    t.world.entry().mark = 0;
    assert_eq!(t.send(Client, data(c, s, "NOOP\r\n")), Out::Same);
    assert_eq!(t.engine.stats().mid_stream, 1);
    assert!(t.world.records.is_empty());
}

#[test]
fn a_record_goes_with_its_connection() {
    // By its end.
    let (mut t, c, s) = uneven();
    t.send(Client, flagged(RST, ack(c, s + GROWTH)));
    t.later(Duration::from_secs(61));
    assert!(t.world.records.is_empty());
    // By the next one with the same ends.
    let (mut t, ..) = uneven();
    t.isn = [70_000, 90_000];
    t.send(Client, syn(SYN));
    t.send(Server, syn(SYN | ACK));
    assert!(t.world.records.is_empty());
    assert_eq!(standing(&mut t), Standing::Even);
    // While it ends, the last segments are still translated.
    let (mut t, c, s) = uneven();
    t.send(Client, flagged(FIN, ack(c, s + GROWTH)));
    t.send(Server, flagged(FIN, ack(s, c + 1)));
    restart(&mut t);
    let last = t.send(Client, ack(c + 1, s + GROWTH + 1));
    assert_eq!(last, Out::Became(ack(c + 1, s + 1)));
    assert_eq!(t.sessions(), 0);
    t.later(Duration::from_secs(61));
    assert!(t.world.records.is_empty());
}

/// Nobody knows by how much the numbers differ: no byte goes on, and both ends get to know.
#[test]
fn without_a_record_both_ends_are_told() {
    for first in [Client, Server] {
        let mut t = begun();
        t.world.records_work = false;
        let (c, s) = t.ask();
        t.send(Server, data(s, c, &reply()));
        t.send(Client, ack(c, s + told().len() as u32));
        let s = s + reply().len() as u32;
        assert_eq!(standing(&mut t), Standing::Uneven);
        restart(&mut t);
        let of = |who, text| match who {
            Client => data(c, s + GROWTH, text),
            Server => data(s, c, text),
        };
        let second = if first == Client { Server } else { Client };
        // The first one's data makes the other end say what it expects.
        let asked = t.send(first, of(first, "NOOP\r\n")).seg();
        assert!(asked.payload.is_empty() && asked.flags == ACK, "{asked:?}");
        let below = of(first, "").seq.wrapping_sub(asked.seq);
        assert!(
            (GROWTH..60_000).contains(&below),
            "{below}: old, and in its receiver's window"
        );
        // The answer is for us.
        let answer = ack(of(second, "").seq, of(second, "").ack);
        assert_eq!(t.send(second, answer), Out::Dropped);
        // When the data comes again, the other end closes.
        let again = t.send(first, of(first, "NOOP\r\n")).seg();
        assert_eq!((again.flags, again.seq), (RST, of(second, "").ack));
        assert!(again.payload.is_empty());
        // And then its host is asked, which knows nothing any more.
        let asked = t.send(first, of(first, "NOOP\r\n")).seg();
        assert!(asked.payload.is_empty() && asked.flags == ACK, "{asked:?}");
        assert_eq!(asked.ack, of(first, "").ack);
        // The RST of a host that knows nothing any more passes.
        let own = Seg {
            flags: RST,
            ..data(of(first, "").ack, 0, "")
        };
        assert_eq!(t.send(second, own), Out::Same);
        assert!(t.engine.stats().orphaned >= 4);
        assert_eq!((t.sessions(), t.engine.stats().mid_stream), (0, 0));
    }
}

/// A store that doesn't answer for a moment may know the numbers. An end that sends meanwhile needs one
/// retransmission less once it counts as lost; one that goes on then has lost nothing.
#[test]
fn while_a_store_is_silent_ends_are_asked() {
    for known in [false, true] {
        let (mut t, c, s) = uneven();
        let kept = std::mem::take(&mut t.world.records);
        restart(&mut t);
        t.world.silent_store = true;
        let noop = || data(c, s + GROWTH, "NOOP\r\n");
        for _ in 0..3 {
            let asked = t.send(Client, noop()).seg();
            assert!(asked.payload.is_empty() && asked.flags == ACK, "{asked:?}");
            assert!((GROWTH..60_000).contains(&c.wrapping_sub(asked.seq)));
            let below = s.wrapping_sub(asked.ack);
            assert!((1..60_000).contains(&below), "acknowledges nothing new");
            assert_eq!(t.send(Server, ack(s, c)), Out::Dropped);
        }
        assert_eq!(t.send(Client, flagged(RST, ack(c, s))), Out::Dropped);
        assert_eq!(t.send(Server, ack(s, c)), Out::Dropped);
        assert_eq!(t.engine.stats().orphaned, 0);
        t.world.silent_store = false;
        if known {
            t.world.records = kept;
            t.goes_on(c, s);
            continue;
        }
        let reset = t.send(Client, noop()).seg();
        assert_eq!((reset.flags, reset.seq), (RST, c));
    }
}

#[test]
fn while_conntrack_cannot_be_asked_packets_wait() {
    let (mut t, c, s) = uneven();
    restart(&mut t);
    t.world.deaf = true;
    let noop = data(c, s + GROWTH, "NOOP\r\n");
    assert_eq!(t.send(Client, noop.clone()), Out::Dropped);
    t.world.deaf = false;
    assert_eq!(t.send(Client, noop), Out::Became(data(c, s, "NOOP\r\n")));
}

/// Under TLS nothing can be read, but the range stays open for as long as the client is active.
#[test]
fn a_range_under_tls_goes_on() {
    for grown in [false, true] {
        let config = || Config {
            tls_range: true,
            ..config()
        };
        let mut t = Trace::with(config(), [1000, 5000], &[]);
        t.world.ranges = Some(Vec::new());
        let [mut c, mut s] = t.login();
        let mut growth = 0;
        if grown {
            t.send(Client, data(c, s, "PASV\r\n"));
            t.send(Server, data(s, c + 6, &reply()));
            growth = GROWTH;
            c += 6;
            s += reply().len() as u32;
        }
        t.send(Client, data(c, s + growth, "AUTH TLS\r\n"));
        t.send(Server, data(s, c + 10, "234 Go on\r\n"));
        let (c, s) = (c + 10, s + 11);
        assert_eq!(t.world.ranges.as_ref().unwrap().len(), 1);
        let written = t.world.written;
        t.send(Client, data(c, s + growth, "\x16\x03\x01\0\x05hello"));
        t.send(Server, data(s, c + 10, "\x16\x03\x01\0\x05hello"));
        if !grown {
            assert_eq!(t.world.written, written + 2);
        }
        t.engine = Engine::new(config(), 0);
        let out = t.send(
            Client,
            data(c + 10, s + 10 + growth, "\x17\x03\x01\0\x05again"),
        );
        let expected = data(c + 10, s + 10, "\x17\x03\x01\0\x05again");
        match grown {
            true => assert_eq!(out, Out::Became(expected)),
            false => assert_eq!(out, Out::Same),
        }
        let ranges = t.world.ranges.as_ref().unwrap();
        assert_eq!(ranges.len(), 3, "renewed before and after");
        let [first, .., last] = &ranges[..] else {
            panic!()
        };
        assert_eq!((first.from, first.land), (last.from, last.land));
        assert_eq!(t.engine.sessions(t.now).next().unwrap().state, "tls");
    }
}

#[test]
fn a_handover_ends_nothing_that_is_recorded() {
    let (mut t, c, s) = uneven();
    assert_eq!(t.engine.farewell(true, &mut t.world), []);
    // What comes until the process is gone is handled, and recorded.
    assert_eq!(
        t.send(Client, data(c, s + GROWTH, "NOOP\r\n")),
        Out::Became(data(c, s, "NOOP\r\n"))
    );
    restart(&mut t);
    assert_eq!(
        t.send(Server, data(s, c + 6, "200 x\r\n")),
        Out::Became(data(s + GROWTH, c + 6, "200 x\r\n"))
    );
    t.goes_on(c + 6, s + 7);

    let (mut t, ..) = uneven();
    t.world.records_work = false;
    t.send(Client, ack(0, 0));
    assert_eq!(t.sessions(), 1);
    let (mut t, ..) = uneven();
    assert_eq!(t.engine.farewell(false, &mut t.world).len(), 2);
    assert!(t.world.records.is_empty());
}

#[test]
fn the_ends_can_be_told_by_the_record() {
    let (mut t, ..) = uneven();
    let [record] = &t.world.records.values().cloned().collect::<Vec<_>>()[..] else {
        panic!()
    };
    let by_record = resets_of_record(record);
    assert_eq!(by_record, t.engine.farewell(false, &mut t.world));
    let sides: Vec<Side> = by_record.iter().map(|reset| reset.side).collect();
    assert_eq!(sides, [Side::Egress, Side::Ingress]);
    for cut in 0..record.len() {
        assert_eq!(resets_of_record(&record[..cut]), []);
    }
    assert_eq!(resets_of_record(b"no record"), []);
}

/// A process of another version reads what this one has written. If this fails, count
/// [`RECORD_FORMAT`] up, and put the new bytes here.
#[test]
fn the_format_has_its_number() {
    let (mut t, c, s) = uneven();
    // Something of everything: edits and commands under way, a line of which a part has gone out.
    let more = "PASV\r\nEPSV\r\nTYPE I\r\nSTAT\r\n";
    t.send(Client, data(c, s + GROWTH, more));
    let c = c + more.len() as u32;
    t.send(Server, data(s, c, &reply()));
    let s = s + reply().len() as u32;
    t.send(Server, data(s, c, "229 x (|||50"));
    t.send(Client, data(c, s, "RETR a"));
    let record = t.world.records.values().next().unwrap();
    let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((RECORD_FORMAT, hex.as_str()), (4, FORMAT_4));
}

const FORMAT_4: &str = "000a0000021500c6336407c0b8020001e8078827de27bf27c427d227d29b04e227e227bf270000000128420101243230332c302c3131332c3139392c3139352c3830292e0d0a323239207820287c7c7c35301e01bf270f1400009f0899089908990899fc039f089f089908000000010a42000106524554522061060000000000980404000002000000010652455452206106000000000000010632323920782006000000000000030d09021010030000000000000000000000010001010000010000";

/// What another gateway did since couldn't be kept, so the record is older than the connection. Nobody knows
/// by how much the numbers differ by now: no byte goes on, and both ends are told.
#[test]
fn a_record_that_is_out_of_date_ends_the_connection() {
    /// What happens after the record, and who speaks first with the gateway that has it.
    fn ends(by_client: bool, by_server: bool, first: testkit::trace::Who) {
        let case = format!("client {by_client}, server {by_server}, first {first:?}");
        let (mut t, mut c, mut s) = uneven();
        let old = t.world.records.clone();
        let mut growth = GROWTH;
        if by_client {
            t.send(Client, data(c, s + growth, "NOOP\r\n"));
            c += 6;
            t.send(Server, ack(s, c));
        }
        if by_server {
            // It grows once more, if the client has asked for it.
            t.send(Client, ack(c, s + growth));
            let text = if by_client {
                reply()
            } else {
                "226 x\r\n".into()
            };
            let out = t.send(Server, data(s, c, &text)).seg();
            s += text.len() as u32;
            growth = out.seq + out.payload.len() as u32 - s;
            t.send(Client, ack(c, s + growth));
        }
        t.world.records = old;
        restart(&mut t);
        let of = |who, text| match who {
            Client => data(c, s + growth, text),
            Server => data(s, c, text),
        };
        let second = if first == Client { Server } else { Client };
        let mut reset = false;
        for round in 0..6 {
            let out = t.send(first, of(first, "NOOP\r\n"));
            let Out::Became(out) = out else {
                assert_eq!(out, Out::Dropped, "{case}, {round}");
                continue;
            };
            assert_eq!(out.payload, b"", "{case}, {round}");
            if out.flags == RST {
                assert_eq!(out.seq, of(second, "").ack, "{case}");
                reset = true;
                break;
            }
            // Its receiver answers with what it expects.
            let below = of(second, "").ack.wrapping_sub(out.seq);
            assert!((1..60_000).contains(&below), "{case}: old, {below}");
            t.send(second, ack(of(second, "").seq, of(second, "").ack));
        }
        assert!(reset, "{case}");
        assert!(t.world.records.is_empty(), "{case}");
        assert_eq!(t.sessions(), 0, "{case}");
    }
    for first in [Client, Server] {
        ends(true, false, first);
        ends(false, true, first);
        ends(true, true, first);
    }
}

/// A forged segment, or a lost one, says nothing about a record.
#[test]
fn a_record_that_is_up_to_date_stays() {
    let (mut t, c, s) = uneven();
    restart(&mut t);
    t.send(Client, ack(c, s + GROWTH));
    // Somebody who knows one end's numbers roughly, and both directions' addresses.
    for _ in 0..3 {
        t.send(Client, data(c + 1000, s + GROWTH, "NOOP\r\n"));
        t.send(Server, data(s + 1000, c, "500 x\r\n"));
        t.send(Server, ack(s.wrapping_sub(1 << 25), c + 7));
        t.send(Client, ack(c + (1 << 25), s + GROWTH + 7));
    }
    // One that is lost on the way here, and the next.
    t.send(Client, data(c + 6, s + GROWTH, "NOOP\r\n"));
    t.send(Server, ack(s, c));
    assert_eq!(t.sessions(), 1);
    let out = t.send(Client, data(c, s + GROWTH, "TYPE I"));
    assert_eq!(out.seg().payload, b"TYPE INOOP\r\n");
    t.send(Server, ack(s, c + 12));
    t.goes_on(c + 12, s);
    assert_eq!(t.engine.stats().orphaned, 0);
}

/// The connection has gone with its address. What comes late is left to whoever has it now.
#[test]
fn what_comes_late_is_not_read() {
    let (mut t, c, s) = uneven();
    let kept = t.world.records.clone();
    restart(&mut t);
    t.world.elsewhere = true;
    let noop = data(c, s + GROWTH, "NOOP\r\n");
    assert_eq!(t.send(Client, noop.clone()), Out::Dropped);
    assert_eq!((t.sessions(), &t.world.records), (0, &kept));
    t.world.elsewhere = false;
    assert_eq!(t.send(Client, noop), Out::Became(data(c, s, "NOOP\r\n")));
}

/// The record is of an earlier connection with the same ends, which ended on another gateway.
#[test]
fn a_record_of_an_earlier_connection_is_not_taken_for_an_even_one() {
    for closed in [false, true] {
        let (mut t, c, s) = uneven();
        if closed {
            t.send(Client, flagged(FIN, ack(c, s + GROWTH)));
            t.send(Server, flagged(FIN, ack(s, c + 1)));
            t.send(Client, ack(c + 1, s + GROWTH + 1));
        }
        let old = t.world.records.clone();
        assert!(!old.is_empty());
        t.isn = [70_000, 9_000_000];
        t.send(Client, syn(SYN));
        t.send(Server, syn(SYN | ACK));
        let [c, s] = t.login();
        assert_eq!(standing(&mut t), Standing::Even);
        t.world.records = old;
        restart(&mut t);
        assert_eq!(t.send(Client, data(c, s, "PASV\r\n")), Out::Same);
        let out = t.send(Server, data(s, c + 6, &reply())).seg();
        assert!(String::from_utf8_lossy(&out.payload).contains("203,0,113,199"));
    }
}

/// What has ended here isn't found by a later connection with the same ends.
#[test]
fn what_has_ended_is_not_recorded_when_all_is_forgotten() {
    let (mut t, c, s) = uneven();
    t.send(Client, flagged(FIN, ack(c, s + GROWTH)));
    t.send(Server, flagged(FIN, ack(s, c + 1)));
    t.engine.forget_all(&mut t.world);
    assert!(t.world.records.is_empty());
    let (mut t, ..) = uneven();
    t.engine.forget_all(&mut t.world);
    assert_eq!(t.world.records.len(), 1, "it goes on");
}
