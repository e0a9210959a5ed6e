//! A topology brought to life, and its removal however the test ends.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::process::{Finished, PATH, Process, require, run};
use super::topology::{Link, Topology};

/// The limit for programs that set something up.
const SETUP: Duration = Duration::from_secs(20);

/// Ends every process of the namespaces and deletes them: `guardian DIRECTORY NAMESPACE…`.
///
/// It starts when the pipe on its standard input closes: when the test lets go of it, or dies.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
while read -r _; do :; done
directory=$1; shift
for namespace; do
    [ -e "/run/netns/$namespace" ] || continue
    for _ in 1 2 3 4 5; do
        pids=$(ip netns pids "$namespace" 2>/dev/null) || break
        [ -n "$pids" ] || break
        kill -9 $pids 2>/dev/null
    done
    inode=$(stat -Lc %i "/run/netns/$namespace")
    rm -f "/run/ftpalg/journal-$inode" "/run/ftpalg/daemon-$inode"
    ip netns del "$namespace"
done
rm -rf "$directory"
"#;

/// A running network. It is there for as long as one of its views is (see [`Net::recast`]).
pub struct Net {
    topology: Topology,
    built: Arc<Built>,
}

/// What was made, and who removes it.
struct Built {
    prefix: String,
    directory: PathBuf,
    guardian: Option<Child>,
}

impl Net {
    /// Makes the namespaces, links, addresses and routes of a topology.
    ///
    /// # Panics
    /// If that isn't possible: not root, a tool that isn't there.
    pub fn new(topology: &Topology) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "the lab makes network namespaces: run the tests as root (./scripts/test)"
        );
        for tool in ["ip", "nsenter", "iptables-nft", "iptables-legacy", "nft"] {
            require(tool);
        }
        let prefix = prefix();
        let directory = make_directory(&prefix);
        let names: Vec<_> = topology
            .hosts
            .iter()
            .map(|host| namespace(&prefix, host.name))
            .collect();
        let guardian = Some(start_guardian(&directory, &names));
        let net = Self {
            topology: topology.clone(),
            built: Arc::new(Built {
                prefix,
                directory,
                guardian,
            }),
        };
        net.build();
        net
    }

    /// The same network with its parts played by others: what is built stays as it is.
    pub fn recast(&self, change: impl FnOnce(&mut Topology)) -> Self {
        let mut topology = self.topology.clone();
        change(&mut topology);
        Self {
            topology,
            built: Arc::clone(&self.built),
        }
    }

    /// What it was made from.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A directory that lives as long as the lab.
    pub fn directory(&self) -> &Path {
        &self.built.directory
    }

    /// The namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        namespace(&self.built.prefix, host)
    }

    /// A program on a host; add arguments and run or spawn it.
    pub fn command(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace(host)))
            .arg("--")
            .arg(program)
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .env("HOME", self.directory())
            // Otherwise one lock is for all namespaces there are, with other tests' among them.
            .env(
                "XTABLES_LOCKFILE",
                self.directory().join(format!("{host}-xtables.lock")),
            )
            .current_dir(self.directory());
        command
    }

    /// A program on the host of the clients, which must be there.
    pub fn client(&self, program: &str) -> Command {
        require(program);
        self.command(self.topology.client, program)
    }

    /// Runs `words[0]` with the other words as its arguments on a host.
    pub fn exec(&self, host: &str, words: &[&str]) -> Finished {
        let mut command = self.command(host, words[0]);
        command.args(&words[1..]);
        run(command, SETUP)
    }

    /// Runs a program that reads `input`.
    pub fn feed(&self, host: &str, words: &[&str], input: &str) -> Finished {
        let mut command = self.command(host, words[0]);
        command.args(&words[1..]);
        Process::spawn_with_input(command, input).finish(SETUP)
    }

    /// Runs a function in a thread of its own that has moved into a host's namespace.
    ///
    /// Threads that the function starts are in that namespace as well.
    pub fn within<T: Send>(&self, host: &str, what: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.namespace(host)))
            .expect("the namespace is there");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).expect("setns as root");
                what()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn build(&self) {
        let mut make = String::new();
        for host in &self.topology.hosts {
            make += &format!("netns add {}\n", self.namespace(host.name));
        }
        for Link(a, b) in self.links() {
            make += &format!(
                "link add {} netns {} type veth peer name {} netns {}\n",
                a.interface,
                self.namespace(a.host),
                b.interface,
                self.namespace(b.host)
            );
        }
        self.batch(None, &make);
        for host in &self.topology.hosts {
            let mut set = String::from("link set lo up\n");
            for end in self.links().iter().flat_map(|Link(a, b)| [a, b]) {
                if end.host != host.name {
                    continue;
                }
                for address in &end.addresses {
                    let nodad = if address.contains(':') { " nodad" } else { "" };
                    set += &format!("address add {address} dev {}{nodad}\n", end.interface);
                }
                set += &format!("link set {} up\n", end.interface);
            }
            for route in &host.routes {
                set += &format!("route add {route}\n");
            }
            self.batch(Some(host.name), &set);
            let forward = u8::from(host.forwards).to_string();
            self.sysctl(host.name, "net.ipv4.ip_forward", &forward);
            self.sysctl(host.name, "net.ipv6.conf.all.forwarding", &forward);
        }
        // The strict reading: nothing of what the lab shows rests on a lenient conntrack.
        for host in &self.topology.hosts {
            self.sysctl(host.name, "net.netfilter.nf_conntrack_tcp_be_liberal", "0");
        }
    }

    /// Sets a sysctl of a host.
    pub fn sysctl(&self, host: &str, name: &str, value: &str) {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.within(host, || {
            if let Ok(mut file) = File::options().write(true).open(&path) {
                file.write_all(value.as_bytes())
                    .unwrap_or_else(|error| panic!("{name}={value}: {error}"));
            }
        });
    }

    /// Reads a sysctl of a host; `None` if it has none of that name.
    pub fn read_sysctl(&self, host: &str, name: &str) -> Option<String> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.within(host, || {
            std::fs::read_to_string(&path)
                .ok()
                .map(|text| text.trim().to_owned())
        })
    }

    /// Makes a switch of a host: whatever comes in at one of its interfaces goes out at the others.
    pub fn bridge(&self, host: &str) {
        let mut commands = String::from("link add bridge0 type bridge\n");
        for end in self.links().iter().flat_map(|Link(a, b)| [a, b]) {
            if end.host == host {
                commands += &format!("link set {} master bridge0\n", end.interface);
            }
        }
        self.batch(Some(host), &(commands + "link set bridge0 up\n"));
    }

    fn links(&self) -> &[Link] {
        &self.topology.links
    }

    fn batch(&self, host: Option<&str>, commands: &str) {
        let mut command = Command::new("ip");
        command.env("PATH", PATH);
        if let Some(host) = host {
            command.args(["-n", &self.namespace(host)]);
        }
        command.args(["-batch", "-"]);
        Process::spawn_with_input(command, commands)
            .finish(SETUP)
            .must();
    }
}

/// What the names of one network, and of its directory, begin with. `remove_leftovers` in
/// `scripts/lib.sh` goes by it: it finds what a process left that is gone.
fn prefix() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("fa{}x{number}", std::process::id())
}

fn make_directory(prefix: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(prefix);
    std::fs::create_dir_all(&directory).expect("a directory for the lab");
    directory
}

/// A directory for a test that has no network, or wants another one. It is gone when this is dropped.
pub struct Directory(PathBuf);

impl Directory {
    /// An empty one.
    ///
    /// # Panics
    /// If none can be made.
    #[expect(clippy::new_without_default, reason = "no two are the same")]
    pub fn new() -> Self {
        Self(make_directory(&prefix()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn namespace(prefix: &str, host: &str) -> String {
    format!("{prefix}-{host}")
}

fn start_guardian(directory: &Path, namespaces: &[String]) -> Child {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", GUARDIAN, "guardian"])
        .arg(directory)
        .args(namespaces)
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Ctrl-C at the terminal must not reach it before it has done its work.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command.spawn().expect("/bin/sh starts")
}

impl Drop for Built {
    fn drop(&mut self) {
        if let Some(mut guardian) = self.guardian.take() {
            drop(guardian.stdin.take());
            drop(guardian.wait());
        }
    }
}
