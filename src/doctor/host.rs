//! The kernel, this process, conntrack, and other programs.

use serde_json::Value;

use super::facts::{Daemon, Facts, Support};
use super::{Finding, Theme};
use crate::firewall::xtables;
use crate::firewall::{Placement, SteeringWay, Unread, is_ours, ours};

/// The numbers of `CAP_NET_ADMIN` and `CAP_NET_RAW`.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
/// A table that is fuller than this, in percent, may be full in a moment.
const NEARLY_FULL: u64 = 85;
const FULL: u64 = 98;

pub(super) fn judge(facts: &Facts, all: &mut Vec<Finding>) {
    all.push(running(facts));
    all.extend(rules_left(facts));
    all.push(capabilities(facts));
    all.push(tools(facts));
    all.extend(steering(facts));
    all.extend(unseen(facts));
    features(facts, all);
    all.extend(queue_taken(facts));
    all.extend(events(facts));
    all.extend(accounting(facts));
    all.extend(table(facts));
    all.extend(tcp(facts));
}

fn ok(id: &'static str, what: impl Into<String>) -> Finding {
    Finding::ok(id, Theme::Host, what)
}

fn warning(id: &'static str, what: impl Into<String>) -> Finding {
    Finding::warning(id, Theme::Host, what)
}

fn problem(id: &'static str, what: impl Into<String>) -> Finding {
    Finding::problem(id, Theme::Host, what)
}

fn running(facts: &Facts) -> Finding {
    let Daemon { status, runs, .. } = &facts.daemon;
    let Some(status) = status else {
        return match runs {
            Some(true) => warning("running", "ftpalg runs, but doesn't answer")
                .means("what it does can't be told")
                .command("ftpalg status"),
            _ => ok("running", "ftpalg doesn't run here yet"),
        };
    };
    let field = |name: &str| status.get(name).unwrap_or(&Value::Null);
    let (pid, version) = (field("pid"), field("version").as_str().unwrap_or("?"));
    let what = format!("ftpalg {version} runs here (pid {pid})");
    match field("missing").as_array() {
        Some(missing) if !missing.is_empty() => problem(
            "running",
            format!("{what}, but {} of its rules are missing", missing.len()),
        )
        .means("some control packets or data connections pass it by")
        .command("ftpalg status"),
        _ => ok("running", what),
    }
}

/// Whether the daemon is there, as far as that is known.
fn runs(facts: &Facts) -> bool {
    facts.daemon.status.is_some() || facts.daemon.runs == Some(true)
}

/// What a daemon that was killed has left.
fn rules_left(facts: &Facts) -> Option<Finding> {
    if runs(facts) || facts.wanted.external {
        return None;
    }
    let tables = ours(&facts.snapshot, &xtables::TABLES);
    let rules = tables.iter().flat_map(|(_, table)| &table.rules);
    let (own, stray) = (facts.own, facts.stray);
    let count = rules.clone().filter(|rule| is_ours(rule)).count() + own.rules + stray.rules;
    let controls = [own.control, stray.control];
    let opens = rules
        .clone()
        .any(|rule| rule.words.iter().any(|word| word == "--queue-bypass"))
        || controls.contains(&Some(Unread::Passed));
    let queues = rules.clone().any(|rule| rule.target() == Some("NFQUEUE"))
        || controls.iter().any(Option::is_some);
    if count == 0 {
        return None;
    }
    let what = format!("{count} rules of an ftpalg that doesn't run are here");
    let left = match (queues, opens) {
        (true, false) => problem("rules-left", what).means("they drop FTP's control packets"),
        (true, true) => warning("rules-left", what)
            .means("control packets pass unread, and no data connection is let in"),
        _ => warning("rules-left", what).means("nothing needs them"),
    };
    Some(left.command("ftpalg rules remove"))
}

fn capabilities(facts: &Facts) -> Finding {
    let Some(have) = facts.capabilities else {
        return ok("capabilities", "capabilities can't be read here");
    };
    if have & NET_ADMIN == 0 {
        return problem("capabilities", "CAP_NET_ADMIN is missing")
            .means("`ftpalg run` won't start, and most of this host can't be looked at")
            .command("sudo ftpalg doctor");
    }
    if have & NET_RAW == 0 {
        return warning("capabilities", "CAP_NET_RAW is missing")
            .means("iptables-legacy doesn't work, and sessions that can't go on hang at the end")
            .command("docker run --cap-add NET_ADMIN --cap-add NET_RAW …");
    }
    ok("capabilities", "CAP_NET_ADMIN and CAP_NET_RAW")
}

fn tools(facts: &Facts) -> Finding {
    if let Some(why) = &facts.unread {
        return problem("tools", why.clone())
            .means("the rules can't be read: what follows is incomplete")
            .command("apt install iptables");
    }
    let names: Vec<_> = facts
        .tools
        .iter()
        .map(|f| format!("iptables-{f}"))
        .collect();
    if names.is_empty() {
        return match steered_by(facts) {
            SteeringWay::Iptables => problem("tools", "no iptables found")
                .means("`ftpalg run` can't place its rules")
                .command("apt install iptables"),
            SteeringWay::Nft => ok("tools", "no iptables here, and none is needed"),
        };
    }
    ok("tools", format!("found {}", names.join(" and ")))
}

/// What would place the steering rules.
pub(super) fn steered_by(facts: &Facts) -> SteeringWay {
    let lacking = matches!(facts.features.nf_tables, Support::Lacking(_));
    // At the start, it is known which tools say something, but not which ones there are.
    let no_tools = facts.tools.is_empty() && facts.snapshot.views.is_empty();
    match facts.wanted.steering.placement {
        Placement::Nft => SteeringWay::Nft,
        Placement::Auto if no_tools && !lacking => SteeringWay::Nft,
        Placement::Iptables | Placement::Auto => SteeringWay::Iptables,
    }
}

fn steering(facts: &Facts) -> Option<Finding> {
    let lacking = matches!(facts.features.nf_tables, Support::Lacking(_));
    match steered_by(facts) {
        SteeringWay::Iptables if facts.tools.is_empty() => None,
        SteeringWay::Iptables => Some(ok(
            "steering",
            "steering rules go into the tables of iptables",
        )),
        SteeringWay::Nft if lacking => Some(
            problem(
                "steering",
                "--steering nft, but nf_tables doesn't work here",
            )
            .means("`ftpalg run` won't start")
            .command(facts.wanted.command("ftpalg run", "--steering iptables")),
        ),
        SteeringWay::Nft => {
            let by = facts.own.queueing;
            let by = by.map_or_else(String::new, |by| format!(", by {by}"));
            Some(ok(
                "steering",
                format!("steering rules go over netlink into tables ftpalg-steering{by}"),
            ))
        }
    }
}

fn unseen(facts: &Facts) -> Option<Finding> {
    let why = facts.unseen.clone().filter(|_| facts.unread.is_none())?;
    Some(
        warning("unseen", why)
            .means("data connections may be dropped there")
            .command("apt install iptables"),
    )
}

fn features(facts: &Facts, all: &mut Vec<Finding>) {
    let features = &facts.features;
    let mut judge =
        |id, name: &str, support: &Support, lacking: fn(&str, &str) -> Finding| match support {
            Support::Unasked => {}
            Support::Works => all.push(ok(id, format!("{name} works"))),
            Support::Loadable => all.push(
                ok(id, format!("{name} isn't loaded"))
                    .means("the kernel loads it when `ftpalg run` starts"),
            ),
            Support::Lacking(why) => all.push(lacking(name, why)),
        };
    judge("nfqueue", "NFQUEUE", &features.nfqueue, |name, why| {
        problem("nfqueue", format!("{name} doesn't work: {why}"))
            .means("`ftpalg run` won't start: it gets control packets in this way only")
            .command("modprobe nfnetlink_queue")
    });
    judge(
        "nf-tables",
        "nf_tables",
        &features.nf_tables,
        |name, why| {
            warning("nf-tables", format!("{name} doesn't work: {why}"))
                .means("pinholes are rules of iptables, which takes longer for each transfer")
                .command("modprobe nf_tables")
        },
    );
    judge(
        "nft-nat",
        "NAT in nf_tables",
        &features.nft_nat,
        |name, why| {
            warning("nft-nat", format!("{name} doesn't work: {why}"))
                .means("pinholes are rules of iptables, which takes longer for each transfer")
                .command("modprobe nft_chain_nat nft_nat")
        },
    );
    judge(
        "ctnetlink",
        "ctnetlink",
        &features.ctnetlink,
        |name, why| {
            problem("ctnetlink", format!("{name} doesn't work: {why}"))
                .means("`ftpalg run` won't start: conntrack tells it the addresses")
                .command("modprobe nf_conntrack_netlink")
        },
    );
}

/// Other programs that read ftpalg's queues, or have its lock.
fn queue_taken(facts: &Facts) -> Option<Finding> {
    let own = facts.wanted.steering.queues.numbers();
    let daemon = facts
        .daemon
        .status
        .as_ref()
        .and_then(|status| status.get("pid")?.as_u64());
    let other = facts.queues.iter().find(|user| {
        let lock = user.queue == facts.daemon.lock && !runs(facts);
        let is_daemon =
            daemon == Some(u64::from(user.pid)) || user.name.as_deref() == Some("ftpalg");
        (own.contains(&user.queue) || lock) && !is_daemon
    });
    let Some(user) = other else {
        let first = facts.wanted.steering.queues.first;
        return (!runs(facts))
            .then(|| ok("queue-taken", format!("nobody else reads queue {first}")));
    };
    // The daemon's own queues show the netlink port of a later socket of its.
    if runs(facts) && user.name.is_none() {
        return None;
    }
    let name = user
        .name
        .as_deref()
        .unwrap_or("a program that can't be seen from here");
    let free = (2200..).step_by(100).find(|free| {
        let mut users = facts.queues.iter();
        !users.any(|user| (*free..free + 64).contains(&user.queue))
    });
    Some(
        problem(
            "queue-taken",
            format!("queue {} is read by pid {} ({name})", user.queue, user.pid),
        )
        .means("`ftpalg run` won't start with that queue")
        .command(facts.wanted.command(
            "ftpalg run",
            &format!("--queue-num {}", free.unwrap_or(2200)),
        )),
    )
}

fn events(facts: &Facts) -> Option<Finding> {
    let path = "net/netfilter/nf_conntrack_events";
    Some(match facts.number(path)? {
        0 => problem("conntrack-events", "conntrack's events are off")
            .means("`ftpalg run` won't start: they tell that a pinhole was used")
            .command(set(path, 1)),
        _ => ok("conntrack-events", "conntrack's events are on"),
    })
}

fn accounting(facts: &Facts) -> Option<Finding> {
    let path = "net/netfilter/nf_conntrack_acct";
    Some(match facts.number(path)? {
        0 => ok("accounting", "conntrack doesn't count bytes")
            .means("transfers are listed without their bytes")
            .command(set(path, 1)),
        _ => ok("accounting", "conntrack counts bytes"),
    })
}

fn table(facts: &Facts) -> Option<Finding> {
    let count = facts.number("net/netfilter/nf_conntrack_count")?;
    let path = "net/netfilter/nf_conntrack_max";
    let most = facts.number(path).filter(|most| *most > 0)?;
    let percent = count.saturating_mul(100).checked_div(most)?;
    let what = format!("conntrack's table has {count} of {most} entries ({percent}%)");
    let full = |finding: Finding, means: &str| {
        finding
            .means(means)
            .command(set(path, most.saturating_mul(2)))
    };
    Some(match percent {
        FULL.. => full(
            problem("conntrack-table", what),
            "new connections are dropped, transfers among them",
        ),
        NEARLY_FULL.. => full(
            warning("conntrack-table", what),
            "when it is full, new transfers fail",
        ),
        _ => ok("conntrack-table", what),
    })
}

/// How strictly conntrack follows TCP.
fn tcp(facts: &Facts) -> Option<Finding> {
    let liberal = facts.number("net/netfilter/nf_conntrack_tcp_be_liberal")?;
    let loose = facts
        .number("net/netfilter/nf_conntrack_tcp_loose")
        .unwrap_or(1);
    if loose != 0 && facts.conntrackd.runs {
        return Some(
            warning(
                "conntrack-tcp",
                "nf_conntrack_tcp_loose is on beside conntrackd",
            )
            .means("a transfer may be reset when the addresses move to this gateway")
            .command(set("net/netfilter/nf_conntrack_tcp_loose", 0)),
        );
    }
    Some(match (liberal, loose) {
        (0, 0) => ok(
            "conntrack-tcp",
            "conntrack is strict, and takes up no connection in its middle",
        )
        .means("connections from before conntrack was there don't go on"),
        (0, _) => ok(
            "conntrack-tcp",
            "conntrack is strict about sequence numbers, which ftpalg keeps right",
        ),
        _ => ok(
            "conntrack-tcp",
            "nf_conntrack_tcp_be_liberal is on, which ftpalg doesn't need",
        ),
    })
}

/// The command that changes a setting. With slashes, since a dot may be part of a name.
pub(super) fn set(path: &str, value: u64) -> String {
    let name = match path.matches('.').count() {
        0 => path.replace('/', "."),
        _ => path.to_owned(),
    };
    format!("sysctl -w {name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::{Features, QueueUser};
    use crate::doctor::{Level, judge};
    use crate::firewall::xtables::Flavour;
    use crate::firewall::{InOwnTables, Queueing};
    use serde_json::json;

    fn found(facts: &Facts, id: &str) -> Option<(Level, String)> {
        let all = judge(facts);
        let finding = all.into_iter().find(|finding| finding.id == id)?;
        let line = finding.line();
        Some((finding.level, line))
    }

    fn with(settings: &[(&str, &str)]) -> Facts {
        let settings = settings.iter();
        Facts {
            settings: settings
                .map(|(path, value)| ((*path).to_owned(), (*value).to_owned()))
                .collect(),
            ..Facts::default()
        }
    }

    #[test]
    fn what_steers_is_said() {
        let facts = |placement, tools: &[Flavour], nf_tables| {
            let mut facts = Facts {
                tools: tools.to_vec(),
                features: Features {
                    nf_tables,
                    ..Features::default()
                },
                ..Facts::default()
            };
            facts.wanted.steering.placement = placement;
            facts.own.queueing = Some(Queueing::Target);
            facts
        };
        let lacking = || Support::Lacking("none".into());
        let (auto, nft) = (Placement::Auto, Placement::Nft);
        for (facts, tools, steering) in [
            (
                facts(auto, &[Flavour::Nft], Support::Works),
                (Level::Ok, "found iptables-nft"),
                Some((Level::Ok, "tables of iptables")),
            ),
            (
                facts(auto, &[], Support::Works),
                (Level::Ok, "none is needed"),
                Some((Level::Ok, "by the target NFQUEUE")),
            ),
            (
                facts(Placement::Iptables, &[], Support::Works),
                (Level::Problem, "no iptables found"),
                None,
            ),
            (
                facts(auto, &[], lacking()),
                (Level::Problem, "no iptables found"),
                None,
            ),
            (
                facts(nft, &[Flavour::Legacy], lacking()),
                (Level::Ok, "found iptables-legacy"),
                Some((Level::Problem, "--steering iptables")),
            ),
        ] {
            let is = |id, wanted: Option<(Level, &str)>| {
                let found = found(&facts, id);
                let same = match (&found, wanted) {
                    (Some((level, line)), Some((want, part))) => {
                        *level == want && line.contains(part)
                    }
                    (found, wanted) => found.is_none() && wanted.is_none(),
                };
                assert!(same, "{id}: {found:?}, not {wanted:?}");
            };
            is("tools", Some(tools));
            is("steering", steering);
        }
    }

    #[test]
    fn rules_that_no_tool_shows_are_told() {
        let own = |control| Facts {
            own: InOwnTables {
                rules: 8,
                control: Some(control),
                ..InOwnTables::default()
            },
            unseen: Some("iptables-legacy has tables here".into()),
            ..Facts::default()
        };
        let (level, line) = found(&own(Unread::Dropped), "rules-left").unwrap();
        assert!(
            level == Level::Problem && line.contains("8 rules"),
            "{line}"
        );
        let (level, _) = found(&own(Unread::Passed), "rules-left").unwrap();
        assert_eq!(level, Level::Warning);
        let (level, _) = found(&own(Unread::Passed), "unseen").unwrap();
        assert_eq!(level, Level::Warning);
    }

    #[test]
    fn capabilities_are_judged() {
        for (bits, level, part) in [
            (0, Level::Problem, "CAP_NET_ADMIN is missing"),
            (NET_ADMIN, Level::Warning, "CAP_NET_RAW"),
            (NET_ADMIN | NET_RAW, Level::Ok, ""),
        ] {
            let facts = Facts {
                capabilities: Some(bits),
                ..Facts::default()
            };
            let (got, line) = found(&facts, "capabilities").unwrap();
            assert_eq!(got, level);
            assert!(line.contains(part), "{line}");
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        let facts = Facts {
            features: Features {
                nfqueue: Support::Lacking("no".into()),
                nf_tables: Support::Lacking("no".into()),
                nft_nat: Support::Lacking("no".into()),
                ctnetlink: Support::Loadable,
            },
            ..Facts::default()
        };
        assert_eq!(found(&facts, "nfqueue").unwrap().0, Level::Problem);
        assert_eq!(found(&facts, "nf-tables").unwrap().0, Level::Warning);
        assert_eq!(found(&facts, "nft-nat").unwrap().0, Level::Warning);
        assert_eq!(found(&facts, "ctnetlink").unwrap().0, Level::Ok);
    }

    #[test]
    fn a_full_table_is_a_problem() {
        for (count, level) in [
            ("10", Level::Ok),
            ("85", Level::Warning),
            ("100", Level::Problem),
        ] {
            let facts = with(&[
                ("net/netfilter/nf_conntrack_count", count),
                ("net/netfilter/nf_conntrack_max", "100"),
            ]);
            let (got, line) = found(&facts, "conntrack-table").unwrap();
            assert_eq!(got, level);
            let command = "sysctl -w net.netfilter.nf_conntrack_max=200";
            assert_eq!(line.contains(command), level > Level::Ok, "{line}");
        }
        // A table without a limit is never full.
        let facts = with(&[
            ("net/netfilter/nf_conntrack_count", "10"),
            ("net/netfilter/nf_conntrack_max", "0"),
        ]);
        assert_eq!(found(&facts, "conntrack-table"), None);
    }

    #[test]
    fn events_that_are_off_are_a_problem() {
        let facts = with(&[("net/netfilter/nf_conntrack_events", "0")]);
        let (level, line) = found(&facts, "conntrack-events").unwrap();
        assert_eq!(level, Level::Problem);
        assert!(
            line.ends_with("sysctl -w net.netfilter.nf_conntrack_events=1"),
            "{line}"
        );
    }

    #[test]
    fn a_queue_of_somebody_else_is_a_problem() {
        let mut facts = Facts::default();
        facts.wanted.steering.queues.first = 2121;
        facts.queues = vec![QueueUser {
            queue: 2121,
            pid: 7,
            name: Some("suricata".into()),
        }];
        let (level, line) = found(&facts, "queue-taken").unwrap();
        assert_eq!(level, Level::Problem);
        assert!(
            line.contains("pid 7 (suricata)") && line.contains("--queue-num 2200"),
            "{line}"
        );
        // The daemon's own.
        facts.queues[0].name = Some("ftpalg".into());
        facts.daemon.status = Some(json!({"pid": 7, "missing": [], "version": "1"}));
        assert_eq!(found(&facts, "queue-taken"), None);
    }

    #[test]
    fn a_daemon_is_told_of() {
        let mut facts = Facts::default();
        facts.daemon.status = Some(json!({"pid": 7, "missing": ["a"], "version": "1"}));
        assert_eq!(found(&facts, "running").unwrap().0, Level::Problem);
        facts.daemon.status = Some(json!({"pid": 7, "missing": [], "version": "1"}));
        assert_eq!(found(&facts, "running").unwrap().0, Level::Ok);
        facts.daemon.status = None;
        facts.daemon.runs = Some(true);
        assert_eq!(found(&facts, "running").unwrap().0, Level::Warning);
    }

    #[test]
    fn names_with_dots_are_set_by_path() {
        assert_eq!(
            set("net/ipv4/conf/eth0.7/rp_filter", 2),
            "sysctl -w net/ipv4/conf/eth0.7/rp_filter=2"
        );
    }
}
