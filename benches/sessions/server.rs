//! An FTP server for load: one thread, epoll, no disk.
//!
//! Its passive ports are a fixed range with a listener each, as a server's passive range is. A session
//! has a port of it for itself from `PASV` to the end of the transfer, the one that was unused for
//! longest. The server closes first, as FTP's do: its host has the sockets in TIME-WAIT, and no client
//! runs out of ports.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use testkit::lab::net::Net;

/// The passive ports. More than there are sessions at once.
pub(crate) const PASSIVE: Range<u16> = 40000..40512;
/// What a small file consists of, in bytes.
pub(crate) const SMALL: usize = 1000;
/// What is written at a time to a large one, in bytes.
const PIECE: usize = 1 << 18;
/// How long the thread sleeps before it looks whether it is to stop, in milliseconds.
const LOOK: u16 = 100;

/// A running server; it stops when this is dropped.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at the topology's address and serves. `announce` is the address that it writes in
    /// its `227`.
    pub(crate) fn start(net: &Net, announce: Ipv4Addr) -> Self {
        let at = net.topology().listen;
        // A socket stays in the namespace that it was made in.
        let worker = net.within(net.topology().server, || {
            Worker::open(at, announce).expect("the server's host has these ports free")
        });
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || worker.run(&told));
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server failed");
        }
    }
}

/// What an event is about, as the number that epoll keeps with it.
#[derive(Clone, Copy)]
enum Token {
    Control,
    Passive(usize),
    Session(usize),
    Data(usize),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Control => (0, 0),
            Self::Passive(index) => (1, index),
            Self::Session(index) => (2, index),
            Self::Data(index) => (3, index),
        };
        (index as u64) << 2 | kind
    }

    fn unpack(number: u64) -> Self {
        let index = (number >> 2) as usize;
        match number & 3 {
            0 => Self::Control,
            1 => Self::Passive(index),
            2 => Self::Session(index),
            _ => Self::Data(index),
        }
    }
}

struct Worker {
    epoll: Epoll,
    control: TcpListener,
    passive: Vec<TcpListener>,
    /// Which session each passive port belongs to.
    owners: Vec<Option<usize>>,
    /// Passive ports that belong to nobody, the one that has been unused for longest in front.
    unused: VecDeque<usize>,
    sessions: Vec<Option<Session>>,
    free: Vec<usize>,
    announce: Ipv4Addr,
    content: Vec<u8>,
}

struct Session {
    control: TcpStream,
    /// Bytes of a line that hasn't ended yet.
    begun: Vec<u8>,
    port: Option<usize>,
    data: Option<TcpStream>,
    /// Bytes that are still to be sent, from a `RETR` on.
    left: Option<usize>,
    /// Whether epoll tells when the data connection takes more.
    watched: bool,
}

impl Worker {
    fn open(at: SocketAddr, announce: Ipv4Addr) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let listen = |port: u16, token: Token| -> io::Result<TcpListener> {
            let listener = TcpListener::bind((at.ip(), port))?;
            listener.set_nonblocking(true)?;
            // Accepted sockets inherit it. Otherwise `226` would wait for the ACK of `150`.
            setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
            epoll.add(
                &listener,
                EpollEvent::new(EpollFlags::EPOLLIN, token.pack()),
            )?;
            Ok(listener)
        };
        let control = listen(at.port(), Token::Control)?;
        let passive: Vec<_> = PASSIVE
            .enumerate()
            .map(|(index, port)| listen(port, Token::Passive(index)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            owners: vec![None; passive.len()],
            unused: (0..passive.len()).collect(),
            epoll,
            control,
            passive,
            sessions: Vec::new(),
            free: Vec::new(),
            announce,
            content: vec![b'x'; PIECE],
        })
    }

    fn run(mut self, stop: &AtomicBool) {
        let mut events = [EpollEvent::empty(); 128];
        while !stop.load(Ordering::Relaxed) {
            let count = match self.epoll.wait(&mut events, EpollTimeout::from(LOOK)) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => panic!("epoll_wait: {error}"),
            };
            for event in &events[..count] {
                match Token::unpack(event.data()) {
                    Token::Control => self.greet(),
                    Token::Passive(index) => self.take_data(index),
                    Token::Session(index) => self.listen_to(index),
                    Token::Data(index) => self.transfer(index),
                }
            }
        }
    }

    fn greet(&mut self) {
        let control = match self.control.accept() {
            Ok((control, _)) => control,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("accept: {error}"),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            self.sessions.len() - 1
        });
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Token::Session(index).pack());
        self.epoll
            .add(&control, event)
            .expect("epoll takes a socket");
        say(&control, "220 ready\r\n");
        self.sessions[index] = Some(Session {
            control,
            begun: Vec::new(),
            port: None,
            data: None,
            left: None,
            watched: false,
        });
    }

    fn take_data(&mut self, index: usize) {
        let data = match self.passive[index].accept() {
            Ok((data, _)) => data,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("accept: {error}"),
        };
        let Some(owner) = self.owners[index] else {
            return;
        };
        if let Some(session) = &mut self.sessions[owner] {
            session.data = Some(data);
            self.transfer(owner);
        }
    }

    fn listen_to(&mut self, index: usize) {
        let Some(session) = &mut self.sessions[index] else {
            return;
        };
        let mut buffer = [0; 512];
        match recv(
            session.control.as_raw_fd(),
            &mut buffer,
            MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(count) if count > 0 => session.begun.extend_from_slice(&buffer[..count]),
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            // The client is gone.
            _ => return self.end(index),
        }
        while let Some(session) = &mut self.sessions[index]
            && let Some(end) = session.begun.windows(2).position(|pair| pair == b"\r\n")
        {
            let line: Vec<u8> = session.begun.drain(..end + 2).collect();
            let line = String::from_utf8_lossy(&line[..end]).into_owned();
            self.answer(index, &line);
        }
    }

    fn answer(&mut self, index: usize, line: &str) {
        let (verb, argument) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "PASV" | "EPSV" => return self.announce(index, verb),
            "RETR" => {
                let size = match argument.strip_prefix("large-") {
                    Some(size) => size.parse().ok(),
                    None => Some(SMALL),
                };
                let Some(session) = &mut self.sessions[index] else {
                    return;
                };
                let Some(size) = size else {
                    return say(&session.control, "550 no such file\r\n");
                };
                if session.port.is_none() {
                    return say(&session.control, "425 PASV first\r\n");
                }
                say(&session.control, "150 here it comes\r\n");
                session.left = Some(size);
                return self.transfer(index);
            }
            _ => (),
        }
        let reply = match verb {
            "USER" => "331 password?\r\n",
            "PASS" => "230 come in\r\n",
            "TYPE" | "NOOP" => "200 ok\r\n",
            "QUIT" => "221 bye\r\n",
            _ => "502 not here\r\n",
        };
        if let Some(session) = &self.sessions[index] {
            say(&session.control, reply);
        }
        if verb == "QUIT" {
            self.end(index);
        }
    }

    fn announce(&mut self, index: usize, verb: &str) {
        self.give_back(index);
        let Some(session) = &mut self.sessions[index] else {
            return;
        };
        let Some(port) = self.unused.pop_front() else {
            return say(&session.control, "425 all ports are in use\r\n");
        };
        session.port = Some(port);
        self.owners[port] = Some(index);
        let number = PASSIVE.start + u16::try_from(port).expect("an index of the range");
        let reply = if verb == "PASV" {
            let [a, b, c, d] = self.announce.octets();
            let [high, low] = number.to_be_bytes();
            format!("227 Entering Passive Mode ({a},{b},{c},{d},{high},{low}).\r\n")
        } else {
            format!("229 Entering Extended Passive Mode (|||{number}|)\r\n")
        };
        say(&session.control, &reply);
    }

    /// Sends what the data connection takes, once there is one and a file is asked for.
    fn transfer(&mut self, index: usize) {
        let Some(session) = &mut self.sessions[index] else {
            return;
        };
        let (Some(data), Some(left)) = (&session.data, &mut session.left) else {
            return;
        };
        while *left > 0 {
            let piece = &self.content[..(*left).min(PIECE)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(data.as_raw_fd(), piece, flags) {
                Ok(count) => *left -= count,
                Err(Errno::EAGAIN) => {
                    if !session.watched {
                        session.watched = true;
                        let token = Token::Data(index).pack();
                        let event = EpollEvent::new(EpollFlags::EPOLLOUT, token);
                        self.epoll
                            .add(data.as_fd(), event)
                            .expect("epoll takes a socket");
                    }
                    return;
                }
                // The client will miss it.
                Err(_) => break,
            }
        }
        session.left = None;
        session.watched = false;
        session.data = None;
        say(&session.control, "226 done\r\n");
        self.give_back(index);
    }

    fn give_back(&mut self, index: usize) {
        if let Some(session) = &mut self.sessions[index]
            && let Some(port) = session.port.take()
        {
            session.data = None;
            session.watched = false;
            self.owners[port] = None;
            self.unused.push_back(port);
        }
    }

    fn end(&mut self, index: usize) {
        self.give_back(index);
        self.sessions[index] = None;
        self.free.push(index);
    }
}

/// Sends a reply. Replies are short, and a client that doesn't read them times out by itself.
fn say(mut control: &TcpStream, reply: &str) {
    drop(control.write_all(reply.as_bytes()));
}
