//! The files in `packaging/container/`, done as far as a machine without a container engine can: the words
//! that they give to ftpalg are run with the rights that they give it, in a root file system with nothing
//! else in it, behind the NAT that an engine makes for the ports that they publish.
//!
//! Here that is the program that cargo built, with the libraries that it is linked to. The program of the
//! image is static: `CARGO_BIN_EXE_ftpalg=PROGRAM target/debug/deps/system-… containers:: no_tools::` does
//! the same with another program.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde_json::Value;

use testkit::lab::client::Mode;
use testkit::lab::gateway::{LIMIT, download, gateway};
use testkit::lab::net::Net;
use testkit::lab::process::{Process, run};
use testkit::lab::root::EmptyRoot;
use testkit::lab::rules::{self, Flavour, Policy};
use testkit::lab::server::{Config, Kind, Server};
use testkit::lab::stations::{Case, FEW, Outcome, Part, Station, drop_by_default, nat};
use testkit::lab::topology::{at, host, link, router};
use testkit::paths::{self, repository};

/// The address that clients dial.
const PUBLIC: &str = "203.0.113.7";

/// What the files leave to their user.
const VARIABLES: [(&str, &str); 2] = [("PUBLIC_ADDRESS", PUBLIC), ("INSIDE", "in0")];

fn text(name: &str) -> String {
    fs::read_to_string(repository().join("packaging/container").join(name)).unwrap()
}

/// `${NAME:?why}` and `${NAME:-default}` filled in.
fn filled(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (inner, after) = after.split_once('}').expect("a variable ends");
        let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
        let name = name.split(":?").next().unwrap();
        let value = VARIABLES.iter().find(|(known, _)| *known == name);
        assert!(
            value.is_some() || !default.is_empty(),
            "{name} has neither a value nor a default"
        );
        out += before;
        out += value.map_or(default, |(_, value)| value);
        rest = after;
    }
    out + rest
}

/// The documents of a file.
fn documents(name: &str) -> Vec<Value> {
    let mut parse = Command::new("/usr/bin/python3");
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.argv[1]))))";
    parse.args(["-c", script, &filled(&text(name))]);
    serde_json::from_str(&run(parse, LIMIT).must().stdout).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    let list = value
        .as_array()
        .unwrap_or_else(|| panic!("a list: {value}"));
    list.iter()
        .map(|one| one.as_str().unwrap().to_owned())
        .collect()
}

/// A container, as far as it matters to ftpalg.
struct Container {
    /// What `ftpalg` gets.
    words: Vec<&'static str>,
    /// As [`EmptyRoot::enter`] takes them.
    rights: String,
    /// The ports that are published, each with its own number.
    ports: Vec<u16>,
}

impl Container {
    fn new(words: &Value, drop: &Value, add: &Value, ports: Vec<u16>) -> Self {
        assert_eq!(strings(drop), ["ALL"]);
        let add: BTreeSet<_> = strings(add).into_iter().collect();
        assert_eq!(add, ["NET_ADMIN", "NET_RAW"].map(str::to_owned).into());
        let add: Vec<_> = add
            .iter()
            .map(|one| format!("+{}", one.to_lowercase()))
            .collect();
        let words: Vec<&'static str> = strings(words)
            .into_iter()
            // A test's words live as long as the test.
            .map(|word| &*word.replace("ftp.example.com", PUBLIC).leak())
            .collect();
        assert_eq!(words[0], "run");
        Self {
            words: words[1..].to_vec(),
            rights: add.join(","),
            ports,
        }
    }

    /// Runs it beside a server, behind the NAT that publishes its ports.
    fn beside_a_server(&self, name: &str) -> Vec<Outcome> {
        let mut rules: Vec<String> = self
            .ports
            .iter()
            .map(|port| {
                format!(
                    "-A PREROUTING -d {PUBLIC}/32 -p tcp -m tcp --dport {port} -j DNAT \
                     --to-destination 172.17.0.2:{port}"
                )
            })
            .collect();
        rules.push("-A POSTROUTING -s 172.17.0.0/16 -o out0 -j MASQUERADE".into());
        let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
        // An engine lets in what is published, and everything out.
        let filter = drop_by_default(&["FORWARD"], &self.ports)
            + "*filter\n-A FORWARD -i docker0 -j ACCEPT\nCOMMIT\n";
        let mut case = Case::new(
            vec![
                host("c", &[]),
                router("n", &[]),
                host("s", &["default via 172.17.0.1"]),
            ],
            vec![
                link(
                    ("c", "e0", &["203.0.113.20/24"]),
                    ("n", "out0", &["203.0.113.7/24"]),
                ),
                link(
                    ("n", "docker0", &["172.17.0.1/16"]),
                    ("s", "eth0", &["172.17.0.2/16"]),
                ),
            ],
            vec![
                Station::new("s", String::new(), &[]),
                Station::new("n", filter + &nat(&rules), &[]),
            ],
        )
        .part(Part {
            name: "published container",
            client: "c",
            server: "s",
            listen: at("172.17.0.2:21"),
            dial: at("203.0.113.7:21"),
            clients: FEW.to_vec(),
            works_without: &[Mode::Active],
        });
        case.backends = vec!["nft"];
        case.servers.truncate(1);
        let net = case.build();
        case.stations[0].arguments.clone_from(&self.words);
        case.stations[0].wrapper = EmptyRoot::new(&net).with_run().enter(&self.rights);
        case.run_on(&net, name)
    }
}

/// Publishes what its clients need, and keeps what a successor must know.
fn is_served(outcomes: &[Outcome]) {
    for outcome in outcomes {
        assert_eq!(outcome.status[0]["steering"], "nft");
        assert_eq!(outcome.status[0]["journal"]["works"], true);
        assert!(
            !outcome.logs[0].contains("won't outlive"),
            "{}",
            outcome.logs[0]
        );
    }
}

#[test]
fn a_side_car_of_compose() {
    let all = documents("sidecar.yaml");
    let services = &all[0]["services"];
    let (ftp, own) = (&services["ftp"], &services["ftpalg"]);
    assert_eq!(own["network_mode"], "service:ftp");
    assert_eq!(own["read_only"], true);
    assert_eq!(strings(&own["tmpfs"]), ["/run"]);
    assert_eq!(strings(&own["security_opt"]), ["no-new-privileges:true"]);
    let mut ports = Vec::new();
    for mapping in strings(&ftp["ports"]) {
        let (public, private) = mapping.split_once(':').unwrap();
        assert_eq!(public, private);
        let (first, last) = public.split_once('-').unwrap_or((public, public));
        ports.extend(first.parse::<u16>().unwrap()..=last.parse().unwrap());
    }
    let container = Container::new(&own["command"], &own["cap_drop"], &own["cap_add"], ports);
    is_served(&container.beside_a_server("container_sidecar"));
}

#[test]
fn a_pod_of_kubernetes() {
    let all = documents("kubernetes.yaml");
    let of_kind = |kind: &str| {
        let found: Vec<_> = all.iter().filter(|one| one["kind"] == kind).collect();
        assert_eq!(found.len(), 1, "{kind}");
        found[0]
    };
    let (deployment, service) = (of_kind("Deployment"), of_kind("Service"));
    let template = &deployment["spec"]["template"];
    assert_eq!(service["spec"]["selector"], template["metadata"]["labels"]);
    assert_eq!(
        deployment["spec"]["selector"]["matchLabels"],
        template["metadata"]["labels"]
    );
    assert_eq!(deployment["spec"]["replicas"], 1);
    assert_eq!(service["spec"]["externalTrafficPolicy"], "Local");
    let own = &template["spec"]["initContainers"][0];
    assert_eq!(
        (&own["name"], &own["restartPolicy"]),
        (&"ftpalg".into(), &"Always".into())
    );
    let security = &own["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    let (volume, mount) = (&template["spec"]["volumes"][0], &own["volumeMounts"][0]);
    assert_eq!(
        (&mount["name"], &mount["mountPath"]),
        (&volume["name"], &"/run".into())
    );
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(
            strings(&own[probe]["exec"]["command"]),
            ["/ftpalg", "status"]
        );
    }
    let ports: Vec<_> = service["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| {
            assert_eq!(port["port"], port["targetPort"]);
            u16::try_from(port["port"].as_u64().unwrap()).unwrap()
        })
        .collect();
    let names: BTreeSet<_> = service["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| port["name"].to_string())
        .collect();
    assert_eq!(names.len(), ports.len(), "each port has a name of its own");
    let rights = &security["capabilities"];
    let container = Container::new(&own["args"], &rights["drop"], &rights["add"], ports);
    is_served(&container.beside_a_server("container_pod"));
}

#[test]
fn a_router_of_compose() {
    let all = documents("router.yaml");
    let own = &all[0]["services"]["ftpalg"];
    assert_eq!(own["network_mode"], "host");
    assert_eq!(own["read_only"], true);
    let state = strings(&own["volumes"]);
    assert_eq!(state, ["state:/run/ftpalg"]);
    assert!(all[0]["volumes"].get("state").is_some());
    let container = Container::new(
        &own["command"],
        &own["cap_drop"],
        &own["cap_add"],
        Vec::new(),
    );
    let net = gateway(Policy::Drop, Flavour::Nft);
    let router = net.topology().router;
    let before = rules::snapshot(&net, router);
    let server = Server::start(&net, &Config::new(Kind::Vsftpd));
    assert!(!download(&net, &server, &["--max-time", "2"]).ok());
    let root = EmptyRoot::new(&net).with_run();
    let alg = start(&net, &root, &container);
    for options in [&[][..], &["--ftp-port", "-"]] {
        download(&net, &server, options).must();
    }
    alg.signal(nix::sys::signal::Signal::SIGTERM);
    alg.finish(LIMIT).must();
    assert_eq!(rules::snapshot(&net, router), before);
}

fn start(net: &Net, root: &EmptyRoot, container: &Container) -> Process {
    let enter = root.enter(&container.rights);
    let mut command = net.command(net.topology().router, &enter[0]);
    command
        .args(&enter[1..])
        .arg(paths::ftpalg())
        .arg("run")
        .args(&container.words);
    let alg = Process::spawn(command);
    assert!(alg.wait_for("ready", LIMIT), "{}", alg.log());
    alg
}

/// An instruction of the file that makes the image, with what follows it.
fn instructions() -> Vec<(String, String)> {
    let text = text("Containerfile");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
    let lines = joined.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let (word, rest) = line.split_once(' ').unwrap();
            (word.to_owned(), rest.trim().to_owned())
        })
        .collect()
}

#[test]
fn the_image_has_one_program_and_starts_it() {
    let all = instructions();
    let of = |word: &str| -> Vec<&str> {
        let found = all.iter().filter(|(known, _)| known == word);
        found.map(|(_, rest)| rest.as_str()).collect()
    };
    let words: BTreeSet<&str> = all.iter().map(|(word, _)| word.as_str()).collect();
    let known = [
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    ];
    assert!(words.iter().all(|word| known.contains(word)), "{words:?}");
    let stages = of("FROM");
    assert!(stages[0].ends_with(" AS build"), "{stages:?}");
    assert_eq!(stages[1..], ["scratch"]);
    let last = all.iter().rposition(|(word, _)| word == "FROM").unwrap();
    let copied: Vec<_> = all[last..]
        .iter()
        .filter(|(word, _)| word == "COPY")
        .collect();
    assert_eq!(copied.len(), 1, "nothing but the program");
    assert!(copied[0].1.ends_with(" /ftpalg"), "{copied:?}");
    assert!(
        !all[last..].iter().any(|(word, _)| word == "RUN"),
        "there is no shell"
    );
    let list = |text: &str| strings(&serde_json::from_str(text).unwrap());
    assert_eq!(list(of("ENTRYPOINT")[0]), ["/ftpalg"]);
    assert_eq!(list(of("CMD")[0]), ["run"]);
    let (_, health) = of("HEALTHCHECK")[0].split_once("CMD ").unwrap();
    assert_eq!(list(health), ["/ftpalg", "status"]);
    // The program that is built is the one that is copied.
    let built = of("RUN")
        .iter()
        .any(|run| run.contains("--bin ftpalg") && run.contains("+crt-static"));
    assert!(built && copied[0].1.contains("target/release/ftpalg"));
}
