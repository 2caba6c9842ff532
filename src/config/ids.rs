//! Tunnel ids and port numbers.

use std::borrow::Borrow;
use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::sync::Arc;

use super::text::check_name;
use crate::error::{Error, Result};

/// The identifier of a tunnel: 1 to 127 bytes of UTF-8 without control characters. Cheap to
/// clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TunnelId(Arc<str>);

impl TunnelId {
    /// Checks an identifier and copies it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when `id` is empty, is longer than 127 bytes, or holds a control
    /// character.
    pub fn new(id: &str) -> Result<Self> {
        check_name("tunnel id", id)?;
        Ok(TunnelId(id.into()))
    }

    /// The identifier as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl AsRef<str> for TunnelId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TunnelId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for TunnelId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self> {
        TunnelId::new(id)
    }
}

impl TryFrom<&str> for TunnelId {
    type Error = Error;

    fn try_from(id: &str) -> Result<Self> {
        TunnelId::new(id)
    }
}

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(NonZeroU16);

impl Port {
    /// Checks a port number.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when `port` is 0.
    pub fn new(port: u16) -> Result<Self> {
        NonZeroU16::new(port).map(Port).ok_or_else(|| Error::invalid("port", "0 is no port"))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl TryFrom<u16> for Port {
    type Error = Error;

    fn try_from(port: u16) -> Result<Self> {
        Port::new(port)
    }
}

impl From<Port> for u16 {
    fn from(port: Port) -> u16 {
        port.get()
    }
}

impl FromStr for Port {
    type Err = Error;

    /// Takes decimal digits only: no sign, no blanks.
    fn from_str(text: &str) -> Result<Self> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = if digits { text.parse::<u16>().ok() } else { None };
        number
            .and_then(|n| Port::new(n).ok())
            .ok_or_else(|| Error::invalid("port", "not a decimal number from 1 to 65535"))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_plain_decimals_from_1_to_65535() {
        for good in ["1", "443", "65535", "00022"] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
        }
        for bad in ["", "0", "65536", "+443", "-1", " 443", "443 ", "0x1bb", "4 4", "99999999999"] {
            assert!(bad.parse::<Port>().is_err(), "{bad:?}");
        }
        assert!(Port::try_from(0).is_err());
        assert_eq!(u16::from(Port::try_from(22).unwrap()), 22);
    }
}
