//! Sessions outlive their gateway: the other one of two takes the addresses over, with keepalived and
//! conntrackd as `packaging/ha` configures them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use testkit::lab::gateway::{Control, LIMIT, download};
use testkit::lab::net::Net;
use testkit::lab::pair::{GATEWAYS, LONGER, Pair, Plan};
use testkit::lab::process::Process;
use testkit::lab::rules;
use testkit::lab::scripted::{Verb, accept};
use testkit::lab::server::{Config, Kind, Server, content};

/// A file that is still under way while a client that reads slowly has only its beginning.
const LONG: &str = "long.bin";
const LONG_SIZE: usize = 1 << 20;
/// What the client has read of it when the gateway moves.
const BEGINNING: usize = 64 << 10;

/// A session with a client that does as it is told.
struct Session<'a> {
    name: String,
    net: &'a Net,
    server: &'a Server,
    verb: Verb,
    control: Control,
}

/// A transfer that is under way.
struct Transfer {
    data: TcpStream,
    got: Vec<u8>,
    file: &'static str,
}

impl<'a> Session<'a> {
    fn open(net: &'a Net, server: &'a Server, verb: Verb) -> Self {
        let mut control = Control::dial(net);
        control.log_in(server);
        Self {
            name: format!(
                "{verb:?} {}→{}",
                net.topology().client,
                net.topology().server
            ),
            net,
            server,
            verb,
            control,
        }
    }

    /// Announces a data connection, and makes it.
    #[track_caller]
    fn begin(&mut self, file: &'static str) -> Transfer {
        let announced = self.announcement();
        self.uses(announced, file)
    }

    /// Announces a data connection.
    #[track_caller]
    fn announcement(&mut self) -> Announced {
        match self.verb.passive() {
            true => Announced::Passive(self.announced()),
            false => Announced::Active(self.announces()),
        }
    }

    /// Makes a data connection that was announced.
    #[track_caller]
    fn uses(&mut self, announced: Announced, file: &'static str) -> Transfer {
        let retrieve = format!("RETR {file}\r\n");
        let data = match announced {
            Announced::Passive(to) => {
                let data = self.connect(to);
                let data = data.unwrap_or_else(|error| panic!("{}: {to}: {error}", self.name));
                self.control.ask(&retrieve, "1");
                data
            }
            Announced::Active(listener) => {
                self.control.ask(&retrieve, "1");
                accept(&listener, LIMIT).unwrap_or_else(|error| panic!("{}: {error}", self.name))
            }
        };
        data.set_read_timeout(Some(LIMIT)).unwrap();
        setsockopt(&data, sockopt::RcvBuf, &(32 << 10)).unwrap();
        Transfer {
            data,
            got: Vec::new(),
            file,
        }
    }

    /// Where the server is told to listen.
    #[track_caller]
    fn announced(&mut self) -> SocketAddr {
        let peer = self.control.0.get_ref().peer_addr().unwrap();
        let command = if self.verb == Verb::Pasv {
            "PASV"
        } else {
            "EPSV"
        };
        let reply = self.control.ask(&format!("{command}\r\n"), "22");
        self.verb.address(&reply, peer.ip()).unwrap()
    }

    /// Tells the server where this client listens.
    #[track_caller]
    fn announces(&mut self) -> TcpListener {
        let own = self.control.0.get_ref().local_addr().unwrap();
        let bind = || TcpListener::bind((own.ip(), 0)).unwrap();
        let listener = self.net.within(self.net.topology().client, bind);
        let line = self.verb.line(listener.local_addr().unwrap());
        self.control.ask(&line, "200");
        listener
    }

    fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        self.connect_within(to, LIMIT)
    }

    fn connect_within(&self, to: SocketAddr, limit: Duration) -> std::io::Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&to, limit);
        self.net.within(self.net.topology().client, connect)
    }

    #[track_caller]
    fn finish(&mut self, mut transfer: Transfer) {
        let read = transfer.data.read_to_end(&mut transfer.got);
        read.unwrap_or_else(|error| {
            panic!("{}: {error} after {} bytes", self.name, transfer.got.len())
        });
        let expected = std::fs::read(self.server.path(transfer.file)).unwrap();
        assert!(transfer.got == expected, "{}: other bytes", self.name);
        drop(transfer);
        let last = self.control.reply();
        assert!(last.starts_with("226"), "{}: {last}", self.name);
    }

    /// Whether an address is rewritten in it: what an end inside announces, with its address.
    fn is_rewritten(&self) -> bool {
        match self.net.topology().server {
            "i" => self.verb == Verb::Pasv,
            _ => !self.verb.passive(),
        }
    }

    /// Asserts that nothing comes but a RST.
    #[track_caller]
    fn is_reset(&mut self) {
        let mut got = Vec::new();
        let read = self.control.0.read_to_end(&mut got).map_err(|e| e.kind());
        let text = String::from_utf8_lossy(&got);
        assert_eq!(
            (read, &*text),
            (Err(ErrorKind::ConnectionReset), ""),
            "{}",
            self.name
        );
    }

    #[track_caller]
    fn transfer(&mut self) {
        let transfer = self.begin(Server::SMALL);
        self.finish(transfer);
    }
}

impl Transfer {
    /// Reads the first part.
    fn begins(&mut self) {
        self.got.resize(BEGINNING, 0);
        self.data.read_exact(&mut self.got).unwrap();
    }
}

/// A server on either side, and their clients' views of the network.
struct Users {
    views: [Net; 2],
    servers: [Server; 2],
}

impl Users {
    fn new(pair: &Pair) -> Self {
        Self::with(pair, Kind::Pyftpdlib)
    }

    /// With a server whose data connections come from any port. From port 20, they would have the ends of
    /// earlier ones again and again: a SYN that meets a copy of such an entry in conntrack may be passed or
    /// dropped as part of the earlier one, since conntrackd doesn't copy how that ended.
    fn with(pair: &Pair, kind: Kind) -> Self {
        let views = [pair.net.recast(|_| {}), pair.masqueraded()];
        let servers = views.each_ref().map(|net| {
            let server = Server::start(
                net,
                &Config {
                    from_port_20: false,
                    connect_timeout: Duration::from_secs(5),
                    ..Config::new(kind)
                },
            );
            server.publish(LONG, &content(5, LONG_SIZE));
            server
        });
        Self { views, servers }
    }

    /// A session for each kind of announcement, of both clients.
    fn sessions(&self) -> Vec<Session<'_>> {
        let places = self.views.iter().zip(&self.servers);
        let verbs = |(net, server)| Verb::ALL.map(|verb| Session::open(net, server, verb));
        places.flat_map(verbs).collect()
    }
}

/// Clients that do nothing but small sessions, one after the other, two in either place. None of them sets a
/// connection up while the gate is held.
struct Loops {
    clients: Vec<Process>,
    gate: PathBuf,
    stop: PathBuf,
}

impl Loops {
    fn start(pair: &Pair, users: &Users) -> Self {
        let [gate, stop] = ["gate", "stop"].map(|name| pair.net.directory().join(name));
        drop(std::fs::remove_file(&stop));
        std::fs::write(&gate, "").unwrap();
        let places = users.views.iter().zip(&users.servers);
        let client = |(net, server): (&Net, &Server), active| {
            let (login, dial) = (server.login(), net.topology().dial);
            let mut command = net.command(net.topology().client, "python3");
            command
                .args(["-c", include_str!("two_gateways/sessions.py")])
                .args([dial.ip().to_string(), dial.port().to_string()])
                .args([login.user, login.password, Server::SMALL])
                .arg(server.path(Server::SMALL))
                .arg(active)
                .args([&gate, &stop]);
            Process::spawn(command)
        };
        let clients = places.flat_map(|place| ["0", "1"].map(|active| client(place, active)));
        Self {
            clients: clients.collect(),
            gate,
            stop,
        }
    }

    /// Waits until nobody sets a connection up; nobody does until the result is dropped.
    fn hold(&self) -> Flock<File> {
        Flock::lock(File::open(&self.gate).unwrap(), FlockArg::LockExclusive).unwrap()
    }

    /// What they did, and what they lost.
    fn end(self) -> (String, Vec<String>) {
        std::fs::write(&self.stop, "").unwrap();
        let (mut done, mut lost) = (Vec::new(), Vec::new());
        for client in self.clients {
            let finished = client.finish(Duration::from_secs(60)).must();
            for line in finished.stdout.lines().map(str::to_owned) {
                match line.ends_with(" lost") {
                    true => done.push(line),
                    false => lost.push(line),
                }
            }
        }
        (done.join("; "), lost)
    }
}

/// Does this with each session, all at the same time.
fn all<'a, T: Send>(
    sessions: &mut [Session<'a>],
    what: impl Fn(usize, &mut Session<'a>) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let what = &what;
        let begun: Vec<_> = (sessions.iter_mut().enumerate())
            .map(|(at, session)| scope.spawn(move || what(at, session)))
            .collect();
        let ended = begun.into_iter().map(|thread| thread.join());
        ended
            .map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Begins a transfer in every other session; in which of them, `turn` says.
fn begin(sessions: &mut [Session<'_>], turn: usize) -> Vec<Option<Transfer>> {
    all(sessions, |at, session| {
        (at + turn).is_multiple_of(2).then(|| {
            let mut transfer = session.begin(LONG);
            transfer.begins();
            transfer
        })
    })
}

/// Finishes these transfers, and makes a further one in each session.
fn go_on(sessions: &mut [Session<'_>], running: Vec<Option<Transfer>>) {
    let running = Mutex::new(running);
    all(sessions, |at, session| {
        let transfer = running.lock().unwrap()[at].take();
        if let Some(transfer) = transfer {
            session.finish(transfer);
        }
        session.transfer();
    });
}

/// A data connection that was announced, and that nobody has made yet.
enum Announced {
    /// The server listens there.
    Passive(SocketAddr),
    /// The client listens.
    Active(TcpListener),
}

/// Announces a data connection in each session that has no transfer.
fn announce(sessions: &mut [Session<'_>], running: &[Option<Transfer>]) -> Vec<Option<Announced>> {
    all(sessions, |at, session| {
        running[at].is_none().then(|| session.announcement())
    })
}

/// Makes these data connections, and has a file come through each.
fn use_announced(sessions: &mut [Session<'_>], announced: &mut Vec<Option<Announced>>) {
    let announced = Mutex::new(std::mem::take(announced));
    all(sessions, |at, session| {
        let announced = announced.lock().unwrap().get_mut(at).and_then(Option::take);
        if let Some(announced) = announced {
            let transfer = session.uses(announced, Server::SMALL);
            session.finish(transfer);
        }
    });
}

/// What conntrack found INVALID, on both gateways together.
fn invalid(pair: &Pair) -> u64 {
    let each = GATEWAYS.map(|gateway| rules::invalid(&pair.net, gateway));
    each.iter().sum()
}

/// What the gateways keep for one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    /// What is in connection marks. All announcements keep their length.
    Marks,
    /// What is in a store, too. Announcements that are rewritten get longer.
    Store,
}

/// Two gateways with a store. Every session in which an address is rewritten gets numbers that differ on the
/// two sides.
fn uneven() -> Pair {
    let plan = Plan {
        public: LONGER,
        ..Plan::default()
    };
    Pair::of(plan, &["--keep-length", "off", "--state", Pair::STATE])
}

/// How long the addresses move.
#[derive(Clone, Copy, Debug)]
enum Length {
    Moves(usize),
    Time(Duration),
}

impl Length {
    /// What `SOAK_MOVES` or `SOAK_SECONDS` says.
    fn told() -> Self {
        let number = |name| Some(std::env::var(name).ok()?.parse().unwrap());
        let time =
            || number("SOAK_SECONDS").map(|seconds| Self::Time(Duration::from_secs(seconds)));
        let moves = || number("SOAK_MOVES").map_or(200, |moves| moves as usize);
        time().unwrap_or_else(|| Self::Moves(moves()))
    }

    fn is_over(self, moves: usize, begun: Instant) -> bool {
        match self {
            Self::Moves(most) => moves >= most,
            Self::Time(time) => begun.elapsed() >= time,
        }
    }
}

/// The addresses move back and forth: no session is lost, and no transfer. With a store, no announced data
/// connection either.
fn moved(backend: &str, shared: Shared, length: Length) {
    let mut pair = match shared {
        Shared::Marks => Pair::new(&[]),
        Shared::Store => uneven(),
    };
    let _store = (shared == Shared::Store).then(|| pair.start_store());
    pair.becomes_master(0);
    pair.start_ftpalg(backend);
    let users = match shared {
        Shared::Marks => Users::new(&pair),
        // This server connects when it is to send something, not with the announcement.
        Shared::Store => Users::with(&pair, Kind::Vsftpd),
    };
    let mut sessions = users.sessions();
    let loops = Loops::start(&pair, &users);
    let (mut under_way, mut pending, mut invalid_at_moves) = (0, 0, 0);
    let (begun, invalid_before) = (Instant::now(), invalid(&pair));
    let mut moves = 0;
    while !length.is_over(moves, begun) {
        let number = moves;
        moves += 1;
        let (from, to) = (number % 2, 1 - number % 2);
        // Each is idle at every other move of either direction.
        let running = begin(&mut sessions, number / 2);
        let mut announced = match shared {
            Shared::Marks => Vec::new(),
            Shared::Store => announce(&mut sessions, &running),
        };
        pending += announced.iter().flatten().count();
        let nobody_connects = loops.hold();
        pair.is_carried_over(from);
        if shared == Shared::Store {
            pair.is_stored(from);
        }
        let before = invalid(&pair);
        pair.moves_to(to);
        invalid_at_moves += invalid(&pair) - before;
        drop(nobody_connects);
        under_way += running.iter().flatten().count();
        use_announced(&mut sessions, &mut announced);
        go_on(&mut sessions, running);
        for (net, server) in users.views.iter().zip(&users.servers) {
            download(net, server, &[]).must();
        }
    }
    let (done, lost) = loops.end();
    let took = begun.elapsed();
    let status = [0, 1].map(|at| pair.status(at));
    let counter = |name: &str| {
        status
            .each_ref()
            .map(|s| s["counters"][name].as_u64().unwrap())
    };
    println!(
        "{backend}, {shared:?}: {moves} moves in {took:?}: {} sessions with {under_way} transfers under way \
         and {pending} announced ones at a move, {} and 2 of curl between moves; in loops: {done}; joined {:?}; INVALID: {} at moves, {} in all",
        sessions.len(),
        sessions.len(),
        counter("joined"),
        invalid_at_moves,
        invalid(&pair) - invalid_before,
    );
    assert!(lost.is_empty(), "{}", lost.join("\n"));
    for session in &mut sessions {
        session.control.ask("QUIT\r\n", "221");
    }
    // Each time, the other gateway went on with all of them.
    let least = (sessions.len() * moves) as u64;
    assert!(counter("joined").iter().sum::<u64>() >= least);
    for name in ["mark_errors", "not_opened", "refused", "limit_reached"] {
        assert_eq!(counter(name), [0, 0], "{name}: {status:?}");
    }
}

#[test]
fn sessions_go_on_when_the_addresses_move() {
    moved("nft", Shared::Marks, Length::Moves(10));
}

#[test]
fn sessions_go_on_with_the_other_backend() {
    moved("iptables", Shared::Marks, Length::Moves(4));
}

#[test]
fn with_a_store_everything_goes_on() {
    moved("nft", Shared::Store, Length::Moves(6));
}

#[test]
fn with_a_store_everything_goes_on_with_the_other_backend() {
    moved("iptables", Shared::Store, Length::Moves(4));
}

/// An announced data connection that nobody has used yet doesn't move: the other gateway knows nothing of
/// it. The session goes on with the next one.
#[test]
fn an_announced_data_connection_is_lost_alone() {
    let mut pair = Pair::new(&[]);
    pair.becomes_master(0);
    pair.start_ftpalg("nft");
    // This server connects when it is to send something.
    let users = Users::with(&pair, Kind::Vsftpd);
    let mut sessions = users.sessions();
    sessions.retain(|session| matches!(session.verb, Verb::Pasv | Verb::Port));
    for (number, session) in sessions.iter_mut().enumerate() {
        let (from, to) = (number % 2, 1 - number % 2);
        let name = session.name.clone();
        session.transfer();
        if session.verb.passive() {
            let announced = session.announced();
            pair.is_carried_over(from);
            pair.moves_to(to);
            let data = session.connect_within(announced, Duration::from_secs(1));
            assert!(data.is_err(), "{name}: {announced} is open");
        } else {
            let listener = session.announces();
            pair.is_carried_over(from);
            pair.moves_to(to);
            let command = format!("RETR {}\r\n", Server::SMALL);
            session.control.send(&command);
            let data = accept(&listener, Duration::from_secs(1));
            assert!(data.is_err(), "{name}: the server came through");
            // When the server's patience ends.
            assert!(session.control.reply().starts_with("425"), "{name}");
        }
        session.transfer();
        assert_eq!(pair.status(to)["counters"]["not_opened"], 0, "{name}");
    }
}

/// `ftpalg` on the other gateway is late. The first SYN of an announced data connection comes before the
/// pinhole is open; one of the next gets through.
#[test]
fn a_data_connection_may_come_before_its_pinhole() {
    for backend in ["nft", "iptables"] {
        let mut pair = uneven();
        let _store = pair.start_store();
        pair.becomes_master(0);
        pair.start_ftpalg(backend);
        let users = Users::with(&pair, Kind::Vsftpd);
        let mut sessions = users.sessions();
        sessions.retain(|session| session.verb.passive());
        let announced = all(&mut sessions, |_, session| session.announced());
        pair.is_carried_over(0);
        pair.is_stored(0);
        let late = pair.ftpalg(1);
        late.signal(Signal::SIGSTOP);
        pair.moves_to(1);
        std::thread::scope(|scope| {
            let connects: Vec<_> = (sessions.iter().zip(&announced))
                .map(|(session, to)| scope.spawn(|| session.connect(*to).map(drop)))
                .collect();
            wait_for(&pair, "each has sent a SYN", |pair| {
                let sent = |host| {
                    let words = ["ss", "-Htn", "state", "syn-sent"];
                    pair.net.exec(host, &words).must().stdout.lines().count()
                };
                sent("i") + sent("o") == announced.len()
            });
            late.signal(Signal::SIGCONT);
            for (session, connect) in sessions.iter().zip(connects) {
                let made = connect.join().unwrap();
                made.unwrap_or_else(|error| panic!("{backend}, {}: {error}", session.name));
            }
        });
    }
}

/// The store fails. Sessions whose numbers are the same on both sides need none of it.
#[test]
fn without_the_store_even_sessions_go_on() {
    let pair = Pair::new(&["--state", Pair::STATE]);
    store_fails(pair, |pair, mut sessions, running| {
        go_on(&mut sessions, running);
        pair.is_carried_over(1);
        pair.moves_to(0);
        all(&mut sessions, |_, session| session.transfer());
    });
}

/// The others end where they are after the move: both ends are told, and get no byte out of place.
#[test]
fn without_the_store_sessions_with_a_delta_end() {
    store_fails(uneven(), |pair, mut sessions, running| {
        let running = Mutex::new(running);
        all(&mut sessions, |at, session| {
            if !session.is_rewritten() {
                let transfer = running.lock().unwrap()[at].take();
                transfer.into_iter().for_each(|t| session.finish(t));
                return session.transfer();
            }
            match running.lock().unwrap()[at].take() {
                // The server speaks when all is sent.
                Some(mut transfer) => {
                    drop(transfer.data.read_to_end(&mut transfer.got));
                    let expected = std::fs::read(session.server.path(transfer.file)).unwrap();
                    let name = &session.name;
                    assert!(expected.starts_with(&transfer.got), "{name}: other bytes");
                }
                None => session.control.send("NOOP\r\n"),
            }
            session.is_reset();
        });
        let (ended, left): (Vec<_>, Vec<_>) = sessions.into_iter().partition(Session::is_rewritten);
        assert_eq!((ended.len(), left.len()), (3, 5));
        for (server, open) in [("i", 3), ("o", 2)] {
            wait_for(pair, "the server was told", |pair| {
                let words = ["ss", "-Htn", "state", "established", "sport", "=", ":21"];
                let listed = pair.net.exec(server, &words).must().stdout;
                listed.lines().count() == open
            });
        }
        let orphaned = pair.status(1)["counters"]["orphaned"].as_u64().unwrap();
        assert!(orphaned >= ended.len() as u64, "{orphaned}");
    });
}

/// The store fails while sessions are idle and in the middle of transfers, and then the addresses move.
fn store_fails(mut pair: Pair, then: impl FnOnce(&Pair, Vec<Session<'_>>, Vec<Option<Transfer>>)) {
    let store = pair.start_store();
    pair.becomes_master(0);
    pair.start_ftpalg("nft");
    let users = Users::new(&pair);
    let mut sessions = users.sessions();
    all(&mut sessions, |_, session| session.transfer());
    store.fails();
    // Here, it isn't missed.
    all(&mut sessions, |_, session| session.transfer());
    let running = begin(&mut sessions, 0);
    pair.is_carried_over(0);
    pair.moves_to(1);
    then(&pair, sessions, running);
    for gateway in [0, 1] {
        let log = pair.log(gateway);
        let told = log.lines().filter(|line| line.contains("doesn't answer"));
        assert_eq!(told.count(), 1, "{log}");
    }
}

/// keepalived itself: the active gateway's is killed, the other gateway takes over, and sessions go on.
#[test]
fn keepalived_moves_the_addresses() {
    let mut pair = Pair::of(
        Plan {
            purge: 1,
            ..Plan::default()
        },
        &[],
    );
    pair.start_keepalived(0);
    wait_for(&pair, "the first one has the addresses", |pair| {
        pair.masters() == [0]
    });
    pair.start_keepalived(1);
    pair.start_ftpalg("nft");
    let users = Users::new(&pair);
    let mut sessions = users.sessions();
    all(&mut sessions, |_, session| session.transfer());
    let running = begin(&mut sessions, 0);
    assert_eq!(pair.masters(), [0]);
    pair.is_carried_over(0);
    // It gives the addresses back, as when the service is stopped.
    pair.stop_keepalived(0);
    wait_for(&pair, "the second one has the addresses", |pair| {
        pair.masters() == [1]
    });
    go_on(&mut sessions, running);
    wait_for(&pair, "the first one has forgotten all", |pair| {
        pair.connections(0) == 0
    });
    // And back again, with the whole gateway gone: nobody says goodbye.
    pair.start_keepalived(0);
    wait_for(&pair, "the first one is ready", |pair| {
        pair.keepalived(0).log().contains("Entering BACKUP STATE")
    });
    let running = begin(&mut sessions, 1);
    pair.is_carried_over(1);
    pair.fails(1);
    wait_for(&pair, "the first one has the addresses again", |pair| {
        pair.masters().contains(&0)
    });
    go_on(&mut sessions, running);
    assert_eq!(pair.status(1)["counters"]["joined"], sessions.len());
}

#[track_caller]
fn wait_for(pair: &Pair, what: &str, is: impl Fn(&Pair) -> bool) {
    let deadline = Instant::now() + 2 * LIMIT;
    while !is(pair) {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Many moves.
#[test]
#[ignore = "takes as long as it is told: scripts/soak"]
fn soak() {
    moved("nft", Shared::Marks, Length::told());
}

/// The same with a store.
#[test]
#[ignore = "takes as long as it is told: scripts/soak"]
fn soak_with_a_store() {
    moved("nft", Shared::Store, Length::told());
}
