//! The seam between backends: how a plan is spelled in kernel objects. Pure.

use crate::compile::{NodeContext, ServicePortPlan};
use crate::kernel::{ChainBody, ChainKey, Claims, ItemKey, ItemState, Placement, RuleKey};

/// Whether rules in endpoint and dispatch chains carry comments. They are for people only, and on a big cluster they
/// are two fifths of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleComments {
    /// Written.
    Keep,
    /// Left out, as kube-proxy does above 1000 endpoints.
    Omit,
}

impl RuleComments {
    /// Above this number of endpoints in a family they are left out.
    const LARGE_CLUSTER_ENDPOINTS: usize = 1000;

    /// What holds for a family with so many endpoints, usable or not, over all its service ports.
    pub fn for_endpoints(count: usize) -> RuleComments {
        if count > Self::LARGE_CLUSTER_ENDPOINTS { RuleComments::Omit } else { RuleComments::Keep }
    }
}

/// The kernel objects that one owner (a Service, or the base) wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Shared chains that have to exist, in an order in which they can be created.
    pub shared_chains: Vec<ChainKey>,
    /// Private chains with their content, in an order in which they can be written: a chain comes after those that
    /// it jumps to.
    pub chains: Vec<(ChainKey, ChainBody)>,
    /// Rules in shared chains and host chains, with their place. Those with [`Placement::Head`] are inserted in this
    /// order, so that the last one ends up first.
    pub rules: Vec<(RuleKey, Placement)>,
    /// Items, without repetitions, in any order.
    pub items: Vec<(ItemKey, ItemState)>,
}

/// A way to spell plans in kernel objects.
pub trait Backend: Send {
    /// What exists with no Service at all.
    fn base(&self, node: &NodeContext) -> Fragment;

    /// Appends what one service port adds in its family.
    fn lower(&self, plan: &ServicePortPlan, node: &NodeContext, comments: RuleComments, out: &mut Fragment);

    /// How to recognise what is ours, whatever the settings.
    fn claims(&self) -> Claims;

    /// Like [`Backend::claims`], but only what `cleanup` removes.
    fn removable(&self) -> Claims;
}
