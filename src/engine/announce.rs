//! Which address an announcement must carry, and the pinhole for it.
//!
//! An endpoint X announces an address to its peer Y. Y must be told the address at which Y reaches
//! X. That is the destination of Y's own packets on the control connection, and conntrack knows it.
//! The address in the text isn't needed for that, and isn't trusted.

pub(super) mod nat64;

use std::net::{IpAddr, SocketAddr};

use super::config::{Config, Marks};
use super::endpoints::Endpoints;
use super::gateway::{Error, Gateway, PinholeId, RangeRequest, Request, Reservation, SessionId};
use super::{Entry, Side, Tuple};
use crate::ftp::Mode;
use crate::ftp::fit::{LineSlot, Rewrite};
use crate::ftp::policy::Policy;
use crate::ftp::session::{Announcement, Form};

/// An announcement whose data connection is prepared.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// What goes out in its place.
    pub(super) rewrite: Rewrite,
    /// The address that was announced.
    pub(super) old: SocketAddr,
    /// The address that goes out.
    pub(super) new: SocketAddr,
    /// Who may connect.
    pub(super) from: IpAddr,
    /// Where the data connection goes.
    pub(super) land: SocketAddr,
    /// The pinhole.
    pub(super) hole: PinholeId,
}

/// Why no data connection is prepared.
#[derive(Clone, Debug)]
pub(super) enum Declined {
    /// The announcement goes out as it is, and nothing opens.
    Leave(String),
    /// It must be refused in place.
    Refuse(String),
    /// It doesn't go out. A successor decides about it.
    Wait,
    /// It doesn't go out yet: its pinhole opens in a moment.
    PutOff,
}

/// Asks the gateway for a port, and opens the pinhole unless that is for later.
fn prepare(
    request: &Request,
    how: How,
    gateway: &mut dyn Gateway,
) -> Result<Reservation, Declined> {
    let reserved = gateway.reserve(request).map_err(|error| match error {
        // The announced port would lead nowhere, or to another service.
        Error::NoPort(_) | Error::Limit(_) => Declined::Refuse(error.to_string()),
        Error::Later => Declined::PutOff,
        error => Declined::Leave(error.to_string()),
    })?;
    if how == How::Open {
        gateway.open(reserved.id).map_err(|error| match error {
            Error::Closing => Declined::Wait,
            Error::Later => Declined::PutOff,
            error => Declined::Leave(error.to_string()),
        })?;
    }
    Ok(reserved)
}

/// How far to go with an announcement that the policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// No further: it isn't followed.
    Check,
    /// No further, and report why: nothing may open for its connection.
    Leave(&'static str),
    /// Reserve a port; the pinhole opens later.
    Reserve,
    /// Open the pinhole before the announcement goes out.
    Open,
}

/// A control connection as conntrack knows it, seen by one of its ends.
struct Tuples {
    entry: Entry,
    /// The direction of that end's own packets.
    mine: Tuple,
    peers: Tuple,
}

/// Asks conntrack, for the endpoint whose packets come through `side`'s hook.
fn tuples(gateway: &mut dyn Gateway, ends: &Endpoints, side: Side) -> Result<Tuples, Error> {
    let entry = gateway.conntrack(ends.inside(), ends.outside())?;
    let Some((outward, inward)) = entry.from_sender(ends.outward()) else {
        let why = "conntrack's answer is about another connection";
        return Err(Error::Kernel(why.to_owned()));
    };
    let (mine, peers) = match side {
        Side::Egress => (outward, inward),
        Side::Ingress => (inward, outward),
    };
    Ok(Tuples { entry, mine, peers })
}

impl Tuples {
    fn addresses(&self) -> Addresses {
        Addresses {
            own: self.mine.src.ip(),
            reachable: self.peers.dst.ip(),
        }
    }

    /// The user's bits of the control connection's mark.
    fn mark(&self, config: &Config) -> u32 {
        self.entry.mark & !config.marks.map_or(0, Marks::mask)
    }

    /// The address under which that end knows its peer, where it isn't the peer's own.
    fn as_source(&self) -> Option<IpAddr> {
        Some(self.mine.dst.ip()).filter(|seen| *seen != self.peers.src.ip())
    }
}

/// Lets the client reach the configured range of its server's ports; `server`: the hook that the
/// server's packets come through.
pub(super) fn open_range(
    gateway: &mut dyn Gateway,
    session: SessionId,
    ends: &Endpoints,
    server: Side,
) -> Result<(), Error> {
    let tuples = tuples(gateway, ends, server)?;
    let Tuples { entry, mine, peers } = &tuples;
    gateway.open_range(&RangeRequest {
        session,
        control: entry.original,
        from: peers.src.ip(),
        to: peers.dst.ip(),
        land: mine.src.ip(),
        as_source: tuples.as_source(),
    })
}

/// Decides about an announcement made by the endpoint whose packets come through `side`'s hook.
/// `how` says how far to go if the policy allows it. `None`: it goes out as it is.
///
/// The stages: conntrack's answer, the policy, the data connection that is wanted, a port for it,
/// the pinhole, the text.
pub(super) fn decide(
    config: &Config,
    gateway: &mut dyn Gateway,
    session: SessionId,
    ends: &Endpoints,
    side: Side,
    slot: &LineSlot<'_>,
    how: How,
) -> Result<Option<Prepared>, Declined> {
    let said = slot.said;
    let tuples = tuples(gateway, ends, side);
    // What is always refused doesn't depend on conntrack.
    let addresses = match &tuples {
        Ok(tuples) => tuples.addresses(),
        Err(_) => Addresses::untranslated(ends, side),
    };
    check(&config.policy, side, said, addresses).map_err(|why| Declined::Refuse(why.into()))?;
    match how {
        How::Check => return Ok(None),
        How::Leave(why) => return Err(Declined::Leave(why.to_owned())),
        How::Reserve | How::Open => {}
    }
    let tuples = tuples.map_err(|error| Declined::Leave(error.to_string()))?;
    let wanted = Wanted::new(config, session, side, slot, &tuples);
    wanted.can_be_written(said.form)?;
    let reserved = prepare(&wanted.request, how, gateway)?;
    let new = SocketAddr::new(wanted.public, reserved.to.port());
    Ok(Some(Prepared {
        rewrite: slot.rewrite(new),
        old: SocketAddr::new(said.addr.unwrap_or(addresses.own), said.port),
        new,
        from: wanted.request.from,
        land: wanted.request.land,
        hole: reserved.id,
    }))
}

/// The addresses of the endpoint that announces.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    own: IpAddr,
    /// By which its peer reaches it.
    reachable: IpAddr,
}

impl Addresses {
    /// What is assumed where conntrack can't be asked: no NAT.
    fn untranslated(ends: &Endpoints, side: Side) -> Self {
        let own = ends.of_side(side).ip();
        let reachable = own;
        Self { own, reachable }
    }
}

/// Applies the policy. That needs no answer from conntrack.
fn check(
    policy: &Policy,
    side: Side,
    said: &Announcement,
    Addresses { own, reachable }: Addresses,
) -> Result<(), &'static str> {
    match said.mode {
        Mode::Active => policy.check_active(said.addr, said.port, own, reachable),
        Mode::Passive if side == Side::Egress => policy.check_passive(said.port),
        // A server outside can announce only its own ports, which its clients reach anyway.
        Mode::Passive => Ok(()),
    }
}

/// The data connection that an announcement asks for.
#[derive(Debug)]
struct Wanted {
    request: Request,
    /// The address that the peer is told.
    public: IpAddr,
}

impl Wanted {
    fn new(
        config: &Config,
        session: SessionId,
        side: Side,
        slot: &LineSlot<'_>,
        tuples: &Tuples,
    ) -> Self {
        let said = slot.said;
        let Addresses { own, reachable } = tuples.addresses();
        let advertised = match side {
            Side::Egress => config.advertised(own),
            Side::Ingress => None,
        };
        // The address of another server (FXP) isn't translated.
        let foreign = said.addr.filter(|ip| *ip != own && *ip != reachable);
        let foreign = foreign.filter(|_| said.mode == Mode::Active);
        let public = foreign.or(advertised).unwrap_or(reachable);
        Self {
            request: Request {
                session,
                mode: said.mode,
                from: tuples.peers.src.ip(),
                to: foreign.unwrap_or(reachable),
                land: SocketAddr::new(foreign.unwrap_or(own), said.port),
                as_source: tuples.as_source(),
                mark: tuples.mark(config),
                published: foreign.is_none() && (reachable != own || advertised.is_some()),
                from_range: side == Side::Egress && foreign.is_none(),
                fitting: slot.fitting(public),
                twin: None,
            },
            public,
        }
    }

    /// Whether the form in which the announcement is written has room for the address.
    fn can_be_written(&self, form: Form) -> Result<(), Declined> {
        if self.public.is_ipv6() && form == Form::HostPort {
            let why = "an IPv6 address can't be written as h1,h2,h3,h4,p1,p2";
            return Err(Declined::Leave(why.to_owned()));
        }
        Ok(())
    }
}
