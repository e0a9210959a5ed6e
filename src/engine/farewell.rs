//! The end of the gateway: what becomes of the connections that it follows.
//!
//! Most have the same numbers on both sides. They go on by themselves, and a successor
//! [joins](super::joining) them. A connection whose numbers differ can't go on without a gateway that
//! knows by how much. If no successor will find its [record](super::record), it is ended in a way
//! that both ends notice at once: with a RST to each.
//!
//! The caller sends these. A RST towards the inside passes the hook of [`Side::Ingress`] like the
//! other packets of the connection. There it gets the number that the inside end expects.

use super::endpoints::Endpoints;
use super::flow::Flow;
use super::gateway::Gateway;
use super::record::{self, State};
use super::{Engine, Side, Tuple};

/// A RST to be sent to one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rst {
    /// The connection's packets from the inside end, as that end writes them.
    pub outward: Tuple,
    /// Which way the RST goes: [`Side::Egress`] to the outside end.
    pub side: Side,
    /// Its sequence number.
    pub seq: u32,
}

impl Engine {
    /// Prepares for a successor, who can neither follow a connection of whose handshake it sees only a
    /// part, nor understand
    /// [some replies](crate::ftp::session::Session::awaits_telling_reply) if it hasn't seen what they
    /// answer. So no further SYN or command goes on, but in sessions that are in such a state. Returns
    /// whether there are any.
    ///
    /// What doesn't go on is sent again by its sender, so the successor sees it.
    pub fn hold_commands(&mut self) -> bool {
        self.holding = true;
        let mut flows = self.flows.iter();
        !self.half_open.is_empty() || flows.any(|(_, flow)| flow.awaits_telling_reply())
    }

    /// From now on the numbers of no connection begin to differ: a packet that would change that
    /// doesn't go on. Ends the connections whose numbers differ already, and returns the RSTs that
    /// tell their ends. `handover`: a successor comes, so those with a record go on.
    ///
    /// An end may expect another number than is known here, since it got data just now. It answers a
    /// RST with the number that it expects. So call this again after a round trip, and send those
    /// RSTs that are new.
    pub fn farewell(&mut self, handover: bool, gateway: &mut dyn Gateway) -> Vec<Rst> {
        self.ending = true;
        let mut resets = Vec::new();
        for (ends, flow) in self.flows.iter_mut() {
            if flow.dismiss(handover, gateway) {
                flow.take_word_back(ends, gateway);
                resets.extend(resets_of_flow(ends, flow));
            }
        }
        resets
    }
}

/// The RSTs that end a connection whose engine is gone, by its record. None if it can do without: its
/// numbers are the same on both sides.
#[must_use]
pub fn resets_of_record(bytes: &[u8]) -> Vec<Rst> {
    let Some(record) = record::read(bytes) else {
        return Vec::new();
    };
    match record.state {
        State::Exact(mut flow) if flow.can_be_dismissed() => {
            resets_of_flow(&record.ends, &mut flow)
        }
        State::Exact(_) | State::Tls { .. } => Vec::new(),
    }
}

fn resets_of_flow(ends: &Endpoints, flow: &mut Flow) -> Vec<Rst> {
    let outward = ends.outward();
    let mut resets = Vec::new();
    for side in [Side::Egress, Side::Ingress] {
        for (expected, given) in flow.reset_numbers(side) {
            // Outwards, conntrack knows the receiver's numbers. Inwards, it knows the sender's; the
            // receiver's are needed where no hook is on the way (`--local`).
            let first = match side {
                Side::Egress => expected,
                Side::Ingress => given,
            };
            for seq in [first, expected] {
                let reset = Rst {
                    outward,
                    side,
                    seq: seq.0,
                };
                if !resets.contains(&reset) {
                    resets.push(reset);
                }
            }
        }
    }
    resets
}
