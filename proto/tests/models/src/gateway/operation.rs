//! What can happen to a tunnel of the gateway.

use crate::relay::Offer;
use aiot_tunnel_proto::frame::Extensions;
use aiot_tunnel_proto::Side;
use arbitrary::{Arbitrary, Result, Unstructured};

/// Lengths of data frames: empty, short, the protocol's limit and one more, the longest that is kept.
const LENGTHS: [usize; 8] = [0, 1, 7, 200, 4096, 4097, 30_000, 65_536];
/// Bytes that one read brings.
const CHUNKS: [usize; 6] = [1, 3, 50, 1500, 70_000, usize::MAX];
/// Around the response timeout, the pings, and the stall time of a device.
const MILLIS: [u64; 8] = [0, 1, 900, 2_000, 9_999, 10_001, 31_000, 61_000];
/// One more than is kept, and more than a message may have.
const TOO_LONG: [usize; 2] = [65_537, 90_000];
/// Nothing, little, a window, and more than the gateway keeps.
const CREDITS: [u64; 7] = [0, 1, 5000, 65_536, 300_000, 3 << 20, 1 << 40];
const ROOMS: [usize; 6] = [0, 0, 1, 1000, usize::MAX, usize::MAX];
const TURNS: [usize; 4] = [0, 1, 2, 40];

/// One operation, and the number of turns after it; fewer when the tunnel comes to rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub operation: Operation,
    pub turns: usize,
}

/// One thing that happens. Clients are counted among those of their side that behave, sessions among
/// those of the client, both modulo their number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    Connect {
        side: Side,
        /// Bytes that one read brings at most.
        chunk: usize,
        /// As with TLS, one read fetches everything.
        ahead: bool,
    },
    /// An access side asks for a session.
    Create {
        access: u8,
        /// With a service type that is too long.
        long: bool,
    },
    /// An access side asks for a session with extensions.
    Offers {
        access: u8,
        offer: Offer,
    },
    /// A device answers a create. It accepts all extensions that are offered.
    Answer {
        device: u8,
        session: u8,
        code: u8,
    },
    /// A device sends a frame of a session that it has not answered yet.
    Early {
        device: u8,
        session: u8,
        kind: EarlyKind,
    },
    /// A device accepts a session, with one of [`BAD_CREDITS`](crate::relay::BAD_CREDITS).
    AcceptsBadly {
        device: u8,
        session: u8,
        which: u8,
    },
    /// A device accepts a session with at most these extensions.
    Accepts {
        device: u8,
        session: u8,
        extensions: Extensions,
    },
    Client {
        side: Side,
        client: u8,
        does: Action,
    },
    TimePasses {
        millis: u64,
    },
    Expires,
}

/// What either side may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Data {
        session: u8,
        length: usize,
        frames: u8,
    },
    /// Data that is too long to be kept.
    TooMuch {
        session: u8,
        length: usize,
    },
    /// A frame of a session that is another's, over, or nobody's.
    Poison {
        session: u8,
        kind: PoisonKind,
    },
    Release {
        session: u8,
    },
    /// Credit for the other end. Without flow control, it means nothing.
    Grant {
        session: u8,
        bytes: u64,
    },
    /// The last data of a direction. Without half-close, it is data.
    Finish {
        session: u8,
        length: usize,
    },
    /// One of [`BAD_CREDITS`](crate::relay::BAD_CREDITS), or too much in two frames.
    BadCredit {
        session: u8,
        which: u8,
    },
    /// More than was granted, as far as the sender knows.
    OverCredit {
        session: u8,
        excess: u8,
    },
    /// Data behind the end of a direction.
    DataAfterEnd {
        session: u8,
    },
    /// Any bytes as a message, unless they are what the client might lawfully say.
    Message(Vec<u8>),
    Ping,
    Pong,
    LongMessage,
    End(ClientEnd),
    /// From now on it takes so many bytes.
    Takes {
        bytes: usize,
    },
    /// From now on one read brings so many bytes at most.
    ArrivesIn {
        chunk: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoisonKind {
    Data,
    Response,
    Release,
}

/// What a device sends before its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlyKind {
    Data,
    Credit,
    End,
    Release,
}

/// How a client ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEnd {
    /// With one of [`CLOSES`](crate::relay::CLOSES).
    Close {
        which: u8,
    },
    EndOfStream,
    Reset,
    /// Bytes that are no WebSocket frame of a client.
    Violation,
}

impl<'a> Arbitrary<'a> for ClientEnd {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let how: u32 = u.arbitrary()?;
        Ok(match how >> 30 {
            0 => ClientEnd::Close { which: how as u8 },
            1 => ClientEnd::EndOfStream,
            2 => ClientEnd::Reset,
            _ => ClientEnd::Violation,
        })
    }
}

impl<'a> Arbitrary<'a> for Step {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        Ok(Step { turns: *u.choose(&TURNS)?, operation: u.arbitrary()? })
    }
}

impl<'a> Arbitrary<'a> for Operation {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let kind = u.int_in_range(0..=15)?;
        let which: u8 = u.arbitrary()?;
        let side = if which & 128 == 0 { Side::Access } else { Side::Device };
        Ok(match kind {
            0 | 1 => Operation::Connect {
                side: if kind == 0 { Side::Device } else { Side::Access },
                chunk: *u.choose(&CHUNKS)?,
                ahead: u.arbitrary()?,
            },
            2 => match u.arbitrary::<u8>()? {
                u8::MAX => Operation::Create { access: which, long: true },
                how if how & 1 == 0 => Operation::Create { access: which, long: false },
                how => Operation::Offers { access: which, offer: offer(how / 2) },
            },
            3 => {
                let session: u8 = u.arbitrary()?;
                match session >> 5 {
                    6 => Operation::Accepts {
                        device: which,
                        session,
                        extensions: Extensions { eof: true, credit: false },
                    },
                    7 => Operation::Accepts {
                        device: which,
                        session,
                        extensions: Extensions { eof: false, credit: true },
                    },
                    _ => Operation::Answer { device: which, session, code: 0 },
                }
            }
            4 => {
                let session: u8 = u.arbitrary()?;
                match u.int_in_range(1..=24)? {
                    21 | 22 => Operation::Early { device: which, session, kind: early_kind(u)? },
                    23 | 24 => {
                        Operation::AcceptsBadly { device: which, session, which: u.arbitrary()? }
                    }
                    code => Operation::Answer { device: which, session, code },
                }
            }
            14 => Operation::TimePasses { millis: *u.choose(&MILLIS)? },
            15 if which == 0 => Operation::Expires,
            _ => Operation::Client { side, client: which, does: action(kind, u)? },
        })
    }
}

/// Kinds from 5 on.
fn action(kind: u8, u: &mut Unstructured<'_>) -> Result<Action> {
    Ok(match kind {
        5 | 6 => Action::Data {
            session: u.arbitrary()?,
            length: *u.choose(&LENGTHS)?,
            frames: u.int_in_range(1..=4)?,
        },
        7 => Action::Poison { session: u.arbitrary()?, kind: poison_kind(u)? },
        8 => Action::Release { session: u.arbitrary()? },
        9 => {
            let length = usize::from(u.arbitrary::<u8>()?).min(u.len());
            Action::Message(u.bytes(length)?.to_vec())
        }
        10 => match u.int_in_range(0..=7)? {
            0 => Action::Ping,
            1 => Action::LongMessage,
            2 => Action::Pong,
            3 => Action::Finish { session: u.arbitrary()?, length: *u.choose(&LENGTHS)? },
            _ => Action::Grant { session: u.arbitrary()?, bytes: *u.choose(&CREDITS)? },
        },
        11 => Action::End(u.arbitrary()?),
        12 => Action::Takes { bytes: *u.choose(&ROOMS)? },
        13 => Action::ArrivesIn { chunk: *u.choose(&CHUNKS)? },
        _ => {
            let session = u.arbitrary()?;
            match u.int_in_range(0..=4)? {
                0 | 1 => Action::TooMuch { session, length: *u.choose(&TOO_LONG)? },
                2 => Action::BadCredit { session, which: u.arbitrary()? },
                3 => Action::OverCredit { session, excess: u.arbitrary()? },
                _ => Action::DataAfterEnd { session },
            }
        }
    })
}

/// Mostly all extensions.
fn offer(how: u8) -> Offer {
    let credit = Some(CREDITS[usize::from(how) % CREDITS.len()]);
    match how % 8 {
        0 => Offer { eof: true, credit: None },
        // No number of bytes that may be granted.
        7 => Offer { eof: true, credit: Some(u64::MAX) },
        1 => Offer { eof: false, credit },
        _ => Offer { eof: true, credit },
    }
}

/// Mostly data.
fn poison_kind(u: &mut Unstructured<'_>) -> Result<PoisonKind> {
    Ok(match u.int_in_range(0..=7)? {
        0 => PoisonKind::Response,
        1 => PoisonKind::Release,
        _ => PoisonKind::Data,
    })
}

/// Mostly data.
fn early_kind(u: &mut Unstructured<'_>) -> Result<EarlyKind> {
    Ok(match u.int_in_range(0..=7)? {
        0 => EarlyKind::Credit,
        1 => EarlyKind::End,
        2 => EarlyKind::Release,
        _ => EarlyKind::Data,
    })
}
