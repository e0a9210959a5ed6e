//! What the tests (`tests/`), the fuzz targets (`fuzz/`) and the benchmarks (`benches/`) share.
//!
//! | module | lives there |
//! |---|---|
//! | [`packet`] | TCP segments as values, written to packets and read back |
//! | [`gateway`] | the double of the engine's `Gateway`: a kernel that says yes, or no more than it is told |
//! | [`trace`] | a conversation through the engine, packet by packet |
//! | [`tcp`] | two models of TCP with the engine between them: a real one (smoltcp) over bad links, and one whose every step the fuzzer decides |
//! | [`transcript`] | a dialogue through the session machine, in any pieces |
//! | [`mod@line`] | lines that mean something, for properties |
//! | [`checks`] | what must hold for any input: the bodies of the fuzz targets |
//! | [`lab`] | network namespaces with real servers, clients and gateways; needs root |
//! | [`holes`] | pinholes, and connections through them, for the tests of the two backends |
//! | [`random`] | chance that is the same each time |
//! | [`pcap`] | captures in every form that capture programs write |
//! | [`awake`] | processors that don't sleep while something is measured |
//! | [`paths`] | where the program, the repository and the reports are |
//!
//! A failure here is a failure of the test that called, so helpers panic.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod awake;
pub mod checks;
pub mod gateway;
pub mod holes;
pub mod lab;
pub mod line;
pub mod packet;
pub mod paths;
pub mod pcap;
pub mod random;
pub mod tcp;
pub mod trace;
pub mod transcript;

/// A turn for one test of its process: the next one begins when this is dropped.
///
/// For tests that nothing should run beside (`tests/alone/`), however many threads the harness has.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A test that failed has had its turn, too.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
