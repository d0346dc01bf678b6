//! `portolan sync --once`: one sync, and what came of it.

use std::cell::RefCell;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::backend::Backend;
use crate::cli::context::{Facts, node_context};
use crate::cli::start::{self, Prepare};
use crate::cli::{observer, run};
use crate::config::node::node_ips;
use crate::config::{Flags, IptablesLayout, ProxyMode, Settings, VipSetting, node_remark};
use crate::iptables::{IptablesBackend, Layout};
use crate::ipvs::{IpvsBackend, IpvsSettings, Vips};
use crate::kernel::Kernel;
use crate::kernel::fault::RecordingKernel;
use crate::linux::Variant;
use crate::model::Change;
use crate::net::PerFamily;
use crate::source::{Event, manifests};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{ContextOf, Engine, NodeNeeds, Options, SyncReport};

/// How long to wait for the API server's lists.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);

/// Makes the kernel agree once, or prints what that would take.
pub(super) fn sync_once(flags: &Flags, dry_run: bool) -> anyhow::Result<()> {
    let settings = start::settings(flags)?;
    let prepare = if dry_run { Prepare::No } else { Prepare::Yes };
    let (kernel, facts) = start::kernel(&settings, prepare)?;
    let changes = changes(flags, &settings, &facts)?;
    if run::node_needs(flags.manifests.as_deref(), &settings) == NodeNeeds::PodCidrs && !have_pod_cidrs(&changes) {
        bail!("the Node {} has no pod CIDRs, and detectLocalMode NodeCIDR needs them", facts.node_name);
    }
    let options = engine_options(&settings, kernel.tools().variant());
    let addresses = run::addresses(&kernel, &facts)?;
    if dry_run {
        let mut engine = engine(RecordingKernel::new(kernel), &settings, facts, options);
        let report = sync(&mut engine, changes, addresses)?;
        let kernel = engine.kernel();
        for (at, transaction) in kernel.transactions.iter().enumerate() {
            println!("transaction {}:", at + 1);
            transaction.iter().for_each(|op| println!("  {op}"));
        }
        println!("{} operations in {} transactions", kernel.operations().count(), kernel.transactions.len());
        return finish(&report);
    }
    let mut engine = engine(kernel, &settings, facts, options);
    let mut report = sync(&mut engine, changes, addresses)?;
    observer::log_report(&report);
    // What another mode has left behind goes when the rules stand.
    while report.success() && engine.due().is_some_and(|due| due <= SystemClock.now()) {
        report = engine.sync().context("the lists are complete no longer")?;
        observer::log_report(&report);
    }
    finish(&report)
}

/// Whether the Node is there and has any.
fn have_pod_cidrs(changes: &[Change]) -> bool {
    changes.iter().any(|change| matches!(change, Change::Node(node) if !node.pod_cidrs.is_empty()))
}

/// How the engine treats this variant of iptables.
pub(super) fn engine_options(settings: &Settings, variant: Variant) -> Options {
    Options {
        operations_per_transaction: match variant {
            Variant::Nft => Options::default().operations_per_transaction,
            Variant::Legacy => usize::MAX,
        },
        full_interval: settings.full_sync_period,
        check_interval: settings.sync_period,
        longest_retry: settings.sync_period,
        drain_timeout: settings.ipvs.drain_timeout,
        ..Options::default()
    }
}

/// The backend of the mode.
pub(super) fn backend(settings: &Settings) -> Box<dyn Backend> {
    match settings.mode {
        ProxyMode::Iptables => Box::new(IptablesBackend { layout: layout(settings) }),
        ProxyMode::Ipvs => Box::new(IpvsBackend { settings: ipvs_settings(settings) }),
    }
}

fn layout(settings: &Settings) -> Layout {
    match settings.iptables_layout {
        IptablesLayout::KubeProxy => Layout::KubeProxy,
        IptablesLayout::Compact => Layout::Compact,
    }
}

fn ipvs_settings(settings: &Settings) -> IpvsSettings {
    let options = &settings.ipvs;
    IpvsSettings {
        scheduler: options.scheduler,
        vips: match &options.vips {
            VipSetting::Addresses => Vips::Addresses,
            VipSetting::Routes(cidrs) => Vips::Routes { service_cidrs: cidrs.clone() },
        },
        excluded: options.exclude_cidrs.clone(),
    }
}

/// An engine for these settings.
pub(super) fn engine<K: Kernel>(
    kernel: K,
    settings: &Settings,
    facts: Facts,
    options: Options,
) -> Engine<K, SystemClock> {
    Engine::new(kernel, SystemClock, backend(settings), context_of(settings, facts), options)
}

/// Makes contexts for compiling under these settings.
pub(super) fn context_of(settings: &Settings, facts: Facts) -> ContextOf {
    let settings = settings.clone();
    let said = RefCell::new(None);
    Box::new(move |node, addresses| {
        let primary = node_ips(&node.addresses, settings.bind_address).primary;
        let remark = node_remark(&settings, primary, &node.pod_cidrs);
        if *said.borrow() != remark {
            remark.iter().for_each(|remark| tracing::warn!("{remark}"));
            said.replace(remark);
        }
        node_context(&settings, &facts, node, addresses)
    })
}

fn sync<K: Kernel>(
    engine: &mut Engine<K, SystemClock>,
    changes: Vec<Change>,
    addresses: PerFamily<Vec<std::net::IpAddr>>,
) -> anyhow::Result<SyncReport> {
    engine.set_addresses(addresses);
    changes.into_iter().for_each(|change| engine.apply(change));
    engine.sync().context("the lists of Services and EndpointSlices are not complete")
}

/// Everything that the source has to say until both lists are complete.
fn changes(flags: &Flags, settings: &Settings, facts: &Facts) -> anyhow::Result<Vec<Change>> {
    let events = match &flags.manifests {
        Some(path) => manifests::load(Path::new(path), &facts.node_name)?,
        None => first_events(settings, facts)?,
    };
    let mut changes = Vec::new();
    for event in events {
        match event {
            Event::Change(change) => changes.push(change),
            Event::Notes { notes, .. } => notes.iter().for_each(|note| tracing::warn!("{note}")),
            Event::WatchRestarted { kind, reason } => tracing::warn!(%kind, reason, "watch begins again"),
            Event::Heard { .. } => {}
        }
    }
    Ok(changes)
}

fn first_events(settings: &Settings, facts: &Facts) -> anyhow::Result<Vec<Event>> {
    let (sender, receiver) = mpsc::channel();
    let source = run::Connection::new(settings, None)?.watch(&facts.node_name, sender, None)?;
    let deadline = SystemClock.now() + LIST_TIMEOUT;
    let mut events = Vec::new();
    let mut complete = 0;
    while complete < 3 {
        let Ok(event) = receiver.recv_timeout(deadline.saturating_duration_since(SystemClock.now())) else {
            bail!("the API server did not give complete lists within {} s", LIST_TIMEOUT.as_secs());
        };
        complete += usize::from(matches!(event, Event::Change(Change::Complete(_))));
        events.push(event);
    }
    source.stop();
    Ok(events)
}

fn finish(report: &SyncReport) -> anyhow::Result<()> {
    if report.success() {
        return Ok(());
    }
    for (table, error) in &report.failed_dumps {
        eprintln!("portolan: {table}: {error}");
    }
    for failed in &report.failed {
        match &failed.service {
            Some(service) => eprintln!("portolan: Service {service}: {}", failed.error),
            None if failed.isolated => eprintln!("portolan: leftovers cannot be removed: {}", failed.error),
            None => eprintln!("portolan: the rules on which all Services stand: {}", failed.error),
        }
    }
    bail!("{} Services or tables are not as they should be", report.failed.len() + report.failed_dumps.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IpvsOptions;
    use crate::kernel::item::Scheduler;

    fn settings(mode: ProxyMode) -> Settings {
        let ipvs = IpvsOptions {
            scheduler: Scheduler::new("mh").unwrap(),
            exclude_cidrs: vec!["192.0.2.0/24".parse().unwrap()],
            vips: VipSetting::Routes(vec!["10.96.0.0/12".parse().unwrap()]),
            ..IpvsOptions::default()
        };
        Settings { mode, ipvs, ..Settings::default() }
    }

    #[test]
    fn the_mode_decides_on_the_backend_and_its_settings() {
        let items = |mode| backend(&settings(mode)).claims().items.filter(|items| items.serving);
        assert_eq!(items(ProxyMode::Iptables), None);
        assert_eq!(items(ProxyMode::Ipvs).unwrap().excluded, ["192.0.2.0/24".parse().unwrap()]);
        let found = ipvs_settings(&settings(ProxyMode::Ipvs));
        assert_eq!(found.scheduler.as_str(), "mh");
        assert_eq!(found.vips, Vips::Routes { service_cidrs: vec!["10.96.0.0/12".parse().unwrap()] });
        assert_eq!(ipvs_settings(&Settings::default()), IpvsSettings::default());
    }
}
