//! Serialises the fixed room for a text: without the zeros behind it.

use serde::de::{Deserialize, Deserializer, Error};
use serde::{Serialize, Serializer};

pub(super) fn serialize<S: Serializer, const N: usize>(
    room: &[u8; N],
    to: S,
) -> Result<S::Ok, S::Error> {
    let end = room.iter().rposition(|b| *b != 0);
    let text = end.and_then(|end| room.get(..=end)).unwrap_or_default();
    text.serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    from: D,
) -> Result<[u8; N], D::Error> {
    let text = Vec::<u8>::deserialize(from)?;
    let mut room = [0; N];
    let start = room.get_mut(..text.len());
    let start = start.ok_or_else(|| D::Error::invalid_length(text.len(), &"less"))?;
    start.copy_from_slice(&text);
    Ok(room)
}
