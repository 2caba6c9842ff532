//! The device's relay against the model of its cloud and its services.

use aiot_tunnel_models::each_piece;
use aiot_tunnel_models::relay::{Operation, World};
use proptest::prelude::*;

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
