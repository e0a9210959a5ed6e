//! The Debian package: installed, used, upgraded, removed and purged, under systemd and without it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use testkit::lab::gateway::{Control, LIMIT, download, gateway};
use testkit::lab::net::{Directory, Net};
use testkit::lab::process::{Finished, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::system::System;
use testkit::paths::{self, repository};

/// The configuration of a gateway on which rewritten lines change their length.
const CONFIGURATION: &str = "inside = [\"in0\"]\nkeep-length = \"off\"\n";

/// The versions that are made of the program under test, each with the name of its file.
const VERSIONS: [(&str, &str); 3] = [
    ("1.0-1", "first.deb"),
    ("1.0-2", "second.deb"),
    ("1.0-3", "third.deb"),
];

/// Puts packages of the program under test into a directory; false, and a line that says so, if they can't be
/// made here.
fn packages(directory: &Path) -> bool {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    if !repository().join(".cache/cargo/bin/cargo-deb").exists() {
        eprintln!("SKIPPED package: cargo-deb isn't there, which ./scripts/test installs");
        return false;
    }
    let made = MADE.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
        fs::create_dir_all(target.join("release")).unwrap();
        fs::copy(paths::ftpalg(), target.join("release/ftpalg")).unwrap();
        for (version, name) in VERSIONS {
            let mut command = Command::new(repository().join("scripts/package"));
            command
                .args(["--no-build", "--fast", "--offline", "--output"])
                .arg(target.join(name))
                .arg(format!("--deb-version={version}"))
                .env("CARGO_TARGET_DIR", &target);
            run(command, 4 * LIMIT).must();
        }
        target
    });
    for (_, name) in VERSIONS {
        fs::copy(made.join(name), directory.join(name)).unwrap();
    }
    true
}

/// A host with systemd, on the gateway of the network; `None`, and a line that says so, if it can't be.
fn system(net: &Net) -> Option<System> {
    if let Some(why) = System::impossible() {
        eprintln!("SKIPPED package under systemd: {why}");
        return None;
    }
    Some(System::boot(net, net.topology().router))
}

/// `dpkg` with a package that is in the lab's directory.
fn install(system: &System, name: &str) -> Finished {
    let words = ["dpkg", "--no-triggers", "--force-confold", "-i"];
    let finished = system.exec(&[&words[..], &[&format!("/mnt/{name}")]].concat());
    finished.must()
}

/// Whether its service runs, and whether it is enabled.
fn service(system: &System) -> (bool, bool) {
    let says = |word| system.exec(&["systemctl", "--quiet", word, "ftpalg"]).ok();
    (says("is-active"), says("is-enabled"))
}

/// The process of the service.
fn main_pid(system: &System) -> String {
    let words = ["systemctl", "show", "-P", "MainPID", "ftpalg"];
    system.exec(&words).must().stdout.trim().to_owned()
}

fn configure(system: &System, text: &str) {
    let mut command = system.command("sh");
    command
        .args(["-euc", "printf %s \"$TEXT\" >/etc/ftpalg.toml"])
        .env("TEXT", text);
    run(command, LIMIT).must();
}

/// Some of each kind that the package holds.
const FILES: [&str; 16] = [
    "etc/ftpalg.toml",
    "usr/sbin/ftpalg",
    "usr/lib/systemd/system/ftpalg.service",
    "usr/share/man/man1/ftpalg-run.1.gz",
    "usr/share/bash-completion/completions/ftpalg",
    "usr/share/zsh/vendor-completions/_ftpalg",
    "usr/share/fish/vendor_completions.d/ftpalg.fish",
    "usr/share/doc/ftpalg/copyright",
    "usr/share/doc/ftpalg/third-party-licenses.txt.gz",
    "usr/share/doc/ftpalg/changelog.gz",
    "usr/share/doc/ftpalg/docs/reference.md",
    "usr/share/doc/ftpalg/CHANGELOG.md",
    "usr/share/doc/ftpalg/CONTRIBUTING.md",
    "usr/share/doc/ftpalg/packaging -> examples",
    "usr/share/doc/ftpalg/examples/grafana/ftpalg.json",
    "usr/share/doc/ftpalg/examples/iptables/gateway.rules",
];

/// Prints whatever is of ftpalg, or names it.
const FIND: &str = "find /etc /usr /var /run /lib /tmp /root -xdev -path '*ftpalg*' -not -path '/var/log/journal/*'
    grep -rlsi ftpalg --exclude=status-old /etc /var/lib/dpkg /var/lib/systemd /run/systemd || true";

#[test]
fn it_is_installed_used_upgraded_and_purged() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    if !packages(net.directory()) {
        return;
    }
    let Some(system) = system(&net) else {
        return;
    };
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let before = rules::snapshot(&net, net.topology().router);
    let there_before = system.sh(FIND).stdout;

    let held = system.exec(&["dpkg", "-c", "/mnt/first.deb"]).must().stdout;
    for file in FILES {
        assert!(held.contains(&format!(" ./{file}")), "{file}: {held}");
    }

    // As it comes it has no settings, and so it isn't started.
    let said = install(&system, "first.deb");
    assert!(said.log.contains("systemctl enable --now"), "{said}");
    assert_eq!(service(&system), (false, false));
    assert!(!download(&net, &server, &["--max-time", "1"]).ok());
    assert_eq!(rules::snapshot(&net, net.topology().router), before);

    configure(&system, CONFIGURATION);
    system
        .exec(&["systemctl", "enable", "--now", "ftpalg"])
        .must();
    download(&net, &server, &[]).must();
    download(&net, &server, &["--ftp-port", "-"]).must();
    system.exec(&["ftpalg", "status"]).must();
    confined(&system);
    reloaded(&system);

    let old = main_pid(&system);
    under_load(&net, &server, || {
        install(&system, "second.deb");
    });
    assert_ne!(main_pid(&system), old);
    let kept = system.exec(&["cat", "/etc/ftpalg.toml"]).stdout;
    assert!(kept.starts_with(CONFIGURATION), "{kept}");

    // With a file that has mistakes, the one that runs goes on.
    let old = main_pid(&system);
    configure(&system, "no-such-key = 1\n");
    let said = install(&system, "third.deb");
    assert!(
        said.log.contains("isn't restarted") && said.log.contains("no-such-key"),
        "{said}"
    );
    assert_eq!(main_pid(&system), old);
    download(&net, &server, &[]).must();

    // Removed: its rules go with it, the configuration stays, and with it what was enabled.
    configure(&system, CONFIGURATION);
    system
        .exec(&["dpkg", "--no-triggers", "-r", "ftpalg"])
        .must();
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
    assert!(!system.exec(&["sh", "-c", "command -v ftpalg"]).ok());
    install(&system, "third.deb");
    assert_eq!(service(&system), (true, true));
    download(&net, &server, &[]).must();

    // A killed one leaves rules; a purge leaves nothing.
    system
        .exec(&["systemctl", "kill", "-s", "KILL", "ftpalg"])
        .must();
    let purged = || {
        system
            .exec(&["dpkg", "--no-triggers", "-P", "ftpalg"])
            .must();
        assert_eq!(rules::snapshot(&net, net.topology().router), before);
        assert_eq!(system.sh(FIND).stdout, there_before);
    };
    purged();

    // With a configuration from before the first installation, it starts.
    configure(&system, CONFIGURATION);
    install(&system, "first.deb");
    assert_eq!(service(&system), (true, true));
    download(&net, &server, &[]).must();
    purged();
}

/// The unit confines it.
fn confined(system: &System) {
    let status = system.sh(&format!("cat /proc/{}/status", main_pid(system)));
    let has = |line: &str| status.stdout.contains(line);
    // CAP_NET_ADMIN and CAP_NET_RAW; a filter of system calls.
    assert!(
        has("CapBnd:\t0000000000003000\n") && has("NoNewPrivs:\t1\n"),
        "{status}"
    );
    assert!(has("Seccomp:\t2\n"), "{status}");
    let touch = format!("nsenter -t {} -m touch /usr/sbin/x", main_pid(system));
    assert!(!system.sh(&touch).ok(), "its file system can be written");
    let modes = system
        .sh("stat -c '%a %U' /run/ftpalg /var/log/ftpalg /etc/ftpalg.toml")
        .must();
    assert_eq!(modes.stdout, "700 root\n750 root\n640 root\n");
}

/// `systemctl reload` reads the file again.
fn reloaded(system: &System) {
    configure(system, &format!("{CONFIGURATION}deadline = 30\n"));
    system.exec(&["systemctl", "reload", "ftpalg"]).must();
    let deadline = Instant::now() + LIMIT;
    loop {
        let log = system
            .exec(&["journalctl", "-o", "cat", "-u", "ftpalg"])
            .stdout;
        if log.contains("deadline 60 -> 30") {
            break;
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Does something while clients come and go, and while sessions are open whose numbers differ on the two sides.
/// No transfer fails, and no session is lost.
fn under_load(net: &Net, server: &Server, what: impl FnOnce()) {
    let mut sessions: Vec<_> = (0..5)
        .map(|_| {
            let mut control = Control::dial(net);
            control.log_in(server);
            control.ask("PASV\r\n", "227");
            control
        })
        .collect();
    let over = AtomicBool::new(false);
    let done = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                download(net, server, &[]).must();
                download(net, server, &["--ftp-port", "-"]).must();
                done.fetch_add(2, Ordering::Relaxed);
            }
        });
        let more = |than: u32| {
            let deadline = Instant::now() + 4 * LIMIT;
            while done.load(Ordering::Relaxed) < than + 4 && !load.is_finished() {
                assert!(Instant::now() < deadline, "the transfers don't get on");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        more(0);
        what();
        more(done.load(Ordering::Relaxed));
        over.store(true, Ordering::Relaxed);
    });
    for control in &mut sessions {
        let mut data = control.passive(net);
        control.ask(&format!("RETR {}\r\n", Server::SMALL), "150");
        let mut got = Vec::new();
        std::io::Read::read_to_end(&mut data, &mut got).unwrap();
        assert!(got == fs::read(server.path(Server::SMALL)).unwrap());
        assert!(control.reply().starts_with("226"));
    }
}

/// Without systemd, as in a chroot or a container: nothing is started, and nothing fails.
const CHROOT: &str = r#"
cd "$1"
mkdir layers
mount -t tmpfs tmpfs layers
mkdir layers/upper layers/work layers/root
mount -t overlay -o lowerdir=/,upperdir=layers/upper,workdir=layers/work overlay layers/root
cp first.deb second.deb layers/root
mount -t proc proc layers/root/proc
mount -t tmpfs tmpfs layers/root/run
inside() {
    echo "== $1" && shift
    chroot layers/root "$@"
}
find='find /etc /usr /var /run -xdev -path "*ftpalg*"'
inside before sh -c "$find"
inside installed dpkg --no-triggers -i /first.deb
echo 'deadline = 30' >layers/root/etc/ftpalg.toml
inside upgraded dpkg --no-triggers --force-confold -i /second.deb
inside kept cat /etc/ftpalg.toml
inside enabled sh -c 'ls /etc/systemd/system/*.wants/ftpalg.service || true'
inside removed dpkg --no-triggers -r ftpalg
inside purged dpkg --no-triggers -P ftpalg
inside after sh -c "$find"
"#;

#[test]
fn where_no_systemd_runs_it_is_only_files() {
    let directory = Directory::new();
    if !packages(directory.path()) {
        return;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "sh", "-euc", CHROOT, "chroot"])
        .arg(directory.path());
    let finished = run(command, 4 * LIMIT).must();
    let (_, after) = finished.stdout.rsplit_once("== after\n").unwrap();
    let (_, before) = finished.stdout.split_once("== before\n").unwrap();
    let before = before.split("== installed\n").next().unwrap();
    assert_eq!(before, after);
    assert!(
        finished.stdout.contains("== kept\ndeadline = 30\n"),
        "{finished}"
    );
    assert!(
        finished.stdout.contains("== enabled\n== removed\n"),
        "{finished}"
    );
}
