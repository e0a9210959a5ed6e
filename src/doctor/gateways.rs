//! conntrackd, which carries connections to a second gateway.
//!
//! It carries their marks without being asked for. What its filter leaves out isn't carried at all.

use std::net::IpAddr;

use super::facts::Facts;
use super::{Finding, Theme};

pub(super) fn judge(facts: &Facts, all: &mut Vec<Finding>) {
    let conntrackd = &facts.conntrackd;
    if !conntrackd.runs {
        return;
    }
    let Some((path, text)) = &conntrackd.config else {
        let what = "conntrackd runs; its configuration isn't where it usually is";
        all.push(Finding::ok("conntrackd", Theme::Host, what));
        return;
    };
    let filter = Filter::read(text);
    let own: Vec<IpAddr> = facts
        .forwardings()
        .iter()
        .flat_map(|one| [one.net.map(|net| net.addr()), one.server])
        .flatten()
        .collect();
    let ignored = filter.ignored.iter().find(|ip| own.contains(ip));
    let why = if !text.contains("Sync") {
        Some("it only counts (no section Sync)".to_owned())
    } else if !filter.tcp {
        Some("its filter leaves out TCP".to_owned())
    } else if !filter.established {
        Some("its filter leaves out ESTABLISHED connections".to_owned())
    } else {
        ignored.map(|ip| format!("its filter ignores {ip}, an end of published connections"))
    };
    all.push(match why {
        None => Finding::ok(
            "conntrackd",
            Theme::Host,
            "conntrackd carries connections with their marks to a second gateway",
        ),
        Some(why) => Finding::warning(
            "conntrackd",
            Theme::Host,
            format!("conntrackd runs, but {why}"),
        )
        .means("sessions and transfers end when the addresses move to the other gateway")
        .command(format!("editor {path} && systemctl restart conntrackd")),
    });
}

/// What conntrackd's filter lets through.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    tcp: bool,
    established: bool,
    ignored: Vec<IpAddr>,
}

impl Filter {
    /// Reads the blocks `Protocol`, `State` and `Address`, with `Accept` or `Ignore`, of a configuration.
    fn read(text: &str) -> Self {
        let mut filter = Self {
            tcp: true,
            established: true,
            ignored: Vec::new(),
        };
        let text: String = text
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().to_owned() + "\n")
            .collect();
        let text = text.replace('{', " { ").replace('}', " } ");
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        for (at, window) in words.windows(3).enumerate() {
            let [what, how, "{"] = window else { continue };
            let block = words.iter().skip(at + 3).take_while(|word| **word != "}");
            let has = |name: &str| block.clone().any(|word| word.eq_ignore_ascii_case(name));
            match (*what, *how) {
                ("Protocol", "Accept") => filter.tcp &= has("TCP"),
                ("Protocol", "Ignore") => filter.tcp &= !has("TCP"),
                ("State", "Accept") => filter.established &= has("ESTABLISHED"),
                ("State", "Ignore") => filter.established &= !has("ESTABLISHED"),
                ("Address", "Ignore") => {
                    let ip = |word: &&str| word.split('/').next()?.parse::<IpAddr>().ok();
                    filter.ignored.extend(block.filter_map(ip));
                }
                _ => {}
            }
        }
        filter
    }
}

#[cfg(test)]
mod tests {
    use crate::doctor::facts::Conntrackd;
    use crate::doctor::nat::tests::facts;
    use crate::doctor::{Level, judge};

    fn told(config: &str) -> (Level, String) {
        let dnat = "*nat\n-A PREROUTING -d 203.0.113.1/32 -p tcp --dport 21 -j DNAT --to-destination 10.0.0.2\nCOMMIT\n";
        let mut facts = facts(dnat);
        facts.conntrackd = Conntrackd {
            runs: true,
            config: Some(("/etc/conntrackd/conntrackd.conf".into(), config.into())),
        };
        let all = judge(&facts).into_iter();
        let finding = all.into_iter().find(|one| one.id == "conntrackd").unwrap();
        (finding.level, finding.what)
    }

    #[test]
    fn our_own_recipe_is_fine() {
        let config = include_str!("../../packaging/ha/conntrackd.conf");
        assert_eq!(told(config).0, Level::Ok, "{}", told(config).1);
    }

    #[test]
    fn a_filter_that_leaves_out_sessions_is_told() {
        let sync = "Sync { Mode FTFW { } }\n";
        for (filter, part) in [
            ("Protocol Accept { UDP }", "TCP"),
            ("Protocol Ignore {\n TCP }", "TCP"),
            ("State Accept { CLOSED for TCP }", "ESTABLISHED"),
            (
                "Address Ignore {\n IPv4_address 203.0.113.1 # the virtual one\n }",
                "203.0.113.1",
            ),
            ("Address Ignore { IPv4_address 10.0.0.2/32 }", "10.0.0.2"),
        ] {
            let (level, what) = told(&format!(
                "{sync}General {{ Filter From Userspace {{ {filter} }} }}"
            ));
            assert!(
                level == Level::Warning && what.contains(part),
                "{filter}: {what}"
            );
        }
        assert_eq!(
            told(&format!("{sync}# Protocol Accept {{ UDP }}")).0,
            Level::Ok
        );
        assert_eq!(told("Stats { }").0, Level::Warning);
    }
}
