//! The opening handshake from both ends, in random cases.

use aiot_tunnel_models::handshake;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_answer_without_the_accept_key_opens(
        data in "HTTP/1.1 (101|1[0-9]{2}) x\r\n([A-Za-z-]{1,20}: [ -~]{0,30}\r\n){0,5}\r\n",
    ) {
        handshake::answer(data.as_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_request_that_is_accepted_names_one_end_and_one_token(
        kind: u8,
        data in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "(/tunnel|/|t1|dest|source|\\.\\.|%2f|\\?|#|http://x| |\t|hush-access|hush-device|\r\n|tunnel-access-token|:|x){0,12}"
                .prop_map(String::into_bytes),
        ],
    ) {
        handshake::request(&handshake::request_head(&[&[kind][..], &data].concat()));
    }
}
