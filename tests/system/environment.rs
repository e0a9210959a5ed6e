//! Hosts that lack something: each kernel feature that `ftpalg` stands on, IPv6, an interface that
//! comes and goes. Either it works all the same, or one line says what is missing, and nothing is
//! left behind.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use testkit::lab::gateway::{HOSTS, LIMIT, download, ftpalg, gateway, refused, start, status};
use testkit::lab::net::Net;
use testkit::lab::process::{Finished, Process, run};
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::paths;

/// A library that, loaded into a program, refuses netfilter requests as a kernel does that doesn't
/// have what they are for: those of the subsystem `LAB_NO`, and with `LAB_NO_NAT` those that name
/// `nat`, as tables and chains for it do.
const KERNEL: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static int refused(int fd, const void *data, size_t len) {
    int protocol = 0, domain = 0;
    socklen_t size = sizeof protocol;
    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
    size = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    if (domain != AF_NETLINK || protocol != 12 || len < 20) return 0;
    const uint8_t *b = data;
    uint16_t type;
    memcpy(&type, b + 4, 2);
    int subsystem = type == 0x10 ? b[18] << 8 | b[19] : type >> 8;
    const char *no = getenv("LAB_NO");
    int hit = no && atoi(no) == subsystem;
    hit |= getenv("LAB_NO_NAT") && subsystem == 10 && type == 0x10 && memmem(data, len, "nat", 4);
    if (hit) errno = EOPNOTSUPP;
    return hit;
}
ssize_t sendto(int fd, const void *b, size_t n, int f, const struct sockaddr *a, socklen_t l) {
    if (refused(fd, b, n)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))
        dlsym(RTLD_NEXT, "sendto"))(fd, b, n, f, a, l);
}
ssize_t send(int fd, const void *b, size_t n, int f) {
    if (refused(fd, b, n)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send"))(fd, b, n, f);
}
ssize_t sendmsg(int fd, const struct msghdr *m, int f) {
    static char all[1 << 20];
    size_t n = 0;
    for (size_t i = 0; i < m->msg_iovlen && n + m->msg_iov[i].iov_len <= sizeof all; i++) {
        memcpy(all + n, m->msg_iov[i].iov_base, m->msg_iov[i].iov_len);
        n += m->msg_iov[i].iov_len;
    }
    if (refused(fd, all, n)) return -1;
    return ((ssize_t (*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg"))(fd, m, f);
}
"#;

/// The library, compiled.
fn kernel(net: &Net) -> PathBuf {
    let source = net.directory().join("kernel.c");
    let library = net.directory().join("kernel.so");
    std::fs::write(&source, KERNEL).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]);
    command.arg(&library).arg(&source);
    run(command, LIMIT).must();
    library
}

/// `ftpalg run` on such a kernel.
fn on_kernel(net: &Net, lacks: &[(&str, &str)], words: &[&str]) -> Command {
    let mut command = net.command(net.topology().router, paths::ftpalg());
    command.args(["run", "--inside", "in0"]).args(words);
    command.env("LD_PRELOAD", kernel(net));
    command.envs(lacks.iter().copied());
    command
}

fn refusal(net: &Net, lacks: &[(&str, &str)], words: &[&str]) -> Finished {
    let mut finished = run(on_kernel(net, lacks, words), LIMIT);
    // Warnings come before the one line that says why it ended.
    let last = finished.log.lines().last().unwrap_or_default().to_owned();
    finished.log = last;
    finished
}

const NO_NF_TABLES: &[(&str, &str)] = &[("LAB_NO", "10")];
const NO_NFQUEUE: &[(&str, &str)] = &[("LAB_NO", "3")];
const NO_CTNETLINK: &[(&str, &str)] = &[("LAB_NO", "1")];
const NO_NFT_NAT: &[(&str, &str)] = &[("LAB_NO_NAT", "1")];

#[test]
fn a_missing_kernel_feature_is_named_and_nothing_is_installed() {
    for flavour in [Flavour::Nft, Flavour::Legacy] {
        let net = gateway(Policy::Drop, flavour);
        let before = rules::snapshot(&net, net.topology().router);
        let fails = |lacks, words: &[&str], part| {
            refused(&refusal(&net, lacks, words), 2, part);
            assert_eq!(rules::snapshot(&net, net.topology().router), before);
        };
        for backend in ["auto", "nft", "iptables"] {
            let words = ["--backend", backend];
            fails(
                NO_NFQUEUE,
                &words,
                "no NFQUEUE; load the module nfnetlink_queue",
            );
            fails(NO_CTNETLINK, &words, "modprobe nf_conntrack_netlink");
        }
        fails(NO_NF_TABLES, &["--backend", "nft"], "no nf_tables");
        fails(NO_NFT_NAT, &["--backend", "nft"], "use --backend iptables");
        if flavour == Flavour::Nft {
            // There is no legacy table to fall back to, and none is made.
            fails(NO_NFT_NAT, &[], "that fails, too: iptables-nft-restore");
        }
    }
}

#[test]
fn without_nf_tables_or_its_nat_the_legacy_tools_do() {
    for lacks in [NO_NF_TABLES, NO_NFT_NAT] {
        let net = gateway(Policy::Drop, Flavour::Legacy);
        // Legacy tables are there for good once anybody has looked at them.
        let look = "for t in raw mangle nat filter; do ip6tables-legacy -w 5 -t $t -S; done";
        let router = net.topology().router;
        net.exec(router, &["sh", "-ec", look]).must();
        let before = rules::snapshot(&net, router);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let alg = Process::spawn(on_kernel(&net, lacks, &[]));
        assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
        assert!(alg.log().contains("backend iptables"), "{}", alg.log());
        download(&net, &server, &[]).must();
        download(&net, &server, &["--ftp-port", "-"]).must();
        alg.signal(Signal::SIGTERM);
        alg.finish(LIMIT).must();
        assert_eq!(rules::snapshot(&net, router), before);
    }
}

#[test]
fn a_namespace_without_ipv6() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        for which in ["all", "default"] {
            net.sysctl(router, &format!("net.ipv6.conf.{which}.disable_ipv6"), "1");
        }
        let before = rules::snapshot(&net, router);
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let alg = start(&net, backend, flavour);
        download(&net, &server, &[]).must();
        ftpalg(&net, &["status"]).must();
        alg.stop();
        assert_eq!(rules::snapshot(&net, router), before);
    }
}

/// Rules go by an interface's name, so they hold again when it is back; meanwhile nothing is amiss,
/// and flushed rules come back.
#[test]
fn an_interface_that_goes_and_comes_back() {
    for (backend, flavour) in HOSTS {
        let net = gateway(Policy::Drop, flavour);
        let router = net.topology().router;
        let server = Server::start(&net, &Config::new(Kind::Vsftpd));
        let before = rules::snapshot(&net, router);
        let alg = start(&net, backend, flavour);
        download(&net, &server, &[]).must();
        let sh = |script: &str| net.exec(router, &["sh", "-ec", script]).must();
        sh("ip link set in0 down; ip link set in0 name away0");
        ftpalg(&net, &["status"]).must();
        sh(&format!("{} -w 5 -t raw -F PREROUTING", flavour.iptables()));
        let deadline = Instant::now() + LIMIT;
        while status_of(&net)["nat"]["restored"] == 0 {
            assert!(Instant::now() < deadline, "not put back");
            std::thread::sleep(Duration::from_millis(20));
        }
        ftpalg(&net, &["status"]).must();
        // Another interface of that name, as a tunnel's is after it was up again.
        sh(
            "ip addr flush dev away0; ip link set away0 name in0; ip addr add 10.0.0.1/24 dev in0
            ip link set in0 up",
        );
        download(&net, &server, &["--connect-timeout", "5"]).must();
        assert_eq!(status(&net)["nat"]["restore_failures"], 0);
        alg.stop();
        assert_eq!(rules::snapshot(&net, router), before);
    }
}

fn status_of(net: &Net) -> serde_json::Value {
    serde_json::from_str(&ftpalg(net, &["status", "--json"]).stdout).unwrap()
}

/// `ftpalg run` with a lock of the legacy tools for itself alone.
fn with_lock(net: &Net, lock: &std::path::Path) -> Command {
    let mut command = net.command(net.topology().router, paths::ftpalg());
    command.args(["run", "--inside", "in0"]);
    command.env("XTABLES_LOCKFILE", lock);
    command
}

/// A tool that has the lock is waited for, but not for ever.
#[test]
fn a_held_lock_is_waited_for() {
    let net = gateway(Policy::Drop, Flavour::Legacy);
    let before = rules::snapshot(&net, net.topology().router);
    let path = net.directory().join("lock");
    let hold = || {
        let file = std::fs::File::create(&path).unwrap();
        nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, e)| e)
            .unwrap()
    };
    let held = hold();
    let alg = Process::spawn(with_lock(&net, &path));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!alg.log().contains("ready"), "{}", alg.log());
    drop(held);
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
    assert_eq!(rules::snapshot(&net, net.topology().router), before);

    let held = hold();
    let started = Instant::now();
    let mut finished = run(with_lock(&net, &path), Duration::from_secs(60));
    assert!(started.elapsed() > Duration::from_secs(4), "{finished}");
    let last = finished.log.lines().last().unwrap_or_default().to_owned();
    finished.log = last;
    refused(&finished, 2, "lock");
    drop(held);
    assert_eq!(rules::snapshot(&net, net.topology().router), before);
}

/// Where the lock is another file for us than for those who flush, legacy rules are looked at from
/// time to time.
#[test]
fn a_flush_that_nobody_tells_of_is_found() {
    let net = gateway(Policy::Drop, Flavour::Legacy);
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    let alg = Process::spawn(with_lock(&net, &net.directory().join("lock")));
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    let flush = ["iptables-legacy", "-w", "5", "-t", "raw", "-F"];
    net.exec(router, &flush).must();
    let start = Instant::now();
    while !ftpalg(&net, &["status"]).ok() {
        assert!(start.elapsed() < LIMIT, "{}", alg.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    download(&net, &server, &[]).must();
    alg.signal(Signal::SIGTERM);
    alg.finish(LIMIT).must();
    assert_eq!(rules::snapshot(&net, router), before);
}
