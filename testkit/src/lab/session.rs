//! A control connection of which a test is both ends.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::gateway::{Control, LIMIT};
use super::net::Net;
use super::scripted::{self, Verb};

/// Both ends of a control connection.
pub struct Session {
    /// The client's end.
    pub client: Control,
    /// The server's.
    pub server: Control,
}

impl Session {
    /// A session that has logged in.
    ///
    /// # Panics
    /// If that isn't possible.
    pub fn open(net: &Net) -> Self {
        let topology = net.topology();
        let listener = net.within(topology.server, || {
            scripted::listen(topology.listen).unwrap()
        });
        let client = Control::dial(net);
        let server = Control::new(listener.accept().unwrap().0);
        let mut session = Self { client, server };
        session.server.send("220 ready\r\n");
        assert_eq!(session.client.read(), "220 ready\r\n");
        session.say("USER lab\r\n", "331 password\r\n");
        session.say("PASS lab\r\n", "230 fine\r\n");
        session
    }

    /// A command and its reply; returns what the client reads.
    ///
    /// # Panics
    /// If the server reads another command. Only an address may be another one.
    #[track_caller]
    pub fn say(&mut self, command: &str, reply: &str) -> String {
        self.client.send(command);
        let heard = self.server.read();
        match command.get(..5) {
            Some(verb @ ("PORT " | "EPRT ")) => assert!(heard.starts_with(verb), "{heard}"),
            _ => assert_eq!(heard, command),
        }
        self.server.send(reply);
        self.client.read()
    }

    /// A passive data connection; returns its two ends.
    ///
    /// # Panics
    /// If it can't be had.
    #[track_caller]
    pub fn passive(&mut self, net: &Net) -> [TcpStream; 2] {
        let own = self.server.0.get_ref().local_addr().unwrap();
        let listener = net.within(net.topology().server, || {
            TcpListener::bind((own.ip(), 0)).unwrap()
        });
        let port = listener.local_addr().unwrap().port();
        let (command, reply) = match own {
            SocketAddr::V4(own) => {
                let ip = own.ip().to_string().replace('.', ",");
                let (high, low) = (port >> 8, port & 255);
                // The dot makes room for a longer address, whatever the port is.
                ("PASV\r\n", format!("227 here ({ip},{high},{low}).\r\n"))
            }
            SocketAddr::V6(_) => ("EPSV\r\n", format!("229 here (|||{port}|)\r\n")),
        };
        let reply = self.say(command, &reply);
        let verb = match own {
            SocketAddr::V4(_) => Verb::Pasv,
            SocketAddr::V6(_) => Verb::Epsv,
        };
        let peer = self.client.0.get_ref().peer_addr().unwrap();
        let to = verb.address(&reply, peer.ip()).unwrap();
        let out = net.within(net.topology().client, || {
            TcpStream::connect_timeout(&to, LIMIT)
        });
        let out = out.unwrap_or_else(|e| panic!("{}: {e}", reply.trim()));
        [out, scripted::accept(&listener, LIMIT).unwrap()]
    }
}
