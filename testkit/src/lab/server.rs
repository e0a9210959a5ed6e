//! Real FTP servers, each started on a lab host with a configuration of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::net::Net;
use super::process::{PATH, Process, require, run};
use super::programs::Program;
use crate::paths::unpacked;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(10);

/// The user and group that virtual users are mapped to: `nobody`.
const NOBODY: u32 = 65534;

/// A server program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// vsftpd, anonymous.
    Vsftpd,
    /// ProFTPD with a virtual user.
    Proftpd,
    /// Pure-FTPd with a virtual user.
    PureFtpd,
    /// Python's pyftpdlib with a virtual user.
    Pyftpdlib,
    /// One with a script.
    Scripted(&'static Program),
}

impl Kind {
    /// Those that most tests use.
    pub const ALL: [Self; 4] = [Self::Vsftpd, Self::Proftpd, Self::PureFtpd, Self::Pyftpdlib];

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vsftpd => "vsftpd",
            Self::Proftpd => "proftpd",
            Self::PureFtpd => "pure-ftpd",
            Self::Pyftpdlib => "pyftpdlib",
            Self::Scripted(program) => &program.name,
        }
    }
}

/// When a server speaks TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// After `AUTH TLS`.
    Explicit,
    /// After `AUTH TLS`, or not at all.
    Offered,
    /// From the first byte.
    Implicit,
}

/// How a server is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The program.
    pub kind: Kind,
    /// The address that it announces in a `227` in place of its own.
    pub announce: Option<IpAddr>,
    /// The first and the last of its passive ports.
    pub passive_ports: Option<(u16, u16)>,
    /// Whether it speaks TLS: vsftpd and pyftpdlib do.
    pub tls: Option<Tls>,
    /// Whether vsftpd connects from port 20 (RFC 959 §5.2).
    pub from_port_20: bool,
    /// How long vsftpd tries to connect to a client. By itself longer than any client of these tests may
    /// take, so that its `425` says that it couldn't even try.
    pub connect_timeout: Duration,
    /// Whether pyftpdlib knows `EPSV` and `EPRT` (RFC 2428).
    pub extended: bool,
}

impl Config {
    /// A server without further ideas.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            announce: None,
            passive_ports: None,
            tls: None,
            from_port_20: true,
            connect_timeout: Duration::from_secs(30),
            extended: true,
        }
    }
}

/// User name and password.
#[derive(Clone, Copy, Debug)]
pub struct Login {
    /// The argument of `USER`.
    pub user: &'static str,
    /// The argument of `PASS`.
    pub password: &'static str,
}

/// A running server and the files that it offers. Its log is shown if the test fails.
pub struct Server {
    kind: Kind,
    process: Process,
    directory: PathBuf,
}

impl Server {
    /// A file that every server offers.
    pub const SMALL: &str = "small.bin";
    /// Another one.
    pub const SECOND: &str = "second.bin";
    /// The directory that can be written to.
    pub const UPLOADS: &str = "up";

    /// Starts a server on the topology's server host; returns when it listens.
    ///
    /// # Panics
    /// If it doesn't.
    pub fn start(net: &Net, config: &Config) -> Self {
        let listen = net.topology().listen;
        let directory = net.directory().join(format!(
            "{}-{}-{}",
            config.kind.name(),
            net.topology().server,
            listen.to_string().replace(['[', ']', ':'], "-")
        ));
        drop(std::fs::remove_dir_all(&directory));
        prepare(&directory);
        if config.tls.is_some() {
            make_certificate(&directory);
        }
        let command = match config.kind {
            Kind::Vsftpd => vsftpd(net, config, &directory),
            Kind::Proftpd => proftpd(net, config, &directory),
            Kind::PureFtpd => pure_ftpd(net, config, &directory),
            Kind::Pyftpdlib => pyftpdlib(net, config, &directory),
            Kind::Scripted(program) => scripted(net, config, &directory, program),
        };
        // A server that was killed may still listen for a moment: its children die after it.
        let deadline = Instant::now() + START;
        let taken = || {
            net.within(net.topology().server, || {
                listens("/proc/thread-self/net", listen)
            })
        };
        while taken() {
            assert!(Instant::now() < deadline, "somebody listens on {listen}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut server = Self {
            kind: config.kind,
            process: Process::spawn(command),
            directory,
        };
        server.wait_listening(listen);
        server
    }

    /// How to log in.
    pub fn login(&self) -> Login {
        match self.kind {
            Kind::Vsftpd => Login {
                user: "anonymous",
                password: "lab@lab",
            },
            Kind::Scripted(program) => Login {
                user: &program.login.0,
                password: &program.login.1,
            },
            _ => Login {
                user: "lab",
                password: "lab",
            },
        }
    }

    /// The program.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where a file of the server's lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join("root").join(name)
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Adds a file that can be downloaded.
    pub fn publish(&self, name: &str, content: &[u8]) {
        write(&self.path(name), content);
    }

    /// Waits for a LISTEN entry in the server's own view of its sockets: nothing connects, so
    /// that no server counts or logs a visitor.
    fn wait_listening(&mut self, listen: SocketAddr) {
        let deadline = Instant::now() + START;
        let proc = format!("/proc/{}/net", self.process.pid());
        while !listens(&proc, listen) {
            assert!(
                self.process.running() && Instant::now() < deadline,
                "{} doesn't listen on {listen}:\n{}",
                self.kind.name(),
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.log().is_empty() {
            eprintln!("--- {}'s log\n{}---", self.kind.name(), self.log());
        }
    }
}

/// Whether these tables have a LISTEN entry for this address.
fn listens(proc: &str, at: SocketAddr) -> bool {
    let any: IpAddr = match at {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Some servers listen on all addresses, or on those of both families.
    let both = Ipv6Addr::UNSPECIFIED.into();
    let entries = [at.ip(), any, both].map(|ip| entry(SocketAddr::new(ip, at.port())));
    ["tcp", "tcp6"].iter().any(|table| {
        std::fs::read_to_string(format!("{proc}/{table}")).is_ok_and(|text| {
            text.lines().any(|line| {
                let mut words = line.split_whitespace().skip(1);
                let local = words.next().unwrap_or_default();
                entries.iter().any(|e| e == local) && words.nth(1) == Some("0A")
            })
        })
    })
}

/// An address as `/proc/net/tcp` and `tcp6` write it: words in host byte order.
fn entry(at: SocketAddr) -> String {
    let octets = match at.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| {
        let word = word.try_into().expect("four bytes");
        format!("{:08X}", u32::from_ne_bytes(word))
    });
    format!("{}:{:04X}", words.collect::<String>(), at.port())
}

/// Makes content that has no two equal parts, so that nothing can be swapped unnoticed.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn prepare(directory: &Path) {
    let root = directory.join("root");
    let uploads = root.join(Server::UPLOADS);
    std::fs::create_dir_all(&uploads).expect("a directory for the server");
    std::fs::create_dir_all(directory.join("empty")).expect("a directory for the server");
    // Servers write as users of their own.
    std::fs::set_permissions(&uploads, std::fs::Permissions::from_mode(0o777))
        .expect("chmod as root");
    write(&root.join(Server::SMALL), &content(1, 20_011));
    write(&root.join(Server::SECOND), &content(2, 70_001));
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).expect("the lab's directory can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).expect("chmod as root");
}

/// Makes `cert.pem` and `key.pem`.
fn make_certificate(directory: &Path) {
    require("openssl");
    let mut command = Command::new("openssl");
    command
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
        ])
        .args(["-subj", "/CN=lab", "-keyout", "key.pem", "-out", "cert.pem"])
        .env("PATH", PATH)
        .current_dir(directory);
    run(command, START).must();
}

fn ports(config: &Config) -> (u16, u16) {
    config.passive_ports.unwrap_or((40000, 49999))
}

fn vsftpd(net: &Net, config: &Config, directory: &Path) -> Command {
    let (low, high) = ports(config);
    let listen = net.topology().listen;
    let (four, six) = if listen.is_ipv4() {
        ("YES", "NO")
    } else {
        ("NO", "YES")
    };
    let family = if listen.is_ipv4() { "" } else { "6" };
    let mut text = format!(
        "listen={four}\nlisten_ipv6={six}\nlisten_address{family}={}\nlisten_port={}\n\
         background=NO\nanonymous_enable=YES\nno_anon_password=YES\nftp_username=daemon\n\
         nopriv_user=nobody\nanon_root={}\nwrite_enable=YES\nanon_upload_enable=YES\n\
         anon_mkdir_write_enable=YES\nanon_other_write_enable=YES\nanon_umask=022\n\
         anon_world_readable_only=NO\nsecure_chroot_dir={}\nseccomp_sandbox=NO\n\
         isolate_network=NO\nisolate=NO\nxferlog_enable=NO\ntcp_wrappers=NO\n\
         async_abor_enable=YES\nconnect_from_port_20={from}\nftp_data_port=20\n\
         connect_timeout={patience}\naccept_timeout=20\nmax_per_ip=0\n\
         pasv_min_port={low}\npasv_max_port={high}\n",
        listen.ip(),
        listen.port(),
        directory.join("root").display(),
        directory.join("empty").display(),
        from = if config.from_port_20 { "YES" } else { "NO" },
        patience = config.connect_timeout.as_secs(),
    );
    if let Some(address) = config.announce {
        text += &format!("pasv_address={address}\n");
    }
    if let Some(tls) = config.tls {
        // Not every client resumes the control connection's TLS session for data.
        text += &format!(
            "ssl_enable=YES\nallow_anon_ssl=YES\nforce_anon_data_ssl={force}\n\
             force_anon_logins_ssl={force}\nrequire_ssl_reuse=NO\nssl_ciphers=HIGH\nimplicit_ssl={}\n\
             rsa_cert_file={dir}/cert.pem\nrsa_private_key_file={dir}/key.pem\n",
            if tls == Tls::Implicit { "YES" } else { "NO" },
            dir = directory.display(),
            force = if tls == Tls::Offered { "NO" } else { "YES" },
        );
    }
    let file = directory.join("vsftpd.conf");
    write(&file, text.as_bytes());
    // It writes what is wrong to descriptor 0, where inetd would have put the client.
    let mut command = net.command(net.topology().server, "/bin/sh");
    command
        .args(["-c", "exec \"$0\" \"$1\" <&1"])
        .arg(unpacked("vsftpd/usr/sbin/vsftpd"))
        .arg(file);
    command
}

fn proftpd(net: &Net, config: &Config, directory: &Path) -> Command {
    let (low, high) = ports(config);
    let listen = net.topology().listen;
    let users = directory.join("users");
    // The password is `lab`.
    write(
        &users,
        format!(
            "lab:$1$lab$bDlM5Aw73tO3LLjFMmbmm1:{NOBODY}:{NOBODY}::{}:/bin/false\n",
            directory.join("root").display()
        )
        .as_bytes(),
    );
    std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600))
        .expect("chmod as root");
    let mut text = format!(
        "ServerName lab\nServerType standalone\nDefaultServer on\nDefaultAddress {}\n\
         SocketBindTight on\nPort {}\nUseIPv6 {}\nUser nobody\nGroup nogroup\nUmask 022\n\
         AuthOrder mod_auth_file.c\nAuthUserFile {}\nRequireValidShell off\nDefaultRoot ~\n\
         AllowOverwrite on\nUseReverseDNS off\nWtmpLog off\nTransferLog none\nSystemLog none\n\
         PidFile {dir}/pid\nScoreboardFile {dir}/scoreboard\nDelayTable none\nMaxInstances 100\n\
         PassivePorts {low} {high}\nTimeoutNoTransfer 60\n",
        listen.ip(),
        listen.port(),
        if listen.is_ipv4() { "off" } else { "on" },
        users.display(),
        dir = directory.display(),
    );
    if let Some(address) = config.announce {
        text += &format!("MasqueradeAddress {address}\n");
    }
    let file = directory.join("proftpd.conf");
    write(&file, text.as_bytes());
    let mut command = net.command(
        net.topology().server,
        &unpacked("proftpd-core/usr/sbin/proftpd"),
    );
    command.arg("--nodaemon").arg("--config").arg(file);
    command
}

fn pure_ftpd(net: &Net, config: &Config, directory: &Path) -> Command {
    let (low, high) = ports(config);
    let listen = net.topology().listen;
    let (passwords, database) = (directory.join("passwd"), directory.join("pdb"));
    // The password is `lab`.
    write(
        &passwords,
        format!(
            "lab:$1$lab$bDlM5Aw73tO3LLjFMmbmm1:{NOBODY}:{NOBODY}::{}/./::::::::::::\n",
            directory.join("root").display()
        )
        .as_bytes(),
    );
    let mut make = Command::new(unpacked("pure-ftpd/usr/bin/pure-pw"));
    make.arg("mkdb")
        .arg(&database)
        .arg("-f")
        .arg(&passwords)
        .env("PATH", PATH);
    run(make, START).must();
    let mut command = net.command(
        net.topology().server,
        &unpacked("pure-ftpd/usr/sbin/pure-ftpd"),
    );
    command
        .args(["-S", &format!("{},{}", listen.ip(), listen.port())])
        .args(["-l", &format!("puredb:{}", database.display())])
        .args(["-p", &format!("{low}:{high}")])
        .args(["-g", &directory.join("pid").to_string_lossy()])
        .args(["-A", "-E", "-H", "-c", "50", "-C", "50", "-U", "022:022"])
        .arg(if listen.is_ipv4() { "-4" } else { "-6" });
    if let Some(address) = config.announce {
        command.args(["-P", &address.to_string()]);
    }
    command
}

fn pyftpdlib(net: &Net, config: &Config, directory: &Path) -> Command {
    const SERVER: &str = r#"
import logging, sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import DTPHandler, FTPHandler
from pyftpdlib.servers import MultiprocessFTPServer

host, port, root, low, high, announce, tls, extended = sys.argv[1:]

class Data(DTPHandler):
    # The original closes a connection on which data comes before its transfer command.
    def readable(self):
        return self.receive

FTPHandler.dtp_handler = Data
if tls:
    from pyftpdlib.handlers import TLS_DTPHandler, TLS_FTPHandler

    class Data(TLS_DTPHandler):
        # The same with the client's handshake, of which curl's comes early.
        def readable(self):
            return self._ssl_want_read or self.receive

    class Explicit(TLS_FTPHandler):
        certfile, keyfile = "cert.pem", "key.pem"
        tls_control_required = tls_data_required = True
        dtp_handler = Data

    class Offered(Explicit):
        tls_control_required = tls_data_required = False

    class Implicit(Explicit):
        def handle(self):
            self.secure_connection(self.ssl_context)

        def handle_ssl_established(self):
            Explicit.handle(self)

    FTPHandler = {"Explicit": Explicit, "Offered": Offered, "Implicit": Implicit}[tls]
if extended == "false":
    for verb in ("EPSV", "EPRT"):
        del FTPHandler.proto_cmds[verb]
logging.basicConfig(level=logging.INFO)
users = DummyAuthorizer()
users.add_user("lab", "lab", root, perm="elradfmwMT")
FTPHandler.authorizer = users
FTPHandler.passive_ports = range(int(low), int(high) + 1)
FTPHandler.masquerade_address = announce or None
# A process for each session: in one process, replies now and then never leave.
MultiprocessFTPServer((host, int(port)), FTPHandler).serve_forever()
"#;
    require("python3");
    let (low, high) = ports(config);
    let listen = net.topology().listen;
    let file = directory.join("server.py");
    write(&file, SERVER.as_bytes());
    let mut command = net.command(net.topology().server, "/usr/bin/python3");
    command
        .arg("-u")
        .arg(file)
        .args([listen.ip().to_string(), listen.port().to_string()])
        .arg(directory.join("root"))
        .args([low.to_string(), high.to_string()])
        .arg(config.announce.map(|a| a.to_string()).unwrap_or_default())
        .arg(config.tls.map(|tls| format!("{tls:?}")).unwrap_or_default())
        .arg(config.extended.to_string())
        .current_dir(directory);
    command
}

fn scripted(net: &Net, config: &Config, directory: &Path, program: &Program) -> Command {
    assert_eq!(
        program.missing, None,
        "{}: run ./scripts/test",
        program.name
    );
    assert!(config.announce.is_none() && config.passive_ports.is_none() && config.tls.is_none());
    let listen = net.topology().listen;
    let mut command = net.command(net.topology().server, &program.path.to_string_lossy());
    Program::surroundings(&mut command);
    command
        .env("HOST", listen.ip().to_string())
        .env("PORT", listen.port().to_string())
        .env("ROOT", directory.join("root"))
        .current_dir(directory);
    command
}
