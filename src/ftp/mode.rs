//! The two ways in which a data connection is made.

/// How the data connection of an announcement is made (RFC 959 §3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The server listens, the client connects (`PASV`, `EPSV`).
    Passive,
    /// The client listens, the server connects (`PORT`, `EPRT`).
    Active,
}
