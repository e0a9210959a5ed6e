//! Which port a pinhole gets, and whether it may be there at all.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Plane;
use crate::engine::gateway::{Error, PinholeId, Request, SessionId};
use crate::firewall::Published;
use crate::ftp::Mode;
use crate::pinholes::Key;
use crate::pinholes::ports::{self, Holder, Wanted};

/// How long the list of the gateway's own listening ports is believed.
const LISTENERS_LIFE: Duration = Duration::from_secs(5);

impl Plane {
    /// Learns which ports the user's own rules publish: they are avoided.
    pub fn avoid(&mut self, published: Vec<Published>) {
        self.user_ports = published;
    }

    pub(super) fn choose_port(&mut self, request: &Request, now: Duration) -> Option<u16> {
        if request.published {
            let stale = |at: Duration| now.saturating_sub(at) > LISTENERS_LIFE;
            if self.listeners.as_ref().is_none_or(|(at, _)| stale(*at)) {
                self.listeners = Some((now, (self.parts.listeners)()));
            }
        }
        let listeners = self
            .listeners
            .as_ref()
            .filter(|_| request.published)
            .map(|(_, listeners)| listeners);
        let holder = |port| {
            let to = SocketAddr::new(request.to, port);
            // The server itself runs on the gateway: its own socket is where the hole leads.
            let listening = to != request.land
                && listeners.is_some_and(|listeners| listeners.contains(request.to, port));
            let key = Key {
                from: request.from,
                to,
            };
            let hole = self.holes.at(key).map(|(_, hole)| hole);
            let elsewhere = self.is_in_range_of_other(key, request.land.ip());
            let published = || {
                let takes = |user: &Published| user.takes(request.from, to, request.land);
                request.published && self.user_ports.iter().any(takes)
            };
            // The same endpoint is announced again, by this session or another one: it listens once,
            // so the old hole is void.
            let hole = hole.filter(|hole| hole.pinhole.land != request.land);
            match hole {
                _ if listening || elsewhere => Holder::Other,
                None if published() => Holder::User,
                None => Holder::Nobody,
                Some(hole) if hole.session != request.session => Holder::Other,
                Some(_) => Holder::Same,
            }
        };
        let wanted = Wanted {
            announced: request.land.port(),
            published: request.published,
            range: self.config.data_ports.filter(|_| request.from_range),
            start: self.next_port,
            fitting: request.fitting,
        };
        let port = ports::choose(&wanted, holder)?;
        // Not the same port at once again: the peer may still have a connection on it.
        self.next_port = self.next_port.wrapping_add(1);
        Some(port)
    }

    pub(super) fn check_limits(
        &mut self,
        request: &Request,
        key: Key,
        now: Duration,
    ) -> Result<(), Error> {
        let own = self.holes.count(request.session);
        let replaces = self.holes.at(key).is_some() || own >= self.config.per_session;
        let client = client(request);
        self.clients
            .check(client, replaces, now, &self.config, &mut self.counters)?;
        if self.holes.len() >= self.config.total && !replaces {
            let Some(hole) = self.greediest(client) else {
                self.counters.limited += 1;
                self.counters.limited_total += 1;
                return Err(Error::Limit("pinholes"));
            };
            self.counters.superseded += 1;
            self.drop_hole(hole);
        }
        Ok(())
    }

    /// The hole to evict where there are too many: the oldest one of the client with the most. Only if
    /// that client has more than `other` will have: each gets an equal share.
    fn greediest(&self, other: IpAddr) -> Option<PinholeId> {
        let (client, count) = self.clients.greediest()?;
        let oldest = self.holes.iter().find(|(_, hole)| hole.client == client);
        let (id, _) = oldest?;
        (count > self.clients.pending(other).saturating_add(1)).then_some(id)
    }

    /// Drops the session's own hole on the key, and its oldest ones beyond the limit.
    pub(super) fn make_room(&mut self, session: SessionId, key: Key) {
        if let Some((id, _)) = self.holes.at(key) {
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
        while self.holes.count(session) >= self.config.per_session
            && let Some(id) = self.holes.oldest_of(session)
        {
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
    }
}

/// Whose limits a pinhole counts for.
pub(super) fn client(request: &Request) -> IpAddr {
    network(match request.mode {
        Mode::Passive => request.from,
        Mode::Active => request.land.ip(),
    })
}

/// What counts as one client: an IPv4 address, an IPv6 network (RFC 6177).
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
    }
}
