//! What must hold for any input: the bodies of the fuzz targets. `tests/core/fuzz_corpus.rs` runs them
//! over the committed corpora.
//!
//! - [`packet`]: the packet parser and its setters;
//! - [`session`]: the lines of two peers, however they are cut;
//! - [`engine`]: two honest TCPs and any network between them read the reference rewrite;
//! - [`hostile`]: any segments at all.

pub mod engine;
pub mod hostile;
pub mod packet;
pub mod session;

/// Reads decisions from the fuzzer's bytes; zeros when they are used up.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Whether they are used up.
    pub fn over(&self) -> bool {
        self.0.is_empty()
    }
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }
    /// The next two, as a number.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
    /// The next four, as a number.
    pub fn long(&mut self) -> u32 {
        u32::from(self.word()) << 16 | u32::from(self.word())
    }
    /// A bit; it takes a byte.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }
    /// The next `n`, or as many as are left.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(n.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
