//! Lines that mean something, for properties.

use proptest::prelude::*;

/// One of the known lines with one of these ends; a byte of it may be changed.
pub fn known(
    known: impl Strategy<Value = &'static str>,
    ends: &'static [&'static str],
) -> impl Strategy<Value = Vec<u8>> {
    let end = prop::sample::select(ends);
    let change = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    (known, end, change).prop_map(|(text, end, change)| {
        let mut bytes = [text.as_bytes(), end.as_bytes()].concat();
        if let Some((at, byte)) = change {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}
