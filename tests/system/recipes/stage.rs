//! The hosts of a recipe, on which its commands are run as they are written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::lab::alg::no_kernel_helper;
use testkit::lab::client::{each_of, equal};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, Process, run};
use testkit::lab::report;
use testkit::lab::rules;
use testkit::lab::scenario::greets;
use testkit::lab::server::{Server, content};
use testkit::paths::{ftpalg, repository};

use super::labs::{Lab, Part};
use super::page::{Page, Step, Trial, What};
use super::shown;

/// How long a block of commands, or a transfer that is to work, may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How long curl may take for a login, and for each transfer, in seconds, where they work.
const WORKS: [u8; 2] = [10, 20];
/// The same where the transfer fails: the first of these in which the login works.
const FAILS: [[u8; 2]; 3] = [[1, 2], [4, 5], [10, 11]];

/// Where programs are looked for on the hosts.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The headings of each recipe. The firewall is the same before `DO` and behind `UNDO`.
pub(super) const SECTIONS: [&str; 5] = [HAVE, DO, SEE, "When it doesn't work", UNDO];
const HAVE: &str = "What you have";
const DO: &str = "What you do";
const SEE: &str = "How you see that it works";
const UNDO: &str = "Undo";

/// A lab, and a file system for each of its hosts that the recipe names.
struct Stage {
    hosts: BTreeMap<String, Process>,
    _servers: Vec<Server>,
    lab: Lab,
    net: Net,
}

/// Does all that a recipe says.
///
/// # Panics
/// If anything isn't as the recipe says, with the line that says it.
pub(super) fn perform(page: &Page) {
    let name = page.lab.as_deref().expect("the recipe names its lab");
    let lab = Lab::named(name);
    let net = lab.build();
    if page.needs_helper
        && let Some(why) = no_kernel_helper(&net.recast(|topology| topology.router = "router"))
    {
        return report::skipped(&format!("{}.md", page.name), &why);
    }
    let mut stage = Stage {
        hosts: BTreeMap::new(),
        _servers: lab.serve(&net),
        lab,
        net,
    };
    stage.set_up(page);
    // What the reader has from the start, where there is a way back to it.
    let mut before = None;
    let mut done = String::new();
    let returns = page.sections.iter().any(|section| section == UNDO);
    for step in &page.steps {
        if returns && before.is_none() && step.section != HAVE {
            before = Some(stage.rules());
        }
        let begun = Instant::now();
        stage.does(step);
        let line = format!("{} {} {:.0?}\n", step.place, step.what, begun.elapsed());
        print!("{line}");
        done += &line;
    }
    report::write(&format!("recipe-{}", page.name), &done);
    if let Some(before) = before {
        let after = stage.rules();
        assert!(
            after == before,
            "{}: the rules aren't as before.\nBefore:\n{before}\nAfter:\n{after}",
            page.name
        );
    }
}

impl Stage {
    /// Makes the hosts that the recipe names, and runs what others have run.
    fn set_up(&mut self, page: &Page) {
        for (host, script) in self.lab.others {
            let mut command = self.net.command(host, "sh");
            command.args(["-ec", script]);
            run(command, LIMIT).must();
        }
        for step in &page.steps {
            let (What::Run { host, .. } | What::Write { host, .. }) = &step.what else {
                continue;
            };
            if !self.hosts.contains_key(host) {
                self.hosts.insert(host.clone(), self.host(host));
            }
        }
        let small = self.net.directory().join(Server::SMALL);
        std::fs::write(&small, content(1, 20_011)).unwrap();
        for (host, process) in &self.hosts {
            assert!(
                process.wait_for("ready", LIMIT),
                "{host}: {}",
                process.log()
            );
            // What a server of the reader's offers.
            let script = format!(
                "mkdir -p -m 777 /srv/ftp/up && cp {} /srv/ftp/ && chmod 644 /srv/ftp/*.bin",
                small.display()
            );
            self.runs(host, &script).must();
        }
    }

    fn host(&self, name: &str) -> Process {
        let own = repository().join("tests/system/recipes");
        let mut command = self.net.command(name, "unshare");
        command
            .args(["--mount", "--propagation", "private", "sh"])
            .arg(own.join("host.sh"))
            .arg(self.net.directory().join(format!("host-{name}")))
            .arg(ftpalg())
            .arg(own.join("systemctl.py"))
            .arg(repository().join("packaging/ftpalg.service"));
        for tree in self.lab.trees {
            let place = match tree.starts_with("trees/") {
                true => own.join(tree),
                false => repository().join(".cache/servers").join(tree),
            };
            assert!(
                place.exists(),
                "{} is missing: run ./scripts/test",
                place.display()
            );
            command.arg(place);
        }
        Process::spawn(command)
    }

    fn does(&self, step: &Step) {
        let place = &step.place;
        match &step.what {
            What::Run {
                host,
                script,
                fails,
                shows,
            } => {
                let done = self.runs(host, &format!("set -e\n{script}"));
                assert!(
                    done.ok() != *fails && done.status.is_some(),
                    "{place}: on {host}, {done}\n{}",
                    self.journals()
                );
                if let Some(shown) = shows
                    && let Some(line) = shown::missing(shown, &done.log)
                {
                    panic!("{place}: {line:?} isn't shown, but:\n{}", done.log);
                }
            }
            What::Write {
                host,
                path,
                text,
                adds,
            } => self.writes(host, path, text, *adds),
            What::Skip { why } => report::skipped(place, why),
            What::Try(trials) => self.tries_all(place, trials),
        }
    }

    fn writes(&self, host: &str, path: &str, text: &str, adds: bool) {
        let redirect = if adds { ">>" } else { ">" };
        let script = format!(
            "mkdir -p \"$(dirname {path})\"\ncat {redirect}{path} <<'END-OF-FILE'\n{text}END-OF-FILE\n"
        );
        self.runs(host, &script).must();
    }

    /// Those that fail, which takes its time, at once; those that work, which may share few ports, one after
    /// the other.
    fn tries_all(&self, place: &str, trials: &[Trial]) {
        for (works, at_once) in [(false, trials.len()), (true, 1)] {
            let trials: Vec<_> = trials.iter().filter(|t| t.works == works).collect();
            let results = each_of(&trials, at_once, |trial| self.tries(trial));
            for (trial, (result, _)) in trials.iter().zip(results) {
                if let Err(why) = result {
                    panic!("{place}: {trial}: {why}\n{}", self.journals());
                }
            }
        }
    }

    /// Runs a script on a host of the recipe's.
    fn runs(&self, host: &str, script: &str) -> Finished {
        let holder = &self.hosts[host];
        let mut command = self.net.command(host, "nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", holder.pid()))
            // A file without a path is the host's own, too.
            .args(["--", "sh", "-c", &format!("cd /srv\n{script}")])
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env_remove("XTABLES_LOCKFILE");
        run(command, LIMIT)
    }

    /// Transfers of this kind: they work, or they fail though the login works.
    fn tries(&self, trial: &Trial) -> Result<(), String> {
        let part = self.lab.part(&trial.part);
        self.is_reached(part)?;
        // Only the new commands have IPv6 addresses (RFC 2428).
        let fit = |verb: &&&str| part.dial.is_ipv4() || verb.starts_with('E');
        let verbs: Vec<_> = trial.verbs.iter().filter(fit).collect();
        let at_once = if trial.works { 1 } else { verbs.len() };
        let results = each_of(&verbs, at_once, |verb| match trial.works {
            true => self.works(part, trial, verb),
            false => self.fails(part, trial, verb),
        });
        results.into_iter().try_for_each(|(result, _)| result)
    }

    fn works(&self, part: &Part, trial: &Trial, verb: &str) -> Result<(), String> {
        match self.transfer(part, trial, verb, WORKS)? {
            done if done.ok() => Ok(()),
            done => Err(format!("{verb}: {done}")),
        }
    }

    /// The login works, and the transfer doesn't. On a busy machine the login itself may take its time.
    fn fails(&self, part: &Part, trial: &Trial, verb: &str) -> Result<(), String> {
        let mut last = String::new();
        for limits in FAILS {
            let done = self.transfer(part, trial, verb, limits)?;
            if done.ok() {
                return Err(format!("{verb} works: {done}"));
            }
            if done.log.contains("< 230") {
                return Ok(());
            }
            last = done.to_string();
        }
        Err(format!("{verb}: not even a login: {last}"))
    }

    /// Waits until the server greets.
    fn is_reached(&self, part: &Part) -> Result<(), String> {
        let deadline = Instant::now() + LIMIT / 2;
        loop {
            let greeted = self.net.within(part.client, || greets(part.dial));
            match greeted {
                Ok(line) if line.starts_with("220") => return Ok(()),
                other if Instant::now() > deadline => {
                    return Err(format!("no greeting from {}: {other:?}", part.dial));
                }
                _ => std::thread::sleep(Duration::from_millis(30)),
            }
        }
    }

    /// Lists, downloads, uploads, and downloads that again: in the same session, which may be with one of
    /// several servers, or under TLS in another one, since curl stumbles over that.
    fn transfer(
        &self,
        part: &Part,
        trial: &Trial,
        verb: &str,
        limits: [u8; 2],
    ) -> Result<Finished, String> {
        let directory = self.directory();
        std::fs::create_dir_all(&directory).unwrap();
        let name = directory
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned()
            + ".bin";
        let upload = directory.join(&name);
        std::fs::write(&upload, content(7, 30_011)).unwrap();
        std::fs::write(directory.join("wanted"), content(1, 20_011)).unwrap();
        let url = |path: &str| format!("ftp://{}/{path}", part.dial);
        let again = url(&format!("up/{name}"));
        let curl = || {
            let mut command = self.net.command(part.client, "curl");
            self.options(command.current_dir(&directory), part, trial, verb, limits);
            command
        };
        let mut command = curl();
        command.args([
            &url(""),
            "-o",
            "listing",
            &url(Server::SMALL),
            "-o",
            "small",
        ]);
        command.arg("--next");
        self.options(&mut command, part, trial, verb, limits);
        command.args(["-T", &name, &again]);
        let mut done = None;
        if trial.tls {
            let first = run(std::mem::replace(&mut command, curl()), LIMIT);
            done = (!first.ok()).then_some(first);
        } else {
            self.options(command.arg("--next"), part, trial, verb, limits);
        }
        command.args([&again, "-o", "again"]);
        let done = done.unwrap_or_else(|| run(command, LIMIT));
        if done.ok() {
            let listing = std::fs::read_to_string(directory.join("listing")).unwrap_or_default();
            if !listing.contains(Server::SMALL) {
                return Err(format!("the listing is {listing:?}: {done}"));
            }
            if !equal(&directory.join("small"), &directory.join("wanted"))
                || !equal(&directory.join("again"), &upload)
            {
                return Err(format!("other bytes came: {done}"));
            }
        }
        drop(std::fs::remove_dir_all(&directory));
        Ok(done)
    }

    fn options(
        &self,
        command: &mut Command,
        part: &Part,
        trial: &Trial,
        verb: &str,
        limits: [u8; 2],
    ) {
        let [connect, all] = limits.map(|seconds| seconds.to_string());
        command.args(["-sS", "-v", "-k", "--noproxy", "*", "--no-ftp-skip-pasv-ip"]);
        command.args([
            "--fail-early",
            "--connect-timeout",
            &connect,
            "--max-time",
            &all,
        ]);
        command.args([
            "--user",
            &format!("{}:{}", part.login.user, part.login.password),
        ]);
        match verb {
            "PASV" => command.arg("--disable-epsv"),
            "PORT" => command.args(["--ftp-port", "-", "--disable-eprt"]),
            "EPRT" => command.args(["--ftp-port", "-"]),
            _ => command,
        };
        if trial.tls {
            command.arg("--ssl-reqd");
        }
    }

    fn directory(&self) -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        self.net.directory().join(format!("try-{number}"))
    }

    /// All the rules of the recipe's hosts.
    fn rules(&self) -> String {
        let of = |host: &String| format!("{host}:\n{}", rules::snapshot(&self.net, host));
        self.hosts.keys().map(of).collect()
    }

    /// What the services have printed.
    fn journals(&self) -> String {
        let show = "for log in /run/units/*.log; do echo \"--- $log\"; cat $log; done";
        let of = |host: &String| format!("{host}:\n{}", self.runs(host, show).log);
        self.hosts.keys().map(of).collect()
    }
}
