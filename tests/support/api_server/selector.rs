//! Label and field selectors.

use std::collections::BTreeMap;

use serde_json::Value;

/// What selectors look at.
pub(super) struct Selected {
    labels: BTreeMap<String, String>,
    fields: BTreeMap<&'static str, String>,
}

/// The fields that can be selected by.
const FIELDS: [&str; 3] = ["metadata.name", "metadata.namespace", "spec.clusterIP"];

impl Selected {
    /// That of an object.
    pub(super) fn of(object: &Value) -> Selected {
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        let field = |key: &'static str| {
            (key, object.pointer(&format!("/{}", key.replace('.', "/"))).map_or(String::new(), text))
        };
        Selected {
            labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
            fields: FIELDS.into_iter().map(field).collect(),
        }
    }
}

/// Whether an object matches both selectors of a request. Supported: `key`, `!key`, `key=value`, `key!=value`, and
/// lists of them; in fields the key is a path. Panics for anything else, so that no test passes by accident.
pub(super) fn matches(object: &Selected, labels: &str, fields: &str) -> bool {
    let label = |key: &str| object.labels.get(key).cloned();
    let field = |key: &str| {
        Some(object.fields.get(key).unwrap_or_else(|| panic!("selecting by {key:?} is not supported")).clone())
    };
    terms(labels).all(|term| term_matches(term, label)) && terms(fields).all(|term| term_matches(term, field))
}

fn terms(selector: &str) -> impl Iterator<Item = &str> {
    selector.split(',').filter(|term| !term.is_empty())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn term_matches(term: &str, get: impl Fn(&str) -> Option<String>) -> bool {
    assert!(!term.contains(' '), "selector {term:?} is not supported");
    if let Some((key, value)) = term.split_once("!=") {
        return get(key).as_deref() != Some(value);
    }
    if let Some((key, value)) = term.split_once('=') {
        return get(key).as_deref() == Some(value.trim_start_matches('='));
    }
    match term.strip_prefix('!') {
        Some(key) => get(key).is_none(),
        None => get(term).is_some(),
    }
}
