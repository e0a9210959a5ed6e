//! A gateway with as few rights as there can be: CAP_NET_ADMIN alone, a read-only root, no `nft`
//! program, and a user namespace of its own, as in a rootless container.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use testkit::lab::net::Net;
use testkit::lab::process::{PATH, Process, run};
use testkit::lab::stations::{Case, published};

const LIMIT: Duration = Duration::from_secs(10);

fn case() -> Case {
    published("CAP_NET_ADMIN alone", [&[], &[]])
}

/// A directory with iptables-nft's programs, and no other.
fn tools(net: &Net) -> std::io::Result<PathBuf> {
    let directory = net.directory().join("tools");
    std::fs::create_dir_all(&directory)?;
    let multi = PATH
        .split(':')
        .map(|place| Path::new(place).join("xtables-nft-multi"))
        .find(|program| program.exists())
        .ok_or(std::io::ErrorKind::NotFound)?;
    for family in ["iptables", "ip6tables"] {
        for program in ["", "-save", "-restore"] {
            symlink(&multi, directory.join(format!("{family}-nft{program}")))?;
        }
    }
    Ok(directory)
}

/// What takes all rights but one, and all programs but iptables-nft's.
fn stripped(tools: &Path) -> Vec<String> {
    let tools = format!("PATH={}", tools.display());
    [
        "setpriv",
        "--bounding-set",
        "-all,+net_admin",
        "--inh-caps",
        "-all,+net_admin",
        "env",
        "-i",
        "RUST_LOG=debug",
        &tools,
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn net_admin_alone() {
    let mut case = case();
    let net = case.build();
    routes(&net);
    case.stations[0].wrapper = stripped(&tools(&net).unwrap());
    case.run_on(&net, "rootless_net_admin");
}

fn routes(net: &Net) {
    for (host, via) in [("c", "198.51.100.1"), ("s", "10.0.0.1")] {
        net.exec(host, &["ip", "route", "add", "default", "via", via])
            .must();
    }
}

/// The gateway's network namespace belongs to a user namespace, and its root is read-only.
#[test]
fn user_namespace_and_read_only_root() {
    let mut case = case();
    // The cables come later, when the namespace is there.
    let links = std::mem::take(&mut case.links);
    let net = case.build();
    let root = net.directory().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount --make-rprivate / && mount --rbind / \"$0\" && \
                  mount -o remount,bind,ro \"$0\" && echo ready && exec sleep 600";
    command
        .env("PATH", PATH)
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "sh",
            "-c",
            script,
        ])
        .arg(&root);
    let container = Process::spawn(command);
    if !container.wait_for("ready", LIMIT) {
        let why = container.finish(Duration::ZERO);
        eprintln!("user namespaces aren't allowed here: nothing was tried: {why}");
        return;
    }
    let pid = container.pid();
    let router = net.namespace("r");
    let mut script = format!(
        "umount /run/netns/{router} && mount --bind /proc/{pid}/ns/net /run/netns/{router}"
    );
    for testkit::lab::topology::Link(a, b) in &links {
        let (left, right) = (net.namespace(a.host), net.namespace(b.host));
        script += &format!(
            " && ip link add {} netns {left} type veth peer name {} netns {right}",
            a.interface, b.interface
        );
        for end in [a, b] {
            let name = net.namespace(end.host);
            for address in &end.addresses {
                script += &format!(
                    " && ip -n {name} address add {address} dev {}",
                    end.interface
                );
            }
            script += &format!(" && ip -n {name} link set {} up", end.interface);
        }
    }
    let mut wire = Command::new("sh");
    wire.env("PATH", PATH).args(["-ec", &script]);
    run(wire, LIMIT).must();
    net.sysctl("r", "net.ipv4.ip_forward", "1");
    net.sysctl("r", "net.netfilter.nf_conntrack_tcp_be_liberal", "0");
    net.exec("r", &["ip", "link", "set", "lo", "up"]).must();
    routes(&net);
    case.install_rules(&net);
    let enter = [
        "nsenter".to_owned(),
        format!("--user=/proc/{pid}/ns/user"),
        format!("--net=/proc/{pid}/ns/net"),
        format!("--mount=/proc/{pid}/ns/mnt"),
        "--preserve-credentials".to_owned(),
        "chroot".to_owned(),
        root.to_string_lossy().into_owned(),
    ];
    case.stations[0].wrapper = [&enter[..], &stripped(&tools(&net).unwrap())].concat();
    case.links = links;
    let mut probe = net.command("r", "nsenter");
    probe
        .args(&enter[1..])
        .args(["/usr/bin/touch", "/var/probe"]);
    let probed = run(probe, LIMIT);
    assert!(probed.log.contains("Read-only"), "{probed}");
    case.run_on(&net, "rootless_container");
    // The same over netlink: in a user namespace, too, the kernel takes a target of iptables in nf_tables.
    let steering = ["--steering", "nft"];
    case.stations[0].arguments.extend(steering);
    case.backends = vec!["nft"];
    for outcome in case.run_on(&net, "rootless_container_netlink") {
        assert_eq!(outcome.status[0]["steering"], "nft");
    }
}
