//! Every signal there is: it ends the daemon as a service manager does, or nothing happens.

use super::*;

/// After these it ends.
const ENDS: [i32; 5] = [
    Signal::SIGINT as i32,
    Signal::SIGQUIT as i32,
    Signal::SIGABRT as i32,
    Signal::SIGTERM as i32,
    Signal::SIGXCPU as i32,
];
/// Not in a program's hand: two by the kernel's rules, and two that the C library uses by itself and lets
/// nobody block.
const OTHERS: [i32; 4] = [Signal::SIGKILL as i32, Signal::SIGSTOP as i32, 32, 33];

#[test]
fn every_signal_ends_it_cleanly_or_not_at_all() {
    in_namespace(|| {
        shell("iptables -A FORWARD -j ACCEPT");
        let before = ruleset();
        let mut daemon = Daemon::start(&["--inside", "in0"]);
        let during = ruleset();
        assert_ne!(during, before);
        for signal in (1..=64).filter(|signal| !OTHERS.contains(signal)) {
            let pid = daemon.child.id();
            shell(&format!("kill -{signal} {pid}"));
            if ENDS.contains(&signal) {
                assert_eq!(daemon.ended(), Some(0), "signal {signal}");
                daemon.expect("rules removed");
                assert_eq!(ruleset(), before, "signal {signal}");
                daemon = Daemon::start(&["--inside", "in0"]);
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
