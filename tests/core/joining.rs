//! Control connections that are joined in their middle: another process goes on where one ended.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ftpalg::engine::{Config, Engine};
use testkit::gateway::{MARKS, entry};
use testkit::packet::{ACK, FIN, SYN, Seg, data, syn};
use testkit::trace::{
    CLIENT_PORT, Client, INSIDE, NEW, OLD, Out, Server, Trace, Who, ack, flagged,
};

/// Of as many digits as the server's own address.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(20, 9, 8, 7);
/// How clients read the server's address.
const READ: &str = "20,9,8,7,195,80";

const DIALOGUE: [(Who, &str); 10] = [
    (Server, "220 Hello\r\n"),
    (Client, "USER lab\r\n"),
    (Server, "331 Password?\r\n"),
    (Client, "PASS lab\r\n"),
    (Server, "230-Welcome\r\n"),
    (Server, "230 Done\r\n"),
    (Client, "NOOP\r\n"),
    (Server, "200 Fine\r\n"),
    (Client, "CWD PASV\r\n"),
    (Server, "250 Fine\r\n"),
];

fn config() -> Config {
    Config {
        marks: Some(MARKS),
        ..Config::default()
    }
}

/// A conversation with the positions of client and server.
struct Talk {
    trace: Trace,
    at: [u32; 2],
}

impl Talk {
    fn new(config: Config) -> Self {
        Self::published_as(config, PUBLIC)
    }

    fn published_as(config: Config, public: Ipv4Addr) -> Self {
        let mut trace = Trace::unborn(config, [1000, 5000]);
        *trace.world.entry() = entry(true, INSIDE, public, CLIENT_PORT);
        assert_eq!(trace.send(Client, syn(SYN)), Out::Same);
        assert_eq!(trace.send(Server, syn(SYN | ACK)), Out::Same);
        Self { trace, at: [0, 0] }
    }

    /// One of them sends a line; what arrives of it.
    fn say(&mut self, who: Who, text: &str) -> String {
        let seg = data(self.at[who as usize], self.at[1 - who as usize], text);
        self.at[who as usize] += text.len() as u32;
        match self.trace.send(who, seg.clone()) {
            Out::Same => text.to_owned(),
            Out::Became(new) => {
                let as_before = Seg {
                    payload: seg.payload,
                    ..new.clone()
                };
                let expected = data(seg.seq, seg.ack, text);
                assert_eq!(as_before, expected, "only the text changes");
                assert_eq!(new.payload.len(), text.len(), "and not in length");
                String::from_utf8(new.payload).unwrap()
            }
            Out::Dropped => panic!("dropped: {text}"),
        }
    }

    /// The process ends, and another one begins.
    fn restart(&mut self) {
        self.restart_with(config());
    }

    fn restart_with(&mut self, config: Config) {
        self.trace.engine = Engine::new(config, 0);
        self.trace.world.opened.clear();
    }

    /// Whether a `PASV` is followed.
    fn is_followed(&mut self) -> bool {
        let opened = self.trace.world.opened.len();
        assert_eq!(self.say(Client, "PASV\r\n"), "PASV\r\n");
        let reply = format!("227 Entering Passive Mode ({OLD}).\r\n");
        let read = self.say(Server, &reply);
        let opens = self.trace.world.opened.len() - opened;
        let followed = read.contains(READ);
        assert_eq!(opens, usize::from(followed));
        assert!(followed || read == reply, "{read}");
        followed
    }

    fn marked(&mut self) -> bool {
        self.trace.world.entry().mark & MARKS.even != 0
    }
}

#[test]
fn a_session_goes_on_after_an_end_between_any_two_lines() {
    for end in 1..=DIALOGUE.len() {
        let mut talk = Talk::new(config());
        for (at, (who, text)) in DIALOGUE.into_iter().enumerate() {
            if at == end {
                talk.restart();
            }
            assert_eq!(talk.say(who, text), text);
        }
        if end == DIALOGUE.len() {
            talk.restart();
        }
        assert!(talk.is_followed(), "after {end} lines");
        assert!(talk.is_followed(), "after {end} lines, once more");
        assert_eq!(talk.trace.engine.stats().joined, 1);
        assert_eq!(talk.trace.engine.stats().mid_stream, 0);
        assert!(talk.marked());
    }
}

/// Either end may be the first one to speak, or both only acknowledge.
#[test]
fn whoever_speaks_first() {
    for first in 0..4 {
        let mut talk = Talk::new(config());
        for (who, text) in DIALOGUE {
            talk.say(who, text);
        }
        talk.restart();
        let [c, s] = talk.at;
        match first {
            0 => assert_eq!(talk.trace.send(Client, ack(c, s)), Out::Same),
            1 => assert_eq!(talk.trace.send(Server, ack(s, c)), Out::Same),
            // A keep-alive, and a repetition.
            2 => assert_eq!(talk.trace.send(Server, ack(s - 1, c)), Out::Same),
            _ => {
                let again = data(s - 10, c, "250 Fine\r\n");
                assert_eq!(talk.trace.send(Server, again), Out::Same);
            }
        }
        assert!(talk.is_followed(), "{first}");
    }
}

/// The process ends with a packet in its hands. What the successor sees first are acknowledgements: the
/// numbers of their senders are ahead of what has to be sent again.
#[test]
fn what_got_lost_with_the_process_is_sent_again() {
    let reply = format!("227 Entering Passive Mode ({OLD}).\r\n");
    for by_client in [false, true] {
        let mut talk = Talk::new(config());
        for (who, text) in DIALOGUE {
            talk.say(who, text);
        }
        let [c, s] = talk.at;
        if by_client {
            // The command got lost. The server repeats its last reply, and the client acknowledges it.
            talk.restart();
            let again = data(s - 10, c, "250 Fine\r\n");
            assert_eq!(talk.trace.send(Server, again), Out::Same);
            assert_eq!(talk.trace.send(Client, ack(c + 6, s)), Out::Same);
            assert!(talk.is_followed());
        } else {
            // The reply got lost. The client repeats its command, and the server acknowledges it.
            talk.say(Client, "PASV\r\n");
            talk.restart();
            assert_eq!(talk.trace.send(Client, data(c, s, "PASV\r\n")), Out::Same);
            let behind = s + reply.len() as u32;
            assert_eq!(talk.trace.send(Server, ack(behind, c + 6)), Out::Same);
            assert!(talk.say(Server, &reply).contains(READ));
            assert!(talk.is_followed());
        }
        // And once more, with the acknowledgement as the very first.
        talk.restart();
        let [c, s] = talk.at;
        assert_eq!(talk.trace.send(Client, ack(c + 6, s)), Out::Same);
        assert!(talk.is_followed());
        talk.say(Client, "PASV\r\n");
        talk.restart();
        let [c, s] = talk.at;
        let behind = s + reply.len() as u32;
        assert_eq!(talk.trace.send(Server, ack(behind, c)), Out::Same);
        assert!(talk.say(Server, &reply).contains(READ));
    }
}

/// The process ends with a `PORT` in its hands, which acknowledges the last reply, too. So the server sends
/// that one again, and it comes behind the `PORT`, which it doesn't answer.
#[test]
fn an_old_reply_that_comes_again_answers_nothing() {
    let old = "500 What?\r\n";
    let granted = "200 Fine\r\n";
    let port = "PORT 198,51,100,7,200,1\r\n";
    // How much of the old reply comes again, and whether what follows it comes with it.
    for (from, together) in [(0, false), (4, false), (old.len(), true), (4, true)] {
        // Whether a bare acknowledgement is seen first, and whose.
        for first in [None, Some(Client), Some(Server)] {
            let mut talk = Talk::new(config());
            for (who, text) in DIALOGUE {
                talk.say(who, text);
            }
            talk.say(Client, "HUH\r\n");
            talk.say(Server, old);
            let [c, s] = talk.at;
            talk.restart();
            match first {
                Some(Client) => assert_eq!(talk.trace.send(Client, ack(c, s)), Out::Same),
                Some(Server) => assert_eq!(talk.trace.send(Server, ack(s, c)), Out::Same),
                None => {}
            }
            assert_eq!(talk.say(Client, port), port);
            assert_eq!(talk.trace.world.opened.len(), 1);
            let again = s - (old.len() - from) as u32;
            if together {
                let both = format!("{}{granted}", &old[from..]);
                let seg = data(again, c + port.len() as u32, &both);
                assert_eq!(talk.trace.send(Server, seg), Out::Same);
                talk.at[1] += granted.len() as u32;
            } else {
                let seg = data(again, c, &old[from..]);
                assert_eq!(talk.trace.send(Server, seg), Out::Same);
                talk.say(Server, granted);
            }
            talk.say(Client, "LIST\r\n");
            assert_eq!(talk.trace.world.released, 0, "{from} {together} {first:?}");
            talk.say(Server, "226 Done\r\n");
            assert!(talk.is_followed());
        }
    }
}

/// The process ends when the command has gone on, and the reply comes to its successor.
#[test]
fn replies_before_any_command_may_answer_what_was_not_seen() {
    for before in ["", "200 Fine\r\n"] {
        let mut talk = Talk::new(config());
        for (who, text) in DIALOGUE {
            talk.say(who, text);
        }
        talk.say(Client, "PASV\r\n");
        talk.restart();
        if !before.is_empty() {
            talk.say(Server, before);
        }
        let reply = format!("227 Entering Passive Mode ({OLD}).\r\n");
        assert!(talk.say(Server, &reply).contains(READ));
        assert_eq!(talk.trace.world.opened.len(), 1);
        assert!(talk.is_followed(), "the next one does");
    }
}

#[test]
fn a_reply_that_nobody_asked_for_opens_nothing() {
    let mut talk = Talk::new(config());
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    talk.restart();
    talk.say(Client, "NOOP\r\n");
    let reply = format!("227 Entering Passive Mode ({OLD}).\r\n");
    assert_eq!(talk.say(Server, &reply), reply);
    assert_eq!(talk.trace.world.opened.len(), 0);
}

#[test]
fn the_rest_of_a_line_is_none() {
    let mut talk = Talk::new(config());
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    talk.say(Server, "211-Text\r\n ");
    talk.restart();
    // In the middle of a line and of a reply.
    talk.say(Server, "and (10,0,0,2,1,1)\r\n");
    talk.say(Server, "211 End\r\n");
    assert!(talk.is_followed());
    assert_eq!(talk.trace.world.opened.len(), 1);
}

/// The last packet of a connection may come to the next process, and nothing after it.
#[test]
fn what_may_have_ended_unseen_is_asked_after() {
    let minute = Duration::from_secs(60);
    // From its beginning on; with one FIN; joined; joined, and it goes on.
    for (joined, fin, goes_on) in [
        (false, false, false),
        (false, true, false),
        (true, false, false),
        (true, false, true),
    ] {
        let mut talk = Talk::new(config());
        for (who, text) in DIALOGUE {
            talk.say(who, text);
        }
        let [c, s] = talk.at;
        if joined {
            talk.restart();
            talk.trace.send(Client, ack(c, s));
        }
        if fin {
            talk.trace.send(Client, flagged(FIN, ack(c, s)));
        }
        let (mut found, mut now) = (Vec::new(), talk.trace.now);
        assert!(talk.trace.engine.doubtful(now + minute, &mut found));
        assert!(found.is_empty(), "not silent for long enough");
        now += 3 * minute;
        assert!(talk.trace.engine.doubtful(now, &mut found));
        assert_eq!(found.len(), usize::from(joined || fin));
        if goes_on {
            talk.trace.now = now;
            talk.trace.send(Server, ack(s, c));
        }
        for name in &found {
            talk.trace.engine.is_gone(name, now, &mut talk.trace.world);
        }
        let open = !(joined || fin) || goes_on;
        assert_eq!(talk.trace.world.ended, usize::from(!open));
    }
}

/// What is refused is refused in a connection that was joined, too.
#[test]
fn a_foreign_port_is_refused() {
    let mut talk = Talk::new(config());
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    talk.restart();
    let foreign = "PORT 10,0,0,3,10,10\r\n";
    assert_ne!(talk.say(Client, foreign), foreign);
    talk.say(Server, "501 No\r\n");
    assert!(talk.is_followed());
}

#[test]
fn without_the_mark_it_passes_unread() {
    for (config, mark) in [(config(), false), (Config::default(), true)] {
        let mut talk = Talk::new(super::joining::config());
        for (who, text) in DIALOGUE {
            talk.say(who, text);
        }
        if !mark {
            talk.trace.world.entry().mark = 0;
        }
        talk.restart_with(config);
        assert!(!talk.is_followed());
        assert_eq!(talk.trace.engine.stats().mid_stream, 2);
        assert_eq!(talk.trace.sessions(), 0);
    }
}

/// The client's answer to the SYN-ACK may get lost with the process.
#[test]
fn the_mark_is_set_with_the_syn_ack() {
    let mut trace = Trace::unborn(config(), [1000, 5000]);
    *trace.world.entry() = entry(true, INSIDE, PUBLIC, CLIENT_PORT);
    let mut talk = Talk { trace, at: [0, 0] };
    assert_eq!(talk.trace.send(Client, syn(SYN)), Out::Same);
    assert!(!talk.marked());
    assert_eq!(talk.trace.send(Server, syn(SYN | ACK)), Out::Same);
    assert!(talk.marked());
    talk.restart();
    assert_eq!(talk.trace.send(Server, syn(SYN | ACK)), Out::Same);
    assert_eq!(talk.trace.send(Client, ack(0, 0)), Out::Same);
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    assert!(talk.is_followed());
}

/// The SYN-ACK gets lost with the process, and is sent again.
#[test]
fn a_syn_ack_whose_syn_was_not_seen() {
    let unborn = || {
        let mut trace = Trace::unborn(config(), [1000, 5000]);
        *trace.world.entry() = entry(true, INSIDE, PUBLIC, CLIENT_PORT);
        Talk { trace, at: [0, 0] }
    };
    let mut talk = unborn();
    assert_eq!(talk.trace.send(Client, syn(SYN)), Out::Same);
    talk.restart();
    assert_eq!(talk.trace.send(Server, syn(SYN | ACK)), Out::Same);
    assert!(talk.marked());
    assert_eq!(talk.trace.send(Client, ack(0, 0)), Out::Same);
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    assert!(talk.is_followed());
    // One from the client is none, and numbers that differ stay so.
    for (who, mark, after) in [
        (Client, 0, 0),
        (Server, MARKS.uneven, MARKS.uneven),
        (Server, 0x11, 0x11 | MARKS.even),
    ] {
        let mut talk = unborn();
        talk.trace.world.entry().mark = mark;
        assert_eq!(talk.trace.send(who, syn(SYN | ACK)), Out::Same);
        assert_eq!(talk.trace.world.entry().mark, after, "{who:?}");
    }
}

/// A page that makes a browser connect here finds nothing open behind a restart either.
#[test]
fn a_web_page_is_not_joined() {
    let request = [
        "POST / HTTP/1.1\r\n",
        "Host: x\r\n",
        "\r\n",
        "PORT 198,51,100,7,9,9\r\n",
    ];
    for end in 0..request.len() {
        let mut talk = Talk::new(config());
        talk.trace.send(Client, ack(0, 0));
        for (at, line) in request.iter().enumerate() {
            if at == end {
                talk.restart();
            }
            talk.say(Client, line);
        }
        assert_eq!(talk.trace.world.opened.len(), 0, "ended before line {end}");
    }
}

#[test]
fn what_is_no_ftp_loses_the_mark() {
    let mut talk = Talk::new(config());
    talk.say(Server, "220 Hello\r\n");
    assert!(talk.marked());
    talk.say(Client, "POST / HTTP/1.1\r\n");
    assert!(!talk.marked());
}

#[test]
fn what_turned_to_tls_loses_the_mark() {
    let mut talk = Talk::new(config());
    talk.say(Server, "220 Hello\r\n");
    talk.say(Client, "AUTH TLS\r\n");
    assert!(talk.marked());
    talk.say(Server, "234 Go on\r\n");
    assert!(!talk.marked());
}

/// The mark goes before the packet does that has other numbers behind it.
#[test]
fn an_edit_of_another_length_loses_the_mark() {
    let mut talk = Talk::published_as(config(), testkit::trace::PUBLIC);
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    talk.say(Client, "PASV\r\n");
    assert!(talk.marked());
    let [c, s] = talk.at;
    let reply = format!("227 Entering Passive Mode ({OLD}).\r\n");
    let out = talk.trace.send(Server, data(s, c, &reply)).seg();
    assert!(out.payload.len() > reply.len());
    assert!(String::from_utf8_lossy(&out.payload).contains(NEW));
    assert!(!talk.marked());
    // It doesn't come back when all is acknowledged.
    let read = s + out.payload.len() as u32;
    talk.trace.send(Client, ack(c, read));
    assert!(!talk.marked());
}

#[test]
fn what_ends_is_not_joined() {
    let mut talk = Talk::new(config());
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    talk.restart();
    let [c, s] = talk.at;
    for flags in [1, 4] {
        let end = flagged(flags | ACK, ack(c, s));
        assert_eq!(talk.trace.send(Client, end), Out::Same);
    }
    assert_eq!(talk.trace.sessions(), 0);
    assert_eq!(talk.trace.engine.stats().joined, 0);
}

/// Where the address fits, `EPSV` and `PASV` in turns leave no difference, however often.
#[test]
fn many_restarts() {
    let mut talk = Talk::new(config());
    for (who, text) in DIALOGUE {
        talk.say(who, text);
    }
    for n in 0..50 {
        talk.restart();
        assert!(talk.is_followed(), "{n}");
    }
    let landed: Vec<SocketAddr> = talk
        .trace
        .world
        .opened
        .iter()
        .map(|hole| hole.land)
        .collect();
    assert_eq!(landed, [SocketAddr::from((INSIDE, 50_000))]);
}
