//! Packets as bytes: validated views, in-place setters, TCP options and checksums.
//!
//! [`Layout::parse`] is the gate: what it accepts, every other function here can work on without
//! a panic. Nothing here spans two packets.

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod checksum;
mod layout;
mod options;
mod segment;

pub use checksum::{Sum, adjust};
pub use layout::{Layout, Reject};
pub use options::{Options, SackBlock, blank_multipath, for_each_sack};
pub use segment::{Flags, Segment, SegmentMut};
