//! Nothing puts a session out of step: whatever a server answered before, late, early, twice, never
//! or with another code, the next `PASV`, `EPSV`, `PORT` or `EPRT` of the same session works.

use ftpalg::ftp::policy::Policy;
use ftpalg::ftp::session::Peer;
use proptest::prelude::*;
use testkit::transcript::Machine;

/// What a client says, and how a server in good order answers it.
const COMMANDS: &[(&str, &[&str])] = &[
    ("NOOP", &["200 ok"]),
    ("TYPE I", &["200 ok"]),
    ("CWD x", &["250 ok"]),
    ("PWD", &["257 \"/\""]),
    ("SIZE a", &["213 5"]),
    ("MDTM a", &["550 no"]),
    ("FEAT", &["211-Features\r\n MDTM\r\n211 End"]),
    ("STAT", &["211 fine"]),
    ("STAT .", &["213-Status\r\n227 (10,0,0,2,9,9)\r\n213 End"]),
    ("RNFR a", &["350 go on"]),
    ("REST 5", &["350 go on"]),
    ("SITE X", &["500 what?"]),
    ("XAUT", &["502 what?"]),
    ("ABOR", &["426 aborted", "226 ok"]),
    ("\u{f2}ABOR", &["225 nothing"]),
    ("", &["500 what?"]),
    ("PASV", &["227 ok (10,0,0,2,1,1)"]),
    ("PASV", &["500 no"]),
    ("EPSV", &["229 ok (|||257|)"]),
    ("EPSV", &["522 no"]),
    ("PORT 192,168,1,5,1,1", &[]),
    ("PORT 192,168,1,5,200,1", &["200 ok"]),
    ("PORT 192,168,1,5,200,1", &["500 no"]),
    ("EPRT |1|192.168.1.5|50001|", &["200 ok"]),
    ("PORT 10,0,0,99,200,1", &["501 no"]),
    ("LPSV", &["500 no"]),
    ("RETR a", &["150 x", "226 done"]),
    ("RETR a", &["550 no"]),
    ("STOR a", &["125 x", "426 aborted"]),
    ("STOU", &["150 FILE: x", "250 done"]),
    ("LIST", &["150 x", "226 done"]),
    ("LIST", &["425 no"]),
    ("RETR a\nb", &["550 no"]),
];

/// How the server treats one reply.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// As it should.
    Right,
    /// After the reply to the next command, or the one after that.
    Late(usize),
    Twice,
    Never,
    /// With another code.
    Different(&'static str),
    /// With something in front of the code or directly behind it.
    Odd(&'static str, &'static str),
    /// As several lines, the last of which has another code.
    OtherEnd,
}

fn manner() -> impl Strategy<Value = Manner> {
    let different = prop::sample::select(vec![
        "200", "202", "211", "220", "225", "226", "250", "257", "331", "350", "421", "425", "426",
        "450", "451", "500", "501", "502", "503", "530", "550", "553",
    ]);
    let odd = prop::sample::select(vec![
        ("\0", ""),
        (" ", ""),
        ("\t", ""),
        ("", "."),
        ("", "\t"),
        ("", "x"),
    ]);
    prop_oneof![
        4 => Just(Manner::Right),
        1 => (1usize..3).prop_map(Manner::Late),
        1 => Just(Manner::Twice),
        1 => Just(Manner::Never),
        1 => different.prop_map(Manner::Different),
        1 => odd.prop_map(|(before, behind)| Manner::Odd(before, behind)),
        1 => Just(Manner::OtherEnd),
    ]
}

/// A command, the manner of its replies, and whether the client waits for them before it goes on.
type Turn = (usize, Manner, bool);

/// Leads the exchange; replies that are late are said before the client goes on for good.
fn exchange(machine: &mut Machine, turns: &[Turn]) {
    let mut owed: Vec<(usize, String)> = Vec::new();
    let mut unsaid: Vec<String> = Vec::new();
    for (which, manner, waits) in turns {
        let (command, replies) = COMMANDS[*which];
        machine.feed(Peer::Client, format!("{command}\r\n").as_bytes());
        for reply in replies {
            let reply = format!("{reply}\r\n");
            let (code, text) = reply.split_at(3);
            match manner {
                Manner::Right => unsaid.push(reply),
                Manner::Late(turns) => owed.push((*turns, reply)),
                Manner::Twice => unsaid.extend([reply.clone(), reply]),
                Manner::Never => {}
                Manner::Different(code) => unsaid.push(format!("{code}{text}")),
                Manner::Odd(before, behind) => {
                    unsaid.push(format!("{before}{code}{behind}{text}"));
                }
                Manner::OtherEnd => unsaid.push(format!("{code}-x\r\n299 x\r\n")),
            }
        }
        if *waits {
            for reply in unsaid.drain(..) {
                machine.feed(Peer::Server, reply.as_bytes());
            }
        }
        for (turns, _) in &mut owed {
            *turns -= usize::from(*turns > 0);
        }
        for (_, reply) in owed.extract_if(.., |(turns, _)| *turns == 0) {
            unsaid.push(reply);
        }
    }
    let late = owed.into_iter().map(|(_, reply)| reply);
    for reply in unsaid.drain(..).chain(late) {
        machine.feed(Peer::Server, reply.as_bytes());
    }
}

/// What the client asks for afterwards, the reply, and what must come of it.
const NEXT: &[(&str, &str, &[&str])] = &[
    (
        "PASV\r\n",
        "227 Entering Passive Mode (10,0,0,2,117,48).\r\n",
        &["announce 227 10.0.0.2 30000"],
    ),
    (
        "EPSV\r\n",
        "229 Entering Extended Passive Mode (|||30000|)\r\n",
        &["announce 229 - 30000"],
    ),
    (
        "PORT 192,168,1,5,117,48\r\n",
        "200 ok\r\n",
        &["announce PORT 192.168.1.5 30000", "open"],
    ),
    (
        "EPRT |1|192.168.1.5|30000|\r\n",
        "200 ok\r\n",
        &["announce EPRT 192.168.1.5 30000", "open"],
    ),
];

fn check(turns: &[Turn], next: usize) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(Policy::default());
    for (peer, line) in [
        (Peer::Server, "220 ready\r\n"),
        (Peer::Client, "USER bob\r\n"),
        (Peer::Server, "331 password\r\n"),
        (Peer::Client, "PASS secret\r\n"),
        (Peer::Server, "230 in\r\n"),
    ] {
        machine.feed(peer, line.as_bytes());
    }
    exchange(&mut machine, turns);
    // An earlier question may still be open: the answer to the next one can be taken for its own,
    // and is followed all the same. Twice, since nothing may be used up by the first time.
    for _ in 0..2 {
        let (command, reply, expected) = NEXT[next];
        let before = machine.decisions.len();
        machine.feed(Peer::Client, command.as_bytes());
        machine.feed(Peer::Server, reply.as_bytes());
        let decided: Vec<&str> = machine.decisions[before..]
            .iter()
            .map(String::as_str)
            .filter(|what| *what != "close")
            .collect();
        prop_assert_eq!(decided, expected.to_vec(), "{:?}", turns);
        // What was announced stays: it isn't taken back by the reply.
        let kept = machine.decisions.last().map(String::as_str);
        prop_assert_eq!(kept, expected.last().copied(), "{:?}", turns);
        machine.feed(Peer::Client, b"LIST\r\n");
        machine.feed(Peer::Server, b"150 x\r\n226 x\r\n");
    }
    Ok(())
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (0..COMMANDS.len(), manner(), any::<bool>());
    prop::collection::vec(turn, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn the_next_announcement_works(turns in turns(), next in 0..NEXT.len()) {
        check(&turns, next)?;
    }
}

/// Every command, answered in every manner, before each of the four.
#[test]
fn the_next_announcement_works_after_each_single_oddity() {
    let manners = [
        Manner::Right,
        Manner::Late(1),
        Manner::Late(2),
        Manner::Twice,
        Manner::Never,
        Manner::OtherEnd,
    ];
    let different = (200..=259)
        .chain(300..=359)
        .chain(400..=459)
        .chain(500..=559)
        .filter(|code| !matches!(code, 227 | 229 | 234))
        .map(|code| Manner::Different(code.to_string().leak()));
    let manners: Vec<_> = manners.into_iter().chain(different).collect();
    for which in 0..COMMANDS.len() {
        for manner in &manners {
            for next in 0..NEXT.len() {
                for waits in [false, true] {
                    // A transfer runs meanwhile, or not.
                    let running = (26, Manner::Never, true);
                    for turns in [
                        vec![(which, *manner, waits)],
                        vec![running, (which, *manner, waits)],
                    ] {
                        if let Err(error) = check(&turns, next) {
                            panic!("{error}");
                        }
                    }
                }
            }
        }
    }
}
