//! Models of what stands around the protocol: a cloud, local services, the clients of a gateway. Each
//! does what it is told, checks every answer, and panics where a promise is broken.
//!
//! `proto/tests` feeds them random and chosen cases, the fuzz targets (`fuzz/`) feed them what a
//! fuzzer finds. They see the public interface of `aiot-tunnel-proto` only.
//!
//! [`frame`], [`websocket`], [`handshake`] and [`proxies`] take hostile bytes. [`relay`], [`gateway`] and [`access`] take
//! a sequence of operations, which [`Sequence`] makes of bytes. [`simulator`] runs a whole path in virtual
//! time, from a seed.

pub mod access;
pub mod frame;
pub mod gateway;
pub mod handshake;
pub mod proxies;
pub mod relay;
pub mod simulator;
pub mod websocket;

use arbitrary::{Arbitrary, Result, Unstructured};

/// Operations, as many as the bytes that they are made of have room for. `Vec` would end with
/// probability one half after each: too soon for random bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence<O>(pub Vec<O>);

impl<'a, O: Arbitrary<'a>> Arbitrary<'a> for Sequence<O> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut operations = Vec::new();
        while !u.is_empty() {
            operations.push(u.arbitrary()?);
        }
        Ok(Sequence(operations))
    }
}

impl<O: for<'a> Arbitrary<'a>> From<&[u8]> for Sequence<O> {
    fn from(bytes: &[u8]) -> Self {
        // Where bytes run out, an operation has the least value of each kind: there is no error.
        Unstructured::new(bytes).arbitrary().unwrap_or(Sequence(Vec::new()))
    }
}

/// What a fuzz target makes of bytes.
pub fn of_bytes<T: for<'a> Arbitrary<'a>>(bytes: &[u8]) -> T {
    Unstructured::new(bytes).arbitrary().expect("bytes that run out are zeros")
}

/// Pieces of bytes as one operation each: random pieces that are left out leave the others as they
/// are, so a failing case becomes short.
pub fn each_piece<O: for<'a> Arbitrary<'a>, const LENGTH: usize>(
    pieces: &[[u8; LENGTH]],
) -> Vec<O> {
    pieces.iter().filter_map(|piece| Unstructured::new(piece).arbitrary().ok()).collect()
}

/// The code of a close frame that the library has written: it has none, or one that may stand on the wire
/// (RFC 6455, 7.4), and a reason that is text.
fn close_code(payload: &[u8]) -> Option<u16> {
    if payload.is_empty() {
        return None;
    }
    let (code, reason) = payload.split_first_chunk().expect("a whole code");
    let code = u16::from_be_bytes(*code);
    let may_be_sent = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    assert!(may_be_sent, "close code {code} on the wire");
    assert!(std::str::from_utf8(reason).is_ok(), "a reason that is no text");
    Some(code)
}
