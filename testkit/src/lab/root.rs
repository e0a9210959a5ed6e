//! A root file system with one program in it: no shell, no tools, nothing to write to.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::net::Net;
use super::process::{PATH, run};
use crate::paths;

/// How long `ldd` may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Mounts the root at its own place, read-only and with `/proc`, gives up all rights but those given, and
/// runs what follows in it. `chroot` itself takes a right, too.
const ENTER: &str = r#"
root=$0 rights=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount -o remount,bind,ro "$root"
if test -d "$root.run"; then mount --bind "$root.run" "$root/run"; fi
exec setpriv --bounding-set="-all,$rights,+sys_chroot" --inh-caps=-all chroot "$root" "$@"
"#;

/// A root with `ftpalg` in it, at the path where it is outside.
pub struct EmptyRoot(PathBuf);

impl EmptyRoot {
    /// Makes it, with the libraries that the program is linked to, if there are any.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn new(net: &Net) -> Self {
        let root = net.directory().join("empty-root");
        for directory in ["proc", "run", "tmp"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let program = Path::new(paths::ftpalg());
        let mut ldd = Command::new("ldd");
        ldd.env("PATH", PATH).arg(program);
        // It fails for a static program.
        let libraries = run(ldd, LIMIT);
        let words = libraries.stdout.split_whitespace();
        let libraries = words.filter(|word| word.starts_with('/')).map(Path::new);
        for file in libraries.chain([program]) {
            let to = root.join(file.strip_prefix("/").unwrap());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            // Of a link, what it leads to.
            let file = file.canonicalize().unwrap();
            if fs::hard_link(&file, &to).is_err() {
                fs::copy(&file, &to).unwrap();
            }
        }
        Self(root)
    }

    /// The same with a writable `/run`, which all processes in it share: writable by anybody, as engines
    /// make such a place.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn with_run(self) -> Self {
        let run = self.0.with_extension("run");
        fs::create_dir_all(&run).unwrap();
        fs::set_permissions(run, fs::Permissions::from_mode(0o1777)).unwrap();
        self
    }

    /// The words in front of a program that has it run in here, with these rights, such as `+net_admin`.
    pub fn enter(&self, rights: &str) -> Vec<String> {
        let root = self.0.to_string_lossy();
        ["env", "-i", &format!("PATH={PATH}"), "RUST_LOG=debug"]
            .into_iter()
            .chain(["unshare", "--mount", "sh", "-ec", ENTER, &root, rights])
            .map(str::to_owned)
            .collect()
    }

    /// All files in it, but those of `/proc`.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut ahead = vec![self.0.clone()];
        let mut files = Vec::new();
        while let Some(directory) = ahead.pop() {
            for entry in fs::read_dir(directory).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => ahead.push(entry.path()),
                    false => files.push(entry.path()),
                }
            }
        }
        files
    }
}
