//! Where a profile's token comes from.

use aiot_tunnel_testkit::path::Kind;
use aiot_tunnel_testkit::streams::Door;
use aiot_tunnel_testkit::ACCESS_TOKEN;

use super::{fails, run, says, set_mode, Scene, TOKEN_FILE};

fn scene() -> Scene {
    let door = Door::new("_SSH");
    let scene = Scene::new(Kind::PLAIN, &[door.service()]);
    door.serve(drop);
    scene
}

const STDIO: [&str; 4] = ["access", "--tunnel", "t1", "--stdio"];

#[test]
fn a_token_comes_from_a_file_a_variable_or_a_command() {
    let scene = scene();
    let folder = scene.home.path().display();
    for place in [
        TOKEN_FILE.to_owned(),
        format!("token_file = \"{folder}/aiot-tunnel/tokens/t1\""),
        "token_variable = \"MY_TOKEN\"".to_owned(),
        format!("token_command = [\"cat\", \"{folder}/aiot-tunnel/tokens/{{tunnel}}\"]"),
        // No shell reads it, unless it is named.
        "token_command = [\"sh\", \"-c\", \"test $AIOT_TUNNEL_ID = t1 && echo $MY_TOKEN\"]"
            .to_owned(),
        format!("token_file = \"nowhere\"\n[[profile.plant.tunnel]]\nmatch = \"t?\"\n{TOKEN_FILE}"),
    ] {
        scene.profile(&place);
        let mut command = scene.command(&STDIO);
        let (status, _, said) = run(command.env("MY_TOKEN", ACCESS_TOKEN));
        assert_eq!(status, Some(0), "{place}: {said}");
    }
    // The environment goes before the profile, and an option before both.
    scene.profile("token_file = \"nowhere\"");
    let (status, _, said) =
        run(scene.command(&STDIO).env("AIOT_TUNNEL_ACCESS_TOKEN", ACCESS_TOKEN));
    assert_eq!(status, Some(0), "{said}");
    let file = scene.home.file("aiot-tunnel/tokens/t1");
    let mut command = scene.command(&STDIO);
    command.args(["--token-file", file.to_str().unwrap()]);
    let (status, _, said) = run(command.env("AIOT_TUNNEL_ACCESS_TOKEN", "hush-wrong"));
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn a_place_without_a_token_is_named() {
    let scene = scene();
    let config = scene.home.file("aiot-tunnel/config.toml");
    let line = format!("{}:3: token_command: ", config.display());
    for (place, status, parts) in [
        ("", 2, &["no access token", "plant", "token_file"][..]),
        (
            "token_file = \"nowhere\"",
            2,
            &["aiot-tunnel/nowhere: No such file", "check the tunnel's id, t1"],
        ),
        ("token_variable = \"NOT_SET\"", 2, &["NOT_SET is not set", "plant"]),
        ("token_command = [\"false\"]", 1, &[&line, "false: exit status: 1"]),
        ("token_command = [\"no-such-program\"]", 1, &[&line, "no-such-program: No such file"]),
        ("token_command = [\"true\"]", 1, &[&line, "empty"]),
        ("token_command = [\"printf\", \"hush-a\\\\nhush-b\"]", 1, &[&line, "more than one line"]),
        ("token_command = [\"sh\", \"-c\", \"cat /dev/zero\"]", 1, &[&line, "too much"]),
        (
            "token_command = [\"sleep\", \"1000\"]\ntoken_timeout = \"100ms\"",
            1,
            &[&line, "has not ended after 100ms"],
        ),
        // It has closed its output, and does not end.
        (
            "token_command = [\"sh\", \"-c\", \"exec sleep 1000 >&-\"]\ntoken_timeout = \"100ms\"",
            1,
            &[&line, "has not ended after 100ms"],
        ),
    ] {
        scene.profile(place);
        fails(&mut scene.command(&STDIO), status, parts);
    }
}

#[test]
fn what_a_command_says_on_standard_error_reaches_the_user() {
    let scene = scene();
    scene.profile("token_command = [\"sh\", \"-c\", \"echo locked >&2; exit 3\"]");
    let said = fails(&mut scene.command(&STDIO), 1, &["exit status: 3"]);
    says(&said, &["locked\n"]);
}

#[test]
fn an_id_that_leads_elsewhere_is_refused() {
    let scene = scene();
    scene.profile(TOKEN_FILE);
    for id in ["../t1", "..", "-t1", "a/b"] {
        let tunnel = format!("--tunnel={id}");
        let mut command = scene.command(&["access", &tunnel, "--stdio"]);
        fails(&mut command, 2, &["config.toml:3: token_file: ", &format!("{id:?}")]);
    }
}

#[test]
fn a_token_file_that_others_may_read_is_refused() {
    let scene = scene();
    scene.profile(TOKEN_FILE);
    let file = scene.home.file("aiot-tunnel/tokens/t1");
    for mode in [0o644, 0o602] {
        set_mode(&file, mode);
        let parts = ["holds a token", "every user", "chmod 600", file.to_str().unwrap()];
        fails(&mut scene.command(&STDIO), 20, &parts);
    }
    set_mode(&file, 0o640);
    assert_eq!(run(&mut scene.command(&STDIO)).0, Some(0));
}
