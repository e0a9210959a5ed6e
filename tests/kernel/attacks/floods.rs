//! Floods of connections: the gateway's memory is bounded, and others are served.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::arena::{Arena, Family, Gate, Helper, OUTSIDER, Result, USER, attack, bounded, falls};
use super::pinhole::{memory, others_work};
use testkit::lab::craft::{ACK, Craft, SYN, Shot};
use testkit::lab::scripted::Verb;
use testkit::lab::topology::Topology;

/// More than an engine's tables hold.
const SYNS: u32 = 100_000;
/// What tables may take that are full, in KiB.
const FULL: u64 = 64 * 1024;
/// Sessions whose pinholes together, four each, are twice as many as a client may have.
const SESSIONS: u16 = 256;
/// What a client may have.
const PER_CLIENT: usize = 512;

/// Segments from everywhere that nobody follows up.
fn half_open(arena: &Arena, flags: u8) -> Result {
    let before = memory(arena);
    let dial = SocketAddrV4::new(arena.public, 21);
    let local = SocketAddrV4::new(OUTSIDER, 2);
    let mut sender = Craft::new(arena.net, arena.outer(), local, dial);
    for number in 0..SYNS {
        let host = u8::try_from(16 + number % 200).expect("a byte");
        let port = u16::try_from(1024 + number / 200).expect("a port");
        sender.local = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, host), port);
        sender.shoot(Shot::data(number.wrapping_mul(2_654_435_761), b"").flags(flags));
        if number % 25_000 == 0 {
            others_work(arena)?;
        }
    }
    others_work(arena)?;
    let grown = memory(arena).saturating_sub(before);
    Ok(bounded(grown, FULL, "KiB more"))
}

/// One client with very many sessions, each with as many pinholes as it may have.
fn greedy(arena: &Arena) -> Result {
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (_, most) = nix::sys::resource::getrlimit(limit)?;
    nix::sys::resource::setrlimit(limit, most, most)?;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let mut pair = arena.session()?;
        for hole in 0..4 {
            let at = (USER, 20_000 + number * 4 + hole).into();
            // Beyond the limit, another reply comes in its place.
            pair.ask("PASV\r\n", &Verb::Pasv.line(at))?;
        }
        sessions.push(pair);
    }
    let waiting = arena.holes().len();
    if waiting < PER_CLIENT {
        let why = format!("only {waiting} pinholes wait");
        return Err(std::io::Error::other(why));
    }
    others_work(arena)?;
    Ok(falls(
        waiting > PER_CLIENT,
        &format!("{waiting} pinholes wait"),
    ))
}

#[test]
fn floods_of_connections() {
    use Helper::Any;
    Family {
        name: "Floods of connections",
        topology: Topology::published_server(),
        drop_invalid: true,
        gates: &[Gate::Nft],
        attacks: vec![
            attack("100,000 SYNs from everywhere", Any, |arena| {
                half_open(arena, SYN)
            }),
            attack("100,000 segments of no connection", Any, |arena| {
                half_open(arena, ACK)
            }),
            attack("all pinholes for one client", Any, greedy),
        ],
    }
    .fight();
}
