//! The least that a program behind NFQUEUE can do: accept every packet as it is.

use nfq::{Queue, Verdict};

/// Serves a queue for good, with the `nfq` crate. Prints `ready` once it is bound.
pub(crate) fn run(number: u16) -> std::io::Result<()> {
    let mut queue = Queue::open()?;
    queue.bind(number)?;
    queue.set_copy_range(number, u16::MAX)?;
    queue.set_queue_max_len(number, 4096)?;
    println!("ready");
    loop {
        let mut message = queue.recv()?;
        message.set_verdict(Verdict::Accept);
        queue.verdict(message)?;
    }
}
