//! The documents of a file as trees.

use serde_json::{Map, Value};

use super::KIND;
use crate::config::{ConfigError, own};

/// One document.
pub(super) struct Document {
    /// Its text, after as many empty lines as stand above it in the file: its lines have the numbers of the file.
    pub(super) text: String,
    pub(super) tree: Map<String, Value>,
}

/// What a document says it is.
pub(super) enum Kind {
    /// A `PortolanConfiguration`, by its kind or the group of its version.
    Own,
    /// All others; whether it really is a `KubeProxyConfiguration` is checked where it is read.
    Proxy,
}

pub(super) fn kind(tree: &Map<String, Value>) -> Kind {
    let text = |field| tree.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("kind") == own::KIND || text("apiVersion").starts_with("portolan/") { Kind::Own } else { Kind::Proxy }
}

/// All documents that are not empty. A key that stands twice in a mapping is reported, and the later one counts.
pub(super) fn read(text: &str, warnings: &mut Vec<String>) -> Result<Vec<Document>, ConfigError> {
    let mut documents = Vec::new();
    for text in split(text) {
        match parse(&text, warnings)? {
            Value::Object(tree) => documents.push(Document { text, tree }),
            Value::Null => {}
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(ConfigError::without_value("file", format!("is not a {KIND}")));
            }
        }
    }
    Ok(documents)
}

/// A line that begins with `---` begins a document, wherever it stands: YAML allows it nowhere else.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let begins =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if begins {
            documents.push("\n".repeat(at));
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
        }
    }
    // What stands above the first of these lines is a document only if it says something.
    documents.retain(|document| document.lines().any(|line| !line.is_empty() && !line.starts_with('#')));
    documents
}

fn parse(text: &str, warnings: &mut Vec<String>) -> Result<Value, ConfigError> {
    let syntax = |error: &serde_saphyr::Error| {
        let place = error.location().map_or_else(|| "file".to_owned(), |at| format!("line {}", at.line()));
        ConfigError::without_value(place, error.to_string().lines().next().unwrap_or("not YAML").to_owned())
    };
    let mut options = serde_saphyr::Options::default();
    options.with_snippet = false;
    match serde_saphyr::from_str_with_options(text, options.clone()) {
        Ok(tree) => Ok(tree),
        Err(strict) => {
            options.duplicate_keys = serde_saphyr::DuplicateKeyPolicy::LastWins;
            let tree = serde_saphyr::from_str_with_options(text, options).map_err(|_| syntax(&strict))?;
            warnings.push(format!("{}; the last one counts", syntax(&strict)));
            Ok(tree)
        }
    }
}
