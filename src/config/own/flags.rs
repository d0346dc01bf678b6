//! The flags of own settings, made from the table.

use std::collections::BTreeMap;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::{Form, SETTINGS, Setting};
use crate::config::flags::OWN;

/// What was given on the command line, by the key of the setting. Lists are joined by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnFlags(BTreeMap<&'static str, String>);

impl OwnFlags {
    /// Empty counts as not given.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|text| !text.is_empty())
    }
}

impl Args for OwnFlags {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().fold(command, |command, setting| command.arg(argument(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        OwnFlags::augment_args(command)
    }
}

impl FromArgMatches for OwnFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<OwnFlags, clap::Error> {
        let mut flags = OwnFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            if let Some(texts) = matches.get_many::<String>(setting.flag) {
                self.0.insert(setting.key, texts.map(String::as_str).collect::<Vec<_>>().join(","));
            }
        }
        Ok(())
    }
}

fn argument(setting: &Setting) -> Arg {
    let default = (setting.show)(&crate::config::Settings::default());
    let help = if default.is_empty() {
        setting.meaning.to_owned()
    } else {
        format!("{} [default: {default}]", setting.meaning)
    };
    let argument = Arg::new(setting.flag).long(setting.flag).help(help).help_heading(OWN);
    let form = setting.form;
    let checked = move |text: &str| if text.is_empty() { Ok(String::new()) } else { form.check(text) };
    match form {
        Form::OneOf(words) => argument.value_name("WORD").value_parser(PossibleValuesParser::new(words)),
        Form::Duration => argument.value_name("DURATION").allow_hyphen_values(true).value_parser(checked),
        Form::Bool => argument
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(checked),
        Form::List(name) => argument.value_name(name).action(ArgAction::Append),
    }
}
