//! A router that loses, delays, swaps and repeats packets, the same way for the same seed.
//!
//! It stands beside the gateway, never on it: its queue takes what its host forwards of
//! control connections, and all that
//! is to arrive is sent on as a copy from a raw socket.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nfq::{Queue, Verdict};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use super::net::Net;
use crate::random::Rng;

/// How often the router looks for what is due.
const TICK: Duration = Duration::from_micros(200);
/// The queue's number in the router's namespace.
const QUEUE: u16 = 1;

/// What happens to packets, in parts of 100 each.
#[derive(Clone, Copy, Debug)]
pub struct Climate {
    /// Packets that vanish.
    pub lost: u64,
    /// Packets that vanish together with up to three that follow them.
    pub bursts: u64,
    /// Packets that come twice, the copy a little later.
    pub repeated: u64,
    /// Packets that come later than those behind them.
    pub late: u64,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Happened {
    /// Packets that came to the router.
    pub packets: AtomicU64,
    /// Those that vanished.
    pub lost: AtomicU64,
    /// Those that came twice.
    pub repeated: AtomicU64,
    /// Those that came late.
    pub late: AtomicU64,
}

impl Happened {
    /// As words.
    pub fn describe(&self) -> String {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        format!(
            "{} packets, {} lost, {} repeated, {} late",
            read(&self.packets),
            read(&self.lost),
            read(&self.repeated),
            read(&self.late)
        )
    }
}

/// Makes weather for control connections on some routers while `what` runs.
///
/// Data connections are spared: conntrack takes a late copy of a SYN that comes after a FIN for a
/// new connection and forgets the old one, which is for no gateway to mend.
///
/// # Panics
/// If a router can't be set up, and if `what` panics.
pub fn during<T>(
    net: &Net,
    routers: &[&str],
    climate: Climate,
    seed: u64,
    what: impl FnOnce() -> T,
) -> (T, Happened) {
    let happened = Happened::default();
    let over = AtomicBool::new(false);
    let (ready, readies) = std::sync::mpsc::channel();
    let result = std::thread::scope(|scope| {
        for (index, router) in routers.iter().enumerate() {
            let seed = seed.wrapping_mul(31).wrapping_add(index as u64);
            let (over, happened, ready) = (&over, &happened, ready.clone());
            scope.spawn(move || {
                net.within(router, || {
                    let sky = Sky::new(climate, seed, happened);
                    ready.send(()).expect("the test waits");
                    sky.reign(over);
                });
            });
        }
        let _end = Ends(&over);
        for router in routers {
            let limit = Duration::from_secs(10);
            readies
                .recv_timeout(limit)
                .unwrap_or_else(|_| panic!("{router} has no weather"));
        }
        for router in routers {
            steer(net, router, "-A");
        }
        let result = what();
        for router in routers {
            steer(net, router, "-D");
        }
        result
    });
    (result, happened)
}

/// Ends the weather however `what` ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn steer(net: &Net, router: &str, action: &str) {
    let port = net.topology().listen.port().to_string();
    let number = QUEUE.to_string();
    for end in ["--sport", "--dport"] {
        let matches = ["FORWARD", "-p", "tcp", end, &port];
        let target = ["-j", "NFQUEUE", "--queue-num", &number];
        let words = [&["iptables-nft", action][..], &matches, &target];
        net.exec(router, &words.concat()).must();
    }
}

struct Sky<'a> {
    climate: Climate,
    random: Rng,
    burst: u64,
    queue: Queue,
    out: std::os::fd::OwnedFd,
    happened: &'a Happened,
    /// When, in which order, what.
    air: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
}

impl<'a> Sky<'a> {
    fn new(climate: Climate, seed: u64, happened: &'a Happened) -> Self {
        let mut queue = Queue::open().expect("a queue as root");
        queue.bind(QUEUE).expect("the namespace's only queue");
        queue.set_nonblocking(true);
        let out = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            // `IPPROTO_RAW`: the packets bring their own headers.
            SockProtocol::Raw,
        )
        .expect("a raw socket as root");
        Self {
            climate,
            random: Rng::new(seed),
            burst: 0,
            queue,
            out,
            happened,
            air: BinaryHeap::new(),
            count: 0,
        }
    }

    fn reign(mut self, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            while let Ok(mut message) = self.queue.recv() {
                let packet = message.get_payload().to_vec();
                message.set_verdict(Verdict::Drop);
                self.queue.verdict(message).expect("a verdict");
                self.packet(packet);
            }
            let now = Instant::now();
            while let Some(Reverse((due, ..))) = self.air.peek()
                && *due <= now
            {
                let Some(Reverse((_, _, packet))) = self.air.pop() else {
                    break;
                };
                self.send(&packet);
            }
            std::thread::sleep(TICK);
        }
        // A program that another test started meanwhile may have inherited the socket: closing it
        // doesn't free the queue.
        self.queue.unbind(QUEUE).expect("a bound queue");
    }

    fn packet(&mut self, packet: Vec<u8>) {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        add(&self.happened.packets);
        let happens = |part: u64, dice: u64| dice % 100 < part;
        let [lost, burst, twice, late] = std::array::from_fn(|_| self.random.draw() >> 16);
        if self.burst == 0 && happens(self.climate.bursts, burst) {
            self.burst = 1 + (burst >> 16) % 4;
        }
        if self.burst > 0 || happens(self.climate.lost, lost) {
            self.burst = self.burst.saturating_sub(1);
            add(&self.happened.lost);
            return;
        }
        let now = Instant::now();
        let mut due = now;
        if happens(self.climate.late, late) {
            add(&self.happened.late);
            due += Duration::from_millis(1 + (late >> 16) % 30);
        }
        if happens(self.climate.repeated, twice) {
            add(&self.happened.repeated);
            let later = Duration::from_millis((twice >> 16) % 15);
            self.keep(due + later, packet.clone());
        }
        self.keep(due, packet);
    }

    fn keep(&mut self, due: Instant, packet: Vec<u8>) {
        self.count += 1;
        self.air.push(Reverse((due, self.count, packet)));
    }

    fn send(&self, packet: &[u8]) {
        let Some(&[a, b, c, d]) = packet.get(16..20) else {
            return;
        };
        let to = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 0));
        // A packet that can't be sent is lost like any other.
        let _ = sendto(self.out.as_raw_fd(), packet, &to, MsgFlags::empty());
    }
}
