//! A gateway, the hosts on both sides of it, and the table of who gets through.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, getsockopt, socket, sockopt,
};
use serde_json::Value;

use testkit::lab::alg::{Alg, Running, no_kernel_helper};
use testkit::lab::gateway::ftpalg;
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{Control, accept, listen};
use testkit::lab::topology::{Shape, Topology};

/// The endpoint inside.
pub const USER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Another machine inside: a second address of the same host.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// The endpoint outside.
pub const OUTSIDER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// Another machine outside: a second address of the same host.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
/// Where inside machines have something to hide that no list of service ports names.
pub const SECRET: u16 = 7777;

/// How long anybody waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The same with the kernel's helper where it isn't known to fall: it cuts sessions off by dropping
/// what it can't parse.
const KERNELS_PATIENCE: Duration = Duration::from_millis(500);
/// How long a connection that should fail may take: what the gateway doesn't know, it refuses at
/// once, or drops.
const ATTEMPT: Duration = Duration::from_millis(400);

/// What stands on the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gate {
    /// `nf_conntrack_ftp` and `nf_nat_ftp`.
    Kernel,
    /// `ftpalg` with the backend for nf_tables.
    Nft,
    /// `ftpalg` with the backend for iptables.
    Iptables,
    /// `ftpalg` with the strict rule for active data connections.
    ActiveLate,
}

/// What is known about the kernel's helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    /// It falls: asserted, so that the attack is known to be one.
    Falls,
    /// It isn't asserted what it does.
    Any,
}

/// What came of an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nobody got anywhere.
    Holds,
    /// The same, with what was measured.
    Measured(String),
    /// As far as is promised; what isn't.
    Nearly(String),
    /// Somebody did: where to.
    Falls(String),
}

/// Whether somebody got through.
pub fn falls(if_so: bool, what: &str) -> Outcome {
    match if_so {
        true => Outcome::Falls(what.to_owned()),
        false => Outcome::Holds,
    }
}

/// A bound, and what was measured.
pub fn bounded(value: u64, limit: u64, unit: &str) -> Outcome {
    let text = format!("{value} {unit}");
    match value <= limit {
        true => Outcome::Measured(text),
        false => Outcome::Falls(text),
    }
}

/// What an attack may meet with on the way.
pub type Result<T = Outcome> = std::result::Result<T, Error>;

/// One way to get in.
pub struct Attack {
    /// For the table.
    pub name: &'static str,
    /// What the kernel's helper does.
    pub helper: Helper,
    /// Tries.
    pub run: fn(&Arena) -> Result,
}

/// An attack of the table.
pub fn attack(name: &'static str, helper: Helper, run: fn(&Arena) -> Result) -> Attack {
    Attack { name, helper, run }
}

/// Attacks of one kind, in one network.
pub struct Family {
    /// For the table, and for its order.
    pub name: &'static str,
    /// The network.
    pub topology: Topology,
    /// Whether the user drops what conntrack finds INVALID.
    pub drop_invalid: bool,
    /// The gateways.
    pub gates: &'static [Gate],
    /// Tried one after the other, all in the same network.
    pub attacks: Vec<Attack>,
}

/// Every gateway.
pub const ALL: &[Gate] = &[Gate::Kernel, Gate::Nft, Gate::Iptables];
/// Where the backend makes no difference.
pub const ONE: &[Gate] = &[Gate::Kernel, Gate::Nft];

/// The rows of the table so far, by family.
static TABLE: Mutex<BTreeMap<&'static str, String>> = Mutex::new(BTreeMap::new());

impl Family {
    /// Tries every attack at every gateway, writes the table, and judges.
    ///
    /// # Panics
    /// If `ftpalg` falls, if an attack can't be carried out against it, or if the kernel's helper holds
    /// where it is known to fall: then the attack is none.
    pub fn fight(&self) {
        let columns: Vec<Option<Vec<Result>>> = std::thread::scope(|scope| {
            let gates: Vec<_> = self
                .gates
                .iter()
                .map(|gate| scope.spawn(|| self.gate(*gate)))
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(column) => column,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            gates.into_iter().map(join).collect()
        });
        let mut rows = Vec::new();
        let mut failures = Vec::new();
        for (index, attack) in self.attacks.iter().enumerate() {
            let mut cells = Vec::new();
            for (gate, column) in self.gates.iter().zip(&columns) {
                let Some(column) = column else {
                    cells.push("not available".to_owned());
                    continue;
                };
                let result = &column[index];
                cells.push(match result {
                    Ok(Outcome::Holds) => "holds".to_owned(),
                    Ok(Outcome::Measured(what)) => format!("holds ({what})"),
                    Ok(Outcome::Nearly(what)) => format!("holds, but {what}"),
                    Ok(Outcome::Falls(what)) => format!("falls: {what}"),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => "cuts it off".to_owned(),
                    Err(error) => format!("not carried out: {error}"),
                });
                let right = match (gate, attack.helper) {
                    (Gate::Kernel, Helper::Any) => true,
                    (Gate::Kernel, Helper::Falls) => matches!(result, Ok(Outcome::Falls(_))),
                    _ => matches!(
                        result,
                        Ok(Outcome::Holds | Outcome::Measured(_) | Outcome::Nearly(_))
                    ),
                };
                if !right {
                    failures.push(format!("{gate:?}: {}: {result:?}", attack.name));
                }
            }
            rows.push((attack.name.to_owned(), cells));
        }
        let head = self.gates.iter().map(|gate| match gate {
            Gate::Kernel => "kernel helper",
            Gate::Nft => "ftpalg, nft",
            Gate::Iptables => "ftpalg, iptables",
            Gate::ActiveLate => "ftpalg --strict=active-late",
        });
        let head: Vec<_> = std::iter::once("attack").chain(head).collect();
        let text = format!("{}\n{}\n", self.name, report::table(&head, &rows));
        let mut table = TABLE.lock().unwrap_or_else(|e| e.into_inner());
        table.insert(self.name, text);
        let all: String = table.values().map(|text| format!("{text}\n")).collect();
        report::write("attacks", &all);
        drop(table);
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    fn gate(&self, gate: Gate) -> Option<Vec<Result>> {
        let net = Net::new(&self.topology);
        rules::install(&net, Flavour::Nft, Policy::Drop, self.drop_invalid);
        if gate == Gate::Kernel
            && let Some(why) = no_kernel_helper(&net)
        {
            eprintln!("{}: {why}", self.name);
            return None;
        }
        let arena = Arena::new(&net, gate);
        let results = self.attacks.iter().map(|attack| {
            let falls = gate == Gate::Kernel && attack.helper == Helper::Falls;
            arena.falls.store(falls, Ordering::Relaxed);
            let result = (attack.run)(&arena);
            match arena.foreign_hole() {
                Some(hole) if result.is_ok() => Ok(Outcome::Falls(hole)),
                _ => result,
            }
        });
        let results: Vec<Result> = results.collect();
        let bad = |result: &Result| matches!(result, Err(_) | Ok(Outcome::Falls(_)));
        if gate != Gate::Kernel && results.iter().any(bad) {
            let log = arena.running.log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(60);
            eprintln!("--- ftpalg's log ends\n{}\n---", lines[last..].join("\n"));
            let status = ftpalg(&net, &["status", "--json"]);
            eprintln!("{}\n---", status.log);
        }
        arena.end();
        Some(results)
    }
}

/// A network with a gateway at work.
pub struct Arena<'a> {
    /// The network.
    pub net: &'a Net,
    /// What stands on the gateway.
    pub gate: Gate,
    /// The gateway's address towards the outside.
    pub public: Ipv4Addr,
    /// Whether it is asserted that somebody gets through.
    falls: AtomicBool,
    running: Running<'a>,
    control: TcpListener,
}

/// A control connection, both ends in the hands of the test.
pub struct Pair {
    /// The client's end.
    pub client: Control,
    /// The server's end.
    pub server: Control,
}

impl<'a> Arena<'a> {
    fn new(net: &'a Net, gate: Gate) -> Self {
        let alg = match gate {
            Gate::Kernel => Alg::Kernel,
            Gate::Nft => Alg::Ftpalg(vec!["--backend".into(), "nft".into()]),
            Gate::Iptables => Alg::Ftpalg(vec!["--backend".into(), "iptables".into()]),
            Gate::ActiveLate => Alg::Ftpalg(vec!["--strict=active-late".into()]),
        };
        let topology = net.topology();
        let (inner, outer) = hosts(topology);
        for (host, more) in [(inner, NEIGHBOUR), (outer, STRANGER)] {
            let address = format!("{more}/32");
            net.exec(host, &["ip", "address", "add", &address, "dev", "e0"])
                .must();
        }
        let public = match topology.shape {
            Shape::ServerInside => Ipv4Addr::new(203, 0, 113, 1),
            Shape::ClientInside if topology.hosts.iter().any(|host| host.name == "wo") => {
                Ipv4Addr::new(192, 0, 2, 2)
            }
            Shape::ClientInside => Ipv4Addr::new(198, 51, 100, 1),
        };
        let control = net.within(topology.server, || listen(topology.listen));
        Self {
            net,
            gate,
            public,
            falls: AtomicBool::new(false),
            running: alg.start(net, Flavour::Nft),
            control: control.expect("the server's address is free"),
        }
    }

    fn end(self) {
        drop(self.running.stop());
    }

    /// The process id of `ftpalg`.
    pub fn pid(&self) -> Option<u32> {
        self.running.process().map(|process| process.pid())
    }

    /// The host of the endpoint inside.
    pub fn inner(&self) -> &'static str {
        hosts(self.net.topology()).0
    }

    /// The host of the endpoint outside.
    pub fn outer(&self) -> &'static str {
        hosts(self.net.topology()).1
    }

    /// A control connection from a client with this address and port (0: any).
    pub fn pair_from(&self, client: SocketAddrV4) -> Result<Pair> {
        let topology = self.net.topology();
        let SocketAddr::V4(dial) = topology.dial else {
            return Err(Error::other("IPv4 only"));
        };
        let deadline = Instant::now() + PATIENCE;
        let connect = || loop {
            match connect_from(client, dial, PATIENCE) {
                // The last packet of an old connection between these ports is still on its way.
                Err(e) if e.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                result => return result,
            }
        };
        let stream = self.net.within(topology.client, connect)?;
        Ok(Pair {
            client: Control::new(stream, self.patience())?,
            server: self.accepted()?,
        })
    }

    /// The server's end of the control connection that somebody has just made.
    pub fn accepted(&self) -> Result<Control> {
        Control::new(accept(&self.control, PATIENCE)?, self.patience())
    }

    /// How long an end of a control connection waits for what must come.
    pub fn patience(&self) -> Duration {
        match self.gate {
            Gate::Kernel if !self.falls.load(Ordering::Relaxed) => KERNELS_PATIENCE,
            _ => PATIENCE,
        }
    }

    /// How long somebody tries to get through: not for long, unless it is asserted that he does.
    pub fn attempt(&self) -> Duration {
        match self.falls.load(Ordering::Relaxed) {
            true => PATIENCE,
            false => ATTEMPT,
        }
    }

    /// A control connection.
    pub fn pair(&self) -> Result<Pair> {
        let client = match self.net.topology().shape {
            Shape::ServerInside => OUTSIDER,
            Shape::ClientInside => USER,
        };
        self.pair_from(SocketAddrV4::new(client, 0))
    }

    /// A control connection whose client has logged in.
    pub fn session(&self) -> Result<Pair> {
        let mut pair = self.pair()?;
        pair.log_in()?;
        Ok(pair)
    }

    /// A service inside.
    pub fn service(&self, ip: Ipv4Addr, port: u16) -> Result<TcpListener> {
        let at = SocketAddr::from((ip, port));
        let listener = self.net.within(self.inner(), || listen(at))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Whether somebody outside gets through to a service by connecting to this port of the gateway,
    /// or to that of any pinhole there is.
    pub fn reaches(&self, from: Ipv4Addr, port: u16, service: &TcpListener) -> Result<bool> {
        self.reaches_within(self.attempt(), from, port, service)
    }

    /// The same, with a limit for each connection.
    pub fn reaches_within(
        &self,
        limit: Duration,
        from: Ipv4Addr,
        port: u16,
        service: &TcpListener,
    ) -> Result<bool> {
        let mut ports = vec![port];
        ports.extend(
            self.holes()
                .iter()
                .filter_map(|hole| hole.to.map(|to| to.port())),
        );
        for port in ports {
            let to = SocketAddrV4::new(self.public, port);
            let connection = self.net.within(self.outer(), || {
                connect_from(SocketAddrV4::new(from, 0), to, limit)
            });
            if arrived(connection.is_ok(), service)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The pinholes of `ftpalg` that wait for their connection.
    pub fn holes(&self) -> Vec<Hole> {
        if self.gate == Gate::Kernel {
            return Vec::new();
        }
        let text = ftpalg(self.net, &["pinholes", "--json"]).must().stdout;
        let all: Value = serde_json::from_str(&text).expect("JSON");
        let rows = all.as_array().cloned().unwrap_or_default();
        let waits = |row: &&Value| row["state"] != "used";
        rows.iter().filter(waits).map(Hole::new).collect()
    }

    /// A pinhole that isn't between the two endpoints, or leads to a port that is nobody's business.
    fn foreign_hole(&self) -> Option<String> {
        let ends = [USER, OUTSIDER, STRANGER].map(IpAddr::from);
        let bad = |hole: &Hole| {
            let land = hole.land;
            let from = hole.from;
            let own = land.is_some_and(|land| {
                ends.contains(&land.ip()) && land.port() >= 1024 && land.port() != 6000
            });
            !own || from.is_none_or(|from| !ends.contains(&from))
        };
        let hole = self.holes().into_iter().find(bad)?;
        Some(format!("a pinhole: {}", hole.text))
    }
}

fn hosts(topology: &Topology) -> (&'static str, &'static str) {
    match topology.shape {
        Shape::ServerInside => (topology.server, topology.client),
        Shape::ClientInside => (topology.client, topology.server),
    }
}

/// A pinhole as `ftpalg pinholes --json` tells of it.
pub struct Hole {
    /// Who may connect.
    pub from: Option<IpAddr>,
    /// To where.
    pub to: Option<SocketAddr>,
    /// Where that leads.
    pub land: Option<SocketAddr>,
    /// All of it.
    pub text: String,
}

impl Hole {
    fn new(row: &Value) -> Self {
        let word = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        Self {
            from: word("from").parse().ok(),
            to: word("to").parse().ok(),
            land: word("land").parse().ok(),
            text: row.to_string(),
        }
    }
}

impl Pair {
    /// Greeting and login.
    pub fn log_in(&mut self) -> Result<()> {
        self.server.send("220 ready\r\n")?;
        self.client.expect("220")?;
        self.ask("USER lab\r\n", "331 password, please\r\n")?;
        self.ask("PASS lab\r\n", "230 welcome\r\n")?;
        Ok(())
    }

    /// The client says this, the server answers that; returns the lines as they were read. All lines
    /// of the answer are read, each was sent in a segment of its own.
    pub fn ask(&mut self, command: &str, answer: &str) -> Result<(String, String)> {
        self.client.send(command)?;
        let command = self.server.read()?;
        Ok((command, self.say(answer)?))
    }

    /// The server says these lines, each in a segment of its own.
    pub fn say(&mut self, lines: &str) -> Result<String> {
        let mut read = String::new();
        for line in lines.split_inclusive('\n') {
            self.server.send(line)?;
            read += &self.client.read()?;
        }
        Ok(read)
    }
}

/// Whether somebody connected to a service.
pub fn came(service: &TcpListener) -> Result<bool> {
    match service.accept() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same, right after somebody tried. Whoever connected is there before the end of the handshake
/// is, which is waited for.
pub fn arrived(connected: bool, service: &TcpListener) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while !came(service)? {
        if !connected || Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}

/// Connects from an address of the calling thread's namespace.
pub fn connect_from(from: SocketAddrV4, to: SocketAddrV4, limit: Duration) -> Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    nix::sys::socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(from))?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = Instant::now() + limit;
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let left = deadline.saturating_duration_since(Instant::now());
    let left = PollTimeout::try_from(left).map_err(Error::other)?;
    if poll(&mut fds, left)? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    match getsockopt(&fd, sockopt::SocketError)? {
        0 => {}
        code => return Err(Error::from_raw_os_error(code)),
    }
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
