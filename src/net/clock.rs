//! Whether this machine's clock can be right: it is not before the time stamp of the build.

use std::time::{SystemTime, UNIX_EPOCH};

use openssl::asn1::Asn1Time;

/// When this library was built, in seconds since 1970 (`build.rs`). The present time is not before it.
const BUILT: i64 = match i64::from_str_radix(env!("AIOT_TUNNEL_BUILD_TIME"), 10) {
    Ok(seconds) => seconds,
    Err(_) => panic!("build.rs sets a number"),
};

/// A clock that is before the time stamp of the build, so it is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrongClock {
    says: i64,
}

impl WrongClock {
    /// `None`: the clock may be right.
    pub(super) fn look() -> Option<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before 1970 is as wrong as one at 1970.
        let says = since.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
        (says < BUILT).then_some(WrongClock { says })
    }

    /// The earliest time that it can be.
    pub(super) fn earliest(self) -> i64 {
        BUILT
    }

    /// Both times, as a part of a sentence.
    pub(super) fn text(self) -> String {
        format!("it says {}, but this program was built on {}", date(self.says), date(BUILT))
    }
}

fn date(seconds: i64) -> String {
    // A 32-bit `time_t` holds every time before 2038.
    #[allow(clippy::useless_conversion)]
    let time = seconds.try_into().ok().and_then(|seconds| Asn1Time::from_unix(seconds).ok());
    time.map_or_else(|| format!("{seconds} s after 1970"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_times_are_shown_as_dates() {
        let text = WrongClock { says: 86_400 }.text();
        assert!(text.starts_with("it says Jan  2 00:00:00 1970 GMT, but"), "{text}");
        assert!(text.ends_with(" GMT") && BUILT > 1_700_000_000, "{text}");
    }

    #[test]
    fn a_machine_that_has_built_this_has_a_clock_that_may_be_right() {
        assert_eq!(WrongClock::look(), None);
    }
}
