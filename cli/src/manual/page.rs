//! The manual pages.

use clap::Command;
use clap_mangen::roff::{bold, italic, roman, Roff};
use clap_mangen::Man;

use super::example::{self, File, FILES};
use super::{help, Page, NAME};
use crate::cli;
use crate::Result;

/// The page of the program or of a subcommand.
pub(super) fn of_command(command: Command) -> Result<Page> {
    let name = command.get_display_name().unwrap_or(NAME).to_owned();
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command).source(source()).manual(NAME);
    let mut head = Vec::new();
    man.render_title(&mut head)?;
    let mut roff = Roff::new();
    do_not_break_names(&mut roff);
    roff.to_writer(&mut head)?;
    man.render_name_section(&mut head)?;
    man.render_synopsis_section(&mut head)?;
    man.render_description_section(&mut head)?;
    man.render_options_section(&mut head)?;
    if has_subcommands {
        man.render_subcommands_section(&mut head)?;
    }
    let mut roff = Roff::new();
    help::sections(&mut roff, &text);
    roff.control("SH", ["SEE ALSO"]);
    roff.text(see_also(&name));
    Page::new(&name, 1, &roff, head)
}

/// The page of a file of settings.
pub(super) fn of_settings(file: &File) -> Result<Page> {
    let subcommand = file.names.subcommand;
    let name = format!("{NAME}-{subcommand}.toml");
    let mut roff = Roff::new();
    roff.control("TH", [&name, "5", "", &source(), NAME]);
    do_not_break_names(&mut roff);
    roff.control("SH", ["NAME"]);
    roff.text([roman(format!("{name} - settings of {}", file.about))]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        roman("The file is TOML. "),
        bold(format!("{NAME} {subcommand} --config")),
        roman(" reads it; the installed one is "),
        italic(format!("/etc/{NAME}/{subcommand}.toml")),
        roman(
            ". Each key is also an option and a variable of the environment. The first of these that \
             sets a value decides: option, environment, file, default. A key that does not exist is an \
             error. After a change, run ",
        ),
        bold(format!("{NAME} {subcommand} --config FILE --check")),
        roman(", and then "),
        bold(file.takes_over),
        roman("."),
    ]);
    if let Some(values) = file.values {
        roff.control("PP", []);
        roff.text([roman(values)]);
    }
    let command = cli::options_of(file.names);
    let mut heading = None;
    for setting in example::settings(&command, file.names) {
        if heading != Some(setting.heading) {
            roff.control("SH", [setting.heading.to_uppercase().as_str()]);
            heading = Some(setting.heading);
        }
        roff.control("TP", []);
        roff.text([bold(&setting.key)]);
        roff.text([roman(format!("{}.", setting.help))]);
        roff.control("br", []);
        let variable = file.names.variable(&setting.option);
        let value = match (&setting.default, setting.example()) {
            (Some(default), _) => format!("Default: {default}."),
            (None, Some(example)) => format!("Not set by default. Example: {example}."),
            (None, None) => "Not set by default.".to_owned(),
        };
        let choice = setting.choice().map(|choice| format!(" One of: {choice}."));
        roff.text([roman(format!(
            "{value}{} Option: --{}. Variable: {variable}.",
            choice.unwrap_or_default(),
            setting.option
        ))]);
    }
    for table in file.tables {
        roff.control("SH", [table.heading.to_uppercase().as_str()]);
        roff.text([roman(table.about)]);
        help::block(&mut roff, table.example.lines());
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(format!("{NAME}-{subcommand}")), roman("(1)")]);
    Page::new(&name, 5, &roff, Vec::new())
}

fn see_also(name: &str) -> Vec<clap_mangen::roff::Inline> {
    let mut pages: Vec<(String, u8)> = vec![];
    if name != NAME {
        pages.push((NAME.to_owned(), 1));
    }
    let command = cli::command();
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let other = format!("{NAME}-{}", subcommand.get_name());
        if other != name {
            pages.push((other, 1));
        }
    }
    pages.extend(FILES.iter().map(|file| (format!("{NAME}-{}.toml", file.names.subcommand), 5)));
    let mut line = Vec::new();
    for (at, (page, section)) in pages.into_iter().enumerate() {
        if at > 0 {
            line.push(roman(", "));
        }
        line.push(bold(page));
        line.push(roman(format!("({section})")));
    }
    line
}

/// Options and variables are searched for and copied whole.
fn do_not_break_names(roff: &mut Roff) {
    roff.control("nh", []);
    roff.control("ad", ["l"]);
}

fn source() -> String {
    format!("{NAME} {}", env!("CARGO_PKG_VERSION"))
}
