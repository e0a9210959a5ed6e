//! Real clients and servers while everything happens to the gateway that may: the process is killed, handed
//! over, replaced and told to read its configuration again, rules are loaded anew, packets are lost. No
//! session may be lost and no byte be wrong, and nothing may be left at the end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use testkit::lab::alg::Running;
use testkit::lab::client::{Client, Job};
use testkit::lab::gateway::{LIMIT, ended, ftpalg, start_with, status};
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::Verb;
use testkit::lab::server::{Config, Kind, Server, content};
use testkit::lab::topology::{Shape, Topology};
use testkit::random::Rng;

/// Both backends, beside one flavour each.
const BACKENDS: [(&str, Flavour); 2] = [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)];

/// How long a client may wait for anything. Its packets are lost now and then, and so is the gateway.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a session of a few transfers may take.
const SESSION: Duration = Duration::from_secs(120);
/// How much the memory of a process may grow while it does the same all the time, in KiB. Its largest table,
/// that of data connections, takes 3.6 MiB more when it doubles.
const GROWTH: u64 = 5 * 1024;
/// How much is kept of what the processes print, in bytes.
const LOG: usize = 128 << 20;
/// How many descriptors more it may have than in its first moment: sockets that are kept for questions.
const SPARE_DESCRIPTORS: usize = 8;

/// For as long as `SOAK_SECONDS` says, in all places at once.
#[test]
#[ignore = "takes as long as it is told: scripts/soak"]
fn long() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(10, |text| text.parse().unwrap());
    let length = Duration::from_secs(seconds);
    let problems = std::thread::scope(|scope| {
        let soaked = |place: Place| scope.spawn(move || place.soaked(length));
        let all: Vec<_> = places().into_iter().map(soaked).collect();
        let problems = all.into_iter().flat_map(|one| one.join().unwrap());
        problems.collect::<Vec<_>>()
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// The same for a few seconds.
#[test]
fn short() {
    for place in places() {
        let problems = place.soaked(Duration::from_secs(4));
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}

/// A network, and the gateway in it.
struct Place {
    topology: Topology,
    backend: &'static str,
    flavour: Flavour,
}

fn places() -> Vec<Place> {
    let topologies = [Topology::published_server(), Topology::masqueraded_client()];
    let with = |topology: Topology| {
        BACKENDS.map(|(backend, flavour)| Place {
            topology: topology.clone(),
            backend,
            flavour,
        })
    };
    topologies.into_iter().flat_map(with).collect()
}

impl Place {
    fn name(&self) -> String {
        let what = match self.topology.shape {
            Shape::ServerInside => "published servers",
            Shape::ClientInside => "masqueraded clients",
        };
        format!("{what}, {}", self.backend)
    }

    /// What was lost, or left behind.
    fn soaked(mut self, length: Duration) -> Vec<String> {
        let at = servers_at(&mut self.topology);
        let net = Net::new(&self.topology);
        rules::install(&net, self.flavour, Policy::Drop, true);
        let begun = Instant::now();
        let users = Users::new(&net, &at);
        let mut gateway = Gateway::new(&net, &self);
        let before = gateway.rules();
        let capture = kept(&self.name()).map(|path| capture(&net, &path.with_extension("pcap")));
        gateway.begin();
        let stop = AtomicBool::new(false);
        let tally = Tally::default();
        let (fresh, grown) = std::thread::scope(|scope| {
            for number in 0..programs(length) {
                let (users, stop, tally) = (&users, &stop, &tally);
                scope.spawn(move || users.programs(number, stop, tally));
            }
            let scripts = users.scripts();
            gateway.turmoil(length * 3 / 5);
            let fresh = gateway.begin();
            let grown = gateway.calm(length * 2 / 5);
            stop.store(true, Ordering::Relaxed);
            std::fs::write(users.stop_file(), "").unwrap();
            for script in scripts {
                tally.script(&script.finish(2 * SESSION).stdout);
            }
            (fresh, grown)
        });
        let tally = tally.0.into_inner().unwrap();
        println!(
            "{}, {:?}: {}; {}",
            self.name(),
            begun.elapsed(),
            gateway.what_happened(),
            tally.what_was_done()
        );
        let mut problems = tally.lost;
        problems.extend(grown);
        problems.extend(gateway.left(length, fresh));
        drop(capture);
        problems.extend(gateway.ends(&before));
        for problem in &problems {
            println!("    {problem}");
        }
        let name = self.name();
        if let Some(path) = kept(&name) {
            std::fs::write(path.with_extension("log"), &gateway.log).unwrap();
        }
        if !problems.is_empty() {
            report::write(&format!("soak_{}", file_name(&name)), &gateway.log);
        }
        let named = problems.into_iter().map(|line| format!("{name}: {line}"));
        named.collect()
    }
}

fn file_name(place: &str) -> String {
    place.replace([',', ' '], "_")
}

/// Where what happened in a place is kept, however it ends: in the directory that `SOAK_KEEP` names.
fn kept(place: &str) -> Option<PathBuf> {
    let directory = std::env::var_os("SOAK_KEEP")?;
    Some(PathBuf::from(directory).join(file_name(place)))
}

/// Writes down what passes the gateway: control connections, and how others begin and end.
fn capture(net: &Net, path: &Path) -> Process {
    let mut command = net.command(net.topology().router, "tcpdump");
    command
        .args(["-i", "any", "-n", "-s", "200", "-U", "-w"])
        .arg(path)
        .arg("portrange 21-24 or tcp[tcpflags] & (tcp-syn|tcp-rst) != 0");
    Process::spawn(command)
}

/// How many clients run programs, one after the other.
fn programs(length: Duration) -> u64 {
    if length < Duration::from_secs(60) {
        2
    } else {
        3
    }
}

/// Where each server listens, and where its clients connect to.
fn servers_at(topology: &mut Topology) -> Vec<(SocketAddr, SocketAddr)> {
    let all = (0..).zip(Kind::ALL).map(|(number, _)| {
        let mut listen = topology.listen;
        let mut dial = topology.dial;
        let std::net::IpAddr::V4(ip) = listen.ip() else {
            panic!("the lab's addresses are IPv4");
        };
        listen.set_ip((u32::from(ip) + number).into_v4());
        match topology.shape {
            Shape::ServerInside => dial.set_port(dial.port() + u16::try_from(number).unwrap()),
            Shape::ClientInside => dial = listen,
        }
        (listen, dial)
    });
    let all: Vec<_> = all.collect();
    if topology.shape == Shape::ServerInside {
        for (listen, dial) in &all[1..] {
            let rule = format!(
                "-A PREROUTING -d {}/32 -p tcp -m tcp --dport {} -j DNAT --to-destination {listen}",
                dial.ip(),
                dial.port()
            );
            topology.nat.push(rule.leak());
        }
    }
    let own = |(listen, _): &(SocketAddr, _)| &*format!("{}/24", listen.ip()).leak();
    let further = all[1..].iter().map(own);
    for link in &mut topology.links {
        for end in [&mut link.0, &mut link.1] {
            if end.host == topology.server {
                end.addresses.extend(further.clone());
            }
        }
    }
    all
}

/// A number as an address.
trait IntoV4 {
    fn into_v4(self) -> std::net::IpAddr;
}

impl IntoV4 for u32 {
    fn into_v4(self) -> std::net::IpAddr {
        std::net::Ipv4Addr::from(self).into()
    }
}

/// A server of each kind, and how its clients see the network.
struct Users {
    each: Vec<(Net, Server)>,
}

impl Users {
    fn new(net: &Net, at: &[(SocketAddr, SocketAddr)]) -> Self {
        let servers = Kind::ALL.iter().zip(at);
        let each = servers.map(|(kind, (listen, dial))| {
            let view = net.recast(|topology| {
                (topology.listen, topology.dial) = (*listen, *dial);
            });
            let config = Config {
                // It would fail by itself now and then: see `testkit::lab::client`.
                from_port_20: false,
                ..Config::new(*kind)
            };
            let server = Server::start(&view, &config);
            (view, server)
        });
        Self {
            each: each.collect(),
        }
    }

    fn stop_file(&self) -> PathBuf {
        self.each[0].0.directory().join("stop")
    }

    /// One client program after the other, with any of the servers.
    fn programs(&self, number: u64, stop: &AtomicBool, tally: &Tally) {
        let mut rng = Rng::new(100 + number);
        while !stop.load(Ordering::Relaxed) {
            let client = Client::ALL[rng.below(Client::ALL.len() as u64) as usize];
            let (net, server) = &self.each[rng.below(self.each.len() as u64) as usize];
            let upload = content(rng.below(1 << 32), 1 + rng.below(80_000) as usize);
            let begun = Instant::now();
            let done = client.run(&Job {
                net,
                dial: net.topology().dial,
                server,
                downloads: vec![Server::SMALL, Server::SECOND],
                upload: &upload,
                limit: SESSION,
                patience: PATIENCE,
            });
            let files = done.map(|done| done.downloads + done.uploads);
            tally.program(client, server.kind(), files, begun.elapsed());
        }
    }

    /// Scripts that run until there is a file: long sessions of each kind, and short ones.
    fn scripts(&self) -> Vec<Process> {
        let long = (0..).zip(Verb::ALL).map(|(at, verb)| (at, verb, "0"));
        let short = [Verb::Pasv, Verb::Port].map(|verb| (3, verb, "3"));
        let all = long.chain(short).enumerate();
        all.map(|(number, (at, verb, transfers))| {
            let (net, server) = &self.each[at];
            let (login, dial) = (server.login(), net.topology().dial);
            let mut command = net.command(net.topology().client, "python3");
            command
                .args(["-c", include_str!("soak/sessions.py")])
                .args([dial.ip().to_string(), dial.port().to_string()])
                .args([login.user, login.password])
                .arg(server.path(""))
                .arg(Server::SMALL)
                .arg(format!("{}/script-{number}", Server::UPLOADS))
                .arg(format!("{verb:?}").to_uppercase())
                .arg(transfers)
                .arg(self.stop_file());
            Process::spawn(command)
        })
        .collect()
    }
}

/// What the clients did.
#[derive(Default)]
struct Tally(Mutex<Done>);

#[derive(Default)]
struct Done {
    /// Sessions and files, by what did them.
    clients: BTreeMap<String, (u64, u64)>,
    lost: Vec<String>,
    ended_scripts: usize,
}

impl Tally {
    fn program(&self, client: Client, kind: Kind, files: Result<usize, String>, took: Duration) {
        let mut all = self.0.lock().unwrap();
        let (program, _) = client.name().split_once(' ').unwrap();
        let (sessions, total) = all.clients.entry(program.to_owned()).or_default();
        *sessions += 1;
        match files {
            Ok(files) => *total += files as u64,
            Err(why) => {
                let (name, kind, now) = (client.name(), kind.name(), jiff::Timestamp::now());
                let line = format!("{now:.3}, {name} with {kind} after {took:?}: {why}");
                all.lost.push(line);
            }
        }
    }

    /// What a script printed.
    fn script(&self, printed: &str) {
        let mut all = self.0.lock().unwrap();
        for line in printed.lines() {
            let Some(counts) = line.strip_suffix(" lost") else {
                all.lost.push(format!("script: {line}"));
                continue;
            };
            let mut numbers = counts
                .split(' ')
                .filter_map(|word| word.parse::<u64>().ok());
            let entry = all.clients.entry("scripts".to_owned()).or_default();
            entry.0 += numbers.next().unwrap();
            entry.1 += numbers.next().unwrap();
            all.ended_scripts += 1;
        }
    }
}

impl Done {
    fn what_was_done(&self) -> String {
        let each = self.clients.iter();
        let each: Vec<_> = each
            .map(|(name, (sessions, files))| format!("{name} {sessions} sessions, {files} files"))
            .collect();
        let [sessions, files] = self
            .clients
            .values()
            .fold([0, 0], |[a, b], (c, d)| [a + c, b + d]);
        format!(
            "{sessions} sessions, {files} files, {} lost ({})",
            self.lost.len(),
            each.join("; ")
        )
    }
}

/// The gateway, and what happens to it.
struct Gateway<'a> {
    net: &'a Net,
    backend: &'static str,
    flavour: Flavour,
    rng: Rng,
    alg: Option<Running<'a>>,
    settings: PathBuf,
    happened: BTreeMap<&'static str, u64>,
    begun: Instant,
    /// What the processes before this one have printed.
    log: String,
}

impl<'a> Gateway<'a> {
    fn new(net: &'a Net, place: &Place) -> Self {
        let mut gateway = Self {
            net,
            backend: place.backend,
            flavour: place.flavour,
            rng: Rng::new(1),
            alg: None,
            settings: net.directory().join("ftpalg.toml"),
            happened: BTreeMap::new(),
            begun: Instant::now(),
            log: String::new(),
        };
        // Which chains there are shows once the rules were loaded again.
        gateway.load_rules();
        gateway.write_settings();
        gateway
    }

    fn router(&self) -> &'static str {
        self.net.topology().router
    }

    fn rules(&self) -> String {
        rules::snapshot(self.net, self.router())
    }

    /// Somebody loads the rules again that there are.
    fn load_rules(&mut self) {
        let (net, router) = (self.net, self.router());
        let save = format!("{}-save", self.flavour.iptables());
        let saved = net.exec(router, &[&save, "-t", "filter"]).must();
        let restore = format!("{}-restore", self.flavour.iptables());
        net.feed(router, &[&restore, "-T", "filter"], &saved.stdout)
            .must();
    }

    fn write_settings(&mut self) {
        let deadline = 30 + self.rng.below(60);
        std::fs::write(&self.settings, format!("deadline = {deadline}\n")).unwrap();
    }

    /// Starts a process, in place of the one that runs, if one does. Every other one makes announcements
    /// longer that don't have to be. Returns how many descriptors it has.
    fn begin(&mut self) -> usize {
        let length = ["prefer", "off"][self.rng.below(2) as usize];
        let settings = self.settings.to_str().unwrap();
        let words = ["--takeover", "--keep-length", length, "--config", settings];
        let alg = start_with(self.net, self.backend, self.flavour, &words);
        let fresh = descriptors(&alg);
        if let Some(before) = self.alg.replace(alg) {
            self.keep_log(&before.log());
        }
        fresh
    }

    /// What has happened lately may be asked for.
    fn keep_log(&mut self, log: &str) {
        self.log += &format!("--- {:?}\n{log}", self.begun.elapsed());
        if self.log.len() > LOG {
            self.log = self.log.split_off(self.log.len() - LOG / 2);
        }
    }

    fn signal(&self, signal: Signal) {
        self.alg.as_ref().unwrap().process().unwrap().signal(signal);
    }

    /// The process is ended again and again, and other things happen. In the second half, packets get
    /// lost.
    fn turmoil(&mut self, length: Duration) {
        let begun = Instant::now();
        let mut bad_weather = false;
        while begun.elapsed() < length {
            std::thread::sleep(Duration::from_millis(200 + self.rng.below(600)));
            if !bad_weather && begun.elapsed() * 2 > length {
                bad_weather = true;
                let topology = self.net.topology();
                rules::lose(self.net, topology.client, 0.01);
                rules::lose(self.net, topology.server, 0.01);
            }
            let what = self.one_thing();
            *self.happened.entry(what).or_default() += 1;
        }
    }

    fn one_thing(&mut self) -> &'static str {
        // Each once at first.
        let so_far: u64 = self.happened.values().sum();
        let what = [0, 3, 6, 8, 9].get(so_far as usize).copied();
        match what.unwrap_or_else(|| self.rng.below(10)) {
            0..3 => {
                self.signal(Signal::SIGKILL);
                ended(self.net);
                self.begin();
                "killed"
            }
            3..6 => {
                self.signal(Signal::SIGUSR2);
                ended(self.net);
                self.begin();
                "handed over"
            }
            6..8 => {
                self.begin();
                "replaced"
            }
            8 => {
                self.write_settings();
                self.signal(Signal::SIGHUP);
                "configurations read"
            }
            _ => {
                self.load_rules();
                "rules loaded"
            }
        }
    }

    /// Nothing happens to the process. Says if its memory grows nevertheless.
    fn calm(&mut self, length: Duration) -> Option<String> {
        std::thread::sleep(length / 2);
        let before = memory(self.alg.as_ref().unwrap());
        std::thread::sleep(length / 2);
        let after = memory(self.alg.as_ref().unwrap());
        println!(
            "memory {before} KiB, and {after} KiB after {:?}",
            length / 2
        );
        // What has ended is kept for two minutes, by conntrack and here. Until then the tables fill.
        let patient = length / 2 >= Duration::from_secs(125);
        let grown = patient && after > before + GROWTH;
        grown.then(|| {
            format!(
                "memory grew from {before} to {after} KiB in {:?}",
                length / 2
            )
        })
    }

    fn what_happened(&self) -> String {
        let each = self.happened.iter();
        let each: Vec<_> = each
            .map(|(what, count)| format!("{count} {what}"))
            .collect();
        each.join(", ")
    }

    /// What is left of sessions when all clients have gone, and of what the process had for them. In a
    /// short run not of what is kept of a session for a minute after it has ended, and of a data connection
    /// for two. `fresh`: the descriptors of its first moment.
    fn left(&self, length: Duration, fresh: usize) -> Vec<String> {
        let patient = length >= Duration::from_secs(60);
        // Conntrack keeps them for two minutes, and the process asks once a minute whether it still does.
        let patience = Duration::from_secs(if patient { 270 } else { 20 });
        let deadline = Instant::now() + patience;
        let mut left = self.what_is_left(patient, fresh);
        while !left.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(200));
            left = self.what_is_left(patient, fresh);
        }
        if !left.is_empty() {
            left.push(ftpalg(self.net, &["sessions"]).stdout);
        }
        left
    }

    fn what_is_left(&self, patient: bool, fresh: usize) -> Vec<String> {
        let status = status(self.net);
        let mut left: Vec<(&str, Value)> = vec![("sessions", status["sessions"].clone())];
        if patient {
            left.push(("pinholes", status["pinholes"].clone()));
            left.push(("records", status["journal"]["records"].clone()));
            left.push(("data connections", status["data_connections"].clone()));
            let marked = ["conntrack", "-L", "-m", "0x40000000/0x40000000"];
            let listed = self.net.exec(self.router(), &marked).must().stdout;
            left.push(("connections in the kernel", listed.lines().count().into()));
        }
        left.retain(|(_, count)| *count != 0);
        let mut left: Vec<_> = left
            .into_iter()
            .map(|(what, count)| format!("{count} {what} left"))
            .collect();
        let open = descriptors(self.alg.as_ref().unwrap());
        if open > fresh + SPARE_DESCRIPTORS {
            left.push(format!("{open} descriptors, after {fresh} at first"));
        }
        left
    }

    /// What is left after the end.
    fn ends(&mut self, before: &str) -> Vec<String> {
        let log = self.alg.take().unwrap().stop();
        self.keep_log(&log);
        let mut left = Vec::new();
        if self.rules() != before {
            left.push("other rules than before".to_owned());
        }
        let words = ["cat", "/proc/self/net/netfilter/nfnetlink_queue"];
        let queues = self.net.exec(self.router(), &words).stdout;
        if !queues.is_empty() {
            left.push(format!("queues: {queues}"));
        }
        let journal = journal(self.net);
        if journal.exists() {
            left.push(format!("{} is left", journal.display()));
        }
        // Those that look after handed over rules end by themselves.
        let deadline = Instant::now() + LIMIT;
        let namespace = self.net.namespace(self.router());
        loop {
            let mut list = std::process::Command::new("ip");
            list.args(["netns", "pids", &namespace]);
            let listed = testkit::lab::process::run(list, LIMIT).must().stdout;
            if listed.trim().is_empty() {
                return left;
            }
            if Instant::now() > deadline {
                left.push(format!("processes: {}", listed.replace('\n', " ")));
                return left;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// How many descriptors it has.
fn descriptors(alg: &Running<'_>) -> usize {
    let directory = process(alg).join("fd");
    std::fs::read_dir(directory).unwrap().count()
}

/// How much memory of its own it has, in KiB.
fn memory(alg: &Running<'_>) -> u64 {
    let text = std::fs::read_to_string(process(alg).join("status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

fn process(alg: &Running<'_>) -> PathBuf {
    Path::new("/proc").join(alg.process().unwrap().pid().to_string())
}

/// The gateway's journal.
fn journal(net: &Net) -> PathBuf {
    let namespace = net.namespace(net.topology().router);
    let about = std::fs::metadata(format!("/run/netns/{namespace}")).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&about);
    PathBuf::from(format!("/run/ftpalg/journal-{inode}"))
}
