//! Attacks on the gateway: each is tried on the kernel's helper and on `ftpalg`.
//!
//! The table goes to `target/lab-report/attacks.txt`. That `ftpalg` holds is asserted: nobody gets
//! through, and no pinhole leads to anything but the two ends of its control connection. That the
//! kernel's helper falls is asserted where it is known to: it shows that the attack is one. Where
//! there is no such helper, its column says so.
#![allow(unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

#[path = "attacks/address.rs"]
mod address;
#[path = "attacks/arena.rs"]
mod arena;
#[path = "attacks/bounce.rs"]
mod bounce;
#[path = "attacks/echo.rs"]
mod echo;
#[path = "attacks/floods.rs"]
mod floods;
#[path = "attacks/packets.rs"]
mod packets;
#[path = "attacks/pinhole.rs"]
mod pinhole;
#[path = "attacks/slipstream.rs"]
mod slipstream;
