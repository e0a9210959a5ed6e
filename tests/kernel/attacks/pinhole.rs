//! Pinholes in the wrong hands: used twice, by others, too late, by many at once; and too many of them.

use std::io::Error;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::arena::{
    ALL, Arena, Family, Gate, Helper, ONE, OUTSIDER, Outcome, PATIENCE, Pair, Result, SECRET,
    STRANGER, USER, arrived, attack, bounded, connect_from, falls,
};
use testkit::lab::scripted::{self, Verb};
use testkit::lab::topology::Topology;

/// A session with a listening server, and where its client was told to connect to.
fn offered(arena: &Arena) -> Result<(Pair, TcpListener, SocketAddrV4)> {
    let mut pair = arena.session()?;
    let (listener, to) = offer(arena, &mut pair, 0)?;
    Ok((pair, listener, to))
}

/// The server announces a listener with this port (0: any).
fn offer(arena: &Arena, pair: &mut Pair, port: u16) -> Result<(TcpListener, SocketAddrV4)> {
    let listener = arena.service(USER, port)?;
    let at = listener.local_addr()?;
    let (_, read) = pair.ask("PASV\r\n", &Verb::Pasv.line(at))?;
    match Verb::Pasv.address(&read, at.ip())? {
        SocketAddr::V4(to) => Ok((listener, to)),
        SocketAddr::V6(_) => Err(Error::other("IPv4 only")),
    }
}

/// Connects, and takes the connection off the listener.
fn gets_in(
    arena: &Arena,
    from: Ipv4Addr,
    to: SocketAddrV4,
    listener: &TcpListener,
    limit: Duration,
) -> Result<bool> {
    let from = SocketAddrV4::new(from, 0);
    let stream = arena
        .net
        .within(arena.outer(), || connect_from(from, to, limit));
    arrived(stream.is_ok(), listener)
}

/// What this is about works at all.
fn must_get_in(arena: &Arena, to: SocketAddrV4, listener: &TcpListener) -> Result<()> {
    match gets_in(arena, OUTSIDER, to, listener, arena.patience())? {
        true => Ok(()),
        false => Err(Error::other("the client itself doesn't get in")),
    }
}

/// Whether a session that has nothing to do with it works.
pub fn others_work(arena: &Arena) -> Result<()> {
    let mut pair = arena.pair_from(SocketAddrV4::new(STRANGER, 0))?;
    pair.log_in()?;
    let (listener, to) = offer(arena, &mut pair, 0)?;
    match gets_in(arena, STRANGER, to, &listener, arena.patience())? {
        true => Ok(()),
        false => Err(Error::other("another client isn't served")),
    }
}

/// Waits until `ftpalg` knows of no hole any more; false if that takes too long.
fn no_holes(arena: &Arena) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !arena.holes().is_empty() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

fn twice(arena: &Arena) -> Result {
    let (_pair, listener, to) = offered(arena)?;
    must_get_in(arena, to, &listener)?;
    closed(arena, to, &listener, "a second connection")
}

/// Whether a hole is closed; with the iptables backend, it is within a moment.
fn closed(arena: &Arena, to: SocketAddrV4, listener: &TcpListener, else_: &str) -> Result {
    let start = Instant::now();
    if !gets_in(arena, OUTSIDER, to, listener, arena.attempt())? {
        return Ok(Outcome::Holds);
    }
    while arena.gate == Gate::Iptables && start.elapsed() < PATIENCE {
        let tried = start.elapsed();
        if !gets_in(arena, OUTSIDER, to, listener, arena.attempt())? {
            return Ok(Outcome::Nearly(format!("{else_} within {tried:?}")));
        }
    }
    Ok(Outcome::Falls(else_.to_owned()))
}

fn somebody_else(arena: &Arena) -> Result {
    let (_pair, listener, to) = offered(arena)?;
    if gets_in(arena, STRANGER, to, &listener, arena.attempt())? {
        return Ok(Outcome::Falls("another address got in".to_owned()));
    }
    must_get_in(arena, to, &listener)?;
    Ok(Outcome::Holds)
}

fn after_the_end(arena: &Arena, reset: bool) -> Result {
    let (mut pair, listener, to) = offered(arena)?;
    if reset {
        scripted::reset(pair.client)?;
        // The server learns of it once it has passed the gateway.
        drop(pair.server.read());
    } else {
        pair.ask("QUIT\r\n", "221 bye\r\n")?;
        pair.server.stream.shutdown(std::net::Shutdown::Write)?;
        drop(pair.client.read());
        pair.client.stream.shutdown(std::net::Shutdown::Write)?;
        drop(pair.server.read());
    }
    if !no_holes(arena) {
        return Ok(Outcome::Falls("the pinhole is still there".to_owned()));
    }
    closed(arena, to, &listener, "a connection after the session")
}

/// Eight at once: with the limit on map elements that nft has, one gets in. Without it, those do
/// that come before the first one's event.
fn eight_at_once(arena: &Arena) -> Result {
    let (_pair, listener, to) = offered(arena)?;
    let barrier = Barrier::new(8);
    let connected = AtomicUsize::new(0);
    arena.net.within(arena.outer(), || {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    let from = SocketAddrV4::new(OUTSIDER, 0);
                    if connect_from(from, to, arena.patience()).is_ok() {
                        connected.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
    });
    let connected = connected.into_inner();
    let mut visitors = 0;
    while arrived(visitors < connected, &listener)? {
        visitors += 1;
    }
    let late = matches!(
        closed(arena, to, &listener, "another one")?,
        Outcome::Falls(_)
    );
    match (arena.gate, visitors) {
        (_, 0) => Err(Error::other("nobody got in")),
        (Gate::Nft, 2..) => Ok(Outcome::Falls(format!("{visitors} got in"))),
        (Gate::Iptables, 2..) if !late => Ok(Outcome::Nearly(format!("{visitors} got in"))),
        _ => Ok(falls(late, "open after all")),
    }
}

/// The holes of one session, and of many, don't keep others from theirs.
fn one_session_takes_all(arena: &Arena) -> Result {
    let mut pair = arena.session()?;
    for port in 20_001..20_100_u16 {
        pair.ask("PASV\r\n", &Verb::Pasv.line((USER, port).into()))?;
    }
    let waiting = arena.holes().len();
    others_work(arena)?;
    Ok(falls(waiting > 4, &format!("{waiting} wait")))
}

/// Ten thousand commands in one piece. Their replies may come as they like.
fn flood_of_pasv(arena: &Arena) -> Result {
    const COUNT: usize = 10_000;
    let before = memory(arena);
    let mut pair = arena.session()?;
    let mut client = pair.client.stream.try_clone()?;
    let commands = "PASV\r\n".repeat(COUNT);
    let sends =
        std::thread::spawn(move || std::io::Write::write_all(&mut client, commands.as_bytes()));
    let replies = std::thread::scope(|scope| {
        let server = &mut pair.server;
        let serves = scope.spawn(move || {
            for number in 0..COUNT {
                server.expect("PASV")?;
                let port = u16::try_from(20_000 + number % 10_000).expect("a port");
                server.send(&Verb::Pasv.line((USER, port).into()))?;
            }
            Ok::<_, Error>(())
        });
        let mut replies = 0;
        while replies < COUNT && pair.client.expect("227").is_ok() {
            replies += 1;
        }
        serves.join().expect("no panic")?;
        Ok::<_, Error>(replies)
    })?;
    sends.join().expect("no panic")?;
    if replies < COUNT {
        return Err(Error::other(format!("{replies} replies came")));
    }
    let waiting = arena.holes().len();
    others_work(arena)?;
    let grown = memory(arena).saturating_sub(before);
    if waiting > 4 {
        return Ok(Outcome::Falls(format!("{waiting} wait")));
    }
    Ok(bounded(grown, 32 * 1024, "KiB more"))
}

/// A line that never ends.
fn long_line(arena: &Arena, beginning: &str) -> Result {
    const LENGTH: usize = 1 << 20;
    let before = memory(arena);
    let mut pair = arena.session()?;
    let mut client = pair.client.stream.try_clone()?;
    let text = beginning.to_owned() + &"1".repeat(LENGTH);
    let expected = text.len();
    let sends = std::thread::spawn(move || std::io::Write::write_all(&mut client, text.as_bytes()));
    let mut got = 0;
    let mut buffer = vec![0; 65_536];
    while got < expected {
        match std::io::Read::read(&mut pair.server.stream, &mut buffer)? {
            0 => break,
            n => got += n,
        }
    }
    sends.join().expect("no panic")?;
    others_work(arena)?;
    let grown = memory(arena).saturating_sub(before);
    Ok(bounded(grown, 16 * 1024, "KiB more"))
}

/// A reply of 100,000 lines, as from a recursive `STAT`: what waits on the way doesn't stop it.
fn long_reply(arena: &Arena) -> Result {
    let before = memory(arena);
    let mut pair = arena.session()?;
    pair.client.send("STAT -R\r\n")?;
    pair.server.expect("STAT")?;
    let line = "-rw-r--r-- 1 lab lab 10000 Jan 01 12:00 227 (10,0,0,2,30,97)\r\n";
    let text = format!("211-Status\r\n{}211 End\r\n", line.repeat(100_000));
    let length = text.len();
    let mut server = pair.server.stream.try_clone()?;
    let sends = std::thread::spawn(move || std::io::Write::write_all(&mut server, text.as_bytes()));
    let start = Instant::now();
    let mut got = 0;
    let mut buffer = vec![0; 65_536];
    while got < length {
        match std::io::Read::read(&mut pair.client.stream, &mut buffer)? {
            0 => break,
            n => got += n,
        }
    }
    sends.join().expect("no panic")?;
    let took = start.elapsed();
    // The session goes on.
    pair.ask("NOOP\r\n", "200 fine\r\n")?;
    let grown = memory(arena).saturating_sub(before);
    match bounded(grown, 16 * 1024, "KiB more") {
        Outcome::Measured(what) => Ok(Outcome::Measured(format!(
            "{what}, {} KiB in {took:.1?}",
            length / 1024
        ))),
        other => Ok(other),
    }
}

/// The resident memory of `ftpalg`, in KiB.
pub fn memory(arena: &Arena) -> u64 {
    let Some(pid) = arena.pid() else { return 0 };
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .expect("its memory")
}

/// A new session between the same ports as an old one that was logged in, and had asked: it begins
/// anew.
fn same_ports_again(arena: &Arena, reset: bool) -> Result {
    let from = SocketAddrV4::new(OUTSIDER, if reset { 33_001 } else { 33_002 });
    let service = arena.service(USER, SECRET)?;
    let mut pair = arena.pair_from(from)?;
    pair.log_in()?;
    pair.client.send("PASV\r\n")?;
    pair.server.expect("PASV")?;
    if reset {
        scripted::reset(pair.client)?;
        drop(pair.server.read());
        drop(pair.server);
    } else {
        // The server's end keeps the time: the client's ports are free at once.
        pair.server.stream.shutdown(std::net::Shutdown::Write)?;
        drop(pair.client.read());
        drop(pair.client);
        drop(pair.server.read());
        drop(pair.server);
    }
    let mut pair = arena.pair_from(from)?;
    pair.say("220 ready\r\n")?;
    pair.ask(
        "NOOP\r\n",
        "227 Entering Passive Mode (10,0,0,2,30,97).\r\n",
    )?;
    let reached = arena.reaches(OUTSIDER, SECRET, &service)?;
    Ok(falls(reached, "10.0.0.2:7777 reached"))
}

#[test]
fn a_pinhole_in_the_wrong_hands() {
    use Helper::{Any, Falls};
    Family {
        name: "A pinhole in the wrong hands",
        topology: Topology::published_server(),
        drop_invalid: true,
        gates: ALL,
        attacks: vec![
            attack("a second use", Any, twice),
            attack("a use from another address", Any, somebody_else),
            attack("a use after the session ended", Falls, |arena| {
                after_the_end(arena, false)
            }),
            attack("a use after the session was reset", Falls, |arena| {
                after_the_end(arena, true)
            }),
            attack("eight connections at once", Any, eight_at_once),
            attack("the ports of an old session, reset", Falls, |arena| {
                same_ports_again(arena, true)
            }),
            attack("the ports of an old session, closed", Falls, |arena| {
                same_ports_again(arena, false)
            }),
        ],
    }
    .fight();
}

#[test]
fn exhaustion() {
    use Helper::Any;
    Family {
        name: "Exhaustion",
        topology: Topology::published_server(),
        drop_invalid: true,
        gates: ONE,
        attacks: vec![
            attack("99 pinholes for one session", Any, one_session_takes_all),
            attack("10,000 PASV at once", Any, flood_of_pasv),
            attack("a command of 1 MiB", Any, |arena| long_line(arena, "NOOP ")),
            attack("a reply of 100,000 lines", Any, long_reply),
            attack("a PORT of 1 MiB", Any, |arena| {
                long_line(arena, "PORT 10,0,0,2,")
            }),
        ],
    }
    .fight();
}
