//! What the agent shall have, and what it has been told. In memory only.
//!
//! The newest message about a tunnel counts. A command is owed until the agent has taken it. What the
//! agent has taken is remembered: identical data is not handed over again, because an update closes
//! and reopens a tunnel. It is handed over again once the agent has lost the tunnel: its token has
//! expired, or the agent has started again.

use aiot_tunnel::ipc::Command;
use aiot_tunnel::{ConnectParams, TunnelId};

use crate::Message;

/// Most tunnels that are remembered. The platform allows ten for a device.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// In the order of their last messages.
    entries: Vec<Entry>,
    /// Whether the agent's events are seen. Without them, nobody tells that a tunnel has expired or
    /// that the agent has started again.
    is_watched: bool,
    /// Whether they have been seen before.
    was_watched: bool,
    numbers: u64,
}

#[derive(Debug)]
struct Entry {
    tunnel: TunnelId,
    /// The connection data; `None`: the tunnel shall be closed.
    params: Option<ConnectParams>,
    /// What the agent is still to be told.
    owed: Option<Owed>,
    /// Changes with each message, so that the outcome of a former command is told from this one's.
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    Add,
    Update,
    Delete,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The agent is to be told.
    Owed,
    /// The agent has this already.
    Identical,
}

impl Ledger {
    pub(crate) fn take(&mut self, message: Message) -> Taken {
        let known = self.entries.iter().position(|entry| entry.tunnel == *message.tunnel());
        let known = known.map(|at| self.entries.remove(at));
        let (tunnel, params, is_connect) = match message {
            Message::Close(tunnel, _) => {
                self.push(tunnel, None, Owed::Delete);
                return Taken::Owed;
            }
            Message::Connect(tunnel, params) => (tunnel, params, true),
            Message::Update(tunnel, params) => (tunnel, params, false),
        };
        let owed = match known {
            // The agent has it. An `add` of a tunnel that exists does nothing.
            Some(entry) if entry.owed.is_none() && entry.params.as_ref() == Some(&params) => {
                if self.is_watched {
                    self.entries.push(entry);
                    return Taken::Identical;
                }
                Owed::Add
            }
            // The agent may have it with other data, and an `add` would not change these.
            Some(_) => Owed::Update,
            None if is_connect => Owed::Add,
            None => Owed::Update,
        };
        self.push(tunnel, Some(params), owed);
        Taken::Owed
    }

    fn push(&mut self, tunnel: TunnelId, params: Option<ConnectParams>, owed: Owed) {
        if self.entries.len() >= MOST {
            let settled = self.entries.iter().position(|entry| entry.owed.is_none());
            self.entries.remove(settled.unwrap_or(0));
        }
        self.numbers += 1;
        self.entries.push(Entry { tunnel, params, owed: Some(owed), number: self.numbers });
    }

    /// The next command for the agent, and its number.
    pub(crate) fn next(&self) -> Option<(u64, Command)> {
        self.entries.iter().find_map(|entry| {
            let (owed, tunnel) = (entry.owed?, entry.tunnel.clone());
            let command = match (owed, entry.params.clone()) {
                (Owed::Add, Some(params)) => Command::Add(tunnel, params),
                (Owed::Update, Some(params)) => Command::Update(tunnel, params),
                (_, _) => Command::Delete(tunnel),
            };
            Some((entry.number, command))
        })
    }

    /// The agent has taken a command.
    pub(crate) fn handed_over(&mut self, number: u64) {
        if let Some(at) = self.position(number) {
            self.entries[at].owed = None;
            if self.entries[at].params.is_none() {
                self.entries.remove(at);
            }
        }
    }

    /// The agent does not take a command.
    pub(crate) fn refused(&mut self, number: u64) {
        if let Some(at) = self.position(number) {
            self.entries.remove(at);
        }
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.entries.iter().position(|entry| entry.number == number)
    }

    /// The agent has dropped a tunnel, because its token has expired.
    pub(crate) fn expired(&mut self, tunnel: &TunnelId) {
        self.entries.retain(|entry| entry.tunnel != *tunnel || entry.owed.is_some());
    }

    /// The agent's events are seen from now on; returns whether they were seen before. The agent may have
    /// started again, without its tunnels.
    pub(crate) fn agent_connected(&mut self) -> bool {
        self.is_watched = true;
        for entry in &mut self.entries {
            entry.owed.get_or_insert(Owed::Add);
        }
        std::mem::replace(&mut self.was_watched, true)
    }

    /// The agent's events are not seen any more.
    pub(crate) fn agent_disconnected(&mut self) {
        self.is_watched = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aiot_tunnel::{Port, Token};

    fn id(name: &str) -> TunnelId {
        TunnelId::new(name).unwrap()
    }

    fn params(token: &str) -> ConnectParams {
        let token = Token::new(token).unwrap();
        ConnectParams::new("h", Port::new(1).unwrap(), "/", token).unwrap()
    }

    fn connect(token: &str) -> Message {
        Message::Connect(id("t"), params(token))
    }

    fn update(token: &str) -> Message {
        Message::Update(id("t"), params(token))
    }

    fn close() -> Message {
        Message::Close(id("t"), None)
    }

    fn add_command(token: &str) -> Command {
        Command::Add(id("t"), params(token))
    }

    fn update_command(token: &str) -> Command {
        Command::Update(id("t"), params(token))
    }

    /// Hands over what is owed.
    fn settle(ledger: &mut Ledger) -> Vec<Command> {
        let mut commands = Vec::new();
        while let Some((number, command)) = ledger.next() {
            ledger.handed_over(number);
            commands.push(command);
        }
        commands
    }

    fn watched() -> Ledger {
        let mut ledger = Ledger::default();
        assert!(!ledger.agent_connected());
        ledger
    }

    #[test]
    fn each_message_becomes_its_command() {
        let mut ledger = watched();
        ledger.take(connect("a"));
        assert_eq!(settle(&mut ledger), [add_command("a")]);
        ledger.take(update("b"));
        assert_eq!(settle(&mut ledger), [update_command("b")]);
        ledger.take(close());
        assert_eq!(settle(&mut ledger), [Command::Delete(id("t"))]);
        ledger.take(update("c"));
        assert_eq!(settle(&mut ledger), [update_command("c")]);
    }

    #[test]
    fn identical_data_does_not_disturb_an_open_tunnel() {
        let mut ledger = watched();
        ledger.take(connect("a"));
        settle(&mut ledger);
        for again in [connect("a"), update("a")] {
            assert_eq!(ledger.take(again), Taken::Identical);
            assert_eq!(settle(&mut ledger), []);
        }
        // An add would not change a tunnel that exists.
        ledger.take(connect("b"));
        assert_eq!(settle(&mut ledger), [update_command("b")]);
    }

    #[test]
    fn identical_data_is_handed_over_after_expiry_and_after_an_agents_restart() {
        let mut ledger = watched();
        ledger.take(connect("a"));
        settle(&mut ledger);
        ledger.expired(&id("t"));
        assert_eq!(settle(&mut ledger), []);
        ledger.take(update("a"));
        assert_eq!(settle(&mut ledger), [update_command("a")]);
        ledger.agent_disconnected();
        assert!(ledger.agent_connected());
        assert_eq!(settle(&mut ledger), [add_command("a")]);
        ledger.take(update("a"));
        assert_eq!(settle(&mut ledger), []);
    }

    #[test]
    fn an_agent_that_is_not_watched_gets_identical_data_in_a_way_that_cannot_disturb() {
        let mut ledger = Ledger::default();
        ledger.take(update("a"));
        assert_eq!(settle(&mut ledger), [update_command("a")]);
        ledger.take(update("a"));
        assert_eq!(settle(&mut ledger), [add_command("a")]);
    }

    #[test]
    fn the_newest_message_counts_while_the_agent_is_away() {
        let mut ledger = watched();
        ledger.take(connect("a"));
        let (number, _) = ledger.next().unwrap();
        ledger.take(update("b"));
        // The first command was on its way: its outcome says nothing about the second.
        ledger.handed_over(number);
        assert_eq!(settle(&mut ledger), [update_command("b")]);
        ledger.take(close());
        ledger.take(connect("b"));
        // The agent was not told of the close: an add would leave the old tunnel.
        assert_eq!(settle(&mut ledger), [update_command("b")]);
        ledger.take(update("c"));
        ledger.expired(&id("t"));
        assert_eq!(settle(&mut ledger), [update_command("c")]);
    }

    #[test]
    fn a_refused_command_is_forgotten() {
        let mut ledger = watched();
        ledger.take(connect("a"));
        let (number, _) = ledger.next().unwrap();
        ledger.refused(number);
        assert!(ledger.next().is_none());
        ledger.take(connect("a"));
        assert_eq!(settle(&mut ledger), [add_command("a")]);
    }

    #[test]
    fn a_flood_of_tunnels_costs_no_more_memory() {
        let mut ledger = watched();
        ledger.take(connect("a"));
        settle(&mut ledger);
        for number in 0..1000 {
            ledger.take(Message::Connect(id(&number.to_string()), params("x")));
        }
        assert_eq!(ledger.entries.len(), MOST);
        assert_eq!(settle(&mut ledger).len(), MOST);
    }
}
