//! Values of the settings that say what FTP sessions may do.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::ftp::policy::{SERVICE_PORTS, SYSTEM_PORTS, Strict};
use crate::net::PortRange;

/// The rules of `--strict`, as far as they are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StrictChoice {
    /// What holds for rules that aren't named.
    all: bool,
    named: Named,
}

/// The table `[strict]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Named {
    all: Option<bool>,
    order: Option<bool>,
    unknown_verbs: Option<bool>,
    long_lines: Option<bool>,
    control_bytes: Option<bool>,
    before_greeting: Option<bool>,
    addresses: Option<bool>,
    active_late: Option<bool>,
    passive_ports: Option<bool>,
    #[serde(deserialize_with = "logins")]
    failed_logins: Option<u8>,
    allow: Option<Vec<Verb>>,
    deny: Option<Vec<Verb>>,
}

impl Named {
    /// The rules that are on or off, by name.
    fn switches(&mut self) -> [(&'static str, &mut Option<bool>); 8] {
        [
            ("order", &mut self.order),
            ("unknown-verbs", &mut self.unknown_verbs),
            ("long-lines", &mut self.long_lines),
            ("control-bytes", &mut self.control_bytes),
            ("before-greeting", &mut self.before_greeting),
            ("addresses", &mut self.addresses),
            ("active-late", &mut self.active_late),
            ("passive-ports", &mut self.passive_ports),
        ]
    }
}

/// The rules that can be named on the command line.
const RULES: &str = "all, order, unknown-verbs, long-lines, control-bytes, before-greeting, \
                     addresses, passive-ports, active-late, failed-logins";

impl StrictChoice {
    /// The rules of a flag added to those of the file. The file's lists and numbers stay.
    pub(super) fn over(self, base: Self) -> Self {
        let Self { all, mut named } = self;
        let mut file = base.named;
        for ((_, own), (_, base)) in named.switches().into_iter().zip(file.switches()) {
            // If the flag asks for all rules, those that the file switches off are on again.
            *own = own.or(base.filter(|_| !all));
        }
        // The flag asks for the limit without a number: the file's number counts, unless it is 0.
        let asked = all || named.failed_logins.is_some();
        let logins = file.failed_logins.filter(|n| !asked || *n > 0);
        named.failed_logins = logins.or(named.failed_logins);
        named.allow = named.allow.or(file.allow);
        named.deny = named.deny.or(file.deny);
        Self {
            all: all || base.all,
            named,
        }
    }

    /// The rules.
    pub(super) fn rules(self) -> Strict {
        let Self { all, named } = self;
        let on = |rule: Option<bool>| rule.unwrap_or(all);
        let verbs = |list: Option<Vec<Verb>>| {
            let list = list.unwrap_or_default().into_iter();
            list.map(|verb| verb.0).collect()
        };
        let default = all.then_some(Strict::FAILED_LOGINS);
        Strict {
            order: on(named.order),
            unknown_verbs: on(named.unknown_verbs),
            long_lines: on(named.long_lines),
            control_bytes: on(named.control_bytes),
            before_greeting: on(named.before_greeting),
            addresses: on(named.addresses),
            active_late: named.active_late.unwrap_or(false),
            passive_ports: on(named.passive_ports),
            allow: verbs(named.allow),
            deny: verbs(named.deny),
            failed_logins: named.failed_logins.or(default).filter(|n| *n > 0),
        }
    }
}

impl FromStr for StrictChoice {
    type Err = String;

    /// Reads names of rules with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut choice = Self::default();
        let named = &mut choice.named;
        for name in text.split(',') {
            match name.trim() {
                "all" => choice.all = true,
                "failed-logins" => named.failed_logins = Some(Strict::FAILED_LOGINS),
                name => {
                    let mut switches = named.switches().into_iter();
                    let Some((_, rule)) = switches.find(|(known, _)| *known == name) else {
                        return Err(format!("no rule {name:?}; write some of {RULES}"));
                    };
                    *rule = Some(true);
                }
            }
        }
        Ok(choice)
    }
}

impl<'de> Deserialize<'de> for StrictChoice {
    /// Reads `true`, `"order,long-lines"`, or a table of rules.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StrictReader;
        impl<'de> Visitor<'de> for StrictReader {
            type Value = StrictChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "true, false, some of {RULES}, or a table [strict]")
            }

            fn visit_bool<E>(self, all: bool) -> Result<StrictChoice, E> {
                Ok(StrictChoice {
                    all,
                    ..StrictChoice::default()
                })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<StrictChoice, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StrictChoice, A::Error> {
                let mut named = Named::deserialize(MapAccessDeserializer::new(map))?;
                Ok(StrictChoice {
                    all: named.all.take().unwrap_or(false),
                    named,
                })
            }
        }
        deserializer.deserialize_any(StrictReader)
    }
}

fn logins<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let number = i64::deserialize(deserializer)?;
    let logins = u8::try_from(number).ok();
    logins
        .map(Some)
        .ok_or_else(|| D::Error::custom(format!("{number} failed logins: write 0 to 255")))
}

/// A command's verb, in upper case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verb(String);

impl<'de> Deserialize<'de> for Verb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let verb = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !verb {
            let what = format!("{text:?}: write a command like SITE, of 1 to 8 letters");
            return Err(D::Error::custom(what));
        }
        Ok(Self(text.to_ascii_uppercase()))
    }
}

/// One value of `--deny-ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DenyPorts {
    /// These.
    Range(PortRange),
    /// The well-known services.
    Default,
    /// No more than system ports.
    None,
}

impl DenyPorts {
    /// The ports that are denied.
    pub(super) fn ports(chosen: Option<Vec<Self>>) -> Vec<RangeInclusive<u16>> {
        let chosen = chosen.unwrap_or_else(|| vec![Self::Default]);
        let mut ports = vec![SYSTEM_PORTS];
        for one in chosen {
            match one {
                Self::Range(range) => ports.push(range.first()..=range.last()),
                Self::Default => {
                    ports.extend(SERVICE_PORTS.into_iter().filter(|r| *r != SYSTEM_PORTS));
                }
                Self::None => {}
            }
        }
        ports
    }
}

impl FromStr for DenyPorts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            "none" => Ok(Self::None),
            _ if text.contains('-') => text.parse().map(Self::Range),
            _ => format!("{text}-{text}")
                .parse()
                .map(Self::Range)
                .map_err(|_| "write a port, a range A-B, default, or none".to_owned()),
        }
    }
}

/// Reads `yes` or `no`.
pub(super) fn yes_or_no(text: &str) -> Result<bool, &'static str> {
    match text {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err("write yes or no"),
    }
}

/// Reads `true`, `false`, or the text of the flag.
pub(super) fn yes_or_no_in_file<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<bool>, D::Error> {
    struct YesOrNoReader;
    impl Visitor<'_> for YesOrNoReader {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("true or false")
        }

        fn visit_bool<E>(self, yes: bool) -> Result<bool, E> {
            Ok(yes)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
            yes_or_no(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(YesOrNoReader).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<StrictChoice, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn rules_one_by_one() {
        assert_eq!(StrictChoice::default().rules(), Strict::default());
        assert_eq!(
            "all".parse::<StrictChoice>().unwrap().rules(),
            Strict::all()
        );
        let some = "order,failed-logins"
            .parse::<StrictChoice>()
            .unwrap()
            .rules();
        let expected = Strict {
            order: true,
            failed_logins: Some(3),
            ..Strict::default()
        };
        assert_eq!(some, expected);
        let some = table("long-lines = true\ndeny = [\"site\"]\nfailed-logins = 5");
        let expected = Strict {
            long_lines: true,
            deny: vec!["SITE".into()],
            failed_logins: Some(5),
            ..Strict::default()
        };
        assert_eq!(some.unwrap().rules(), expected);
        let but = table("all = true\nunknown-verbs = false\nfailed-logins = 0");
        let expected = Strict {
            unknown_verbs: false,
            failed_logins: None,
            ..Strict::all()
        };
        assert_eq!(but.unwrap().rules(), expected);
        for (text, part) in [
            ("ordr = true", "ordr"),
            ("deny = [\"a b\"]", "like SITE"),
            ("failed-logins = 256", "0 to 255"),
        ] {
            let e = table(text).unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
        assert!(
            "orders"
                .parse::<StrictChoice>()
                .unwrap_err()
                .contains("order,")
        );
    }

    #[test]
    fn the_flag_adds_to_the_file() {
        let file = "order = false\nfailed-logins = 9\nallow = [\"USER\"]";
        let all = "all".parse::<StrictChoice>().unwrap();
        let expected = Strict {
            allow: vec!["USER".into()],
            failed_logins: Some(9),
            ..Strict::all()
        };
        assert_eq!(all.over(table(file).unwrap()).rules(), expected);
        let one = "long-lines".parse::<StrictChoice>().unwrap();
        let expected = Strict {
            long_lines: true,
            failed_logins: Some(9),
            allow: vec!["USER".into()],
            ..Strict::default()
        };
        assert_eq!(one.over(table(file).unwrap()).rules(), expected);
    }

    #[test]
    fn the_flag_switches_the_limit_of_logins_on() {
        let over = |flag: &str, file: &str| {
            let flag = flag.parse::<StrictChoice>().unwrap();
            flag.over(table(file).unwrap()).rules().failed_logins
        };
        for flag in ["all", "failed-logins"] {
            assert_eq!(over(flag, "failed-logins = 0"), Some(3), "{flag}");
            assert_eq!(over(flag, "failed-logins = 9"), Some(9), "{flag}");
        }
        assert_eq!(over("order", "all = true\nfailed-logins = 0"), None);
    }

    #[test]
    fn denied_ports() {
        let denied = |text: &str, port: u16| {
            let chosen = text.split(' ').map(|one| one.parse().unwrap()).collect();
            let ports = DenyPorts::ports(Some(chosen));
            ports.iter().any(|range| range.contains(&port))
        };
        assert!(denied("none", 22) && !denied("none", 3306));
        assert!(denied("default", 3306) && !denied("default", 8080));
        assert!(denied("default 8080", 8080) && denied("default 8080", 3306));
        assert!(denied("8000-8080", 8044) && !denied("8000-8080", 3306));
        assert_eq!(DenyPorts::ports(None), SERVICE_PORTS);
        for bad in ["", "0", "65536", "9-8", "ssh", "-", "+1"] {
            assert!(bad.parse::<DenyPorts>().is_err(), "{bad:?}");
        }
    }
}
