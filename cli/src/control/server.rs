//! The agent's part: one thread for all clients, which sleeps in one `poll` without a timeout while
//! nobody says anything. It waits for no client.

use std::io;
use std::os::unix::net::UnixListener;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{poll, PollFd, PollFlags, Timespec};

use super::connection::Client;
use super::events::Events;
use super::metrics;
use super::options::Options;
use super::protocol::{self, Answer, Request, Status};
use super::socket::{self, SocketFile};
use super::Actions;
use crate::Result;

/// Most clients at once.
const MAX_CLIENTS: usize = 32;
/// For so long nobody is accepted after the system had no descriptor or memory for a client.
const REST: Duration = Duration::from_secs(1);
/// Most reloads at once. Each has a thread.
const MAX_RELOADS: usize = 8;
/// Stack of a thread, in bytes.
const STACK: usize = 256 * 1024;

/// The running server.
pub(crate) struct Server {
    events: Events,
    thread: JoinHandle<()>,
}

impl Server {
    /// Opens the socket and starts the thread. `events` is where the agent puts its events.
    pub(crate) fn start(
        options: &Options,
        actions: Arc<dyn Actions>,
        events: Events,
    ) -> Result<Self> {
        let (listener, file) = socket::open(options)?;
        let agent = Agent {
            actions,
            events: events.clone(),
            since: SystemTime::now(),
            reloads: Arc::default(),
        };
        let turns =
            Turns { listener, agent, clients: Vec::new(), next: 0, turn: 0, rests_until: None };
        let run = move || turns.run(file);
        let thread = thread::Builder::new().name("control".into()).stack_size(STACK).spawn(run);
        Ok(Server { events, thread: thread.map_err(|e| format!("start a thread: {e}"))? })
    }

    /// Ends it: clients get the events so far, as far as they take them, and the file is removed.
    pub(crate) fn stop(self) {
        self.events.stop();
        let _ = self.thread.join();
    }
}

/// What the answers are made of.
pub(super) struct Agent {
    actions: Arc<dyn Actions>,
    events: Events,
    since: SystemTime,
    /// Each reload that is under way holds it, too.
    reloads: Arc<()>,
}

impl Agent {
    /// Does what the client with this number asks for, and answers it. `None`: it takes its time, and
    /// the answer comes through [`Events`].
    pub(super) fn answer(&self, request: Request, client: u64) -> Option<Vec<u8>> {
        let done = match request {
            Request::Command(command) => self.actions.command(command),
            Request::Reconnect(tunnel) => self.actions.reconnect(tunnel.as_ref()),
            Request::Reload => match self.reload(client) {
                Ok(()) => return None,
                Err(e) => Err(e),
            },
            Request::Events => {
                // Before the client learns of it: from then on it misses none.
                self.events.add_subscriber();
                Ok(())
            }
            Request::Status => return Some(protocol::line(&Answer::status(&self.status()))),
        };
        Some(answer(done))
    }

    /// Reloads on a thread of its own: a file may be on a disk that hangs, and then this socket is the
    /// way to find that out.
    fn reload(&self, client: u64) -> Result<()> {
        let running = self.reloads.clone();
        if Arc::strong_count(&running) > MAX_RELOADS + 1 {
            return Err("it reloads already".into());
        }
        let (actions, events) = (self.actions.clone(), self.events.clone());
        let run = move || {
            let answer = answer(actions.reload());
            drop(running);
            events.answer(client, answer);
        };
        let thread = thread::Builder::new().name("reload".into()).stack_size(STACK).spawn(run);
        thread.map(drop).map_err(|e| format!("start a thread: {e}").into())
    }

    pub(super) fn metrics(&self) -> String {
        metrics::text(&self.status(), self.since, self.events.counts())
    }

    fn status(&self) -> Status {
        Status::new(self.since, &self.actions.services(), &self.actions.handle().tunnels())
    }
}

fn answer(done: Result<()>) -> Vec<u8> {
    match done {
        Ok(()) => protocol::line(&Answer::OK),
        Err(e) => protocol::line(&Answer::error(&e.to_string())),
    }
}

/// The thread's work.
struct Turns {
    listener: UnixListener,
    agent: Agent,
    clients: Vec<Client>,
    /// The number of the next client.
    next: u64,
    /// The number of the present turn.
    turn: u64,
    rests_until: Option<Instant>,
}

impl Turns {
    fn run(mut self, _file: SocketFile) {
        loop {
            self.turn += 1;
            let Some((woken, calls)) = self.wait() else { continue };
            if woken && self.deliver() {
                return;
            }
            let (agent, turn) = (&self.agent, self.turn);
            self.clients.retain_mut(|client| {
                let serve = || client.ready.is_empty() || client.serve(agent, turn);
                // A fault that one client meets must not take the socket from the others.
                catch_unwind(AssertUnwindSafe(serve)).unwrap_or(false)
            });
            if calls {
                self.accept();
            }
            let subscribers = self.clients.iter().filter(|client| client.wants_events).count();
            self.agent.events.set_subscribers(subscribers);
        }
    }

    /// Waits until there is something to do: whether there are events and new clients. Notes what each
    /// client is ready for.
    fn wait(&mut self) -> Option<(bool, bool)> {
        let rest = self.rests_until.map(|until| until.saturating_duration_since(Instant::now()));
        let accepts = if rest.is_some() { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = Vec::with_capacity(self.clients.len() + 2);
        let waker = self.agent.events.waker();
        fds.push(PollFd::new(&waker, PollFlags::IN));
        fds.push(PollFd::new(&self.listener, accepts));
        fds.extend(self.clients.iter().map(|client| match client.is_set_aside() {
            // `poll` would tell of a client that has gone again and again.
            true => PollFd::new(&waker, PollFlags::empty()),
            false => PollFd::new(&client.stream, client.interest()),
        }));
        let timeout = rest.and_then(|rest| Timespec::try_from(rest).ok());
        let found = poll(&mut fds, timeout.as_ref());
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        let (woken, calls) = (!ready[0].is_empty(), !ready[1].is_empty());
        for (client, ready) in self.clients.iter_mut().zip(&ready[2..]) {
            client.ready = *ready;
        }
        if self.rests_until.is_some_and(|until| Instant::now() >= until) {
            self.rests_until = None;
        }
        match found {
            Ok(_) => Some((woken, calls)),
            Err(rustix::io::Errno::INTR) => None,
            // The kernel has no memory for the list.
            Err(_) => {
                thread::sleep(REST);
                None
            }
        }
    }

    /// Gives the waiting events to the clients that want them. True: this is the end.
    fn deliver(&mut self) -> bool {
        let woken = self.agent.events.take();
        for (number, line) in woken.answers {
            if let Some(client) = self.clients.iter_mut().find(|client| client.number == number) {
                client.end_wait(&line);
            }
        }
        self.clients.retain_mut(|client| {
            // Whoever takes events must not miss one without notice.
            !client.wants_events || (client.push_events(&woken.lines) && !woken.is_cut)
        });
        woken.stop
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.next += 1;
                        self.admit(Client::new(stream, self.next, self.turn));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    log::warn!("control socket: accept a client: {e}");
                    self.rests_until = Some(Instant::now() + REST);
                    return;
                }
            }
        }
    }

    /// Takes a client. If there are too many, the one that has been silent for the longest time has
    /// to go: clients that hang must not keep out the one that repairs the device.
    fn admit(&mut self, mut client: Client) {
        if self.clients.len() >= MAX_CLIENTS {
            let others = self.clients.iter().enumerate().filter(|(_, other)| !other.wants_events);
            let silent = others.min_by_key(|(_, other)| other.heard).map(|(index, _)| index);
            match silent {
                Some(index) => drop(self.clients.remove(index)),
                None => {
                    return client.refuse(&format!("{MAX_CLIENTS} clients take events already"))
                }
            }
        }
        self.clients.push(client);
    }
}
