//! `portolan cleanup`: a sync to nothing. There is no second program that could forget what the first one makes.

use anyhow::bail;
use ipnet::IpNet;

use crate::backend::{Backend, Fragment, RuleComments};
use crate::cli::observer::NftablesLeft;
use crate::cli::start::{self, Prepare};
use crate::cli::{observer, once};
use crate::compile::{NodeContext, ServicePortPlan};
use crate::config::Flags;
use crate::iptables::IptablesBackend;
use crate::iptables::names::CANARY;
use crate::kernel::{ChainClass, Claims, ItemClaims, Table};
use crate::model::{Change, Objects};
use crate::sync::clock::SystemClock;
use crate::sync::{Engine, Leftovers, Options};

/// A backend that wants nothing, and claims what the backends of all modes make and kubelet does not.
struct Nothing {
    /// Virtual servers with these addresses are somebody else's.
    excluded: Vec<IpNet>,
}

impl Backend for Nothing {
    fn base(&self, _node: &NodeContext) -> Fragment {
        Fragment::default()
    }

    fn lower(&self, _plan: &ServicePortPlan, _node: &NodeContext, _comments: RuleComments, _out: &mut Fragment) {}

    fn claims(&self) -> Claims {
        let mut claims = IptablesBackend::default().removable();
        // kube-proxy's canary stands in three tables, and in this one nothing else of his.
        claims.chains.push((Table::Mangle, CANARY, ChainClass::Private));
        // For what is not there no module is loaded.
        claims.items = Some(ItemClaims { serving: false, excluded: self.excluded.clone() });
        claims
    }

    fn removable(&self) -> Claims {
        self.claims()
    }
}

/// Removes what is ours from every family that works, and nothing else.
pub(super) fn cleanup(flags: &Flags) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    // First: it needs no iptables.
    let no_nftables = NftablesLeft::perhaps().remove();
    let (kernel, facts) = start::kernel(&settings, Prepare::No)?;
    let options = Options { leftovers: Leftovers::Remove, ..once::engine_options(&settings, kernel.tools().variant()) };
    let context = NodeContext { families: facts.families, ..NodeContext::default() };
    let context_of = Box::new(move |_: &_, _: &_| context.clone());
    let nothing = Nothing { excluded: settings.ipvs.exclude_cidrs };
    let mut engine = Engine::new(kernel, SystemClock, Box::new(nothing), context_of, options);
    engine.apply(Change::Complete(Objects::Services(Default::default())));
    engine.apply(Change::Complete(Objects::Slices(Default::default())));
    engine.apply(Change::Complete(Objects::Node));
    let Some(report) = engine.sync() else { bail!("nothing was done") };
    observer::log_report(&report);
    for (area, error) in &report.unread_leftovers {
        tracing::warn!(%area, %error, "what is to be removed cannot be read");
    }
    if no_nftables && report.success() && report.unread_leftovers.is_empty() {
        Ok(())
    } else {
        bail!("not everything could be removed")
    }
}
