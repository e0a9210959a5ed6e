//! What `ftpalg status` says, with and without a daemon, and how lines on the standard error look.

use std::fs::File;
use std::io::Read;
use std::os::linux::fs::MetadataExt;

use serde_json::Value;

use super::*;

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn without_a_daemon_it_says_what_is_left() {
    in_namespace(|| {
        refused(&ftpalg(&["status"]), 3, "doesn't run");
        let none = ftpalg(&["status", "--json"]);
        assert_eq!(none.status.code(), Some(3));
        assert_eq!(json(&none)["running"], false);
        assert_eq!(json(&none)["rules_left"], false);
        assert_eq!(stderr(&none).lines().count(), 1, "{none:?}");

        for backend in ["nft", "iptables"] {
            for (fail, told, control) in [
                ("closed", "FTP is being dropped", "dropped"),
                ("open", "FTP passes unread", "passed"),
            ] {
                let args = ["--inside", "in0", "--fail", fail, "--backend", backend];
                let mut daemon = Daemon::start(&args);
                let status = ftpalg(&["status", "--json"]);
                assert_eq!(json(&status)["running"], true);
                daemon.signal(Signal::SIGKILL);
                assert_eq!(daemon.ended(), None);
                let told = format!("NOT RUNNING, and its rules are still here: {told}; start it");
                let before = ruleset();
                refused(&ftpalg(&["status"]), 3, &told);
                let left = ftpalg(&["status", "--json"]);
                assert_eq!(left.status.code(), Some(3));
                assert_eq!(json(&left)["running"], false);
                assert_eq!(json(&left)["rules_left"], true);
                assert_eq!(json(&left)["control_packets"], control);
                assert!(stderr(&left).contains(&told), "{left:?}");
                assert_eq!(ruleset(), before, "looking changes nothing");
                assert!(ftpalg(&["rules", "remove"]).status.success());
                refused(&ftpalg(&["status"]), 3, "doesn't run");
            }
        }
    });
}

/// Who may not look at the rules is told no more than that nothing runs.
#[test]
fn without_the_right_to_look_it_still_says_that_none_runs() {
    in_namespace(|| {
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let mut command = Command::new("setpriv");
        command.args(nobody).arg(paths::ftpalg());
        let status = command.args(["status", "--json"]).output().unwrap();
        assert_eq!(status.status.code(), Some(3), "{status:?}");
        assert_eq!(json(&status)["running"], false);
    });
}

#[test]
fn with_a_daemon_it_opens_with_a_verdict() {
    in_namespace(|| {
        let daemon = Daemon::start(&["--inside", "in0"]);
        let status = ftpalg(&["status"]);
        assert_eq!(status.status.code(), Some(0));
        let text = stdout(&status);
        assert!(text.starts_with("working for "), "{text}");
        for line in ["rules ", "inside ", "now ", "so far ", "attention "] {
            let has = text.lines().filter(|l| l.starts_with(line)).count();
            assert_eq!(has, 1, "{line}: {text}");
        }
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(!text.contains("deadline") && !text.contains("0x40000000"));
        let long = stdout(&ftpalg(&["status", "--verbose"]));
        assert!(long.contains("mark: 0x40000000\n"), "{long}");
        drop(daemon);
        assert!(ftpalg(&["rules", "remove"]).status.success());

        let _daemon = Daemon::start(&["--inside", "in0", "--rules", "external"]);
        let status = ftpalg(&["status"]);
        assert_eq!(status.status.code(), Some(1));
        let text = stdout(&status);
        let missing = text.lines().filter(|l| l.trim_start().starts_with("- "));
        let missing = missing.count();
        assert!(missing > 1, "one a line: {text}");
        assert!(
            text.contains(&format!("rules      {missing} missing")),
            "{text}"
        );
        assert!(text.starts_with("working, but rules are missing"), "{text}");
        assert!(!text.contains("ip6tables"), "nothing here has IPv6: {text}");
    });
}

#[test]
fn lines_have_a_priority_in_the_journal_and_a_time_elsewhere() {
    let directory = Directory::new();
    let logged = |journal: bool| {
        let path = directory.file("log");
        let file = File::create(&path).unwrap();
        let stat = file.metadata().unwrap();
        let stream = match journal {
            true => format!("{}:{}", stat.st_dev(), stat.st_ino()),
            false => format!("{}:{}", stat.st_dev(), stat.st_ino() + 1),
        };
        let mut command = Command::new(paths::ftpalg());
        command.args(["run", "--inside", "in0"]);
        command
            .env("JOURNAL_STREAM", stream)
            .env("FTPALG_LOG", "info");
        let mut daemon = Daemon::spawn(command.stderr(file));
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.ended(), Some(0));
        let mut text = String::new();
        File::open(&path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.contains("rules installed in"), "{text}");
        text
    };
    in_namespace(|| {
        let text = logged(true);
        let tagged = |line: &str| {
            [
                "<3>ftpalg: error: ",
                "<4>ftpalg: warn: ",
                "<6>ftpalg: info: ",
            ]
            .iter()
            .any(|tag| line.starts_with(tag))
        };
        assert!(text.lines().all(tagged), "{text}");
        let text = logged(false);
        for line in text.lines() {
            let (time, rest) = line.split_once(' ').unwrap();
            let digits: String = time
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            assert_eq!(digits, "0000-00-00T00:00:00Z", "{line}");
            assert!(rest.starts_with("ftpalg: "), "{line}");
        }
    });
}
