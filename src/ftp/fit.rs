//! Announcements that are rewritten without changing the length of their line.
//!
//! An edit that keeps its length leaves no sequence delta behind: whoever takes the connection over,
//! on this box or another, can go on with it. FTP leaves some room for that. Clients look for the
//! parenthesis or the first digit of a `227` or `229`, so blanks may stand before it; they stop at the
//! closing parenthesis, so a final dot may go. The public port may be chosen by the length of its
//! text.
//!
//! What programs were seen to stumble over isn't done: leading zeros in decimal numbers (Go's client),
//! blanks within the parentheses, anything behind the closing one (.NET's), other words, and other
//! spellings of an IPv6 address than the usual one (RFC 5952): pyftpdlib compares the text of an `EPRT`
//! with that of the client's address.

use std::net::{IpAddr, SocketAddr};

use super::Mode;
use super::hostport;
use super::session::{Announcement, Form};

/// How many lengths a port's text may have: `1` to `65535`, or `0,1` to `255,255`.
const LONGEST: u8 = 7;
/// `|1|` before an address in an `EPRT`, and the delimiters behind it and behind the port.
const EPRT_DELIMITERS: usize = 5;
/// `|||` before the port of a `229`, and the delimiter behind it.
const EPSV_DELIMITERS: usize = 4;

/// How a port is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortText {
    /// `p1,p2`: both bytes as decimal numbers (RFC 959 §4.1.2).
    Pair,
    /// One decimal number (RFC 2428).
    Number,
}

impl PortText {
    /// How `form` writes the port.
    #[must_use]
    pub fn of(form: Form) -> Self {
        match form {
            Form::HostPort => Self::Pair,
            Form::Extended(_) | Form::ExtendedPort(_) => Self::Number,
        }
    }

    /// The length of this port's text, in characters.
    #[must_use]
    pub fn length(self, port: u16) -> u8 {
        match self {
            Self::Number => digits(port),
            Self::Pair => {
                let [high, low] = port.to_be_bytes().map(|byte| digits(byte.into()));
                high.saturating_add(low).saturating_add(1)
            }
        }
    }
}

/// How many decimal digits a number has.
fn digits(number: u16) -> u8 {
    match number {
        0..10 => 1,
        10..100 => 2,
        100..1_000 => 3,
        1_000..10_000 => 4,
        10_000.. => 5,
    }
}

/// The ports whose text has one of some lengths, to be counted.
#[derive(Clone, Copy, Debug)]
pub struct PortsOfLength {
    text: PortText,
    lengths: Lengths,
    /// [`PortText::Pair`]: how many second bytes go with a first one of 1, 2 or 3 digits.
    seconds: [u32; 3],
}

/// Numbers with 1, 2, … decimal digits: from the first one on, and before the second.
const DIGITS: [(u32, u32); 5] = [
    (0, 10),
    (10, 100),
    (100, 1_000),
    (1_000, 10_000),
    (10_000, 100_000),
];

/// How many numbers below `end` have one of these counts of digits.
fn numbers_below(end: u32, digits: Lengths) -> u32 {
    let classes = (1..).zip(DIGITS);
    let some = classes.filter(|(count, _)| digits.contains(*count));
    some.map(|(_, (from, to))| end.min(to).saturating_sub(from))
        .sum()
}

impl PortsOfLength {
    /// Those whose text has one of `lengths`.
    #[must_use]
    pub fn new(text: PortText, lengths: Lengths) -> Self {
        let mut all = Self {
            text,
            lengths,
            seconds: [0; 3],
        };
        all.seconds = [1, 2, 3].map(|digits| numbers_below(256, all.behind(digits)));
        all
    }

    /// How many digits a second byte may have behind a first one with so many, and a comma.
    fn behind(&self, digits: u8) -> Lengths {
        let Lengths(bits) = self.lengths;
        Lengths(
            bits.checked_shr(u32::from(digits).saturating_add(1))
                .unwrap_or(0),
        )
    }

    /// How many of them are below `end`. `end` is 65,536 at most.
    #[must_use]
    pub fn below(&self, end: u32) -> u32 {
        // Port 0 is none.
        let zero = u32::from(end > 0 && self.lengths.contains(self.text.length(0)));
        let all = match self.text {
            PortText::Number => numbers_below(end, self.lengths),
            PortText::Pair => {
                let (first, second) = (end >> 8, end & 0xff);
                let mut count = 0u32;
                for (digits, ((from, to), seconds)) in
                    (1..).zip(DIGITS.into_iter().zip(self.seconds))
                {
                    let firsts = first.min(to).saturating_sub(from);
                    count = count.saturating_add(firsts.saturating_mul(seconds));
                    if (from..to).contains(&first) {
                        count = count.saturating_add(numbers_below(second, self.behind(digits)));
                    }
                }
                count
            }
        };
        all.saturating_sub(zero)
    }
}

/// Which lengths a port's text may have, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lengths(u8);

impl Lengths {
    /// Any length will do.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether a text of so many characters is among them.
    #[must_use]
    pub fn contains(self, length: u8) -> bool {
        length <= LONGEST && self.0 & (1 << length) != 0
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Adds a length. No port has a text of more than seven characters.
    pub fn add(&mut self, length: u8) {
        if length <= LONGEST {
            self.0 |= 1 << length;
        }
    }
}

/// The ports with which a rewritten announcement keeps its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// How the port is written.
    pub text: PortText,
    /// Lengths of the port's text with which only blanks are added.
    pub best: Lengths,
    /// Further ones, with which the final dot of the line goes.
    pub without_dot: Lengths,
}

impl Fitting {
    /// Any port is as good as another.
    pub const ANY: Self = Self {
        text: PortText::Number,
        best: Lengths::ALL,
        without_dot: Lengths(0),
    };
}

/// An announcement's address within its line, as far as the line is here.
#[derive(Clone, Copy, Debug)]
pub struct LineSlot<'a> {
    /// The announcement that stands there.
    pub said: &'a Announcement,
    /// The length of the address and port, in bytes.
    len: usize,
    /// How many bytes before the address the blanks go, if they may.
    blanks_at: Option<usize>,
    /// What is between the address and the dot that may go.
    dot: Option<&'a [u8]>,
    /// Whether the line is to keep its length.
    keeps_length: bool,
}

/// What replaces an address and the bytes around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// How many bytes before the address are replaced as well.
    pub before: usize,
    /// How many bytes behind it are replaced as well.
    pub after: usize,
    /// The new bytes.
    pub text: Vec<u8>,
}

impl<'a> LineSlot<'a> {
    /// The slot of an announcement whose address has `len` bytes, behind `before` and followed by
    /// `after`: the parts of its line that can still be changed.
    #[must_use]
    pub fn new(said: &'a Announcement, len: usize, before: &'a [u8], after: &'a [u8]) -> Self {
        let reply = said.mode == Mode::Passive;
        let blanks = match before {
            [.., b'('] => Some(1),
            // A number that no parenthesis leads in is searched for from blank to digit.
            [.., b' '] if said.form == Form::HostPort => Some(0),
            _ => None,
        };
        let closing = match after {
            [b')', ..] => 1,
            _ => 0,
        };
        let (closing, rest) = after.split_at_checked(closing).unwrap_or((after, &[]));
        let ends = rest.starts_with(b".\r\n") || rest.starts_with(b".\n");
        Self {
            said,
            len,
            blanks_at: blanks.filter(|_| reply),
            dot: (reply && ends).then_some(closing),
            keeps_length: true,
        }
    }

    /// The same where the line may get any length.
    #[must_use]
    pub fn of_any_length(self) -> Self {
        Self {
            keeps_length: false,
            ..self
        }
    }

    /// The ports with which `public` fits.
    #[must_use]
    pub fn fitting(&self, public: IpAddr) -> Fitting {
        if !self.keeps_length {
            return Fitting::ANY;
        }
        let mut best = Lengths::default();
        let mut without_dot = Lengths::default();
        let others = self.len_of_others(public);
        for length in 1..=LONGEST {
            if self.blanks(others, length, false).is_some() {
                best.add(length);
            } else if self.blanks(others, length, true).is_some() {
                without_dot.add(length);
            }
        }
        let text = PortText::of(self.said.form);
        Fitting {
            text,
            best,
            without_dot,
        }
    }

    /// `public` written in the slot: of the slot's length if that is asked for and can be had.
    #[must_use]
    pub fn rewrite(&self, public: SocketAddr) -> Rewrite {
        let length = PortText::of(self.said.form).length(public.port());
        let others = self.len_of_others(public.ip());
        let fit = |dotless| Some((self.blanks(others, length, dotless)?, dotless));
        let plain = self.plain(public);
        let fits = fit(false).or_else(|| fit(true));
        let Some((blanks, dotless)) = fits.filter(|_| self.keeps_length) else {
            return plain;
        };
        let before = self.blanks_at.filter(|_| blanks > 0).unwrap_or(0);
        let closing = self.dot.filter(|_| dotless);
        let mut text = vec![b' '; blanks];
        text.extend(std::iter::repeat_n(b'(', before));
        text.extend(plain.text);
        text.extend(closing.unwrap_or_default());
        Rewrite {
            before,
            after: closing.map_or(0, |closing| closing.len().saturating_add(1)),
            text,
        }
    }

    /// `public` as it is usually written, whatever its length.
    #[must_use]
    pub fn plain(&self, public: SocketAddr) -> Rewrite {
        Rewrite {
            before: 0,
            after: 0,
            text: hostport::encode(self.said.form, public),
        }
    }

    /// How long an address is in this form without its port; `None`: it isn't to be written so.
    fn len_of_others(&self, ip: IpAddr) -> Option<usize> {
        let len = match ip {
            IpAddr::V4(ip) => {
                let lengths = ip.octets().map(|octet| usize::from(digits(octet.into())));
                // And three dots.
                lengths.iter().sum::<usize>().saturating_add(3)
            }
            IpAddr::V6(ip) => ip.to_string().len(),
        };
        match (self.said.form, ip) {
            (Form::HostPort, IpAddr::V4(_)) => Some(len.saturating_add(1)),
            (Form::HostPort, IpAddr::V6(_)) => None,
            (Form::ExtendedPort(_), _) => Some(EPSV_DELIMITERS),
            (Form::Extended(_), _) => Some(len.saturating_add(EPRT_DELIMITERS)),
        }
    }

    /// How many blanks make an address fit with a port whose text has `length` characters, if all
    /// else of it has `others`; `dotless`: whether the final dot's place is used.
    fn blanks(&self, others: Option<usize>, length: u8, dotless: bool) -> Option<usize> {
        if dotless && self.dot.is_none() {
            return None;
        }
        let room = self.len.saturating_add(usize::from(dotless));
        let left = room.checked_sub(others?.saturating_add(usize::from(length)))?;
        (left == 0 || self.blanks_at.is_some()).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn reply(form: Form) -> Announcement {
        Announcement {
            verb: "227",
            mode: Mode::Passive,
            form,
            addr: None,
            port: 1,
        }
    }

    fn command(form: Form) -> Announcement {
        Announcement {
            mode: Mode::Active,
            ..reply(form)
        }
    }

    /// What a line becomes; `at`: its address.
    fn line(said: &Announcement, line: &str, at: &str, public: &str) -> String {
        let (before, after) = line.split_once(at).unwrap();
        let slot = LineSlot::new(said, at.len(), before.as_bytes(), after.as_bytes());
        let rewrite = slot.rewrite(public.parse().unwrap());
        let head = &before[..before.len() - rewrite.before];
        let text = String::from_utf8(rewrite.text).unwrap();
        format!("{head}{text}{}", &after[rewrite.after..])
    }

    #[test]
    fn a_reply_grows_before_its_parenthesis() {
        let said = reply(Form::HostPort);
        let address = "192,168,100,200,195,80";
        let text = format!("227 Entering Passive Mode ({address}).\r\n");
        for (public, expected) in [
            (
                "9.9.9.9:50000",
                "227 Entering Passive Mode         (9,9,9,9,195,80).\r\n",
            ),
            (
                "9.9.9.9:1024",
                "227 Entering Passive Mode            (9,9,9,9,4,0).\r\n",
            ),
            // The dot goes.
            (
                "203.100.113.200:50100",
                "227 Entering Passive Mode (203,100,113,200,195,180)\r\n",
            ),
        ] {
            assert_eq!(line(&said, &text, address, public), expected);
            assert_eq!(expected.len(), text.len());
        }
        // No more room.
        let expected = "227 Entering Passive Mode (203,100,113,222,195,180).\r\n";
        let short = text.replace("192,168,100,200,195,80", "10,0,0,2,195,80");
        let address = "10,0,0,2,195,80";
        assert_eq!(
            line(&said, &short, address, "203.100.113.222:50100"),
            expected
        );
    }

    #[test]
    fn a_reply_without_parentheses() {
        let said = reply(Form::HostPort);
        let address = "192,168,100,200,195,80";
        for (text, expected) in [
            (
                "227 Passive 192,168,100,200,195,80\r\n",
                "227 Passive         9,9,9,9,195,80\r\n",
            ),
            // A blank behind an equals sign isn't known to be stepped over.
            ("227 =192,168,100,200,195,80\r\n", "227 =9,9,9,9,195,80\r\n"),
            (
                "227 Mode,192,168,100,200,195,80.\r\n",
                "227 Mode,9,9,9,9,195,80.\r\n",
            ),
        ] {
            assert_eq!(line(&said, text, address, "9.9.9.9:50000"), expected);
        }
    }

    #[test]
    fn a_dot_goes_only_at_the_end_of_the_line() {
        let said = reply(Form::HostPort);
        for tail in ["). Bye\r\n", ").", ")..\r\n", ")\r\n"] {
            let text = format!("227 Ok (10,0,0,2,4,5{tail}");
            let expected = format!("227 Ok (10,0,0,12,4,5{tail}");
            assert_eq!(
                line(&said, &text, "10,0,0,2,4,5", "10.0.0.12:1029"),
                expected
            );
        }
        let text = "227 Ok 10,0,0,2,4,5.\n";
        assert_eq!(
            line(&said, text, "10,0,0,2,4,5", "10.0.0.12:1029"),
            "227 Ok 10,0,0,12,4,5\n"
        );
    }

    #[test]
    fn a_command_has_no_blanks() {
        let said = command(Form::HostPort);
        let text = "PORT 192,168,1,5,200,13\r\n";
        assert_eq!(
            line(&said, text, "192,168,1,5,200,13", "9.9.9.9:51213"),
            "PORT 9,9,9,9,200,13\r\n"
        );
        let slot = LineSlot::new(&said, 18, b"PORT ", b"\r\n");
        let fitting = slot.fitting("203.0.113.7".parse().unwrap());
        let lengths =
            |lengths: Lengths| (0..9).filter(|n| lengths.contains(*n)).collect::<Vec<_>>();
        assert_eq!(lengths(fitting.best), [6]);
        assert!(fitting.without_dot.is_empty());
        // Nine bytes for the port's text: there is none.
        assert!(slot.fitting("9.9.9.9".parse().unwrap()).best.is_empty());
    }

    #[test]
    fn an_extended_reply() {
        let said = reply(Form::ExtendedPort(b'|'));
        let text = "229 Extended Passive Mode OK (|||40000|)\r\n";
        let expected = "229 Extended Passive Mode OK  (|||8080|)\r\n";
        assert_eq!(
            line(&said, text, "|||40000|", "[2001:db8::1]:8080"),
            expected
        );
    }

    #[test]
    fn ports_are_counted_by_length() {
        for text in [PortText::Number, PortText::Pair] {
            for lengths in (0..=LONGEST)
                .map(|length| Lengths(1 << length))
                .chain([Lengths::ALL])
            {
                let ports = PortsOfLength::new(text, lengths);
                let mut count = 0;
                for port in 1..=u16::MAX {
                    assert_eq!(
                        ports.below(port.into()),
                        count,
                        "{text:?} {lengths:?} {port}"
                    );
                    count += u32::from(lengths.contains(text.length(port)));
                }
                assert_eq!(ports.below(1 << 16), count);
            }
        }
    }

    fn any_ip() -> impl Strategy<Value = IpAddr> {
        let groups = prop::collection::vec(prop_oneof![Just(0u16), any::<u16>(), 0u16..16], 8);
        let v6 = groups.prop_map(|groups| {
            let groups: [u16; 8] = groups.try_into().unwrap();
            IpAddr::from(groups)
        });
        prop_oneof![any::<u32>().prop_map(|ip| Ipv4Addr::from(ip).into()), v6]
    }

    proptest! {
        /// What is said to fit does, and says the same.
        #[test]
        fn a_fitting_port_keeps_the_length(
            old in any_ip(), old_port in 1u16.., new in any_ip(), port in 1u16..,
            active: bool, extended: bool, dot: bool,
        ) {
            let form = match (extended, active) {
                (false, _) => Form::HostPort,
                (true, true) => Form::Extended(b'|'),
                (true, false) => Form::ExtendedPort(b'|'),
            };
            prop_assume!(form != Form::HostPort || old.is_ipv4() && new.is_ipv4());
            let said = if active { command(form) } else { reply(form) };
            let address = hostport::encode(form, SocketAddr::new(old, old_port));
            let after: &[u8] = match (active, dot) {
                (true, _) => b"\r\n",
                (false, true) => b").\r\n",
                (false, false) => b")\r\n",
            };
            let before: &[u8] = if active { b"PORT " } else { b"227 Mode (" };
            let slot = LineSlot::new(&said, address.len(), before, after);
            let fitting = slot.fitting(new);
            let length = fitting.text.length(port);
            let public = SocketAddr::new(new, port);
            let rewrite = slot.rewrite(public);
            let kept = rewrite.text.len() == rewrite.before + address.len() + rewrite.after;
            let fits = fitting.best.contains(length) || fitting.without_dot.contains(length);
            prop_assert_eq!(kept, fits);
            prop_assert_eq!(rewrite.after > 0, fitting.without_dot.contains(length));
            // Read again, it is the public address.
            let mut line = before[..before.len() - rewrite.before].to_vec();
            line.extend(&rewrite.text);
            line.extend(&after[rewrite.after..]);
            let opens = |b: &u8| *b == b'(' || active && *b == b' ';
            let start = line.iter().position(opens).unwrap() + 1;
            let end = line.iter().position(|b| *b == b')' || *b == b'\r').unwrap();
            let text = &line[start..end];
            match form {
                Form::HostPort => {
                    let IpAddr::V4(new) = new else { unreachable!() };
                    prop_assert_eq!(hostport::parse_host_port(text), Some((new, port)));
                }
                Form::Extended(_) => {
                    prop_assert_eq!(hostport::parse_extended(text), Some((b'|', new, port)));
                }
                Form::ExtendedPort(_) => {
                    let whole = format!("|||{port}|");
                    prop_assert_eq!(text, whole.as_bytes());
                }
            }
        }
    }
}
