//! `ftpalg replay`: the engine over a capture.
//!
//! The capture takes the place of the network, and `gateway` that of the kernel. Everything else is
//! the daemon's own: the [engine], and the [plane](crate::pinholes) that chooses ports
//! and keeps to limits. It is told of every control connection, line by line; the edited packets can be
//! written to another capture.
//!
//! A capture shows what was, not what would have been. Nobody edited the stream that the two ends
//! acknowledge in it. So the acknowledgements are translated before the engine sees them
//! ([`Engine::as_received`](crate::engine::Engine::as_received)): to what the receivers of the edited
//! streams would have sent. What goes on is then a conversation of two ends that said the edited text,
//! and this is what is written.
//!
//! | module | has |
//! |---|---|
//! | `capture`, `link` | files of packets, and the IP packets in their frames |
//! | `views` | which side is inside; the two names of a connection on both sides of NAT |
//! | `gateway` | the answers that the kernel would give |
//! | `replayer` | packets through the engine |
//! | `connection`, `lines`, `data` | what is told of a connection: its lines, its data connections |
//! | `transcript`, `words`, `show` | how that is kept and shown, without passwords |
//! | `packet`, `write` | the packets that are written |

mod capture;
mod connection;
mod data;
mod gateway;
mod lines;
mod link;
mod packet;
mod replayer;
mod show;
mod transcript;
mod views;
mod words;
mod write;

use std::io::{self, Read, Write};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::engine;
use crate::pinholes::PlaneConfig;

pub use crate::engine::Advertise;
pub use capture::{CaptureError, End};
pub use replayer::Summary;

use capture::{Capture, Frame};
use replayer::Replayer;
use show::Show;
use write::Edited;

/// What to go by.
#[derive(Clone, Debug)]
pub struct Options {
    /// The networks of the private side.
    pub inside: Vec<IpNet>,
    /// The addresses of the inside as the outside sees them, where the capture doesn't tell; the first
    /// of each family counts.
    pub public: Vec<IpAddr>,
    /// The control ports.
    pub ports: Vec<u16>,
    /// How the engine works. Its marks are the replay's own.
    pub engine: engine::Config,
    /// How ports are chosen, and what is limited.
    pub plane: PlaneConfig,
    /// Follow connections whose beginning isn't in the capture from the first line that is certainly
    /// one.
    pub join: bool,
    /// What is shown.
    pub view: View,
}

/// What is shown of the connections, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Names of users and files. Passwords never are.
    pub names: bool,
    /// Only connections in which something went wrong.
    pub failures: bool,
    /// A JSON value on each line; else text for people.
    pub json: bool,
}

/// Why a replay ended before its capture did.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture can't be read.
    #[error("{0}")]
    Capture(#[from] CaptureError),
    /// The transcript can't be written.
    #[error("can't write the transcript: {0}")]
    Show(io::Error),
    /// The edited packets can't be written.
    #[error("can't write the edited packets: {0}")]
    Write(io::Error),
}

/// Replays a capture: shows its control connections on `to`, and writes the edited packets. `progress`
/// is told how many bytes were read, every few packets.
///
/// Memory is bounded, however long the capture is. What was understood of a capture that ends in the
/// middle of a packet is shown; [`Summary::end`] says so.
///
/// # Errors
/// The capture can't be read, or something can't be written.
pub fn replay<'a>(
    input: Box<dyn Read + Send + 'a>,
    options: Options,
    to: &mut dyn Write,
    edited: Option<Box<dyn Write + 'a>>,
    progress: &mut dyn FnMut(u64),
) -> Result<Summary, ReplayError> {
    /// How many packets there are between two words about the progress.
    const EVERY: u32 = 1024;
    let mut capture = Capture::open(input)?;
    let format = capture.format();
    let edited = edited.map(|to| Edited::begin(to, format));
    let edited = edited.transpose().map_err(ReplayError::Write)?;
    let show = Show::new(to, options.view);
    let mut replayer = Replayer::new(options, show, edited);
    let mut frame = Frame::default();
    let mut count = 0u32;
    while capture.next(&mut frame)? {
        replayer.frame(&frame)?;
        count = count.wrapping_add(1);
        if count.is_multiple_of(EVERY) {
            progress(capture.position());
        }
    }
    replayer.finish(capture.end())
}
