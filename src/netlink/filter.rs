//! Filters that the kernel runs on a socket's messages, so that those of no interest wake nobody.
//!
//! A filter is a program of the classic BPF (`Documentation/networking/filter.rst`). The kernel checks
//! it. A message that no instruction decides on is dropped. A filter only saves work: who reads the
//! socket looks at what comes all the same, since a kernel may refuse the filter.

use socket2::SockFilter;

/// Where a test goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// With the next instruction.
    Next,
    /// The message is delivered.
    Pass,
    /// It isn't.
    Drop,
}

/// Where an instruction goes on.
#[derive(Clone, Copy, Debug)]
enum Jump {
    To(To),
    /// So many instructions further on.
    Skip(u8),
}

/// `BPF_*`: class, size, mode and operation.
const LD_IMM: u16 = 0x00;
const LDX_IMM: u16 = 0x01;
const LD_WORD: u16 = 0x20;
const LD_HALF: u16 = 0x28;
const LD_BYTE: u16 = 0x30;
const LD_LENGTH: u16 = 0x80;
const LD_WORD_AT_X: u16 = 0x40;
const LD_BYTE_AT_X: u16 = 0x50;
const SHIFT_LEFT: u16 = 0x64;
const OR_X: u16 = 0x4c;
const A_TO_X: u16 = 0x07;
const IF_EQUAL: u16 = 0x15;
const IF_EQUAL_X: u16 = 0x1d;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: from the offset in A on, finds the attribute whose type is in X.
const FIND_ATTRIBUTE: u32 = 0xffff_f000 + 12;

/// Where a netfilter message's attributes begin: behind `nlmsghdr` and `nfgenmsg`.
const ATTRIBUTES: u32 = 20;
/// Where `nlmsghdr` has the message's type.
const KIND: u32 = 4;
/// Where an attribute has its value.
const VALUE: u32 = 4;

/// A filter as it is written down: one test after the other. What passes all of them is dropped.
#[derive(Debug, Default)]
pub struct Filter {
    steps: Vec<(u16, u32, [Jump; 2])>,
}

impl Filter {
    /// No instructions yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes to `then` if the datagram has more than one message.
    #[must_use]
    pub fn several(self, then: To) -> Self {
        // The length is in host byte order, while a load takes network byte order.
        let [high, low] = if cfg!(target_endian = "little") {
            [1, 0]
        } else {
            [2, 3]
        };
        self.step(LD_BYTE, high)
            .step(SHIFT_LEFT, 8)
            .step(A_TO_X, 0)
            .step(LD_BYTE, low)
            .step(OR_X, 0)
            .step(A_TO_X, 0)
            .step(LD_LENGTH, 0)
            .test(IF_EQUAL_X, 0, To::Next, then)
    }

    /// Goes to `then` if the message has this type.
    #[must_use]
    pub fn kind(self, kind: u16, then: To) -> Self {
        self.step(LD_HALF, KIND)
            .test(IF_EQUAL, in_message(kind), then, To::Next)
    }

    /// Goes to `then` if the message has none of these types.
    #[must_use]
    pub fn other_kind(self, kinds: &[u16], then: To) -> Self {
        let mut this = self.step(LD_HALF, KIND);
        let mut left = kinds.len();
        for &kind in kinds {
            // Behind the rest of them, and behind the jump for what is none of them.
            let found = Jump::Skip(u8::try_from(left).unwrap_or(u8::MAX));
            this = this.jump(IF_EQUAL, in_message(kind), [found, Jump::To(To::Next)]);
            left = left.saturating_sub(1);
        }
        this.test(IF_EQUAL, 0, then, then)
    }

    /// Goes to `then` if the number in an attribute has any bit of `bits`.
    #[must_use]
    pub fn any_bit(self, attribute: u16, bits: u32, then: To) -> Self {
        // If there is no such attribute, A is 0, and the three instructions of the test are skipped.
        self.find(attribute)
            .jump(IF_EQUAL, 0, [Jump::Skip(3), Jump::To(To::Next)])
            .step(A_TO_X, 0)
            .step(LD_WORD_AT_X, VALUE)
            .test(IF_ANY_BIT, bits, then, To::Next)
    }

    /// Goes to `then` if the text in an attribute isn't this one, or if there is no such attribute.
    #[must_use]
    pub fn other_text(self, attribute: u16, text: &str, then: To) -> Self {
        let mut this = self.find(attribute).test(IF_EQUAL, 0, then, To::Next);
        this = this.step(A_TO_X, 0);
        for (at, byte) in (VALUE..).zip(text.bytes().chain([0])) {
            this = this
                .step(LD_BYTE_AT_X, at)
                .test(IF_EQUAL, byte.into(), To::Next, then);
        }
        this
    }

    /// The program.
    pub(super) fn finish(&self) -> Vec<SockFilter> {
        // Behind the steps: Drop, then Pass.
        let end = self.steps.len();
        let distance = |at: usize, jump: Jump| {
            let target = match jump {
                Jump::Skip(steps) => return steps,
                Jump::To(To::Next) => return 0,
                Jump::To(To::Drop) => end,
                Jump::To(To::Pass) => end.saturating_add(1),
            };
            // The kernel refuses a program with a jump beyond its end.
            u8::try_from(target.saturating_sub(at).saturating_sub(1)).unwrap_or(u8::MAX)
        };
        let verdict = |pass: bool| SockFilter::new(RETURN, 0, 0, if pass { u32::MAX } else { 0 });
        let steps = self.steps.iter().enumerate();
        let steps = steps.map(|(at, &(code, k, [yes, no]))| {
            SockFilter::new(code, distance(at, yes), distance(at, no), k)
        });
        steps.chain([verdict(false), verdict(true)]).collect()
    }

    fn find(self, attribute: u16) -> Self {
        self.step(LD_IMM, ATTRIBUTES)
            .step(LDX_IMM, attribute.into())
            .step(LD_WORD, FIND_ATTRIBUTE)
    }

    fn step(self, code: u16, k: u32) -> Self {
        self.test(code, k, To::Next, To::Next)
    }

    fn test(self, code: u16, k: u32, yes: To, no: To) -> Self {
        self.jump(code, k, [Jump::To(yes), Jump::To(no)])
    }

    fn jump(mut self, code: u16, k: u32, jumps: [Jump; 2]) -> Self {
        self.steps.push((code, k, jumps));
        self
    }
}

/// A type as a load from a message gives it: there it is in host byte order.
fn in_message(kind: u16) -> u32 {
    u16::from_be_bytes(kind.to_ne_bytes()).into()
}

/// Which of these messages the kernel delivers to a socket with this filter.
#[cfg(test)]
pub(crate) fn delivered(filter: &Filter, messages: &[&[u8]]) -> Vec<bool> {
    use std::os::unix::net::UnixDatagram;

    // The kernel runs filters on all sockets alike, and these need no permission.
    let deliver = |message: &&[u8]| {
        let (from, to) = UnixDatagram::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        let socket = socket2::SockRef::from(&to);
        socket.attach_filter(&filter.finish()).unwrap();
        from.send(message).unwrap();
        let mut buf = [0; 4096];
        match to.recv(&mut buf) {
            Ok(len) => {
                assert_eq!(&buf[..len], *message, "as a whole");
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                false
            }
        }
    };
    messages.iter().map(deliver).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::Builder;

    fn message(kind: u16, attrs: impl Fn(&mut Builder)) -> Vec<u8> {
        let mut b = Builder::new();
        b.message(kind, 0, 0, 2, 0);
        attrs(&mut b);
        b.finish().unwrap()
    }

    fn judge(filter: Filter, messages: &[Vec<u8>]) -> Vec<bool> {
        let messages: Vec<_> = messages.iter().map(Vec::as_slice).collect();
        delivered(&filter, &messages)
    }

    #[test]
    fn what_nothing_decides_on_is_dropped() {
        assert_eq!(judge(Filter::new(), &[message(7, |_| {})]), [false]);
    }

    #[test]
    fn bits_of_a_number_behind_other_attributes() {
        let with = |mark| {
            message(0x0100, move |b| {
                b.text(1, "something else").be32(8, mark);
            })
        };
        let messages = [
            with(0x4000_0000),
            with(0x4000_0001),
            with(0x3fff_ffff),
            message(0x4000, |b| _ = b.be32(9, 0x4000_0000)),
            message(0x4000, |_| {}),
        ];
        let filter = Filter::new().any_bit(8, 0x4000_0000, To::Pass);
        assert_eq!(judge(filter, &messages), [true, true, false, false, false]);
        // The next test comes behind it, whether there is such an attribute or not.
        let filter = Filter::new()
            .any_bit(8, 0x4000_0000, To::Drop)
            .kind(0x4000, To::Pass);
        assert_eq!(judge(filter, &messages), [false, false, false, true, true]);
    }

    #[test]
    fn kinds_are_told_apart() {
        let kinds = [0x0a0c, 0x0a0e, 0x0a1e, 0x0c0a, 0].map(|kind| message(kind, |_| {}));
        let one = Filter::new().kind(0x0a0c, To::Pass);
        assert_eq!(judge(one, &kinds), [true, false, false, false, false]);
        let others = Filter::new().other_kind(&[0x0a0c, 0x0a0e, 0x0a1e], To::Pass);
        assert_eq!(judge(others, &kinds), [false, false, false, true, true]);
    }

    #[test]
    fn texts_are_told_apart() {
        let texts = ["ftpalg", "ftpal", "ftpalg2", "Ftpalg", ""];
        let named = texts.map(|text| message(7, |b| _ = b.be32(2, 9).text(1, text)));
        let filter = || Filter::new().other_text(1, "ftpalg", To::Pass);
        assert_eq!(judge(filter(), &named), [false, true, true, true, true]);
        assert_eq!(judge(filter(), &[message(7, |_| {})]), [true]);
    }

    #[test]
    fn several_messages_in_a_datagram() {
        let one = message(7, |b| {
            _ = b
                .text(1, "long enough for two bytes: ")
                .text(2, &"x".repeat(300))
        });
        let filter = Filter::new().several(To::Pass);
        let two = [one.clone(), message(7, |_| {})].concat();
        assert_eq!(judge(filter, &[one, two]), [false, true]);
    }
}
