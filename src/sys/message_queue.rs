//! System V message queues.

use std::io;
use std::mem;

/// The type of every message that carries a command.
pub(super) const COMMAND: libc::c_long = 1;

/// A message in the layout of the kernel: its type, then its body.
#[repr(C)]
struct Envelope<const N: usize> {
    kind: libc::c_long,
    body: [u8; N],
}

/// A queue, known by its kernel identifier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageQueue {
    id: libc::c_int,
    created: bool,
}

/// Who may do what with a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// The user ids of the owner and the creator. Both may change and remove the queue, whatever
    /// its mode is.
    pub(crate) owner: u32,
    pub(crate) creator: u32,
    /// The permission bits. Read permission is to receive, write permission is to send.
    pub(crate) mode: u32,
}

/// The effective user id of this process.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

impl MessageQueue {
    /// Opens the queue with this key. If there is none, creates it with `mode`.
    pub(crate) fn open_or_create(key: i32, mode: u32) -> io::Result<Self> {
        loop {
            let create = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as libc::c_int;
            match get(key, create) {
                Ok(id) => return Ok(MessageQueue { id, created: true }),
                Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
                Err(e) => return Err(e),
            }
            match Self::open(key) {
                // The queue was removed in between. The next round creates it.
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                other => return other,
            }
        }
    }

    /// Opens the queue with this key, which must exist.
    pub(crate) fn open(key: i32) -> io::Result<Self> {
        get(key, 0).map(|id| MessageQueue { id, created: false })
    }

    pub(super) fn id(&self) -> libc::c_int {
        self.id
    }

    /// Whether [`open_or_create`](Self::open_or_create) created the queue.
    pub(crate) fn created(&self) -> bool {
        self.created
    }

    /// The owner and the permissions of the queue.
    pub(crate) fn access(&self) -> io::Result<Access> {
        let status = self.status()?;
        let (owner, creator) = (status.msg_perm.uid, status.msg_perm.cuid);
        Ok(Access { owner, creator, mode: u32::from(status.msg_perm.mode) & 0o777 })
    }

    /// How many messages wait. A user who may only send may not ask the kernel directly, but may
    /// read the list of all queues.
    pub(crate) fn waiting(&self) -> io::Result<usize> {
        match self.status() {
            Ok(status) => Ok(usize::try_from(status.msg_qnum).unwrap_or(usize::MAX)),
            Err(e) if e.raw_os_error() == Some(libc::EACCES) => self.listed().ok_or(e),
            Err(e) => Err(e),
        }
    }

    fn listed(&self) -> Option<usize> {
        let list = std::fs::read_to_string("/proc/sysvipc/msg").ok()?;
        let rows = list.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        // The columns: key, id, permissions, bytes, messages, and more.
        let row =
            rows.into_iter().find(|row| row.get(1).is_some_and(|id| *id == self.id.to_string()));
        row?.get(4)?.parse().ok()
    }

    /// Sets the permission bits. Only the owner, the creator and root may do this.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        let mut status = self.status()?;
        status.msg_perm.mode = (mode & 0o777) as _;
        // SAFETY: IPC_SET reads one `msqid_ds`, and `status` is one.
        let result = unsafe { libc::msgctl(self.id, libc::IPC_SET, &mut status) };
        check(result as isize).map(drop)
    }

    fn status(&self) -> io::Result<libc::msqid_ds> {
        // SAFETY: an all-zero `msqid_ds` is a valid value of that plain structure.
        let mut status: libc::msqid_ds = unsafe { mem::zeroed() };
        // SAFETY: IPC_STAT writes one `msqid_ds`, and `status` is one.
        let result = unsafe { libc::msgctl(self.id, libc::IPC_STAT, &mut status) };
        check(result as isize).map(|_| status)
    }

    /// Queues one message. `WouldBlock` if the queue is full.
    pub(crate) fn send<const N: usize>(&self, body: &[u8; N]) -> io::Result<()> {
        let mut envelope = Envelope { kind: COMMAND, body: *body };
        let source: *const Envelope<N> = &envelope;
        // SAFETY: `source` points to a type field and N bytes.
        let result = unsafe { libc::msgsnd(self.id, source.cast(), N, libc::IPC_NOWAIT) };
        zeroize::Zeroize::zeroize(&mut envelope.body[..]);
        check(result as isize).map(drop)
    }

    /// Removes the queue and its messages. Threads that wait on it get an error.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // SAFETY: IPC_RMID takes no buffer.
        let result = unsafe { libc::msgctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) };
        check(result as isize).map(drop)
    }
}

fn get(key: i32, flags: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: msgget takes no pointers.
    let id = unsafe { libc::msgget(key, flags) };
    check(id as isize).map(|_| id)
}

pub(super) fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
