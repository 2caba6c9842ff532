//! WebSocket messages, however their bytes arrive.

use aiot_tunnel_models::websocket;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn messages_do_not_depend_on_how_they_arrive(
        data in proptest::collection::vec(
            prop_oneof![
                Just(0x82u8),
                Just(0x02),
                Just(0x80),
                Just(0x89),
                Just(0x81),
                Just(126),
                0u8..6,
                any::<u8>(),
            ],
            0..150,
        ),
    ) {
        websocket::check(&data);
    }
}
