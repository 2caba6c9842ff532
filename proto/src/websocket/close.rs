//! The close codes and their meanings.

/// The connection is no longer needed.
pub const NORMAL: u16 = 1000;
/// The end that closes the connection is about to stop.
pub const GOING_AWAY: u16 = 1001;
/// The peer has broken the WebSocket protocol.
pub const PROTOCOL_ERROR: u16 = 1002;
/// The peer takes nothing and holds others up.
pub const POLICY: u16 = 1008;
/// The peer has sent a message that is too long even to be skipped.
pub const TOO_BIG: u16 = 1009;
/// The token is no longer valid.
pub const EXPIRED: u16 = 4001;
/// The same in the C SDK.
const EXPIRED_C_SDK: u16 = 401;

/// Begins the reason with which the gateway closes a device's connection when another one takes its
/// place. The address of the other connection follows.
pub const REPLACED_BY: &str = "replaced by ";
/// The reason, with [`GOING_AWAY`], for the connections of a tunnel that the gateway no longer has.
pub const REMOVED: &str = "the tunnel was removed";
/// Longest reason of a close frame, in bytes: what a control frame holds behind the code.
pub(crate) const MAX_REASON: usize = 123;

/// Whether the peer refuses the token with this close code.
pub fn means_expired(code: u16) -> bool {
    matches!(code, EXPIRED | EXPIRED_C_SDK)
}

/// The code of the answer to a close frame. It repeats the peer's code, unless that code must not
/// appear in a frame.
pub(crate) fn answer_to(code: u16) -> u16 {
    match code {
        1004..=1006 | 1015 => NORMAL,
        1000..5000 => code,
        _ => NORMAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_code_that_must_not_stand_in_a_frame_is_answered_with_1000() {
        for (code, answer) in [
            (0, 1000),
            (401, 1000),
            (999, 1000),
            (1000, 1000),
            (1001, 1001),
            (1004, 1000),
            (1005, 1000),
            (1006, 1000),
            (1007, 1007),
            (1014, 1014),
            (1015, 1000),
            (4001, 4001),
            (4999, 4999),
            (5000, 1000),
            (65_535, 1000),
        ] {
            assert_eq!(answer_to(code), answer, "{code}");
        }
    }
}
