//! Reads the values of keys in a configuration file. A value that a flag takes as text may also be a
//! number, and the values of a flag that can be repeated may be a list.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use crate::daemon::config;
use crate::net::{Mark, parse_network};

/// A list.
pub(super) fn many<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    read_all(deserializer, str::parse)
}

/// A list that may be empty on purpose.
pub(super) fn some<'de, D, T>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    read_all(deserializer, str::parse).map(Some)
}

/// At most one value.
pub(super) fn one<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr,
    T::Err: fmt::Display,
{
    read_one(deserializer, str::parse)
}

pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    read_all(deserializer, config::port)
}

pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    read_all(deserializer, parse_network)
}

pub(super) fn mark<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mark>, D::Error> {
    read_one(deserializer, super::mark)
}

fn read_all<'de, D, T, E>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
{
    let Words(words) = Words::deserialize(deserializer)?;
    words
        .iter()
        .map(|word| parse(word).map_err(|e| D::Error::custom(format!("{word:?}: {e}"))))
        .collect()
}

fn read_one<'de, D, T, E>(
    deserializer: D,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
{
    let mut all = read_all(deserializer, parse)?;
    if all.len() > 1 {
        return Err(D::Error::custom("only one value can be given"));
    }
    Ok(all.pop())
}

/// The values of a key: one, or a list of them; text, or a number.
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordsReader;
        impl<'de> Visitor<'de> for WordsReader {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text, a number, or a list of them")
            }

            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Words, E> {
                Ok(Words(vec![number.to_string()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Words, A::Error> {
                let mut all = Vec::new();
                while let Some(Words(some)) = seq.next_element()? {
                    all.extend(some);
                }
                Ok(Words(all))
            }
        }
        deserializer.deserialize_any(WordsReader)
    }
}
