//! Real FTP clients, each in the ways that matter to a gateway.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::net::Net;
use super::process::{Finished, Process};
use super::programs::{self, Program};
use super::server::{Login, Server};

/// vsftpd's words, after the `425` that clients show in different ways, where its own `connect` from port 20
/// fails at once with EADDRNOTAVAIL, before there is a packet (seen by strace): it had a connection with the
/// same ends within TIME_WAIT. Where a gateway is in the way, no client waits for these words
/// (`Config::connect_timeout`).
const NO_ADDRESS: &str = "Failed to establish connection.";
/// tnftp's words where its own timer (SIGALRM, once a second) meets it while it reads a listing: it gives up
/// then, whatever the network does.
const OWN_SIGNAL: &str = "tnftp: Reading from network: Interrupted system call";
/// The words of Erlang's client where a `226` overtakes the last data of a download: it is in no state to
/// take that any more (seen without any gateway).
const OVERTAKEN: &str = ": Unexpected message: {tcp,";
/// How many sessions a client may take because of these. One in ten of the tests with some 50 active
/// connections needs a second one.
const SESSIONS: u32 = 3;

/// The limit for one client that is expected to do its work.
const WORKS: Duration = Duration::from_secs(20);
/// How long a client that is expected to fail may try, before that counts as its failure.
const FAILS: Duration = Duration::from_millis(2500);

/// [`Job::limit`] and [`Job::patience`] for a client that is, or isn't, expected to do its work.
pub fn limits(works: bool) -> (Duration, Duration) {
    match works {
        true => (WORKS, WORKS / 2),
        false => (FAILS, Duration::from_secs(1)),
    }
}

/// Does this with each item, so many at a time; results in the order of the items, with the time
/// that each took.
pub fn each_of<T: Sync, R: Send>(
    items: &[T],
    at_once: usize,
    what: impl Fn(&T) -> R + Sync,
) -> Vec<(R, Duration)> {
    let next = Mutex::new(items.iter().enumerate());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once.min(items.len()) {
            scope.spawn(|| {
                while let Some((index, item)) = { next.lock().unwrap().next() } {
                    let start = Instant::now();
                    let result = what(item);
                    let row = (index, (result, start.elapsed()));
                    results.lock().unwrap().push(row);
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(index, _)| *index);
    assert_eq!(results.len(), items.len(), "each of them ran");
    results.into_iter().map(|(_, result)| result).collect()
}

/// Who connects for the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The client (`PASV`, `EPSV`).
    Passive,
    /// The server (`PORT`, `EPRT`).
    Active,
}

/// A client program and what it is told to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// curl with `PASV`, and connecting to the address that the reply says.
    CurlPasv,
    /// curl with `EPSV`.
    CurlEpsv,
    /// curl with `PORT`.
    CurlPort,
    /// curl with `EPRT`.
    CurlEprt,
    /// lftp with `PASV`, and connecting to the address that the reply says.
    LftpPasv,
    /// lftp with `PORT`.
    LftpPort,
    /// wget with `PASV`.
    WgetPasv,
    /// wget with `PORT`.
    WgetPort,
    /// tnftp with `PASV`.
    TnftpPasv,
    /// tnftp with `EPSV`, its own choice.
    TnftpEpsv,
    /// tnftp with `PORT`.
    TnftpPort,
    /// tnftp with `EPRT`, its own choice.
    TnftpEprt,
    /// ncftpls, ncftpget and ncftpput with `PASV`.
    NcftpPasv,
    /// ncftpls, ncftpget and ncftpput with `PORT`.
    NcftpPort,
    /// Python's ftplib with `PASV`, and connecting to the address that the reply says.
    FtplibPasv,
    /// Python's ftplib with `PORT`.
    FtplibPort,
    /// One with a script, in one of its modes.
    Scripted(&'static Program, &'static programs::Mode),
}

/// What a client is to do: list, download some files, upload one.
#[derive(Clone)]
pub struct Job<'a> {
    /// The network.
    pub net: &'a Net,
    /// The address to connect to.
    pub dial: SocketAddr,
    /// The server, for its login and for a look at its files afterwards.
    pub server: &'a Server,
    /// The files to download and to compare.
    pub downloads: Vec<&'a str>,
    /// The content to upload.
    pub upload: &'a [u8],
    /// When the client is killed.
    pub limit: Duration,
    /// The client's own time limit for a connection.
    pub patience: Duration,
}

/// What a client has done, each compared with what the server holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// A listing that names the files.
    pub listed: bool,
    /// Files downloaded.
    pub downloads: usize,
    /// Files uploaded.
    pub uploads: usize,
    /// Whether it took another session, as an earlier one met with `NO_ADDRESS`, `OWN_SIGNAL` or
    /// `OVERTAKEN`.
    pub again: bool,
}

impl Client {
    /// Those that most tests use.
    pub const ALL: [Self; 16] = [
        Self::CurlPasv,
        Self::CurlEpsv,
        Self::CurlPort,
        Self::CurlEprt,
        Self::LftpPasv,
        Self::LftpPort,
        Self::WgetPasv,
        Self::WgetPort,
        Self::TnftpPasv,
        Self::TnftpEpsv,
        Self::TnftpPort,
        Self::TnftpEprt,
        Self::NcftpPasv,
        Self::NcftpPort,
        Self::FtplibPasv,
        Self::FtplibPort,
    ];

    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::CurlPasv => "curl PASV",
            Self::CurlEpsv => "curl EPSV",
            Self::CurlPort => "curl PORT",
            Self::CurlEprt => "curl EPRT",
            Self::LftpPasv => "lftp PASV",
            Self::LftpPort => "lftp PORT",
            Self::WgetPasv => "wget PASV",
            Self::WgetPort => "wget PORT",
            Self::TnftpPasv => "tnftp PASV",
            Self::TnftpEpsv => "tnftp EPSV",
            Self::TnftpPort => "tnftp PORT",
            Self::TnftpEprt => "tnftp EPRT",
            Self::NcftpPasv => "ncftp PASV",
            Self::NcftpPort => "ncftp PORT",
            Self::FtplibPasv => "ftplib PASV",
            Self::FtplibPort => "ftplib PORT",
            Self::Scripted(_, mode) => &mode.name,
        }
    }

    /// The command or reply that carries its address.
    pub fn verb(self) -> &'static str {
        self.name().split(' ').nth(1).expect("two words")
    }

    /// Who connects for the data.
    pub fn mode(self) -> Mode {
        match self.verb() {
            "PASV" | "EPSV" => Mode::Passive,
            _ => Mode::Active,
        }
    }

    /// Runs it; what it lists and transfers is compared with what the server holds.
    ///
    /// # Errors
    /// What went wrong, with all that the client printed.
    pub fn run(self, job: &Job) -> Result<Done, String> {
        let own = |said: &str| {
            [NO_ADDRESS, OWN_SIGNAL, OVERTAKEN]
                .iter()
                .any(|words| said.contains(words))
        };
        let mut sessions = 1;
        loop {
            match self.run_once(job) {
                Err(said) if sessions < SESSIONS && own(&said) => sessions += 1,
                result => {
                    return result.map(|done| Done {
                        again: sessions > 1,
                        ..done
                    });
                }
            }
        }
    }

    fn run_once(self, job: &Job) -> Result<Done, String> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.name().replace(' ', "-").to_lowercase());
        let run = Run {
            client: self,
            job,
            directory: job.net.directory().join(format!("client-{name}")),
            upload: format!("{name}.up"),
            login: job.server.login(),
        };
        run.prepare()
            .map_err(|error| format!("{}: {error}", run.directory.display()))?;
        match self {
            Self::CurlPasv | Self::CurlEpsv | Self::CurlPort | Self::CurlEprt => run.curl(),
            Self::LftpPasv | Self::LftpPort => run.lftp(),
            Self::WgetPasv | Self::WgetPort => run.wget(),
            Self::TnftpPasv | Self::TnftpEpsv | Self::TnftpPort | Self::TnftpEprt => run.tnftp(),
            Self::NcftpPasv | Self::NcftpPort => run.ncftp(),
            Self::FtplibPasv | Self::FtplibPort => run.ftplib(),
            Self::Scripted(program, mode) => run.scripted(program, mode),
        }
    }
}

struct Run<'a> {
    client: Client,
    job: &'a Job<'a>,
    directory: PathBuf,
    upload: String,
    login: Login,
}

impl Run<'_> {
    fn prepare(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        std::fs::write(self.directory.join(&self.upload), self.job.upload)
    }

    fn active(&self) -> bool {
        self.client.mode() == Mode::Active
    }

    fn patience(&self) -> String {
        self.job.patience.as_secs().max(1).to_string()
    }

    fn url(&self, path: &str) -> String {
        format!("ftp://{}/{path}", self.job.dial)
    }

    fn upload_path(&self) -> String {
        format!("{}/{}", Server::UPLOADS, self.upload)
    }

    fn uploaded(&self) -> PathBuf {
        self.job.server.path(&self.upload_path())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.job.net.client(program);
        command
            .current_dir(&self.directory)
            .env("HOME", &self.directory);
        command
    }

    fn finish(&self, process: Process) -> Result<Finished, String> {
        let finished = process.finish(self.job.limit);
        if finished.ok() {
            Ok(finished)
        } else {
            Err(finished.to_string())
        }
    }

    /// One session: connections are kept from one URL to the next.
    fn curl(&self) -> Result<Done, String> {
        let mut command = self.command("curl");
        self.curl_options(&mut command);
        command.args([&self.url(""), "-o", "listing"]);
        for file in &self.job.downloads {
            command.args([&self.url(file), "-o", file]);
        }
        command.arg("--next");
        self.curl_options(&mut command);
        command.args(["-T", &self.upload, &self.url(&self.upload_path())]);
        let log = self.finish(Process::spawn(command))?.log;
        let listing = self.file("listing");
        let listing = listing.map_err(|why| format!("{why}; the client said:\n{log}"))?;
        self.compare(&listing, &log, true)
    }

    fn curl_options(&self, command: &mut Command) {
        command.args(["-sS", "-v", "--noproxy", "*", "--no-ftp-skip-pasv-ip"]);
        command.args(["--connect-timeout", &self.patience()]);
        command.args(["--max-time", &self.job.limit.as_secs().max(1).to_string()]);
        let Login { user, password } = self.login;
        command.args(["--user", &format!("{user}:{password}")]);
        match self.client {
            Client::CurlPasv => command.arg("--disable-epsv"),
            Client::CurlPort => command.args(["--ftp-port", "-", "--disable-eprt"]),
            Client::CurlEprt => command.args(["--ftp-port", "-"]),
            _ => command,
        };
    }

    fn lftp(&self) -> Result<Done, String> {
        let mut script = format!(
            "set cmd:fail-exit yes; set ftp:ssl-allow off; set ftp:fix-pasv-address off; \
             set ftp:auto-passive-mode off; set ftp:passive-mode {}; set net:timeout {}; \
             set net:max-retries 1; set net:reconnect-interval-base 1; debug 9; \
             open -u {},{} -p {} {}; ls; ",
            if self.active() { "off" } else { "on" },
            self.patience(),
            self.login.user,
            self.login.password,
            self.job.dial.port(),
            match self.job.dial.ip() {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
        );
        for file in &self.job.downloads {
            script += &format!("get {file}; ");
        }
        script += &format!("put {} -o {}; bye", self.upload, self.upload_path());
        let mut command = self.command("lftp");
        command.args(["--norc", "-c", &script]);
        let finished = self.finish(Process::spawn(command))?;
        self.compare(&finished.stdout, &finished.log, true)
    }

    /// It can't upload.
    fn wget(&self) -> Result<Done, String> {
        let mut command = self.command("wget");
        command.args(["-d", "--no-proxy", "--tries=1", "--no-remove-listing"]);
        command.arg(format!("--timeout={}", self.patience()));
        command.arg(format!("--ftp-user={}", self.login.user));
        command.arg(format!("--ftp-password={}", self.login.password));
        if self.active() {
            command.arg("--no-passive-ftp");
        }
        command.arg(self.url(""));
        for file in &self.job.downloads {
            command.arg(self.url(file));
        }
        let log = self.finish(Process::spawn(command))?.log;
        self.compare(&self.file(".listing")?, &log, false)
    }

    fn tnftp(&self) -> Result<Done, String> {
        let extended = matches!(self.client, Client::TnftpEpsv | Client::TnftpEprt);
        const LISTED: &str = "Verbose mode off";
        let Login { user, password } = self.login;
        // Progress meters stay off, replies are shown.
        let mut script = format!("verbose on\nuser {user} {password}\nbinary\n");
        if !extended {
            script += "epsv4\n";
        }
        script += "ls\nverbose off\nverbose on\n";
        for file in &self.job.downloads {
            script += &format!("get {file}\n");
        }
        script += &format!("put {} {}\nbye\n", self.upload, self.upload_path());
        let mut command = self.command("tnftp");
        // Progress meters and questions off, debugging on.
        command.args(["-n", "-i", "-v", "-d", "-V"]);
        command.args(["-q", &self.patience()]);
        command.arg(if self.active() { "-A" } else { "-p" });
        command.arg(self.job.dial.ip().to_string());
        command.arg(self.job.dial.port().to_string());
        let finished = self.finish(Process::spawn_with_input(command, &script))?;
        // What is said of downloads names the files, too.
        let (listing, _) = finished.stdout.split_once(LISTED).unwrap_or_default();
        self.compare(listing, &finished.log, true)
    }

    /// Three programs: a session for the listing, one for the downloads, one for the upload.
    fn ncftp(&self) -> Result<Done, String> {
        let command = |program: &str| {
            let mut command = self.command(program);
            command.arg(if self.active() { "-E" } else { "-F" });
            command.args(["-t", &self.patience(), "-r", "1", "-d", "stderr"]);
            command.args(["-u", self.login.user, "-p", self.login.password]);
            command.args(["-P", &self.job.dial.port().to_string()]);
            command
        };
        let host = self.job.dial.ip().to_string();
        let mut list = command("ncftpls");
        list.arg("-l").arg(format!("ftp://{host}/"));
        let listing = self.finish(Process::spawn(list))?;
        let mut get = command("ncftpget");
        get.args([&host, "."]).args(&self.job.downloads);
        let got = self.finish(Process::spawn(get))?;
        let mut put = command("ncftpput");
        put.args([&host, Server::UPLOADS, &self.upload]);
        let log = listing.log + &got.log + &self.finish(Process::spawn(put))?.log;
        self.compare(&listing.stdout, &log, true)
    }

    fn ftplib(&self) -> Result<Done, String> {
        const CLIENT: &str = r#"
import ftplib, sys

host, port, patience, user, password, passive, upload, target, *downloads = sys.argv[1:]
ftp = ftplib.FTP(timeout=float(patience))
ftp.set_debuglevel(1)
ftp.trust_server_pasv_ipv4_address = True
ftp.connect(host, int(port))
ftp.login(user, password)
ftp.set_pasv(passive == "True")
print("\n".join(ftp.nlst()))
for name in downloads:
    with open(name, "wb") as file:
        ftp.retrbinary("RETR " + name, file.write)
with open(upload, "rb") as file:
    ftp.storbinary("STOR " + target, file)
ftp.quit()
"#;
        let mut command = self.command("python3");
        command.args(["-u", "-c", CLIENT]);
        command.args([
            self.job.dial.ip().to_string(),
            self.job.dial.port().to_string(),
            self.patience(),
        ]);
        command.args([self.login.user, self.login.password]);
        command.arg(if self.active() { "False" } else { "True" });
        command.args([&self.upload, &self.upload_path()]);
        command.args(&self.job.downloads);
        let finished = self.finish(Process::spawn(command))?;
        self.compare(&finished.stdout, &finished.log, true)
    }

    /// Not every program shows what it says: `tests/system/programs.rs` looks for that on the wire.
    fn scripted(&self, program: &Program, mode: &programs::Mode) -> Result<Done, String> {
        let Login { user, password } = self.login;
        let dial = self.job.dial;
        let mut command = self.command("env");
        command.arg(&program.path);
        Program::surroundings(&mut command);
        command
            .env("HOST", dial.ip().to_string())
            .env("PORT", dial.port().to_string())
            .env("LOGIN", user)
            .env("PASSWORD", password)
            .env("URL", format!("ftp://{dial}"))
            // An `@` would end it.
            .env(
                "URL_WITH_LOGIN",
                format!("ftp://{user}:{}@{dial}", password.replace('@', "%40")),
            )
            .env("VERB", &mode.verb)
            .env("PATIENCE", self.patience())
            .env("UPLOAD", &self.upload)
            .env("TARGET", self.upload_path());
        let finished = self.finish(Process::spawn(command))?;
        let listing = self.file("listing").unwrap_or(finished.stdout);
        let [lists, gets, puts] = program.does;
        self.compare_what(lists.then_some(&listing), gets, puts, &finished.log)
    }

    fn file(&self, name: &str) -> Result<String, String> {
        std::fs::read(self.directory.join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .map_err(|error| format!("{name}: {error}"))
    }

    fn compare(&self, listing: &str, log: &str, uploads: bool) -> Result<Done, String> {
        let wrong = |what: String| Err(format!("{what}; the client said:\n{}", log.trim_end()));
        // With IPv6 all clients use the extended ones (RFC 2428).
        let verb = match self.client.mode() {
            Mode::Passive if self.job.dial.is_ipv6() => "EPSV",
            Mode::Active if self.job.dial.is_ipv6() => "EPRT",
            _ => self.client.verb(),
        };
        // Each client marks what it sends in one of these ways.
        let said = |line: &str| {
            let sent = ["> ", "Cmd: ", "*cmd* "]
                .iter()
                .any(|mark| line.contains(mark));
            sent && line.contains(verb)
        };
        if !log.lines().any(said) {
            return wrong(format!("it never said {verb}"));
        }
        self.compare_what(Some(listing), true, uploads, log)
    }

    fn compare_what(
        &self,
        listing: Option<&str>,
        downloads: bool,
        uploads: bool,
        log: &str,
    ) -> Result<Done, String> {
        let wrong = |what: String| Err(format!("{what}; the client said:\n{}", log.trim_end()));
        for name in [Server::SMALL, Server::SECOND] {
            if listing.is_some_and(|listing| !listing.contains(name)) {
                return wrong(format!("the listing doesn't name {name}: {listing:?}"));
            }
        }
        let wanted = if downloads {
            &self.job.downloads[..]
        } else {
            &[]
        };
        for name in wanted {
            if !equal(&self.directory.join(name), &self.job.server.path(name)) {
                return wrong(format!("{name} isn't what the server holds"));
            }
        }
        if uploads && !equal(&self.directory.join(&self.upload), &self.uploaded()) {
            return wrong("the uploaded file isn't what the client sent".to_owned());
        }
        // Large files: the next client may need the space. The name stays: a server that is just
        // listing the directory for another client fails if one disappears under it (node-ftpd).
        drop(std::fs::remove_dir_all(&self.directory));
        if uploads {
            drop(std::fs::File::create(self.uploaded()));
        }
        Ok(Done {
            listed: listing.is_some(),
            downloads: wanted.len(),
            uploads: usize::from(uploads),
            again: false,
        })
    }
}

/// Whether these are files with the same content.
pub fn equal(a: &Path, b: &Path) -> bool {
    match (std::fs::read(a), std::fs::read(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}
