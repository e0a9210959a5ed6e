//! What firewalls and networks are described by: marks and ports.

mod mark;
mod ports;

pub use mark::Mark;
pub use ports::PortRange;
