//! The gateway's tunnel against the model of its devices and access sides: random cases and chosen ones.

use std::time::{Duration, Instant};

use aiot_tunnel_models::gateway::{Action, ClientEnd, Operation, Step, World};
use aiot_tunnel_models::relay::{Offer, BAD_CREDITS};
use aiot_tunnel_models::{each_piece, handshake};
use aiot_tunnel_proto::frame::Extensions;
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
            steps.push(step(Operation::Client { side, client: 0, does }, REST));
            World::run(&steps);
        }
    }
}

/// Data from one side of the only session.
fn data(side: Side, length: usize, frames: u8) -> Step {
    let does = Action::Data { session: 0, length, frames };
    step(Operation::Client { side, client: 0, does }, REST)
}

#[test]
fn data_goes_both_ways_until_the_release() {
    let mut steps = one_session();
    steps.push(data(Side::Access, 4096, 1));
    steps.push(data(Side::Device, 4096, 1));
    let does = Action::Release { session: 0 };
    steps.push(step(Operation::Client { side: Side::Device, client: 0, does }, REST));
    World::run(&steps);
}

#[test]
fn what_was_sent_before_a_close_is_delivered_before_the_release() {
    let mut steps = one_session();
    steps.push(data(Side::Access, 30_000, 1));
    let does = Action::End(ClientEnd::Close { which: 2 });
    steps.push(step(Operation::Client { side: Side::Access, client: 0, does }, 0));
    steps.push(step(Operation::TimePasses { millis: 2_000 }, REST));
    World::run(&steps);
}

#[test]
fn a_message_that_is_no_frame_ends_nothing() {
    let mut steps = one_session();
    // Its header is cut short.
    let does = Action::Message(b"\0\x1c{\"frame_type\":4,\"frame_id\":7".to_vec());
    steps.push(step(Operation::Client { side: Side::Access, client: 0, does }, REST));
    let does = Action::ArrivesIn { chunk: 1 };
    steps.push(step(Operation::Client { side: Side::Device, client: 0, does }, 1));
    steps.push(data(Side::Access, 200, 1));
    World::run(&steps);
}

#[test]
fn an_access_side_that_takes_nothing_is_given_up_when_its_time_is_up() {
    let mut steps = one_session();
    let does = Action::Takes { bytes: 0 };
    steps.push(step(Operation::Client { side: Side::Access, client: 0, does }, 0));
    steps.extend((0..8).map(|_| data(Side::Device, 65_536, 4)));
    steps.push(step(Operation::TimePasses { millis: 10_001 }, REST));
    World::run(&steps);
}

const ALL: Offer = Offer { eof: true, credit: Some(1 << 20) };

/// A device and two access sides with one session each, with this offer.
fn two_sessions(offer: Offer) -> Vec<Step> {
    let mut steps = vec![connect(Side::Device, REST)];
    for access in 0..2 {
        steps.push(connect(Side::Access, REST));
        steps.push(step(Operation::Offers { access, offer }, REST));
        steps.push(step(Operation::Answer { device: 0, session: 0, code: 0 }, REST));
    }
    steps
}

fn does(side: Side, client: u8, does: Action) -> Step {
    step(Operation::Client { side, client, does }, REST)
}

/// Data, credit and an end in both directions of the first two sessions, and then their releases.
fn traffic() -> Vec<Step> {
    let mut steps = Vec::new();
    for session in 0..2 {
        for side in [Side::Device, Side::Access] {
            // The device has both sessions, each access side has one.
            let client = if side == Side::Device { 0 } else { session };
            steps.push(does(side, client, Action::Data { session, length: 65_536, frames: 4 }));
            steps.push(does(side, client, Action::Grant { session, bytes: 300_000 }));
            steps.push(does(side, client, Action::Finish { session, length: 200 }));
        }
    }
    for session in 0..2 {
        steps.push(does(Side::Device, 0, Action::Release { session }));
    }
    steps
}

#[test]
fn the_fields_of_the_extensions_pass_as_far_as_both_ends_agree() {
    for offer in [
        ALL,
        Offer { eof: true, credit: None },
        Offer { eof: false, credit: Some(100) },
        Offer { eof: true, credit: Some(0) },
        Offer::default(),
    ] {
        for (eof, credit) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut steps = vec![connect(Side::Device, REST), connect(Side::Access, REST)];
            for access in 0..2 {
                let extensions = Extensions { eof, credit };
                steps.push(step(Operation::Offers { access, offer }, REST));
                let accepts = Operation::Accepts { device: 0, session: 0, extensions };
                steps.push(step(accepts, REST));
                steps.push(connect(Side::Access, REST));
            }
            steps.extend(traffic());
            World::run(&steps);
        }
    }
}

#[test]
fn a_paused_access_side_with_flow_control_holds_up_nobody() {
    let mut steps = two_sessions(ALL);
    steps.push(does(Side::Access, 0, Action::Takes { bytes: 0 }));
    // More than the gateway keeps for a connection without flow control.
    for _ in 0..6 {
        for session in 0..2 {
            steps.push(does(Side::Device, 0, Action::Data { session, length: 65_536, frames: 4 }));
        }
        steps.push(step(Operation::TimePasses { millis: 9_999 }, REST));
    }
    steps.push(does(Side::Access, 1, Action::Grant { session: 0, bytes: 3 << 20 }));
    steps.extend(traffic());
    World::run(&steps);
}

#[test]
fn a_receiver_that_grants_much_costs_the_gateway_its_limit_only() {
    let offer = Offer { eof: true, credit: Some(1 << 40) };
    let mut steps = two_sessions(offer);
    for access in 0..2 {
        steps.push(step(Operation::Offers { access, offer }, REST));
        steps.push(step(Operation::Answer { device: 0, session: 0, code: 0 }, REST));
    }
    for access in 0..2 {
        steps.push(does(Side::Access, access, Action::Takes { bytes: 0 }));
    }
    for session in (0..4).cycle().take(160) {
        steps.push(does(Side::Device, 0, Action::Data { session, length: 65_536, frames: 4 }));
    }
    World::run(&steps);
}

#[test]
fn who_breaks_the_protocol_of_the_extensions_loses_its_session_alone() {
    let mut misdeeds: Vec<_> = (0..BAD_CREDITS.len() as u8)
        .map(|which| vec![Action::BadCredit { session: 0, which }])
        .collect();
    misdeeds.push(vec![Action::OverCredit { session: 0, excess: 0 }]);
    let end = Action::Finish { session: 0, length: 7 };
    misdeeds.push(vec![end, Action::DataAfterEnd { session: 0 }]);
    for side in [Side::Device, Side::Access] {
        for misdeed in &misdeeds {
            for offer in [ALL, Offer { eof: true, credit: None }] {
                let mut steps = two_sessions(offer);
                steps.extend(misdeed.iter().map(|action| does(side, 0, action.clone())));
                steps.extend(traffic());
                World::run(&steps);
            }
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
