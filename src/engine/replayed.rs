//! What only a replay asks for.
//!
//! In a capture, both ends have the numbers of a stream that nobody edited. A replay edits it. So it
//! must tell the engine what the receiver *would* have acknowledged. And it may learn the name of a
//! connection's inside end when the connection is under way.

use super::endpoints::Endpoints;
use super::{Engine, Side, Tuple};
use crate::stream::Seq;

impl Engine {
    /// What the receiver of `sender`'s stream would acknowledge in place of `ack`, had it received the
    /// edited stream. `None`: the connection isn't known, so nothing is edited in it. `outward`: what
    /// the inside end sends.
    #[must_use]
    pub fn as_received(&self, outward: Tuple, sender: Side, ack: u32) -> Option<u32> {
        let flow = self.flows.get(&Endpoints::from_outward(outward))?;
        Some(flow.as_received(sender, Seq(ack)).0)
    }

    /// Whether a connection is followed, or lingers.
    #[must_use]
    pub fn has(&self, outward: Tuple) -> bool {
        self.flows.contains(&Endpoints::from_outward(outward))
    }

    /// Gives a connection another name. False if it isn't known, or if another connection has the
    /// name.
    pub fn rename(&mut self, from: Tuple, to: Tuple) -> bool {
        let (from, to) = (Endpoints::from_outward(from), Endpoints::from_outward(to));
        if self.flows.contains(&to) {
            return false;
        }
        let Some(flow) = self.flows.remove(&from) else {
            return false;
        };
        self.names.forget_flow(&from);
        self.flows.insert(to, flow);
        true
    }
}
