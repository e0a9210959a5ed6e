//! The other names of connections.
//!
//! The key of a flow is the two ends as its inside end writes them. Towards the inside, a packet
//! passes our hook before its source is translated. So it may carry another address of the outside
//! end. That happens in two cases: the gateway source-NATs clients towards a server inside, or it
//! redirects clients inside to another server than they dialled.
//!
//! Where both ends are inside (two networks, a hairpin, the gateway itself and its inside), a
//! connection passes the hooks of both ends, under four names in all. It is edited at the server's
//! end. At the client's it passes unmodified.

use std::collections::HashMap;
use std::time::Duration;

use super::endpoints::Endpoints;
use super::table::{EndpointTable, Walk};

/// How long the names at the client's end of such a connection are kept without a packet.
const IDLE: Duration = Duration::from_secs(3600);

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The flow with that key.
    Flow(Endpoints),
    /// A connection that is edited at its other end.
    Elsewhere { seen: Duration },
}

/// All names but the keys of flows.
#[derive(Debug, Default)]
pub(super) struct Names {
    meanings: EndpointTable<Meaning>,
    /// The other name of each flow that has one.
    of_flows: HashMap<Endpoints, Endpoints>,
}

impl Names {
    pub(super) fn is_empty(&self) -> bool {
        self.meanings.is_empty()
    }

    /// What a packet's name means. Notes that a connection that is edited elsewhere was seen.
    pub(super) fn meaning(&mut self, ends: &Endpoints, now: Duration) -> Option<Meaning> {
        let meaning = self.meanings.get_mut(ends)?;
        if let Meaning::Elsewhere { seen } = meaning {
            *seen = now;
        }
        Some(*meaning)
    }

    /// The key of the flow with that name; the name itself if it isn't known.
    pub(super) fn flow(&self, ends: Endpoints) -> Endpoints {
        match self.meanings.get(&ends) {
            Some(Meaning::Flow(flow)) => *flow,
            _ => ends,
        }
    }

    /// The other name of a flow, which packets towards the inside give it.
    pub(super) fn of_flow(&self, flow: &Endpoints) -> Option<Endpoints> {
        self.of_flows.get(flow).copied()
    }

    /// Remembers what a name means, unless there are `max` names already.
    pub(super) fn insert(&mut self, ends: Endpoints, meaning: Meaning, max: usize) {
        if self.meanings.len() >= max && !self.meanings.contains(&ends) {
            return;
        }
        self.remove(&ends);
        if let Meaning::Flow(flow) = meaning {
            self.forget_flow(&flow);
            self.of_flows.insert(flow, ends);
        }
        self.meanings.insert(ends, meaning);
    }

    pub(super) fn contains(&self, ends: &Endpoints) -> bool {
        self.meanings.contains(ends)
    }

    /// Forgets the other name of a flow.
    pub(super) fn forget_flow(&mut self, flow: &Endpoints) {
        if let Some(name) = self.of_flows.remove(flow) {
            self.meanings.remove(&name);
        }
    }

    pub(super) fn remove(&mut self, ends: &Endpoints) {
        if let Some(Meaning::Flow(flow)) = self.meanings.remove(ends) {
            self.of_flows.remove(&flow);
        }
    }

    /// A walk through all names.
    pub(super) fn walk(&self) -> Walk {
        self.meanings.walk()
    }

    /// Visits the next slice, and forgets quiet connections that are edited elsewhere. The name of
    /// a flow is forgotten with the flow.
    pub(super) fn forget(&mut self, walk: &mut Walk, now: Duration) {
        self.meanings.sweep(walk, |_, meaning| match meaning {
            Meaning::Flow(_) => true,
            Meaning::Elsewhere { seen } => now.saturating_sub(*seen) < IDLE,
        });
    }
}
