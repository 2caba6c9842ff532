//! What can happen to a relay.

use arbitrary::{Arbitrary, Result, Unstructured};

use super::service::Answer;
use super::IDS;

/// One thing that happens. Ids are below [`IDS`]; a service is one of the latest, counted from the back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    CloudCreates {
        id: usize,
        /// There is such a service.
        known: bool,
        fragments: usize,
    },
    CloudSends {
        id: usize,
        length: usize,
        fragments: usize,
    },
    CloudReleases {
        id: usize,
        /// The release has a frame id, so it must be answered.
        asks: bool,
        fragments: usize,
    },
    /// A session_create that offers extensions.
    CloudOffers {
        id: usize,
        offer: Offer,
        fragments: usize,
    },
    /// The cloud grants credit. Without flow control, it means nothing.
    CloudGrants {
        id: usize,
        bytes: u64,
    },
    /// The cloud ends its direction with so many bytes. Without half-close, they are bytes alone.
    CloudEnds {
        id: usize,
        length: usize,
    },
    CloudMisbehaves {
        how: Misbehaviour,
        fragments: usize,
    },
    /// So many more bytes of what the cloud has sent can be read.
    Arrives {
        length: usize,
    },
    CloudTakes {
        length: usize,
    },
    ServiceSends {
        service: u8,
        length: usize,
    },
    ServiceTakes {
        service: u8,
        length: usize,
    },
    /// The service takes bytes, but only once so many writes have found too little room.
    ServiceTakesLater {
        service: u8,
        writes: u8,
        length: usize,
    },
    ServiceEnds {
        service: u8,
        how: ServiceEnd,
    },
    /// How the following connects to an id's service go.
    NextConnect {
        id: usize,
        answer: Answer,
    },
    /// A connect that was under way has ended.
    Connects {
        service: u8,
        succeeds: bool,
    },
    TimePasses {
        millis: u64,
    },
    /// The cloud sends one of [`CLOSES`] as the payload of a close frame.
    CloudSaysClose {
        which: u8,
    },
    /// The byte stream ends after what the cloud has sent.
    CloudCloses,
    /// The tunnel is deleted: nothing happens afterwards.
    Directive,
    /// The worker's `poll` returns.
    Turn {
        /// It reports everything that it was asked for.
        spurious: bool,
    },
}

/// The extensions that a session_create offers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offer {
    pub eof: bool,
    /// The number of bytes that the cloud grants at first.
    pub credit: Option<u64>,
}

/// The text of a credit that is no number of bytes, or too large a one.
pub const BAD_CREDITS: [&str; 8] = [
    "-1",
    "\"5\"",
    "1.5",
    "1e2",
    "true",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999",
];

/// Payloads of close frames: without a code, with half of one, with codes that may be sent and that may
/// not, with reasons in words and in other bytes.
pub const CLOSES: [&[u8]; 12] = [
    b"",
    b"\x03",
    b"\x03\xe8",
    b"\x03\xe8bye",
    b"\x03\xe9\xff\xfe",
    b"\x03\xed",
    b"\x03\xee",
    b"\x03\xf7",
    b"\x01\x91",
    b"\x0f\xa1expired",
    b"\x00\x00",
    b"\xff\xff",
];

impl Operation {
    /// Whether the cloud puts something on the wire.
    pub(super) fn is_said_by_cloud(&self) -> bool {
        match self {
            Operation::CloudCreates { .. }
            | Operation::CloudSends { .. }
            | Operation::CloudReleases { .. }
            | Operation::CloudOffers { .. }
            | Operation::CloudGrants { .. }
            | Operation::CloudEnds { .. }
            | Operation::CloudMisbehaves { .. }
            | Operation::CloudSaysClose { .. } => true,
            Operation::Arrives { .. }
            | Operation::CloudTakes { .. }
            | Operation::ServiceSends { .. }
            | Operation::ServiceTakes { .. }
            | Operation::ServiceTakesLater { .. }
            | Operation::ServiceEnds { .. }
            | Operation::NextConnect { .. }
            | Operation::Connects { .. }
            | Operation::TimePasses { .. }
            | Operation::CloudCloses
            | Operation::Directive
            | Operation::Turn { .. } => false,
        }
    }
}

/// What a cloud should not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub enum Misbehaviour {
    Ping,
    Pong,
    Text,
    NoMessage,
    HeaderTooLong,
    HeaderIsArray,
    UnknownType,
    CreateWithoutFrameId,
    UnknownSession,
    Response,
    /// Data that is too long to be delivered, by one byte and so many more.
    LongPayload {
        #[arbitrary(with = id)]
        id: usize,
        excess: u8,
    },
    /// Data in a message that is too long to be kept.
    LongMessage {
        #[arbitrary(with = id)]
        id: usize,
        excess: u8,
    },
    /// One of [`BAD_CREDITS`].
    BadCredit {
        #[arbitrary(with = id)]
        id: usize,
        which: u8,
    },
    /// More than the device has granted, as far as the cloud knows.
    OverCredit {
        #[arbitrary(with = id)]
        id: usize,
        excess: u8,
    },
    /// Data behind the end of its direction.
    DataAfterEnd {
        #[arbitrary(with = id)]
        id: usize,
    },
}

/// How a service ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceEnd {
    Reset,
    /// Writes find it gone.
    Gone,
    /// A write finds that it has reset the connection.
    ResetOnWrite,
    /// Writes fail, though it may still be there.
    WriteFails,
    InOrder,
}

impl<'a> Arbitrary<'a> for Operation {
    /// Data is frequent, an end is rare: most sessions live for a while.
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind: u8 = u.arbitrary()?;
        Ok(match kind % 32 {
            0..=2 => Operation::CloudCreates {
                id: id(u)?,
                known: !u.ratio(1, 16)?,
                fragments: fragments(u)?,
            },
            3..=7 => {
                Operation::CloudSends { id: id(u)?, length: length(u)?, fragments: fragments(u)? }
            }
            8 => Operation::CloudReleases {
                id: id(u)?,
                asks: u.arbitrary()?,
                fragments: fragments(u)?,
            },
            9 => Operation::CloudMisbehaves { how: u.arbitrary()?, fragments: fragments(u)? },
            10..=13 => Operation::Arrives { length: length(u)? },
            14 | 15 => Operation::CloudTakes { length: length(u)? },
            16..=18 => Operation::ServiceSends { service: u.arbitrary()?, length: length(u)? },
            19 => Operation::ServiceTakes { service: u.arbitrary()?, length: length(u)? },
            20 => Operation::ServiceTakesLater {
                service: u.arbitrary()?,
                writes: u.int_in_range(1..=6)?,
                length: length(u)?,
            },
            21 => Operation::ServiceEnds { service: u.arbitrary()?, how: u.arbitrary()? },
            22 => Operation::NextConnect { id: id(u)?, answer: answer(u)? },
            23 => Operation::Connects { service: u.arbitrary()?, succeeds: !u.ratio(1, 4)? },
            24 => Operation::TimePasses { millis: millis(u)? },
            25 => match u.int_in_range(0..=63)? {
                0 => Operation::CloudCloses,
                1 => Operation::Directive,
                2..=4 => Operation::CloudSaysClose { which: u.arbitrary()? },
                _ => Operation::Turn { spurious: false },
            },
            26 => Operation::CloudOffers { id: id(u)?, offer: offer(u)?, fragments: fragments(u)? },
            27 => match u.int_in_range(0..=3)? {
                0 => Operation::CloudEnds { id: id(u)?, length: length(u)? },
                _ => Operation::CloudGrants { id: id(u)?, bytes: length(u)? as u64 },
            },
            _ => Operation::Turn { spurious: kind >= 224 },
        })
    }
}

impl<'a> Arbitrary<'a> for ServiceEnd {
    /// Mostly in order.
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(match u.int_in_range(0..=7)? {
            0 => ServiceEnd::Reset,
            1 => ServiceEnd::Gone,
            2 => ServiceEnd::WriteFails,
            3 => ServiceEnd::ResetOnWrite,
            _ => ServiceEnd::InOrder,
        })
    }
}

/// Mostly it succeeds, at once or later.
fn answer(u: &mut Unstructured<'_>) -> Result<Answer> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Answer::Refused,
        1 => Answer::NoSocket,
        2..=4 => Answer::Later,
        _ => Answer::AtOnce,
    })
}

fn id(u: &mut Unstructured<'_>) -> Result<usize> {
    u.int_in_range(0..=IDS - 1)
}

/// Mostly all extensions.
fn offer(u: &mut Unstructured<'_>) -> Result<Offer> {
    let credit = Some(*u.choose(&[0, 1, 100, 5000, 65_536, 1 << 20, u64::MAX])?);
    Ok(match u.int_in_range(0..=7)? {
        0 => Offer { eof: false, credit },
        1 => Offer { eof: true, credit: None },
        _ => Offer { eof: true, credit },
    })
}

/// Mostly in one piece.
fn fragments(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=7)? {
        0 => 2,
        1 => 3,
        _ => 1,
    })
}

/// A length of one byte to a few frames, small ones as likely as large ones.
pub(crate) fn length(u: &mut Unstructured<'_>) -> Result<usize> {
    let (scale, fine): (u8, u8) = u.arbitrary()?;
    let fine = usize::from(fine);
    Ok(match scale % 8 {
        0 => fine % 4,
        1..=4 => fine,
        5 => 16 * fine,
        6 => 4095 + fine % 4,
        _ => 256 * fine,
    })
}

/// Mostly a moment, sometimes seconds.
pub(crate) fn millis(u: &mut Unstructured<'_>) -> Result<u64> {
    let step = u64::from(u.arbitrary::<u8>()?);
    Ok(if step.is_multiple_of(4) { 40 * step } else { step })
}
