//! The network fails: the device notices it in time and recovers.
//!
//! Tests that need a network of their own make one of three network namespaces: device, router,
//! cloud. On machines that do not allow it these tests say so and pass.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use aiot_tunnel::*;
use aiot_tunnel_testkit::certificates::Authority;
use aiot_tunnel_testkit::cloud::{params, upgrade, Cloud};
use aiot_tunnel_testkit::device_process::{self, spec, DeviceProcess, ECHO};
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::manager::{id, plain, Running};
use aiot_tunnel_testkit::namespaces::{mount_over, Namespace};
use aiot_tunnel_testkit::services::echo;
use aiot_tunnel_testkit::tunnel_end::TunnelEnd;
use aiot_tunnel_testkit::wait::{self, accept, TIMEOUT};
use aiot_tunnel_testkit::{frame, procfs, random, skip};
use rand::RngExt;
use serde_json::{json, Value};

#[test]
#[ignore = "not a test: the device's process of the other tests"]
fn device_process() {
    device_process::main();
}

const CLOUD: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
/// The router drops packets to this address and does not tell the sender.
const BLACK_HOLE: Ipv4Addr = Ipv4Addr::new(10, 77, 9, 9);

/// Short times, so that the time limits that follow from them are short, too.
fn short() -> Value {
    json!({"ping_interval": 300, "pong_timeout": 1000, "handshake_timeout": 1500})
}

/// device 10.77.1.2 - 10.77.1.1 router 10.77.2.1 - 10.77.2.2 cloud
struct World {
    device: Namespace,
    router: Namespace,
    cloud: Namespace,
}

impl World {
    /// `None`, with a message, on machines where namespaces cannot be made.
    fn new(test: &str) -> Option<Self> {
        World::try_new()
            .map_err(|why| skip(test, format_args!("no network namespaces: {why}")))
            .ok()
    }

    fn try_new() -> Result<Self, String> {
        let make = || Namespace::new().map_err(|e| format!("make a namespace: {e}"));
        let world = World { device: make()?, router: make()?, cloud: make()? };
        let (device, router, cloud) = (&world.device, &world.router, &world.cloud);
        let there = router.path();
        device.try_ip(&format!("link add wan type veth peer name lan netns {there}"))?;
        cloud.try_ip(&format!("link add net type veth peer name net netns {there}"))?;
        for (namespace, link, address) in [
            (device, "wan", "10.77.1.2/24"),
            (router, "lan", "10.77.1.1/24"),
            (router, "net", "10.77.2.1/24"),
            (cloud, "net", "10.77.2.2/24"),
        ] {
            namespace.ip("link set lo up");
            namespace.ip(&format!("addr add {address} dev {link}"));
            namespace.ip(&format!("link set {link} up"));
        }
        device.ip("route add default via 10.77.1.1");
        cloud.ip("route add default via 10.77.2.1");
        router.ip(&format!("route add blackhole {BLACK_HOLE}/32"));
        let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1");
        router.within(forward).map_err(|e| format!("let the router forward: {e}"))?;
        Ok(world)
    }

    /// Where devices connect.
    fn listen(&self) -> TcpListener {
        self.cloud.within(|| TcpListener::bind((CLOUD, 0)).unwrap())
    }

    fn start(&self, spec: &Value) -> DeviceProcess {
        self.device.within(|| DeviceProcess::start(spec))
    }

    /// Drops every packet in both directions and tells neither end.
    fn cut(&self) {
        self.router.ip("route add blackhole 10.77.1.2/32");
        self.router.ip("route add blackhole 10.77.2.2/32");
    }

    fn mend(&self) {
        self.router.ip("route del blackhole 10.77.1.2/32");
        self.router.ip("route del blackhole 10.77.2.2/32");
    }
}

/// The next connection that the device still uses. Attempts that it has given up while the network
/// was away may wait in the queue before it.
fn accept_living(listener: &TcpListener, device: &DeviceProcess) -> TunnelEnd {
    let listener = listener.try_clone().unwrap();
    let (sender, devices) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let sender = sender.clone();
            thread::spawn(move || {
                let opened = std::panic::catch_unwind(|| upgrade(tcp));
                if let Ok(device) = opened {
                    let _ = sender.send(device);
                }
            });
        }
    });
    device.expect("Connect t");
    let mut last = devices.recv_timeout(TIMEOUT).unwrap();
    while let Ok(newer) = devices.try_recv() {
        last = newer;
    }
    last
}

fn report(case: &str, what: &str, since: Instant) {
    eprintln!("{case}: {what} after {:.2?}", since.elapsed());
}

/// Data flows in both directions when the network fails; neither end gets a FIN or a RST.
fn lost_amid_a_transfer(case: &str, go: impl Fn(&World), come_back: impl Fn(&World)) {
    let Some(world) = World::new(case) else { return };
    let listener = world.listen();
    let mut process = world.start(&spec(short(), &[]));
    process.add("t", "10.77.2.2", listener.local_addr().unwrap().port());
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    assert_eq!(device.create("s", ECHO), 0);
    let descriptors = procfs::descriptors(process.id());

    device.tcp.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    for turn in 0..50 {
        let bytes = random::bytes(turn, 4096);
        device.data("s", &bytes);
        assert!(device.receive_data("s", 4096) == bytes);
    }
    go(&world);
    let gone = Instant::now();
    // It never arrives.
    let late = frame::tunnel(&json!({"frame_type": 4, "session_id": "s"}).to_string(), &[7; 4096]);
    let _ = device.socket.send(tungstenite::Message::binary(late));
    process.expect("Disconnect t");
    report(case, "DISCONNECT", gone);

    come_back(&world);
    let back = Instant::now();
    let mut again = accept_living(&listener, &process);
    report(case, "CONNECT", back);
    again.check_echo("s", ECHO);
    // The lost session has left no descriptor open.
    wait::until("the old session is closed", || procfs::descriptors(process.id()) < descriptors);
    process.stop();
}

#[test]
fn a_pulled_cable_amid_a_transfer_is_noticed_and_the_tunnel_comes_back_with_the_link() {
    lost_amid_a_transfer(
        "cable pulled",
        |world| world.router.ip("link set lan down"),
        |world| world.router.ip("link set lan up"),
    );
}

#[test]
fn packets_dropped_in_both_directions_are_noticed_and_the_tunnel_comes_back() {
    lost_amid_a_transfer("packets dropped", World::cut, World::mend);
}

#[test]
fn a_change_of_the_devices_address_is_noticed_and_the_tunnel_comes_back_from_the_new_one() {
    lost_amid_a_transfer(
        "address changed",
        |world| {
            world.device.ip("addr del 10.77.1.2/24 dev wan");
            world.device.ip("addr add 10.77.1.3/24 dev wan");
            world.device.ip("route add default via 10.77.1.1");
        },
        |_| {},
    );
}

#[test]
fn commands_are_obeyed_while_the_network_is_away() {
    let Some(world) = World::new("commands while the network is away") else { return };
    let listener = world.listen();
    let port = listener.local_addr().unwrap().port();
    // With the default times: nothing here may depend on a timeout.
    let mut process = world.start(&spec(json!({}), &[]));
    process.add("t", "10.77.2.2", port);
    let _device = upgrade(accept(&listener));
    process.expect("Connect t");
    process.add("hole", &BLACK_HOLE.to_string(), 443);
    world.cut();
    process.update("t", "10.77.2.2", port);
    process.expect("Disconnect t");
    process.command("delete hole");
    process.update("t", &BLACK_HOLE.to_string(), 443);
    world.mend();
    process.update("t", "10.77.2.2", port);
    let mut device = accept_living(&listener, &process);
    device.check_echo("s", ECHO);
    world.cut();
    process.stop();
}

/// How the name server answers.
#[derive(Clone)]
enum Dns {
    /// With NXDOMAIN.
    Unknown,
    Refused,
    /// Not at all.
    Silent,
    Addresses(Vec<Ipv4Addr>),
}

/// A name server for one test.
struct NameServer {
    behaviour: Arc<Mutex<Dns>>,
    questions: Arc<AtomicUsize>,
    resolv_conf: PathBuf,
    nsswitch_conf: PathBuf,
}

impl NameServer {
    fn start(world: &World, options: &str, behaviour: Dns) -> Self {
        let socket = world.cloud.within(|| UdpSocket::bind((CLOUD, 53)).unwrap());
        let behaviour = Arc::new(Mutex::new(behaviour));
        let questions = Arc::new(AtomicUsize::new(0));
        let (shared, count) = (behaviour.clone(), questions.clone());
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                let behaviour = shared.lock().unwrap().clone();
                if let Some(answer) = answer(&buffer[..length], &behaviour) {
                    let _ = socket.send_to(&answer, peer);
                }
            }
        });
        let file = |what: &str, text: &str| {
            let own = format!("{}-{}", std::process::id(), rand::random::<u32>());
            let file = std::env::temp_dir().join(format!("aiot-tunnel-{what}-{own}"));
            std::fs::write(&file, text).unwrap();
            file
        };
        let text = format!("nameserver {CLOUD}\noptions {options}\n");
        let resolv_conf = file("resolv", &text);
        // Other sources of names, such as systemd's, do not read resolv.conf.
        let nsswitch_conf = file("nsswitch", "hosts: files dns\n");
        NameServer { behaviour, questions, resolv_conf, nsswitch_conf }
    }

    fn now(&self, behaviour: Dns) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Waits for `count` further questions.
    fn asked(&self, count: usize) {
        let before = self.questions.load(Ordering::SeqCst);
        wait::until("the name server is asked", || {
            self.questions.load(Ordering::SeqCst) >= before + count
        });
    }

    /// A device that asks this server. `None`, with a message, on machines where files cannot be
    /// mounted.
    fn device(&self, test: &str, world: &World, spec: &Value) -> Option<DeviceProcess> {
        world.device.within(|| {
            for (file, place) in [
                (&self.resolv_conf, "/etc/resolv.conf"),
                (&self.nsswitch_conf, "/etc/nsswitch.conf"),
            ] {
                match mount_over(file.to_str().unwrap(), place) {
                    Ok(()) => {}
                    // A C library without this file has no other sources.
                    Err(e) if e.kind() == io::ErrorKind::NotFound && place.contains("switch") => {}
                    Err(e) => {
                        skip(test, format_args!("mount over {place}: {e}"));
                        return None;
                    }
                }
            }
            Some(DeviceProcess::start(spec))
        })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.resolv_conf);
        let _ = std::fs::remove_file(&self.nsswitch_conf);
    }
}

/// The answer to one question (RFC 1035), if there is one.
fn answer(question: &[u8], behaviour: &Dns) -> Option<Vec<u8>> {
    let end_of_name = 12 + question.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let asks_for_a = question.get(end_of_name..end_of_name + 2)? == [0, 1];
    let (code, addresses) = match behaviour {
        Dns::Silent => return None,
        Dns::Unknown => (3, &[][..]),
        Dns::Refused => (5, &[][..]),
        Dns::Addresses(addresses) => (0, if asks_for_a { &addresses[..] } else { &[] }),
    };
    let mut bytes = question[..2].to_vec();
    bytes.extend([0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    bytes.extend(&question[12..end_of_name + 4]);
    for address in addresses {
        // The question's name; type A, class IN, no time to live.
        bytes.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        bytes.extend(address.octets());
    }
    Some(bytes)
}

const NAME: &str = "tunnel.test";

#[test]
fn a_name_that_is_unknown_or_refused_is_asked_for_again_and_found_when_it_is_there() {
    for behaviour in [Dns::Unknown, Dns::Refused] {
        let Some(world) = World::new("DNS fails") else { return };
        let listener = world.listen();
        let names = NameServer::start(&world, "timeout:1 attempts:1", behaviour);
        let device = names.device("DNS fails", &world, &spec(short(), &[]));
        let Some(mut process) = device else { return };
        process.add("t", NAME, listener.local_addr().unwrap().port());
        names.asked(5);
        assert!(process.said().is_empty());
        names.now(Dns::Addresses(vec![CLOUD]));
        let there = Instant::now();
        let mut device = upgrade(accept(&listener));
        process.expect("Connect t");
        report("DNS fails", "CONNECT", there);
        device.check_echo("s", ECHO);
        process.stop();
    }
}

#[test]
fn a_name_server_that_does_not_answer_delays_nothing_but_its_own_tunnel() {
    let Some(world) = World::new("DNS hangs") else { return };
    let listener = world.listen();
    let port = listener.local_addr().unwrap().port();
    // Attempts end soon. The pongs have time, because the test does not always read the sibling.
    let limits = json!({"handshake_timeout": 1500});
    // The resolver would wait for two and a half minutes.
    let names = NameServer::start(&world, "timeout:30 attempts:5", Dns::Silent);
    let device = names.device("DNS hangs", &world, &spec(limits, &[]));
    let Some(mut process) = device else { return };
    process.add("t", NAME, port);
    names.asked(1);
    process.add("sibling", "10.77.2.2", port);
    let mut sibling = upgrade(accept(&listener));
    process.expect("Connect sibling");
    // Attempts end at their time limit. They wait for one lookup and do not begin another one.
    for turn in 0..10 {
        sibling.check_echo(&format!("s{turn}"), ECHO);
    }
    process.command("delete t");
    process.add("t", NAME, port);
    process.update("t", "10.77.2.2", port);
    let mut device = accept_living(&listener, &process);
    device.check_echo("s", ECHO);
    process.command("delete t");
    process.expect("Disconnect t");
    // A stop does not wait for the resolver either.
    process.stop();
}

#[test]
fn sessions_opened_and_closed_again_pile_up_no_lookups() {
    let Some(world) = World::new("lookups of local services") else { return };
    let listener = world.listen();
    let names = NameServer::start(&world, "timeout:30 attempts:5", Dns::Silent);
    let named = Service::new("named", NAME, Port::new(22).unwrap()).unwrap();
    let device = names.device("lookups of local services", &world, &spec(json!({}), &[named]));
    let Some(mut process) = device else { return };
    process.add("t", "10.77.2.2", listener.local_addr().unwrap().port());
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    let threads = procfs::threads(process.id());
    for n in 0..300 {
        let session = format!("s{n}");
        device.send(
            json!({"frame_type": 2, "session_id": session, "frame_id": n, "service_type": "named"}),
            b"",
        );
        device.release(&session, 9000, "");
        // The release is answered, and so is the create, which is not complete yet.
        let mut answers = [device.receive().0, device.receive().0].map(|answer| {
            assert_eq!(answer["frame_type"], 1);
            answer["frame_id"].as_i64().unwrap()
        });
        answers.sort_unstable();
        assert_eq!(answers, [n, 9000]);
    }
    let more = procfs::threads(process.id()) - threads;
    assert!(more <= 32, "{more} threads look up names");
    device.check_echo("s", ECHO);
    process.stop();
}

#[test]
fn a_tunnel_added_and_deleted_again_piles_up_no_lookups() {
    let Some(world) = World::new("lookups of a cloud") else { return };
    let listener = world.listen();
    let port = listener.local_addr().unwrap().port();
    let names = NameServer::start(&world, "timeout:30 attempts:5", Dns::Silent);
    let device = names.device("lookups of a cloud", &world, &spec(json!({}), &[]));
    let Some(mut process) = device else { return };
    process.add("sibling", "10.77.2.2", port);
    let mut sibling = upgrade(accept(&listener));
    process.expect("Connect sibling");
    let threads = procfs::threads(process.id());
    for turn in 0..100 {
        process.add("t", NAME, port);
        // The worker has the time to begin.
        sibling.check_echo(&format!("s{turn}"), ECHO);
        process.command("delete t");
    }
    let more = procfs::threads(process.id()) - threads;
    assert!(more <= 20, "{more} threads look up names");
    process.stop();
}

#[test]
fn whatever_is_commanded_while_no_name_server_answers_few_threads_look_up() {
    const TUNNELS: usize = 5;
    let Some(world) = World::new("random commands without DNS") else { return };
    let listener = world.listen();
    let port = listener.local_addr().unwrap().port();
    let names = NameServer::start(&world, "timeout:30 attempts:5", Dns::Silent);
    let device = names.device("random commands without DNS", &world, &spec(json!({}), &[]));
    let Some(mut process) = device else { return };
    process.add("sibling", "10.77.2.2", port);
    let mut sibling = upgrade(accept(&listener));
    process.expect("Connect sibling");
    let threads = procfs::threads(process.id());
    let mut random = random::part(5, 0);
    let mut is_there = [false; TUNNELS];
    for turn in 0..200 {
        let tunnel = random.random_range(0..TUNNELS);
        // Few names are looked up several times, many are looked up at a time.
        let name = format!("n{}.test", random::magnitude(&mut random, 100));
        let id = format!("t{tunnel}");
        match (is_there[tunnel], random.random_range(0..3)) {
            (true, 0) => process.update(&id, &name, port),
            (true, _) => {
                process.command(&format!("delete {id}"));
                is_there[tunnel] = false;
            }
            (false, _) => {
                process.add(&id, &name, port);
                is_there[tunnel] = true;
            }
        }
        if turn % 4 == 0 {
            // The workers have the time to begin.
            sibling.check_echo(&format!("s{turn}"), ECHO);
        }
    }
    // A worker for each tunnel, and those that look up names.
    wait::until("few threads look up names", || {
        procfs::threads(process.id()) <= threads + TUNNELS + 20
    });
    process.stop();
}

#[test]
fn a_name_server_that_answers_at_last_brings_the_tunnel_up() {
    let Some(world) = World::new("DNS hangs, then answers") else { return };
    let listener = world.listen();
    let names = NameServer::start(&world, "timeout:1 attempts:2", Dns::Silent);
    let device = names.device("DNS hangs, then answers", &world, &spec(short(), &[]));
    let Some(mut process) = device else { return };
    process.add("t", NAME, listener.local_addr().unwrap().port());
    // The first lookup has failed, this is a later one.
    names.asked(5);
    names.now(Dns::Addresses(vec![CLOUD]));
    let there = Instant::now();
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    report("DNS hangs, then answers", "CONNECT", there);
    device.check_echo("s", ECHO);
    process.stop();
}

#[test]
fn a_dead_first_address_of_several_costs_its_share_of_the_time_and_no_more() {
    let Some(world) = World::new("the first address is dead") else { return };
    let listener = world.listen();
    let names = NameServer::start(&world, "timeout:1", Dns::Addresses(vec![BLACK_HOLE, CLOUD]));
    let device = names.device("the first address is dead", &world, &spec(short(), &[]));
    let Some(mut process) = device else { return };
    process.command(&format!("lookup {NAME}"));
    let found = process.next_line();
    assert!(found.starts_with(&format!("found {BLACK_HOLE}")), "{found}");
    let begun = Instant::now();
    process.add("t", NAME, listener.local_addr().unwrap().port());
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    report("the first address is dead", "CONNECT", begun);
    device.check_echo("s", ECHO);
    process.stop();
}

#[test]
fn a_dead_first_address_of_a_service_costs_its_share_of_the_time_and_no_more() {
    let Some(world) = World::new("a service's first address is dead") else { return };
    let (listener, service) = (world.listen(), world.listen());
    let port = Port::new(service.local_addr().unwrap().port()).unwrap();
    thread::spawn(move || {
        for tcp in service.incoming().flatten() {
            thread::spawn(move || io::copy(&mut &tcp, &mut &tcp));
        }
    });
    let names = NameServer::start(&world, "timeout:1", Dns::Addresses(vec![BLACK_HOLE, CLOUD]));
    let named = Service::new("named", NAME, port).unwrap();
    let spec = spec(json!({"connect_timeout": 2000}), &[named]);
    let device = names.device("a service's first address is dead", &world, &spec);
    let Some(mut process) = device else { return };
    process.command(&format!("lookup {NAME}"));
    let found = process.next_line();
    assert!(found.starts_with(&format!("found {BLACK_HOLE}")), "{found}");
    process.add("t", "10.77.2.2", listener.local_addr().unwrap().port());
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    let begun = Instant::now();
    device.check_echo("s", "named");
    report("a service's first address is dead", "echo", begun);
    process.stop();
}

#[test]
fn a_first_address_that_takes_the_connection_and_says_nothing_is_not_tried_first_for_ever() {
    const SILENT: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 3);
    let Some(world) = World::new("the first address is silent") else { return };
    let listener = world.listen();
    let port = listener.local_addr().unwrap().port();
    world.cloud.ip(&format!("addr add {SILENT}/24 dev net"));
    let silent = world.cloud.within(|| TcpListener::bind((SILENT, port)).unwrap());
    let names = NameServer::start(&world, "timeout:1", Dns::Addresses(vec![SILENT, CLOUD]));
    let device = names.device("the first address is silent", &world, &spec(short(), &[]));
    let Some(mut process) = device else { return };
    process.command(&format!("lookup {NAME}"));
    let found = process.next_line();
    assert!(found.starts_with(&format!("found {SILENT}")), "{found}");
    let begun = Instant::now();
    process.add("t", NAME, port);
    let held = accept(&silent);
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    report("the first address is silent", "CONNECT", begun);
    device.check_echo("s", ECHO);
    process.stop();
    drop(held);
}

#[test]
fn a_family_that_goes_nowhere_does_not_hide_the_other() {
    let test = "IPv6 goes nowhere";
    let Some(world) = World::new(test) else { return };
    // The device has a way for IPv6, which ends at the router.
    for (namespace, arguments) in [
        (&world.device, "-6 addr add fd77:1::2/64 dev wan nodad"),
        (&world.router, "-6 addr add fd77:1::1/64 dev lan nodad"),
        (&world.device, "-6 route add default via fd77:1::1"),
        (&world.router, "-6 route add blackhole fd77:9::/64"),
    ] {
        if let Err(why) = namespace.try_ip(arguments) {
            return skip(test, why);
        }
    }
    let forward = || std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    world.router.within(forward).unwrap();
    let listener = world.listen();
    let folder = Folder::new();
    let hosts = format!("fd77:9::1 {NAME}\nfd77:9::2 {NAME}\nfd77:9::3 {NAME}\n{CLOUD} {NAME}\n");
    let hosts = folder.write("hosts", hosts);
    // With a share of this for each address, the test would wait for too long.
    let limits = json!({"handshake_timeout": 600_000});
    let process = world.device.within(|| {
        mount_over(&hosts, "/etc/hosts").ok()?;
        Some(DeviceProcess::start(&spec(limits, &[])))
    });
    let Some(mut process) = process else { return skip(test, "mount over /etc/hosts") };
    process.command(&format!("lookup {NAME}"));
    let found = process.next_line();
    assert!(found.starts_with("found fd77:9::"), "{found}");
    process.add("t", NAME, listener.local_addr().unwrap().port());
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    device.check_echo("s", ECHO);
    process.stop();
}

#[test]
fn the_address_that_worked_last_is_tried_while_the_name_server_is_dead() {
    let test = "the name server dies";
    let Some(world) = World::new(test) else { return };
    let listener = world.listen();
    let port = listener.local_addr().unwrap().port();
    let names = NameServer::start(&world, "timeout:1", Dns::Addresses(vec![CLOUD]));
    let mut limits = short();
    // The lookup has half of it.
    limits["handshake_timeout"] = json!(3000);
    let Some(mut process) = names.device(test, &world, &spec(limits, &[])) else { return };
    process.add("t", NAME, port);
    let mut device = upgrade(accept(&listener));
    process.expect("Connect t");
    // The last one lists another address, where nobody answers.
    for dead in [Dns::Unknown, Dns::Refused, Dns::Silent, Dns::Addresses(vec![BLACK_HOLE])] {
        names.now(dead);
        drop(device);
        process.expect("Disconnect t");
        device = upgrade(accept(&listener));
        process.expect("Connect t");
        device.check_echo("s", ECHO);
    }
    // For another host it is of no use.
    names.now(Dns::Unknown);
    process.update("t", "other.test", port);
    process.expect("Disconnect t");
    names.asked(2);
    assert!(process.said().is_empty());
    process.stop();
}

/// Something else answers in the cloud's place, twice; then the cloud does. There is no event before
/// that, and afterwards the tunnel works.
fn impostor(case: &str, limits: Limits, speak: impl Fn(TcpStream)) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let running = Running::start(plain().service(echo("e")).limits(limits));
    let port = listener.local_addr().unwrap().port();
    running.handle.add(&id("t"), params("127.0.0.1", port)).unwrap();
    for _ in 0..2 {
        let tcp = accept(&listener);
        tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
        let begun = Instant::now();
        speak(tcp);
        report(case, "given up", begun);
    }
    assert!(running.events.try_recv().is_err(), "{case}: an event without a tunnel");
    let mut device = upgrade(accept(&listener));
    running.expect(EventKind::Connect, "t");
    device.check_echo("s", "e");
}

/// Reads the device's request.
fn request(tcp: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        tcp.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    String::from_utf8(request).unwrap()
}

/// Waits until the device hangs up, whatever it still sends.
fn hangs_up(mut tcp: TcpStream) {
    match io::copy(&mut tcp, &mut io::sink()) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "{e}"),
    }
}

#[test]
fn a_captive_portal_that_answers_200_with_html_is_no_tunnel() {
    impostor("captive portal", Limits::default(), |mut tcp| {
        request(&mut tcp);
        let page = format!("<html>{}</html>", "Please log in. ".repeat(1000));
        let length = page.len();
        let _ = write!(
            tcp,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{page}"
        );
        hangs_up(tcp);
    });
}

#[test]
fn a_redirect_is_not_followed_and_the_token_goes_nowhere_else() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let address = elsewhere.local_addr().unwrap();
    impostor("proxy with 302", Limits::default(), |mut tcp| {
        request(&mut tcp);
        let _ = write!(
            tcp,
            "HTTP/1.1 302 Found\r\nLocation: http://{address}/\r\nContent-Length: 0\r\n\r\n"
        );
        hangs_up(tcp);
    });
    // It has connected since: it would have followed a redirect before that.
    assert_eq!(elsewhere.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

/// Writes a byte from time to time until the device hangs up.
fn drip(mut tcp: TcpStream, bytes: impl Iterator<Item = u8>) {
    let begun = Instant::now();
    tcp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    for byte in bytes {
        // The default limit is 15 s, so the limit that was set must have ended it.
        assert!(begun.elapsed() < Duration::from_secs(12), "the handshake has no end");
        if tcp.write_all(&[byte]).is_err() {
            return;
        }
        match tcp.read(&mut [0; 4096]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
    panic!("the device has read everything");
}

#[test]
fn an_http_answer_that_drips_ends_at_the_handshake_timeout() {
    let limits = Limits::new().with_handshake_timeout(Duration::from_secs(1));
    impostor("HTTP drips", limits, |mut tcp| {
        request(&mut tcp);
        let head = b"HTTP/1.1 101 Switching Protocols\r\nX: ".iter().copied();
        drip(tcp, head.chain(std::iter::repeat(b'x')));
    });
}

#[test]
fn a_tls_handshake_that_drips_ends_at_the_handshake_timeout() {
    let limits = Limits::new().with_handshake_timeout(Duration::from_secs(1));
    let authority = Authority::new();
    let tls = TlsConfig::new().with_ca_pem(&authority.pem()).unwrap();
    let cloud = Cloud::tls(authority.acceptor("127.0.0.1"));
    let security = Security::Tls(tls);
    let running =
        Running::start(Manager::builder().security(security).limits(limits).service(echo("e")));
    running.handle.add(&id("t"), cloud.params()).unwrap();
    for _ in 0..2 {
        let tcp = accept(&cloud.listener);
        let begun = Instant::now();
        // A handshake record of 16 KiB that starts like a ServerHello.
        let head = [0x16, 3, 3, 0x40, 0, 2, 0, 0x3f, 0xfc, 3, 3];
        drip(tcp, head.into_iter().chain(std::iter::repeat(7)));
        report("TLS drips", "given up", begun);
    }
    assert!(running.events.try_recv().is_err());
}
