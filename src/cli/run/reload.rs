//! Another configuration while the daemon runs: what is in force afterwards, or why it is refused.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::cli::config_watch::Reload;
use crate::cli::context::Facts;
use crate::cli::logging::LogHandle;
use crate::cli::once::{backend, context_of, engine_options};
use crate::cli::run::servers::{self, InForce};
use crate::cli::start::{self, Prepare};
use crate::config::{IptablesVariant, ProxyMode, Settings, own_needing_restart};
use crate::health::{HealthState, Servers};
use crate::linux::{LinuxKernel, Variant};
use crate::metrics::{Metrics, Reloaded};
use crate::source::kube::events::{ClusterEvent, Recorder};
use crate::sync::clock::{Clock, SystemClock};
use crate::sync::{Message, Reconfiguration};

/// Puts settings in force, everywhere but in the source.
pub(super) struct Reloader {
    pub(super) in_force: InForce,
    pub(super) kernel: LinuxKernel,
    pub(super) facts: Facts,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<HealthState>,
    pub(super) recorder: Recorder,
    pub(super) to_sync: Sender<Message>,
}

impl Reloader {
    /// The file of `--config` has changed. What is refused leaves everything as it is.
    pub(super) fn take(&mut self, reload: Reload, servers: &Servers) {
        let result = match reload {
            Reload::Refused(errors) => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
            Reload::Changed(settings) if *settings == *self.in_force.get() => Ok(Reloaded::Unchanged),
            Reload::Changed(settings) => self.put_in_force(*settings, servers),
        };
        let node = Arc::clone(&self.facts.node_name);
        let reloaded = match result {
            Ok(Reloaded::Applied) => {
                tracing::info!("another configuration is in force");
                let note = "another configuration is in force".to_owned();
                self.recorder.record(ClusterEvent::configuration_applied(&node, note));
                Reloaded::Applied
            }
            Ok(other) => other,
            Err(why) => {
                tracing::error!("the configuration is refused, and the one before stays in force: {why}");
                self.recorder.record(ClusterEvent::invalid_configuration(&node, why));
                Reloaded::Refused
            }
        };
        self.metrics.reloaded(reloaded, SystemClock.wall());
    }

    fn put_in_force(&mut self, new: Settings, servers: &Servers) -> Result<Reloaded, String> {
        let old = self.in_force.get();
        // Before anything else is changed: a kernel that cannot do the new mode refuses all of it.
        let facts = self.prepare(&new)?;
        servers.rebind(&servers::listen(&new)).map_err(|error| error.to_string())?;
        for what in needs_restart(&old, &new) {
            tracing::warn!("{what} takes effect when the program is started again");
        }
        if let Some(log) = LogHandle::current() {
            log.apply(&new.logging);
        }
        self.health.set_sync_period(new.sync_period);
        servers::show_gates(&new, &self.metrics);
        let another_backend = new.mode != old.mode || (new.mode == ProxyMode::Ipvs && new.ipvs != old.ipvs);
        let reconfiguration = Reconfiguration {
            backend: another_backend.then(|| backend(&new)),
            options: engine_options(&new, self.kernel.tools().variant()),
            min_sync_period: new.min_sync_period,
            context_of: context_of(&new, facts.clone()),
        };
        self.facts = facts;
        self.in_force.set(new);
        // The end of the sync thread is noticed by the main thread.
        let _nobody_left = self.to_sync.send(Message::Reconfigure(Box::new(reconfiguration)));
        Ok(Reloaded::Applied)
    }

    /// What the new settings need of the kernel. Its tools, families and name stay what they were at the start.
    fn prepare(&self, new: &Settings) -> Result<Facts, String> {
        let variant = match self.kernel.tools().variant() {
            Variant::Nft => IptablesVariant::Nft,
            Variant::Legacy => IptablesVariant::Legacy,
        };
        let settings = Settings { iptables_variant: variant, ..new.clone() };
        let (_, found) = start::kernel(&settings, Prepare::Yes).map_err(|error| format!("{error:#}"))?;
        let (node_name, families) = (Arc::clone(&self.facts.node_name), self.facts.families);
        Ok(Facts { node_name, families, ..found })
    }
}

/// Settings that differ and that a running daemon cannot take.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differ = [
        ("hostnameOverride", old.hostname_override != new.hostname_override),
        ("clientConnection", old.client != new.client || old.kubeconfig != new.kubeconfig),
    ];
    let proxy = differ.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what);
    proxy.chain(own_needing_restart(old, new)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_the_connection_and_some_of_our_own_need_a_restart() {
        let old = Settings::default();
        let new = Settings { mode: ProxyMode::Ipvs, masquerade_all: true, ..Settings::default() };
        assert!(needs_restart(&old, &new).is_empty());
        let new = Settings {
            hostname_override: Some("other".into()),
            kubeconfig: Some("/k".into()),
            iptables_variant: IptablesVariant::Nft,
            ..new
        };
        assert_eq!(needs_restart(&old, &new), ["hostnameOverride", "clientConnection", "iptables.variant"]);
    }
}
