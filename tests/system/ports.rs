//! Which public ports data connections get: not those that somebody else has, and a refusal in the
//! dialogue when none is left.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use testkit::lab::alg::Alg;
use testkit::lab::gateway::{Control, HOSTS, LIMIT, address, gateway, status};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted;
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::Topology;

/// A session with a server that says what it is told to.
struct Session {
    client: Control,
    server: Control,
}

impl Session {
    fn new(net: &Net, listener: &TcpListener) -> Self {
        let client = Control::dial(net);
        let server = Control::new(listener.accept().unwrap().0);
        let mut this = Self { client, server };
        this.reply("220 ready\r\n");
        this.ask("USER lab\r\n", "331 password\r\n");
        this.ask("PASS lab\r\n", "230 fine\r\n");
        this
    }

    /// What the client reads when the server sends these pieces.
    fn pieces(&mut self, pieces: &[&str]) -> String {
        for piece in pieces {
            self.server.send(piece);
        }
        self.client.read()
    }

    fn reply(&mut self, line: &str) -> String {
        self.pieces(&[line])
    }

    fn ask(&mut self, command: &str, reply: &str) -> String {
        self.client.send(command);
        assert_eq!(self.server.read(), command);
        self.reply(reply)
    }

    /// Where the client is sent when the server listens on that port.
    fn passive(&mut self, port: u16) -> SocketAddr {
        let [high, low] = port.to_be_bytes();
        let reply = format!("227 Entering Passive Mode (10,0,0,2,{high},{low}).\r\n");
        address(&self.ask("PASV\r\n", &reply))
    }
}

fn listen(net: &Net, host: &str, at: &str) -> TcpListener {
    net.within(host, || scripted::listen(at.parse().unwrap()).unwrap())
}

/// Says a word to whoever is behind an address, and sees that it is this listener.
#[track_caller]
fn leads_to(net: &Net, to: SocketAddr, listener: &TcpListener) {
    let mut one = net.within(net.topology().client, || {
        TcpStream::connect_timeout(&to, LIMIT).unwrap()
    });
    listener.set_nonblocking(true).unwrap();
    let deadline = std::time::Instant::now() + LIMIT;
    let mut other = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => assert!(std::time::Instant::now() < deadline, "{to} leads elsewhere"),
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    other.set_nonblocking(false).unwrap();
    one.write_all(b"x").unwrap();
    let mut got = [0];
    other.read_exact(&mut got).unwrap();
}

/// Publishes a port of the gateway for a web server on the inside host.
fn publish(net: &Net, flavour: Flavour, port: u16) {
    let script = format!(
        "{ipt} -w 10 -t nat -A PREROUTING -d 203.0.113.1 -p tcp --dport {port} -j DNAT --to-destination 10.0.0.2:8000",
        ipt = flavour.iptables()
    );
    net.exec(net.topology().router, &["sh", "-ec", &script])
        .must();
}

/// What is asked here is which port comes instead of the announced one, whatever its length.
fn run<'a>(net: &'a Net, flavour: Flavour, words: &[&str]) -> testkit::lab::alg::Running<'a> {
    let words = [words, &["--keep-length", "off"]].concat();
    Alg::Ftpalg(words.iter().map(|&w| w.to_owned()).collect()).start(net, flavour)
}

#[test]
fn ports_that_others_have_are_left_to_them() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Accept, flavour);
        let topology = net.topology();
        publish(&net, flavour, 50011);
        let ftp = listen(&net, topology.server, "10.0.0.2:21");
        let web = listen(&net, topology.server, "10.0.0.2:8000");
        let data = [50011, 50012, 50013]
            .map(|port| listen(&net, topology.server, &format!("10.0.0.2:{port}")));
        let own = listen(&net, topology.router, "0.0.0.0:50012");
        let alg = run(&net, flavour, &["--backend", backend]);
        let mut session = Session::new(&net, &ftp);

        // The user's own DNAT: another port, and theirs goes on to work.
        let to = session.passive(50011);
        assert_ne!(to.port(), 50011, "{backend} beside {flavour:?}");
        leads_to(&net, "203.0.113.1:50011".parse().unwrap(), &web);
        leads_to(&net, to, &data[0]);
        // A socket of the gateway's.
        let to = session.passive(50012);
        assert_ne!(to.port(), 50012, "{backend} beside {flavour:?}");
        leads_to(&net, "203.0.113.1:50012".parse().unwrap(), &own);
        leads_to(&net, to, &data[1]);
        // One that became the user's while the daemon runs.
        assert_eq!(session.passive(50013).port(), 50013);
        publish(&net, flavour, 50013);
        let deadline = std::time::Instant::now() + LIMIT;
        while session.passive(50013).port() == 50013 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        alg.stop();
    }
}

/// The gateway's own `/etc/nftables.conf`.
const NATIVE: &str = r#"
table inet nat {
    map hosts { type inet_service : ipv4_addr . inet_service; elements = { 50011 : 10.0.0.2 . 8000 } }
    set web { type inet_service; flags interval; elements = { 50013-50014 } }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr 203.0.113.1 tcp dport 21 dnat to 10.0.0.2
        dnat ip to tcp dport map @hosts
        iifname "lo" accept
        ip daddr 203.0.113.1 tcp dport vmap { 50012 : jump web, 50013-50020 : jump web }
    }
    chain web {
        tcp dport 50012 dnat ip to 10.0.0.2:8000
        tcp dport @web dnat ip to 10.0.0.2:8000
    }
}
table ip more {
    chain wan {
        type nat hook prerouting priority dstnat + 5;
        meta l4proto { tcp, udp } th dport { 50021, 50030-50039 } redirect to :8080
    }
}
"#;

/// Loads rules with `nft`.
fn load(net: &Net, name: &str, rules: &str) {
    let file = net.directory().join(name);
    std::fs::write(&file, rules).unwrap();
    let router = net.topology().router;
    net.exec(router, &["nft", "-f", file.to_str().unwrap()])
        .must();
}

#[test]
fn ports_that_native_rules_publish_are_left_to_them() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Accept, flavour);
        let topology = net.topology();
        // Also in a table named as that of iptables-nft, whose tools can't show it then.
        let native = match flavour {
            Flavour::Nft => NATIVE.to_owned(),
            Flavour::Legacy => NATIVE.replace("table ip more", "table ip nat"),
        };
        load(&net, "native.nft", &native);
        let ftp = listen(&net, topology.server, "10.0.0.2:21");
        let web = listen(&net, topology.server, "10.0.0.2:8000");
        let alg = run(&net, flavour, &["--backend", backend]);
        let mut session = Session::new(&net, &ftp);
        for port in [50011, 50012, 50013, 50014, 50021, 50035] {
            let data = listen(&net, topology.server, &format!("10.0.0.2:{port}"));
            let to = session.passive(port);
            assert_ne!(to.port(), port, "{backend} beside {flavour:?}");
            leads_to(&net, to, &data);
        }
        for port in [50011, 50012, 50013] {
            let public = format!("203.0.113.1:{port}").parse().unwrap();
            leads_to(&net, public, &web);
        }
        for port in [50010, 50015, 50040] {
            assert_eq!(session.passive(port).port(), port);
        }

        // What is loaded, added to a set and taken away while the daemon runs.
        let becomes = |session: &mut Session, port: u16, free: bool| {
            let deadline = std::time::Instant::now() + LIMIT;
            while (session.passive(port).port() == port) != free {
                assert!(std::time::Instant::now() < deadline, "{port}");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        };
        load(&net, "more.nft", "add element inet nat web { 50016 }");
        becomes(&mut session, 50016, false);
        load(&net, "less.nft", "delete element inet nat web { 50016 }");
        becomes(&mut session, 50016, true);
        load(
            &net,
            "rule.nft",
            "add rule inet nat web tcp dport 50017 dnat ip to 10.0.0.2:8000",
        );
        becomes(&mut session, 50017, false);
        let reload = format!(
            "delete table inet nat\n{}",
            NATIVE.split("table ip more").next().unwrap()
        );
        load(&net, "reload.nft", &reload);
        becomes(&mut session, 50017, true);
        assert_ne!(session.passive(50014).port(), 50014);
        alg.stop();
    }
}

/// Where there is no other port, a pinhole comes before the user's own DNAT: for this peer, once.
#[test]
fn the_only_port_is_taken_even_if_it_is_published() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Accept, flavour);
        let topology = net.topology();
        publish(&net, flavour, 8080);
        let ftp = listen(&net, topology.server, "10.0.0.2:21");
        let web = listen(&net, topology.server, "10.0.0.2:8000");
        let data = listen(&net, topology.server, "10.0.0.2:50011");
        let words = ["--backend", backend, "--data-ports", "8080-8080"];
        let alg = run(&net, flavour, &words);
        let mut session = Session::new(&net, &ftp);
        let public: SocketAddr = "203.0.113.1:8080".parse().unwrap();
        leads_to(&net, public, &web);
        assert_eq!(session.passive(50011), public);
        leads_to(&net, public, &data);
        // The pinhole is closed when conntrack has told that it was used.
        let deadline = std::time::Instant::now() + LIMIT;
        while status(&net)["pinholes"] != 0 {
            assert!(std::time::Instant::now() < deadline);
        }
        leads_to(&net, public, &web);
        alg.stop();
    }
}

#[test]
fn where_no_port_is_left_the_dialogue_says_so() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let ftp = listen(&net, net.topology().server, "10.0.0.2:21");
    let alg = run(&net, Flavour::Nft, &["--data-ports", "8080-8080"]);
    let mut first = Session::new(&net, &ftp);
    let mut second = Session::new(&net, &ftp);
    assert_eq!(first.passive(50011).port(), 8080);
    let refusal = "425 Can't open data connection (no usable port).\r\n";
    assert_eq!(
        second.ask(
            "PASV\r\n",
            "227 Entering Passive Mode (10,0,0,2,195,92).\r\n"
        ),
        refusal
    );
    assert_eq!(
        second.ask(
            "EPSV\r\n",
            "229 Entering Extended Passive Mode (|||50012|).\r\n"
        ),
        refusal
    );
    // What is on its way already can't be taken back.
    second.client.send("PASV\r\n");
    assert_eq!(second.server.read(), "PASV\r\n");
    second.server.send("227 Entering ");
    while second.client.peek() < 13 {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(
        second.reply("Passive Mode (10,0,0,2,195,92).\r\n"),
        "227 Entering Passive Mode (no usable port).\r\n"
    );
    assert_eq!(second.ask("PASV\r\n", "227-here\r\n"), "227-here\r\n");
    assert_eq!(
        second.reply("227 (10,0,0,2,195,92)\r\n"),
        "227 (no usable port)\r\n"
    );
    // The session is in step.
    assert_eq!(second.ask("NOOP\r\n", "200 fine\r\n"), "200 fine\r\n");
    let all = status(&net);
    assert_eq!(all["nat"]["no_port"], 4, "{all:#}");
    assert_eq!(all["counters"]["refused"], 4, "{all:#}");
    drop(first);
    let deadline = std::time::Instant::now() + LIMIT;
    while status(&net)["pinholes"] != 0 {
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(second.passive(50012).port(), 8080);
    let log = alg.stop();
    assert!(log.contains("227 refused: no free data port"), "{log}");
}

/// In active mode the server refuses.
#[test]
fn a_client_inside_without_a_port_is_refused_by_the_server() {
    let net = Net::new(&Topology::masqueraded_client());
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = run(&net, Flavour::Nft, &["--data-ports", "8080-8080"]);
    let [mut first, mut second] = [(); 2].map(|()| Control::dial(&net));
    first.log_in(&server);
    second.log_in(&server);
    first.ask("PORT 10,0,0,2,195,91\r\n", "200");
    second.ask("PORT 10,0,0,2,195,92\r\n", "500");
    second.ask("NOOP\r\n", "200");
    first.ask("EPRT |1|10.0.0.2|50011|\r\n", "200");
    assert_eq!(status(&net)["nat"]["no_port"], 1);
    alg.stop();
}

/// Services live below 1024: a server inside announces none of them, whether its address is
/// translated or not, unless it is allowed to.
#[test]
fn a_server_inside_publishes_no_service() {
    const LOW: [u16; 4] = [22, 25, 445, 1023];
    let refusal = "425 Can't open data connection (no usable port).\r\n";
    for topology in [Topology::published_server(), Topology::routed()] {
        let translated = topology.name != "routed";
        let net = Net::new(&topology);
        rules::install(&net, Flavour::Nft, Policy::Drop, true);
        let ftp = listen(&net, net.topology().server, "10.0.0.2:21");
        let services =
            LOW.map(|port| listen(&net, net.topology().server, &format!("10.0.0.2:{port}")));
        let pasv = |port: u16| {
            let [high, low] = port.to_be_bytes();
            format!("227 Entering Passive Mode (10,0,0,2,{high},{low}).\r\n")
        };
        let epsv = |port: u16| format!("229 Entering Extended Passive Mode (|||{port}|).\r\n");

        let alg = run(&net, Flavour::Nft, &[]);
        let mut session = Session::new(&net, &ftp);
        for port in LOW {
            assert_eq!(session.ask("PASV\r\n", &pasv(port)), refusal, "{port}");
            assert_eq!(session.ask("EPSV\r\n", &epsv(port)), refusal, "{port}");
        }
        let all = status(&net);
        assert_eq!(all["nat"]["opened"], 0, "{all:#}");
        assert_eq!(all["counters"]["refused"], 8, "{all:#}");
        // The session goes on, and ports from 1024 on are as ever, services among them.
        for port in [1024, 3306, 50_011] {
            assert_eq!(session.passive(port).port(), port);
        }
        let log = alg.stop();
        let why = "227 refused: a port below 1024 (see --low-ports)";
        assert!(log.contains(why), "{log}");

        let alg = run(&net, Flavour::Nft, &["--low-ports"]);
        let mut session = Session::new(&net, &ftp);
        for (port, service) in LOW.into_iter().zip(&services) {
            let to = session.passive(port);
            assert_eq!(to.port() >= 1024, translated, "{port}: {to}");
            leads_to(&net, to, service);
        }
        alg.stop();

        let alg = run(
            &net,
            Flavour::Nft,
            &["--strict=passive-ports", "--deny-ports", "8080"],
        );
        let mut session = Session::new(&net, &ftp);
        assert_eq!(session.ask("PASV\r\n", &pasv(8080)), refusal);
        assert_eq!(session.ask("PASV\r\n", &pasv(22)), refusal);
        assert_eq!(session.passive(3306).port(), 3306);
        let log = alg.stop();
        assert!(log.contains("227 refused: a service port"), "{log}");
    }
}

/// A server outside is only reached itself: what it announces is its own affair.
#[test]
fn a_server_outside_may_announce_any_port() {
    let net = Net::new(&Topology::masqueraded_client());
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let topology = net.topology();
    let ftp = listen(&net, topology.server, &topology.listen.to_string());
    let data = listen(
        &net,
        topology.server,
        &format!("{}:989", topology.listen.ip()),
    );
    let alg = run(&net, Flavour::Nft, &[]);
    let mut session = Session::new(&net, &ftp);
    let reply = "229 Entering Extended Passive Mode (|||989|).\r\n";
    assert_eq!(session.ask("EPSV\r\n", reply), reply);
    leads_to(&net, data.local_addr().unwrap(), &data);
    alg.stop();
}
