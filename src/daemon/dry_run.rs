//! `ftpalg run --dry-run`: what a start would do, without doing any of it.

use crate::firewall::tables;

use super::changes::settings;
use super::config::{BackendChoice, Config};
use super::setup::{self, Steered};
use super::{StartError, checkup, lock, privileges};

/// The rules and settings of a start now, as text: rules as the tools would load them, all else as comments.
/// Changes nothing, and needs no lock: another daemon may run.
///
/// # Errors
/// If the start would fail, as far as that is known without starting.
pub fn dry_run(config: &Config) -> Result<String, StartError> {
    privileges::check()?;
    let steered = Steered::prepare(config)?;
    setup::check_conntrack()?;
    // Beside a daemon, the rules that are there are that one's.
    let beside = lock::is_held() == Some(true);
    let preview = steered.preview(beside)?;
    let checkup = checkup::at_start(config, &steered, preview.before);

    let mut text = String::from("# ftpalg run --dry-run: nothing was changed\n");
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    if beside {
        line("# an ftpalg runs here already: this is what another one would do in its place");
    }
    line("#\n# settings");
    for (name, value) in settings(config) {
        line(&format!("#   {name} = {value}"));
    }
    line("#\n# what it would watch");
    for found in &steered.found {
        line(&format!("#   {found}"));
    }
    let inside = steered.steering.inside.iter();
    inside.for_each(|inside| line(&format!("#   inside {inside}")));
    if steered.steering.local {
        line("#   local servers and clients");
    }
    for server in &checkup.servers {
        line(&format!("#   {server}"));
    }
    for warning in checkup.warnings.iter().chain(&preview.notes) {
        line(&format!("#\n# warning: {warning}"));
    }
    line(&format!("#\n# {}", preview.how));
    if !steered.manages() {
        line("# --rules external: these are yours to place (`ftpalg rules install`)");
    }
    for (at, rules) in &preview.tables {
        let (program, flavour) = (at.family.program(), at.flavour);
        line(&format!("\n# {program}-{flavour}-restore --noflush"));
        line(rules.trim_end());
    }
    for table in &preview.own {
        line("\n# over netlink, what `nft -f` would load:");
        line(table.trim_end());
    }
    let bit = steered.steering.mark.bit();
    for chain in &preview.native {
        line(&format!(
            "\n# in {chain}, in front of the first rule that may drop:\n\
             #   meta l4proto tcp ct mark & {bit:#x} == {bit:#x} accept comment \"ftpalg:accept\""
        ));
    }
    line(&format!("\n# pinholes: {}", pinholes(config)));
    Ok(text)
}

/// Where pinholes would be.
fn pinholes(config: &Config) -> &'static str {
    let nft =
        "tables ip ftpalg and ip6 ftpalg of nf_tables, made at the start and removed at the end";
    match config.backend {
        BackendChoice::Nft => nft,
        BackendChoice::Auto if tables::available() => nft,
        BackendChoice::Auto | BackendChoice::Iptables => {
            "rules of iptables in table nat, chains FTPALG-*, removed at the end"
        }
    }
}
