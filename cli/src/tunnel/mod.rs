//! `aiot-tunnel tunnel`: changes and shows the tunnels of a gateway, through its API.

mod client;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aiot_tunnel_registry::api::encoded;
use serde_json::{json, Map, Value};
use unicode_width::UnicodeWidthStr;

use crate::cli::{TokenSide, TunnelAction, TunnelArgs, DEFAULT_API};
use crate::{input, Result, Usage};
use client::Client;

const API: &str = "AIOT_TUNNEL_API";
const API_KEY_FILE: &str = "AIOT_TUNNEL_API_KEY_FILE";

pub(crate) fn run(args: &TunnelArgs) -> Result<()> {
    let issues = matches!(args.action, TunnelAction::Add | TunnelAction::Rotate);
    for (option, is_given, fits) in [
        ("--expire", args.expire.is_some(), issues),
        ("--save", args.save.is_some(), issues),
        ("--device", args.device.is_some(), args.action == TunnelAction::Add),
        ("--side", args.side.is_some(), args.action == TunnelAction::Rotate),
        ("an ID", args.id.is_some(), args.action != TunnelAction::List),
    ] {
        if is_given && !fits {
            let action = format!("{:?}", args.action).to_lowercase();
            return Err(Usage::of(format_args!("{option} has no meaning with {action}")).into());
        }
    }
    let client = client(args)?;
    let expire = args.expire.map(seconds);
    match args.action {
        TunnelAction::Add => {
            let mut body = Map::new();
            body.extend(args.id.as_ref().map(|id| ("id".to_owned(), json!(id))));
            body.extend(expire.map(|seconds| ("expire".to_owned(), json!(seconds))));
            if let Some(device) = &args.device {
                body.insert("product_key".to_owned(), json!(device.product_key()));
                body.insert("device_name".to_owned(), json!(device.device_name()));
            }
            let files = Files::prepare(args)?;
            let answer = client.ask("POST", "/tunnels", Some(&body.into()))?;
            say_issued(args, &answer, files)
        }
        TunnelAction::Rotate => {
            let mut body = Map::new();
            let side = args.side.map(|side| match side {
                TokenSide::Device => "device",
                TokenSide::Access => "access",
                TokenSide::Both => "both",
            });
            body.extend(side.map(|side| ("side".to_owned(), json!(side))));
            body.extend(expire.map(|seconds| ("expire".to_owned(), json!(seconds))));
            let files = Files::prepare(args)?;
            let path = format!("{}/rotate", path(args)?);
            let answer = client.ask("POST", &path, Some(&body.into()))?;
            say_issued(args, &answer, files)
        }
        TunnelAction::List => {
            let answer = client.ask("GET", "/tunnels", None)?;
            match args.json {
                true => say(&answer),
                false => say(&table(&serde_json::from_str(&answer)?)),
            }
        }
        TunnelAction::Show => {
            let answer = client.ask("GET", &path(args)?, None)?;
            match args.json {
                true => say(&answer),
                false => say(&details(&serde_json::from_str(&answer)?)),
            }
        }
        TunnelAction::Remove => {
            client.ask("DELETE", &path(args)?, None)?;
            Ok(())
        }
    }
}

fn client(args: &TunnelArgs) -> Result<Client> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let url = args.api.clone().or_else(|| variable(API)).unwrap_or_else(|| DEFAULT_API.to_owned());
    let of_environment = || Some((API_KEY_FILE, PathBuf::from(variable(API_KEY_FILE)?)));
    let option = args.api_key_file.clone().map(|file| ("--api-key-file", file));
    let (place, key) = option.or_else(of_environment).ok_or_else(|| {
        Usage::of(format_args!("name the file of the API's key: --api-key-file, or {API_KEY_FILE}"))
    })?;
    let key = input::token_of_file(&key).map_err(|e| Usage::of(format_args!("{place}: {e}")))?;
    Client::new(&url, args.ca.as_deref(), key)
}

fn path(args: &TunnelArgs) -> Result<String> {
    let id = args.id.as_deref().ok_or_else(|| Usage::of("name the tunnel's ID"))?;
    Ok(format!("/tunnels/{}", encoded(id)))
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

fn say(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

/// The folder for tokens. It is tried before the gateway makes tokens, which it shows only once.
struct Files(Option<PathBuf>);

impl Files {
    fn prepare(args: &TunnelArgs) -> Result<Self> {
        if let Some(folder) = &args.save {
            let at = |e| format!("{}: {e}", folder.display());
            fs::create_dir_all(folder).map_err(at)?;
            let probe = folder.join(format!(".aiot-tunnel-{}", std::process::id()));
            secret_file(&probe).map_err(at)?;
            fs::remove_file(&probe).map_err(at)?;
        }
        Ok(Files(args.save.clone()))
    }

    /// Writes a token in the place of an older one.
    fn write(&self, id: &str, side: &str, token: &str) -> Result<Option<PathBuf>> {
        let Some(folder) = &self.0 else { return Ok(None) };
        // An id of visible ASCII without a slash; a dot in front would hide the file.
        let path = folder.join(format!("{}.{side}.token", id.replace('/', "_")));
        let new = folder.join(format!(".aiot-tunnel-{}", std::process::id()));
        let at = |e| format!("{}: {e}", path.display());
        let mut file = secret_file(&new).map_err(at)?;
        file.write_all(format!("{token}\n").as_bytes()).map_err(at)?;
        fs::rename(&new, &path).map_err(at)?;
        Ok(Some(path))
    }
}

/// A new file that only its owner may read.
pub(crate) fn secret_file(path: &Path) -> std::io::Result<fs::File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Shows the tokens that the gateway has made, or writes them into files.
fn say_issued(args: &TunnelArgs, answer: &str, files: Files) -> Result<()> {
    let mut issued: Value = serde_json::from_str(answer)?;
    let id = issued["id"].as_str().ok_or("the answer names no tunnel")?.to_owned();
    let mut lines = Vec::new();
    for (side, name) in [("device", "device_token"), ("access", "access_token")] {
        let Some(token) = issued[name].as_str() else { continue };
        match files.write(&id, side, token)? {
            Some(path) => {
                let path = path.display().to_string();
                lines.push((format!("{side} token"), path.clone()));
                issued[name] = Value::Null;
                issued[format!("{name}_file")] = json!(path);
            }
            None => lines.push((format!("{side} token"), token.to_owned())),
        }
    }
    if args.json {
        return say(&format!("{issued}\n"));
    }
    let mut text = format!("{:<14} {id}\n", "tunnel");
    for (name, key) in [("device URL", "device_url"), ("access URL", "url"), ("expires", "expires")]
    {
        text += &format!("{name:<14} {}\n", issued[key].as_str().unwrap_or("never"));
    }
    for (name, value) in lines {
        text += &format!("{name:<14} {value}\n");
    }
    let notified = match issued["notified"].as_bool() {
        Some(true) => "the broker has the message for the device\n",
        Some(false) => "not yet: the gateway tries again until its broker is there\n",
        None => "",
    };
    if !notified.is_empty() {
        text += &format!("{:<14} {notified}", "notified");
    }
    say(&text)
}

const NOTHING: &str = "-";

fn text(value: &Value) -> String {
    match value {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All tunnels, one in each line.
fn table(answer: &Value) -> String {
    let head =
        ["tunnel", "state", "device", "access", "sessions", "to device", "to access", "expires"];
    let mut rows = vec![head.map(str::to_owned)];
    for one in answer["tunnels"].as_array().into_iter().flatten() {
        rows.push([
            text(&one["id"]),
            text(&one["state"]),
            text(&one["device"]["address"]),
            one["access"].as_array().map_or(0, Vec::len).to_string(),
            text(&one["sessions"]),
            text(&one["bytes_to_device"]),
            text(&one["bytes_to_access"]),
            one["expires"].as_str().unwrap_or("never").to_owned(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].width()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut page = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line += &" ".repeat(width + 2 - cell.width());
        }
        page += line.trim_end();
        page.push('\n');
    }
    page
}

/// One tunnel, one field in each line.
fn details(one: &Value) -> String {
    let mut page = String::new();
    let mut line = |name: &str, value: String| page += &format!("{name:<16} {value}\n");
    let peer = |peer: &Value| format!("{} since {}", text(&peer["address"]), text(&peer["since"]));
    line("tunnel", text(&one["id"]));
    line("state", text(&one["state"]));
    line("source", text(&one["source"]));
    match &one["device"] {
        Value::Null => line("device last seen", text(&one["device_last_seen"])),
        device => line("device", peer(device)),
    }
    for access in one["access"].as_array().into_iter().flatten() {
        line("access", peer(access));
    }
    for (name, key) in [
        ("sessions", "sessions"),
        ("sessions opened", "sessions_opened"),
        ("bytes to device", "bytes_to_device"),
        ("bytes to access", "bytes_to_access"),
        ("device URL", "device_url"),
        ("access URL", "access_url"),
        ("product key", "product_key"),
        ("device name", "device_name"),
        ("created", "created"),
        ("tokens replaced", "rotated"),
    ] {
        line(name, text(&one[key]));
    }
    line("expires", one["expires"].as_str().unwrap_or("never").to_owned());
    page
}
