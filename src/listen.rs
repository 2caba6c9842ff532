//! The listen thread: receives commands from the business process and hands them to a
//! [`Handle`]. Nothing else.
//!
//! The transport is the System V message queue of the Link SDK's demo: message type 1, a body of
//! exactly 644 bytes ([`Command::to_bytes`]). Whoever may write to the queue may open a tunnel to
//! a host of its choosing, so the queue is created with mode 0600 (the SDK's demo uses 0666), and
//! one that is there already must be as safe ([`Listener::start`]).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::config::{ConnectParams, Port, Token, TunnelId};
use crate::device::manager::Handle;
use crate::error::{Error, Result};
use crate::logging::{info, warn, Code};
use crate::sys::{self, Access, MessageQueue, Received};

/// The queue's key in the Link SDK's demo.
pub const DEFAULT_KEY: i32 = 1234;
/// Size of a message's body, in bytes.
pub const MESSAGE_SIZE: usize = 644;

/// Each text field, its NUL included.
const FIELD: usize = 128;
/// How often a stop repeats its wake-up, should somebody else have received it.
const WAKE_AGAIN: Duration = Duration::from_millis(10);
/// Time between a queue's loss and the attempt to open it anew, and between two of these.
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// Stack of the thread. It needs 12 KiB, measured in a release build.
const STACK: usize = 128 * 1024;

/// One command as it travels on the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Operation 1: [`Handle::add`].
    Add(TunnelId, ConnectParams),
    /// Operation 0: [`Handle::delete`].
    Delete(TunnelId),
    /// Operation 2: [`Handle::update`].
    Update(TunnelId, ConnectParams),
}

impl Command {
    /// Reads a message's body.
    ///
    /// # Errors
    /// [`Error::InvalidMessage`] for an unknown operation or a field without NUL,
    /// [`Error::InvalidInput`] for a field with forbidden bytes.
    pub fn from_bytes(body: &[u8; MESSAGE_SIZE]) -> Result<Self> {
        let (operation, fields) = body.split_at(4);
        let operation =
            i32::from_ne_bytes([operation[0], operation[1], operation[2], operation[3]]);
        let field = |index: usize, name: &str| {
            let bytes = &fields[index * FIELD..][..FIELD];
            let end = bytes.iter().position(|byte| *byte == 0);
            let end = end.ok_or_else(|| Error::InvalidMessage(format!("{name} has no NUL")))?;
            std::str::from_utf8(&bytes[..end])
                .map_err(|_| Error::InvalidMessage(format!("{name} is not UTF-8")))
        };
        let id = || TunnelId::new(field(0, "tunnel_id")?);
        let params = || {
            let port: Port = field(2, "port")?.parse()?;
            let token = Token::new(field(4, "token")?)?;
            ConnectParams::new(field(1, "host")?, port, field(3, "path")?, token)
        };
        match operation {
            1 => Ok(Command::Add(id()?, params()?)),
            0 => Ok(Command::Delete(id()?)),
            2 => Ok(Command::Update(id()?, params()?)),
            other => Err(Error::InvalidMessage(format!("operation {other} is unknown"))),
        }
    }

    /// Writes a message's body.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] when a field has more than 127 bytes.
    pub fn to_bytes(&self) -> Result<Zeroizing<[u8; MESSAGE_SIZE]>> {
        let (operation, id, params) = match self {
            Command::Add(id, params) => (1i32, id, Some(params)),
            Command::Delete(id) => (0, id, None),
            Command::Update(id, params) => (2, id, Some(params)),
        };
        let mut body = Zeroizing::new([0; MESSAGE_SIZE]);
        body[..4].copy_from_slice(&operation.to_ne_bytes());
        let mut put = |index: usize, name: &'static str, text: &str| {
            if text.len() >= FIELD {
                return Err(Error::invalid(name, "longer than the message's 127 bytes"));
            }
            body[4 + index * FIELD..][..text.len()].copy_from_slice(text.as_bytes());
            Ok(())
        };
        put(0, "tunnel id", id.as_str())?;
        if let Some(params) = params {
            put(1, "host", params.host())?;
            put(2, "port", &params.port().to_string())?;
            put(3, "path", params.path())?;
            put(4, "token", params.token.expose())?;
        }
        Ok(body)
    }
}

/// Puts one command on the queue of `key`: the business process's part. Does not block.
///
/// # Errors
/// [`Error::Io`] when there is no such queue, it may not be written to, or it is full;
/// [`Error::InvalidInput`] for a field that does not fit.
pub fn send(key: i32, command: &Command) -> Result<()> {
    let body = command.to_bytes()?;
    let what = || format!("message queue {key:#x}");
    let queue = MessageQueue::open(key).map_err(|e| Error::io(what(), e))?;
    queue.send(&body).map_err(|e| Error::io(what(), e))
}

/// Which queue to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The queue's key. Default 1234.
    pub key: i32,
    /// The most permission bits that the queue may have. Default 0600. One that is created gets
    /// them; the bits beyond them are taken from one that is there.
    pub mode: u32,
    /// A user (uid) who may own the queue besides root and the user that this process runs as.
    /// Default: nobody. Whoever owns the queue may open tunnels.
    pub owner: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Options { key: DEFAULT_KEY, mode: 0o600, owner: None }
    }
}

/// A running listen thread.
#[must_use = "dropping a listener stops it"]
pub struct Listener {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// What the listen thread and its [`Listener`] both need.
struct Shared {
    options: Options,
    /// The queue that is listened on now.
    queue: Mutex<MessageQueue>,
    stopping: AtomicBool,
}

impl Listener {
    /// Opens the queue, creating it if need be, and starts the thread. Idle, it sleeps. Should
    /// somebody remove the queue, it is made anew.
    ///
    /// A queue that is there already is used only when root, the user that this process runs as,
    /// or [`Options::owner`] has made and owns it: the owner may always send, and give others
    /// the right to. Permissions beyond [`Options::mode`] are taken away, with a warning.
    ///
    /// # Errors
    /// [`Error::Io`] when the queue or the thread cannot be made, or when the queue belongs to
    /// somebody else or cannot be narrowed; the text says what to do.
    pub fn start(handle: Handle, options: Options) -> Result<Self> {
        let queue = open(&options)?;
        let stopping = AtomicBool::new(false);
        let shared = Arc::new(Shared { options, queue: Mutex::new(queue), stopping });
        let for_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("aiot-listen".into())
            .stack_size(STACK)
            .spawn(move || listen(&for_thread, &handle))
            .map_err(|e| {
                remove_if_ours(queue);
                Error::io("create the listen thread", e)
            })?;
        Ok(Listener { shared, thread: Some(thread) })
    }

    /// Stops the thread and waits for it, well within 200 ms. A queue that it has created is
    /// removed; one that was there stays.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stopping.store(true, Ordering::Release);
        while !thread.is_finished() {
            // Out of its wait for a queue, or, by an empty message, out of its receive.
            thread.thread().unpark();
            let _ = self.shared.queue.lock().send(&[]);
            thread::park_timeout(WAKE_AGAIN);
        }
        let _ = thread.join();
        remove_if_ours(*self.shared.queue.lock());
    }
}

fn remove_if_ours(queue: MessageQueue) {
    if queue.created() {
        let _ = queue.remove();
    }
}

fn open(options: &Options) -> Result<MessageQueue> {
    let what = || format!("message queue {:#x}", options.key);
    let queue = MessageQueue::open_or_create(options.key, options.mode)
        .map_err(|e| Error::io(what(), e))?;
    if !queue.created() {
        secure(&queue, options).map_err(|e| Error::io(what(), e))?;
    }
    Ok(queue)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.end();
    }
}

/// Sees to it that nobody but those whom the options name may send, or refuses.
fn secure(queue: &MessageQueue, options: &Options) -> io::Result<()> {
    let key = options.key;
    let refused = |text: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    let access = queue.access()?;
    if let Some(stranger) = stranger(access, sys::effective_uid(), options.owner) {
        return refused(format!(
            "it belongs to uid {stranger}, who could open tunnels; remove it (ipcrm -Q {key:#x}), \
             or name that user as the owner in the options"
        ));
    }
    let (found, most) = (access.mode, options.mode & 0o777);
    if found & !most == 0 {
        return Ok(());
    }
    if let Err(e) = queue.set_mode(found & most) {
        return refused(format!(
            "its mode is {found:04o}, wider than {most:04o}, and cannot be narrowed ({e}); remove \
             it (ipcrm -Q {key:#x}), or allow that mode in the options"
        ));
    }
    warn!(
        Code::Tunnel,
        "message queue {key:#x} had mode {found:04o}, which lets other users open tunnels; now it \
         has {:04o}",
        found & most
    );
    Ok(())
}

/// Whoever may send whatever the mode is, and is not trusted. The creator may set the mode as the
/// owner may.
fn stranger(access: Access, own: u32, trusted: Option<u32>) -> Option<u32> {
    let known = |uid: u32| uid == 0 || uid == own || Some(uid) == trusted;
    [access.owner, access.creator].into_iter().find(|uid| !known(*uid))
}

fn listen(shared: &Shared, handle: &Handle) {
    let mut body = Zeroizing::new([0; MESSAGE_SIZE]);
    while !shared.stopping.load(Ordering::Acquire) {
        let queue = *shared.queue.lock();
        match queue.receive(&mut body) {
            Ok(Received::Message(0)) => {}
            Ok(Received::Message(MESSAGE_SIZE)) => {
                info!(Code::Tunnel, "msg recv data len {MESSAGE_SIZE}");
                if let Err(e) = execute(handle, &body) {
                    warn!(Code::TunnelFailed, "an IPC message is dropped: {e}");
                }
            }
            Ok(Received::Message(size)) => {
                warn!(Code::TunnelFailed, "an IPC message of {size} bytes is dropped");
            }
            Ok(Received::TooLong) => {
                warn!(
                    Code::TunnelFailed,
                    "an IPC message longer than {MESSAGE_SIZE} bytes is dropped"
                );
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                warn!(Code::TunnelFailed, "receive from the message queue: {e}; opening it anew");
                reopen(shared);
            }
        }
    }
}

/// Without a queue nobody could reach this process any more, so it tries until there is one.
fn reopen(shared: &Shared) {
    let mut said = false;
    loop {
        // Before the first try as well: a queue that is there and cannot be read must not spin.
        thread::park_timeout(REOPEN_AFTER);
        if shared.stopping.load(Ordering::Acquire) {
            return;
        }
        match open(&shared.options) {
            Ok(queue) => {
                *shared.queue.lock() = queue;
                return info!(Code::Tunnel, "listening on the message queue again");
            }
            Err(e) if !said => {
                warn!(Code::TunnelFailed, "{e}; trying again");
                said = true;
            }
            Err(_) => {}
        }
    }
}

fn execute(handle: &Handle, body: &[u8; MESSAGE_SIZE]) -> Result<()> {
    match Command::from_bytes(body)? {
        Command::Add(id, params) => handle.add(&id, params),
        Command::Delete(id) => handle.delete(&id),
        Command::Update(id, params) => handle.update(&id, params),
    }
}

/// Whatever a message holds: a command that is read is written as it was read, and holds nothing
/// that a request line or a log line must not.
#[cfg(any(test, fuzzing))]
pub(crate) fn property(data: &[u8]) {
    let mut body = [0; MESSAGE_SIZE];
    let length = data.len().min(MESSAGE_SIZE);
    body[..length].copy_from_slice(&data[..length]);
    let Ok(command) = Command::from_bytes(&body) else { return };
    let (Command::Add(id, _) | Command::Update(id, _) | Command::Delete(id)) = &command;
    assert!(!id.as_str().is_empty() && !id.as_str().contains(char::is_control));
    if let Command::Add(_, params) | Command::Update(_, params) = &command {
        for text in [params.host(), params.path(), params.token.expose()] {
            assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
        }
        // A path without its slash gets one, for which there may be no room.
        if params.path().len() >= FIELD {
            return assert!(command.to_bytes().is_err());
        }
    }
    let written = command.to_bytes().expect("what was read fits");
    assert_eq!(Command::from_bytes(&written).unwrap(), command);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_message_is_read_or_refused(
            operation in 0u8..4,
            data in proptest::collection::vec(any::<u8>(), 640),
            texts in proptest::collection::vec("[!-~]{0,127}", 5),
        ) {
            let mut body = vec![operation, 0, 0, 0];
            body.extend(&data);
            property(&body);
            body.truncate(4);
            for text in texts {
                let mut field = text.into_bytes();
                field.resize(FIELD, 0);
                body.extend(field);
            }
            property(&body);
            body[4 + 2 * FIELD..][..6].copy_from_slice(b"65535\0");
            property(&body);
        }
    }

    fn add() -> Command {
        let params = ConnectParams::new(
            "h.example",
            Port::new(443).unwrap(),
            "/p",
            Token::new("hush-token").unwrap(),
        );
        Command::Add(TunnelId::new("t1").unwrap(), params.unwrap())
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(Command::from_bytes(&add().to_bytes().unwrap()).unwrap(), add());
        let delete = Command::Delete(TunnelId::new("t1").unwrap());
        assert_eq!(Command::from_bytes(&delete.to_bytes().unwrap()).unwrap(), delete);
    }

    #[test]
    fn hostile_messages_are_refused() {
        let good = add().to_bytes().unwrap();
        let with = |at: usize, bytes: &[u8]| {
            let mut body = *good;
            body[at..at + bytes.len()].copy_from_slice(bytes);
            Command::from_bytes(&body)
        };
        assert!(with(0, &7i32.to_ne_bytes()).is_err());
        for field in 0..5 {
            assert!(with(4 + field * FIELD, &[b'x'; FIELD]).is_err(), "field {field} has no NUL");
            assert!(with(4 + field * FIELD, b"\r\n\0").is_err(), "field {field} has a line break");
            assert!(with(4 + field * FIELD, b"\xff\0").is_err(), "field {field} is not UTF-8");
        }
        assert!(with(4 + 2 * FIELD, b"0\0").is_err());
    }

    #[test]
    fn a_queue_is_trusted_only_when_root_we_or_the_configured_user_own_and_made_it() {
        let access = |owner, creator| Access { owner, creator, mode: 0o600 };
        assert_eq!(stranger(access(0, 0), 1000, None), None);
        assert_eq!(stranger(access(1000, 1000), 1000, None), None);
        assert_eq!(stranger(access(1001, 1001), 1000, Some(1001)), None);
        assert_eq!(stranger(access(1001, 0), 1000, None), Some(1001));
        assert_eq!(stranger(access(0, 1001), 1000, None), Some(1001));
        assert_eq!(stranger(access(1001, 1001), 0, None), Some(1001));
        assert_eq!(stranger(access(1001, 1002), 1000, Some(1001)), Some(1002));
    }

    #[test]
    fn a_field_of_128_bytes_does_not_fit() {
        let params = ConnectParams::new(
            &"h".repeat(128),
            Port::new(1).unwrap(),
            "/",
            Token::new("hush-t").unwrap(),
        );
        let long = Command::Add(TunnelId::new("t").unwrap(), params.unwrap());
        assert!(long.to_bytes().is_err());
    }
}
