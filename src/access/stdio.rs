//! Stdin and stdout as one local stream. They may be shared with other programs, so they stay in
//! blocking mode. Each has a thread that copies to or from a socket pair.
//!
//! An end of file on stdin is the orderly end of the local stream's direction. A read error is not:
//! the relay sees it behind the bytes that came before. When stdout takes no more bytes, the relay
//! is woken, because it may have nothing to write. In both cases the session is cut.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use super::{Error, Result};
use crate::net::LocalSocket;
use crate::sys::{access_mode, beyond_standard, end_output, poll, was_closed, PollFd, Waker};

/// Bytes of one read.
const PORTION: usize = 64 * 1024;

/// Stdin and stdout, both usable.
pub(super) struct Standard {
    stdin: File,
    stdout: File,
}

impl Standard {
    /// # Errors
    /// One of them is closed, or open for the other direction only.
    pub(super) fn take() -> Result<Self> {
        let (stdin, stdout) = (io::stdin(), io::stdout());
        check(stdin.as_fd(), "standard input", "reading", |(reads, _)| reads)?;
        check(stdout.as_fd(), "standard output", "writing", |(_, writes)| writes)?;
        // The handles of std take a bad descriptor for an empty or endless one.
        let file = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
        Ok(Standard { stdin: file(stdin.as_fd())?, stdout: file(stdout.as_fd())? })
    }

    /// Starts the threads. Returns the local stream for the relay, and the state of stdout. The
    /// thread that reads stdin goes on until its read returns.
    pub(super) fn start(self) -> Result<(LocalSocket, Arc<Output>)> {
        let Standard { stdin, stdout } = self;
        let (ours, theirs) = UnixStream::pair()?;
        let (ours, theirs) = (beyond_standard(ours)?, beyond_standard(theirs)?);
        let (from_stdin, to_stdout) = (theirs.try_clone()?, theirs.try_clone()?);
        ours.set_nonblocking(true)?;
        let failure = Arc::new(OnceLock::new());
        let local = LocalSocket::Fed(ours, failure.clone());
        thread::Builder::new().name("access-stdin".into()).spawn(move || {
            if let Err(e) = copy_input(&stdin, &from_stdin) {
                let _ = failure.set(format!("cannot read standard input: {e}"));
            }
            let _ = from_stdin.shutdown(Shutdown::Write);
        })?;
        let (failed, done) = (Waker::new()?, Waker::new()?);
        let (failure, is_cut) = (OnceLock::new(), Arc::default());
        let output = Arc::new(Output { failure, failed, done, theirs, is_cut });
        let told = output.clone();
        thread::Builder::new().name("access-stdout".into()).spawn(move || {
            match copy_output(&to_stdout, &stdout) {
                // Its reader, ssh for example, may end this process at the end of the stream. The
                // program says why it was cut before it ends, and that is the end of the stream.
                Ok(()) if told.is_cut.load(Ordering::SeqCst) => {}
                Ok(()) => {
                    // Its reader may wait for the end before it ends stdin.
                    drop(stdout);
                    end_output();
                }
                Err(e) => {
                    let _ = told.failure.set(format!("cannot write to standard output: {e}"));
                    told.failed.wake();
                }
            }
            told.done.wake();
        })?;
        Ok((local, output))
    }
}

fn check(
    fd: BorrowedFd<'_>,
    name: &str,
    purpose: &str,
    serves: impl Fn((bool, bool)) -> bool,
) -> Result<()> {
    let error = |why: &str| Err(Error::Io(io::Error::other(format!("{name} is {why}"))));
    match access_mode(fd) {
        _ if was_closed(fd) => error("closed"),
        Err(e) => error(&format!("not usable: {e}")),
        Ok(mode) if !serves(mode) => error(&format!("not open for {purpose}")),
        Ok(_) => Ok(()),
    }
}

/// What has become of stdout.
pub(super) struct Output {
    failure: OnceLock<String>,
    /// Woken when stdout has failed, and never reset.
    failed: Waker,
    /// Woken when nothing more will be written, and never reset.
    done: Waker,
    /// The threads' end of the socket pair.
    theirs: UnixStream,
    is_cut: Arc<AtomicBool>,
}

impl Output {
    /// Is ready for reading once stdout has failed.
    pub(super) fn failed(&self) -> BorrowedFd<'_> {
        self.failed.as_fd()
    }

    /// Why stdout takes no more bytes. `None`: it has not failed.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Tells that the session is cut. Set it before the local stream ends: stdout then stays open until
    /// the process ends.
    pub(super) fn cut(&self) -> &Arc<AtomicBool> {
        &self.is_cut
    }

    /// Drops the bytes for stdout. Call it once the relay knows of the failure. The write that fails
    /// does not tell what has failed.
    pub(super) fn discard(&self) {
        let _ = self.theirs.shutdown(Shutdown::Read);
    }

    /// Waits until everything is written. After a stop, it waits until `limit` after the stop.
    ///
    /// # Errors
    /// Stdout has failed.
    pub(super) fn finish(&self, stop: &Waker, limit: std::time::Duration) -> Result<()> {
        let fds = [self.done.as_fd(), stop.as_fd()];
        let mut fds = fds.map(|fd| PollFd::new(fd, true, false));
        while !fds.iter().any(|fd| fd.ready().read) {
            poll(&mut fds, None)?;
        }
        if !fds[0].ready().read {
            poll(&mut fds[..1], Some(Instant::now() + limit))?;
        }
        match self.failure() {
            Some(why) => Err(Error::Io(io::Error::other(why.to_owned()))),
            None => Ok(()),
        }
    }
}

/// Copies until the end of file, or until the session has ended.
///
/// # Errors
/// Those of stdin.
fn copy_input(mut stdin: &File, mut to: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; PORTION];
    loop {
        let length = match stdin.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) => {
                wait_after(e, stdin, false)?;
                continue;
            }
        };
        if to.write_all(&buffer[..length]).is_err() {
            return Ok(());
        }
    }
}

/// Copies until the end of the stream.
///
/// # Errors
/// Those of stdout.
fn copy_output(mut from: &UnixStream, stdout: &File) -> io::Result<()> {
    let mut buffer = vec![0; PORTION];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => write_all(stdout, &buffer[..length])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The session ended while more bytes came from stdin. All bytes of the session have
            // been read.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

fn write_all(mut stdout: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stdout.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(e) => wait_after(e, stdout, true)?,
        }
    }
    Ok(())
}

/// Waits until a call that was interrupted or would have blocked can be made again: another program
/// may have made the descriptor non-blocking.
fn wait_after(e: io::Error, file: &File, writes: bool) -> io::Result<()> {
    match e.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => poll(&mut [PollFd::new(file.as_fd(), !writes, writes)], None),
        _ => Err(e),
    }
}
