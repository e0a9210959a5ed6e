//! Tests that nothing should run beside: they load the machine, measure it, or need the process for
//! themselves. Needs root.
//!
//! Each begins with [`testkit::turn`], so that they run one after the other, however many threads the
//! harness has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests that fails is a test that fails"
)]

mod concurrent;
mod queue;
