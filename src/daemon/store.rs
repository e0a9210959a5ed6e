//! What two gateways share, so that either can go on with the sessions of the other.

#[cfg(feature = "valkey")]
mod valkey;

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::engine::Tuple;
use crate::pinholes::{Pinhole, PinholeKey};

/// Where both gateways read what one of them has written. Every call returns within a bound, whatever
/// is wrong with the store.
pub trait Store: Send + Sync {
    /// Keeps what the other gateway must know of a control connection: see
    /// [`Gateway::keep_record`](crate::engine::gateway::Gateway::keep_record). Returns whether the other
    /// one will find it.
    fn keep_record(&self, outward: Tuple, record: &[u8]) -> bool;

    /// Forgets that, soon.
    fn drop_record(&self, outward: Tuple);

    /// What is kept of a control connection. `None`: it doesn't answer, but did a moment ago, and may again.
    fn find_record(&self, outward: Tuple) -> Option<Option<Vec<u8>>>;

    /// The same if another gateway has written it, and nothing else.
    fn find_record_of_another(&self, outward: Tuple) -> Option<Vec<u8>>;

    /// Keeps a pinhole that nobody has used yet, for as long as it may be used. Returns whether the
    /// other gateway will find it.
    fn keep_pinhole(&self, pinhole: &Pinhole, left: Duration) -> bool;

    /// Forgets it, soon.
    fn drop_pinhole(&self, key: PinholeKey);

    /// The pinholes that are kept or wait to be, `most` at most, and how long each may still be used.
    /// `None`: it doesn't answer.
    fn pinholes(&self, most: usize) -> Option<Vec<(Pinhole, Duration)>>;

    /// How it is doing.
    fn health(&self) -> StoreHealth;
}

/// How a store is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StoreHealth {
    /// Whether it answered when it was asked last.
    pub works: bool,
    /// How often it didn't.
    pub errors: u64,
    /// How many keys couldn't be written, and wait to be; at most 4,096.
    pub waiting: usize,
}

/// The store at a URL. It need not answer yet.
///
/// # Errors
/// Says what is wrong with the URL.
pub fn open(url: &str) -> Result<Arc<dyn Store>, String> {
    #[cfg(feature = "valkey")]
    return valkey::open(url);
    #[cfg(not(feature = "valkey"))]
    Err(format!(
        "this ftpalg was built without the feature valkey, so it can't use {}",
        url.split(':').next().unwrap_or_default()
    ))
}
