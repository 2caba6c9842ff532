//! The settings of a program that runs for months: each is an option, an environment variable and a
//! key of a TOML file, declared once, as a clap option.
//!
//! The first of these that sets an option decides: the command line, the environment, the file, the
//! option's default. [`layer`] puts what the environment and the file say on the command line, so that
//! clap alone converts the values; it remembers where each came from, for errors and for
//! `--print-config`.

mod file;
mod print;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};

use crate::Usage;

pub(crate) use print::literal;

/// Divides the values of an option that may be repeated, in its environment variable.
const SEPARATOR: char = ';';
/// Options that are no settings.
const NO_SETTINGS: [&str; 5] = ["config", "print-config", "check", "help", "version"];

/// How the settings of one subcommand are named outside its command line.
pub(crate) struct Names {
    pub(crate) subcommand: &'static str,
    /// Of the environment variables.
    pub(crate) prefix: &'static str,
    /// The options that the file has as tables.
    pub(crate) tables: &'static [Table],
}

/// An option that may be repeated and that is a table, or a list of tables, in the file.
pub(crate) enum Table {
    /// `[key]`, with one line `name = "value"` for each `--option name=value`.
    Map { option: &'static str, key: &'static str },
    /// `[[key]]` with these fields, for each `--option "field field field"`.
    List {
        option: &'static str,
        key: &'static str,
        fields: &'static [Field],
        /// Brings a value of the option into that form.
        as_fields: fn(&str) -> String,
    },
}

/// A field of a table.
pub(crate) struct Field {
    pub(crate) name: &'static str,
    /// `None`: it must not be left out.
    pub(crate) default: Option<&'static str>,
}

impl Field {
    pub(crate) const fn needed(name: &'static str) -> Self {
        Field { name, default: None }
    }

    pub(crate) const fn or(name: &'static str, default: &'static str) -> Self {
        Field { name, default: Some(default) }
    }
}

impl Table {
    fn option(&self) -> &'static str {
        match self {
            Table::Map { option, .. } | Table::List { option, .. } => option,
        }
    }

    fn key(&self) -> &'static str {
        match self {
            Table::Map { key, .. } | Table::List { key, .. } => key,
        }
    }
}

impl Names {
    /// The environment variable of an option.
    pub(crate) fn variable(&self, option: &str) -> String {
        format!("{}{}", self.prefix, option.replace('-', "_").to_ascii_uppercase())
    }

    /// Whether an option is a setting that is not a table.
    pub(crate) fn is_plain_setting(&self, option: &str) -> bool {
        !NO_SETTINGS.contains(&option) && self.table(option).is_none()
    }

    fn table(&self, option: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.option() == option)
    }

    /// Names the environment variable of each option in its help text.
    pub(crate) fn document(&self, command: Command) -> Command {
        command.mut_args(|arg| {
            let Some(variable) = arg.get_long().map(|long| self.variable(long)) else { return arg };
            if is_action(&arg)
                || arg.get_long().is_some_and(|long| NO_SETTINGS[1..].contains(&long))
            {
                return arg;
            }
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(format!("{help} [env: {variable}]"))
        })
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment(String),
    Option,
}

/// As the beginning of an error: what to look at.
struct Place<'a> {
    names: &'a Names,
    origin: &'a Origin,
    option: &'a str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let option = self.option;
        match self.origin {
            Origin::Default | Origin::Option => write!(f, "--{option}"),
            Origin::Environment(variable) => f.write_str(variable),
            Origin::File { path, line } => {
                let table = self.names.table(option).map(|table| table.key().to_owned());
                let key = table.unwrap_or_else(|| option.replace('-', "_"));
                write!(f, "{}:{line}: {key}", path.display())
            }
        }
    }
}

/// One setting: its values as texts, each with its origin.
#[derive(Clone)]
struct Setting {
    option: String,
    values: Vec<(String, Origin)>,
}

/// What was set, and where.
#[derive(Clone)]
pub(crate) struct Settings {
    names: &'static Names,
    settings: BTreeMap<String, Setting>,
}

impl Settings {
    /// An error about an option's value. It says where the value comes from.
    pub(crate) fn wrong(&self, option: &str, why: impl fmt::Display) -> Usage {
        self.wrong_value(option, 0, why)
    }

    /// An error about one of the values of an option that may be repeated.
    pub(crate) fn wrong_value(&self, option: &str, at: usize, why: impl fmt::Display) -> Usage {
        Usage::of(format_args!("{}: {why}", self.place_of(option, at)))
    }

    /// An error about options that do not fit together, if not all of them are on the command line.
    pub(crate) fn explain(&self, error: &clap::Error) -> Option<Usage> {
        use clap::error::ErrorKind::{ArgumentConflict, MissingRequiredArgument};
        if !matches!(error.kind(), ArgumentConflict | MissingRequiredArgument) {
            return None;
        }
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        // The usage also names the options that made another one necessary.
        let (setting, origin) = self.outside(first).or_else(|| self.outside(&text))?;
        let place = Place { names: self.names, origin, option: &setting.option };
        let first: Vec<&str> = first.split_whitespace().collect();
        Some(Usage::of(format_args!("{place}: {}", first.join(" ").trim_start_matches("error: "))))
    }

    /// The first option in a text that the environment or the file has set.
    fn outside(&self, text: &str) -> Option<(&Setting, &Origin)> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        let options = words.filter_map(|word| self.settings.get(word.strip_prefix("--")?));
        let mut values = options
            .flat_map(|setting| setting.values.iter().map(move |(_, origin)| (setting, origin)));
        values.find(|(_, origin)| matches!(origin, Origin::File { .. } | Origin::Environment(_)))
    }

    /// The file or the variable that set the option, or the option's name.
    pub(crate) fn place(&self, option: &str) -> String {
        self.place_of(option, 0).to_string()
    }

    /// Where the option's value comes from.
    pub(crate) fn origin(&self, option: &str) -> &Origin {
        let value = self.settings.get(option).and_then(|setting| setting.values.first());
        value.map_or(&Origin::Default, |(_, origin)| origin)
    }

    fn place_of<'a>(&'a self, option: &'a str, at: usize) -> Place<'a> {
        let value = self.settings.get(option).and_then(|setting| setting.values.get(at));
        let origin = value.map_or(&Origin::Default, |(_, origin)| origin);
        Place { names: self.names, origin, option }
    }

    /// A variable that was misspelt must not be ignored without a word. It is no error: what starts
    /// containers may set variables of such names.
    pub(crate) fn warn_of_unknown_variables(&self) {
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let Some(rest) = name.strip_prefix(self.names.prefix) else { continue };
            let option = rest.to_ascii_lowercase().replace('_', "-");
            if !self.settings.contains_key(&option) && option != "config" {
                log::warn!("{name}: there is no such setting; the variable is ignored");
            }
        }
    }

    /// The options that have other values there.
    pub(crate) fn changes<'a>(&'a self, other: &'a Settings) -> impl Iterator<Item = &'a str> {
        self.settings.keys().map(String::as_str).filter(|option| self.differs(other, option))
    }

    /// Whether an option has other values there.
    pub(crate) fn differs(&self, other: &Settings, option: &str) -> bool {
        self.values(option) != other.values(option)
    }

    fn values(&self, option: &str) -> Vec<&str> {
        let setting = self.settings.get(option);
        let values = setting.map(|setting| &setting.values[..]).unwrap_or_default();
        values.iter().map(|(value, _)| &value[..]).collect()
    }
}

/// Whether an option asks for something to be shown, such as `--help`.
fn is_action(arg: &Arg) -> bool {
    use ArgAction::{Help, HelpLong, HelpShort, Version};
    matches!(arg.get_action(), Help | HelpLong | HelpShort | Version)
}

fn is_repeatable(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Puts the settings of the environment and of the file behind the arguments, which begin with the
/// program's name and the subcommand.
///
/// # Errors
/// A file that cannot be read, a key that does not exist, or a value that its option does not take.
pub(crate) fn layer(
    names: &'static Names,
    subcommand: &Command,
    arguments: &[OsString],
) -> Result<(Vec<OsString>, Settings), Usage> {
    let mut all = arguments.to_vec();
    let mut settings = Settings { names, settings: BTreeMap::new() };
    let given = given_options(arguments.get(2..).unwrap_or_default());
    if ["help", "h", "version"].iter().any(|option| given.contains_key(*option)) {
        return Ok((all, settings));
    }
    let file = match config_file(names, &given) {
        Some(path) => file::read(&path, names, subcommand)?,
        None => BTreeMap::new(),
    };
    for arg in subcommand.get_arguments() {
        let Some(option) = arg.get_long().filter(|option| !NO_SETTINGS.contains(option)) else {
            continue;
        };
        let values = if let Some(values) = given.get(option) {
            // clap checks them, and takes them where they stand.
            values.iter().map(|value| (value.clone(), Origin::Option)).collect()
        } else {
            let values = match from_environment(names, arg, option)? {
                Some(values) => values,
                None => file.get(option).cloned().unwrap_or_default(),
            };
            for (value, origin) in &values {
                check(arg, value).map_err(|why| {
                    Usage::of(format_args!("{}: {why}", Place { names, origin, option }))
                })?;
                all.push(format!("--{option}={value}").into());
            }
            match values.is_empty() {
                true => defaults(arg),
                false => values,
            }
        };
        settings.settings.insert(option.to_owned(), Setting { option: option.to_owned(), values });
    }
    Ok((all, settings))
}

/// The options that the command line names, with their values as texts.
fn given_options(arguments: &[OsString]) -> BTreeMap<String, Vec<String>> {
    let mut given: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut arguments = arguments.iter().map(|argument| argument.to_string_lossy()).peekable();
    while let Some(argument) = arguments.next() {
        let Some(option) = argument.strip_prefix("--") else {
            if argument == "-h" {
                given.insert("h".to_owned(), Vec::new());
            }
            continue;
        };
        let (option, value) = match option.split_once('=') {
            Some((option, value)) => (option, Some(value.to_owned())),
            None => {
                let value = arguments.next_if(|next| !next.starts_with("--"));
                (option, value.map(|value| value.into_owned()))
            }
        };
        given
            .entry(option.to_owned())
            .or_default()
            .push(value.unwrap_or_else(|| "true".to_owned()));
    }
    given
}

fn config_file(names: &Names, given: &BTreeMap<String, Vec<String>>) -> Option<PathBuf> {
    if let Some(path) = given.get("config").and_then(|paths| paths.last()) {
        return Some(path.into());
    }
    let variable = std::env::var_os(names.variable("config"))?;
    (!variable.is_empty()).then(|| variable.into())
}

fn from_environment(
    names: &Names,
    arg: &Arg,
    option: &str,
) -> Result<Option<Vec<(String, Origin)>>, Usage> {
    let variable = names.variable(option);
    let Some(text) = std::env::var_os(&variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let text = text.to_str().ok_or_else(|| Usage::of(format_args!("{variable}: not text")))?;
    let origin = Origin::Environment(variable);
    let values = match is_repeatable(arg) {
        true => text.split(SEPARATOR).map(str::trim).filter(|value| !value.is_empty()).collect(),
        false => vec![text],
    };
    Ok(Some(values.into_iter().map(|value| (value.to_owned(), origin.clone())).collect()))
}

/// Whether an option takes a value; the reason in one line if it does not.
pub(crate) fn check(arg: &Arg, value: &str) -> Result<(), String> {
    // Its relations to other options are checked when everything is known.
    let alone = arg
        .clone()
        .required(false)
        .requires(Resettable::<clap::Id>::Reset)
        .conflicts_with(Resettable::<clap::Id>::Reset);
    let command = Command::new("check").no_binary_name(true).disable_help_flag(true).arg(alone);
    let option = arg.get_long().unwrap_or_default();
    command.try_get_matches_from([format!("--{option}={value}")]).map(drop).map_err(|e| reason(&e))
}

/// The core of clap's text.
fn reason(error: &clap::Error) -> String {
    if let Some(cause) = std::error::Error::source(error) {
        return cause.to_string();
    }
    let possible = error.get(ContextKind::ValidValue).and_then(|values| match values {
        // clap reports an empty value with an empty list.
        ContextValue::Strings(values) if !values.is_empty() => Some(values.join(", ")),
        _ => None,
    });
    if error.get(ContextKind::InvalidValue) == Some(&ContextValue::String(String::new())) {
        return "must not be empty".to_owned();
    }
    match possible {
        Some(possible) => format!("not one of {possible}"),
        None => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            let core = line.strip_prefix("invalid value").and_then(|rest| rest.split_once("': "));
            core.map_or(line, |(_, why)| why).to_owned()
        }
    }
}

fn defaults(arg: &Arg) -> Vec<(String, Origin)> {
    let text = |value: &std::ffi::OsString| value.to_string_lossy().into_owned();
    let values: Vec<_> =
        arg.get_default_values().iter().map(|value| text(&OsString::from(value))).collect();
    let values = match arg.get_action() {
        ArgAction::SetTrue if values.is_empty() => vec!["false".to_owned()],
        _ => values,
    };
    values.into_iter().map(|value| (value, Origin::Default)).collect()
}

/// Whether an argument is the subcommand's name: the first argument of the program is.
pub(crate) fn is_for(names: &Names, arguments: &[OsString]) -> bool {
    arguments.get(1).map(OsString::as_os_str) == Some(OsStr::new(names.subcommand))
}

fn display(path: &Path) -> impl fmt::Display + '_ {
    path.display()
}
