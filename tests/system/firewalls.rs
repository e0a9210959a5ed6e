//! Transfers beside other people's firewalls: hand-made equivalents of what ufw, firewalld, Docker
//! and an nftables.conf put into the kernel, each dropping what it wasn't told to forward, each
//! reloaded while `ftpalg` runs.

use std::time::{Duration, Instant};

use testkit::lab::alg::Alg;
use testkit::lab::gateway::{LIMIT, download, ftpalg};
use testkit::lab::net::Net;
use testkit::lab::rules::{self, Flavour};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::topology::Topology;

struct Firewall {
    name: &'static str,
    flavour: Flavour,
    /// Loads it.
    load: &'static str,
    /// What its own reload does, as far as it matters here.
    reload: &'static str,
}

const FIREWALLS: [Firewall; 6] = [
    Firewall {
        name: "ufw",
        flavour: Flavour::Nft,
        load: UFW,
        reload: "for c in ufw-before-forward ufw-user-forward; do iptables-nft -w 5 -F $c; done
            iptables-nft -w 5 -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
            iptables-nft -w 5 -A ufw-before-forward -j ufw-user-forward
            iptables-nft -w 5 -A ufw-user-forward -p tcp -d 10.0.0.2 --dport 21 -j ACCEPT",
    },
    Firewall {
        name: "ufw (legacy)",
        flavour: Flavour::Legacy,
        load: UFW,
        reload: "iptables-legacy -w 5 -F ufw-user-forward
            iptables-legacy -w 5 -A ufw-user-forward -p tcp -d 10.0.0.2 --dport 21 -j ACCEPT",
    },
    Firewall {
        name: "firewalld",
        flavour: Flavour::Nft,
        load: FIREWALLD,
        reload: "nft delete table inet firewalld",
    },
    Firewall {
        name: "Docker",
        flavour: Flavour::Nft,
        load: DOCKER,
        // What a restart of Docker does: its own jumps come to the top.
        reload: "iptables-nft -w 5 -D FORWARD -j DOCKER-USER; iptables-nft -w 5 -D FORWARD -j DOCKER-FORWARD
            iptables-nft -w 5 -I FORWARD -j DOCKER-FORWARD; iptables-nft -w 5 -I FORWARD -j DOCKER-USER",
    },
    Firewall {
        name: "nftables.conf",
        flavour: Flavour::Nft,
        load: NFTABLES,
        reload: "nft delete table inet filter",
    },
    Firewall {
        name: "nftables.conf, everything anew",
        flavour: Flavour::Nft,
        load: NFTABLES,
        reload: "nft flush ruleset; $NAT",
    },
];

const UFW: &str = "
$IPT -w 5 -P FORWARD DROP
for c in ufw-before-forward ufw-user-forward ufw-reject-forward; do $IPT -w 5 -N $c; done
$IPT -w 5 -A FORWARD -j ufw-before-forward
$IPT -w 5 -A FORWARD -j ufw-reject-forward
$IPT -w 5 -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
$IPT -w 5 -A ufw-before-forward -j ufw-user-forward
$IPT -w 5 -A ufw-user-forward -p tcp -d 10.0.0.2 --dport 21 -j ACCEPT
$IPT -w 5 -A ufw-reject-forward -j REJECT";

const FIREWALLD: &str = r#"
nft -f - <<'END'
table inet firewalld {
    chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES { goto filter_FWD_public; }
    chain filter_FWD_public { ip daddr 10.0.0.2 tcp dport 21 accept; }
}
END"#;

const DOCKER: &str = "
for c in DOCKER-USER DOCKER-FORWARD DOCKER; do $IPT -w 5 -N $c; done
$IPT -w 5 -P FORWARD DROP
$IPT -w 5 -A FORWARD -j DOCKER-USER
$IPT -w 5 -A FORWARD -j DOCKER-FORWARD
$IPT -w 5 -A DOCKER-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
$IPT -w 5 -A DOCKER-FORWARD -o in0 -j DOCKER
$IPT -w 5 -A DOCKER -d 10.0.0.2 ! -i in0 -o in0 -p tcp --dport 21 -j ACCEPT
$IPT -w 5 -A DOCKER ! -i in0 -o in0 -j DROP";

const NFTABLES: &str = r#"
nft -f - <<'END'
table inet filter {
    chain forward { type filter hook forward priority filter; policy drop;
        tcp flags syn tcp option maxseg size set rt mtu
        ct state vmap { established : accept, related : accept, invalid : drop }
        ip daddr 10.0.0.2 tcp dport 21 accept
    }
}
END"#;

const NAT: &str = "$IPT -w 5 -t nat -A PREROUTING -d 203.0.113.1/32 -p tcp -m tcp --dport 21 -j DNAT --to-destination 10.0.0.2:21";

fn sh(net: &Net, firewall: &Firewall, script: &str) {
    let script = script
        .replace("$NAT", NAT)
        .replace("$IPT", firewall.flavour.iptables());
    net.exec(net.topology().router, &["sh", "-ec", &script])
        .must();
}

#[test]
fn transfers_beside_other_firewalls() {
    for firewall in &FIREWALLS {
        for backend in ["nft", "iptables"] {
            let what = format!("{} with backend {backend}", firewall.name);
            let net = Net::new(&Topology::published_server());
            let router = net.topology().router;
            sh(&net, firewall, NAT);
            sh(&net, firewall, firewall.load);
            let server = Server::start(&net, &Config::new(Kind::Vsftpd));
            assert!(
                !download(&net, &server, &["--max-time", "2"]).ok(),
                "{what}"
            );
            let before = rules::snapshot(&net, router);
            let arguments = vec!["--backend".into(), backend.into()];
            let alg = Alg::Ftpalg(arguments).start(&net, firewall.flavour);
            let both = || {
                for mode in [&[][..], &["--ftp-port", "-"]] {
                    let done = download(&net, &server, mode);
                    assert!(done.ok(), "{what}, {mode:?}: {done}");
                }
            };
            both();
            sh(&net, firewall, firewall.reload);
            if firewall.load.contains("nft -f") {
                sh(&net, firewall, firewall.load);
            }
            let deadline = Instant::now() + LIMIT;
            while !ftpalg(&net, &["status"]).ok() {
                assert!(Instant::now() < deadline, "{what}: not put back");
                std::thread::sleep(Duration::from_millis(20));
            }
            both();
            assert_eq!(rules::invalid(&net, router), 0, "{what}");
            alg.stop();
            // Docker's reload is the one that leaves another order.
            if firewall.name != "Docker" {
                let mut after = rules::snapshot(&net, router);
                let mut before = before;
                if firewall.reload.contains("flush") || firewall.reload.contains("delete") {
                    // Tables come in the order in which they were made.
                    after = sorted(&after);
                    before = sorted(&before);
                }
                assert_eq!(after, before, "{what}");
            } else {
                assert!(
                    !rules::snapshot(&net, router)
                        .to_lowercase()
                        .contains("ftpalg")
                );
            }
        }
    }
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}
