//! FTP's control connection: lines, commands, replies, addresses and the session machine.
//!
//! No packets here: text in stream order comes in, and what to do with it goes out.
//!
//! | file | holds |
//! |---|---|
//! | `hostport` | the ways an address is written, read strictly and written back |
//! | `fit` | how a rewritten address keeps the length of its line |
//! | `command`, `reply` | what a line of either peer is |
//! | `line` | the line of a stream that isn't over yet |
//! | `mode` | active or passive |
//! | `waiting` | the commands that wait for their reply |
//! | `policy` | what is allowed |
//! | `session` | the machine: which bytes pass, wait or change; `session/client`, `session/server`: what either peer's lines do to it; `session/step`: its interface |

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod command;
pub mod fit;
pub mod hostport;
mod line;
mod mode;
pub mod policy;
mod reply;
pub mod session;
mod waiting;

pub use mode::Mode;
