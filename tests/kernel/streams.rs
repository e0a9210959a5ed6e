//! Control streams as only TCP allows them: many addresses in one segment, hundreds in one
//! session, batches that outgrow a segment, FIN, RST and keep-alives in awkward places.

use std::io::{Error, ErrorKind, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};
use testkit::lab::alg::Alg;
use testkit::lab::counters::Tcp;
use testkit::lab::net::Net;
use testkit::lab::report;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::scripted::{
    self, CONTENT, Control, LIMIT, Plan, Step, Verb, accept, connect, content, peers, session,
};
use testkit::lab::topology::{Shape, Topology};

/// The time within which an exchange without loss is over.
const SWIFT: Duration = Duration::from_millis(1500);

/// Runs something with a gateway in between. Conntrack may find nothing INVALID.
fn gateway(topology: &Topology, arguments: &[&str], what: impl FnOnce(&Net)) -> String {
    let net = Net::new(topology);
    rules::install(&net, Flavour::Nft, Policy::Drop, true);
    let invalid = rules::invalid(&net, topology.router);
    // Edits of other lengths are the hard ones.
    let uneven = ["--backend", "nft", "--keep-length", "off"];
    let arguments = [&uneven, arguments].concat();
    let alg = Alg::under_test(&arguments).start(&net, Flavour::Nft);
    what(&net);
    let log = alg.stop();
    let invalid = rules::invalid(&net, topology.router) - invalid;
    assert_eq!(invalid, 0, "INVALID packets\n{log}");
    log
}

/// Runs client and server; both must succeed.
fn converse<C: Send, S: Send>(
    net: &Net,
    client: impl FnOnce(Control) -> Result<C, Error> + Send,
    server: impl FnOnce(Control) -> Result<S, Error> + Send,
) -> (C, S) {
    peers(net, LIMIT, client, server).unwrap_or_else(|why| panic!("{why}"))
}

/// Opens ports for data, as many as lines are to name them.
fn listeners(control: &Control, count: usize) -> Result<Vec<(TcpListener, SocketAddr)>, Error> {
    let here = control.stream.local_addr()?.ip();
    let open = |_| {
        let listener = TcpListener::bind((here, 0))?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    (0..count).map(open).collect()
}

fn deliver(listener: &TcpListener) -> Result<(), Error> {
    let mut data = accept(listener, LIMIT)?;
    std::io::Write::write_all(&mut data, CONTENT)
}

/// The client asks `count` times at once, the server answers all of it at once; returns the lines
/// as written and as read. Of the data connections the last `used` are made, last one first.
fn batch(net: &Net, verbs: &[Verb], used: usize) -> (Vec<String>, Vec<String>) {
    let count = verbs.len();
    converse(
        net,
        |mut control| {
            control.login()?;
            let commands = verbs.iter().map(|verb| match verb {
                Verb::Epsv => "EPSV\r\n",
                _ => "PASV\r\n",
            });
            control.send(&commands.collect::<String>())?;
            let lines: Result<Vec<_>, _> = (0..count).map(|_| control.expect("22")).collect();
            let lines = lines?;
            let server = control.stream.peer_addr()?.ip();
            for (verb, line) in verbs.iter().zip(&lines).rev().take(used) {
                let mut data = connect(verb.address(line, server)?, LIMIT)?;
                content(&mut data, LIMIT)?;
            }
            control.send("QUIT\r\n")?;
            control.expect("221")?;
            Ok(lines)
        },
        |mut control| {
            control.let_in()?;
            for _ in 0..count {
                control.read()?;
            }
            let listeners = listeners(&control, count)?;
            let lines = verbs.iter().zip(&listeners);
            let lines: Vec<_> = lines.map(|(verb, (_, a))| verb.line(*a)).collect();
            control.send(&lines.concat())?;
            for (listener, _) in listeners.iter().rev().take(used) {
                deliver(listener)?;
            }
            control.expect("QUIT")?;
            control.send("221 bye\r\n")?;
            Ok(lines)
        },
    )
}

fn published(line: &str) -> String {
    line.replace("10,0,0,2", "203,0,113,1")
}

#[test]
fn several_announcements_in_one_segment() {
    gateway(&Topology::published_server(), &[], |net| {
        for _ in 0..5 {
            let (read, sent) = batch(net, &[Verb::Pasv; 4], 4);
            let expected: Vec<_> = sent.iter().map(|line| published(line)).collect();
            assert_eq!(read, expected);
        }
    });
    let ports = ["--data-ports", "1024-1999"];
    gateway(&Topology::published_server(), &ports, |net| {
        let verbs = [Verb::Epsv, Verb::Pasv, Verb::Pasv, Verb::Epsv];
        let (read, sent) = batch(net, &verbs, 4);
        for (read, sent) in read.iter().zip(&sent) {
            assert_ne!(read, sent);
        }
    });
}

/// The links outside carry 576 bytes: the batch fills several segments, and grows.
fn narrow(net: &Net) {
    let topology = net.topology();
    let outer = match topology.shape {
        Shape::ServerInside => topology.client,
        Shape::ClientInside => topology.server,
    };
    for (host, interface) in [(outer, "e0"), (topology.router, topology.outside)] {
        let words = ["ip", "link", "set", interface, "mtu", "576"];
        net.exec(host, &words).must();
    }
}

#[test]
fn replies_that_outgrow_their_segments() {
    gateway(&Topology::published_server(), &[], |net| {
        narrow(net);
        let hosts = [net.topology().client, net.topology().server];
        for count in [10, 11, 12, 30, 200] {
            let before = Tcp::of(net, &hosts);
            let start = Instant::now();
            let (read, sent) = batch(net, &vec![Verb::Pasv; count], 4);
            let took = start.elapsed();
            let expected: Vec<_> = sent.iter().map(|line| published(line)).collect();
            assert_eq!(read, expected, "{count} replies");
            let tcp = Tcp::of(net, &hosts).since(before);
            assert!(took < SWIFT, "{count} replies took {took:?}: {tcp:?}");
            assert_eq!(tcp.bad_checksums, 0);
        }
    });
}

/// How much one segment on a link with 1500 bytes carries, in bytes: with timestamps.
const FULL: usize = 1500 - 20 - 20 - 12;

/// Replies that fill so many segments to the last byte, a `227` at their end. It grows by three bytes,
/// for which the last segment has no room, and nothing comes after it. The time from the write until
/// the line is read.
fn replies_that_fill(net: &Net, segments: usize) -> Duration {
    let before = Instant::now();
    let ((line, read), (sent, written)) = converse(
        net,
        |mut control| {
            control.login()?;
            control.send("HELP\r\nPASV\r\n")?;
            while !control.read()?.starts_with("214 ") {}
            let line = control.expect("227")?;
            let read = before.elapsed();
            let mut data = connect(Verb::Pasv.address(&line, net.topology().dial.ip())?, LIMIT)?;
            content(&mut data, LIMIT)?;
            control.send("QUIT\r\n")?;
            control.expect("221")?;
            Ok((line, read))
        },
        |mut control| {
            control.let_in()?;
            control.expect("HELP")?;
            control.expect("PASV")?;
            let (listener, address) = listeners(&control, 1)?.remove(0);
            let line = Verb::Pasv.line(address);
            let (first, last) = ("214-help\r\n", "214 end\r\n");
            let room = segments * FULL - first.len() - last.len() - line.len();
            let mut help = " a line of forty bytes, all of them text\r\n".repeat(room / 42);
            help = format!("{}{help}", "x".repeat(room % 42));
            let written = before.elapsed();
            control.send(&[first, &help, last, &line].concat())?;
            deliver(&listener)?;
            control.expect("QUIT")?;
            control.send("221 bye\r\n")?;
            Ok((line, written))
        },
    );
    assert_eq!(line, published(&sent));
    assert_eq!(line.len(), sent.len() + 3);
    read.saturating_sub(written)
}

#[test]
fn an_address_that_outgrows_the_last_segment() {
    gateway(&Topology::published_server(), &[], |net| {
        let mut text = String::new();
        for segments in [1, 2, 3, 10] {
            let times: Vec<_> = (0..5).map(|_| replies_that_fill(net, segments)).collect();
            text += &format!("{segments} full segments: {times:?}\n");
            let worst = times.iter().max().expect("five times");
            assert!(*worst < SWIFT, "{text}");
        }
        report::write("grown_last_segment", &text);
    });
}

#[test]
fn commands_that_outgrow_their_segments() {
    gateway(&Topology::masqueraded_client(), &[], |net| {
        narrow(net);
        for count in [20, 60, 200] {
            let start = Instant::now();
            let (sent, read) = converse(
                net,
                |mut control| {
                    control.login()?;
                    let listeners = listeners(&control, count)?;
                    let lines: Vec<_> =
                        listeners.iter().map(|(_, a)| Verb::Port.line(*a)).collect();
                    control.send(&lines.concat())?;
                    for _ in 0..count {
                        control.expect("200")?;
                    }
                    control.send("RETR file\r\n")?;
                    control.expect("150")?;
                    let (last, _) = listeners.last().expect("one at least");
                    content(&mut accept(last, LIMIT)?, LIMIT)?;
                    control.send("QUIT\r\n")?;
                    control.expect("221")?;
                    Ok(lines)
                },
                |mut control| {
                    control.let_in()?;
                    let lines: Result<Vec<_>, _> = (0..count).map(|_| control.read()).collect();
                    let lines = lines?;
                    control.send(&"200 fine\r\n".repeat(count))?;
                    control.expect("RETR")?;
                    control.send("150 here it comes\r\n")?;
                    let peer = control.stream.peer_addr()?.ip();
                    let last = lines.last().expect("one at least");
                    let mut data = connect(Verb::Port.address(last, peer)?, LIMIT)?;
                    std::io::Write::write_all(&mut data, CONTENT)?;
                    drop(data);
                    control.expect("QUIT")?;
                    control.send("221 bye\r\n")?;
                    Ok(lines)
                },
            );
            let took = start.elapsed();
            let rewritten = sent
                .iter()
                .map(|line| line.replace("10,0,0,2", "198,51,100,1"));
            assert_eq!(read, rewritten.collect::<Vec<_>>(), "{count} commands");
            assert!(took < SWIFT, "{count} commands took {took:?}");
        }
    });
}

/// Lines that grow and lines that shrink, in turns.
#[test]
fn hundreds_of_edits_in_one_session() {
    let ports = ["--data-ports", "1024-9999"];
    gateway(&Topology::published_server(), &ports, |net| {
        let verbs = [Verb::Pasv, Verb::Epsv, Verb::Epsv].into_iter().cycle();
        let plan = Plan::new(verbs.take(400).map(Step::whole).collect());
        let outcome = session(net, &plan).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(outcome.transfers.len(), 400);
        let grown = |wanted: fn(usize, usize) -> bool| {
            let pairs = outcome.transfers.iter();
            pairs.filter(|t| wanted(t.read.len(), t.sent.len())).count()
        };
        assert!(grown(|read, sent| read < sent) > 100);
        assert!(grown(|read, sent| read > sent) > 10);
    });
    gateway(&Topology::masqueraded_client(), &[], |net| {
        let verbs = [Verb::Port, Verb::Eprt].into_iter().cycle();
        let plan = Plan::new(verbs.take(400).map(Step::whole).collect());
        let outcome = session(net, &plan).unwrap_or_else(|why| panic!("{why}"));
        for transfer in &outcome.transfers {
            assert_ne!(transfer.sent, transfer.read);
        }
        assert_eq!(outcome.transfers.len(), 400);
    });
}

/// A probe each second after a second of silence; the third without an answer is the end.
fn keep_alive(stream: &TcpStream) {
    setsockopt(stream, sockopt::KeepAlive, &true).expect("SO_KEEPALIVE");
    setsockopt(stream, sockopt::TcpKeepIdle, &1).expect("TCP_KEEPIDLE");
    setsockopt(stream, sockopt::TcpKeepInterval, &1).expect("TCP_KEEPINTVL");
    setsockopt(stream, sockopt::TcpKeepCount, &2).expect("TCP_KEEPCNT");
}

/// Long enough for either end to give up if its probes stay unanswered.
const SILENCE: Duration = Duration::from_millis(4500);

/// Probes of both ends are answered while numbers differ, and while the end of an address is out.
#[test]
fn keep_alives() {
    gateway(&Topology::published_server(), &[], |net| {
        let hosts = [net.topology().client, net.topology().server];
        let before = Tcp::of(net, &hosts);
        let result = peers(
            net,
            SILENCE * 2,
            |mut control| {
                keep_alive(&control.stream);
                control.login()?;
                for _ in 0..3 {
                    let (_, to) = control.ask(Verb::Pasv)?;
                    content(&mut connect(to, LIMIT)?, LIMIT)?;
                }
                control.send("QUIT\r\n")?;
                control.expect("221")
            },
            |mut control| {
                keep_alive(&control.stream);
                control.let_in()?;
                for round in 0..3 {
                    control.expect("PASV")?;
                    let listeners = listeners(&control, 1)?;
                    let (listener, address) = &listeners[0];
                    let line = Verb::Pasv.line(*address);
                    let (head, tail) = line.split_at(33);
                    control.send(head)?;
                    if round == 1 {
                        // The client has the beginning of the line, the gateway the rest.
                        control.wait_acked()?;
                        std::thread::sleep(SILENCE);
                    }
                    control.send(tail)?;
                    deliver(listener)?;
                    if round == 0 {
                        std::thread::sleep(SILENCE);
                    }
                }
                control.expect("QUIT")?;
                control.send("221 bye\r\n")
            },
        );
        let sent = Tcp::of(net, &hosts).since(before).keep_alives;
        result.unwrap_or_else(|why| panic!("{why}; {sent} keep-alives"));
        assert!(sent >= 8, "only {sent} keep-alives were sent");
    });
}

/// Sends this and FIN in one segment.
fn send_last(control: &Control, text: &str) -> Result<(), Error> {
    let more = MsgFlags::from_bits_retain(libc::MSG_MORE);
    let sent = send(control.stream.as_raw_fd(), text.as_bytes(), more)?;
    assert_eq!(sent, text.len());
    control.stream.shutdown(Shutdown::Write)
}

/// Everything up to the end of the stream.
fn rest(control: &mut Control) -> Result<String, Error> {
    let mut text = String::new();
    loop {
        match control.read() {
            Ok(line) => text += &line,
            Err(_) if control.at_end => return Ok(text),
            Err(error) => return Err(error),
        }
    }
}

#[test]
fn fin_on_the_segment_with_the_address() {
    gateway(&Topology::published_server(), &[], |net| {
        // The whole line, the end of one that began before, and one that never ends.
        for (first, end) in [(0, usize::MAX), (31, usize::MAX), (0, 35), (30, 36)] {
            let start = Instant::now();
            let (read, sent) = converse(
                net,
                |mut control| {
                    control.login()?;
                    control.send("PASV\r\n")?;
                    let line = rest(&mut control)?;
                    if end == usize::MAX {
                        let server = control.stream.peer_addr()?.ip();
                        let to = Verb::Pasv.address(&line, server)?;
                        content(&mut connect(to, LIMIT)?, LIMIT)?;
                    }
                    Ok(line)
                },
                |mut control| {
                    control.let_in()?;
                    control.expect("PASV")?;
                    let listeners = listeners(&control, 1)?;
                    let (listener, address) = &listeners[0];
                    let mut line = Verb::Pasv.line(*address);
                    line.truncate(end.min(line.len()));
                    control.send(&line[..first])?;
                    if first > 0 {
                        control.wait_acked()?;
                    }
                    send_last(&control, &line[first..])?;
                    if end == usize::MAX {
                        deliver(listener)?;
                    }
                    rest(&mut control)?;
                    Ok(line)
                },
            );
            let expected = if end == usize::MAX {
                published(&sent)
            } else {
                sent
            };
            assert_eq!(read, expected, "sent first: {first}");
            let took = start.elapsed();
            assert!(took < SWIFT, "it took {took:?}");
        }
    });
}

#[test]
fn fin_on_the_segment_with_the_command() {
    gateway(&Topology::masqueraded_client(), &[], |net| {
        let (sent, read) = converse(
            net,
            |mut control| {
                control.login()?;
                let listeners = listeners(&control, 1)?;
                let (listener, address) = &listeners[0];
                let lines = Verb::Port.line(*address) + "RETR file\r\n";
                send_last(&control, &lines)?;
                control.expect("200")?;
                control.expect("150")?;
                content(&mut accept(listener, LIMIT)?, LIMIT)?;
                rest(&mut control)?;
                Ok(lines)
            },
            |mut control| {
                control.let_in()?;
                let lines = rest(&mut control)?;
                control.send("200 fine\r\n150 here it comes\r\n")?;
                let peer = control.stream.peer_addr()?.ip();
                let port = lines.lines().next().unwrap_or_default();
                let mut data = connect(Verb::Port.address(port, peer)?, LIMIT)?;
                std::io::Write::write_all(&mut data, CONTENT)?;
                Ok(lines)
            },
        );
        assert_eq!(read, sent.replace("10,0,0,2", "198,51,100,1"));
    });
}

/// How long it takes until a RST arrives.
fn await_reset(mut control: Control) -> Result<Duration, Error> {
    let start = Instant::now();
    let mut rest = Vec::new();
    match control.stream.read_to_end(&mut rest) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(start.elapsed()),
        other => Err(Error::other(format!("{other:?} in place of RST"))),
    }
}

/// A RST reaches the other end at once, whatever was edited or held before; the session is over.
#[test]
fn reset_after_edits_and_while_an_address_is_held() {
    let log = gateway(&Topology::published_server(), &[], |net| {
        for held in [false, true] {
            for by_server in [false, true] {
                let (client, server) = converse(
                    net,
                    |mut control| {
                        control.login()?;
                        let (_, to) = control.ask(Verb::Pasv)?;
                        content(&mut connect(to, LIMIT)?, LIMIT)?;
                        control.send("PASV\r\n")?;
                        if by_server {
                            return await_reset(control);
                        }
                        // Not before the server has spoken.
                        control.stream.peek(&mut [0])?;
                        scripted::reset(control)?;
                        Ok(Duration::ZERO)
                    },
                    |mut control| {
                        control.let_in()?;
                        control.expect("PASV")?;
                        let listeners = listeners(&control, 1)?;
                        let (listener, address) = &listeners[0];
                        let line = Verb::Pasv.line(*address);
                        control.send(&line)?;
                        deliver(listener)?;
                        control.expect("PASV")?;
                        let part = if held { &line[..36] } else { &line };
                        control.send(part)?;
                        if !by_server {
                            return await_reset(control);
                        }
                        control.wait_acked()?;
                        scripted::reset(control)?;
                        Ok(Duration::ZERO)
                    },
                );
                let took = client.max(server);
                assert!(took < SWIFT, "the RST took {took:?}");
            }
        }
    });
    let closed = log.lines().filter(|line| line.contains("closed: RST"));
    assert!(log.is_empty() || closed.count() == 4, "{log}");
}

/// The client's window closes in the middle of a batch of edits, and opens again.
#[test]
fn a_window_that_closes() {
    gateway(&Topology::published_server(), &[], |net| {
        let (read, sent) = converse(
            net,
            |mut control| {
                setsockopt(&control.stream, sockopt::RcvBuf, &1)?;
                control.login()?;
                control.send(&"PASV\r\n".repeat(200))?;
                std::thread::sleep(Duration::from_secs(1));
                let lines: Result<Vec<_>, _> = (0..200).map(|_| control.expect("227")).collect();
                Ok(lines?.concat())
            },
            |mut control| {
                control.let_in()?;
                for _ in 0..200 {
                    control.expect("PASV")?;
                }
                let listeners = listeners(&control, 1)?;
                let lines = Verb::Pasv.line(listeners[0].1).repeat(200);
                control.send(&lines)?;
                rest(&mut control)?;
                Ok(lines)
            },
        );
        assert_eq!(read, published(&sent));
    });
}
