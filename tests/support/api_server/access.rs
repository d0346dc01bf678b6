//! Who may do what: the rules of the cluster role `system:node-proxier`.

use axum::http::Method;

use super::Params;

/// What a request asks for, as authorization sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// The API group; empty for the core group.
    pub group: String,
    /// The resource; a path that is none for what is no resource.
    pub resource: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`.
    pub verb: &'static str,
}

/// Group, resources, verbs. The role is the same in all versions since 1.21, but for `servicecidrs`.
const NODE_PROXIER: [(&str, &str, &[&str]); 7] = [
    ("", "services", &["list", "watch"]),
    ("", "endpoints", &["list", "watch"]),
    ("", "nodes", &["get", "list", "watch"]),
    ("", "events", &["create", "patch", "update"]),
    ("events.k8s.io", "events", &["create", "patch", "update"]),
    ("discovery.k8s.io", "endpointslices", &["list", "watch"]),
    ("networking.k8s.io", "servicecidrs", &["list", "watch"]),
];

impl Access {
    /// What a request asks for.
    pub(super) fn of(method: &Method, path: &str, query: &Params) -> Access {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let whole = [path];
        let (group, rest) = match parts.as_slice() {
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => ("", whole.as_slice()),
        };
        let rest = match rest {
            ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
            _ => rest,
        };
        let resource = rest.first().copied().unwrap_or_default().to_owned();
        let verb = match (method.as_str(), rest.len() > 1) {
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", _) => "delete",
            (_, true) => "get",
            _ if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") => "watch",
            _ => "list",
        };
        Access { group: group.to_owned(), resource, verb }
    }

    /// Whether the role allows it.
    pub(super) fn is_allowed(&self) -> bool {
        NODE_PROXIER.iter().any(|(group, resource, verbs)| {
            *group == self.group && *resource == self.resource && verbs.contains(&self.verb)
        })
    }

    /// Whether it is about events.
    pub(super) fn is_event(&self) -> bool {
        self.resource == "events"
    }
}
