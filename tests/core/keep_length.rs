//! How many announcements keep the length of their line, and that they then leave no difference.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ftpalg::ftp::Mode;
use ftpalg::ftp::fit::LineSlot;
use ftpalg::ftp::hostport;
use ftpalg::ftp::session::{Announcement, Form};
use ftpalg::pinholes::ports::{self, Holder, PortRequest};
use testkit::random::Rng;

/// Enough for half a percent; with 200,000 the shares are the same.
const PAIRS: usize = 20_000;

/// A private address, as servers and clients have them.
fn private(rng: &mut Rng) -> Ipv4Addr {
    let [_, b, c, d] = (rng.draw() as u32).to_be_bytes();
    match rng.draw() % 3 {
        0 => Ipv4Addr::new(10, b, c, d),
        1 => Ipv4Addr::new(172, 16 + b % 16, c, d),
        _ => Ipv4Addr::new(192, 168, c, d),
    }
}

fn public(rng: &mut Rng) -> Ipv4Addr {
    let [a, b, c, d] = (rng.draw() as u32).to_be_bytes();
    Ipv4Addr::new(1 + a % 223, b, c, d)
}

/// Any prefix, with a network in it, and an interface identifier at random (RFC 7217).
fn global(rng: &mut Rng) -> Ipv6Addr {
    let mut groups = [0; 8].map(|_: u16| rng.draw() as u16);
    groups[0] = 0x2000 | groups[0] & 0x1fff;
    groups.into()
}

/// The share of announcements, in percent, whose lines keep their length.
fn share(mode: Mode, form: Form, mut pair: impl FnMut(&mut Rng) -> (IpAddr, IpAddr)) -> f64 {
    let mut rng = Rng::new(9);
    let mut kept = 0;
    for start in 0..PAIRS {
        let (own, public) = pair(&mut rng);
        let announced = 32_768 + (rng.draw() % 28_232) as u16;
        let said = Announcement {
            verb: "227",
            mode,
            form,
            addr: Some(own),
            port: announced,
        };
        let text = hostport::encode(form, SocketAddr::new(own, announced));
        let (before, after): (&[u8], &[u8]) = match mode {
            Mode::Passive => (b"227 Entering Passive Mode (", b").\r\n"),
            Mode::Active => (b"PORT ", b"\r\n"),
        };
        let slot = LineSlot::new(&said, text.len(), before, after);
        let wanted = PortRequest {
            announced,
            published: true,
            range: None,
            start: start as u32,
            fitting: slot.fitting(public),
        };
        let port = ports::choose(&wanted, |_| Holder::Nobody).unwrap();
        let rewrite = slot.rewrite(SocketAddr::new(public, port));
        kept += usize::from(rewrite.text.len() == rewrite.before + text.len() + rewrite.after);
    }
    100.0 * kept as f64 / PAIRS as f64
}

/// The figures of docs/RELIABILITY.md.
#[test]
fn shares_of_random_addresses() {
    let v4 = |rng: &mut Rng| (private(rng).into(), public(rng).into());
    let v6 = |rng: &mut Rng| (global(rng).into(), global(rng).into());
    let shares = [
        ("227", share(Mode::Passive, Form::HostPort, v4), 97.0),
        ("PORT", share(Mode::Active, Form::HostPort, v4), 65.0),
        (
            "229",
            share(Mode::Passive, Form::ExtendedPort(b'|'), v4),
            100.0,
        ),
        (
            "EPRT, IPv4",
            share(Mode::Active, Form::Extended(b'|'), v4),
            40.0,
        ),
        (
            "EPRT, IPv6",
            share(Mode::Active, Form::Extended(b'|'), v6),
            40.0,
        ),
    ];
    for (what, share, least) in shares {
        println!("{what}: {share:.1} %");
        assert!(share >= least, "{what}: {share} %");
    }
}

/// The fewest ports there can be are enough for a busy client: none comes twice before all have.
#[test]
fn ports_take_turns() {
    let own = "10.0.0.2".parse().unwrap();
    let said = Announcement {
        verb: "227",
        mode: Mode::Passive,
        form: Form::HostPort,
        addr: Some(own),
        port: 50_000,
    };
    let slot = LineSlot::new(&said, 15, b"227 Ok (", b")\r\n");
    let chosen: HashSet<_> = (0..60)
        .map(|start| {
            let wanted = PortRequest {
                announced: 50_000,
                published: true,
                range: None,
                start,
                fitting: slot.fitting("203.0.113.7".parse().unwrap()),
            };
            ports::choose(&wanted, |_| Holder::Nobody).unwrap()
        })
        .collect();
    // All from 4,0 to 9,9 but 1024 and NFS's.
    assert_eq!(chosen.len(), 58);
    assert!(
        chosen
            .iter()
            .all(|port| (1025..2570).contains(port) && *port != 2049)
    );
}
