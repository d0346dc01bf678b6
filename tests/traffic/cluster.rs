//! The cluster with a Service for every combination that the table knows, and the questions to ask of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::check::{Expect, Question};
use super::manifest::{PROTOS, Policy, Service};
use super::table::{Destination, EndpointState, STATES, Source, Usable, Variation, Verdict};
use crate::netns::Netns;
use crate::netns::probe::Outcome;
use crate::netns::world::{
    FAMILIES, Family, Pod, World, cluster_ip, node_address, pod, public, second_node_address, wire,
};

/// The port that no Service has on its addresses.
const OTHER_PORT: u16 = 81;

/// Whom the source ranges of a Service admit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admitted {
    Everybody,
    Only(Source),
}

/// A Service of the table.
struct Member {
    service: Service,
    state: &'static EndpointState,
    admitted: Admitted,
    kind: Kind,
}

/// Which addresses a Service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All: cluster IP, external IP, VIP, node port.
    Ordinary,
    /// A VIP with source ranges.
    Ranged,
    /// A VIP with source ranges that is an address of the node.
    OwnVip,
    /// An external IP that is an address of the node.
    OwnExternalIp,
}

/// The Services of the table.
pub(crate) struct Cluster {
    members: Vec<Member>,
}

impl Cluster {
    /// One Service for every combination.
    pub(crate) fn new() -> Cluster {
        let mut members: Vec<Member> = Vec::new();
        let policies = [Policy::Cluster, Policy::Local];
        let mut add = |kind: Kind, state: &'static EndpointState, internal, external, admitted| {
            let number = u8::try_from(members.len() + 1).expect("few Services");
            members.push(member(number, kind, state, internal, external, admitted));
        };
        for state in STATES {
            for internal in policies {
                for external in policies {
                    add(Kind::Ordinary, state, internal, external, Admitted::Everybody);
                }
            }
        }
        for state in STATES.iter().filter(|state| ["mixed", "remote", "no-slice"].contains(&state.name)) {
            for external in policies {
                for source in [Source::Pod, Source::Node, Source::Outside] {
                    add(Kind::Ranged, state, Policy::Cluster, external, Admitted::Only(source));
                }
                add(Kind::OwnVip, state, Policy::Cluster, external, Admitted::Only(Source::Node));
                add(Kind::OwnExternalIp, state, Policy::Cluster, external, Admitted::Everybody);
            }
        }
        Cluster { members }
    }

    /// The Services, to be written as manifests.
    pub(crate) fn services(&self) -> Vec<Service> {
        self.members.iter().map(|member| member.service.clone()).collect()
    }

    /// Starts the servers that answer the questions.
    pub(crate) fn serve(&self, world: &mut World) {
        let ports = |port: fn(&Service) -> u16| -> Vec<u16> {
            self.members.iter().map(|member| port(&member.service)).filter(|port| *port != 0).collect()
        };
        world.serve_pods(&[Pod::A, Pod::B, Pod::R1, Pod::R2], &ports(|service| service.target_port));
        world.serve_node(&ports(|service| service.node_port));
        let mut foreign = BTreeSet::new();
        for member in self.members.iter().filter(|member| matches!(member.kind, Kind::Ordinary | Kind::Ranged)) {
            for family in FAMILIES {
                for destination in Destination::ALL {
                    if let Some(address) = member.address(destination, family)
                        && !is_node_address(address.ip())
                    {
                        foreign.insert(address);
                    }
                }
            }
        }
        world.serve_internet(&Vec::from_iter(foreign));
    }

    /// All questions, and what should come of them with these settings.
    pub(crate) fn questions(&self, world: &World, variation: &Variation) -> Vec<Question> {
        let mut questions = Vec::new();
        for member in &self.members {
            for source in Source::ALL {
                for family in FAMILIES {
                    for destination in Destination::ALL {
                        member.ask(world, variation, source, family, destination, &mut questions);
                    }
                }
            }
        }
        questions
    }
}

fn member(
    number: u8,
    kind: Kind,
    state: &'static EndpointState,
    internal: Policy,
    external: Policy,
    admitted: Admitted,
) -> Member {
    let name = match admitted {
        Admitted::Everybody => format!("{kind:?}-{}-{internal:?}-{external:?}", state.name),
        Admitted::Only(source) => format!("{kind:?}-{}-{external:?}-{source:?}", state.name),
    };
    let mut service = Service::new(&name.to_lowercase(), number, &[]);
    service.internal = internal;
    service.external = external;
    service.endpoints = state.endpoints.map(<[_]>::to_vec);
    let both = |address: &dyn Fn(Family) -> IpAddr| FAMILIES.map(address);
    match kind {
        Kind::Ordinary => {
            service.node_port = 30000 + u16::from(number);
            service.external_ips = both(&|family| public(family, 2 * number)).into();
            service.ingress = both(&|family| public(family, 2 * number + 1)).map(|ip| (ip, false)).into();
            if state.name == "mixed" {
                service.ingress.extend(both(&|family| public(family, 255 - number)).map(|ip| (ip, true)));
            }
        }
        Kind::Ranged => service.ingress = both(&|family| public(family, 2 * number + 1)).map(|ip| (ip, false)).into(),
        Kind::OwnVip => service.ingress = both(&second_node_address).map(|ip| (ip, false)).into(),
        Kind::OwnExternalIp => service.external_ips = both(&second_node_address).into(),
    }
    if matches!(kind, Kind::OwnVip | Kind::OwnExternalIp) {
        service.port = 10000 + u16::from(number);
    }
    if let Admitted::Only(source) = admitted {
        service.source_ranges = match source {
            Source::Pod | Source::RemotePod => vec!["10.244.0.0/16".into(), "fd00:10:244::/48".into()],
            Source::Node => FAMILIES.map(|family| format!("{}/{}", node_address(family), family.pick(32, 128))).into(),
            Source::Outside => vec![" 192.168.100.100/30 ".into(), "fd00:100::64/126".into()],
        };
    }
    if external == Policy::Local && !service.ingress.is_empty() {
        service.health_check_node_port = 32000 + u16::from(number);
    }
    Member { service, state, admitted, kind }
}

fn is_node_address(address: IpAddr) -> bool {
    let own: [fn(Family) -> IpAddr; 3] = [node_address, second_node_address, Family::loopback];
    own.iter().any(|own| FAMILIES.iter().any(|family| own(*family) == address))
}

impl Member {
    /// Where to send for this kind of destination; `None`: the Service has none of it.
    fn address(&self, destination: Destination, family: Family) -> Option<SocketAddr> {
        let service = &self.service;
        let number = service.cluster_ip;
        let ordinary = self.kind == Kind::Ordinary;
        let ranged = self.kind == Kind::Ranged;
        let mixed = ordinary && self.state.name == "mixed";
        let node_port = ordinary.then_some(service.node_port);
        let vip = public(family, 2 * number + 1);
        let (address, port) = match destination {
            Destination::ClusterIp => (cluster_ip(family, number), Some(service.port)),
            Destination::ClusterIpOtherPort => (cluster_ip(family, number), mixed.then_some(OTHER_PORT)),
            Destination::ExternalIp => (public(family, 2 * number), ordinary.then_some(service.port)),
            Destination::LoadBalancer => (vip, ordinary.then_some(service.port)),
            Destination::LoadBalancerOtherPort => (vip, mixed.then_some(OTHER_PORT)),
            Destination::LoadBalancerProxyMode => (public(family, 255 - number), mixed.then_some(service.port)),
            Destination::LoadBalancerInRange | Destination::LoadBalancerOutOfRange => {
                (vip, ranged.then_some(service.port))
            }
            Destination::NodePort => (node_address(family), node_port),
            Destination::NodePortSecondAddress => (second_node_address(family), node_port),
            Destination::NodePortLoopbackV4 => (family.loopback(), node_port.filter(|_| family == Family::V4)),
            Destination::NodePortLoopbackV6 => (family.loopback(), node_port.filter(|_| family == Family::V6)),
            Destination::OwnLoadBalancerInRange => {
                (second_node_address(family), (self.kind == Kind::OwnVip).then_some(service.port))
            }
            Destination::OwnExternalIp => {
                (second_node_address(family), (self.kind == Kind::OwnExternalIp).then_some(service.port))
            }
        };
        port.map(|port| SocketAddr::new(address, port))
    }

    fn admits(&self, source: Source) -> bool {
        match (self.admitted, source) {
            (Admitted::Everybody, _) | (Admitted::Only(Source::Pod), Source::RemotePod) => true,
            (Admitted::Only(admitted), source) => admitted == source,
        }
    }

    fn ask(
        &self,
        world: &World,
        variation: &Variation,
        source: Source,
        family: Family,
        destination: Destination,
        questions: &mut Vec<Question>,
    ) {
        let Some(to) = self.address(destination, family) else { return };
        let admitted = match destination {
            Destination::LoadBalancerInRange => self.admits(source),
            Destination::LoadBalancerOutOfRange => !self.admits(source),
            _ => true,
        };
        if !admitted {
            return;
        }
        let policy = if destination.is_internal() { self.service.internal } else { self.service.external };
        let usable = Usable::of(self.state);
        let verdict = variation.verdict(destination, policy, usable, source).unwrap_or_else(|| {
            panic!("the table has no row for {destination:?}, policy {policy:?}, endpoints usable {usable:?}")
        });
        if verdict == Verdict::Never {
            return;
        }
        let (from, bind) = place(world, source, family);
        for proto in PROTOS {
            questions.push(Question {
                label: format!(
                    "{source:?} to {destination:?} {to} {proto} of {} (policy {policy:?}, endpoints {})",
                    self.service.name, self.state.name
                ),
                service: self.service.name.clone(),
                from: from.clone(),
                source: bind,
                to,
                proto,
                expect: self.expect(verdict, source, family, to),
            });
        }
    }

    fn expect(&self, verdict: Verdict, source: Source, family: Family, to: SocketAddr) -> Expect {
        let own = sender(source, family, to.ip());
        let pods = |pods: &[Pod], masqueraded: bool| {
            let answer = |pod: &Pod| Outcome::Answered {
                by: pod.name().to_owned(),
                port: self.service.target_port,
                source: if masqueraded { pod.masquerade_address(family) } else { own },
            };
            Expect::Answers(pods.iter().map(answer).collect())
        };
        let other = |by: &str| {
            let answer = Outcome::Answered { by: by.to_owned(), port: to.port(), source: own };
            Expect::Answers(BTreeSet::from([answer]))
        };
        match verdict {
            Verdict::All => pods(self.state.all, false),
            Verdict::AllMasqueraded => pods(self.state.all, true),
            Verdict::Local => pods(self.state.local, false),
            Verdict::LocalMasqueraded => pods(self.state.local, true),
            Verdict::Refused => Expect::Refused,
            Verdict::Silence | Verdict::Never => Expect::Silence,
            Verdict::Untouched => other("internet"),
            Verdict::NodeItself => other("node1"),
        }
    }
}

/// Where a source is: its namespace, and the address to bind to if it is not the usual one.
pub(crate) fn place(world: &World, source: Source, family: Family) -> (Netns, Option<IpAddr>) {
    match source {
        Source::Pod => (world.pod(Pod::C).clone(), None),
        Source::Node => (world.node1.clone(), None),
        Source::Outside => (world.client.clone(), None),
        Source::RemotePod => (world.node3.clone(), Some(pod(family, 2, 10))),
    }
}

/// The address that a source has when nobody changes it.
fn sender(source: Source, family: Family, to: IpAddr) -> IpAddr {
    match source {
        Source::Pod => Pod::C.address(family),
        Source::Node if is_node_address(to) => to,
        Source::Node => node_address(family),
        Source::Outside => wire(family, 100),
        Source::RemotePod => pod(family, 2, 10),
    }
}
