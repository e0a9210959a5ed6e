//! Control connections that were away: another gateway had them for a while, and they come back.

use std::net::Ipv4Addr;

use ftpalg::engine::Config;
use testkit::gateway::{MARKS, entry};
use testkit::packet::{ACK, FIN, SYN, Seg, data, syn};
use testkit::trace::{CLIENT_PORT, Client, INSIDE, OLD, Out, Server, Trace, Who, ack, flagged};

/// Of as many digits as the server's own address.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(20, 9, 8, 7);
/// How clients read the server's address.
const READ: &str = "20,9,8,7,195,80";

/// Client and server, and how much each has said.
struct Talk {
    trace: Trace,
    at: [u32; 2],
}

impl Talk {
    /// Logged in.
    fn new() -> Self {
        let config = Config {
            marks: Some(MARKS),
            ..Config::default()
        };
        let mut trace = Trace::unborn(config, [1000, 5000]);
        *trace.world.entry() = entry(true, INSIDE, PUBLIC, CLIENT_PORT);
        assert_eq!(trace.send(Client, syn(SYN)), Out::Same);
        assert_eq!(trace.send(Server, syn(SYN | ACK)), Out::Same);
        let mut talk = Self { trace, at: [0, 0] };
        for (by_server, line) in testkit::packet::LOGIN {
            talk.say(if by_server { Server } else { Client }, line);
        }
        talk
    }

    fn next(&self, who: Who, text: &str) -> Seg {
        data(self.at[who as usize], self.at[1 - who as usize], text)
    }

    /// What the other end gets of a line.
    #[track_caller]
    fn say(&mut self, who: Who, text: &str) -> String {
        let seg = self.next(who, text);
        self.elsewhere(who, text.len() as u32);
        match self.trace.send(who, seg.clone()) {
            Out::Same => text.to_owned(),
            Out::Became(new) => {
                assert_eq!((new.seq, new.ack), (seg.seq, seg.ack));
                assert_eq!(new.payload.len(), text.len());
                String::from_utf8(new.payload).unwrap()
            }
            Out::Dropped => panic!("dropped: {text}"),
        }
    }

    /// One of them says so much past another gateway.
    fn elsewhere(&mut self, who: Who, bytes: u32) {
        self.at[who as usize] = self.at[who as usize].wrapping_add(bytes);
    }

    /// An end without data to send.
    fn acknowledges(&mut self, who: Who) -> Out {
        let (own, other) = (self.at[who as usize], self.at[1 - who as usize]);
        self.trace.send(who, ack(own, other))
    }

    /// In place of a line, its receiver gets a keep-alive.
    #[track_caller]
    fn becomes_keep_alive(&mut self, who: Who, text: &str) {
        let seg = self.next(who, text);
        let out = self.trace.send(who, seg.clone()).seg();
        assert_eq!((out.seq, out.ack), (seg.seq.wrapping_sub(1), seg.ack));
        assert_eq!((out.flags, out.payload.len()), (ACK, 0));
    }

    /// Whether a `PASV` is followed.
    #[track_caller]
    fn is_followed(&mut self) -> bool {
        assert_eq!(self.say(Client, "PASV\r\n"), "PASV\r\n");
        let reply = format!("227 Entering Passive Mode ({OLD}).\r\n");
        self.say(Server, &reply).contains(READ)
    }

    fn joined(&self) -> u64 {
        self.trace.engine.stats().joined
    }
}

/// Both ends have said something elsewhere. Either may be the first one to say more here.
#[test]
fn a_dialogue_elsewhere() {
    for first in [Client, Server] {
        let mut talk = Talk::new();
        for away in 1..4 {
            talk.elsewhere(Client, 70);
            talk.elsewhere(Server, 300);
            let other = if first == Client { Server } else { Client };
            let line = if first == Client {
                "NOOP\r\n"
            } else {
                "226 Done\r\n"
            };
            talk.becomes_keep_alive(first, line);
            assert_eq!(talk.acknowledges(other), Out::Same);
            assert_eq!(talk.joined(), away, "{first:?}");
            assert_eq!(talk.say(first, line), line);
            assert!(talk.is_followed(), "{first:?}");
            assert!(talk.is_followed(), "{first:?}");
        }
        assert_eq!(talk.trace.sessions(), 1);
    }
}

/// The end of a transfer is told elsewhere; the client goes on here.
#[test]
fn a_reply_elsewhere() {
    let mut talk = Talk::new();
    talk.elsewhere(Server, 24);
    assert!(talk.is_followed());
    assert!(talk.is_followed());
    assert_eq!(talk.joined(), 1);
}

/// A reply begins elsewhere and ends here. Its sender sends it again; nobody else has anything to say.
#[test]
fn a_gap_that_stays() {
    let mut talk = Talk::new();
    talk.say(Client, "RETR x\r\n");
    talk.elsewhere(Server, 24);
    let done = "226 Done\r\n";
    let seg = talk.next(Server, done);
    assert_eq!(talk.trace.send(Server, seg), Out::Dropped);
    talk.becomes_keep_alive(Server, done);
    assert_eq!(talk.acknowledges(Client), Out::Same);
    assert_eq!(talk.say(Server, done), done);
    assert!(talk.is_followed());
    assert_eq!(talk.joined(), 1);
}

/// The other gateway had to change a length, or saw TLS begin.
#[test]
fn without_the_mark_it_passes_unread() {
    for only_server in [false, true] {
        let mut talk = Talk::new();
        talk.elsewhere(Server, 300);
        talk.trace.world.entry().mark = 0;
        if !only_server {
            talk.elsewhere(Client, 70);
            talk.becomes_keep_alive(Client, "PASV\r\n");
            assert_eq!(talk.acknowledges(Server), Out::Same);
        }
        assert!(!talk.is_followed());
        assert!(!talk.is_followed());
        assert_eq!(talk.joined(), 0);
    }
}

/// Numbers that are guessed begin nothing anew, whatever they agree with.
#[test]
fn one_end_alone_proves_nothing() {
    for forger in [Client, Server] {
        let mut talk = Talk::new();
        let victim = if forger == Client { Server } else { Client };
        for guess in (1_000..20_000).step_by(500) {
            for ack in [guess, guess + 6, guess + 250] {
                let line = "PORT 198,51,100,7,200,200\r\n";
                talk.trace.send(forger, data(guess, ack, line));
                // The end that gets a keep-alive says where it is.
                assert_eq!(talk.acknowledges(victim), Out::Same);
            }
        }
        assert_eq!(talk.joined(), 0, "{forger:?}");
        assert_eq!(talk.trace.world.opened.len(), 0, "{forger:?}");
        assert!(talk.is_followed(), "{forger:?}");
    }
}

/// A connection goes on and ends elsewhere, and another one of the same ends begins there. Its numbers may be
/// anywhere.
#[test]
fn a_later_connection_after_one_that_ended_elsewhere() {
    for first in [Client, Server] {
        for by in [70_000, 700_000_000, 3_000_000_000, 4_294_900_000] {
            let mut talk = Talk::new();
            talk.elsewhere(Client, by);
            talk.elsewhere(Server, by / 2 + 70_000);
            let line = "NOOP\r\n";
            talk.becomes_keep_alive(first, line);
            let other = if first == Client { Server } else { Client };
            assert_eq!(talk.acknowledges(other), Out::Same);
            assert_eq!(talk.say(first, line), line);
            assert!(talk.is_followed(), "{by}");
            assert!(talk.is_followed(), "{by}");
            assert_eq!((talk.trace.sessions(), talk.joined()), (1, 1));
        }
    }
}

/// The connection ends here, and another one of the same ends begins elsewhere.
#[test]
fn a_later_connection() {
    for marked in [true, false] {
        let mut talk = Talk::new();
        for who in [Client, Server] {
            let [own, other] = [talk.at[who as usize], talk.at[1 - who as usize]];
            talk.trace.send(who, flagged(FIN | ACK, ack(own, other)));
            talk.elsewhere(who, 1);
        }
        talk.acknowledges(Client);
        assert_eq!(talk.trace.sessions(), 0);
        talk.elsewhere(Client, 700_000_000);
        talk.elsewhere(Server, 900_000_000);
        if !marked {
            let out = talk.trace.send(Client, talk.next(Client, "NOOP\r\n"));
            assert_eq!(out, Out::Dropped);
            continue;
        }
        talk.trace.world.entry().mark = MARKS.even;
        assert!(talk.is_followed());
        assert!(talk.is_followed());
        assert_eq!((talk.trace.sessions(), talk.joined()), (1, 1));
    }
}
