//! `ftpalg doctor`: whether this host is fit for `ftpalg run`, and what is in the way.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::settings::Settings;
use super::{Failure, print};
use crate::daemon::checkup;
use crate::daemon::control::{self, ControlRequest};
use crate::doctor::{self, Finding, Level};
use crate::firewall::xtables::command::run as run_program;
use crate::firewall::xtables::tools::Tools;

/// There are warnings, and no problem.
const WARNINGS: u8 = 4;
/// How long a program may take whose output goes into the bundle.
const LIMIT: Duration = Duration::from_secs(15);
/// Where `nft` may be.
const NFT: [&str; 3] = ["/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"];
/// Files that tell of the host, and of what the kernel has counted.
const FILES: [&str; 13] = [
    "/proc/sys/kernel/osrelease",
    "/etc/os-release",
    "/proc/self/status",
    "/proc/modules",
    "/proc/thread-self/net/route",
    "/proc/thread-self/net/ipv6_route",
    "/proc/thread-self/net/if_inet6",
    "/proc/thread-self/net/netfilter/nfnetlink_queue",
    "/proc/thread-self/net/stat/nf_conntrack",
    "/proc/thread-self/net/snmp",
    "/proc/thread-self/net/netstat",
    "/proc/thread-self/net/ip_tables_names",
    "/proc/thread-self/net/ip6_tables_names",
];

#[derive(Args, Debug)]
pub(super) struct Doctor {
    /// Show one JSON value with stable field names
    #[arg(long)]
    json: bool,
    /// Also write what a bug report needs to this file
    ///
    /// That is versions, rules, settings, counters, sessions. It has no names and passwords, and
    /// pseudonyms for addresses.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(arguments: Doctor) -> Result<ExitCode, Failure> {
    let config = arguments.settings.resolve()?;
    let facts = checkup::facts(&config);
    let findings = doctor::judge(&facts);
    if let Some(path) = &arguments.bundle {
        write(path, &gather(&facts, &findings))?;
    }
    match arguments.json {
        true => print(&format!("{:#}\n", as_json(&findings)))?,
        false => print(&doctor::describe(&findings))?,
    }
    Ok(match doctor::worst(&findings) {
        Level::Ok => ExitCode::SUCCESS,
        Level::Warning => ExitCode::from(WARNINGS),
        Level::Problem => ExitCode::FAILURE,
    })
}

fn as_json(findings: &[Finding]) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "worst": doctor::worst(findings),
        "findings": findings,
    })
}

/// What a bug report needs.
fn gather(facts: &doctor::Facts, findings: &[Finding]) -> String {
    let mut sections = vec![("findings".to_owned(), doctor::describe(findings))];
    sections.push(("settings of run".into(), facts.wanted.flags.join(" ")));
    let mut own = String::new();
    for file in FILES {
        if let Ok(text) = std::fs::read_to_string(file) {
            sections.push((file.into(), text));
        }
    }
    for (heading, text) in rules() {
        own += &text;
        sections.push((heading, text));
    }
    own += &facts.own_addresses();
    sections.push(("addresses and interfaces".into(), facts.interfaces()));
    sections.push(("settings of the kernel".into(), facts.kernel_settings()));
    for (name, request) in [
        ("status", ControlRequest::Status),
        ("sessions", ControlRequest::Sessions),
        ("pinholes", ControlRequest::Pinholes),
    ] {
        let answer = control::ask(request);
        let text = answer.map_or_else(|e| e.to_string(), |answer| format!("{answer:#}"));
        sections.push((format!("ftpalg {name}"), text));
    }
    doctor::bundle(&sections, &own)
}

/// The rules of both flavours and families, and of nft. Reading them makes none.
fn rules() -> Vec<(String, String)> {
    let mut found = Vec::new();
    match crate::firewall::Rules::new(Tools::find()).as_text() {
        Ok(texts) => found.extend(texts),
        Err(e) => found.push(("rules".into(), e.to_string())),
    }
    let nft = NFT.into_iter().map(Path::new).find(|path| path.is_file());
    let listed = nft.map(|nft| run_program(nft, &["list", "ruleset"], "", LIMIT));
    let listed = match listed {
        None => "there is no nft".into(),
        Some(Ok(text)) => text,
        Some(Err(e)) => e.to_string(),
    };
    found.push(("nft list ruleset".into(), listed));
    found
}

/// Writes a file that only its owner may read, and that isn't there yet.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|e| {
        let name = path.display();
        Failure::usage(match e.kind() {
            ErrorKind::AlreadyExists => {
                format!("{name} is there already; name another file with --bundle")
            }
            _ => format!("can't write {name}: {e}; name another file with --bundle"),
        })
    })
}
