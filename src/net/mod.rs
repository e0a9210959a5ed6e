//! The words in which firewalls and networks are described: address families, networks, marks and
//! ports.

mod family;
mod mark;
mod network;
mod ports;

pub use family::Family;
pub use mark::Mark;
pub use network::{is_private, parse_network};
pub use ports::PortRange;

/// `IPPROTO_TCP`
pub const TCP: u8 = 6;
