//! A System V semaphore as a lock. The kernel gives it back when the process ends, however it ends.

use std::io;
use std::mem;

use super::message_queue::check;

/// A semaphore whose value is 0 while nobody holds the lock, and 1 while somebody does.
#[derive(Debug)]
pub(crate) struct Semaphore(libc::c_int);

/// What IPC_STAT writes: a `semid_ds`, which begins with the permissions. Not every C library's
/// `semid_ds` is in the libc crate. The rest is longer than that of any of them.
#[repr(C)]
struct Status {
    permissions: libc::ipc_perm,
    rest: [u64; 32],
}

impl Semaphore {
    /// Opens the semaphore with this key. If there is none, creates it for this user alone.
    pub(crate) fn open_or_create(key: i32) -> io::Result<Self> {
        // SAFETY: semget takes no pointers.
        let id = unsafe { libc::semget(key, 1, libc::IPC_CREAT | 0o600) };
        check(id as isize).map(|_| Semaphore(id))
    }

    /// The user ids of the owner and the creator.
    pub(crate) fn users(&self) -> io::Result<[u32; 2]> {
        // SAFETY: all zeros are a value of this plain structure.
        let mut status: Status = unsafe { mem::zeroed() };
        // SAFETY: IPC_STAT writes one `semid_ds`; `status` has room for it.
        let result = unsafe { libc::semctl(self.0, 0, libc::IPC_STAT, &mut status) };
        check(result as isize)?;
        Ok([status.permissions.uid, status.permissions.cuid])
    }

    /// Takes the lock until the process ends. Returns false if somebody holds it. Does not block.
    pub(crate) fn lock(&self) -> io::Result<bool> {
        let step = |value, flags| libc::sembuf {
            sem_num: 0,
            sem_op: value,
            sem_flg: (libc::IPC_NOWAIT | flags) as libc::c_short,
        };
        // Both at once, or neither: the value is 0, and then it is 1.
        let mut steps = [step(0, 0), step(1, libc::SEM_UNDO)];
        // SAFETY: `steps` has as many elements as the length says.
        let result = unsafe { libc::semop(self.0, steps.as_mut_ptr(), steps.len()) };
        match check(result as isize) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The id of the process that took the lock last, if the kernel tells.
    pub(crate) fn holder(&self) -> Option<u32> {
        // SAFETY: GETPID takes no pointers.
        let pid = unsafe { libc::semctl(self.0, 0, libc::GETPID) };
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }

    /// Removes the semaphore.
    pub(crate) fn remove(&self) -> io::Result<()> {
        // SAFETY: IPC_RMID takes no buffer.
        let result = unsafe { libc::semctl(self.0, 0, libc::IPC_RMID) };
        check(result as isize).map(drop)
    }
}
