//! Counts what each client has, and holds it to its limits: sessions, pending pinholes, pinholes per
//! minute.
//!
//! A client is an IPv4 address, or an IPv6 /64 network. The counts are those of the whole daemon, all
//! workers together. As long as the limits per client are below the totals, no client can use up what
//! others need.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::admission::network;
use super::{PlaneCounters, PlaneLimits};
use crate::engine::gateway::{Error, SessionId};

/// The time to which the rates refer.
const MINUTE: Duration = Duration::from_secs(60);
/// How many clients are remembered for their rate alone, without sessions and pinholes.
const MAX_REMEMBERED: usize = 65_536;

/// All clients with sessions or pinholes, or with pinholes within the last minute.
#[derive(Debug, Default)]
pub(super) struct Clients {
    clients: HashMap<IpAddr, Client>,
    sessions: HashMap<SessionId, IpAddr>,
    /// How many pinholes are pending, of all clients together.
    pending: usize,
    rate: Rate,
}

#[derive(Debug, Default)]
struct Client {
    sessions: usize,
    pending: usize,
    rate: Rate,
}

/// Counts pinholes in windows of a minute: the first pinhole begins one.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    since: Duration,
    count: u32,
}

impl Rate {
    /// How many there were in this window. Begins a new one if it is over.
    fn count(&mut self, now: Duration) -> u32 {
        if now.saturating_sub(self.since) >= MINUTE || self.count == 0 {
            *self = Self {
                since: now,
                count: 0,
            };
        }
        self.count
    }

    fn is_over(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) >= MINUTE
    }
}

impl Clients {
    /// Counts a session that begins.
    ///
    /// # Errors
    /// [`Error::Limit`]: there are too many.
    pub(super) fn admit(
        &mut self,
        session: SessionId,
        client: IpAddr,
        now: Duration,
        limits: &PlaneLimits,
        counters: &mut PlaneCounters,
    ) -> Result<(), Error> {
        let client = network(client);
        let own = self.clients.get(&client).map_or(0, |c| c.sessions);
        if own >= limits.sessions_per_client {
            counters.limited_sessions_per_client += 1;
            return Err(Error::Limit("sessions-per-client"));
        }
        if self.sessions.len() >= limits.sessions {
            counters.limited_sessions += 1;
            return Err(Error::Limit("sessions"));
        }
        if self.sessions.insert(session, client).is_none() {
            self.client(client, now).sessions += 1;
        }
        Ok(())
    }

    /// A session ended. Unknown ones are ignored.
    pub(super) fn ended(&mut self, session: SessionId) {
        if let Some(address) = self.sessions.remove(&session)
            && let Some(client) = self.clients.get_mut(&address)
        {
            client.sessions = client.sessions.saturating_sub(1);
            self.tidy(address);
        }
    }

    /// Whether a client may reserve another pinhole now. `replaces`: it takes the place of one that is
    /// pending, so the number of pending ones doesn't grow.
    ///
    /// # Errors
    /// [`Error::Limit`]: there are too many.
    pub(super) fn check(
        &mut self,
        client: IpAddr,
        replaces: bool,
        now: Duration,
        limits: &PlaneLimits,
        counters: &mut PlaneCounters,
    ) -> Result<(), Error> {
        let known = self.clients.get_mut(&client);
        let (own, rate) = known.map_or((0, 0), |c| (c.pending, c.rate.count(now)));
        let (what, counter) = if own >= limits.pinholes_per_client && !replaces {
            ("pinholes-per-client", &mut counters.limited_per_client)
        } else if rate >= limits.pinholes_per_client_per_minute {
            (
                "pinholes-per-client-per-minute",
                &mut counters.limited_rate_per_client,
            )
        } else if self.rate.count(now) >= limits.pinholes_per_minute {
            ("pinholes-per-minute", &mut counters.limited_rate)
        } else {
            return Ok(());
        };
        *counter += 1;
        counters.limited += 1;
        Err(Error::Limit(what))
    }

    /// The client with the most pending pinholes, and how many it has.
    pub(super) fn greediest(&self) -> Option<(IpAddr, usize)> {
        let most = self.clients.iter().max_by_key(|(_, c)| c.pending)?;
        Some((*most.0, most.1.pending))
    }

    /// How many pinholes of a client are pending.
    pub(super) fn pending(&self, client: IpAddr) -> usize {
        self.clients.get(&client).map_or(0, |c| c.pending)
    }

    /// A pinhole was reserved.
    pub(super) fn reserved(&mut self, client: IpAddr, now: Duration) {
        self.rate.count(now);
        self.rate.count = self.rate.count.saturating_add(1);
        let client = self.client(client, now);
        client.rate.count(now);
        client.rate.count = client.rate.count.saturating_add(1);
        client.pending += 1;
        self.pending += 1;
    }

    /// A pinhole isn't pending any more.
    pub(super) fn settled(&mut self, client: IpAddr) {
        if let Some(known) = self.clients.get_mut(&client) {
            self.pending -= usize::from(known.pending > 0);
            known.pending = known.pending.saturating_sub(1);
            self.tidy(client);
        }
    }

    fn client(&mut self, address: IpAddr, now: Duration) -> &mut Client {
        // Where there are so many, a walk through all of them forgets as many as this.
        let bound = (self.sessions.len())
            .saturating_add(self.pending)
            .saturating_add(MAX_REMEMBERED);
        if self.clients.len() >= bound && !self.clients.contains_key(&address) {
            let has = |client: &Client| client.sessions > 0 || client.pending > 0;
            self.clients
                .retain(|_, client| has(client) || !client.rate.is_over(now));
            if self.clients.len() >= bound {
                self.clients.retain(|_, client| has(client));
            }
        }
        self.clients.entry(address).or_default()
    }

    /// Forgets a client without sessions, pinholes and a rate.
    fn tidy(&mut self, address: IpAddr) {
        let nothing = |c: &Client| c.sessions == 0 && c.pending == 0 && c.rate.count == 0;
        if self.clients.get(&address).is_some_and(nothing) {
            self.clients.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        let n = u32::try_from(n).unwrap();
        IpAddr::from(n.to_be_bytes())
    }

    #[test]
    fn sessions_are_limited_for_each_client_and_in_total() {
        let limits = PlaneLimits {
            sessions: 5,
            sessions_per_client: 3,
            ..PlaneLimits::default()
        };
        let mut clients = Clients::default();
        let mut counters = PlaneCounters::default();
        let mut admit = |clients: &mut Clients, n, client| {
            clients
                .admit(
                    SessionId(n),
                    address(client),
                    Duration::ZERO,
                    &limits,
                    &mut counters,
                )
                .is_ok()
        };
        let admitted: Vec<_> = (0..5).map(|n| admit(&mut clients, n, 1)).collect();
        assert_eq!(admitted, [true, true, true, false, false]);
        // Another one has what is left.
        assert!(admit(&mut clients, 10, 2) && admit(&mut clients, 11, 2));
        assert!(!admit(&mut clients, 12, 2));
        clients.ended(SessionId(0));
        clients.ended(SessionId(0));
        clients.ended(SessionId(3));
        assert!(admit(&mut clients, 13, 1) && !admit(&mut clients, 14, 1));
        assert_eq!(counters.limited_sessions_per_client, 3);
        assert_eq!(counters.limited_sessions, 1);
        for n in 0..20 {
            clients.ended(SessionId(n));
        }
        assert!(clients.clients.is_empty() && clients.sessions.is_empty());
    }

    #[test]
    fn a_session_that_needs_room_makes_old_rates_forgotten_only() {
        let limits = PlaneLimits {
            pinholes_per_client_per_minute: 1,
            ..PlaneLimits::default()
        };
        let mut clients = Clients::default();
        let mut counters = PlaneCounters::default();
        let now = 2 * MINUTE;
        let mut admit = |clients: &mut Clients, n| {
            let client = address(MAX_REMEMBERED + n);
            let session = SessionId(n as u64);
            clients.admit(session, client, now, &limits, &mut counters)
        };
        // As many as there may be while there is a session, and then there is none.
        admit(&mut clients, 1).unwrap();
        let old = (1..MAX_REMEMBERED).map(|n| (n, Duration::ZERO));
        for (n, at) in old.chain([(0, now), (MAX_REMEMBERED + 1, now)]) {
            clients.reserved(address(n), at);
            clients.settled(address(n));
        }
        clients.ended(SessionId(1));
        admit(&mut clients, 2).unwrap();
        assert!(clients.clients.len() < MAX_REMEMBERED, "room was made");
        let again = clients.check(address(0), false, now, &limits, &mut counters);
        assert!(again.is_err(), "its rate still counts");
    }

    #[test]
    fn memory_is_bounded() {
        let mut clients = Clients::default();
        for n in 0..3 * MAX_REMEMBERED {
            clients.reserved(address(n), Duration::ZERO);
            if n % MAX_REMEMBERED > 0 {
                clients.settled(address(n));
            }
        }
        assert!(clients.clients.len() <= MAX_REMEMBERED + clients.pending);
        assert_eq!(
            clients.clients.values().filter(|c| c.pending > 0).count(),
            3
        );
        assert_eq!(clients.pending, 3);
        for n in 0..3 {
            clients.settled(address(n * MAX_REMEMBERED));
            clients.settled(address(n * MAX_REMEMBERED));
        }
        assert_eq!(clients.pending, 0);
    }

    /// As when those of an earlier process are adopted. With a walk for each, it takes minutes.
    #[test]
    fn many_clients_with_pinholes_cost_no_walks() {
        let mut clients = Clients::default();
        (0..4 * MAX_REMEMBERED).for_each(|n| clients.reserved(address(n), Duration::ZERO));
        assert_eq!(clients.clients.len(), 4 * MAX_REMEMBERED);
    }
}
