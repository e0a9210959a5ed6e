//! Packets as bytes: validated views, in-place setters, TCP options and checksums.
//!
//! Contract: after [`Packet::parse`](crate::wire) succeeded, no accessor can panic.
