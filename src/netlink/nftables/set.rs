//! Reads the elements of sets and maps.
//!
//! Contract: reading is total, and bounded by the bytes that are read.

use super::expression::RuleVerdict;
use super::{ELEM_CATCHALL, ELEM_INTERVAL_END, SET_CONCAT, SET_INTERVAL, attr};
use crate::netlink::codec::{Attrs, Message};

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Its elements.
    pub elements: Vec<Element>,
    /// Whether these are all.
    pub complete: bool,
}

/// An element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The first and last key that it is for; `None`: all keys that have no other element.
    pub keys: Option<(Vec<u8>, Vec<u8>)>,
    /// In a verdict map: the chain that the key leads to.
    pub jump: Option<String>,
    /// In a verdict map: what becomes of the packet, where the key leads to no chain.
    pub verdict: Option<ElementVerdict>,
}

/// A verdict of a map that leads to no chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementVerdict {
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `continue`, `return`: what follows decides.
    None,
    /// `queue` and others.
    Other,
}

/// An element as the kernel keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawElement {
    key: Vec<u8>,
    /// The last key, where it is a concatenation.
    last: Option<Vec<u8>>,
    /// Whether it ends an interval, without being in it.
    end: bool,
    /// Whether it is for all other keys.
    catchall: bool,
    jump: Option<String>,
    verdict: Option<ElementVerdict>,
}

/// The flags of a set.
#[must_use]
pub fn flags(message: &Message<'_>) -> u32 {
    let flags = message.attrs().find(attr::SET_FLAGS);
    flags.and_then(|flags| flags.be32()).unwrap_or(0)
}

/// The elements in a message.
#[must_use]
pub fn elements(message: &Message<'_>) -> Vec<RawElement> {
    let list = message.attrs().find(attr::ELEMS_LIST);
    list.into_iter()
        .flat_map(|list| list.nested())
        .filter_map(|one| RawElement::read(one.nested()))
        .collect()
}

impl Set {
    /// Puts a set together from its flags and elements; `complete` if these are all.
    #[must_use]
    pub fn new(flags: u32, raw: Vec<RawElement>, complete: bool) -> Self {
        let (catchall, raw): (Vec<_>, Vec<_>) = raw.into_iter().partition(|one| one.catchall);
        let mut elements = match flags & (SET_INTERVAL | SET_CONCAT) {
            SET_INTERVAL if raw.iter().all(|one| one.last.is_none()) => intervals(raw, complete),
            _ => raw.into_iter().map(RawElement::whole).collect(),
        };
        elements.extend(catchall.into_iter().map(|one| Element {
            keys: None,
            jump: one.jump,
            verdict: one.verdict,
        }));
        Self { elements, complete }
    }
}

impl RawElement {
    fn read(parts: Attrs<'_>) -> Option<Self> {
        let value = |kind| {
            let value = parts.find(kind)?.nested().find(attr::DATA_VALUE)?.value;
            Some(value.to_vec())
        };
        let flags = parts.find(attr::ELEM_FLAGS).and_then(|flags| flags.be32());
        let has = |flag| flags.unwrap_or(0) & flag != 0;
        let data = parts.find(attr::ELEM_DATA);
        let verdict = data.and_then(|data| RuleVerdict::read(&data));
        Some(Self {
            key: match has(ELEM_CATCHALL) {
                true => Vec::new(),
                false => value(attr::ELEM_KEY)?,
            },
            last: value(attr::ELEM_KEY_END),
            end: has(ELEM_INTERVAL_END),
            catchall: has(ELEM_CATCHALL),
            jump: match verdict {
                Some(RuleVerdict::Jump(chain) | RuleVerdict::Goto(chain)) => Some(chain.to_owned()),
                _ => None,
            },
            verdict: match verdict {
                None | Some(RuleVerdict::Jump(_) | RuleVerdict::Goto(_)) => None,
                Some(RuleVerdict::Accept) => Some(ElementVerdict::Accept),
                Some(RuleVerdict::Drop) => Some(ElementVerdict::Drop),
                Some(RuleVerdict::Continue | RuleVerdict::Return) => Some(ElementVerdict::None),
                Some(RuleVerdict::Other) => Some(ElementVerdict::Other),
            },
        })
    }

    fn whole(self) -> Element {
        let last = self.last.unwrap_or_else(|| self.key.clone());
        Element {
            keys: Some((self.key, last)),
            jump: self.jump,
            verdict: self.verdict,
        }
    }
}

/// In the kernel an interval is two elements: its first key, and the key after its last one.
fn intervals(mut raw: Vec<RawElement>, complete: bool) -> Vec<Element> {
    raw.sort_by(|a, b| (&a.key, !a.end).cmp(&(&b.key, !b.end)));
    let mut all: Vec<Element> = Vec::with_capacity(raw.len() / 2);
    let mut open: Option<RawElement> = None;
    for next in raw {
        if let (Some(mut one), Some(last)) = (open.take(), before(&next.key)) {
            one.last = Some(last);
            all.push(one.whole());
        }
        open = Some(next).filter(|next| !next.end);
    }
    all.extend(open.map(|mut one| {
        // An interval without an end reaches to the highest key, unless the end wasn't read.
        one.last = complete.then(|| vec![u8::MAX; one.key.len()]);
        one.whole()
    }));
    all
}

/// The big-endian number that is one less.
fn before(number: &[u8]) -> Option<Vec<u8>> {
    let borrows = number.iter().rposition(|byte| *byte != 0)?;
    let less = |(i, byte): (usize, &u8)| match i < borrows {
        true => *byte,
        false => byte.wrapping_sub(1),
    };
    Some(number.iter().enumerate().map(less).collect())
}
