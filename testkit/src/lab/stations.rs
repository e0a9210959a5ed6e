//! Networks with any number of gateways, clients and servers: who talks to whom, and what is expected.
//!
//! [`super::scenario`] is the thorough look at one gateway: every client with every server. Here is
//! the breadth: a few clients and servers through many networks, with both pinhole backends.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::client::{Client, Done, Job, Mode, each_of, limits};
use super::net::Net;
use super::process::{Process, run};
use super::report;
use super::rules::{self, Flavour};
use super::scenario::greeting;
use super::server::{Config, Kind, Server, content};
use super::topology::{Host, Link, Shape, Topology, at, host, published_links, router};

/// How long `ftpalg` may take to start, to stop and to answer.
const LIMIT: Duration = Duration::from_secs(10);

/// The pinhole backends.
pub const BACKENDS: [&str; 2] = ["nft", "iptables"];

/// A few clients that say each of the four things a gateway looks at.
pub const FEW: [Client; 6] = [
    Client::CurlPasv,
    Client::CurlEpsv,
    Client::CurlPort,
    Client::CurlEprt,
    Client::LftpPasv,
    Client::FtplibPort,
];

/// The same for IPv6, where there is no `PASV` and no `PORT`.
pub const FEW_V6: [Client; 4] = [
    Client::CurlEpsv,
    Client::CurlEprt,
    Client::LftpPasv,
    Client::FtplibPort,
];

/// A host with rules of its user's, and with `ftpalg`.
#[derive(Clone, Debug)]
pub struct Station {
    /// The host.
    pub host: &'static str,
    /// The user's rules, for `iptables-restore --noflush`.
    pub v4: String,
    /// The user's rules, for `ip6tables-restore --noflush`.
    pub v6: String,
    /// What `ftpalg run` gets besides the backend; none: it doesn't run here.
    pub arguments: Vec<&'static str>,
    /// The words in front of `ftpalg` that put it where it is to run; none: the host's namespace.
    pub wrapper: Vec<String>,
}

/// A client, a server and the way between them.
#[derive(Clone, Debug)]
pub struct Part {
    /// For reports.
    pub name: &'static str,
    /// The host of the clients.
    pub client: &'static str,
    /// The host of the server.
    pub server: &'static str,
    /// Where the server listens.
    pub listen: SocketAddr,
    /// Where the clients connect to.
    pub dial: SocketAddr,
    /// The clients.
    pub clients: Vec<Client>,
    /// The modes that work without an ALG.
    pub works_without: &'static [Mode],
}

/// A network, its gateways, and who uses it.
#[derive(Clone, Debug)]
pub struct Case {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The cables.
    pub links: Vec<Link>,
    /// Gateways, firewalls, and hosts that serve themselves.
    pub stations: Vec<Station>,
    /// Who uses it.
    pub parts: Vec<Part>,
    /// The server programs, one after the other.
    pub servers: Vec<Config>,
    /// How many clients work at the same time.
    pub at_once: usize,
    /// Which iptables holds the users' rules.
    pub flavour: Flavour,
    /// The pinhole backends that it is run with.
    pub backends: Vec<&'static str>,
}

/// What came of one pinhole backend with one server program.
pub struct Outcome {
    /// `nft` or `iptables`.
    pub backend: &'static str,
    /// What `ftpalg` printed, by station.
    pub logs: Vec<String>,
    /// How many clients needed a second session, for a reason of the server's.
    pub again: usize,
    /// `ftpalg status --json` before it was stopped, by station.
    pub status: Vec<serde_json::Value>,
}

impl Case {
    /// A case without users yet.
    pub fn new(hosts: Vec<Host>, links: Vec<Link>, stations: Vec<Station>) -> Self {
        Self {
            hosts,
            links,
            stations,
            parts: Vec::new(),
            servers: [Kind::Vsftpd, Kind::Pyftpdlib].map(Config::new).to_vec(),
            at_once: 4,
            flavour: Flavour::Nft,
            backends: BACKENDS.to_vec(),
        }
    }

    /// The same with a further user.
    pub fn part(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// Brings the network up with the user's rules.
    pub fn build(&self) -> Net {
        let net = Net::new(&self.topology(&self.parts[0]));
        self.install_rules(&net);
        net
    }

    /// Installs the users' rules.
    pub fn install_rules(&self, net: &Net) {
        for station in &self.stations {
            for (program, text) in [("iptables", &station.v4), ("ip6tables", &station.v6)] {
                let restore = self.flavour.iptables().replace("iptables", program) + "-restore";
                let mut text = text.clone();
                if self.flavour == Flavour::Legacy {
                    // As on most hosts: a table is listed for good once anybody has looked at it.
                    text += "*nat\nCOMMIT\n*mangle\nCOMMIT\n*raw\nCOMMIT\n*filter\nCOMMIT\n";
                }
                // All namespaces share the legacy flavour's lock.
                net.feed(station.host, &[&restore, "-w", "10", "--noflush"], &text)
                    .must();
            }
        }
    }

    /// Runs all of it with both backends, and first without an ALG. Writes the table
    /// `target/lab-report/<name>.txt`.
    ///
    /// # Panics
    /// If anything isn't as expected: a transfer that works without an ALG and should not, or
    /// doesn't work with it; a packet that conntrack finds INVALID; rules that aren't as before;
    /// an announcement that was not followed.
    pub fn run(&self, name: &str) -> Vec<Outcome> {
        self.run_on(&self.build(), name)
    }

    /// The same on a network that was [built](Self::build) before.
    ///
    /// # Panics
    /// As [`Self::run`].
    pub fn run_on(&self, net: &Net, name: &str) -> Vec<Outcome> {
        let mut problems = self.without(net);
        let mut outcomes = Vec::new();
        let mut columns = Vec::new();
        for &backend in &self.backends {
            for server in &self.servers {
                let head = format!("{backend}, {}", server.kind.name());
                let mut found = Vec::new();
                let (outcome, cells) = self.with(net, backend, server, &mut found);
                problems.extend(found.into_iter().map(|p| format!("{head}: {p}")));
                outcomes.push(outcome);
                columns.push((head, cells));
            }
        }
        let text = self.report(name, &columns);
        report::write(name, &text);
        assert!(
            problems.is_empty(),
            "{text}\n{} problems:\n\n{}",
            problems.len(),
            problems.join("\n\n")
        );
        outcomes
    }

    /// What works, and what doesn't, by itself.
    fn without(&self, net: &Net) -> Vec<String> {
        let config = self.servers.first().expect("a server");
        let servers = self.start_servers(net, config);
        for part in &self.parts {
            greeting(&self.cast(net, part), part.dial);
        }
        let works = |part: &Part, client: Client| part.works_without.contains(&client.mode());
        let results = self.clients(net, &servers, works, usize::MAX);
        let mut problems = Vec::new();
        for ((part, client), (result, _)) in self.pairs().zip(results) {
            let name = format!("{} {}", part.name, client.name());
            match (result, works(part, client)) {
                (Ok(_), false) => problems.push(format!("{name} works without an ALG")),
                (Err(why), true) => problems.push(format!("{name} without an ALG: {why}")),
                _ => {}
            }
        }
        problems
    }

    fn with(
        &self,
        net: &Net,
        backend: &'static str,
        config: &Config,
        problems: &mut Vec<String>,
    ) -> (Outcome, Vec<String>) {
        let servers = self.start_servers(net, config);
        let before = self.each(|s| (rules::snapshot(net, s.host), rules::invalid(net, s.host)));
        let running: Vec<_> = self
            .stations
            .iter()
            .map(|station| station.start(net, backend))
            .collect();
        let results = self.clients(net, &servers, |_, _| true, self.at_once);
        let mut status = Vec::new();
        let mut logs = Vec::new();
        for (station, process) in self.stations.iter().zip(running) {
            let Some(process) = process else {
                status.push(serde_json::Value::Null);
                logs.push(String::new());
                continue;
            };
            let all = station.status(net);
            if all["in_place"] != true {
                problems.push(format!("{}: rules aren't in place: {all}", station.host));
            }
            for counter in ["not_opened", "refused", "limit_reached"] {
                let count = &all["counters"][counter];
                if count != 0 {
                    problems.push(format!("{}: {counter} is {count}", station.host));
                }
            }
            status.push(all);
            process.signal(Signal::SIGTERM);
            logs.push(process.finish(LIMIT).must().log);
        }
        let after = self.each(|s| (rules::snapshot(net, s.host), rules::invalid(net, s.host)));
        for (station, (before, after)) in self.stations.iter().zip(before.into_iter().zip(after)) {
            let host = station.host;
            if before.0 != after.0 {
                let (before, after) = (before.0, after.0);
                problems.push(format!(
                    "{host}: rules are left over.\nBefore:\n{before}\nAfter:\n{after}"
                ));
            }
            let invalid = after.1 - before.1;
            if invalid != 0 {
                problems.push(format!("{host}: conntrack found {invalid} packets INVALID"));
            }
        }
        let mut cells = Vec::new();
        let mut again = 0;
        for ((part, client), (result, took)) in self.pairs().zip(results) {
            again += usize::from(matches!(&result, Ok(done) if done.again));
            cells.push(match result {
                Ok(_) => format!("right, {} ms", took.as_millis()),
                Err(why) => {
                    problems.push(format!("{} {}: {why}", part.name, client.name()));
                    "failed".to_owned()
                }
            });
        }
        if !problems.is_empty() {
            for (station, log) in self.stations.iter().zip(&logs) {
                problems.push(format!("the log of {}:\n{log}", station.host));
            }
            for (_, server) in &servers {
                problems.push(format!("the server's log:\n{}", server.log()));
            }
        }
        let outcome = Outcome {
            backend,
            logs,
            again,
            status,
        };
        (outcome, cells)
    }

    /// One server for each place in which a part wants one.
    fn start_servers(
        &self,
        net: &Net,
        config: &Config,
    ) -> Vec<((&'static str, SocketAddr), Server)> {
        let mut servers: Vec<((&'static str, SocketAddr), Server)> = Vec::new();
        for part in &self.parts {
            let place = (part.server, part.listen);
            if servers.iter().all(|(there, _)| *there != place) {
                servers.push((place, Server::start(&self.cast(net, part), config)));
            }
        }
        servers
    }

    /// Runs the clients, several at a time; results in the order of [`Case::pairs`].
    fn clients(
        &self,
        net: &Net,
        servers: &[((&'static str, SocketAddr), Server)],
        works: impl Fn(&Part, Client) -> bool + Sync,
        at_once: usize,
    ) -> Vec<(Result<Done, String>, Duration)> {
        let upload = content(3, 50_021);
        let pairs: Vec<_> = self.pairs().collect();
        each_of(&pairs, at_once, |&(part, client)| {
            let place = (part.server, part.listen);
            let server = servers.iter().find(|(there, _)| *there == place);
            let (limit, patience) = limits(works(part, client));
            client.run(&Job {
                net: &self.cast(net, part),
                dial: part.dial,
                server: &server.expect("it was started").1,
                downloads: vec![Server::SMALL, Server::SECOND],
                upload: &upload,
                limit,
                patience,
            })
        })
    }

    fn pairs(&self) -> impl Iterator<Item = (&Part, Client)> {
        let parts = self.parts.iter();
        parts.flat_map(|part| part.clients.iter().map(move |client| (part, *client)))
    }

    fn each<T>(&self, what: impl FnMut(&Station) -> T) -> Vec<T> {
        self.stations.iter().map(what).collect()
    }

    /// The network as the programs of a part see it.
    pub fn cast(&self, net: &Net, part: &Part) -> Net {
        net.recast(|topology| *topology = self.topology(part))
    }

    fn topology(&self, part: &Part) -> Topology {
        Topology {
            name: part.name,
            shape: Shape::ServerInside,
            hosts: self.hosts.clone(),
            links: self.links.clone(),
            client: part.client,
            server: part.server,
            router: self.stations[0].host,
            inside: "",
            outside: "",
            listen: part.listen,
            dial: part.dial,
            nat: Vec::new(),
        }
    }

    fn report(&self, name: &str, columns: &[(String, Vec<String>)]) -> String {
        let mut text = format!("{name}\n");
        for station in &self.stations {
            if !station.arguments.is_empty() {
                let arguments = station.arguments.join(" ");
                text += &format!("{}: ftpalg run {arguments}\n", station.host);
            }
        }
        text += "list, two downloads and an upload (wget: no upload) through each\n\n";
        let mut head = vec!["topology", "mode"];
        head.extend(columns.iter().map(|(name, _)| name.as_str()));
        let rows: Vec<_> = self
            .pairs()
            .enumerate()
            .map(|(row, (part, client))| {
                let mode = format!("{:?}: {}", client.mode(), client.name());
                let cells = columns.iter().map(|(_, cells)| cells[row].clone());
                (
                    part.name.to_owned(),
                    std::iter::once(mode).chain(cells).collect(),
                )
            })
            .collect();
        text + &report::table(&head, &rows)
    }
}

impl Station {
    /// One with rules for IPv4 alone, in the host's namespace.
    pub fn new(host: &'static str, v4: String, arguments: &[&'static str]) -> Self {
        Self {
            host,
            v4,
            v6: String::new(),
            arguments: arguments.to_vec(),
            wrapper: Vec::new(),
        }
    }

    /// Starts `ftpalg`, if it is to run here; returns when it is in place.
    ///
    /// # Panics
    /// If it doesn't get there.
    pub fn start(&self, net: &Net, backend: &str) -> Option<Process> {
        if self.arguments.is_empty() {
            return None;
        }
        let mut command = self.ftpalg(net, &["run", "--backend", backend]);
        command
            .args(&self.arguments)
            .env("RUST_LOG", "debug")
            .env("RUST_BACKTRACE", "1");
        let process = Process::spawn(command);
        if !process.wait_for("ready", LIMIT) {
            panic!("ftpalg wasn't ready in time: {}", process.finish(LIMIT));
        }
        Some(process)
    }

    /// What `ftpalg status --json` says.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn status(&self, net: &Net) -> serde_json::Value {
        let finished = run(self.ftpalg(net, &["status", "--json"]), LIMIT);
        serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished}"))
    }
}

impl Station {
    fn ftpalg(&self, net: &Net, words: &[&str]) -> Command {
        let program = crate::paths::ftpalg();
        let mut command = match self.wrapper.split_first() {
            None => net.command(self.host, program),
            Some((first, others)) => {
                let mut command = net.command(self.host, first);
                command.args(others).arg(program);
                command
            }
        };
        command.args(words);
        command
    }
}

/// Rules of a careful user: INVALID dropped, a chain that drops what nobody accepted, and new
/// connections to these ports accepted.
pub fn drop_by_default(chains: &[&str], ports: &[u16]) -> String {
    let mut text = String::from(
        "*mangle\n-A PREROUTING -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n*filter\n",
    );
    for chain in chains {
        text += &format!(
            ":{chain} DROP [0:0]\n\
             -A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        );
        if *chain != "FORWARD" {
            let direction = if *chain == "INPUT" { "-i" } else { "-o" };
            text += &format!("-A {chain} {direction} lo -j ACCEPT\n");
        }
        for port in ports {
            text += &format!(
                "-A {chain} -p tcp -m tcp --dport {port} -m conntrack --ctstate NEW -j ACCEPT\n"
            );
        }
    }
    text + "COMMIT\n"
}

/// A server inside that one gateway publishes, by the rules of a careful user. `routes`: of client and
/// server.
///
/// `c (198.51.100.2) — r (203.0.113.1) — s (10.0.0.2)`
pub fn published(name: &'static str, routes: [&[&'static str]; 2]) -> Case {
    let rule = "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2";
    let [client, server] = routes;
    Case::new(
        vec![host("c", client), router("r", &[]), host("s", server)],
        published_links(),
        vec![Station::new(
            "r",
            drop_by_default(&["FORWARD"], &[21]) + &nat(&[rule]),
            &["--inside", "in0"],
        )],
    )
    .part(Part {
        name,
        client: "c",
        server: "s",
        listen: at("10.0.0.2:21"),
        dial: at("203.0.113.1:21"),
        clients: FEW.to_vec(),
        works_without: &[],
    })
}

/// The table `nat` with these rules.
pub fn nat(rules: &[&str]) -> String {
    format!("*nat\n{}\nCOMMIT\n", rules.join("\n"))
}
