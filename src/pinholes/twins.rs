//! Pinholes with a twin: a translator between IPv6 and IPv4 (NAT64) is on the way of the data
//! connection, which passes conntrack on both sides of it. Each side needs a pinhole of its own.
//!
//! The two open together, and close together if they aren't used. Each is used by the connection of its
//! own family. Only the first one is reported: there is one data connection.

use std::time::Duration;

use super::{Pinhole, PinholeKey, Plane};
use crate::engine::gateway::{PinholeId, Request, Twin};

impl Plane {
    /// The twin of a pending pinhole.
    #[must_use]
    pub fn twin(&self, id: PinholeId) -> Option<PinholeId> {
        self.twins.get(&id).copied()
    }

    /// Reserves the twin of a pinhole. It takes the place of one with the same key, which is for the
    /// same client.
    pub(super) fn reserve_twin(
        &mut self,
        of: PinholeId,
        request: &Request,
        twin: &Twin,
        deadline: Duration,
    ) {
        let key = PinholeKey {
            from: twin.from,
            to: twin.to,
        };
        if let Some((id, _)) = self.holes.at(key) {
            self.counters.superseded += 1;
            self.drop_hole(id);
        }
        let pinhole = Pinhole {
            from: twin.from,
            to: twin.to,
            land: twin.land,
            as_source: twin.as_source,
            mark: twin.mark,
        };
        let id = self.insert_reserved(request, pinhole, deadline, true);
        self.twins.insert(of, id);
    }
}
