//! What the scripts say: `scripts/test` of a run, in its last line, and all of them where they can't build.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::lab::gateway::{LIMIT, download, gateway};
use testkit::lab::process::run;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::system::System;
use testkit::paths;

/// `scripts/lib.sh`'s summary of what `cargo test` printed.
fn summary(log: &str) -> String {
    told("summarize", log).trim().to_owned()
}

/// What a function of `scripts/lib.sh` makes of what `cargo test` printed.
fn told(function: &str, log: &str) -> String {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-euc", &format!(". scripts/lib.sh; {function} /dev/stdin")])
        .current_dir(testkit::paths::repository())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("a shell");
    let mut input = child.stdin.take().expect("it is piped");
    input.write_all(log.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

const GOOD: &str = "
     Running unittests src/lib.rs (target/debug/deps/ftpalg-5b0d3be5b0d3be5b)

running 3 tests
test wire::a ... ok
test wire::b ... ok
test wire::c ... ignored

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s
";

/// Its own output has a list like the one that counts.
const BAD: &str = "
     Running tests/system/main.rs (target/debug/deps/system-0123456789abcdef)

running 3 tests
test urgent::vsftpd ... ok
test urgent::proftpd ... FAILED
test urgent::pyftpdlib ... FAILED

failures:

---- urgent::proftpd stdout ----
failures:
    not_this_one
test elsewhere ... FAILED

---- urgent::pyftpdlib stdout ----
a log

thread 'urgent::pyftpdlib' (12345) panicked at tests/system/urgent.rs:12:9:
no reply
thread 'client' (12346) panicked at tests/system/urgent.rs:34:5:
no answer
stack backtrace:
   0: run

failures:
    urgent::proftpd
    urgent::pyftpdlib

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s

error: test failed, to rerun pass `--test system`
";

const NONE: &str = "
     Running tests/kernel/main.rs (target/debug/deps/kernel-0123456789abcdef)

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s
";

/// It aborted, or was killed at the limit.
const CUT: &str = "
     Running tests/kernel/main.rs (target/debug/deps/kernel-0123456789abcdef)

running 2 tests
test weather::rain ... ok
";

#[test]
fn all_is_counted_and_failures_are_named() {
    assert_eq!(summary(&[GOOD, NONE, GOOD].concat()), "4 passed, 0 failed");
    let after = [GOOD, BAD, NONE, GOOD].concat();
    let failed = "5 passed, 2 failed: system::urgent::proftpd, system::urgent::pyftpdlib";
    assert_eq!(summary(&after), failed);
}

#[test]
fn why_a_test_has_failed_is_said_at_the_end() {
    let reasons = told("reasons", &[GOOD, BAD, GOOD].concat());
    let expected = "\
urgent::pyftpdlib: thread 'urgent::pyftpdlib' (12345) panicked at tests/system/urgent.rs:12:9:
    no reply
urgent::pyftpdlib: thread 'client' (12346) panicked at tests/system/urgent.rs:34:5:
    no answer
";
    assert_eq!(reasons, expected);
    let long = BAD.replace("no reply", &"much of it\n".repeat(99));
    assert_eq!(told("reasons", &long).matches("much of it").count(), 40);
    assert_eq!(told("reasons", GOOD), "");
}

#[test]
fn a_program_without_a_result_has_failed() {
    let cut = "2 passed, 0 failed: kernel (no result)";
    assert_eq!(summary(&[GOOD, CUT].concat()), cut);
    assert_eq!(summary(&[CUT, GOOD].concat()), cut);
    assert_eq!(summary(CUT), "0 passed, 0 failed: kernel (no result)");
}

#[test]
fn that_nothing_ran_is_no_success() {
    assert_eq!(summary(&[NONE, NONE].concat()), "no test ran");
    assert_eq!(summary(""), "no test ran");
}

/// A directory with a few of the system's programs, and these, which print their second part.
fn tools(name: &str, programs: &[(&str, &str)]) -> PathBuf {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&tools);
    fs::create_dir_all(&tools).unwrap();
    for program in ["sed", "sort", "head", "cut", "cat", "id", "dirname"] {
        let mut places = ["/usr/bin", "/bin"]
            .map(|place| Path::new(place).join(program))
            .into_iter();
        let from = places.find(|path| path.exists()).unwrap();
        symlink(from, tools.join(program)).unwrap();
    }
    for (program, prints) in programs {
        let path = tools.join(program);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\necho '{prints}'\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    tools
}

/// Runs this where these programs are all there is. Returns its exit code, and what it prints.
fn with_tools(tools: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("/bin/sh")
        .args(words)
        .current_dir(paths::repository())
        .env_clear()
        .env("PATH", tools)
        .env("HOME", tools.join("home"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// Whether `must_have_rust` is content where these programs are all there is, and what it says. The first
/// line of each is what it prints.
fn must_have_rust(name: &str, programs: &[(&str, &str)]) -> (bool, String) {
    let script = ". scripts/lib.sh; must_have_rust; cargo";
    let (code, said) = with_tools(&tools(name, programs), &["-euc", script, "script"]);
    (code == Some(0), said)
}

/// Before they install or change anything.
#[test]
fn every_script_that_builds_says_what_is_missing() {
    let tools = tools("scripts-without-cargo", &[("cc", "")]);
    for script in ["audit", "demo", "install", "package", "release", "test"] {
        let (code, said) = with_tools(&tools, &[&format!("scripts/{script}")]);
        let told = format!("{script}: no cargo found, and Rust ");
        assert!(
            code == Some(2) && said.starts_with(&told),
            "{script}: {said}"
        );
    }
}

#[test]
fn a_machine_that_cannot_build_is_told_how_to_mend_it() {
    let (old, new) = ("cargo 1.60.0 (d1fd9fe2c 2022-03-01)", "cargo 9.10.0 (abc)");
    let cc = ("cc", "");
    let (fine, said) = must_have_rust("no-cargo", &[cc]);
    assert!(
        !fine && said.contains("no cargo found") && said.contains("rustup"),
        "{said}"
    );
    let (fine, said) = must_have_rust("old-cargo", &[("cargo", old), cc]);
    assert!(
        !fine && said.contains("cargo 1.60.0") && said.contains("too old"),
        "{said}"
    );
    assert!(said.contains("https://rustup.rs"), "{said}");
    let (fine, said) = must_have_rust("no-cc", &[("cargo", new)]);
    assert!(
        !fine && said.contains("no C compiler") && said.contains("gcc"),
        "{said}"
    );
    for (name, cargo) in [
        ("all", "cargo"),
        ("outside-path", "home/.cargo/bin/cargo"),
        ("behind-sudo", "user/.cargo/bin/cargo"),
    ] {
        // The home of the user who called sudo.
        let user = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(name)
            .join("user");
        let entry = format!("user:x:1000:1000::{}:/bin/sh", user.display());
        let (fine, said) = must_have_rust(name, &[(cargo, new), cc, ("getent", &entry)]);
        assert!(fine && said.contains("9.10.0"), "{name}: {said}");
    }
}

/// What `scripts/install` and `scripts/uninstall` need of the repository, and a cargo that has built already.
const PREPARE: &str = r#"
mkdir source built tools
cp -R "$1"/scripts "$1"/packaging "$1"/Cargo.toml source
mkdir built/release
cp "$2" built/release/ftpalg
printf '#!/bin/sh\n[ "$1" != --version ] || echo cargo 9.10.0\n' >tools/cargo
ln -s /bin/true tools/cc
chmod +x tools/cargo
"#;

#[test]
fn what_is_installed_works_and_goes_again() {
    if let Some(why) = System::impossible() {
        eprintln!("SKIPPED scripts/install: {why}");
        return;
    }
    let net = gateway(Policy::Drop, Flavour::Nft);
    let mut prepare = Command::new("sh");
    prepare
        .args(["-euc", PREPARE, "prepare"])
        .arg(paths::repository())
        .arg(paths::ftpalg())
        .current_dir(net.directory());
    run(prepare, LIMIT).must();
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let before = rules::snapshot(&net, net.topology().router);
    let system = System::boot(&net, net.topology().router);
    let script = |words: &str| {
        let line = format!(
            "PATH=/mnt/tools:$PATH CARGO_TARGET_DIR=/mnt/built /mnt/source/scripts/{words}"
        );
        system.sh(&line).must()
    };
    let there = "find /etc /usr /var/log /run /lib -xdev -path '*ftpalg*'";
    let there_before = system.sh(there).stdout;

    script("install");
    assert!(!system.sh("systemctl --quiet is-active ftpalg").ok());
    system
        .sh("man=/usr/local/share/man/man1; test -s $man/ftpalg.1 -a -s $man/ftpalg-run.1")
        .must();
    system
        .sh("echo 'inside = [\"in0\"]' >/etc/ftpalg.toml; systemctl enable --now ftpalg")
        .must();
    download(&net, &server, &[]).must();

    // Installed again, it keeps the configuration.
    script("install");
    let said = script("uninstall");
    assert!(said.log.contains("/etc/ftpalg.toml stays"), "{said}");
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
    let kept = system.sh("cat /etc/ftpalg.toml").stdout;
    assert_eq!(kept, "inside = [\"in0\"]\n");

    script("uninstall --purge");
    assert_eq!(system.sh(there).stdout, there_before);
}
