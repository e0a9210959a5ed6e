//! The nft backend, conntrack look-ups and events against the running kernel: a client, a gateway
//! and a server in network namespaces of their own. Needs root.

// Helpers of tests may panic as tests do.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ftpalg::conntrack::{Completeness, Conntrack, ConntrackEvent, Events};
use ftpalg::firewall::tables;
use ftpalg::net::Mark;
use ftpalg::netlink::codec;
use ftpalg::netlink::nftables::{attr, family, msg};
use ftpalg::netlink::socket::{BatchError, NetlinkRequest, Socket};
use ftpalg::pinholes::backend::Backend;
use ftpalg::pinholes::backend::nft::Nft;
use ftpalg::pinholes::{Pinhole, RangeHole};
use testkit::holes::{self, CASES, hole, talk};
use testkit::lab::net::Net;
use testkit::lab::scripted;

const MINUTE: Duration = Duration::from_secs(60);
/// How long a connection that must not come about is tried.
const REFUSED: Duration = Duration::from_millis(700);

/// Client 203.0.113.10 — gateway 203.0.113.1, 10.0.0.1 — server 10.0.0.2; IPv6 alike.
struct Lab(Net);

impl Lab {
    fn new() -> Self {
        let lab = Self(holes::network());
        for name in ["nf_conntrack_acct", "nf_conntrack_timestamp"] {
            lab.0.sysctl("g", &format!("net.netfilter.{name}"), "1");
        }
        lab.wait_for_neighbours();
        lab
    }

    /// A SYN that waits for its neighbour's address could come through a hole that is opened
    /// after its sender gave up.
    fn wait_for_neighbours(&self) {
        for (host, gateway) in [
            ("c", ["203.0.113.1:9", "[2001:db8:1::1]:9"]),
            ("s", ["10.0.0.1:9", "[fd00::1]:9"]),
        ] {
            for at in gateway {
                let refused = self
                    .0
                    .within(host, || TcpStream::connect_timeout(&addr(at), MINUTE / 6));
                let kind = refused.unwrap_err().kind();
                assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{at}");
            }
        }
    }

    fn on_gateway(&self, command: &str) -> String {
        let words: Vec<_> = command.split_whitespace().collect();
        self.0.exec("g", &words).must().stdout
    }

    fn nft(&self) -> Nft {
        self.0.within("g", || Nft::new(Mark::DEFAULT).unwrap())
    }

    fn ruleset(&self) -> String {
        self.on_gateway("nft list ruleset")
    }

    fn connect(&self, to: &str) -> Option<TcpStream> {
        self.connect_from("c", addr(to), MINUTE / 12)
    }

    fn connect_from(&self, host: &str, to: SocketAddr, timeout: Duration) -> Option<TcpStream> {
        let connect = || TcpStream::connect_timeout(&to, timeout).ok();
        self.0.within(host, connect)
    }

    fn listen(&self, host: &str, at: &str) -> TcpListener {
        self.0
            .within(host, || scripted::listen(at.parse().unwrap()).unwrap())
    }

    fn no_connect(&self, to: &str) {
        let got = self.connect_from("c", addr(to), REFUSED);
        assert!(got.is_none(), "{to} must not be reachable");
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_hole_lets_one_connection_through() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    for (from, to, land, as_source) in CASES {
        let listener = lab.listen("s", land);
        lab.no_connect(to);
        nft.open(&hole(from, to, land, Some(as_source)), MINUTE)
            .unwrap();
        let mut client = lab.connect(to).expect("the hole is open");
        let (mut server, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), ip(as_source));
        assert_eq!(
            peer.port(),
            client.local_addr().unwrap().port(),
            "the source port is kept"
        );
        talk(&mut client, &mut server);
        // Before anybody closed it.
        assert!(
            lab.connect_from("c", addr(to), Duration::from_millis(100))
                .is_none()
        );
        nft.close(&hole(from, to, land, Some(as_source))).unwrap();
        lab.no_connect(to);
        talk(&mut client, &mut server);
    }
}

#[test]
fn of_connections_that_race_for_a_hole_one_gets_through() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    let (from, to, land, as_source) = CASES[0];
    let hole = hole(from, to, land, Some(as_source));
    let listener = lab.listen("s", land);
    for _ in 0..100 {
        nft.open(&hole, MINUTE).unwrap();
        let together = std::sync::Barrier::new(8);
        let race = || {
            lab.0.within("c", || {
                together.wait();
                TcpStream::connect_timeout(&addr(to), MINUTE / 12).is_ok()
            })
        };
        let through: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
            let won = racers.into_iter().map(|racer| racer.join().unwrap());
            won.map(usize::from).sum()
        });
        assert_eq!(through, 1);
        listener.accept().unwrap();
    }
}

#[test]
fn a_dropped_syn_does_not_use_up_the_hole() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    // The user's rules lose the first packet.
    lab.on_gateway(
        "iptables-nft -A FORWARD -m statistic --mode nth --every 1000 --packet 0 -j DROP",
    );
    let (from, to, land, as_source) = CASES[0];
    let _listener = lab.listen("s", land);
    nft.open(&hole(from, to, land, Some(as_source)), MINUTE)
        .unwrap();
    let start = Instant::now();
    lab.connect(to).expect("the retransmission gets through");
    assert!(
        start.elapsed() > Duration::from_millis(500),
        "none was lost"
    );
}

#[test]
fn a_hole_without_source_keeps_the_peers_address() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    for (from, to, land, _) in CASES {
        let listener = lab.listen("s", land);
        nft.open(&hole(from, to, land, None), MINUTE).unwrap();
        lab.connect(to).expect("the hole is open");
        assert_eq!(listener.accept().unwrap().1.ip(), ip(from));
    }
}

#[test]
fn a_hole_that_translates_nothing_sets_the_mark_only() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    // The user's bits of the mark stay.
    lab.on_gateway("nft add table inet user");
    lab.on_gateway("nft add chain inet user pre { type filter hook prerouting priority mangle; }");
    lab.on_gateway("nft add rule inet user pre ct mark set 0x11");
    let mut entry = |from, land| {
        let listener = lab.listen("s", land);
        nft.open(&hole(from, land, land, None), MINUTE).unwrap();
        let client = lab.connect(land).expect("routed");
        listener.accept().unwrap();
        lab.0.within("g", || {
            let mut conntrack = Conntrack::open().unwrap();
            conntrack
                .lookup(client.local_addr().unwrap(), addr(land))
                .unwrap()
        })
    };
    for (from, _, land, _) in CASES {
        // Packets after the first one get the user's value again: only the bit is of interest.
        assert!(entry(from, land).is_some());
    }
    lab.on_gateway("nft delete table inet user");
    for (from, _, land, _) in CASES {
        assert_eq!(entry(from, land).unwrap().mark, Mark::DEFAULT.bit());
    }
}

#[test]
fn local_processes_are_reached_and_reach_out() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    // Landing at a process on the gateway, with another source.
    let listener = lab.listen("g", "203.0.113.1:40002");
    let local = hole(
        "203.0.113.10",
        "203.0.113.1:50002",
        "203.0.113.1:40002",
        Some("203.0.113.77"),
    );
    lab.on_gateway("ip neigh add 203.0.113.77 lladdr 02:00:00:00:00:01 dev out");
    nft.open(&local, MINUTE).unwrap();
    let client = lab.connect("203.0.113.1:50002").expect("the hole is open");
    let (_server, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), ip("203.0.113.77"));
    assert_eq!(peer.port(), client.local_addr().unwrap().port());
    nft.close(&local).unwrap();
    lab.no_connect("203.0.113.1:50002");

    // A process on the gateway connects, and is led elsewhere.
    let listener = lab.listen("c", "203.0.113.10:40003");
    let out = hole(
        "203.0.113.1",
        "203.0.113.10:50003",
        "203.0.113.10:40003",
        None,
    );
    nft.open(&out, MINUTE).unwrap();
    let to = addr("203.0.113.10:50003");
    let _client = lab
        .connect_from("g", to, MINUTE / 12)
        .expect("the hole is open");
    listener.accept().unwrap();
    nft.close(&out).unwrap();
    assert!(lab.connect_from("g", to, REFUSED).is_none());
}

#[test]
fn a_hole_is_replaced_closed_and_expires() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    for (from, to, land, as_source) in CASES {
        let first = hole(from, to, land, Some(as_source));
        let mut second = first.clone();
        second.land.set_port(40009);
        second.as_source = None;
        let listener = lab.listen("s", &second.land.to_string());
        nft.open(&first, MINUTE).unwrap();
        nft.open(&first, MINUTE).unwrap();
        nft.open(&second, MINUTE).unwrap();
        lab.connect(to).expect("the second hole is open");
        assert_eq!(listener.accept().unwrap().1.ip(), ip(from));

        nft.open(&second, MINUTE).unwrap();
        nft.close(&second).unwrap();
        nft.close(&second).unwrap();
        lab.no_connect(to);

        nft.open(&second, Duration::from_millis(50)).unwrap();
        let start = Instant::now();
        while lab.ruleset().contains("40009") {
            assert!(
                start.elapsed() < MINUTE / 6,
                "it never expires: {}",
                lab.ruleset()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        lab.no_connect(to);
        // Whether the kernel has swept the expired element away or not.
        nft.open(&second, Duration::from_millis(1)).unwrap();
        std::thread::sleep(Duration::from_millis(5));
        nft.open(&second, MINUTE).unwrap();
        lab.connect(to).expect("the hole is open again");
        nft.close(&second).unwrap();
    }
}

#[test]
fn nft_prints_the_table_and_removal_leaves_no_trace() {
    let lab = Lab::new();
    lab.on_gateway("iptables-nft -t nat -A POSTROUTING -o out -j MASQUERADE");
    let before = lab.ruleset();
    let mut nft = lab.nft();
    nft.remove().unwrap();
    nft.install().unwrap();
    nft.install().unwrap();
    for (from, to, land, as_source) in CASES {
        nft.open(&hole(from, to, land, Some(as_source)), MINUTE)
            .unwrap();
    }
    let text = lab.ruleset();
    println!("{text}");
    for part in [
        "table ip ftpalg",
        "table ip6 ftpalg",
        "type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service",
        "203.0.113.10 . 203.0.113.1 . 50001",
        "10.0.0.2 . 40001",
        "2001:db8:1::10 . 2001:db8:1::1 . 50001",
        "fd00::2 . 40001",
        "ct mark set ct mark | 0x40000000",
        "map @pinholes4",
        "limit rate 2/second burst 1 packets",
        "comment \"ftpalg:dnat\"",
        "comment \"ftpalg:snat\"",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
    assert!(nft.verify().unwrap());
    lab.on_gateway("nft flush ruleset");
    assert!(nft.verify().unwrap(), "a foreign flush doesn't touch it");
    nft.remove().unwrap();
    assert!(!nft.verify().unwrap());
    nft.remove().unwrap();
    assert_eq!(lab.ruleset(), "");
    lab.on_gateway("iptables-nft -t nat -A POSTROUTING -o out -j MASQUERADE");
    nft.install().unwrap();
    nft.remove().unwrap();
    assert_eq!(lab.ruleset(), before);
    // Killed: the socket closes.
    nft.install().unwrap();
    drop(nft);
    assert_eq!(lab.ruleset(), before);
}

/// What the kernel judges isn't made. What it refuses is told.
#[test]
fn a_check_leaves_no_trace() {
    let lab = Lab::new();
    let check = || lab.0.within("g", || Nft::check(Mark::DEFAULT));
    let before = lab.ruleset();
    check().unwrap();
    assert_eq!(lab.ruleset(), before);
    let refused = lab.0.within("g", || {
        let table = |kind, name: &'static str| NetlinkRequest {
            kind,
            flags: codec::CREATE,
            family: family::IPV4,
            attrs: Box::new(move |b| _ = b.text(attr::TABLE_NAME, name)),
        };
        let requests = [
            table(msg::NEW_TABLE, "good"),
            table(msg::DEL_TABLE, "missing"),
        ];
        Socket::open().unwrap().check(&requests)
    });
    let Err(BatchError::Refused(refused)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((refused.len(), refused[0].index), (1, Some(1)));
    assert_eq!(lab.ruleset(), before);
    // Beside a daemon, the table is there.
    let mut nft = lab.nft();
    nft.install().unwrap();
    let with_table = lab.ruleset();
    check().unwrap();
    assert_eq!(lab.ruleset(), with_table);
    nft.remove().unwrap();
    assert_eq!(lab.ruleset(), before);
}

#[test]
fn a_leftover_is_replaced_and_a_living_owner_is_respected() {
    let lab = Lab::new();
    lab.on_gateway("nft add table ip ftpalg");
    lab.on_gateway("nft add chain ip ftpalg old");
    let mut first = lab.nft();
    first.install().unwrap();
    assert!(!lab.ruleset().contains("chain old"));
    let mut second = lab.nft();
    let error = second.install().unwrap_err().to_string();
    assert!(error.contains("another running ftpalg"), "{error}");
    assert!(!error.contains('\n'));
    drop(second);
    assert!(lab.0.within("g", || first.verify()).unwrap());
    drop(first);
    let mut third = lab.nft();
    third.install().unwrap();
}

/// The daemon was killed, or left its holes to its successor.
fn left_behind(mut nft: Nft) {
    nft.leave();
}

/// What a successor adopts. A process that another thread has forked may still hold the socket that
/// owned the table.
fn adopt(nft: &mut Nft, most: usize, longest: Duration) -> Vec<(Pinhole, Duration)> {
    let pause = |_| std::thread::sleep(Duration::from_millis(5));
    let mut tries = (0..1000).filter_map(|_| nft.adopt(most, longest).map_err(pause).ok());
    tries.next().unwrap()
}

#[test]
fn a_successor_adopts_what_is_open() {
    let lab = Lab::new();
    let before = lab.ruleset();
    let mut first = lab.nft();
    first.set_range("40000-40009".parse().unwrap());
    first.install().unwrap();
    let mut all = Vec::new();
    for (n, (from, to, land, as_source)) in (1..).zip(CASES) {
        let mut marked = hole(from, to, land, None);
        marked.to.set_port(50_077);
        marked.mark = 0x11;
        first.open(&marked, n * MINUTE / 6).unwrap();
        all.push(marked);
        let whole = hole(from, to, land, Some(as_source));
        first.open(&whole, n * MINUTE / 2).unwrap();
        all.push(whole);
        let range = RangeHole {
            from: ip(from),
            to: addr(to).ip(),
            land: addr(land).ip(),
            as_source: None,
        };
        first.open_range(&range, MINUTE).unwrap();
    }
    left_behind(first);
    assert!(lab.ruleset().contains("50077"), "{}", lab.ruleset());

    // Twice, as it is with `--backend auto`.
    let mut next = lab.nft();
    for _ in 0..2 {
        let found = adopt(&mut next, 100, MINUTE * 3 / 4);
        let left: Vec<_> = found.iter().map(|(_, left)| *left).collect();
        assert!(left.is_sorted(), "{left:?}");
        assert_eq!(found.len(), 4);
        for (hole, left) in &found {
            let n = 1 + u32::from(hole.from.is_ipv6());
            let whole = if hole.mark == 0 {
                n * MINUTE / 2
            } else {
                n * MINUTE / 6
            };
            assert!(all.contains(hole), "{hole:?}");
            assert!(
                *left <= whole.min(MINUTE * 3 / 4) && *left > whole / 2,
                "{left:?}"
            );
        }
    }
    assert!(next.verify().unwrap());
    assert!(!lab.ruleset().contains("range"), "ranges aren't adopted");
    for (from, to, land, as_source) in CASES {
        let listener = lab.listen("s", land);
        lab.connect(to).expect("the hole is open");
        assert_eq!(listener.accept().unwrap().1.ip(), ip(as_source));
        next.close(&hole(from, to, land, Some(as_source))).unwrap();
        lab.no_connect(to);
    }
    // Others are open until their own deadline.
    next.install().unwrap();
    assert!(!lab.ruleset().contains("50077"));
    next.remove().unwrap();
    assert_eq!(lab.ruleset(), before);
}

#[test]
fn what_is_strange_or_too_much_is_not_adopted() {
    let lab = Lab::new();
    let (from, to, land, _) = CASES[0];
    let mut nft = lab.nft();
    nft.install().unwrap();
    for n in 0..600 {
        let mut hole = hole(from, to, land, None);
        hole.to.set_port(10_000 + n);
        nft.open(&hole, MINUTE + Duration::from_millis(n.into()))
            .unwrap();
    }
    left_behind(nft);
    // One without a timeout gets the longest; one that leads to no port isn't a hole.
    for (port, land_port) in [(9000, 9), (9001, 0)] {
        lab.on_gateway(&format!(
            "nft add element ip ftpalg pinholes4 {{ {from} . 203.0.113.1 . {port} : 10.0.0.2 . {land_port} }}"
        ));
    }
    let mut nft = lab.nft();
    let found = adopt(&mut nft, 1000, 2 * MINUTE);
    assert_eq!(found.len(), 601);
    let last = found.last().unwrap();
    assert_eq!((last.0.to.port(), last.1), (9000, 2 * MINUTE));
    let text = lab.ruleset();
    assert!(text.contains(". 9000 ") && !text.contains(". 9001 "));
    let listener = lab.listen("s", land);
    lab.connect("203.0.113.1:10599").expect("the hole is open");
    listener.accept().unwrap();
    assert_eq!(adopt(&mut nft, 300, MINUTE).len(), 300);
    left_behind(nft);

    // A table of another shape is replaced, and what is left without a successor removed.
    lab.on_gateway("nft delete table ip ftpalg");
    lab.on_gateway("nft add table ip ftpalg");
    lab.on_gateway("nft add map ip ftpalg pinholes4 { type ipv4_addr : ipv4_addr; }");
    lab.on_gateway("nft add element ip ftpalg pinholes4 { 10.9.9.9 : 10.9.9.8 }");
    let mut nft = lab.nft();
    assert_eq!(adopt(&mut nft, 1000, MINUTE), vec![]);
    assert!(nft.verify().unwrap());
    assert_eq!(lab.0.within("g", || tables::remove_abandoned().unwrap()), 0);
    assert!(nft.verify().unwrap(), "it has an owner");
    left_behind(nft);
    assert!(lab.0.within("g", || tables::remove_abandoned().unwrap()) > 0);
    assert_eq!(lab.ruleset(), "");
}

/// Conntrack can't tell: it remembers connections through earlier pinholes with the same port.
#[test]
fn a_successor_knows_which_were_used() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    for (from, to, land, _) in CASES {
        let used = hole(from, to, land, None);
        let mut unused = used.clone();
        unused.to.set_port(50_002);
        let listener = lab.listen("s", land);
        nft.open(&used, MINUTE).unwrap();
        nft.open(&unused, MINUTE).unwrap();
        let client = lab.connect(to).expect("the hole is open");
        drop((listener.accept().unwrap(), client));
    }
    left_behind(nft);
    let mut nft = lab.nft();
    assert_eq!(adopt(&mut nft, 100, MINUTE).len(), 2 * CASES.len());
    let unused = nft.take_unused();
    assert_eq!(unused.len(), CASES.len(), "{unused:?}");
    assert!(
        unused.iter().all(|key| key.to.port() == 50_002),
        "{unused:?}"
    );
}

/// While one backend after the other adopts a hole, it is in each list of the rules.
#[test]
fn adopting_leaves_no_gap() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    let (from, to, land, _) = CASES[0];
    nft.open(&hole(from, to, land, None), MINUTE).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let look = scope.spawn(|| {
            let mut looks = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let seen = lab.on_gateway("nft list map ip ftpalg pinholes4");
                looks.push(seen.contains(". 50001 "));
            }
            looks
        });
        for _ in 0..50 {
            left_behind(nft);
            nft = lab.nft();
            assert_eq!(adopt(&mut nft, 1, MINUTE).len(), 1);
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        look.join().unwrap()
    });
    assert!(
        looks.len() > 10 && looks.iter().all(|seen| *seen),
        "{looks:?}"
    );
}

#[test]
fn our_hole_comes_before_the_users_rules() {
    let lab = Lab::new();
    lab.on_gateway(
        "iptables-nft -t nat -A PREROUTING -p tcp --dport 50001 -j DNAT --to 10.0.0.99:1",
    );
    lab.on_gateway("iptables-nft -t nat -A POSTROUTING -j MASQUERADE");
    let mut nft = lab.nft();
    nft.install().unwrap();
    let (from, to, land, _) = CASES[0];
    let listener = lab.listen("s", land);
    nft.open(&hole(from, to, land, Some(from)), MINUTE).unwrap();
    lab.connect(to).expect("the hole is open");
    assert_eq!(listener.accept().unwrap().1.ip(), ip(from));
}

#[test]
fn conntrack_is_asked_and_tells() {
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    let (mut conntrack, mut events) = lab.0.within("g", || {
        Conntrack::probe().unwrap();
        (
            Conntrack::open().unwrap(),
            Events::open(Mark::DEFAULT).unwrap(),
        )
    });
    for (from, to, land, as_source) in CASES {
        assert_eq!(conntrack.lookup(addr(to), addr(land)).unwrap(), None);
        let listener = lab.listen("s", land);
        nft.open(&hole(from, to, land, Some(as_source)), MINUTE)
            .unwrap();
        let mut client = lab.connect(to).expect("the hole is open");
        let (mut server, peer) = listener.accept().unwrap();
        let mine = client.local_addr().unwrap();

        let entry = conntrack.lookup(mine, addr(to)).unwrap().unwrap();
        assert_eq!((entry.original.src, entry.original.dst), (mine, addr(to)));
        assert_eq!((entry.reply.src, entry.reply.dst), (addr(land), peer));
        assert_eq!(entry.mark, Mark::DEFAULT.bit());
        let again = conntrack.lookup(addr(land), peer).unwrap();
        assert_eq!(again, Some(entry), "either direction finds it");
        assert_eq!(conntrack.marked(Mark::DEFAULT).unwrap(), vec![entry]);
        assert_eq!(conntrack.marked(Mark::new(1).unwrap()).unwrap(), vec![]);

        // One without a hole, that nobody is told of. The element would let it in after half a second.
        nft.close(&hole(from, to, land, Some(as_source))).unwrap();
        let other = lab.listen("g", to);
        drop(lab.connect(to).expect("a local listener"));
        drop(other);

        talk(&mut client, &mut server);
        drop((client, server));
        let mut seen = Vec::new();
        events.read(&mut seen).unwrap();
        assert_eq!(seen.len(), 1, "it was told before the handshake ended");
        lab.on_gateway("conntrack -D -m 0x40000000");
        let start = Instant::now();
        while seen.len() < 2 && start.elapsed() < MINUTE / 12 {
            assert_eq!(events.read(&mut seen).unwrap(), Completeness::Complete);
        }
        let [
            ConntrackEvent::New {
                entry: new, id: a, ..
            },
            ConntrackEvent::Destroy {
                entry: old,
                id: b,
                bytes: Some(bytes),
                lifetime: Some(_),
                ..
            },
        ] = seen[..]
        else {
            panic!("{seen:?}");
        };
        assert_eq!((new, old, a), (entry, entry, b));
        assert!(bytes.original > 100 && bytes.reply > 100, "{bytes:?}");
    }
}

#[test]
fn emptied_chains_and_tables_are_listed_and_deleted() {
    let lab = Lab::new();
    lab.on_gateway("iptables-nft -P FORWARD DROP");
    lab.on_gateway("iptables-nft -A FORWARD -j ACCEPT");
    lab.0.within("g", || {
        assert!(tables::available());
        let chain = || {
            let all = tables::chains().unwrap();
            all.into_iter().find(|c| c.name == "FORWARD").unwrap()
        };
        let forward = chain();
        let base = forward.base.clone().unwrap();
        assert_eq!((forward.family, &*forward.table), (2, "filter"));
        assert_eq!(
            (&*base.kind, base.hook, base.priority, base.drops),
            ("filter", 2, 0, true)
        );
        assert_eq!(forward.rules, 1);
        let error = tables::delete_chain(2, "filter", "FORWARD").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::libc::EBUSY));
        assert!(tables::delete_table(2, "filter").is_err());
        lab.on_gateway("iptables-nft -F FORWARD");
        assert_eq!(chain().rules, 0);
        for chain in tables::chains().unwrap() {
            tables::delete_chain(chain.family, &chain.table, &chain.name).unwrap();
        }
        tables::delete_table(2, "filter").unwrap();
        assert_eq!(tables::tables().unwrap(), vec![]);
    });
}

/// Prints how long that takes: `cargo test --test kernel nft_backend::thousands -- --nocapture`.
#[test]
fn thousands_of_holes_come_and_go() {
    const ROUNDS: u32 = 5_000;
    let lab = Lab::new();
    let mut nft = lab.nft();
    nft.install().unwrap();
    let (from, to, land, as_source) = CASES[0];
    let per_round = |start: Instant| start.elapsed() / ROUNDS;
    for source in [None, Some(as_source)] {
        let mut hole = hole(from, to, land, source);
        let start = Instant::now();
        for n in 0..ROUNDS {
            hole.to.set_port(10_000 + u16::try_from(n).unwrap());
            nft.open(&hole, MINUTE).unwrap();
        }
        println!("open ({source:?}): {:?}", per_round(start));
        let start = Instant::now();
        for n in 0..ROUNDS {
            hole.to.set_port(10_000 + u16::try_from(n).unwrap());
            nft.open(&hole, MINUTE).unwrap();
        }
        println!("open again: {:?}", per_round(start));
        let start = Instant::now();
        for n in 0..ROUNDS {
            hole.to.set_port(10_000 + u16::try_from(n).unwrap());
            nft.close(&hole).unwrap();
        }
        println!("close: {:?}", per_round(start));
        assert!(nft.verify().unwrap());
    }
    // One public port for everybody: the same key again and again, faster than the kernel's sweep.
    let same = hole(from, to, land, Some(as_source));
    let start = Instant::now();
    for n in 0..ROUNDS {
        nft.open(&same, MINUTE).unwrap();
        if n % 2 == 0 {
            nft.close(&same).unwrap();
        }
    }
    println!("the same key: {:?}", per_round(start));
    let listener = lab.listen("s", land);
    let client = lab.connect(land).expect("routed");
    let (src, dst) = (client.local_addr().unwrap(), addr(land));
    let mut conntrack = lab.0.within("g", || Conntrack::open().unwrap());
    let start = Instant::now();
    for _ in 0..ROUNDS {
        // The gateway has had no rule that uses conntrack but ours: they are enough.
        conntrack.lookup(src, dst).unwrap().unwrap();
    }
    println!("conntrack get: {:?}", per_round(start));
    drop(listener);
}
