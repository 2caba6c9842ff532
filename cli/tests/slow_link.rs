//! A keystroke does not wait behind a file, and a file is not taken for stalled, on a link as slow as
//! the platform's own limit. The figures are those of `make bench NAME=slow-link`; these tests only
//! notice when they are far off. Where network namespaces cannot be made they say so and pass.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel_testkit::link::{queue_length, Link, CLOUD, QUEUE};
use aiot_tunnel_testkit::path::{Kind, Path};
use aiot_tunnel_testkit::skip;
use aiot_tunnel_testkit::streams::{limited, round_trip, writing, Door, Reader};

/// A keystroke waits in the link's own queue, as it would behind a file over plain TCP. The target is
/// three times that; a busy machine gets some more.
const TIMES: u32 = 3;
const KEYS: usize = 15;

/// A keystroke's median beside a bulk stream, which lasts for `time` before and must go on. `is_up`:
/// from the device.
fn a_keystroke_overtakes(test: &str, kind: Kind, bits: u64, is_up: bool, time: Duration) {
    let link = match Link::new(bits) {
        Ok(link) => link,
        Err(why) => return skip(test, format_args!("no slow link: {why}")),
    };
    let (bulk, echo) = link.device.within(|| (Door::new("bulk"), Door::new("echo")));
    let services = [bulk.service(), echo.service()];
    let path = link.cloud.within(|| Path::at(CLOUD, kind, &[]));
    let _agent = link.device.within(|| path.agent(&services));
    // One access side for each service; they meet at the gateway.
    let (to_bulk, to_echo) = link.cloud.within(|| (path.listen("bulk"), path.listen("echo")));
    echo.serve(|stream| {
        let _ = std::io::copy(&mut &stream, &mut &stream);
    });
    let mut keys: TcpStream = link.cloud.within(|| limited(to_echo.connect()));
    round_trip(&mut keys);

    let client = link.cloud.within(|| to_bulk.connect());
    let service = bulk.accept();
    let (sender, receiver) = if is_up { (service, client) } else { (client, service) };
    sender.set_write_timeout(None).unwrap();
    let sending = writing(sender);
    let reading = thread::spawn(move || {
        let mut receiver = Reader::new(receiver);
        receiver.read_up_to((bits as f64 / 8.0 * time.as_secs_f64() * 0.7) as usize);
        receiver
    });
    // The file gets its share of the link, which also fills all queues on the way.
    let began = Instant::now();
    let receiver = reading.join().expect("the file's session lives");
    assert!(began.elapsed() < 2 * time, "the file takes {:?}, not {time:?}", began.elapsed());
    // From here on it is read as it comes.
    let reading = thread::spawn(move || {
        let mut receiver = receiver;
        receiver.read_to_end()
    });
    let mut times: Vec<Duration> = (0..KEYS).map(|_| round_trip(&mut keys)).collect();
    times.sort_unstable();
    let limit =
        Duration::from_secs_f64(queue_length(bits, QUEUE) as f64 * 8.0 / bits as f64) * TIMES;
    assert!(!reading.is_finished() && !sending.is_finished(), "the file's session has ended");
    assert!(times[KEYS / 2] < limit, "median {:?}, limit {limit:?}: {times:?}", times[KEYS / 2]);
}

const MEGABIT: u64 = 1_000_000;
/// The platform's own limit.
const SLOWEST: u64 = 100_000;

#[test]
fn a_keystroke_overtakes_a_file_that_goes_up() {
    let time = Duration::from_secs(6);
    a_keystroke_overtakes("a file that goes up", Kind::TLS, MEGABIT, true, time);
}

#[test]
fn a_keystroke_overtakes_a_file_that_goes_down() {
    let time = Duration::from_secs(6);
    a_keystroke_overtakes("a file that goes down", Kind::TLS, MEGABIT, false, time);
}

#[test]
fn without_extensions_a_keystroke_overtakes_a_file_that_goes_up() {
    let time = Duration::from_secs(6);
    let kind = Kind::WITHOUT_EXTENSIONS;
    a_keystroke_overtakes("a file to a foreign cloud", kind, MEGABIT, true, time);
}

#[test]
#[ignore = "takes a minute"]
fn a_file_at_the_platforms_limit_is_kept_and_overtaken_both_ways() {
    let time = Duration::from_secs(60);
    let up = || a_keystroke_overtakes("100 kbit/s up", Kind::TLS, SLOWEST, true, time);
    let down = || a_keystroke_overtakes("100 kbit/s down", Kind::TLS, SLOWEST, false, time);
    thread::scope(|scope| {
        let up = scope.spawn(up);
        down();
        up.join().unwrap();
    });
}
