//! Sessions under TLS.

use clap::Args;

use super::or;
use super::values::number;
use crate::daemon::config::{self, Tls};

/// The longest that a range of ports stays open for a silent client, in seconds: a day.
const MAX_TLS_IDLE: u64 = 86_400;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsSettings {
    /// What happens to sessions that turn to TLS: pass, deny, or range:A-B [default: pass]
    ///
    /// TLS hides the addresses in the control connection. pass lets it through unread; deny refuses
    /// AUTH, so that clients fall back; range:A-B passes it, and opens these ports of the server to
    /// its client for as long as the session lives.
    #[arg(long, value_name = "pass|deny|range:A-B")]
    pub(super) tls: Option<Tls>,

    /// Seconds that the range of --tls range:A-B stays open while nothing comes from the client: 1
    /// to 86400 [default: 300]
    ///
    /// It opens again with the client's next command.
    #[arg(long, value_name = "SECS", value_parser = number(1..=MAX_TLS_IDLE, " seconds"))]
    pub(super) tls_idle: Option<u64>,

    /// A control port on which TLS is spoken from the first byte (implicit FTPS); repeatable
    /// [default: none]
    ///
    /// The port is the one that the inside sees.
    #[arg(long, value_name = "PORT", value_parser = config::port)]
    pub(super) implicit_port: Vec<u16>,
}

impl TlsSettings {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            tls: self.tls.or(base.tls),
            tls_idle: self.tls_idle.or(base.tls_idle),
            implicit_port: or(self.implicit_port, base.implicit_port),
        }
    }
}
