//! The daemon: start-up, signals, control socket and output.

pub mod control;
