//! The local services of the model: what their streams take, send and end with.

use std::cell::{Ref, RefCell};
use std::io::{self, ErrorKind, IoSlice};
use std::rc::Rc;

use aiot_tunnel_proto::device::{Connect, DialError};
use aiot_tunnel_proto::session::LocalStream;

use super::content::{content, up};
use super::operation::ServiceEnd;
use super::IDS;

/// One local service, the far end of a local stream.
#[derive(Debug)]
pub struct Service {
    /// The session id that it is for.
    session: usize,
    /// `None` while the connect is under way.
    pub(super) connected: Option<Result<(), ErrorKind>>,
    /// The how manieth of its session id that was opened.
    opened: Option<usize>,
    pub received: Vec<u8>,
    /// Bytes that it takes.
    pub takes: usize,
    /// Bytes that it takes once so many more writes have found too little room.
    pub takes_later: Option<(u8, usize)>,
    pub(super) write_error: Option<ErrorKind>,
    /// A write was told that it has reset the connection, before a read saw an end.
    pub(super) told_of_reset: bool,
    /// Bytes that it has sent, and how many of them were read.
    pub sent: usize,
    pub read: usize,
    pub(crate) end: Option<Result<(), ErrorKind>>,
    /// Whether it did what ends a session early. An end in order does so without half-close only.
    pub(crate) spoiled: bool,
    /// The device has closed the stream with a reset.
    pub reset: bool,
    /// The device has ended its direction of the stream in order.
    pub shut: bool,
    /// The device has dropped the stream.
    pub closed: bool,
}

pub type SharedService = Rc<RefCell<Service>>;

impl Service {
    fn new(session: usize, connected: Option<Result<(), ErrorKind>>) -> Self {
        Service {
            session,
            connected,
            opened: None,
            received: Vec::new(),
            takes: 0,
            takes_later: None,
            write_error: None,
            told_of_reset: false,
            sent: 0,
            read: 0,
            end: None,
            spoiled: false,
            reset: false,
            shut: false,
            closed: false,
        }
    }

    /// Whether there is something to read of it, be it its end.
    pub(crate) fn is_readable(&self) -> bool {
        self.read < self.sent || self.end.is_some()
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.takes > 0 || self.write_error.is_some()
    }

    fn found_too_little_room(&mut self) {
        match &mut self.takes_later {
            Some((0 | 1, length)) => {
                self.takes = self.takes.saturating_add(*length);
                self.takes_later = None;
            }
            Some((writes, _)) => *writes -= 1,
            None => {}
        }
    }

    /// Ends its stream, or lets the next write find it ended.
    pub fn ends(&mut self, how: ServiceEnd) {
        self.spoiled |= how != ServiceEnd::InOrder;
        match how {
            ServiceEnd::Reset => self.end = Some(Err(ErrorKind::ConnectionReset)),
            ServiceEnd::Gone => self.write_error = Some(ErrorKind::BrokenPipe),
            ServiceEnd::ResetOnWrite => self.write_error = Some(ErrorKind::ConnectionReset),
            ServiceEnd::WriteFails => self.write_error = Some(ErrorKind::OutOfMemory),
            ServiceEnd::InOrder => _ = self.end.get_or_insert(Ok(())),
        }
    }
}

/// The device's end of a service's stream.
#[derive(Debug)]
pub struct ServiceStream {
    pub(crate) service: SharedService,
    /// Of what it sends.
    salt: usize,
    /// A close is a reset.
    resets: bool,
}

impl ServiceStream {
    /// A stream of a local program, whose bytes have this salt.
    pub(crate) fn of_program(salt: usize) -> (SharedService, Self) {
        let service = Rc::new(RefCell::new(Service::new(0, Some(Ok(())))));
        (service.clone(), ServiceStream { service, salt, resets: false })
    }
}

impl Drop for ServiceStream {
    fn drop(&mut self) {
        let mut service = self.service.borrow_mut();
        (service.reset, service.closed) = (self.resets, true);
    }
}

impl LocalStream for ServiceStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut service = self.service.borrow_mut();
        if let Some(Err(kind)) = service.end {
            return Err(kind.into());
        }
        let length = buffer.len().min(service.sent - service.read);
        if length == 0 {
            return if service.end.is_some() { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let mut at = 0;
        for part in content(self.salt, service.read, length) {
            buffer[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        service.read += length;
        Ok(length)
    }

    fn write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut service = self.service.borrow_mut();
        if let Some(kind) = service.write_error {
            if kind == ErrorKind::ConnectionReset && service.end.is_none() {
                // The kernel says so once: the next read looks like an orderly end.
                (service.told_of_reset, service.end) = (true, Some(Ok(())));
            }
            return Err(kind.into());
        }
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        assert!(!service.shut || wanted == 0, "bytes behind the end of the stream");
        let mut written = 0;
        for slice in slices {
            let length = slice.len().min(service.takes);
            service.received.extend_from_slice(&slice[..length]);
            service.takes -= length;
            written += length;
        }
        if written < wanted {
            service.found_too_little_room();
        }
        if written == 0 && wanted > 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(written)
    }

    fn shut_down(&mut self) {
        self.service.borrow_mut().shut = true;
    }

    fn reset_on_close(&mut self, resets: bool) {
        self.resets = resets;
    }

    fn unacked(&self) -> usize {
        0
    }
}

/// What the next connect to a session id's service leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    AtOnce,
    Later,
    Refused,
    /// The device has no descriptor left.
    NoSocket,
}

/// All services that were ever connected to, and how the next connects go.
#[derive(Debug)]
struct ServiceTable {
    all: Vec<SharedService>,
    answers: [Answer; IDS],
    /// How many streams each session id's service has opened.
    opened: [usize; IDS],
}

/// The device's way to its services, `v0` to `v4`. Clones are the same services.
#[derive(Debug, Clone)]
pub struct Services(Rc<RefCell<ServiceTable>>);

impl Default for Services {
    fn default() -> Self {
        let (answers, opened) = ([Answer::AtOnce; IDS], [0; IDS]);
        Services(Rc::new(RefCell::new(ServiceTable { all: Vec::new(), answers, opened })))
    }
}

impl Services {
    /// Those that were ever connected to, in that order.
    pub fn all(&self) -> Ref<'_, [SharedService]> {
        Ref::map(self.0.borrow(), |table| &table.all[..])
    }

    pub fn next_connect(&self, session: usize, answer: Answer) {
        self.0.borrow_mut().answers[session] = answer;
    }

    /// Those of a session id whose streams were opened, in that order.
    pub(super) fn opened(&self, session: usize) -> Vec<SharedService> {
        let is_opened = |service: &&SharedService| {
            let service = service.borrow();
            service.session == session && service.opened.is_some()
        };
        let mut opened: Vec<_> = self.all().iter().filter(is_opened).cloned().collect();
        opened.sort_by_key(|service| service.borrow().opened);
        opened
    }

    /// Every service connects and takes what there is.
    pub(super) fn favour(&self) {
        for service in &*self.all() {
            let mut service = service.borrow_mut();
            service.takes = usize::MAX;
            service.connected.get_or_insert(Ok(()));
        }
    }
}

impl Connect for Services {
    type Dial = SharedService;
    type Stream = ServiceStream;

    fn dial(&mut self, service_type: &str) -> Result<SharedService, DialError> {
        let number = service_type.strip_prefix('v').and_then(|number| number.parse().ok());
        let session: usize = number.filter(|number| *number < IDS).ok_or(DialError::NoService)?;
        let mut table = self.0.borrow_mut();
        let connected = match table.answers[session] {
            Answer::AtOnce => Some(Ok(())),
            Answer::Later => None,
            Answer::Refused => Some(Err(ErrorKind::ConnectionRefused)),
            Answer::NoSocket => return Err(DialError::Io(ErrorKind::OutOfMemory.into())),
        };
        let service = Rc::new(RefCell::new(Service::new(session, connected)));
        table.all.push(service.clone());
        Ok(service)
    }

    fn step(&mut self, dial: &mut SharedService, _: bool) -> Option<io::Result<ServiceStream>> {
        let mut service = dial.borrow_mut();
        if let Err(kind) = service.connected? {
            return Some(Err(kind.into()));
        }
        let opened = &mut self.0.borrow_mut().opened[service.session];
        service.opened = Some(*opened);
        *opened += 1;
        let salt = up(service.session, *opened - 1);
        Some(Ok(ServiceStream { service: dial.clone(), salt, resets: false }))
    }

    fn address(&self, service_type: &str) -> String {
        format!("{service_type}:1")
    }
}
