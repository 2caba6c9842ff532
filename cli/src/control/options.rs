//! The options of the socket.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aiot_tunnel::Target;
use clap::Args;

use crate::input;

/// Where the agent listens, and where `send` and `status` look for it.
pub(crate) const DEFAULT_PATH: &str = "/run/aiot-tunnel/agent.sock";

/// The agent's options of the control socket.
#[derive(Args)]
#[command(next_help_heading = "Commands")]
pub(crate) struct ControlArgs {
    /// Unix socket on which the agent takes commands and tells its state; "none": no socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PATH, value_parser = socket_path)]
    pub(crate) control_socket: SocketPath,
    /// Permissions of the control socket, in octal. Who may write to it may open tunnels
    #[arg(long, value_name = "MODE", default_value = "0600", value_parser = input::octal)]
    pub(crate) control_socket_mode: u32,
    /// Owner of the control socket, and its group; for an agent that runs as root
    #[arg(long, value_name = "UID[:GID]")]
    pub(crate) control_socket_owner: Option<Owner>,
}

impl ControlArgs {
    pub(super) fn options(&self, path: &Path) -> Options {
        Options {
            path: path.to_owned(),
            mode: self.control_socket_mode,
            owner: self.control_socket_owner,
        }
    }
}

/// Where to listen, and who may connect.
pub(crate) struct Options {
    pub(crate) path: PathBuf,
    pub(crate) mode: u32,
    pub(crate) owner: Option<Owner>,
}

/// The path of the socket, or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SocketPath {
    Off,
    At(PathBuf),
}

impl SocketPath {
    pub(crate) fn is_default(&self) -> bool {
        matches!(self, SocketPath::At(path) if path == Path::new(DEFAULT_PATH))
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SocketPath::Off => f.write_str("none"),
            SocketPath::At(path) => path.display().fmt(f),
        }
    }
}

/// `none`, or an absolute path.
fn socket_path(text: &str) -> Result<SocketPath, String> {
    match text {
        "none" => Ok(SocketPath::Off),
        path => path_of_socket(path).map(SocketPath::At),
    }
}

/// An absolute path that fits the address of a Unix socket.
pub(crate) fn path_of_socket(text: &str) -> Result<PathBuf, String> {
    Target::unix(text).map_err(|e| e.to_string())?;
    Ok(PathBuf::from(text))
}

/// A user, and a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: Option<u32>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse().map_err(|_| format!("{text:?} is no number; give UID or UID:GID"))
        };
        let (uid, gid) = text.split_once(':').map_or((text, None), |(uid, gid)| (uid, Some(gid)));
        Ok(Owner { uid: number(uid)?, gid: gid.map(number).transpose()? })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gid {
            Some(gid) => write!(f, "{}:{gid}", self.uid),
            None => self.uid.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_an_absolute_path_or_is_off() {
        assert_eq!(socket_path("none"), Ok(SocketPath::Off));
        assert!(socket_path(DEFAULT_PATH).unwrap().is_default());
        assert_eq!(socket_path("/tmp/a b").unwrap().to_string(), "/tmp/a b");
        for bad in ["", "agent.sock", "/run/\n", &"/x".repeat(60)] {
            assert!(socket_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_owner_is_a_user_and_perhaps_a_group() {
        for text in ["0", "1000", "1000:50"] {
            assert_eq!(text.parse::<Owner>().unwrap().to_string(), text);
        }
        for bad in ["", "root", "1:", ":1", "-1", "1:2:3"] {
            assert!(bad.parse::<Owner>().is_err(), "{bad}");
        }
    }
}
