//! The recipes in `docs/recipes`, done as they are written: their commands are run, their files are written,
//! what they show is compared, and transfers fail before and work after. `recipes/page.rs` says how a
//! recipe is read.

mod labs;
mod page;
mod shown;
mod stage;

use std::path::PathBuf;

use testkit::paths::repository;

use page::{Page, Trial, What};

macro_rules! recipes {
    ($($name:ident: $file:literal,)*) => {
        /// The recipes that are done here.
        const DONE: &[&str] = &[$($file,)*];

        $(#[test]
        fn $name() {
            stage::perform(&Page::read(&directory().join(concat!($file, ".md"))));
        })*
    };
}

recipes! {
    cloud: "cloud",
    docker: "docker",
    dynamic_address: "dynamic-address",
    firewalld: "firewalld",
    from_ftp_proxy: "from-ftp-proxy",
    from_nf_nat_ftp: "from-nf_nat_ftp",
    from_server_settings: "from-server-settings",
    from_stream_proxy: "from-stream-proxy",
    ftps_router: "ftps-router",
    load_balancer: "load-balancer",
    proftpd: "proftpd",
    pure_ftpd: "pure-ftpd",
    pyftpdlib: "pyftpdlib",
    router_iptables: "router-iptables",
    router_nftables: "router-nftables",
    ufw: "ufw",
    vsftpd: "vsftpd",
}

/// Each symptom is brought about, shown by the commands that the document names, and mended as it says.
#[test]
fn troubleshooting() {
    let path = repository().join("docs/troubleshooting.md");
    stage::perform(&Page::read(&path));
}

fn directory() -> PathBuf {
    repository().join("docs/recipes")
}

#[test]
fn every_recipe_is_tested() {
    for file in std::fs::read_dir(directory()).unwrap() {
        let page = Page::read(&file.unwrap().path());
        let name = &page.name;
        if let Some(file) = &page.tested_by {
            let tests = std::fs::read_to_string(repository().join(file));
            let tests = tests.unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
            assert!(tests.contains("#[test]"), "{name}: {file} has no tests");
            continue;
        }
        assert!(DONE.contains(&&**name), "{name}.md isn't in the list above");
        let mut sections = page.sections.clone();
        sections.retain(|section| section != "FTPS");
        assert_eq!(sections, stage::SECTIONS, "{name}: its headings");
        // Something fails before, and the same works after.
        let trials = page.steps.iter().filter_map(|step| match &step.what {
            What::Try(trials) => Some(trials),
            _ => None,
        });
        let trials: Vec<_> = trials.flatten().collect();
        let mended = |trial: &&&Trial| {
            let mut later = trials
                .iter()
                .filter(|t| t.works && (&t.part, t.tls) == (&trial.part, trial.tls));
            !trial.works && later.any(|t| trial.verbs.iter().all(|verb| t.verbs.contains(verb)))
        };
        let turned = trials.iter().filter(mended);
        assert!(turned.count() > 0, "{name}: nothing fails and then works");
    }
}
