//! FTP's control connection: lines, commands, replies, addresses and the session machine.
//!
//! No packets here: text in stream order comes in, and what to do with it goes out.

pub mod session;
