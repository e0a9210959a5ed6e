//! Values of settings, as they are written.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::daemon::config::decimal;
use crate::net::Mark;

/// One of a few words.
pub(super) fn words<T>(
    all: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(all).try_map(|word| word.parse::<T>())
}

/// `yes` or `no`; `true` and `false` mean the same.
pub(in crate::cli) fn yes_or_no() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new([
        PossibleValue::new("yes").alias("true"),
        PossibleValue::new("no").alias("false"),
    ])
    .map(|word| matches!(word.as_str(), "yes" | "true"))
}

/// A number of decimal digits, within bounds; `unit` is what is counted, with a blank before it.
pub(super) fn number<T>(
    range: RangeInclusive<T>,
    unit: &'static str,
) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: Copy + PartialOrd + FromStr + fmt::Display,
{
    move |text| {
        decimal(text).filter(|n| range.contains(n)).ok_or_else(|| {
            let (first, last) = (range.start(), range.end());
            format!("choose {first} to {last}{unit}")
        })
    }
}

/// A mask of one bit.
pub(super) fn mark(text: &str) -> Result<Mark, &'static str> {
    let number = match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u32::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None => decimal(text),
    };
    number
        .and_then(Mark::new)
        .ok_or("write a mask of exactly one bit, like 0x40000000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_one_bit() {
        assert_eq!(mark("0x80000000").unwrap().bit(), 1 << 31);
        assert_eq!(mark("16").unwrap().bit(), 16);
        for bad in [
            "",
            "0",
            "3",
            "0x",
            "0x+1",
            "+1",
            "0x100000000",
            "-1",
            "bit30",
        ] {
            assert!(mark(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        let read = number::<u64>(1..=600, " seconds");
        assert_eq!(read("600"), Ok(600));
        for bad in ["", "0", "601", "+1", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(read(bad), Err("choose 1 to 600 seconds".into()), "{bad:?}");
        }
    }
}
