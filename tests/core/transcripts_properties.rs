//! What holds for the session machine whatever the two peers say.

use ftpalg::ftp::policy::{Policy, Strict};
use ftpalg::ftp::session::{Peer, Session};
use proptest::prelude::*;
use testkit::transcript::Machine;

type Line = (Peer, Vec<u8>);

fn client_line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "USER bob",
        "PASS x",
        "PASV",
        "EPSV",
        "EPSV ALL",
        "PORT 192,168,1,5,195,81",
        "port  192,168,1,5,195,82 ",
        "PORT 10,0,0,99,195,81",
        " PORT 10,0,0,99,195,81",
        "PO\u{0}RT 10,0,0,99,195,81",
        "PORT 10,0,0,99,195,81,",
        "RETR a\u{1}\u{85}b",
        "XYZZY \r",
        "auth ssl",
        "PORT 192,168,1,5,16,146",
        "PORT 300,1,1,1,1,1",
        "EPRT |1|192.168.1.5|50003|",
        "EPRT |1|192.168.1.5|",
        "LPSV",
        "LPRT 4,4,192,168,1,5,2,195,81",
        "LPSVX",
        "LIST",
        "RETR a b",
        "STAT",
        "ABOR",
        "\u{f2}ABOR",
        "REIN",
        "NOOP",
        "",
        "AUTH TLS",
        "QUIT",
    ]);
    line(known)
}

fn server_line() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "220 ready",
        "220-ready",
        "120 soon",
        "331 password",
        "230 in",
        "230-in",
        "530 no",
        "227 Entering Passive Mode (10,0,0,2,195,80).",
        "227 =10,0,0,2,195,80",
        "227-(10,0,0,2,195,80)",
        "227 1,2,3,4,5,6,7 and 1,2,3",
        "229 ok (|||50000|)",
        "229 (||| (|||50000|)",
        " 227 (10,0,0,2,1,1)",
        "200 ok",
        "200-ok",
        "150 x",
        "226 x",
        "226",
        "211 x",
        "425 no",
        "426 x",
        "500 no",
        "421 bye",
        "text",
    ]);
    line(known)
}

/// Mostly lines that mean something, some of anything.
fn line(known: impl Strategy<Value = &'static str>) -> impl Strategy<Value = Vec<u8>> {
    let known = testkit::line::known(known, &["\r\n", "\r\n", "\r\n", "\n", " \r\r\n"]);
    let any = prop::collection::vec(any::<u8>(), 1..200);
    prop_oneof![19 => known, 1 => any]
}

/// A dialogue that is FTP at its start, so that what follows is looked at.
fn dialogue() -> impl Strategy<Value = Vec<Line>> {
    let turn = prop_oneof![
        client_line().prop_map(|line| (Peer::Client, line)),
        server_line().prop_map(|line| (Peer::Server, line)),
    ];
    (any::<bool>(), prop::collection::vec(turn, 0..40)).prop_map(|(logged_in, turns)| {
        let login: &[(Peer, &str)] = &[
            (Peer::Server, "220 ready\r\n"),
            (Peer::Client, "USER bob\r\n"),
            (Peer::Server, "230 in\r\n"),
        ];
        let login = login
            .iter()
            .map(|(peer, text)| (*peer, text.as_bytes().to_vec()));
        login.filter(|_| logged_in).chain(turns).collect()
    })
}

/// The rules that a session may be held to, each by itself; lines over the limit are common.
fn policy() -> impl Strategy<Value = Policy> {
    let all = Strict::all();
    let verbs = prop::sample::select(vec![vec![], vec!["PASV".to_owned(), "NOOP".to_owned()]]);
    let rules = (
        any::<[bool; 7]>(),
        any::<bool>(),
        verbs,
        prop::option::of(1u8..3),
    );
    let rules = rules.prop_map(move |(on, allow, verbs, failed_logins)| Strict {
        order: on[0],
        unknown_verbs: on[1],
        long_lines: on[2],
        control_bytes: on[3],
        before_greeting: on[4],
        addresses: on[5],
        active_late: on[6],
        passive_ports: false,
        allow: if allow { verbs.clone() } else { Vec::new() },
        deny: if allow { Vec::new() } else { verbs },
        failed_logins,
    });
    let rules = prop_oneof![Just(Strict::default()), Just(all), rules];
    (rules, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(strict, deny_tls, require_login, short)| Policy {
            strict,
            deny_tls,
            require_login,
            max_command: if short { 30 } else { 2048 },
            ..Policy::default()
        },
    )
}

fn lines_of(turns: &[Line], peer: Peer) -> Vec<u8> {
    turns
        .iter()
        .filter(|t| t.0 == peer)
        .flat_map(|t| t.1.clone())
        .collect()
}

/// Feeds line by line, as the other peer sees them: what a turn says behind its last line feed is
/// the beginning of that peer's next line.
fn replay(turns: &[Line], cut: impl FnMut(&[u8]) -> Vec<Vec<u8>>) -> Machine {
    replay_under(Policy::default(), turns, cut)
}

fn replay_under(
    policy: Policy,
    turns: &[Line],
    mut cut: impl FnMut(&[u8]) -> Vec<Vec<u8>>,
) -> Machine {
    let mut machine = Machine::new(policy);
    for (peer, bytes) in turns {
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            for piece in cut(line) {
                machine.feed(*peer, &piece);
            }
        }
    }
    machine
}

/// Whether each turn is whole lines: else the peers' lines overlap, and so does what they mean.
fn whole_lines(turns: &mut [Line]) {
    for (_, bytes) in turns {
        if bytes.last() != Some(&b'\n') {
            bytes.push(b'\n');
        }
    }
}

/// How many logins, whether the hole of the last `PORT` was closed, and the other decisions. A reply whose
/// end shows with the client's next line is acted on with that line's first piece, so that the first two
/// may be told before or behind what that line decides.
fn in_order(decisions: &[String]) -> (usize, bool, Vec<&String>) {
    let opens =
        |what: &String| what.starts_with("announce PORT") || what.starts_with("announce EPRT");
    let last = decisions.iter().rposition(opens).unwrap_or(0);
    let closed = decisions.iter().skip(last).any(|what| what == "close");
    let others = decisions.iter().filter(|what| *what != "close");
    let (logins, others): (Vec<_>, _) = others.partition(|what| what.starts_with("login "));
    (logins.len(), closed, others)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn decisions_and_output_are_the_same_for_any_cut(
        mut turns in dialogue(),
        policy in policy(),
        cuts in prop::collection::vec(1usize..12, 1..20),
    ) {
        whole_lines(&mut turns);
        let whole = replay_under(policy.clone(), &turns, |line| vec![line.to_vec()]);
        let mut sizes = cuts.iter().cycle();
        let cut = replay_under(policy.clone(), &turns, |line| {
            let mut rest = line;
            let mut pieces = Vec::new();
            while !rest.is_empty() {
                let n = (*sizes.next().unwrap()).min(rest.len());
                pieces.push(rest[..n].to_vec());
                rest = &rest[n..];
            }
            pieces
        });
        let single = replay_under(policy, &turns, |line| line.iter().map(|b| vec![*b]).collect());
        for other in [cut, single] {
            prop_assert_eq!(in_order(&other.decisions), in_order(&whole.decisions));
            prop_assert_eq!(&other.out, &whole.out);
            prop_assert_eq!(other.session.counts(), whole.session.counts());
            prop_assert_eq!(other.session.state(), whole.session.state());
        }
    }

    #[test]
    fn one_peer_alone_opens_nothing(turns in dialogue(), server: bool) {
        let alone = if server { Peer::Server } else { Peer::Client };
        // The other says what every peer says before anything was asked of it.
        let mut machine = Machine::new(Policy::default());
        machine.feed(Peer::Server, b"220 ready\r\n");
        for (_, line) in turns.iter().filter(|turn| turn.0 == alone) {
            machine.feed(alone, line);
        }
        for decision in &machine.decisions {
            let opens = decision.starts_with("announce 22") || decision == "open";
            prop_assert!(!opens, "{}", decision);
        }
    }

    #[test]
    fn no_hole_without_a_login_and_a_question(turns in dialogue()) {
        let machine = replay(&turns, |line| vec![line.to_vec()]);
        let passive = machine.decisions.iter().filter(|d| d.starts_with("announce 22")).count();
        let said = lines_of(&turns, Peer::Client).to_ascii_uppercase();
        let asked = said.windows(4).filter(|w| *w == b"PASV" || *w == b"EPSV").count();
        prop_assert!(passive <= asked);
        let named = machine.decisions.iter().filter(|d| d.starts_with("announce ")).count() - passive;
        let opened = machine.decisions.iter().filter(|d| *d == "open").count();
        prop_assert!(opened <= named);
        // A 2yz to a command of the login, or a 230 that needs none.
        let replies = lines_of(&turns, Peer::Server);
        let granted = replies.contains(&b'2') && replies != b"2";
        let tried = said.windows(4).any(|w| [b"USER", b"PASS", b"ACCT"].iter().any(|v| w == *v));
        let welcome = replies.windows(3).any(|w| w == b"230" || w == b"232");
        let welcome = welcome || granted && tried;
        prop_assert!(welcome || passive + opened == 0);
    }

    #[test]
    fn a_refusal_keeps_the_length_and_opens_nothing(
        mut turns in dialogue(),
        policy in policy(),
    ) {
        whole_lines(&mut turns);
        let mut machine = Machine::new(policy);
        for (peer, bytes) in &turns {
            for line in bytes.split_inclusive(|b| *b == b'\n') {
                let (decided, out) = (machine.decisions.len(), machine.out[0].len());
                let waited = machine.session.awaits_login();
                machine.feed(*peer, line);
                if waited || machine.session.awaits_login() {
                    // Several lines go on together, later.
                    continue;
                }
                let decided = &machine.decisions[decided..];
                if decided.iter().any(|what| what.starts_with("refuse ")) {
                    let sent = &machine.out[0][out..];
                    prop_assert_eq!(sent.len(), line.len());
                    // A disguise may be within the verb.
                    let seen = line.iter().copied().filter(|b| (1..128).contains(b));
                    let seen: Vec<u8> = seen.collect();
                    let bare = seen.trim_ascii().to_ascii_uppercase();
                    let nothing = bare.ends_with(b"PORT") || bare.ends_with(b"EPRT");
                    let spoilt = sent != line || sent.contains(&b'X') || nothing;
                    prop_assert!(sent.ends_with(b"\n") && spoilt);
                    prop_assert!(decided.iter().all(|what| !what.starts_with("announce ")));
                }
            }
        }
    }

    #[test]
    fn what_waits_is_bounded(
        turns in dialogue(),
        policy in policy(),
        tail in prop::collection::vec(prop::sample::select(b"PORTE 1,|()\r\xff".to_vec()), 0..6000),
        server: bool,
    ) {
        let peer = if server { Peer::Server } else { Peer::Client };
        let most = policy.max_command;
        let mut machine = replay_under(policy, &turns, |line| vec![line.to_vec()]);
        for piece in tail.chunks(7) {
            machine.feed(peer, piece);
            let bound = match server {
                true => 32,
                false if machine.session.awaits_login() => testkit::transcript::MOST,
                false => most,
            };
            prop_assert!(machine.held(peer) <= bound, "{} bytes", machine.held(peer));
        }
    }
}

#[test]
fn a_port_that_never_ends_is_refused_at_the_limit() {
    let mut machine = Machine::new(Policy::default());
    machine.feed(Peer::Server, b"220 x\r\n");
    machine.feed(Peer::Client, b"USER x\r\n");
    machine.feed(Peer::Server, b"230 x\r\n");
    machine.decisions.clear();
    machine.feed(Peer::Client, b"PORT ");
    assert_eq!(
        machine.held(Peer::Client),
        1,
        "what the refusal would replace"
    );
    let limit = Policy::default().max_command;
    for n in 0..limit - 5 {
        machine.feed(Peer::Client, b"1");
        assert_eq!(machine.held(Peer::Client), n + 2);
    }
    machine.feed(Peer::Client, b"1");
    assert_eq!(machine.held(Peer::Client), 0);
    machine.feed(Peer::Client, b"1\r\n");
    assert_eq!(machine.decisions, ["refuse PORT: a line over the limit"]);
    let [client, _] = &machine.out;
    let line = format!("PORT {}\r\n", "x".repeat(limit - 3));
    assert!(client.ends_with(line.as_bytes()));
}

#[test]
fn commands_beyond_the_limit_are_forgotten_the_oldest_first() {
    let policy = Policy {
        max_pipelined: 3,
        ..Policy::default()
    };
    let mut machine = Machine::new(policy);
    machine.feed(Peer::Server, b"220 x\r\n");
    machine.feed(Peer::Client, b"USER x\r\n");
    machine.feed(Peer::Server, b"230 x\r\n");
    machine.decisions.clear();
    machine.feed(Peer::Client, b"NOOP\r\nNOOP\r\nNOOP\r\nPASV\r\nNOOP\r\n");
    assert_eq!(machine.session.counts().overrun, 2);
    let passive = b"227 (10,0,0,2,1,1)\r\n";
    machine.feed(Peer::Server, b"200 x\r\n200 x\r\n200 x\r\n");
    machine.feed(Peer::Server, passive);
    assert_eq!(machine.decisions, ["announce 227 10.0.0.2 257"]);
    machine.feed(Peer::Server, passive);
    machine.feed(Peer::Server, b"200 x\r\n");
    machine.feed(Peer::Client, b"PASV\r\n");
    machine.feed(Peer::Server, passive);
    assert_eq!(machine.decisions, ["announce 227 10.0.0.2 257"; 2]);
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 80, "{} bytes", size_of::<Session>());
}

/// However long its line may be, and whatever became of a `PORT` that waited.
#[test]
fn nothing_waits_for_a_login_that_has_failed() {
    let strict = Strict {
        order: true,
        ..Strict::default()
    };
    let policy = Policy {
        strict,
        max_command: 9000,
        ..Policy::default()
    };
    let mut machine = Machine::new(policy);
    machine.feed(Peer::Server, b"220 x\r\n");
    machine.feed(Peer::Client, b"USER x\r\nPORT 192,168,1,5,195,81\r\n");
    assert!(machine.session.awaits_login());
    machine.feed(Peer::Server, b"530 no\r\n");
    assert_eq!(machine.decisions, ["refuse PORT: before the login"]);
    machine.feed(Peer::Client, &[b'a'; 5000]);
    assert!(!machine.session.awaits_login() && !machine.session.resumes());
    assert_eq!(
        machine.held(Peer::Client),
        5000,
        "a line that isn't complete"
    );
}
