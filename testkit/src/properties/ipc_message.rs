//! A message of the IPC queue.

use aiot_tunnel::ipc::{Command, MESSAGE_SIZE};

/// A text field of the message, its NUL included.
pub const FIELD: usize = 128;

/// Holds for any bytes: a command that can be read is written as it was read, and holds nothing
/// that a request line or a log line must not hold.
pub fn check(data: &[u8]) {
    let mut body = [0; MESSAGE_SIZE];
    let length = data.len().min(MESSAGE_SIZE);
    body[..length].copy_from_slice(&data[..length]);
    let Ok(command) = Command::from_bytes(&body) else { return };
    let (id, params) = match &command {
        Command::Add(id, params) | Command::Update(id, params) => (id, Some(params)),
        Command::Delete(id) => (id, None),
        other => panic!("{other:?} is no command of a message"),
    };
    assert!(!id.as_str().is_empty() && !id.as_str().contains(char::is_control));
    if let Some(params) = params {
        for text in [params.host(), params.path(), params.token().expose()] {
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        // A path without its slash gets one, for which there may be no room.
        if params.path().len() >= FIELD {
            return assert!(command.to_bytes().is_err());
        }
    }
    let written = command.to_bytes().expect("what was read fits");
    assert_eq!(Command::from_bytes(&written).unwrap(), command);
}
