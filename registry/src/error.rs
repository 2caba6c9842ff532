//! What goes wrong with the store and the registry.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why something was not done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// There is no such tunnel.
    Unknown(String),
    /// It does not fit what there is, such as an id that exists.
    Conflict(String),
    /// A value cannot be used.
    Invalid(String),
    /// The store's file, or its key's, cannot be used.
    Store(String),
    /// Nothing can listen on the address.
    Listen(SocketAddr, io::Error),
}

/// What the functions of this package return.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unknown(why) | Error::Conflict(why) => f.write_str(why),
            Error::Invalid(why) | Error::Store(why) => f.write_str(why),
            Error::Listen(address, e) => write!(f, "listen on {address}: {e}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The status code of HTTP that says the same.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Error::Unknown(_) => 404,
            Error::Conflict(_) => 409,
            Error::Invalid(_) => 400,
            Error::Listen(..) | Error::Store(_) => 503,
        }
    }
}
