//! The login name: the only part of ssh's command line that comes from a browser.

use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes. Linux allows 32, directories of users more.
const MAX_LENGTH: usize = 64;

/// A user of a device. Such a name is one word to ssh and to every shell, and no option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginName(String);

/// Why a text is no [`LoginName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WrongLogin {
    /// It is empty.
    Empty,
    /// It has more than 64 characters.
    TooLong,
    /// It begins with a hyphen.
    Hyphen,
    /// It has another character than ASCII letters, digits, and `_`, `.`, `-`, `@`, `+`.
    Character,
}

impl fmt::Display for WrongLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WrongLogin::Empty => "the login name is empty",
            WrongLogin::TooLong => "the login name has more than 64 characters",
            WrongLogin::Hyphen => "the login name begins with a hyphen",
            WrongLogin::Character => {
                "the login name has a character other than letters, digits, '_', '.', '-', '@' and '+'"
            }
        })
    }
}

impl std::error::Error for WrongLogin {}

impl LoginName {
    /// Checks a name.
    ///
    /// # Errors
    /// It is no login name.
    pub fn new(name: &str) -> Result<Self, WrongLogin> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-@+".contains(&byte);
        if name.is_empty() {
            return Err(WrongLogin::Empty);
        }
        if !name.bytes().all(is_allowed) {
            return Err(WrongLogin::Character);
        }
        if name.len() > MAX_LENGTH {
            return Err(WrongLogin::TooLong);
        }
        if name.starts_with('-') {
            return Err(WrongLogin::Hyphen);
        }
        Ok(LoginName(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LoginName {
    type Err = WrongLogin;

    fn from_str(name: &str) -> Result<Self, WrongLogin> {
        LoginName::new(name)
    }
}

impl fmt::Display for LoginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_users_are_taken_and_options_and_commands_are_not() {
        for name in ["root", "pi", "a", "svc_1", "j.doe-2", "j.doe@corp.example", "a+b", "9"] {
            assert_eq!(LoginName::new(name).unwrap().as_str(), name);
        }
        assert!(LoginName::new(&"a".repeat(64)).is_ok());
        for (name, why) in [
            ("", WrongLogin::Empty),
            ("-oProxyCommand=reboot", WrongLogin::Character),
            ("-l", WrongLogin::Hyphen),
            ("-", WrongLogin::Hyphen),
            ("root -v", WrongLogin::Character),
            ("root\n", WrongLogin::Character),
            ("a;b", WrongLogin::Character),
            ("$(id)", WrongLogin::Character),
            ("`id`", WrongLogin::Character),
            ("a%h", WrongLogin::Character),
            ("a'b", WrongLogin::Character),
            ("a\"b", WrongLogin::Character),
            ("a\\b", WrongLogin::Character),
            ("a/b", WrongLogin::Character),
            ("a\0", WrongLogin::Character),
            ("m\u{fc}ller", WrongLogin::Character),
            ("\u{430}dmin", WrongLogin::Character),
        ] {
            assert_eq!(LoginName::new(name), Err(why), "{name:?}");
        }
        assert_eq!(LoginName::new(&"a".repeat(65)), Err(WrongLogin::TooLong));
    }
}
