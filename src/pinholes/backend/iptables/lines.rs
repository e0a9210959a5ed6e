//! The text of rules and of commits, with the words in the order in which the tools save them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use crate::firewall::names::PROBE_CHAIN;
use crate::firewall::xtables::save::{Rule, Ruleset};
use crate::net::Mark;

/// The latest `--datestop` that iptables takes, 2038-01-19T03:14:07Z. Later deadlines aren't given
/// to the kernel.
const MAX_STAMP: u32 = i32::MAX as u32;

/// A rule of a pinhole or range: its chain and its spec.
pub(super) type RuleLine = (&'static str, String);

/// The match that lets one connection through and keeps others out for half a second, as the tools
/// show it.
pub(super) const LIMIT: &str = "-m limit --limit 2/sec --limit-burst 1";

/// When the rules of a pinhole match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    /// Until this moment; `None`: for good.
    pub(super) until: Option<DateStop>,
    /// Only as often as [`LIMIT`] says.
    pub(super) limited: bool,
}

/// A moment in UTC, as `--datestop` of the match `time` takes it: in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateStop(u32);

/// What the rules of a pinhole or range say.
pub(super) struct Wording {
    /// The chains in which the destination and the source are translated.
    pub(super) chains: [&'static str; 2],
    /// `pinhole` or `range`.
    pub(super) kind: &'static str,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// A port, or the first and the last one.
    pub(super) ports: String,
    /// Where connections are delivered; `None`: where they were sent to.
    pub(super) land: Option<String>,
    pub(super) as_source: Option<IpAddr>,
    /// The address that a connection must have been delivered to for its source to be translated;
    /// `None`: any.
    pub(super) delivered: Option<IpAddr>,
    /// The user's bits of the mark.
    pub(super) carried: u32,
}

impl Wording {
    /// The rules, numbered by `serial` in their comments.
    pub(super) fn rules(self, mark: Mark, conditions: Conditions, serial: u64) -> Vec<RuleLine> {
        let Conditions { until, limited } = conditions;
        let bit = mark.bit();
        let Self {
            chains: [pre, post],
            kind,
            from,
            to,
            ports,
            ..
        } = self;
        let bits = if from.is_ipv4() { 32 } else { 128 };
        let until = until.map_or_else(String::new, |t| format!(" -m time --datestop {t}"));
        let tag = format!("-m comment --comment \"ftpalg:{kind} {serial}\"");
        let packet =
            format!("-s {from}/{bits} -d {to}/{bits} -p tcp -m tcp --dport {ports}{until}");
        let set_bit = format!("-j CONNMARK --set-xmark {bit:#x}/{bit:#x}");
        // What each rule matches beside the packet, and what it does.
        let mut rules = Vec::new();
        // The mark of a connection that the user hasn't marked.
        let mut unmarked = 0;
        if limited {
            // All other rules are for connections that the first one let through.
            rules.push((format!("{LIMIT} "), set_bit.clone()));
            unmarked = bit;
        }
        if self.carried != 0 {
            // A data connection that the user has marked already keeps its mark. The packet gets
            // the mark, too, since it is routed next.
            let carried = self.carried;
            for (target, mark) in [("MARK", carried), ("CONNMARK", carried | unmarked)] {
                rules.push((
                    format!("-m connmark --mark {unmarked:#x} "),
                    format!("-j {target} --set-xmark {mark:#x}/0xffffffff"),
                ));
            }
        }
        let mut last = String::new();
        if limited {
            last = format!("-m connmark --mark {bit:#x}/{bit:#x} ");
        } else {
            rules.push((String::new(), set_bit));
        }
        let deliver = match self.land {
            Some(land) => format!("-j DNAT --to-destination {land}"),
            // So that the user's rules don't translate it.
            None => "-j ACCEPT".to_owned(),
        };
        rules.push((last, deliver));
        let mut lines: Vec<RuleLine> = rules
            .into_iter()
            .map(|(also, target)| (pre, format!("{packet} {also}{tag} {target}")))
            .collect();
        if let Some(source) = self.as_source {
            let delivered = self
                .delivered
                .map_or_else(String::new, |ip| format!("-d {ip}/{bits} "));
            lines.push((
                post,
                format!(
                    "{delivered}-p tcp -m connmark --mark {bit:#x}/{bit:#x} -m conntrack --ctorigsrc {from} \
                     --ctorigdst {to} --ctorigdstport {ports} {tag} -j SNAT --to-source {source}"
                ),
            ));
        }
        lines
    }
}

/// The text of a commit that removes some rules and adds others. `first`: before all other rules.
pub(super) fn transaction(remove: &[RuleLine], add: &[RuleLine], first: bool) -> String {
    let mut text = format!("*nat\n{}", verb_lines("-D", remove));
    if first {
        let mut places = BTreeMap::new();
        for (chain, spec) in add {
            let place = places.entry(chain).or_insert(0);
            *place += 1;
            text.push_str(&format!("-I {chain} {place} {spec}\n"));
        }
    } else {
        text.push_str(&verb_lines("-A", add));
    }
    text.push_str("COMMIT\n");
    text
}

/// The texts of two commits: one makes the chain for probes with rules of these specs, the other removes
/// it. Nothing jumps to it.
pub(super) fn probe<'a>(specs: impl IntoIterator<Item = &'a str>) -> [String; 2] {
    let specs = specs.into_iter();
    let lines: String = specs
        .map(|spec| format!("-A {PROBE_CHAIN} {spec}\n"))
        .collect();
    [
        format!("*nat\n:{PROBE_CHAIN} - [0:0]\n{lines}COMMIT\n"),
        format!("*nat\n-F {PROBE_CHAIN}\n-X {PROBE_CHAIN}\nCOMMIT\n"),
    ]
}

/// Parses rules, to look for them in a table.
pub(super) fn rules<'a>(lines: impl IntoIterator<Item = &'a RuleLine>) -> Vec<Rule> {
    let set = Ruleset::parse(&format!("*nat\n{}COMMIT\n", verb_lines("-A", lines)));
    set.tables.into_iter().flat_map(|t| t.rules).collect()
}

/// The number in the comment of a pinhole's rule.
pub(super) fn serial_of_spec(spec: &str) -> Option<u64> {
    let (_, behind) = spec.split_once("--comment \"ftpalg:pinhole ")?;
    behind.split('"').next()?.parse().ok()
}

pub(super) fn verb_lines<'a>(verb: &str, lines: impl IntoIterator<Item = &'a RuleLine>) -> String {
    lines
        .into_iter()
        .map(|(chain, spec)| format!("{verb} {chain} {spec}\n"))
        .collect()
}

impl DateStop {
    /// The moment `timeout` from now, rounded up to a second; `None` if it can't be written.
    pub(super) fn after(timeout: Duration) -> Option<Self> {
        let end = Timestamp::now().checked_add(timeout).ok()?;
        let whole = TimestampRound::new()
            .smallest(Unit::Second)
            .mode(RoundMode::Ceil);
        Self::at(end.round(whole).ok()?)
    }

    /// `None` if it can't be written.
    pub(super) const fn new(seconds: u32) -> Option<Self> {
        if seconds < MAX_STAMP {
            Some(Self(seconds))
        } else {
            None
        }
    }

    fn at(moment: Timestamp) -> Option<Self> {
        u32::try_from(moment.as_second()).ok().and_then(Self::new)
    }

    /// The time from now until then: zero if it has passed.
    pub(super) fn left(self) -> Duration {
        let left = self.moment().duration_since(Timestamp::now());
        Duration::try_from(left).unwrap_or_default()
    }

    /// In seconds since 1970.
    pub(super) const fn seconds(self) -> u32 {
        self.0
    }

    fn moment(self) -> Timestamp {
        Timestamp::from_second(i64::from(self.0)).unwrap_or_default()
    }
}

impl fmt::Display for DateStop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.moment().strftime("%Y-%m-%dT%H:%M:%S").fmt(f)
    }
}

impl FromStr for DateStop {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let date = text.parse::<DateTime>().map_err(drop)?;
        let moment = date.to_zoned(TimeZone::UTC).map_err(drop)?.timestamp();
        Self::at(moment).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRE: &str = "FTPALG-PRE";
    const POST: &str = "FTPALG-POST";

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_400, "2000-02-29T00:00:00"),
            (2_147_483_646, "2038-01-19T03:14:06"),
        ] {
            let date = DateStop::new(seconds).unwrap();
            assert_eq!(date.to_string(), text);
            assert_eq!(text.parse(), Ok(date));
        }
        for other in ["soon", "2038-01-19T03:14:07", "1969-12-31T23:59:59"] {
            assert_eq!(other.parse::<DateStop>(), Err(()));
        }
        assert_eq!(DateStop::after(Duration::MAX), None);
        assert_eq!(DateStop::after(Duration::from_secs(1 << 40)), None);
        let minute = Duration::from_secs(60);
        let left = DateStop::after(minute).unwrap().left();
        assert!(left > minute / 2 && left <= minute + Duration::from_secs(1));
        assert_eq!(DateStop(0).left(), Duration::ZERO);
    }

    #[test]
    fn one_commit_removes_and_adds() {
        let lines = |chains: &[(&'static str, &str)]| -> Vec<RuleLine> {
            let line = |(chain, spec): &(&'static str, &str)| (*chain, (*spec).to_owned());
            chains.iter().map(line).collect()
        };
        let old = lines(&[(PRE, "old")]);
        let new = lines(&[(PRE, "mark"), (PRE, "dnat"), (POST, "snat")]);
        assert_eq!(
            transaction(&old, &new, false),
            "*nat\n-D FTPALG-PRE old\n-A FTPALG-PRE mark\n-A FTPALG-PRE dnat\n\
             -A FTPALG-POST snat\nCOMMIT\n"
        );
        assert_eq!(
            transaction(&old, &new, true),
            "*nat\n-D FTPALG-PRE old\n-I FTPALG-PRE 1 mark\n-I FTPALG-PRE 2 dnat\n\
             -I FTPALG-POST 1 snat\nCOMMIT\n"
        );
    }
}
