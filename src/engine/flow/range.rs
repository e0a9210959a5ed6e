//! Ranges of ports for sessions under TLS: when the gateway is asked to open or renew one.

use super::{Context, FINS, Flow};
use crate::engine::announce;
use crate::engine::endpoints::Endpoints;
use crate::engine::event::Event;
use crate::engine::gateway::Error;

/// A session's range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::engine) enum Range {
    /// It has none.
    None,
    /// It was opened or renewed when data last came from the client.
    Open,
    /// It couldn't be.
    Refused,
}

impl Flow {
    /// The session goes on under TLS, and announcements can't be read any more. To be called before
    /// the packet goes on that says so: the range must be open before it is used.
    pub(in crate::engine) fn tls_begins(&mut self, ends: &Endpoints, cx: &mut Context<'_>) {
        if cx.config.tls_range && self.no_pinholes().is_none() {
            self.open_range(ends, cx);
        } else {
            cx.gateway.event(Event::TlsPassed {
                session: self.id,
                client: ends.client_and_server(self.client).0.ip(),
            });
        }
    }

    /// Data came from the client: its range stays open, or opens again.
    pub(in crate::engine) fn renew_range(&mut self, ends: &Endpoints, cx: &mut Context<'_>) {
        if self.range != Range::None && self.signs & FINS == 0 && !self.is_closed() {
            self.open_range(ends, cx);
        }
    }

    fn open_range(&mut self, ends: &Endpoints, cx: &mut Context<'_>) {
        let server = self.client.opposite();
        let before = self.range;
        match announce::open_range(cx.gateway, self.id, ends, server) {
            Ok(()) => self.range = Range::Open,
            Err(Error::Closing) => _ = self.freeze(),
            Err(error) => {
                self.range = Range::Refused;
                // Reported once, though it is tried with each packet.
                if before != Range::Refused {
                    self.count_refusal("TLS", error.to_string(), None, false, cx);
                }
            }
        }
    }
}
