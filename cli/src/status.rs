//! `aiot-tunnel status`

mod table;
mod terminal;

use std::io::{self, ErrorKind, Write};
use std::thread;
use std::time::{Instant, SystemTime};

use serde_json::value::RawValue;

use crate::cli::StatusArgs;
use crate::control::protocol::Status;
use crate::control::Client;
use crate::Result;

use table::Earlier;
use terminal::Terminal;

pub(crate) fn run(args: &StatusArgs) -> Result<()> {
    let mut agent = Client::connect(&args.control_socket)?;
    match (args.watch, Terminal::of_stdout()) {
        (true, Some(terminal)) if !args.json => watch_on(terminal, args, agent),
        (true, _) => until_nobody_reads(append(args, agent)),
        (false, _) if args.json => until_nobody_reads(print(agent.status()?.get())),
        (false, terminal) => {
            let status = parse(&agent.status()?)?;
            let width = terminal.map_or(table::WIDTH, |terminal| terminal.size().0);
            let table = table::table(&status, None, width, SystemTime::now());
            until_nobody_reads(print(table.trim_end()))
        }
    }
}

/// Prints one state after the other.
fn append(args: &StatusArgs, mut agent: Client) -> Result<()> {
    let mut history = History::default();
    loop {
        let answer = agent.status()?;
        match args.json {
            true => print(answer.get())?,
            false => print(&history.table(parse(&answer)?, table::WIDTH))?,
        }
        thread::sleep(args.interval);
    }
}

/// Shows the latest state in the whole terminal, until a signal.
fn watch_on(terminal: Terminal, args: &StatusArgs, agent: Client) -> Result<()> {
    let mut agent = Some(agent);
    let mut history = History::default();
    let screen = terminal.open_screen()?;
    loop {
        let (width, _) = terminal.size();
        let text = match look(&mut agent, args) {
            Ok(status) => history.table(status, width),
            Err(e) => {
                // The agent may come back, with other tunnels.
                (agent, history) = (None, History::default());
                table::message(&e.to_string(), width)
            }
        };
        screen.show(&text)?;
        thread::sleep(args.interval);
    }
}

fn look(agent: &mut Option<Client>, args: &StatusArgs) -> Result<Status> {
    let agent = match agent {
        Some(agent) => agent,
        None => agent.insert(Client::connect(&args.control_socket)?),
    };
    parse(&agent.status()?)
}

/// The status before, for rates.
#[derive(Default)]
struct History(Option<(Status, Instant)>);

impl History {
    fn table(&mut self, status: Status, width: usize) -> String {
        let now = Instant::now();
        let nothing = Earlier::default();
        let earlier = match &self.0 {
            Some((status, time)) => Earlier::new(status, now.saturating_duration_since(*time)),
            None => nothing,
        };
        let text = table::table(&status, Some(&earlier), width, SystemTime::now());
        self.0 = Some((status, now));
        text
    }
}

fn parse(answer: &RawValue) -> Result<Status> {
    let status = serde_json::from_str(answer.get());
    status.map_err(|e| format!("the agent's status: {e}; is it of another version?").into())
}

fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// Whoever reads the output may have seen enough.
fn until_nobody_reads(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if e.downcast_ref().is_some_and(|e: &io::Error| is_broken(e)) => Ok(()),
        other => other,
    }
}

fn is_broken(e: &io::Error) -> bool {
    e.kind() == ErrorKind::BrokenPipe
}
