//! The C functions, whatever bytes their arguments hold.

use aiot_tunnel_testkit::properties::{c_options::check, seeds};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_a_c_caller_passes_gets_an_answer(
        data in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        check(&data);
    }

    #[test]
    fn texts_of_a_command_are_taken_only_when_visible(
        update in any::<u8>(),
        fields in proptest::collection::vec("[a-z0-9/.\r\n\u{0}-\u{ff}]{0,127}", 5),
        port in "0*[0-9]{1,6}",
    ) {
        let mut data = vec![3, update];
        for (at, field) in fields.iter().enumerate() {
            let text = if at == 2 { &port } else { field };
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(128, 0);
            data.extend(bytes);
        }
        check(&data);
    }
}

#[test]
fn every_seed_of_the_fuzz_target_holds() {
    for (name, bytes) in seeds("c_options") {
        println!("{name}");
        check(&bytes);
    }
}
