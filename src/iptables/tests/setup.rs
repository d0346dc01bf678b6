//! A small cluster: one Service on one node, and the rules that come of it with readable chain names.

use std::net::IpAddr;
use std::num::NonZeroU16;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{LocalDetector, NodeContext, ServicePortPlan, compile_service};
use crate::iptables::names::{PortChains, endpoint_chain};
use crate::iptables::{IptablesBackend, Layout, restore_text};
use crate::model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Service, ServiceEntry, ServiceName, ServicePort, SliceName,
    TrafficPolicy,
};
use crate::net::{IpFamily, Protocol};

pub(crate) const HERE: &str = "node-1";
pub(crate) const ELSEWHERE: &str = "node-2";
pub(crate) const TERMINATING: Conditions = Conditions { ready: false, serving: true, terminating: true };
pub(crate) const DEAD: Conditions = Conditions { ready: false, serving: false, terminating: true };

pub(crate) const A: &str = "10.180.0.1";
pub(crate) const B: &str = "10.180.0.2";
pub(crate) const C: &str = "10.180.0.3";

/// One Service and the node that it is programmed on.
#[derive(Clone)]
pub(crate) struct Setup {
    pub name: ServiceName,
    pub service: Service,
    pub endpoint_ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
    pub node: NodeContext,
    pub comments: RuleComments,
    pub layout: Layout,
}

/// `ns1/svc1:p80` on 172.30.0.41 port 80, on a node that knows its pods as 10.0.0.0/8. Counters are off.
pub(crate) fn service() -> Setup {
    let mut node = NodeContext { node_name: HERE.into(), ..NodeContext::default() };
    node.local_detector.v4 = Some(LocalDetector::SourceCidr("10.0.0.0/8".parse().unwrap()));
    node.local_detector.v6 = Some(LocalDetector::SourceCidr("fd00:10::/32".parse().unwrap()));
    node.node_ips.v4 = Some("192.168.0.2".parse().unwrap());
    node.features.packet_counters = false;
    Setup {
        name: ServiceName::new("ns1", "svc1"),
        service: Service { cluster_ip_v4: Some("172.30.0.41".parse().unwrap()), ..Service::default() },
        endpoint_ports: Vec::new(),
        endpoints: Vec::new(),
        node,
        comments: RuleComments::Keep,
        layout: Layout::KubeProxy,
    }
    .port("p80", Protocol::Tcp, 80, None)
}

/// The same with node port 30000, external IP 192.0.2.1 and VIP 1.2.3.4.
pub(crate) fn external_service() -> Setup {
    let mut setup = service();
    setup.service.ports = Box::default();
    setup.endpoint_ports.clear();
    setup.port("p80", Protocol::Tcp, 80, Some(30000)).external_ip("192.0.2.1").vip("1.2.3.4")
}

impl Setup {
    pub(crate) fn port(mut self, name: &str, protocol: Protocol, port: u16, node_port: Option<u16>) -> Setup {
        let number = NonZeroU16::new(port).unwrap();
        let added =
            ServicePort { name: name.into(), protocol, port: number, node_port: node_port.and_then(NonZeroU16::new) };
        self.service.ports = self.service.ports.iter().cloned().chain([added]).collect();
        self.endpoint_ports.push(EndpointPort { name: name.into(), protocol, port: number });
        self
    }

    pub(crate) fn endpoint(self, address: &str, node: &str) -> Setup {
        self.endpoint_in(address, node, Conditions::READY)
    }

    pub(crate) fn endpoint_in(mut self, address: &str, node: &str, conditions: Conditions) -> Setup {
        let node = (!node.is_empty()).then(|| node.into());
        self.endpoints.push(Endpoint { address: address.parse().unwrap(), conditions, node, hints: None });
        self
    }

    pub(crate) fn external_ip(mut self, address: &str) -> Setup {
        self.service.external_ips = append(&self.service.external_ips, address);
        self
    }

    pub(crate) fn vip(mut self, address: &str) -> Setup {
        self.service.load_balancer_vips = append(&self.service.load_balancer_vips, address);
        self
    }

    pub(crate) fn source_range(mut self, range: &str) -> Setup {
        let ranges = &mut self.service.load_balancer_source_ranges;
        *ranges = ranges.iter().copied().chain([range.parse().unwrap()]).collect();
        self
    }

    pub(crate) fn internal_local(mut self) -> Setup {
        self.service.internal_traffic_policy = TrafficPolicy::Local;
        self
    }

    pub(crate) fn external_local(mut self) -> Setup {
        self.service.external_traffic_policy = TrafficPolicy::Local;
        self
    }

    pub(crate) fn node(mut self, change: impl FnOnce(&mut NodeContext)) -> Setup {
        change(&mut self.node);
        self
    }

    pub(crate) fn plans(&self) -> Vec<ServicePortPlan> {
        let slices = IpFamily::ALL.into_iter().map(|family| {
            let slice = EndpointSlice {
                service: self.name.clone(),
                family,
                ports: self.endpoint_ports.clone().into(),
                endpoints: self.endpoints.iter().filter(|it| IpFamily::of(it.address) == family).cloned().collect(),
                triggered_at: None,
            };
            (SliceName::new("ns1", format!("svc1-{family}")), slice)
        });
        let entry = ServiceEntry::new(Some(self.service.clone()), slices);
        compile_service(&self.name, &entry, &self.node)
    }

    pub(crate) fn compact(mut self) -> Setup {
        self.layout = Layout::Compact;
        self
    }

    fn backend(&self) -> IptablesBackend {
        IptablesBackend { layout: self.layout }
    }

    pub(crate) fn fragment(&self) -> Fragment {
        let mut out = Fragment::default();
        for plan in self.plans() {
            self.backend().lower(&plan, &self.node, self.comments, &mut out);
        }
        out
    }

    /// Base and Service, in both families.
    pub(crate) fn fragments(&self) -> [Fragment; 2] {
        [self.backend().base(&self.node), self.fragment()]
    }

    /// Every rule of the Service in one family, as `table chain rule`, in the order in which it ends up. The chains of
    /// the first port are called SVC, SVL, EXT, FW and SEP(address:port), those of the second SVC2 and so on.
    pub(crate) fn all_in(&self, family: IpFamily) -> Vec<String> {
        let text = restore_text(family, [&self.fragment()]);
        let mut table = "";
        let mut rules = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(rule) = line.strip_prefix("-A ") {
                rules.push(format!("{table} {}", self.readable(rule)));
            }
        }
        rules
    }

    /// The IPv4 rules.
    pub(crate) fn all(&self) -> Vec<String> {
        self.all_in(IpFamily::V4)
    }

    /// The IPv4 rules of one chain, given as `nat SVC`.
    pub(crate) fn chain(&self, chain: &str) -> Vec<String> {
        self.all().iter().filter_map(|rule| Some(rule.strip_prefix(chain)?.strip_prefix(' ')?.to_owned())).collect()
    }

    fn readable(&self, rule: &str) -> String {
        let mut text = rule.to_owned();
        for (at, plan) in self.plans().iter().filter(|plan| plan.family == IpFamily::V4).enumerate() {
            let suffix = if at == 0 { String::new() } else { (at + 1).to_string() };
            let PortChains { svc, svl, ext, fw } = PortChains::new(&plan.name.to_string(), &plan.name, self.layout);
            for (chain, label) in [(svc, "SVC"), (svl, "SVL"), (ext, "EXT"), (fw, "FW")] {
                text = text.replace(chain.as_str(), &format!("{label}{suffix}"));
            }
        }
        for plan in self.plans() {
            for endpoint in &plan.endpoints {
                let chain = endpoint_chain(&plan.name, endpoint.socket);
                text = text.replace(chain.as_str(), &format!("SEP({})", endpoint.socket));
            }
        }
        text
    }
}

fn append(list: &[IpAddr], address: &str) -> Box<[IpAddr]> {
    list.iter().copied().chain([address.parse().unwrap()]).collect()
}
