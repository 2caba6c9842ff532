//! The configuration file: what counts, and what is wrong in it.

use std::fs;

use aiot_tunnel_testkit::path::Kind;
use aiot_tunnel_testkit::process::program;
use aiot_tunnel_testkit::streams::Door;

use super::{fails, run, set_mode, Scene, TOKEN_FILE};

const STDIO: [&str; 4] = ["access", "--tunnel", "t1", "--stdio"];

fn scene() -> Scene {
    let door = Door::new("s");
    let scene = Scene::new(Kind::PLAIN, &[door.service()]);
    door.serve(drop);
    scene.profile(&format!("service = \"s\"\n{TOKEN_FILE}"));
    scene
}

#[test]
fn a_wrong_key_or_value_is_named_with_its_file_and_line() {
    let scene = scene();
    let file = scene.home.file("aiot-tunnel/config.toml");
    let url = "url = \"ws://127.0.0.1:1\"";
    for (text, line, parts) in [
        ("x", 1, &["key"][..]),
        ("{\"a\": 1}", 1, &[]),
        ("[profile.p]\nurl = \"ws://h\"\nurl = \"ws://h\"", 3, &["duplicate key"]),
        ("[profile.p]\nurl = \"http://h\"", 2, &["url: ", "http://h", "wss://host:port"]),
        ("[profile.p]\nurl = [1]", 2, &["url: ", "not a array"]),
        ("[profile.p]\nuser = \"x\"", 1, &["profile.p: url is missing"]),
        ("url = \"ws://h\"", 1, &["url: ", "below [profile.NAME]"]),
        ("colour = 1", 1, &["colour: there is no such key"]),
        ("profile = 1", 1, &["[profile.NAME]"]),
        ("[profile.\"a b\"]\nurl = \"ws://h\"", 1, &["letters"]),
        ("default = \"q\"\n[profile.p]\nurl = \"ws://h\"", 1, &["no profile q", "there are p"]),
        ("default = 1.5\n", 1, &["default: "]),
        ("[profile.p]\nURL\n", 2, &[]),
        (&format!("[profile.p]\n{url}\ntoken = \"x\""), 3, &["token: ", "token_file"]),
        (&format!("[profile.p]\n{url}\ntoken-file = \"x\""), 3, &["write token_file"]),
        (&format!("[profile.p]\n{url}\ncolour = \"x\""), 3, &["colour: there is no such key"]),
        (&format!("[profile.p]\n{url}\nkeepalive = \"x\""), 3, &["keepalive: invalid digit"]),
        (&format!("[profile.p]\n{url}\nproxy = \"x\""), 3, &["proxy: "]),
        (&format!("[profile.p]\n{url}\nfamily = \"x\""), 3, &["family: not one of any, ipv4"]),
        (&format!("[profile.p]\n{url}\nno_extensions = 1"), 3, &["no_extensions: true or false"]),
        (&format!("[profile.p]\n{url}\nservice = \"\""), 3, &["service: "]),
        (&format!("[profile.p]\n{url}\ntoken_command = \"pass x\""), 3, &["as a list", "no shell"]),
        (&format!("[profile.p]\n{url}\ntoken_command = []"), 3, &["as a list"]),
        (&format!("[profile.p]\n{url}\ntoken_timeout = \"x\""), 3, &["token_timeout: not a time"]),
        (
            &format!("[profile.p]\n{url}\ntoken_file = \"x\"\ntoken_variable = \"Y\""),
            4,
            &["token_variable: token_file is set, too"],
        ),
        (&format!("[profile.p]\n{url}\ntunnel = 1"), 3, &["[[profile.NAME.tunnel]]"]),
        (
            &format!("[profile.p]\n{url}\n[[profile.p.tunnel]]\nuser = \"x\""),
            3,
            &["match is missing"],
        ),
        (
            &format!("[profile.p]\n{url}\n[[profile.p.tunnel]]\nmatch = \"x\"\ncolour = 1"),
            5,
            &["colour: "],
        ),
        // Also in a profile that is not used.
        (&format!("default = \"p\"\n[profile.p]\n{url}\n[profile.q]\nurl = \"x\""), 5, &["url: "]),
        ("[profile.p]\nurl = \"ws://h/path\"\ntoken_file = \"x\"", 2, &["url: ", "no path"]),
        (&format!("[profile.p]\n{url}\nca = \"x\""), 3, &["ca: ", "wss://"]),
    ] {
        fs::write(&file, text).unwrap();
        let place = format!("{}:{line}: ", file.display());
        fails(&mut scene.command(&STDIO), 2, &[&[&*place], parts].concat());
        // The other subcommands check it as well.
        if line > 1 && !text.contains("/path") && !text.contains("ca =") {
            fails(&mut scene.command(&["ssh", "t1"]), 2, &[&[&*place], parts].concat());
        }
    }
}

#[test]
fn what_is_no_file_of_text_is_refused() {
    let scene = scene();
    let folder = scene.home.path().to_str().unwrap().to_owned();
    let large = scene.home.write("large", vec![b'\n'; 2 << 20]);
    let binary = scene.home.write("binary", [0xff, 0xfe]);
    for (file, part) in [
        ("/nowhere/x", "No such file"),
        (&*folder, "directory"),
        (&*large, "too many"),
        (&*binary, "not text"),
    ] {
        let mut command = scene.command(&STDIO);
        fails(command.args(["--config", file]), 2, &[file, part]);
    }
}

#[test]
fn without_a_profile_the_program_says_where_one_is_written() {
    let scene = scene();
    let folder = scene.home.file("aiot-tunnel");
    let file = folder.join("config.toml");
    let name = file.to_str().unwrap().to_owned();
    let commands = [&STDIO[..], &["ssh", "t1"], &["ssh-config"]];
    fs::write(&file, "").unwrap();
    fails(&mut scene.command(&STDIO), 2, &[&name, "no profile is the default one", "none in it"]);
    fs::write(&file, "[profile.a]\nurl = \"ws://h\"\n[profile.b]\nurl = \"ws://h\"\n").unwrap();
    for command in &commands[..2] {
        fails(&mut scene.command(command), 2, &[&name, "--profile", "there are a, b"]);
    }
    let named = ["access", "--profile", "c", "--tunnel", "t1", "--stdio"];
    fails(&mut scene.command(&named), 2, &[&name, "there is no profile c", "there are a, b"]);
    set_mode(&file, 0o646);
    for command in commands {
        fails(&mut scene.command(command), 20, &[&name, "may change it", "chmod go-w"]);
    }
    fs::remove_file(&file).unwrap();
    for command in commands {
        fails(&mut scene.command(command), 2, &[&name, "--url", "write a profile into"]);
    }
    let mut command = scene.command(&STDIO);
    fails(command.env_remove("XDG_CONFIG_HOME").env("HOME", &folder), 2, &[".config/aiot-tunnel/"]);
    let mut command = scene.command(&STDIO);
    command.env("XDG_CONFIG_HOME", "relative").env_remove("HOME");
    fails(&mut command, 2, &["neither XDG_CONFIG_HOME nor HOME"]);
    fails(&mut scene.command(&["access", "--stdio"]), 2, &["--tunnel"]);
}

#[test]
fn the_command_line_goes_before_the_profile_and_a_tunnel_before_all_tunnels() {
    let scene = scene();
    assert_eq!(run(&mut scene.command(&STDIO)).0, Some(0));
    let other = [&STDIO[..], &["--service", "of-line"]].concat();
    fails(&mut scene.command(&other), 11, &["no service of-line, only s;"]);
    let more = "service = \"s\"\n\
                [[profile.plant.tunnel]]\nmatch = \"x*\"\nservice = \"of-x\"\n\
                [[profile.plant.tunnel]]\nmatch = \"*1\"\nservice = \"of-one\"\nuser = \"u\"\n\
                [[profile.plant.tunnel]]\nmatch = \"t*\"\nservice = \"of-t\"";
    scene.profile(&format!("{TOKEN_FILE}\n{more}"));
    fails(&mut scene.command(&STDIO), 11, &["no service of-one,"]);
    // A URL, a profile or a file are alternatives.
    for more in [&["--profile", "plant"][..], &["--config", "x"]] {
        let both = [&STDIO[..], &["--url", "ws://127.0.0.1:1"], more].concat();
        fails(&mut scene.command(&both), 2, &["not both"]);
        let both = [&["ssh", "--url", "ws://127.0.0.1:1"], more, &["t1"]].concat();
        fails(&mut scene.command(&both), 2, &["not both"]);
    }
}

#[test]
fn a_file_elsewhere_and_several_profiles() {
    let scene = scene();
    let token = scene.home.file("aiot-tunnel/tokens/t1");
    let text = format!(
        "default = \"dead\"\n[profile.dead]\nurl = \"ws://127.0.0.1:1\"\ntoken_file = {token:?}\n\
         [profile.plant]\nurl = \"{}\"\nservice = \"s\"\nno_extensions = true\ntoken_file = {token:?}\n",
        scene.url()
    );
    let file = scene.home.write("elsewhere.toml", text);
    let arguments = |more: &[&'static str]| [&STDIO[..], more].concat();
    let mut command = scene.command(&arguments(&[]));
    fails(command.args(["--config", &file]), 3, &["nothing listens"]);
    let mut command = scene.command(&arguments(&["--profile", "plant"]));
    assert_eq!(run(command.args(["--config", &file])).0, Some(0));
}

#[test]
fn the_printed_configuration_has_a_block_for_each_profile() {
    let scene = scene();
    let text =
        "default = \"plant\"\n[profile.plant]\nurl = \"wss://GW.example\"\nuser = \"root\"\n\
                [[profile.plant.tunnel]]\nmatch = \"pump-?*\"\nuser = \"the admin\"\n\
                [[profile.plant.tunnel]]\nmatch = \"x\"\nurl = \"wss://other\"\n\
                [[profile.plant.tunnel]]\nmatch = \"y\"\nservice = \"s\"\n\
                [[profile.plant.tunnel]]\nmatch = \"no host, this\"\nuser = \"x\"\n\
                [profile.lab]\nurl = \"ws://127.0.0.1:8443\"\n";
    fs::write(scene.home.file("aiot-tunnel/config.toml"), text).unwrap();
    let program = program().display().to_string();
    let is_word = |c: char| c.is_ascii_alphanumeric() || "/-_.".contains(c);
    let program = if program.chars().all(is_word) { program } else { format!("'{program}'") };
    let proxy = |profile| {
        format!("    ProxyCommand {program} access --profile {profile} --stdio '--ssh-host=%n'")
    };
    let gateway = "    HostName %h.gw.example-443";
    let (plant, lab) = (proxy("plant"), proxy("lab"));
    let local = "    HostName %h.127.0.0.1-8443";
    let (pumps, admin) = ("Host pump-?*.plant.tunnel", "    User \"the admin\"");
    let (x, other) = ("Host x.plant.tunnel", "    HostName %h.other-443");
    let (all, root) = ("Host *.plant.tunnel", "    User root");
    let of_plant = [pumps, admin, x, other, all, gateway, root, &plant];
    let of_lab = ["Host *.lab.tunnel", local, &lab];
    let of_all = of_plant.map(|line| match line.strip_prefix("Host ") {
        Some(name) => format!("Host {}", name.replace(".plant", "")),
        None => line.to_owned(),
    });
    let lines = |printed: &str| -> Vec<String> {
        let lines = printed.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let (status, printed, said) = run(&mut scene.command(&["ssh-config"]));
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(
        lines(&printed),
        [&of_plant[..], &of_lab, &of_all.each_ref().map(String::as_str)].concat()
    );
    let (_, printed, _) = run(&mut scene.command(&["ssh-config", "--profile", "lab"]));
    assert_eq!(lines(&printed), of_lab);
    fails(&mut scene.command(&["ssh-config", "--profile", "x"]), 2, &["no profile x"]);
}
