//! What an installation has beside the program: units of systemd, manual pages, completions and the
//! example of the agent's settings.

use std::collections::BTreeSet;
use std::fs;
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
        folder.write(&file, unit.replace("/usr/bin/aiot-tunnel", PROGRAM));
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
        if !subcommands.iter().any(|subcommand| subcommand == name) {
            assert_eq!(name, "signal", "there is no such subcommand");
            continue;
        }
        let options = words[1..].iter().filter(|word| !word.starts_with('$'));
        succeed(Command::new(PROGRAM).args(options).arg("--help"));
    }
}

#[test]
fn the_service_manager_is_told_that_the_gateway_is_ready_and_that_it_ends() {
    let folder = Folder::new();
    folder.write("tunnels.json", r#"[{"id":"t","device_token":"hush-d","access_token":"hush-a"}]"#);
    let path = folder.file("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(wait::TIMEOUT)).unwrap();
    let said = || {
        let mut message = [0; 256];
        let length = manager.recv(&mut message).unwrap();
        text(&message[..length]).trim().to_owned()
    };
    let mut command = Command::new(PROGRAM);
    command.args(["gateway", "--plain", "--listen", "127.0.0.1:0", "--tunnels"]);
    command.arg(folder.file("tunnels.json")).env("NOTIFY_SOCKET", &path);
    let mut gateway = Process::start(command.stdout(Stdio::piped()));
    let lines = gateway.lines();
    assert_eq!(said(), "READY=1");
    // The port was open before.
    assert!(lines.next_line().starts_with("listening on "));
    gateway.terminate();
    assert_eq!(said(), "STOPPING=1");
    assert!(gateway.wait().success());
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
    wanted.extend(["aiot-tunnel.1".to_owned(), "aiot-tunnel-agent.toml.5".to_owned()]);
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
        let Some(subcommand) =
            name.strip_prefix("aiot-tunnel-").filter(|name| *name != "agent.toml")
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

/// The example's settings in force, each line beginning with a `#` and no blank.
fn uncommented() -> String {
    let example = fs::read_to_string(packaging("agent.toml")).unwrap();
    let lines = example.lines().map(|line| match line.strip_prefix('#') {
        Some(setting)
            if setting.starts_with(|c: char| c.is_ascii_lowercase() || "_[".contains(c)) =>
        {
            setting
        }
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn agent(folder: &Folder, settings: &str) -> Command {
    folder.write("agent.toml", settings);
    let mut command = Command::new(PROGRAM);
    command.args(["agent", "--config", "agent.toml"]).current_dir(folder.path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AIOT_TUNNEL_AGENT_") {
            command.env_remove(name);
        }
    }
    command
}

/// The keys of a file of settings, also of those that `--print-config` shows as not set.
fn keys(settings: &str) -> BTreeSet<String> {
    let lines = settings.lines().map(|line| line.trim_start_matches("# ").trim());
    let keys = lines.filter_map(|line| line.split_once(" =")).map(|(key, _)| key.to_owned());
    keys.filter(|key| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).collect()
}

#[test]
fn the_example_file_changes_nothing_until_it_is_edited() {
    let folder = Folder::new();
    let example = fs::read_to_string(packaging("agent.toml")).unwrap();
    let with = succeed(agent(&folder, &example).args(["--check", "--print-config"]));
    let without = succeed(agent(&folder, "").args(["--check", "--print-config"]));
    assert_eq!(with, without);
}

#[test]
fn the_example_file_is_valid_when_everything_in_it_is_in_force() {
    let folder = Folder::new();
    let identity = Identity::self_signed();
    folder.write("ca.pem", &identity.certificate);
    folder.write("client.pem", &identity.certificate);
    folder.write("client.key", &identity.key);
    folder.write("t1.token", "hush-token");
    folder.write("proxy.password", "user:hush-password");
    let settings = uncommented().replace("/etc/aiot-tunnel", folder.path().to_str().unwrap());
    let printed = succeed(agent(&folder, &settings).args(["--check", "--print-config"]));
    let mut of_example = keys(&uncommented());
    let of_tables: BTreeSet<String> = keys("id = \nurl = \ntoken_file = \n_SSH = ");
    assert!(of_tables.is_subset(&of_example));
    of_example.retain(|key| !of_tables.contains(key));
    let mut of_program = keys(&printed);
    of_program.retain(|key| !of_tables.contains(key));
    assert_eq!(of_example, of_program);
    assert!(!printed.contains("# default"), "not every key of the example is in force: {printed}");
}
