//! The same where a translator stands between client and server (NAT64): the data connection passes
//! conntrack twice, as an IPv6 connection and as an IPv4 one.
//!
//! The control connection does so, too. Its IPv6 entry is found by the flow's ends. Its IPv4 entry has
//! the server's own address, and the client's port: translators without state of their own, such as
//! TAYGA, keep it. From there on, all is as ever, for either entry by itself: what one end announces
//! leads to the pinhole of the family in which its peer connects, and that one has a
//! [twin](crate::engine::gateway::Twin) in the other family.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Addresses, Config, Declined, How, Tuples, check, prepare, tuples};
use crate::engine::Side;
use crate::engine::endpoints::Endpoints;
use crate::engine::gateway::{Error, Gateway, PinholeId, Request, SessionId, Twin};
use crate::ftp::Mode;
use crate::ftp::fit::{Fitting, LineSlot};
use crate::ftp::nat64::{Nat64, is_clat};
use crate::ftp::session::{Announcement, Form};

/// What becomes of an announcement.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Translated {
    /// The address and port that go out.
    pub(in crate::engine) new: SocketAddr,
    /// Who may connect.
    pub(in crate::engine) from: IpAddr,
    /// Where the data connection goes.
    pub(in crate::engine) land: SocketAddr,
    /// Its pinhole; `None`: it passes without.
    pub(in crate::engine) hole: Option<PinholeId>,
    /// Why it has none, if that is to be told.
    pub(in crate::engine) why: Option<String>,
}

/// Who announces what to whom.
pub(in crate::engine) struct Asked<'a> {
    pub(in crate::engine) config: &'a Config,
    pub(in crate::engine) session: SessionId,
    pub(in crate::engine) ends: &'a Endpoints,
    /// The hook that the announcer's packets come through.
    pub(in crate::engine) side: Side,
    pub(in crate::engine) said: &'a Announcement,
    /// How many bytes its address takes.
    pub(in crate::engine) len: usize,
    /// Whether its line is to be translated.
    pub(in crate::engine) is_translated: bool,
    pub(in crate::engine) how: How,
}

impl Asked<'_> {
    /// A `227` or `229`. Its address is the server's, whatever it says (RFC 6384 §6).
    pub(in crate::engine) fn passive(
        &self,
        nat64: &mut Nat64,
        gateway: &mut dyn Gateway,
    ) -> Result<Translated, Declined> {
        let Self {
            ends, side, said, ..
        } = *self;
        let refuse = |why: &str| Declined::Refuse(why.to_owned());
        let server = IpAddr::V4(nat64.server());
        let foreign = self.is_translated && said.addr.is_some_and(|ip| ip != server);
        if foreign && self.config.policy.strict.addresses {
            return Err(refuse("another host's address"));
        }
        let addresses = Addresses::untranslated(ends, side);
        check(&self.config.policy, side, said, addresses).map_err(refuse)?;
        let land = SocketAddr::new(ends.of_side(side).ip(), said.port);
        let without = |why: Option<String>| Translated {
            new: land,
            from: ends.of_side(side.opposite()).ip(),
            land,
            hole: None,
            why,
        };
        match self.how {
            How::Check => return Ok(without(None)),
            How::Leave(why) => return Ok(without(Some(why.to_owned()))),
            How::Reserve | How::Open => {}
        }
        let tuples = match tuples(gateway, ends, side) {
            Ok(tuples) => tuples,
            // Of a translator in the kernel, conntrack doesn't know: it takes the packets before.
            Err(error) => return Ok(without(Some(error.to_string()))),
        };
        let twin = self.other_family(nat64, gateway).ok().map(|other| Twin {
            from: other.mine.src.ip(),
            to: SocketAddr::new(other.mine.dst.ip(), said.port),
            land: SocketAddr::new(other.peers.src.ip(), said.port),
            as_source: as_source(&other),
            mark: other.mark(self.config),
        });
        let addresses = tuples.addresses();
        let request = Request {
            session: self.session,
            mode: Mode::Passive,
            from: tuples.peers.src.ip(),
            to: addresses.reachable,
            land: SocketAddr::new(addresses.own, said.port),
            as_source: tuples.as_source(),
            mark: tuples.mark(self.config),
            published: addresses.reachable != addresses.own,
            from_range: false,
            fitting: Fitting::ANY,
            twin,
        };
        self.prepare(&request, addresses.reachable, gateway)
    }

    /// A `PORT` or `EPRT`. `None`: it goes out as it is (RFC 6384 §7: another address than the
    /// client's).
    pub(in crate::engine) fn active(
        &self,
        nat64: &mut Nat64,
        gateway: &mut dyn Gateway,
    ) -> Result<Option<Translated>, Declined> {
        let Self {
            ends, side, said, ..
        } = *self;
        let client = SocketAddr::new(ends.of_side(side).ip(), said.port);
        let own = match said.addr {
            Some(IpAddr::V4(ip)) if is_clat(ip) => client.ip(),
            Some(ip) => ip,
            None => client.ip(),
        };
        let policy = &self.config.policy;
        policy
            .check_active(Some(own), said.port, client.ip(), client.ip())
            .map_err(|why| Declined::Refuse(why.to_owned()))?;
        // An address that is allowed by name: no translator leads there. Or the client wants no translation.
        let is_port = said.form == Form::HostPort;
        if own != client.ip() || !(is_port || self.is_translated) {
            return Ok(None);
        }
        match self.how {
            How::Check => return Ok(None),
            How::Leave(why) => return Err(Declined::Leave(why.to_owned())),
            How::Reserve | How::Open => {}
        }
        let leave = |error: Error| Declined::Leave(error.to_string());
        // Of a translator in the kernel, there is none. Then no IPv4 entry can be its either.
        let here = tuples(gateway, ends, side).map_err(leave)?;
        let other = self.other_family(nat64, gateway).map_err(leave)?;
        let Addresses { own, reachable } = other.addresses();
        let advertised = match side {
            Side::Egress => self.config.advertised(own),
            Side::Ingress => None,
        };
        let public = advertised.unwrap_or(reachable);
        let twin = Twin {
            from: here.peers.src.ip(),
            to: client,
            land: client,
            as_source: None,
            mark: here.mark(self.config),
        };
        let slot = Announcement {
            form: Form::HostPort,
            ..said.clone()
        };
        let slot = LineSlot::new(&slot, self.len, b" ", b"\r\n");
        let request = Request {
            session: self.session,
            mode: Mode::Active,
            from: other.peers.src.ip(),
            to: reachable,
            land: SocketAddr::new(own, said.port),
            as_source: other.as_source(),
            mark: other.mark(self.config),
            published: reachable != own || advertised.is_some(),
            from_range: side == Side::Egress,
            fitting: match self.config.keep_length {
                true => slot.fitting(public),
                false => Fitting::ANY,
            },
            twin: Some(twin),
        };
        self.prepare(&request, public, gateway).map(Some)
    }

    /// The same with its pinhole prepared.
    fn prepare(
        &self,
        request: &Request,
        public: IpAddr,
        gateway: &mut dyn Gateway,
    ) -> Result<Translated, Declined> {
        let reserved = prepare(request, self.how, gateway)?;
        Ok(Translated {
            new: SocketAddr::new(public, reserved.to.port()),
            from: request.from,
            land: request.land,
            hole: Some(reserved.id),
            why: None,
        })
    }

    /// The IPv4 entry of the control connection, as the client's packets have it: `mine` is the
    /// client's direction.
    fn other_family(&self, nat64: &mut Nat64, gateway: &mut dyn Gateway) -> Result<Tuples, Error> {
        let (client, server) = match self.said.mode {
            Mode::Active => (self.side, self.side.opposite()),
            Mode::Passive => (self.side.opposite(), self.side),
        };
        let from = self.ends.of_side(client);
        let server = SocketAddr::new(nat64.server().into(), self.ends.of_side(server).port());
        let known = nat64.translated();
        let entry = match known.map(|client| gateway.conntrack(client, server)) {
            Some(Ok(entry)) => entry,
            _ => gateway.translated(from, server)?,
        };
        nat64.is_translated_to(entry.original.src);
        Ok(Tuples {
            entry,
            mine: entry.original,
            peers: entry.reply,
        })
    }
}

/// The source that the server sees of a connection that the client makes, if it isn't the client's own.
fn as_source(client: &Tuples) -> Option<IpAddr> {
    Some(client.peers.dst.ip()).filter(|seen| *seen != client.mine.src.ip())
}

impl Config {
    /// The IPv4 address that a server's stands for.
    pub(in crate::engine) fn embedded(&self, server: IpAddr) -> Option<Ipv4Addr> {
        let IpAddr::V6(server) = server else {
            return None;
        };
        self.nat64.iter().find_map(|prefix| prefix.extract(server))
    }
}
