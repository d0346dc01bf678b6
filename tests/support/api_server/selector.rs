//! Label and field selectors.

use serde_json::Value;

/// Whether an object matches both selectors of a request. Supported: `key`, `!key`, `key=value`, `key!=value`, and
/// lists of them; in fields the key is a path. Panics for anything else, so that no test passes by accident.
pub(super) fn matches(object: &Value, labels: &str, fields: &str) -> bool {
    let label = |key: &str| object["metadata"]["labels"].get(key).map(text);
    let field = |key: &str| Some(object.pointer(&format!("/{}", key.replace('.', "/"))).map_or(String::new(), text));
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
