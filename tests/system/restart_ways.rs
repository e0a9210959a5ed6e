//! How the daemon ends, and what its sessions notice of it: stopped, or handed over to a successor.

use std::io::{ErrorKind, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use testkit::lab::alg::{Alg, Running};
use testkit::lab::gateway::{Control, LIMIT};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::topology::Topology;

/// How soon both ends notice that their connection is over.
const SOON: Duration = Duration::from_secs(2);

/// Both backends, beside one flavour each.
const HOSTS: [(&str, Flavour); 2] = [("nft", Flavour::Nft), ("iptables", Flavour::Legacy)];

fn start<'a>(net: &'a Net, backend: &str, flavour: Flavour, more: &[&str]) -> Running<'a> {
    let words = [&["--backend", backend], more].concat();
    Alg::Ftpalg(words.into_iter().map(str::to_owned).collect()).start(net, flavour)
}

/// Both ends of a control connection.
struct Session {
    client: Control,
    server: Control,
}

impl Session {
    /// A session that has logged in.
    fn open(net: &Net) -> Self {
        let topology = net.topology();
        let listener = net.within(topology.server, || {
            TcpListener::bind(topology.listen).unwrap()
        });
        let client = Control::dial(net);
        let server = Control::new(listener.accept().unwrap().0);
        let mut session = Self { client, server };
        session.server.send("220 ready\r\n");
        assert_eq!(session.client.read(), "220 ready\r\n");
        session.say("USER lab\r\n", "331 password\r\n");
        session.say("PASS lab\r\n", "230 fine\r\n");
        session
    }

    /// A command and its reply; returns what the client reads.
    #[track_caller]
    fn say(&mut self, command: &str, reply: &str) -> String {
        self.client.send(command);
        let heard = self.server.read();
        assert_eq!(heard.get(..4), command.get(..4), "{heard}");
        self.server.send(reply);
        self.client.read()
    }

    /// A passive data connection; returns its two ends.
    #[track_caller]
    fn passive(&mut self, net: &Net) -> [TcpStream; 2] {
        let own = self.server.0.get_ref().local_addr().unwrap();
        let listener = net.within(net.topology().server, || {
            TcpListener::bind((own.ip(), 0)).unwrap()
        });
        let port = listener.local_addr().unwrap().port();
        let (command, reply) = match own {
            SocketAddr::V4(own) => {
                let ip = own.ip().to_string().replace('.', ",");
                let (high, low) = (port >> 8, port & 255);
                ("PASV\r\n", format!("227 here ({ip},{high},{low})\r\n"))
            }
            SocketAddr::V6(_) => ("EPSV\r\n", format!("229 here (|||{port}|)\r\n")),
        };
        let reply = self.say(command, &reply);
        let verb = match own {
            SocketAddr::V4(_) => testkit::lab::scripted::Verb::Pasv,
            SocketAddr::V6(_) => testkit::lab::scripted::Verb::Epsv,
        };
        let peer = self.client.0.get_ref().peer_addr().unwrap();
        let to = verb.address(&reply, peer.ip()).unwrap();
        let out = net.within(net.topology().client, || {
            TcpStream::connect_timeout(&to, LIMIT)
        });
        let out = out.unwrap_or_else(|e| panic!("{}: {e}", reply.trim()));
        [out, testkit::lab::scripted::accept(&listener, LIMIT).unwrap()]
    }

    /// Asserts that both ends get a RST soon.
    #[track_caller]
    fn is_reset(self) {
        let deadline = Instant::now() + SOON;
        for (name, end) in [("client", self.client), ("server", self.server)] {
            let mut end = end.0;
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            end.get_ref().set_read_timeout(Some(left)).unwrap();
            let got = end.read(&mut [0]);
            let kind = got.as_ref().map_err(std::io::Error::kind);
            assert_eq!(kind, Err(ErrorKind::ConnectionReset), "{name}: {got:?}");
        }
    }
}

/// A stop ends the sessions whose numbers differ on the two sides, and no others.
fn stopped(topology: &Topology, uneven: impl Fn(&mut Session, &Net)) {
    for (backend, flavour) in HOSTS {
        let net = Net::new(topology);
        rules::install(&net, flavour, Policy::Drop, true);
        let before = rules::snapshot(&net, topology.router);
        let invalid = rules::invalid(&net, topology.router);

        let alg = start(&net, backend, flavour, &["--keep-length", "off"]);
        let mut session = Session::open(&net);
        uneven(&mut session, &net);
        let log = alg.stop();
        session.is_reset();
        assert!(log.contains("1 session ended"), "{log}");
        assert_eq!(rules::snapshot(&net, topology.router), before);
        assert_eq!(rules::invalid(&net, topology.router), invalid, "{backend}");
    }
}

#[test]
fn a_stop_resets_an_uneven_session_with_a_published_server() {
    stopped(&Topology::published_server(), |session, net| {
        drop(session.passive(net));
    });
}

#[test]
fn a_stop_resets_an_uneven_session_of_a_masqueraded_client() {
    stopped(&Topology::masqueraded_client(), |session, _| {
        session.say("PORT 10,0,0,2,200,1\r\n", "200 fine\r\n");
    });
}
