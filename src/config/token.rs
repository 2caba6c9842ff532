//! Access tokens.

use std::fmt;

use zeroize::Zeroizing;

use super::text::{check_visible, MAX_PATH};
use crate::error::Result;

/// The access token of one end of a tunnel.
///
/// Its memory is wiped when it is dropped. `Debug` prints `Token(..)`. Two tokens of the same
/// length are compared in a time that does not depend on their contents.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Checks a token and copies it: at most 2048 bytes of visible ASCII. An empty token is
    /// accepted here; the embedded gateway refuses it.
    ///
    /// # Errors
    /// [`Error::InvalidInput`](crate::Error::InvalidInput). Its text never holds the token.
    pub fn new(token: &str) -> Result<Self> {
        check_visible("token", token, 0, MAX_PATH)?;
        Ok(Token(Zeroizing::new(token.to_owned())))
    }

    /// The secret itself. Do not print, log or store it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        let (own, other) = (self.0.as_bytes(), other.0.as_bytes());
        own.len() == other.len() && openssl::memcmp::eq(own, other)
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_text_is_the_same_token() {
        let token = |text| Token::new(text).unwrap();
        assert_eq!(token("hush-token"), token("hush-token"));
        assert_eq!(token(""), token(""));
        for other in ["", "hush-toke", "hush-tokem", "hush-tokens", "Hush-token"] {
            assert_ne!(token("hush-token"), token(other));
        }
    }

    #[test]
    fn errors_and_debug_keep_the_secret() {
        let token = Token::new("s3cret-token").unwrap();
        assert!(!format!("{token:?}").contains("s3cret"));
        let error = Token::new("s3cret token").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
}
