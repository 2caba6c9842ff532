//! The operator's configuration file: profiles, each with a gateway and the way to its tokens, so that
//! the daily command is `aiot-tunnel ssh pump-17`.
//!
//! A key of a profile is the name of an option of `access` with underscores, and its value is what the
//! option takes: [`crate::cli`] puts it on the command line. The other keys are the user for ssh and the
//! place of the token.

mod check;
mod file;
mod token;

use std::path::{Path, PathBuf};

use aiot_tunnel::TunnelId;

use crate::{Result, Usage};
use token::Place;

/// What stands for the id of the tunnel in `token_file` and `token_command`.
const PLACEHOLDER: &str = "{tunnel}";

/// A profile as it holds for one tunnel.
#[derive(Debug)]
pub(crate) struct Profile {
    file: PathBuf,
    pub(crate) name: String,
    tunnel: TunnelId,
    /// The options of `access` by their keys.
    options: Vec<Value>,
    /// The user for ssh.
    pub(crate) user: Option<String>,
    token: Option<Place>,
}

/// A value of the file.
#[derive(Debug, Clone)]
struct Value {
    key: String,
    text: String,
    line: usize,
}

impl Profile {
    /// Reads a profile, the default one without a name, with what the file says about the tunnel.
    ///
    /// # Errors
    /// One line that names the file, the line and the key.
    pub(crate) fn load(file: Option<&Path>, name: Option<&str>, tunnel: &TunnelId) -> Result<Self> {
        let path = path(file)?;
        file::File::read(&path)?.profile(name, tunnel)
    }

    /// The options that the profile sets, with their values.
    pub(crate) fn options(&self) -> impl Iterator<Item = (String, &str)> {
        self.options.iter().map(|value| (value.key.replace('_', "-"), &*value.text))
    }

    /// The value of an option.
    pub(crate) fn option(&self, key: &str) -> Option<&str> {
        self.find(key).map(|value| &*value.text)
    }

    /// An error about an option that the profile may have set.
    pub(crate) fn wrong(&self, key: &str, why: impl std::fmt::Display) -> Usage {
        match self.find(key) {
            Some(value) => {
                let (file, line) = (self.file.display(), value.line);
                Usage::of(format_args!("{file}:{line}: {key}: {why}"))
            }
            None => Usage::of(why),
        }
    }

    fn find(&self, key: &str) -> Option<&Value> {
        self.options.iter().find(|value| value.key == key)
    }

    /// The variable that holds the token, if the profile names one.
    pub(crate) fn token_variable(&self) -> Option<&str> {
        match &self.token {
            Some(Place::Variable(name)) => Some(name),
            _ => None,
        }
    }

    /// The token: from the environment, or from the place that the profile names. Call it before the
    /// process has a second thread.
    pub(crate) fn token(&self) -> Result<aiot_tunnel::Token> {
        token::read(self.token.as_ref(), &self.file, &self.name, &self.tunnel)
    }
}

/// What ssh has to know of some tunnels.
#[derive(Debug)]
pub(crate) struct Hosts {
    /// Which tunnels: `*` stands for any characters, `?` for one.
    pub(crate) pattern: String,
    pub(crate) url: Option<String>,
    pub(crate) user: Option<String>,
}

/// What ssh has to know of a profile. The first of the hosts that says something about a tunnel counts.
#[derive(Debug)]
pub(crate) struct Summary {
    pub(crate) name: String,
    pub(crate) is_default: bool,
    pub(crate) hosts: Vec<Hosts>,
}

/// What ssh has to know of all profiles, or of one.
///
/// # Errors
/// Those of [`Profile::load`].
pub(crate) fn summaries(file: Option<&Path>, only: Option<&str>) -> Result<Vec<Summary>> {
    let path = path(file)?;
    let file = file::File::read(&path)?;
    let default = file.default_name()?;
    let names = match only {
        Some(name) => vec![name.to_owned()],
        None => file.names(),
    };
    let summary = |name: String| {
        let (is_default, hosts) = (default.as_ref() == Some(&name), file.hosts(&name)?);
        Ok(Summary { name, is_default, hosts })
    };
    names.into_iter().map(summary).collect()
}

/// Where the file is: as named, or in the user's folder of configurations.
fn path(file: Option<&Path>) -> Result<PathBuf> {
    if let Some(file) = file {
        return Ok(file.to_owned());
    }
    let path = default_path().ok_or_else(|| {
        Usage::of("neither XDG_CONFIG_HOME nor HOME is set: give --config or --url")
    })?;
    if !path.exists() {
        let path = path.display();
        return Err(Usage::of(format_args!(
            "give --url, or write a profile into {path}; aiot-tunnel access --help shows how"
        ))
        .into());
    }
    Ok(path)
}

/// The XDG base directory specification ignores relative paths.
fn default_path() -> Option<PathBuf> {
    let absolute = |variable| {
        let path = PathBuf::from(std::env::var_os(variable)?);
        path.is_absolute().then_some(path)
    };
    let folder = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(folder.join("aiot-tunnel/config.toml"))
}
