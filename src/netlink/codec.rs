//! Netlink messages and attributes as bytes: a builder and a bounded parser.
//!
//! A message is a 16-byte header, for netfilter a 4-byte `nfgenmsg` (family, version, resource)
//! and attributes: length, type, value, each padded to 4 bytes. Headers are in host byte order,
//! netfilter's numbers in network byte order.
//!
//! Contract: no input makes the parser panic, read beyond the slice or loop forever. A truncated or
//! contradictory part ends the iteration.

/// Size of the message header.
const HEADER: usize = 16;
/// Size of the message header and `nfgenmsg`.
const NF_HEADER: usize = HEADER + 4;
/// Size of an attribute's header.
const ATTR_HEADER: usize = 4;
/// Set in an attribute's type where the value consists of attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that name it.
const TYPE_MASK: u16 = 0x3fff;

/// Room that a buffer has from the beginning, in bytes: enough for what opens a pinhole.
const USUAL: usize = 256;

/// Message flag: a request.
pub const REQUEST: u16 = 0x1;
/// Message flag: answer with an acknowledgement.
pub const ACK: u16 = 0x4;
/// Message flag of a change: tell what was changed, as to those who listen for events.
pub const ECHO: u16 = 0x8;
/// Reply flag: the table changed while it was dumped.
pub const DUMP_INTERRUPTED: u16 = 0x10;
/// Message flag of a get: everything that matches.
pub const DUMP: u16 = 0x300;
/// Message flag of a create: fail if it exists.
pub const EXCL: u16 = 0x200;
/// Message flag of a create: make it if it doesn't exist.
pub const CREATE: u16 = 0x400;
/// Message flag of a create: at the end of the list (rules).
pub const APPEND: u16 = 0x800;

/// Message type: acknowledgement or error.
pub const ERROR: u16 = 2;
/// Message type: end of a dump.
pub const DONE: u16 = 3;

fn aligned(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// Builds messages, one after the other, in one buffer.
///
/// If a value doesn't fit its length field, [`Builder::finish`] returns `None`.
#[derive(Debug, Default)]
pub struct Builder {
    buf: Vec<u8>,
    start: usize,
    too_long: bool,
}

impl Builder {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buf: Vec::with_capacity(USUAL),
            ..Self::default()
        }
    }

    /// Starts a netfilter message. The attributes that follow are its own.
    pub fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        resource: u16,
    ) -> &mut Self {
        self.close_message();
        self.start = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&[0; 4]);
        self.buf.extend_from_slice(&[family, 0]);
        self.buf.extend_from_slice(&resource.to_be_bytes());
        self
    }

    /// The bytes of all messages; `None` if a value was too long.
    #[must_use]
    pub fn finish(mut self) -> Option<Vec<u8>> {
        self.close_message();
        (!self.too_long).then_some(self.buf)
    }

    /// The same, to go on with this buffer after [`clear`](Self::clear).
    #[must_use]
    pub fn finished(&mut self) -> Option<&[u8]> {
        self.close_message();
        (!self.too_long).then_some(&self.buf)
    }

    /// How many bytes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Begins anew, with the same buffer.
    pub fn clear(&mut self) {
        self.buf.clear();
        self.start = 0;
        self.too_long = false;
    }

    /// An attribute with these bytes as its value.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let at = self.open_attr(kind);
        self.buf.extend_from_slice(value);
        self.close_attr(at);
        self
    }

    /// An attribute with a zero-terminated string.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let at = self.open_attr(kind);
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.close_attr(at);
        self
    }

    /// An attribute with a 32-bit number in network byte order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute with a 64-bit number in network byte order.
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An attribute whose value is the attributes that `inner` adds.
    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.open_attr(kind | NESTED);
        inner(self);
        self.close_attr(at);
        self
    }

    /// An attribute whose value is these attributes.
    pub fn nested(&mut self, kind: u16, attrs: &[u8]) -> &mut Self {
        self.bytes(kind | NESTED, attrs)
    }

    fn open_attr(&mut self, kind: u16) -> usize {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0; 2]);
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        at
    }

    fn close_attr(&mut self, at: usize) {
        let len = self.buf.len() - at;
        match u16::try_from(len) {
            Ok(len) => self.put(at, &len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.buf.resize(at + aligned(len), 0);
    }

    fn close_message(&mut self) {
        let len = self.buf.len() - self.start;
        if len == 0 {
            return;
        }
        match u32::try_from(len) {
            Ok(len) => self.put(self.start, &len.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.buf.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// Each message of a buffer that a [`Builder`] has filled, by itself.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let message = bytes.get(..aligned(len)).filter(|_| len >= HEADER)?;
        bytes = bytes.get(aligned(len)..).unwrap_or(&[]);
        Some(message)
    })
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The sequence number: that of the request that it answers, 0 for an event.
    pub seq: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The address family of a netfilter message (`AF_INET`, …; 0 if it is too short to have one).
    #[must_use]
    pub fn family(&self) -> u8 {
        self.payload.first().copied().unwrap_or(0)
    }

    /// The attributes of a netfilter message.
    #[must_use]
    pub fn attrs(&self) -> Attrs<'a> {
        Attrs(self.payload.get(NF_HEADER - HEADER..).unwrap_or(&[]))
    }

    /// The error number of an [`ERROR`] message (0 is an acknowledgement), or of a dump that ended with
    /// [`DONE`]: one that failed may have no other message. Never negative.
    ///
    /// `None` for other messages and for ones too short to hold a number.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        if !matches!(self.kind, ERROR | DONE) {
            return None;
        }
        let bytes = self.payload.first_chunk::<4>()?;
        Some(i32::from_ne_bytes(*bytes).saturating_neg().max(0))
    }
}

/// The messages in a received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    /// Reads a datagram.
    #[must_use]
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let head = self.0.first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *head;
        let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or(&[]);
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr<'a> {
    /// Its type, without the flag bits.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> Attr<'a> {
    /// The attributes that the value consists of.
    #[must_use]
    pub fn nested(&self) -> Attrs<'a> {
        Attrs(self.value)
    }

    /// The value as a 16-bit number in network byte order.
    #[must_use]
    pub fn be16(&self) -> Option<u16> {
        self.value.try_into().ok().map(u16::from_be_bytes)
    }

    /// The value as a 32-bit number in network byte order.
    #[must_use]
    pub fn be32(&self) -> Option<u32> {
        self.value.try_into().ok().map(u32::from_be_bytes)
    }

    /// The value as a 64-bit number in network byte order.
    #[must_use]
    pub fn be64(&self) -> Option<u64> {
        self.value.try_into().ok().map(u64::from_be_bytes)
    }

    /// The value as a text, without the zero that ends it.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        let text = self.value.split(|&b| b == 0).next()?;
        std::str::from_utf8(text).ok()
    }
}

/// The attributes of a message or of a nested attribute.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a>(&'a [u8]);

impl<'a> Attrs<'a> {
    /// Reads attributes that follow each other.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The first attribute of a type.
    #[must_use]
    pub fn find(mut self, kind: u16) -> Option<Attr<'a>> {
        Iterator::find(&mut self, |attr| attr.kind == kind)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Attr<'a>;

    fn next(&mut self) -> Option<Attr<'a>> {
        let [l0, l1, k0, k1] = *self.0.first_chunk::<ATTR_HEADER>()?;
        let len = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(ATTR_HEADER..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or(&[]);
        Some(Attr {
            kind: u16::from_ne_bytes([k0, k1]) & TYPE_MASK,
            value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_told_apart() {
        let mut b = Builder::new();
        b.message(1, 0, 1, 0, 0).text(1, "odd");
        b.message(2, 0, 2, 0, 0);
        let bytes = b.finished().unwrap().to_vec();
        let each: Vec<_> = messages(&bytes).collect();
        assert_eq!(
            each.iter().map(|one| one.len()).collect::<Vec<_>>(),
            [28, 20]
        );
        assert_eq!(each.concat(), bytes);
        let cut = bytes.get(..bytes.len() - 1).unwrap();
        assert_eq!(messages(cut).count(), 1);
        b.clear();
        assert_eq!((b.len(), b.is_empty()), (0, true));
        assert_eq!(b.finished(), Some(&[][..]));
    }

    #[test]
    fn a_message_is_laid_out_as_the_kernel_wants_it() {
        let mut b = Builder::new();
        b.message(0x0a00, REQUEST | ACK, 7, 2, 0x1234)
            .text(1, "ab")
            .be32(2, 1);
        let bytes = b.finish().unwrap();
        let mut want = Vec::new();
        want.extend_from_slice(&36u32.to_ne_bytes());
        want.extend_from_slice(&0x0a00u16.to_ne_bytes());
        want.extend_from_slice(&5u16.to_ne_bytes());
        want.extend_from_slice(&7u32.to_ne_bytes());
        want.extend_from_slice(&[0, 0, 0, 0, 2, 0, 0x12, 0x34]);
        want.extend_from_slice(&7u16.to_ne_bytes());
        want.extend_from_slice(&1u16.to_ne_bytes());
        want.extend_from_slice(b"ab\0\0");
        want.extend_from_slice(&8u16.to_ne_bytes());
        want.extend_from_slice(&2u16.to_ne_bytes());
        want.extend_from_slice(&[0, 0, 0, 1]);
        assert_eq!(bytes, want);
    }

    #[test]
    fn a_value_that_does_not_fit_is_not_sent() {
        let mut b = Builder::new();
        b.message(1, 0, 0, 0, 0).bytes(1, &vec![0; 65_532]);
        assert_eq!(b.finish(), None);
    }

    #[test]
    fn an_error_message_gives_its_number() {
        let payload = (-17i32).to_ne_bytes();
        let mut message = Message {
            kind: ERROR,
            flags: 0,
            seq: 1,
            payload: &payload,
        };
        assert_eq!(message.errno(), Some(17));
        message.payload = &payload[..3];
        assert_eq!(message.errno(), None);
        message.payload = &payload;
        message.kind = 3 << 8;
        assert_eq!(message.errno(), None);
    }

    #[test]
    fn a_dump_that_failed_is_told_from_an_empty_one() {
        let end = |payload: &[u8]| {
            let message = Message {
                kind: DONE,
                flags: 0,
                seq: 1,
                payload,
            };
            message.errno()
        };
        assert_eq!(end(&(-2i32).to_ne_bytes()), Some(2));
        assert_eq!(end(&0i32.to_ne_bytes()), Some(0));
        assert_eq!(end(&[]), None);
    }

    #[test]
    fn a_length_below_the_header_ends_the_iteration() {
        for len in 0..16u32 {
            let mut bytes = [0u8; 64];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(Messages::new(&bytes).count(), 0, "length {len}");
        }
        assert_eq!(Attrs::new(&[0; 64]).count(), 0);
        assert_eq!(Attrs::new(&[4, 0, 1, 0]).count(), 1);
    }

    proptest! {
        #[test]
        fn what_is_built_is_what_is_read(
            messages in prop::collection::vec(
                (any::<u16>(), any::<u16>(), any::<u32>(), any::<u8>(),
                 prop::collection::vec(
                     (0u16..0x4000, prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..6)),
                1..5)
        ) {
            let mut b = Builder::new();
            for (kind, flags, seq, family, attrs) in &messages {
                b.message(*kind, *flags, *seq, *family, 0);
                for (kind, value, nested) in attrs {
                    if *nested {
                        b.nest(*kind, |b| { b.bytes(9, value); });
                    } else {
                        b.bytes(*kind, value);
                    }
                }
            }
            let bytes = b.finish().unwrap();
            prop_assert_eq!(Messages::new(&bytes).count(), messages.len());
            for (got, (kind, flags, seq, family, attrs)) in Messages::new(&bytes).zip(&messages) {
                prop_assert_eq!((got.kind, got.flags, got.seq, got.family()), (*kind, *flags, *seq, *family));
                prop_assert_eq!(got.attrs().count(), attrs.len());
                for (got, (kind, value, nested)) in got.attrs().zip(attrs) {
                    prop_assert_eq!(got.kind, *kind);
                    if *nested {
                        let inner: Vec<_> = got.nested().collect();
                        prop_assert_eq!(inner, vec![Attr { kind: 9, value }]);
                    } else {
                        prop_assert_eq!(got.value, value.as_slice());
                    }
                }
            }
        }

        #[test]
        fn garbage_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut read = 0;
            for message in Messages::new(&bytes) {
                read += message.payload.len() + HEADER;
                let _ = message.errno();
                for attr in message.attrs() {
                    let _ = (attr.be16(), attr.be32(), attr.be64(), attr.text());
                    prop_assert!(attr.nested().count() <= attr.value.len() / ATTR_HEADER);
                }
            }
            prop_assert!(read <= bytes.len());
            prop_assert!(Attrs::new(&bytes).count() <= bytes.len() / ATTR_HEADER);
        }

        #[test]
        fn a_truncated_datagram_gives_whole_messages_only(cut in 0usize..=80) {
            let mut b = Builder::new();
            for seq in 0..2 {
                b.message(1, 0, seq, 2, 0).be32(1, 1).text(2, "truncated");
            }
            let bytes = b.finish().unwrap();
            prop_assert_eq!(bytes.len(), 88);
            let whole = Messages::new(&bytes[..cut]).count();
            prop_assert_eq!(whole, cut / 44);
        }
    }
}
