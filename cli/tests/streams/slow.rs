//! Slow is not stalled.

use super::*;

/// The stall time of device and gateway in the tests that shorten it.
const STALL: Duration = Duration::from_millis(500);
/// Several stall times.
const LONG: Duration = Duration::from_millis(3500);
const FILE: usize = 16 << 20;

/// A path whose device and gateway run in the test, with short stall times; the access side is
/// the program.
struct Scaled {
    _gateway: Gateway,
    _device: Running,
    url: String,
    door: Door,
    extensions: bool,
}

impl Scaled {
    fn new(extensions: bool) -> Self {
        let door = Door::new(SERVICE);
        let gateway = Gateway::builder()
            .tunnel(gateways::tunnel(TUNNEL))
            .stall_timeout(STALL)
            .start("127.0.0.1:0".parse().unwrap())
            .unwrap();
        let limits = Limits::new().with_stall_timeout(STALL);
        let builder = plain().limits(limits).service(door.service()).service(echo("echo"));
        let device = Running::start(builder);
        let port = gateway.local_addr().port();
        let params = aiot_tunnel::ConnectParams::new(
            "127.0.0.1",
            aiot_tunnel::Port::new(port).unwrap(),
            &format!("/tunnel/{TUNNEL}/dest"),
            aiot_tunnel::Token::new(aiot_tunnel_testkit::DEVICE_TOKEN).unwrap(),
        );
        device.handle.add(&id(TUNNEL), params.unwrap()).unwrap();
        device.expect(EventKind::Connect, TUNNEL);
        let url = format!("ws://{}", gateway.local_addr());
        Scaled { _gateway: gateway, _device: device, url, door, extensions }
    }

    fn access(&self, service: &str, more: &[&str]) -> Program {
        let mut arguments =
            vec!["access", "--url", &self.url, "--tunnel", TUNNEL, "--service", service];
        if !self.extensions {
            arguments.push("--no-extensions");
        }
        arguments.extend(more);
        Program::start(&arguments)
    }

    fn listen(&self, service: &str) -> Access {
        let mut program = self.access(service, &["--listen", "127.0.0.1:0"]);
        let address = program.address();
        Access { program, address }
    }
}

fn a_service_that_pauses_gets_everything(door: &Door, access: &Access, pause: Duration) {
    let client = access.connect();
    let service = door.accept();
    let uploading = thread::spawn(move || {
        streams::write(&client, 0, FILE);
        client.shutdown(Shutdown::Write).unwrap();
        Reader::new(client).read_to_end()
    });
    let mut service = Reader::new(service);
    service.read_up_to(FILE / 8);
    // The service is busy with something else, such as its flash memory.
    thread::sleep(pause);
    service.read_up_to(FILE);
    drop(service);
    assert_eq!(uploading.join().unwrap(), End::Orderly);
}

#[test]
fn a_service_that_pauses_for_many_stall_times_gets_everything() {
    let scaled = Scaled::new(true);
    a_service_that_pauses_gets_everything(&scaled.door, &scaled.listen(SERVICE), LONG);
}

#[test]
fn without_extensions_a_lone_service_that_pauses_gets_everything() {
    let scaled = Scaled::new(false);
    a_service_that_pauses_gets_everything(&scaled.door, &scaled.listen(SERVICE), LONG);
}

fn a_service_that_pauses_for_15_seconds_gets_everything(kind: Kind) {
    let line = Line::new(kind);
    let access = line.path.listen(SERVICE);
    a_service_that_pauses_gets_everything(&line.door, &access, Duration::from_secs(15));
}

/// The reader of stdout pauses, and a new session opens meanwhile.
fn a_reader_of_stdout_that_pauses_gets_everything(line: &Line, pause: Duration) {
    const LENGTH: usize = 52_000_000;
    let mut access = line.path.stdio(SERVICE);
    let stdin = access.process.take_stdin();
    let mut stdout = Reader::new(access.process.take_stdout());
    let service = line.door.accept();
    let downloading = thread::spawn(move || {
        service.set_write_timeout(None).unwrap();
        streams::write(&service, 0, LENGTH);
    });
    stdout.read_up_to(LENGTH / 100);
    let (other, began) = (line.path.listen(SERVICE), Instant::now());
    let (mut client, mut service) = (other.connect(), line.door.accept());
    client.write_all(b"k").unwrap();
    service.read_exact(&mut [0]).unwrap();
    assert!(began.elapsed() < PROMPT, "another session waits: {:?}", began.elapsed());
    thread::sleep(pause.saturating_sub(began.elapsed()));
    assert_eq!(stdout.read_to_end(), End::Orderly);
    assert_eq!(stdout.taken, LENGTH);
    // The service's end is not the end of stdin.
    drop(stdin);
    let (status, log) = access.finish();
    assert!(status.success(), "{log}");
    downloading.join().unwrap();
}

fn stdout_that_nobody_reads_holds_up_no_other_session(kind: Kind) {
    let line = Line::new(kind);
    a_reader_of_stdout_that_pauses_gets_everything(&line, Duration::from_secs(1));
}

fn a_reader_of_stdout_that_pauses_for_35_seconds_gets_everything(kind: Kind) {
    let line = Line::new(kind);
    a_reader_of_stdout_that_pauses_gets_everything(&line, Duration::from_secs(35));
}

/// A session whose receiver is slow, beside one that echoes; both last for `time`.
fn beside_an_echo(
    sender: TcpStream,
    receiver: TcpStream,
    mut echo: TcpStream,
    rate: usize,
    time: Duration,
) {
    round_trip(&mut echo);
    sender.set_write_timeout(None).unwrap();
    let sending = writing(sender);
    let (over, is_over) = mpsc::channel::<()>();
    let typing = thread::spawn(move || {
        let mut worst = Duration::ZERO;
        while is_over.try_recv() == Err(mpsc::TryRecvError::Empty) {
            worst = worst.max(round_trip(&mut echo));
            thread::sleep(Duration::from_millis(10));
        }
        worst
    });
    let mut receiver = Reader::new(receiver);
    if rate == 0 {
        thread::sleep(time);
    } else {
        receiver.read_slowly(rate, time);
    }
    over.send(()).unwrap();
    let worst = typing.join().expect("the sibling lives");
    assert!(!sending.is_finished(), "the slow session has ended");
    assert!(worst < PROMPT, "the sibling's echo took {worst:?}");
    drop(receiver);
    sending.join().unwrap();
}

/// The service's end is slow, or else the client's.
fn slow_beside_an_echo(door: &Door, access: &Access, echo: TcpStream, case: Case) {
    let (client, service) = (access.connect(), door.accept());
    match case.at_service {
        true => beside_an_echo(client, service, echo, case.rate, case.time),
        false => beside_an_echo(service, client, echo, case.rate, case.time),
    }
}

#[derive(Clone, Copy)]
struct Case {
    at_service: bool,
    /// Bytes a second.
    rate: usize,
    time: Duration,
}

fn scaled(at_service: bool, rate: usize) {
    let scaled = Scaled::new(true);
    // One access side for both sessions, so that they share a WebSocket at each end.
    let (access, echoing) = (scaled.listen(SERVICE), scaled.listen("echo"));
    let case = Case { at_service, rate, time: LONG };
    slow_beside_an_echo(&scaled.door, &access, echoing.connect(), case);
}

#[test]
fn a_service_that_reads_20_kb_a_second_is_kept_and_holds_up_nobody() {
    scaled(true, 20_000);
}

#[test]
fn a_service_that_reads_100_kb_a_second_is_kept_and_holds_up_nobody() {
    scaled(true, 100_000);
}

#[test]
fn a_service_that_takes_nothing_is_kept_and_holds_up_nobody() {
    scaled(true, 0);
}

#[test]
fn a_client_that_reads_20_kb_a_second_is_kept_and_holds_up_nobody() {
    scaled(false, 20_000);
}

#[test]
fn a_client_that_takes_nothing_is_kept_and_holds_up_nobody() {
    scaled(false, 0);
}

/// Two sessions of one access side: a service that echoes what begins with `E`, and writes
/// without end otherwise.
#[test]
fn a_client_that_takes_nothing_holds_up_no_session_of_the_same_access_side() {
    let line = Line::new(Kind::PLAIN);
    let access = line.path.listen(SERVICE);
    let (client, service) = (access.connect(), line.door.accept());
    let (mut typist, mut echoing) = (access.connect(), line.door.accept());
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let flooding = thread::spawn(move || {
        service.set_write_timeout(None).unwrap();
        let mut service = &service;
        while service.write_all(&[7; 4096]).is_ok() {
            count.fetch_add(4096, Ordering::SeqCst);
        }
    });
    thread::spawn(move || {
        let mut byte = [0];
        while echoing.read_exact(&mut byte).is_ok() && echoing.write_all(&byte).is_ok() {}
    });
    // The flood stands still once all buffers are full.
    let (mut seen, mut since) = (0, Instant::now());
    wait::until("the flood stands still", || {
        let now = written.load(Ordering::SeqCst);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        seen > 0 && since.elapsed() > ANSWER_DELAY
    });
    for turn in 0..100 {
        let time = round_trip(&mut typist);
        assert!(time < PROMPT, "round trip {turn} took {time:?}");
    }
    drop(client);
    flooding.join().unwrap();
}

fn long(kind: Kind, at_service: bool, rate: usize) {
    let door = Door::new(SERVICE);
    let path = Path::new(kind);
    let _agent = path.agent(&[door.service(), echo("echo")]);
    let (access, echoing) = (path.listen(SERVICE), path.listen("echo"));
    let case = Case { at_service, rate, time: Duration::from_secs(60) };
    slow_beside_an_echo(&door, &access, echoing.connect(), case);
    // A later connection is served.
    let (client, service) = (access.connect(), door.accept());
    streams::write(&client, 0, PART);
    Reader::new(service).read_up_to(PART);
}

fn a_slow_service_is_kept_for_a_minute(kind: Kind) {
    for rate in [20_000, 100_000] {
        long(kind, true, rate);
    }
}

fn a_slow_client_is_kept_for_a_minute(kind: Kind) {
    long(kind, false, 20_000);
}

fn ends_that_take_nothing_are_kept_for_a_minute(kind: Kind) {
    long(kind, true, 0);
    long(kind, false, 0);
}

macro_rules! long_ones {
    ($($promise:ident)*) => {
        mod plain {
            $(#[test] #[ignore = "takes up to two minutes"]
            fn $promise() { super::$promise(super::Kind::PLAIN); })*
            #[test]
            fn stdout_that_nobody_reads_holds_up_no_other_session() {
                super::stdout_that_nobody_reads_holds_up_no_other_session(super::Kind::PLAIN);
            }
        }
        mod tls {
            $(#[test] #[ignore = "takes up to two minutes"]
            fn $promise() { super::$promise(super::Kind::TLS); })*
            #[test]
            fn stdout_that_nobody_reads_holds_up_no_other_session() {
                super::stdout_that_nobody_reads_holds_up_no_other_session(super::Kind::TLS);
            }
        }
    };
}

long_ones! {
    a_service_that_pauses_for_15_seconds_gets_everything
    a_reader_of_stdout_that_pauses_for_35_seconds_gets_everything
    a_slow_service_is_kept_for_a_minute
    a_slow_client_is_kept_for_a_minute
    ends_that_take_nothing_are_kept_for_a_minute
}

/// A client that is slow does not keep `access` from noticing that its gateway is gone.
#[test]
fn a_lost_gateway_is_noticed_beside_a_client_that_takes_nothing() {
    let mut line = Line::new(Kind::PLAIN);
    let (access, client, service) = line.session();
    let downloading = writing(service);
    let mut client = Reader::new(client);
    client.read_up_to(PART);
    line.path.gateway.process.kill();
    access.program.expect_log("connecting again");
    assert_eq!(downloading.join().unwrap(), End::Reset);
    assert_eq!(client.read_to_end(), End::Reset);
}
