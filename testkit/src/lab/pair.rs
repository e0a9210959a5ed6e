//! Two gateways, of which one has the virtual addresses: keepalived moves them, conntrackd carries
//! connections from one to the other. What both are told is in `packaging/ha`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::net::Net;
use super::process::{PATH, Process, require, run};
use super::stations::{self, Station};
use super::store::Store;
use super::topology::{Topology, at, host, link, router};
use crate::paths::{repository, unpacked};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);
/// The gateways' hosts.
pub const GATEWAYS: [&str; 2] = ["a", "b"];
/// The address that the server inside is published at, and that clients inside are seen with. It has
/// as many digits as [`INSIDER`], so no announcement changes its length.
pub const PUBLIC: &str = "203.0.113.1";
/// Another one in its place, with which all announcements get longer.
pub const LONGER: &str = "203.0.113.100";
/// The host inside.
pub const INSIDER: &str = "10.100.20.2";
/// The host outside.
pub const OUTSIDER: &str = "198.51.100.2";

/// Tells the neighbours where addresses are (RFC 5227 §3): `announce.py [INTERFACE ADDRESS]…`.
const ANNOUNCE: &str = r#"
import socket, sys
for interface, address in zip(sys.argv[1::2], sys.argv[2::2]):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind((interface, 0x0806))
    own = s.getsockname()[4]
    ip = socket.inet_aton(address)
    request = bytes([0, 1, 8, 0, 6, 4, 0, 1]) + own + ip + b"\0" * 6 + ip
    s.send(b"\xff" * 6 + own + b"\x08\x06" + request)
"#;

/// What differs from one pair to another.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// [`PUBLIC`] or [`LONGER`].
    pub public: &'static str,
    /// `PurgeTimeout` in conntrackd's file, in seconds: when the standby forgets what it had.
    pub purge: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            public: PUBLIC,
            purge: 60,
        }
    }
}

impl Plan {
    /// What moves from one gateway to the other: interfaces and addresses.
    fn moving(&self) -> [(&'static str, String); 3] {
        [
            ("out0", "198.51.100.1/24".into()),
            ("out0", format!("{}/32", self.public)),
            ("in0", "10.100.20.1/24".into()),
        ]
    }
}

/// Two gateways at work, with `ftpalg` and conntrackd on both.
///
/// ```text
///                 ┌─ out0 a in0 ─┐
/// o (outside) ── ow     sync0    iw ── i (inside)
///                 └─ out0 b in0 ─┘
/// ```
///
/// The two `sync0` meet in a switch `sw`, where a host `k` (192.0.2.3) is, too: whatever both gateways
/// are to reach may run there.
pub struct Pair {
    /// The network.
    pub net: Net,
    plan: Plan,
    /// `ftpalg` on either gateway.
    stations: Vec<Station>,
    ftpalg: Vec<Process>,
    conntrackd: Vec<Process>,
    keepalived: Vec<Option<Process>>,
}

impl Pair {
    /// The store of [`start_store`](Self::start_store), for `--state`.
    pub const STATE: &str = "valkey://ftpalg:secret@192.0.2.3";

    /// Brings it up; `arguments` are further ones for `ftpalg run` on both. Nobody has the virtual
    /// addresses yet.
    ///
    /// # Panics
    /// If something doesn't start.
    pub fn new(arguments: &[&'static str]) -> Self {
        Self::of(Plan::default(), arguments)
    }

    /// The same by a plan of its own.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn of(plan: Plan, arguments: &[&'static str]) -> Self {
        for tool in ["conntrack", "python3"] {
            require(tool);
        }
        let net = Net::new(&topology(plan.public));
        for switch in ["ow", "iw", "sw"] {
            net.bridge(switch);
        }
        for gateway in GATEWAYS {
            // As the recipe says.
            net.sysctl(gateway, "net.netfilter.nf_conntrack_tcp_loose", "0");
        }
        let arguments = [&["--inside", "in0"], arguments].concat();
        let Plan { public, .. } = plan;
        let v4 = stations::drop_by_default(&["FORWARD"], &[21])
            + &stations::nat(&[
                &format!(
                    "-A PREROUTING -d {public}/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.100.20.2"
                ),
                &format!("-A POSTROUTING -s 10.100.20.0/24 -o out0 -j SNAT --to-source {public}"),
            ])
            + &format!(
                "*filter\n-A INPUT -d {public}/32 -p tcp -m conntrack --ctstate NEW -j DROP\nCOMMIT\n"
            );
        let stations = GATEWAYS.map(|gateway| Station::new(gateway, v4.clone(), &arguments));
        let mut this = Self {
            net,
            plan,
            stations: stations.to_vec(),
            ftpalg: Vec::new(),
            conntrackd: Vec::new(),
            keepalived: vec![None, None],
        };
        stations::Case::new(Vec::new(), Vec::new(), this.stations.clone()).install_rules(&this.net);
        this.conntrackd = (0..2).map(|at| this.start_conntrackd(at)).collect();
        this
    }

    /// Starts `ftpalg` with this backend on both.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn start_ftpalg(&mut self, backend: &str) {
        let started = self.stations.iter().map(|s| s.start(&self.net, backend));
        self.ftpalg = started.map(|started| started.expect("it runs")).collect();
    }

    /// The same network as a client inside and a server outside see it; otherwise the client is
    /// outside, and the server inside and published.
    pub fn masqueraded(&self) -> Net {
        self.net.recast(|topology| {
            (topology.client, topology.server) = ("i", "o");
            (topology.listen, topology.dial) = (at("198.51.100.2:21"), at("198.51.100.2:21"));
        })
    }

    /// Starts a store on `k`, which both reach: [`STATE`](Self::STATE).
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn start_store(&self) -> Store {
        Store::start(&self.net, "k", "192.0.2.3")
    }

    /// What `ftpalg` printed on a gateway.
    pub fn log(&self, gateway: usize) -> String {
        self.ftpalg
            .get(gateway)
            .map(Process::log)
            .unwrap_or_default()
    }

    /// `ftpalg` on a gateway.
    pub fn ftpalg(&self, gateway: usize) -> &Process {
        &self.ftpalg[gateway]
    }

    /// What `ftpalg status --json` says on a gateway.
    pub fn status(&self, gateway: usize) -> Value {
        self.stations[gateway].status(&self.net)
    }

    /// Gives a gateway the virtual addresses, in the way and order in which keepalived does: addresses,
    /// announcements, the script.
    pub fn becomes_master(&self, gateway: usize) {
        let name = GATEWAYS[gateway];
        let moving = self.plan.moving();
        for (interface, address) in &moving {
            let words = ["ip", "address", "add", address, "dev", interface];
            self.net.exec(name, &words).must();
        }
        let mut words = vec!["python3", "-c", ANNOUNCE];
        for (interface, address) in &moving {
            let (address, _) = address.split_once('/').expect("an address with a length");
            words.extend([interface, address]);
        }
        self.net.exec(name, &words).must();
        self.notify(gateway, "MASTER");
    }

    /// Takes the virtual addresses away from a gateway, as keepalived does.
    pub fn becomes_backup(&self, gateway: usize) {
        for (interface, address) in &self.plan.moving() {
            let words = ["ip", "address", "del", address, "dev", interface];
            self.net.exec(GATEWAYS[gateway], &words).must();
        }
        self.notify(gateway, "BACKUP");
    }

    /// Moves the addresses from one gateway to the other.
    pub fn moves_to(&self, gateway: usize) {
        std::thread::scope(|scope| {
            let other = 1 - gateway;
            for (interface, address) in &self.plan.moving() {
                let words = ["ip", "address", "del", address, "dev", interface];
                self.net.exec(GATEWAYS[other], &words).must();
            }
            // The two scripts know nothing of each other.
            scope.spawn(move || self.notify(other, "BACKUP"));
            self.becomes_master(gateway);
        });
    }

    fn notify(&self, gateway: usize, state: &str) {
        let script = repository().join("packaging/ha/ftpalg-notify");
        let mut command = self.net.command(GATEWAYS[gateway], "/bin/sh");
        command.arg(script).args(["GROUP", "gateway", state]);
        self.lets_ask(&mut command, gateway);
        let done = run(command, LIMIT).must();
        assert!(done.log.is_empty(), "{done}");
    }

    /// Has the script find conntrackd and what it was told.
    fn lets_ask(&self, command: &mut Command, gateway: usize) {
        let program = conntrackd();
        let directory = Path::new(&program).parent().expect("a directory");
        command
            .env("PATH", format!("{}:{PATH}", directory.display()))
            .env("CONNTRACKD_CONF", self.file(gateway, "conntrackd.conf"));
    }

    fn file(&self, gateway: usize, name: &str) -> PathBuf {
        let name = format!("{}-{name}", GATEWAYS[gateway]);
        self.net.directory().join(name)
    }

    /// A file of `packaging/ha`, with each of these texts, which must be in it, replaced.
    fn configure(&self, gateway: usize, name: &str, changes: &[(&str, &str)]) -> PathBuf {
        let path = repository().join("packaging/ha").join(name);
        let mut text = std::fs::read_to_string(path).expect("the file is there");
        for (old, new) in changes {
            assert!(text.contains(old), "{name} doesn't say {old:?}");
            text = text.replace(old, new);
        }
        let path = self.file(gateway, name);
        std::fs::write(&path, text).expect("the lab's directory");
        path
    }

    fn start_conntrackd(&self, gateway: usize) -> Process {
        let purge = format!("PurgeTimeout {}", self.plan.purge);
        let lock = self.file(gateway, "conntrackd.lock");
        let socket = self.file(gateway, "conntrackd.ctl");
        let mut changes = vec![
            ("/var/lock/conntrack.lock", lock.to_str().expect("text")),
            ("/var/run/conntrackd.ctl", socket.to_str().expect("text")),
            ("Syslog on", "Syslog off\n    Systemd no"),
            ("PurgeTimeout 60", purge.as_str()),
        ];
        if gateway == 1 {
            changes.extend([(
                "IPv4_address 192.0.2.1\n        IPv4_Destination_Address 192.0.2.2",
                "IPv4_address 192.0.2.2\n        IPv4_Destination_Address 192.0.2.1",
            )]);
        }
        let config = self.configure(gateway, "conntrackd.conf", &changes);
        let mut command = self.net.command(GATEWAYS[gateway], &conntrackd());
        command.arg("-C").arg(config);
        let mut process = Process::spawn(command);
        let deadline = Instant::now() + LIMIT;
        while !socket.exists() {
            assert!(process.running(), "conntrackd: {}", process.log());
            assert!(Instant::now() < deadline, "conntrackd: {}", process.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    }

    /// Starts keepalived on a gateway.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start_keepalived(&mut self, gateway: usize) {
        let script = repository().join("packaging/ha/ftpalg-notify");
        let config = self.configure(
            gateway,
            "keepalived.conf",
            &[
                (
                    "/etc/keepalived/ftpalg-notify",
                    script.to_str().expect("text"),
                ),
                (PUBLIC, self.plan.public),
            ],
        );
        let mut command = self.net.command(
            GATEWAYS[gateway],
            &unpacked("keepalived/usr/sbin/keepalived"),
        );
        command
            .args(["--dont-fork", "--log-console", "--vrrp"])
            .arg(format!("--use-file={}", config.display()));
        for kind in ["pid", "vrrp_pid", "checkers_pid"] {
            let path = self.file(gateway, &format!("keepalived.{kind}"));
            command.arg(format!("--{kind}={}", path.display()));
        }
        self.lets_ask(&mut command, gateway);
        self.keepalived[gateway] = Some(Process::spawn(command));
    }

    /// The running keepalived of a gateway.
    ///
    /// # Panics
    /// If none was started.
    pub fn keepalived(&self, gateway: usize) -> &Process {
        self.keepalived[gateway].as_ref().expect("it was started")
    }

    /// Stops keepalived on a gateway: it gives the addresses back.
    ///
    /// # Panics
    /// If it doesn't end.
    pub fn stop_keepalived(&mut self, gateway: usize) {
        let process = self.keepalived[gateway].take().expect("it was started");
        process.signal(Signal::SIGTERM);
        process.finish(LIMIT).must();
    }

    /// A gateway fails as a whole: keepalived and conntrackd are killed, and nothing reaches it, or comes
    /// from it, any more.
    pub fn fails(&mut self, gateway: usize) {
        drop(self.keepalived[gateway].take());
        self.conntrackd[gateway].signal(Signal::SIGKILL);
        for interface in ["out0", "in0", "sync0"] {
            let words = ["ip", "link", "set", interface, "down"];
            self.net.exec(GATEWAYS[gateway], &words).must();
        }
    }

    /// Which gateways have the virtual addresses.
    pub fn masters(&self) -> Vec<usize> {
        let has = |gateway: &usize| {
            let words = ["ip", "-4", "-o", "address"];
            let text = self.net.exec(GATEWAYS[*gateway], &words).must().stdout;
            let moving = self.plan.moving();
            let mut addresses = moving.iter();
            addresses.all(|(_, address)| text.contains(&format!(" {address} ")))
        };
        (0..2).filter(has).collect()
    }

    /// Asks conntrackd on a gateway.
    pub fn conntrackd(&self, gateway: usize, what: &[&str]) -> String {
        let config = self.file(gateway, "conntrackd.conf");
        let mut command = self.net.command(GATEWAYS[gateway], &conntrackd());
        command.arg("-C").arg(config).args(what);
        run(command, LIMIT).must().stdout
    }

    /// How many open TCP connections the kernel of a gateway knows.
    pub fn connections(&self, gateway: usize) -> usize {
        let words = ["conntrack", "-L", "-p", "tcp", "--state", "ESTABLISHED"];
        let listed = self.net.exec(GATEWAYS[gateway], &words).must().stdout;
        listed
            .lines()
            .filter(|line| line.starts_with("tcp"))
            .count()
    }

    /// The open TCP connections that go through a gateway, as its kernel has them.
    fn open_connections(&self, gateway: usize) -> HashSet<String> {
        let words = ["conntrack", "-L", "-p", "tcp"];
        let all = open(&self.net.exec(GATEWAYS[gateway], &words).must().stdout);
        // conntrackd leaves out the gateways' own.
        let own = |line: &String| line.contains("=192.0.2.");
        all.into_iter().filter(|line| !own(line)).collect()
    }

    /// Waits until the store answers a gateway, and has all that this one has written.
    ///
    /// # Panics
    /// If it never does.
    pub fn is_stored(&self, gateway: usize) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let store = &self.status(gateway)["store"];
            if store["works"] == true && store["waiting"] == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "never stored: {store}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the other gateway knows of all connections that this one has.
    ///
    /// # Panics
    /// If it never does.
    pub fn is_carried_over(&self, from: usize) {
        let deadline = Instant::now() + LIMIT;
        loop {
            // conntrackd's own list may be late itself.
            let own = self.open_connections(from);
            let there = open(&self.conntrackd(1 - from, &["-e"]));
            let missing: Vec<_> = own.difference(&there).collect();
            if missing.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "never carried over from {}: {missing:#?}\n{}",
                GATEWAYS[from],
                self.known()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What conntrackd and the kernel know on both gateways.
    fn known(&self) -> String {
        let mut text = String::new();
        for (gateway, name) in GATEWAYS.iter().enumerate() {
            for what in ["-s", "-i", "-e"] {
                text += &format!("--- conntrackd {what} on {name}\n");
                text += &self.conntrackd(gateway, &[what]);
            }
            let words = ["conntrack", "-L", "-p", "tcp"];
            text += &format!("--- the kernel of {name}\n");
            text += &self.net.exec(name, &words).stdout;
        }
        text
    }

    /// What `ftpalg`, conntrackd and keepalived printed.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (what, processes) in [("ftpalg", &self.ftpalg), ("conntrackd", &self.conntrackd)] {
            for (name, process) in GATEWAYS.iter().zip(processes) {
                text += &format!("--- {what} on {name}\n{}", process.log());
            }
        }
        for (name, process) in GATEWAYS.iter().zip(&self.keepalived) {
            if let Some(process) = process {
                text += &format!("--- keepalived on {name}\n{}", process.log());
            }
        }
        text
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// The open connections in a list of conntrack's or conntrackd's: state, original tuple, and mark.
fn open(list: &str) -> HashSet<String> {
    let line = |line: &str| {
        let state = line
            .split_whitespace()
            .find(|word| matches!(*word, "SYN_RECV" | "ESTABLISHED"))?;
        let pairs = || line.split_whitespace().filter(|word| word.contains('='));
        let mark = pairs().filter(|word| word.starts_with("mark=") && *word != "mark=0");
        let words: Vec<_> = pairs().take(4).chain(mark).collect();
        Some(format!("{state} {}", words.join(" ")))
    };
    list.lines().filter_map(line).collect()
}

fn conntrackd() -> String {
    unpacked("conntrackd/usr/sbin/conntrackd")
}

/// The hosts and cables; the client is outside, and the server inside and published.
fn topology(public: &str) -> Topology {
    let gateway = |name, out, inner, sync| {
        let switch = |name: &str| -> &'static str {
            match name {
                "a" => "a0",
                _ => "b0",
            }
        };
        [
            link((name, "out0", out), ("ow", switch(name), &[])),
            link((name, "in0", inner), ("iw", switch(name), &[])),
            link((name, "sync0", sync), ("sw", switch(name), &[])),
        ]
    };
    let mut links = vec![
        link(("o", "e0", &["198.51.100.2/24"]), ("ow", "h0", &[])),
        link(("i", "e0", &["10.100.20.2/24"]), ("iw", "h0", &[])),
        link(("k", "e0", &["192.0.2.3/24"]), ("sw", "h0", &[])),
    ];
    links.extend(gateway(
        "a",
        &["198.51.100.11/24"],
        &["10.100.20.11/24"],
        &["192.0.2.1/24"],
    ));
    links.extend(gateway(
        "b",
        &["198.51.100.12/24"],
        &["10.100.20.12/24"],
        &["192.0.2.2/24"],
    ));
    Topology {
        router: "a",
        client: "o",
        server: "i",
        inside: "in0",
        outside: "out0",
        listen: at("10.100.20.2:21"),
        dial: at(&format!("{public}:21")),
        ..Topology::bare(
            vec![
                host(
                    "o",
                    &["203.0.113.0/24 via 198.51.100.1", "unreachable 10.0.0.0/8"],
                ),
                host(
                    "i",
                    &[
                        "198.51.100.0/24 via 10.100.20.1",
                        "203.0.113.0/24 via 10.100.20.1",
                    ],
                ),
                router("a", &[]),
                router("b", &[]),
                host("k", &[]),
                host("ow", &[]),
                host("iw", &[]),
                host("sw", &[]),
            ],
            links,
        )
    }
}
