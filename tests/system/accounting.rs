//! Bytes and duration of data connections, attributed to their sessions.

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::Value;

use testkit::lab::gateway::{Control, HOSTS, LIMIT, ftpalg, gateway, start, status};
use testkit::lab::net::Net;
use testkit::lab::rules::Policy;
use testkit::lab::server::{Config, Kind, Server, content};

fn sessions(net: &Net) -> Vec<Value> {
    let told = ftpalg(net, &["sessions", "--json"]).must();
    serde_json::from_str(&told.stdout).unwrap()
}

#[test]
fn a_session_knows_what_its_data_connections_carried() {
    for (n, (backend, flavour)) in HOSTS.into_iter().enumerate() {
        for counted in [true, false] {
            if !counted && n > 0 {
                continue;
            }
            let net = gateway(Policy::Drop, flavour);
            let router = net.topology().router;
            net.sysctl(
                router,
                "net.netfilter.nf_conntrack_acct",
                if counted { "1" } else { "0" },
            );
            net.sysctl(router, "net.netfilter.nf_conntrack_timestamp", "1");
            net.sysctl(
                router,
                "net.netfilter.nf_conntrack_tcp_timeout_time_wait",
                "4",
            );
            let server = Server::start(&net, &Config::new(Kind::Vsftpd));
            server.publish("large.bin", &content(5, 300_000));
            let alg = start(&net, backend, flavour);
            assert_eq!(status(&net)["accounting"], counted);
            let [mut control, mut idle] = [(); 2].map(|()| Control::dial(&net));
            control.log_in(&server);
            idle.log_in(&server);
            for _ in 0..2 {
                let mut data = control.passive(&net);
                control.ask("RETR large.bin\r\n", "150");
                let mut got = Vec::new();
                data.read_to_end(&mut got).unwrap();
                assert_eq!(got.len(), 300_000);
                assert!(control.reply().starts_with("226"));
            }
            let check = || {
                let all = sessions(&net);
                assert_eq!(all[0]["data_connections"], 2, "{all:#?}");
                assert_eq!(all[1]["data_connections"], 0, "{all:#?}");
                assert_eq!(all[1]["bytes"], Value::Null, "{all:#?}");
                let bytes = all[0]["bytes"].as_u64();
                // Also those whose connections conntrack still has.
                assert_eq!(status(&net)["carried"], bytes.unwrap_or(0));
                if counted {
                    assert!((600_000..800_000).contains(&bytes.unwrap()), "{all:#?}");
                } else {
                    assert_eq!(bytes, None);
                }
                bytes
            };
            // Now, and when conntrack has forgotten them.
            let live = check();
            let deadline = Instant::now() + LIMIT;
            while status(&net)["data_connections"] != 0 {
                // Listing them makes conntrack forget what is over.
                net.exec(router, &["conntrack", "-L"]).must();
                assert!(Instant::now() < deadline);
                std::thread::sleep(Duration::from_millis(100));
            }
            assert_eq!(check(), live);
            let log = alg.stop();
            let closed: Vec<_> = log.lines().filter(|l| l.contains("closed after")).collect();
            assert_eq!(closed.len(), 2, "{log}");
            for line in closed {
                assert!(line.starts_with("session 1 data "), "{line}");
                assert_eq!(line.ends_with(" bytes"), counted, "{line}");
                let words: Vec<_> = line.split(' ').collect();
                let at = words.iter().position(|w| *w == "after").unwrap();
                let seconds: f64 = words[at + 1].parse().unwrap();
                assert!(seconds < 3.5, "without the time in TIME_WAIT: {line}");
            }
        }
    }
}
