//! A library that, loaded into a program, plays a kernel that fails now and then, and a wall clock that
//! jumps. What it does can be changed while the program runs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use testkit::lab::gateway::LIMIT;
use testkit::lab::net::Net;
use testkit::lab::process::run;

/// What is sent to ctnetlink and nf_tables.
pub(super) const QUESTIONS: i32 = 1;
/// What is sent to NFQUEUE.
pub(super) const VERDICTS: i32 = 2;
/// What the kernel answers. If it is `ENOBUFS`, the answer is lost.
pub(super) const ANSWERS: i32 = 4;
/// What is read without waiting: conntrack's events.
pub(super) const EVENTS: i32 = 8;
/// Packets of the queue.
pub(super) const PACKETS: i32 = 16;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct plan { atomic_int where, every, error, shift, seen, done; };
static struct plan *plan;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LAB_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) plan = at;
}
/* Programs that it starts have other troubles. */
static int is_daemon(void) { return !strcmp(program_invocation_short_name, "ftpalg"); }

static int is_netfilter(int fd) {
    int protocol = 0, domain = 0;
    socklen_t size = sizeof protocol;
    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
    size = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    return domain == AF_NETLINK && protocol == 12;
}
static int fails(int fd, int where) {
    /* Once, since it may change meanwhile. */
    int every = plan ? plan->every : 0;
    if (!every || !(plan->where & where) || !is_daemon() || !is_netfilter(fd)) return 0;
    if ((atomic_fetch_add(&plan->seen, 1) + 1) % every) return 0;
    atomic_fetch_add(&plan->done, 1);
    errno = plan->error;
    return 1;
}
ssize_t sendto(int fd, const void *b, size_t n, int f, const struct sockaddr *a, socklen_t l) {
    int where = n >= 6 && ((const uint8_t *)b)[5] == 3 ? 2 : 1;
    if (fails(fd, where)) return -1;
    return ((ssize_t (*)(int, const void *, size_t, int, const struct sockaddr *, socklen_t))
        dlsym(RTLD_NEXT, "sendto"))(fd, b, n, f, a, l);
}
ssize_t recv(int fd, void *b, size_t n, int f) {
    if (fails(fd, 16)) return -1;
    return ((ssize_t (*)(int, void *, size_t, int))dlsym(RTLD_NEXT, "recv"))(fd, b, n, f);
}
ssize_t recvfrom(int fd, void *b, size_t n, int f, struct sockaddr *a, socklen_t *l) {
    if (fails(fd, 16)) return -1;
    return ((ssize_t (*)(int, void *, size_t, int, struct sockaddr *, socklen_t *))
        dlsym(RTLD_NEXT, "recvfrom"))(fd, b, n, f, a, l);
}
int recvmmsg(int fd, struct mmsghdr *m, unsigned n, int f, struct timespec *t) {
    if (fails(fd, 16)) return -1;
    return ((int (*)(int, struct mmsghdr *, unsigned, int, struct timespec *))
        dlsym(RTLD_NEXT, "recvmmsg"))(fd, m, n, f, t);
}
ssize_t recvmsg(int fd, struct msghdr *m, int f) {
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
    if (fails(fd, f & MSG_DONTWAIT ? 8 : 4)) {
        int error = errno;
        if (error == ENOBUFS) {
            /* It is lost, with what comes behind it in the same call. */
            struct msghdr lost = *m;
            real(fd, &lost, f);
        }
        errno = error;
        return -1;
    }
    return real(fd, m, f);
}
int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, at);
    if (!done && plan && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += (int64_t)plan->shift * 3600;
    return done;
}
"#;

/// The library, and the file by which it is told what to do.
pub(super) struct Faults {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Faults {
    pub(super) fn new(net: &Net) -> Self {
        let at = |name: &str| net.directory().join(name);
        let (source, library, path) = (at("faults.c"), at("faults.so"), at("faults"));
        std::fs::write(&source, SOURCE).unwrap();
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
        command.arg(&library).arg(&source);
        run(command, LIMIT).must();
        std::fs::write(&path, [0; 4096]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self {
            library,
            path,
            file,
        }
    }

    /// A program with the library.
    pub(super) fn under(&self, mut command: Command) -> Command {
        command.env("LD_PRELOAD", &self.library);
        command.env("LAB_FAULTS", &self.path);
        command
    }

    fn set(&self, field: u64, value: i32) {
        self.file
            .write_all_at(&value.to_ne_bytes(), 4 * field)
            .unwrap();
    }

    /// From now on every `every`th call at these places fails with this error; 0: none.
    pub(super) fn inject(&self, at: i32, every: i32, error: i32) {
        self.set(1, 0);
        self.set(0, at);
        self.set(2, error);
        self.set(1, every);
    }

    /// How many calls have failed.
    pub(super) fn injected(&self) -> i32 {
        let mut bytes = [0; 4];
        self.file.read_exact_at(&mut bytes, 20).unwrap();
        i32::from_ne_bytes(bytes)
    }

    /// Shifts the wall clock by so many seconds, in whole hours.
    pub(super) fn shift_clock(&self, seconds: i64) {
        self.set(3, i32::try_from(seconds / 3600).unwrap());
    }
}
