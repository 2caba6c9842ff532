//! What can happen to an access side.

use aiot_tunnel_proto::frame::Extensions;
use arbitrary::{Arbitrary, Result, Unstructured};

use crate::relay::{length, millis, ServiceEnd};
use crate::Sequence;

/// What an access side offers, and what happens to it.
#[derive(Debug, Clone)]
pub struct Life {
    pub offer: Extensions,
    pub operations: Sequence<Operation>,
}

/// One thing that happens. Programs are counted modulo their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A local program connects.
    Opens,
    /// The gateway does something about a program's session.
    Gateway {
        program: u8,
        does: Action,
    },
    /// So many more bytes of the gateway can be read.
    Arrives {
        length: usize,
    },
    /// The gateway takes so many more bytes.
    Takes {
        length: usize,
    },
    ProgramSends {
        program: u8,
        length: usize,
    },
    ProgramTakes {
        program: u8,
        length: usize,
    },
    ProgramEnds {
        program: u8,
        how: ServiceEnd,
    },
    TimePasses {
        millis: u64,
    },
    /// The byte stream ends after what the gateway has sent.
    StreamEnds,
    /// The `poll` of the access side returns.
    Turn,
}

/// What the gateway may do. Most of it needs a session that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Answers the create. Some credits are no number of bytes.
    Accepts {
        extensions: Extensions,
        credit: u8,
    },
    Refuses {
        code: i64,
    },
    /// Data before the answer.
    Early {
        fields: u8,
    },
    Data {
        length: usize,
    },
    Grant {
        bytes: u64,
    },
    /// The last data. Without half-close, it is data.
    Finish {
        length: usize,
    },
    Release(Ending),
    BadCredit {
        which: u8,
    },
    OverCredit {
        excess: u8,
    },
    DataAfterEnd,
    TooLong {
        excess: u8,
    },
    /// A frame of a session that does not exist.
    Stray {
        fields: u8,
    },
    /// A message that is no frame.
    Message {
        which: u8,
    },
    /// One of [`CLOSES`](crate::relay::CLOSES). Nothing of the gateway follows.
    Close {
        which: u8,
    },
}

/// How the gateway releases a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    InOrder,
    /// By its code.
    Lost,
    /// By its text.
    Cut,
}

impl<'a> Arbitrary<'a> for Life {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Life { offer: extensions(u)?, operations: u.arbitrary()? })
    }
}

impl<'a> Arbitrary<'a> for Operation {
    /// Data is frequent, an end is rare: most sessions live for a while.
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind: u8 = u.arbitrary()?;
        let program: u8 = u.arbitrary()?;
        Ok(match kind % 32 {
            0 => Operation::Opens,
            1..=9 => Operation::Gateway { program, does: action(kind % 32, u)? },
            10..=13 => Operation::Arrives { length: 16 * length(u)? },
            14..=15 => Operation::Takes { length: 16 * length(u)? },
            16..=18 => Operation::ProgramSends { program, length: length(u)? },
            19..=20 => Operation::ProgramTakes { program, length: length(u)? },
            21 => Operation::ProgramEnds { program, how: u.arbitrary()? },
            22 => Operation::TimePasses { millis: millis(u)? },
            23 if u.ratio(1, 64)? => Operation::StreamEnds,
            _ => Operation::Turn,
        })
    }
}

fn action(kind: u8, u: &mut Unstructured<'_>) -> Result<Action> {
    Ok(match kind {
        1 | 2 => match u.int_in_range(0..=15)? {
            0 => Action::Refuses { code: *u.choose(&[1, 2, 255, -1])? },
            1 => Action::Refuses { code: 1 },
            2 | 3 => Action::Early { fields: u.arbitrary()? },
            _ => Action::Accepts { extensions: extensions(u)?, credit: u.arbitrary()? },
        },
        3..=5 => Action::Data { length: length(u)? },
        6 => Action::Grant { bytes: length(u)? as u64 },
        7 => match u.int_in_range(0..=3)? {
            0 => Action::Release(*u.choose(&[Ending::InOrder, Ending::Lost, Ending::Cut])?),
            _ => Action::Finish { length: length(u)? },
        },
        8 => match u.int_in_range(0..=5)? {
            0 => Action::BadCredit { which: u.arbitrary()? },
            1 => Action::OverCredit { excess: u.arbitrary()? },
            2 => Action::DataAfterEnd,
            3 => Action::TooLong { excess: u.arbitrary()? },
            4 => Action::Stray { fields: u.arbitrary()? },
            _ => Action::Message { which: u.arbitrary()? },
        },
        _ if u.ratio(1, 32)? => Action::Close { which: u.arbitrary()? },
        _ => Action::Data { length: length(u)? },
    })
}

/// Mostly all.
fn extensions(u: &mut Unstructured<'_>) -> Result<Extensions> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Extensions::NONE,
        1 => Extensions { eof: true, credit: false },
        2 => Extensions { eof: false, credit: true },
        _ => Extensions::ALL,
    })
}
