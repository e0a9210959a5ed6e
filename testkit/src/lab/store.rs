//! A Valkey or Redis server, as gateways share one.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::net::Net;
use super::process::{Process, run};
use crate::paths::unpacked;

/// How long it may take to start and to answer.
const LIMIT: Duration = Duration::from_secs(20);

/// What `docs/recipes/two-gateways.md` says, with the password `secret`.
const USERS: &str = "\
user default off
user ftpalg on >secret ~ftpalg:* resetchannels -@all +@connection +@transaction +get +psetex +del +pttl +scan
";

/// A running server. `ftpalg:secret` may use it.
pub struct Store {
    host: &'static str,
    address: &'static str,
    process: Process,
}

impl Store {
    /// Starts one on a host, at an address of it. Nothing is in it, and nothing is on disk.
    ///
    /// # Panics
    /// If it doesn't start.
    pub fn start(net: &Net, host: &'static str, address: &'static str) -> Self {
        let mut command = net.command(host, &unpacked("redis-tools/usr/bin/redis-server"));
        let users = net.directory().join("users.conf");
        std::fs::write(&users, USERS).expect("the lab's directory");
        command
            .arg(users)
            .args(["--port", "6379", "--bind", address, "--save", ""]);
        // Who is on the network is the lab's business.
        command.args(["--protected-mode", "no", "--dir"]);
        command.arg(net.directory());
        let process = Process::spawn(command);
        assert!(process.wait_for("Ready", LIMIT), "{}", process.log());
        Self {
            host,
            address,
            process,
        }
    }

    /// The server's process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Kills it.
    pub fn fails(self) {
        self.process.signal(Signal::SIGKILL);
        drop(self.process.finish(LIMIT));
    }

    /// Its keys that match a pattern, a line each.
    ///
    /// # Panics
    /// If it doesn't answer.
    pub fn keys(&self, net: &Net, pattern: &str) -> String {
        let mut command = net.command(self.host, &unpacked("redis-tools/usr/bin/redis-cli"));
        command.args(["--user", "ftpalg", "--pass", "secret", "--no-auth-warning"]);
        command.args(["-h", self.address, "--scan", "--pattern", pattern]);
        run(command, LIMIT).must().stdout
    }
}
