//! Tunnels that a gateway does not know, and two devices with one token.

use super::*;

#[test]
fn a_gateway_tells_an_unknown_tunnel_from_a_wrong_token() {
    let gateway = Gateway::builder()
        .tunnel(gateways::tunnel(TUNNEL))
        .start("127.0.0.1:0".parse().unwrap())
        .unwrap();
    let address = gateway.local_addr();
    for side in ["dest", "source"] {
        let path = format!("/tunnel/unknown/{side}");
        assert_eq!(gateways::connect(address, &path, Some("hush")).err(), Some(404));
        let path = format!("/tunnel/{TUNNEL}/{side}");
        assert_eq!(gateways::connect(address, &path, Some("hush")).err(), Some(401));
    }
}

fn a_device_tries_again_where_its_tunnel_is_not_known(kind: Kind) {
    let identity = Identity::self_signed();
    let folder = Folder::new();
    let ca = folder.write("ca.pem", &identity.certificate);
    let cloud = match kind.tls {
        true => Cloud::tls(identity.acceptor()),
        false => Cloud::plain(),
    };
    let agent = Agent::start(kind.tls.then_some(&ca), &[echo("e")]);
    agent.send("add", Some(cloud.address()));
    for status in [404, 403, 500, 503] {
        assert!(cloud.accept_if(|_| Some(status)).is_none());
    }
    let mut device = cloud.accept();
    agent.events.expect("Connect");
    device.check_echo("s", "e");
    assert!(!agent.program.log().contains("xpired"), "{}", agent.program.log());
}

plain_and_tls! { a_device_tries_again_where_its_tunnel_is_not_known }

/// Without a back-off, two devices take the tunnel from each other many times a second.
#[test]
fn two_devices_with_one_token_back_off_and_say_so_once() {
    const TIME: Duration = Duration::from_secs(6);
    const SAME_TOKEN: &str = "another device uses the same token";
    let path = Path::new(Kind::PLAIN);
    let first = path.agent(&[echo("e")]);
    let second = path.agent(&[echo("e")]);
    for agent in [&first, &second] {
        agent.program.expect_log(SAME_TOKEN);
    }
    let lives = |agent: &Agent| {
        let events = agent.events.so_far();
        events.iter().filter(|line| line.starts_with("Connect")).count()
    };
    let (_, _) = (lives(&first), lives(&second));
    thread::sleep(TIME);
    let takeovers = lives(&first) + lives(&second);
    assert!(takeovers <= 10, "{takeovers} in {TIME:?}");
    for agent in [&first, &second] {
        let log = agent.program.log();
        let said: Vec<_> = log.lines().filter(|line| line.contains(SAME_TOKEN)).collect();
        assert!(said.len() == 1 && said[0].contains("127.0.0.1:"), "{log}");
    }
}
