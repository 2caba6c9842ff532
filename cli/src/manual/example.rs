//! The example of the agent's file of settings, `packaging/agent.toml`: each key with its help text and
//! its default, as a comment. `UPDATE_EXAMPLE=1 cargo test -p aiot-tunnel-cli example` writes it.

use clap::{Arg, Command};

use crate::settings::{literal, Names};

/// An example for each setting without a default, as TOML.
const EXAMPLES: &[(&str, &str)] = &[
    ("bind", "\"eth0\""),
    ("ca", "\"/etc/aiot-tunnel/ca.pem\""),
    ("client_cert", "\"/etc/aiot-tunnel/client.pem\""),
    ("client_key", "\"/etc/aiot-tunnel/client.key\""),
    ("control_socket_owner", "\"1000:1000\""),
    ("log_level", "\"info\""),
    ("on_event", "\"/usr/local/bin/tunnel-event\""),
    ("proxy", "\"http://proxy.example:3128\""),
    ("proxy_auth_file", "\"/etc/aiot-tunnel/proxy.password\""),
    ("queue_owner", "1000"),
];

/// The settings that are tables: heading, explanation and example.
pub(super) const TABLES: [(&str, &str, &str); 2] = [
    (
        "SERVICES",
        "The local services that operators can reach. The default is _SSH alone; a table replaces it.",
        "\
[services]
_SSH = \"127.0.0.1:22\"
web = \"unix:/run/app.sock\"",
    ),
    (
        "TUNNELS",
        "One table for each tunnel that the agent opens by itself, after each start. Without a path in \
         the URL, the path is /tunnel/ID/dest. A refused token is tried again, with growing gaps of up \
         to five minutes.",
        "\
[[tunnel]]
id = \"t1\"
url = \"wss://gw.example:8443\"
token_file = \"/etc/aiot-tunnel/t1.token\"",
    ),
];

/// A setting that is not a table.
pub(super) struct Setting<'a> {
    pub(super) arg: &'a Arg,
    pub(super) option: String,
    pub(super) key: String,
    pub(super) heading: &'a str,
    pub(super) help: String,
    /// As TOML.
    pub(super) default: Option<String>,
}

impl Setting<'_> {
    /// A value for a setting without a default, as TOML.
    pub(super) fn example(&self) -> Option<&'static str> {
        EXAMPLES.iter().find(|(of, _)| *of == self.key).map(|(_, value)| *value)
    }

    /// The names of all values, where they have names.
    pub(super) fn choice(&self) -> Option<String> {
        let values = self.arg.get_possible_values();
        let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        (!names.is_empty() && names != ["true", "false"]).then(|| names.join(", "))
    }
}

/// The settings, in the order of `--help`.
pub(super) fn settings<'a>(command: &'a Command, names: &Names) -> Vec<Setting<'a>> {
    let mut settings: Vec<Setting<'_>> = Vec::new();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(option) = arg.get_long().filter(|option| names.is_plain_setting(option)) else {
            continue;
        };
        let default = arg.get_default_values().first();
        settings.push(Setting {
            arg,
            option: option.to_owned(),
            key: option.replace('-', "_"),
            heading: arg.get_help_heading().unwrap_or("Settings"),
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            default: default.map(|value| literal(&value.to_string_lossy())),
        });
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, AGENT_SETTINGS};
    use std::fmt::Write;
    use std::fs;
    use std::path::Path;

    const WIDTH: usize = 96;

    const HEAD: &str = "\
# Settings of the agent, the remote-login process of a device. The manual page is
# aiot-tunnel-agent.toml(5).
#
# Each setting below shows its default, or an example if it has none. To change one, remove the # at the
# beginning of its line. Then run:
#
#   aiot-tunnel agent --config /etc/aiot-tunnel/agent.toml --check
#   systemctl reload-or-restart aiot-tunnel-agent
#
# The service runs as the user aiot-tunnel. It must be able to read the files that are named here, and
# nobody else should read tokens and keys:
#
#   install -m 640 -g aiot-tunnel t1.token /etc/aiot-tunnel/
#
# Times are in seconds, or have a unit: 90, \"500ms\", \"5m\", \"1h\". Sizes are in bytes, or have a unit:
# \"256KiB\", \"1MiB\".
";

    const TAIL: &str = "
# The local services that operators can reach: NAME = \"HOST:PORT\" or \"unix:/PATH\". Settings after
# this line belong to a table, so all others stand above.
#[services]
#_SSH = \"127.0.0.1:22\"

# One table for each tunnel that the agent opens by itself. It is there again after a reboot, and a
# refused token is tried again. Without a path in the URL, the path is /tunnel/ID/dest. The file holds
# the device's token, on one line.
#[[tunnel]]
#id = \"t1\"
#url = \"wss://gw.example:8443\"
#token_file = \"/etc/aiot-tunnel/t1.token\"
";

    fn example() -> String {
        let command = cli::undocumented_agent();
        let mut text = HEAD.to_owned();
        let mut heading = None;
        for setting in settings(&command, &AGENT_SETTINGS) {
            if heading != Some(setting.heading) {
                write!(text, "\n# === {} ===\n", setting.heading).unwrap();
                heading = Some(setting.heading);
            }
            text.push('\n');
            for line in wrapped(&format!("{}.", setting.help)) {
                writeln!(text, "# {line}").unwrap();
            }
            if let Some(choice) = setting.choice() {
                writeln!(text, "# One of: {choice}.").unwrap();
            }
            let key = &setting.key;
            let example = setting.example().map(str::to_owned);
            let value = setting.default.or(example);
            let value = value.unwrap_or_else(|| panic!("EXAMPLES has no example for {key}"));
            writeln!(text, "#{key} = {value}").unwrap();
        }
        text + TAIL
    }

    fn wrapped(text: &str) -> Vec<String> {
        let mut lines = vec![String::new()];
        for word in text.split_whitespace() {
            let line = lines.last_mut().unwrap();
            if !line.is_empty() && line.len() + word.len() >= WIDTH {
                lines.push(word.to_owned());
            } else {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
        }
        lines
    }

    #[test]
    fn the_example_file_shows_every_setting_with_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/agent.toml");
        let example = example();
        if std::env::var_os("UPDATE_EXAMPLE").is_some() {
            fs::write(&path, &example).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == example,
            "packaging/agent.toml is not up to date; run: UPDATE_EXAMPLE=1 cargo test -p \
             aiot-tunnel-cli example"
        );
    }
}
