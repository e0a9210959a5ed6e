//! A tool that is kept running: many small changes, without a start for each.
//!
//! A restore tool reads its standard input to the end, commits at each `COMMIT`, and ends with an error
//! as soon as something is refused. It says nothing of what succeeds. But with `-v` it repeats comments
//! that it reads. So behind each text comes a comment with a number of its own: when it comes back, all
//! before it is committed. The comment is as long as the buffer of the tool's standard output, which is
//! written only when it is full.
//!
//! In between, the tool waits for input. It holds the lock of the legacy tools only from `*table` to
//! `COMMIT`.

use std::time::{Duration, Instant};

use super::command::{CommandError, Running, ToolOutput};
use super::tools::{LIMIT, RESTORE_ARGS, Tool};

/// The length of the comment that comes back, in bytes. C libraries have buffers of 1 to 8 KiB for a pipe,
/// and the tools read lines of up to 10 KiB.
const ECHO: usize = 8192;
/// The arguments with which a tool repeats comments.
const TALKING: [&str; 4] = {
    let [a, b, c] = RESTORE_ARGS;
    [a, b, c, "-v"]
};
/// How long a tool may take to repeat the first comment.
const PROMPT: Duration = Duration::from_secs(2);

/// A restore tool of the host, which is started when it is needed first, and then kept. One that doesn't
/// repeat comments is started for each change.
#[derive(Debug)]
pub(crate) struct LastingTool {
    tool: Tool,
    talker: Option<Talker>,
    /// It doesn't repeat comments.
    is_mute: bool,
}

impl LastingTool {
    /// For this tool; it isn't started yet.
    pub(crate) fn new(tool: Tool) -> Self {
        Self {
            tool,
            talker: None,
            is_mute: false,
        }
    }

    /// As [`Tool::restore`], for a text with one table.
    ///
    /// # Errors
    /// As there. It isn't known whether the table was changed.
    pub(crate) fn restore(&mut self, text: &str) -> Result<(), CommandError> {
        match self.talker() {
            Some(talker) => {
                self.talker = Some(talker.tell(text, LIMIT)?);
                Ok(())
            }
            None => self.tool.restore(text),
        }
    }

    /// The tool, running: `None` if it can't be kept.
    fn talker(&mut self) -> Option<Talker> {
        // Somebody may have ended it meanwhile.
        if let Some(mut talker) = self.talker.take()
            && talker.running.is_alive()
        {
            return Some(talker);
        }
        if self.is_mute {
            return None;
        }
        // If it can't be started, the next attempt says why.
        let running = Running::start(self.tool.restore_path(), &TALKING).ok()?;
        let talker = Talker { running, serial: 0 };
        match talker.tell("", PROMPT) {
            Ok(talker) => Some(talker),
            Err(e) => {
                log::debug!("a process for each change, since one can't be kept: {e}");
                self.is_mute = true;
                None
            }
        }
    }
}

/// A tool that runs.
#[derive(Debug)]
struct Talker {
    running: Running,
    /// The number of the last comment.
    serial: u64,
}

impl Talker {
    /// Has the tool do what `text` says. Returns when that is done; the tool is gone if that fails.
    fn tell(mut self, text: &str, limit: Duration) -> Result<Self, CommandError> {
        self.serial = self.serial.wrapping_add(1);
        let comment = format!("# ftpalg {} ", self.serial);
        let input = format!("{text}{comment:.<width$}\n", width = ECHO - 1);
        let is_done = |output: &ToolOutput| contains(&output.stdout, comment.as_bytes());
        let deadline = Instant::now() + limit;
        let output = self
            .running
            .talk(input.as_bytes(), deadline, Some(&is_done));
        match output {
            Ok(output) if is_done(&output) => Ok(self),
            output => Err(self.running.failure(output, deadline, limit)),
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;
    use crate::firewall::xtables::Flavour;
    use crate::firewall::xtables::tools::Tools;
    use crate::net::Family;

    /// A directory with an `iptables-nft-restore` that notes its starts and the lines that it reads in
    /// `log`, and does what `script` says with each `$line`.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str, script: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("ftpalg-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            let log = dir.join("log");
            let log = log.display();
            let restore = format!(
                "#!/bin/sh\necho start >> {log}\nwhile read -r line; do\n\
                 case $line in '#'*) ;; *) echo \"$line\" >> {log} ;; esac\n{script}\ndone\n"
            );
            for (program, text) in [("save", "#!/bin/sh\n"), ("restore", &restore)] {
                let path = dir.join(format!("iptables-nft-{program}"));
                // Written by a child: see the tests of `tools`.
                let made = std::process::Command::new("/bin/sh")
                    .args(["-c", "printf %s \"$2\" > \"$1\"", "sh"])
                    .arg(&path)
                    .arg(text)
                    .status();
                assert!(made.unwrap().success());
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            Self(dir)
        }

        fn tool(&self) -> LastingTool {
            let tools = Tools::find_in(std::slice::from_ref(&self.0));
            LastingTool::new(tools.tool(Family::V4, Flavour::Nft).unwrap().clone())
        }

        fn log(&self) -> String {
            fs::read_to_string(self.0.join("log")).unwrap()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const REPEATS: &str =
        "case $line in '#'*) echo \"$line\" ;; bad) echo 'bad line' >&2; exit 1 ;; esac";

    #[test]
    fn one_process_makes_many_changes() {
        let fake = Fake::new("lasting", REPEATS);
        let mut tool = fake.tool();
        for text in ["one\n", "two\n", "three\n"] {
            tool.restore(text).unwrap();
        }
        assert_eq!(fake.log(), "start\none\ntwo\nthree\n");
    }

    #[test]
    fn an_error_is_told_at_once_and_the_next_change_works() {
        let fake = Fake::new("lasting-bad", REPEATS);
        let mut tool = fake.tool();
        tool.restore("one\n").unwrap();
        let e = tool.restore("bad\n").unwrap_err();
        assert_eq!(e.to_string(), "iptables-nft-restore: bad line");
        tool.restore("two\n").unwrap();
        assert_eq!(fake.log(), "start\none\nbad\nstart\ntwo\n");
    }

    #[test]
    fn one_that_was_ended_is_started_again() {
        let fake = Fake::new("lasting-killed", REPEATS);
        let mut tool = fake.tool();
        tool.restore("one\n").unwrap();
        tool.talker.as_mut().unwrap().running.kill();
        tool.restore("two\n").unwrap();
        assert_eq!(fake.log(), "start\none\nstart\ntwo\n");
    }

    #[test]
    fn one_that_repeats_nothing_is_started_for_each_change() {
        // It ends at the first comment.
        let fake = Fake::new("lasting-mute", "case $line in '#'*) exit 0 ;; esac");
        let mut tool = fake.tool();
        tool.restore("one\n").unwrap();
        tool.restore("two\n").unwrap();
        assert_eq!(fake.log(), "start\nstart\none\nstart\ntwo\n");
    }

    #[test]
    fn the_process_ends_with_its_owner() {
        let fake = Fake::new("lasting-drop", REPEATS);
        let mut tool = fake.tool();
        tool.restore("one\n").unwrap();
        let pid = tool.talker.as_ref().unwrap().running.id();
        let proc = PathBuf::from(format!("/proc/{pid}"));
        assert!(proc.exists());
        drop(tool);
        assert!(!proc.exists());
    }
}
