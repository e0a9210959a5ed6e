//! NFQUEUE's messages as bytes: a queued packet, and its verdict
//! (`linux/netfilter/nfnetlink_queue.h`).

use super::{Hook, QueueVerdict};
use crate::netlink::codec::{self, Builder, Message};

/// `NFNL_SUBSYS_QUEUE` in the upper byte; `NFQNL_MSG_PACKET` and `NFQNL_MSG_VERDICT` in the lower.
const PACKET: u16 = 3 << 8;
const VERDICT: u16 = 3 << 8 | 1;
/// `enum nfqnl_attr_type`.
const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
const NFQA_MARK: u16 = 3;
const NFQA_PAYLOAD: u16 = 10;
/// `NF_DROP`, `NF_ACCEPT`.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// A packet that waits for its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queued<'a> {
    /// What the kernel calls it.
    pub(super) id: u32,
    /// Where it was queued; `None`: a hook that isn't known here.
    pub(super) hook: Option<Hook>,
    /// Its packet mark.
    pub(super) mark: u32,
    /// From its IP header on.
    pub(super) payload: &'a [u8],
}

impl<'a> Queued<'a> {
    /// Reads a message; `None` if it isn't a packet.
    pub(super) fn read(message: &Message<'a>) -> Option<Self> {
        if message.kind != PACKET {
            return None;
        }
        let mut header = None;
        let (mut mark, mut payload) = (0, &[][..]);
        for attr in message.attrs() {
            match attr.kind {
                NFQA_PACKET_HDR => header = attr.value.first_chunk::<7>(),
                NFQA_MARK => mark = attr.be32()?,
                NFQA_PAYLOAD => payload = attr.value,
                _ => {}
            }
        }
        // The packet's number, its protocol, its hook.
        let &[i0, i1, i2, i3, _, _, hook] = header?;
        Some(Self {
            id: u32::from_be_bytes([i0, i1, i2, i3]),
            hook: Hook::from_number(hook),
            mark,
            payload,
        })
    }
}

/// A verdict as it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer<'a> {
    pub(super) id: u32,
    pub(super) verdict: QueueVerdict,
    /// The packet mark that it goes on with, if that is another one.
    pub(super) mark: Option<u32>,
    /// What goes on in the packet's place, with [`QueueVerdict::Replace`].
    pub(super) packet: &'a [u8],
}

impl Answer<'_> {
    /// Drops a packet.
    pub(super) fn drop(id: u32) -> Self {
        Self {
            id,
            verdict: QueueVerdict::Drop,
            mark: None,
            packet: &[],
        }
    }

    /// Adds the message. The kernel answers only if it refuses it.
    pub(super) fn put(&self, queue: u16, to: &mut Builder) {
        let code = match self.verdict {
            QueueVerdict::Accept | QueueVerdict::Replace => NF_ACCEPT,
            QueueVerdict::Drop | QueueVerdict::Later => NF_DROP,
        };
        let [c0, c1, c2, c3] = code.to_be_bytes();
        let [i0, i1, i2, i3] = self.id.to_be_bytes();
        // Any family. Nobody reads its sequence number.
        to.message(VERDICT, codec::REQUEST, 0, 0, queue);
        to.bytes(NFQA_VERDICT_HDR, &[c0, c1, c2, c3, i0, i1, i2, i3]);
        if let Some(mark) = self.mark {
            to.be32(NFQA_MARK, mark);
        }
        if self.verdict == QueueVerdict::Replace {
            to.bytes(NFQA_PAYLOAD, self.packet);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::codec::Messages;

    /// A packet as the kernel queues it.
    fn queued(id: u32, hook: u8, mark: u32, payload: &[u8]) -> Vec<u8> {
        let mut b = Builder::new();
        let mut header = id.to_be_bytes().to_vec();
        header.extend([8, 0, hook]);
        b.message(PACKET, 0, 0, 2, 2121);
        b.bytes(NFQA_PACKET_HDR, &header)
            .be32(NFQA_MARK, mark)
            .be32(5, 3)
            .bytes(NFQA_PAYLOAD, payload);
        b.finish().unwrap()
    }

    #[test]
    fn a_packet_is_read() {
        let bytes = queued(7, 4, 0x2000_0001, b"odd");
        let message = Messages::new(&bytes).next().unwrap();
        let expected = Queued {
            id: 7,
            hook: Some(Hook::Postrouting),
            mark: 0x2000_0001,
            payload: b"odd",
        };
        assert_eq!(Queued::read(&message), Some(expected));
    }

    #[test]
    fn a_drop_is_one_message() {
        let mut b = Builder::new();
        Answer::drop(0x0102_0304).put(2121, &mut b);
        let expected = [
            &32u32.to_ne_bytes()[..],
            &VERDICT.to_ne_bytes(),
            &codec::REQUEST.to_ne_bytes(),
            &[0; 8],
            &[0, 0, 2121u16.to_be_bytes()[0], 2121u16.to_be_bytes()[1]],
            &12u16.to_ne_bytes(),
            &NFQA_VERDICT_HDR.to_ne_bytes(),
            &[0, 0, 0, 0, 1, 2, 3, 4],
        ]
        .concat();
        assert_eq!(b.finish().unwrap(), expected);
    }

    #[test]
    fn a_changed_packet_goes_with_its_verdict() {
        let mut b = Builder::new();
        let answer = Answer {
            id: 9,
            verdict: QueueVerdict::Replace,
            mark: Some(5),
            packet: b"other",
        };
        answer.put(1, &mut b);
        let bytes = b.finish().unwrap();
        let message = Messages::new(&bytes).next().unwrap();
        let value = |kind| message.attrs().find(kind).map(|attr| attr.value);
        assert_eq!(value(NFQA_VERDICT_HDR), Some(&[0, 0, 0, 1, 0, 0, 0, 9][..]));
        assert_eq!(value(NFQA_MARK), Some(&[0, 0, 0, 5][..]));
        assert_eq!(value(NFQA_PAYLOAD), Some(&b"other"[..]));
    }

    proptest! {
        #[test]
        fn a_damaged_message_is_read_without_harm(at in 0usize..80, with: u8, cut in 0usize..80) {
            let mut bytes = queued(7, 0, 1, &[1; 24]);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = with;
            }
            bytes.truncate(cut);
            for message in Messages::new(&bytes) {
                if let Some(packet) = Queued::read(&message) {
                    prop_assert!(packet.payload.len() <= bytes.len());
                }
            }
        }
    }
}
