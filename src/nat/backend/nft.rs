//! Pinholes as elements of nf_tables maps: the rules are static, a hole is one acknowledged
//! netlink message of two elements.
//!
//! For each address family a table `ftpalg` of our own, here for IPv4 in the notation of `nft`:
//!
//! ```text
//! map pinholes4 { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service }
//! map sources4  { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr }
//! prerouting, output   # nat, just before the user's DNAT
//!     ct mark set ct mark | BIT dnat to ip saddr . ip daddr . tcp dport map @pinholes4
//! postrouting, input   # nat, just before the user's SNAT
//!     ct mark & BIT != 0 snat to ct original saddr . daddr . proto-dst map @sources4
//! used, used-local     # filter, at the end of postrouting and input
//!     ct state new ct mark & BIT != 0 delete both elements
//! ```
//!
//! The last two close a hole with the first packet that passes it. A packet that the user's own
//! rules drop on the way doesn't count: the hole is still there for its retransmission.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;

use super::{Backend, BackendError, Mark};
use crate::nat::pinhole::{Key, Pinhole};
use crate::nat::tables;
use crate::netlink::codec::{self, Builder};
use crate::netlink::nftables::{
    Base, Ct, Expressions, Nat, SET_DYNAMIC, SET_MAP, SET_TIMEOUT, STATE_NEW, TABLE_OWNER, attr,
    comment, datatype, msg,
};
use crate::netlink::socket::{BatchError, Request, Socket};

const TABLE: &str = "ftpalg";
/// Names of the maps within the batch that makes them.
const PINHOLES_ID: u32 = 1;
const SOURCES_ID: u32 = 2;
/// `NF_INET_*`
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;
/// Just before `dstnat` (−100) and `srcnat` (100) of the user's rules.
const DNAT_PRIORITY: i32 = -101;
const SNAT_PRIORITY: i32 = 99;
/// Behind all else that may drop the packet.
const USED_PRIORITY: i32 = 300;
/// How often a change is tried anew because an element expired or was used meanwhile: each of a
/// hole's two elements can do so once.
const ATTEMPTS: usize = 4;

/// The backend over nf_tables.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    mark: Mark,
    families: Vec<&'static Family>,
    abilities: Abilities,
}

/// What the kernel takes; found out by trying.
#[derive(Clone, Copy, Debug)]
struct Abilities {
    /// A table that belongs to our socket.
    owner: bool,
    /// Rules that delete elements of maps.
    one_use: bool,
}

impl Nft {
    /// Prepares the backend; nothing is installed yet.
    ///
    /// # Errors
    /// If the kernel has no nf_tables or doesn't let us use it.
    pub fn new(mark: Mark) -> Result<Self, BackendError> {
        let socket = Socket::open().map_err(|source| BackendError::System {
            what: "open a netlink socket",
            source,
        })?;
        if !tables::available() {
            return Err(BackendError::Unsupported(
                "the kernel has no nf_tables, or CAP_NET_ADMIN is missing: use --backend iptables, \
                 or run as root"
                    .into(),
            ));
        }
        Ok(Self {
            socket,
            mark,
            families: Vec::new(),
            abilities: Abilities {
                owner: true,
                one_use: true,
            },
        })
    }

    /// Makes the objects of one family, trying what the kernel takes.
    fn install_family(&mut self, family: &'static Family) -> Result<(), BatchError> {
        let leftover = self.has_table(family).map_err(BatchError::Io)?;
        loop {
            let plan = plan(family, self.mark, self.abilities, leftover);
            let requests: Vec<_> = plan.iter().map(Step::request).collect();
            let error = match self.socket.batch(&requests) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let BatchError::Refused(refused) = &error else {
                return Err(error);
            };
            let refused: Vec<_> = refused
                .iter()
                .filter_map(|r| plan.get(r.index?).map(|step| (&step.what, r.errno)))
                .collect();
            let refuses = |wanted: What| refused.iter().any(|(what, _)| **what == wanted);
            if self.abilities.owner && refuses(What::Table) {
                self.abilities.owner = false;
            } else if self.abilities.one_use && refuses(What::Used) {
                self.abilities.one_use = false;
            } else {
                return Err(error);
            }
        }
    }

    /// Which elements of a key are in the kernel: that of the hole, that of its source.
    ///
    /// Asked before each change, because a batch that the kernel has to undo waits for all CPUs
    /// (milliseconds), while a question takes about a microsecond.
    fn present(&mut self, family: &'static Family, key: Key) -> io::Result<[bool; 2]> {
        let mut present = [false; 2];
        for (there, pinhole) in present.iter_mut().zip([true, false]) {
            let asked = self
                .socket
                .get(&elem(msg::GET_ELEM, family, pinhole, key), |_| ());
            *there = match asked {
                Ok(()) => true,
                Err(error) if is(&error, Errno::ENOENT) => false,
                Err(error) => return Err(error),
            };
        }
        Ok(present)
    }

    /// Deletes a key's elements and adds others, in one batch.
    ///
    /// An element may go between question and change, by its timeout or use: then asks again.
    fn replace(
        &mut self,
        family: &'static Family,
        key: Key,
        data: [Option<&[u8]>; 2],
        timeout: Duration,
    ) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            let present = self.present(family, key)?;
            let deletes = present.iter().zip([true, false]).filter(|(p, _)| **p);
            let adds = data
                .iter()
                .zip([true, false])
                .filter_map(|(data, pinhole)| Some((pinhole, (*data)?)));
            let requests: Vec<_> = deletes
                .map(|(_, pinhole)| elem(msg::DEL_ELEM, family, pinhole, key))
                .chain(adds.map(|(pinhole, data)| add_elem(family, pinhole, key, data, timeout)))
                .collect();
            match self.socket.batch(&requests).map_err(io::Error::from) {
                Err(error) if is(&error, Errno::ENOENT) || is(&error, Errno::EEXIST) => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn has_table(&mut self, family: &Family) -> io::Result<bool> {
        let tables = tables::tables_on(&mut self.socket)?;
        Ok(tables
            .iter()
            .any(|table| table.family == family.number && table.name == TABLE))
    }

    fn family(&self, ip: IpAddr) -> Result<&'static Family, BackendError> {
        self.families
            .iter()
            .copied()
            .find(|family| family.is_of(ip))
            .ok_or_else(|| {
                BackendError::Unsupported(format!(
                    "no pinhole for {ip}: its address family was not installed"
                ))
            })
    }
}

impl Backend for Nft {
    fn name(&self) -> &'static str {
        "nft"
    }

    fn install(&mut self) -> Result<(), BackendError> {
        self.families.clear();
        // A socket that owns a table in one family must own those of the others, too.
        for family in [&IPV4, &IPV6] {
            if !family.is_here() {
                continue;
            }
            match self.install_family(family) {
                Ok(()) => self.families.push(family),
                Err(error) => {
                    let source = io::Error::from(error);
                    if family.optional && lacks_support(&source) {
                        log::debug!("no {} NAT in this kernel: {source}", family.label);
                        continue;
                    }
                    let _ = self.remove();
                    return Err(explain(family, source));
                }
            }
        }
        Ok(())
    }

    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        let family = self.family(hole.from)?;
        let of_family = |ip| family.is_of(ip);
        if !of_family(hole.to.ip())
            || !of_family(hole.land.ip())
            || !hole.as_source.is_none_or(of_family)
        {
            return Err(BackendError::Unsupported(
                "a pinhole's addresses must be of one family".into(),
            ));
        }
        let land = endpoint(hole.land);
        let source = hole.as_source.map(octets);
        self.replace(
            family,
            hole.key(),
            [Some(&land), source.as_deref()],
            timeout,
        )
        .map_err(|source| BackendError::System {
            what: "open a pinhole",
            source,
        })
    }

    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError> {
        let family = self.family(hole.from)?;
        self.replace(family, hole.key(), [None, None], Duration::ZERO)
            .map_err(|source| BackendError::System {
                what: "close a pinhole",
                source,
            })
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        let mut result = Ok(());
        self.families.clear();
        for family in [&IPV4, &IPV6] {
            let present = self.has_table(family).unwrap_or(true);
            if !present {
                continue;
            }
            match self
                .socket
                .batch(&[del_table(family)])
                .map_err(io::Error::from)
            {
                Err(source) if !is(&source, Errno::ENOENT) => {
                    result = Err(BackendError::System {
                        what: "remove table ftpalg",
                        source,
                    });
                }
                _ => {}
            }
        }
        result
    }

    fn verify(&mut self) -> Result<bool, BackendError> {
        let chains =
            tables::chains_on(&mut self.socket).map_err(|source| BackendError::System {
                what: "list chains",
                source,
            })?;
        let all = self.families.iter().all(|family| {
            let wanted = chain_specs(self.abilities.one_use);
            wanted.iter().all(|spec| {
                chains.iter().any(|chain| {
                    chain.family == family.number
                        && chain.table == TABLE
                        && chain.name == spec.name
                        && usize::try_from(chain.rules).is_ok_and(|n| n == spec.rules.len())
                })
            })
        });
        Ok(all && !self.families.is_empty())
    }

    fn one_use(&self) -> bool {
        self.abilities.one_use
    }
}

impl Drop for Nft {
    /// A table with an owner goes with the socket; on older kernels it must be taken away.
    fn drop(&mut self) {
        if !self.families.is_empty()
            && let Err(error) = self.remove()
        {
            log::warn!("{error}");
        }
    }
}

/// What differs between IPv4 and IPv6.
#[derive(Debug)]
struct Family {
    label: &'static str,
    /// `NFPROTO_*`
    number: u8,
    pinholes: &'static str,
    sources: &'static str,
    /// How many registers an address takes.
    words: u32,
    /// Where the addresses are in the IP header.
    source_at: u32,
    target_at: u32,
    ct_source: Ct,
    ct_target: Ct,
    datatype: u32,
    optional: bool,
}

static IPV4: Family = Family {
    label: "IPv4",
    number: 2,
    pinholes: "pinholes4",
    sources: "sources4",
    words: 1,
    source_at: 12,
    target_at: 16,
    ct_source: Ct::OriginalSource4,
    ct_target: Ct::OriginalTarget4,
    datatype: datatype::IPV4,
    optional: false,
};

static IPV6: Family = Family {
    label: "IPv6",
    number: 10,
    pinholes: "pinholes6",
    sources: "sources6",
    words: 4,
    source_at: 8,
    target_at: 24,
    ct_source: Ct::OriginalSource6,
    ct_target: Ct::OriginalTarget6,
    datatype: datatype::IPV6,
    optional: true,
};

impl Family {
    fn is_of(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self.number == IPV4.number)
    }

    fn is_here(&self) -> bool {
        !self.optional || Path::new("/proc/sys/net/ipv6").exists()
    }

    fn set(&self, pinhole: bool) -> &'static str {
        if pinhole { self.pinholes } else { self.sources }
    }

    /// Registers: the key from 0 (source, target, port), then what a map gives, then the mark.
    fn target(&self) -> u32 {
        self.words
    }
    fn port(&self) -> u32 {
        2 * self.words
    }
    fn data(&self) -> u32 {
        2 * self.words + 1
    }
    fn data_port(&self) -> u32 {
        3 * self.words + 1
    }
    fn mark(&self) -> u32 {
        3 * self.words + 2
    }
}

/// One request of an installation, and what it is about.
struct Step {
    what: What,
    kind: u16,
    flags: u16,
    family: u8,
    attrs: Box<dyn Fn(&mut Builder)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Table,
    Map,
    Chain,
    /// Chain or rule that closes a used hole.
    Used,
}

impl Step {
    fn request(&self) -> Request<'_> {
        Request {
            kind: self.kind,
            flags: self.flags,
            family: self.family,
            attrs: Box::new(|b| (self.attrs)(b)),
        }
    }
}

type Rule = fn(&Family, Mark, &mut Expressions<'_>);

/// A chain with its rules.
struct ChainSpec {
    name: &'static str,
    kind: &'static str,
    hook: u32,
    priority: i32,
    role: &'static str,
    rules: &'static [Rule],
}

fn chain_specs(one_use: bool) -> &'static [ChainSpec] {
    let (always, _) = CHAINS.split_at(4);
    if one_use { &CHAINS } else { always }
}

/// Those that close used holes come last.
static CHAINS: [ChainSpec; 6] = [
    ChainSpec {
        name: "prerouting",
        kind: "nat",
        hook: PREROUTING,
        priority: DNAT_PRIORITY,
        role: "ftpalg:dnat",
        rules: &[dnat_rule],
    },
    ChainSpec {
        name: "output",
        kind: "nat",
        hook: OUTPUT,
        priority: DNAT_PRIORITY,
        role: "ftpalg:dnat-local",
        rules: &[dnat_rule],
    },
    ChainSpec {
        name: "postrouting",
        kind: "nat",
        hook: POSTROUTING,
        priority: SNAT_PRIORITY,
        role: "ftpalg:snat",
        rules: &[snat_rule],
    },
    ChainSpec {
        name: "input",
        kind: "nat",
        hook: INPUT,
        priority: SNAT_PRIORITY,
        role: "ftpalg:snat-local",
        rules: &[snat_rule],
    },
    ChainSpec {
        name: "used",
        kind: "filter",
        hook: POSTROUTING,
        priority: USED_PRIORITY,
        role: "ftpalg:used",
        rules: &[used_pinhole_rule, used_source_rule],
    },
    ChainSpec {
        name: "used-local",
        kind: "filter",
        hook: INPUT,
        priority: USED_PRIORITY,
        role: "ftpalg:used-local",
        rules: &[used_pinhole_rule, used_source_rule],
    },
];

/// Everything of one family in one batch: it replaces a leftover and is there at once, or not at all.
fn plan(family: &'static Family, mark: Mark, abilities: Abilities, leftover: bool) -> Vec<Step> {
    let step = |what, kind, flags, attrs| Step {
        what,
        kind,
        flags,
        family: family.number,
        attrs,
    };
    let mut steps = Vec::new();
    if leftover {
        steps.push(step(
            What::Map,
            msg::DEL_TABLE,
            0,
            Box::new(|b| {
                b.text(attr::TABLE_NAME, TABLE);
            }),
        ));
    }
    steps.push(step(
        What::Table,
        msg::NEW_TABLE,
        codec::CREATE | codec::EXCL,
        Box::new(move |b| {
            b.text(attr::TABLE_NAME, TABLE);
            if abilities.owner {
                b.be32(attr::TABLE_FLAGS, TABLE_OWNER);
            }
            b.bytes(attr::TABLE_USERDATA, &comment(0, "ftpalg:pinholes"));
        }),
    ));
    for pinhole in [true, false] {
        steps.push(step(
            What::Map,
            msg::NEW_SET,
            codec::CREATE,
            Box::new(move |b| put_map(b, family, pinhole)),
        ));
    }
    for spec in chain_specs(abilities.one_use) {
        let what = if spec.kind == "filter" {
            What::Used
        } else {
            What::Chain
        };
        steps.push(step(
            what,
            msg::NEW_CHAIN,
            codec::CREATE,
            Box::new(move |b| put_chain(b, spec)),
        ));
        for rule in spec.rules {
            steps.push(step(
                what,
                msg::NEW_RULE,
                codec::CREATE | codec::APPEND,
                Box::new(move |b| put_rule(b, spec, |list| rule(family, mark, list))),
            ));
        }
    }
    steps
}

fn put_chain(b: &mut Builder, spec: &ChainSpec) {
    b.text(attr::CHAIN_TABLE, TABLE);
    b.text(attr::CHAIN_NAME, spec.name);
    b.nest(attr::CHAIN_HOOK, |b| {
        b.be32(attr::HOOK_NUM, spec.hook);
        b.be32(attr::HOOK_PRIORITY, spec.priority.cast_unsigned());
    });
    // NF_ACCEPT
    b.be32(attr::CHAIN_POLICY, 1);
    b.text(attr::CHAIN_TYPE, spec.kind);
    b.bytes(attr::CHAIN_USERDATA, &comment(0, spec.role));
}

fn put_rule(b: &mut Builder, spec: &ChainSpec, rule: impl FnOnce(&mut Expressions<'_>)) {
    b.text(attr::RULE_TABLE, TABLE);
    b.text(attr::RULE_CHAIN, spec.name);
    b.nest(attr::RULE_EXPRESSIONS, |b| rule(&mut Expressions::new(b)));
    b.bytes(attr::RULE_USERDATA, &comment(0, spec.role));
}

fn put_map(b: &mut Builder, family: &Family, pinhole: bool) {
    let addr = family.datatype;
    let addr_len = 4 * family.words;
    let (id, data_type, data_len, role) = if pinhole {
        let data = datatype::concat(&[addr, datatype::PORT]);
        (PINHOLES_ID, data, addr_len + 4, "ftpalg:pinholes")
    } else {
        (SOURCES_ID, addr, addr_len, "ftpalg:sources")
    };
    let key_type = datatype::concat(&[addr, addr, datatype::PORT]);
    b.text(attr::SET_TABLE, TABLE);
    b.text(attr::SET_NAME, family.set(pinhole));
    b.be32(attr::SET_FLAGS, SET_MAP | SET_TIMEOUT | SET_DYNAMIC);
    b.be32(attr::SET_KEY_TYPE, key_type);
    b.be32(attr::SET_KEY_LEN, 2 * addr_len + 4);
    b.be32(attr::SET_DATA_TYPE, data_type);
    b.be32(attr::SET_DATA_LEN, data_len);
    b.be32(attr::SET_ID, id);
    // User data of a set starts with the byte order of key and data (2: network).
    let order = |kind: u8| [vec![kind, 4], 2u32.to_ne_bytes().to_vec()].concat();
    let userdata = [order(0), order(1), comment(7, role)].concat();
    b.bytes(attr::SET_USERDATA, &userdata);
}

const TCP: u8 = 6;

fn dnat_rule(family: &Family, mark: Mark, rule: &mut Expressions<'_>) {
    let addr_len = 4 * family.words;
    rule.protocol(0, TCP)
        .payload(0, Base::Network, family.source_at, addr_len)
        .payload(family.target(), Base::Network, family.target_at, addr_len)
        .payload(family.port(), Base::Transport, 2, 2)
        .lookup(family.pinholes, PINHOLES_ID, 0, family.data())
        .ct(family.mark(), Ct::Mark)
        .bits(family.mark(), !mark.bit(), mark.bit())
        .set_mark(family.mark())
        .nat(
            Nat::Destination,
            family.number,
            family.data(),
            Some(family.data_port()),
        );
}

fn snat_rule(family: &Family, mark: Mark, rule: &mut Expressions<'_>) {
    original_key(family, mark, rule)
        .lookup(family.sources, SOURCES_ID, 0, family.data())
        .nat(Nat::Source, family.number, family.data(), None);
}

fn used_pinhole_rule(family: &Family, mark: Mark, rule: &mut Expressions<'_>) {
    first_packet(rule);
    original_key(family, mark, rule).delete(family.pinholes, PINHOLES_ID, 0, 0);
}

fn used_source_rule(family: &Family, mark: Mark, rule: &mut Expressions<'_>) {
    first_packet(rule);
    original_key(family, mark, rule).delete(family.sources, SOURCES_ID, 0, 0);
}

fn first_packet(rule: &mut Expressions<'_>) {
    rule.ct(0, Ct::State)
        .bits(0, STATE_NEW, 0)
        .compare(0, false, &[0; 4]);
}

/// Goes on for packets of a data connection, with the key of its hole in the first registers.
fn original_key<'r, 'b>(
    family: &Family,
    mark: Mark,
    rule: &'r mut Expressions<'b>,
) -> &'r mut Expressions<'b> {
    rule.ct(0, Ct::Mark)
        .bits(0, mark.bit(), 0)
        .compare(0, false, &[0; 4])
        .protocol(0, TCP)
        .ct(0, family.ct_source)
        .ct(family.target(), family.ct_target)
        .ct(family.port(), Ct::OriginalPort)
}

fn add_elem<'a>(
    family: &'static Family,
    pinhole: bool,
    key: Key,
    data: &'a [u8],
    timeout: Duration,
) -> Request<'a> {
    // 0 would mean: forever.
    let millis = u64::try_from(timeout.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    Request {
        kind: msg::NEW_ELEM,
        flags: codec::CREATE | codec::EXCL,
        family: family.number,
        attrs: Box::new(move |b| {
            put_elem(b, family.set(pinhole), key, |b| {
                b.nest(attr::ELEM_DATA, |b| {
                    b.bytes(attr::DATA_VALUE, data);
                });
                b.be64(attr::ELEM_TIMEOUT, millis);
            });
        }),
    }
}

/// Asks for an element, or deletes it.
fn elem(kind: u16, family: &'static Family, pinhole: bool, key: Key) -> Request<'static> {
    Request {
        kind,
        flags: 0,
        family: family.number,
        attrs: Box::new(move |b| put_elem(b, family.set(pinhole), key, |_| {})),
    }
}

fn del_table(family: &'static Family) -> Request<'static> {
    Request {
        kind: msg::DEL_TABLE,
        flags: 0,
        family: family.number,
        attrs: Box::new(|b| {
            b.text(attr::TABLE_NAME, TABLE);
        }),
    }
}

fn put_elem(b: &mut Builder, map: &str, key: Key, more: impl FnOnce(&mut Builder)) {
    b.text(attr::ELEMS_TABLE, TABLE).text(attr::ELEMS_SET, map);
    b.nest(attr::ELEMS_LIST, |b| {
        b.nest(attr::LIST_ELEM, |b| {
            let key = [octets(key.from), endpoint(key.to)].concat();
            b.nest(attr::ELEM_KEY, |b| {
                b.bytes(attr::DATA_VALUE, &key);
            });
            more(b);
        });
    });
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Address and port, each field padded to 4 bytes.
fn endpoint(addr: SocketAddr) -> Vec<u8> {
    [
        octets(addr.ip()),
        addr.port().to_be_bytes().to_vec(),
        vec![0; 2],
    ]
    .concat()
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(errno)
}

fn lacks_support(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT)
    )
}

fn explain(family: &Family, source: io::Error) -> BackendError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => BackendError::Unsupported(format!(
            "can't make the {} table ftpalg: it belongs to another running ftpalg (stop that one), \
             or CAP_NET_ADMIN is missing",
            family.label
        )),
        Some(Errno::ENOENT | Errno::EOPNOTSUPP) => BackendError::Unsupported(format!(
            "the kernel lacks {} NAT in nf_tables ({source}): `modprobe nft_nat nft_chain_nat`, or \
             use --backend iptables",
            family.label
        )),
        _ => BackendError::System {
            what: "install table ftpalg",
            source,
        },
    }
}
