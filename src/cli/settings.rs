//! The choices of `run` and `rules`, from flags and from a configuration file.
//!
//! One structure serves for both: the keys of the file (TOML) are the names of the flags, and their
//! values are read as the flags' are. A flag on the command line wins over the file. A flag that can be
//! repeated replaces the file's whole list.
//!
//! Each group of flags is a room of its own, with its heading in the help. What is added to a room is a
//! key of the file by itself. It takes a default in its help (`[default: …]`), and where that isn't a
//! value, an example in [`example`].

mod again;
mod events;
pub(super) mod example;
pub(super) mod file;
mod host;
mod limits;
mod nat;
mod place;
mod refusing;
mod resolve;
mod restarts;
mod strict;
mod text;
mod tls;
pub(super) mod values;
mod watching;

use std::path::PathBuf;

use clap::Args;

pub(super) use resolve::Mistakes;

/// Everything that can be chosen; nothing is filled in yet.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Read these settings from a file first [default: none]
    ///
    /// TOML; its keys are the names of these flags (`ftpalg check --example` prints a file to start
    /// from). A pipe, or `-` for the standard input, will do. A file is read again at SIGHUP.
    #[arg(long, value_name = "FILE", help_heading = "Where")]
    config: Option<PathBuf>,
    #[command(flatten)]
    place: place::Place,
    #[command(flatten)]
    nat: nat::Nat,
    #[command(flatten)]
    tls: tls::TlsSettings,
    #[command(flatten)]
    refusing: refusing::Refusing,
    #[command(flatten)]
    limits: limits::LimitSettings,
    #[command(flatten)]
    host: host::Host,
    #[command(flatten)]
    restarts: restarts::Restarts,
    #[command(flatten)]
    watching: watching::Watching,
    #[command(flatten)]
    events: events::EventSettings,
}

impl Settings {
    /// The same settings, with `--local`.
    pub(crate) fn with_local(mut self) -> Self {
        self.place.local = true;
        self
    }

    /// These settings, with those of `base` where they say nothing.
    fn over(self, base: Self) -> Self {
        Self {
            config: self.config,
            place: self.place.over(base.place),
            nat: self.nat.over(base.nat),
            tls: self.tls.over(base.tls),
            refusing: self.refusing.over(base.refusing),
            limits: self.limits.over(base.limits),
            host: self.host.over(base.host),
            restarts: self.restarts.over(base.restarts),
            watching: self.watching.over(base.watching),
            events: self.events.over(base.events),
        }
    }
}

/// A list that is given, or the other one.
fn or<T>(own: Vec<T>, base: Vec<T>) -> Vec<T> {
    if own.is_empty() { base } else { own }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::daemon::config::{BackendChoice, RulesMode, Tls};
    use crate::firewall::Queues;
    use crate::ftp::policy::{Policy, Strict};

    fn file(text: &str) -> Result<Settings, String> {
        file::File::read(text)
            .map(|file| file.settings)
            .map_err(|mistakes| mistakes[0].text.clone())
    }

    #[test]
    fn nothing_chosen_gives_the_documented_defaults() {
        let config = Settings::default().config().unwrap();
        assert_eq!(config.steering.ports, [21]);
        assert_eq!(
            config.steering.queues,
            Queues {
                first: 2121,
                count: 1
            }
        );
        assert_eq!(config.steering.mark.bit(), 0x4000_0000);
        assert!(!config.steering.fail_open && !config.steering.local);
        assert_eq!(config.policy, Policy::default());
        assert_eq!(config.deadline, Duration::from_secs(60));
        assert_eq!(config.handover, Duration::from_secs(10));
        assert_eq!(config.tls, Tls::Pass);
        assert_eq!(config.tls_idle, Duration::from_secs(300));
        assert!(config.implicit_ports.is_empty());
        assert_eq!(config.backend, BackendChoice::Auto);
        assert_eq!(config.rules, RulesMode::Manage);
        assert_eq!(config.data_ports, None);
    }

    #[test]
    fn a_file_has_the_flags_names() {
        let config = file(
            r#"
            inside = ["eth1", "10.0.0.0/24"]
            local = true
            port = [21, 2121]
            advertise = "203.0.113.10"
            data-ports = "30000-30009"
            backend = "nft"
            rules = "external"
            fail = "open"
            tls = "range:40000-40009"
            tls-idle = 60
            implicit-port = [990]
            strict = true
            allow-foreign = ["198.51.100.0/24", "2001:db8::1"]
            deny-ports = [3306, "8000-8080"]
            low-ports = true
            require-login = false
            queues = 2
            queue-num = 7
            mark = 0x100
            deadline = 5
            handover = 0
            [limits]
            sessions-per-client = 7
            "#,
        )
        .unwrap()
        .config()
        .unwrap();
        assert_eq!(config.steering.inside.len(), 2);
        assert_eq!(config.steering.ports, [21, 2121, 990]);
        assert_eq!(config.implicit_ports, [990]);
        assert_eq!(config.tls_idle, Duration::from_secs(60));
        assert_eq!(config.steering.mark.bit(), 0x100);
        assert_eq!(config.steering.queues, Queues { first: 7, count: 2 });
        assert!(config.steering.fail_open && config.steering.local);
        assert_eq!(config.policy.strict, Strict::all());
        assert!(!config.policy.require_login && !config.policy.deny_tls);
        assert!(config.policy.low_ports);
        assert_eq!(config.policy.allow_foreign.len(), 2);
        assert_eq!(
            config.policy.deny_ports,
            [0..=1023, 3306..=3306, 8000..=8080]
        );
        assert_eq!(config.deadline, Duration::from_secs(5));
        assert_eq!(config.handover, Duration::ZERO);
        assert_eq!(config.limits.plane.sessions_per_client, 7);
        assert_eq!(config.limits.plane.sessions, 65_536);
        assert_eq!(config.data_ports.unwrap().to_string(), "30000-30009");
    }

    #[test]
    fn flags_win_over_the_file() {
        let base = file("port = [21, 2121]\nqueues = 4\nlocal = true").unwrap();
        let flags = file("port = 990\ndeadline = 7").unwrap();
        let config = flags.over(base).config().unwrap();
        assert_eq!(config.steering.ports, [990]);
        assert_eq!(config.steering.queues.count, 4);
        assert!(config.steering.local);
        assert_eq!(config.deadline, Duration::from_secs(7));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (text, part) in [
            ("data-ports = \"20-30\"", "control port 21"),
            (
                "data-ports = \"100-200\"\ntls = \"range:200-300\"",
                "overlap",
            ),
            ("tls = \"range:20-30\"", "control port 21"),
            ("tls = \"range:900-999\"\nimplicit-port = 990", "port 990"),
            ("tls = \"deny\"\nimplicit-port = 990", "contradicts"),
            ("implicit-port = 21", "choose one"),
            ("inside = [\"10.0.0.0/8\", \"10.1.0.0/16\"]", "overlap"),
            (
                "inside = \"10.0.0.0/8\"\nadvertise = \"2001:db8::1\"",
                "another address family",
            ),
            ("queues = 2\nqueue-num = 65535", "65535"),
            ("queues = 4\nqueue-num = 63390", "lock"),
            (
                "advertise = [\"203.0.113.1\", \"203.0.113.2\"]",
                "contradicts",
            ),
        ] {
            let conflicts = file(text).unwrap().config().unwrap_err();
            assert_eq!(conflicts.len(), 1, "{text}: {conflicts:?}");
            let e = conflicts[0].to_string();
            assert!(e.contains(part) && !e.contains('\n'), "{text}: {e}");
            assert!(e.contains("; "), "says how to mend it: {e}");
        }
        // One public address per family is fine, and the same network twice, too.
        file("advertise = [\"203.0.113.1\", \"2001:db8::1\"]")
            .unwrap()
            .config()
            .unwrap();
        file("inside = [\"10.0.0.0/8\", \"10.0.0.0/8\"]")
            .unwrap()
            .config()
            .unwrap();
    }
}
