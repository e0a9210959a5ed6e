//! The backend over nf_tables: a pinhole is one to three elements of maps, which static rules look up.
//!
//! Each address family has a table `ftpalg` of our own, here for IPv4 in the notation of `nft`:
//!
//! ```text
//! map pinholes4 { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr . inet_service
//!                 limit rate 2/second burst 1 packets counter }   # of each element by itself
//! map marks4    { type ipv4_addr . ipv4_addr . inet_service : mark }
//! map sources4  { type ipv4_addr . ipv4_addr . inet_service : ipv4_addr }
//! prerouting, output   # nat, just before the user's DNAT
//!     ct mark 0 ct mark set (@marks4), meta mark set (the same without BIT), dnat to (@pinholes4)
//!     ct mark set ct mark | BIT dnat to ip saddr . ip daddr . tcp dport map @pinholes4
//! postrouting, input   # nat, just before the user's SNAT
//!     ct mark & BIT != 0 snat to ct original saddr . daddr . proto-dst map @sources4
//! ```
//!
//! Opening and closing is one acknowledged netlink batch. Only the first packet of a connection meets
//! these rules, since they are in nat chains.
//!
//! One use: the limit of an element lets one first packet through, and keeps others out for half a
//! second, on any number of CPUs. Meanwhile conntrack's NEW event has been read, and the pinhole is
//! closed, together with others that were used. If the
//! user's rules drop that first packet, conntrack keeps no entry, and the retransmission a second
//! later finds the pinhole open.
//!
//! The table belongs to our socket, so that nobody else changes it, but stays when the socket is closed
//! (Linux 6.9): the elements of a killed daemon live on until their timeouts, or until the next daemon
//! adopts them (`leftover`). Their counters tell which were used meanwhile. Before Linux 6.9 the table goes with the socket.
//!
//! Deleting the element by a rule in a later hook was tried. A second connection gets in while the
//! first packet is on its way, every forwarded packet pays for the rule, and deleted elements fill
//! the map until the kernel's next garbage collection.

mod elements;
mod leftover;
mod objects;
mod ranges;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;

use self::elements::{MapElement, of_pinhole};
use self::objects::{
    Abilities, CHAINS, ChainSpec, FamilyLayout, IPV4, IPV6, What, del_table, plan,
};
use super::{Backend, BackendError, Closed, Verification};
use crate::firewall::tables::ChainInfo;
use crate::firewall::{PINHOLE_TABLE, tables};
use crate::net::{Mark, PortRange};
use crate::netlink::socket::{BatchError, NetlinkRequest, Socket};
use crate::pinholes::{Pinhole, PinholeKey, RangeHole};

/// How often a change is tried: each of a pinhole's three elements may expire once meanwhile.
const ATTEMPTS: usize = 4;
/// The families that there may be tables for.
const ALL: [&FamilyLayout; 2] = [&IPV4, &IPV6];
/// How many adopted pinholes come with the new table, and how many in each batch after it: as many as
/// a batch surely has room for.
const AT_ONCE: usize = 256;

/// The backend over nf_tables.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    mark: Mark,
    range: Option<PortRange>,
    layouts: Vec<&'static FamilyLayout>,
    abilities: Abilities,
    /// The maps of sources and marks may have elements. Most gateways need none.
    has_others: bool,
    /// See [`Backend::take_unused`].
    unused: HashSet<PinholeKey>,
}

impl Nft {
    /// Prepares the backend; nothing is installed yet.
    ///
    /// # Errors
    /// If the kernel has no nf_tables or doesn't let us use it.
    pub fn new(mark: Mark) -> Result<Self, BackendError> {
        let socket = Socket::open().map_err(failed("open a netlink socket"))?;
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
            range: None,
            layouts: Vec::new(),
            unused: HashSet::new(),
            abilities: Abilities {
                owner: true,
                persist: true,
                limit: true,
                count: true,
                destroy: true,
            },
            has_others: false,
        })
    }

    /// Whether the kernel would take the objects. Nothing is made; modules may be loaded.
    ///
    /// # Errors
    /// Why it wouldn't.
    pub fn check(mark: Mark) -> Result<(), BackendError> {
        let mut nft = Self::new(mark)?;
        let layout = &IPV4;
        let there = nft.has_table(layout).map_err(failed("list tables"))?;
        if there {
            return Ok(());
        }
        let checked = nft.install_family(layout, &[], Socket::check);
        checked.map_err(|error| explain(layout, error.into()))
    }

    /// Makes the objects of all families. `leftover` says which pinholes are in a family's table from
    /// the start; they are returned.
    fn install_all(
        &mut self,
        mut leftover: impl FnMut(&mut Self, &'static FamilyLayout) -> Vec<(Pinhole, Duration)>,
    ) -> Result<Vec<(Pinhole, Duration)>, BackendError> {
        self.layouts.clear();
        let mut all = Vec::new();
        // If a socket owns the table of one family, it must own that of the other, too.
        for layout in ALL {
            if !layout.is_here() {
                continue;
            }
            let holes = leftover(self, layout);
            match self.install_with(layout, holes) {
                Ok(holes) => {
                    self.layouts.push(layout);
                    all.extend(holes);
                }
                Err(error) => {
                    let foreign = is_foreign(&error);
                    let source = io::Error::from(error);
                    if layout.optional && lacks_support(&source) {
                        log::debug!("no {} NAT in this kernel: {source}", layout.family);
                        continue;
                    }
                    // Another one's table stays, even if its owner ends at this moment.
                    let made = std::mem::take(&mut self.layouts);
                    let _ = self.remove_tables(if foreign { &made } else { &ALL });
                    return Err(explain(layout, source));
                }
            }
        }
        Ok(all)
    }

    /// Makes the objects of one family and puts pinholes into them. Returns those that are open.
    fn install_with(
        &mut self,
        layout: &'static FamilyLayout,
        mut holes: Vec<(Pinhole, Duration)>,
    ) -> Result<Vec<(Pinhole, Duration)>, BatchError> {
        let elements: Vec<_> = holes
            .iter()
            .map(|(hole, left)| (self.elements(layout, hole), *left))
            .collect();
        let mut batches = elements.chunks(AT_ONCE);
        let first = batches.next().unwrap_or_default();
        let mut open = first.len();
        let mut refused = None;
        if let Err(error) = self.install_family(layout, first, Socket::batch) {
            if first.is_empty() || is_foreign(&error) {
                return Err(error);
            }
            self.install_family(layout, &[], Socket::batch)?;
            (open, refused) = (0, Some(error));
        }
        for batch in batches {
            if refused.is_some() {
                break;
            }
            match self.socket.batch(&additions(layout, batch)) {
                Ok(()) => open = open.saturating_add(batch.len()),
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            let (lost, error) = (holes.len().saturating_sub(open), io::Error::from(error));
            log::warn!("{lost} pinholes of an earlier ftpalg are dropped: {error}");
            holes.truncate(open);
        }
        Ok(holes)
    }

    /// Makes the objects of one family, with these elements. Does without what the kernel refuses, as
    /// far as possible.
    fn install_family(
        &mut self,
        layout: &'static FamilyLayout,
        elements: &[TimedElements],
        send: impl Fn(&mut Socket, &[NetlinkRequest<'_>]) -> Result<(), BatchError>,
    ) -> Result<(), BatchError> {
        let leftover = self.has_table(layout).map_err(BatchError::Io)?;
        loop {
            let plan = plan(layout, self.mark, self.abilities, self.range, leftover);
            let filling = additions(layout, elements).into_iter();
            let plan = plan
                .into_iter()
                .chain(filling.map(|add| (What::Other, add)));
            let (about, requests): (Vec<_>, Vec<_>) = plan.unzip();
            let error = match send(&mut self.socket, &requests) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let BatchError::Refused(refused) = &error else {
                return Err(error);
            };
            if is_foreign(&error) {
                return Err(error);
            }
            let refuses = |what: What| {
                let mut refused = refused.iter().filter_map(|one| about.get(one.index?));
                refused.any(|about| *about == what)
            };
            if self.abilities.persist && refuses(What::Table) {
                self.abilities.persist = false;
            } else if self.abilities.owner && refuses(What::Table) {
                self.abilities.owner = false;
            } else if self.abilities.count && refuses(What::PinholeMap) {
                self.abilities.count = false;
            } else if self.abilities.limit && refuses(What::PinholeMap) {
                self.abilities.limit = false;
            } else {
                return Err(error);
            }
        }
    }

    /// The elements of a pinhole, and where it needs none but another may have left one.
    fn elements(&mut self, layout: &FamilyLayout, hole: &Pinhole) -> Vec<MapElement> {
        self.has_others |= hole.as_source.is_some() || hole.mark != 0;
        let most = if self.has_others { usize::MAX } else { 1 };
        of_pinhole(layout, hole, self.mark).take(most).collect()
    }

    /// The layout for a pinhole that is to be opened.
    fn layout_of(&self, hole: &Pinhole) -> Result<&'static FamilyLayout, BackendError> {
        let layout = self.layout(hole.from)?;
        let of_family = |ip| layout.is_of(ip);
        match of_family(hole.to.ip())
            && of_family(hole.land.ip())
            && hole.as_source.is_none_or(of_family)
        {
            true => Ok(layout),
            false => Err(BackendError::Unsupported(
                "a pinhole's addresses must be of one family".into(),
            )),
        }
    }

    /// Deletes elements, and adds them again if there is a `timeout`, in one batch.
    fn replace(
        &mut self,
        layout: &FamilyLayout,
        elements: &[MapElement],
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        if self.abilities.destroy {
            let add =
                timeout.map(|timeout| elements.iter().filter_map(move |e| e.add(layout, timeout)));
            let requests: Vec<_> = elements
                .iter()
                .map(|element| element.destroy(layout))
                .chain(add.into_iter().flatten())
                .collect();
            for _ in 0..ATTEMPTS {
                match self.socket.batch(&requests).map_err(io::Error::from) {
                    // Linux before 6.3: it doesn't know the request.
                    Err(error) if is(&error, Errno::EINVAL) || is(&error, Errno::EOPNOTSUPP) => {
                        self.abilities.destroy = false;
                        break;
                    }
                    // The answer was lost. To do it twice is the same as to do it once.
                    Err(error) if is(&error, Errno::ENOBUFS) => {}
                    result => return result,
                }
            }
        }
        self.ask_and_replace(layout, elements, timeout)
    }

    /// The same for kernels on which deleting what isn't there fails.
    ///
    /// Asks first which of the elements are in the kernel. That takes about a microsecond each, while a
    /// batch that the kernel has to undo waits for all CPUs (milliseconds). If an element expires
    /// between question and change, or the answer is lost, asks again.
    fn ask_and_replace(
        &mut self,
        layout: &FamilyLayout,
        elements: &[MapElement],
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            let mut requests = Vec::new();
            for element in elements {
                match self.socket.get(&element.question(layout), |_| ()) {
                    Ok(()) => requests.push(element.delete(layout)),
                    Err(error) if is(&error, Errno::ENOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some(timeout) = timeout {
                requests.extend(elements.iter().filter_map(|e| e.add(layout, timeout)));
            }
            match self.socket.batch(&requests).map_err(io::Error::from) {
                Err(error) if is(&error, Errno::ENOENT) || is(&error, Errno::EEXIST) => {}
                // Whether the batch took effect isn't known if its answer was lost.
                Err(error) if is(&error, Errno::ENOBUFS) => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn remove_tables(&mut self, layouts: &[&'static FamilyLayout]) -> Result<(), BackendError> {
        let mut result = Ok(());
        for layout in layouts {
            let present = self.has_table(layout).unwrap_or(true);
            if !present {
                continue;
            }
            match self
                .socket
                .batch(&[del_table(layout)])
                .map_err(io::Error::from)
            {
                Err(source) if !is(&source, Errno::ENOENT) => {
                    result = Err(failed("remove table ftpalg")(source));
                }
                _ => {}
            }
        }
        result
    }

    fn has_table(&mut self, layout: &FamilyLayout) -> io::Result<bool> {
        let tables = tables::tables_on(&mut self.socket)?;
        Ok(tables
            .iter()
            .any(|table| table.family == layout.family.number() && table.name == PINHOLE_TABLE))
    }

    fn layout(&self, ip: IpAddr) -> Result<&'static FamilyLayout, BackendError> {
        self.layouts
            .iter()
            .copied()
            .find(|layout| layout.is_of(ip))
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

    fn set_range(&mut self, ports: PortRange) {
        self.range = Some(ports);
    }

    fn install(&mut self) -> Result<(), BackendError> {
        self.install_all(|_, _| Vec::new()).map(drop)
    }

    /// The pinholes come with the new table, which takes the old one's place in the same
    /// transaction (the first `AT_ONCE` of them; others follow).
    fn adopt(
        &mut self,
        most: usize,
        longest: Duration,
    ) -> Result<Vec<(Pinhole, Duration)>, BackendError> {
        let mut room = most;
        let mut unused = HashSet::new();
        let mut all = self.install_all(|nft, layout| {
            let holes = leftover::pinholes(&mut nft.socket, layout, nft.mark, room, longest);
            room = room.saturating_sub(holes.len());
            let of_nobody = holes.iter().filter(|hole| hole.unused);
            unused.extend(of_nobody.map(|hole| hole.pinhole.key()));
            let each = holes.into_iter().map(|hole| (hole.pinhole, hole.left));
            each.collect()
        })?;
        self.unused = unused;
        all.sort_by_key(|(_, left)| *left);
        Ok(all)
    }

    fn take_unused(&mut self) -> HashSet<PinholeKey> {
        std::mem::take(&mut self.unused)
    }

    fn leave(&mut self) {
        self.layouts.clear();
    }

    fn holds(&self) -> Duration {
        match self.abilities.limit {
            true => objects::LIMIT_HOLDS,
            false => Duration::ZERO,
        }
    }

    fn open(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        let layout = self.layout_of(hole)?;
        let elements = self.elements(layout, hole);
        self.replace(layout, &elements, Some(timeout))
            .map_err(failed("open a pinhole"))
    }

    /// Deletes nothing that is to be added, which saves most of the work. If it is there after all, the
    /// kernel refuses, and [`open`](Self::open) replaces it.
    fn open_new(&mut self, hole: &Pinhole, timeout: Duration) -> Result<(), BackendError> {
        let layout = self.layout_of(hole)?;
        let elements = self.elements(layout, hole);
        if self.abilities.destroy || elements.len() == 1 {
            let change = |element| match MapElement::add(element, layout, timeout) {
                Some(add) => add,
                None => element.destroy(layout),
            };
            let changes: Vec<_> = elements.iter().map(change).collect();
            if self.socket.batch(&changes).is_ok() {
                return Ok(());
            }
        }
        self.open(hole, timeout)
    }

    fn close(&mut self, hole: &Pinhole) -> Result<(), BackendError> {
        let layout = self.layout(hole.from)?;
        let elements = self.elements(layout, hole);
        self.replace(layout, &elements, None)
            .map_err(failed("close a pinhole"))
    }

    /// Many pinholes in one batch, where the kernel can delete elements that may not be there.
    fn close_all(&mut self, holes: &[Pinhole]) -> Result<Closed, BackendError> {
        let mut left = holes;
        while let Some((first, _)) = left.split_first() {
            let layout = self.layout(first.from)?;
            let of_family = |hole: &&Pinhole| layout.is_of(hole.from);
            let count = left.iter().take(AT_ONCE).take_while(of_family).count();
            let (together, others) = left.split_at(count);
            let elements: Vec<_> = together
                .iter()
                .flat_map(|hole| self.elements(layout, hole))
                .collect();
            self.replace(layout, &elements, None)
                .map_err(failed("close pinholes"))?;
            left = others;
        }
        Ok(Closed::Now)
    }

    fn open_range(&mut self, hole: &RangeHole, timeout: Duration) -> Result<(), BackendError> {
        let layout = self.layout(hole.from)?;
        let others = [Some(hole.to), Some(hole.land), hole.as_source];
        if self.range.is_none() || others.iter().flatten().any(|ip| !layout.is_of(*ip)) {
            return Err(BackendError::Unsupported(
                "a hole for a range needs a range, and addresses of one family".into(),
            ));
        }
        self.replace(layout, &ranges::elements(layout, hole), Some(timeout))
            .map_err(failed("open a range of ports"))
    }

    fn close_range(&mut self, hole: &RangeHole) -> Result<(), BackendError> {
        if self.range.is_none() {
            return Ok(());
        }
        let layout = self.layout(hole.from)?;
        self.replace(layout, &ranges::elements(layout, hole), None)
            .map_err(failed("close a range of ports"))
    }

    fn remove(&mut self) -> Result<(), BackendError> {
        self.layouts.clear();
        self.remove_tables(&ALL)
    }

    fn verify(&mut self) -> Result<bool, BackendError> {
        let chains = tables::chains_on(&mut self.socket).map_err(failed("list chains"))?;
        Ok(are_whole(&self.layouts, self.range, &chains))
    }

    fn verification(&self) -> Option<Verification> {
        let (layouts, range) = (self.layouts.clone(), self.range);
        Some(Box::new(move || {
            let chains = tables::chains().map_err(failed("list chains"))?;
            Ok(are_whole(&layouts, range, &chains))
        }))
    }
}

impl Drop for Nft {
    /// Unless it is left to a successor, the table goes with the backend.
    fn drop(&mut self) {
        if !self.layouts.is_empty()
            && let Err(error) = self.remove()
        {
            log::warn!("{error}");
        }
    }
}

/// The elements of a pinhole, and how long they last.
type TimedElements = (Vec<MapElement>, Duration);

/// The requests that add elements.
fn additions<'a>(layout: &FamilyLayout, all: &'a [TimedElements]) -> Vec<NetlinkRequest<'a>> {
    let of_hole = |(elements, left): &'a TimedElements| {
        let elements = elements.iter();
        elements.filter_map(|element| element.add(layout, *left))
    };
    all.iter().flat_map(of_hole).collect()
}

/// Whether the kernel has our chains of all these families, with as many rules as we made.
fn are_whole(layouts: &[&FamilyLayout], range: Option<PortRange>, chains: &[ChainInfo]) -> bool {
    let is_whole = |layout: &FamilyLayout, spec: &ChainSpec| {
        chains.iter().any(|chain| {
            chain.family == layout.family.number()
                && chain.table == PINHOLE_TABLE
                && chain.name == spec.name
                && usize::try_from(chain.rules).is_ok_and(|n| n == spec.size(range))
        })
    };
    let all_whole = |layout: &&FamilyLayout| CHAINS.iter().all(|spec| is_whole(layout, spec));
    !layouts.is_empty() && layouts.iter().all(all_whole)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> BackendError {
    move |source| BackendError::System { what, source }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(errno)
}

/// Whether the table belongs to somebody else, or the process may not change it: another request would
/// be refused as well.
fn is_foreign(error: &BatchError) -> bool {
    match error {
        BatchError::Refused(refused) => refused.iter().any(|one| one.errno == Errno::EPERM),
        BatchError::Io(_) => false,
    }
}

fn lacks_support(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT)
    )
}

fn explain(layout: &FamilyLayout, source: io::Error) -> BackendError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => BackendError::Unsupported(format!(
            "can't make the {} table ftpalg: it belongs to another running ftpalg (stop that one), \
             or CAP_NET_ADMIN is missing",
            layout.family
        )),
        Some(Errno::ENOENT | Errno::EOPNOTSUPP) => BackendError::Lacking(format!(
            "the kernel lacks {} NAT in nf_tables ({source}): `modprobe nft_nat nft_chain_nat`, or \
             use --backend iptables",
            layout.family
        )),
        _ => failed("install table ftpalg")(source),
    }
}
