//! What the kernel says of the machine and of processes: processor time, memory, and how much of it
//! other programs use meanwhile.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

/// The processor time used so far.
#[derive(Clone, Copy)]
pub(crate) struct Cpu {
    /// All processors, whatever they did but for idling and waiting.
    pub(crate) busy: Duration,
    /// Of it, what the hypervisor gave to other machines.
    pub(crate) stolen: Duration,
    /// Programs that are neither this one nor its descendants, nor threads of the kernel.
    pub(crate) others: Duration,
    /// One process with all its threads and its children.
    pub(crate) process: Duration,
}

impl Cpu {
    /// Reads them; `process` is the id of the process to look at.
    pub(crate) fn now(process: Option<u32>) -> Self {
        let text = fs::read_to_string("/proc/stat").expect("/proc is mounted");
        let fields: Vec<u64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|field| field.parse().ok())
            .collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        let busy = [0, 1, 2, 5, 6, 7].map(|at| fields[at]).iter().sum();
        Self {
            busy: ticks(busy),
            stolen: ticks(fields[7]),
            others: others(),
            process: process.map_or(Duration::ZERO, of),
        }
    }

    /// What was used since.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(before.busy),
            stolen: self.stolen.saturating_sub(before.stolen),
            others: self.others.saturating_sub(before.others),
            process: self.process.saturating_sub(before.process),
        }
    }
}

/// The time of a process: of its threads and children to the nanosecond, of its children that have
/// ended in ticks.
fn of(pid: u32) -> Duration {
    let ended = Stat::read(pid).map_or(Duration::ZERO, |stat| ticks(stat.children));
    children(pid).map(alone).sum::<Duration>() + alone(pid) + ended
}

fn alone(pid: u32) -> Duration {
    // A child may have ended by now.
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let nanoseconds = tasks.into_iter().flatten().flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// The children of a process: the workers of a server, tools that are kept running.
fn children(pid: u32) -> impl Iterator<Item = u32> {
    // Those of each thread by itself.
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).ok();
    let all: Vec<_> = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(of_task)
        .collect();
    let pids: Vec<_> = all
        .iter()
        .flat_map(|text| text.split_whitespace().flat_map(str::parse))
        .collect();
    pids.into_iter()
}

/// The time of all other programs. What a process has used goes to its parent when it has ended, so
/// that the sum never loses anything.
fn others() -> Duration {
    let all: HashMap<u32, Stat> = fs::read_dir("/proc")
        .expect("/proc is mounted")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Stat::read(pid)?)))
        .collect();
    let own = std::process::id();
    // The threads of the kernel are children of process 2.
    let mut skipped: HashSet<u32> = HashSet::from([own, 2]);
    loop {
        let more: Vec<_> = all
            .iter()
            .filter(|(pid, stat)| skipped.contains(&stat.parent) && !skipped.contains(pid))
            .map(|(&pid, _)| pid)
            .collect();
        if more.is_empty() {
            break;
        }
        skipped.extend(more);
    }
    let counted = all.iter().filter(|(pid, _)| !skipped.contains(pid));
    ticks(counted.map(|(_, stat)| stat.own + stat.children).sum())
}

struct Stat {
    parent: u32,
    /// In ticks.
    own: u64,
    /// Of children that have ended, in ticks.
    children: u64,
}

impl Stat {
    fn read(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, which comes second, may contain anything.
        let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: number(11)? + number(12)?,
            children: number(13)? + number(14)?,
        })
    }
}

fn ticks(count: u64) -> Duration {
    let rate = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let rate = rate.map_or(100, i64::unsigned_abs);
    Duration::from_nanos(count * 1_000_000_000 / rate)
}

/// The memory of a process, in KiB.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Memory {
    /// Resident.
    pub(crate) rss: u64,
    /// Resident, with what it shares divided by the number of those that share it.
    pub(crate) pss: u64,
    /// The largest that was ever resident.
    pub(crate) peak: u64,
}

impl Memory {
    /// That of a process and its children (a master with workers).
    pub(crate) fn of(pid: u32) -> Self {
        let mut sum = Self::alone(pid);
        for child in children(pid) {
            let more = Self::alone(child);
            sum.rss += more.rss;
            sum.pss += more.pss;
            sum.peak += more.peak;
        }
        sum
    }

    fn alone(pid: u32) -> Self {
        let value = |file: &str, key: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.unwrap_or(0)
        };
        Self {
            rss: value("status", "VmRSS:"),
            pss: value("smaps_rollup", "Pss:"),
            peak: value("status", "VmHWM:"),
        }
    }
}

/// How many processors the machine has.
pub(crate) fn processors() -> u32 {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|n| u32::try_from(n).ok()).unwrap_or(1)
}

/// The model of the processor, how many there are, and the kernel's version.
pub(crate) fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown processor", |(_, model)| model);
    let count = processors();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{count} × {model}, Linux {}", kernel.trim())
}
