//! Processors that don't sleep while something is measured.
//!
//! An idle processor of a virtual machine halts, which hands it back to the hypervisor. To wake it takes as
//! long as all of a gateway's work on a packet, and more or less of that from one second to the next,
//! as the hypervisor expects. So with one session at once, nearly all that is seen is that.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// The kernel's interface for this (`Documentation/power/pm_qos_interface.rst`).
const LATENCY: &str = "/dev/cpu_dma_latency";

/// While it lives, idle processors wait in a loop.
#[derive(Debug)]
pub struct Awake(#[expect(dead_code, reason = "the request is withdrawn when it is closed")] File);

impl Awake {
    /// Asks the kernel for it. Says what came of it, for whoever reads the figures: without root, or
    /// where the kernel has no such interface, they may sleep.
    #[must_use]
    pub fn try_begin() -> (Option<Self>, String) {
        let held = || {
            let mut file = OpenOptions::new().write(true).open(LATENCY)?;
            // How long waking up may take, in microseconds.
            file.write_all(&0i32.to_ne_bytes())?;
            io::Result::Ok(Self(file))
        };
        match held() {
            Ok(awake) => (Some(awake), "processors kept awake".to_owned()),
            Err(error) => (None, format!("processors may sleep ({LATENCY}: {error})")),
        }
    }
}
