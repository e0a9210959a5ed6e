//! Validates a packet, and finds where its parts are.

use etherparse::{IpSlice, Ipv6ExtensionSlice, TcpSlice, ip_number};

/// The offsets of a complete, unfragmented TCP segment within an IP packet.
///
/// Made only by [`Layout::parse`]: `0 < tcp < payload <= end <= packet length` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whether it is an IPv6 packet.
    pub v6: bool,
    /// Where the TCP header starts, in bytes from the start of the IP header.
    pub tcp: usize,
    /// Where the TCP payload starts.
    pub payload: usize,
    /// Where the IP packet ends by its own length field (link padding may follow).
    pub end: usize,
}

/// Why a packet isn't looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A fragment: its transport header can't be trusted, or isn't there.
    Fragment,
    /// Another transport protocol, or TCP behind an IPsec authentication header.
    NotTcp,
    /// Lengths that contradict each other, or a header cut short.
    Malformed,
}

impl Layout {
    /// Checks an IP packet and finds its TCP segment.
    ///
    /// # Errors
    /// [`Reject`] says why it isn't a TCP segment that can be worked on.
    pub fn parse(packet: &[u8]) -> Result<Self, Reject> {
        let ip = IpSlice::from_slice(packet).map_err(|_| Reject::Malformed)?;
        let body = ip.payload();
        if body.fragmented {
            return Err(Reject::Fragment);
        }
        if body.ip_number != ip_number::TCP {
            return Err(Reject::NotTcp);
        }
        // What an authentication header (RFC 4302) signs must not be changed.
        let signed = match &ip {
            IpSlice::Ipv4(v4) => v4.extensions().auth.is_some(),
            IpSlice::Ipv6(v6) => v6
                .extensions()
                .clone()
                .into_iter()
                .any(|extension| matches!(extension, Ipv6ExtensionSlice::Authentication(_))),
        };
        if signed {
            return Err(Reject::NotTcp);
        }
        let tcp = TcpSlice::from_slice(body.payload).map_err(|_| Reject::Malformed)?;
        let ip_end = match &ip {
            IpSlice::Ipv4(v4) => usize::from(v4.header().total_len()),
            IpSlice::Ipv6(v6) => 40usize.saturating_add(usize::from(v6.header().payload_length())),
        };
        // An IPv6 length field of 0 means a jumbogram (RFC 2675); FTP control connections have
        // none. etherparse takes all bytes there are for the payload then, and the offsets below
        // would be wrong.
        let fixed = if ip.ipv6().is_some() { 40usize } else { 20 };
        if ip_end > packet.len() || ip_end < fixed.saturating_add(body.payload.len()) {
            return Err(Reject::Malformed);
        }
        let tcp_start = ip_end.saturating_sub(body.payload.len());
        let payload = tcp_start.saturating_add(tcp.header_slice().len());
        if tcp_start < fixed || payload > ip_end {
            return Err(Reject::Malformed);
        }
        Ok(Self {
            v6: ip.ipv6().is_some(),
            tcp: tcp_start,
            payload,
            end: ip_end,
        })
    }
}
