//! Reads the file. Every error names the file, the line and the key.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aiot_tunnel::TunnelId;
use toml::de::{DeTable, DeValue};
use toml::Spanned;

use super::check::{check, OPTIONS};
use super::token::Place;
use super::{Hosts, Profile, Value};
use crate::exit_codes::{Failure, OPEN_FILE};
use crate::{input, Result, Usage};

/// A file is some kilobytes long. More than this is none.
const MAX_SIZE: usize = 1024 * 1024;
/// How long a command for a token may take: a person may have to type a password.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Those that name a file.
const FILES: [&str; 2] = ["ca", "proxy_auth_file"];
pub(super) const TOKEN_FILE: &str = "token_file";
pub(super) const TOKEN_VARIABLE: &str = "token_variable";
pub(super) const TOKEN_COMMAND: &str = "token_command";
pub(super) const TOKEN_TIMEOUT: &str = "token_timeout";
pub(super) const USER: &str = "user";
pub(super) const TUNNEL: &str = "tunnel";
pub(super) const MATCH: &str = "match";

/// The file as text. The tables of it borrow the text.
pub(super) struct File {
    path: PathBuf,
    text: String,
}

type Entry<'a, 'b> = (&'a str, &'a Spanned<DeValue<'b>>, usize);

impl File {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let at_file = |why: &dyn fmt::Display| Usage::of(format_args!("{}: {why}", path.display()));
        let about = fs::metadata(path).map_err(|e| at_file(&e))?;
        if about.permissions().mode() & 0o002 != 0 {
            let path = path.display();
            return Err(Failure::new(
                OPEN_FILE,
                format_args!(
                    "{path}: every user of this machine may change it, and it can name a command; \
                     run: chmod go-w {path}"
                ),
            )
            .into());
        }
        let bytes = input::read(path).map_err(Usage::of)?;
        if bytes.len() > MAX_SIZE {
            let size = bytes.len();
            return Err(
                at_file(&format_args!("{size} bytes are too many for a configuration")).into()
            );
        }
        let text = String::from_utf8(bytes).map_err(|_| at_file(&"not text"))?;
        let file = File { path: path.to_owned(), text };
        check(&file)?;
        Ok(file)
    }

    /// The names of all profiles, in the order of the file.
    pub(super) fn names(&self) -> Vec<String> {
        let Ok(table) = DeTable::parse(&self.text) else { return Vec::new() };
        let mut names: Vec<(usize, String)> =
            profiles(table.get_ref()).map(|(name, _, at)| (at, name.to_owned())).collect();
        names.sort();
        names.into_iter().map(|(_, name)| name).collect()
    }

    /// The profile for those who name none.
    pub(super) fn default_name(&self) -> Result<Option<String>> {
        let table = self.table()?;
        if let Some((_, value)) = table.iter().find(|(key, _)| key.get_ref() == "default") {
            let name = self.text_of("default", value)?;
            if !self.names().contains(&name) {
                let why = format_args!("default: there is no profile {name}{}", self.known());
                return Err(self.wrong(value.span().start, why).into());
            }
            return Ok(Some(name));
        }
        Ok(match <[String; 1]>::try_from(self.names()) {
            Ok([only]) => Some(only),
            Err(_) => None,
        })
    }

    pub(super) fn profile(&self, name: Option<&str>, tunnel: &TunnelId) -> Result<Profile> {
        let path = self.path.display();
        let name = match name {
            Some(name) => name.to_owned(),
            None => self.default_name()?.ok_or_else(|| {
                Usage::of(format_args!(
                    "{path}: no profile is the default one: give --profile, or write default = \
                     \"NAME\" at its beginning{}",
                    self.known()
                ))
            })?,
        };
        let parsed = self.table()?;
        let found = profiles(&parsed).find(|(known, _, _)| *known == name);
        let Some((_, value, at)) = found else {
            return Err(Usage::of(format_args!(
                "{path}: there is no profile {name}{}",
                self.known()
            ))
            .into());
        };
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong(at, format_args!("profile.{name}: is a table")).into());
        };
        let mut layers = Vec::new();
        for (pattern, entry) in self.overrides(table)? {
            if matches(&pattern, tunnel.as_str()) {
                layers.push(entry);
            }
        }
        layers.push(table);
        let mut profile = Profile {
            file: self.path.clone(),
            name,
            tunnel: tunnel.clone(),
            options: Vec::new(),
            user: None,
            token: None,
        };
        for layer in layers {
            self.apply(layer, &mut profile)?;
        }
        if profile.option("url").is_none() {
            return Err(self.lacks_url(&profile.name, at).into());
        }
        Ok(profile)
    }

    /// What ssh has to know of the tunnels of a profile: the exceptions, then all.
    pub(super) fn hosts(&self, name: &str) -> Result<Vec<Hosts>> {
        let parsed = self.table()?;
        let (table, at) = self.find(&parsed, name)?;
        let mut layers = self.overrides(table)?;
        layers.push(("*".to_owned(), table));
        let mut hosts = Vec::new();
        for (pattern, table) in layers {
            let find = |wanted| entries(table).find(|(key, _, _)| *key == wanted);
            let text =
                |wanted| find(wanted).map(|(key, value, _)| self.text_of(key, value)).transpose();
            hosts.push(Hosts { pattern, url: text("url")?, user: text(USER)? });
        }
        match hosts.last() {
            Some(Hosts { url: Some(_), .. }) => Ok(hosts),
            _ => Err(self.lacks_url(name, at).into()),
        }
    }

    /// The table of a profile, and where its name stands.
    fn find<'a, 'b>(
        &self,
        parsed: &'a DeTable<'b>,
        name: &str,
    ) -> Result<(&'a DeTable<'b>, usize), Usage> {
        let mut all = profiles(parsed);
        let found = all.find_map(|(known, value, at)| match value.get_ref() {
            DeValue::Table(table) if known == name => Some((table, at)),
            _ => None,
        });
        found.ok_or_else(|| {
            let path = self.path.display();
            Usage::of(format_args!("{path}: there is no profile {name}{}", self.known()))
        })
    }

    fn lacks_url(&self, name: &str, at: usize) -> Usage {
        self.wrong(at, format_args!("profile.{name}: url is missing"))
    }

    /// Sets what no layer before has set.
    fn apply(&self, layer: &DeTable<'_>, profile: &mut Profile) -> Result<()> {
        for (key, value, _) in entries(layer) {
            if OPTIONS.contains(&key) && profile.find(key).is_none() {
                let mut text = self.text_of(key, value)?;
                if FILES.contains(&key) {
                    text = self.resolved(&text);
                }
                let line = self.line(value.span().start);
                profile.options.push(Value { key: key.to_owned(), text, line });
            }
            if key == USER && profile.user.is_none() {
                profile.user = Some(self.text_of(key, value)?);
            }
        }
        if profile.token.is_none() {
            profile.token = self.place(layer, &profile.tunnel)?;
        }
        Ok(())
    }

    /// Where a table says that the token is.
    fn place(&self, layer: &DeTable<'_>, tunnel: &TunnelId) -> Result<Option<Place>> {
        let find = |wanted| entries(layer).find(|(key, _, _)| *key == wanted);
        let mut places = [TOKEN_FILE, TOKEN_VARIABLE, TOKEN_COMMAND].into_iter().filter_map(find);
        let Some((key, value, _)) = places.next() else { return Ok(None) };
        if let Some((other, _, at)) = places.next() {
            return Err(self
                .wrong(at, format_args!("{other}: {key} is set, too; keep one"))
                .into());
        }
        let at = value.span().start;
        let filled = |text: &str| {
            fill(text, tunnel).map_err(|why| self.wrong(at, format_args!("{key}: {why}")))
        };
        Ok(Some(match key {
            TOKEN_FILE => {
                let text = filled(&self.text_of(key, value)?)?;
                Place::File(self.resolved(&text).into())
            }
            TOKEN_VARIABLE => Place::Variable(self.text_of(key, value)?),
            _ => {
                let words = self.words(key, value)?;
                let words = words.iter().map(|word| filled(word)).collect::<Result<_, _>>()?;
                let timeout = match find(TOKEN_TIMEOUT) {
                    Some((key, value, _)) => self.time(key, value)?,
                    None => COMMAND_TIMEOUT,
                };
                Place::Command { words, timeout, line: self.line(at) }
            }
        }))
    }

    /// The tables `[[profile.NAME.tunnel]]`, with their patterns.
    pub(super) fn overrides<'a, 'b>(
        &self,
        profile: &'a DeTable<'b>,
    ) -> Result<Vec<(String, &'a DeTable<'b>)>, Usage> {
        let list = entries(profile).find(|(key, _, _)| *key == TUNNEL);
        let Some((_, value, at)) = list else { return Ok(Vec::new()) };
        let why = "is a list of tables: write [[profile.NAME.tunnel]] above each";
        let wrong = |at| self.wrong(at, format_args!("{TUNNEL}: {why}"));
        let DeValue::Array(list) = value.get_ref() else { return Err(wrong(at)) };
        let mut overrides = Vec::new();
        for entry in list {
            let at = entry.span().start;
            let DeValue::Table(table) = entry.get_ref() else { return Err(wrong(at)) };
            let pattern = entries(table).find(|(key, _, _)| *key == MATCH);
            let Some((key, value, _)) = pattern else {
                return Err(self.wrong(at, format_args!("{TUNNEL}: match is missing")));
            };
            overrides.push((self.text_of(key, value)?, table));
        }
        Ok(overrides)
    }

    pub(super) fn table(&self) -> Result<DeTable<'_>, Usage> {
        let parsed = DeTable::parse(&self.text).map_err(|e| {
            let what = e.message().lines().next().unwrap_or_default();
            self.wrong(e.span().map_or(0, |span| span.start), format_args!("{what}"))
        })?;
        Ok(parsed.into_inner())
    }

    pub(super) fn text_of(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Usage> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Boolean(value) => Ok(value.to_string()),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
            other => {
                let kind = other.type_str();
                let why = format_args!("{key}: a text or a number is expected, not a {kind}");
                Err(self.wrong(value.span().start, why))
            }
        }
    }

    pub(super) fn words(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<String>, Usage> {
        let at = value.span().start;
        let why = "write the program and its arguments as a list, such as [\"pass\", \"show\", \
                   \"tunnels/{tunnel}\"]; no shell reads it";
        let wrong = || self.wrong(at, format_args!("{key}: {why}"));
        let DeValue::Array(words) = value.get_ref() else { return Err(wrong()) };
        let text = |word: &Spanned<DeValue<'_>>| match word.get_ref() {
            DeValue::String(word) => Some(word.to_string()),
            _ => None,
        };
        let words: Option<Vec<String>> = words.iter().map(text).collect();
        words.filter(|words| !words.is_empty() && !words[0].is_empty()).ok_or_else(wrong)
    }

    pub(super) fn time(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Duration, Usage> {
        let text = self.text_of(key, value)?;
        let at = value.span().start;
        input::duration(&text).map_err(|why| self.wrong(at, format_args!("{key}: {why}")))
    }

    /// A path of the file: below the user's home if it begins with `~/`, else from the file's folder.
    fn resolved(&self, text: &str) -> String {
        let home = text
            .strip_prefix("~/")
            .and_then(|rest| Some(PathBuf::from(std::env::var_os("HOME")?).join(rest)));
        let folder = self.path.parent().unwrap_or(Path::new(""));
        home.unwrap_or_else(|| folder.join(text)).to_string_lossy().into_owned()
    }

    /// The names of the profiles, for an error.
    fn known(&self) -> String {
        match &*self.names() {
            [] => "; there is none in it".to_owned(),
            names => format!("; there are {}", names.join(", ")),
        }
    }

    pub(super) fn wrong(&self, at: usize, why: fmt::Arguments<'_>) -> Usage {
        Usage::of(format_args!("{}:{}: {why}", self.path.display(), self.line(at)))
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count()
    }
}

/// The entries of a table: key, value, and where the key stands.
pub(super) fn entries<'a, 'b>(table: &'a DeTable<'b>) -> impl Iterator<Item = Entry<'a, 'b>> {
    table.iter().map(|(key, value)| (key.get_ref().as_ref(), value, key.span().start))
}

pub(super) fn profiles<'a, 'b>(table: &'a DeTable<'b>) -> impl Iterator<Item = Entry<'a, 'b>> {
    let all = table.iter().find(|(key, _)| key.get_ref() == "profile");
    let all = all.and_then(|(_, value)| match value.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    });
    all.into_iter().flat_map(entries)
}

/// Puts the id of the tunnel into a text.
fn fill(text: &str, tunnel: &TunnelId) -> Result<String, String> {
    if !text.contains(super::PLACEHOLDER) {
        return Ok(text.to_owned());
    }
    let id = tunnel.as_str();
    // Such an id would lead to another folder, or look like an option.
    if id.contains('/') || id.starts_with(['.', '-']) {
        return Err(format!("the id {id:?} cannot stand for {}", super::PLACEHOLDER));
    }
    Ok(text.replace(super::PLACEHOLDER, id))
}

/// Whether a pattern matches a text: `*` stands for any characters, `?` for one.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    // Where the last star stands, and what it has taken so far.
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(c) if *c == '?' || *c == text[from] => (at, from) = (at + 1, from + 1),
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    (at, from) = (place + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_has_stars_and_question_marks() {
        for (pattern, text) in [
            ("pump-17", "pump-17"),
            ("pump-*", "pump-17"),
            ("*", ""),
            ("*17", "pump-117"),
            ("p?mp*7*", "pump-17"),
            ("*a*b*c", "xaybbzc"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "x"), ("pump", "pump-17"), ("?", ""), ("*a*b", "ba"), ("pump-?", "pump-17")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn an_id_does_not_lead_to_another_file_or_option() {
        let id = |id: &str| TunnelId::new(id).unwrap();
        assert_eq!(fill("tokens/{tunnel}", &id("t1")).as_deref(), Ok("tokens/t1"));
        assert_eq!(fill("token", &id("../x")).as_deref(), Ok("token"));
        for bad in ["..", "../x", "/etc/passwd", "a/b", "-x"] {
            assert!(fill("tokens/{tunnel}", &id(bad)).is_err(), "{bad}");
        }
    }
}
