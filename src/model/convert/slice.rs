//! EndpointSlices.

use std::sync::Arc;
use std::time::SystemTime;

use crate::model::convert::wire::{self, Field, List, quoted};
use crate::model::convert::{Interner, Notes, is_name, names, parse_rfc3339};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Hints, Note, ObjectKind, ServiceName, SliceName,
};
use crate::net::{IpFamily, parse_ip};

/// Makes a model value of an EndpointSlice. `None`: it has no usable name. `(name, None)`: of no use to a proxy,
/// because it belongs to no Service or to a headless one, or has no IP addresses.
pub fn slice(
    object: &wire::EndpointSlice,
    interner: &mut Interner,
) -> (Option<(SliceName, Option<EndpointSlice>)>, Vec<Note>) {
    let mut notes = Notes::new(ObjectKind::EndpointSlice, &object.metadata);
    let Some((namespace, name)) = names(&object.metadata, 253, &mut notes) else { return (None, notes.finish()) };
    let name = SliceName { namespace: interner.text(namespace), name: Arc::from(name) };
    let slice = used(object, &name.namespace, interner, &mut notes);
    (Some((name, slice)), notes.finish())
}

fn used(
    object: &wire::EndpointSlice,
    namespace: &Arc<str>,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Option<EndpointSlice> {
    let metadata = object.metadata.get()?;
    let labels = notes.read(&metadata.labels, || "metadata.labels".into())?;
    // Slices without Service and those of headless Services are ordinary and need no note.
    if labels.headless.is_present() {
        return None;
    }
    let service_path = || "metadata.labels[kubernetes.io/service-name]".to_owned();
    let service = notes.text(&labels.service_name, service_path);
    if service.is_empty() {
        return None;
    }
    if !is_name(service, 63) {
        notes.add(service_path(), format!("{} is not a Service name; the slice is left out", quoted(service)));
        return None;
    }
    let family = family(&object.address_type, notes)?;
    let service = ServiceName { namespace: namespace.clone(), name: interner.text(service) };
    let triggered_at = triggered_at(metadata, notes);
    let ports = ports(object, interner, notes);
    let endpoints = endpoints(object, family, interner, notes);
    Some(EndpointSlice { service, family, ports, endpoints, triggered_at })
}

fn family(field: &Field<String>, notes: &mut Notes) -> Option<IpFamily> {
    let what = match field {
        Field::Is(kind) => match kind.as_str() {
            "IPv4" => return Some(IpFamily::V4),
            "IPv6" => return Some(IpFamily::V6),
            "FQDN" => return None,
            other => quoted(other),
        },
        Field::Wrong(what) => what.to_string(),
        Field::Absent => "nothing".to_owned(),
    };
    notes.add("addressType", format!("{what} is not IPv4, IPv6 or FQDN; the slice is left out"));
    None
}

fn triggered_at(metadata: &wire::Metadata, notes: &mut Notes) -> Option<SystemTime> {
    let annotations = notes.read(&metadata.annotations, || "metadata.annotations".into())?;
    let path = || "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]".to_owned();
    let text = notes.read(&annotations.trigger_time, path)?;
    let time = parse_rfc3339(text);
    if time.is_none() {
        notes.add(path(), format!("{} is not a time; the delay of this change is not measured", quoted(text)));
    }
    time
}

fn ports(object: &wire::EndpointSlice, interner: &mut Interner, notes: &mut Notes) -> Box<[EndpointPort]> {
    let mut ports = Vec::new();
    for (at, field) in notes.list(&object.ports, || "ports".into()) {
        let path = format!("ports[{at}]");
        let empty = wire::EndpointPort::default();
        let port = match field {
            Field::Wrong(_) => {
                notes.read(field, || path);
                continue;
            }
            Field::Absent => &empty,
            Field::Is(port) => port,
        };
        let (name, protocol) = (notes.port_name(&port.name, &path), notes.protocol(&port.protocol, &path));
        let (Some(number), Some(name), Some(protocol)) = (notes.port(&port.port, &path), name, protocol) else {
            continue;
        };
        ports.push(EndpointPort { name: interner.text(name), protocol, port: number });
    }
    ports.into_boxed_slice()
}

fn endpoints(
    object: &wire::EndpointSlice,
    family: IpFamily,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Box<[Endpoint]> {
    let fields = notes.list(&object.endpoints, || "endpoints".into());
    let mut endpoints = Vec::with_capacity(fields.size_hint().0);
    for (at, field) in fields {
        let Some(object) = notes.read(field, || format!("endpoints[{at}]")) else {
            if *field == Field::Absent {
                notes.add(format!("endpoints[{at}]"), "it is null; left out");
            }
            continue;
        };
        if let Some(endpoint) = endpoint(object, at, family, interner, notes) {
            endpoints.push(endpoint);
        }
    }
    endpoints.into_boxed_slice()
}

fn endpoint(
    object: &wire::Endpoint,
    at: usize,
    family: IpFamily,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Option<Endpoint> {
    let path = || format!("endpoints[{at}].addresses");
    // The API promises exactly one address; consumers are told to use the first.
    let (_, first) = notes.list(&object.addresses, path).next().unwrap_or((0, &Field::Absent));
    let text = notes.text(first, || format!("{}[0]", path()));
    let address = match parse_ip(text) {
        Some(address) if IpFamily::of(address) == family => address,
        Some(address) => {
            notes.add(format!("{}[0]", path()), format!("{address} is not an {family} address; left out"));
            return None;
        }
        None if text.is_empty() => {
            notes.add(path(), "there is no address; the endpoint is left out");
            return None;
        }
        None => {
            notes.add(format!("{}[0]", path()), format!("{} is not an IP address; left out", quoted(text)));
            return None;
        }
    };
    let node = notes.text(&object.node_name, || format!("endpoints[{at}].nodeName"));
    Some(Endpoint {
        address,
        conditions: conditions(object, at, notes),
        node: if node.is_empty() { None } else { Some(interner.text(node)) },
        hints: hints(object, at, interner, notes),
    })
}

fn conditions(object: &wire::Endpoint, at: usize, notes: &mut Notes) -> Conditions {
    let path = |name: &str| format!("endpoints[{at}].conditions{name}");
    let Some(conditions) = notes.read(&object.conditions, || path("")) else { return Conditions::READY };
    let mut read = |field, name, default| notes.read(field, || path(name)).copied().unwrap_or(default);
    Conditions {
        ready: read(&conditions.ready, ".ready", true),
        serving: read(&conditions.serving, ".serving", true),
        terminating: read(&conditions.terminating, ".terminating", false),
    }
}

fn hints(object: &wire::Endpoint, at: usize, interner: &mut Interner, notes: &mut Notes) -> Option<Arc<Hints>> {
    let hints = notes.read(&object.hints, || format!("endpoints[{at}].hints"))?;
    let zones = hint_names(&hints.for_zones, "forZones", at, interner, notes);
    let nodes = hint_names(&hints.for_nodes, "forNodes", at, interner, notes);
    interner.hints(Hints { zones, nodes })
}

fn hint_names(
    field: &Field<List<wire::Named>>,
    key: &str,
    at: usize,
    interner: &mut Interner,
    notes: &mut Notes,
) -> Box<[Arc<str>]> {
    let path = || format!("endpoints[{at}].hints.{key}");
    let mut names = Vec::new();
    for (index, hint) in notes.list(field, path) {
        let Some(hint) = notes.read(hint, || format!("{}[{index}]", path())) else { continue };
        let name = notes.text(&hint.name, || format!("{}[{index}].name", path()));
        if !name.is_empty() {
            names.push(interner.text(name));
        }
    }
    names.into_boxed_slice()
}
