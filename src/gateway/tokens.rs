//! Tokens as the gateway keeps them: keyed digests, which tell nothing of a token without the key.

use std::fmt;

use openssl::sha::Sha256;
use zeroize::Zeroizing;

use crate::config::Token;

/// The block of SHA-256, in bytes.
const BLOCK: usize = 64;

/// The key of digests. It is wiped from memory when it is dropped, and `Debug` hides it.
#[derive(Clone)]
pub struct TokenKey(Zeroizing<[u8; 32]>);

impl TokenKey {
    /// A key that was kept from before, so that stored digests still match. It must be random.
    pub fn new(key: [u8; 32]) -> Self {
        TokenKey(Zeroizing::new(key))
    }

    /// A key that nobody knows.
    #[must_use]
    pub fn random() -> Self {
        TokenKey::new(rand::random())
    }

    /// The digest of a token.
    pub fn digest(&self, token: &Token) -> TokenDigest {
        self.of(token.expose().as_bytes())
    }

    /// HMAC-SHA256, RFC 2104.
    pub(super) fn of(&self, token: &[u8]) -> TokenDigest {
        let pad = |with: u8| {
            let mut block = Zeroizing::new([with; BLOCK]);
            block.iter_mut().zip(self.0.iter()).for_each(|(byte, key)| *byte ^= key);
            block
        };
        let mut inner = Sha256::new();
        inner.update(&*pad(0x36));
        inner.update(token);
        let mut outer = Sha256::new();
        outer.update(&*pad(0x5c));
        outer.update(&inner.finish());
        TokenDigest(outer.finish())
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(..)")
    }
}

/// The keyed digest of a token: HMAC-SHA256. Two digests are compared in a time that does not depend on
/// their contents.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// A digest that was kept from before.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        TokenDigest(bytes)
    }

    /// The digest, to be kept.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &TokenDigest) -> bool {
        openssl::memcmp::eq(&self.0, &other.0)
    }
}

impl Eq for TokenDigest {}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_the_hmac_of_rfc_4231() {
        // Its second case, whose key is shorter and padded with zeros.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let digest = TokenKey::new(key).of(b"what do ya want for nothing?");
        let hex: String = digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    }

    #[test]
    fn only_the_same_token_and_key_match() {
        let key = TokenKey::random();
        let token = key.of(b"hush-token");
        assert_eq!(token, TokenKey::clone(&key).of(b"hush-token"));
        for other in [&b""[..], b"hush-toke", b"hush-token ", b"hush-token\0"] {
            assert_ne!(token, key.of(other));
        }
        assert_ne!(token, TokenKey::random().of(b"hush-token"));
    }

    #[test]
    fn neither_shows_what_it_holds() {
        let key = TokenKey::new([7; 32]);
        let text = format!("{key:?} {:?}", key.of(b"hush-token"));
        assert_eq!(text, "TokenKey(..) TokenDigest(..)");
    }
}
