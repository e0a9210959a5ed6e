//! FTP's control connection: lines, commands, replies, addresses and the session machine.
//!
//! No packets here: text in stream order comes in, and steps (pass, wait, change) go out.
//!
//! | file | holds |
//! |---|---|
//! | `hostport` | reading and writing addresses |
//! | `fit` | rewriting an address without changing the length of its line |
//! | `command`, `reply` | recognising the lines of either peer |
//! | `line` | the current line of a stream |
//! | `mode` | active or passive |
//! | `nat64` | IPv6-only clients of IPv4-only servers (RFC 6384) |
//! | `text` | serialises the text that a session keeps |
//! | `waiting` | matching replies to commands |
//! | `policy` | what is allowed |
//! | `session` | the machine: which bytes pass, wait or change; `session/client`, `session/server`: the lines of either peer; `session/tls`: implicit FTPS; `session/nat64`: what is translated for IPv6-only clients; `session/step`: its interface |

#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod command;
pub mod fit;
pub mod hostport;
mod line;
mod mode;
pub mod nat64;
pub mod policy;
mod reply;
pub mod session;
mod text;
mod waiting;

pub use mode::Mode;
