//! Metrics for Prometheus: `--metrics ADDRESS:PORT`.
//!
//! Everything but one histogram is read from what the daemon counts anyway, when somebody asks.

mod http;
mod page;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use prometheus::{Histogram, HistogramOpts};

use super::StartError;

pub(super) use http::MAX_CLIENTS;
pub(super) use page::Sample;

/// A predecessor whose lock is free already may still have the port: until then, it is tried again.
const PATIENCE: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(20);
/// How old a look at the rules may be.
const LOOK: Duration = Duration::from_secs(15);

/// The upper bounds of the histogram's buckets, in seconds. In a bare loop, a packet takes some
/// microseconds; a pinhole of the iptables backend takes milliseconds.
const BUCKETS: [f64; 14] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 1e-3, 2.5e-3, 1e-2, 2.5e-2, 0.1, 1.0,
];

/// How long packets wait for their verdict.
#[derive(Clone, Debug)]
pub struct Durations(Histogram);

impl Durations {
    fn new() -> Result<Self, prometheus::Error> {
        let help = "Time from a packet's arrival at its worker to its verdict";
        let opts = page::options("packet_duration_seconds", help);
        let opts = HistogramOpts::from(opts).buckets(BUCKETS.to_vec());
        Histogram::with_opts(opts).map(Self)
    }

    /// Notes how long a packet has waited.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

/// Where metrics are served. Nobody is answered before [`serve`](Self::serve).
#[derive(Debug)]
pub(super) struct Metrics {
    listener: TcpListener,
    durations: Durations,
}

impl Metrics {
    /// Listens.
    ///
    /// # Errors
    /// One line, if the address can't be had.
    pub(super) fn bind(address: SocketAddr) -> Result<Self, StartError> {
        let deadline = Instant::now() + PATIENCE;
        let failed = |why: String| {
            StartError::Host(format!(
                "metrics can't be served at {address}: {why}; choose another --metrics, or none"
            ))
        };
        let listener = loop {
            match TcpListener::bind(address) {
                Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                    thread::sleep(STEP);
                }
                bound => break bound.map_err(|e| failed(e.to_string()))?,
            }
        };
        let ready = listener.set_nonblocking(true);
        ready.map_err(|e| failed(e.to_string()))?;
        let durations = Durations::new().map_err(|e| failed(e.to_string()))?;
        Ok(Self {
            listener,
            durations,
        })
    }

    /// What workers note their packets in.
    pub(super) fn durations(&self) -> Durations {
        self.durations.clone()
    }

    /// Answers scrapes for as long as the process lives. `look` says whether all rules are in place, and
    /// may take long: it is called between two scrapes.
    pub(super) fn serve(self, sample: impl Fn(bool) -> Sample, look: impl Fn() -> bool) {
        let in_place = std::cell::Cell::new(look());
        let mut looked = Instant::now();
        let page = || {
            page::page(&sample(in_place.get()), &self.durations.0).unwrap_or_else(|e| {
                log::error!("metrics can't be written: {e}");
                String::new()
            })
        };
        http::serve(&self.listener, page::CONTENT, page, || {
            if looked.elapsed() >= LOOK {
                in_place.set(look());
                looked = Instant::now();
            }
        });
    }
}

/// Where metrics are found, in a line.
pub(super) fn greeting(address: SocketAddr) -> String {
    format!("metrics at http://{address}{}", http::PATH)
}
