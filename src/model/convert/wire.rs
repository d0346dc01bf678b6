//! The parts of Kubernetes objects that are used, as they stand in JSON or YAML, read without ever failing.
//!
//! Only broken JSON is an error. A field of another type than the API promises becomes [`Field::Wrong`] and the
//! rest of the object is still read; fields that nobody uses are skipped while parsing and cost no memory, which
//! is most of an object (managedFields, annotations, targetRef). Of a key that appears twice the last one counts,
//! as it does for Go.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A field of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// Not there, or `null`: the API makes no difference.
    #[default]
    Absent,
    /// There, and of the right type.
    Is(T),
    /// There, of another type; a short description of what stands there.
    Wrong(Box<str>),
}

impl<T> Field<T> {
    /// The value, if it is there and of the right type.
    pub fn get(&self) -> Option<&T> {
        match self {
            Field::Is(value) => Some(value),
            Field::Absent | Field::Wrong(_) => None,
        }
    }

    /// Whether something stands there, be it of the wrong type.
    pub fn is_present(&self) -> bool {
        !matches!(self, Field::Absent)
    }
}

/// A list whose elements are as lenient as fields.
pub type List<T> = Vec<Field<T>>;

/// What can stand in a [`Field`]. Each method takes one JSON type; those not written out refuse it.
pub trait Wire: Sized {
    /// What is expected, for people: "a number".
    const EXPECTED: &'static str;

    /// From a string.
    fn from_string(_: &str) -> Option<Self> {
        None
    }

    /// From a whole number.
    fn from_integer(_: i64) -> Option<Self> {
        None
    }

    /// From true or false.
    fn from_bool(_: bool) -> Option<Self> {
        None
    }

    /// From an object, which must be read to its end. Errors: the JSON itself is broken.
    fn from_object<'de, A: MapAccess<'de>>(object: &mut A) -> Result<Option<Self>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    /// From a list, which must be read to its end. Errors: the JSON itself is broken.
    fn from_list<'de, A: SeqAccess<'de>>(list: &mut A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Wire for String {
    const EXPECTED: &'static str = "a string";

    fn from_string(text: &str) -> Option<String> {
        Some(text.to_owned())
    }
}

impl Wire for i64 {
    const EXPECTED: &'static str = "a whole number";

    fn from_integer(number: i64) -> Option<i64> {
        Some(number)
    }
}

impl Wire for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_bool(value: bool) -> Option<bool> {
        Some(value)
    }
}

impl<T: Wire> Wire for List<T> {
    const EXPECTED: &'static str = "a list";

    fn from_list<'de, A: SeqAccess<'de>>(list: &mut A) -> Result<Option<Self>, A::Error> {
        // The size hint is not trusted: it may come from the input.
        let mut elements = Vec::with_capacity(list.size_hint().unwrap_or(0).min(1024));
        while let Some(element) = list.next_element()? {
            elements.push(element);
        }
        Ok(Some(elements))
    }
}

impl<'de, T: Wire> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Field<T>, D::Error> {
        deserializer.deserialize_any(FieldVisitor(PhantomData))
    }
}

struct FieldVisitor<T>(PhantomData<T>);

fn is_or<T>(value: Option<T>, describe: impl FnOnce() -> String) -> Field<T> {
    value.map_or_else(|| Field::Wrong(describe().into_boxed_str()), Field::Is)
}

impl<'de, T: Wire> Visitor<'de> for FieldVisitor<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Field<T>, E> {
        Ok(is_or(T::from_bool(value), || value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Field<T>, E> {
        Ok(is_or(T::from_integer(value), || value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Field<T>, E> {
        Ok(is_or(i64::try_from(value).ok().and_then(T::from_integer), || value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Field<T>, E> {
        Ok(is_or(i64::try_from(value).ok().and_then(T::from_integer), || value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Field<T>, E> {
        Ok(is_or(i64::try_from(value).ok().and_then(T::from_integer), || value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Field<T>, E> {
        Ok(Field::Wrong(format!("{value:?}").into_boxed_str()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Field<T>, E> {
        Ok(is_or(T::from_string(value), || quoted(value)))
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<Field<T>, E> {
        Ok(Field::Wrong("binary data".into()))
    }

    fn visit_unit<E: Error>(self) -> Result<Field<T>, E> {
        Ok(Field::Absent)
    }

    fn visit_none<E: Error>(self) -> Result<Field<T>, E> {
        Ok(Field::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field<T>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field<T>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Field<T>, A::Error> {
        Ok(is_or(T::from_object(&mut object)?, || "an object".to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field<T>, A::Error> {
        Ok(is_or(T::from_list(&mut list)?, || "a list".to_owned()))
    }
}

/// Text from an object, fit for a message: quoted, control characters escaped, cut after 64 characters.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(64) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}

/// Reads the key of an object as its position in a list of known keys.
struct Key(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Option<usize>, E> {
        Ok(self.0.iter().position(|known| *known == key))
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Option<usize>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<usize>, E> {
        Ok(None)
    }
}

/// Defines structs whose fields are all [`Field`]s, with the key that each has in JSON.
macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $key:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Field<$type>,)*
        }

        impl Wire for $name {
            const EXPECTED: &'static str = "an object";

            fn from_object<'de, A: MapAccess<'de>>(object: &mut A) -> Result<Option<Self>, A::Error> {
                const KEYS: &[&str] = &[$($key),*];
                let mut read = $name::default();
                while let Some(key) = object.next_key_seed(Key(KEYS))? {
                    match key.and_then(|at| KEYS.get(at)).copied() {
                        $(Some($key) => read.$field = object.next_value()?,)*
                        _ => {
                            object.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Some(read))
            }
        }

        /// Anything that is not an object reads as one without fields.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                Ok(match Field::deserialize(deserializer)? {
                    Field::Is(object) => object,
                    Field::Absent | Field::Wrong(_) => $name::default(),
                })
            }
        }
    )*};
}

objects! {
    /// `metadata` of any object.
    Metadata {
        /// The name.
        name: String = "name",
        /// The namespace.
        namespace: String = "namespace",
        /// The version that a watch continues from.
        resource_version: String = "resourceVersion",
        /// When deletion was asked for.
        deletion_timestamp: String = "deletionTimestamp",
        /// The labels that are used.
        labels: Labels = "labels",
        /// The annotations that are used.
        annotations: Annotations = "annotations",
    }
    /// The labels that are used.
    Labels {
        /// On Services: another proxy takes care of it.
        proxy_name: String = "service.kubernetes.io/service-proxy-name",
        /// On EndpointSlices: the Service that it belongs to.
        service_name: String = "kubernetes.io/service-name",
        /// On EndpointSlices: the Service has no cluster IP.
        headless: String = "service.kubernetes.io/headless",
        /// On Nodes: the zone.
        zone: String = "topology.kubernetes.io/zone",
    }
    /// The annotations that are used.
    Annotations {
        /// On EndpointSlices: when what led to this version happened.
        trigger_time: String = "endpoints.kubernetes.io/last-change-trigger-time",
    }
    /// A Service of `v1`.
    Service {
        /// Metadata.
        metadata: Metadata = "metadata",
        /// Spec.
        spec: ServiceSpec = "spec",
        /// Status.
        status: ServiceStatus = "status",
    }
    /// `spec` of a Service.
    ServiceSpec {
        /// ClusterIP, NodePort, LoadBalancer or ExternalName.
        kind: String = "type",
        /// The cluster IP of the first family.
        cluster_ip: String = "clusterIP",
        /// The cluster IPs, one for each family.
        cluster_ips: List<String> = "clusterIPs",
        /// The families that `clusterIPs` are of.
        ip_families: List<String> = "ipFamilies",
        /// Addresses that are routed here by other means.
        external_ips: List<String> = "externalIPs",
        /// Who may use the load-balancer addresses.
        source_ranges: List<String> = "loadBalancerSourceRanges",
        /// The ports.
        ports: List<ServicePort> = "ports",
        /// None or ClientIP.
        session_affinity: String = "sessionAffinity",
        /// Details of the affinity.
        session_affinity_config: SessionAffinityConfig = "sessionAffinityConfig",
        /// Cluster or Local.
        internal_traffic_policy: String = "internalTrafficPolicy",
        /// Cluster or Local.
        external_traffic_policy: String = "externalTrafficPolicy",
        /// Where load balancers ask whether this node has endpoints.
        health_check_node_port: i64 = "healthCheckNodePort",
    }
    /// `spec.sessionAffinityConfig`.
    SessionAffinityConfig {
        /// For ClientIP.
        client_ip: ClientIpConfig = "clientIP",
    }
    /// `spec.sessionAffinityConfig.clientIP`.
    ClientIpConfig {
        /// How long a client keeps its endpoint.
        timeout_seconds: i64 = "timeoutSeconds",
    }
    /// An element of `spec.ports`.
    ServicePort {
        /// The name.
        name: String = "name",
        /// TCP, UDP or SCTP.
        protocol: String = "protocol",
        /// The port.
        port: i64 = "port",
        /// The port on nodes.
        node_port: i64 = "nodePort",
    }
    /// `status` of a Service.
    ServiceStatus {
        /// What the load balancer is.
        load_balancer: LoadBalancer = "loadBalancer",
    }
    /// `status.loadBalancer`.
    LoadBalancer {
        /// Where it can be reached.
        ingress: List<Ingress> = "ingress",
    }
    /// An element of `status.loadBalancer.ingress`.
    Ingress {
        /// The address.
        ip: String = "ip",
        /// VIP or Proxy.
        ip_mode: String = "ipMode",
    }
    /// An EndpointSlice of `discovery.k8s.io/v1`.
    EndpointSlice {
        /// Metadata.
        metadata: Metadata = "metadata",
        /// IPv4, IPv6 or FQDN.
        address_type: String = "addressType",
        /// The endpoints.
        endpoints: List<Endpoint> = "endpoints",
        /// The ports.
        ports: List<EndpointPort> = "ports",
    }
    /// An element of `ports` of a slice.
    EndpointPort {
        /// The name.
        name: String = "name",
        /// TCP, UDP or SCTP.
        protocol: String = "protocol",
        /// The port.
        port: i64 = "port",
    }
    /// An element of `endpoints`.
    Endpoint {
        /// Its address; more than one is not allowed.
        addresses: List<String> = "addresses",
        /// Conditions.
        conditions: Conditions = "conditions",
        /// The node that it is on.
        node_name: String = "nodeName",
        /// Hints.
        hints: Hints = "hints",
    }
    /// Conditions of an endpoint.
    Conditions {
        /// Ready.
        ready: bool = "ready",
        /// Serving.
        serving: bool = "serving",
        /// Terminating.
        terminating: bool = "terminating",
    }
    /// Hints of an endpoint.
    Hints {
        /// Zones that should use it.
        for_zones: List<Named> = "forZones",
        /// Nodes that should use it.
        for_nodes: List<Named> = "forNodes",
    }
    /// An object that has a name and nothing else.
    Named {
        /// The name.
        name: String = "name",
    }
    /// A Node of `v1`.
    Node {
        /// Metadata.
        metadata: Metadata = "metadata",
        /// Spec.
        spec: NodeSpec = "spec",
        /// Status.
        status: NodeStatus = "status",
    }
    /// `spec` of a Node.
    NodeSpec {
        /// The ranges that its pods get addresses from.
        pod_cidrs: List<String> = "podCIDRs",
        /// Taints.
        taints: List<Taint> = "taints",
    }
    /// An element of `spec.taints`.
    Taint {
        /// The key.
        key: String = "key",
    }
    /// `status` of a Node.
    NodeStatus {
        /// Addresses.
        addresses: List<NodeAddress> = "addresses",
    }
    /// An element of `status.addresses`.
    NodeAddress {
        /// InternalIP, ExternalIP, Hostname and others.
        kind: String = "type",
        /// The address.
        address: String = "address",
    }
}
