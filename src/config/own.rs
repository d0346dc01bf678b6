//! portolan's own settings: the table of them, from which come the flags, the fields of `PortolanConfiguration`, what
//! `/configz` shows and the table in `docs/configuration.md`. A new setting is one row of [`SETTINGS`].

mod flags;
mod settings;

use serde_json::{Map, Value, json};

use crate::config::duration::parse_duration;
use crate::config::{ConfigError, Settings};

pub use flags::OwnFlags;
use settings::SETTINGS;

pub(super) const API_VERSION: &str = "portolan/v1alpha1";
pub(super) const KIND: &str = "PortolanConfiguration";

/// One setting. With `set` and `show` a value goes from text to [`Settings`] and back.
pub(super) struct Setting {
    /// The path in the document, as `ipvs.drainTimeout`. All settings of one section stand together.
    pub(super) key: &'static str,
    /// The flag, without the dashes.
    flag: &'static str,
    pub(super) form: Form,
    takes_effect: TakesEffect,
    /// One sentence without a full stop, for `--help` and the documents.
    meaning: &'static str,
    /// Puts a value in place or says what is wrong with it: "must be ...". Settings of rows above are in place already.
    set: fn(&mut Settings, &str) -> Result<(), String>,
    /// The value as it would be written; empty: not set.
    show: fn(&Settings) -> String,
}

/// What a value looks like.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// As Go writes it; 0 is a value, not the default.
    Duration,
    Bool,
    /// A list, in a flag separated by commas. The name is that of the value in `--help`.
    List(&'static str),
}

/// When a change in the file takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakesEffect {
    AtOnce,
    AtStart,
}

/// A value as it was written in the document, and the row it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawOwn(Vec<(&'static str, String)>);

impl RawOwn {
    /// Keeps a value of the document. Empty counts as not given.
    pub(super) fn insert(&mut self, key: &'static str, text: String) {
        if !text.is_empty() {
            self.0.push((key, text));
        }
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(given, _)| *given == key).map(|(_, text)| text.as_str())
    }
}

impl Form {
    /// The text of a value in the document; `None`: it has another type.
    pub(super) fn text(self, value: &Value) -> Option<String> {
        match (self, value) {
            (_, Value::Null) => Some(String::new()),
            (Form::OneOf(_) | Form::Duration, Value::String(text)) => Some(text.clone()),
            (Form::OneOf(_), Value::Number(number)) => Some(number.to_string()),
            (Form::Bool, Value::Bool(bool)) => Some(bool.to_string()),
            (Form::List(_), Value::Array(items)) => {
                let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
                texts.map(|texts| texts.join(","))
            }
            _ => None,
        }
    }

    /// What the type is called in a message.
    pub(super) fn name(self) -> &'static str {
        match self {
            Form::OneOf(_) | Form::Duration => "a string",
            Form::Bool => "true or false",
            Form::List(_) => "a list of strings",
        }
    }

    fn value(self, text: String) -> Value {
        match self {
            _ if text.is_empty() => Value::Null,
            Form::OneOf(_) | Form::Duration => Value::String(text),
            Form::Bool => Value::Bool(text == "true"),
            Form::List(_) => text.split(',').collect(),
        }
    }

    /// What can be said of a text without knowing the setting. The text is in one spelling afterwards.
    fn check(self, text: &str) -> Result<String, String> {
        match self {
            Form::OneOf(words) if !words.contains(&text) => Err(format!("must be one of {}", words.join(", "))),
            Form::Duration => {
                parse_duration(text).map(|duration| duration.to_string()).map_err(|error| error.to_string())
            }
            Form::Bool => crate::config::flags::parse_bool(text).map(|bool| bool.to_string()),
            Form::OneOf(_) | Form::List(_) => Ok(text.to_owned()),
        }
    }
}

/// Puts own settings in place: that of the flag, else that of the file, else the default.
pub(super) fn apply(flags: &OwnFlags, file: &RawOwn, settings: &mut Settings, errors: &mut Vec<ConfigError>) {
    let before = errors.len();
    for setting in SETTINGS {
        let (path, text) = match (flags.get(setting.key), file.get(setting.key)) {
            (Some(text), _) => (format!("--{}", setting.flag), text),
            (None, Some(text)) => (format!("{KIND}.{}", setting.key), text),
            (None, None) => continue,
        };
        if let Err(reason) = setting.form.check(text).and_then(|text| (setting.set)(settings, &text)) {
            errors.push(ConfigError::invalid(path, text, reason));
        }
    }
    if errors.len() == before {
        errors.extend(settings::contradictions(settings));
    }
}

/// The `PortolanConfiguration` that means these settings, defaults filled in; what is not set is null.
pub fn effective_own(settings: &Settings) -> Value {
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), json!(API_VERSION));
    object.insert("kind".to_owned(), json!(KIND));
    for setting in SETTINGS {
        let value = setting.form.value((setting.show)(settings));
        match setting.key.split_once('.') {
            None => drop(object.insert(setting.key.to_owned(), value)),
            Some((section, field)) => {
                if let Value::Object(section) = object.entry(section).or_insert_with(|| json!({})) {
                    section.insert(field.to_owned(), value);
                }
            }
        }
    }
    Value::Object(object)
}

/// The keys of own settings that differ and that a running daemon cannot take.
pub fn own_needing_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differs = |setting: &&Setting| (setting.show)(old) != (setting.show)(new);
    let at_start = SETTINGS.iter().filter(|setting| setting.takes_effect == TakesEffect::AtStart);
    at_start.filter(differs).map(|setting| setting.key).collect()
}

/// The settings of a section of the document, or with `None` those outside all sections: field, key and form.
pub(super) fn fields_of(section: Option<&str>) -> impl Iterator<Item = (&'static str, &'static Setting)> {
    SETTINGS.iter().filter_map(move |setting| match (setting.key.split_once('.'), section) {
        (None, None) => Some((setting.key, setting)),
        (Some((found, field)), Some(section)) if found == section => Some((field, setting)),
        _ => None,
    })
}

/// The sections of the document.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    let mut sections: Vec<&str> =
        SETTINGS.iter().filter_map(|setting| setting.key.split_once('.')).map(|(section, _)| section).collect();
    sections.dedup();
    sections.into_iter()
}

#[cfg(test)]
mod tests;
