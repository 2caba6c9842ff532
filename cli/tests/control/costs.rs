//! What the socket costs the agent in the long run.

use super::*;

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use aiot_tunnel_testkit::path::{Kind, Path, TUNNEL};
use aiot_tunnel_testkit::procfs;

/// Tunnels that come and go, over connections that come and go.
fn rounds(agent: &Agent, number: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let mut client = agent.client();
    for round in 0..number {
        let id = format!("t{}", round % 7);
        let mut update = add(&id, closed);
        update["command"] = json!("update");
        let delete = json!({"command": "delete", "tunnel": id});
        for request in [add(&id, closed), update, delete] {
            assert_eq!(client.ask(request), json!({"ok": true}));
        }
        if round % 10 == 0 {
            client = agent.client();
            assert!(agent.status().is_object());
        }
    }
}

/// Memory that is private, in KiB, descriptors and threads, once all tunnels have ended.
fn settled(agent: &Agent, least: (usize, usize)) -> (u64, usize, usize) {
    let count = || (procfs::descriptors(agent.id()), procfs::threads(agent.id()));
    wait::until("all tunnels have ended", || {
        let (descriptors, threads) = count();
        descriptors <= least.0 && threads <= least.1
    });
    let (descriptors, threads) = count();
    (procfs::memory(agent.id()).1, descriptors, threads)
}

#[test]
fn a_thousand_commands_of_each_kind_leave_nothing_behind() {
    let agent = Agent::start();
    // All its threads have started.
    wait::until("it is idle", || sleeps(&agent, Duration::from_secs(1)) == 0);
    let least = (procfs::descriptors(agent.id()), procfs::threads(agent.id()));
    let mut events = agent.client();
    events.subscribe();
    // Two parties: one reads the events all the time.
    let reader =
        thread::spawn(move || while events.stream.read_line(&mut String::new()).unwrap() > 0 {});
    rounds(&agent, 300);
    // The subscriber has a descriptor.
    let before = settled(&agent, (least.0 + 1, least.1));
    rounds(&agent, 1000);
    let after = settled(&agent, (least.0 + 1, least.1));
    println!("before {before:?}, after {after:?}: KiB, descriptors, threads");
    assert_eq!((before.1, before.2), (after.1, after.2));
    assert!(after.0 <= before.0 + 1024, "{before:?} {after:?}");
    agent.end();
    reader.join().unwrap();
}

/// Sleeps of all threads in this time. A thread that never sleeps would have none.
pub(super) fn sleeps(agent: &Agent, time: Duration) -> u64 {
    let (before, busy) = (procfs::sleeps(agent.id()), procfs::cpu(agent.id()));
    thread::sleep(time);
    let busy = procfs::cpu(agent.id()) - busy;
    assert!(busy < time.as_secs_f64() / 2.0, "{busy} s of processor time in {time:?}");
    procfs::sleeps(agent.id()) - before
}

#[test]
fn an_idle_agent_sleeps_with_clients_on_its_socket() {
    const TIME: Duration = Duration::from_secs(5);
    let agent = Agent::start();
    let mut clients: Vec<Client> = (0..10).map(|_| agent.client()).collect();
    clients[0].subscribe();
    clients[1].write("{\"command\":");
    clients[2].subscribe();
    clients[2].half_close();
    // One that does not read its answers, and is gone for good after its last request.
    clients[3].write("{\"command\":\"status\"}\n".repeat(5000));
    clients[4].write("{\"command\":\"status\"}\n".repeat(5000));
    clients.remove(4);
    // One that has got an answer to what is no request, and does not leave.
    clients[4].write("GET / HTTP/1.1\r\n\r\n");
    assert!(agent.status().is_object());
    wait::until("it is idle", || sleeps(&agent, Duration::from_secs(1)) == 0);
    assert_eq!(sleeps(&agent, TIME), 0);
    agent.end();
}

/// 0.2 wake-ups a second: the keep-alive of the tunnel.
#[test]
fn an_open_tunnel_wakes_the_agent_no_more_often_than_without_the_socket() {
    // Two pings, or three.
    const TIME: Duration = Duration::from_secs(40);
    let path = Path::new(Kind::PLAIN);
    // At the level debug, each ping is logged, which wakes the log's thread.
    let agent = Agent::with(&["--log-level", "info"]);
    agent.add(TUNNEL, path.address());
    let mut client = agent.client();
    wait::until("connected", || agent.status()["tunnels"][0]["state"] == "connected");
    client.subscribe();
    wait::until("it is idle", || sleeps(&agent, Duration::from_millis(500)) == 0);
    let count = sleeps(&agent, TIME);
    println!("{count} wake-ups in {TIME:?}");
    assert!(count <= 8, "{count} wake-ups in {TIME:?}");
    agent.end();
}
