//! The strict rules, as `--strict` and the table `[strict]` choose them.

use std::str::FromStr;

use crate::daemon::config::decimal;
use crate::ftp::policy::Strict;

/// The rules of `--strict`, as far as they are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StrictChoice {
    /// What holds for rules that aren't named.
    all: bool,
    named: Named,
}

/// The rules by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Named {
    order: Option<bool>,
    unknown_verbs: Option<bool>,
    long_lines: Option<bool>,
    control_bytes: Option<bool>,
    before_greeting: Option<bool>,
    addresses: Option<bool>,
    active_late: Option<bool>,
    passive_ports: Option<bool>,
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

/// A key of the table `[strict]`.
pub(super) struct Rule {
    /// The key.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) takes: Takes,
    /// What is refused, for people.
    pub(super) about: &'static str,
}

/// What a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// `true` or `false`.
    Switch,
    /// A number.
    Number,
    /// A list of commands.
    Commands,
}

/// All keys of the table.
pub(super) static TABLE: [Rule; 12] = [
    switch("all", "every rule that isn't named here, but active-late"),
    switch(
        "order",
        "commands out of order: before the login all but those that belong there",
    ),
    switch(
        "unknown-verbs",
        "commands that are in no RFC on FTP and that no common server has",
    ),
    switch("long-lines", "lines over the limit command-line"),
    switch("control-bytes", "control characters in commands"),
    switch("before-greeting", "commands before the server's greeting"),
    switch(
        "addresses",
        "PORT and EPRT without an address, or before the login",
    ),
    switch(
        "passive-ports",
        "passive ports of servers inside that deny-ports names",
    ),
    switch(
        "active-late",
        "nothing; a data port of PORT or EPRT opens with the transfer command",
    ),
    Rule {
        name: "failed-logins",
        takes: Takes::Number,
        about: "logins after so many in a row failed; 0 means no limit",
    },
    Rule {
        name: "allow",
        takes: Takes::Commands,
        about: "all commands but these",
    },
    Rule {
        name: "deny",
        takes: Takes::Commands,
        about: "these commands",
    },
];

const fn switch(name: &'static str, about: &'static str) -> Rule {
    Rule {
        name,
        takes: Takes::Switch,
        about,
    }
}

/// A file's key of the table `[strict]`, one after the other.
impl StrictChoice {
    /// Switches a rule on or off.
    pub(super) fn switch(&mut self, name: &str, on: bool) {
        if name == "all" {
            self.all = on;
        }
        let mut switches = self.named.switches().into_iter();
        if let Some((_, rule)) = switches.find(|(known, _)| *known == name) {
            *rule = Some(on);
        }
    }

    /// Sets how many logins may fail; 0 for no limit.
    pub(super) fn failed_logins(&mut self, text: &str) -> Result<(), String> {
        let logins = decimal(text).ok_or("write 0 to 255")?;
        self.named.failed_logins = Some(logins);
        Ok(())
    }

    /// Adds a command to a list: to `allow` or to `deny`.
    pub(super) fn command(&mut self, list: &str, text: &str) -> Result<(), String> {
        let verb = text.parse()?;
        self.list(list).push(verb);
        Ok(())
    }

    /// The list of that name, which is there from now on even if it stays empty.
    pub(super) fn list(&mut self, name: &str) -> &mut Vec<Verb> {
        let list = match name {
            "allow" => &mut self.named.allow,
            _ => &mut self.named.deny,
        };
        list.get_or_insert_default()
    }
}

/// A command's verb, in upper case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verb(String);

impl FromStr for Verb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let verb = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !verb {
            return Err("write a command like SITE, of 1 to 8 letters".into());
        }
        Ok(Self(text.to_ascii_uppercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::File;
    use super::*;

    fn table(text: &str) -> Result<StrictChoice, String> {
        let file = File::read(&format!("[strict]\n{text}"));
        file.map(|file| file.settings.refusing.strict.unwrap())
            .map_err(|mistakes| mistakes[0].text.clone())
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
}
