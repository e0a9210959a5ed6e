//! FTP clients for load: any number of sessions at once in one thread, with epoll.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, connect, getsockopt, recv, send,
    setsockopt, socket, sockopt,
};

/// How long a session may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a session does between its login and its `QUIT`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// `PASV`, and `RETR` of a small file.
    Small,
    /// One `NOOP` after the other until time is up.
    Noop,
    /// `PASV`, and `RETR` of a file of so many bytes, once.
    Bulk(usize),
}

/// What some sessions have measured.
#[derive(Default)]
pub(crate) struct Measured {
    /// Sessions that came to their end.
    pub(crate) sessions: u64,
    /// Sessions that didn't, and why the first of them.
    pub(crate) failed: u64,
    pub(crate) why: Option<String>,
    /// From the first connect to the last close.
    pub(crate) took: Duration,
    /// From sending `PASV` until its `227` had come, each in nanoseconds.
    pub(crate) reply: Vec<u64>,
    /// From sending `PASV` until the first byte of the file had come.
    pub(crate) first_byte: Vec<u64>,
    /// From sending `NOOP` until its `200` had come.
    pub(crate) noop: Vec<u64>,
    /// From the first byte of the file until its end, summed up.
    pub(crate) transfer: Duration,
    /// Bytes of files.
    pub(crate) bytes: u64,
}

/// Runs sessions, always `crowd` at once, and starts new ones for this long. To be called in the
/// clients' namespace.
///
/// The clients take the addresses in turns, so that none runs out of ports.
pub(crate) fn run(
    to: SocketAddrV4,
    from: &[Ipv4Addr],
    crowd: usize,
    errand: Errand,
    time: Duration,
) -> Measured {
    let start = Instant::now();
    let mut load = Load {
        epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll"),
        to,
        from,
        started: 0,
        errand,
        until: start + time,
        sessions: (0..crowd).map(|_| None).collect(),
        buffer: vec![0; 1 << 18],
        measured: Measured::default(),
    };
    for index in 0..crowd {
        load.begin(index);
    }
    let mut events = [EpollEvent::empty(); 128];
    let mut look = start;
    while load.sessions.iter().any(Option::is_some) {
        let count = match load.epoll.wait(&mut events, EpollTimeout::from(1000u16)) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => panic!("epoll_wait: {error}"),
        };
        for event in &events[..count] {
            let index = (event.data() >> 1) as usize;
            let outcome = if event.data() & 1 == 0 {
                load.control(index)
            } else {
                load.data(index, event.events())
            };
            match outcome {
                Ok(Progress::Goes) => (),
                Ok(Progress::Done) => load.done(index),
                Err(why) => load.fail(index, &why),
            }
        }
        if look.elapsed() > Duration::from_secs(1) {
            look = Instant::now();
            for index in 0..crowd {
                let late = |s: &Session| s.start.elapsed() > PATIENCE + time;
                if load.sessions[index].as_ref().is_some_and(late) {
                    let state = load.sessions[index].as_ref().map(|s| s.state);
                    load.fail(index, &format!("it hangs at {state:?}"));
                }
            }
        }
    }
    load.measured.took = start.elapsed();
    load.measured
}

/// The next thing that a session waits for on its control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Greeting,
    User,
    Pass,
    Pasv,
    /// Connects, or waits for `150`, `226` and the end of the file.
    Transfer,
    Noop,
    Quit,
    /// The server's FIN.
    End,
}

struct Session {
    from: Ipv4Addr,
    control: OwnedFd,
    data: Option<OwnedFd>,
    /// Where the data connection goes.
    to: Option<SocketAddrV4>,
    connected: bool,
    state: State,
    /// Bytes of a line that hasn't ended yet.
    begun: Vec<u8>,
    start: Instant,
    /// When the last `PASV` or `NOOP` was sent.
    asked: Instant,
    first_byte: Option<Instant>,
    got: usize,
    whole: bool,
    /// Whether `226` has come.
    confirmed: bool,
}

enum Progress {
    Goes,
    Done,
}

struct Load<'a> {
    epoll: Epoll,
    to: SocketAddrV4,
    from: &'a [Ipv4Addr],
    started: usize,
    errand: Errand,
    until: Instant,
    sessions: Vec<Option<Session>>,
    buffer: Vec<u8>,
    measured: Measured,
}

impl Load<'_> {
    fn begin(&mut self, index: usize) {
        let from = self.from[self.started % self.from.len()];
        self.started += 1;
        let start = Instant::now();
        let control = self
            .dial(from, self.to, index, 0, EpollFlags::EPOLLIN)
            .unwrap_or_else(|why| panic!("a client can't connect: {why}"));
        self.sessions[index] = Some(Session {
            from,
            control,
            data: None,
            to: None,
            connected: false,
            state: State::Greeting,
            begun: Vec::new(),
            start,
            asked: start,
            first_byte: None,
            got: 0,
            whole: false,
            confirmed: false,
        });
    }

    fn dial(
        &self,
        from: Ipv4Addr,
        to: SocketAddrV4,
        index: usize,
        kind: u64,
        flags: EpollFlags,
    ) -> Result<OwnedFd, Errno> {
        let own = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, own, None)?;
        // The port is chosen with the connection's other end in mind: one port serves many of them.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(
            fd.as_raw_fd(),
            &SockaddrIn::from(SocketAddrV4::new(from, 0)),
        )?;
        match connect(fd.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => (),
            Err(error) => return Err(error),
        }
        let event = EpollEvent::new(flags, (index as u64) << 1 | kind);
        self.epoll.add(&fd, event)?;
        Ok(fd)
    }

    fn control(&mut self, index: usize) -> Result<Progress, String> {
        let Some(session) = &mut self.sessions[index] else {
            return Ok(Progress::Goes);
        };
        let mut buffer = [0; 512];
        match recv(
            session.control.as_raw_fd(),
            &mut buffer,
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(0) if session.state == State::End => return Ok(Progress::Done),
            Ok(0) => return Err(format!("it is closed at {:?}", session.state)),
            Ok(count) => session.begun.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Progress::Goes),
            Err(error) => return Err(format!("{error} at {:?}", session.state)),
        }
        while let Some(session) = &mut self.sessions[index]
            && let Some(end) = session.begun.windows(2).position(|pair| pair == b"\r\n")
        {
            let line: Vec<u8> = session.begun.drain(..end + 2).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            self.hear(index, &line)?;
        }
        Ok(Progress::Goes)
    }

    fn hear(&mut self, index: usize, line: &str) -> Result<(), String> {
        let errand = self.errand;
        let Some(session) = &mut self.sessions[index] else {
            return Ok(());
        };
        let expect = |code: &str| {
            let (as_expected, state) = (line.starts_with(code), session.state);
            (as_expected)
                .then_some(())
                .ok_or_else(|| format!("`{line}` at {state:?}"))
        };
        match session.state {
            State::Greeting => {
                expect("220")?;
                session.say("USER load\r\n", State::User)
            }
            State::User => {
                expect("331")?;
                session.say("PASS load\r\n", State::Pass)
            }
            State::Pass => {
                expect("230")?;
                match errand {
                    Errand::Noop => session.say("NOOP\r\n", State::Noop),
                    _ => session.say("PASV\r\n", State::Pasv),
                }
            }
            State::Pasv => {
                expect("227")?;
                let took = session.asked.elapsed();
                let to = announced(line).ok_or_else(|| format!("`{line}` has no address"))?;
                let from = session.from;
                self.measured.reply.push(nanoseconds(took));
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
                let data = self
                    .dial(from, to, index, 1, flags)
                    .map_err(|error| format!("no data connection to {to}: {error}"))?;
                if let Some(session) = &mut self.sessions[index] {
                    session.data = Some(data);
                    session.to = Some(to);
                    session.state = State::Transfer;
                }
                Ok(())
            }
            State::Transfer if line.starts_with("150") => Ok(()),
            State::Transfer => {
                expect("226")?;
                session.confirmed = true;
                self.quit_if_whole(index)
            }
            State::Noop => {
                expect("200")?;
                self.measured
                    .noop
                    .push(nanoseconds(session.asked.elapsed()));
                if Instant::now() < self.until {
                    session.say("NOOP\r\n", State::Noop)
                } else {
                    session.say("QUIT\r\n", State::Quit)
                }
            }
            State::Quit => {
                expect("221")?;
                session.state = State::End;
                Ok(())
            }
            State::End => Err(format!("`{line}` behind 221")),
        }
    }

    fn data(&mut self, index: usize, events: EpollFlags) -> Result<Progress, String> {
        let Some(session) = &mut self.sessions[index] else {
            return Ok(Progress::Goes);
        };
        let Some(data) = &session.data else {
            return Ok(Progress::Goes);
        };
        if !session.connected && events.contains(EpollFlags::EPOLLERR) {
            let why = getsockopt(data, sockopt::SocketError).map(Errno::from_raw);
            return Err(format!("no data connection to {:?}: {why:?}", session.to));
        }
        let fd = data.as_raw_fd();
        if !session.connected && events.contains(EpollFlags::EPOLLOUT) {
            session.connected = true;
            let line = match self.errand {
                Errand::Bulk(size) => format!("RETR large-{size}\r\n"),
                _ => "RETR small\r\n".to_owned(),
            };
            session.send(&line)?;
        }
        if !events.contains(EpollFlags::EPOLLIN) {
            return Ok(Progress::Goes);
        }
        loop {
            match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => break,
                Ok(count) => {
                    if session.first_byte.is_none() {
                        session.first_byte = Some(Instant::now());
                        let took = session.asked.elapsed();
                        self.measured.first_byte.push(nanoseconds(took));
                    }
                    session.got += count;
                }
                Err(Errno::EAGAIN) => return Ok(Progress::Goes),
                Err(error) => return Err(format!("{error} on the data connection")),
            }
        }
        let wanted = match self.errand {
            Errand::Bulk(size) => size,
            _ => super::server::SMALL,
        };
        if session.got != wanted {
            return Err(format!("{} bytes came of {wanted}", session.got));
        }
        self.measured.bytes += session.got as u64;
        self.measured.transfer += session.first_byte.map_or(Duration::ZERO, |at| at.elapsed());
        session.data = None;
        session.whole = true;
        self.quit_if_whole(index)?;
        Ok(Progress::Goes)
    }

    fn quit_if_whole(&mut self, index: usize) -> Result<(), String> {
        match &mut self.sessions[index] {
            Some(session) if session.whole && session.confirmed => {
                session.say("QUIT\r\n", State::Quit)
            }
            _ => Ok(()),
        }
    }

    fn done(&mut self, index: usize) {
        self.sessions[index] = None;
        self.measured.sessions += 1;
        let again = !matches!(self.errand, Errand::Bulk(_)) && Instant::now() < self.until;
        if again {
            self.begin(index);
        }
    }

    fn fail(&mut self, index: usize, why: &str) {
        self.sessions[index] = None;
        self.measured.failed += 1;
        self.measured.why.get_or_insert_with(|| why.to_owned());
    }
}

impl Session {
    /// Sends a line and waits for its reply.
    fn say(&mut self, line: &str, state: State) -> Result<(), String> {
        self.state = state;
        self.asked = Instant::now();
        self.send(line)
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.control.as_raw_fd(), line.as_bytes(), flags) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{error} at {:?}", self.state)),
        }
    }
}

/// The address in a `227`.
fn announced(line: &str) -> Option<SocketAddrV4> {
    let numbers = line.split_once('(')?.1.split_once(')')?.0;
    let numbers: Vec<u8> = numbers
        .split(',')
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let [a, b, c, d, high, low] = numbers[..] else {
        return None;
    };
    Some(SocketAddrV4::new(
        Ipv4Addr::new(a, b, c, d),
        u16::from_be_bytes([high, low]),
    ))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
