//! Which setting refuses something, and what would allow it.
//!
//! The engine gives its reason in words. They are its printed interface, and tests hold them.

use std::net::SocketAddr;

/// The setting that refuses `verb` because of `why`, as its flag is called. `None`: it is always
/// refused.
pub(in super::super) fn rule(
    verb: &str,
    why: &str,
    address: Option<SocketAddr>,
) -> Option<&'static str> {
    let low = address.is_some_and(|address| address.port() < 1024);
    Some(match why {
        "somebody else's address" => "allow-foreign",
        "a service port" if low => return None,
        "a service port" if verb == "227" || verb == "229" => "strict passive-ports",
        "a service port" => "deny-ports",
        "TLS is denied" => "tls deny",
        "before the greeting" => "strict before-greeting",
        "not an allowed command" => "strict allow, strict deny",
        "control characters" => "strict control-bytes",
        "an unknown command" => "strict unknown-verbs",
        "too many failed logins" => "strict failed-logins",
        "no USER before it" => "strict order",
        "not an address" => "strict addresses",
        "before the login" if address.is_some() || verb == "PORT" || verb == "EPRT" => {
            "strict addresses"
        }
        "before the login" => "strict order",
        // Always for these two.
        "a line over the limit" if verb == "PORT" || verb == "EPRT" => "limit command-line",
        "a line over the limit" => "strict long-lines",
        _ if why.starts_with("a port below 1024") => "low-ports",
        _ if why.starts_with("no free data port") => "data-ports",
        _ if why.starts_with("the limit ") => "limit",
        _ => return None,
    })
}

/// The flag that would allow it, or `None` if nothing would.
pub(in super::super) fn allowed_by(
    verb: &str,
    why: &str,
    address: Option<SocketAddr>,
) -> Option<String> {
    let port = address.map(|address| address.port());
    Some(match rule(verb, why, address)? {
        "allow-foreign" => {
            let ip = address?.ip();
            let nobodys = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
            if nobodys {
                return None;
            }
            format!("--allow-foreign {ip}")
        }
        "deny-ports" => format!("a --deny-ports without {}", port?),
        "tls deny" => "--tls pass".to_owned(),
        "low-ports" => "--low-ports".to_owned(),
        "data-ports" => "a wider --data-ports".to_owned(),
        "limit" => {
            let name = why.strip_prefix("the limit ")?;
            let name = name.strip_suffix(" is reached").unwrap_or(name);
            // The number of ranges can't be set.
            if name == "ranges" {
                return None;
            }
            format!("a higher --limit {name}=N")
        }
        "limit command-line" => "a higher --limit command-line=N".to_owned(),
        strict => format!("--strict without {}", strict.replace("strict ", "")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_what_would_allow_it() {
        let at = |text: &str| Some(text.parse().unwrap());
        for (verb, why, address, flag) in [
            (
                "PORT",
                "somebody else's address",
                at("10.0.0.99:50001"),
                Some("--allow-foreign 10.0.0.99"),
            ),
            (
                "PORT",
                "somebody else's address",
                at("127.0.0.1:50001"),
                None,
            ),
            (
                "EPRT",
                "a service port",
                at("[fd00::1]:3306"),
                Some("a --deny-ports without 3306"),
            ),
            ("PORT", "a service port", at("10.0.0.9:22"), None),
            (
                "227",
                "a service port",
                at("10.0.0.9:3306"),
                Some("--strict without passive-ports"),
            ),
            (
                "227",
                "a port below 1024 (see --low-ports)",
                at("10.0.0.9:80"),
                Some("--low-ports"),
            ),
            (
                "227",
                "the limit pinholes-per-client is reached",
                at("10.0.0.9:5000"),
                Some("a higher --limit pinholes-per-client=N"),
            ),
            ("AUTH", "TLS is denied", None, Some("--tls pass")),
            ("LPRT", "RFC 1639 addresses aren't followed", None, None),
            (
                "SITE",
                "not an allowed command",
                None,
                Some("--strict without allow, deny"),
            ),
        ] {
            let allowed = allowed_by(verb, why, address);
            assert_eq!(allowed.as_deref(), flag, "{verb} {why} {address:?}");
        }
    }
}
