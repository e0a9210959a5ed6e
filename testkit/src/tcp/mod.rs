//! Two models of TCP, with the engine between their ends, in virtual time.
//!
//! [`simulator`] has a real implementation (smoltcp's) over links with weather: what applications and
//! a real TCP do by themselves. [`endpoint`] is a TCP without timers or algorithms: each of its steps is
//! somebody else's decision (the fuzzer's, in [`checks::engine`](crate::checks::engine)), and it asserts
//! whatever a receiver may rely on.

pub mod endpoint;
pub mod simulator;
