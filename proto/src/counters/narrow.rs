//! The number for processors without 64-bit atomics, such as ARMv5 and 32-bit MIPS.

use std::sync::{Mutex, PoisonError};

#[derive(Debug, Default)]
pub(super) struct Count(Mutex<u64>);

impl Count {
    pub(super) fn get(&self) -> u64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, more: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_grows_beyond_32_bits() {
        let count = Count::default();
        for _ in 0..3 {
            count.add(u32::MAX.into());
        }
        assert_eq!(count.get(), 3 * u64::from(u32::MAX));
    }
}
