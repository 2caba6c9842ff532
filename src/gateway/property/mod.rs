//! What must hold whatever bytes come, as functions of bytes: for property tests and fuzzers.

mod handshake;
mod tunnel;

pub(crate) use handshake::handshake;
pub(crate) use tunnel::frames;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn only_the_right_token_for_the_right_end_is_let_in(
            kind: u8,
            data in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..200),
                "(/tunnel|/|t1|dest|source|\\.\\.|%2f|\\?|#|http://x| |\t|hush-access|hush-device|\r\n|tunnel-access-token|:|x){0,12}"
                    .prop_map(String::into_bytes),
            ],
        ) {
            handshake(&[&[kind][..], &data].concat());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn bytes_go_in_order_between_the_two_ends_of_their_session_only(
            operations in proptest::collection::vec(any::<[u8; 3]>(), 0..120),
        ) {
            // Connections first, or nothing much happens.
            let begin = [[0, 0, 5], [1, 0, 5], [193, 0, 5], [194, 0, 0], [195, 0, 0]];
            frames(&[&begin[..], &operations].concat().concat());
        }
    }

    #[test]
    fn a_session_that_lost_data_does_not_go_on() {
        let open = [[192, 0, 5], [193, 0, 5], [194, 0, 0], [195, 0, 0]];
        for end in [1, 129] {
            for length in [0, 64] {
                frames(&[&open[..], &[[207, end, length]]].concat().concat());
            }
        }
    }

    /// Random inputs without end, for as long as `HUNT_SECONDS` says.
    #[test]
    #[ignore = "a hunt for defects, by hand"]
    fn hunt() {
        use rand::{rngs::StdRng, RngExt, SeedableRng};
        let seconds: u64 = std::env::var("HUNT_SECONDS").unwrap().parse().unwrap();
        let end = Instant::now() + Duration::from_secs(seconds);
        let first: u64 =
            std::env::var("HUNT_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
        let mut seed = first;
        let (mut shakes, mut lives) = (0, 0);
        while Instant::now() < end {
            let result = std::panic::catch_unwind(|| {
                let mut random = StdRng::seed_from_u64(seed);
                let length = random.random_range(0..600);
                let mut data = vec![0; length];
                random.fill(&mut data[..]);
                // Small numbers often, so that the same parties meet.
                let begin = [[0, 0, 5], [1, 0, 5], [193, 0, 5], [194, 0, 0], [195, 0, 0]].concat();
                frames(&[&begin[..], &data].concat());
                for part in data.chunks(40) {
                    handshake(part);
                }
                data.len().div_ceil(40)
            });
            match result {
                Ok(count) => shakes += count,
                Err(_) => panic!("HUNT_SEED={seed}"),
            }
            lives += 1;
            seed = seed.wrapping_add(1);
        }
        println!("from seed {first}: {lives} lives, {shakes} handshakes");
    }
}
