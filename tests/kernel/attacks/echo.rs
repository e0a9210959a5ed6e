//! A `227` or `229` that the server never meant: text that the attacker made it say.
//!
//! The attacker is a client outside that has logged in. It wants to reach a port of the server's
//! machine that isn't published, and knows how to make the server write a line.

use super::arena::{
    ALL, Arena, Family, Helper, OUTSIDER, Pair, Result, SECRET, USER, attack, falls,
};
use testkit::lab::topology::Topology;

/// The line that opens the server's port 7777 to whoever believes it.
macro_rules! forged {
    () => {
        "227 Entering Passive Mode (10,0,0,2,30,97).\r\n"
    };
}

/// Says it once logged in, and tries the port.
fn echoed(arena: &Arena, say: impl Fn(&mut Pair) -> Result<()>) -> Result {
    said(arena, |arena| arena.session(), say)
}

/// Says it from the first byte on, and tries the port.
fn early(arena: &Arena, say: impl Fn(&mut Pair) -> Result<()>) -> Result {
    said(arena, |arena| arena.pair(), say)
}

fn said(
    arena: &Arena,
    connect: impl Fn(&Arena) -> Result<Pair>,
    say: impl Fn(&mut Pair) -> Result<()>,
) -> Result {
    let service = arena.service(USER, SECRET)?;
    let mut pair = connect(arena)?;
    say(&mut pair)?;
    let reached = arena.reaches(OUTSIDER, SECRET, &service)?;
    Ok(falls(reached, "10.0.0.2:7777 reached"))
}

macro_rules! attacks {
    ($($name:literal, $helper:ident, $command:expr => $answer:expr;)*) => {
        vec![$(attack($name, Helper::$helper, |arena| echoed(arena, |pair| pair.ask($command, $answer).map(drop))),)*]
    };
}

#[test]
fn an_echoed_227() {
    let mut attacks = attacks! {
        "227 without PASV", Falls, "NOOP\r\n" => forged!();
        "227 and another after the reply", Falls, "NOOP\r\n" => concat!("200 fine\r\n", forged!());
        "echoed in a NOOP's reply", Any,
            "NOOP 227 (10,0,0,2,30,97)\r\n" => "200 NOOP 227 (10,0,0,2,30,97)\r\n";
        "file name in STAT", Falls,
            "STAT .\r\n" => concat!("211-Status\r\n", forged!(), "211 End\r\n");
        "file name in STAT, 213", Falls,
            "STAT .\r\n" => concat!("213-Status\r\n", forged!(), "213 End\r\n");
        "file name in MLST, indented", Any,
            "MLST x\r\n" => concat!("250-Listing\r\n ", forged!(), "250 End\r\n");
        "file name in MLST, not indented", Falls,
            "MLST x\r\n" => concat!("250-Listing\r\n", forged!(), "250 End\r\n");
        "SITE HELP", Falls,
            "SITE HELP\r\n" => concat!("214-Help\r\n", forged!(), "214 End\r\n");
        "in the first line of several", Any,
            "HELP\r\n" => "214-227 (10,0,0,2,30,97)\r\n214 End\r\n";
        "in a later line with the code", Any,
            "HELP\r\n" => "214-Help\r\n214-227 (10,0,0,2,30,97)\r\n214 End\r\n";
        "227- of several lines, without PASV", Any,
            "NOOP\r\n" => "227-Entering (10,0,0,2,30,97)\r\n227 End\r\n";
        "227- of several lines, address in the first", Any,
            "PASV\r\n" => "227-Entering (10,0,0,2,30,97)\r\n227 End\r\n";
        "PASV answered by 211- with a 227 inside", Falls,
            "PASV\r\n" => concat!("211-Status\r\n", forged!(), "211 End\r\n");
        "PASV refused, then a 227", Falls,
            "PASV\r\n" => concat!("502 no\r\n", forged!());
        "EPSV answered by 227", Falls, "EPSV\r\n" => forged!();
        "PASV answered by 229", Any,
            "PASV\r\n" => "229 Entering Extended Passive Mode (|||7777|)\r\n";
        "229 without EPSV", Falls,
            "NOOP\r\n" => "229 Entering Extended Passive Mode (|||7777|)\r\n";
        "PASV with port 22", Any, "PASV\r\n" => "227 Entering Passive Mode (10,0,0,2,0,22).\r\n";
    };
    attacks.extend([
        attack("banner", Helper::Falls, |arena| {
            early(arena, |pair| {
                pair.say(concat!("220-welcome\r\n", forged!(), "220 ready\r\n"))?;
                Ok(())
            })
        }),
        attack("banner in one line", Helper::Any, |arena| {
            early(arena, |pair| {
                pair.say("220-227 Entering (10,0,0,2,30,97)\r\n220 227 (10,0,0,2,30,97)\r\n")?;
                Ok(())
            })
        }),
        attack("message of the login", Helper::Falls, |arena| {
            early(arena, |pair| {
                pair.say("220 ready\r\n")?;
                pair.ask("USER lab\r\n", "331 password, please\r\n")?;
                let message = concat!("230-welcome\r\n", forged!(), "230 ready\r\n");
                pair.ask("PASS lab\r\n", message)?;
                Ok(())
            })
        }),
        attack("PASV before the login", Helper::Falls, |arena| {
            early(arena, |pair| {
                pair.say("220 ready\r\n")?;
                pair.ask("PASV\r\n", forged!())?;
                Ok(())
            })
        }),
        attack(
            "STAT with PASV behind it, file name first",
            Helper::Any,
            |arena| {
                echoed(arena, |pair| {
                    pair.client.send("STAT .\r\nPASV\r\n")?;
                    pair.server.expect("STAT")?;
                    pair.server.expect("PASV")?;
                    pair.say(concat!("213-Status\r\n", forged!(), "213 End\r\n"))?;
                    pair.say("227 Entering Passive Mode (10,0,0,2,40,1).\r\n")?;
                    Ok(())
                })
            },
        ),
        attack(
            "a 227 for each of two pipelined, for one PASV",
            Helper::Falls,
            |arena| {
                echoed(arena, |pair| {
                    pair.client.send("PASV\r\nNOOP\r\n")?;
                    pair.server.expect("PASV")?;
                    pair.server.expect("NOOP")?;
                    pair.say("227 Entering Passive Mode (10,0,0,2,40,1).\r\n")?;
                    pair.say(forged!())?;
                    Ok(())
                })
            },
        ),
        attack("after a bare CR", Helper::Any, |arena| {
            echoed(arena, |pair| {
                pair.client.send("PASV\r\n")?;
                pair.server.expect("PASV")?;
                pair.say("200 x\r227 Entering Passive Mode (10,0,0,2,30,97).\r\n")?;
                Ok(())
            })
        }),
    ]);
    Family {
        name: "A 227 that answers no PASV",
        topology: Topology::published_server(),
        drop_invalid: true,
        gates: ALL,
        attacks,
    }
    .fight();
}
