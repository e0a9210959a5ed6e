//! Every signal there is: it ends the daemon as a service manager does, or nothing happens.

use super::*;

/// After these it ends.
const ENDS: [i32; 6] = [
    Signal::SIGINT as i32,
    Signal::SIGQUIT as i32,
    Signal::SIGABRT as i32,
    Signal::SIGTERM as i32,
    Signal::SIGXCPU as i32,
    // With no time for a successor.
    Signal::SIGUSR2 as i32,
];
/// Not in a program's hand: two by the kernel's rules, and two that the C library uses by itself and lets
/// nobody block.
const OTHERS: [i32; 4] = [Signal::SIGKILL as i32, Signal::SIGSTOP as i32, 32, 33];

#[test]
fn every_signal_ends_it_cleanly_or_not_at_all() {
    in_namespace(|| {
        shell("iptables -A FORWARD -j ACCEPT");
        let before = ruleset();
        let mut daemon = Daemon::start(&["--inside", "in0", "--handover", "0"]);
        let during = ruleset();
        assert_ne!(during, before);
        for signal in (1..=64).filter(|signal| !OTHERS.contains(signal)) {
            let pid = daemon.child.id();
            shell(&format!("kill -{signal} {pid}"));
            if ENDS.contains(&signal) {
                assert_eq!(daemon.ended(), Some(0), "signal {signal}");
                daemon.expect("rules removed");
                assert_eq!(ruleset(), before, "signal {signal}");
                daemon = Daemon::start(&["--inside", "in0", "--handover", "0"]);
                continue;
            }
            let status = ftpalg(&["status"]);
            assert_eq!(status.status.code(), Some(0), "signal {signal}: {status:?}");
        }
        assert_eq!(ruleset(), during);
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.ended(), Some(0));
        assert_eq!(ruleset(), before);
    });
}

/// A signal while rules are put into place by hand: all of them are there afterwards, or none.
#[test]
fn rules_by_hand_are_all_there_or_none() {
    in_namespace(|| {
        shell(
            "for t in raw mangle nat filter; do iptables-legacy -t $t -S; ip6tables-legacy -t $t -S; done",
        );
        shell("iptables-legacy -A FORWARD -j ACCEPT");
        let before = ruleset();
        let directory = Directory::new();
        let path = directory.file("lock");
        let file = fs::File::create(&path).unwrap();
        let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .unwrap();
        let mut command = Command::new(paths::ftpalg());
        command.args(["rules", "install", "--inside", "in0"]);
        command.env("XTABLES_LOCKFILE", &path).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let pid = child.id();
        let deadline = Instant::now() + PATIENCE;
        // A tool of its waits for the lock.
        let tool = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let waits = || {
            let children = tool().unwrap_or_default();
            children.split_whitespace().any(|child| {
                let name = fs::read_to_string(format!("/proc/{child}/cmdline"));
                name.is_ok_and(|name| name.contains("legacy-restore"))
            })
        };
        while !waits() {
            assert!(Instant::now() < deadline, "it never gets to the lock");
            thread::sleep(Duration::from_millis(2));
        }
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
        drop(held);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let installed = ruleset();
        assert_ne!(installed, before);
        assert_eq!(
            ftpalg(&["rules", "install", "--inside", "in0"])
                .status
                .code(),
            Some(0)
        );
        assert_eq!(ruleset(), installed, "nothing was missing");
        assert_eq!(ftpalg(&["rules", "remove"]).status.code(), Some(0));
        assert_eq!(ruleset(), before);
    });
}
