//! A change that one gateway makes takes effect at all.

use super::*;

#[test]
fn what_one_gateway_changes_takes_effect_at_all_within_a_second() {
    let Some(fleet) = Fleet::new("gateways that share a store", 2, &[]) else { return };
    let [one, other] = &fleet.gateways[..] else { unreachable!() };
    assert!(is_well(one) && is_well(other));
    let tokens = one.add("t1");
    soon("the other gateway knows the tunnel", || {
        other.admission("/tunnel/t1/dest", &tokens.device) == 101
    });
    let (status, answer) = other.ask("POST", "/tunnels", Some(json!({"id": "t1"})));
    assert_eq!(status, 409, "{answer}");
    assert_eq!(other.show("t1")["source"], "store");
    assert_eq!(other.show("t1")["created"], one.show("t1")["created"]);

    // Open connections of both gateways, and a rotation at the other one.
    let mut ends = [
        connect(one, "/tunnel/t1/dest", &tokens.device),
        connect(one, "/tunnel/t1/source", &tokens.access),
        connect(other, "/tunnel/t1/dest", &tokens.device),
    ];
    let asked = Instant::now();
    let (status, issued) = other.ask("POST", "/tunnels/t1/rotate", None);
    assert_eq!(status, 200, "{issued}");
    for end in &mut ends {
        assert_eq!(end.receive_close(), Some(4001));
    }
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    let rotated = Tokens::of(&issued);
    for gateway in [one, other] {
        assert_eq!(gateway.admission("/tunnel/t1/dest", &tokens.device), 401);
        assert_eq!(gateway.admission("/tunnel/t1/dest", &rotated.device), 101);
        assert_eq!(gateway.show("t1")["rotated"], one.show("t1")["rotated"]);
    }

    let mut device = connect(other, "/tunnel/t1/dest", &rotated.device);
    let mut access = connect(one, "/tunnel/t1/source", &rotated.access);
    let asked = Instant::now();
    assert_eq!(one.ask("DELETE", "/tunnels/t1", None).0, 204);
    assert_eq!(device.receive_close(), Some(1001));
    assert_eq!(access.receive_close(), Some(1001));
    assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
    for gateway in [one, other] {
        assert_eq!(gateway.admission("/tunnel/t1/dest", &rotated.device), 404);
        assert_eq!(gateway.ask("DELETE", "/tunnels/t1", None).0, 404);
        assert_eq!(gateway.ask("POST", "/tunnels/t1/rotate", None).0, 404);
    }
    // One that is made anew with the old id is another one.
    let again = other.add("t1");
    soon("the new tunnel is known", || one.admission("/tunnel/t1/dest", &again.device) == 101);
    assert_eq!(one.admission("/tunnel/t1/dest", &rotated.device), 401);
}

#[test]
fn a_tunnel_expires_at_all_gateways_and_is_renewed_at_all() {
    let Some(fleet) = Fleet::new("expiry at all gateways", 2, &[]) else { return };
    let [one, other] = &fleet.gateways[..] else { unreachable!() };
    let made = Instant::now();
    let tokens = one.add_for("t1", Some(3));
    soon("the tunnel is known", || other.admission("/tunnel/t1/dest", &tokens.device) == 101);
    let mut device = connect(one, "/tunnel/t1/dest", &tokens.device);
    let mut access = connect(other, "/tunnel/t1/source", &tokens.access);
    for end in [&mut device, &mut access] {
        assert_eq!(end.receive_close(), Some(4001));
        let lived = made.elapsed();
        assert!(lived > Duration::from_secs(2) && lived < Duration::from_secs(3) + SOON);
    }
    assert_eq!(other.ask("POST", "/tunnels/t1/rotate", None).0, 409);
    let body = json!({"side": "access", "expire": 3600});
    let (status, issued) = other.ask("POST", "/tunnels/t1/rotate", Some(body));
    assert_eq!(status, 200, "{issued}");
    // The device's token was not replaced.
    soon("the tunnel is renewed", || one.admission("/tunnel/t1/dest", &tokens.device) == 101);
}

#[test]
fn many_changes_at_once_reach_all_gateways() {
    const COUNT: usize = 200;
    let Some(fleet) = Fleet::new("many changes", 2, &[]) else { return };
    let [one, other] = &fleet.gateways[..] else { unreachable!() };
    // Both change the same tunnels.
    std::thread::scope(|scope| {
        for gateway in [one, other] {
            scope.spawn(move || {
                for number in 0..COUNT {
                    let body = json!({"id": format!("t{number}")});
                    let (status, answer) = gateway.ask("POST", "/tunnels", Some(body));
                    assert!(status == 201 || status == 409, "{answer}");
                    let path = format!("/tunnels/t{}/rotate", number / 2);
                    let (status, answer) = gateway.ask("POST", &path, None);
                    assert!(status == 200 || status == 409, "{answer}");
                }
            });
        }
    });
    let tunnels = |gateway: &Gateway| {
        let (_, all) = gateway.ask("GET", "/tunnels", None);
        let all = all["tunnels"].as_array().unwrap().clone();
        let part = |one: &Value| json!([one["id"], one["created"], one["rotated"]]);
        all.iter().map(part).collect::<Vec<_>>()
    };
    soon("both have the same", || tunnels(one) == tunnels(other));
    assert_eq!(tunnels(one).len(), COUNT);
}

/// They are read in parts.
#[test]
fn a_gateway_knows_thousands_of_tunnels() {
    const COUNT: usize = 5_000;
    let Some(fleet) = Fleet::new("thousands of tunnels", 1, &[]) else { return };
    let gateway = &fleet.gateways[0];
    let tokens = gateway.add("t0");
    let copies = format!(
        "for i = 1, {COUNT} do redis.call('HSET', KEYS[1], 't' .. i, redis.call('HGET', KEYS[1], 't0')) end"
    );
    fleet.redis.run(&["EVAL", &copies, "1", "aiot-tunnel:tunnels"]);
    let knows = |gateway: &Gateway, count: usize| {
        let (_, all) = gateway.ask("GET", "/tunnels", None);
        all["tunnels"].as_array().is_some_and(|all| all.len() == count)
    };
    let other = fleet.gateway(&[]);
    assert!(knows(&other, COUNT + 1));
    assert_eq!(other.admission(&format!("/tunnel/t{COUNT}/dest"), &tokens.device), 101);
    // Nothing has told the first one.
    fleet.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait::until("the gateway has compared", || knows(gateway, COUNT + 1));
    let removal = format!("for i = 1, {COUNT} do redis.call('HDEL', KEYS[1], 't' .. i) end");
    fleet.redis.run(&["EVAL", &removal, "1", "aiot-tunnel:tunnels"]);
    fleet.redis.run(&["CLIENT", "KILL", "TYPE", "normal"]);
    wait::until("the gateways have compared", || knows(gateway, 1) && knows(&other, 1));
}

/// What is in a gateway's list is that gateway's.
#[test]
fn a_tunnel_of_the_list_is_not_changed_by_another_gateway() {
    let Some(fleet) = Fleet::new("a list beside the store", 1, &[]) else { return };
    let list = r#"[{"id": "t1", "device_token": "hush-d", "access_token": "hush-a"}]"#;
    let list = fleet.folder.write_secret("tunnels.json", list);
    let with_list = fleet.gateway(&["--tunnels", &list]);
    let tokens = fleet.gateways[0].add("t1");
    with_list.program.expect_log("which is in the list of this one, too");
    assert_eq!(with_list.show("t1")["source"], "list");
    assert_eq!(with_list.admission("/tunnel/t1/dest", "hush-d"), 101);
    assert_eq!(with_list.admission("/tunnel/t1/dest", &tokens.device), 401);
    assert_eq!(with_list.ask("DELETE", "/tunnels/t1", None).0, 409);
    assert_eq!(fleet.gateways[0].ask("DELETE", "/tunnels/t1", None).0, 204);
    let made = fleet.gateways[0].add("t2");
    soon("later changes are told", || with_list.admission("/tunnel/t2/dest", &made.device) == 101);
    assert_eq!(with_list.admission("/tunnel/t1/dest", "hush-d"), 101);
}
