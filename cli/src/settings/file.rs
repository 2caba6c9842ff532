//! Reads a file of settings: TOML whose keys are the options' names with underscores.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, Command};
use toml::de::{DeTable, DeValue};
use toml::Spanned;

use super::{display, is_repeatable, Field, Names, Origin, Table, NO_SETTINGS};
use crate::{input, Usage};

/// The values of each option that the file sets.
pub(super) type Values = BTreeMap<String, Vec<(String, Origin)>>;

/// # Errors
/// One line, which names the file, the line and the key.
pub(super) fn read(path: &Path, names: &Names, command: &Command) -> Result<Values, Usage> {
    let bytes = input::read(path).map_err(Usage::of)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        Usage::of(format_args!("{}:{line}: not UTF-8 text", display(path)))
    })?;
    let reader = Reader { path, text: &text, names };
    let table = DeTable::parse(&text).map_err(|e| {
        let what = e.message().lines().next().unwrap_or_default();
        reader.wrong(e.span().map_or(0, |span| span.start), format_args!("{what}"))
    })?;
    reader.values(table.get_ref(), command)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    names: &'a Names,
}

impl Reader<'_> {
    fn values(&self, table: &DeTable<'_>, command: &Command) -> Result<Values, Usage> {
        let mut values = Values::new();
        for (key, value) in table {
            let at = key.span().start;
            let name = key.get_ref().as_ref();
            if let Some(table) = self.names.tables.iter().find(|table| table.key() == name) {
                values.insert(table.option().to_owned(), self.table(table, value)?);
                continue;
            }
            let option = name.replace('_', "-");
            let mut args = command.get_arguments();
            let arg = args.find(|arg| arg.get_long() == Some(&option));
            let arg = arg.filter(|_| {
                !name.contains('-')
                    && self.names.table(&option).is_none()
                    && !NO_SETTINGS.contains(&option.as_str())
            });
            let Some(arg) = arg else {
                let right = name.replace('-', "_").to_ascii_lowercase();
                if right != name && args_have(command, &right) {
                    return Err(self.wrong(at, format_args!("{name}: write {right}")));
                }
                return Err(self.unknown(at, name));
            };
            values.insert(option, self.plain(arg, name, value)?);
        }
        Ok(values)
    }

    /// One value, or a list of them where the option may be repeated.
    fn plain(
        &self,
        arg: &Arg,
        name: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<(String, Origin)>, Usage> {
        let at = value.span().start;
        match value.get_ref() {
            DeValue::Array(list) if is_repeatable(arg) => {
                list.iter().map(|value| self.one(name, value)).collect()
            }
            DeValue::Array(_) => Err(self.wrong(at, format_args!("{name}: takes one value"))),
            _ => Ok(vec![self.one(name, value)?]),
        }
    }

    fn one(&self, name: &str, value: &Spanned<DeValue<'_>>) -> Result<(String, Origin), Usage> {
        let at = value.span().start;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
            // Permissions are octal, with or without the prefix.
            DeValue::Integer(number) if number.radix() == 8 => number.to_string(),
            DeValue::Integer(number) => {
                let value = i64::from_str_radix(number.as_str(), number.radix());
                value
                    .map_err(|_| self.wrong(at, format_args!("{name}: too large a number")))?
                    .to_string()
            }
            other => {
                let kind = other.type_str();
                return Err(self.wrong(
                    at,
                    format_args!("{name}: a text or a number is expected, not a {kind}"),
                ));
            }
        };
        Ok((text, Origin::File { path: self.path.to_owned(), line: self.line(at) }))
    }

    fn table(
        &self,
        table: &Table,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<(String, Origin)>, Usage> {
        let at = value.span().start;
        match (table, value.get_ref()) {
            (Table::Map { .. }, DeValue::Table(entries)) => {
                let mut values = Vec::new();
                for (name, value) in entries {
                    let (text, origin) = self.one(name.get_ref(), value)?;
                    values.push((format!("{}={text}", name.get_ref()), origin));
                }
                // In the order of the file.
                values.sort_by_key(|(_, origin)| line_of(origin));
                Ok(values)
            }
            (Table::List { key, fields, .. }, DeValue::Array(entries)) => {
                entries.iter().map(|entry| self.entry(key, fields, entry)).collect()
            }
            (Table::Map { key, .. }, _) => {
                Err(self.wrong(at, format_args!("{key}: is a table: write [{key}] above it")))
            }
            (Table::List { key, .. }, _) => Err(self
                .wrong(at, format_args!("{key}: is a list of tables: write [[{key}]] above each"))),
        }
    }

    /// One table of a list: its fields, with blanks between them.
    fn entry(
        &self,
        key: &str,
        fields: &[Field],
        entry: &Spanned<DeValue<'_>>,
    ) -> Result<(String, Origin), Usage> {
        let at = entry.span().start;
        let DeValue::Table(entry) = entry.get_ref() else {
            return Err(self.wrong(at, format_args!("{key}: write [[{key}]] above each entry")));
        };
        let is_known = |name: &str| fields.iter().any(|field| field.name == name);
        if let Some((name, _)) = entry.iter().find(|(name, _)| !is_known(name.get_ref())) {
            return Err(self.unknown(name.span().start, name.get_ref()));
        }
        let mut texts = Vec::new();
        let mut origin = Origin::File { path: self.path.to_owned(), line: self.line(at) };
        for one in fields {
            let Field { name: field, default } = one;
            let value = entry.iter().find(|(name, _)| name.get_ref() == field);
            let Some((_, value)) = value else {
                let missing = || self.wrong(at, format_args!("{key}: {field} is missing"));
                texts.push((*default).ok_or_else(missing)?.to_owned());
                continue;
            };
            let (text, at_field) = self.one(field, value)?;
            let is_last = fields.last().is_some_and(|last| last.name == *field);
            if text.is_empty() || (!is_last && text.contains(char::is_whitespace)) {
                let at = value.span().start;
                let why =
                    if text.is_empty() { "must not be empty" } else { "must not have blanks" };
                return Err(self.wrong(at, format_args!("{key}: {field}: {why}")));
            }
            if texts.is_empty() {
                origin = at_field;
            }
            texts.push(text);
        }
        Ok((texts.join(" "), origin))
    }

    fn unknown(&self, at: usize, name: &str) -> Usage {
        self.wrong(
            at,
            format_args!(
                "{name}: there is no such key; aiot-tunnel {} --print-config shows all",
                self.names.subcommand
            ),
        )
    }

    fn wrong(&self, at: usize, why: std::fmt::Arguments<'_>) -> Usage {
        Usage::of(format_args!("{}:{}: {why}", display(self.path), self.line(at)))
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }
}

fn args_have(command: &Command, key: &str) -> bool {
    command.get_arguments().any(|arg| arg.get_long() == Some(&key.replace('_', "-")))
}

fn line_of(origin: &Origin) -> usize {
    match origin {
        Origin::File { line, .. } => *line,
        _ => 0,
    }
}
