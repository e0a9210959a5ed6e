//! The NAT plane: what conntrack knows, pinholes and the rules that carry them.
//!
//! [`pinhole`] says what a data connection's hole is; [`conntrack`] asks the kernel how the two
//! ends of a control connection see each other; [`ports`] chooses public ports; the [`backend`]s put
//! holes into the kernel; [`plane`] keeps track of them all. [`tables`] tells who else uses nf_tables;
//! [`watch`] notices that somebody changes rules.

pub mod rules;
pub mod tables;
pub mod watch;
pub mod xtables;
