//! The save format: what `iptables-save` writes and `iptables-restore` reads.
//!
//! Reading never fails: a line that isn't understood is counted and left out, since a rule set may
//! come from a newer tool.

/// A rule with more words than this isn't looked at (the tools themselves stop at 255).
const MAX_WORDS: usize = 1024;

/// What one run of `iptables-save` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Its tables, in order.
    pub tables: Vec<Table>,
    /// Tables that exist, but that the tool can't show, since they hold rules written for `nft`. The
    /// tool can still change them.
    pub hidden: Vec<String>,
    /// How many lines weren't understood.
    pub skipped: usize,
}

/// One table: `*name` … `COMMIT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// `filter`, `nat`, …
    pub name: String,
    /// Its chains, in order.
    pub chains: Vec<Chain>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// One chain: `:name policy [packets:bytes]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// `ACCEPT` or `DROP`; `None` for a chain that a user made.
    pub policy: Option<String>,
}

/// Where a rule goes in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// `-I`: before all others.
    Top,
    /// `-A`: after all others.
    End,
}

/// One rule: `-A chain spec` or `-I chain spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The chain that it is in.
    pub chain: String,
    /// Where it goes in there. Rules that a tool saved are all at the end.
    pub position: Position,
    /// Matches and target as written, quotes included.
    pub spec: String,
    /// The words of the spec, quotes taken off.
    pub words: Vec<String>,
}

/// The value of an option in a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionValue<'a> {
    /// Whether a `!` stands before the option.
    pub negated: bool,
    /// The word after it.
    pub text: &'a str,
}

impl Ruleset {
    /// Reads what `iptables-save` wrote.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut set = Self::default();
        let mut open: Option<Table> = None;
        for line in text.lines() {
            let line = line.trim();
            set.hidden.extend(hidden_table(line));
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('*') {
                set.tables.extend(open.take());
                open = Some(Table {
                    name: name.to_owned(),
                    ..Table::default()
                });
                continue;
            }
            let understood = match &mut open {
                Some(_) if line == "COMMIT" => {
                    set.tables.extend(open.take());
                    true
                }
                Some(table) => table.read(line),
                None => false,
            };
            set.skipped += usize::from(!understood);
        }
        set.tables.extend(open);
        set
    }

    /// The table of that name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|t| t.name == name)
    }
}

/// The table in a line like "# Table `filter' is incompatible, use 'nft' tool."
fn hidden_table(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("# Table `")?.split_once('\'')?;
    rest.starts_with(" is incompatible")
        .then(|| name.to_owned())
}

impl Table {
    fn read(&mut self, line: &str) -> bool {
        if let Some(rest) = line.strip_prefix(':') {
            let mut words = rest.split_ascii_whitespace();
            let (Some(name), Some(policy)) = (words.next(), words.next()) else {
                return false;
            };
            self.chains.push(Chain {
                name: name.to_owned(),
                policy: (policy != "-").then(|| policy.to_owned()),
            });
            return true;
        }
        match Rule::parse(line) {
            Some(rule) => {
                self.rules.push(rule);
                true
            }
            None => false,
        }
    }

    /// The chain of that name.
    #[must_use]
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }

    /// The rules of the chain of that name, in order.
    pub fn rules_of<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |r| r.chain == chain)
    }
}

impl Rule {
    /// Reads one line, with or without counters before it; `None` if it isn't a rule.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            line = rest.split_once(']')?.1.trim_start();
        }
        let (verb, rest) = line.split_once(char::is_whitespace)?;
        let position = match verb {
            "-A" => Position::End,
            "-I" => Position::Top,
            _ => return None,
        };
        let rest = rest.trim_start();
        let (chain, mut spec) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        spec = spec.trim();
        if position == Position::Top {
            // `-I CHAIN 1` is `-I CHAIN`; any other number isn't a place we know.
            if let Some(after) = spec.strip_prefix("1 ") {
                spec = after.trim_start();
            }
            if spec.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
        }
        Some(Self {
            chain: chain.to_owned(),
            position,
            spec: spec.to_owned(),
            words: words(spec)?,
        })
    }

    /// The value of the first option that has one of these names, such as `["-i", "--in-interface"]`.
    #[must_use]
    pub fn option(&self, names: &[&str]) -> Option<OptionValue<'_>> {
        let mut in_comment = false;
        let at = self.words.iter().position(|w| {
            // What a comment says isn't an option, whatever it looks like.
            let found = !in_comment && names.contains(&w.as_str());
            in_comment = !in_comment && w == "--comment";
            found
        })?;
        Some(OptionValue {
            negated: at
                .checked_sub(1)
                .and_then(|before| self.words.get(before))
                .is_some_and(|w| w == "!"),
            text: self.words.get(at + 1)?,
        })
    }

    /// Where it sends packets: `ACCEPT`, `DNAT`, a chain, …
    #[must_use]
    pub fn target(&self) -> Option<&str> {
        self.option(&["-j", "--jump", "-g", "--goto"])
            .map(|v| v.text)
    }

    /// What `-m comment` says.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        self.option(&["--comment"]).map(|v| v.text)
    }
}

/// Cuts a spec into words as iptables-restore does: at white space, except within double quotes;
/// within them a backslash takes the next character as it is.
fn words(spec: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = spec.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            c if c.is_whitespace() && !quoted => {
                words.extend(word.take());
                if words.len() > MAX_WORDS {
                    return None;
                }
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (!quoted).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9 on Sat Nov 21 02:06:06 2026
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING DROP [7:90]
:DOCKER - [0:0]
[3:180] -A PREROUTING -p tcp -m tcp --dport 21 -m comment --comment "my \"own\" rule" -j DNAT --to-destination 10.0.0.2
-A POSTROUTING ! -s 10.0.0.0/8 -o wan -m comment --comment plain -j MASQUERADE
nonsense
COMMIT
# Completed on Sat Nov 21 02:06:06 2026
*raw
:PREROUTING ACCEPT [0:0]
COMMIT
"#;

    #[test]
    fn tables_chains_and_rules() {
        let set = Ruleset::parse(SAVED);
        assert_eq!(set.skipped, 1);
        let nat = set.table("nat").unwrap();
        assert_eq!(
            nat.chain("POSTROUTING").unwrap().policy.as_deref(),
            Some("DROP")
        );
        assert_eq!(nat.chain("DOCKER").unwrap().policy, None);
        assert_eq!(nat.chain("X"), None);
        let dnat = nat.rules_of("PREROUTING").next().unwrap();
        assert_eq!(dnat.comment(), Some("my \"own\" rule"));
        assert_eq!(dnat.target(), Some("DNAT"));
        assert_eq!(dnat.option(&["--to-destination"]).unwrap().text, "10.0.0.2");
        let masq = nat.rules_of("POSTROUTING").next().unwrap();
        assert!(masq.option(&["-s"]).unwrap().negated);
        assert!(!masq.option(&["-o"]).unwrap().negated);
        assert_eq!(masq.comment(), Some("plain"));
        assert!(set.table("raw").unwrap().rules.is_empty());
    }

    #[test]
    fn tables_that_are_there_but_not_shown() {
        let set = Ruleset::parse(
            "# Table `filter' is incompatible, use 'nft' tool.\n\
             # Table `raw' contains incompatible base-chains, use 'nft' tool to list them.\n\
             *raw\nCOMMIT\n",
        );
        assert_eq!(set.hidden, ["filter"]);
        assert_eq!(set.tables.len(), 1);
    }

    #[test]
    fn places() {
        let place = |l: &str| Rule::parse(l).map(|r| (r.position, r.spec));
        assert_eq!(place("-A X -j Y"), Some((Position::End, "-j Y".into())));
        assert_eq!(place("-I X 1 -j Y"), Some((Position::Top, "-j Y".into())));
        assert_eq!(place("-I X -j Y"), Some((Position::Top, "-j Y".into())));
        assert_eq!(place("-I X 2 -j Y"), None);
        assert_eq!(place("-D X -j Y"), None);
        assert_eq!(place("-A X"), Some((Position::End, String::new())));
    }

    #[test]
    fn broken_quotes_and_endless_rules_are_left_out() {
        assert_eq!(Rule::parse("-A X --comment \"open"), None);
        assert_eq!(Rule::parse(&format!("-A X {}", "a ".repeat(5000))), None);
        assert_eq!(Rule::parse("[1:2 -A X"), None);
        assert_eq!(
            Rule::parse("-A X -m comment --comment").unwrap().comment(),
            None
        );
        assert_eq!(
            Rule::parse("-A X --comment \"\"").unwrap().comment(),
            Some("")
        );
        assert_eq!(
            Rule::parse("-A X --comment -j -j Y").unwrap().target(),
            Some("Y")
        );
    }

    proptest! {
        #[test]
        fn anything_is_read_without_panic(text in "(\\*|:|-A|-I|\\[|\"|\\\\|!| |\n|COMMIT|[a-z]){0,60}") {
            let set = Ruleset::parse(&text);
            prop_assert!(set.tables.len() <= text.len());
        }

        #[test]
        fn quoted_words_come_back(s in "[ -~]{0,40}") {
            let quoted = s.replace('\\', "\\\\").replace('"', "\\\"");
            let rule = Rule::parse(&format!("-A X -m comment --comment \"{quoted}\" -j Y")).unwrap();
            prop_assert_eq!(rule.comment(), Some(s.as_str()));
            prop_assert_eq!(rule.target(), Some("Y"));
        }
    }
}
