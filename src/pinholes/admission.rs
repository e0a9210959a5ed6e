//! Whether a pinhole may be reserved, on which port, and which other one makes room for it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Plane;
use crate::engine::gateway::{Error, PinholeId, Request, SessionId};
use crate::firewall::Published;
use crate::ftp::Mode;
use crate::pinholes::PinholeKey;
use crate::pinholes::ports::{self, Holder, Listeners, PortRequest};

/// How long the list of the gateway's own listening ports is used before it is read again.
const LISTENERS_LIFE: Duration = Duration::from_secs(5);

impl Plane {
    /// Sets which ports the user's own rules publish: they are avoided.
    pub fn avoid(&mut self, published: Vec<Published>) {
        self.user_ports = published;
    }

    /// Whether [`reserve`](Self::reserve) needs a new list of the ports on which the gateway itself
    /// listens: to be read without holding the plane, and given to
    /// [`learn_listeners`](Self::learn_listeners).
    #[must_use]
    pub fn needs_listeners(&self, request: &Request) -> bool {
        let stale = |at: Duration| self.now().saturating_sub(at) > LISTENERS_LIFE;
        let known = self.listeners.as_ref();
        request.published && known.is_none_or(|(at, _)| stale(*at))
    }

    /// Sets on which ports the gateway itself listens.
    pub fn learn_listeners(&mut self, listeners: Listeners) {
        self.listeners = Some((self.now(), listeners));
    }

    pub(super) fn choose_port(&mut self, request: &Request) -> Option<u16> {
        let listeners = self
            .listeners
            .as_ref()
            .filter(|_| request.published)
            .map(|(_, listeners)| listeners);
        let holder = |port| {
            let to = SocketAddr::new(request.to, port);
            // Unless the server runs on the gateway: then its own socket is where the pinhole leads.
            let listening = to != request.land
                && listeners.is_some_and(|listeners| listeners.contains(request.to, port));
            let key = PinholeKey {
                from: request.from,
                to,
            };
            let hole = self.holes.at(key).map(|(_, hole)| hole);
            let elsewhere = self.is_in_range_of_other(key, request.land.ip());
            let published = || {
                let takes = |user: &Published| user.takes(request.from, to, request.land);
                request.published && self.user_ports.iter().any(takes)
            };
            // If the same endpoint was announced before, by this session or another one, the new
            // announcement takes the old pinhole's place: the endpoint listens for one connection.
            let hole = hole.filter(|hole| hole.pinhole.land != request.land);
            match hole {
                _ if listening || elsewhere => Holder::Other,
                None if published() => Holder::User,
                None if self.fixed.has(&key) => Holder::Lately,
                None => Holder::Nobody,
                Some(hole) if hole.session != request.session => Holder::Other,
                Some(_) => Holder::Same,
            }
        };
        let wanted = PortRequest {
            announced: request.land.port(),
            published: request.published,
            range: self.config.data_ports.filter(|_| request.from_range),
            start: self.next_port,
            fitting: request.fitting,
        };
        let port = ports::choose(&wanted, holder)?;
        // Another port next time: the peer may still have a connection on this one.
        self.next_port = self.next_port.wrapping_add(1);
        Some(port)
    }

    pub(super) fn check_limits(
        &mut self,
        request: &Request,
        key: PinholeKey,
        now: Duration,
    ) -> Result<(), Error> {
        let own = self.holes.count(request.session);
        let replaces =
            self.holes.at(key).is_some() || own >= self.config.limits.pinholes_per_session;
        let client = client(request);
        self.clients.check(
            client,
            replaces,
            now,
            &self.config.limits,
            &mut self.counters,
        )?;
        if self.holes.len() >= self.config.limits.pinholes && !replaces {
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

    /// The pinhole to evict when there are too many: the oldest one of the client with the most, if
    /// that client has more than `other` will have. So each client gets an equal share.
    fn greediest(&self, other: IpAddr) -> Option<PinholeId> {
        let (client, count) = self.clients.greediest()?;
        let oldest = self.holes.iter().find(|(_, hole)| hole.client == client);
        let (id, _) = oldest?;
        (count > self.clients.pending(other).saturating_add(1)).then_some(id)
    }

    /// Evicts the session's pinhole with this key, and its oldest ones beyond the limit.
    pub(super) fn make_room(&mut self, session: SessionId, key: PinholeKey) {
        if let Some((id, _)) = self.holes.at(key) {
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
        while self.holes.count(session) >= self.config.limits.pinholes_per_session
            && let Some(id) = self.holes.oldest_of(session)
        {
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
    }
}

/// The client whose limits a pinhole counts towards.
pub(super) fn client(request: &Request) -> IpAddr {
    network(match request.mode {
        Mode::Passive => request.from,
        Mode::Active => request.land.ip(),
    })
}

/// What counts as one client: an IPv4 address, or an IPv6 /64 network (RFC 6177).
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
    }
}
