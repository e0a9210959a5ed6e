//! Our bits of the connection mark.

/// One bit of the connection mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

impl Mark {
    /// The bit of data connections that come through a pinhole, where the user names no other: bit 30.
    pub const DEFAULT: Self = Self(0x4000_0000);

    /// The bit of control connections that may be joined in their middle, where the user names no other:
    /// bit 29.
    pub const RESUME: Self = Self(0x2000_0000);

    /// The bit of control connections that have a sequence delta, where the user names no other: bit 28.
    pub const UNEVEN: Self = Self(0x1000_0000);

    /// A mark of exactly one bit; `None` for any other number.
    #[must_use]
    pub fn new(bit: u32) -> Option<Self> {
        bit.is_power_of_two().then_some(Self(bit))
    }

    /// The mask: one bit.
    #[must_use]
    pub fn bit(self) -> u32 {
        self.0
    }

    /// Whether a connection mark carries it.
    #[must_use]
    pub fn is_in(self, mark: u32) -> bool {
        mark & self.0 != 0
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::DEFAULT
    }
}
