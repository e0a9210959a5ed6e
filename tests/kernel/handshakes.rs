//! Handshakes and paths as Linux makes them: Fast Open, Multipath TCP, TCP-MD5, and a way that takes less
//! than both ends say.

use std::time::Duration;

use testkit::lab::alg::Alg;
use testkit::lab::gateway::status;
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, Process, run};
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::topology::Topology;

const SERVER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/kernel/handshakes/server.py"
);
const CLIENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/kernel/handshakes/client.py"
);
const LIMIT: Duration = Duration::from_secs(20);

struct Peers {
    net: Net,
    server: Process,
}

impl Peers {
    /// A network with the user's rules, and a server of that kind in it.
    fn new(topology: &Topology, kind: &str, policy: Policy) -> Self {
        let net = Net::new(topology);
        rules::install(&net, Flavour::Nft, policy, true);
        let server = serve(&net, kind);
        Self { net, server }
    }

    fn client(&self, kind: &str, commands: &[&str]) -> Finished {
        let dial = self.net.topology().dial;
        let mut command = self.net.client("python3");
        command
            .args([CLIENT, kind])
            .args([dial.ip().to_string(), dial.port().to_string()])
            .args(commands);
        run(command, LIMIT)
    }

    /// What a host's TCP has counted under a name of `/proc/net/netstat`.
    fn count(&self, host: &str, table: &str, name: &str) -> u64 {
        let text = self.net.exec(host, &["cat", "/proc/net/netstat"]).must();
        let mut lines = text.stdout.lines().filter(|line| line.starts_with(table));
        let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let at = names.split(' ').position(|word| word == name);
        let value = at.and_then(|at| values.split(' ').nth(at)?.parse().ok());
        value.unwrap_or_else(|| panic!("no {table} {name}"))
    }
}

fn serve(net: &Net, kind: &str) -> Process {
    let topology = net.topology();
    let mut command = net.command(topology.server, "python3");
    let (ip, port) = (topology.listen.ip(), topology.listen.port());
    command
        .args([SERVER, kind])
        .args([ip.to_string(), port.to_string(), "198.51.100.2".into()]);
    let server = Process::spawn(command);
    assert!(server.wait_for("listening", LIMIT), "{}", server.log());
    server
}

/// A milliseconds' count out of what the client printed.
fn took(finished: &Finished) -> u64 {
    let text = finished.stdout.lines().last().unwrap_or("");
    let number = text
        .strip_prefix("took ")
        .and_then(|t| t.strip_suffix(" ms"));
    number
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{finished}"))
}

/// Data in the SYN arrives, once, in a segment of its own, and soon; whether the server would have taken
/// it with the SYN or not.
#[test]
fn fast_open() {
    // With cookies, and without (0x4 at the client, 0x200 at the server); a server that has none of it.
    for (client, server) in [("1", "3"), ("5", "515"), ("5", "0")] {
        let topology = Topology::published_server();
        let peers = Peers::new(&topology, "tfo", Policy::Drop);
        let net = &peers.net;
        net.sysctl(topology.client, "net.ipv4.tcp_fastopen", client);
        net.sysctl(topology.server, "net.ipv4.tcp_fastopen", server);
        // The first one asks for the cookie.
        for _ in 0..2 {
            peers.client("tfo", &["NOOP"]).must();
        }
        let taken = |peers: &Peers| peers.count(topology.client, "TcpExt:", "TCPFastOpenActive");
        let before = taken(&peers);
        assert_eq!(before > 0, server != "0", "what happens without a gateway");
        let alg = Alg::under_test(&["--backend", "nft"]).start(net, Flavour::Nft);
        // Nothing waits to be sent again for the usual second; a busy machine may hold up one of them.
        let times = [(); 2].map(|()| took(&peers.client("tfo", &["NOOP"]).must()));
        assert!(times.iter().any(|time| *time < 900), "{times:?} ms");
        assert_eq!(taken(&peers), before, "the server took data with the SYN");
        let counters = &status(net)["counters"];
        assert_eq!(counters["stripped"].as_u64(), Some(2), "{counters}");
        assert_eq!(counters["sessions"].as_u64(), Some(2), "{counters}");
        let log = peers.server.log();
        assert_eq!(log.matches("read 'USER lab'").count(), 4, "{log}");
        assert_eq!(log.matches("read 'NOOP'").count(), 4, "{log}");
        // Such a session, which begins with the client's words, is followed like any other.
        peers.client("tfo", &["GET", "PORT 10,0,0,3,0,22"]).must();
        let counters = &status(net)["counters"];
        assert_eq!(counters["rewritten"].as_u64(), Some(1), "{counters}");
        assert_eq!(counters["refused"].as_u64(), Some(1), "{counters}");
        assert!(
            !peers.server.log().contains("0,22"),
            "{}",
            peers.server.log()
        );
        alg.stop();
    }
}

/// Both ends speak plain TCP, and so everything works that works with plain TCP.
#[test]
fn multipath_tcp() {
    let topology = Topology::published_server();
    let peers = Peers::new(&topology, "mptcp", Policy::Drop);
    if peers
        .net
        .read_sysctl(topology.client, "net.mptcp.enabled")
        .as_deref()
        .map(str::trim)
        != Some("1")
    {
        report::skipped("multipath_tcp", "this kernel has no Multipath TCP");
        return;
    }
    peers.client("mptcp", &["NOOP"]).must();
    let spoken = |name| peers.count(topology.client, "MPTcpExt:", name);
    assert_eq!(spoken("MPCapableSYNACKRX"), 1, "without a gateway");
    let alg = Alg::under_test(&["--backend", "nft"]).start(&peers.net, Flavour::Nft);
    peers
        .client("mptcp", &["GET", "GET", "PORT 10,0,0,3,0,22"])
        .must();
    assert_eq!(spoken("MPCapableSYNACKRX"), 1);
    assert_eq!(spoken("MPCapableFallbackSYNACK"), 1);
    let counters = &status(&peers.net)["counters"];
    assert_eq!(counters["stripped"].as_u64(), Some(1), "{counters}");
    assert_eq!(counters["rewritten"].as_u64(), Some(2), "{counters}");
    assert_eq!(counters["refused"].as_u64(), Some(1), "{counters}");
    assert!(
        !peers.server.log().contains("0,22"),
        "{}",
        peers.server.log()
    );
    alg.stop();
}

/// Where both ends check signatures, what passes is as it was; what is refused never arrives.
#[test]
fn tcp_md5() {
    let topology = Topology::routed();
    let peers = Peers::new(&topology, "md5", Policy::Accept);
    let unsigned = peers.client("plain", &["NOOP"]);
    assert!(!unsigned.ok(), "the server takes what isn't signed");
    let alg = Alg::under_test(&["--backend", "nft"]).start(&peers.net, Flavour::Nft);
    peers
        .client("md5", &["NOOP", "GET", "PORT 198,51,100,2,20,20"])
        .must();
    let counters = status(&peers.net)["counters"].clone();
    assert_eq!(counters["untouchable"].as_u64(), Some(1), "{counters}");
    assert_eq!(counters["changed"].as_u64(), Some(0), "{counters}");
    assert_eq!(counters["announced"].as_u64(), Some(0), "{counters}");
    let refused = peers.client("md5", &["PORT 10,0,0,3,0,22"]);
    assert!(!refused.ok(), "{refused}");
    assert!(
        !peers.server.log().contains("0,22"),
        "{}",
        peers.server.log()
    );
    let counters = status(&peers.net)["counters"].clone();
    assert_eq!(counters["refused"].as_u64(), Some(1), "{counters}");
    alg.stop();
}

/// Both SYNs say 1,460; the way takes packets of 1,400 bytes and says nothing of those that it drops. The
/// server has learned that. Its reply just fits, and grows.
#[test]
fn a_narrow_path() {
    let topology = Topology::published_server();
    let peers = Peers::new(&topology, "padded", Policy::Drop);
    let net = &peers.net;
    net.exec(
        topology.server,
        &[
            "ip", "route", "replace", "default", "via", "10.0.0.1", "mtu", "1400", "advmss", "1460",
        ],
    )
    .must();
    let large = ["-m", "length", "--length", "1401:65535", "-j", "DROP"];
    let narrow = [&["iptables-nft", "-A", "INPUT", "-p", "tcp"][..], &large].concat();
    net.exec(topology.client, &narrow).must();
    let alg = Alg::under_test(&["--backend", "nft"]).start(net, Flavour::Nft);
    for _ in 0..3 {
        let finished = peers.client("piped", &[]).must();
        // The rest comes with the server's first repetition, after some 0.2 s.
        assert!(took(&finished) < 8000, "{finished}");
    }
    let counters = &status(net)["counters"];
    assert_eq!(counters["rewritten"].as_u64(), Some(3), "{counters}");
    let dropped = net
        .exec(topology.client, &["iptables-nft", "-nvxL", "INPUT"])
        .must();
    let line = dropped.stdout.lines().find(|line| line.contains("DROP"));
    let packets = line.and_then(|line| line.split_whitespace().next());
    assert_eq!(packets, Some("0"), "{}", dropped.stdout);
    alg.stop();
}
