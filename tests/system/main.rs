//! All of it: `ftpalg` as a program, with real FTP servers and clients between network namespaces. Needs
//! root, and what `scripts/test` installs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests that fails is a test that fails"
)]

mod accounting;
mod advertise_name;
mod bypass;
mod cli;
mod containers;
mod doctor;
mod environment;
mod events;
mod filtering;
mod firewalls;
mod ftps;
mod gateways;
mod guard;
mod hairpin;
mod journal;
mod lifecycle;
mod limits;
mod local;
mod metrics;
mod nat64;
mod nat66;
mod no_tools;
mod package;
mod ports;
mod pressure;
mod programs;
mod real_replies;
mod recipes;
mod refusals;
mod reload;
mod replay;
mod restart;
mod restart_ways;
mod rootless;
mod scripts;
mod segments;
mod service;
mod soak;
mod starting;
mod transfers;
mod two_gateways;
mod urgent;
mod watch;
