//! Attacks on the gateway: each is tried on the kernel's helper and on `ftpalg`.
//!
//! The table goes to `target/lab-report/attacks.txt`. That `ftpalg` holds is asserted: nobody gets
//! through, and no pinhole leads to anything but the two ends of its control connection. That the
//! kernel's helper falls is asserted where it is known to: it shows that the attack is one. Where
//! there is no such helper, its column says so.

mod address;
mod arena;
mod bounce;
mod echo;
mod floods;
mod packets;
mod pinhole;
mod slipstream;
