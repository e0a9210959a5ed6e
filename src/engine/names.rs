//! The other names of connections.
//!
//! A flow goes by the two ends as its inside end writes them. Towards the inside, a packet is
//! looked at before its source is translated, so it may name the outside end differently: by the
//! address that it has on its own side of the gateway. That happens where the gateway source-NATs
//! clients towards a server inside, or leads clients inside to a server that they didn't dial.
//!
//! Where both ends are inside (two networks, a hairpin, the gateway itself and its inside), a
//! connection passes at either end, under four names in all. It is edited at the server's end, and
//! passes at the client's.

use std::collections::HashMap;
use std::time::Duration;

use super::endpoints::Endpoints;
use super::table::{EndpointTable, Walk};

/// After this time without a packet the client's end of such a connection is forgotten.
const IDLE: Duration = Duration::from_secs(3600);

/// What a name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The flow of that name.
    Flow(Endpoints),
    /// A connection that is edited at its other end.
    Elsewhere { seen: Duration },
}

/// All names that aren't those of flows themselves.
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

    /// What the name means; a connection that is edited elsewhere was seen now.
    pub(super) fn meaning(&mut self, ends: &Endpoints, now: Duration) -> Option<Meaning> {
        let meaning = self.meanings.get_mut(ends)?;
        if let Meaning::Elsewhere { seen } = meaning {
            *seen = now;
        }
        Some(*meaning)
    }

    /// The flow's own name.
    pub(super) fn flow(&self, ends: Endpoints) -> Endpoints {
        match self.meanings.get(&ends) {
            Some(Meaning::Flow(flow)) => *flow,
            _ => ends,
        }
    }

    /// Gives a name a meaning, unless there are `max` already.
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

    /// Goes on with a walk, and forgets quiet connections that are edited elsewhere. The name of a
    /// flow goes with the flow.
    pub(super) fn forget(&mut self, walk: &mut Walk, now: Duration) {
        self.meanings.sweep(walk, |_, meaning| match meaning {
            Meaning::Flow(_) => true,
            Meaning::Elsewhere { seen } => now.saturating_sub(*seen) < IDLE,
        });
    }
}
