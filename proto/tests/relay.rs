//! The device's relay against the model of its cloud and its services: random cases, and those that once
//! broke a promise.

use aiot_tunnel_models::each_piece;
use aiot_tunnel_models::relay::{Answer, Offer, Operation, ServiceEnd, World};
use proptest::prelude::*;
use Operation::*;

/// As much as is put on the wire at once.
const MUCH: usize = 65_280;
/// Just below the time after which a connect or a full service is given up.
const ALMOST: u64 = 9_920;

const CREATE: Operation = CloudCreates { id: 0, known: true, fragments: 1 };
const RELEASE: Operation = CloudReleases { id: 0, asks: true, fragments: 1 };
const ARRIVES: Operation = Arrives { length: MUCH };
const TURN: Operation = Turn { spurious: false };

fn sends(id: usize, length: usize) -> Operation {
    CloudSends { id, length, fragments: 1 }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let pieces = proptest::collection::vec(any::<[u8; 8]>(), 0..500);
    pieces.prop_map(|pieces| each_piece(&pieces))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_relay_keeps_its_promises_whatever_happens(operations in operations()) {
        World::run(&operations);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn sessions_with_extensions_keep_their_promises_whatever_happens(
        pieces in proptest::collection::vec(any::<[u8; 8]>(), 0..300),
    ) {
        let offer = Offer { eof: true, credit: Some(5000) };
        let mut operations: Vec<Operation> =
            (0..3).map(|id| CloudOffers { id, offer, fragments: 1 }).collect();
        operations.extend([ARRIVES, TURN, CloudTakes { length: MUCH }, TURN]);
        // Every other operation is one that such sessions are made of.
        const KINDS: [u8; 12] = [3, 8, 9, 10, 14, 16, 19, 21, 26, 27, 27, 28];
        let pieces: Vec<[u8; 8]> = pieces.into_iter().map(|mut piece| {
            if piece[7] & 1 == 0 {
                piece[0] = KINDS[usize::from(piece[0]) % KINDS.len()];
            }
            piece
        }).collect();
        operations.extend(each_piece::<Operation, 8>(&pieces));
        World::run(&operations);
    }
}

#[test]
fn a_session_carries_bytes_both_ways_until_its_release() {
    World::run(&[
        CREATE,
        ARRIVES,
        TURN,
        sends(0, 50),
        ARRIVES,
        TURN,
        ServiceTakes { service: 0, length: 3 },
        TURN,
        ServiceSends { service: 0, length: 3 },
        TURN,
        CloudTakes { length: MUCH },
        TURN,
        RELEASE,
        ARRIVES,
        TURN,
    ]);
}

#[test]
fn a_session_whose_connect_fails_is_refused_and_its_release_answered() {
    World::run(&[
        NextConnect { id: 0, answer: Answer::Later },
        CREATE,
        sends(0, 50),
        ARRIVES,
        TURN,
        Connects { service: 0, succeeds: false },
        TURN,
        RELEASE,
        ARRIVES,
        TURN,
    ]);
}

#[test]
fn a_service_that_takes_nothing_loses_its_session_when_its_time_is_up() {
    let mut operations = vec![CREATE];
    operations.extend([sends(0, MUCH); 6]);
    operations.extend([ARRIVES; 24]);
    operations.extend([TURN; 8]);
    operations.extend([TimePasses { millis: ALMOST }, TURN, TURN]);
    operations.extend([TimePasses { millis: ALMOST }, TimePasses { millis: ALMOST }, TURN]);
    World::run(&operations);
}

#[test]
fn a_service_that_resets_ends_its_own_session_only() {
    World::run(&[
        CREATE,
        CloudCreates { id: 1, known: true, fragments: 1 },
        ARRIVES,
        TURN,
        sends(0, 51_200),
        sends(1, 51_200),
        ARRIVES,
        ARRIVES,
        TURN,
        TURN,
        ServiceEnds { service: 1, how: ServiceEnd::Reset },
        TURN,
        TURN,
    ]);
}

#[test]
fn bytes_for_a_service_that_is_gone_stop_nothing() {
    World::run(&[
        CREATE,
        ARRIVES,
        TURN,
        ServiceTakes { service: 0, length: 255 },
        sends(0, 4095),
        sends(0, MUCH),
        ARRIVES,
        TURN,
        CloudCreates { id: 0, known: false, fragments: 1 },
        sends(0, MUCH),
        TURN,
        ServiceEnds { service: 0, how: ServiceEnd::Gone },
        sends(1, 0),
    ]);
}

#[test]
fn a_connection_that_is_over_opens_no_session() {
    // The full session leaves the second create in the receive buffer until the connection is over.
    World::run(&[
        CREATE,
        sends(0, 48_896),
        sends(0, 25_344),
        CloudCreates { id: 1, known: true, fragments: 1 },
        CloudCloses,
    ]);
}

#[test]
fn no_credit_follows_the_answer_to_a_close_frame() {
    // The service takes bytes in the turn in which the close frame comes.
    for which in [0, 2] {
        World::run(&[
            CloudOffers { id: 0, offer: Offer { eof: true, credit: Some(0) }, fragments: 1 },
            ARRIVES,
            CloudTakes { length: MUCH },
            TURN,
            sends(0, 16_384),
            sends(0, 16_384),
            CloudSaysClose { which },
            ServiceTakes { service: 0, length: MUCH },
            ARRIVES,
            TURN,
        ]);
    }
}

#[test]
fn what_is_queued_when_the_peers_stream_ends_is_sent() {
    World::run(&[CREATE, CloudCloses]);
}

#[test]
fn what_came_before_a_silence_is_delivered() {
    // So many answers wait for the cloud that the last data waits in the receive buffer.
    let mut operations = vec![CREATE];
    operations.extend([CloudCreates { id: 1, known: false, fragments: 1 }; 200]);
    operations.extend([sends(0, 245), ARRIVES, TURN]);
    operations.extend([TimePasses { millis: ALMOST }; 7]);
    operations.push(TURN);
    World::run(&operations);
}

#[test]
fn a_session_whose_write_has_failed_is_cut_without_waiting_for_anything_else() {
    let ends = ServiceEnds { service: 0, how: ServiceEnd::WriteFails };
    World::run(&[CREATE, Arrives { length: 4096 }, TURN, ends, sends(0, 212)]);
}
