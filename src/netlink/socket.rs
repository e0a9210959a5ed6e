//! A netlink socket to the netfilter subsystems: requests, dumps, nf_tables batches and events.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::codec::{self, Builder, Message, Messages};
use super::filter::Filter;

/// How long an answer is waited for. The kernel answers within the system call, so this matters only
/// if an answer is lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Room for one datagram: the kernel fills dumps up to 32 KiB.
pub(super) const DATAGRAM: usize = 64 * 1024;
/// How often a message that the kernel has no memory for is sent, and a question whose answer was lost
/// is asked.
const TRIES: u32 = 5;
/// How long is waited after the first of these tries; twice as long after each further one.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// How often a dump that was interrupted by changes is tried.
const DUMP_ATTEMPTS: usize = 5;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`: the first and last message of a batch.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`: what a batch is for.
pub(super) const SUBSYS_NFTABLES: u16 = 10;

/// A request: a message type of a subsystem, its flags (without `REQUEST` and `ACK`), the address
/// family and its attributes.
pub struct NetlinkRequest<'a> {
    /// Subsystem in the upper byte, message in the lower.
    pub kind: u16,
    /// Flags such as [`codec::CREATE`].
    pub flags: u16,
    /// `AF_INET`, `AF_INET6` or another that the subsystem knows.
    pub family: u8,
    /// Adds the attributes.
    pub attrs: Box<dyn Fn(&mut Builder) + 'a>,
}

/// A change of a batch that the kernel refused. The whole batch had no effect then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The position of the request in the batch; `None` if it was the batch as such.
    pub index: Option<usize>,
    /// The error number.
    pub errno: Errno,
}

/// Why a batch was not committed.
#[derive(Debug)]
pub enum BatchError {
    /// The kernel refused these requests (at least one).
    Refused(Vec<Refused>),
    /// The exchange itself failed; it isn't known whether the batch took effect.
    Io(io::Error),
}

impl From<BatchError> for io::Error {
    fn from(error: BatchError) -> Self {
        match error {
            BatchError::Io(error) => error,
            BatchError::Refused(refused) => refused
                .first()
                .map_or_else(|| Self::from(io::ErrorKind::Other), |r| r.errno.into()),
        }
    }
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    seq: u32,
    buf: Vec<u8>,
}

impl Socket {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// `EPROTONOSUPPORT` on a kernel without nfnetlink, and what the operating system says.
    pub fn open() -> io::Result<Self> {
        Self::with_groups(0)
    }

    /// Opens a socket that receives the events of multicast groups (bit n − 1 for group n), with a
    /// receive buffer of `buffer` bytes.
    ///
    /// # Errors
    /// As [`Socket::open`]; `EPERM` without `CAP_NET_ADMIN`.
    pub fn subscribe(groups: u32, buffer: usize) -> io::Result<Self> {
        let socket = Self::with_groups(groups)?;
        // Beyond net.core.rmem_max only with CAP_NET_ADMIN in the initial user namespace.
        if setsockopt(&socket.fd, sockopt::RcvBufForce, &buffer).is_err() {
            setsockopt(&socket.fd, sockopt::RcvBuf, &buffer)?;
        }
        Ok(socket)
    }

    /// Has the kernel deliver only what the filter passes, from now on.
    ///
    /// # Errors
    /// The kernel doesn't take the filter; an earlier one stays.
    pub fn filter(&self, filter: &Filter) -> io::Result<()> {
        socket2::SockRef::from(&self.fd).attach_filter(&filter.finish())
    }

    fn with_groups(groups: u32) -> io::Result<Self> {
        let fd = open(SockProtocol::NetlinkNetFilter, groups)?;
        Ok(Self {
            fd,
            seq: 0,
            buf: vec![0; DATAGRAM],
        })
    }

    /// Sends a request that has one answer and gives it to `read`. Asks again if the answer is lost.
    ///
    /// # Errors
    /// The kernel's error; `ENOENT` where there is nothing to answer with.
    pub fn get<T>(
        &mut self,
        request: &NetlinkRequest<'_>,
        read: impl FnOnce(&Message<'_>) -> T,
    ) -> io::Result<T> {
        let mut patience = Patience::default();
        let mut read = Some(read);
        loop {
            match self.get_once(request, &mut read) {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.after(error)?,
            }
        }
    }

    fn get_once<T>(
        &mut self,
        request: &NetlinkRequest<'_>,
        read: &mut Option<impl FnOnce(&Message<'_>) -> T>,
    ) -> io::Result<T> {
        let seq = self.send_one(request, 0)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let datagram = self.receive(deadline)?;
            for message in Messages::new(datagram) {
                if message.seq != seq {
                    continue;
                }
                return match message.errno() {
                    None if message.kind == codec::ERROR => Err(malformed()),
                    None => match read.take() {
                        Some(read) => Ok(read(&message)),
                        None => Err(malformed()),
                    },
                    // An acknowledgement in place of an answer: nothing was found.
                    Some(0) => Err(Errno::ENOENT.into()),
                    Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                };
            }
        }
    }

    /// Sends a request that changes something and waits for its acknowledgement. Sends it again if
    /// that is lost.
    ///
    /// # Errors
    /// The kernel's error; `ENOENT` where there is nothing to change.
    pub fn change(&mut self, request: &NetlinkRequest<'_>) -> io::Result<()> {
        let mut patience = Patience::default();
        loop {
            match self.change_of(0, request) {
                Ok(()) => return Ok(()),
                Err(error) => patience.after(error)?,
            }
        }
    }

    /// The same with the number of a resource (`res_id`), such as a queue.
    ///
    /// # Errors
    /// As [`Socket::change`].
    pub fn change_of(&mut self, number: u16, request: &NetlinkRequest<'_>) -> io::Result<()> {
        let seq = self.send_of(number, request, codec::ACK)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let datagram = self.receive(deadline)?;
            for message in Messages::new(datagram) {
                match message.errno() {
                    Some(0) if message.seq == seq => return Ok(()),
                    Some(errno) if message.seq == seq => {
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for all objects that match a request. `read` turns each into a value, or skips it.
    ///
    /// Asks again if the objects changed meanwhile.
    ///
    /// # Errors
    /// The kernel's error; `Interrupted` if the objects changed during each of several attempts.
    pub fn dump<T>(
        &mut self,
        request: &NetlinkRequest<'_>,
        read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        self.dump_some(request, usize::MAX, read)
            .map(|(all, _)| all)
    }

    /// Like [`dump`](Self::dump), but `read` may turn an object into several values, and at most
    /// `limit` values are read. Also returns whether those are all.
    ///
    /// Only for sockets of [`Socket::open`] that belong to the thread's network namespace: the
    /// socket may be opened again.
    ///
    /// # Errors
    /// As [`dump`](Self::dump).
    pub fn dump_some<T, I: IntoIterator<Item = T>>(
        &mut self,
        request: &NetlinkRequest<'_>,
        limit: usize,
        mut read: impl FnMut(&Message<'_>) -> I,
    ) -> io::Result<(Vec<T>, bool)> {
        for _ in 0..DUMP_ATTEMPTS {
            let Some(mut all) = self.dump_once(request, limit, &mut read)? else {
                continue;
            };
            let complete = all.len() <= limit;
            if !complete {
                all.truncate(limit);
                // The kernel would go on with this dump on the old one.
                *self = Self::open()?;
            }
            return Ok((all, complete));
        }
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "the kernel's tables change faster than they can be read",
        ))
    }

    /// Commits changes of nf_tables, all or none.
    ///
    /// # Errors
    /// Which of them the kernel refused, and why.
    pub fn batch(&mut self, requests: &[NetlinkRequest<'_>]) -> Result<(), BatchError> {
        self.transaction(requests, true, |_| ())
    }

    /// The same. What the kernel tells of requests with the flag [`codec::ECHO`] is given to `read`, in their
    /// order.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn batch_with_echo(
        &mut self,
        requests: &[NetlinkRequest<'_>],
        read: impl FnMut(&Message<'_>),
    ) -> Result<(), BatchError> {
        self.transaction(requests, true, read)
    }

    /// Has the kernel judge changes of nf_tables as [`batch`](Self::batch) does, and then drop them. It may
    /// load modules for that.
    ///
    /// # Errors
    /// Which of them the kernel would refuse, and why.
    pub fn check(&mut self, requests: &[NetlinkRequest<'_>]) -> Result<(), BatchError> {
        self.transaction(requests, false, |_| ())
    }

    /// Without its end, the kernel drops a batch when it has read it.
    fn transaction(
        &mut self,
        requests: &[NetlinkRequest<'_>],
        commit: bool,
        read: impl FnMut(&Message<'_>),
    ) -> Result<(), BatchError> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut builder = Builder::new();
        let begin = self.next_seq();
        builder.message(BATCH_BEGIN, codec::REQUEST, begin, 0, SUBSYS_NFTABLES);
        let mut seqs = Vec::with_capacity(requests.len());
        for (i, request) in requests.iter().enumerate() {
            let seq = self.next_seq();
            seqs.push(seq);
            // The kernel reports errors unasked, in order. The acknowledgement of the last request
            // ends them.
            let ack = if i + 1 == requests.len() {
                codec::ACK
            } else {
                0
            };
            let flags = request.flags | codec::REQUEST | ack;
            builder.message(request.kind, flags, seq, request.family, 0);
            (request.attrs)(&mut builder);
        }
        if commit {
            let end = self.next_seq();
            builder.message(BATCH_END, codec::REQUEST, end, 0, SUBSYS_NFTABLES);
        }
        self.send(builder).map_err(BatchError::Io)?;
        self.batch_answer(begin, &seqs, read)
    }

    /// Reads one datagram of events without waiting; `Ok(false)` if there is none.
    ///
    /// # Errors
    /// `ENOBUFS` if events were lost because the receive buffer was full.
    pub fn events(&mut self, mut read: impl FnMut(&Message<'_>)) -> io::Result<bool> {
        match receive_into(&self.fd, &mut self.buf, MsgFlags::MSG_DONTWAIT) {
            Ok(datagram) => {
                Messages::new(datagram).for_each(|message| read(&message));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// One attempt; `None` if it was interrupted. More than `limit` values: there may be others.
    fn dump_once<T, I: IntoIterator<Item = T>>(
        &mut self,
        request: &NetlinkRequest<'_>,
        limit: usize,
        read: &mut impl FnMut(&Message<'_>) -> I,
    ) -> io::Result<Option<Vec<T>>> {
        let seq = self.send_one(request, codec::DUMP)?;
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            // For each datagram, since a dump may take long.
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            let datagram = self.receive(deadline)?;
            for message in Messages::new(datagram) {
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & codec::DUMP_INTERRUPTED != 0;
                match (message.kind, message.errno()) {
                    (codec::DONE, None) | (_, Some(0)) => {
                        return Ok((!interrupted).then_some(all));
                    }
                    (_, Some(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                    (codec::ERROR, None) => return Err(malformed()),
                    _ => all.extend(read(&message)),
                }
            }
            if all.len() > limit {
                return Ok(Some(all));
            }
        }
    }

    fn batch_answer(
        &mut self,
        begin: u32,
        seqs: &[u32],
        mut read: impl FnMut(&Message<'_>),
    ) -> Result<(), BatchError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut refused = Vec::new();
        loop {
            let datagram = self.receive(deadline).map_err(BatchError::Io)?;
            let mut ended = false;
            for message in Messages::new(datagram) {
                let index = seqs.iter().position(|&seq| seq == message.seq);
                let Some(errno) = message.errno() else {
                    if index.is_some() {
                        read(&message);
                    }
                    continue;
                };
                if index.is_none() && message.seq != begin {
                    continue;
                }
                if errno != 0 {
                    let errno = Errno::from_raw(errno);
                    refused.push(Refused { index, errno });
                }
                // If the batch as such is refused, that may be the only answer.
                ended |= index.is_none() || index == Some(seqs.len() - 1);
            }
            if ended {
                return if refused.is_empty() {
                    Ok(())
                } else {
                    Err(BatchError::Refused(refused))
                };
            }
        }
    }

    fn send_one(&mut self, request: &NetlinkRequest<'_>, flags: u16) -> io::Result<u32> {
        self.send_of(0, request, flags)
    }

    fn send_of(
        &mut self,
        number: u16,
        request: &NetlinkRequest<'_>,
        flags: u16,
    ) -> io::Result<u32> {
        let seq = self.next_seq();
        let mut builder = Builder::new();
        let flags = request.flags | flags | codec::REQUEST;
        builder.message(request.kind, flags, seq, request.family, number);
        (request.attrs)(&mut builder);
        self.send(builder)?;
        Ok(seq)
    }

    fn send(&mut self, builder: Builder) -> io::Result<()> {
        let bytes = builder
            .finish()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let kernel = NetlinkAddr::new(0, 0);
        let mut patience = Patience::default();
        let sent = loop {
            match sendto(self.fd.as_raw_fd(), &bytes, &kernel, MsgFlags::empty()) {
                Ok(sent) => break sent,
                Err(Errno::EINTR) => {}
                Err(errno) => patience.after(errno.into())?,
            }
        };
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<&[u8]> {
        // After the deadline, what is there is read all the same: the process may have stood still.
        let flags = match Instant::now() < deadline {
            true => MsgFlags::empty(),
            false => MsgFlags::MSG_DONTWAIT,
        };
        receive_into(&self.fd, &mut self.buf, flags).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer")
            } else {
                error
            }
        })
    }

    /// Never 0, the number of events.
    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }
}

/// Opens a socket of this netlink family that receives the events of these groups, and waits for
/// [`ANSWER_TIMEOUT`] at most.
pub(super) fn open(protocol: SockProtocol, groups: u32) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    let millis = i64::try_from(ANSWER_TIMEOUT.as_millis()).unwrap_or(i64::MAX);
    let timeout = TimeVal::milliseconds(millis);
    setsockopt(&fd, sockopt::ReceiveTimeout, &timeout)?;
    setsockopt(&fd, sockopt::SendTimeout, &timeout)?;
    Ok(fd)
}

/// Bears with a kernel that has no memory just now.
#[derive(Debug, Default)]
struct Patience {
    tries: u32,
}

impl Patience {
    /// Waits a moment, if trying again may help.
    ///
    /// # Errors
    /// The error itself, if not.
    fn after(&mut self, error: io::Error) -> io::Result<()> {
        let passes = matches!(
            error.raw_os_error().map(Errno::from_raw),
            Some(Errno::ENOBUFS | Errno::ENOMEM | Errno::EAGAIN)
        );
        self.tries += 1;
        if !passes || self.tries >= TRIES {
            return Err(error);
        }
        thread::sleep(FIRST_WAIT * (1 << (self.tries - 1)));
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn receive_into<'a>(fd: &OwnedFd, buf: &'a mut [u8], flags: MsgFlags) -> io::Result<&'a [u8]> {
    let (len, truncated, from_kernel) = loop {
        let mut parts = [IoSliceMut::new(buf)];
        match recvmsg::<NetlinkAddr>(fd.as_raw_fd(), &mut parts, None, flags) {
            Ok(got) => {
                let truncated = got.flags.contains(MsgFlags::MSG_TRUNC);
                let from_kernel = got.address.is_none_or(|address| address.pid() == 0);
                break (got.bytes, truncated, from_kernel);
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    if truncated {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a netlink message was longer than 64 KiB",
        ));
    }
    // Another process may send to this socket: that is ignored.
    let len = if from_kernel { len } else { 0 };
    Ok(buf.get(..len).unwrap_or(&[]))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_there_is_read_after_the_deadline() {
        // Not where there is no nfnetlink.
        let Ok(mut socket) = Socket::open() else {
            return;
        };
        let past = Instant::now();
        let error = socket.receive(past).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let nothing = NetlinkRequest {
            kind: 0xff << 8,
            flags: 0,
            family: 0,
            attrs: Box::new(|_| ()),
        };
        // Whatever it is, the kernel answers before `sendto` returns.
        socket.send_one(&nothing, codec::ACK).unwrap();
        assert!(!socket.receive(past).unwrap().is_empty());
    }
}
