//! TCP stream editing: sequence numbers, edits and one direction of an edited stream. No FTP.
//!
//! A sender's bytes are numbered in *original* sequence space; what its receiver gets is numbered
//! in *edited* space. [`Half`] keeps the relation between the two exactly, for as long as a byte
//! may be retransmitted, and says what to put into each packet.
//!
//! # Early acknowledgements
//!
//! Bytes that may be the middle of an address are held. Under Nagle's algorithm (RFC 9293 §3.7.4),
//! a sender waits for the acknowledgement of a held piece before it sends what completes it. So the
//! held bytes are acknowledged to their sender early: as soon as the receiver acknowledges
//! everything that was sent on to it. From then on `Half` guarantees them. Every later segment of
//! the sender carries them, until the receiver has them.
//!
//! A segment of which nothing can be sent on becomes a probe: it repeats the last byte. The
//! receiver answers that at once (RFC 9293 §3.10.7.4), and its answer carries the early
//! acknowledgement.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod edits;
mod half;
mod records;
mod seq;

pub use half::{BufferLimits, Emit, Half, Intake, Reset};
pub use records::Records;
pub use seq::Seq;
