//! `portolan render`: from manifests to text, with no privileges and no kernel.

use std::io::Write;
use std::path::Path;

use anyhow::Context;

use crate::backend::{Fragment, RuleComments};
use crate::cli::context::{Facts, node_context};
use crate::cli::{once, start};
use crate::compile::{Features, compile_service};
use crate::config::{Flags, ProxyMode, Settings};
use crate::iptables::restore_text;
use crate::ipvs::render_text;
use crate::model::{Cluster, Note};
use crate::net::{IpFamily, PerFamily};
use crate::source::{Event, manifests};

/// Prints what the manifests lead to, and on standard error what is wrong with them.
pub(super) fn render(flags: &Flags) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    let path = flags.manifests.as_deref().context("render needs --manifests PATH")?;
    let name = start::node_name(&settings)?;
    let (cluster, notes) = load(Path::new(path), &name)?;
    for note in &notes {
        eprintln!("portolan: {note}");
    }
    let text = render_cluster(&settings, &name, &cluster);
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// The cluster that manifests describe, and what is wrong with them.
fn load(path: &Path, node_name: &str) -> anyhow::Result<(Cluster, Vec<Note>)> {
    let mut cluster = Cluster::default();
    let mut notes = Vec::new();
    for event in manifests::load(path, node_name)? {
        match event {
            Event::Change(change) => drop(cluster.apply(change)),
            Event::Notes { notes: more, .. } => notes.extend(more),
            Event::WatchRestarted { .. } | Event::Heard { .. } => {}
        }
    }
    Ok((cluster, notes))
}

/// Both families as `iptables-restore` and `ip6tables-restore` would take them, IPv4 first; in IPVS mode followed by the items.
fn render_cluster(settings: &Settings, node_name: &str, cluster: &Cluster) -> String {
    let facts = Facts {
        node_name: node_name.into(),
        families: settings.families,
        features: Features { packet_counters: settings.mode == ProxyMode::Iptables, ..Features::CURRENT },
        route_localnet: true,
    };
    // No interface is looked at: restricted node ports are rendered for the Node's own addresses.
    let addresses = PerFamily::from_fn(|family| {
        cluster.node().addresses.iter().copied().filter(|address| IpFamily::of(*address) == family).collect()
    });
    let context = node_context(settings, &facts, cluster.node(), &addresses);
    let mut names: Vec<_> = cluster.entries().collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let plans: Vec<_> = names.iter().flat_map(|(name, entry)| compile_service(name, entry, &context)).collect();
    let comments = PerFamily::from_fn(|family| {
        let endpoints: usize = plans.iter().filter(|plan| plan.family == family).map(|plan| plan.endpoints.len()).sum();
        RuleComments::for_endpoints(endpoints)
    });
    let backend = once::backend(settings);
    let services = plans.chunk_by(|before, after| before.name.service == after.name.service).map(|plans| {
        let mut fragment = Fragment::default();
        plans.iter().for_each(|plan| backend.lower(plan, &context, comments[plan.family], &mut fragment));
        fragment
    });
    let fragments: Vec<Fragment> = std::iter::once(backend.base(&context)).chain(services).collect();
    let families = IpFamily::ALL.into_iter().filter(|family| settings.families[*family]);
    families
        .map(|family| match (settings.mode, family) {
            (ProxyMode::Ipvs, _) => render_text(family, &fragments),
            (ProxyMode::Iptables, IpFamily::V4) => {
                format!("# IPv4: iptables-restore --noflush\n{}", restore_text(family, &fragments))
            }
            (ProxyMode::Iptables, IpFamily::V6) => {
                format!("# IPv6: ip6tables-restore --noflush\n{}", restore_text(family, &fragments))
            }
        })
        .collect()
}
