//! A network, the user's rules, a gateway, servers and clients together, and what is expected.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::alg::Alg;
use super::client::{Client, Done, Job, Mode, each_of, limits};
use super::net::Net;
use super::report;
use super::rules::{self, Flavour, Policy};
use super::server::{Config, Kind, Server, content};
use super::topology::{Shape, Topology};

/// What one lab is for.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The network.
    pub topology: Topology,
    /// The user's FORWARD policy.
    pub policy: Policy,
    /// Whether the user drops what conntrack finds INVALID.
    pub drop_invalid: bool,
    /// Which iptables holds the user's rules.
    pub flavour: Flavour,
    /// The gateway under test.
    pub alg: Alg,
    /// The servers, one after the other.
    pub servers: Vec<Config>,
    /// The clients that each server gets.
    pub clients: Vec<Client>,
    /// How many clients work at the same time where they are expected to succeed.
    pub at_once: usize,
    /// Whether the clients move one large file each way, and not several small ones.
    pub large: bool,
}

/// The size of large files.
const LARGE: usize = 64 << 20;

/// The name of the large file.
const LARGE_NAME: &str = "large.bin";

/// What came out for one client with one server.
#[derive(Clone, Debug)]
pub struct Cell {
    /// Without an ALG.
    pub without: Result<Done, String>,
    /// With the one under test.
    pub with: Result<Done, String>,
    /// How long the latter took.
    pub took: Duration,
}

impl Scenario {
    /// Every client with every server, INVALID dropped, several small files.
    pub fn new(topology: Topology, policy: Policy, flavour: Flavour, alg: Alg) -> Self {
        Self {
            topology,
            policy,
            drop_invalid: true,
            flavour,
            alg,
            servers: Kind::ALL.map(Config::new).to_vec(),
            clients: Client::ALL.to_vec(),
            at_once: 4,
            large: false,
        }
    }

    /// Whether transfers work with plain NAT.
    ///
    /// Only where a client inside connects out, to an address that was announced truthfully, and
    /// the policy lets it.
    pub fn works_without(&self, server: &Config, client: Client) -> bool {
        self.topology.shape == Shape::ClientInside
            && self.policy == Policy::Accept
            && client.mode() == Mode::Passive
            && (server.announce.is_none() || client.verb() == "EPSV")
    }

    /// Runs all of it: each client with each server, first without an ALG, then with it. Writes
    /// the table `target/lab-report/<name>.txt`, and returns the gateway's log for each server.
    ///
    /// # Panics
    /// If anything isn't as expected: a transfer that works without an ALG and should not, or
    /// doesn't work with it; a packet that conntrack finds INVALID; rules that aren't as before.
    pub fn run(&self, name: &str) -> Vec<String> {
        let net = Net::new(&self.topology);
        rules::install(&net, self.flavour, self.policy, self.drop_invalid);
        let mut columns = Vec::new();
        let mut failures = Vec::new();
        let mut logs = Vec::new();
        for server in &self.servers {
            let (cells, log, problems) = self.one_server(&net, server);
            let name = server.kind.name();
            logs.push(log);
            failures.extend(problems.into_iter().map(|p| format!("{name}: {p}")));
            columns.push((name, cells));
        }
        let text = self.report(&columns);
        report::write(name, &text);
        assert!(
            failures.is_empty(),
            "{} of {} expectations failed:\n\n{}\n\n{text}",
            failures.len(),
            self.clients.len() * self.servers.len(),
            failures.join("\n\n")
        );
        logs
    }

    fn one_server(&self, net: &Net, config: &Config) -> (Vec<Cell>, String, Vec<String>) {
        let mut problems = Vec::new();
        let upload = content(3, if self.large { LARGE } else { 50_021 });
        // A gateway without an ALG: the control connection works, the transfers don't.
        let server = Server::start(net, config);
        greeting(net, self.topology.dial);
        let without = self.clients(net, &server, config, &upload, false);
        drop(server);

        let server = Server::start(net, config);
        if self.large {
            server.publish(LARGE_NAME, &content(4, LARGE));
        }
        let before = rules::snapshot(net, self.topology.router);
        let invalid = rules::invalid(net, self.topology.router);
        let alg = self.alg.start(net, self.flavour);
        let with = self.clients(net, &server, config, &upload, true);
        let log = alg.stop();
        let server_log = server.log();
        let invalid = rules::invalid(net, self.topology.router) - invalid;
        let after = rules::snapshot(net, self.topology.router);
        if invalid != 0 {
            problems.push(format!("conntrack found {invalid} packets INVALID"));
        }
        // iptables leaves an empty table behind where it made the helper's rule.
        if before != after && self.alg != Alg::Kernel {
            problems.push(format!(
                "rules are left over.\nBefore:\n{before}\nAfter:\n{after}"
            ));
        }
        let mut cells = Vec::new();
        for ((client, (without, _)), (with, took)) in self.clients.iter().zip(without).zip(with) {
            let name = client.name();
            match (&without, self.works_without(config, *client)) {
                (Ok(_), false) => problems.push(format!("{name} works without an ALG")),
                (Err(why), true) => problems.push(format!("{name} without an ALG: {why}")),
                _ => {}
            }
            if let Err(why) = &with {
                problems.push(format!("{name}: {why}"));
            }
            cells.push(Cell {
                without,
                with,
                took,
            });
        }
        if let Some(last) = problems.last_mut() {
            if !log.is_empty() {
                *last += &format!("\n\nThe gateway's log:\n{log}");
            }
            *last += &format!("\n\nThe server's log:\n{server_log}");
        }
        (cells, log, problems)
    }

    /// Runs the clients, several at a time; results in the clients' order.
    fn clients(
        &self,
        net: &Net,
        server: &Server,
        config: &Config,
        upload: &[u8],
        with: bool,
    ) -> Vec<(Result<Done, String>, Duration)> {
        let works = |client: Client| with || self.works_without(config, client);
        let downloads = if self.large && with {
            vec![LARGE_NAME]
        } else {
            vec![Server::SMALL, Server::SECOND]
        };
        let at_once = if with {
            self.at_once
        } else {
            self.clients.len()
        };
        each_of(&self.clients, at_once, |client| {
            let (limit, patience) = limits(works(*client));
            client.run(&Job {
                net,
                dial: self.topology.dial,
                server,
                downloads: downloads.clone(),
                upload,
                limit,
                patience,
            })
        })
    }

    /// One line per client, one column per server: what worked, without → with.
    fn report(&self, columns: &[(&str, Vec<Cell>)]) -> String {
        let mut text = format!(
            "{} · FORWARD {:?} · INVALID {} · iptables-{} · {}\n\
             without an ALG → with it; L listed, D downloaded, U uploaded, - failed\n\n",
            self.topology.name,
            self.policy,
            if self.drop_invalid {
                "dropped"
            } else {
                "not looked at"
            },
            format!("{:?}", self.flavour).to_lowercase(),
            self.alg.name(),
        );
        let mut head = vec!["client"];
        head.extend(columns.iter().map(|(name, _)| name));
        let rows: Vec<_> = self
            .clients
            .iter()
            .enumerate()
            .map(|(row, client)| {
                let cells = columns.iter().map(|(_, cells)| cells[row].to_string());
                (client.name().to_owned(), cells.collect())
            })
            .collect();
        text += &report::table(&head, &rows);
        text
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let short = |result: &Result<Done, String>| match result {
            Err(_) => "-".to_owned(),
            Ok(done) => {
                let downloads = "D".repeat(done.downloads);
                let uploads = "U".repeat(done.uploads);
                let listed = if done.listed { "L" } else { "" };
                let again = if done.again { " again" } else { "" };
                format!("{listed}{downloads}{uploads}{again}")
            }
        };
        write!(
            f,
            "{} → {} {} ms",
            short(&self.without),
            short(&self.with),
            self.took.as_millis()
        )
    }
}

/// Makes sure that the control connection reaches the server.
///
/// # Panics
/// If no `220` comes.
pub fn greeting(net: &Net, dial: SocketAddr) {
    let line = net.within(net.topology().client, || greets(dial));
    match line {
        Ok(line) if line.starts_with("220") => {}
        other => panic!(
            "no greeting from {dial}: {other:?}; conntrack on the gateway:\n{}",
            net.exec(net.topology().router, &["conntrack", "-L"]).log
        ),
    }
}

/// What a server says first.
///
/// # Errors
/// It can't be reached from this thread's network namespace, or says nothing within 5 s.
pub fn greets(dial: SocketAddr) -> std::io::Result<String> {
    let limit = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&dial, limit)?;
    stream.set_read_timeout(Some(limit))?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line)
}
