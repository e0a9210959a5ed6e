//! Makes rule sets from the templates in `sets/`. Those in `iptables/` at the top are made from them,
//! for people to read and load.
//!
//! A template is in the save format, with placeholders in braces:
//!
//! | placeholder | becomes |
//! |---|---|
//! | `{from-inside}`, `{to-inside}` | `-i IFACE` or `-s NET`, `-o IFACE` or `-d NET`: the line once for each inside, none if there is none |
//! | `{sports}`, `{dports}` | the match for the control ports as source or destination: the line once per 15 ports |
//! | `{outside}`, `{server}` | what an example takes for the outside interface and for the server inside |
//! | `{queue}` | `--queue-num N` or `--queue-balance A:B`, and `--queue-bypass` if unseen packets shall pass |
//! | `{closed-queue}` | the same without `--queue-bypass` |
//! | `{mark}`, `{uneven}` | `BIT/BIT`: of data connections, and of control connections with a sequence delta |
//! | `{uneven-bit}` | `BIT` alone |
//! | `{restore}`, in comments | `iptables-restore` or `ip6tables-restore` |
//! | `{local}`, `{open}` in front | the line, if this host itself is served, or if unseen packets shall pass |
//! | `{ipv4}`, `{ipv6}` in front | the line for that family only |
//! | `{steering}` alone | the template that `rules install` loads |

use std::net::{Ipv4Addr, Ipv6Addr};

use super::RulesError;
use super::steering::{Inside, Steering};
use crate::net::Family;

/// What `rules install` loads.
const STEERING: &str = include_str!("sets/steering.rules");

/// xt_multiport's own limit.
const PORTS_PER_RULE: usize = 15;

/// A whole rule set to start from: the user's part and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Example {
    /// The name of its files in `iptables/`, without `.rules`.
    pub name: &'static str,
    text: &'static str,
    /// Whether it is about this host itself, or about what is inside.
    local: bool,
}

/// What an example is written around, besides what is steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Around {
    /// The interface towards the rest of the world.
    pub outside: String,
    /// The server inside: an address of each family.
    pub server: (Ipv4Addr, Ipv6Addr),
}

impl Default for Around {
    /// `eth0`, `192.168.1.2` and `2001:db8:1::2`.
    fn default() -> Self {
        Self {
            outside: "eth0".to_owned(),
            server: (
                Ipv4Addr::new(192, 168, 1, 2),
                Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
            ),
        }
    }
}

/// All examples.
pub const EXAMPLES: [Example; 4] = [
    example("gateway", include_str!("sets/gateway.rules"), false),
    example(
        "local-server",
        include_str!("sets/local-server.rules"),
        true,
    ),
    example(
        "client-firewall",
        include_str!("sets/client-firewall.rules"),
        false,
    ),
    example(
        "default-drop-host",
        include_str!("sets/default-drop-host.rules"),
        true,
    ),
];

const fn example(name: &'static str, text: &'static str, local: bool) -> Example {
    Example { name, text, local }
}

impl Example {
    /// Whether it is about servers and clients on this host itself, which are steered then.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// The rule set, filled in.
    ///
    /// # Errors
    /// [`RulesError::Input`] if the steering makes no sense, or not for this example.
    pub fn print(
        &self,
        steering: &Steering,
        around: &Around,
        family: Family,
    ) -> Result<String, RulesError> {
        let mut steering = steering.clone();
        steering.local |= self.local;
        steering.check()?;
        let name = self.name;
        if !self.local && steering.inside.is_empty() {
            return Err(RulesError::Input(format!(
                "the example {name} is about an inside: name it with --inside"
            )));
        }
        let outside = Inside::Iface(around.outside.clone());
        if !self.local && steering.inside.contains(&outside) {
            return Err(RulesError::Input(format!(
                "{outside} can't be the inside and the outside of the example {name}: name the other \
                 with --outside"
            )));
        }
        Ok(expand(self.text, &steering, around, family))
    }
}

/// The rules that [`install`](super::Rules::install) loads, as text for
/// `iptables-restore --noflush` (`ip6tables-restore` for IPv6).
///
/// # Errors
/// [`RulesError::Input`] if the steering makes no sense.
pub fn print(steering: &Steering, family: Family) -> Result<String, RulesError> {
    steering.check()?;
    Ok(expand(STEERING, steering, &Around::default(), family))
}

fn expand(template: &str, steering: &Steering, around: &Around, family: Family) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    for line in template.lines() {
        if line == "{steering}" {
            out.push_str(&expand(STEERING, steering, around, family));
            continue;
        }
        let Some(line) = wanted(line, steering, family) else {
            continue;
        };
        if line.starts_with('#') {
            let restore = format!("{}-restore", family.program());
            out.push_str(&fill(line, around, family).replace("{restore}", &restore));
            out.push('\n');
            continue;
        }
        let mut lines = vec![fill(line, around, family)];
        for (name, values) in values(steering, family) {
            lines = lines
                .iter()
                .flat_map(|l| substitute(l, name, &values))
                .collect();
        }
        for line in lines {
            out.push_str(&line);
            out.push('\n');
        }
    }
    out
}

/// Puts in what has one value only.
fn fill(line: &str, around: &Around, family: Family) -> String {
    let server = match family {
        Family::V4 => around.server.0.to_string(),
        Family::V6 => around.server.1.to_string(),
    };
    line.replace("{outside}", &around.outside)
        .replace("{server}", &server)
}

/// Takes the conditions off the front of a line; `None` if one of them isn't met.
fn wanted<'a>(mut line: &'a str, steering: &Steering, family: Family) -> Option<&'a str> {
    let conditions = [
        ("{open} ", steering.fail_open),
        ("{local} ", steering.local),
        ("{ipv4} ", family == Family::V4),
        ("{ipv6} ", family == Family::V6),
    ];
    for (prefix, met) in conditions {
        if let Some(rest) = line.strip_prefix(prefix) {
            line = met.then_some(rest)?;
        }
    }
    Some(line)
}

/// The line once for each value, or as it is if it doesn't name the placeholder.
fn substitute(line: &str, name: &str, values: &[String]) -> Vec<String> {
    if !line.contains(name) {
        return vec![line.to_owned()];
    }
    values.iter().map(|v| line.replace(name, v)).collect()
}

fn values(steering: &Steering, family: Family) -> [(&'static str, Vec<String>); 9] {
    let insides = |iface: &str, net: &str| -> Vec<String> {
        let mut all: Vec<&Inside> = steering.inside.iter().filter(|i| i.is_in(family)).collect();
        all.sort();
        all.dedup();
        all.iter()
            .map(|inside| match inside {
                Inside::Iface(_) => format!("{iface} {inside}"),
                Inside::Net(_) => format!("{net} {inside}"),
            })
            .collect()
    };
    let (bit, uneven) = (steering.mark.bit(), steering.uneven_mark.bit());
    [
        ("{from-inside}", insides("-i", "-s")),
        ("{to-inside}", insides("-o", "-d")),
        ("{sports}", ports(steering, "--sport")),
        ("{dports}", ports(steering, "--dport")),
        ("{queue}", vec![queue(steering, steering.fail_open)]),
        ("{closed-queue}", vec![queue(steering, false)]),
        ("{mark}", vec![format!("{bit:#x}/{bit:#x}")]),
        ("{uneven}", vec![format!("{uneven:#x}/{uneven:#x}")]),
        ("{uneven-bit}", vec![format!("{uneven:#x}")]),
    ]
}

fn ports(steering: &Steering, option: &str) -> Vec<String> {
    let mut ports = steering.ports.clone();
    ports.sort_unstable();
    ports.dedup();
    ports
        .chunks(PORTS_PER_RULE)
        .map(|chunk| match chunk {
            [port] => format!("{option} {port}"),
            _ => {
                let list: Vec<String> = chunk.iter().map(u16::to_string).collect();
                format!("-m multiport {option}s {}", list.join(","))
            }
        })
        .collect()
}

fn queue(steering: &Steering, open: bool) -> String {
    let (first, last) = steering.queues.numbers().into_inner();
    let mut text = format!("--queue-num {first}");
    if last > first {
        text = format!("--queue-balance {first}:{last}");
    }
    if open {
        text += " --queue-bypass";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::steering::Queues;
    use crate::firewall::xtables::save::Ruleset;

    fn steering(inside: &[&str], local: bool, ports: &[u16]) -> Steering {
        Steering {
            inside: inside.iter().map(|i| i.parse().unwrap()).collect(),
            local,
            ports: ports.to_vec(),
            ..Steering::default()
        }
    }

    fn rules(text: &str) -> Vec<&str> {
        text.lines()
            .filter(|l| l.starts_with("-A") || l.starts_with("-I"))
            .collect()
    }

    #[test]
    fn a_gateway() {
        let text = print(&steering(&["eth1"], false, &[21]), Family::V4).unwrap();
        assert_eq!(
            rules(&text),
            [
                r#"-A FTPALG-EGRESS -p tcp --sport 21 -m comment --comment "ftpalg:egress" -j NFQUEUE --queue-num 0"#,
                r#"-A FTPALG-EGRESS -p tcp --dport 21 -m comment --comment "ftpalg:egress" -j NFQUEUE --queue-num 0"#,
                r#"-A PREROUTING -i eth1 -m comment --comment "ftpalg:egress" -j FTPALG-EGRESS"#,
                r#"-A FTPALG-INGRESS -p tcp --sport 21 -m comment --comment "ftpalg:ingress" -j NFQUEUE --queue-num 0"#,
                r#"-A FTPALG-INGRESS -p tcp --dport 21 -m comment --comment "ftpalg:ingress" -j NFQUEUE --queue-num 0"#,
                r#"-A POSTROUTING -o eth1 -m comment --comment "ftpalg:ingress" -j FTPALG-INGRESS"#,
                r#"-A FTPALG-DATA -p tcp -m connmark --mark 0x40000000/0x40000000 -m comment --comment "ftpalg:data" -j ACCEPT"#,
                r#"-I FORWARD -m comment --comment "ftpalg:data" -j FTPALG-DATA"#,
            ]
        );
    }

    #[test]
    fn networks_go_to_their_own_family() {
        let steering = steering(&["10.0.0.0/8", "fd00::/8"], false, &[21]);
        let v4 = print(&steering, Family::V4).unwrap();
        assert!(v4.contains("-A PREROUTING -s 10.0.0.0/8 ") && !v4.contains("fd00"));
        let v6 = print(&steering, Family::V6).unwrap();
        assert!(v6.contains("-A POSTROUTING -d fd00::/8 ") && !v6.contains("10.0"));
    }

    #[test]
    fn a_local_server() {
        let text = print(&steering(&[], true, &[21]), Family::V4).unwrap();
        let rules = rules(&text);
        assert!(rules.iter().any(|r| r.starts_with("-A OUTPUT ! -o lo ")));
        assert!(rules.iter().any(|r| r.starts_with("-A INPUT ! -i lo ")));
        assert!(rules.iter().any(|r| r.starts_with("-I INPUT ")));
        assert!(!rules.iter().any(|r| r.contains("ROUTING")));
    }

    #[test]
    fn many_ports_and_queues() {
        let mut many = steering(&["a", "b", "a"], false, &(1..=16).collect::<Vec<_>>());
        many.queues = Queues { first: 4, count: 4 };
        many.fail_open = true;
        let text = print(&many, Family::V4).unwrap();
        assert!(text.contains("--sports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 "));
        assert!(text.contains(" --dport 16 "));
        assert!(text.contains("--queue-balance 4:7 --queue-bypass\n"));
        assert_eq!(text.matches("-A PREROUTING -i ").count(), 2);
    }

    #[test]
    fn every_rule_of_ours_is_tagged_and_every_line_is_understood() {
        for family in Family::ALL {
            let steering = steering(&["eth1", "10.0.0.0/8", "fd00::/8"], true, &[21, 2121]);
            for text in EXAMPLES
                .iter()
                .map(|e| e.print(&steering, &Around::default(), family))
                .chain([print(&steering, family)])
            {
                let text = text.unwrap();
                assert!(!text.contains(['{', '}']), "{text}");
                let set = Ruleset::parse(&text);
                assert_eq!(set.skipped, 0);
                for rule in set.tables.iter().flat_map(|t| &t.rules) {
                    let ours = rule.spec.contains("FTPALG") || rule.chain.starts_with("FTPALG");
                    assert_eq!(
                        ours,
                        rule.comment().is_some_and(|c| c.starts_with("ftpalg:")),
                        "{rule:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let around = Around::default();
        let printed = |example: usize, inside: &[&str], local, ports: &[u16]| {
            let steering = steering(inside, local, ports);
            let text = EXAMPLES[example].print(&steering, &around, Family::V4);
            text.map_err(|e| e.to_string())
        };
        assert!(print(&steering(&[], false, &[21]), Family::V4).is_err());
        assert!(printed(0, &["eth1"], false, &[]).is_err());
        let no_inside = printed(0, &[], true, &[21]).unwrap_err();
        assert!(no_inside.contains("--inside"));
        let twice = printed(2, &["eth0"], false, &[21]).unwrap_err();
        assert!(twice.contains("--outside"));
        // One about this host steers it, whatever else is steered.
        let local = printed(1, &["eth1"], false, &[21]).unwrap();
        assert!(local.contains("-A OUTPUT ! -o lo"));
    }
}
