//! System V message queues that no test leaves behind. What the messages contain is the library's
//! and the tests' affair.

/// A queue that existed before the library saw it. Removed when dropped.
pub struct Queue(i32);

impl Queue {
    pub fn new(key: i32, mode: i32) -> Self {
        // SAFETY: no pointers.
        let id = unsafe { libc::msgget(key, libc::IPC_CREAT | libc::IPC_EXCL | mode) };
        assert!(id >= 0, "{}", std::io::Error::last_os_error());
        Queue(id)
    }

    pub fn mode(&self) -> u32 {
        u32::from(self.status().msg_perm.mode) & 0o777
    }

    /// Gives the queue to another user; false if this user may not do that.
    pub fn give_to(&self, uid: u32) -> bool {
        let mut status = self.status();
        status.msg_perm.uid = uid;
        // SAFETY: IPC_SET reads one such structure.
        unsafe { libc::msgctl(self.0, libc::IPC_SET, &mut status) == 0 }
    }

    /// Fills the queue with messages that are no commands. Nobody can send to it any more.
    pub fn fill(&self) {
        let message = [2 as libc::c_long, 0];
        let room = std::mem::size_of::<libc::c_long>();
        // SAFETY: a type, then `room` bytes.
        let send =
            || unsafe { libc::msgsnd(self.0, message.as_ptr().cast(), room, libc::IPC_NOWAIT) };
        while send() == 0 {}
        assert_eq!(std::io::Error::last_os_error().kind(), std::io::ErrorKind::WouldBlock);
    }

    fn status(&self) -> libc::msqid_ds {
        // SAFETY: a plain structure, for which all zeros are a value.
        let mut status: libc::msqid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: IPC_STAT writes one such structure.
        assert_eq!(unsafe { libc::msgctl(self.0, libc::IPC_STAT, &mut status) }, 0);
        status
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: IPC_RMID uses no buffer.
        unsafe { libc::msgctl(self.0, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

/// A key for one test. A queue and a semaphore with this key are removed with it, whichever process
/// has made them.
pub struct Key(pub i32);

impl Key {
    pub fn new() -> Self {
        Key(0x4000_0000 | (rand::random::<i32>() & 0x3fff_ffff))
    }

    /// Whether there is a queue with this key.
    pub fn exists(&self) -> bool {
        // SAFETY: no pointers.
        unsafe { libc::msgget(self.0, 0) >= 0 }
    }
}

impl Default for Key {
    fn default() -> Self {
        Key::new()
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: no pointers.
        let id = unsafe { libc::msgget(self.0, 0) };
        if id >= 0 {
            drop(Queue(id));
        }
        // SAFETY: no pointers.
        unsafe {
            let id = libc::semget(self.0, 0, 0);
            if id >= 0 {
                libc::semctl(id, 0, libc::IPC_RMID);
            }
        }
    }
}

/// A semaphore with the value 1, as of an agent that reads the queue with this key. The key removes
/// it.
pub struct Semaphore(i32);

impl Semaphore {
    pub fn held(key: i32) -> Self {
        // SAFETY: no pointers.
        let id = unsafe { libc::semget(key, 1, libc::IPC_CREAT | libc::IPC_EXCL | 0o666) };
        assert!(id >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: SETVAL takes a number.
        assert_eq!(unsafe { libc::semctl(id, 0, libc::SETVAL, 1) }, 0);
        Semaphore(id)
    }

    /// Gives it to another user; false if this user may not do that.
    pub fn give_to(&self, uid: u32) -> bool {
        // SAFETY: a plain structure, for which all zeros are a value.
        let mut status: libc::semid_ds = unsafe { std::mem::zeroed() };
        // SAFETY: IPC_STAT writes one such structure.
        assert_eq!(unsafe { libc::semctl(self.0, 0, libc::IPC_STAT, &mut status) }, 0);
        status.sem_perm.uid = uid;
        // SAFETY: IPC_SET reads one such structure.
        unsafe { libc::semctl(self.0, 0, libc::IPC_SET, &mut status) == 0 }
    }
}
