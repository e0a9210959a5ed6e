//! `ftpalg sessions --watch`, on a real terminal and without one. The terminal is tmux's.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use testkit::lab::alg::Alg;
use testkit::lab::gateway::{LIMIT, ended, ftpalg, gateway, start_with};
use testkit::lab::net::Net;
use testkit::lab::process::{Process, run};
use testkit::lab::rules::{Flavour, Policy};
use testkit::lab::session::Session;
use testkit::paths;

/// A shell in a terminal on the gateway.
struct Terminal<'a> {
    net: &'a Net,
    socket: String,
    /// Ends with it, and all that runs in it.
    _server: Process,
}

impl<'a> Terminal<'a> {
    fn open(net: &'a Net) -> Self {
        let socket = net.directory().join("tmux").to_str().unwrap().to_owned();
        let router = net.topology().router;
        let mut server = net.command(router, "tmux");
        server.args(["-u", "-D", "-f", "/dev/null", "-S", &socket]);
        let terminal = Self {
            net,
            _server: Process::spawn(server),
            socket,
        };
        let shell = "env PS1='prompt>' LC_ALL=C.UTF-8 /bin/sh";
        let new = ["new-session", "-d", "-x", "80", "-y", "24", shell];
        let deadline = Instant::now() + LIMIT;
        while !terminal.tmux(&new).ok() {
            assert!(Instant::now() < deadline, "{}", terminal.tmux(&new));
            std::thread::sleep(Duration::from_millis(20));
        }
        terminal.until("a prompt", |screen| screen.contains("prompt>"));
        terminal
    }

    fn tmux(&self, words: &[&str]) -> testkit::lab::process::Finished {
        let mut command = self.net.command(self.net.topology().router, "tmux");
        command.args(["-u", "-S", &self.socket]).args(words);
        run(command, LIMIT)
    }

    /// What is on it.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).must().stdout
    }

    /// Presses keys, by the names that tmux has for them.
    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat()).must();
    }

    /// Writes a line to the shell.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]).must();
        self.press(&["Enter"]);
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let screen = self.screen();
            if is(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "{what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until the shell is there as it was before, and a line can be written as always.
    #[track_caller]
    fn is_restored(&self, mark: &str) {
        self.until("the shell's screen", |screen| {
            screen.contains(mark) && !screen.contains("SESSION")
        });
        self.line(
            "stty -a | grep -qw -- '-icanon\\|-echo' && echo raw-$((6*7)) || echo cooked-$((6*7))",
        );
        let screen = self.until("its answer", |screen| screen.contains("-42"));
        assert!(screen.contains("cooked-42"), "{screen}");
        self.line("clear");
        self.until("a clear screen", |screen| !screen.contains("-42"));
    }
}

fn sessions(net: &Net) -> serde_json::Value {
    let told = ftpalg(net, &["sessions", "--json"]).must();
    serde_json::from_str(&told.stdout).unwrap()
}

#[test]
fn sessions_are_watched_on_a_terminal() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    // A longer address makes the line longer.
    let words = ["--keep-length", "off"];
    let alg = start_with(&net, "nft", Flavour::Nft, &words);
    let mut first = Session::open(&net);
    let mut second = Session::open(&net);
    let client = |session: &Session| session.client.0.get_ref().local_addr().unwrap().to_string();
    let (one, two) = (client(&first), client(&second));
    let data = first.passive(&net);
    second.say("AUTH TLS\r\n", "234 go\r\n");
    let all = sessions(&net);
    assert_eq!(all[0]["not_followed"], serde_json::Value::Null, "{all:#}");
    assert_eq!(all[0]["delta_to_server"], 0, "{all:#}");
    assert!(all[0]["delta_to_client"].as_i64().unwrap() > 0, "{all:#}");
    assert_eq!(all[1]["not_followed"], "TLS", "{all:#}");
    assert_eq!(all[1]["delta_to_client"], 0, "{all:#}");

    let terminal = Terminal::open(&net);
    terminal.line("echo before-$((1+1))");
    let watch = format!("{} sessions --watch 0.2", paths::ftpalg());
    terminal.line(&watch);
    let screen = terminal.until("both sessions", |screen| {
        screen.contains(&one) && screen.contains(&two)
    });
    assert!(screen.starts_with("ftpalg: 2 sessions, "), "{screen}");
    assert!(
        screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );

    // The first one in detail, with its data connection.
    terminal.press(&["Down", "Enter"]);
    let delta = format!("+{} bytes to the client", all[0]["delta_to_client"]);
    let screen = terminal.until("its details", |screen| screen.contains(&delta));
    terminal.until("its records", |screen| screen.contains(" logged in as "));
    assert!(screen.contains("followed   yes"), "{screen}");
    terminal.until("that it is looked at", |screen| {
        screen.contains("nothing was said since this is looked at")
    });
    first.say("NOOP\r\n", "200 fine\r\n");
    terminal.until("what is said", |screen| {
        screen.contains("dialogue   NOOP 200")
    });
    let to = data[0].peer_addr().unwrap().to_string();
    assert!(screen.contains(&to), "{to} in {screen}");
    terminal.press(&["Escape"]);
    terminal.until("the list", |screen| screen.contains("SESSION"));
    // tmux waits whether more comes behind an Escape.
    terminal.press(&["End"]);
    terminal.press(&["Enter"]);
    terminal.until("the other's", |screen| {
        screen.contains("followed   no: TLS")
    });
    terminal.press(&["Escape"]);
    terminal.until("the list", |screen| screen.contains("SESSION"));

    // A filter, another order, another size.
    terminal.press(&["/"]);
    let port = one.rsplit(':').next().unwrap();
    terminal.press(&["-l", port]);
    terminal.press(&["Enter"]);
    terminal.until("only one", |screen| {
        screen.contains(&one) && !screen.contains(&two)
    });
    terminal.press(&["Escape"]);
    terminal.until("both again", |screen| screen.contains(&two));
    terminal.press(&["s", "r"]);
    terminal.until("the order", |screen| {
        screen.contains("by client, descending")
    });
    terminal
        .tmux(&["resize-window", "-x", "64", "-y", "10"])
        .must();
    terminal.until("a smaller list", |screen| {
        let mut lines = screen.lines();
        lines.clone().count() == 10
            && screen.contains(&one)
            && lines.nth(9).is_some_and(|line| line.contains("choose"))
    });
    terminal
        .tmux(&["resize-window", "-x", "80", "-y", "24"])
        .must();

    // The daemon ends, and another one comes.
    alg.stop();
    ended(&net);
    let screen = terminal.until("its end", |screen| screen.starts_with("ftpalg has ended ("));
    // A session with a sequence delta ends with the daemon, perhaps just before the last look.
    let there = screen.contains(&one) || screen.contains(&two);
    assert!(there, "what was there last: {screen}");
    let again = Alg::Ftpalg(words.map(str::to_owned).to_vec()).start(&net, Flavour::Nft);
    terminal.until("the next one", |screen| screen.starts_with("ftpalg: "));
    Session::open(&net);

    terminal.press(&["q"]);
    terminal.is_restored("prompt>");
    for leave in ["C-c", "signal"] {
        match leave {
            // It signals itself when its time is over.
            "signal" => terminal.line(&format!("timeout --foreground -s TERM 2 {watch}")),
            _ => terminal.line(&watch),
        }
        terminal.until("a list", |screen| screen.starts_with("ftpalg: "));
        if leave == "C-c" {
            terminal.press(&[leave]);
        }
        terminal.is_restored("prompt>");
    }
    again.stop();
}

#[test]
fn without_a_terminal_the_table_comes_again_and_again() {
    let net = gateway(Policy::Drop, Flavour::Nft);
    let watch = ["sessions", "--watch", "0.1"];
    let none = ftpalg(&net, &watch);
    assert_eq!(none.status.and_then(|s| s.code()), Some(3), "{none}");
    for bad in ["0", "-1", "x", "3601", "nan"] {
        let refused = ftpalg(&net, &["sessions", &format!("--watch={bad}")]);
        assert_eq!(
            refused.status.and_then(|s| s.code()),
            Some(2),
            "{bad}: {refused}"
        );
        assert_eq!(refused.log.lines().count(), 1, "{refused}");
    }
    let alg = start_with(&net, "nft", Flavour::Nft, &[]);
    let mut command = net.command(net.topology().router, paths::ftpalg());
    let mut watching = command.args(watch).stdout(Stdio::piped()).spawn().unwrap();
    let output = BufReader::new(watching.stdout.take().unwrap());
    let (sender, lines) = mpsc::sync_channel(0);
    let reader = thread::spawn(move || {
        // It ends when nobody takes lines any more, and its end of the pipe with it.
        let _ = output
            .lines()
            .try_for_each(|line| sender.send(line.unwrap()));
    });
    let next = |part: &str| {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) if line.contains(part) => return,
                Ok(_) => {}
                Err(e) => panic!("{part:?} doesn't come: {e}"),
            }
        }
    };
    next("no sessions");
    let session = Session::open(&net);
    let client = session.client.0.get_ref().local_addr().unwrap().to_string();
    next(&client);
    next(&client);
    alg.stop();
    next("doesn't run");
    let alg = start_with(&net, "nft", Flavour::Nft, &[]);
    next("no sessions");
    drop(lines);
    reader.join().unwrap();
    // Nobody reads it any more.
    let deadline = Instant::now() + LIMIT;
    let code = loop {
        match watching.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() > deadline => {
                watching.kill().unwrap();
                panic!("it doesn't end");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(code, Some(0));
    alg.stop();
}
