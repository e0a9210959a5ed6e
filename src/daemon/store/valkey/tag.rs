//! Whose a value in the store is.
//!
//! Two gateways write the same keys, one after the other. What one of them deletes, or writes late, may be
//! the other one's by then. So a [`Tag`] is in front of each value, which names its writer, and nobody
//! takes away what he neither wrote nor read.

use std::collections::HashMap;
use std::fs;
use std::io;

use nix::time::{ClockId, clock_gettime};

/// How many keys are remembered that another gateway has written.
const MAX_READ: usize = 65_536;

/// Which gateway has written a value, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    gateway: u64,
    /// Each write's is higher than those of all writes before it, also of earlier processes.
    number: u64,
}

impl Tag {
    /// A value as it is stored.
    pub(super) fn put_before(self, value: &[u8]) -> Vec<u8> {
        let words = [self.gateway, self.number].map(u64::to_be_bytes);
        [words.as_flattened(), value].concat()
    }

    /// A stored value, and whose it is. `None`: it is none.
    pub(super) fn split(stored: &[u8]) -> Option<(Self, &[u8])> {
        let (gateway, rest) = stored.split_first_chunk()?;
        let (number, value) = rest.split_first_chunk()?;
        let [gateway, number] = [gateway, number].map(|word| u64::from_be_bytes(*word));
        Some((Self { gateway, number }, value))
    }
}

/// What a gateway may take away from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it has written up to here.
    own: Tag,
    /// What it has read there, and has gone on from.
    read: Option<Tag>,
}

impl Claim {
    /// Whether that covers a stored value.
    pub(super) fn covers(&self, stored: &[u8]) -> bool {
        Tag::split(stored).is_some_and(|(tag, _)| {
            let own = tag.gateway == self.own.gateway && tag.number <= self.own.number;
            own || self.read == Some(tag)
        })
    }

    /// The tag for what is written with this claim.
    pub(super) fn tag(&self) -> Tag {
        self.own
    }
}

/// What this gateway has to do with which keys.
#[derive(Debug)]
pub(super) struct Claims {
    last: Tag,
    /// What it has read of another gateway's.
    read: HashMap<String, Tag>,
}

impl Claims {
    /// Those of the gateway in the calling thread's network namespace.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self::of(gateway()?, uptime()?))
    }

    fn of(gateway: u64, number: u64) -> Self {
        Self {
            last: Tag { gateway, number },
            read: HashMap::new(),
        }
    }

    /// A key is about to be written.
    pub(super) fn writes(&mut self, key: &str) -> Claim {
        self.last.number = self.last.number.saturating_add(1);
        Claim {
            own: self.last,
            read: self.read.get(key).copied(),
        }
    }

    /// A key has this stored value: takes the tag off.
    pub(super) fn reads(&mut self, key: &str, stored: &[u8]) -> Option<Vec<u8>> {
        let (tag, value) = Tag::split(stored)?;
        match tag.gateway == self.last.gateway {
            true => self.read.remove(key),
            false => {
                // What is forgotten ends by itself in the store.
                if self.read.len() >= MAX_READ {
                    self.read.clear();
                }
                self.read.insert(key.to_owned(), tag)
            }
        };
        Some(value.to_vec())
    }

    /// Whether what was read there last is another gateway's.
    pub(super) fn has_read(&self, key: &str) -> bool {
        self.read.contains_key(key)
    }

    /// A key is to be deleted.
    pub(super) fn gives_up(&mut self, key: &str) -> Claim {
        Claim {
            own: self.last,
            read: self.read.remove(key),
        }
    }
}

/// The same number for all processes of this boot in this network namespace.
fn gateway() -> io::Result<u64> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let network = fs::read_link("/proc/thread-self/ns/net")?;
    let network = network.to_string_lossy();
    let number = |text: &str, base| {
        let digits = text.chars().filter_map(|digit| digit.to_digit(base));
        digits.fold(0_u64, |number, digit| {
            // What is shifted out comes back at the other end.
            number.rotate_left(4) ^ u64::from(digit)
        })
    };
    Ok(number(&boot, 16) ^ number(&network, 10).rotate_left(32))
}

/// Nanoseconds since the boot.
fn uptime() -> io::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    let [seconds, nanos] = [time.tv_sec(), time.tv_nsec()].map(|part| u64::try_from(part).ok());
    let nanos = seconds
        .zip(nanos)
        .map(|(seconds, nanos)| seconds.saturating_mul(1_000_000_000).saturating_add(nanos));
    nanos.ok_or_else(|| io::Error::other("the clock is before its beginning"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_the_other_gateway_is_left_alone() {
        let (mut a, mut b) = (Claims::of(1, 100), Claims::of(2, 5));
        let first = a.writes("k").tag().put_before(b"first");
        assert_eq!(b.reads("k", &first).as_deref(), Some(&b"first"[..]));
        // What it has read, it may delete.
        assert!(b.writes("k").covers(&first));
        let second = b.writes("k").tag().put_before(b"second");
        assert!(!a.gives_up("k").covers(&second));
        assert!(a.gives_up("k").covers(&first));
        let third = a.writes("k").tag().put_before(b"third");
        assert!(!b.gives_up("k").covers(&third), "read an earlier one");
        assert!(b.gives_up("k").covers(&second));
        assert!(!b.gives_up("k").covers(&first), "given up");
    }

    #[test]
    fn a_later_write_outlives_an_earlier_deletion() {
        let mut a = Claims::of(1, 100);
        let first = a.writes("k").tag().put_before(b"first");
        let deletion = a.gives_up("k");
        let second = a.writes("k").tag().put_before(b"second");
        assert!(deletion.covers(&first) && !deletion.covers(&second));
        // The next process of the same gateway.
        assert!(Claims::of(1, 2_000).gives_up("k").covers(&second));
        assert!(!deletion.covers(b"short"));
    }

    #[test]
    fn this_gateway_has_one_number_and_a_clock_that_goes_on() {
        assert_eq!(gateway().unwrap(), gateway().unwrap());
        let before = uptime().unwrap();
        assert!(uptime().unwrap() > before);
    }
}
