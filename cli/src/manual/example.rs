//! The examples of files of settings, `packaging/*.toml`: each key with its help text and its default, as
//! a comment. `UPDATE_EXAMPLE=1 cargo test -p aiot-tunnel-cli example` writes them.

use clap::{Arg, Command};

use crate::cli::{AGENT_SETTINGS, GATEWAY_SETTINGS, SIGNAL_SETTINGS};
use crate::settings::{literal, Names};

/// A file of settings.
pub(super) struct File {
    pub(super) names: &'static Names,
    /// Whose settings they are.
    pub(super) about: &'static str,
    /// How a running service takes over a change.
    pub(super) takes_over: &'static str,
    /// How values are written.
    pub(super) values: Option<&'static str>,
    pub(super) tables: &'static [Table],
}

/// A setting that is a table.
pub(super) struct Table {
    pub(super) heading: &'static str,
    pub(super) about: &'static str,
    pub(super) example: &'static str,
}

pub(super) const FILES: [File; 3] = [
    File {
        names: &AGENT_SETTINGS,
        about: "the remote-login process of a device",
        takes_over: "systemctl reload-or-restart aiot-tunnel-agent",
        values: Some(
            "Times are in seconds, or have a unit: 90, \"500ms\", \"5m\", \"1h\". Sizes are in bytes, or \
             have a unit: \"256KiB\", \"1MiB\".",
        ),
        tables: &[
            Table {
                heading: "Services",
                about: "The local services that operators can reach: NAME = \"HOST:PORT\" or \
                        \"unix:/PATH\". A table replaces the default, which is _SSH alone. All other \
                        settings stand above the tables.",
                example: "[services]\n_SSH = \"127.0.0.1:22\"",
            },
            Table {
                heading: "Tunnels",
                about: "One table for each tunnel that the agent opens by itself, after each start. \
                        Without a path in the URL, the path is /tunnel/ID/dest. The file holds the \
                        device's token, on one line. A refused token is tried again, with growing gaps \
                        of up to five minutes.",
                example: "[[tunnel]]\nid = \"t1\"\nurl = \"wss://gw.example:8443\"\n\
                          token_file = \"/etc/aiot-tunnel/t1.token\"",
            },
        ],
    },
    File {
        names: &GATEWAY_SETTINGS,
        about: "the gateway, to which devices and operators connect",
        takes_over: "systemctl reload-or-restart aiot-tunnel-gateway",
        values: Some(
            "Times are in seconds, or have a unit: 90, \"500ms\", \"5m\", \"1h\". Published ports, \
             limits, proxies and the log's level change without a restart; the log names what needs \
             one.",
        ),
        tables: &[Table {
            heading: "Ports",
            about: "One table for each port of the gateway that leads to a service of a device. \
                    Whoever reaches the port reaches the service. Without service, it is _SSH. With \
                    proxy_protocol, a session begins with a header of the PROXY protocol, version 2, \
                    which tells the service the client's address. All other settings stand above the \
                    tables.",
            example: "[[publish]]\nlisten = \"127.0.0.1:2222\"\ntunnel = \"t1\"\nservice = \"_SSH\"\n\
                      proxy_protocol = false",
        }],
    },
    File {
        names: &SIGNAL_SETTINGS,
        about: "the process that tells the agent what the platform says",
        takes_over: "systemctl restart aiot-tunnel-signal",
        values: None,
        tables: &[],
    },
];

/// An example for each setting without a default, as TOML.
const EXAMPLES: &[(&str, &str)] = &[
    ("access_token_file", "\"/etc/aiot-tunnel/access.token\""),
    ("api", "\"127.0.0.1:8444\""),
    ("api_key_file", "\"/etc/aiot-tunnel/api.key\""),
    ("audit_log", "\"/var/log/aiot-tunnel-gateway/audit.log\""),
    ("bind", "\"eth0\""),
    ("broker", "\"mqtts://mqtt.example\""),
    ("ca", "\"/etc/aiot-tunnel/ca.pem\""),
    ("cert", "\"/etc/aiot-tunnel/server.pem\""),
    ("client_cert", "\"/etc/aiot-tunnel/client.pem\""),
    ("client_key", "\"/etc/aiot-tunnel/client.key\""),
    ("client_id", "\"device-1\""),
    ("control_socket", "\"/run/aiot-tunnel/agent.sock\""),
    ("control_socket_owner", "\"1000:1000\""),
    ("device_name", "\"device-1\""),
    ("device_secret_file", "\"/etc/aiot-tunnel/device.secret\""),
    ("device_token_file", "\"/etc/aiot-tunnel/device.token\""),
    ("expire", "3600"),
    ("host_keys", "\"/var/lib/aiot-tunnel-gateway/host-keys\""),
    ("instance", "\"iot-cn-example\""),
    ("key", "\"/etc/aiot-tunnel/server.key\""),
    ("log_level", "\"info\""),
    ("notify", "\"mqtts://mqtt.example\""),
    ("notify_ca", "\"/etc/aiot-tunnel/mqtt-ca.pem\""),
    ("notify_password_file", "\"/etc/aiot-tunnel/mqtt.password\""),
    ("notify_user", "\"gateway\""),
    ("on_event", "\"/usr/local/bin/tunnel-event\""),
    ("password_file", "\"/etc/aiot-tunnel/mqtt.password\""),
    ("product_key", "\"a1pk\""),
    ("proxy", "\"http://proxy.example:3128\""),
    ("proxy_auth_file", "\"/etc/aiot-tunnel/proxy.password\""),
    ("public_url", "\"wss://gw.example:8443\""),
    ("queue_key", "1234"),
    ("queue_owner", "1000"),
    ("rate_limit", "\"100kbit\""),
    ("region", "\"cn-shanghai\""),
    ("store", "\"/var/lib/aiot-tunnel-gateway/tunnels.db\""),
    ("store_ca", "\"/etc/aiot-tunnel/redis-ca.pem\""),
    ("store_key_file", "\"/etc/aiot-tunnel/store.key\""),
    ("store_password_file", "\"/etc/aiot-tunnel/redis.password\""),
    ("trusted_proxy", "\"127.0.0.1\""),
    ("tunnel", "\"t1\""),
    ("tunnels", "\"/etc/aiot-tunnel/tunnels.json\""),
    ("username", "\"device-1\""),
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
    use crate::cli;
    use std::fmt::Write;
    use std::fs;
    use std::path::Path;

    const WIDTH: usize = 96;

    fn example(file: &File) -> String {
        let name = file.names.subcommand;
        let mut text = format!(
            "\
# Settings of {}.
# Their manual page is aiot-tunnel-{name}.toml(5).
#
# Each setting below shows its default, or an example if it has none. To change one, remove the # at the
# beginning of its line. Then run:
#
#   aiot-tunnel {name} --config /etc/aiot-tunnel/{name}.toml --check
#   {}
#
# The service runs as the user aiot-tunnel. It must be able to read the files that are named here, and
# nobody else should read tokens and keys:
#
#   install -m 640 -g aiot-tunnel FILE /etc/aiot-tunnel/
",
            file.about, file.takes_over
        );
        if let Some(values) = file.values {
            text.push('#');
            explain(&mut text, values);
        }
        let command = cli::options_of(file.names);
        let settings = settings(&command, file.names);
        let mut heading = settings[0].heading;
        if settings.iter().any(|setting| setting.heading != heading) {
            heading = "";
        }
        for setting in settings {
            if heading != setting.heading {
                write!(text, "\n# === {} ===\n", setting.heading).unwrap();
                heading = setting.heading;
            }
            explain(&mut text, &format!("{}.", setting.help));
            if let Some(choice) = setting.choice() {
                writeln!(text, "# One of: {choice}.").unwrap();
            }
            let key = &setting.key;
            let example = setting.example().map(str::to_owned);
            let value = setting.default.or(example);
            let value = value.unwrap_or_else(|| panic!("EXAMPLES has no example for {key}"));
            writeln!(text, "#{key} = {value}").unwrap();
        }
        for table in file.tables {
            write!(text, "\n# === {} ===\n", table.heading).unwrap();
            explain(&mut text, table.about);
            table.example.lines().for_each(|line| writeln!(text, "#{line}").unwrap());
        }
        text
    }

    /// An empty line, and a comment.
    fn explain(text: &mut String, about: &str) {
        let mut lines = vec![String::new()];
        for word in about.split_whitespace() {
            let line = lines.last_mut().unwrap();
            if !line.is_empty() && line.len() + word.len() >= WIDTH {
                lines.push(word.to_owned());
            } else {
                line.push_str(if line.is_empty() { "" } else { " " });
                line.push_str(word);
            }
        }
        text.push('\n');
        lines.iter().for_each(|line| writeln!(text, "# {line}").unwrap());
    }

    #[test]
    fn the_example_files_show_every_setting_with_its_default() {
        for file in FILES {
            let name = format!("../packaging/{}.toml", file.names.subcommand);
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&name);
            let example = example(&file);
            if std::env::var_os("UPDATE_EXAMPLE").is_some() {
                fs::write(&path, &example).unwrap();
            }
            assert!(
                fs::read_to_string(&path).unwrap_or_default() == example,
                "{name} is not up to date; run: UPDATE_EXAMPLE=1 cargo test -p aiot-tunnel-cli example"
            );
        }
    }
}
