//! `ftpalg`: a userspace FTP application-layer gateway for Linux.
//!
//! The map of the house, from the wire inwards and out again:
//!
//! | module | lives there | does not |
//! |---|---|---|
//! | [`wire`] | IPv4/IPv6/TCP views, setters, options, checksums | anything that spans two packets |
//! | [`stream`] | sequence numbers, edits, one direction of an edited TCP stream | FTP |
//! | [`ftp`] | lines, commands, replies, host-port codecs, the session machine | packets |
//! | [`engine`] | flows: stream + ftp + policy → verdicts and pinhole requests | sockets, clocks |
//! | [`net`] | marks and ranges of ports | what they are used for |
//! | [`netlink`] | netlink message codec and socket | what the messages mean to FTP |
//! | [`queue`] | the NFQUEUE socket's end, and what the kernel tells of queues | decisions |
//! | [`conntrack`] | look-ups and events of connections | pinholes |
//! | [`firewall`] | our steering and accept rules, reading the user's, the tools of iptables | pinholes, FTP |
//! | [`pinholes`] | their life, ports, limits, and the backends that put them into the kernel | FTP text |
//! | [`daemon`] | start-up, workers, signals, control socket, output | rules' text |
//! | [`cli`] | one file per subcommand | work |
//!
//! [`wire`], [`stream`], [`ftp`] and [`engine`] are pure: they are told bytes, time and the
//! kernel's answers, and return what to do. The other modules are the shell around them. Each imports
//! only from some of those above it; `tests/core/layers.rs` knows which.

#![forbid(unsafe_code)]

pub mod cli;
pub mod conntrack;
pub mod daemon;
pub mod engine;
pub mod firewall;
pub mod ftp;
pub mod net;
pub mod netlink;
pub mod pinholes;
pub mod queue;
pub mod stream;
pub mod wire;
