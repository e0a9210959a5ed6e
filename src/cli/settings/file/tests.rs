//! Mistakes in files, each told with its line, its key and what to write.

use super::*;

/// Each mistake as `LINE: TEXT`.
fn mistakes(text: &str) -> Vec<String> {
    match File::read(text) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes
            .iter()
            .map(|m| format!("{}: {}", m.line, m.text))
            .collect(),
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "port = 0\nlocal = true\nbackend = \"nftables\"\nfoo = 1\n\
                [limits]\nsessions = 0\npinholes = 5\nfish = 9\n[strict]\nordr = true\n\
                [other]\na = 1\nb = 2\n";
    assert_eq!(
        mistakes(text),
        [
            "1: port: invalid value 0; write a port from 1 to 65535",
            "3: backend: invalid value \"nftables\"; write one of auto, nft, iptables",
            "4: foo: unknown key; `ftpalg check --example` lists all keys",
            "6: limits.sessions: invalid value 0; choose 1 to 1000000",
            "8: limits.fish: unknown key; write lines like sessions = 65536 below [limits]",
            "10: strict.ordr: unknown key; did you mean order?",
            "11: other: unknown table; `ftpalg check --example` lists all keys",
        ]
    );
}

#[test]
fn each_mistake_says_what_to_write() {
    for (text, told) in [
        (
            "insid = \"eth1\"",
            "insid: unknown key; did you mean inside?",
        ),
        (
            "data_ports = \"1-2\"",
            "data_ports: unknown key; did you mean data-ports?",
        ),
        (
            "--data-ports = \"1-2\"",
            "--data-ports: unknown key; did you mean data-ports?",
        ),
        ("Port = 21", "Port: unknown key; did you mean port?"),
        (
            "port = 99999",
            "port: invalid value 99999; write a port from 1 to 65535",
        ),
        (
            "port = -21",
            "port: invalid value -21; write a port from 1 to 65535",
        ),
        (
            "port = [21, 0x0]",
            "port: invalid value 0x0; write a port from 1 to 65535",
        ),
        (
            "port = 99999999999999999999999",
            "port: invalid value 99999999999999999999999; write a port from 1 to 65535",
        ),
        (
            "port = \"ftp\"",
            "port: invalid value \"ftp\"; write a port from 1 to 65535",
        ),
        (
            "port = true",
            "port: true is neither text nor a number; write port = [21]",
        ),
        (
            "port = 21.5",
            "port: 21.5 is no whole number; write port = [21]",
        ),
        (
            "port = [[21]]",
            "port: [21] is a list within a list; write port = [21]",
        ),
        (
            "port = {a = 1}",
            "port: it is a setting, and no table; write port = [21]",
        ),
        (
            "[inside]\nname = \"eth1\"",
            "inside: it is a setting, and no table; write inside = [\"eth1\"]",
        ),
        (
            "inside = true",
            "inside: true is neither text nor a number; write inside = [\"eth1\"]",
        ),
        (
            "inside = \"\"",
            "inside: invalid value \"\"; write an interface name of at most 15 plain characters, or a network like 192.168.1.0/24",
        ),
        ("local = 1", "local: 1 is a number; write local = false"),
        (
            "local = \"maybe\"",
            "local: \"maybe\" is text; write local = false",
        ),
        (
            "deadline = 2020-01-01",
            "deadline: 2020-01-01 is a date or a time; write deadline = 60",
        ),
        (
            "deadline = 3601",
            "deadline: invalid value 3601; choose 1 to 3600 seconds",
        ),
        (
            "deadline = [5, 6]",
            "deadline: only one value can be given; write deadline = 60",
        ),
        (
            "tls-idle = 0",
            "tls-idle: invalid value 0; choose 1 to 86400 seconds",
        ),
        ("queues = 65", "queues: invalid value 65; choose 1 to 64"),
        (
            "handover = 601",
            "handover: invalid value 601; choose 0 to 600 seconds",
        ),
        (
            "mark = 3",
            "mark: invalid value 3; write a mask of exactly one bit, like 0x40000000",
        ),
        (
            "fail = \"ajar\"",
            "fail: invalid value \"ajar\"; write one of closed, open",
        ),
        (
            "allow-foreign = \"10.0.0.0/33\"",
            "allow-foreign: invalid value \"10.0.0.0/33\"; write a network like 192.168.1.0/24",
        ),
        (
            "require-login = 1",
            "require-login: invalid value 1; write one of yes, no",
        ),
        (
            "config = \"other.toml\"",
            "config: it can't be in a file; give it as the flag --config",
        ),
        (
            "takeover = true",
            "takeover: it can't be in a file; give it as the flag --takeover",
        ),
        (
            "sessions = 5",
            "sessions: it is a limit; move it below a line [limits]",
        ),
        (
            "order = true",
            "order: it is a strict rule; move it below a line [strict]",
        ),
        (
            "limit = \"sessions=5\"",
            "limit: limits are a table; write a line [limits], and below it lines like sessions = 65536",
        ),
        (
            "limits = 5",
            "limits: it is no table; write a line [limits], and below it lines like sessions = 65536",
        ),
        (
            "[[limits]]\nsessions = 5",
            "limits: it is no table; write a line [limits], and below it lines like sessions = 65536",
        ),
        (
            "[limts]\nsessions = 5",
            "limts: unknown table; did you mean limits?",
        ),
        (
            "limits.sessions = true",
            "limits.sessions: invalid value true; choose 1 to 1000000",
        ),
        (
            "strict = \"orders\"",
            "strict: invalid value \"orders\"; no rule \"orders\"; write some of all, order, unknown-verbs, long-lines, control-bytes, before-greeting, addresses, passive-ports, active-late, failed-logins",
        ),
        (
            "[strict]\norder = 1",
            "strict.order: invalid value 1; write true or false",
        ),
        (
            "[strict]\nfailed-logins = 256",
            "strict.failed-logins: invalid value 256; write 0 to 255",
        ),
        (
            "[strict]\ndeny = [\"SITE\", \"a b\"]",
            "strict.deny: invalid value \"a b\"; write a command like SITE, of 1 to 8 letters",
        ),
        (
            "[strict]\nallow = 5",
            "strict.allow: invalid value 5; write a list of commands like [\"SITE\"]",
        ),
    ] {
        let all = mistakes(text);
        assert_eq!(all.len(), 1, "{text}: {all:#?}");
        assert_eq!(all[0].split_once(": ").unwrap().1, told, "{text}");
    }
}

#[test]
fn a_key_below_a_table_is_recognised() {
    let text = "port = 21\n[limits]\nsessions = 5\nlocal = true\ndata_ports = \"1-2\"\norder = true\n\
                [strict]\npinholes = 1\n";
    assert_eq!(
        mistakes(text),
        [
            "4: local: all lines below [limits] (line 2) belong to that table; move this one above line 2",
            "5: limits.data_ports: unknown key; if you mean data-ports, move it above line 2 [limits]",
            "6: limits.order: it belongs to the table [strict]; move it below that line",
            "8: strict.pinholes: it belongs to the table [limits]; move it below that line",
        ]
    );
}

#[test]
fn what_is_no_toml_is_told_in_plain_words() {
    for (text, told) in [
        (
            "inside = eth1",
            "1: inside: eth1 needs plain quotes around it (column 10); write inside = [\"eth1\"]",
        ),
        (
            "inside = “eth1”",
            "1: inside: “eth1” needs plain quotes around it (column 10); write inside = [\"eth1\"]",
        ),
        (
            "inside = [eth1, \"eth2\"]",
            "1: inside: eth1 needs plain quotes around it (column 11); write inside = [\"eth1\"]",
        ),
        (
            "inside = 10.0.0.0/8",
            "1: inside: 10.0.0.0/8 needs plain quotes around it (column 14); write inside = [\"10.0.0.0/8\"]",
        ),
        (
            "data-ports = 30000-30009",
            "1: data-ports: 30000-30009 needs plain quotes around it (column 14); write data-ports = \"30000-30009\"",
        ),
        (
            "backend = nftables",
            "1: backend: invalid value nftables (column 11); write one of auto, nft, iptables",
        ),
        (
            "local = ture",
            "1: local: ture is neither true nor false (column 9); write local = true or local = false",
        ),
        (
            "local = yes",
            "1: local: yes is neither true nor false (column 9); write local = true or local = false",
        ),
        (
            "data-ports = \n",
            "1: data-ports: no value follows (column 14); write data-ports = \"30000-30009\"",
        ),
        (
            "port 21",
            "1: port: an equals sign must follow (column 6); write port = [21]",
        ),
        (
            "port: 21",
            "1: port: an equals sign must follow (column 5); write port = [21]",
        ),
        (
            "// no",
            "1: a comment begins with # (column 1); write # in front",
        ),
        (
            "port = 021",
            "1: port: a number can't begin with 0 (column 8); leave the 0 out",
        ),
        (
            "port = 21\nport = 22\n",
            "2: port: given twice, first on line 1 (column 1); keep one of them",
        ),
        (
            "[limits]\nsessions=1\n[limits]\n",
            "3: [limits]: given twice, first on line 1 (column 2); keep one of them",
        ),
        (
            "[limits\nsessions = 1",
            "1: the table's name isn't closed (column 8); write it like [limits]",
        ),
        (
            "inside = \"eth1\nport = 21",
            "1: inside: the closing quote is missing, or there is a control character (column 15); write quotes around the value",
        ),
        (
            "port = [21\nlocal = true\n[limits]\nsessions = 1\n",
            "1: port: the list has no end (column 8); write ] behind its last value",
        ),
        (
            "port == 21",
            "1: port: there is one equals sign too many (column 7); write one",
        ),
        (
            "= 21",
            "1: a name is missing (column 1); write it like port = 21, or [limits]",
        ),
        (
            "port = 21, 22",
            "1: port: something is left behind the value (column 10); write each key on a line of its own",
        ),
        (
            "port = 21\rlocal = true\n",
            "1: the line ends in a carriage return alone (column 11); save the file with usual line ends",
        ),
    ] {
        let all = mistakes(text);
        assert_eq!(all, [told], "{text:?}");
    }
}

#[test]
fn what_is_no_toml_hides_no_other_mistake() {
    let text = "inside = eth1\nport = 0\n[limits\nsessions = 0\n[strict]\norder = on\nall = 1\n";
    let lines: Vec<_> = mistakes(text)
        .iter()
        .map(|m| m.split(' ').take(2).collect::<String>())
        .collect();
    assert_eq!(
        lines,
        [
            "1:inside:",
            "2:port:",
            "3:the",
            "6:strict.order:",
            "7:strict.all:"
        ]
    );
}

#[test]
fn no_text_makes_it_panic_and_no_words_of_programmers_appear() {
    let pieces = [
        "port",
        "inside",
        "limits",
        "strict",
        "[",
        "]",
        "=",
        "\"",
        "'",
        "\n",
        "\r",
        "#",
        "1",
        "-",
        ".",
        ",",
        "{",
        "}",
        "\\",
        "\u{feff}",
        "ä",
        "\u{0}",
        "true",
        "0x",
        "e",
        "1979-05-27",
        " ",
        "\"\"\"",
        "[[",
        "inf",
        "eth1",
    ];
    let mut random: u64 = 7;
    let mut next = |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(random >> 33).unwrap() % below
    };
    for _ in 0..3000 {
        let text: String = (0..next(12)).map(|_| pieces[next(pieces.len())]).collect();
        for told in mistakes(&text) {
            let word = |word: &str| {
                told.split(|c: char| !c.is_alphanumeric())
                    .any(|w| w == word)
            };
            for bad in [
                "i64", "u16", "sequence", "string", "struct", "field", "boolean", "integer",
                "expected", "literal", "newline",
            ] {
                assert!(!word(bad), "{text:?}: {told}");
            }
            assert!(
                told.contains("; ") && !told.contains('\n'),
                "{text:?}: {told}"
            );
        }
    }
}

#[test]
fn line_ends_and_a_mark_at_the_start_are_no_mistakes() {
    for text in [
        "",
        "\u{feff}port = 21\n",
        "port = 21\r\nlocal = true\r\n",
        "# nothing\n",
    ] {
        assert_eq!(mistakes(text), [""; 0], "{text:?}");
    }
    assert_eq!(
        mistakes("\u{feff}port = 21\r\n\r\nport = 22")[0]
            .split(':')
            .next(),
        Some("3")
    );
}
