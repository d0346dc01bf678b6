//! The IPVS backend: virtual servers, kube-proxy's sets and the few rules that look into them.

mod base;
mod lower;
pub mod names;
mod render;

pub use render::render_text;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{NodeContext, ServicePortPlan};
use crate::iptables::claims::Mode;
use crate::kernel::item::Scheduler;
use crate::kernel::{Claims, ItemClaims, ItemState};
use crate::net::IpFamily;

/// What can be set for IPVS mode and does not change while the program runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpvsSettings {
    /// How all virtual servers balance load.
    pub scheduler: Scheduler,
    /// How Service addresses become local.
    pub vips: Vips,
    /// Virtual servers with these addresses are never deleted.
    pub excluded: Vec<IpNet>,
}

/// How the addresses of Services become addresses of this node, which the kernel's load balancer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vips {
    /// Each is an address of the dummy link, as in kube-proxy.
    Addresses,
    /// Each of these networks gets one local route, with the node's address as source; addresses outside of them get one each.
    Routes {
        /// The networks that cluster IPs are taken from.
        service_cidrs: Vec<IpNet>,
    },
}

impl Default for IpvsSettings {
    /// kube-proxy's defaults.
    fn default() -> IpvsSettings {
        IpvsSettings { scheduler: Scheduler::ROUND_ROBIN, vips: Vips::Addresses, excluded: Vec::new() }
    }
}

impl IpvsSettings {
    /// The networks of a family that one route each makes local, sorted and without repetitions. The whole family is nobody's
    /// service range.
    fn service_cidrs(&self, family: IpFamily) -> impl Iterator<Item = IpNet> {
        let cidrs: &[IpNet] = match &self.vips {
            Vips::Addresses => &[],
            Vips::Routes { service_cidrs } => service_cidrs,
        };
        let usable = |cidr: &&IpNet| IpFamily::of_net(cidr) == family && cidr.prefix_len() > 0;
        cidrs.iter().filter(usable).map(IpNet::trunc).collect::<std::collections::BTreeSet<_>>().into_iter()
    }
}

/// The address from which the node sends along local routes: its own, if it has that. The kernel refuses a route with any other,
/// and the Node object may tell one that is only translated to an address of the node.
fn route_source(node: &NodeContext, family: IpFamily) -> ItemState {
    let has = |ip: &IpAddr| node.node_addresses[family].binary_search(ip).is_ok();
    ItemState::Source(node.node_ips[family].filter(has))
}

/// kube-proxy's IPVS mode, for both families.
#[derive(Clone, Debug, Default)]
pub struct IpvsBackend {
    /// The settings.
    pub settings: IpvsSettings,
}

impl Backend for IpvsBackend {
    fn base(&self, node: &NodeContext) -> Fragment {
        base::base(&self.settings, node)
    }

    fn lower(&self, plan: &ServicePortPlan, node: &NodeContext, _comments: RuleComments, out: &mut Fragment) {
        lower::lower(&self.settings, plan, node, out);
    }

    fn claims(&self) -> Claims {
        let items = ItemClaims { serving: true, excluded: self.settings.excluded.clone() };
        Claims { items: Some(items), ..Mode::Ipvs.removable() }
    }

    fn removable(&self) -> Claims {
        let items = ItemClaims { serving: false, excluded: self.settings.excluded.clone() };
        Claims { items: Some(items), ..Mode::Ipvs.removable() }
    }
}

#[cfg(test)]
mod tests;
