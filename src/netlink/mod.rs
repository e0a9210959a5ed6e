//! Netlink: message codec and socket. Knows bytes, not FTP.
//!
//! [`codec`] builds and parses messages and attributes (pure, no panics on any input);
//! [`filter`] has the kernel choose which messages a socket gets;
//! `dump` asks families other than netfilter's, for
//! [`links`], which lists interfaces, and [`listeners`], the sockets that listen;
//! [`nftables`] knows the numbers and expressions of nf_tables;
//! [`socket`] exchanges them with the kernel's netfilter subsystems. Every call is bounded in time.

pub mod codec;
mod dump;
pub mod filter;
pub mod links;
pub mod listeners;
pub mod nftables;
pub mod socket;
