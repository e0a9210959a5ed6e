//! The double of the engine's [`Gateway`]: a kernel that says yes, or no more than it is told.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ftpalg::daemon::journal::Journal;
use ftpalg::engine::event::Event;
use ftpalg::engine::gateway::{
    Error, Gateway, PinholeId, RangeRequest, Request, Reservation, SessionId,
};
use ftpalg::engine::{Engine, Entry, Marks, Placed, Side, Standing, Tuple, Verdict};
use ftpalg::pinholes::Plane;

use crate::packet::OUTSIDE;

/// What conntrack knows of control connections.
#[derive(Clone, Copy, Debug)]
pub enum Conntrack {
    /// The same of each that it is asked about.
    Always(Entry),
    /// Each leads to this server, and was dialled at its public address.
    Published {
        /// The server's own address; no other may be asked about.
        server: SocketAddr,
        /// The address that clients dial.
        public: SocketAddr,
    },
}

impl Conntrack {
    /// The entry of the connection that has a direction from `src` to `dst`.
    ///
    /// # Panics
    /// If somebody else's connection than the server's is asked about.
    pub fn entry(&self, src: SocketAddr, dst: SocketAddr) -> Entry {
        match *self {
            Self::Always(entry) => entry,
            Self::Published { server, public } => {
                assert_eq!(src, server);
                Entry {
                    original: Tuple {
                        src: dst,
                        dst: public,
                    },
                    reply: Tuple { src, dst },
                    mark: 0,
                }
            }
        }
    }
}

/// The entry of a client's connection to port 21 of a server. One of the two is inside, at `private`,
/// and known outside as `public`; the other one is [`OUTSIDE`].
pub fn entry(server_inside: bool, private: Ipv4Addr, public: Ipv4Addr, client_port: u16) -> Entry {
    let at = |ip: Ipv4Addr, port| SocketAddr::new(ip.into(), port);
    let (original, reply) = if server_inside {
        (
            (at(OUTSIDE, client_port), at(public, 21)),
            (at(private, 21), at(OUTSIDE, client_port)),
        )
    } else {
        (
            (at(private, client_port), at(OUTSIDE, 21)),
            (at(OUTSIDE, 21), at(public, client_port)),
        )
    };
    let tuple = |(src, dst)| Tuple { src, dst };
    Entry {
        original: tuple(original),
        reply: tuple(reply),
        mark: 0,
    }
}

/// The public port in place of a private one, where [`FakeGateway::same_port`] isn't set.
pub fn public_port(private: u16) -> u16 {
    1024 + (u32::from(private) * 7919 % 60_000) as u16
}

/// The bits of control connections' marks.
pub const MARKS: Marks = Marks {
    even: 0x2000_0000,
    uneven: 0x1000_0000,
};

/// A gateway for the engine, without a kernel.
pub struct FakeGateway {
    /// What it knows of control connections.
    pub conntrack: Conntrack,
    /// Whether public ports are the private ones; else they are [`public_port`].
    pub same_port: bool,
    /// How many sessions there may be.
    pub room: usize,
    /// What was opened.
    pub opened: Vec<Request>,
    /// How many pinholes were closed before their time.
    pub released: usize,
    /// How many sessions have ended.
    pub ended: usize,
    /// What the engine told.
    pub events: Vec<Event>,
    /// Who decides about sessions and pinholes in its place.
    pub plane: Option<Plane>,
    /// Whether it keeps what it opened and was told (a benchmark needs neither).
    pub remembers: bool,
    /// What is kept for a successor.
    pub records: HashMap<Tuple, Vec<u8>>,
    /// Whether anything can be.
    pub records_work: bool,
    /// How often something was.
    pub written: usize,
    /// Keeps it in their place.
    pub journal: Option<Journal>,
    /// The ranges that were opened or renewed, if they can be.
    pub ranges: Option<Vec<RangeRequest>>,
    /// What a translator makes of each connection that it is asked about.
    pub translated: Option<Entry>,
    /// Conntrack can't be asked.
    pub deaf: bool,
    /// All connections have gone to another gateway a moment ago.
    pub elsewhere: bool,
    /// The store that another gateway writes to doesn't answer, for so short a time that it may again.
    pub silent_store: bool,
    /// Nothing opens any more.
    pub closing: bool,
    /// Pinholes open when [`decide`] has them open, not when they are asked for.
    pub puts_off: bool,
    /// No port is chosen for now, so packets that need one are put off, too.
    pub busy: bool,
    /// This packet may be put off.
    later: bool,
    reserved: Vec<Request>,
    /// What the packet asks for that is decided on, and whether that is open.
    wishes: Vec<(PinholeId, Wish)>,
    /// Which of its requests come now for the first time since it came again.
    unasked: Vec<(Request, Reservation)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Wanted,
    Open,
}

/// What becomes of a packet, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It goes on as it is.
    Accept,
    /// This goes on in its place.
    Replace(Vec<u8>),
    /// It is dropped.
    Drop,
}

impl Decision {
    fn of(verdict: Verdict<'_>) -> Self {
        match verdict {
            Verdict::Accept => Self::Accept,
            Verdict::Replace(bytes) => Self::Replace(bytes.to_vec()),
            Verdict::Drop => Self::Drop,
        }
    }
}

/// Gives a packet to an engine, again and again as long as the gateway [puts it off](FakeGateway::puts_off).
pub fn decide(
    engine: &mut Engine,
    side: Side,
    packet: &[u8],
    now: Duration,
    gateway: &mut FakeGateway,
) -> Decision {
    let mut requests = Vec::new();
    gateway.wishes.clear();
    loop {
        let told = gateway.events.len();
        let reserved = gateway.reserved.len();
        gateway.unasked.clone_from(&requests);
        let before = *engine.stats();
        let decision = match engine.try_packet(side, packet, now, gateway) {
            Placed::Verdict(verdict) => Decision::of(verdict),
            Placed::Later => Decision::Drop,
            Placed::Unknown(name) => {
                // From here on the daemon waits for what is asked for.
                let puts_off = std::mem::take(&mut gateway.puts_off);
                let verdict = engine.nobody_knows(name, side, packet, now, gateway);
                gateway.puts_off = puts_off;
                Decision::of(verdict)
            }
            Placed::SynAck(syn_ack, verdict) => {
                let decision = Decision::of(verdict);
                engine.answered(&syn_ack, false, None, now, gateway);
                decision
            }
        };
        let wanted = |(_, wish): &&mut (PinholeId, Wish)| *wish == Wish::Wanted;
        let wanted: Vec<_> = gateway.wishes.iter_mut().filter(wanted).collect();
        if wanted.is_empty() {
            assert_eq!(gateway.unasked, [], "it asks for something else");
            return decision;
        }
        for (id, wish) in wanted {
            *wish = Wish::Open;
            (gateway.opened).push(gateway.reserved[id.0 as usize].clone());
        }
        assert_eq!(decision, Decision::Drop, "it is put off");
        assert_eq!(*engine.stats(), before, "something has happened");
        gateway.events.truncate(told);
        for (at, request) in gateway.reserved.iter().enumerate().skip(reserved) {
            let id = PinholeId(at as u64);
            let to = SocketAddr::new(request.to, gateway.port(request));
            requests.push((request.clone(), Reservation { id, to }));
        }
        engine.again();
    }
}

impl FakeGateway {
    /// One with room for everybody, that opens whatever it is asked for, under public ports that
    /// are the private ones.
    pub fn new(conntrack: Conntrack) -> Self {
        Self {
            conntrack,
            same_port: true,
            room: usize::MAX,
            opened: Vec::new(),
            released: 0,
            ended: 0,
            events: Vec::new(),
            plane: None,
            remembers: true,
            records: HashMap::new(),
            records_work: true,
            written: 0,
            journal: None,
            ranges: None,
            translated: None,
            deaf: false,
            elsewhere: false,
            silent_store: false,
            closing: false,
            puts_off: false,
            busy: false,
            reserved: Vec::new(),
            later: false,
            wishes: Vec::new(),
            unasked: Vec::new(),
        }
    }

    /// One that always knows this [`entry`].
    pub fn with_entry(entry: Entry) -> Self {
        Self::new(Conntrack::Always(entry))
    }

    /// The same in front of a plane, which decides about sessions and pinholes.
    pub fn plane(mut self, plane: Plane) -> Self {
        self.plane = Some(plane);
        self
    }

    /// The same with public ports that are, or aren't, the private ones.
    pub fn same_port(mut self, same_port: bool) -> Self {
        self.same_port = same_port;
        self
    }

    fn port(&self, request: &Request) -> u16 {
        let port = request.land.port();
        if request.published && !self.same_port {
            public_port(port)
        } else {
            port
        }
    }

    /// The entry that it always answers with, to be changed.
    ///
    /// # Panics
    /// If it was made without one.
    pub fn entry(&mut self) -> &mut Entry {
        match &mut self.conntrack {
            Conntrack::Always(entry) => entry,
            published => panic!("{published:?}"),
        }
    }

    /// Why the latest session isn't read any more, if that is so.
    pub fn opaque(&self) -> Option<&'static str> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Opaque { why, .. } => Some(*why),
            _ => None,
        })
    }
}

impl Gateway for FakeGateway {
    fn conntrack(&mut self, src: SocketAddr, dst: SocketAddr) -> Result<Entry, Error> {
        if self.deaf {
            return Err(Error::Kernel("deaf".into()));
        }
        match self.translated {
            Some(entry) if src.is_ipv4() => Ok(entry),
            _ => Ok(self.conntrack.entry(src, dst)),
        }
    }
    fn translated(&mut self, client: SocketAddr, server: SocketAddr) -> Result<Entry, Error> {
        let entry = self.translated.ok_or(Error::NoConntrack)?;
        assert_eq!(
            (entry.original.src.port(), entry.original.dst),
            (client.port(), server)
        );
        Ok(entry)
    }
    fn mark(&mut self, _: SocketAddr, _: SocketAddr, standing: Standing) -> Result<(), Error> {
        let mark = &mut self.entry().mark;
        *mark = *mark & !MARKS.mask() | MARKS.bits(standing);
        Ok(())
    }
    fn keep_record(
        &mut self,
        outward: Tuple,
        name: Option<Tuple>,
        record: &[u8],
    ) -> Result<(), Error> {
        if !self.records_work {
            return Err(Error::NoRecord);
        }
        self.written += 1;
        if let Some(journal) = &self.journal {
            let kept = journal.keep(outward, name, record);
            return if kept { Ok(()) } else { Err(Error::NoRecord) };
        }
        let names = [Some(outward), name];
        for name in names.into_iter().flatten() {
            self.records.insert(name, record.to_vec());
        }
        Ok(())
    }
    fn drop_record(&mut self, outward: Tuple) {
        let gone = self.records.remove(&outward);
        self.records
            .retain(|_, record| Some(&*record) != gone.as_ref());
    }
    fn open_range(&mut self, request: &RangeRequest) -> Result<(), Error> {
        if self.closing {
            return Err(Error::Closing);
        }
        let ranges = self.ranges.as_mut();
        let ranges =
            ranges.ok_or_else(|| Error::Kernel("no range of ports is configured".into()))?;
        ranges.push(*request);
        Ok(())
    }
    fn fetch_record(&mut self, _: Tuple) -> Result<Option<Vec<u8>>, Error> {
        match self.silent_store {
            true => Err(Error::Kernel("silent".into())),
            false => Ok(None),
        }
    }
    fn find_record(&mut self, outward: Tuple) -> Option<Vec<u8>> {
        self.records.get(&outward).cloned()
    }
    fn is_elsewhere(&mut self, _: &Entry) -> bool {
        self.elsewhere
    }
    fn admit(&mut self, session: SessionId, client: IpAddr) -> Result<(), Error> {
        if let Some(plane) = &mut self.plane {
            return plane.admit(session, client);
        }
        let room = self.room.checked_sub(1);
        self.room = room.ok_or(Error::Limit("sessions"))?;
        Ok(())
    }
    fn reserve(&mut self, request: &Request) -> Result<Reservation, Error> {
        if let Some(plane) = &mut self.plane {
            return plane.reserve(request);
        }
        let asked = self.unasked.iter().position(|(asked, _)| asked == request);
        if let Some(at) = asked {
            return Ok(self.unasked.remove(at).1);
        }
        if self.busy && self.later {
            return Err(Error::Later);
        }
        let id = PinholeId(self.reserved.len() as u64);
        if self.remembers {
            self.reserved.push(request.clone());
        }
        Ok(Reservation {
            id,
            to: SocketAddr::new(request.to, self.port(request)),
        })
    }
    fn may_put_off(&mut self, undoable: bool) -> bool {
        self.later = self.puts_off && undoable;
        self.later
    }
    fn open(&mut self, id: PinholeId) -> Result<(), Error> {
        if let Some(plane) = &mut self.plane {
            return plane.open(id);
        }
        if self.closing {
            return Err(Error::Closing);
        }
        if self.wishes.contains(&(id, Wish::Open)) {
            return Ok(());
        }
        if self.later {
            self.wishes.push((id, Wish::Wanted));
            return Err(Error::Later);
        }
        if self.remembers {
            self.opened.push(self.reserved[id.0 as usize].clone());
        }
        Ok(())
    }
    fn release(&mut self, id: PinholeId) {
        self.released += 1;
        if let Some(plane) = &mut self.plane {
            plane.release(id);
        }
    }
    fn session_ended(&mut self, session: SessionId) {
        self.ended += 1;
        self.room = self.room.saturating_add(1);
        if let Some(plane) = &mut self.plane {
            plane.session_ended(session);
        }
    }
    fn event(&mut self, event: Event) {
        if self.remembers {
            self.events.push(event);
        }
    }
}
