//! `ftpalg`: a userspace FTP application-layer gateway for Linux.
//!
//! The modules, from the wire inwards and out again:
//!
//! | module | has | hasn't |
//! |---|---|---|
//! | [`wire`] | IPv4/IPv6/TCP views, setters, options, checksums | anything that spans two packets |
//! | [`stream`] | sequence numbers, edits, one direction of an edited TCP stream | FTP |
//! | [`ftp`] | lines, commands, replies, host-port codecs, the session machine | packets |
//! | [`engine`] | flows: stream + ftp + policy → verdicts and pinhole requests | sockets, clocks |
//! | [`net`] | marks, networks, address families, ranges of ports | what they are used for |
//! | [`netlink`] | netlink message codec and socket | what the messages mean to FTP |
//! | [`queue`] | NFQUEUE sockets, and the kernel's counters of queues | decisions |
//! | [`conntrack`] | look-ups and events of connections | pinholes |
//! | [`firewall`] | our steering and accept rules, readers of the user's rules, the tools of iptables | pinholes, FTP |
//! | [`pinholes`] | their life, ports, limits, and the backends that put them into the kernel | FTP text |
//! | [`doctor`] | what is known of a host, and what of it is in the way of FTP | changes of anything |
//! | [`replay`] | the engine over a capture: files, transcripts | live packets, the kernel |
//! | [`daemon`] | start and end, workers, signals, the control socket, output | the text of rules |
//! | [`cli`] | the command line, one file per subcommand | the work itself |
//!
//! Who imports from whom in the shell. A module may also import from those further along its arrows,
//! and from the core:
//!
//! ```text
//! cli ─▶ daemon ─▶ pinholes ─▶ firewall  ─▶ netlink, net
//!           │          └─────▶ conntrack ─▶ netlink, net
//!  │        └────▶ doctor ───▶ firewall, conntrack, queue
//!  └─────▶ replay ─▶ pinholes
//! ```
//!
//! [`wire`], [`stream`], [`ftp`] and [`engine`] are pure: they are told bytes, time and the
//! kernel's answers, and return what to do. The other modules are the shell around them. Each imports
//! only from some of those above it; `tests/core/layers.rs` knows which.

#![forbid(unsafe_code)]

pub mod cli;
pub mod conntrack;
pub mod daemon;
pub mod doctor;
pub mod engine;
pub mod firewall;
pub mod ftp;
pub mod net;
pub mod netlink;
pub mod pinholes;
pub mod queue;
pub mod replay;
pub mod stream;
pub mod wire;
