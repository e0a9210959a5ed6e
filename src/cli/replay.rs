//! `ftpalg replay`: the engine over a capture.

use std::fs::{File, Metadata};
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Arg, Args};
use ipnet::IpNet;

use super::settings::Settings;
use super::settings::values::yes_or_no;
use super::{Failure, fail};
use crate::daemon::config::Config;
use crate::firewall::Inside;
use crate::replay::{End, Options, ReplayError, Summary, View, replay};

/// What counts as inside where nothing is given: private addresses (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [&str; 5] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "fc00::/7",
];

/// Flags of `run` that are about the kernel and the process. A file may have them; here they do nothing.
const NOT_HERE: [&str; 17] = [
    "local",
    "backend",
    "rules",
    "steering",
    "fail",
    "queues",
    "queue_num",
    "mark",
    "resume_mark",
    "uneven_mark",
    "state",
    "handover",
    "events",
    "events_size",
    "events_files",
    "events_names",
    "metrics",
];

/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The capture: pcap or pcapng, taken inside, outside or on `any`; `-`: the standard input
    #[arg(value_name = "IN")]
    input: PathBuf,

    /// The address of the inside as the outside sees it, where the capture doesn't tell. One for each
    /// address family [default: what the capture tells; else no NAT]
    #[arg(long, value_name = "IP")]
    public: Vec<IpAddr>,

    /// Write the control connections, edited, to a capture of the same kind
    #[arg(short, long, value_name = "OUT")]
    write: Option<PathBuf>,

    /// Follow connections that began before the capture, too [default: no]
    #[arg(long)]
    join: bool,

    /// Show only connections in which something went wrong
    #[arg(long)]
    failures: bool,

    /// Whether names of users and files are shown: yes or no. Passwords never are [default: yes]
    #[arg(long, value_name = "yes|no", value_parser = yes_or_no())]
    names: Option<bool>,

    /// Show a JSON value on each line: one for each connection, then a summary
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    settings: Settings,
}

/// The flags of `run` as they are here.
pub(super) fn fit(arg: Arg) -> Arg {
    let name = arg.get_id().as_str().to_owned();
    match name.as_str() {
        "inside" => arg
            .value_name("CIDR")
            .help("The private side: its network. May be repeated [default: private addresses]")
            .long_help(None),
        name if NOT_HERE.contains(&name) => arg.hide(true),
        _ => arg,
    }
}

pub(super) fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let name = arguments.input.display().to_string();
    let view = View {
        names: arguments.names.unwrap_or(true),
        failures: arguments.failures,
        json: arguments.json,
    };
    let config = arguments.settings.resolve()?;
    let options = Options {
        inside: inside(&config)?,
        public: public(arguments.public)?,
        ports: config.steering.ports.clone(),
        engine: config.engine(advertise(&config)?),
        plane: config.plane(),
        join: arguments.join,
        view,
    };
    let ports = options.ports.clone();
    let (input, here) = open(&arguments.input)?;
    let edited = arguments.write.as_deref().map(|to| target(to, &here));
    let edited = edited.transpose()?;
    let mut stdout = BufWriter::new(io::stdout().lock());
    let mut progress = Progress::new(&here);
    let done = replay(input, options, &mut stdout, edited, &mut |read| {
        progress.show(read)
    });
    // What is told comes before the line that says why it ended.
    let flushed = stdout.flush();
    progress.clear();
    match done {
        Ok(summary) => Ok(told(&summary, &name, &ports)),
        Err(ReplayError::Show(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // The reader went away, or the disk is full: the error says more.
            let _ = flushed;
            Err(failure(&error, &name, arguments.write.as_deref()))
        }
    }
}

/// The exit code, and what else is to be said.
fn told(summary: &Summary, name: &str, ports: &[u16]) -> ExitCode {
    let line = match summary.end {
        End::Whole if summary.control == 0 => {
            let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
            let _ = writeln!(
                io::stderr(),
                "ftpalg: no control connections (port {}) in {name}; is --port right?",
                ports.join(", ")
            );
            return ExitCode::SUCCESS;
        }
        End::Whole => return ExitCode::SUCCESS,
        End::CutShort => {
            format!("{name} ends in the middle of a packet; what comes before it is shown")
        }
        End::Damaged(at) => {
            format!("{name} is damaged behind byte {at}; what comes before it is shown")
        }
    };
    fail(&Failure {
        lines: vec![line],
        code: 1,
    })
}

fn failure(error: &ReplayError, name: &str, write: Option<&Path>) -> Failure {
    Failure::usage(match error {
        ReplayError::Capture(error) => {
            format!("can't read {name}: {error}; give a file that tcpdump wrote with -w")
        }
        ReplayError::Show(_) => format!("{error}; is the disk full?"),
        ReplayError::Write(error) => {
            let to = write.unwrap_or(Path::new("-")).display();
            format!("can't write {to}: {error}; name a file that can be written with -w")
        }
    })
}

/// The networks inside.
fn inside(config: &Config) -> Result<Vec<IpNet>, Failure> {
    let inside = &config.steering.inside;
    if inside.is_empty() {
        return Ok(PRIVATE.iter().filter_map(|net| net.parse().ok()).collect());
    }
    let net = |inside: &Inside| match inside {
        Inside::Net(net) => Ok(*net),
        Inside::Iface(name) => Err(Failure::usage(format!(
            "--inside {name} is an interface, and a capture knows addresses only; \
             give its network, like --inside 192.168.1.0/24"
        ))),
    };
    inside.iter().map(net).collect()
}

fn public(public: Vec<IpAddr>) -> Result<Vec<IpAddr>, Failure> {
    for (at, one) in public.iter().enumerate() {
        let same = |other: &&IpAddr| other.is_ipv4() == one.is_ipv4();
        if let Some(other) = public.iter().skip(at + 1).find(same) {
            return Err(Failure::usage(format!(
                "--public {one} and --public {other} are of one address family; give one of them"
            )));
        }
    }
    Ok(public)
}

fn advertise(config: &Config) -> Result<Vec<crate::replay::Advertise>, Failure> {
    config.advertised_addresses().map_err(|name| {
        Failure::usage(format!(
            "--advertise {name} is a host name, and a replay looks none up; give the address it had"
        ))
    })
}

/// What is read, and what the operating system says of it.
fn open(path: &Path) -> Result<(Box<dyn Read + Send>, Option<Metadata>), Failure> {
    let cant = |e: io::Error| {
        Failure::usage(format!(
            "can't read {}: {e}; name a readable capture, or - for the standard input",
            path.display()
        ))
    };
    if path == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(Failure::usage(
                "no capture comes from a terminal; pipe one into ftpalg replay -",
            ));
        }
        let file = io::stdin().as_fd().try_clone_to_owned().map_err(cant)?;
        let file = File::from(file);
        let here = file.metadata().ok();
        return Ok((Box::new(file), here));
    }
    let file = File::open(path).map_err(cant)?;
    let here = file.metadata().map_err(cant)?;
    if here.is_dir() {
        return Err(Failure::usage(format!(
            "can't read {}: it is a directory; name a capture",
            path.display()
        )));
    }
    Ok((Box::new(file), Some(here)))
}

/// Where the edited packets go: not into what is read.
fn target(path: &Path, input: &Option<Metadata>) -> Result<Box<dyn Write>, Failure> {
    let there = std::fs::metadata(path).ok();
    if let (Some(input), Some(there)) = (input, there)
        && input.is_file()
        && (input.dev(), input.ino()) == (there.dev(), there.ino())
    {
        return Err(Failure::usage(format!(
            "-w {} is the capture that is read; name another file",
            path.display()
        )));
    }
    Ok(Box::new(Late {
        path: path.to_owned(),
        file: None,
    }))
}

/// A file that is made when the first byte is written: not for an input that is no capture.
struct Late {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl Late {
    fn file(&mut self) -> io::Result<&mut BufWriter<File>> {
        let file = match self.file.take() {
            Some(file) => file,
            None => BufWriter::new(File::create(&self.path)?),
        };
        Ok(self.file.insert(file))
    }
}

impl Write for Late {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file()?.flush()
    }
}

/// How far it is, on a terminal.
struct Progress {
    shown: Option<Instant>,
    begun: Instant,
    /// The bytes of a regular file.
    size: Option<u64>,
    terminal: bool,
}

impl Progress {
    fn new(input: &Option<Metadata>) -> Self {
        let file = input.as_ref().filter(|input| input.is_file());
        Self {
            shown: None,
            begun: Instant::now(),
            size: file.map(Metadata::len).filter(|size| *size > 0),
            terminal: io::stderr().is_terminal() && !io::stdout().is_terminal(),
        }
    }

    fn show(&mut self, read: u64) {
        if !self.terminal || self.shown.unwrap_or(self.begun).elapsed() < PROGRESS {
            return;
        }
        self.shown = Some(Instant::now());
        let megabytes = read / 1_000_000;
        let part = match self.size {
            Some(size) => format!(", {} %", read.saturating_mul(100) / size),
            None => String::new(),
        };
        // Nobody is told if this fails.
        let _ = write!(io::stderr(), "\r\x1b[K{megabytes} MB read{part}");
    }

    fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn flags_are_documented_or_hidden() {
        let all = command();
        let replay = all.find_subcommand("replay").unwrap();
        let arg = |name: &str| replay.get_arguments().find(|arg| arg.get_id() == name);
        for name in NOT_HERE {
            assert!(arg(name).unwrap().is_hide_set(), "{name}");
        }
        let document = include_str!("../../docs/replay.md");
        let shown = replay.get_arguments().filter(|arg| !arg.is_hide_set());
        for long in shown.filter_map(Arg::get_long) {
            let named = [' ', '`', ','].map(|end| document.contains(&format!("`--{long}{end}")));
            assert!(named.contains(&true), "--{long} isn't in docs/replay.md");
        }
    }
}
