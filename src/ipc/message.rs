//! The message: one command in 644 bytes.

use zeroize::Zeroizing;

use crate::config::{ConnectParams, Port, Token, TunnelId};
use crate::error::{Error, Result};

/// Size of a message's body, in bytes.
pub const MESSAGE_SIZE: usize = 644;

/// Size of a text field, in bytes, its NUL included.
const FIELD: usize = 128;

/// One command, as it travels on the queue.
///
/// A body has [`MESSAGE_SIZE`] bytes: the operation as a native `int`, then five text fields of
/// 128 bytes each, the NUL included: tunnel id, host, port, path and token.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Operation 1: [`Handle::add`](crate::Handle::add).
    Add(TunnelId, ConnectParams),
    /// Operation 0: [`Handle::delete`](crate::Handle::delete).
    Delete(TunnelId),
    /// Operation 2: [`Handle::update`](crate::Handle::update).
    Update(TunnelId, ConnectParams),
}

impl Command {
    /// Reads a message's body. Every byte of it may be hostile.
    ///
    /// # Errors
    /// [`Error::InvalidMessage`] for an unknown operation, or a field that has no NUL or is not
    /// UTF-8; [`Error::InvalidInput`] for a field with a byte that is not allowed there.
    pub fn from_bytes(body: &[u8; MESSAGE_SIZE]) -> Result<Self> {
        let (operation, fields) = body.split_at(4);
        let operation =
            i32::from_ne_bytes([operation[0], operation[1], operation[2], operation[3]]);
        let field = |index: usize, name: &str| {
            let bytes = &fields[index * FIELD..][..FIELD];
            let end = bytes.iter().position(|byte| *byte == 0);
            let end = end.ok_or_else(|| Error::InvalidMessage(format!("{name} has no NUL")))?;
            std::str::from_utf8(&bytes[..end])
                .map_err(|_| Error::InvalidMessage(format!("{name} is not UTF-8")))
        };
        let id = || TunnelId::new(field(0, "tunnel_id")?);
        let params = || {
            let port: Port = field(2, "port")?.parse()?;
            let token = Token::new(field(4, "token")?)?;
            ConnectParams::new(field(1, "host")?, port, field(3, "path")?, token)
        };
        match operation {
            1 => Ok(Command::Add(id()?, params()?)),
            0 => Ok(Command::Delete(id()?)),
            2 => Ok(Command::Update(id()?, params()?)),
            other => Err(Error::InvalidMessage(format!("operation {other} is unknown"))),
        }
    }

    /// Writes a message's body. The copy is wiped when it is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when a field has more than 127 bytes.
    pub fn to_bytes(&self) -> Result<Zeroizing<[u8; MESSAGE_SIZE]>> {
        let (operation, id, params) = match self {
            Command::Add(id, params) => (1i32, id, Some(params)),
            Command::Delete(id) => (0, id, None),
            Command::Update(id, params) => (2, id, Some(params)),
        };
        let mut body = Zeroizing::new([0; MESSAGE_SIZE]);
        body[..4].copy_from_slice(&operation.to_ne_bytes());
        let mut put = |index: usize, name: &'static str, text: &str| {
            if text.len() >= FIELD {
                return Err(Error::invalid(name, "longer than the message's 127 bytes"));
            }
            body[4 + index * FIELD..][..text.len()].copy_from_slice(text.as_bytes());
            Ok(())
        };
        put(0, "tunnel id", id.as_str())?;
        if let Some(params) = params {
            put(1, "host", params.host())?;
            put(2, "port", &params.port().to_string())?;
            put(3, "path", params.path())?;
            put(4, "token", params.token().expose())?;
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add() -> Command {
        let params = ConnectParams::new(
            "h.example",
            Port::new(443).unwrap(),
            "/p",
            Token::new("hush-token").unwrap(),
        );
        Command::Add(TunnelId::new("t1").unwrap(), params.unwrap())
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Command::from_bytes(&add().to_bytes().unwrap()).unwrap(), add());
        let delete = Command::Delete(TunnelId::new("t1").unwrap());
        assert_eq!(Command::from_bytes(&delete.to_bytes().unwrap()).unwrap(), delete);
    }

    #[test]
    fn hostile_messages_are_refused() {
        let good = add().to_bytes().unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut body = *good;
            body[at..at + bytes.len()].copy_from_slice(bytes);
            Command::from_bytes(&body)
        };
        assert!(with(0, &7i32.to_ne_bytes()).is_err());
        for field in 0..5 {
            assert!(with(4 + field * FIELD, &[b'x'; FIELD]).is_err(), "field {field} has no NUL");
            assert!(with(4 + field * FIELD, b"\r\n\0").is_err(), "field {field} has a line break");
            assert!(with(4 + field * FIELD, b"\xff\0").is_err(), "field {field} is not UTF-8");
        }
        assert!(with(4 + 2 * FIELD, b"0\0").is_err());
    }

    #[test]
    fn a_field_of_128_bytes_does_not_fit() {
        let params = ConnectParams::new(
            &"h".repeat(128),
            Port::new(1).unwrap(),
            "/",
            Token::new("hush-t").unwrap(),
        );
        let long = Command::Add(TunnelId::new("t").unwrap(), params.unwrap());
        assert!(long.to_bytes().is_err());
    }
}
