//! The table as text, for people and for `nft -f`.

use std::fmt::Write;

use super::OwnTable;
use super::compile::{Action, Condition, End, MarkOf, OwnChain, OwnRule};
use crate::firewall::names::STEERING_TABLE;
use crate::net::{Family, Mark};
use crate::netlink::nftables::{family, hook};

/// What comes before the rules, for a person.
pub(super) fn head(mark: Mark) -> String {
    let bit = mark.bit();
    format!(
        "\
# What `ftpalg rules install --steering nft` places over netlink. Loaded with `nft -f`, it leaves all
# other tables alone. A kernel without nft_queue refuses `queue`. There, `ftpalg rules install` takes
# the target NFQUEUE of iptables, which can't be written here.
#
# Where your own chains drop data connections, accept them there (`ftpalg rules install` does that):
# meta l4proto tcp ct mark and {bit:#x} == {bit:#x} accept comment \"ftpalg:accept\"

"
    )
}

/// Replaces what is there of the table.
pub(super) fn script(table: &OwnTable) -> String {
    let family = family::name(table.family.number());
    let name = format!("{family} {STEERING_TABLE}");
    let mut out = format!("table {name}\ndelete table {name}\ntable {name} {{\n");
    for (at, chain) in table.chains.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        put_chain(&mut out, chain, table.family);
    }
    out.push_str("}\n");
    out
}

fn put_chain(out: &mut String, chain: &OwnChain, family: Family) {
    // Writing to a String doesn't fail.
    let _ = writeln!(out, "\tchain {} {{", chain.name);
    if let Some((hook, priority)) = chain.hook {
        let hook = hook_name(hook);
        let _ = writeln!(
            out,
            "\t\ttype filter hook {hook} priority {priority}; policy accept;"
        );
    }
    for rule in &chain.rules {
        let _ = writeln!(out, "\t\t{}", rule_text(rule, family));
    }
    out.push_str("\t}\n");
}

fn hook_name(number: u32) -> &'static str {
    match number {
        hook::PREROUTING => "prerouting",
        hook::INPUT => "input",
        hook::FORWARD => "forward",
        hook::OUTPUT => "output",
        _ => "postrouting",
    }
}

fn rule_text(rule: &OwnRule, family: Family) -> String {
    let mut words: Vec<String> = rule
        .conditions
        .iter()
        .map(|one| condition(one, family))
        .collect();
    words.push(match &rule.action {
        Action::Drop => "drop".to_owned(),
        Action::Jump(chain) => format!("jump {chain}"),
        Action::SetMark { value: 0, mask } => format!("meta mark set mark and {:#x}", !mask),
        Action::SetMark { value, mask } => {
            format!("meta mark set mark and {:#x} xor {value:#x}", !mask)
        }
        Action::Queue {
            first,
            count,
            bypass,
        } => {
            let last = first.saturating_add(count.saturating_sub(1));
            let range = match last > *first {
                true => format!("{first}-{last}"),
                false => first.to_string(),
            };
            let bypass = if *bypass { " bypass" } else { "" };
            format!("queue num {range}{bypass}")
        }
    });
    words.push(format!("comment \"{}\"", rule.comment));
    words.join(" ")
}

fn condition(condition: &Condition, family: Family) -> String {
    let ip = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    let not = |is: bool| if is { "" } else { "!= " };
    match condition {
        Condition::Tcp => "meta l4proto tcp".to_owned(),
        Condition::Port { end, ports } => {
            let end = if *end == End::Source {
                "sport"
            } else {
                "dport"
            };
            let list: Vec<String> = ports.iter().map(u16::to_string).collect();
            match list.as_slice() {
                [port] => format!("tcp {end} {port}"),
                _ => format!("tcp {end} {{ {} }}", list.join(", ")),
            }
        }
        Condition::Address { end, network } => {
            let end = if *end == End::Source {
                "saddr"
            } else {
                "daddr"
            };
            format!("{ip} {end} {network}")
        }
        Condition::Interface { end, is, name } => {
            let end = if *end == End::Source {
                "iifname"
            } else {
                "oifname"
            };
            format!("{end} {}\"{name}\"", not(*is))
        }
        Condition::Mark {
            of,
            is,
            value,
            mask,
        } => {
            let of = if *of == MarkOf::Packet {
                "meta mark"
            } else {
                "ct mark"
            };
            let compares = if *is { "==" } else { "!=" };
            format!("{of} and {mask:#x} {compares} {value:#x}")
        }
    }
}
