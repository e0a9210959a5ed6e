//! The core by itself: what becomes of bytes, packets and dialogues. Needs neither root nor other
//! programs; `cargo test --test core` takes less than a minute.
//!
//! A new test is a file here, and a line below.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a helper of tests that fails is a test that fails"
)]

mod away;
mod bypass;
mod documents;
mod engine_beginnings;
mod engine_floods;
mod engine_forged;
mod engine_names;
mod engine_packets;
mod engine_paths;
mod farewell;
mod fuzz_corpus;
mod joining;
mod keep_length;
mod layers;
mod manifest;
mod nat64;
mod out_of_step;
mod pinhole_properties;
mod put_off;
mod records;
mod replay;
mod stream_exact;
mod transcripts;
mod transcripts_properties;
