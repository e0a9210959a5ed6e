//! One daemon per network namespace, and nobody but root decides about that.

use super::*;

/// Runs `script` in Python as nobody, until it is dropped; returns when it says so.
struct Nobody(Child);

impl Nobody {
    fn run(script: &str) -> Self {
        let mut child = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["python3", "-uc", script])
            .env("PATH", "/usr/bin:/bin")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "here\n");
        Self(child)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has the daemon's name, and one such as a daemon takes instead, and says that all is well.
const IMPOSTOR: &str = r#"
import socket, threading
def serve(name):
    s = socket.socket(socket.AF_UNIX)
    s.bind(name)
    s.listen(100)
    while True:
        c, _ = s.accept()
        c.sendall(b'{"ok":{"in_place":true,"rules":"external","pid":1}}\n')
        c.close()
names = ["\0ftpalg", "\0ftpalg-0000000000000000"]
threads = [threading.Thread(target=serve, args=[name]) for name in names[1:]]
for t in threads: t.start()
s = socket.socket(socket.AF_UNIX)
s.bind(names[0])
s.listen(100)
print("here")
while True:
    c, _ = s.accept()
    c.sendall(b'{"ok":{"in_place":true,"rules":"external","pid":1}}\n')
    c.close()
"#;

/// Has the daemon's name, and is full for good.
const FULL: &str = r#"
import socket
s = socket.socket(socket.AF_UNIX)
s.bind("\0ftpalg")
s.listen(0)
all = []
while True:
    c = socket.socket(socket.AF_UNIX)
    c.setblocking(False)
    try: c.connect("\0ftpalg")
    except BlockingIOError: break
    all.append(c)
print("here")
import time
time.sleep(1000)
"#;

#[test]
fn nobody_stands_in_for_the_daemon() {
    for script in [IMPOSTOR, FULL] {
        in_namespace(move || {
            let before = ruleset();
            let nobody = Nobody::run(script);
            if script == IMPOSTOR {
                let who = format!("(the socket @ftpalg is that of pid {}", nobody.pid());
                refused(&ftpalg(&["status"]), 3, &who);
            }
            let mut daemon = Daemon::start(&["--inside", "in0"]);
            let started = Instant::now();
            let status = ftpalg(&["status", "--json"]);
            assert_eq!(status.status.code(), Some(0), "{status:?}");
            assert!(started.elapsed() < Duration::from_secs(9));
            let json: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            assert_eq!(json["pid"], daemon.child.id());
            let who = format!(
                "already runs in this network namespace (pid {})",
                json["pid"]
            );
            for queue in ["2121", "4000"] {
                refused(&ftpalg(&["run", "--local", "--queue-num", queue]), 2, &who);
            }
            refused(&ftpalg(&["rules", "remove"]), 2, "manages the rules");
            daemon.signal(Signal::SIGTERM);
            assert_eq!(daemon.ended(), Some(0));
            assert_eq!(ruleset(), before);
        });
    }
}

/// Processes that a test which fails doesn't leave behind.
struct Stopped(Vec<u32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in self.0.iter().filter(|_| thread::panicking()) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

/// Whoever comes second is told who was first, however close they are.
#[test]
fn of_several_at_once_one_starts() {
    in_namespace(|| {
        let before = ruleset();
        let nobody = Nobody::run(IMPOSTOR);
        for round in 0..6 {
            if round == 3 {
                // Without one, they meet at the socket as well.
                let _ = kill(Pid::from_raw(nobody.pid().cast_signed()), Signal::SIGKILL);
            }
            let all: Vec<_> = (0..5)
                .map(|n| {
                    let mut command = Command::new(paths::ftpalg());
                    command.args(["run", "--inside", "in0"]);
                    command.args(["--queue-num", &(3000 + n).to_string()]);
                    command.stdout(Stdio::piped()).stderr(Stdio::piped());
                    command.spawn().unwrap()
                })
                .collect();
            let _all = Stopped(all.iter().map(Child::id).collect());
            let (sender, outcomes) = mpsc::channel();
            for mut child in all {
                let sender = sender.clone();
                thread::spawn(move || {
                    let stdout = BufReader::new(child.stdout.take().unwrap());
                    let mut lines = stdout.lines().map_while(Result::ok);
                    let ready = lines.any(|line| line.contains("ready"));
                    // The reader stays: a closed output is another story.
                    let _ = sender.send((child, ready, lines));
                });
            }
            let patience = || outcomes.recv_timeout(PATIENCE).unwrap();
            let (mut first, mut rest) = (Vec::new(), Vec::new());
            for _ in 0..5 {
                let (child, ready, lines) = patience();
                match ready {
                    true => first.push((child, lines)),
                    false => rest.push(child),
                }
            }
            if first.is_empty() {
                let said = rest.into_iter().map(|one| one.wait_with_output().unwrap());
                panic!("round {round}: {:?}", said.collect::<Vec<_>>());
            }
            assert_eq!(first.len(), 1, "round {round}");
            let (mut child, _lines) = first.pop().unwrap();
            let who = format!(
                "already runs in this network namespace (pid {})",
                child.id()
            );
            for one in rest {
                let output = one.wait_with_output().unwrap();
                refused(&output, 2, &who);
            }
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        assert_eq!(ruleset(), before);
    });
}

/// Rules that are taken away by hand while a daemon starts would be missing from it.
#[test]
fn what_changes_rules_by_hand_keeps_daemons_out() {
    in_namespace(|| {
        let lock = ftpalg::daemon::lock::Lock::take().unwrap();
        let who = "already runs in this network namespace";
        refused(&ftpalg(&["rules", "remove"]), 2, who);
        // This program isn't called ftpalg.
        let who = format!(
            "ftpalg's lock in this network namespace, is bound by pid {}",
            std::process::id()
        );
        refused(&ftpalg(&["run", "--local"]), 2, &who);
        drop(lock);
        assert_eq!(ftpalg(&["rules", "remove"]).status.code(), Some(0));
    });
}

/// Root of a user namespace that the network namespace doesn't belong to.
#[test]
fn root_by_name_only_is_told_so() {
    in_namespace(|| {
        let output = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                paths::ftpalg(),
                "run",
                "--local",
            ])
            .output()
            .unwrap();
        refused(&output, 2, "CAP_NET_ADMIN");
    });
}
