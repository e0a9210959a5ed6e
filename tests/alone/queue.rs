//! A queue of the kernel's, and packets that are put off. One test at a time, since the queue looks for its
//! socket among all that the process has open.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::time::Duration;

use ftpalg::queue::nfq::NfqQueue;
use ftpalg::queue::{Decider, Earlier, Packet, QueueVerdict};
use testkit::lab::net::Net;
use testkit::lab::topology::{Topology, host};

const QUEUE: u16 = 77;
/// How many datagrams there are: more than come with one call.
const COUNT: u8 = 50;

/// Puts each odd datagram off so many times.
struct Patient {
    times: usize,
    /// The datagrams as they came.
    given: Vec<u8>,
    /// How often it has caught up.
    caught_up: usize,
    ids: HashSet<u32>,
}

impl Decider for Patient {
    fn decide(
        &mut self,
        packet: Packet<'_>,
        _: &mut Vec<u8>,
        earlier: &mut Earlier<'_>,
    ) -> QueueVerdict {
        let number = *packet.bytes.last().unwrap();
        let before = self.given.iter().filter(|one| **one == number).count();
        assert_eq!(
            self.ids.insert(packet.id),
            before == 0,
            "{number} has one number"
        );
        assert!(earlier.may_put_off());
        self.given.push(number);
        match number % 2 == 1 && before < self.times {
            true => QueueVerdict::Later,
            false => QueueVerdict::Accept,
        }
    }

    fn catch_up(&mut self) {
        self.caught_up += 1;
    }
}

/// A host that queues what it sends to port 7, over its loopback.
fn queueing() -> Net {
    let net = Net::new(&Topology::bare(vec![host("h", &[])], Vec::new()));
    net.exec("h", &["ip", "link", "set", "lo", "up"]).must();
    let rule = "-A OUTPUT -p udp --dport 7 -j NFQUEUE --queue-num 77";
    let words: Vec<_> = ["iptables"].into_iter().chain(rule.split(' ')).collect();
    net.exec("h", &words).must();
    net
}

#[test]
fn what_is_put_off_comes_again_in_its_order() {
    let _turn = testkit::turn();
    let net = queueing();
    for times in [0, 1, 3] {
        net.within("h", || {
            let receiver = UdpSocket::bind("127.0.0.1:7").unwrap();
            receiver.set_nonblocking(true).unwrap();
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut queue = NfqQueue::open(QUEUE).unwrap().reader();
            for number in 0..COUNT {
                sender.send_to(&[number], "127.0.0.1:7").unwrap();
            }
            let mut patient = Patient {
                times,
                given: Vec::new(),
                caught_up: 0,
                ids: HashSet::new(),
            };
            let odd = usize::from(COUNT) / 2;
            while patient.given.len() < usize::from(COUNT) + times * odd {
                queue.serve(&mut patient).unwrap();
            }
            let mut read = Vec::new();
            let mut one = [0; 1];
            while receiver.recv(&mut one).is_ok() {
                read.push(one[0]);
            }
            let of = |odd: bool| read.iter().copied().filter(move |n| (n % 2 == 1) == odd);
            assert!(of(true).is_sorted() && of(false).is_sorted(), "{read:?}");
            assert_eq!(read.len(), usize::from(COUNT), "{times}: each goes on once");
            assert_eq!(patient.caught_up == 0, times == 0);
            assert!(patient.caught_up <= 2 * times, "many catch up together");
        });
    }
}

/// One that is put off for long delays nobody else.
#[test]
fn the_others_go_on_before_the_decider_catches_up() {
    struct Waiting(UdpSocket, Vec<u8>);
    impl Decider for Waiting {
        fn decide(
            &mut self,
            packet: Packet<'_>,
            _: &mut Vec<u8>,
            _: &mut Earlier<'_>,
        ) -> QueueVerdict {
            match packet.bytes.last() == Some(&b'x') && self.1.is_empty() {
                true => QueueVerdict::Later,
                false => QueueVerdict::Accept,
            }
        }
        fn catch_up(&mut self) {
            let mut one = [0; 1];
            self.0
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            self.0.recv(&mut one).unwrap();
            self.1.extend(one);
        }
    }
    let _turn = testkit::turn();
    let net = queueing();
    net.within("h", || {
        let receiver = UdpSocket::bind("127.0.0.1:7").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut queue = NfqQueue::open(QUEUE).unwrap().reader();
        for text in [b"x", b"y"] {
            sender.send_to(text, "127.0.0.1:7").unwrap();
        }
        let mut waiting = Waiting(receiver.try_clone().unwrap(), Vec::new());
        queue.serve(&mut waiting).unwrap();
        assert_eq!(waiting.1, b"y");
        let mut one = [0; 1];
        receiver.recv(&mut one).unwrap();
        assert_eq!(one, *b"x");
    });
}
