//! What an installation has beside the program: units of systemd, manual pages, completions and the
//! example of the agent's settings.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use aiot_tunnel_testkit::certificates::Identity;
use aiot_tunnel_testkit::folder::Folder;
use aiot_tunnel_testkit::process::Process;
use aiot_tunnel_testkit::{skip, wait};

const PROGRAM: &str = env!("CARGO_BIN_EXE_aiot-tunnel");
const UNITS: [&str; 3] = ["agent", "gateway", "signal"];

fn packaging(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn succeed(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    text(&output.stdout)
}

/// Whether this machine has a program; says that the test is skipped otherwise.
fn has(test: &str, program: &str) -> bool {
    let has = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has {
        skip(test, format_args!("no {program}"));
    }
    has
}

/// The subcommands that users see.
fn subcommands() -> Vec<String> {
    let help = succeed(Command::new(PROGRAM).arg("--help"));
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    names.filter(|name| !["", "help"].contains(name)).map(str::to_owned).collect()
}

/// Copies of the units that start the tested program.
fn units(folder: &Folder) -> Vec<PathBuf> {
    let copy = |name: &str| {
        let file = format!("aiot-tunnel-{name}.service");
        let unit = fs::read_to_string(packaging(&file)).unwrap();
        // The path may have blanks.
        folder.write(&file, unit.replace("/usr/bin/aiot-tunnel", &format!("\"{PROGRAM}\"")));
        folder.file(&file)
    };
    UNITS.map(copy).to_vec()
}

#[test]
fn systemd_understands_the_units() {
    let test = "systemd_understands_the_units";
    if !has(test, "systemd-analyze") {
        return;
    }
    let folder = Folder::new();
    let output =
        run(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(units(&folder)));
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn systemd_finds_little_exposure_in_the_units() {
    let test = "systemd_finds_little_exposure_in_the_units";
    if !has(test, "systemd-analyze") {
        return;
    }
    let folder = Folder::new();
    for unit in units(&folder) {
        let mut analyze = Command::new("systemd-analyze");
        let output = run(analyze.args(["security", "--offline=true", "--no-pager"]).arg(&unit));
        if text(&output.stderr).contains("unrecognized option") {
            return skip(test, "this systemd-analyze cannot look at files");
        }
        let report = text(&output.stdout);
        let level = report.lines().find(|line| line.contains("Overall exposure level"));
        assert!(level.is_some_and(|level| level.contains(" OK ")), "{unit:?}: {level:?}");
    }
}

#[test]
fn the_agent_and_its_program_keep_what_they_need() {
    let unit = fs::read_to_string(packaging("aiot-tunnel-agent.service")).unwrap();
    let has = |line: &str| unit.lines().any(|other| other == line);
    // The queue is shared with other processes, whose user ids are compared.
    assert!(!has("PrivateIPC=yes") && !has("PrivateUsers=yes"));
    // A failure never ends the way to a device.
    assert!(has("Restart=always") && has("StartLimitIntervalSec=0"));
    assert!(has("ExecReload=/bin/kill -HUP $MAINPID"));
}

#[test]
fn the_units_start_subcommands_that_exist() {
    let subcommands = subcommands();
    for name in UNITS {
        let unit = fs::read_to_string(packaging(&format!("aiot-tunnel-{name}.service"))).unwrap();
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        let words: Vec<&str> = start.split(' ').collect();
        assert_eq!(words[..2], ["/usr/bin/aiot-tunnel", name]);
        assert!(subcommands.iter().any(|subcommand| subcommand == name), "{name}");
        let options = words[1..].iter().filter(|word| !word.starts_with('$'));
        succeed(Command::new(PROGRAM).args(options).arg("--help"));
    }
}

/// Starts a program as systemd does, and ends it. It must say both.
fn tells_the_service_manager(folder: &Folder, arguments: &[&str]) {
    let path = folder.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(wait::TIMEOUT)).unwrap();
    let said = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        text(&message[..length]).trim().to_owned()
    };
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder.path()).env("NOTIFY_SOCKET", &path);
    let mut process = Process::start(command.stdout(Stdio::piped()));
    let lines = process.lines();
    assert_eq!(said(), "READY=1");
    if arguments[0] == "gateway" {
        // The port was open before.
        assert!(lines.next_line().starts_with("listening on "));
    }
    process.terminate();
    assert_eq!(said(), "STOPPING=1");
    assert!(process.wait().success());
}

#[test]
fn the_service_manager_is_told_that_the_gateway_is_ready_and_that_it_ends() {
    let folder = Folder::new();
    folder.write("tunnels.json", r#"[{"id":"t","device_token":"hush-d","access_token":"hush-a"}]"#);
    let arguments = ["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnels", "tunnels.json"];
    tells_the_service_manager(&folder, &arguments);
}

#[test]
fn the_service_manager_is_told_that_signal_is_ready_although_there_is_no_broker() {
    let folder = Folder::new();
    folder.write("secret", "hush-secret");
    // Nobody listens on a port that was just free.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let broker = format!("mqtt://127.0.0.1:{port}");
    let device = ["--product-key", "pk", "--device-name", "dn", "--device-secret-file", "secret"];
    let arguments = [&["signal", "--broker", &broker][..], &device].concat();
    tells_the_service_manager(&folder, &arguments);
}

fn man_pages() -> Folder {
    let folder = Folder::new();
    succeed(Command::new(PROGRAM).arg("man").arg(folder.path()));
    folder
}

#[test]
fn every_subcommand_has_a_manual_page() {
    let folder = man_pages();
    let mut wanted: BTreeSet<String> =
        subcommands().iter().map(|name| format!("aiot-tunnel-{name}.1")).collect();
    wanted.insert("aiot-tunnel.1".to_owned());
    wanted.extend(UNITS.map(|name| format!("aiot-tunnel-{name}.toml.5")));
    let names = fs::read_dir(folder.path()).unwrap();
    let found: BTreeSet<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, wanted);
}

#[test]
fn man_shows_the_pages_without_a_warning_and_the_examples_as_they_are() {
    let test = "man_shows_the_pages_without_a_warning_and_the_examples_as_they_are";
    if !has(test, "man") {
        return;
    }
    let folder = man_pages();
    for page in fs::read_dir(folder.path()).unwrap() {
        let page = page.unwrap().path();
        let mut man = Command::new("man");
        man.args(["--warnings", "-E", "UTF-8", "-l"]).arg(&page);
        let output = run(man.env("LC_ALL", "C.UTF-8").env("MANWIDTH", "80"));
        assert!(output.status.success() && output.stderr.is_empty(), "{page:?}: {output:?}");
        let shown = text(&output.stdout);
        let name = page.file_stem().unwrap().to_str().unwrap();
        let Some(subcommand) = name.strip_prefix("aiot-tunnel-").filter(|name| !name.contains('.'))
        else {
            continue;
        };
        let help = succeed(Command::new(PROGRAM).args(["help", subcommand]));
        let (_, examples) = help.split_once("\nExamples:\n").unwrap_or_else(|| panic!("{help}"));
        let shown: BTreeSet<&str> = shown.lines().map(str::trim).collect();
        for line in examples.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
            assert!(line.is_empty() || shown.contains(line.trim()), "{page:?}: {line}");
        }
    }
}

#[test]
fn shells_read_the_completions() {
    let folder = Folder::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = succeed(Command::new(PROGRAM).args(["completions", shell]));
        assert!(!script.contains("manual pages"), "{shell} completes what is hidden");
        folder.write(shell, script);
        // bash is everywhere; the others where their users are.
        if shell == "bash" || Command::new(shell).arg("--version").output().is_ok() {
            succeed(Command::new(shell).arg("-n").arg(folder.file(shell)));
        }
    }
    let completed = |words: &str, last: &str, before: &str| {
        let ask = format!(
            "source \"$1\"; COMP_WORDS=({words} {last}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             $(complete -p aiot-tunnel | sed 's/.* -F \\([^ ]*\\) .*/\\1/') aiot-tunnel {last} {before}; \
             echo \"${{COMPREPLY[*]}}\""
        );
        let mut bash = Command::new("bash");
        succeed(bash.args(["-c", &ask, "bash"]).arg(folder.file("bash"))).trim().to_owned()
    };
    assert_eq!(completed("aiot-tunnel", "ag", "aiot-tunnel"), "agent");
    assert_eq!(completed("aiot-tunnel agent", "--print", "agent"), "--print-config");
    assert_eq!(completed("aiot-tunnel agent --log-format", "jo", "--log-format"), "journald");
}

/// An example file with its settings in force: all, or those that are wanted.
fn uncommented(file: &str, is_wanted: impl Fn(&str) -> bool) -> String {
    let example = fs::read_to_string(packaging(file)).unwrap();
    let mut in_table = false;
    let lines = example.lines().map(|line| match line.strip_prefix('#') {
        Some(setting)
            if setting.starts_with(|c: char| c.is_ascii_lowercase() || "_[".contains(c))
                && (in_table || is_wanted(setting.split(' ').next().unwrap())) =>
        {
            // A table may have a key of the same name.
            in_table |= setting.starts_with('[');
            setting
        }
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `aiot-tunnel SUBCOMMAND --config` with these settings.
fn with_settings(folder: &Folder, subcommand: &str, settings: &str) -> Command {
    folder.write("settings.toml", settings);
    let mut command = Command::new(PROGRAM);
    command.args([subcommand, "--config", "settings.toml"]).current_dir(folder.path());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("AIOT_TUNNEL_") || name.to_ascii_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command
}

/// The keys of a file of settings, also of those that `--print-config` shows as not set.
fn keys(settings: &str) -> BTreeSet<String> {
    let lines = settings.lines().map(|line| line.trim_start_matches("# ").trim());
    let keys = lines.filter_map(|line| line.split_once(" =")).map(|(key, _)| key.to_owned());
    let of_tables = ["id", "url", "token_file", "_SSH", "service"];
    let keys = keys.filter(|key| !of_tables.contains(&&**key));
    keys.filter(|key| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).collect()
}

/// The files that the examples name.
fn files() -> Folder {
    let folder = Folder::new();
    let identity = Identity::self_signed();
    for name in ["ca.pem", "mqtt-ca.pem", "redis-ca.pem", "server.pem"] {
        folder.write(name, &identity.certificate);
    }
    folder.write_secret("server.key", &identity.key);
    folder.write_secret(
        "tunnels.json",
        r#"[{"id":"t1","device_token":"hush-d","access_token":"hush-a"}]"#,
    );
    for name in ["access.token", "device.token", "api.key", "redis.password", "store.key"] {
        folder.write_secret(name, format!("hush-and-long-enough-{name}"));
    }
    folder.write("client.pem", &identity.certificate);
    folder.write_secret("client.key", &identity.key);
    folder.write_secret("t1.token", "hush-token");
    folder.write_secret("proxy.password", "user:hush-password");
    folder.write_secret("mqtt.password", "hush-password");
    folder.write_secret("device.secret", "hush-secret");
    folder
}

#[test]
fn the_example_files_change_nothing_until_they_are_edited() {
    let folder = Folder::new();
    for subcommand in UNITS {
        let example = fs::read_to_string(packaging(&format!("{subcommand}.toml"))).unwrap();
        let printed = |settings| {
            let mut command = with_settings(&folder, subcommand, settings);
            let output = run(command.arg("--print-config"));
            assert!(output.stdout.starts_with(b"# "), "{output:?}");
            text(&output.stdout)
        };
        assert_eq!(printed(&example), printed(""));
    }
}

#[test]
fn the_example_files_are_valid_when_what_is_in_them_is_in_force() {
    let sign_in = ["region", "instance", "device_secret_file"];
    let own_broker = ["broker", "instance", "username", "password_file", "client_id"];
    let one_tunnel = ["tunnel", "device_token_file", "access_token_file", "expire"];
    let redis = ["store_ca", "store_key_file", "store_password_file"];
    let list = [&one_tunnel[..], &redis].concat();
    let single = [&["tunnels"], &redis[..]].concat();
    // What cannot be in one file together.
    for (subcommand, without) in [
        ("agent", &[][..]),
        ("gateway", &list),
        ("gateway", &single),
        ("signal", &sign_in[..]),
        ("signal", &own_broker[..]),
    ] {
        let folder = files();
        let file = format!("{subcommand}.toml");
        let settings = uncommented(&file, |key| !without.contains(&key));
        let settings = settings
            .replace("/etc/aiot-tunnel", folder.path().to_str().unwrap())
            .replace("/usr/local/bin/tunnel-event", "/bin/true");
        let mut command = with_settings(&folder, subcommand, &settings);
        let printed = succeed(command.args(["--check", "--print-config"]));
        assert!(!printed.contains("# default"), "a key is not in the example: {printed}");
        assert_eq!(keys(&uncommented(&file, |_| true)), keys(&printed));
    }
}
