//! What the process may do: checked at the start, and everything else given up.

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

use super::StartError;

/// What the daemon and the tools that it runs need. `CAP_NET_RAW` is for iptables-legacy, which asks the
/// kernel through a raw socket, and for resetting sessions that can't go on when the daemon ends.
const KEPT: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// Whether the process may change the network.
pub(super) fn check() -> Result<(), StartError> {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN) {
        Ok(false) => Err(StartError::NotPermitted),
        // If that can't be told, the kernel will say so itself.
        Ok(true) | Err(_) => Ok(()),
    }
}

/// Gives up all capabilities but those in [`KEPT`], for good, and those of the programs that it runs. To be
/// called before there is a second thread, since each thread has its own. What can't be given up stays:
/// nothing here depends on it.
///
/// `signals`: it will have to send a signal to another user's process.
pub(super) fn reduce(signals: bool) {
    let mut kept: CapsHashSet = KEPT.into_iter().collect();
    if signals {
        kept.insert(Capability::CAP_KILL);
    }
    if let Err(e) = try_reduce(&kept) {
        log::debug!("not all capabilities can be given up: {e}");
    }
    // A program that is run gets no more than this process has, even as root.
    if let Err(e) = prctl::set_no_new_privs() {
        log::debug!("programs may gain privileges: {e}");
    }
}

/// Takes all but `kept` out of the five sets.
fn try_reduce(kept: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
    // That takes CAP_SETPCAP, so it comes first.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::runtime::thread_all_supported().difference(kept) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    // The effective ones must be among the permitted ones, the ambient ones among the inheritable ones.
    for set in [
        CapSet::Ambient,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        let held = caps::read(None, set)?;
        caps::set(None, set, &held.intersection(kept).copied().collect())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Capabilities belong to a thread: what this one gives up, the other tests keep.
    #[test]
    fn nothing_else_is_kept() {
        thread::spawn(|| {
            let kept: CapsHashSet = KEPT.into_iter().collect();
            let had = caps::read(None, CapSet::Permitted).unwrap();
            reduce(false);
            for set in [
                CapSet::Effective,
                CapSet::Permitted,
                CapSet::Inheritable,
                CapSet::Ambient,
            ] {
                let held = caps::read(None, set).unwrap();
                assert!(held.is_subset(&kept), "{set:?}: {held:?}");
            }
            let permitted = caps::read(None, CapSet::Permitted).unwrap();
            assert_eq!(permitted, had.intersection(&kept).copied().collect());
            if had.contains(&Capability::CAP_SETPCAP) {
                let all = caps::runtime::thread_all_supported();
                let bounding = |c: &Capability| caps::has_cap(None, CapSet::Bounding, *c).unwrap();
                assert!(all.difference(&kept).all(|c| !bounding(c)));
            }
            assert!(prctl::get_no_new_privs().unwrap());
        })
        .join()
        .unwrap();
    }
}
