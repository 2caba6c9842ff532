//! Checks the file: every key, and every value by itself.

use std::fmt;

use clap::{Arg, ArgAction, Command};
use toml::de::{DeTable, DeValue};

use super::file::{
    entries, profiles, File, MATCH, TOKEN_COMMAND, TOKEN_FILE, TOKEN_TIMEOUT, TOKEN_VARIABLE,
    TUNNEL, USER,
};
use crate::{cli, input, settings, Result, Usage};

/// The options of `access` that a profile may set.
pub(super) const OPTIONS: [&str; 12] = [
    "url",
    "service",
    "ca",
    "proxy",
    "proxy_auth_file",
    "bind",
    "family",
    "clock",
    "keepalive",
    "queue_timeout",
    "half_close_timeout",
    "no_extensions",
];

/// Checks all of a file, also profiles that are not used now.
///
/// # Errors
/// One line that names the file, the line and the key.
pub(super) fn check(file: &File) -> Result<(), Usage> {
    let table = file.table()?;
    let access = cli::access_options();
    for (key, value, at) in entries(&table) {
        match (key, value.get_ref()) {
            ("default", _) => drop(file.text_of(key, value)?),
            ("profile", DeValue::Table(_)) => {}
            ("profile", _) => {
                return Err(file.wrong(at, format_args!("profile: write [profile.NAME]")));
            }
            _ => {
                let hint = match OPTIONS.contains(&key) || key.starts_with("token_") {
                    true => "; write it below [profile.NAME]",
                    false => "",
                };
                let why = format_args!("{key}: there is no such key here{hint}");
                return Err(file.wrong(at, why));
            }
        }
    }
    for (name, value, at) in profiles(&table) {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(file.wrong(at, format_args!("profile: write [profile.{name}]")));
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.starts_with('-') || !name.chars().all(plain) {
            let why = "a name has letters, digits, - and _ only";
            return Err(file.wrong(at, format_args!("profile {name:?}: {why}")));
        }
        check_table(file, table, &access, false)?;
        for (_, entry) in file.overrides(table)? {
            check_table(file, entry, &access, true)?;
        }
    }
    Ok(())
}

fn check_table(
    file: &File,
    table: &DeTable<'_>,
    access: &Command,
    is_override: bool,
) -> Result<(), Usage> {
    for (key, value, at) in entries(table) {
        let wrong = |why: &dyn fmt::Display| file.wrong(at, format_args!("{key}: {why}"));
        match key {
            "url" => {
                let url = file.text_of(key, value)?;
                input::split_url(&url).map_err(|e| wrong(&e))?;
            }
            TOKEN_FILE | TOKEN_VARIABLE | USER => {
                let text = file.text_of(key, value)?;
                if text.is_empty() || key == USER && text.starts_with('-') {
                    return Err(wrong(&"is empty, or begins with -"));
                }
            }
            TOKEN_COMMAND => drop(file.words(key, value)?),
            TOKEN_TIMEOUT => drop(file.time(key, value)?),
            TUNNEL if !is_override => {}
            MATCH if is_override => {}
            key if OPTIONS.contains(&key) => {
                let text = file.text_of(key, value)?;
                let option = key.replace('_', "-");
                let mut options = access.get_arguments();
                let option = options.find(|arg| arg.get_long() == Some(&option));
                option.map_or(Ok(()), |arg| check_value(arg, &text)).map_err(|e| wrong(&e))?;
            }
            "token" => {
                let why = "there is no such key: a token does not stand in this file; name its \
                               place in token_file, token_variable or token_command";
                return Err(wrong(&why));
            }
            _ => {
                let right = key.replace('-', "_").to_ascii_lowercase();
                let known = OPTIONS.contains(&&*right) || right.starts_with("token_");
                return Err(match known && right != key {
                    true => wrong(&format_args!("write {right}")),
                    false => wrong(&"there is no such key; docs/access.md lists all"),
                });
            }
        }
    }
    Ok(())
}

/// Whether an option takes a value.
fn check_value(arg: &Arg, text: &str) -> Result<(), String> {
    match arg.get_action() {
        ArgAction::SetTrue if ["true", "false"].contains(&text) => Ok(()),
        ArgAction::SetTrue => Err("true or false is expected".to_owned()),
        _ => settings::check(arg, text),
    }
}
