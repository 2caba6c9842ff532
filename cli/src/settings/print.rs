//! Shows the settings in force as a file of settings, with the origin of each behind it.

use std::borrow::Cow;
use std::fmt;

use super::{display, Field, Origin, Setting, Settings, Table};

/// Where the comments begin.
const COLUMN: usize = 44;

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "# The first of these that sets a value decides: option, environment, file, default."
        )?;
        let is_table = |setting: &&Setting| self.names.table(&setting.option).is_some();
        for setting in self.settings.values().filter(|setting| !is_table(setting)) {
            plain(f, setting)?;
        }
        for table in self.names.tables {
            let Some(setting) = self.settings.get(table.option()) else { continue };
            match table {
                Table::Map { key, .. } => map(f, key, setting)?,
                Table::List { key, fields, as_fields, .. } => {
                    list(f, key, fields, *as_fields, setting)?;
                }
            }
        }
        Ok(())
    }
}

fn plain(f: &mut fmt::Formatter<'_>, setting: &Setting) -> fmt::Result {
    let key = setting.option.replace('-', "_");
    match &setting.values[..] {
        [] => writeln!(f, "{:COLUMN$} # not set", format!("# {key} =")),
        [(value, origin)] => {
            line(f, &format!("{key} = {}", literal(&without_password(value))), origin)
        }
        [.., (_, origin)] => {
            let values: Vec<_> = setting.values.iter().map(|(value, _)| literal(value)).collect();
            line(f, &format!("{key} = [{}]", values.join(", ")), origin)
        }
    }
}

fn map(f: &mut fmt::Formatter<'_>, key: &str, setting: &Setting) -> fmt::Result {
    writeln!(f, "\n[{key}]")?;
    for (value, origin) in &setting.values {
        let (name, value) = value.split_once('=').unwrap_or((value, ""));
        let is_bare = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        };
        let name = if is_bare(name) { name.to_owned() } else { text(name) };
        line(f, &format!("{name} = {}", text(value)), origin)?;
    }
    Ok(())
}

fn list(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    fields: &[Field],
    as_fields: fn(&str) -> String,
    setting: &Setting,
) -> fmt::Result {
    for (value, origin) in &setting.values {
        writeln!(f)?;
        line(f, &format!("[[{key}]]"), origin)?;
        let value = as_fields(value);
        for (field, value) in fields.iter().zip(value.splitn(fields.len(), ' ')) {
            // A field that may be left out has a default, and may be no text.
            let is_text = field.default.is_none();
            let value = if is_text { text(value) } else { literal(value) };
            writeln!(f, "{} = {value}", field.name)?;
        }
    }
    Ok(())
}

fn line(f: &mut fmt::Formatter<'_>, setting: &str, origin: &Origin) -> fmt::Result {
    write!(f, "{setting:COLUMN$} # ")?;
    match origin {
        Origin::Default => writeln!(f, "default"),
        Origin::Option => writeln!(f, "option"),
        Origin::Environment(variable) => writeln!(f, "{variable}"),
        Origin::File { path, line } => writeln!(f, "{}:{line}", display(path)),
    }
}

/// A value without the password that a URL may hold. What looks like a URL and is none may hold one, too.
fn without_password(value: &str) -> Cow<'_, str> {
    let parts = value.split_once("://").and_then(|(scheme, rest)| {
        let (who, address) = rest.rsplit_once('@')?;
        let (user, _) = who.split_once(':')?;
        Some(format!("{scheme}://{user}:***@{address}"))
    });
    parts.map_or(Cow::Borrowed(value), Cow::Owned)
}

/// A value as TOML.
pub(crate) fn literal(value: &str) -> String {
    // A number with a leading zero is none in TOML.
    let is_number = value.parse::<i64>().is_ok_and(|number| number.to_string() == value);
    match value {
        "true" | "false" => value.to_owned(),
        _ if is_number => value.to_owned(),
        _ => text(value),
    }
}

fn text(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            c if c.is_control() => text.push_str(&format!("\\u{:04X}", c as u32)),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}
