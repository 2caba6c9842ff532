//! Frames against a general JSON parser.

use aiot_tunnel_models::frame;
use proptest::prelude::*;

/// Text that is often a header.
fn header() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("\"frame_type\"".to_owned()),
        Just("\"frame_id\"".to_owned()),
        Just("\"session_id\"".to_owned()),
        Just("\"service_type\"".to_owned()),
        "\"[a-z_]{0,3}\"",
    ];
    let value = prop_oneof![
        (0u8..6).prop_map(|number| number.to_string()),
        "[0-9-]{1,21}",
        "\"[ -~]{0,20}\"",
        "\"[0-9]{0,20}\"",
        "\"[a-z]{250,260}\"",
        Just("null".to_owned()),
        "[\\[\\]{}:,]{0,5}",
    ];
    let pair = (key, "[ \n]{0,2}", value).prop_map(|(k, gap, v)| format!("{k}{gap}:{gap}{v}"));
    proptest::collection::vec(pair, 0..6).prop_map(|pairs| format!("{{{}}}", pairs.join(",")))
}

/// Headers that are nearly right, and right ones.
fn nearly_right() -> impl Strategy<Value = String> {
    let part = proptest::sample::select(vec![
        "{",
        "}",
        ",",
        ":",
        "\"",
        " ",
        "\\",
        "0",
        "1",
        "4",
        "007",
        "12345",
        "999999999999999999",
        "9999999999999999999",
        "1.5",
        "1e3",
        "-1",
        "null",
        "\u{1}",
        "\u{e9}",
        "\"frame_type\":4",
        "\"frame_id\":",
        "\"frame_id\":17",
        "\"session_id\":\"s1\"",
        "\"session_id\":",
        "\"service_type\":\"_SSH\"",
        "\"x\":1",
        "\"a\\u0062\"",
    ]);
    let separator = proptest::sample::select(vec!["", ","]);
    (proptest::collection::vec(part, 0..6), separator)
        .prop_map(|(parts, separator)| format!("{{\"frame_type\":4,{}}}", parts.join(separator)))
}

fn message(header: &str, off: i32, payload: &[u8]) -> Vec<u8> {
    let length = (header.len() as i32 + off) as u16;
    [&length.to_be_bytes()[..], header.as_bytes(), payload].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_frame_is_what_its_header_says(
        header in header(),
        off in -2i32..3,
        payload in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let off = if off.abs() == 2 { off } else { 0 };
        frame::check(&message(&header, off, &payload));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_is_scanned_is_what_serde_reads(header in nearly_right()) {
        frame::check(&message(&header, 0, b""));
    }
}
