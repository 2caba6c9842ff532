//! Masking (RFC 6455, 5.3). Eight bytes at a time.

/// Applies the mask in place.
pub(super) fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let wide = widened(mask);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Copies bytes and applies the mask. Both slices must have the same length.
pub(super) fn copy_masked(from: &[u8], to: &mut [u8], mask: [u8; 4]) {
    let wide = widened(mask);
    let whole = from.len() / 8 * 8;
    let (words, rest) = from.split_at(whole);
    let (word_targets, rest_targets) = to.split_at_mut(whole);
    for (source, target) in words.chunks_exact(8).zip(word_targets.chunks_exact_mut(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(source);
        target.copy_from_slice(&(u64::from_ne_bytes(word) ^ wide).to_ne_bytes());
    }
    for ((source, target), key) in rest.iter().zip(rest_targets).zip(mask.iter().cycle()) {
        *target = source ^ key;
    }
}

fn widened([a, b, c, d]: [u8; 4]) -> u64 {
    u64::from_ne_bytes([a, b, c, d, a, b, c, d])
}
