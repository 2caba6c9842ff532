//! `aiot-tunnel ssh` and `aiot-tunnel ssh-config`: the system's ssh, with this program as its
//! ProxyCommand. The token is read by `access`, which ssh starts; one in the environment does not stay
//! there.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use aiot_tunnel::{process, TunnelId};
use zeroize::Zeroizing;

use crate::cli::{SshArgs, SshConfigArgs, SSH_DOMAIN};
use crate::holder;
use crate::input::{self, ACCESS_TOKEN};
use crate::profile::{self, Profile, Summary};
use crate::{Result, Usage};

/// ssh's options that take a value.
const WITH_VALUE: &[u8] = b"BbcDEeFIiJLlmOopPQRSWw";

/// Becomes ssh.
pub(crate) fn run(args: &SshArgs) -> Result<()> {
    let line = SshLine::parse(&args.arguments)?;
    let (named, file) = (args.place.profile.as_deref(), args.place.config.as_deref());
    let profile = match &args.url {
        Some(_) if named.is_some() || file.is_some() => {
            return Err(Usage::of("give --url, or a profile, and not both").into());
        }
        Some(_) => None,
        None => Some(Profile::load(file, named, &line.tunnel)?),
    };
    let of_profile = profile.as_ref().and_then(|profile| profile.option("url"));
    let url = args.url.as_deref().or(of_profile).unwrap_or_default();
    let user = profile.as_ref().and_then(|profile| profile.user.as_ref());
    let kept = match &args.token_file {
        Some(_) => None,
        None => token_of_environment(profile.as_ref())?,
    };
    let own = own_options(args.arguments.len());
    let mut proxy = words(&[this_program()?.as_os_str(), OsStr::new("access")])?;
    proxy.extend(own.iter().map(|word| word_of(word)).collect::<Result<Vec<_>>>()?);
    // Joined, because an id may begin with a hyphen.
    proxy.push(word_of(OsStr::new(&format!("--tunnel={}", line.tunnel)))?);
    if let Some(token) = kept {
        let file = holder::hold(&token)?;
        proxy.push(word_of(OsStr::new(&format!("--token-file={}", file.display())))?);
    }
    proxy.push("--stdio".to_owned());
    let host = host_name(&line.tunnel, named)?;
    let mut command = Command::new("ssh");
    command.arg("-o").arg(format!("ProxyCommand={}", proxy.join(" ")));
    // What the user says goes before what follows here.
    command.args(&line.before);
    command.arg("-o").arg(format!("HostKeyAlias={host}.{}", gateway_name(url)?));
    if let (Some(user), false) = (user, line.names_user) {
        command.arg("-o").arg(format!("User={user}"));
    }
    match &line.user {
        Some(user) => {
            let mut destination = user.clone();
            destination.push("@");
            destination.push(&host);
            command.arg(destination)
        }
        None => command.arg(&host),
    };
    let e = command.args(&line.after).exec();
    Err(format!("ssh: {e}; install OpenSSH's client").into())
}

/// Takes the token out of the environment, which is ssh's, too. Of two tokens there, it is the one that
/// `access` would take.
fn token_of_environment(profile: Option<&Profile>) -> Result<Option<Zeroizing<String>>> {
    let mut found = None;
    let variables = [Some(ACCESS_TOKEN), profile.and_then(Profile::token_variable)];
    for variable in variables.into_iter().flatten() {
        let token = process::take_variable(variable)?.filter(|token| !token.trim().is_empty());
        found = found.or(token);
    }
    Ok(found)
}

/// Prints blocks for each profile.
pub(crate) fn config(args: &SshConfigArgs) -> Result<()> {
    let file = args.place.config.as_deref();
    let summaries = profile::summaries(file, args.place.profile.as_deref())?;
    let mut text = "# From: aiot-tunnel ssh-config\n".to_owned();
    for summary in &summaries {
        text += &blocks(file, summary, &format!(".{}{SSH_DOMAIN}", summary.name))?;
    }
    // ssh takes the first value that it finds, so the most general name stands last.
    for summary in summaries.iter().filter(|summary| summary.is_default) {
        text += &blocks(file, summary, SSH_DOMAIN)?;
    }
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// The lines for the hosts of a domain.
fn blocks(file: Option<&Path>, summary: &Summary, domain: &str) -> Result<String> {
    let mut text = String::new();
    for hosts in &summary.hosts {
        let is_all = hosts.pattern == "*";
        // No host has such a name.
        if !hosts.pattern.chars().all(|c| is_plain(c) || "*?".contains(c)) {
            continue;
        }
        if !is_all && hosts.url.is_none() && hosts.user.is_none() {
            continue;
        }
        text += &format!("\nHost {}{domain}\n", hosts.pattern);
        if let Some(url) = &hosts.url {
            text += &format!("    HostName %h.{}\n", gateway_name(url)?);
        }
        if let Some(user) = &hosts.user {
            text += &format!("    User {}\n", config_word(user)?);
        }
    }
    let mut proxy = words(&[this_program()?.as_os_str(), OsStr::new("access")])?;
    if let Some(file) = file {
        let file = std::path::absolute(file).map_err(|e| format!("{}: {e}", file.display()))?;
        proxy.extend(words(&[OsStr::new("--config"), file.as_os_str()])?);
    }
    proxy.extend(["--profile", &summary.name, "--stdio"].map(str::to_owned));
    // Quoted for versions of ssh that let a shell see what stands in a host name.
    proxy.push("'--ssh-host=%n'".to_owned());
    text += &format!("    ProxyCommand {}\n", proxy.join(" "));
    Ok(text)
}

/// A word of ssh's configuration.
fn config_word(text: &str) -> Result<String> {
    if text.contains(['"', '\\']) || text.contains(char::is_control) {
        return Err(Usage::of(format_args!("{text:?} cannot stand in ssh's configuration")).into());
    }
    Ok(if text.chars().all(is_plain) { text.to_owned() } else { format!("\"{text}\"") })
}

/// ssh's arguments, taken apart.
struct SshLine {
    /// What stands before the destination.
    before: Vec<OsString>,
    user: Option<OsString>,
    tunnel: TunnelId,
    /// What stands behind the destination: options and the command.
    after: Vec<OsString>,
    /// Whether they name the user.
    names_user: bool,
}

impl SshLine {
    fn parse(arguments: &[OsString]) -> Result<Self> {
        let (mut at, mut names_user) = (0, false);
        skip_options(arguments, &mut at, &mut names_user);
        let usage = || Usage::of("name the tunnel: aiot-tunnel ssh [ssh's options] [USER@]TUNNEL");
        let destination = arguments.get(at).ok_or_else(usage)?;
        let (mut behind, mut before) = (at + 1, arguments[..at].to_vec());
        // It ends the options of this program only.
        before.retain(|argument| argument != "--");
        skip_options(arguments, &mut behind, &mut names_user);
        let bytes = destination.as_bytes();
        let (user, host) = match bytes.iter().rposition(|byte| *byte == b'@') {
            Some(place) => (Some(OsStr::from_bytes(&bytes[..place])), &bytes[place + 1..]),
            None => (None, bytes),
        };
        let id = std::str::from_utf8(host).map_err(|_| Usage::of("the tunnel is not text"))?;
        let id = id.strip_suffix(SSH_DOMAIN).unwrap_or(id);
        let tunnel = TunnelId::new(id).map_err(Usage::of)?;
        let user = user.map(OsStr::to_owned);
        names_user |= user.is_some();
        Ok(SshLine { before, user, tunnel, after: arguments[at + 1..].to_vec(), names_user })
    }
}

/// Moves behind ssh's options, and says whether one of them names the user.
fn skip_options(arguments: &[OsString], at: &mut usize, names_user: &mut bool) {
    while let Some(letters) = arguments.get(*at).and_then(|word| word.as_bytes().strip_prefix(b"-"))
    {
        if letters == b"-" {
            *at += 1;
            return;
        }
        if letters.is_empty() {
            return;
        }
        *at += 1;
        let Some(place) = letters.iter().position(|letter| WITH_VALUE.contains(letter)) else {
            continue;
        };
        let value = match &letters[place + 1..] {
            [] => {
                *at += 1;
                arguments.get(*at - 1).map(|word| word.as_bytes()).unwrap_or_default()
            }
            value => value,
        };
        let is_user = value.len() > 4 && value[..4].eq_ignore_ascii_case(b"user");
        *names_user |= match letters[place] {
            b'l' => true,
            b'o' => is_user && matches!(value[4], b'=' | b' ' | b'\t'),
            _ => false,
        };
    }
}

/// This program's options as they were given: all that stands before ssh's arguments.
fn own_options(of_ssh: usize) -> Vec<OsString> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let end = arguments.len().saturating_sub(of_ssh);
    let own = arguments.get(2..end).unwrap_or_default();
    own.iter().filter(|argument| *argument != "--").cloned().collect()
}

/// The host name that ssh gets. It looks for its own settings under this name.
fn host_name(tunnel: &TunnelId, profile: Option<&str>) -> Result<String> {
    let id = tunnel.as_str();
    if id.starts_with('-') || !id.chars().all(is_plain) {
        return Err(Usage::of(format_args!(
            "ssh takes no host {id:?}; use access --stdio as its ProxyCommand, with another host name"
        ))
        .into());
    }
    Ok(match profile {
        Some(profile) => format!("{id}.{profile}{SSH_DOMAIN}"),
        None => format!("{id}{SSH_DOMAIN}"),
    })
}

/// Whether a character may stand in the name of a host.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~+:".contains(c)
}

/// A gateway in the names under which ssh remembers keys: the same id at two gateways is two devices.
fn gateway_name(url: &str) -> Result<String> {
    let url = input::split_url(url).map_err(Usage::of)?;
    let name = format!("{}-{}", url.host, url.port).to_ascii_lowercase();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '-' };
    Ok(name.chars().map(plain).collect())
}

pub(crate) fn this_program() -> Result<std::path::PathBuf> {
    Ok(std::env::current_exe().map_err(|e| format!("find this program: {e}"))?)
}

fn words(texts: &[&OsStr]) -> Result<Vec<String>> {
    texts.iter().map(|text| word_of(text)).collect()
}

/// A word of a ProxyCommand. ssh replaces what begins with %, then a shell takes the words apart: the
/// user's own, so the quotes are those that sh, csh and fish have in common.
fn word_of(text: &OsStr) -> Result<String> {
    let wrong = || Usage::of(format_args!("{text:?} cannot stand in ssh's ProxyCommand"));
    let text = text.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(wrong)?;
    let text = text.replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return Ok(text);
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Result<SshLine> {
        SshLine::parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_tunnel_is_found_among_the_options_of_ssh() {
        for (words, tunnel, user, names_user) in [
            (&["t1"][..], "t1", None, false),
            (&["root@t1", "uptime"], "t1", Some("root"), true),
            (&["a@b@t1"], "t1", Some("a@b"), true),
            (&["-vvL", "8080:localhost:80", "t1"], "t1", None, false),
            (&["-L8080:localhost:80", "-t", "t1.tunnel", "ls", "-l", "x"], "t1", None, false),
            (&["-l", "root", "t1"], "t1", None, true),
            (&["t1", "-lroot", "ls"], "t1", None, true),
            (&["-oUser=root", "t1"], "t1", None, true),
            (&["-o", "user root", "t1"], "t1", None, true),
            (&["-o", "UserKnownHostsFile=x", "t1"], "t1", None, false),
            (&["-4", "--", "t1"], "t1", None, false),
        ] {
            let line = line(words).unwrap();
            assert_eq!(line.tunnel.as_str(), tunnel, "{words:?}");
            assert_eq!(line.user.as_deref(), user.map(OsStr::new), "{words:?}");
            assert_eq!(line.names_user, names_user, "{words:?}");
            let dashes =
                words.iter().take_while(|word| !word.contains(tunnel)).filter(|w| **w == "--");
            let all = line.before.len() + 1 + line.after.len();
            assert_eq!(all, words.len() - dashes.count(), "{words:?}");
        }
        for bad in [&[][..], &["-L", "x"], &["-v"], &["root@"]] {
            assert!(line(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_word_survives_ssh_and_the_shell() {
        for (text, word) in [
            ("/usr/bin/aiot-tunnel", "/usr/bin/aiot-tunnel"),
            ("100%", "100%%"),
            ("a b", "'a b'"),
            ("", "''"),
            ("it's", "'it'\\''s'"),
            ("$HOME;`x`", "'$HOME;`x`'"),
        ] {
            assert_eq!(word_of(OsStr::new(text)).unwrap(), word);
        }
        assert!(word_of(OsStr::new("a\nb")).is_err());
    }

    #[test]
    fn a_gateway_has_a_name_that_fits_into_a_host_name() {
        for (url, name) in [
            ("wss://GW.example:8443", "gw.example-8443"),
            ("wss://gw.example/x", "gw.example-443"),
            ("ws://[::1]:80", "---1--80"),
        ] {
            assert_eq!(gateway_name(url).unwrap(), name);
        }
    }
}
