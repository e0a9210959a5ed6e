//! Numbers as people read them.

/// A number of bytes with three digits and a binary unit: `812 B`, `1.50 KiB`, `12.3 MiB`, `123 GiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Three digits are shown. Below, 999.5 and more would round to 1000.
    let mut value = count as f64 / 1024.0;
    let mut units = UNITS.into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// Bytes per second, where `seconds` is long enough to tell.
#[must_use]
pub fn rate(bytes: u64, seconds: f64) -> Option<u64> {
    const SHORTEST: f64 = 0.001;
    (seconds >= SHORTEST).then(|| (bytes as f64 / seconds) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        for (count, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_070_652, "1.02 MiB"),
            (1_048_575, "1.00 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn no_rate_of_no_time() {
        assert_eq!(rate(1000, 0.0), None);
        assert_eq!(rate(1000, 0.5), Some(2000));
    }
}
