//! The kernel's part: rules, pinholes, handshakes and bad lines between network namespaces, with peers of
//! our own. Needs root, nf_tables, conntrack and the tools of iptables, and no FTP programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests that fails is a test that fails"
)]

#[allow(unreachable_pub, reason = "its files share much with each other")]
mod attacks;
mod differential;
mod handshakes;
mod nft_backend;
mod own_table;
mod rules;
mod streams;
mod weather;
