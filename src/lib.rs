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
//! | [`nat`] | conntrack look-ups, pinhole backends, port allocation, steering rules | FTP text |
//! | [`netlink`] | netlink message codec and socket | what the messages mean to FTP |
//! | [`queue`] | the NFQUEUE worker | decisions |
//! | [`daemon`] | start-up, signals, control socket, output | rules' text |
//! | [`cli`] | one file per subcommand | work |
//!
//! [`wire`], [`stream`], [`ftp`] and [`engine`] are pure: they are told bytes, time and the
//! kernel's answers, and return what to do. The other modules own file descriptors.

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
