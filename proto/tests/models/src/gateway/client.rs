//! A device or an access side, as a client of the gateway.

use std::collections::HashSet;
use std::io::{BufRead, Cursor};

use aiot_tunnel_proto::websocket::{Incoming, Receiver, Role, Sender};
use aiot_tunnel_proto::Side;

use super::line::Line;
use super::operation::ClientEnd;
use super::GREETING;
use crate::close_code;
use crate::relay::CLOSES;

pub(super) struct Client {
    pub(super) side: Side,
    pub(super) line: Line,
    /// Bytes of the handshake's answer that came.
    greeted: usize,
    pub(super) sender: Sender,
    receiver: Receiver,
    /// What came and was not looked at yet.
    unheard: Cursor<Vec<u8>>,
    /// It behaved so far, and has neither closed nor been closed.
    pub(super) is_good: bool,
    /// It sent a close frame, or bytes that are no frames: what it sends after that is void.
    is_void: bool,
    got_close: bool,
    /// It did not read all the time: it may have been closed, and not have heard of it yet.
    pub(super) is_slow: bool,
    /// An access side's creates that are not answered.
    pub(super) pending: Vec<u64>,
    /// A device's creates that it has not answered.
    pub(super) unanswered: Vec<String>,
    /// Ids for which it sent data though no session was its own.
    pub(super) made_up: HashSet<String>,
}

impl Client {
    pub(super) fn new(side: Side, line: Line) -> Self {
        Client {
            side,
            line,
            greeted: 0,
            sender: Sender::new(Role::Client),
            receiver: Receiver::new(Role::Client),
            unheard: Cursor::default(),
            is_good: true,
            is_void: false,
            got_close: false,
            is_slow: false,
            pending: Vec::new(),
            unanswered: Vec::new(),
            made_up: HashSet::new(),
        }
    }

    /// Whether the gateway knows that it left, and has all that it sent before.
    pub(super) fn left_by_itself(&self) -> bool {
        self.is_void && !self.got_close && !self.is_slow
    }

    pub(super) fn ends(&mut self, how: ClientEnd) {
        self.is_good = false;
        match how {
            ClientEnd::Close { which } => {
                self.transmit();
                let payload = CLOSES[usize::from(which) % CLOSES.len()];
                // A mask of zeros.
                let head = [0x88, 0x80 | payload.len() as u8, 0, 0, 0, 0];
                self.line.state().arrive(&[&head, payload].concat());
            }
            ClientEnd::EndOfStream | ClientEnd::Reset => self.line.state().end(how),
            // No frame of a client: it is not masked.
            ClientEnd::Violation => self.line.state().arrive(&[0x82, 1, 0]),
        }
        self.is_void = true;
    }

    /// Puts on the wire what it has to say, unless that is void.
    pub(super) fn transmit(&mut self) {
        let mut bytes = Vec::new();
        self.sender.flush(&mut bytes).expect("a Vec takes everything");
        if !self.is_void {
            self.line.state().arrive(&bytes);
        }
    }

    /// Takes bytes of the gateway.
    pub(super) fn listen(&mut self, said: &[u8]) {
        let greeting = &GREETING[self.greeted..];
        let greeting = &greeting[..greeting.len().min(said.len())];
        assert!(said.starts_with(greeting), "the answer comes first");
        self.greeted += greeting.len();
        self.unheard = Cursor::new(said[greeting.len()..].to_vec());
    }

    /// The next message of the gateway; pings are answered.
    pub(super) fn next_message(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut binary = None;
            match self.receiver.peek().expect("well-formed messages") {
                None if self.unheard.fill_buf().is_ok_and(<[u8]>::is_empty) => return None,
                None => {
                    self.receiver.fill(&mut self.unheard).expect("memory can be read");
                    continue;
                }
                Some(Incoming::Binary { message, .. }) => binary = Some(message.to_vec()),
                Some(Incoming::Close { code, reason }) => {
                    let code = code.map_or(Vec::new(), |code| code.to_be_bytes().to_vec());
                    close_code(&[&code, reason].concat());
                    assert!(!self.got_close, "two close frames");
                    (self.got_close, self.is_good) = (true, false);
                }
                Some(Incoming::Ping(_)) if self.is_good => self.sender.pong(b""),
                Some(Incoming::Ping(_) | Incoming::Pong) => {}
                Some(other) => panic!("{other:?}"),
            }
            self.receiver.consume();
            self.transmit();
            if binary.is_some() {
                assert!(!self.got_close, "nothing follows a close frame");
                return binary;
            }
        }
    }
}
