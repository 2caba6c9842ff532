//! Gets a token from the place that a profile names. It is never on a command line.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::{process, Token, TunnelId};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use zeroize::Zeroizing;

use crate::exit_codes::{Failure, OPEN_FILE};
use crate::input::{self, ACCESS_TOKEN};
use crate::{Result, Usage};

/// Longest output of a command, in bytes. No token is as long.
const MAX_OUTPUT: usize = 64 * 1024;
/// How often a command is looked after that has closed its output and not ended.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where a token is.
#[derive(Debug)]
pub(super) enum Place {
    File(PathBuf),
    /// A variable of the environment.
    Variable(String),
    /// A program whose standard output is the token.
    Command {
        words: Vec<String>,
        timeout: Duration,
        /// Of the file.
        line: usize,
    },
}

/// The token of a tunnel.
pub(super) fn read(
    place: Option<&Place>,
    file: &Path,
    profile: &str,
    tunnel: &TunnelId,
) -> Result<Token> {
    // As everywhere: what the environment says goes before what a file says.
    if let Some(text) = process::take_variable(ACCESS_TOKEN)?.filter(|text| !text.is_empty()) {
        return checked(&text, ACCESS_TOKEN);
    }
    match place {
        Some(Place::File(path)) => of_file(path, tunnel),
        Some(Place::Variable(variable)) => {
            let text = process::take_variable(variable)?.ok_or_else(|| {
                Usage::of(format_args!(
                    "the variable {variable} is not set; the profile {profile} expects the token there"
                ))
            })?;
            checked(&text, variable)
        }
        Some(Place::Command { words, timeout, line }) => {
            let name = format!("{}:{line}: token_command", file.display());
            let output =
                output_of(words, tunnel, *timeout).map_err(|why| format!("{name}: {why}"))?;
            let text =
                std::str::from_utf8(&output).map_err(|_| format!("{name}: prints no text"))?;
            checked(text, &name)
        }
        None => Err(Usage::of(format_args!(
            "no access token: name its place in the profile {profile} of {} (token_file, \
             token_variable or token_command), or set {ACCESS_TOKEN}",
            file.display()
        ))
        .into()),
    }
}

fn checked(text: &str, place: &str) -> Result<Token> {
    match text.trim() {
        "" => Err(format!("{place}: it is empty; a token is expected").into()),
        text if text.lines().count() > 1 => {
            Err(format!("{place}: it has more than one line; only the token is expected").into())
        }
        text => Ok(Token::new(text).map_err(|e| format!("{place}: {e}"))?),
    }
}

/// As ssh does with a key, it refuses a file that other users may read.
fn of_file(path: &Path, tunnel: &TunnelId) -> Result<Token> {
    let about = fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Usage::of(format_args!(
            "{}: {e}; check the tunnel's id, {tunnel}, or put its token there: the gateway's \
             operator has it, or makes a new one with: aiot-tunnel tunnel rotate {tunnel} --side access",
            path.display()
        ))
        .into(),
        _ => input::unreadable(path, &e),
    })?;
    let mode = about.permissions().mode() & 0o777;
    if about.is_file() && mode & 0o006 != 0 {
        let path = path.display();
        return Err(Failure::new(
            OPEN_FILE,
            format_args!(
                "{path} holds a token, and every user of this machine may read or change it (mode \
                 {mode:04o}); run: chmod 600 {path}"
            ),
        )
        .into());
    }
    input::token_of_file(path)
}

/// Runs a command without a shell. Its standard error is the user's.
fn output_of(
    words: &[String],
    tunnel: &TunnelId,
    timeout: Duration,
) -> std::result::Result<Zeroizing<Vec<u8>>, String> {
    let deadline = Instant::now() + timeout;
    let (program, arguments) = words.split_first().ok_or("there is no program")?;
    let mut command = Command::new(program);
    command.args(arguments).env("AIOT_TUNNEL_ID", tunnel.as_str());
    // Standard input belongs to the session.
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    let result =
        read_all(&mut child, deadline).and_then(|output| Ok((output, wait(&mut child, deadline)?)));
    match result {
        Ok((output, status)) if status.success() => Ok(output),
        Ok((_, status)) => Err(format!("{program}: {status}")),
        Err(why) => {
            // An error says that it has ended.
            let _ = child.kill();
            let _ = child.wait();
            Err(match why {
                Trouble::TimedOut => format!("{program} has not ended after {timeout:?}"),
                Trouble::TooLong => format!("{program} prints too much for a token"),
                Trouble::Io(e) => format!("{program}: {e}"),
            })
        }
    }
}

enum Trouble {
    TimedOut,
    TooLong,
    Io(std::io::Error),
}

/// Reads its output up to the end, and no longer than until the deadline.
fn read_all(
    child: &mut Child,
    deadline: Instant,
) -> std::result::Result<Zeroizing<Vec<u8>>, Trouble> {
    // Large enough for all: if it grew, it would leave a copy of the token behind.
    let mut output = Zeroizing::new(vec![0; MAX_OUTPUT]);
    let mut length = 0;
    let Some(mut stdout) = child.stdout.take() else { return Ok(output) };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(&stdout, PollFlags::IN)];
        match poll(&mut fds, time.as_ref()) {
            Ok(0) => return Err(Trouble::TimedOut),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(Trouble::Io(e.into())),
        }
        match stdout.read(&mut output[length..]) {
            Ok(0) if length == MAX_OUTPUT => return Err(Trouble::TooLong),
            Ok(0) => break,
            Ok(more) => length += more,
            Err(e) => return Err(Trouble::Io(e)),
        }
    }
    output.truncate(length);
    Ok(output)
}

fn wait(child: &mut Child, deadline: Instant) -> std::result::Result<ExitStatus, Trouble> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() >= deadline => return Err(Trouble::TimedOut),
            Ok(None) => thread::sleep(LOOK_AGAIN),
            Err(e) => return Err(Trouble::Io(e)),
        }
    }
}
