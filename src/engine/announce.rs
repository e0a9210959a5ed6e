//! What an announced address must become: conntrack knows.
//!
//! An endpoint X announces an address to its peer Y. What Y must be told is how Y reaches X, and
//! the conntrack entry of the control connection says it: it is the destination that Y's own
//! packets carry. The address in the text is not needed for that, and not trusted.

use std::net::{IpAddr, SocketAddr};

use super::config::Config;
use super::gateway::{Error, Gateway, PinholeId, RangeRequest, Request, SessionId};
use super::{Endpoints, Entry, Side, Tuple};
use crate::ftp::Mode;
use crate::ftp::fit::{Fitting, Rewrite, Slot};
use crate::ftp::session::Form;

/// What to do with an announcement.
#[derive(Clone, Debug)]
pub(super) enum Decision {
    /// It is rewritten; the data connection is prepared.
    Announce {
        rewrite: Rewrite,
        old: SocketAddr,
        new: SocketAddr,
        from: IpAddr,
        land: SocketAddr,
        hole: PinholeId,
    },
    /// Nothing is against it, and nothing was asked for: it goes out as it is.
    Pass,
    /// It goes out as it is and nothing is opened.
    Leave(String),
    /// It must be refused in place.
    Refuse(String),
}

/// What is to be done about an announcement that nothing is against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Nothing: it isn't followed.
    Check,
    /// Nothing, and that is said: nothing may open for its connection, for this reason.
    Leave(&'static str),
    /// A port is chosen; it opens later.
    Reserve,
    /// It opens before the announcement goes out.
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
    let entry = gateway.conntrack(ends.inside, ends.outside)?;
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

/// Decides about an announcement made by the endpoint whose packets come through `side`'s hook;
/// `how`: what is to be done if nothing is against it.
pub(super) fn decide(
    config: &Config,
    gateway: &mut dyn Gateway,
    session: SessionId,
    ends: &Endpoints,
    side: Side,
    slot: &Slot<'_>,
    how: How,
) -> Decision {
    let said = slot.said;
    let tuples = tuples(gateway, ends, side);
    let (own, reachable) = match &tuples {
        Ok(Tuples { mine, peers, .. }) => (mine.src.ip(), peers.dst.ip()),
        // What is always refused doesn't depend on conntrack.
        Err(_) => (ends.of_side(side).ip(), ends.of_side(side).ip()),
    };
    if said.mode == Mode::Active
        && let Err(why) = config
            .policy
            .check_active(said.addr, said.port, own, reachable)
    {
        return Decision::Refuse(why.to_owned());
    }
    // A server outside is only reached itself, where any other port of its would do as well.
    if said.mode == Mode::Passive
        && side == Side::Egress
        && let Err(why) = config.policy.check_passive(said.port)
    {
        return Decision::Refuse(why.to_owned());
    }
    match how {
        How::Check => return Decision::Pass,
        How::Leave(why) => return Decision::Leave(why.to_owned()),
        How::Reserve | How::Open => {}
    }
    let tuples = match tuples {
        Ok(tuples) => tuples,
        Err(error) => return Decision::Leave(error.to_string()),
    };
    let Tuples { entry, peers, .. } = &tuples;
    let advertised = if side == Side::Egress {
        config.advertised(own)
    } else {
        None
    };
    let foreign = said.addr.filter(|ip| *ip != own && *ip != reachable);
    let foreign = foreign.filter(|_| said.mode == Mode::Active);
    let land = SocketAddr::new(foreign.unwrap_or(own), said.port);
    // Another server's address (FXP) is known to its peer as it is.
    let public = foreign.or(advertised).unwrap_or(reachable);
    if public.is_ipv6() && said.form == Form::HostPort {
        return Decision::Leave("an IPv6 address can't be written as h1,h2,h3,h4,p1,p2".to_owned());
    }
    let request = Request {
        session,
        mode: said.mode,
        from: peers.src.ip(),
        to: foreign.unwrap_or(reachable),
        land,
        as_source: tuples.as_source(),
        mark: entry.mark,
        published: foreign.is_none() && (reachable != own || advertised.is_some()),
        from_range: side == Side::Egress && foreign.is_none(),
        fitting: match config.keep_length {
            true => slot.fitting(public),
            false => Fitting::ANY,
        },
    };
    let reserved = match gateway.reserve(&request) {
        Ok(reserved) => reserved,
        // What is written there would lead nowhere, or to somebody else.
        Err(error @ (Error::NoPort(_) | Error::Limit(_))) => {
            return Decision::Refuse(error.to_string());
        }
        Err(error) => return Decision::Leave(error.to_string()),
    };
    if how == How::Open
        && let Err(error) = gateway.open(reserved.id)
    {
        return Decision::Leave(error.to_string());
    }
    let new = SocketAddr::new(public, reserved.to.port());
    let old = SocketAddr::new(said.addr.unwrap_or(own), said.port);
    Decision::Announce {
        rewrite: match config.keep_length {
            true => slot.rewrite(new),
            false => slot.plain(new),
        },
        old,
        new,
        from: request.from,
        land,
        hole: reserved.id,
    }
}
