//! `/statusz` and `/flagz`: text for people, or an object of the group config.k8s.io for those who ask for it.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::http::{HeaderMap, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::pages::{Pages, TEXT, answer};
use super::timestamp::rfc3339;

const COMPONENT: &str = "kube-proxy";
const GROUP: &str = "config.k8s.io";
/// The versions of the objects; the older one is deprecated.
const VERSIONS: [&str; 2] = ["v1beta1", "v1alpha1"];
/// The Kubernetes version whose kube-proxy is matched.
const EMULATED: &str = "1.36";
/// The paths that `/statusz` names.
const PATHS: [&str; 5] = ["/configz", "/flagz", "/healthz", "/metrics", "/statusz"];

/// One of the pages.
pub(super) struct Zpage {
    kind: &'static str,
    name: &'static str,
    text: fn(&Zpages) -> String,
    fields: fn(&Zpages) -> Value,
}

pub(super) const STATUSZ: Zpage =
    Zpage { kind: "Statusz", name: "statusz", text: Zpages::status_text, fields: Zpages::status_fields };
pub(super) const FLAGZ: Zpage =
    Zpage { kind: "Flagz", name: "flagz", text: Zpages::flags_text, fields: Zpages::flags_fields };

/// What the pages are made of.
pub(super) struct Zpages {
    pages: Arc<Pages>,
    started: (SystemTime, Instant),
}

impl Zpages {
    /// The proxy starts now.
    pub(super) fn new(pages: Arc<Pages>) -> Zpages {
        let clock = pages.health.clock();
        let started = (clock.wall(), clock.now());
        Zpages { pages, started }
    }

    /// A page in the form that is asked for; 406 if there is no such form.
    pub(super) fn answer(&self, page: &Zpage, head: &HeaderMap) -> Response {
        let accepts: Vec<&str> = head.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        match form(&accepts.join(","), page.kind) {
            Some(Form::Text) => answer(200, TEXT, self.text(page)),
            Some(Form::Json(version)) => answer(200, "application/json", self.object(page, version)),
            // JSON is YAML.
            Some(Form::Yaml(version)) => answer(200, "application/yaml", self.object(page, version)),
            None => {
                let kind = page.kind;
                let body = format!("only text/plain and application/json;v=v1beta1;g={GROUP};as={kind}\n");
                answer(406, TEXT, body)
            }
        }
    }

    fn text(&self, page: &Zpage) -> String {
        let name = page.name;
        format!(
            "\n{COMPONENT} {name}\nFor people: the format of this page may change at any time.\n\n{}",
            (page.text)(self)
        )
    }

    fn object(&self, page: &Zpage, version: &str) -> String {
        let mut object = json!({
            "kind": page.kind, "apiVersion": format!("{GROUP}/{version}"), "metadata": { "name": COMPONENT },
        });
        if let (Value::Object(object), Value::Object(fields)) = (&mut object, (page.fields)(self)) {
            object.extend(fields);
        }
        object.to_string()
    }

    fn uptime(&self) -> u64 {
        self.pages.health.clock().now().saturating_duration_since(self.started.1).as_secs()
    }

    fn status_text(&self) -> String {
        let up = self.uptime();
        let (started, version) = (rfc3339(self.started.0), env!("CARGO_PKG_VERSION"));
        format!(
            "Started: {started}\nUp: {} hr {:02} min {:02} sec\nBinary version: portolan {version}\n\
             Emulation version: {EMULATED}\nPaths: {}\n",
            up / 3600,
            up / 60 % 60,
            up % 60,
            PATHS.join(" ")
        )
    }

    fn status_fields(&self) -> Value {
        json!({
            "startTime": rfc3339(whole_seconds(self.started.0)),
            "uptimeSeconds": self.uptime(),
            // The type has it; this program is not written in Go.
            "goVersion": "",
            "binaryVersion": env!("CARGO_PKG_VERSION"),
            "emulationVersion": EMULATED,
            "paths": PATHS,
        })
    }

    fn flags_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in (self.pages.flags)() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name}={value}");
        }
        text
    }

    fn flags_fields(&self) -> Value {
        json!({ "flags": (self.pages.flags)() })
    }
}

/// Times in objects have no fraction.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(since.as_secs())
}

/// In which form a page is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// With the version of the object.
    Json(&'static str),
    Yaml(&'static str),
}

/// The form that an Accept header wants most; `None`: none that there is. Of equal weight, the first.
fn form(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    let mut best: Option<(f32, Form)> = None;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
        let get = |name: &str| parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let weight = get("q").map_or(1.0, |q| q.parse().unwrap_or(0.0));
        let object = VERSIONS
            .into_iter()
            .find(|version| get("g") == Some(GROUP) && get("as") == Some(kind) && get("v") == Some(*version));
        let form = match media.as_str() {
            "text/plain" | "text/*" | "*/*" => Some(Form::Text),
            "application/json" => object.map(Form::Json),
            "application/yaml" => object.map(Form::Yaml),
            _ => None,
        };
        if let Some(form) = form.filter(|_| weight > 0.0 && best.is_none_or(|(other, _)| weight > other)) {
            best = Some((weight, form));
        }
    }
    best.map(|(_, form)| form)
}
