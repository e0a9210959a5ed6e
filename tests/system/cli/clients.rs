//! Many who ask at once, and some who say nothing.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};

use super::*;

/// `ftpalg status` so many times at once: their exit codes.
fn all_at_once(count: usize) -> Vec<Option<i32>> {
    let all: Vec<_> = (0..count)
        .map(|_| {
            let mut command = Command::new(paths::ftpalg());
            command.args(["status", "--json"]);
            command.stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let ended = all
        .into_iter()
        .map(|mut child| child.wait().unwrap().code());
    ended.collect()
}

fn silent() -> UnixStream {
    let name = SocketAddr::from_abstract_name("ftpalg").unwrap();
    UnixStream::connect_addr(&name).unwrap()
}

#[test]
fn many_who_ask_at_once_are_all_answered() {
    in_namespace(|| {
        let daemon = Daemon::start(&["--inside", "in0"]);
        assert_eq!(all_at_once(60), [Some(0); 60]);
        let fds = format!("/proc/{}/fd", daemon.child.id());
        let open = || fs::read_dir(&fds).unwrap().count();
        let many = thread::spawn(|| {
            // Threads of this one are in the namespace as well.
            all_at_once(500)
        });
        let mut most = 0;
        while !many.is_finished() {
            most = most.max(open());
            thread::sleep(Duration::from_millis(5));
        }
        assert!(most <= 121, "{most} descriptors");
        // On a slow machine some may give up: each says so within its ten seconds.
        let codes = many.join().unwrap();
        assert!(
            codes.iter().all(|code| matches!(code, Some(0 | 1))),
            "{codes:?}"
        );
        assert_eq!(ftpalg(&["status"]).status.code(), Some(0));
    });
}

#[test]
fn those_who_say_nothing_keep_nobody_waiting() {
    in_namespace(|| {
        let _daemon = Daemon::start(&["--inside", "in0"]);
        for count in [1, 20] {
            // They are still connected when it has its answer, at least on one of a few tries of a
            // machine that is busy otherwise.
            let passed_them = || {
                let quiet: Vec<_> = (0..count).map(|_| silent()).collect();
                assert_eq!(ftpalg(&["status"]).status.code(), Some(0));
                let mut first = &quiet[0];
                first.set_nonblocking(true).unwrap();
                std::io::Read::read(&mut first, &mut [0]).is_err()
            };
            assert!((0..5).any(|_| passed_them()), "{count}");
        }
        // More than there is room for: they are given up, and others come in.
        let quiet: Vec<_> = (0..200).map(|_| silent()).collect();
        thread::scope(|scope| {
            let closed = scope.spawn(|| {
                let mut first = &quiet[0];
                std::io::Read::read(&mut first, &mut [0]).unwrap()
            });
            assert_eq!(closed.join().unwrap(), 0, "given up");
        });
        drop(quiet);
        assert_eq!(ftpalg(&["status"]).status.code(), Some(0));
    });
}

#[test]
fn a_daemon_that_stands_still_is_told_in_time() {
    in_namespace(|| {
        let daemon = Daemon::start(&["--inside", "in0"]);
        daemon.signal(Signal::SIGSTOP);
        let started = Instant::now();
        refused(&ftpalg(&["status"]), 1, "not within 10 s");
        assert!(started.elapsed() < PATIENCE);
        let who = format!(
            "already runs in this network namespace (pid {})",
            daemon.child.id()
        );
        refused(&ftpalg(&["run", "--local"]), 2, &who);
        daemon.signal(Signal::SIGCONT);
        assert_eq!(ftpalg(&["status"]).status.code(), Some(0));
    });
}
