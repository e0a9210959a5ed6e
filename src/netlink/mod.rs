//! Netlink: message codec and socket. Knows bytes, not FTP.
