//! What a process does while nothing happens.

use std::time::{Duration, Instant};

/// The processor time of a process in clock ticks, and how often its threads went to sleep.
pub fn activity(pid: u32) -> (u64, u64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    let sleeps = std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("status")).ok()?;
            let line = text.lines().find(|line| line.starts_with("voluntary"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .sum();
    (ticks, sleeps)
}

/// Waits until a process has done nothing for a second, and returns its [`activity`] until then.
///
/// # Panics
/// If it doesn't come to rest.
pub fn settled(pid: u32) -> (u64, u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let before = activity(pid);
        std::thread::sleep(Duration::from_secs(1));
        if activity(pid) == before {
            return before;
        }
        assert!(Instant::now() < deadline, "it doesn't come to rest");
    }
}
