//! What becomes of the tunnels while the store is away, or takes nothing.

use super::*;

#[test]
fn while_redis_is_away_tunnels_go_on_and_nothing_can_be_changed() {
    let Some(mut fleet) = Fleet::new("redis is away", 2, &[]) else { return };
    let tokens = fleet.gateways[0].add("t1");
    let gone = fleet.gateways[0].add("t2");
    let known = || fleet.gateways[1].admission("/tunnel/t2/dest", &gone.device) == 101;
    soon("the tunnels are known", known);
    let mut device = connect(&fleet.gateways[1], "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(&fleet.gateways[1], "/tunnel/t1/source", &tokens.access);
    let mut removed = connect(&fleet.gateways[1], "/tunnel/t2/dest", &gone.device);
    fleet.redis.stop();
    for gateway in &fleet.gateways {
        wait::until("the gateway says so", || is_degraded(gateway));
        assert_eq!(gateway.admission("/tunnel/t1/dest", &gone.device), 401);
        let metrics = gateway.request("GET", "/metrics", Some(&gateway.key), None).body;
        assert!(metrics.contains("\naiot_tunnel_gateway_store_up 0\n"), "{metrics}");
        assert_eq!(gateway.show("t1")["source"], "store");
        for (method, path) in
            [("POST", "/tunnels"), ("POST", "/tunnels/t1/rotate"), ("DELETE", "/tunnels/t1")]
        {
            let (status, answer) = gateway.ask(method, path, None);
            assert_eq!(status, 503, "{answer}");
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains("cannot be reached, so nothing was changed"), "{error}");
        }
    }
    goes_on(&mut access, &mut device, 1);
    let one = &fleet.gateways[1];
    let mut second = connect(one, "/tunnel/t1/source", &tokens.access);
    goes_on(&mut second, &mut device, 1);

    // What has changed meanwhile takes effect afterwards.
    fleet.redis.start();
    assert_eq!(fleet.redis.run(&["HDEL", "aiot-tunnel:tunnels", "t2"]), "1");
    // A gateway may have been faster than that change.
    fleet.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    assert_eq!(removed.receive_close(), Some(1001));
    goes_on(&mut access, &mut device, 2);
    let mut made = Value::Null;
    wait::until("tunnels can be made again", || {
        let (status, answer) = fleet.gateways[0].ask("POST", "/tunnels", Some(json!({"id": "t3"})));
        made = answer;
        status == 201
    });
    let made = Tokens::of(&made);
    let one = &fleet.gateways[1];
    wait::until("the gateway is well again", || is_well(one));
    soon("changes are told again", || one.admission("/tunnel/t3/dest", &made.device) == 101);
    assert!(one.program.log().contains("the store is there again"));
}

#[test]
fn a_redis_that_does_not_answer_holds_up_nothing_for_long() {
    let Some(mut fleet) = Fleet::new("a redis that hangs", 1, &[]) else { return };
    fleet.gateways[0].add("t1");
    fleet.redis.process().freeze();
    let gateway = &fleet.gateways[0];
    let begun = Instant::now();
    let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"})));
    assert_eq!(status, 503, "{answer}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    wait::until("the gateway says so", || is_degraded(gateway));
    // Now nobody waits.
    let begun = Instant::now();
    assert_eq!(gateway.ask("POST", "/tunnels", None).0, 503);
    assert_eq!(gateway.ask("GET", "/tunnels", None).0, 200);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    fleet.redis.process().thaw();
    wait::until("the gateway is well again", || is_well(gateway));
    let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t4"})));
    assert_eq!(status, 201, "{answer}");
}

#[test]
fn after_the_time_of_grace_known_tokens_open_nothing() {
    let Some(mut fleet) = Fleet::new("the time of grace", 1, &["--store-grace", "1s"]) else {
        return;
    };
    let tokens = fleet.gateways[0].add("t1");
    let gateway = &fleet.gateways[0];
    let mut device = connect(gateway, "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(gateway, "/tunnel/t1/source", &tokens.access);
    fleet.redis.stop();
    let over = (503, json!({"status": "unavailable", "store": "unreachable"}));
    wait::until("the time is over", || health(gateway) == over);
    // The device tries again; a wrong token is still a wrong one.
    assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 503);
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.access), 503);
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.device), 401);
    goes_on(&mut access, &mut device, 1);
    fleet.redis.start();
    wait::until("the gateway is well again", || is_well(gateway));
    assert_eq!(gateway.admission("/tunnel/t1/source", &tokens.access), 101);
    goes_on(&mut access, &mut device, 2);
}

#[test]
fn a_redis_that_has_lost_its_data_removes_no_tunnel() {
    let Some(fleet) = Fleet::new("a redis without its data", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t1");
    let mut device = connect(gateway, "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(gateway, "/tunnel/t1/source", &tokens.access);
    fleet.redis.run(&["FLUSHALL"]);
    // The next change finds it.
    let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"})));
    assert_eq!(status, 503, "{answer}");
    wait::until("the gateway says so", || is_degraded(gateway));
    gateway.program.expect_log("may have started without its data");
    goes_on(&mut access, &mut device, 1);
    assert_eq!(fleet.redis.run(&["EXISTS", "aiot-tunnel:tunnels"]), "0");
    // A gateway that starts begins an empty store; then the tunnels are gone.
    let second = fleet.gateway(&[]);
    assert_eq!(device.receive_close(), Some(1001));
    wait::until("both are well", || is_well(gateway) && is_well(&second));
}

/// A server that accepts and says nothing.
#[test]
fn a_gateway_does_not_wait_for_ever_for_its_store() {
    let folder = key_folder();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let file = |name: &str| folder.file(name).display().to_string();
    let (key, password) = (file("store.key"), file("store.password"));
    for scheme in ["redis", "rediss"] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let options = ["gateway", "--plain", "--store", &url, "--store-key-file", &key];
        let begun = Instant::now();
        let output = run(&[&options[..], &["--store-password-file", &password]].concat(), &[]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(23), "{error}");
        assert!(error.contains("it does not answer in time"), "{error}");
        assert!(begun.elapsed() < wait::TIMEOUT, "{:?}", begun.elapsed());
    }
}

/// The server answers, and refuses: no change is made, and nothing else is disturbed.
#[test]
fn a_redis_that_takes_no_changes_is_no_lost_one() {
    let Some(fleet) = Fleet::new("a redis that takes no changes", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t1");
    fleet.redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
    fleet.redis.run(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    for _ in 0..3 {
        let (status, answer) = gateway.ask("POST", "/tunnels", Some(json!({"id": "t2"})));
        assert_eq!(status, 503, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("disk and memory"), "{answer}");
        assert!(is_well(gateway));
    }
    assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 101);
    assert_eq!(gateway.ask("GET", "/tunnels/t2", None).0, 404);
    fleet.redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    gateway.add("t2");
}
