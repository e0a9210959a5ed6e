//! What stands on the gateway: nothing, the kernel's helper, or `ftpalg`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::net::Net;
use super::process::{PATH, Process, run};
use super::rules::Flavour;

/// How long `ftpalg` may take to start and to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// The kind of gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alg {
    /// Plain NAT.
    None,
    /// `nf_conntrack_ftp` and `nf_nat_ftp`: the oracle.
    Kernel,
    /// `ftpalg run --inside <the gateway's inside interface>` and these arguments.
    Ftpalg(Vec<String>),
}

impl Alg {
    /// `ftpalg` with further arguments, or what `FTPALG_LAB_ALG` names instead (`kernel`).
    ///
    /// With `kernel`, the tests show what the kernel's helper does with the same traffic.
    pub fn under_test(arguments: &[&str]) -> Self {
        match std::env::var("FTPALG_LAB_ALG").as_deref() {
            Ok("kernel") => Self::Kernel,
            Ok(other) if other != "ftpalg" => {
                panic!("FTPALG_LAB_ALG={other}: use `ftpalg` or `kernel`")
            }
            _ => Self::Ftpalg(arguments.iter().map(|&word| word.to_owned()).collect()),
        }
    }

    /// For reports.
    pub fn name(&self) -> String {
        match self {
            Self::None => "no ALG".to_owned(),
            Self::Kernel => "kernel helper".to_owned(),
            Self::Ftpalg(arguments) => format!("ftpalg {}", arguments.join(" ")),
        }
    }

    /// Starts it on the gateway; returns when it is in place.
    ///
    /// # Panics
    /// If it doesn't get there.
    pub fn start<'a>(&self, net: &'a Net, flavour: Flavour) -> Running<'a> {
        self.start_with_log(net, flavour, "debug")
    }

    /// The same with another `RUST_LOG`.
    ///
    /// # Panics
    /// If it doesn't get there.
    pub fn start_with_log<'a>(&self, net: &'a Net, flavour: Flavour, log: &str) -> Running<'a> {
        match self {
            Self::None => Running {
                net,
                what: What::Nothing,
            },
            Self::Kernel => {
                let running = Running {
                    net,
                    what: What::Kernel(flavour),
                };
                running.kernel_rule("-A").must();
                running
            }
            Self::Ftpalg(arguments) => {
                let router = net.topology().router;
                let mut command = net.command(router, crate::paths::ftpalg());
                command
                    .args(["run", "--inside", net.topology().inside])
                    .args(arguments)
                    .env("RUST_LOG", log)
                    .env("RUST_BACKTRACE", "1");
                let process = Process::spawn(command);
                if !process.wait_for("ready", LIMIT) {
                    panic!("ftpalg wasn't ready in time: {}", process.finish(LIMIT));
                }
                Running {
                    net,
                    what: What::Ftpalg(process),
                }
            }
        }
    }
}

/// Why the kernel's helper can't be the oracle on this machine, if so. Its modules are loaded if they
/// aren't there yet.
pub fn no_kernel_helper(net: &Net) -> Option<String> {
    let mut load = Command::new("modprobe");
    load.env("PATH", PATH);
    load.args(["-qa", "nf_conntrack_ftp", "nf_nat_ftp"]);
    let has_modprobe = PATH
        .split(':')
        .any(|dir| Path::new(dir).join("modprobe").exists());
    let loaded = has_modprobe && run(load, LIMIT).ok();
    let configured = || {
        let mut show = Command::new("/bin/sh");
        let read = "zcat /proc/config.gz || cat /boot/config-$(uname -r)";
        show.env("PATH", PATH).args(["-c", read]);
        run(show, LIMIT).stdout.contains("CONFIG_NF_NAT_FTP=y\n")
    };
    if !loaded && !Path::new("/sys/module/nf_nat_ftp").exists() && !configured() {
        return Some("nf_nat_ftp is neither loaded, nor loadable, nor built in".to_owned());
    }
    // The rule needs the helper itself and the target `CT`.
    let running = Running {
        net,
        what: What::Kernel(Flavour::Nft),
    };
    let made = running.kernel_rule("-A");
    if !made.ok() {
        return Some(made.to_string());
    }
    running.stop();
    None
}

/// A gateway at work. Its log is shown if the test fails.
pub struct Running<'a> {
    net: &'a Net,
    what: What,
}

enum What {
    Nothing,
    Kernel(Flavour),
    Ftpalg(Process),
}

impl Running<'_> {
    /// What `ftpalg` has printed so far.
    pub fn log(&self) -> String {
        match &self.what {
            What::Ftpalg(process) => process.log(),
            _ => String::new(),
        }
    }

    /// The running `ftpalg`.
    pub fn process(&self) -> Option<&Process> {
        match &self.what {
            What::Ftpalg(process) => Some(process),
            _ => None,
        }
    }

    /// Stops it as a service manager does, and returns its log.
    ///
    /// # Panics
    /// If it doesn't end by itself, with exit code 0.
    pub fn stop(mut self) -> String {
        match std::mem::replace(&mut self.what, What::Nothing) {
            What::Nothing => String::new(),
            What::Kernel(flavour) => {
                self.what = What::Kernel(flavour);
                self.kernel_rule("-D").must();
                self.what = What::Nothing;
                String::new()
            }
            What::Ftpalg(process) => {
                process.signal(Signal::SIGTERM);
                process.finish(LIMIT).must().log
            }
        }
    }

    fn kernel_rule(&self, action: &str) -> super::process::Finished {
        let What::Kernel(flavour) = self.what else {
            panic!("only the kernel's helper has a rule");
        };
        let port = self.net.topology().dial.port().to_string();
        let words = [
            flavour.iptables(),
            "-w",
            "10",
            "-t",
            "raw",
            action,
            "PREROUTING",
        ];
        let matches = ["-p", "tcp", "--dport", &port, "-j", "CT", "--helper", "ftp"];
        self.net
            .exec(self.net.topology().router, &[&words[..], &matches].concat())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.log().is_empty() {
            eprintln!("--- ftpalg's log\n{}---", self.log());
        }
    }
}
