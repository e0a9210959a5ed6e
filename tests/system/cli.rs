//! The command line as a contract: exit codes, one line per mistake, one daemon per network
//! namespace, and nothing left behind. Needs root: each test has a network namespace of its own.

mod alone;
mod clients;
mod descriptors;
mod manners;
mod signals;
mod status;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use testkit::lab::activity::{activity, settled};
use testkit::lab::net::{Directory, Net};
use testkit::lab::topology::{Topology, host};
use testkit::paths;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `f` in a thread with a new network namespace, which its children are in, too. It has the
/// interface `in0`.
fn in_namespace(f: impl FnOnce() + Send) {
    let net = Net::new(&Topology::bare(vec![host("h", &[])], Vec::new()));
    net.within("h", || {
        // Its other end stays down. Without a carrier the kernel sends nothing on it by itself, and the
        // counters of rules stay what they are.
        shell("ip link add in0 type veth peer name in1 && ip link set in0 up");
        f();
    });
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{script}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn ftpalg(args: &[&str]) -> Output {
    Command::new(paths::ftpalg()).args(args).output().unwrap()
}

/// The command must end with `code`, having said one line that contains `part` and how to mend it.
fn refused(output: &Output, code: i32, part: &str) {
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert_eq!(line.matches('\n').count(), 1, "one line: {line:?}");
    assert!(line.starts_with("ftpalg: "), "{line}");
    assert!(line.contains(part), "{part:?} in {line:?}");
    assert_eq!(output.stdout, b"", "nothing on the standard output");
}

/// All of the rules there are.
fn ruleset() -> String {
    shell("iptables-save; ip6tables-save; nft list ruleset; iptables-legacy-save 2>/dev/null")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .fold(String::new(), |all, line| all + line + "\n")
}

/// A running daemon, killed when dropped.
struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Daemon {
    fn start(args: &[&str]) -> Self {
        Self::spawn(Command::new(paths::ftpalg()).arg("run").args(args))
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(child.stdout.take().unwrap());
        let daemon = Self { child, lines };
        daemon.expect("ready");
        daemon
    }

    /// Waits for a line that contains `part`.
    fn expect(&self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(part) => return,
                Ok(_) => {}
                Err(e) => panic!("no line with {part:?}: {e}"),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Its exit code, once it has ended.
    fn ended(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("still running");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[test]
fn help_and_version_are_no_mistakes() {
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["--version"],
        &["rules", "--help"],
    ] {
        let output = ftpalg(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}"
        );
    }
    let help = String::from_utf8(ftpalg(&["run", "--help"]).stdout).unwrap();
    let flags: Vec<_> = help.split("\n      --").skip(1).collect();
    assert!(flags.len() >= 15, "{help}");
    for flag in flags {
        assert!(flag.contains("[default"), "a default is told: --{flag}");
    }
}

#[test]
fn mistakes_are_one_line_and_install_nothing() {
    in_namespace(|| {
        let before = ruleset();
        for (args, part) in [
            (&[][..], "no command"),
            (&["fly"], "fly"),
            (&["run", "--colour"], "--colour"),
            (&["run", "--inside"], "--inside"),
            (&["run", "--inside", ""], "--inside"),
            (&["run", "--inside", "10.0.0.0/33"], "10.0.0.0/33"),
            (&["run", "--inside", "nosuch0"], "nosuch0"),
            (&["run", "--local", "--port", "0"], "1 to 65535"),
            (&["run", "--local", "--port", "65536"], "1 to 65535"),
            (&["run", "--local", "--port", "ftp"], "1 to 65535"),
            (&["run", "--local", "--data-ports", "9-8"], "9-8"),
            (
                &["run", "--local", "--data-ports", "20-30"],
                "control port 21",
            ),
            (
                &[
                    "run",
                    "--local",
                    "--data-ports",
                    "100-200",
                    "--tls",
                    "range:150-250",
                ],
                "overlap",
            ),
            (
                &["run", "--inside", "10.0.0.0/8", "--inside", "10.1.0.0/16"],
                "overlap",
            ),
            (
                &["run", "--local", "--advertise", "10.0.0.2=2001:db8::1"],
                "IPv4",
            ),
            (
                &["run", "--local", "--backend", "pf"],
                "auto, nft, iptables",
            ),
            (&["run", "--local", "--fail", "ajar"], "closed, open"),
            (&["run", "--local", "--tls", "maybe"], "pass, deny"),
            (&["run", "--local", "--queues", "0"], "1 to 64"),
            (&["run", "--local", "--queue-num", "65536"], "--queue-num"),
            (&["run", "--local", "--mark", "3"], "one bit"),
            (&["run", "--local", "--deadline", "0"], "seconds"),
            (
                &["run", "--config", "/nonexistent.toml"],
                "/nonexistent.toml",
            ),
            (&["check", "/nonexistent.toml"], "/nonexistent.toml"),
            (&["check", "/dev/zero"], "it is a device"),
            (&["run", "--config", "/dev/zero"], "it is a device"),
            (&["check", "/run"], "it is a directory"),
            (&["run", "--local", "--queue-num", "63393"], "lock"),
            (&["rules", "install", "--inside", "nosuch0"], "nosuch0"),
        ] {
            refused(&ftpalg(args), 2, part);
        }
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn a_file_is_checked_and_its_mistake_located() {
    let directory = Directory::new();
    let path = directory.file("check.toml");
    let name = path.to_str().unwrap();
    fs::write(&path, "inside = [\"in0\"]\nport = [21, 2121]\n").unwrap();
    assert_eq!(ftpalg(&["check", name]).status.code(), Some(0));
    fs::write(&path, "local = true\n\nports = 21\n").unwrap();
    let output = ftpalg(&["check", name]);
    refused(
        &output,
        2,
        &format!("{name}:3: ports: unknown key; did you mean port?"),
    );
}

#[test]
fn a_configuration_may_come_through_a_pipe() {
    let piped = |script: &str| {
        let script = script.replace("FTPALG", paths::ftpalg());
        Command::new("bash").args(["-c", &script]).output().unwrap()
    };
    let output = piped("FTPALG check <(echo 'port = 2121')");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = piped("echo 'port = 2121' | FTPALG check -");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    refused(
        &piped("echo 'prot = 2121' | FTPALG check -"),
        2,
        "-:1: prot: unknown key",
    );
    refused(&piped("FTPALG check - </dev/zero"), 2, "it is a device");
    refused(
        &piped("tr '\\0' '#' </dev/zero | FTPALG check -"),
        2,
        "larger than",
    );
}

/// A FIFO that nobody writes to.
#[test]
fn a_configuration_that_never_comes_is_given_up() {
    let directory = Directory::new();
    let path = directory.file("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let started = Instant::now();
    let output = ftpalg(&["check", path.to_str().unwrap()]);
    refused(&output, 2, "doesn't end");
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn without_the_capability_nothing_starts() {
    in_namespace(|| {
        let output = Command::new("setpriv")
            .args([
                "--bounding-set=-net_admin",
                "--inh-caps=-net_admin",
                paths::ftpalg(),
            ])
            .args(["run", "--local"])
            .output()
            .unwrap();
        refused(&output, 2, "CAP_NET_ADMIN");
    });
}

#[test]
fn without_iptables_nothing_starts_with_it() {
    in_namespace(|| {
        let program = paths::ftpalg();
        // Only an empty place to look for tools: the usual directories are hidden.
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c"])
            .arg(format!(
                "cp {program} /tmp/.ftpalg-$$ && exec 3</tmp/.ftpalg-$$ && rm /tmp/.ftpalg-$$ && \
                 mount -t tmpfs none /usr/sbin && exec env PATH=/nonexistent /proc/self/fd/3 run --local --steering iptables"
            ))
            .output()
            .unwrap();
        refused(&output, 2, "iptables");
    });
}

#[test]
fn a_queue_that_another_program_reads_is_not_taken() {
    in_namespace(|| {
        let mut queue = nfq::Queue::open().unwrap();
        queue.bind(2122).unwrap();
        let before = ruleset();
        refused(
            &ftpalg(&["run", "--local", "--queues", "2"]),
            2,
            "queue 2122",
        );
        assert_eq!(ruleset(), before, "and the rules are as they were");
        // Closing it isn't enough: children of other tests may have inherited it.
        queue.unbind(2122).unwrap();
        let _daemon = Daemon::start(&["--local", "--queues", "2"]);
    });
}

#[test]
fn from_start_to_end() {
    in_namespace(|| {
        shell("iptables -t nat -A POSTROUTING -o in0 -j MASQUERADE; iptables -P FORWARD DROP");
        let before = ruleset();
        refused(&ftpalg(&["status"]), 3, "doesn't run");
        for backend in ["nft", "iptables"] {
            let mut daemon = Daemon::start(&["--inside", "in0", "--backend", backend]);
            assert_ne!(ruleset(), before);
            let status = ftpalg(&["status", "--json"]);
            assert_eq!(status.status.code(), Some(0));
            let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            assert_eq!(json["pid"], daemon.child.id());
            assert_eq!(json["backend"], backend);
            assert_eq!(json["inside"], serde_json::json!(["in0"]));
            assert_eq!(json["queues"][0]["queue"], 2121);
            for command in ["sessions", "pinholes"] {
                let output = ftpalg(&[command, "--json"]);
                assert_eq!(output.status.code(), Some(0));
                assert_eq!(output.stdout, b"[]\n");
            }
            let pid = daemon.child.id();
            refused(
                &ftpalg(&["run", "--local"]),
                2,
                &format!("already runs in this network namespace (pid {pid})"),
            );

            // An impatient user changes nothing.
            daemon.signal(Signal::SIGTERM);
            daemon.signal(Signal::SIGINT);
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.ended(), Some(0));
            daemon.expect("rules removed");
            assert_eq!(ruleset(), before, "{backend}");
        }
    });
}

#[test]
fn flushed_rules_are_put_back() {
    in_namespace(|| {
        let mut daemon = Daemon::start(&["--inside", "in0"]);
        shell("iptables -t raw -F");
        // Not in place for a moment, and then put back.
        let deadline = Instant::now() + Duration::from_secs(10);
        while ftpalg(&["status"]).status.code() != Some(0) {
            assert!(Instant::now() < deadline, "not put back");
            thread::sleep(Duration::from_millis(10));
        }
        daemon.signal(Signal::SIGHUP);
        daemon.signal(Signal::SIGINT);
        assert_eq!(daemon.ended(), Some(0));
    });
}

#[test]
fn a_killed_daemon_has_a_clean_successor() {
    in_namespace(|| {
        shell("iptables -A FORWARD -j ACCEPT");
        let before = ruleset();
        let mut first = Daemon::start(&["--inside", "in0"]);
        first.signal(Signal::SIGKILL);
        assert_eq!(first.ended(), None);
        let mut second = Daemon::start(&["--inside", "in0"]);
        second.signal(Signal::SIGTERM);
        assert_eq!(second.ended(), Some(0));
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn rules_by_themselves_come_and_go() {
    in_namespace(|| {
        shell("iptables -A FORWARD -j ACCEPT");
        let before = ruleset();
        let printed = ftpalg(&["rules", "print", "--inside", "in0", "--queue-num", "7"]);
        assert_eq!(printed.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&printed.stdout).contains("--queue-num 7"));
        assert_eq!(ruleset(), before, "printing changes nothing");
        for _ in 0..2 {
            assert_eq!(
                ftpalg(&["rules", "install", "--inside", "in0"])
                    .status
                    .code(),
                Some(0)
            );
        }
        assert_ne!(ruleset(), before);
        for _ in 0..2 {
            assert_eq!(ftpalg(&["rules", "remove"]).status.code(), Some(0));
        }
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn an_idle_daemon_sleeps() {
    in_namespace(|| {
        // The lock is one for all namespaces: what others do with it wakes the daemon.
        let mut command = Command::new(paths::ftpalg());
        command.env("XTABLES_LOCKFILE", "/nonexistent/xtables.lock");
        let daemon = Daemon::spawn(command.args(["run", "--local"]));
        let pid = daemon.child.id();
        // Its threads settle after the line that it is ready.
        let before = settled(pid);
        thread::sleep(Duration::from_secs(2));
        assert_eq!(activity(pid), before, "nothing wakes it");
    });
}
