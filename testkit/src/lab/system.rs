//! A host's own system: systemd is its first process, and its root file system is this machine's, with whatever
//! is changed in it kept in memory.
//!
//! Its processes, mounts and control groups are its own. Its network is that of a host of the lab. Nothing of
//! this machine starts in it, and it can change no sysctl and no device.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::net::Net;
use super::process::{Finished, PATH, require, run};

/// How long it may take to be there, and any of its commands.
const LIMIT: Duration = Duration::from_secs(60);

/// `system DIRECTORY NAMESPACE INSIDE`: makes a control group of that name, starts [`INSIDE`] in it and in that
/// network namespace, says its process id, and ends all of it when the standard input closes, even if the test
/// was killed.
const OUTSIDE: &str = r#"
trap '' INT TERM HUP
groups=$1/groups
mkdir "$groups"
mount -t cgroup2 cgroup2 "$groups"
mkdir "$groups/$2"
(
    echo 0 >"$groups/$2/cgroup.procs"
    exec nsenter --net="/run/netns/$2" unshare --pid --fork --kill-child --mount --cgroup --uts --ipc \
        sh -c "$3" inside "$1"
) </dev/null >/dev/null &
echo $!
while read -r _; do :; done
kill -9 $!
wait
for _ in 1 2 3 4 5 6 7 8 9 10; do
    find "$groups/$2" -depth -type d -exec rmdir {} + 2>/dev/null
    [ -d "$groups/$2" ] || break
    sleep 0.1
done
"#;

/// `inside DIRECTORY`: makes the root file system and becomes systemd. The directory is `/mnt` in it.
const INSIDE: &str = r#"
set -eu
cd "$1"
mkdir layers
mount -t tmpfs tmpfs layers
mkdir layers/upper layers/work layers/root
mount -t overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work overlay layers/root
cd layers/root

# What this machine would start, mount or set.
rm -rf usr/lib/systemd/system/*.wants lib/systemd/system/*.wants etc/systemd/system/*.wants \
    usr/lib/systemd/system-generators lib/systemd/system-generators etc/systemd/system-generators
rm -f usr/sbin/policy-rc.d
: >etc/fstab
printf '[Unit]\nWants=systemd-journald.service\n' >etc/systemd/system/lab.target

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount --bind "$1" mnt
mkdir run/outside
pivot_root . run/outside
umount -l /run/outside
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=lab.target
"#;

/// A running system. It is gone when this is dropped.
pub struct System {
    guardian: Child,
    /// systemd, as this machine numbers it.
    first: u32,
}

impl System {
    /// Why this machine can't have one, if so.
    pub fn impossible() -> Option<String> {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        ["overlay", "cgroup2"]
            .into_iter()
            .find(|name| !known.lines().any(|line| line.ends_with(name)))
            .map(|name| format!("this kernel hasn't got {name}"))
    }

    /// Boots one on a host of the lab.
    ///
    /// # Panics
    /// If it doesn't get there.
    pub fn boot(net: &Net, host: &str) -> Self {
        require("systemctl");
        let name = net.namespace(host);
        // Not in the host's network: whoever ends all that is in it must not end this one first.
        let mut command = Command::new("unshare");
        command
            .env("PATH", PATH)
            .args(["--mount", "sh", "-uc", OUTSIDE, "system"])
            .arg(net.directory())
            .args([&name, INSIDE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut guardian = command.spawn().expect("unshare starts");
        let mut told = String::new();
        let stdout = guardian.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut told).unwrap();
        let mut system = Self { guardian, first: 0 };
        let children = format!("/proc/{0}/task/{0}/children", told.trim());
        let deadline = Instant::now() + LIMIT;
        loop {
            let child = std::fs::read_to_string(&children).unwrap_or_default();
            system.first = child.trim().parse().unwrap_or(0);
            // It becomes systemd when its root file system is made.
            let name = std::fs::read_to_string(format!("/proc/{}/comm", system.first));
            if name.is_ok_and(|name| name == "systemd\n")
                && system
                    .exec(&["systemctl", "is-system-running", "--wait"])
                    .ok()
            {
                return system;
            }
            assert!(Instant::now() < deadline, "systemd isn't there in time");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A program in it; add arguments and run or spawn it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .args(["--target", &self.first.to_string(), "--all", "--", program])
            .env_clear()
            .envs([("PATH", PATH), ("LC_ALL", "C"), ("HOME", "/root")])
            .current_dir("/");
        command
    }

    /// Runs `words[0]` with the other words as its arguments.
    pub fn exec(&self, words: &[&str]) -> Finished {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        run(command, LIMIT)
    }

    /// Runs a script of the shell.
    pub fn sh(&self, script: &str) -> Finished {
        self.exec(&["sh", "-euc", script])
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if std::thread::panicking() && self.first != 0 {
            let journal = self.exec(&["journalctl", "--no-pager", "-o", "cat", "-n", "60"]);
            eprintln!("--- the journal\n{}---", journal.log);
        }
        drop(self.guardian.stdin.take());
        drop(self.guardian.wait());
    }
}
