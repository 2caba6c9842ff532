//! The IPC message, whatever its bytes are.

use aiot_tunnel_testkit::properties::ipc_message::{check, FIELD};
use aiot_tunnel_testkit::properties::seeds;
use proptest::prelude::*;

proptest! {
    #[test]
    fn any_message_is_read_or_refused(
        operation in 0u8..4,
        data in proptest::collection::vec(any::<u8>(), 640),
        texts in proptest::collection::vec("[!-~]{0,127}", 5),
    ) {
        let mut body = vec![operation, 0, 0, 0];
        body.extend(&data);
        check(&body);
        body.truncate(4);
        for text in texts {
            let mut field = text.into_bytes();
            field.resize(FIELD, 0);
            body.extend(field);
        }
        check(&body);
        body[4 + 2 * FIELD..][..6].copy_from_slice(b"65535\0");
        check(&body);
    }
}

#[test]
fn every_seed_of_the_fuzz_target_holds() {
    for (name, bytes) in seeds("ipc_message") {
        println!("{name}");
        check(&bytes);
    }
}
