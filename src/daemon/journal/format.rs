//! The journal's bytes: a header and entries, each in a frame of its own.
//!
//! A frame is its length, the complement of that, and the CRC-32 of its content, in 4 bytes each
//! (little-endian), and then the content: [`Header`] or [`JournalEntry`] in postcard's format.

use std::collections::HashMap;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use super::Kept;
use crate::engine::{RECORD_FORMAT, Tuple};

/// How a journal begins.
const NAME: &str = "ftpalg journal";
/// The bytes in front of a frame's content.
const FRAME: usize = 12;

/// What a journal belongs to. Elsewhere its records mean nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    name: String,
    /// [`RECORD_FORMAT`].
    format: u32,
    /// The kernel's random number of this boot.
    boot: String,
    /// The inode of the network namespace.
    network: String,
}

impl Header {
    /// That of the calling thread.
    pub(super) fn here() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let network = fs::read_link("/proc/thread-self/ns/net")?;
        Ok(Self {
            name: NAME.to_owned(),
            format: RECORD_FORMAT,
            boot: boot.trim().to_owned(),
            network: network.to_string_lossy().into_owned(),
        })
    }

    /// The number of the network namespace.
    pub(super) fn network(&self) -> String {
        self.network.chars().filter(char::is_ascii_digit).collect()
    }
}

/// A change: a record takes the place of what was kept of the connection, or there is none any more.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JournalEntry<B> {
    pub(super) outward: Tuple,
    pub(super) name: Option<Tuple>,
    pub(super) record: Option<B>,
}

/// Why a journal isn't used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is damaged")]
    Damaged,
    #[error("it isn't a journal")]
    Other,
    #[error("another version of ftpalg wrote it")]
    Version,
    #[error("it is from before the last boot")]
    Boot,
    #[error("it belongs to another network namespace")]
    Network,
}

/// Appends a frame.
pub(super) fn frame(content: &impl Serialize, to: &mut Vec<u8>) -> Result<(), postcard::Error> {
    let content = postcard::to_allocvec(content)?;
    let length = u32::try_from(content.len()).map_err(|_| postcard::Error::SerializeBufferFull)?;
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(&(!length).to_le_bytes());
    to.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
    to.extend_from_slice(&content);
    Ok(())
}

/// Takes a frame's content off the front. `None`: it isn't complete, since its writer was ended in
/// the middle of it.
fn unframe<'a>(from: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Unusable> {
    let Some((head, rest)) = from.split_at_checked(FRAME) else {
        return Ok(None);
    };
    let word = |at: usize| {
        let bytes = head.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let (length, complement, sum) = (word(0), word(4), word(8));
    if length != !complement {
        return Err(Unusable::Damaged);
    }
    let length = usize::try_from(length).map_err(|_| Unusable::Damaged)?;
    let Some((content, rest)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    if crc32fast::hash(content) != sum {
        return Err(Unusable::Damaged);
    }
    *from = rest;
    Ok(Some(content))
}

/// Reads a journal that belongs to `header`: what is kept in it. The last change counts; one that
/// isn't complete was never acted upon.
pub(super) fn read(bytes: &[u8], header: &Header) -> Result<HashMap<Tuple, Kept>, Unusable> {
    let mut rest = bytes;
    let first = match unframe(&mut rest) {
        Ok(Some(first)) => first,
        Ok(None) if rest.is_empty() => return Ok(HashMap::new()),
        Ok(None) | Err(_) => return Err(Unusable::Other),
    };
    // Another version may have another header; its first fields are these.
    let (name, after): (String, &[u8]) =
        postcard::take_from_bytes(first).map_err(|_| Unusable::Other)?;
    if name != NAME {
        return Err(Unusable::Other);
    }
    let (format, _): (u32, _) = postcard::take_from_bytes(after).map_err(|_| Unusable::Damaged)?;
    if format != header.format {
        return Err(Unusable::Version);
    }
    let found: Header = postcard::from_bytes(first).map_err(|_| Unusable::Damaged)?;
    if found.boot != header.boot {
        return Err(Unusable::Boot);
    }
    if found != *header {
        return Err(Unusable::Network);
    }
    let mut live = HashMap::new();
    while let Some(content) = unframe(&mut rest)? {
        let entry: JournalEntry<Vec<u8>> =
            postcard::from_bytes(content).map_err(|_| Unusable::Damaged)?;
        match entry.record {
            Some(record) => {
                let name = entry.name;
                live.insert(entry.outward, Kept { name, record });
            }
            None => drop(live.remove(&entry.outward)),
        }
    }
    Ok(live)
}
