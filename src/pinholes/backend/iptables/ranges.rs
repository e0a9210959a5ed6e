//! Ranges of ports in iptables: their chains, which come right after those of the pinholes, and rules.

use super::lines::Wording;
use crate::firewall::names::RANGE_CHAINS;
use crate::net::PortRange;
use crate::pinholes::RangeHole;

/// What the rules of a range say.
pub(super) fn wording(hole: &RangeHole, range: PortRange) -> Wording {
    Wording {
        chains: RANGE_CHAINS,
        kind: "range",
        from: hole.from,
        to: hole.to,
        ports: match (range.first(), range.last()) {
            (one, other) if one == other => one.to_string(),
            (first, last) => format!("{first}:{last}"),
        },
        land: (hole.land != hole.to).then(|| hole.land.to_string()),
        as_source: hole.as_source,
        // A pinhole at the same public address, but to another server, isn't affected.
        delivered: Some(hole.land),
        carried: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Mark;
    use crate::pinholes::backend::iptables::installing::chains;
    use crate::pinholes::backend::iptables::lines::{Conditions, verb_lines};

    #[test]
    fn a_translated_range() {
        let hole = RangeHole {
            from: "192.0.2.7".parse().unwrap(),
            to: "203.0.113.1".parse().unwrap(),
            land: "10.0.0.2".parse().unwrap(),
            as_source: Some("10.0.0.1".parse().unwrap()),
        };
        let range = PortRange::new(40000, 40009).unwrap();
        let lines = wording(&hole, range).rules(Mark::DEFAULT, Conditions::default(), 7);
        assert_eq!(
            verb_lines("-A", &lines),
            r#"-A FTPALG-RANGE-PRE -s 192.0.2.7/32 -d 203.0.113.1/32 -p tcp -m tcp --dport 40000:40009 -m comment --comment "ftpalg:range 7" -j CONNMARK --set-xmark 0x40000000/0x40000000
-A FTPALG-RANGE-PRE -s 192.0.2.7/32 -d 203.0.113.1/32 -p tcp -m tcp --dport 40000:40009 -m comment --comment "ftpalg:range 7" -j DNAT --to-destination 10.0.0.2
-A FTPALG-RANGE-POST -d 10.0.0.2/32 -p tcp -m connmark --mark 0x40000000/0x40000000 -m conntrack --ctorigsrc 192.0.2.7 --ctorigdst 203.0.113.1 --ctorigdstport 40000:40009 -m comment --comment "ftpalg:range 7" -j SNAT --to-source 10.0.0.1
"#
        );
    }

    #[test]
    fn pinholes_come_before_ranges() {
        let table = chains(true);
        assert_eq!((table.chains.len(), table.rules.len()), (4, 8));
        let of = |chain: &str| table.rules.iter().rposition(|r| r.spec.contains(chain));
        assert!(of("FTPALG-PRE") > of("FTPALG-RANGE-PRE"), "inserted later");
    }
}
