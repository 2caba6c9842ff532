//! The gateway's tunnel against the model of its devices and access sides.

use std::time::{Duration, Instant};

use aiot_tunnel_models::gateway::{Action, Operation, Step, World};
use aiot_tunnel_models::{each_piece, handshake};
use aiot_tunnel_proto::Side;
use proptest::prelude::*;

/// Turns in which a tunnel comes to rest.
const REST: usize = 40;

fn step(operation: Operation, turns: usize) -> Step {
    Step { operation, turns }
}

fn connect(side: Side, turns: usize) -> Step {
    step(Operation::Connect { side, chunk: usize::MAX, ahead: false }, turns)
}

/// A device and an access side with one open session.
fn one_session() -> Vec<Step> {
    vec![
        connect(Side::Device, REST),
        connect(Side::Access, REST),
        step(Operation::Create { access: 0, long: false }, REST),
        step(Operation::Answer { device: 0, session: 0, code: 0 }, REST),
    ]
}

/// A life that begins with a device, two access sides and a session: otherwise not much happens.
fn life(pieces: &[[u8; 16]]) -> Vec<Step> {
    let mut steps = vec![connect(Side::Device, 0), connect(Side::Access, 0)];
    steps.extend(one_session().into_iter().skip(1));
    steps.extend(each_piece(pieces));
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn bytes_go_in_order_between_the_two_ends_of_their_session_only(
        steps in proptest::collection::vec(any::<[u8; 16]>(), 0..120)
            .prop_map(|pieces| life(&pieces)),
    ) {
        World::run(&steps);
    }
}

#[test]
fn a_session_that_lost_data_does_not_go_on() {
    for side in [Side::Access, Side::Device] {
        for length in [65_537, 90_000] {
            let does = Action::TooMuch { session: 0, length };
            let mut steps = one_session();
            steps.push(step(Operation::Client { side, client: 1, does }, REST));
            World::run(&steps);
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
    let (mut requests, mut lives) = (0, 0);
    while Instant::now() < end {
        let result = std::panic::catch_unwind(|| {
            let mut random = StdRng::seed_from_u64(seed);
            let mut pieces = vec![[0; 16]; random.random_range(0..200)];
            pieces.iter_mut().for_each(|piece| random.fill(&mut piece[..]));
            World::run(&life(&pieces));
            for request in pieces.chunks(3) {
                handshake::request(&handshake::request_head(&request.concat()));
            }
            pieces.len().div_ceil(3)
        });
        match result {
            Ok(count) => requests += count,
            Err(_) => panic!("HUNT_SEED={seed}"),
        }
        lives += 1;
        seed = seed.wrapping_add(1);
    }
    println!("from seed {first}: {lives} lives, {requests} requests");
}
