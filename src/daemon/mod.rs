//! The daemon: start-up, signals, control socket and output.

pub mod config;
pub mod control;
pub mod output;
pub mod plane;
pub mod worker;
