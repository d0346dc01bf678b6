//! Objects with versions, and what happened to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use super::selector::{Selected, matches};

/// The resources that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Resource {
    /// Services.
    Services,
    /// EndpointSlices.
    Slices,
    /// Nodes.
    Nodes,
}

impl Resource {
    /// The resource at a path.
    pub(crate) fn at(path: &str) -> Option<Resource> {
        match path {
            "/api/v1/services" => Some(Resource::Services),
            "/apis/discovery.k8s.io/v1/endpointslices" => Some(Resource::Slices),
            "/api/v1/nodes" => Some(Resource::Nodes),
            _ => None,
        }
    }

    /// The kind of its objects.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::Slices => "EndpointSlice",
            Resource::Nodes => "Node",
        }
    }

    /// The apiVersion of its objects.
    pub(crate) fn api_version(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes => "v1",
            Resource::Slices => "discovery.k8s.io/v1",
        }
    }

    fn of_kind(kind: &str) -> Resource {
        let all = [Resource::Services, Resource::Slices, Resource::Nodes];
        all.into_iter()
            .find(|resource| resource.kind() == kind)
            .unwrap_or_else(|| panic!("kind {kind:?} is not served"))
    }
}

type Key = (Resource, String, String);

/// An object as its text, with what selectors look at. Ten thousand Services and their slices, with all that happened to
/// them, fit into some tens of megabytes.
pub(super) struct Object {
    /// JSON.
    pub text: String,
    selected: Selected,
}

/// One change of one object.
struct Happening {
    version: u64,
    resource: Resource,
    before: Option<Arc<Object>>,
    after: Option<Arc<Object>>,
}

/// The rest of a list in pages.
pub(super) struct Rest {
    /// The version of the list.
    pub version: u64,
    /// What has not been sent yet.
    pub objects: Vec<Arc<Object>>,
    /// How many pages have been sent.
    pub pages: usize,
}

/// All objects.
#[derive(Default)]
pub(super) struct Store {
    version: u64,
    compacted: u64,
    objects: BTreeMap<Key, Arc<Object>>,
    log: Vec<Happening>,
    rests: HashMap<String, Rest>,
    /// How many tokens have been given out.
    tokens: usize,
    watches: HashMap<Resource, usize>,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn apply(&mut self, mut object: Value) -> u64 {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = Resource::of_kind(object["kind"].as_str().unwrap_or_default());
        let key = (resource, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        self.version += 1;
        object["apiVersion"] = json!(resource.api_version());
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        // What real objects carry and nobody needs.
        if object["metadata"]["managedFields"].is_null() {
            object["metadata"]["managedFields"] = json!([{"manager": "test", "fieldsV1": {"f:spec": {"f:ports": {}}}}]);
        }
        let object = Arc::new(Object { text: object.to_string(), selected: Selected::of(&object) });
        let before = self.objects.insert(key, object.clone());
        self.log.push(Happening { version: self.version, resource, before, after: Some(object) });
        self.version
    }

    pub(super) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) -> u64 {
        if let Some(before) = self.objects.remove(&(resource, namespace.to_owned(), name.to_owned())) {
            self.version += 1;
            self.log.push(Happening { version: self.version, resource, before: Some(before), after: None });
        }
        self.version
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
        self.rests.clear();
    }

    /// Goes back to half the version, as after a restore of an old backup: positions from before lie in the future.
    pub(super) fn rewind(&mut self) {
        self.version /= 2;
        self.compact();
    }

    /// Whether a watch can begin at a version, as far as the past is concerned.
    pub(super) fn knows(&self, version: u64) -> bool {
        version >= self.compacted
    }

    /// All objects of a resource that match.
    pub(super) fn list(&self, resource: Resource, labels: &str, fields: &str) -> Vec<Arc<Object>> {
        let all = self.objects.iter().filter(|((of, _, _), _)| *of == resource).map(|(_, object)| object);
        all.filter(|object| matches(&object.selected, labels, fields)).cloned().collect()
    }

    /// The watch events after a version, each a line. An object that begins to match is added, one that ceases is
    /// deleted.
    pub(super) fn events_after(&self, version: u64, resource: Resource, labels: &str, fields: &str) -> Vec<String> {
        let selected =
            |object: &Option<Arc<Object>>| object.clone().filter(|object| matches(&object.selected, labels, fields));
        let first = self.log.partition_point(|happening| happening.version <= version);
        let news = self.log[first..].iter().filter(|happening| happening.resource == resource);
        news.filter_map(|happening| match (selected(&happening.before), selected(&happening.after)) {
            (None, None) => None,
            (None, Some(after)) => Some(event_line("ADDED", &after.text)),
            (Some(_), Some(after)) => Some(event_line("MODIFIED", &after.text)),
            (Some(before), None) => {
                let mut object: Value = serde_json::from_str(&before.text).expect("our own text");
                object["metadata"]["resourceVersion"] = json!(happening.version.to_string());
                Some(event_line("DELETED", &object.to_string()))
            }
        })
        .collect()
    }

    /// Keeps the rest of a list and returns the token for it.
    pub(super) fn keep(&mut self, rest: Rest) -> String {
        self.tokens += 1;
        let token = format!("token-{}-{}", rest.version, self.tokens);
        self.rests.insert(token.clone(), rest);
        token
    }

    /// The rest of a list; `None` if it has expired.
    pub(super) fn rest(&self, token: &str) -> Option<Rest> {
        let rest = self.rests.get(token)?;
        Some(Rest { version: rest.version, objects: rest.objects.clone(), pages: rest.pages })
    }

    pub(super) fn open_watches(&self, resource: Resource) -> usize {
        self.watches.get(&resource).copied().unwrap_or(0)
    }

    pub(super) fn watch_opened(&mut self, resource: Resource) {
        *self.watches.entry(resource).or_default() += 1;
    }

    pub(super) fn watch_closed(&mut self, resource: Resource) {
        *self.watches.entry(resource).or_default() -= 1;
    }
}

/// A line of a watch.
pub(super) fn event_line(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}
