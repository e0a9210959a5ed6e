//! TCP stream editing: sequence numbers, edits and one direction of an edited stream. No FTP.
//!
//! A sender's bytes are numbered in *original* sequence space; what its receiver gets is numbered
//! in *edited* space. [`Half`] keeps the relation between the two exactly, for as long as a byte
//! may be retransmitted, and says what to put into each packet.
//!
//! # Early acknowledgements
//!
//! Bytes that may be the middle of an address are held. A sender that waits for the
//! acknowledgement of a held piece before it goes on (Nagle, RFC 9293 §3.7.4) would never send
//! what completes it. So as soon as the receiver acknowledges everything that was sent on to it,
//! the held bytes are acknowledged to their sender as well, and from then on `Half` guarantees
//! them: every later segment of the sender's carries them until the receiver has them. A segment
//! that leaves nothing to send on goes out as a one-byte repetition of the last byte, which the
//! receiver answers at once (RFC 9293 §3.10.7.4); that answer carries the early acknowledgement.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod edits;
mod half;
mod records;
mod seq;

pub use half::{Emit, Half, Intake, Limits, Reset};
pub use records::Records;
pub use seq::Seq;
