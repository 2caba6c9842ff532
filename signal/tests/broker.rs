//! The library against a real broker: mosquitto with TLS. A test whose programs are not installed says
//! so and passes; scripts/setup installs them.

use std::io::Read;
use std::net::TcpListener;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use aiot_tunnel::ipc::Command;
use aiot_tunnel_signal::{
    Broker, Credentials, Device, HandOver, NotHandedOver, Options, Signal, Times, Tls,
};
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::mosquitto::{Mosquitto, Subscriber};
use aiot_tunnel_testkit::wait::{self, TIMEOUT};
use aiot_tunnel_testkit::{logs, skip};
use openssl::ssl::{NameType, SslAcceptor, SslMethod, SslVersion};
use serde_json::{json, Value};

const TOKEN: &str = "hush-tunnel-token";
const SECRET: &str = "hush-device-secret";
const TOPICS: &str = "/sys/pk/device-1/#";

fn device() -> Device {
    Device::new("pk", "device-1").unwrap()
}

/// The sign-in of the platform; mosquitto knows it as a user with a password.
fn credentials() -> Credentials {
    Credentials::from_device_secret(&device(), SECRET, true).unwrap()
}

fn broker(test: &str) -> Option<Mosquitto> {
    logs::keep();
    logs::note_secret(TOKEN.as_bytes());
    logs::note_secret(SECRET.as_bytes());
    let credentials = credentials();
    let (user, password) =
        (credentials.username().unwrap(), credentials.expose_password().unwrap());
    logs::note_secret(password.as_bytes());
    Mosquitto::new(user, password, TOPICS).map_err(|why| skip(test, why)).ok()
}

/// Short gaps, so that no test waits.
fn times() -> Times {
    let mut times = Times::default();
    times.retry_least = Duration::from_millis(20);
    times.retry_most = Duration::from_millis(100);
    times.refused_least = Duration::from_millis(20);
    times.refused_most = Duration::from_millis(100);
    times.ask_least = Duration::from_millis(1);
    times.ask_most = Duration::from_millis(100);
    times
}

fn options(mosquitto: &Mosquitto) -> Options {
    let tls = Tls::new().with_ca_pem(&mosquitto.authority().pem()).unwrap();
    let broker: Broker = mosquitto.url().parse().unwrap();
    Options::new(device(), broker.with_tls(tls).unwrap(), credentials()).with_times(times())
}

/// An agent that takes everything.
struct Agent(Sender<Command>);

impl HandOver for Agent {
    fn hand_over(&mut self, command: &Command) -> Result<(), NotHandedOver> {
        self.0.send(command.clone()).map_err(|e| NotHandedOver::Unreachable(e.to_string()))
    }
}

/// A running library, and what it has handed over.
struct Running {
    signal: Signal,
    commands: Receiver<Command>,
}

impl Running {
    fn start(options: Options) -> Self {
        let (sender, commands) = mpsc::channel();
        Running { signal: Signal::start(options, Agent(sender)).unwrap(), commands }
    }

    /// The next command, as text. No command holds another token than [`TOKEN`].
    fn next(&self) -> String {
        let command = self.commands.recv_timeout(TIMEOUT).expect("a command in time");
        match command {
            Command::Add(id, params) | Command::Update(id, params) => {
                assert!(params.token().expose().starts_with(TOKEN));
                assert_eq!(params.path(), format!("/tunnel/{id}/dest"));
                format!("{id} {}:{}", params.host(), params.port())
            }
            Command::Delete(id) => format!("close {id}"),
            other => panic!("{other:?}"),
        }
    }
}

/// The platform's side of the broker.
struct Platform<'a> {
    mosquitto: &'a Mosquitto,
    requests: Subscriber,
}

impl<'a> Platform<'a> {
    fn new(mosquitto: &'a Mosquitto) -> Self {
        Platform { mosquitto, requests: mosquitto.subscribe(&device().request_topic()) }
    }

    /// Waits for a request; its number. Then the device has subscribed.
    fn request(&self) -> u64 {
        let request = self.requests.expect("{\"id\":");
        let request: Value = serde_json::from_str(&request).unwrap();
        assert_eq!(request["params"], json!({}));
        request["id"].as_u64().unwrap()
    }

    fn notify(&self, message: &Value) {
        self.mosquitto.publish(&device().notify_topic(), message.to_string());
    }

    fn reply(&self, message: &Value) {
        self.mosquitto.publish(&device().reply_topic(), message.to_string());
    }
}

/// A notify message as the platform sends it.
fn connect(id: &str, port: Value) -> Value {
    json!({
        "schema": "wss", "path": format!("/tunnel/{id}/dest"), "tunnel_id": id,
        "host": "gw.example", "port": port, "token": TOKEN, "token_expire": 86400,
        "operation": "connect", "udi": "user-1"
    })
}

/// Connection data without an operation, as in an answer.
fn update(id: &str, port: u16) -> Value {
    let mut message = connect(id, port.into());
    message.as_object_mut().unwrap().remove("operation");
    message
}

#[test]
fn the_platforms_messages_become_commands() {
    let Some(mosquitto) = broker("the platform's messages") else { return };
    let platform = Platform::new(&mosquitto);
    let running = Running::start(options(&mosquitto));
    let number = platform.request();
    platform.reply(&json!({"id": number, "code": 200, "data": update("t0", 1)}));
    assert_eq!(running.next(), "t0 gw.example:1");
    platform.notify(&connect("t1", json!("443")));
    assert_eq!(running.next(), "t1 gw.example:443");
    platform.notify(&connect("t2", json!(8443)));
    assert_eq!(running.next(), "t2 gw.example:8443");
    platform.notify(&update("t1", 444));
    assert_eq!(running.next(), "t1 gw.example:444");
    platform.notify(&json!({"tunnel_id": "t1", "operation": "close", "close_reason": "done"}));
    assert_eq!(running.next(), "close t1");
    // On demand.
    running.signal.handle().ask();
    platform.request();
    running.signal.stop();
    assert!(mosquitto.log().contains("Received DISCONNECT from pk.device-1|securemode=2"));
}

#[test]
fn malformed_messages_are_dropped_and_the_next_one_works() {
    let Some(mosquitto) = broker("malformed messages") else { return };
    let platform = Platform::new(&mosquitto);
    // Messages that a broker has kept come with the subscription.
    let retained = connect("retained", json!("1")).to_string();
    mosquitto.publish_with(&device().notify_topic(), retained, &["-q", "1", "-r"]);
    let running = Running::start(options(&mosquitto));
    platform.request();
    let (notify, reply) = (device().notify_topic(), device().reply_topic());
    for topic in [&notify, &reply] {
        for junk in [&b""[..], b"{", b"[]", b"\xff\xfe\x00", &[b'x'; 10_240], &[b'['; 100_000]] {
            mosquitto.publish(topic, junk);
        }
    }
    for port in [json!("0"), json!(65536), json!(null), json!("443 ")] {
        platform.notify(&connect("bad", port));
    }
    let mut unknown = connect("bad", json!("1"));
    unknown["operation"] = json!("open");
    platform.notify(&unknown);
    platform.reply(&json!({"id": 1, "code": 6205, "message": "no", "data": update("bad", 1)}));
    mosquitto.publish("/sys/pk/device-1/secure_tunnel/other", b"not ours");
    platform.notify(&connect("good", json!("443")));
    assert_eq!(running.next(), "good gw.example:443");
}

/// The broker would send it again after each new connection.
#[test]
fn a_packet_that_is_too_long_does_not_come_back_for_ever() {
    let Some(mosquitto) = broker("a packet that is too long") else { return };
    let platform = Platform::new(&mosquitto);
    let running = Running::start(options(&mosquitto));
    platform.request();
    mosquitto.publish(&device().notify_topic(), vec![b'x'; 300_000]);
    // The connection ends, and the next one asks again.
    platform.request();
    platform.notify(&connect("good", json!("443")));
    assert_eq!(running.next(), "good gw.example:443");
}

#[test]
fn identical_data_is_handed_over_again_only_after_the_agent_has_lost_it() {
    let Some(mosquitto) = broker("identical data") else { return };
    let platform = Platform::new(&mosquitto);
    let running = Running::start(options(&mosquitto));
    let handle = running.signal.handle();
    handle.agent_connected();
    platform.request();
    platform.notify(&connect("t1", json!("443")));
    assert_eq!(running.next(), "t1 gw.example:443");
    for _ in 0..3 {
        platform.notify(&connect("t1", json!("443")));
        platform.notify(&update("t1", 443));
        platform.reply(&json!({"id": 1, "code": 200, "data": update("t1", 443)}));
    }
    platform.notify(&connect("t2", json!("443")));
    assert_eq!(running.next(), "t2 gw.example:443", "and nothing between");
    let t1 = aiot_tunnel::TunnelId::new("t1").unwrap();
    handle.expired(&t1);
    let number = platform.request();
    platform.reply(&json!({"id": number, "code": 200, "data": update("t1", 443)}));
    assert_eq!(running.next(), "t1 gw.example:443");
    // An agent that has started again gets what is known, and the platform is asked for the rest.
    handle.agent_disconnected();
    handle.agent_connected();
    let mut both = [running.next(), running.next()];
    both.sort();
    assert_eq!(both, ["t1 gw.example:443", "t2 gw.example:443"]);
    platform.request();
}

#[test]
fn a_broker_that_starts_again_is_found_and_nothing_is_lost() {
    let Some(mut mosquitto) = broker("a broker that starts again") else { return };
    let running = Running::start(options(&mosquitto));
    let platform = Platform::new(&mosquitto);
    running.signal.handle().ask();
    platform.request();
    drop(platform);
    for round in 0..3 {
        mosquitto.stop();
        mosquitto.start();
        // Perhaps before the device is there again: the broker keeps it for the device's session.
        mosquitto.publish(&device().notify_topic(), connect("t1", json!(round + 1)).to_string());
        // A message that the broker did not see acknowledged before its end comes again.
        let former = format!("t1 gw.example:{round}");
        let mut taken = running.next();
        while taken == former {
            taken = running.next();
        }
        assert_eq!(taken, format!("t1 gw.example:{}", round + 1));
    }
}

#[test]
fn a_sign_in_that_is_refused_is_tried_again() {
    let Some(mut mosquitto) = broker("a sign-in that is refused") else { return };
    let user = credentials().username().unwrap().to_owned();
    mosquitto.stop();
    mosquitto.set_password(&user, "hush-other");
    mosquitto.start();
    let running = Running::start(options(&mosquitto));
    wait::until("several refusals", || mosquitto.log().matches("not authorised").count() >= 3);
    mosquitto.stop();
    mosquitto.set_password(&user, credentials().expose_password().unwrap());
    mosquitto.start();
    // It is there as soon as the broker keeps its session.
    wait::until("a subscription", || mosquitto.log().contains("Sending SUBACK to pk.device-1"));
    mosquitto.publish(&device().notify_topic(), connect("t1", json!("443")).to_string());
    assert_eq!(running.next(), "t1 gw.example:443");
}

#[test]
fn a_broker_with_the_wrong_certificate_gets_no_password() {
    let Some(mosquitto) = broker("the wrong certificate") else { return };
    let broker = |url: String, ca: &[u8]| {
        let broker: Broker = url.parse().unwrap();
        broker.with_tls(Tls::new().with_ca_pem(ca).unwrap()).unwrap()
    };
    let other = Authority::new().pem();
    for broker in [
        broker(mosquitto.url(), &other),
        // The certificate is for the name, not for the address.
        broker(format!("mqtts://127.0.0.1:{}", mosquitto.port()), &mosquitto.authority().pem()),
    ] {
        let before = mosquitto.log().matches("alert").count();
        let running =
            Running::start(Options::new(device(), broker, credentials()).with_times(times()));
        wait::until("several attempts", || mosquitto.log().matches("alert").count() >= before + 3);
        running.signal.stop();
        assert!(!mosquitto.log().contains("as pk.device-1"), "{}", mosquitto.log());
    }
}

#[test]
fn a_client_certificate_is_presented() {
    let test = "a client certificate";
    if broker(test).is_none() {
        return;
    }
    let credentials = credentials();
    let (user, password) =
        (credentials.username().unwrap(), credentials.expose_password().unwrap());
    let more = "require_certificate true";
    let mosquitto = Mosquitto::with(user, password, TOPICS, more).unwrap();
    let identity = mosquitto.authority().identity("device-1");
    let key = openssl::pkey::PKey::private_key_from_pem(&identity.key).unwrap();
    // The traditional form of an EC key.
    let traditional = key.ec_key().unwrap().private_key_to_pem().unwrap();
    for key in [&identity.key, &traditional] {
        let tls = Tls::new().with_ca_pem(&mosquitto.authority().pem()).unwrap();
        let tls = tls.with_client_pem(&identity.certificate, key).unwrap();
        let broker: Broker = mosquitto.url().parse().unwrap();
        let options = Options::new(device(), broker.with_tls(tls).unwrap(), credentials.clone());
        let before = mosquitto.log().matches("Sending SUBACK to pk.device-1").count();
        let running = Running::start(options.with_times(times()));
        wait::until("a subscription", || {
            mosquitto.log().matches("Sending SUBACK to pk.device-1").count() >= before + 2
        });
        running.signal.stop();
    }
}

#[test]
fn a_broker_that_says_nothing_has_a_deadline_and_a_stop_does_not_wait_for_it() {
    logs::keep();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let broker: Broker = format!("mqtt://127.0.0.1:{port}").parse().unwrap();
    let mut times = times();
    times.connect = Duration::from_secs(1);
    let running = Running::start(Options::new(device(), broker, credentials()).with_times(times));
    let first = wait::accept(&listener);
    let second = wait::accept(&listener);
    running.signal.stop();
    drop((first, second));
}

/// A broker with a certificate for this host; what it accepts, and the name that the client sends.
fn handshake(host: &str, is_old: bool) -> Option<Option<String>> {
    logs::keep();
    let authority = Authority::new();
    let identity = authority.identity(host);
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_certificate(&identity.x509()).unwrap();
    acceptor.set_private_key(&identity.private_key()).unwrap();
    if is_old {
        acceptor.set_min_proto_version(None).unwrap();
        acceptor.set_max_proto_version(Some(SslVersion::TLS1_1)).unwrap();
        acceptor.set_cipher_list("ALL:@SECLEVEL=0").unwrap();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let broker: Broker = format!("mqtts://{host}:{port}").parse().unwrap();
    let tls = Tls::new().with_ca_pem(&authority.pem()).unwrap();
    let options = Options::new(device(), broker.with_tls(tls).unwrap(), credentials());
    let running = Running::start(options.with_times(times()));
    let mut stream = acceptor.build().accept(wait::accept(&listener)).ok()?;
    // With TLS 1.3, a client that trusts nobody says so after its part of the handshake.
    let mut connect = [0];
    stream.read_exact(&mut connect).ok()?;
    running.signal.stop();
    Some(stream.ssl().servername(NameType::HOST_NAME).map(str::to_owned))
}

#[test]
fn a_name_is_in_the_tls_handshake_an_address_is_not_and_old_tls_is_refused() {
    assert_eq!(handshake("localhost", false), Some(Some("localhost".to_owned())));
    assert_eq!(handshake("127.0.0.1", false), Some(None));
    assert_eq!(handshake("localhost", true), None);
}
