//! What an announced address must become: conntrack knows.
//!
//! An endpoint X announces an address to its peer Y. What Y must be told is how Y reaches X, and
//! the conntrack entry of the control connection says it: it is the destination that Y's own
//! packets carry. The address in the text is not needed for that, and not trusted.

use std::net::{IpAddr, SocketAddr};

use super::config::Config;
use super::gateway::{Error, Gateway, Mode, PinholeId, Request, SessionId};
use super::{Endpoints, Side};
use crate::ftp::hostport;
use crate::ftp::session::{Announcement, Form};

/// What to do with an announcement.
#[derive(Clone, Debug)]
pub(super) enum Decision {
    /// `text` goes out in its place; the data connection is prepared.
    Announce {
        text: Vec<u8>,
        old: SocketAddr,
        new: SocketAddr,
        from: IpAddr,
        land: SocketAddr,
        hole: PinholeId,
    },
    /// It goes out as it is and nothing is opened.
    Leave(String),
    /// It must be refused in place.
    Refuse(String),
}

/// Decides about an announcement made by the endpoint whose packets come through `side`'s hook.
pub(super) fn decide(
    config: &Config,
    gateway: &mut dyn Gateway,
    session: SessionId,
    ends: &Endpoints,
    side: Side,
    said: &Announcement,
) -> Decision {
    let entry = match gateway.conntrack(ends.inside, ends.outside) {
        Ok(entry) => entry,
        Err(error) => return Decision::Leave(error.to_string()),
    };
    let here = |t: &crate::nat::conntrack::Tuple| t.src == ends.inside && t.dst == ends.outside;
    let (inward, outward) = if here(&entry.original) {
        (entry.reply, entry.original)
    } else if here(&entry.reply) {
        (entry.original, entry.reply)
    } else {
        return Decision::Leave("conntrack's answer is about another connection".to_owned());
    };
    let (mine, peers) = match side {
        Side::Egress => (outward, inward),
        Side::Ingress => (inward, outward),
    };
    let (own, reachable) = (mine.src.ip(), peers.dst.ip());
    if said.mode == Mode::Active
        && let Err(why) = config
            .policy
            .check_active(said.addr, said.port, own, reachable)
    {
        return Decision::Refuse(why.to_owned());
    }
    let advertised = if side == Side::Egress {
        config.advertised(own)
    } else {
        None
    };
    let land = SocketAddr::new(own, said.port);
    let request = Request {
        session,
        mode: said.mode,
        from: peers.src.ip(),
        to: reachable,
        land,
        as_source: Some(mine.dst.ip()).filter(|seen| *seen != peers.src.ip()),
        published: reachable != own || advertised.is_some(),
        from_range: side == Side::Egress,
    };
    let public = advertised.unwrap_or(reachable);
    if public.is_ipv6() && said.form == Form::HostPort {
        return Decision::Leave("an IPv6 address can't be written as h1,h2,h3,h4,p1,p2".to_owned());
    }
    let reserved = match gateway.reserve(&request) {
        Ok(reserved) => reserved,
        // What is written there would lead nowhere, or to somebody else.
        Err(error @ (Error::NoPort(_) | Error::Limit(_))) => {
            return Decision::Refuse(error.to_string());
        }
        Err(error) => return Decision::Leave(error.to_string()),
    };
    if said.mode == Mode::Passive
        && let Err(error) = gateway.open(reserved.id)
    {
        return Decision::Leave(error.to_string());
    }
    let new = SocketAddr::new(public, reserved.to.port());
    let old = SocketAddr::new(said.addr.unwrap_or(own), said.port);
    Decision::Announce {
        text: hostport::encode(said.form, new),
        old,
        new,
        from: request.from,
        land,
        hole: reserved.id,
    }
}
