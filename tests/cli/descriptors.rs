//! Few file descriptors: it says how many it needs, or works; and what it installed goes in any case.

use super::*;

/// How many it needs with one queue.
const NEEDED: u32 = 121;

fn limited(limit: u32) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={limit}:{limit}"));
    command.args([FTPALG, "run", "--inside", "in0"]);
    command
}

#[test]
fn too_few_descriptors_are_told_and_nothing_is_installed() {
    in_namespace(|| {
        let before = ruleset();
        for limit in 8..NEEDED {
            let output = limited(limit).output().unwrap();
            let line = format!("{NEEDED} file descriptors are needed, and the limit is {limit};");
            refused(&output, 2, &line);
        }
        assert_eq!(ruleset(), before);
        // As many as it says will do, with each backend.
        for backend in ["nft", "iptables"] {
            let mut command = limited(NEEDED);
            let mut daemon = Daemon::spawn(command.args(["--backend", backend]));
            assert_eq!(ftpalg(&["status"]).status.code(), Some(0));
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.ended(), Some(0));
            assert_eq!(ruleset(), before);
        }
        // A soft limit is raised.
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile=16:{NEEDED}"));
        let mut daemon = Daemon::spawn(command.args([FTPALG, "run", "--local"]));
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.ended(), Some(0));
        assert_eq!(ruleset(), before);
    });
}

/// Somebody lowers the limit while it runs: it goes on, says so once, recovers, and removes its rules
/// even while there is none to be had.
#[test]
fn running_out_of_descriptors_passes() {
    in_namespace(|| {
        shell("iptables -A FORWARD -j ACCEPT");
        let before = ruleset();
        for backend in ["nft", "iptables"] {
            let mut command = Command::new(FTPALG);
            command.args(["run", "--inside", "in0", "--backend", backend]);
            let mut daemon = Daemon::spawn(command.stderr(Stdio::piped()));
            let log = daemon.child.stderr.take().unwrap();
            let (sender, log_lines) = mpsc::channel();
            thread::spawn(move || {
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
            let limit = |limit: u32| {
                let pid = daemon.child.id();
                shell(&format!("prlimit --pid {pid} --nofile={limit}:"));
            };
            limit(20);
            let mut asks = Command::new(FTPALG);
            let mut asks = asks.arg("status").stdout(Stdio::null()).spawn().unwrap();
            let line = log_lines.recv_timeout(PATIENCE).unwrap();
            assert!(line.contains("nobody can be let in for now"), "{line}");
            // Somebody else's change makes it look, which it can't just now.
            shell("iptables -t raw -F");
            let line = log_lines.recv_timeout(PATIENCE).unwrap();
            assert!(line.contains("can't tell whether all rules"), "{line}");
            assert!(asks.try_wait().unwrap().is_none(), "it waits");
            limit(1024);
            asks.wait().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while ftpalg(&["status"]).status.code() != Some(0) {
                assert!(Instant::now() < deadline, "not put back");
            }
            let said: Vec<_> = log_lines.try_iter().collect();
            let told = |part: &str| said.iter().filter(|line| line.contains(part)).count();
            assert_eq!(
                told("let in") + told("can't tell"),
                0,
                "said once: {said:?}"
            );

            limit(20);
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.ended(), Some(0), "{backend}");
            daemon.expect("rules removed");
            assert_eq!(ruleset(), before, "{backend}");
        }
    });
}
