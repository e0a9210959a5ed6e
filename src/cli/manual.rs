//! What the help and the manual pages say of each command besides its flags: examples, exit codes,
//! signals, files, the environment.

use clap::Command;

/// One command's part.
pub(super) struct Page {
    /// The command, without `ftpalg`: `rules print`.
    pub(super) command: &'static str,
    /// Command lines, and what they do.
    pub(super) examples: &'static [(&'static str, &'static str)],
    /// Exit codes, and what they mean.
    pub(super) exits: &'static [(&'static str, &'static str)],
}

const DONE: (&str, &str) = ("0", "done");
const WRONG: (&str, &str) = ("2", "wrong flags, file or environment; nothing was changed");
/// Of commands that ask the daemon.
const ASKED: &[(&str, &str)] = &[
    DONE,
    ("1", "the daemon doesn't answer, or can't do it"),
    WRONG,
    ("3", "no daemon runs in this network namespace"),
];

/// All commands that people see.
pub(super) static PAGES: &[Page] = &[
    Page {
        command: "",
        examples: &[
            (
                "ftpalg run --inside eth1",
                "Work as a gateway for what is behind eth1",
            ),
            ("ftpalg status", "Tell whether it runs, and how it is"),
            ("ftpalg help run", "Show all flags of a command"),
        ],
        exits: &[
            DONE,
            ("1", "something failed on the way; see each command"),
            ("2", "wrong flags, file or environment: nothing was changed"),
            ("3", "no daemon runs in this network namespace"),
            ("4", "doctor: there are warnings, and no problem"),
        ],
    },
    Page {
        command: "run",
        examples: &[
            (
                "ftpalg run --inside eth1",
                "A router with its private side at eth1",
            ),
            (
                "ftpalg run",
                "The same, with the private side found in the host's rules",
            ),
            (
                "ftpalg run --local --advertise 203.0.113.10 --data-ports 30000-30009",
                "A server on this host, behind NAT further out",
            ),
            (
                "ftpalg run --config /etc/ftpalg.toml",
                "With its settings from a file",
            ),
            (
                "ftpalg run --inside eth1 --tls range:40000-40099",
                "With ports for sessions under TLS",
            ),
            (
                "ftpalg run --inside eth1 --takeover",
                "In the place of the one that runs",
            ),
            (
                "ftpalg run --inside eth1 --dry-run",
                "Show the rules and settings, and change nothing",
            ),
        ],
        exits: &[
            (
                "0",
                "a signal ended it, and everything was removed or handed over",
            ),
            (
                "1",
                "something failed on the way, or not everything could be removed",
            ),
            (
                "2",
                "it couldn't start: one line says why; nothing is installed",
            ),
        ],
    },
    Page {
        command: "status",
        examples: &[
            ("ftpalg status", "Tell how the daemon is"),
            ("ftpalg status --json", "The same for a program"),
        ],
        exits: &[
            ("0", "it runs, and everything is in place"),
            ("1", "something is missing, or it doesn't answer"),
            WRONG,
            ("3", "no daemon runs in this network namespace"),
        ],
    },
    Page {
        command: "sessions",
        examples: &[("ftpalg sessions", "List the control connections")],
        exits: ASKED,
    },
    Page {
        command: "pinholes",
        examples: &[("ftpalg pinholes", "List what waits for a data connection")],
        exits: ASKED,
    },
    Page {
        command: "events",
        examples: &[
            ("ftpalg events", "Show what happened"),
            ("ftpalg events -f --refused", "Follow what is refused"),
            (
                "ftpalg events --since 2h --kind transfer --json",
                "The transfers of two hours, as JSON",
            ),
        ],
        exits: ASKED,
    },
    Page {
        command: "rules",
        examples: &[
            ("ftpalg rules print --inside eth1", "Show the rules"),
            ("ftpalg rules remove", "Remove what a killed daemon left"),
        ],
        exits: &[DONE, WRONG],
    },
    Page {
        command: "rules print",
        examples: &[
            (
                "ftpalg rules print --inside eth1",
                "For iptables-restore --noflush",
            ),
            (
                "ftpalg rules print --inside eth1 --family ipv6",
                "For ip6tables-restore --noflush",
            ),
            (
                "ftpalg rules print --inside eth1 --example gateway --outside eth0",
                "A whole rule set to start from",
            ),
        ],
        exits: &[DONE, WRONG],
    },
    Page {
        command: "rules install",
        examples: &[(
            "ftpalg rules install --inside eth1",
            "Put the rules into place for `run --rules external`",
        )],
        exits: &[DONE, WRONG],
    },
    Page {
        command: "rules remove",
        examples: &[(
            "ftpalg rules remove",
            "Remove all rules and tables of ftpalg",
        )],
        exits: &[DONE, WRONG],
    },
    Page {
        command: "doctor",
        examples: &[
            (
                "ftpalg doctor",
                "Judge this host before ftpalg runs, or while it does",
            ),
            (
                "ftpalg doctor --config /etc/ftpalg.toml",
                "With the settings of the service",
            ),
            (
                "ftpalg doctor --bundle report.txt",
                "Gather what a bug report needs",
            ),
        ],
        exits: &[
            ("0", "all is fine"),
            ("1", "there are problems"),
            WRONG,
            ("4", "there are warnings, and no problem"),
        ],
    },
    Page {
        command: "replay",
        examples: &[
            (
                "ftpalg replay in.pcap --inside 10.0.0.0/24",
                "Show each session of a capture, line by line",
            ),
            (
                "ftpalg replay in.pcap --public 203.0.113.1 -w out.pcap",
                "Write the edited packets, too",
            ),
        ],
        exits: &[
            ("0", "all of it was read"),
            (
                "1",
                "the capture is cut short or damaged; what could be read is shown",
            ),
            ("2", "wrong flags, or no capture"),
        ],
    },
    Page {
        command: "check",
        examples: &[
            (
                "ftpalg check /etc/ftpalg.toml",
                "Tell all mistakes, or what the file will do",
            ),
            ("ftpalg check --example", "Print a file to start from"),
        ],
        exits: &[
            ("0", "run would take the file"),
            ("2", "it wouldn't: a line for each mistake"),
        ],
    },
];

/// The signals that `run` obeys.
pub(super) const SIGNALS: [(&str, &str); 4] = [
    (
        "SIGINT, SIGTERM, SIGQUIT, SIGABRT, SIGXCPU",
        "Remove the rules, and end.",
    ),
    (
        "SIGUSR2",
        "Hand over: end, and leave the rules for a successor, for as long as --handover says.",
    ),
    (
        "SIGHUP",
        "Read the file of --config again, and look names in --advertise up again. No session ends. \
         What takes a restart is told.",
    ),
    (
        "SIGKILL",
        "It ends at once; its rules stay until the next start, or `ftpalg rules remove`.",
    ),
];

/// Files that ftpalg reads and writes.
pub(super) const FILES: [(&str, &str); 4] = [
    (
        "/etc/ftpalg.toml",
        "The configuration that the packaged service reads.",
    ),
    (
        "/run/ftpalg",
        "What a later ftpalg must know of some sessions; see --state.",
    ),
    (
        "/var/log/ftpalg",
        "Where the packaged service may write the file of --events.",
    ),
    (
        "/run/xtables.lock",
        "The lock of iptables, which iptables-legacy takes.",
    ),
];

/// Environment variables.
pub(super) const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "FTPALG_LOG",
        "What goes to the standard error: error, warn (the default), info, debug, trace or off. A \
         part of ftpalg can have a level of its own: FTPALG_LOG=warn,ftpalg::daemon=debug. \
         RUST_LOG is read where it isn't set.",
    ),
    (
        "NO_COLOR",
        "If it is set, nothing has colour. Without a terminal nothing has, either.",
    ),
];

/// Puts examples and exit codes behind each command's help.
pub(super) fn add(command: Command) -> Command {
    PAGES.iter().fold(command, |command, page| {
        let path: Vec<_> = page.command.split_whitespace().collect();
        at(command, &path, page)
    })
}

fn at(command: Command, path: &[&str], page: &Page) -> Command {
    match path.split_first() {
        None => command.after_long_help(page.text()),
        Some((first, rest)) => {
            command.mut_subcommand(*first, |subcommand| at(subcommand, rest, page))
        }
    }
}

impl Page {
    /// For `--help`.
    fn text(&self) -> String {
        let mut text = String::from("Examples:\n");
        for (line, does) in self.examples {
            text += &format!("  {line}\n      {does}\n");
        }
        text += "\nExit codes:\n";
        for (code, means) in self.exits {
            text += &format!("  {code}  {means}\n");
        }
        if self.command.is_empty() {
            text += "\nEnvironment:\n  FTPALG_LOG  what goes to the standard error: error, warn \
                     (the default), info,\n              debug, trace or off\n";
        }
        text
    }
}
