//! The IPVS backend: virtual servers, kube-proxy's sets and the few rules that look into them.

use ipnet::IpNet;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::compile::{NodeContext, ServicePortPlan};
use crate::kernel::item::Scheduler;
use crate::kernel::{Claims, ItemClaims};

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

/// kube-proxy's IPVS mode, for both families.
#[derive(Clone, Debug, Default)]
pub struct IpvsBackend {
    /// The settings.
    pub settings: IpvsSettings,
}

impl Backend for IpvsBackend {
    fn base(&self, _node: &NodeContext) -> Fragment {
        Fragment::default()
    }

    fn lower(&self, _plan: &ServicePortPlan, _node: &NodeContext, _comments: RuleComments, _out: &mut Fragment) {}

    fn claims(&self) -> Claims {
        Claims {
            items: Some(ItemClaims { serving: true, excluded: self.settings.excluded.clone() }),
            ..Claims::default()
        }
    }

    fn removable(&self) -> Claims {
        self.claims()
    }
}
