//! More local connections than a tunnel may have sessions.

use super::*;

/// A browser's page.
const CONNECTIONS: usize = 40;
const IMAGE: usize = 50_000;

fn forty_connections_at_once_are_all_served_by_ten_sessions(kind: Kind) {
    let door = Door::new(SERVICE);
    let path = Path::new(kind);
    let _agent = path.agent(&[door.service()]);
    door.serve(|mut service| {
        let mut request = [0; 3];
        if service.read_exact(&mut request).is_ok() {
            streams::write(&service, 0, IMAGE);
        }
    });
    let access = path.listen(SERVICE);
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let mut client = access.connect();
            client.write_all(b"GET").unwrap();
            client
        })
        .collect();
    let served: Vec<_> = clients
        .into_iter()
        .map(|client| {
            thread::spawn(move || {
                let mut client = Reader::new(client);
                (client.read_to_end(), client.taken)
            })
        })
        .collect();
    for (number, client) in served.into_iter().enumerate() {
        assert_eq!(client.join().unwrap(), (End::Orderly, IMAGE), "connection {number}");
    }
}

fn a_connection_waits_for_a_session_to_end(kind: Kind) {
    let door = Door::new(SERVICE);
    let path = Path::with_gateway(kind, &["--session-limit", "1"]);
    let _agent = path.agent(&[door.service()]);
    let access = path.listen(SERVICE);
    let (first, service) = (access.connect(), door.accept());
    let second = access.connect();
    streams::write(&second, 0, 1000);
    streams::write(&first, 0, PART);
    Reader::new(service.try_clone().unwrap()).read_up_to(PART);
    drop((first, service));
    Reader::new(door.accept()).read_up_to(1000);
}

over_every_path! {
    forty_connections_at_once_are_all_served_by_ten_sessions
    a_connection_waits_for_a_session_to_end
}

#[test]
fn a_connection_waits_for_a_gateway_that_comes_back() {
    // The port stays the test's: it hands connections to the gateway of the moment.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = listener.local_addr().unwrap();
    let door = Door::new(SERVICE);
    let mut path = Path::new(Kind::PLAIN);
    let agent = path.agent(&[door.service()]);
    let relayed = path.front(listener.try_clone().unwrap());
    let url = format!("ws://{front}");
    let arguments = ["access", "--url", &url, "--tunnel", TUNNEL, "--service", SERVICE];
    let mut program = Program::start(&[&arguments[..], &["--listen", "127.0.0.1:0"]].concat());
    let address = program.address();
    let access = Access { program, address };
    let (client, service) = (access.connect(), door.accept());
    streams::write(&client, 0, 1);
    Reader::new(service).read_up_to(1);
    drop(client);
    // The gateway goes, and with it all connections.
    path.gateway.process.kill();
    drop(relayed);
    access.program.expect_log("connecting again");
    let client = access.connect();
    streams::write(&client, 0, 1000);
    // Another one comes.
    drop(agent);
    let path = Path::new(Kind::PLAIN);
    let _agent = path.agent(&[door.service()]);
    let _relayed = path.front(listener);
    Reader::new(door.accept()).read_up_to(1000);
}

#[test]
fn a_connection_waits_for_a_device_that_comes_back() {
    let door = Door::new(SERVICE);
    let path = Path::new(Kind::PLAIN);
    let access = path.listen(SERVICE);
    let client = access.connect();
    streams::write(&client, 0, 1000);
    path.gateway.expect_log("the device is not connected");
    let _agent = path.agent(&[door.service()]);
    Reader::new(door.accept()).read_up_to(1000);
}

#[test]
fn several_ports_share_one_connection_to_the_gateway() {
    let (a, b) = (Door::new("a"), Door::new("b"));
    let path = Path::with_gateway(Kind::PLAIN, &["--access-limit", "1"]);
    let _agent = path.agent(&[a.service(), b.service()]);
    let arguments = path.access_arguments("a");
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    arguments.extend(["--listen", "localhost:0=a", "--listen", "127.0.0.1:0=b"]);
    let mut program = Program::start(&arguments);
    let lines = program.process.lines();
    for (door, byte) in [(&a, b'a'), (&b, b'b')] {
        let line = lines.expect("listening on ");
        let address = line.split_whitespace().find_map(|word| word.parse().ok());
        let address: std::net::SocketAddr = address.unwrap_or_else(|| panic!("{line}"));
        let mut client = limited(TcpStream::connect(address).unwrap());
        client.write_all(&[byte]).unwrap();
        let mut taken = [0];
        door.accept().read_exact(&mut taken).unwrap();
        assert_eq!(taken, [byte]);
    }
}
