//! Random numbers that a seed reproduces: the one generator of the tests and benchmarks.
//!
//! A seed gives the same numbers on every 64-bit machine for as long as `Cargo.lock` names the same
//! version of `rand`. Nothing here may read a clock or the system's entropy; names that only have
//! to be unique come from `rand::random`.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// A seeded generator; the methods are those of `rand::RngExt`.
pub type Generator = SmallRng;

/// The numbers of one part of a seed's run. Parts do not influence each other, so what one of them
/// draws does not depend on how much another one has drawn.
pub fn part(seed: u64, part: u64) -> Generator {
    let seed = SmallRng::seed_from_u64(seed).next_u64();
    let part = SmallRng::seed_from_u64(part).next_u64();
    SmallRng::seed_from_u64(seed.rotate_left(17) ^ part)
}

/// From 1 to `end`; every order of magnitude is as likely as the next.
pub fn magnitude(generator: &mut Generator, end: u64) -> u64 {
    let bits = generator.random_range(0..u64::from(u64::BITS - end.leading_zeros()));
    generator.random_range(1..=2 << bits).min(end)
}

/// True `chance` times in a thousand.
pub fn permille(generator: &mut Generator, chance: u32) -> bool {
    generator.random_ratio(chance, 1000)
}

/// Bytes that belong to a seed: a receiver that knows the seed can check them.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    part(seed, 0).fill_bytes(&mut bytes);
    bytes
}
