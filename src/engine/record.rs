//! What a successor must know of a connection that it can't [join](super::joining) by its mark alone,
//! as bytes.
//!
//! The bytes are for this program's next process, of whatever version. [`FORMAT`] says how to read
//! them, and changes with any type that is in them.

use serde::{Deserialize, Serialize};

use super::Side;
use super::endpoints::Endpoints;
use super::flow::{Context, Flow};

/// The number of the format. Who knows another one can't read a record.
pub const FORMAT: u32 = 4;

/// A record. `F` is the flow, borrowed or owned.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record<F> {
    /// The flow's key.
    pub(super) ends: Endpoints,
    pub(super) state: State<F>,
}

/// The state of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum State<F> {
    /// All there is to know.
    Exact(F),
    /// It passes unread under TLS, its numbers are the same on both sides, and its client reaches a
    /// range of the server's ports.
    Tls {
        /// The hook that the client's packets come through.
        client: Side,
    },
}

impl Record<Box<Flow>> {
    /// The hook that the client's packets come through.
    pub(super) fn client(&self) -> Side {
        match &self.state {
            State::Exact(flow) => flow.client,
            State::Tls { client } => *client,
        }
    }
}

/// Keeps a record. Returns whether it is kept.
pub(super) fn keep(
    ends: &Endpoints,
    name: Option<Endpoints>,
    state: State<&Flow>,
    cx: &mut Context<'_>,
) -> bool {
    let record = Record { ends: *ends, state };
    let name = name.map(|name| name.outward());
    postcard::to_allocvec(&record)
        .is_ok_and(|bytes| cx.gateway.keep_record(ends.outward(), name, &bytes).is_ok())
}

/// Reads a record. `None`: it is none.
pub(super) fn read(bytes: &[u8]) -> Option<Record<Box<Flow>>> {
    let record: Record<Box<Flow>> = postcard::from_bytes(bytes).ok()?;
    match &record.state {
        State::Exact(flow) if !flow.is_sound() => None,
        _ => Some(record),
    }
}
