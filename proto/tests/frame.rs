//! Frames against a general JSON parser.

use aiot_tunnel_models::frame;
use proptest::prelude::*;

/// A number in one of the forms that JSON has.
fn number() -> impl Strategy<Value = String> {
    "-?(0|[1-9][0-9]{0,18})(\\.0{1,3}|\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?"
}

/// Text that is often a header.
fn header() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("\"frame_type\"".to_owned()),
        Just("\"frame_id\"".to_owned()),
        Just("\"session_id\"".to_owned()),
        Just("\"service_type\"".to_owned()),
        Just("\"credit\"".to_owned()),
        Just("\"eof\"".to_owned()),
        Just("\"ext\"".to_owned()),
        "\"[a-z_]{0,3}\"",
    ];
    let value = prop_oneof![
        (0u8..6).prop_map(|number| number.to_string()),
        "[0-9-]{1,21}",
        number(),
        "true|false|\"(eof|credit|, ?){0,3}\"",
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

/// Headers that no reader may refuse, whose numbers have any form.
fn with_numbers() -> impl Strategy<Value = String> {
    let form = |number: u32| {
        proptest::sample::select(vec![
            number.to_string(),
            format!("{number}.0"),
            format!("{number}.00e0"),
            format!("{number}e1"),
            format!("{number}0E-1"),
            format!("{}e{}", number % 10, number % 16),
            if number == 0 { "-0" } else { "-0.0" }.to_owned(),
        ])
    };
    let kind = (1u32..5).prop_flat_map(move |kind| {
        proptest::sample::select(vec![
            kind.to_string(),
            format!("{kind}.0"),
            format!("{kind}e0"),
            format!("{kind}0E-1"),
        ])
    });
    (kind, (0..100_000u32).prop_flat_map(form)).prop_map(|(kind, id)| {
        format!("{{\"frame_type\":{kind},\"frame_id\":{id},\"session_id\":\"s\"}}")
    })
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

    #[test]
    fn the_form_of_a_number_does_not_matter(header in with_numbers()) {
        frame::check(&message(&header, 0, b""));
    }
}
