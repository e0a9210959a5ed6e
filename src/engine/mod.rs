//! The sans-IO core's front door: packets, time and the kernel's answers in; verdicts out.

pub mod event;
pub mod gateway;
