//! What is known of a host. Reading it changes nothing: no rule, table, setting, module or connection.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::conntrack::Conntrack;
use crate::firewall::forwarding::{Forwarding, forwardings};
use crate::firewall::probe::nft::NftRules;
use crate::firewall::stray::{Stray, find as find_stray};
use crate::firewall::surroundings::Surroundings;
use crate::firewall::xtables::snapshot::Snapshot;
use crate::firewall::xtables::{self, Flavour};
use crate::firewall::{self, InOwnTables, Published, Steering, tables};
use crate::netlink::links::{Link, links};
use crate::queue::kernel;

/// The settings that are looked at, below `/proc/sys`.
const SETTINGS: [&str; 12] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv6/conf/all/forwarding",
    "net/netfilter/nf_conntrack_acct",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_events",
    "net/netfilter/nf_conntrack_helper",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_loose",
    "net/netfilter/nf_conntrack_timestamp",
];
/// Where conntrackd's configuration is.
const CONNTRACKD: [&str; 2] = ["/etc/conntrackd/conntrackd.conf", "/etc/conntrackd.conf"];
/// Functions that the kernel has if it has these modules.
const SYMBOLS: [(&str, &str); 5] = [
    ("nfnetlink_queue", "nfqnl_recv_config"),
    ("nf_tables", "nf_tables_newtable"),
    ("nft_chain_nat", "nft_nat_do_chain"),
    ("nft_nat", "nft_nat_eval"),
    ("nf_conntrack_netlink", "ctnetlink_get_conntrack"),
];
/// The ports of FTP, and of FTP over TLS.
pub(super) const WELL_KNOWN: [u16; 2] = [21, 990];

/// What is to be judged: the settings of `ftpalg run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What is to be steered; the inside is found already where nobody named it.
    pub steering: Steering,
    /// Whether somebody named the inside.
    pub named: bool,
    /// Why there is nothing to steer.
    pub nothing: Option<String>,
    /// How the inside was found.
    pub found: Vec<String>,
    /// Whether somebody else places the rules.
    pub external: bool,
    /// Whether there is an address to announce.
    pub advertised: bool,
    /// Whether it is to translate for IPv6-only clients.
    pub nat64: bool,
    /// The flags that lead to these settings.
    pub flags: Vec<String>,
}

impl Wanted {
    /// A command of ours, with these settings.
    pub(super) fn command(&self, words: &str, more: &str) -> String {
        let mut words = vec![words.to_owned()];
        words.extend(self.flags.iter().cloned());
        if !more.is_empty() {
            words.push(more.to_owned());
        }
        words.join(" ")
    }
}

/// Whether the kernel has something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Support {
    /// That wasn't asked.
    #[default]
    Unasked,
    /// It works.
    Works,
    /// It isn't loaded. The kernel loads it when it is needed.
    Loadable,
    /// It doesn't: why, and how to mend it.
    Lacking(String),
}

/// What of the kernel is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// NFQUEUE.
    pub nfqueue: Support,
    /// nf_tables.
    pub nf_tables: Support,
    /// What pinholes in nf_tables need: NAT, and maps with timeouts.
    pub nft_nat: Support,
    /// Conntrack over netlink.
    pub ctnetlink: Support,
}

/// Somebody who reads a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueUser {
    /// The queue's number.
    pub queue: u16,
    /// The program's process id, as far as the kernel tells.
    pub pid: u32,
    /// Its name, if it can be seen.
    pub name: Option<String>,
}

/// What is known of a daemon in this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// What it says of itself (`ftpalg status --json`), if it answers.
    pub status: Option<serde_json::Value>,
    /// Whether one has the lock; `None` if that can't be seen.
    pub runs: Option<bool>,
    /// The queue that is its lock.
    pub lock: u16,
}

/// What is known of conntrackd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conntrackd {
    /// Whether it runs in this network namespace.
    pub(super) runs: bool,
    /// Its configuration file, and what is in it.
    pub(super) config: Option<(String, String)>,
}

/// What is known of a host.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// What is to be judged.
    pub wanted: Wanted,
    /// The effective capabilities; `None` if they can't be read.
    pub(super) capabilities: Option<u64>,
    /// What the kernel has.
    pub(super) features: Features,
    /// Which flavours there are tools for.
    pub(super) tools: Vec<Flavour>,
    /// Why the rules can't be read.
    pub(super) unread: Option<String>,
    /// The rules of iptables.
    pub(super) snapshot: Snapshot,
    /// Rules that were written for nft.
    pub(super) native: NftRules,
    /// What NAT rules that were written for nft publish.
    pub(super) published: Vec<Published>,
    /// Steering rules that were placed over netlink.
    pub(super) own: InOwnTables,
    /// Rules that an ftpalg with tools has left, where there are none now.
    pub(super) stray: Stray,
    /// Rules that no tool here can show, in words.
    pub(super) unseen: Option<String>,
    /// Addresses and routes.
    pub(super) around: Surroundings,
    /// Interfaces.
    pub(super) links: Vec<Link>,
    /// Settings by their path below `/proc/sys`.
    pub(super) settings: BTreeMap<String, String>,
    /// Who reads queues.
    pub(super) queues: Vec<QueueUser>,
    /// A daemon that runs.
    pub daemon: Daemon,
    /// Rules that somebody else was to place, and that aren't there.
    pub missing: Vec<String>,
    /// Another program that carries connections to a second gateway.
    pub(super) conntrackd: Conntrackd,
    /// Whether the kernel's own helper for FTP is there.
    pub(super) has_helper: bool,
}

impl Facts {
    /// What an ftpalg that starts has read already, and the few settings that matter then.
    ///
    /// # Errors
    /// If the rules that were written for nft can't be read, or the interfaces can't.
    pub fn at_start(wanted: Wanted, snapshot: Snapshot) -> Result<Self, firewall::RulesError> {
        let unlisted = || firewall::RulesError::system("can't list the nft rules");
        Ok(Self {
            native: NftRules::read(&snapshot).map_err(unlisted())?,
            published: firewall::native_published(&snapshot)?,
            around: Surroundings::read()?,
            settings: settings(&[]),
            has_helper: has_helper(),
            wanted,
            snapshot,
            ..Self::default()
        })
    }

    /// Reads all there is to be known. `snapshot`: the rules of iptables, or why there are none.
    #[must_use]
    pub fn read(
        wanted: Wanted,
        tools: Vec<Flavour>,
        snapshot: Result<Snapshot, String>,
        features: Features,
        daemon: Daemon,
    ) -> Self {
        let mut unread = None;
        let mut keep = |why: String| {
            unread.get_or_insert(why);
        };
        let snapshot = snapshot.unwrap_or_else(|why| {
            keep(why);
            Snapshot::default()
        });
        let (mut native, mut published) = (NftRules::default(), Vec::new());
        let (mut own, mut stray) = (InOwnTables::default(), Stray::default());
        if features.nf_tables == Support::Works || tables::available() {
            native = NftRules::read(&snapshot).unwrap_or_else(|e| {
                keep(format!("can't list the nft rules: {e}"));
                NftRules::default()
            });
            published = firewall::native_published(&snapshot).unwrap_or_default();
            own = firewall::in_own_tables().unwrap_or_default();
            stray = find_stray(&snapshot, &xtables::TABLES).unwrap_or_default();
        }
        let unseen = firewall::unseen(&snapshot, wanted.steering.mark);
        let around = Surroundings::read().unwrap_or_else(|e| {
            keep(e.to_string());
            Surroundings::default()
        });
        let links = links().unwrap_or_default();
        let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        Self {
            capabilities: capabilities(),
            settings: settings(&names),
            queues: queues(),
            conntrackd: Conntrackd::read(),
            has_helper: has_helper(),
            wanted,
            features,
            tools,
            snapshot,
            native,
            published,
            own,
            stray,
            unseen,
            around,
            links,
            daemon,
            unread,
            missing: Vec::new(),
        }
    }

    /// This host's own addresses, one a line.
    #[must_use]
    pub fn own_addresses(&self) -> String {
        let all = self.around.addresses.iter();
        all.map(|(iface, ip)| format!("{iface} {ip}\n")).collect()
    }

    /// Interfaces and addresses, for people.
    #[must_use]
    pub fn interfaces(&self) -> String {
        let links = self.links.iter().map(|link| {
            let up = self.around.up.contains(&link.name);
            let up = if up { "up" } else { "down or loopback" };
            format!("{} mtu {} {} {up}\n", link.name, link.mtu, link.kind)
        });
        links.collect::<String>() + &self.own_addresses()
    }

    /// The kernel's settings that were looked at.
    #[must_use]
    pub fn kernel_settings(&self) -> String {
        let all = self.settings.iter();
        all.map(|(path, value)| format!("{path} = {value}\n"))
            .collect()
    }

    /// The value of a setting.
    pub(super) fn setting(&self, path: &str) -> Option<&str> {
        self.settings.get(path).map(String::as_str)
    }

    /// A setting that is a number.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.setting(path)?.parse().ok()
    }

    /// The control ports, and those that FTP has by default.
    pub(super) fn ports(&self) -> Vec<u16> {
        let mut ports = self.wanted.steering.ports.clone();
        ports.extend(WELL_KNOWN);
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The user's rules that lead control connections to a server.
    pub(super) fn forwardings(&self) -> Vec<Forwarding> {
        forwardings(&self.snapshot, &self.published, &self.around, &self.ports())
    }
}

/// Whether the kernel answers on netlink, without anything being loaded for that.
pub(super) fn is_loaded(module: &str) -> Option<bool> {
    if !Path::new("/proc/modules").exists() {
        // Nothing can be loaded: what there is, is there.
        return Some(true);
    }
    if Path::new("/sys/module").join(module).exists() {
        return Some(true);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let directory = Path::new("/lib/modules").join(release.trim());
    let builtin = fs::read_to_string(directory.join("modules.builtin"));
    let lists = |text: &str| text.contains(&format!("/{module}.ko"));
    match (builtin, fs::read_to_string(directory.join("modules.dep"))) {
        (Ok(builtin), _) if lists(&builtin) => Some(true),
        (Ok(_), Ok(loadable)) if lists(&loadable) => Some(false),
        // There is none. To ask for it loads nothing.
        (Ok(_), Ok(_)) => Some(true),
        // In a container without the host's modules, its symbols tell.
        _ => {
            let symbols = fs::read_to_string("/proc/kallsyms").ok()?;
            let (_, symbol) = SYMBOLS.into_iter().find(|(name, _)| *name == module)?;
            Some(symbols.contains(&format!(" {symbol}")))
        }
    }
}

impl Features {
    /// Asks the kernel, as far as it has to load nothing for an answer. `queue`: whether it answers about
    /// NFQUEUE; `pinholes`: whether it would take what pinholes in nf_tables need.
    #[must_use]
    pub fn read(
        queue: impl FnOnce() -> Result<(), String>,
        pinholes: impl FnOnce() -> Result<(), String>,
    ) -> Self {
        let nf_tables = ask(&["nf_tables"], || match tables::available() {
            true => Ok(()),
            false => Err("this kernel has no nf_tables, or doesn't let this process use it".into()),
        });
        let nft_nat = match nf_tables {
            Support::Works => ask(&["nft_chain_nat", "nft_nat"], pinholes),
            _ => Support::Unasked,
        };
        Self {
            nfqueue: ask(&["nfnetlink_queue"], queue),
            nf_tables,
            nft_nat,
            ctnetlink: ask(&["nf_conntrack_netlink"], Conntrack::probe),
        }
    }
}

/// Asks for what these modules do, unless one of them would be loaded for that.
fn ask(modules: &[&str], question: impl FnOnce() -> Result<(), String>) -> Support {
    if modules
        .iter()
        .any(|module| is_loaded(module) == Some(false))
    {
        return Support::Loadable;
    }
    match question() {
        Ok(()) => Support::Works,
        Err(why) => Support::Lacking(why),
    }
}

fn capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let mut lines = status.lines();
    let effective = lines.find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

fn settings(interfaces: &[&str]) -> BTreeMap<String, String> {
    let named = interfaces
        .iter()
        .map(|name| format!("net/ipv4/conf/{name}/rp_filter"));
    let all = SETTINGS.into_iter().map(str::to_owned).chain(named);
    let read = |path: String| {
        let value = fs::read_to_string(Path::new("/proc/sys").join(&path)).ok()?;
        Some((path, value.trim().to_owned()))
    };
    all.filter_map(read).collect()
}

fn queues() -> Vec<QueueUser> {
    let all = kernel::counters().unwrap_or_default();
    let user = |counters: kernel::QueueCounters| QueueUser {
        queue: counters.queue,
        pid: counters.port,
        name: kernel::holder(counters.queue).map(|(_, name)| name),
    };
    all.into_iter().map(user).collect()
}

fn has_helper() -> bool {
    Path::new("/sys/module/nf_conntrack_ftp").exists()
}

impl Conntrackd {
    fn read() -> Self {
        let config = CONNTRACKD.into_iter().find_map(|path| {
            let text = fs::read_to_string(path).ok()?;
            Some((path.to_owned(), text))
        });
        Self {
            runs: runs_here("conntrackd"),
            config,
        }
    }
}

/// Whether a program of this name runs in this network namespace.
fn runs_here(name: &str) -> bool {
    let own = fs::read_link("/proc/thread-self/ns/net").ok();
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    let mut processes = processes.flatten().map(|entry| entry.path());
    processes.any(|path| {
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        comm.trim_end() == name && fs::read_link(path.join("ns/net")).ok() == own
    })
}
