//! How ftpalg can be watched.

use std::net::SocketAddr;

use clap::Args;

#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Watching")]
pub(super) struct Watching {
    /// Serve metrics for Prometheus at this address, path /metrics [default: none]
    ///
    /// They have no names and addresses of users. docs/metrics.md lists them.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = address)]
    pub(super) metrics: Option<SocketAddr>,
}

impl Watching {
    pub(super) fn over(self, base: Self) -> Self {
        Self {
            metrics: self.metrics.or(base.metrics),
        }
    }
}

/// An address and a port to listen at.
fn address(text: &str) -> Result<SocketAddr, &'static str> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err("write an address and a port, like 127.0.0.1:9119 or [::1]:9119"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port() {
        for good in ["127.0.0.1:9119", "[::1]:9119", "0.0.0.0:1"] {
            assert_eq!(address(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "9119",
            ":9119",
            "127.0.0.1",
            "127.0.0.1:0",
            "::1:9119:x",
            "localhost:9119",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
