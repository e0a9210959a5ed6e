//! Peers that pass unread: `--bypass`.

use ftpalg::engine::event::Event;
use ftpalg::engine::{Config, Engine, Standing};
use testkit::gateway::MARKS;
use testkit::packet::{ACK, SYN, Seg, data, syn};
use testkit::trace::{Client, Out, PASV, Server, Trace, ack, reply, told};

/// The option of Multipath TCP, which is taken out of connections that are read.
const MULTIPATH: &[u8] = &[30, 4, 0, 0];

fn config(net: &str) -> Config {
    Config {
        bypass: vec![net.parse().unwrap()],
        ..Config::default()
    }
}

fn syns(trace: &mut Trace) -> [Out; 2] {
    let seg = Seg {
        options: MULTIPATH.to_vec(),
        ..syn(SYN)
    };
    let answer = Seg {
        flags: SYN | ACK,
        ..seg.clone()
    };
    [trace.send(Client, seg), trace.send(Server, answer)]
}

/// Whichever end is named, every packet of the connection goes on as it came, and it is told.
#[test]
fn a_bypassed_connection_goes_on_to_the_bit() {
    for net in ["198.51.100.0/24", "10.0.0.2/32"] {
        let mut trace = Trace::unborn(config(net), [1000, 5000]);
        assert_eq!(syns(&mut trace), [Out::Same, Out::Same], "{net}");
        let [c, s] = trace.login();
        assert_eq!(trace.send(Client, data(c, s, PASV.1)), Out::Same);
        let c = c + 6;
        assert_eq!(trace.send(Server, data(s, c, &reply())), Out::Same);
        let s = s + reply().len() as u32;
        assert_eq!(trace.send(Client, ack(c, s)), Out::Same);
        let bounce = data(c, s, "PORT 10,0,0,3,0,22\r\n");
        assert_eq!(trace.send(Client, bounce), Out::Same, "nothing is refused");
        assert!(trace.world.opened.is_empty());
        let told = trace
            .world
            .events
            .iter()
            .any(|event| matches!(event, Event::Bypassed { by, .. } if by == net));
        assert!(told, "{:?}", trace.world.events);
        let sessions: Vec<_> = trace.engine.sessions(trace.now).collect();
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions[0].state, "bypassed");
        assert_eq!(trace.engine.buffered(), 0);
    }
    // Others are read.
    let mut trace = Trace::unborn(config("192.0.2.0/24"), [1000, 5000]);
    assert!(syns(&mut trace).iter().all(|out| *out != Out::Same));
    trace.is_followed();
}

/// It was under way when this process began: it is listed all the same, whether it was read before or not.
#[test]
fn a_bypassed_connection_that_is_under_way_is_listed() {
    for read in [false, true] {
        let marked = |net| Config {
            marks: Some(MARKS),
            ..config(net)
        };
        let before = if read { "192.0.2.0/24" } else { "10.0.0.2/32" };
        let mut trace = Trace::with(marked(before), [1000, 5000], &[]);
        let [c, s] = trace.login();
        trace.engine = Engine::new(marked("10.0.0.2/32"), 0);
        trace.world.events.clear();
        assert_eq!(trace.send(Client, data(c, s, PASV.1)), Out::Same);
        let c = c + 6;
        assert_eq!(trace.send(Server, data(s, c, &reply())), Out::Same);
        let sessions: Vec<_> = trace.engine.sessions(trace.now).collect();
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions[0].state, "bypassed");
        let told =
            |event: &Event| matches!(event, Event::Bypassed { by, .. } if by == "10.0.0.2/32");
        assert!(trace.world.events.iter().any(told));
        let standing = MARKS.standing(trace.world.entry().mark);
        assert_eq!(standing, Standing::Unfollowed, "nobody is to read it");
    }
}

/// What has edits stays followed, whatever the settings become.
#[test]
fn an_edited_connection_stays_followed() {
    let (mut trace, c, s) = Trace::idle();
    trace.engine.reconfigure(config("198.51.100.0/24"));
    trace.goes_on(c, s);
    let seen = trace.world.events.iter();
    assert!(
        !seen
            .into_iter()
            .any(|event| matches!(event, Event::Bypassed { .. }))
    );
    assert_ne!(reply(), told());
}
