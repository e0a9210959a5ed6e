//! The NAT plane: what conntrack knows, pinholes and the rules that carry them.
//!
//! [`pinhole`] says what a data connection's hole is; [`conntrack`] asks the kernel how the two
//! ends of a control connection see each other; the backends put holes into the kernel.

pub mod backend;
pub mod conntrack;
pub mod pinhole;
pub mod rules;
pub mod tables;
pub mod xtables;
