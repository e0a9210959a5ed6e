//! Packets that only the gateway sees, or that it and the receiver read in two ways: overlaps, short
//! lives, wrong checksums, wrong numbers, resets.
//!
//! The attacker wants the gateway to believe in another dialogue than the one that takes place.

use std::io::{Error, Write};
use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::arena::{
    Arena, Family, Gate, Helper, ONE, OUTSIDER, PATIENCE, Result, SECRET, USER, attack, falls,
};
use testkit::lab::craft::{ACK, Craft, FIN, PSH, RST, SYN, Shot, URG};
use testkit::lab::scripted::Control;
use testkit::lab::topology::{Shape, Topology};

const LIMIT: Duration = Duration::from_secs(2);
/// Lives until it is behind the gateway, and dies before the receiver.
const SHORT: u8 = 3;
const REAL: &[u8] = b"NOOP\r\n";
/// What the gateway is to believe in its place.
const DECOY: &[u8] = b"PASV\r\n";

/// The attacker's end of a control connection that has logged in, and the other end.
fn session(arena: &Arena) -> Result<(Craft, Control)> {
    static PORT: AtomicU16 = AtomicU16::new(34_000);
    let topology = arena.net.topology();
    let SocketAddr::V4(dial) = topology.dial else {
        return Err(Error::other("IPv4 only"));
    };
    let ip = match topology.shape {
        Shape::ServerInside => OUTSIDER,
        Shape::ClientInside => USER,
    };
    let local = SocketAddrV4::new(ip, PORT.fetch_add(1, Ordering::Relaxed));
    let mut client = Craft::new(arena.net, topology.client, local, dial);
    client.shift = Some(7);
    client.connect(LIMIT)?;
    let mut server = arena.accepted()?;
    for (command, answer) in [
        (&b""[..], "220 ready\r\n"),
        (b"USER lab\r\n", "331 password, please\r\n"),
        (b"PASS lab\r\n", "230 welcome\r\n"),
    ] {
        if !command.is_empty() {
            client.say(command);
            server.read()?;
        }
        server.send(answer)?;
        client.hear(&answer[..4], 0, LIMIT)?;
    }
    Ok((client, server))
}

/// The attacker does what it does; the server takes it for what it takes it for. Asked for `PASV`, it
/// means its answer; for anything else it is made to say a `227` that leads to port 7777.
fn fools(arena: &Arena, does: impl FnOnce(&mut Craft)) -> Result {
    let service = arena.service(USER, SECRET)?;
    let (mut client, mut server) = session(arena)?;
    let before = client.heard.len();
    does(&mut client);
    let line = server.read();
    let heard = match &line {
        Ok(line) if line.starts_with("PASV") => {
            server.send("227 Entering Passive Mode (10,0,0,2,40,1).\r\n")?;
            client.hear("227", before, LIMIT)
        }
        Ok(_) => {
            server.send("227 Entering Passive Mode (10,0,0,2,30,97).\r\n")?;
            client.hear("227", before, LIMIT)
        }
        // The connection is broken: nobody got anything.
        Err(_) => Ok(String::new()),
    };
    drop(heard);
    let reached = arena.reaches(OUTSIDER, SECRET, &service)?;
    let line = line.unwrap_or_default();
    drop(server);
    Ok(falls(
        reached,
        &format!("7777 reached, the server read {:?}", line.trim_end()),
    ))
}

/// What follows is the true one.
fn real(client: &mut Craft) {
    client.shoot(Shot::data(client.next, REAL));
    client.went(REAL.len());
}

/// A session that works is behind it: the gateway isn't just cut off.
fn still_works(client: &mut Craft, server: &mut Control) -> Result<()> {
    let before = client.heard.len();
    client.say(b"SYST\r\n");
    server.expect("SYST")?;
    server.send("215 UNIX\r\n")?;
    client.hear("215", before, LIMIT)?;
    Ok(())
}

/// Resets and farewells that the receiver doesn't take for such: the session goes on, and can be asked
/// for a data connection.
fn survives(arena: &Arena, does: impl FnOnce(&mut Craft)) -> Result {
    let (mut client, mut server) = session(arena)?;
    does(&mut client);
    still_works(&mut client, &mut server)?;
    let listener = arena.service(USER, 40_123)?;
    let before = client.heard.len();
    client.say(b"PASV\r\n");
    server.expect("PASV")?;
    server.send("227 Entering Passive Mode (10,0,0,2,156,187).\r\n")?;
    client.hear("227", before, LIMIT)?;
    let works = arena.reaches_within(PATIENCE, OUTSIDER, 40_123, &listener)?;
    Ok(falls(!works, "the session is cut off"))
}

#[test]
fn decoys_from_outside() {
    macro_rules! attacks {
        ($($name:literal, $helper:ident, $does:expr;)*) => {
            vec![$(attack($name, Helper::$helper, |arena| fools(arena, $does)),)*]
        };
    }
    let attacks = attacks! {
        "a decoy that dies behind the gateway", Falls, |client| {
            client.shoot(Shot::data(client.next, DECOY).ttl(SHORT));
            real(client);
        };
        "the decoy twice, the true one twice", Falls, |client| {
            for _ in 0..2 {
                client.shoot(Shot::data(client.next, DECOY).ttl(SHORT));
            }
            client.shoot(Shot::data(client.next, REAL));
            real(client);
        };
        "a decoy with a wrong checksum", Falls, |client| {
            client.shoot(Shot::data(client.next, DECOY).wrong());
            real(client);
        };
        "a decoy with a wrong checksum behind the true one", Falls, |client| {
            client.shoot(Shot::data(client.next, REAL));
            client.shoot(Shot::data(client.next, DECOY).wrong());
            client.went(REAL.len());
        };
        "an overlap, the first wins", Any, |client| {
            client.shoot(Shot::data(client.next, &REAL[..2]));
            client.shoot(Shot::data(client.next, DECOY));
            client.went(REAL.len());
        };
        "an overlap, decoy first, dying", Any, |client| {
            client.shoot(Shot::data(client.next, &DECOY[..2]).ttl(SHORT));
            client.shoot(Shot::data(client.next, REAL));
            client.shoot(Shot::data(client.next, REAL));
            client.went(REAL.len());
        };
        "an overlap behind a gap, decoy first", Any, |client| {
            client.shoot(Shot::data(client.next.wrapping_add(2), &DECOY[2..]));
            client.shoot(Shot::data(client.next.wrapping_add(2), &REAL[2..]));
            client.shoot(Shot::data(client.next, &DECOY[..2]));
            client.shoot(Shot::data(client.next, REAL));
            client.went(REAL.len());
        };
        "an overlap behind a gap, decoy last", Any, |client| {
            client.shoot(Shot::data(client.next.wrapping_add(2), &REAL[2..]));
            client.shoot(Shot::data(client.next.wrapping_add(2), &DECOY[2..]));
            client.shoot(Shot::data(client.next, &REAL[..2]));
            client.shoot(Shot::data(client.next, DECOY));
            client.went(REAL.len());
        };
        "an overlap behind a gap, the longer one is another", Any, |client| {
            client.shoot(Shot::data(client.next.wrapping_add(2), &DECOY[2..4]));
            client.shoot(Shot::data(client.next.wrapping_add(2), &REAL[2..]));
            client.shoot(Shot::data(client.next.wrapping_add(1), &DECOY[1..]));
            real(client);
            client.shoot(Shot::data(client.next.wrapping_sub(6), REAL));
        };
        "the gap filled by a decoy that dies", Any, |client| {
            client.shoot(Shot::data(client.next.wrapping_add(2), &REAL[2..]));
            client.shoot(Shot::data(client.next, DECOY).ttl(SHORT));
            client.shoot(Shot::data(client.next, REAL));
            client.went(REAL.len());
        };
        "a decoy beyond the window", Falls, |client| {
            client.shoot(Shot::data(client.next.wrapping_add(200_000), DECOY));
            client.shoot(Shot::data(client.next.wrapping_add(1 << 31), DECOY));
            real(client);
        };
        "a decoy before the window", Falls, |client| {
            client.shoot(Shot::data(client.next.wrapping_sub(6), DECOY));
            client.shoot(Shot::data(client.next.wrapping_sub(100_000), DECOY));
            real(client);
        };
        "a decoy without ACK", Falls, |client| {
            client.shoot(Shot::data(client.next, DECOY).flags(PSH));
            real(client);
        };
        "a decoy with an acknowledgement of nothing sent", Falls, |client| {
            client.ack = client.ack.wrapping_add(50_000);
            client.shoot(Shot::data(client.next, DECOY));
            client.ack = client.ack.wrapping_sub(50_000);
            real(client);
        };
        "a decoy with RST, dying", Any, |client| {
            client.shoot(Shot::data(client.next, DECOY).flags(RST | ACK).ttl(SHORT));
            real(client);
        };
        "a decoy with FIN, dying", Any, |client| {
            client.shoot(Shot::data(client.next, DECOY).flags(FIN | PSH | ACK).ttl(SHORT));
            real(client);
        };
        "a decoy with SYN", Any, |client| {
            client.shoot(Shot::data(client.next, DECOY).flags(SYN | PSH | ACK).ttl(SHORT));
            client.shoot(Shot::data(client.next, DECOY).flags(SYN).ttl(SHORT));
            real(client);
        };
        "an urgent byte that the server leaves out", Any, |client| {
            client.shoot(Shot { urgent: 3, ..Shot::data(client.next, b"NOXOP\r\n").flags(URG | PSH | ACK) });
            client.went(7);
        };
        "a RST, dying, then the session goes on", Any, |client| {
            client.shoot(Shot::data(client.next, b"").flags(RST).ttl(SHORT));
            real(client);
        };
    };
    Family {
        name: "Decoys from outside",
        topology: Topology::published_server_with_hops(),
        // All of them are to reach the gateway's own hooks.
        drop_invalid: false,
        gates: ONE,
        attacks,
    }
    .fight();
}

/// Somebody who doesn't see the session forges segments of its client: with
/// numbers from everywhere. The session goes on, and the gateway believes none of it.
fn forged(arena: &Arena) -> Result {
    let service = arena.service(USER, SECRET)?;
    let mut pair = arena.session()?;
    let topology = arena.net.topology();
    let (SocketAddr::V4(local), SocketAddr::V4(dial)) =
        (pair.client.stream.local_addr()?, topology.dial)
    else {
        return Err(Error::other("IPv4 only"));
    };
    let mut forger = Craft::new(arena.net, topology.client, local, dial);
    // Few enough that none is right by luck.
    for guess in 0..50_u32 {
        let seq = guess.wrapping_mul(85_899_345);
        forger.ack = seq.wrapping_mul(31);
        forger.shoot(Shot::data(seq, DECOY));
        forger.shoot(Shot::data(seq, b"").flags(RST));
        forger.shoot(Shot::data(seq, b"").flags(FIN | ACK));
        forger.shoot(Shot::data(seq, b"").flags(SYN));
    }
    pair.ask(
        "NOOP\r\n",
        "227 Entering Passive Mode (10,0,0,2,30,97).\r\n",
    )?;
    let reached = arena.reaches(OUTSIDER, SECRET, &service)?;
    Ok(falls(reached, "7777 reached"))
}

#[test]
fn resets_that_are_none() {
    macro_rules! attacks {
        ($($name:literal, $does:expr;)*) => {
            vec![$(attack($name, Helper::Any, |arena| survives(arena, $does)),)*]
        };
    }
    let mut attacks = attacks! {
        "cut off by a RST within the window", |client| {
            client.shoot(Shot::data(client.next.wrapping_add(10), b"").flags(RST).ttl(SHORT));
        };
        "cut off by a RST before the window", |client| {
            client.shoot(Shot::data(client.next.wrapping_sub(1000), b"").flags(RST));
        };
        "cut off by a RST with a wrong checksum", |client| {
            client.shoot(Shot::data(client.next, b"").flags(RST).wrong());
        };
        "cut off by a FIN with a wrong checksum", |client| {
            client.shoot(Shot::data(client.next, b"").flags(FIN | ACK).wrong());
        };
        "cut off by a FIN behind a gap", |client| {
            client.shoot(Shot::data(client.next.wrapping_add(20_000), b"").flags(FIN | ACK).ttl(SHORT));
        };
        "cut off by a forged SYN", |client| {
            client.shoot(Shot::data(client.next.wrapping_add(99), b"").flags(SYN).ttl(SHORT));
        };
        "cut off by data beyond the window", |client| {
            client.shoot(Shot::data(client.next.wrapping_add(30_000), DECOY).ttl(SHORT));
        };
    };
    attacks.push(attack(
        "200 forged segments with numbers at random",
        Helper::Any,
        forged,
    ));
    Family {
        name: "Sessions to be cut off",
        topology: Topology::published_server_with_hops(),
        // Without this, the gateway itself answers what conntrack finds INVALID, with a RST.
        drop_invalid: true,
        gates: ONE,
        attacks,
    }
    .fight();
}

/// A program inside wants a port of its machine opened that the gateway refuses to open, or a
/// neighbour's: the line that says so is hidden behind another.
fn smuggles(arena: &Arena, does: impl FnOnce(&mut Craft, &[u8], &[u8])) -> Result {
    let service = arena.service(USER, 22)?;
    let (mut client, mut server) = session(arena)?;
    let before = client.heard.len();
    does(
        &mut client,
        b"PORT 10,0,0,2,0,22\r\n",
        b"NOOP xxxxxxxxxxxxx\r\n",
    );
    let line = server.read().unwrap_or_default();
    server.stream.write_all(b"200 fine\r\n")?;
    drop(client.hear("200", before, LIMIT));
    client.say(b"LIST\r\n");
    drop(server.read());
    server.stream.write_all(b"150 here it comes\r\n")?;
    drop(client.hear("150", before, LIMIT));
    let reached = arena.reaches(OUTSIDER, 22, &service)?;
    if arena.gate != Gate::Kernel && line.starts_with("PORT") && line.contains("0,22") {
        return Ok(falls(true, &format!("the server read {line:?}")));
    }
    Ok(falls(reached, "10.0.0.2:22 reached"))
}

#[test]
fn decoys_from_inside() {
    macro_rules! attacks {
        ($($name:literal, $helper:ident, $does:expr;)*) => {
            vec![$(attack($name, Helper::$helper, |arena| smuggles(arena, $does)),)*]
        };
    }
    Family {
        name: "Decoys from inside",
        topology: Topology::masqueraded_client_with_hops(),
        drop_invalid: false,
        gates: ONE,
        attacks: attacks! {
            "PORT in a decoy that dies behind the gateway", Falls, |client, port, noop| {
                client.shoot(Shot::data(client.next, port).ttl(SHORT));
                client.shoot(Shot::data(client.next, noop));
                client.went(noop.len());
            };
            "PORT behind a decoy that dies", Falls, |client, port, noop| {
                client.shoot(Shot::data(client.next, noop).ttl(SHORT));
                client.shoot(Shot::data(client.next, port));
                client.went(noop.len());
            };
            "PORT with a wrong checksum", Any, |client, port, noop| {
                client.shoot(Shot::data(client.next, port).wrong());
                client.shoot(Shot::data(client.next, noop));
                client.went(noop.len());
            };
            "PORT behind a decoy with a wrong checksum", Falls, |client, port, noop| {
                client.shoot(Shot::data(client.next, noop).wrong());
                client.shoot(Shot::data(client.next, port));
                client.went(noop.len());
            };
            "PORT in an overlap", Falls, |client, port, noop| {
                client.shoot(Shot::data(client.next, &noop[..4]));
                client.shoot(Shot::data(client.next, port));
                client.went(noop.len());
            };
            "PORT behind a gap, twice", Any, |client, port, noop| {
                client.shoot(Shot::data(client.next.wrapping_add(4), &noop[4..]));
                client.shoot(Shot::data(client.next.wrapping_add(4), &port[4..]));
                client.shoot(Shot::data(client.next, &port[..4]));
                client.shoot(Shot::data(client.next, port));
                client.went(noop.len());
            };
            "PORT byte by byte, some of them decoys", Falls, |client, port, noop| {
                for (at, (byte, other)) in port.iter().zip(noop).enumerate() {
                    let seq = client.next.wrapping_add(u32::try_from(at).expect("short"));
                    if at % 2 == 0 {
                        client.shoot(Shot::data(seq, &[*other]).ttl(SHORT));
                    }
                    client.shoot(Shot::data(seq, &[*byte]));
                }
                client.shoot(Shot::data(client.next, port));
                client.went(noop.len());
            };
            "PORT in IP fragments", Falls, |client, port, _| {
                client.shoot_in_fragments(Shot::data(client.next, port), 24);
                client.went(port.len());
            };
            "PORT beyond the window", Any, |client, port, noop| {
                client.shoot(Shot::data(client.next.wrapping_add(300_000), port));
                client.shoot(Shot::data(client.next, noop));
                client.went(noop.len());
            };
        },
    }
    .fight();
}

/// A client outside wants the server inside to read a `PORT` with its neighbour's address: whatever the
/// server believes, it must not come by here.
fn hides(arena: &Arena, does: impl FnOnce(&mut Craft, &[u8], &[u8])) -> Result {
    let (mut client, mut server) = session(arena)?;
    let quiet = Duration::from_millis(150);
    server.stream.set_read_timeout(Some(quiet))?;
    let done = AtomicBool::new(false);
    let read = std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            loop {
                match server.read() {
                    Ok(line) if line.starts_with("PORT 10,0,0,3,0,22") => return Some(line),
                    Ok(_) => {}
                    Err(_) if done.load(Ordering::Relaxed) => return None,
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        let (port, noop) = (b"PORT 10,0,0,3,0,22\r\n", b"NOOP xxxxxxxxxxxxx\r\n");
        does(&mut client, port, noop);
        let deadline = Instant::now() + arena.attempt();
        while !reads.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Ordering::Relaxed);
        reads.join().expect("no panic")
    });
    let line = read.unwrap_or_default();
    Ok(falls(
        !line.is_empty(),
        &format!("the server read {:?}", line.trim_end()),
    ))
}

#[test]
fn a_bounce_hidden_from_the_gateway() {
    macro_rules! attacks {
        ($($name:literal, $helper:ident, $does:expr;)*) => {
            vec![$(attack($name, Helper::$helper, |arena| hides(arena, $does)),)*]
        };
    }
    Family {
        name: "A bounce hidden from the gateway, the server inside",
        topology: Topology::published_server_with_hops(),
        drop_invalid: false,
        gates: ONE,
        attacks: attacks! {
            "not hidden", Falls, |client, port, _| client.say(port);
            "behind a decoy that dies", Falls, |client, port, noop| {
                client.shoot(Shot::data(client.next, noop).ttl(SHORT));
                client.say(port);
            };
            "behind a decoy with a wrong checksum", Falls, |client, port, noop| {
                client.shoot(Shot::data(client.next, noop).wrong());
                client.say(port);
            };
            "in an overlap", Any, |client, port, noop| {
                client.shoot(Shot::data(client.next, &noop[..1]).ttl(SHORT));
                client.shoot(Shot::data(client.next, port));
                client.say(port);
            };
            "behind a gap, twice", Any, |client, port, noop| {
                client.shoot(Shot::data(client.next.wrapping_add(1), &noop[1..]));
                client.shoot(Shot::data(client.next.wrapping_add(1), &port[1..]));
                client.shoot(Shot::data(client.next, &port[..1]));
                client.say(port);
            };
            "behind a FIN that dies", Falls, |client, port, _| {
                client.shoot(Shot::data(client.next, b"").flags(FIN | ACK).ttl(SHORT));
                client.say(port);
            };
            "behind a FIN that dies, one byte further", Any, |client, port, _| {
                client.shoot(Shot::data(client.next.wrapping_add(1), b"").flags(FIN | ACK).ttl(SHORT));
                client.say(port);
                client.shoot(Shot::data(client.next.wrapping_sub(20), port));
            };
            "behind a RST that dies", Any, |client, port, _| {
                client.shoot(Shot::data(client.next, b"").flags(RST).ttl(SHORT));
                client.say(port);
            };
            // Longer than anybody remembers a session that ended, and less than conntrack keeps its entry.
            "seconds after a RST that dies", Any, |client, port, _| {
                client.shoot(Shot::data(client.next, b"").flags(RST).ttl(SHORT));
                thread::sleep(Duration::from_secs(4));
                client.say(port);
            };
            "behind a RST and an ACK that die", Any, |client, port, _| {
                client.shoot(Shot::data(client.next, b"").flags(RST | ACK).ttl(SHORT));
                client.shoot(Shot::data(client.next, b"").flags(ACK));
                client.say(port);
            };
            "behind a SYN that dies", Any, |client, port, _| {
                client.shoot(Shot::data(client.next.wrapping_sub(1), b"").flags(SYN).ttl(SHORT));
                client.say(port);
            };
            "behind an acknowledgement of nothing", Any, |client, port, _| {
                client.ack = client.ack.wrapping_add(100_000);
                client.shoot(Shot::data(client.next, b"").flags(ACK).ttl(SHORT));
                client.ack = client.ack.wrapping_sub(100_000);
                client.say(port);
            };
            "behind more than the gateway keeps", Any, |client, port, _| {
                let noops = |count| b"NOOP 6789012\r\n".repeat(count);
                // The server's window opens first, at its own pace.
                for _ in 0..40 {
                    for _ in 0..8 {
                        client.say(&noops(100));
                    }
                    let all = client.next;
                    let deadline = Instant::now() + Duration::from_millis(20);
                    drop(client.take(deadline, |packet| packet.ack == all));
                }
                for _ in 0..120 {
                    client.say(&noops(100));
                }
                client.say(port);
            };
            "behind 5 kB of a PORT without an end", Any, |client, port, _| {
                client.say(&[b"NOOP\r\nPORT 1".as_slice(), &[b'0'; 1300]].concat());
                for _ in 0..4 {
                    client.say(&[b'1'; 1300]);
                }
                client.say(b"\r\n");
                client.say(port);
            };
            "behind 2,000 segments ahead of a gap", Any, |client, port, _| {
                for number in 1..2000_u32 {
                    client.shoot(Shot::data(client.next.wrapping_add(number), b"x"));
                }
                client.say(port);
            };
            "byte by byte, from the last", Any, |client, port, _| {
                for (at, byte) in port.iter().enumerate().rev() {
                    let seq = client.next.wrapping_add(u32::try_from(at).expect("short"));
                    client.shoot(Shot::data(seq, &[*byte]));
                }
                client.say(port);
            };
            "in IP fragments", Falls, |client, port, _| {
                client.shoot_in_fragments(Shot::data(client.next, port), 24);
                client.went(port.len());
            };
            "in IP fragments of 8 bytes", Falls, |client, port, _| {
                client.shoot_in_fragments(Shot::data(client.next, port), 8);
                client.went(port.len());
            };
            "with urgent bytes", Any, |client, port, _| {
                client.shoot(Shot { urgent: 2, ..Shot::data(client.next, port).flags(URG | PSH | ACK) });
                client.went(port.len());
            };
        },
    }
    .fight();
}
