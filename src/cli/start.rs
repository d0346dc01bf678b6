//! What all commands do first: read the settings, name the node, look at the kernel.

use anyhow::{Context, anyhow, bail};

use crate::cli::context::{Facts, wants_localhost_node_ports};
use crate::cli::logging::LogHandle;
use crate::compile::Features;
use crate::config::{ConfigFile, Flags, IptablesVariant, ProxyMode, Settings, VipSetting};
use crate::iptables::base::{INVALID_COUNTER, LOCALHOST_COUNTER};
use crate::linux::{self, LinuxKernel, Variant};
use crate::net::PerFamily;

/// Settings from flags and file, with a log line for everything that was given in vain.
pub(super) fn settings(flags: &Flags) -> anyhow::Result<Settings> {
    let all = |errors: Vec<crate::config::ConfigError>| {
        anyhow!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))
    };
    let file = flags
        .config
        .as_deref()
        .map(|path| ConfigFile::load(path).map_err(|errors| all(errors).context(format!("configuration file {path}"))))
        .transpose()?;
    let settings =
        Settings::resolve(flags, file.as_ref()).map_err(|errors| all(errors).context("invalid configuration"));
    if let (Some(log), Ok(settings)) = (LogHandle::current(), &settings) {
        log.apply(&settings.logging);
    }
    if let Some(file) = &file {
        file.warnings.iter().for_each(|warning| tracing::warn!("configuration file: {warning}"));
        for flag in flags.ignored_with_file() {
            tracing::warn!("{flag} has no effect: the configuration file takes its place");
        }
    }
    settings
}

/// `--init-only`: the set-up of the kernel that needs all privileges, so that the daemon that starts afterwards does with
/// less: it finds every value right and writes none of them.
pub(super) fn init_only(flags: &Flags) -> anyhow::Result<()> {
    let settings = settings(flags)?;
    let (kernel, facts) = kernel(&settings, Prepare::Yes)?;
    if settings.mode == ProxyMode::Iptables {
        prepare_later_ipvs(&kernel);
    }
    tracing::info!(mode = %settings.mode, node = %facts.node_name, "the kernel is set up");
    Ok(())
}

/// What IPVS mode relies on, so that the mode can be changed while a daemon without privileges runs. Nothing is loaded for it: only
/// where the module is there already. `strictARP` concerns packets of all programs on the node and waits until IPVS mode is chosen,
/// as does `route_localnet` in the other direction.
fn prepare_later_ipvs(kernel: &LinuxKernel) {
    if linux::sysctl::read("net/ipv4/vs/conntrack").is_err() {
        return;
    }
    match kernel.prepare_ipvs(&linux::ipvs::Preparation::default()) {
        Ok(remarks) => remarks.iter().for_each(|remark| tracing::info!("for a later change to IPVS mode: {remark}")),
        Err(error) => tracing::info!(%error, "the kernel is not set up for a later change to IPVS mode"),
    }
}

/// The own Node's name.
pub(super) fn node_name(settings: &Settings) -> anyhow::Result<String> {
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    settings.node_name(&hostname).map_err(|error| anyhow!("{error}"))
}

/// Opens the kernel and finds out what it can do. Sets up what the mode relies on (`route_localnet` and the packet counters, or
/// IPVS) if `prepare` says so: a dry run must not.
pub(super) fn kernel(settings: &Settings, prepare: Prepare) -> anyhow::Result<(LinuxKernel, Facts)> {
    let variant = match settings.iptables_variant {
        IptablesVariant::Auto => None,
        IptablesVariant::Nft => Some(Variant::Nft),
        IptablesVariant::Legacy => Some(Variant::Legacy),
    };
    // No family is demanded: which of them work is found out below.
    let families = PerFamily::default();
    let kernel = LinuxKernel::new(linux::Options { variant, families, ..linux::Options::default() })?;
    let families = PerFamily::from_fn(|family| {
        if !settings.families[family] {
            return false;
        }
        match kernel.check_family(family) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%family, %error, "this family is not programmed");
                false
            }
        }
    });
    if families == PerFamily::default() {
        let errors = crate::net::IpFamily::ALL.map(|family| match kernel.check_family(family) {
            Ok(()) => format!("{family} is switched off"),
            Err(error) => error.to_string(),
        });
        bail!("neither IPv4 nor IPv6 can be programmed: {}", errors.join("; "));
    }
    tracing::info!(variant = kernel.tools().variant().as_str(), v4 = families.v4, v6 = families.v6, "iptables");
    let facts = facts(&kernel, families, settings, prepare)?;
    Ok((kernel.with_families(families), facts))
}

/// What holds on an open kernel under these settings. Sets up what they rely on if `prepare` says so; an error may leave some
/// of that behind.
pub(super) fn facts(
    kernel: &LinuxKernel,
    families: PerFamily<bool>,
    settings: &Settings,
    prepare: Prepare,
) -> anyhow::Result<Facts> {
    if let Some(error) = crate::config::refusal(settings, families) {
        bail!("{error}");
    }
    let node_name = node_name(settings)?.into();
    if prepare == Prepare::Yes {
        // A mode that is not possible leaves nothing behind.
        if settings.mode == ProxyMode::Ipvs {
            require_ipvs(kernel, settings, families).context(NO_IPVS)?;
        }
        // Before the look at the kernel: `tcp_be_liberal` decides on a rule.
        prepare_node(settings)?;
    }
    let found = kernel.probe(families);
    let mut facts = Facts {
        node_name,
        families,
        features: Features {
            random_fully: found.random_fully,
            packet_counters: found.packet_counters && settings.mode == ProxyMode::Iptables,
            tcp_be_liberal: found.tcp_be_liberal,
        },
        route_localnet: families.v4 && wants_localhost_node_ports(settings),
    };
    if prepare == Prepare::Yes {
        match settings.mode {
            ProxyMode::Iptables => prepare_iptables(kernel, &mut facts)?,
            ProxyMode::Ipvs => prepare_ipvs(kernel, settings).context(NO_IPVS)?,
        }
    }
    Ok(facts)
}

/// Whether [`facts`] have to be found out anew when the settings change.
pub(super) fn other_facts(old: &Settings, new: &Settings) -> bool {
    old.mode != new.mode
        || (new.mode == ProxyMode::Ipvs && old.ipvs != new.ipvs)
        || old.conntrack != new.conntrack
        || old.oom_score_adj != new.oom_score_adj
        || wants_localhost_node_ports(old) != wants_localhost_node_ports(new)
}

const NO_IPVS: &str = "IPVS mode cannot work on this node";

/// Whether things that rules rely on may be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prepare {
    /// Set them up.
    Yes,
    /// Look only.
    No,
}

/// Sets what concerns the node and no mode.
fn prepare_node(settings: &Settings) -> anyhow::Result<()> {
    let remarks = linux::node::set_up_conntrack(&settings.conntrack).context("could not set conntrack parameters")?;
    remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
    if let Some(remark) = linux::node::set_oom_score(settings.oom_score_adj) {
        tracing::warn!("the OOM score stays as it is: {remark}");
    }
    Ok(())
}

fn prepare_iptables(kernel: &LinuxKernel, facts: &mut Facts) -> anyhow::Result<()> {
    if facts.route_localnet {
        linux::sysctl::ensure("net/ipv4/conf/all/route_localnet", "1")
            .context("needed for node ports on 127.0.0.1; switch them off with --iptables-localhost-nodeports=false")?;
    }
    if facts.features.packet_counters {
        for name in [INVALID_COUNTER, LOCALHOST_COUNTER] {
            if let Err(error) = kernel.ensure_counter(name) {
                tracing::warn!(%error, "packets are not counted");
                facts.features.packet_counters = false;
            }
        }
    }
    Ok(())
}

/// Ends with one sentence for each need that the kernel does not meet: there is no other mode to fall back to.
fn require_ipvs(kernel: &LinuxKernel, settings: &Settings, families: PerFamily<bool>) -> anyhow::Result<()> {
    let options = &settings.ipvs;
    let dummy_link = matches!(options.vips, VipSetting::Addresses);
    kernel.ipvs_requirements(&linux::ipvs::Needs { families, scheduler: options.scheduler, dummy_link })?;
    Ok(())
}

fn prepare_ipvs(kernel: &LinuxKernel, settings: &Settings) -> anyhow::Result<()> {
    let options = &settings.ipvs;
    let remarks = kernel.prepare_ipvs(&linux::ipvs::Preparation {
        strict_arp: options.strict_arp,
        tcp_timeout: options.tcp_timeout,
        tcp_fin_timeout: options.tcp_fin_timeout,
        udp_timeout: options.udp_timeout,
        run_estimation: options.run_estimation,
    })?;
    remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
    Ok(())
}
