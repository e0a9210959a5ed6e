//! What stands between client and server: each a network of its own, with the gateway in place.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use testkit::lab::alg::no_kernel_helper;
use testkit::lab::net::Net;
use testkit::lab::process::Process;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::topology::{Topology, at};

use super::machine::Memory;
use super::server::{PASSIVE, Server};

/// The public address of the gateway, and the server's own.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The queue of the accept loop.
const QUEUE: u16 = 2121;
/// How long a program on the gateway may take to start.
const LIMIT: Duration = Duration::from_secs(10);

/// A way to let FTP through a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A router without any rule, conntrack or NAT.
    Routed,
    /// nf_conntrack_ftp and nf_nat_ftp.
    Kernel,
    /// DNAT of a range of passive ports; the server announces the public address.
    Static,
    /// The same, with the control packets through a queue to a program that accepts them all.
    Accept,
    /// ftpalg with pinholes in nf_tables.
    Nft,
    /// Another build of it: --beside has it.
    #[value(skip)]
    Beside,
    /// ftpalg with pinholes in iptables.
    Iptables,
    /// nginx as a TCP proxy, with njs to rewrite 227, and a range of ports that it proxies.
    Nginx,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::Routed,
        Self::Kernel,
        Self::Static,
        Self::Accept,
        Self::Nft,
        Self::Beside,
        Self::Iptables,
        Self::Nginx,
    ];

    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed, no NAT",
            Self::Kernel => "kernel helper",
            Self::Static => "static range",
            Self::Accept => "accept loop",
            Self::Nft => "ftpalg nft",
            Self::Beside => "other build, nft",
            Self::Iptables => "ftpalg iptables",
            Self::Nginx => "nginx + njs",
        }
    }
}

/// A gateway at work, with its network and the server behind it.
pub(crate) struct Gateway {
    pub(crate) kind: Kind,
    pub(crate) net: Net,
    /// What the clients have for addresses.
    pub(crate) clients: Vec<Ipv4Addr>,
    /// Its memory before any session.
    pub(crate) fresh: Option<Memory>,
    process: Option<Process>,
    _server: Server,
}

impl Gateway {
    /// Builds it, or says why it can't be had here. `beside` is the program of [`Kind::Beside`].
    pub(crate) fn start(kind: Kind, beside: Option<&Path>) -> Result<Self, String> {
        if kind == Kind::Nginx
            && let Some(file) = NGINX.map(unpacked).iter().find(|file| !file.exists())
        {
            let file = file.display();
            return Err(format!("{file} isn't there: scripts/bench unpacks it"));
        }
        let (topology, clients) = topology(kind);
        let net = Net::new(&topology);
        if kind == Kind::Kernel
            && let Some(why) = no_kernel_helper(&net)
        {
            return Err(why);
        }
        let router = topology.router;
        if kind != Kind::Routed {
            // Rules that look at conntrack's states: what it finds INVALID fails.
            rules::install(&net, Flavour::Nft, Policy::Accept, true);
            // Closed connections are forgotten soon, so that each round meets the same tables.
            net.sysctl(
                router,
                "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
                "1",
            );
        }
        // As conntrack forgets them before TCP does, a client's port may come back to a server's port by way
        // of another public port. A socket in TIME-WAIT takes a SYN only with a later timestamp, so one
        // clock for all ports.
        net.sysctl(topology.client, "net.ipv4.tcp_timestamps", "2");
        // Sockets in TIME-WAIT: an old one makes room, as it does on a busy server.
        net.sysctl(topology.server, "net.ipv4.tcp_max_tw_buckets", "16384");
        net.sysctl(
            topology.client,
            "net.ipv4.ip_local_port_range",
            "10000 64999",
        );
        for host in [topology.client, topology.server] {
            // Some hosts have BBR, which paces packets with timers. Any namespace may choose this one.
            net.sysctl(host, "net.ipv4.tcp_congestion_control", "reno");
        }
        let announce = match kind {
            Kind::Static | Kind::Accept => PUBLIC,
            _ => INSIDE,
        };
        let server = Server::start(&net, announce);
        let own = Path::new(testkit::paths::ftpalg());
        let process = match kind {
            Kind::Routed | Kind::Static => None,
            Kind::Kernel => {
                let matches = "-p tcp --dport 21 -j CT --helper ftp";
                restore(&net, &format!("*raw\n-A PREROUTING {matches}\nCOMMIT\n"));
                None
            }
            Kind::Accept => Some(accept_loop(&net)),
            Kind::Nft => Some(ftpalg(&net, own, "nft")),
            Kind::Beside => Some(ftpalg(&net, beside.unwrap_or(own), "nft")),
            Kind::Iptables => Some(ftpalg(&net, own, "iptables")),
            Kind::Nginx => Some(nginx(&net)),
        };
        let fresh = process.as_ref().map(|process| Memory::of(process.pid()));
        Ok(Self {
            kind,
            net,
            clients,
            fresh,
            process,
            _server: server,
        })
    }

    /// The id of the program on the gateway, if there is one.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Its memory now.
    pub(crate) fn memory(&self) -> Option<Memory> {
        self.pid().map(Memory::of)
    }

    /// What the program on the gateway had to complain of.
    pub(crate) fn complaints(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// The last lines that ftpalg has printed.
    pub(crate) fn last_lines(&self, count: usize) -> String {
        let text = std::fs::read_to_string(self.net.directory().join("output"));
        let text = text.unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// Client, gateway and server; the clients have many addresses, so that ports never run out.
fn topology(kind: Kind) -> (Topology, Vec<Ipv4Addr>) {
    let mut topology = match kind {
        Kind::Routed => Topology::routed(),
        _ => Topology::published_server(),
    };
    if kind == Kind::Nginx {
        topology.nat.clear();
    }
    if matches!(kind, Kind::Static | Kind::Accept) {
        topology.nat.push(
            "-A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 40000:40511 -j DNAT --to-destination 10.0.0.2",
        );
        assert_eq!(PASSIVE, 40000..40512, "the rule above has the same ports");
    }
    const CLIENTS: [&str; 16] = [
        "198.51.100.2/24",
        "198.51.100.3/24",
        "198.51.100.4/24",
        "198.51.100.5/24",
        "198.51.100.6/24",
        "198.51.100.7/24",
        "198.51.100.8/24",
        "198.51.100.9/24",
        "198.51.100.10/24",
        "198.51.100.11/24",
        "198.51.100.12/24",
        "198.51.100.13/24",
        "198.51.100.14/24",
        "198.51.100.15/24",
        "198.51.100.16/24",
        "198.51.100.17/24",
    ];
    for link in &mut topology.links {
        for end in [&mut link.0, &mut link.1] {
            if end.host == topology.client {
                end.addresses = CLIENTS.to_vec();
            }
        }
    }
    topology.dial = match kind {
        Kind::Routed => at("10.0.0.2:21"),
        _ => at("203.0.113.1:21"),
    };
    let clients = CLIENTS.iter().filter_map(|text| {
        let address = text.split('/').next()?;
        address.parse().ok()
    });
    (topology, clients.collect())
}

fn restore(net: &Net, text: &str) {
    let words = ["iptables-nft-restore", "-w", "10", "--noflush"];
    net.feed(net.topology().router, &words, text).must();
}

fn accept_loop(net: &Net) -> Process {
    let program = std::env::current_exe().expect("the running program");
    let mut command = net.command(net.topology().router, &program.to_string_lossy());
    command.args(["--accept-loop", &QUEUE.to_string()]);
    let process = Process::spawn(command);
    assert!(process.wait_for("ready", LIMIT), "{}", process.log());
    // The hooks that ftpalg uses, and the same packets.
    let target = format!("-j NFQUEUE --queue-num {QUEUE}");
    let inside = net.topology().inside;
    let both = |chain: &str| {
        ["--sport", "--dport"].map(|port| format!("-A {chain} -p tcp {port} 21 {target}\n"))
    };
    let raw = both(&format!("PREROUTING -i {inside}")).concat();
    let mangle = both(&format!("POSTROUTING -o {inside}")).concat();
    restore(
        net,
        &format!("*raw\n{raw}COMMIT\n*mangle\n{mangle}COMMIT\n"),
    );
    process
}

fn ftpalg(net: &Net, program: &Path, backend: &str) -> Process {
    // Its lines go to a file, so that nobody here has to read them meanwhile.
    let output = net.directory().join("output");
    let mut command = net.command(net.topology().router, "/bin/sh");
    command
        .args(["-c", r#"exec "$@" >output"#, "sh"])
        .arg(program)
        .args([
            "run",
            "--inside",
            net.topology().inside,
            "--backend",
            backend,
        ]);
    let process = Process::spawn(command);
    let start = Instant::now();
    let ready = || std::fs::read_to_string(&output).is_ok_and(|text| text.contains("ftpalg ready"));
    while !ready() {
        assert!(start.elapsed() < LIMIT, "not ready: {}", process.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    process
}

/// The program, its module for TCP, and njs, in the directories of their packages.
const NGINX: [&str; 3] = [
    "nginx/usr/sbin/nginx",
    "libnginx-mod-stream/usr/lib/nginx/modules/ngx_stream_module.so",
    "libnginx-mod-stream-js/usr/lib/nginx/modules/ngx_stream_js_module.so",
];

/// Where `scripts/bench` has unpacked a file.
fn unpacked(file: &str) -> PathBuf {
    let directory = testkit::paths::repository().join(".cache/servers");
    directory.join(file)
}

/// Rewrites the address in 227 and keeps the port: nginx listens on the same one.
const SCRIPT: &str = r#"
function passive(s) {
    s.on('download', function (data, flags) {
        s.send(data.replace(/^(227 [^(]*\()\d+,\d+,\d+,\d+,/, '$1203,0,113,1,'), flags);
    });
}
export default { passive };
"#;

fn nginx(net: &Net) -> Process {
    let directory = net.directory();
    let write = |name: &str, text: &str| {
        std::fs::write(directory.join(name), text).expect("the lab's directory can be written");
    };
    write("ftp.js", SCRIPT);
    let [program, stream, njs] = NGINX.map(unpacked);
    // As many listeners as the server has passive ports, each for the same port there.
    let (first, last) = (PASSIVE.start, PASSIVE.end - 1);
    write(
        "nginx.conf",
        &format!(
            "load_module {stream};\nload_module {njs};\n\
             daemon off;\nworker_processes auto;\nuser root;\npid nginx.pid;\n\
             error_log stderr warn;\n\
             events {{ worker_connections 8192; }}\n\
             stream {{\n\
             js_path {directory};\njs_import ftp from ftp.js;\n\
             server {{ listen {PUBLIC}:21 backlog=1024; tcp_nodelay on; proxy_pass {INSIDE}:21; js_filter ftp.passive; }}\n\
             server {{ listen {PUBLIC}:{first}-{last} backlog=64; proxy_pass {INSIDE}:$server_port; }}\n\
             }}\n",
            stream = stream.display(),
            njs = njs.display(),
            directory = directory.display(),
        ),
    );
    let router = net.topology().router;
    let mut command = net.command(router, &program.to_string_lossy());
    command
        .arg("-p")
        .arg(directory)
        .args(["-c", "nginx.conf", "-e", "stderr"]);
    let process = Process::spawn(command);
    let start = Instant::now();
    let up = || {
        net.within(router, || {
            let listening = |line: &&str| line.contains(" 0A ") && line.contains(":0015 ");
            std::fs::read_to_string("/proc/thread-self/net/tcp")
                .is_ok_and(|text| text.lines().any(|line| listening(&line)))
        })
    };
    while !up() {
        assert!(start.elapsed() < LIMIT, "not ready: {}", process.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}
