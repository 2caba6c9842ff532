//! The byte stream between the device and its cloud, and how the cloud puts messages on it.

use std::cell::{RefCell, RefMut};
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;

use aiot_tunnel_proto::connection::Transport;

/// The byte stream, both directions.
#[derive(Debug, Default)]
pub struct Wire {
    to_device: Vec<u8>,
    /// How much of it the device has read.
    pub(crate) read: usize,
    /// How far the device may read.
    pub arrived: usize,
    /// Nothing more comes from the cloud.
    pub closed: bool,
    pub(crate) from_device: Vec<u8>,
    /// Bytes that the cloud takes.
    pub takes: usize,
}

/// One end of it. Clones are the same stream.
#[derive(Debug, Clone, Default)]
pub struct CloudWire(Rc<RefCell<Wire>>);

impl CloudWire {
    pub fn state(&self) -> RefMut<'_, Wire> {
        self.0.borrow_mut()
    }
}

impl Wire {
    fn end(&self) -> usize {
        self.arrived.min(self.to_device.len())
    }

    /// Whether the device has read what the cloud has sent.
    pub(crate) fn is_all_read(&self) -> bool {
        self.read == self.to_device.len()
    }

    /// Whether there is something to read, be it the end.
    pub(crate) fn is_readable(&self) -> bool {
        self.read < self.end() || self.closed && self.is_all_read()
    }

    /// Puts a tunnel frame on the wire.
    pub fn frame(&mut self, header: &str, payload: &[u8], fragments: usize) {
        let length = (header.len() as u16).to_be_bytes();
        self.message(2, &[&length[..], header.as_bytes(), payload].concat(), fragments);
    }

    /// Puts a WebSocket message on the wire, in so many fragments, with a ping between them.
    pub(crate) fn message(&mut self, opcode: u8, message: &[u8], fragments: usize) {
        let size = message.len().div_ceil(fragments.max(1)).max(1);
        let mut parts = message.chunks(size);
        let Some(mut part) = parts.next() else { return self.put(0x80 | opcode, &[]) };
        let mut first = opcode;
        for next in parts {
            self.put(first, part);
            self.put(0x89, b"?");
            (first, part) = (0, next);
        }
        self.put(0x80 | first, part);
    }

    fn put(&mut self, first: u8, bytes: &[u8]) {
        self.to_device.push(first);
        match bytes.len() {
            length @ 0..=125 => self.to_device.push(length as u8),
            length @ 126..=0xffff => {
                self.to_device.push(126);
                self.to_device.extend((length as u16).to_be_bytes());
            }
            length => {
                self.to_device.push(127);
                self.to_device.extend((length as u64).to_be_bytes());
            }
        }
        self.to_device.extend_from_slice(bytes);
    }
}

impl Read for CloudWire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wire = self.state();
        let (start, end) = (wire.read, wire.end());
        let length = buffer.len().min(end - start);
        if length == 0 {
            let is_end = wire.closed && end == wire.to_device.len();
            return if is_end { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        buffer[..length].copy_from_slice(&wire.to_device[start..start + length]);
        wire.read += length;
        Ok(length)
    }
}

impl Write for CloudWire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut wire = self.state();
        let length = bytes.len().min(wire.takes);
        if length == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        wire.takes -= length;
        wire.from_device.extend_from_slice(&bytes[..length]);
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for CloudWire {
    fn written(&self) -> u64 {
        self.0.borrow().from_device.len() as u64
    }
    fn unacked(&self) -> usize {
        0
    }
}
