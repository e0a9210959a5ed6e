//! Few file descriptors, few processes: it says what it needs, or works; and what it installed goes in
//! any case.

use super::*;

/// How many it needs with one queue.
const NEEDED: u32 = 129;

fn limited(limit: u32) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={limit}:{limit}"));
    command.args([paths::ftpalg(), "run", "--inside", "in0"]);
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
        let mut daemon = Daemon::spawn(command.args([paths::ftpalg(), "run", "--local"]));
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
            let mut command = Command::new(paths::ftpalg());
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
            let mut asks = Command::new(paths::ftpalg());
            let mut asks = asks.arg("status").stdout(Stdio::null()).spawn().unwrap();
            // Somebody else's change makes it look, which it can't just now.
            shell("iptables -t raw -F");
            let mut said = Vec::new();
            let expected = [
                "nobody can be let in for now",
                "can't tell whether all rules",
            ];
            while !expected
                .iter()
                .all(|part| said.iter().any(|line: &String| line.contains(part)))
            {
                said.push(log_lines.recv_timeout(PATIENCE).unwrap());
            }
            assert!(asks.try_wait().unwrap().is_none(), "it waits");
            limit(1024);
            asks.wait().unwrap();
            let deadline = Instant::now() + PATIENCE;
            while ftpalg(&["status"]).status.code() != Some(0) {
                assert!(Instant::now() < deadline, "not put back");
            }
            said.extend(log_lines.try_iter());
            for part in expected {
                let times = said.iter().filter(|line| line.contains(part)).count();
                assert_eq!(times, 1, "said once: {said:?}");
            }

            limit(20);
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.ended(), Some(0), "{backend}");
            daemon.expect("rules removed");
            assert_eq!(ruleset(), before, "{backend}");
        }
    });
}

/// Wherever starting another thread or tool fails: what is there already goes.
#[test]
fn too_few_processes_leave_nothing_behind() {
    in_namespace(|| {
        shell("iptables -A FORWARD -j ACCEPT");
        let before = ruleset();
        // A user of its own, so that its processes aren't counted with others', may read it here.
        let user = 100_000 + std::process::id();
        let directory = Directory::new();
        let program = directory.file("ftpalg");
        // Not by this process: what another test starts meanwhile would hold the copy open for writing
        // for a moment, and until then it can't be executed.
        shell(&format!("cp {} {}", paths::ftpalg(), program.display()));
        let mut started = 0;
        for (limit, backend) in (1..=16).flat_map(|n| [(n, "nft"), (n, "iptables")]) {
            let mut command = Command::new("prlimit");
            command.arg(format!("--nproc={limit}:{limit}"));
            command.args(["setpriv", "--clear-groups"]);
            command.args([&format!("--reuid={user}"), &format!("--regid={user}")]);
            command.args([
                "--inh-caps=+net_admin,+net_raw",
                "--ambient-caps=+net_admin,+net_raw",
            ]);
            command
                .args(["--bounding-set=-sys_resource,-sys_admin"])
                .arg(&program);
            command.args(["run", "--inside", "in0", "--backend", backend]);
            let mut child = command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            if lines.any(|line| line.is_ok_and(|line| line.contains("ready"))) {
                kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
                assert_eq!(child.wait().unwrap().code(), Some(0), "{limit} {backend}");
                started += 1;
            } else {
                let output = child.wait_with_output().unwrap();
                assert_eq!(
                    output.status.code(),
                    Some(2),
                    "{limit} {backend}: {output:?}"
                );
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(said.contains("temporarily unavailable"), "{limit}: {said}");
            }
            assert_eq!(ruleset(), before, "{limit} {backend}");
        }
        assert!(started > 0, "sixteen are enough");
    });
}
