//! The FTP bounce (RFC 2577 §3): `PORT` and `EPRT` with an address that isn't the client's, or with a
//! port of a service.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::arena::{
    ALL, Arena, Family, Gate, Helper, NEIGHBOUR, ONE, Outcome, Result, SECRET, USER, arrived,
    attack, connect_from, falls,
};
use testkit::lab::topology::Topology;

/// Somebody's program inside is made to say this to a server outside that is in league with the
/// attacker, and tries to connect to the service.
fn opened(arena: &Arena, line: &str, victim: Ipv4Addr, port: u16) -> Result {
    let service = arena.service(victim, port)?;
    let mut pair = arena.session()?;
    let (read, _) = pair.ask(line, "200 fine\r\n")?;
    // Pipelined or not, the transfer command opens what is going to be open.
    pair.ask("LIST\r\n", "150 here it comes\r\n")?;
    let reached = arena.reaches(super::arena::OUTSIDER, port, &service)?;
    Ok(falls(
        reached,
        &format!("{victim}:{port} reached ({})", read.trim_end()),
    ))
}

/// A client outside says this to a server inside that connects to wherever it is told: whether the
/// server's neighbour gets a visitor.
fn bounced(arena: &Arena, line: &str, victim: Ipv4Addr, port: u16) -> Result {
    let service = arena.service(victim, port)?;
    let mut pair = arena.session()?;
    pair.client.send(line)?;
    let read = pair.server.read()?;
    let told = naive(&read);
    pair.say("200 fine\r\n")?;
    pair.ask("LIST\r\n", "150 here it comes\r\n")?;
    let connects = |(ip, port)| {
        let (from, to) = (SocketAddrV4::new(USER, 0), SocketAddrV4::new(ip, port));
        let limit = arena.attempt();
        arena
            .net
            .within(arena.inner(), || connect_from(from, to, limit))
            .is_ok()
    };
    Ok(falls(
        arrived(told.is_some_and(connects), &service)?,
        &format!("the server connected to {victim}:{port}"),
    ))
}

/// What a server reads that believes everything.
fn naive(line: &str) -> Option<(Ipv4Addr, u16)> {
    let (verb, argument) = line.trim_end().split_once(' ')?;
    if verb.eq_ignore_ascii_case("EPRT") {
        let mut fields = argument.split('|').skip(2);
        return Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?));
    }
    let numbers: Vec<u8> = argument
        .split(',')
        .map(|n| n.trim().parse().ok())
        .collect::<Option<_>>()?;
    match numbers[..] {
        [a, b, c, d, high, low] if verb.eq_ignore_ascii_case("PORT") => {
            Some((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
        }
        _ => None,
    }
}

macro_rules! attacks {
    ($how:ident: $($name:literal, $helper:ident, $line:literal, $victim:ident, $port:expr;)*) => {
        vec![$(attack($name, Helper::$helper, |arena| $how(arena, $line, $victim, $port)),)*]
    };
}

#[test]
fn a_foreign_or_service_address_from_inside() {
    Family {
        name: "FTP bounce, the client inside: its server outside connects",
        topology: Topology::masqueraded_client(),
        drop_invalid: true,
        gates: ALL,
        attacks: attacks! { opened:
            "PORT to another machine", Any, "PORT 10,0,0,3,30,97\r\n", NEIGHBOUR, SECRET;
            "EPRT to another machine", Any, "EPRT |1|10.0.0.3|7777|\r\n", NEIGHBOUR, SECRET;
            "PORT to the client's port 22", Falls, "PORT 10,0,0,2,0,22\r\n", USER, 22;
            "EPRT to the client's port 22", Falls, "EPRT |1|10.0.0.2|22|\r\n", USER, 22;
            "PORT to the client's port 3306", Falls, "PORT 10,0,0,2,12,234\r\n", USER, 3306;
            "PORT to the client's port 6000", Falls, "PORT 10,0,0,2,23,112\r\n", USER, 6000;
            "EPRT to the client's port 6000", Falls, "EPRT |1|10.0.0.2|6000|\r\n", USER, 6000;
        },
    }
    .fight();
}

#[test]
fn a_foreign_address_from_outside() {
    Family {
        name: "FTP bounce, the server inside: it connects to its neighbour",
        topology: Topology::published_server(),
        drop_invalid: true,
        gates: ONE,
        attacks: attacks! { bounced:
            "PORT to another machine's port 22", Falls, "PORT 10,0,0,3,0,22\r\n", NEIGHBOUR, 22;
            "EPRT to another machine's port 22", Falls, "EPRT |1|10.0.0.3|22|\r\n", NEIGHBOUR, 22;
            "PORT to another machine's port 7777", Falls, "PORT 10,0,0,3,30,97\r\n", NEIGHBOUR, SECRET;
            "PORT to the server's own port 7777", Falls, "PORT 10,0,0,2,30,97\r\n", USER, SECRET;
            "PORT to the server as the client knows it", Any, "PORT 203,0,113,1,30,97\r\n", USER, SECRET;
        },
    }
    .fight();
}

/// The server believes in nothing but its commands: before the login, refused, forgotten.
fn port_then(arena: &Arena, logged_in: bool, answer: &str, transfer: bool) -> Result {
    let service = arena.service(USER, SECRET)?;
    let mut pair = match logged_in {
        true => arena.session()?,
        false => {
            let mut pair = arena.pair()?;
            pair.say("220 ready\r\n")?;
            pair
        }
    };
    pair.ask("NOOP\r\n", "200 yes\r\n")?;
    pair.ask("PORT 10,0,0,2,30,97\r\n", answer)?;
    if transfer {
        pair.ask("LIST\r\n", "425 no\r\n")?;
    }
    let reached = arena.reaches(super::arena::OUTSIDER, SECRET, &service)?;
    if reached {
        return Ok(Outcome::Falls(format!("{USER}:{SECRET} reached")));
    }
    Ok(Outcome::Holds)
}

#[test]
fn a_port_that_nobody_granted() {
    Family {
        name: "PORT that doesn't count",
        topology: Topology::masqueraded_client(),
        drop_invalid: true,
        gates: ALL,
        attacks: vec![
            attack("PORT before the login", Helper::Falls, |arena| {
                port_then(arena, false, "530 log in first\r\n", true)
            }),
            attack("PORT before the login, granted", Helper::Falls, |arena| {
                port_then(arena, false, "200 fine\r\n", true)
            }),
            attack("PORT refused by the server", Helper::Falls, |arena| {
                port_then(arena, true, "500 no\r\n", true)
            }),
            attack(
                "PORT granted, another way taken",
                Helper::Falls,
                port_then_pasv,
            ),
        ],
    }
    .fight();
}

/// The client goes on without a transfer.
fn port_then_pasv(arena: &Arena) -> Result {
    let service = arena.service(USER, SECRET)?;
    let mut pair = arena.session()?;
    pair.ask("PORT 10,0,0,2,30,97\r\n", "200 fine\r\n")?;
    pair.ask("PASV\r\n", "502 no\r\n")?;
    let reached = arena.reaches(super::arena::OUTSIDER, SECRET, &service)?;
    Ok(super::arena::falls(reached, "10.0.0.2:7777 reached"))
}

/// By default the port opens as the `PORT` passes, since there are servers that connect then.
#[test]
fn a_port_without_a_transfer() {
    Family {
        name: "PORT without a transfer",
        topology: Topology::masqueraded_client(),
        drop_invalid: true,
        gates: &[Gate::Kernel, Gate::ActiveLate],
        attacks: vec![attack(
            "PORT granted, no transfer commanded",
            Helper::Falls,
            |arena| port_then(arena, true, "200 fine\r\n", false),
        )],
    }
    .fight();
}
