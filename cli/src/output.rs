//! Standard error and standard output, without waiting for their readers.
//!
//! A thread that logs must not wait for whoever reads the log: a pipe that nobody reads would stop
//! tunnels, new connections and the end of the program. So lines go to a queue of limited size, and
//! a thread of its own writes them. Lines for which the queue has no room are left out and counted.
//! So are lines that cannot be written, for example because the disk is full.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use log::{Level, LevelFilter};

/// Most bytes that wait for a reader: some thousand lines.
const MAX_WAITING: usize = 256 * 1024;
/// How long the end of the program waits until the last lines are written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How long to wait before writing again to a descriptor in non-blocking mode that is full.
const FULL: Duration = Duration::from_millis(20);
/// Stack of a writing thread, in bytes.
const STACK: usize = 64 * 1024;

/// The queue in front of standard error.
pub(crate) static STDERR: Lines = Lines::new(left_out);
/// The queue in front of standard output, for the agent's events.
pub(crate) static STDOUT: Lines = Lines::new(left_out);

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// The Link SDK's: [SECONDS.MILLISECONDS][LK-CODE] TEXT
    Lk,
    /// For people: time, level, text
    Text,
    /// One JSON object a line: time, level, code, text
    Json,
    /// For systemd's journal, which adds the time: <PRIORITY>TEXT
    Journald,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Makes the log and the reports of panics go through [`STDERR`]. Without a level, RUST_LOG decides, or
/// it is info.
pub(crate) fn init_log(format: LogFormat, level: Option<LevelFilter>) {
    let _ = FORMAT.set(format);
    set_log_level(level);
    // There is no other.
    let _ = log::set_logger(&LOGGER);
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("without a name");
        say(&format!("thread {name:?} {panic}"));
    }));
}

/// Sets the level of the log, as [`init_log`] does.
pub(crate) fn set_log_level(level: Option<LevelFilter>) {
    let logger = logger(FORMAT.get().copied().unwrap_or(LogFormat::Text), level);
    log::set_max_level(logger.filter());
    *LOGGER.0.write().unwrap_or_else(PoisonError::into_inner) = Some(logger);
}

/// The log, whose level can be changed.
struct Logger(RwLock<Option<env_logger::Logger>>);

/// Modules whose lines quote whole messages: what is typed in a terminal may be a password.
const TALKATIVE: [&str; 2] = ["tungstenite::protocol", "tungstenite::protocol::frame"];

static LOGGER: Logger = Logger(RwLock::new(None));

impl Logger {
    fn with<T>(&self, act: impl FnOnce(&env_logger::Logger) -> T) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(act)
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let is_wanted = !TALKATIVE.contains(&metadata.target());
        is_wanted && self.with(|logger| logger.enabled(metadata)).unwrap_or(false)
    }
    fn log(&self, record: &log::Record<'_>) {
        if !TALKATIVE.contains(&record.target()) {
            self.with(|logger| logger.log(record));
        }
    }
    fn flush(&self) {
        self.with(log::Log::flush);
    }
}

fn logger(format: LogFormat, level: Option<LevelFilter>) -> env_logger::Logger {
    let mut builder = env_logger::Builder::new();
    if has_colors() {
        builder.write_style(env_logger::WriteStyle::Always);
    }
    match level {
        Some(level) => {
            builder.filter_level(level);
        }
        None => {
            builder.parse_env(env_logger::Env::default().default_filter_or("info"));
        }
    }
    if format != LogFormat::Text {
        builder.format(move |out, record| {
            writeln!(out, "{}", line(format, record.level(), &record.args().to_string()))
        });
    }
    // The MQTT library quotes packets that a broker must not send. They may hold a password.
    builder.filter_module("rumqttc", log::LevelFilter::Off);
    builder.target(env_logger::Target::Pipe(Box::new(Log::default()))).build()
}

/// Says why the program ends.
pub(crate) fn say_why(error: &dyn std::error::Error) {
    say(&format!("aiot-tunnel: {error}"));
}

/// Writes a line to standard error, in the format of the log.
pub(crate) fn say(text: &str) {
    let text = match FORMAT.get() {
        None | Some(LogFormat::Text) => text.to_owned(),
        Some(format) => line(*format, Level::Error, text),
    };
    STDERR.push(format!("{text}\n").into_bytes());
}

/// A line without its end.
fn line(format: LogFormat, level: Level, text: &str) -> String {
    let now = SystemTime::now();
    // The library puts the code first.
    let code = text.strip_prefix("[LK-").and_then(|rest| rest.split_once("] "));
    match format {
        LogFormat::Text => text.to_owned(),
        LogFormat::Lk => {
            let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
            let separator = if code.is_some() { "" } else { " " };
            format!("[{}.{:03}]{separator}{text}", now.as_secs(), now.subsec_millis())
        }
        LogFormat::Json => {
            let (code, text) = match code {
                Some((code, text)) => (Some(format!("LK-{code}")), text),
                None => (None, text),
            };
            serde_json::json!({
                "time": humantime::format_rfc3339_millis(now).to_string(),
                "level": level.as_str().to_ascii_lowercase(),
                "code": code,
                "text": text,
            })
            .to_string()
        }
        // The priorities of syslog(3).
        LogFormat::Journald => {
            let priority = match level {
                Level::Error => 3,
                Level::Warn => 4,
                Level::Info => 6,
                Level::Debug | Level::Trace => 7,
            };
            // Each line of a text is an entry of its own.
            let lines: Vec<_> = text.lines().map(|line| format!("<{priority}>{line}")).collect();
            lines.join("\n")
        }
    }
}

/// Starts the threads that write. Until then, lines wait in their queues: tokens can be taken out of
/// the environment only while the process has one thread.
pub(crate) fn start() {
    start_log();
    STDOUT.start("event-writer", io::stdout().as_fd().try_clone_to_owned().map(File::from));
}

/// Starts the thread of [`STDERR`] alone. The other one would keep standard output open.
pub(crate) fn start_log() {
    STDERR.start("log-writer", io::stderr().as_fd().try_clone_to_owned().map(File::from));
}

/// Waits for the last lines: at the end of the program.
pub(crate) fn finish() {
    start();
    let deadline = Instant::now() + LAST_LINES;
    STDERR.flush(deadline);
    STDOUT.flush(deadline);
}

/// Whether log lines on standard error have colors, unless `RUST_LOG_STYLE` says otherwise.
fn has_colors() -> bool {
    use std::io::IsTerminal;
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
    io::stderr().is_terminal() && !is_set("NO_COLOR") && !is_dumb
}

/// Passes what the logger writes on to [`STDERR`], one line at a time.
#[derive(Default)]
struct Log(Vec<u8>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.0.extend_from_slice(part);
            if part.ends_with(b"\n") {
                STDERR.push(std::mem::take(&mut self.0));
            }
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue of lines in front of a descriptor.
pub(crate) struct Lines {
    state: Mutex<State>,
    /// Signalled when there is something to write, and when something was written.
    changed: Condvar,
    /// The line that stands in the place of so many lines that were left out.
    left_out: fn(u64) -> Vec<u8>,
}

/// [`Lines`] of text.
fn left_out(count: u64) -> Vec<u8> {
    let what = if count == 1 { "1 line was" } else { &format!("{count} lines were") };
    format!("aiot-tunnel: {what} left out here: this output took no more\n").into_bytes()
}

struct State {
    queue: VecDeque<Item>,
    /// The bytes of the queued lines.
    bytes: usize,
    /// Lines that were left out since the last item that says so.
    left_out: u64,
    has_thread: bool,
    /// The thread writes an item that it has taken.
    is_writing: bool,
    /// The last write has failed. So the number of lines left out waits for the next line.
    has_failed: bool,
}

enum Item {
    Line(Vec<u8>),
    LeftOut(u64),
}

impl Lines {
    pub(crate) const fn new(left_out: fn(u64) -> Vec<u8>) -> Self {
        let state = State {
            queue: VecDeque::new(),
            bytes: 0,
            left_out: 0,
            has_thread: false,
            is_writing: false,
            has_failed: false,
        };
        Lines { state: Mutex::new(state), changed: Condvar::new(), left_out }
    }

    /// Queues a line with its line break. Leaves it out if there is no room. Does not block.
    pub(crate) fn push(&self, line: Vec<u8>) {
        let mut state = self.lock();
        if state.bytes + line.len() > MAX_WAITING {
            state.left_out += 1;
            return;
        }
        let left_out = std::mem::take(&mut state.left_out);
        if left_out > 0 {
            state.queue.push_back(Item::LeftOut(left_out));
        }
        state.bytes += line.len();
        state.queue.push_back(Item::Line(line));
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn start(&'static self, name: &str, sink: io::Result<impl Write + Send + 'static>) {
        let mut state = self.lock();
        if state.has_thread {
            return;
        }
        // A descriptor that is not open takes nothing.
        let Ok(sink) = sink else { return };
        let run = move || self.write_all(sink);
        state.has_thread =
            thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(run).is_ok();
    }

    /// Waits until everything is written that can be.
    pub(crate) fn flush(&self, deadline: Instant) {
        let mut state = self.lock();
        while state.has_thread && !state.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: writes for as long as the program runs.
    fn write_all(&self, mut sink: impl Write) {
        // Whether a line was cut off, so that the next one must not stand behind its beginning.
        let mut is_cut = false;
        loop {
            let item = self.take();
            let mut bytes = if is_cut { b"\n".to_vec() } else { Vec::new() };
            match &item {
                Item::Line(line) => bytes.extend_from_slice(line),
                Item::LeftOut(count) => bytes.extend_from_slice(&(self.left_out)(*count)),
            }
            let (written, result) = write(&mut sink, &bytes);
            is_cut = (is_cut || written > 0) && result.is_err();
            self.written(&item, result.is_ok());
        }
    }

    /// Waits for the next item.
    fn take(&self) -> Item {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.next() {
                state.is_writing = true;
                return item;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn written(&self, item: &Item, is_ok: bool) {
        let mut state = self.lock();
        state.is_writing = false;
        state.has_failed = !is_ok;
        if !is_ok {
            state.left_out += match item {
                Item::Line(_) => 1,
                Item::LeftOut(count) => *count,
            };
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl State {
    fn next(&mut self) -> Option<Item> {
        let Some(item) = self.queue.pop_front() else {
            let is_due = self.left_out > 0 && !self.has_failed;
            return is_due.then(|| Item::LeftOut(std::mem::take(&mut self.left_out)));
        };
        if let Item::Line(line) = &item {
            self.bytes -= line.len();
        }
        Some(item)
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.is_writing && (self.left_out == 0 || self.has_failed)
    }
}

/// Writes everything, and returns how many bytes were written.
fn write(sink: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match sink.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(length) => written += length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The descriptor is shared with another program that has made it non-blocking.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL),
            Err(e) => return (written, Err(e)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A sink that takes a write when it is told to, with the result that it is told.
    struct Gate(mpsc::Receiver<io::Result<usize>>, mpsc::Sender<String>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let Ok(result) = self.0.recv() else { return Err(io::ErrorKind::BrokenPipe.into()) };
            let taken = result?.min(bytes.len());
            let _ = self.1.send(String::from_utf8_lossy(&bytes[..taken]).into_owned());
            Ok(taken)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A queue with its thread, which writes to a gate.
    fn queue() -> (&'static Lines, mpsc::Sender<io::Result<usize>>, mpsc::Receiver<String>) {
        let (open, gate) = mpsc::channel();
        let (sender, written) = mpsc::channel();
        let lines: &'static Lines = Box::leak(Box::new(Lines::new(left_out)));
        thread::spawn(move || lines.write_all(Gate(gate, sender)));
        lines.lock().has_thread = true;
        (lines, open, written)
    }

    #[test]
    fn lines_without_room_are_left_out_and_counted_in_their_place() {
        let (lines, open, written) = queue();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let fits = MAX_WAITING / line.len();
        // The thread may have taken one of them.
        for _ in 0..fits + 10 {
            lines.push(line.clone());
        }
        let left_out = lines.lock().left_out;
        assert!((9..=10).contains(&left_out), "{left_out}");
        for _ in 0..fits + 10 - left_out as usize {
            open.send(Ok(usize::MAX)).unwrap();
            assert_eq!(written.recv().unwrap().len(), line.len());
        }
        open.send(Ok(usize::MAX)).unwrap();
        let text = written.recv().unwrap();
        assert!(text.contains(&format!(" {left_out} lines were left out")), "{text}");
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn a_line_that_cannot_be_written_is_counted_when_another_one_can() {
        let (lines, open, written) = queue();
        let full = || Err(io::ErrorKind::StorageFull.into());
        lines.push(b"one\n".to_vec());
        open.send(Ok(2)).unwrap();
        assert_eq!(written.recv().unwrap(), "on");
        open.send(full()).unwrap();
        // Nothing can be written, so the end does not wait for it.
        lines.flush(Instant::now() + Duration::from_secs(60));
        lines.push(b"two\n".to_vec());
        for text in ["\naiot-tunnel: 1 line was left out here: this output took no more\n", "two\n"]
        {
            open.send(Ok(usize::MAX)).unwrap();
            assert_eq!(written.recv().unwrap(), text);
        }
        lines.flush(Instant::now() + Duration::from_secs(60));
        assert!(lines.lock().is_idle());
    }

    #[test]
    fn the_end_waits_for_a_reader_that_takes_nothing_only_until_its_deadline() {
        let (lines, _open, _written) = queue();
        lines.push(b"one\n".to_vec());
        lines.flush(Instant::now() + Duration::from_millis(20));
        assert!(!lines.lock().is_idle());
    }
}
